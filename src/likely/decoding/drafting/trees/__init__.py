"""Draft trees of a known q: shapes, how children are sampled, and how many drafts grow in one call of a model."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.drafting.trees.growth import grow_together as grow_together
    from likely.decoding.drafting.trees.growth import grow_with as grow_with
    from likely.decoding.drafting.trees.shapes import Chain as Chain
    from likely.decoding.drafting.trees.shapes import ConstantBranching as ConstantBranching
    from likely.decoding.drafting.trees.shapes import DraftShape as DraftShape
    from likely.decoding.drafting.trees.shapes import IidPaths as IidPaths
    from likely.decoding.drafting.trees.shapes import StochasticBeam as StochasticBeam
    from likely.decoding.drafting.trees.shapes import named_shape as named_shape

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
