"""Masked diffusion language models: decoding without and with drafts, stopping early, likelihood bounds."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.decoding.diffusion.canvas import Canvas as Canvas
    from likely.decoding.diffusion.canvas import new_canvas as new_canvas
    from likely.decoding.diffusion.convergence import ConvergenceRecorder as ConvergenceRecorder
    from likely.decoding.diffusion.convergence import ConvergenceTrace as ConvergenceTrace
    from likely.decoding.diffusion.convergence import convergence_curve as convergence_curve
    from likely.decoding.diffusion.convergence import draw_convergence as draw_convergence
    from likely.decoding.diffusion.fit import FittedThresholds as FittedThresholds
    from likely.decoding.diffusion.fit import fit_thresholds as fit_thresholds
    from likely.decoding.diffusion.freedave import FreeDave as FreeDave
    from likely.decoding.diffusion.freedave import longest_agreement as longest_agreement
    from likely.decoding.diffusion.generate import Accelerator as Accelerator
    from likely.decoding.diffusion.generate import DiffusionOutput as DiffusionOutput
    from likely.decoding.diffusion.generate import DiffusionRun as DiffusionRun
    from likely.decoding.diffusion.generate import EarlyStop as EarlyStop
    from likely.decoding.diffusion.generate import begin_diffusion as begin_diffusion
    from likely.decoding.diffusion.generate import diffusion_generate as diffusion_generate
    from likely.decoding.diffusion.likelihood import LikelihoodBound as LikelihoodBound
    from likely.decoding.diffusion.likelihood import PathLikelihood as PathLikelihood
    from likely.decoding.diffusion.likelihood import exact_bound as exact_bound
    from likely.decoding.diffusion.likelihood import likelihood_bound as likelihood_bound
    from likely.decoding.diffusion.likelihood import path_likelihood as path_likelihood
    from likely.decoding.diffusion.predictor import CachePolicy as CachePolicy
    from likely.decoding.diffusion.predictor import Frozen as Frozen
    from likely.decoding.diffusion.predictor import Predictor as Predictor
    from likely.decoding.diffusion.predictor import WindowPredictor as WindowPredictor
    from likely.decoding.diffusion.prophet import Prophet as Prophet
    from likely.decoding.diffusion.prophet import after_pinned as after_pinned
    from likely.decoding.diffusion.prophet import log_odds_gap as log_odds_gap
    from likely.decoding.diffusion.proposal import ProposalRule as ProposalRule
    from likely.decoding.diffusion.schedule import ConfidenceThreshold as ConfidenceThreshold
    from likely.decoding.diffusion.schedule import commit as commit
    from likely.decoding.diffusion.toys import HashPredictor as HashPredictor
    from likely.decoding.diffusion.toys import JointPredictor as JointPredictor

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
