"""Reliability diagrams: data, text, picture."""

import json

import numpy as np
import pytest

from likely.metrics.bins import ece
from likely.metrics.diagram import as_text, draw, reliability
from likely.metrics.intervals import wilson


def rows(n=500, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.random(n)
    return c, (rng.random(n) < c**2).astype(int)


def test_data_are_the_bins_of_the_rows():
    c, y = rows()
    shown = reliability(c, y, bins=10)
    assert shown.n == 500 and shown.ece == pytest.approx(ece(c, y, bins=10))
    assert shown.mean_confidence == pytest.approx(c.mean()) and shown.accuracy == pytest.approx(y.mean())
    inside = (c > 0.2) & (c <= 0.3)
    third = shown.to_dict()["bins"][2]
    assert third["n"] == inside.sum() and third["low"] == 0.2 and third["high"] == 0.3
    assert third["confidence"] == pytest.approx(c[inside].mean())
    assert third["accuracy"] == pytest.approx(y[inside].mean())
    assert third["accuracy_interval"] == pytest.approx(wilson(int(y[inside].sum()), int(inside.sum())))
    assert shown.curve is None and "curve" not in shown.to_dict()


def test_json():
    record = reliability(*rows(), smooth=True).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["curve"]) == {"width", "confidence", "accuracy", "density", "low", "high"}


def test_empty_bins_are_not_shown():
    shown = reliability([0.05, 0.95, 0.96], [0, 1, 1])
    assert [row["n"] for row in shown.to_dict()["bins"]] == [1, 2]


def test_text():
    text = as_text(reliability([0.25] * 50 + [0.75] * 50, [1] * 5 + [0] * 45 + [1] * 38 + [0] * 12))
    assert text.isascii()
    assert text.splitlines() == [
        "confidence          n   said  right   0       .2      .4      .6      .8      1",
        "0.200-0.300        50  0.250  0.100     --o-----|",  # right: 0.043 to 0.214
        "0.700-0.800        50  0.750  0.760                            -----o----",  # right: 0.626 to 0.857, over said
        "o right, | said, - 95 % interval of right.  100 rows: said 0.500, right 0.430, ECE 0.0800",
    ]


def test_picture():
    shown = {
        "before $x$": reliability(*rows()),
        "_after": reliability(*rows(seed=1), smooth=True),
        "two": reliability([0.1] * 20 + [0.9] * 20, [0] * 18 + [1] * 20 + [0] * 2, smooth=True),
    }
    figure = draw(shown)
    above, below = figure.axes
    names = [text.get_text() for text in above.get_legend().get_texts()]
    assert names[0].startswith(r"before \$x\$ (n=500") and "_after" in names[1] and "two" in names[2]
    assert below.get_xlabel() == "stated confidence"
    points = above.containers[0].lines[0].get_xydata()
    table = shown["before $x$"].table
    assert points == pytest.approx(np.stack([table.confidence, table.accuracy], axis=1))
    figure.savefig("/dev/null", format="png")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({})
