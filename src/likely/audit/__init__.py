"""What models can and cannot do, measured: how answers move when one thing about the prompt changes, what an endpoint
gives away, generated code run against its tests, function calls, spectra of hidden states."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.ablation import MotifTokens as MotifTokens
    from likely.audit.ablation import SegmentAblation as SegmentAblation
    from likely.audit.ablation import ablation_report as ablation_report
    from likely.audit.ablation import motif_tokens as motif_tokens
    from likely.audit.case import Case as Case
    from likely.audit.case import CaseRecord as CaseRecord
    from likely.audit.case import Variant as Variant
    from likely.audit.case import likelihoods as likelihoods
    from likely.audit.case import read_cases as read_cases
    from likely.audit.case import run_audit as run_audit
    from likely.audit.code.benchmarks import check as check
    from likely.audit.code.benchmarks import evaluate as evaluate
    from likely.audit.code.benchmarks import problems as problems
    from likely.audit.code.sandbox import SandboxLimits as SandboxLimits
    from likely.audit.code.sandbox import run_python as run_python
    from likely.audit.consistency import Consistency as Consistency
    from likely.audit.consistency import consistency_report as consistency_report
    from likely.audit.consistency import probe_variants as probe_variants
    from likely.audit.function_calling import CallVerdict as CallVerdict
    from likely.audit.function_calling import FunctionCase as FunctionCase
    from likely.audit.function_calling import PredictedCall as PredictedCall
    from likely.audit.function_calling import as_functions as as_functions
    from likely.audit.function_calling import check_call as check_call
    from likely.audit.function_calling import check_calls as check_calls
    from likely.audit.function_calling import check_case as check_case
    from likely.audit.function_calling import function_cases as function_cases
    from likely.audit.probes import STRUCTURED as STRUCTURED
    from likely.audit.probes import Probe as Probe
    from likely.audit.probes import ProbeTemplate as ProbeTemplate
    from likely.audit.probes import meaning_gains as meaning_gains
    from likely.audit.probes import probe_queue as probe_queue
    from likely.audit.probes import screen_probe as screen_probe
    from likely.audit.probes import write_probes as write_probes
    from likely.audit.report import AuditReport as AuditReport
    from likely.audit.report import Finding as Finding
    from likely.audit.report import ReportExample as ReportExample
    from likely.audit.review import Criterion as Criterion
    from likely.audit.review import RaterAgreement as RaterAgreement
    from likely.audit.review import ReviewItem as ReviewItem
    from likely.audit.review import ReviewQueue as ReviewQueue
    from likely.audit.review import ReviewVote as ReviewVote
    from likely.audit.spectral import CAVEATS as CAVEATS
    from likely.audit.spectral import SpectralReport as SpectralReport
    from likely.audit.spectral import TextSpectrum as TextSpectrum
    from likely.audit.spectral import effective_rank as effective_rank
    from likely.audit.spectral import matrix_entropy as matrix_entropy
    from likely.audit.spectral import matrix_nuclear_norm as matrix_nuclear_norm
    from likely.audit.spectral import measure_spectra as measure_spectra
    from likely.audit.spectral import nuclear_norm as nuclear_norm
    from likely.audit.spectral import spectral_report as spectral_report
    from likely.audit.suite import AuditPart as AuditPart
    from likely.audit.suite import AuditSuite as AuditSuite

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
