"""Times measured fairly: alternatives in turn, medians with intervals, and what each drafter gains on this machine."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.bench.diffusion import DecoderComparison as DecoderComparison
    from likely.bench.diffusion import NamedDecoder as NamedDecoder
    from likely.bench.diffusion import compare_decoders as compare_decoders
    from likely.bench.profile import fit_timings as fit_timings
    from likely.bench.profile import profile_model as profile_model
    from likely.bench.speculation import DrafterTiming as DrafterTiming
    from likely.bench.speculation import Task as Task
    from likely.bench.speculation import compare as compare
    from likely.bench.timing import Ratio as Ratio
    from likely.bench.timing import Timing as Timing
    from likely.bench.timing import interleaved as interleaved
    from likely.bench.timing import refuse_busy as refuse_busy
    from likely.bench.timing import speedup as speedup
    from likely.bench.timing import timed as timed

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
