"""The study of draft lengths on a small trace: what it counts, and that a policy that drafts too much is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

from likely.evidence import Source

SOURCE = Source(name="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def smartspec():
    return script("smartspec", named="smartspec_study")


def trace(count=12):
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(1.0, count))
    return [(float(t), int(rng.integers(40, 400)), int(rng.integers(20, 60))) for t in at]


def study(smartspec, loads=(1.5,)):
    return smartspec.study(
        trace(), loads=loads, alphas=[0.3], seeds=1, count=10, full=False, data=[SOURCE], report=lambda line: None
    )


def test_every_cell_is_compared_with_the_same_requests_without_drafts(smartspec):
    found = study(smartspec)
    assert len(found.figures) == 4 * len(smartspec.MACHINES) and len(found.checks) == 3 * len(smartspec.MACHINES)
    slow = {f.quantity.split(":")[0]: f.value for f in found.figures if "4 bits" in f.subject}
    assert slow["k = 5"] > slow["k = 1"] > 1 and slow["auto"] < 1.1
    assert all(f.n == 10 and f.low <= f.value <= f.high for f in found.figures)


def test_a_policy_that_always_drafts_fails_the_claim(smartspec, monkeypatch):
    monkeypatch.setattr(
        smartspec, "policies",
        lambda alpha: {name: {"draft_alpha": alpha, "draft_budget": 5} for name in ("k = 1", "k = 3", "k = 5", "auto")},
    )  # fmt: skip
    assert study(smartspec).verdict != "reproduced"


def test_loads_are_shares_of_what_plain_decoding_serves(smartspec):
    machine = smartspec.MACHINES["CPU in 4 bits, copying"]
    few, many = ([(100, out)] * 3 for out in (10, 100))
    assert smartspec.capacity(machine, few, 32) > smartspec.capacity(machine, many, 32) > 0
    load = smartspec.load_of(trace(), 0, 10, 2.0)
    assert load[-1].at_s == pytest.approx(9 / 2.0) and max(each.prompt_tokens for each in load) <= 100
