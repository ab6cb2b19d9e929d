"""What runs a model: the Runtime protocol, the table of its kinds, and what a call costs on this machine."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.runtimes.cost_curve import CostCurve as CostCurve
    from likely.runtimes.kinds import KINDS as KINDS
    from likely.runtimes.kinds import LocalOptions as LocalOptions
    from likely.runtimes.kinds import RuntimeKind as RuntimeKind
    from likely.runtimes.kinds import kinds_with as kinds_with
    from likely.runtimes.machine import Machine as Machine
    from likely.runtimes.prefix_cache import PrefixCache as PrefixCache
    from likely.runtimes.protocol import Capabilities as Capabilities
    from likely.runtimes.protocol import LayerPlan as LayerPlan
    from likely.runtimes.protocol import Limits as Limits
    from likely.runtimes.protocol import Output as Output
    from likely.runtimes.protocol import Runtime as Runtime
    from likely.runtimes.protocol import Sequence as Sequence
    from likely.runtimes.protocol import Want as Want
    from likely.runtimes.protocol import Work as Work
    from likely.runtimes.step_cost import StepCost as StepCost
    from likely.runtimes.toy import CharTokenizer as CharTokenizer
    from likely.runtimes.toy import ToyRuntime as ToyRuntime

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
