"""How uncertain a model is of its answers: estimators over one greedy text, samples, beams or questions to itself."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.uncertainty.clusters import Clusterer as Clusterer
    from likely.uncertainty.clusters import by_model as by_model
    from likely.uncertainty.clusters import embedding as embedding
    from likely.uncertainty.clusters import lexical as lexical
    from likely.uncertainty.clusters import nli as nli
    from likely.uncertainty.likelihood import answer_span as answer_span
    from likely.uncertainty.likelihood import g_nll as g_nll
    from likely.uncertainty.planner import gather as gather
    from likely.uncertainty.table import ESTIMATORS as ESTIMATORS
    from likely.uncertainty.table import Estimator as Estimator
    from likely.uncertainty.table import estimate as estimate
    from likely.uncertainty.table import needs_of as needs_of
    from likely.uncertainty.types import Gathered as Gathered
    from likely.uncertainty.types import GenerationScores as GenerationScores
    from likely.uncertainty.types import OptionScores as OptionScores
    from likely.uncertainty.types import Uncertainty as Uncertainty
    from likely.uncertainty.verbal import stated_confidence as stated_confidence
    from likely.uncertainty.verbal import stated_probability as stated_probability

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
