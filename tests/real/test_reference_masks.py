"""The reference automaton and llguidance on a real vocabulary."""

from __future__ import annotations

import pytest
from regexes import REGEXES, agree

from likely.guided.form import make_form
from likely.guided.settings import FormSettings

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]


def test_masks_are_bit_identical_on_50_regexes_and_20_prefixes(packaged):
    for number, pattern in enumerate(REGEXES):
        forms = [make_form(regex=pattern, settings=FormSettings(backend=backend, close_on_budget=False))
                 for backend in ("reference", "llguidance")]  # fmt: skip
        agree(*map(packaged.guide.constraint, forms), pattern, 20, seed=number)
