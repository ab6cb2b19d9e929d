"""Prophet: gaps are log-odds, thresholds step down, rows are their own, and fitted thresholds keep their promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from likely.decoding.diffusion import (
    ConvergenceRecorder,
    ConvergenceTrace,
    HashPredictor,
    Prophet,
    after_pinned,
    convergence_curve,
    diffusion_generate,
    draw_convergence,
    fit_thresholds,
    log_odds_gap,
)
from likely.decoding.diffusion.canvas import new_canvas
from likely.decoding.diffusion.fit import stopping_steps
from likely.decoding.diffusion.prophet import PUBLISHED, threshold_at
from likely.errors import DataError

NEVER, ALWAYS = ((1.0, math.inf),), ((1.0, -math.inf),)
PROMPTS = [[n, m] for n in range(6) for m in range(3)]


def canvas_of(**how):
    return new_canvas(PROMPTS[:2], **{"length": 6, "block_length": 3, "mask_id": 7, "vocab_size": 8} | how)


def test_gap_is_the_log_odds_of_best_against_second():
    logits = np.random.default_rng(0).normal(0, 4, (3, 5, 8)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p = np.sort(p / p.sum(axis=2, keepdims=True), axis=2)
    np.testing.assert_allclose(log_odds_gap(logits), np.log(p[..., -1] / p[..., -2]), atol=1e-5)
    shift = np.random.default_rng(1).normal(0, 3, (3, 5, 1)).astype(np.float32)
    np.testing.assert_allclose(log_odds_gap(logits + shift), log_odds_gap(logits), atol=1e-5)
    assert log_odds_gap(np.array([0.0, -np.inf], np.float32)) == np.inf
    with pytest.raises(FloatingPointError):
        log_odds_gap(np.full(3, -np.inf, np.float32))
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        log_odds_gap(np.zeros((2, 1), np.float32))


def test_published_thresholds_step_at_a_third_and_two_thirds():
    r = np.array([0.0, 0.329, 0.33, 0.669, 0.67, 1.0])
    assert threshold_at(PUBLISHED, r).tolist() == [7.5, 7.5, 5.0, 5.0, 2.5, 2.5]
    assert threshold_at(lambda x: 3 - x, r[:2]).tolist() == [3.0, 2.671]


@pytest.mark.parametrize("region", ["masked", (0, 2)])
def test_an_infinite_threshold_is_plain_decoding(region):
    toy = HashPredictor(8)
    plain = diffusion_generate(toy, PROMPTS, length=8, block_length=4)
    never = diffusion_generate(toy, PROMPTS, length=8, block_length=4, stop=Prophet(NEVER, region=region))
    assert (never.ids == plain.ids).all() and (never.order == plain.order).all()
    assert never.forward_calls == plain.forward_calls and not never.stopped_at.any()


def test_no_threshold_is_decoding_in_one_step():
    toy = HashPredictor(8)
    one = diffusion_generate(toy, PROMPTS, length=8, steps=1)
    now = diffusion_generate(toy, PROMPTS, length=8, block_length=4, stop=Prophet(ALWAYS))
    assert (now.ids == one.ids).all() and now.forward_calls == 1 and (now.stopped_at == 1).all()
    blocks = diffusion_generate(toy, PROMPTS, length=8, block_length=4, stop=Prophet(ALWAYS, commit="block"))
    each = diffusion_generate(toy, PROMPTS, length=8, block_length=4, steps=2)
    assert (blocks.ids == each.ids).all() and blocks.forward_calls == 2


def test_what_was_committed_stays_and_steps_are_never_more():
    toy = HashPredictor(8, sensitivity=0.5, scale=9.0)
    plain = diffusion_generate(toy, PROMPTS, length=9)
    for gap in (0.5, 1.0, 1.4):
        out = diffusion_generate(toy, PROMPTS, length=9, stop=Prophet(((1.0, gap),)))
        before = out.order < (out.stopped_at - 1)[:, None]
        assert (out.answers[before] == plain.answers[before]).all()
        assert (out.steps <= plain.steps).all() and (out.row_calls <= plain.row_calls).all()
    assert (out.stopped_at > 0).any()


def test_a_predictor_that_does_not_change_its_mind_gives_one_answer():
    toy = HashPredictor(8, sensitivity=0.0)
    plain = diffusion_generate(toy, PROMPTS, length=9)
    for gap in (-1.0, 0.5, 1.0, 2.0):
        out = diffusion_generate(toy, PROMPTS, length=9, stop=Prophet(((1.0, gap),)))
        assert (out.ids == plain.ids).all()


def test_rows_decide_for_themselves():
    toy, stop = HashPredictor(8, sensitivity=0.5, scale=9.0), Prophet(((0.5, 1.3), (1.0, 1.0)), aggregate=0.3)
    together = diffusion_generate(toy, PROMPTS, length=9, stop=stop)
    assert len(set(together.stopped_at.tolist())) > 2
    for row, prompt in enumerate(PROMPTS[:6]):
        alone = diffusion_generate(toy, prompt, length=9, stop=stop)
        assert alone.answers[0].tolist() == together.answers[row].tolist()
        assert alone.stopped_at[0] == together.stopped_at[row]


def test_gaps_of_regions():
    canvas = canvas_of(pinned={1: 3, 2: 0})
    logits = np.zeros((2, 6, 8), np.float32)
    logits[:, :, 4] = [[1, 9, 9, 2, 3, 6], [6, 9, 9, 3, 2, 1]]
    np.testing.assert_allclose(Prophet().gap(logits, canvas), [3.0, 3.0])
    np.testing.assert_allclose(Prophet(aggregate="min").gap(logits, canvas), [1.0, 1.0])
    np.testing.assert_allclose(Prophet(aggregate=1.0).gap(logits, canvas), [6.0, 6.0])
    np.testing.assert_allclose(Prophet(region=(0, 4)).gap(logits, canvas), [1.5, 4.5])
    assert (Prophet(region=(1, 3), aggregate=0.5).gap(logits, canvas) == np.inf).all()  # all committed: sure
    assert (Prophet(region=(1, 3)).gap(logits, canvas) == np.inf).all()
    np.testing.assert_allclose(Prophet(region=after_pinned(offset=2, length=2)).gap(logits, canvas), [4.5, 1.5])
    alone = np.where(np.arange(8) == 4, logits, -np.inf)  # one token is possible
    assert (Prophet(aggregate=0.3).gap(alone, canvas) == np.inf).all()
    logits[0, 3, 5], logits[1, 0, 5] = 20.0, 20.0  # the end comes there
    np.testing.assert_allclose(Prophet(end_id=5).gap(logits, canvas), [9.5, 14.0])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"thresholds": ((0.5, 3.0), (0.5, 2.0), (1.0, 1.0))}, "must rise"),
        ({"thresholds": ((0.5, 3.0),)}, "the last must be 1"),
        ({"thresholds": ((1.0, math.nan),)}, "must be numbers"),
        ({"region": "mask"}, 'did you mean "masked"'),
        ({"region": (3, 3)}, "start < end"),
        ({"aggregate": 1.5}, "quantile"),
        ({"aggregate": "median"}, "aggregate"),
        ({"commit": "blocks"}, 'did you mean "block"'),
    ],
)
def test_settings_that_do_not_fit_are_refused(how, said):
    with pytest.raises(ValueError, match=said):
        Prophet(**how)


def test_rising_thresholds_are_warned_of_and_regions_outside_refused():
    with pytest.warns(UserWarning, match="usually fall"):
        Prophet(((0.5, 1.0), (1.0, 2.0)))
    with pytest.raises(ValueError, match=r"0\.\.9 reaches beyond the answer of 6"):
        Prophet(region=(0, 9)).gap(np.zeros((2, 6, 8), np.float32), canvas_of())
    with pytest.raises(ValueError, match="needs a pinned token"):
        Prophet(region=after_pinned()).gap(np.zeros((2, 6, 8), np.float32), canvas_of())


def test_recorded_traces_say_what_stopping_gives():
    toy, rule = HashPredictor(8, sensitivity=0.5), Prophet(aggregate="min")
    recorder = ConvergenceRecorder(rule, answer=(2, 6))
    plain = diffusion_generate(toy, PROMPTS, length=8)
    traces = recorder.traces(diffusion_generate(toy, PROMPTS, length=8, stop=recorder))
    for gap in (0.1, 0.4, 0.8):
        thresholds = ((0.5, gap), (1.0, gap / 2))
        out = diffusion_generate(toy, PROMPTS, length=8, stop=Prophet(thresholds, aggregate="min"))
        steps, changed = stopping_steps(traces, np.array([[gap, gap / 2]]), np.array([0.5, 1.0]))
        assert steps[0].tolist() == out.steps.tolist()
        assert changed[0].tolist() == (out.answers[:, 2:6] != plain.answers[:, 2:6]).any(axis=1).tolist()
    with pytest.raises(ValueError, match="rows were recorded"):
        recorder.traces(plain)


def test_stable_and_right_from():
    tokens = np.array([[1, 2], [3, 2], [1, 2], [3, 4], [3, 2], [3, 2]])
    trace = ConvergenceTrace(np.zeros(6), tokens, np.array([3, 2]))
    assert trace.same.tolist() == [False, True, False, False, True, True] and trace.stable_from == 5
    assert trace.right(lambda answer: answer[0] == 3).tolist() == [False, True, False, True, True, True]
    curve = convergence_curve([trace.same, np.array([True, True])], np.array([0.01, 0.5, 1.0]))
    assert curve.tolist() == [0.5, 0.5, 1.0]
    with pytest.raises(ValueError, match="at least one row"):
        convergence_curve([], np.array([1.0]))


def test_a_picture_of_curves():
    pytest.importorskip("matplotlib")
    fractions = np.linspace(0.1, 1, 10)
    figure = draw_convergence({"low confidence": (fractions, fractions), "random": (fractions, fractions**2)})
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["low confidence", "random"]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_convergence({})


def simulated(rng, count, steps=12):
    """Traces of answers that settle at a random step; gaps rise towards it, with noise, and sometimes too early."""
    settle = rng.integers(1, steps, count)[:, None]
    step = np.arange(steps)
    gaps = np.maximum(0.0, 1.0 + 0.8 * (step - settle) + rng.normal(0, 1.2, (count, steps)))
    tokens = (step >= settle).astype(np.int64)[..., None]
    return [ConvergenceTrace(g, t, np.array([1])) for g, t in zip(gaps, tokens, strict=True)]


def test_fitted_thresholds_keep_their_promise():
    """Of 200 calibration sets at most a share delta (and chance: 6 standard errors) break epsilon on new answers."""
    rng, epsilon, delta, sets = np.random.default_rng(0), 0.1, 0.1, 200
    many = simulated(rng, 4000)
    fitted = [fit_thresholds(simulated(rng, 120), epsilon=epsilon, delta=delta, phases=2, seed=i) for i in range(sets)]
    values = np.array([[value for _, value in one.thresholds] for one in fitted])
    _, changed = stopping_steps(many, values, np.array([0.5, 1.0]))
    broken = (changed.mean(axis=1) > epsilon).mean()
    assert broken <= delta + 6 * math.sqrt(delta * (1 - delta) / sets) * 0.5
    assert np.mean([one.share_of_steps for one in fitted]) < 0.97  # and something is gained
    assert all(one.bound <= epsilon for one in fitted if one.share_of_steps < 1)


def test_answers_that_settle_late_are_not_stopped():
    rng = np.random.default_rng(0)
    late = [
        ConvergenceTrace(rng.random(8), np.append(np.zeros(7), 1).astype(np.int64)[:, None], np.array([1]))
        for _ in range(300)
    ]
    fitted = fit_thresholds(late, epsilon=0.02)
    assert fitted.share_of_steps > 0.99 and fitted.changed <= 2
    early = [ConvergenceTrace(np.full(8, 5.0), np.ones((8, 1), np.int64), np.array([1])) for _ in range(300)]
    sure = fit_thresholds(early, epsilon=0.02)
    assert sure.share_of_steps == 1 / 8 and sure.changed == 0 and sure.thresholds[0][1] == 5.0


def test_too_few_traces_are_refused():
    with pytest.raises(DataError, match="give at least 177"):
        fit_thresholds(simulated(np.random.default_rng(0), 100), epsilon=0.02)
    assert fit_thresholds(simulated(np.random.default_rng(0), 177), epsilon=0.02).bound <= 0.02
    for few in (1, 2):  # too few to choose candidates from: certified, and never stopping
        fitted = fit_thresholds(simulated(np.random.default_rng(0), few), epsilon=0.95)
        assert fitted.share_of_steps == 1 and {value for _, value in fitted.thresholds} == {math.inf}
    with pytest.raises(ValueError, match="epsilon"):
        fit_thresholds([], epsilon=0.0)
