"""Agreement with other libraries' recalibrators, where they are installed."""

import numpy as np
import pytest

from likely.calibration.recalibrators.binning import Histogram
from likely.calibration.recalibrators.isotonic import Isotonic, VennAbers
from likely.calibration.recalibrators.sigmoid import Beta


@pytest.fixture(scope="module")
def drawn():
    """Confidences, and outcomes that are right with probability c²."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.01, 0.99, 1200)
    return c, (rng.random(1200) < c**2).astype(int)


NEW = np.linspace(0.011, 0.987, 97)  # none on an edge, where rules differ


def test_beta_as_betacal(drawn):
    betacal = pytest.importorskip("betacal")
    c, y = drawn
    theirs = betacal.BetaCalibration(parameters="abm").fit(c[:, None], y)
    assert Beta().fit(c, y).predict_proba(NEW) == pytest.approx(theirs.predict(NEW[:, None]), abs=1e-3)


def test_histogram_and_isotonic_as_netcal(drawn):
    """Its temperature is no reference: by maximum likelihood it is reported to return what it was given."""
    binning = pytest.importorskip("netcal.binning")
    c, y = drawn
    equal = binning.HistogramBinning(bins=10, equal_intervals=True).fit(c, y)
    ours = Histogram(bins=10, binning="width").fit(c, y)
    assert ours.predict_proba(NEW) == pytest.approx(equal.transform(NEW), abs=1e-9)
    isotonic = binning.IsotonicRegression().fit(c, y)
    assert Isotonic().fit(c, y).predict_proba(NEW) == pytest.approx(isotonic.transform(NEW), abs=1e-6)


def test_venn_abers_as_the_package_of_its_authors(drawn):
    package = pytest.importorskip("venn_abers")
    c, y = (a[:300] for a in drawn)
    theirs = package.VennAbers()
    theirs.fit(np.stack([1 - c, c], axis=1), y)
    _, pairs = theirs.predict_proba(np.stack([1 - NEW, NEW], axis=1))
    assert np.stack(VennAbers().fit(c, y).interval(NEW), axis=1) == pytest.approx(np.asarray(pairs), abs=1e-6)
