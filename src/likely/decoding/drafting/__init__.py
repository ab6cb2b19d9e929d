"""Drafters: cheap guesses of the next tokens, which one call of the model verifies; `table` lists them by name."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.budget import Controller as Controller
    from likely.decoding.drafting.composite import FirstOf as FirstOf
    from likely.decoding.drafting.lookup import CopySource as CopySource
    from likely.decoding.drafting.lookup import PromptLookup as PromptLookup
    from likely.decoding.drafting.protocol import Draft as Draft
    from likely.decoding.drafting.protocol import DraftDistribution as DraftDistribution
    from likely.decoding.drafting.protocol import Drafter as Drafter
    from likely.decoding.drafting.protocol import DraftSource as DraftSource
    from likely.decoding.drafting.protocol import SamplingContext as SamplingContext
    from likely.decoding.drafting.replay import RecordedAnswer as RecordedAnswer
    from likely.decoding.drafting.replay import replay_all as replay_all
    from likely.decoding.drafting.table import DRAFTERS as DRAFTERS
    from likely.decoding.drafting.table import DrafterContext as DrafterContext
    from likely.decoding.drafting.table import make_drafter as make_drafter

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
