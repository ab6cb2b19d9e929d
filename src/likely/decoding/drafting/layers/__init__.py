"""Drafting under a layer plan: a model with layers left out or side by side, and the search for such plans."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.layers.agreement import Agreement as Agreement
    from likely.decoding.drafting.layers.agreement import PlanComparison as PlanComparison
    from likely.decoding.drafting.layers.agreement import fuzzy_agreement as fuzzy_agreement
    from likely.decoding.drafting.layers.drafter import SelfSpeculation as SelfSpeculation
    from likely.decoding.drafting.layers.drafter import layer_parallel as layer_parallel
    from likely.decoding.drafting.layers.drafter import layer_skip as layer_skip
    from likely.decoding.drafting.layers.search import DraftCost as DraftCost
    from likely.decoding.drafting.layers.search import PlanSearch as PlanSearch
    from likely.decoding.drafting.layers.search import search_plan as search_plan

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
