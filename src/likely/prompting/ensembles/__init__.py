"""One model as an ensemble of itself: other demonstrations or other prompts, combined into one opinion."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.ensembles.combining import Ensembled as Ensembled
    from likely.prompting.ensembles.combining import combine_members as combine_members
    from likely.prompting.ensembles.demonstrations import FewShotTask as FewShotTask
    from likely.prompting.ensembles.ensemble import EnsembleSpec as EnsembleSpec
    from likely.prompting.ensembles.ensemble import SelfEnsemble as SelfEnsemble
    from likely.prompting.ensembles.ensemble import tuning_pairs as tuning_pairs

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
