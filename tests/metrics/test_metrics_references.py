"""Agreement with other libraries.  scikit-learn is always there; the others are tested where they are installed."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from likely.metrics.bins import bin_table, debiased_ce, ece, mce, positive_ece, rmsce, top_label_ece
from likely.metrics.ranking import auroc
from likely.metrics.smooth import smooth_ece, smooth_ece_at


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(0)
    c = rng.random(600)
    return c, (rng.random(600) < c**2).astype(int)


@pytest.fixture(scope="module")
def multiclass():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(4), 600)
    return probs, np.array([rng.choice(4, p=p) for p in probs])


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_as_scikit_learn(binary, binning, strategy):
    c, y = binary
    table = bin_table(c, y, bins=10, binning=binning)
    accuracy, confidence = calibration_curve(y, c, n_bins=10, strategy=strategy)
    assert table.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert table.confidence == pytest.approx(confidence, abs=1e-12)


def test_auroc_as_scikit_learn_with_ties(binary):
    c, y = binary
    assert auroc(c.round(1), y) == pytest.approx(roc_auc_score(y, c.round(1)), abs=1e-12)


@pytest.mark.parametrize(("norm", "theirs"), [(1, "l1"), (2, "l2"), (np.inf, "max")])
def test_as_torchmetrics(binary, multiclass, norm, theirs):
    """To 1e-6: torchmetrics sums in single precision.  Its binary error takes p(y = 1), as `positive_ece` does."""
    pytest.importorskip("torchmetrics")
    import torch
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    c, y = (torch.tensor(a) for a in binary)
    expected = binary_calibration_error(c, y, n_bins=15, norm=theirs)
    assert positive_ece(*binary, norm=norm) == pytest.approx(float(expected), abs=1e-6)
    probs, labels = (torch.tensor(a) for a in multiclass)
    expected = multiclass_calibration_error(probs, labels, num_classes=4, n_bins=15, norm=theirs)
    assert top_label_ece(*multiclass, norm=norm) == pytest.approx(float(expected), abs=1e-6)


def test_as_netcal(binary, multiclass):
    """With labels 0 and 1, netcal (1.3.6, 1.4.0) takes two columns [1 − p, p] as the event of the second, not as a
    softmax: its number is `positive_ece`, and only with three or more classes is it the top label's.
    """
    metrics = pytest.importorskip("netcal.metrics")
    c, y = binary
    assert ece(c, y, bins=10) == pytest.approx(metrics.ECE(10).measure(c, y), abs=1e-12)
    assert mce(c, y, bins=10) == pytest.approx(metrics.MCE(10).measure(c, y), abs=1e-12)
    both = np.stack([1 - c, c], axis=1)
    assert positive_ece(c, y, bins=10) == pytest.approx(metrics.ECE(10).measure(both, y), abs=1e-12)
    assert abs(top_label_ece(both, y, bins=10) - metrics.ECE(10).measure(both, y)) > 0.1
    assert top_label_ece(*multiclass, bins=10) == pytest.approx(metrics.ECE(10).measure(*multiclass), abs=1e-12)
    equal = metrics.ECE(10, equal_intervals=False).measure(c, y)
    assert ece(c, y, bins=10, binning="mass") == pytest.approx(equal, abs=1e-12)


def test_average_calibration_error_of_netcal_is_the_plain_mean_of_gaps(binary):
    metrics = pytest.importorskip("netcal.metrics")
    table = bin_table(*binary, bins=10)
    gaps = np.abs(table.accuracy - table.confidence)
    assert gaps.mean() == pytest.approx(metrics.ACE(10).measure(*binary), abs=1e-12)


def test_debiased_as_uncertainty_calibration(binary):
    theirs = pytest.importorskip("calibration")
    if not hasattr(theirs, "lower_bound_scaling_ce"):
        pytest.skip("another module named calibration")
    c, y = binary
    for debias, ours in ((True, debiased_ce), (False, lambda c, y: rmsce(c, y, binning="mass"))):
        expected = theirs.lower_bound_scaling_ce(c, y, p=2, debias=debias, num_bins=15)
        assert ours(c, y) == pytest.approx(float(expected), abs=1e-9)
    assert ece(c, y) == pytest.approx(float(theirs.get_ece(c, y, num_bins=15, mode="marginal")), abs=1e-9)


def test_smooth_as_relplot(binary):
    """To 1e-3 at one width: relplot's grid has 200 points, its kernel ends at ±½, and 1e-4 is added to each density.

    Its own width comes from ten halvings of 0..1: to 1.5e-3.
    """
    relplot = pytest.importorskip("relplot")
    from relplot.metrics import smECE_sigma

    c, y = binary
    for width in (0.02, 0.05, 0.1):
        assert smooth_ece_at(c, y, width) == pytest.approx(smECE_sigma(c, y, width), abs=1e-3)
    assert smooth_ece(c, y) == pytest.approx(relplot.smECE(c, y), abs=1.5e-3)
