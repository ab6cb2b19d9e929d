"""Metrics of predictions: calibration error, proper scores, ranking, intervals, grading of answers; numpy only."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.metrics.bins import BinTable as BinTable
    from likely.metrics.bins import bin_table as bin_table
    from likely.metrics.bins import classwise_ece as classwise_ece
    from likely.metrics.bins import debiased_ce as debiased_ce
    from likely.metrics.bins import ece as ece
    from likely.metrics.bins import ece_floor as ece_floor
    from likely.metrics.bins import ks_error as ks_error
    from likely.metrics.bins import mce as mce
    from likely.metrics.bins import positive_ece as positive_ece
    from likely.metrics.bins import rmsce as rmsce
    from likely.metrics.bins import sweep_ece as sweep_ece
    from likely.metrics.bins import top_label_ece as top_label_ece
    from likely.metrics.bootstrap import bootstrap_ratio as bootstrap_ratio
    from likely.metrics.bootstrap import interval as interval
    from likely.metrics.bootstrap import mean_interval as mean_interval
    from likely.metrics.bootstrap import median_interval as median_interval
    from likely.metrics.diagram import Reliability as Reliability
    from likely.metrics.diagram import reliability as reliability
    from likely.metrics.grading import grader as grader
    from likely.metrics.intervals import Accuracy as Accuracy
    from likely.metrics.intervals import wilson as wilson
    from likely.metrics.paired import McNemar as McNemar
    from likely.metrics.paired import PairedDifference as PairedDifference
    from likely.metrics.paired import benjamini_hochberg as benjamini_hochberg
    from likely.metrics.paired import cohen_kappa as cohen_kappa
    from likely.metrics.paired import krippendorff_alpha as krippendorff_alpha
    from likely.metrics.paired import mcnemar_exact as mcnemar_exact
    from likely.metrics.paired import paired_difference as paired_difference
    from likely.metrics.proper import brier as brier
    from likely.metrics.proper import brier_binary as brier_binary
    from likely.metrics.proper import murphy as murphy
    from likely.metrics.proper import nll as nll
    from likely.metrics.proper import polarisation as polarisation
    from likely.metrics.proper import sharpness as sharpness
    from likely.metrics.ranking import aurc as aurc
    from likely.metrics.ranking import auroc as auroc
    from likely.metrics.ranking import coverage_at_risk as coverage_at_risk
    from likely.metrics.ranking import discrimination as discrimination
    from likely.metrics.ranking import e_aurc as e_aurc
    from likely.metrics.ranking import prr as prr
    from likely.metrics.ranking import risk_at_coverage as risk_at_coverage
    from likely.metrics.ranking import risk_curve as risk_curve
    from likely.metrics.smooth import smooth_curve as smooth_curve
    from likely.metrics.smooth import smooth_ece as smooth_ece
    from likely.metrics.summary import report as report

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
