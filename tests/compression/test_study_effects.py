"""Effect sizes: known spreads, the analysis of variance of scipy, advice that follows from the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from likely.compression.study.effects import expected_range, recommendation, set_effects, split_variance
from likely.compression.study.grid import StudyRow


def rows(by_set, *, method="gptq:w4g64", evaluation="held out", model="m"):
    return [
        StudyRow(model, method, name, None if name is None else draw, evaluation, {"kl": kl})
        for name, kls in by_set.items()
        for draw, kl in enumerate(kls)
    ]


def test_the_split_is_scipys_analysis_of_variance():
    values = np.random.default_rng(0).normal(size=(4, 3)) + np.arange(4)[:, None]
    found, theirs = split_variance(values), stats.f_oneway(*values)
    assert (found.f, found.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


def test_the_parts_are_those_that_made_the_values():
    rng = np.random.default_rng(1)
    values = 2 * rng.normal(size=(4000, 1)) + 0.5 * rng.normal(size=(4000, 3))
    found = split_variance(values)
    assert found.set_sd == pytest.approx(2, rel=0.05) and found.draw_sd == pytest.approx(0.5, rel=0.05)
    nothing = split_variance(rng.normal(size=(4000, 3)))
    assert nothing.set_sd < 0.2 and nothing.draw_sd == pytest.approx(1, rel=0.05)


def test_draws_that_agree_exactly_and_a_single_draw():
    exact = split_variance([[1.0, 1.0], [2.0, 2.0]])
    assert exact.draw_sd == 0 and exact.f == np.inf and exact.p == 0
    assert split_variance([[1.0, 1.0], [1.0, 1.0]]).p == pytest.approx(stats.f.sf(1, 1, 2))
    single = split_variance([[1.0], [3.0]])
    assert single.set_sd == pytest.approx(np.sqrt(2)) and single.draw_sd is single.f is single.p is None
    with pytest.raises(ValueError, match="at least 2 sets"):
        split_variance([[1.0, 2.0]])


def test_expected_ranges_are_those_of_tables_and_of_draws():
    assert [expected_range(n) for n in (2, 3, 4, 10)] == pytest.approx([1.1284, 1.6926, 2.0588, 3.0775], abs=1e-4)
    drawn = np.ptp(np.random.default_rng(0).normal(size=(200_000, 5)), axis=1).mean()
    assert expected_range(5) == pytest.approx(drawn, rel=0.01)


def test_effects_by_hand():
    table = rows({"a": (1.0, 1.2), "b": (2.0, 1.8), "random_tokens": (4.0, 4.4)})
    table += rows({None: (3.0,)}, method="rtn:w4g64")
    [found] = set_effects(table)
    assert found.means == pytest.approx({"a": 1.1, "b": 1.9, "random_tokens": 4.2}) and set(found.texts) == {"a", "b"}
    assert found.sensitivity == pytest.approx(0.8 / 1.5) and found.nonsense == pytest.approx(4.2 / 1.1)
    assert found.control == 3.0 and found.split.draw_sd == pytest.approx(np.sqrt(0.02))
    assert found.by_chance == pytest.approx(1.12838 * np.sqrt(0.02 / 2) / 1.5, rel=1e-4)
    assert found.matters and found.to_dict()["split"]["p"] < 0.05


def test_sets_that_are_one_text_seldom_seem_to_matter_and_spread_as_chance_says():
    """The negative control: false alarms at the level of the test, sensitivity about what draws alone give."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(400):
        values = 1 + 0.05 * rng.normal(size=(4, 2))
        found += set_effects(rows({name: tuple(line) for name, line in zip("abcd", values, strict=True)}))
    assert 0.02 < np.mean([e.matters for e in found]) < 0.09
    assert np.mean([e.sensitivity for e in found]) == pytest.approx(np.mean([e.by_chance for e in found]), rel=0.1)


def test_every_model_method_and_evaluation_has_its_effect_and_other_numbers_are_left_out():
    both = {"a": (1.0,), "b": (2.0,)}
    table = rows(both, evaluation="x") + rows(both, model="n")
    table.append(StudyRow("m", "awq:w4g64", "a", 0, "code", {"share": 1.0}))
    table.append(StudyRow("m", "awq:w4g64", "a", 0, "z", {"kl": None}))
    assert [(e.model, e.evaluation) for e in set_effects(table)] == [("m", "x"), ("n", "held out")]
    assert [e.means for e in set_effects(table, "share")] == [{"a": 1.0}]


def test_advice_follows_from_the_numbers():
    def said(by_set, control=None):
        return recommendation(set_effects(rows(by_set) + rows({None: control or ()}, method="rtn:w4g64")))

    assert said({"a": (1.0, 1.2), "b": (1.1, 1.05)}).startswith("m, judged on held out: gptq:w4g64: any of these texts")
    clear = said({"a": (1.0, 1.01), "b": (1.5, 1.51), "random_tokens": (5.0, 5.1)}, control=(1.2,))
    assert "calibrate on a (b costs 50% more" in clear and "not nonsense (up to 5 times the kl)" in clear
    assert "on b, random_tokens worse than rtn, which reads no text (1.2)" in clear
    assert "moves the kl by 5% only" in said({"a": (1.0, 1.001), "b": (1.05, 1.051)})
    assert "one draw of each text cannot tell" in said({"a": (1.0,), "b": (2.0,)})
    assert "only a was tried" in said({"a": (1.0, 1.1)}) and "only nonsense" in said({"bos_only": (1.0,)})
    assert recommendation([]) == ""
