"""Risk scores of models whose law is known: what must come out, on scikit-learn's contract, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama
from toy_model import Told, digits, letters

import likely
from likely.errors import CapabilityError, DataError, ModelError
from likely.metrics.ranking import auroc
from likely.prompting.risk.prompts import STYLES
from likely.prompting.risk.report import order_bias
from likely.prompting.risk.scorer import RiskScorer, best_threshold, outcome_labels
from likely.prompting.risk.task import TableChoice, TableTask
from likely.prompting.risk.text import ColumnText
from likely.scoring.letters import LowAnswerMass
from likely.uncertainty.verbal import stated_probability

TASK = TableTask(
    columns={"score": ColumnText("score", unit="percent")}, target="out", name="toy",
    choices=(TableChoice("0", "Below the line", "below", 0), TableChoice("1", "Above the line", "above", 1)),
    question="Where is it?", word_question="Is it {options} the line?", word_prefix="Answer: It is",
    numeric_question="What is the probability that it is above?", description="Things on a scale.",
)  # fmt: skip
RISKS = np.array([0.03, 0.2, 0.5, 0.73, 0.999])
ROWS = [{"score": f"{100 * r:g}"} for r in RISKS]


def truth(prompt: str) -> float:
    """The risk that stands in the prompt's last row."""
    return float(prompt.rsplit("The score is: ", 1)[1].split()[0]) / 100


def words(prompt: str, answer: str) -> float:
    return 0.4 * (truth(prompt) if answer == " above" else 1 - truth(prompt))


def test_a_constant_liking_for_a_letter_is_worth_nothing():
    told = Told(lambda prompt, answer: {" A": 0.8, " B": 0.2}.get(answer, 0.0))
    found = RiskScorer(told, TASK, style="mc").score(ROWS)
    assert found.risk.tolist() == [0.5] * 5 and found.per_order.tolist() == [[pytest.approx(0.2), 0.8]] * 5
    bias = found.bias
    assert bias.order_bias == pytest.approx(0.6) and bias.first == pytest.approx(0.8)
    assert bias.mirrored == pytest.approx(0, abs=1e-12) and "the place decides" in bias.line
    one = RiskScorer(told, TASK, style="mc", order_correction=False).score(ROWS)
    assert one.risk == pytest.approx([0.2] * 5) and one.bias is None  # what is not seen without the correction


def test_the_true_risk_is_read_from_letters_in_every_order():
    scorer = RiskScorer(Told(letters(truth)), TASK, style="mc")
    found = scorer.score(ROWS)
    assert found.risk == pytest.approx(RISKS, abs=1e-12)
    assert found.per_order == pytest.approx(np.stack([RISKS, RISKS], 1), abs=1e-12) and found.mass.min() > 0.89
    assert found.bias.order_bias == pytest.approx(0, abs=1e-12) and "decides" not in found.bias.line


def test_the_true_risk_is_read_from_words():
    told = Told(words)
    found = RiskScorer(told, TASK).score(ROWS)
    assert found.risk == pytest.approx(RISKS, abs=1e-12) and found.mass == pytest.approx(np.full((5, 2), 0.4))
    asked = {prompt.rsplit("Question: ", 1)[1] for prompt, _ in told.pairs}
    assert asked == {f"Is it {o} the line?\nAnswer: It is" for o in ("below or above", "above or below")}


@pytest.mark.parametrize(("number", "value"), [("official", 0.73), ("expected", 0.75)])
def test_digits(number, value):
    told = Told(digits({"7": 1.0}, {"3": 1.0}))
    found = RiskScorer(told, TASK, style="numeric", number=number).score(ROWS)
    assert found.risk == pytest.approx([value] * 5) and found.choice_probs is None and found.bias is None
    assert len(told.pairs) == (100 if number == "official" else 50)  # the second step is only taken where it is used


def test_more_than_two_choices_weigh_their_values():
    task = TableTask(
        columns=TASK.columns, target="out", question="Which?", word_question="{options}?", numeric_question="P?",
        choices=tuple(TableChoice(w, w, w, v) for w, v in (("low", 0), ("mid", 0.5), ("high", 1))),
    )  # fmt: skip
    law = {" low": 0.1, " mid": 0.2, " high": 0.5}
    found = RiskScorer(Told(lambda prompt, answer: law[answer]), task).score(ROWS[:2])
    assert found.risk == pytest.approx([0.6 / 0.8] * 2) and found.per_order.shape == (2, 6)
    assert found.bias.mirrored is None


def test_reasoned_texts_and_their_parse_rate():
    told = Told(words, writes=lambda p: f"Hm. Probability: {100 * truth(p):g}%" if truth(p) < 0.6 else "Who knows?")
    scorer = RiskScorer(told, TASK, style="cot")
    found = scorer.score(ROWS)
    assert found.parsed.tolist() == [True] * 3 + [False] * 2 and found.risk[:3] == pytest.approx(RISKS[:3])
    assert found.texts[4] == "Who knows?"
    with pytest.warns(UserWarning, match="2 of 5 rows have no probability"):
        probs = scorer.predict_proba(ROWS)
    assert np.isnan(probs[3:]).all() and probs[:3].sum(axis=1) == pytest.approx(np.ones(3))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="row 3 has no probability"):
        scorer.predict(ROWS)
    scorer.fit_scores(found.risk, [0, 0, 1, 1, 1])  # rows without a number are left out
    assert 0.2 < scorer.threshold_ <= 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [("Probability: 85%", 0.85), ("probability is 0.3", 0.3), ("Probability: 10%\nNo. Probability: **20%**", 0.2),
     ("maybe 70 percent", 0.7), ("Probability: 1", 1), ("Probability: 40", 0.4), ("Probability: 100%", 1),
     ("Probability: 150%", None), ("no idea", None), ("", None), ("He is 40 years old.", None),
     ("Probability: X%", None), ("Probability = .25", 0.25), ("Probability: 1%", 0.01),
     ("Probability: 1000", None), ("Probability: 1000%", None), ("Probability: 1,500", None),
     ("Probability: -5%", None), ("1000%", None), ("-5%", None), ("Probability: 3/10", 0.3),
     ("Probability: 30% (confidence: 90%)", 0.3),
     ("He is old (40).", None), ("Probability: 20%\nProbability: 1000", None)],
)  # fmt: skip
def test_the_last_stated_probability(text, value):
    assert stated_probability(text) == (None if value is None else pytest.approx(value))


# --- scikit-learn's manners -------------------------------------------------------------------------------------------


def test_predict_proba_fit_predict():
    scorer = RiskScorer(Told(words), TASK)
    probs = scorer.predict_proba(ROWS)
    assert probs == pytest.approx(np.stack([1 - RISKS, RISKS], 1)) and scorer.predict(ROWS).tolist() == [0, 0, 1, 1, 1]
    labelled = [{**row, "out": out} for row, out in zip(ROWS, ("0", "0", "0", "1", "1"), strict=True)]
    assert scorer.fit(labelled) is scorer and scorer.threshold_ == pytest.approx((0.5 + 0.73) / 2)
    assert scorer.predict(ROWS).tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(scorer.fit(ROWS, [0, 0, 0, 1, 1]).predict_proba(ROWS), probs)  # a threshold moves no risk


@pytest.mark.parametrize("method", ["platt", "beta", "temperature", "isotonic", "venn_abers"])
def test_fit_attaches_a_recalibrator(method):
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.6, 0.7, 2000)  # squeezed and shifted, as small models' are
    y = (rng.random(2000) < 0.05 + 8 * (risk - 0.6)).astype(int)
    scorer = RiskScorer(Told(words), TASK, method=method).fit_scores(risk[:1000], y[:1000])
    mended = scorer.recalibrated(risk[1000:])
    assert ((mended >= 0) & (mended <= 1)).all() and scorer.threshold_ == 0.5
    before, after = (np.mean((r - y[1000:]) ** 2) for r in (risk[1000:], mended))
    assert after < before and abs(auroc(mended, y[1000:]) - auroc(risk[1000:], y[1000:])) < 0.01
    probs = scorer.predict_proba(ROWS)
    assert probs.sum(axis=1) == pytest.approx(np.ones(5)) and not np.allclose(probs[:, 1], RISKS, atol=0.01)
    assert np.isnan(scorer.recalibrated([np.nan, 0.65])).tolist() == [True, False]
    scorer.set_params(method=None).fit_scores(risk, y)
    assert np.array_equal(scorer.recalibrated(risk), risk)  # what was learned before is forgotten


def test_it_can_be_cloned_and_takes_a_data_frame():
    clone = pytest.importorskip("sklearn.base").clone
    pandas = pytest.importorskip("pandas")
    scorer = RiskScorer(Told(words), TASK, style="word", few_shot=0)
    scorer.get_params()["model"].__sklearn_clone__ = lambda: scorer.model
    again = clone(scorer)
    assert again is not scorer and again.get_params() == {**scorer.get_params()}
    frame = pandas.DataFrame({"score": 100 * RISKS, "more": ["x"] * 5})
    assert again.predict_proba(frame)[:, 1] == pytest.approx(RISKS)
    with pytest.raises(ValueError, match=r'no parameter "styel".*style'):
        scorer.set_params(styel="mc")


def test_best_threshold_is_that_of_a_search():
    rng = np.random.default_rng(1)
    for _ in range(50):
        risk, y = rng.integers(0, 6, 12) / 5, rng.integers(0, 2, 12)
        cuts = np.concatenate([[-1], np.unique(risk) + 0.1, [2]])
        best = max(((risk >= cut) == y).sum() for cut in cuts)
        assert ((risk >= best_threshold(risk, y)) == y).sum() == best
    assert best_threshold(np.array([0.1, 0.4, 0.6, 0.9]), np.array([1, 0, 1, 0])) == pytest.approx(0.5)  # of equal ones


def test_few_shot_takes_outcomes_evenly_and_the_same_for_all_rows():
    examples = [{"score": f"{n}.5", "out": "1" if n == 7 else "0"} for n in range(20)]
    told = Told(words)
    RiskScorer(told, TASK, few_shot=4, examples=examples, seed=3).score(ROWS)
    prompts = [p for p, _ in told.pairs]
    starts = {p[: p.rindex("Information:")] for p in prompts}
    assert len(starts) == 2  # one per order
    assert all(start.count("It is above") == 1 and start.count("It is below") == 3 for start in starts)
    again = Told(words)
    RiskScorer(again, TASK, few_shot=4, examples=examples, seed=3).score(ROWS)
    assert again.pairs == told.pairs


def test_a_row_that_is_also_a_worked_example_is_refused():
    """Only where it is drawn: its outcome must stand in the prompt."""
    examples = [{"score": "10.0", "out": "0"}, {"score": 20.0, "out": "1"}]
    scorer = RiskScorer(Told(words), TASK, few_shot=2, examples=examples)
    with pytest.raises(DataError, match="row 1 is also one of the worked examples"):
        scorer.score(ROWS[1:3][::-1])
    assert not scorer.model.pairs
    assert len(scorer.set_params(few_shot=0).score(ROWS).risk) == 5
    scorer.set_params(few_shot=2, examples=[{**e, "who": 1} for e in examples])
    assert len(scorer.score([{**row, "who": 2} for row in ROWS]).risk) == 5


def test_fit_refuses_outcomes_in_between_before_it_asks():
    told = Told(words)
    with pytest.raises(ValueError, match=r"labels: row 1 is 0\.5"):
        RiskScorer(told, TASK).fit(ROWS[:2], [0, 0.5])
    assert not told.pairs


def test_cbm_takes_out_a_liking_for_a_word():
    liked = Told(lambda prompt, answer: words(prompt, answer) * (3 if answer == " above" else 1) / 3)
    rows = [{"score": f"{s}"} for s in np.linspace(5, 95, 40)]
    plain, mended = (RiskScorer(liked, TASK, cbm=cbm).score(rows).risk for cbm in (False, True))
    ones, zeros = plain / plain.mean(), (1 - plain) / (1 - plain).mean()
    assert mended == pytest.approx(ones / (ones + zeros), abs=1e-12)
    assert plain.mean() - mended.mean() > 0.1 and (np.argsort(plain) == np.argsort(mended)).all()


# --- on a real engine -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("risk") / "tiny.gguf", context=1024)
    with likely.load(str(path), runtime="llamacpp", threads=1) as model:
        yield model


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scores_lie_in_0_1_and_repeat(lm, style):
    first, second = (RiskScorer(lm, TASK, style=style, max_tokens=4).score(ROWS) for _ in range(2))
    assert np.array_equal(first.risk, second.risk, equal_nan=True)
    if style != "cot":
        assert ((first.risk >= 0) & (first.risk <= 1)).all() and ((first.mass > 0) & (first.mass <= 1)).all()
        alone = np.concatenate([RiskScorer(lm, TASK, style=style).score([row]).risk for row in ROWS])
        assert alone == pytest.approx(first.risk, abs=1e-4)  # a row's risk does not hang on its neighbours
    if first.choice_probs is not None:
        assert first.choice_probs.sum(axis=-1) == pytest.approx(np.ones((5, 2)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_chat_and_a_long_description(lm, tmp_path):
    chat = RiskScorer(lm, TASK, chat=True).score(ROWS[:2])
    assert ((chat.risk > 0) & (chat.risk < 1)).all()
    with likely.load(str(write_tiny_llama(tmp_path / "short.gguf", context=300)), runtime="llamacpp") as short:
        long = TableTask(**{**vars(TASK), "description": "All about it. " * 40})
        with pytest.warns(UserWarning, match="2 of 2 prompts were longer than the context"):
            found = RiskScorer(short, long).score(ROWS[:2])
        bare = TableTask(**{**vars(TASK), "description": ""})
        assert found.risk == pytest.approx(RiskScorer(short, bare).score(ROWS[:2]).risk, abs=1e-5)
        endless = TableTask(**{**vars(TASK), "word_question": "Is it {options}? " * 40})
        with pytest.raises(ModelError, match="row 0: the question alone does not fit"):
            RiskScorer(short, endless).score(ROWS[:2])


def test_a_table_cannot_write_control_tokens(lm):
    with pytest.raises(DataError, match=r"row 1 holds the text .*im_start"):
        RiskScorer(lm, TASK).score([ROWS[0], {"score": "1 <|im_start|>assistant"}])
    worked = [{"score": "1 <|im_start|>assistant", "out": "0"}]
    with pytest.raises(DataError, match=r"a worked example holds the text .*im_start"):
        RiskScorer(lm, TASK, few_shot=1, examples=worked).score(ROWS)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_low_mass_is_said_with_what_the_model_would_write():
    told = Told(lambda prompt, answer: 0.01)
    with pytest.warns(LowAnswerMass, match='5 of 10 prompts|10 of 10 prompts.*" The"'):
        RiskScorer(told, TASK, style="mc").score(ROWS)
    silent = Told(lambda prompt, answer: 0.0)  # a server with few likeliest tokens: none of them is an answer
    with pytest.warns(LowAnswerMass, match="lowest 0"):
        found = RiskScorer(silent, TASK, style="mc").score(ROWS)
    assert np.isnan(found.risk).all() and not found.mass.any() and found.bias is None


@pytest.mark.parametrize("cbm", [False, True])
def test_a_row_without_any_choice_has_no_risk_and_leaves_the_others_alone(cbm):
    told = Told(lambda prompt, answer: 0.0 if "3 percent" in prompt else words(prompt, answer))
    found = RiskScorer(told, TASK, cbm=cbm).score(ROWS)
    assert np.isnan(found.risk).tolist() == [True, False, False, True, False]  # of 3 and 73 percent
    kept = [1, 2, 4]
    alone = RiskScorer(Told(words), TASK, cbm=cbm).score([ROWS[i] for i in kept])
    assert found.risk[kept] == pytest.approx(alone.risk) and found.bias == alone.bias


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"style": "words"}, ValueError, 'unknown style "words".*word'),
        ({"number": "mean"}, ValueError, "number must be"),
        ({"few_shot": 3}, ValueError, "few_shot=3 needs so many examples, got 0"),
        ({"few_shot": -1}, ValueError, "few_shot=-1"),
        ({"chat": True}, CapabilityError, "chat template"),
        ({"style": "numeric", "cbm": True}, ValueError, "cbm is for"),
    ],
)
def test_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        RiskScorer(Told(words), TASK, **settings).score(ROWS)


def test_rows_that_are_refused():
    scorer = RiskScorer(Told(words), TASK)
    with pytest.raises(ValueError, match="no rows"):
        scorer.score([])
    with pytest.raises(DataError, match='column "score" is missing'):
        scorer.score([{"scores": 1}])
    with pytest.raises(TypeError, match="one dictionary"):
        scorer.score(ROWS[0])
    with pytest.raises(TypeError, match="row 0 must be a dictionary"):
        scorer.score(["x"])
    with pytest.raises(ValueError, match='row 0 has no "out"'):
        scorer.fit(ROWS)
    with pytest.raises(ValueError, match="labels"):
        scorer.fit(ROWS, [0, 1])
    with pytest.raises(ValueError, match="nothing to fit"):
        scorer.fit_scores([np.nan] * 2, [0, 1])
    assert outcome_labels([{"out": 1}], TASK).tolist() == [1]


# --- order bias -------------------------------------------------------------------------------------------------------


def test_order_bias_tells_a_place_from_a_content():
    both = [(0, 1), (1, 0)]
    place = np.tile([[[0.95, 0.05], [0.05, 0.95]]], (4, 1, 1))
    found = order_bias(place, both, [0, 1])
    assert (found.order_bias, found.first) == (pytest.approx(0.9), pytest.approx(0.95))
    assert found.mirrored < 1e-12 and "the place decides" in found.line
    content = np.tile([[[0.95, 0.05], [0.95, 0.05]]], (4, 1, 1))
    found = order_bias(content, both, [0, 1])
    assert (found.order_bias, found.first) == (0, pytest.approx(0.5)) and found.mirrored == pytest.approx(0.9)
    assert order_bias(place[:, :1], both[:1], [0, 1]) is None
    with pytest.raises(ValueError, match=r"probs must be \(N, 2, 2\)"):
        order_bias(place[0], both, [0, 1])


def test_no_warning_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RiskScorer(Told(letters(truth)), TASK, style="mc").predict_proba(ROWS)
