"""How much of a hidden prompt leaks through log-probabilities: what an endpoint exposes, inverters, defences (PILS)."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.inversion.compress import LogprobCompressor as LogprobCompressor
    from likely.audit.inversion.compress import RankEstimate as RankEstimate
    from likely.audit.inversion.compress import estimate_rank as estimate_rank
    from likely.audit.inversion.compress import held_out_error as held_out_error
    from likely.audit.inversion.compress import subspace_angles as subspace_angles
    from likely.audit.inversion.exposure import EndpointSpec as EndpointSpec
    from likely.audit.inversion.exposure import ExposureReport as ExposureReport
    from likely.audit.inversion.exposure import TopEmulator as TopEmulator
    from likely.audit.inversion.exposure import TopLogprobs as TopLogprobs
    from likely.audit.inversion.exposure import exposed as exposed
    from likely.audit.inversion.exposure import exposure_report as exposure_report
    from likely.audit.inversion.exposure import hidden_size_of as hidden_size_of
    from likely.audit.inversion.exposure import measure_endpoint as measure_endpoint
    from likely.audit.inversion.exposure import measure_runtime as measure_runtime
    from likely.audit.inversion.exposure import random_texts as random_texts
    from likely.audit.inversion.exposure import ratios_by_bias as ratios_by_bias
    from likely.audit.inversion.inverter import InverterConfig as InverterConfig
    from likely.audit.inversion.recovered import RecoveryPlan as RecoveryPlan
    from likely.audit.inversion.recovered import audit_recovery as audit_recovery
    from likely.audit.inversion.recovered import kept_trajectories as kept_trajectories
    from likely.audit.inversion.recovered import recover_with as recover_with
    from likely.audit.inversion.saved import SavedInverter as SavedInverter
    from likely.audit.inversion.train import DefencePrice as DefencePrice
    from likely.audit.inversion.train import Inverter as Inverter
    from likely.audit.inversion.train import Recovery as Recovery
    from likely.audit.inversion.train import price_defences as price_defences
    from likely.audit.inversion.train import recovery as recovery
    from likely.audit.inversion.train import word_f1 as word_f1
    from likely.audit.inversion.trajectories import DEFENCES as DEFENCES
    from likely.audit.inversion.trajectories import Defence as Defence
    from likely.audit.inversion.trajectories import InverterInput as InverterInput
    from likely.audit.inversion.trajectories import NoisyLogprobs as NoisyLogprobs
    from likely.audit.inversion.trajectories import RoundedLogprobs as RoundedLogprobs
    from likely.audit.inversion.trajectories import TextOnly as TextOnly
    from likely.audit.inversion.trajectories import TopTokensOnly as TopTokensOnly
    from likely.audit.inversion.trajectories import Trajectories as Trajectories
    from likely.audit.inversion.trajectories import Undefended as Undefended
    from likely.audit.inversion.trajectories import collect_trajectories as collect_trajectories

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
