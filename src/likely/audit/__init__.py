"""What models can and cannot do, measured: generated code run against its tests."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.code.benchmarks import check as check
    from likely.audit.code.benchmarks import evaluate as evaluate
    from likely.audit.code.benchmarks import problems as problems
    from likely.audit.code.sandbox import SandboxLimits as SandboxLimits
    from likely.audit.code.sandbox import run_python as run_python

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
