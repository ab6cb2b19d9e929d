"""How many drafted tokens a step verifies: what calls cost, what drafts achieved, and the lengths of most goodput."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.budget.acceptance import AcceptanceEstimate as AcceptanceEstimate
    from likely.decoding.drafting.budget.acceptance import AcceptanceTracker as AcceptanceTracker
    from likely.decoding.drafting.budget.acceptance import SourceRecord as SourceRecord
    from likely.decoding.drafting.budget.acceptance import match_class as match_class
    from likely.decoding.drafting.budget.call_costs import CallCosts as CallCosts
    from likely.decoding.drafting.budget.controller import Candidate as Candidate
    from likely.decoding.drafting.budget.controller import Controller as Controller
    from likely.decoding.drafting.budget.controller import PlannedCall as PlannedCall
    from likely.decoding.drafting.budget.goodput import choose_length as choose_length
    from likely.decoding.drafting.budget.goodput import draft_lengths as draft_lengths
    from likely.decoding.drafting.budget.goodput import expected_tokens as expected_tokens
    from likely.decoding.drafting.budget.goodput import schedule_by_batch as schedule_by_batch

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
