"""A language model behind an OpenAI-compatible server, believed only as far as its replies can be checked."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.lm.remote.completions import RemoteStream as RemoteStream
    from likely.lm.remote.http import Endpoint as Endpoint
    from likely.lm.remote.model import RemoteCapabilities as RemoteCapabilities
    from likely.lm.remote.model import RemoteModel as RemoteModel

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
