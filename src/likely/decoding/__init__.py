"""Decoding: one loop over many requests, with sampling, constraints, beams, particles and speculation."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.accept import matched_walk as matched_walk
    from likely.decoding.accept import sampled_walk as sampled_walk
    from likely.decoding.constraint import Constraint as Constraint
    from likely.decoding.constraint import ConstraintDeadEnd as ConstraintDeadEnd
    from likely.decoding.constraint import ConstraintViolation as ConstraintViolation
    from likely.decoding.constraint import LogitsProcessor as LogitsProcessor
    from likely.decoding.loop import Loop as Loop
    from likely.decoding.request import Event as Event
    from likely.decoding.request import Finished as Finished
    from likely.decoding.request import Request as Request
    from likely.decoding.run import events as events
    from likely.decoding.sampling import Sampling as Sampling
    from likely.decoding.scheduling import SchedulingPolicy as SchedulingPolicy
    from likely.decoding.text import TextStream as TextStream

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
