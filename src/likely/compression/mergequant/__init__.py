"""MergeQuant: static codes for each activation channel, their steps folded into norms and weights."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.compression.mergequant.method import MergeQuant as MergeQuant
    from likely.compression.mergequant.method import use_integer_products as use_integer_products

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
