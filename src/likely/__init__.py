"""likely: the sequence likelihood of a language model, and everything that follows from it.

import likely
lm = likely.load("smollm2")
lm.score("2 + 2 =", [" 4", " 5"])
lm.ask("Capital of France?").text
"""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.errors import CapabilityError as CapabilityError
    from likely.errors import ConstraintError as ConstraintError
    from likely.errors import DataError as DataError
    from likely.errors import KvFull as KvFull
    from likely.errors import LikelyError as LikelyError
    from likely.errors import ModelError as ModelError
    from likely.errors import RemoteError as RemoteError
    from likely.lm.api import ask as ask
    from likely.lm.api import generate as generate
    from likely.lm.api import load as load
    from likely.lm.api import score as score
    from likely.lm.model import Model as Model
    from likely.lm.remote.model import RemoteModel as RemoteModel
    from likely.lm.results import Answer as Answer
    from likely.lm.results import Generation as Generation
    from likely.queries import query as query
    from likely.scoring.scored import Scored as Scored

__version__ = "0.1.0"
__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
