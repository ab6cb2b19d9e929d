"""What models can and cannot do, measured: generated code run against its tests, function calls held
against what was expected, spectra of hidden states."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.code.benchmarks import check as check
    from likely.audit.code.benchmarks import evaluate as evaluate
    from likely.audit.code.benchmarks import problems as problems
    from likely.audit.code.sandbox import SandboxLimits as SandboxLimits
    from likely.audit.code.sandbox import run_python as run_python
    from likely.audit.function_calling import CallVerdict as CallVerdict
    from likely.audit.function_calling import FunctionCase as FunctionCase
    from likely.audit.function_calling import PredictedCall as PredictedCall
    from likely.audit.function_calling import as_functions as as_functions
    from likely.audit.function_calling import check_call as check_call
    from likely.audit.function_calling import check_calls as check_calls
    from likely.audit.function_calling import check_case as check_case
    from likely.audit.function_calling import function_cases as function_cases
    from likely.audit.spectral import CAVEATS as CAVEATS
    from likely.audit.spectral import SpectralReport as SpectralReport
    from likely.audit.spectral import TextSpectrum as TextSpectrum
    from likely.audit.spectral import effective_rank as effective_rank
    from likely.audit.spectral import matrix_entropy as matrix_entropy
    from likely.audit.spectral import matrix_nuclear_norm as matrix_nuclear_norm
    from likely.audit.spectral import measure_spectra as measure_spectra
    from likely.audit.spectral import nuclear_norm as nuclear_norm

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
