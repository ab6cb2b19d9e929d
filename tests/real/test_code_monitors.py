"""Monitors with a real model and jedi: what is written exists, and drafts change nothing."""

from __future__ import annotations

import pytest

from likely.code.analysis.jedi_provider import JediProvider
from likely.code.analysis.members import Analyses
from likely.code.buffer import CodeBuffer

pytest.importorskip("jedi")
pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]
SHOP = """class Cart:
    def put_into_basket(self, name: str, count: int): ...
    def sum_of_all(self) -> float: ...

class Shop:
    cart_of_today: Cart
"""
USER = "from shop import Cart, Shop\n\ndef buy(cart: Cart, shop: Shop):\n    cart."


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    (root / "shop.py").write_text(SHOP)
    analyses = Analyses(JediProvider(str(root), limit_s=60.0))
    yield CodeBuffer(str(root / "user.py"), USER + "\n", len(USER), str(root)), analyses
    analyses.close()


def test_only_members_are_written(packaged, place):
    buffer, analyses = place
    free = packaged.complete_code(buffer, monitors=(), max_tokens=12)
    assert not free.text.startswith(("put_into_basket", "sum_of_all"))
    for options in ({}, {"choose": "exact"}, {"across_trigger": "split"}, {"monitors": ("dereference", "arity")}):
        found = packaged.complete_code(buffer, provider=analyses, max_tokens=12, **options)
        assert found.triggers[0].chosen in ("put_into_basket", "sum_of_all") and found.triggers[0].n_legal == 2
        assert found.log_weight < -1 and found.text.split("(")[0] in ("put_into_basket", "sum_of_all")
    soft = packaged.complete_code(buffer, provider=analyses, max_tokens=12, policy="soft", penalty=50.0)
    hard = packaged.complete_code(buffer, provider=analyses, max_tokens=12)
    assert soft.text.split("(")[0] == hard.text.split("(")[0] and soft.log_weight is None


def test_drafts_change_nothing(packaged, place):
    buffer, analyses = place
    for temperature in (0.0, 1.0):
        common = {"provider": analyses, "max_tokens": 24, "stop": "none", "temperature": temperature, "seed": 3}
        plain = packaged.complete_code(buffer, **common)
        for drafter in ("lookup", "suffix"):
            drafted = packaged.complete_code(buffer, drafter=drafter, draft_budget=4, **common)
            assert drafted.text == plain.text and drafted.token_ids == plain.token_ids
            assert drafted.logprob == pytest.approx(plain.logprob, abs=1e-2)
            assert drafted.log_weight == pytest.approx(plain.log_weight, abs=1e-2)


def test_torch_writes_members_too(oracle, place):
    buffer, analyses = place
    found = oracle.complete_code(buffer, provider=analyses, max_tokens=6)
    assert found.triggers[0].n_legal == 2 and found.text.startswith(("put", "sum"))
