from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_draws import chi_square_p

from likely.decoding.sampling import Sampling, apply_penalties, pick, processed_logprobs
from likely.runtimes.rows import log_softmax

LOGITS = np.array([2.0, 1.0, 0.5, -0.3, -1.0, -np.inf, 1.0], np.float32)


def warped_by_transformers(logits, s: Sampling, prompt, output):
    """The same law by transformers' own logits processors."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as lp

    ids = torch.tensor([[*prompt, *output]])
    scores = torch.from_numpy(logits.copy())[None]
    chain = []
    if s.repetition_penalty != 1:
        chain.append(lp.RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    chain.append(lp.TemperatureLogitsWarper(float(s.temperature)))
    if s.top_k:
        chain.append(lp.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        chain.append(lp.TopPLogitsWarper(s.top_p))
    if s.min_p > 0:
        chain.append(lp.MinPLogitsWarper(s.min_p))
    if s.typical_p < 1:
        chain.append(lp.TypicalLogitsWarper(s.typical_p))
    for processor in chain:
        scores = processor(ids, scores)
    return torch.log_softmax(scores.float(), -1)[0].numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"typical_p": 0.6},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=lambda o: ",".join(o) or "plain",
)
def test_laws_equal_transformers(options):
    rng = np.random.default_rng(0)
    for _ in range(30):
        logits = (3 * rng.standard_normal(50)).astype(np.float32)
        s = Sampling(**options)
        prompt, output = [1, 2, 3], [4, 2]
        ours = processed_logprobs(apply_penalties(logits, s, prompt, output), s)
        theirs = warped_by_transformers(logits, s, prompt, output)
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
        np.testing.assert_allclose(np.exp(ours), np.exp(theirs), atol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_p": 0.75},
        {"min_p": 0.2},
        {"typical_p": 0.5},
        {"temperature": 0.9, "top_k": 6, "top_p": 0.95, "min_p": 0.05},
    ],
    ids=lambda o: ",".join(o) or "plain",
)
def test_draws_follow_the_processed_law(options):
    s = Sampling(seed=5, **options)
    law = dict(enumerate(np.exp(processed_logprobs(LOGITS, s).astype(np.float64))))
    draws = [pick(LOGITS, s, sample=0, position=t) for t in range(20000)]
    assert chi_square_p(draws, law) > 1e-6


def test_the_chi_square_test_can_fail():
    s = Sampling(seed=5)
    wrong = dict(enumerate(np.exp(processed_logprobs(LOGITS, Sampling(temperature=1.1)).astype(np.float64))))
    draws = [pick(LOGITS, s, sample=0, position=t) for t in range(20000)]
    assert chi_square_p(draws, wrong) < 1e-6


def test_greedy_is_argmax_with_ties_to_the_smaller_id():
    assert pick(np.array([0, 3, 3, 1], np.float32), Sampling(temperature=0), sample=0, position=0) == 1


def test_impossible_tokens_are_never_drawn():
    assert all(pick(LOGITS, Sampling(temperature=50.0), sample=0, position=t) != 5 for t in range(3000))


def test_presence_and_frequency_penalties_count_output_only():
    s = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    out = apply_penalties(np.zeros(5, np.float32), s, prompt=[0, 0], output=[1, 2, 2])
    np.testing.assert_allclose(out, [0, -0.75, -1.0, 0, 0])


def test_repetition_penalty_shrinks_both_signs_of_prompt_and_output():
    s = Sampling(repetition_penalty=2.0)
    out = apply_penalties(np.array([4, -4, 4, 4], np.float32), s, prompt=[0, 1], output=[2])
    np.testing.assert_allclose(out, [2, -8, 2, 4])


def test_bias_shifts_and_bans():
    s = Sampling(temperature=0, logit_bias={0: -np.inf, 3: 10.0})
    assert pick(apply_penalties(LOGITS, s, [], []), s, sample=0, position=0) == 3
    with pytest.raises(ValueError, match="token 99"):
        apply_penalties(LOGITS, Sampling(logit_bias={99: 1.0}), [], [])


def test_inputs_are_not_changed():
    before = LOGITS.copy()
    s = Sampling(repetition_penalty=1.5, presence_penalty=1, logit_bias={1: 2.0}, top_p=0.5)
    pick(apply_penalties(LOGITS, s, [0], [1]), s, sample=0, position=0)
    np.testing.assert_array_equal(LOGITS, before)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.05, 5),
    st.integers(0, 45),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_every_setting_gives_a_law_that_holds_the_pick(values, temperature, k, p, m, typical):
    logits = np.array(values, np.float32)
    s = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=m, typical_p=typical)
    logprobs = processed_logprobs(logits, s)
    assert abs(np.exp(logprobs.astype(np.float64)).sum() - 1) < 1e-4
    assert np.isfinite(logprobs[pick(logits, s, sample=0, position=3)])
    if k:
        assert np.isfinite(logprobs).sum() <= k


def test_plain_settings_are_the_model_itself():
    np.testing.assert_allclose(processed_logprobs(LOGITS, Sampling()), log_softmax(LOGITS[None])[0], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 2.5},
        {"min_p": 2},
        {"typical_p": 0},
        {"repetition_penalty": 0},
        {"frequency_penalty": float("inf")},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
    ],
    ids=str,
)
def test_bad_settings_are_refused_with_their_value(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}, {"top_k": 9, "top_p": 0.9}]
)
def test_a_masked_row_is_drawn_from_as_its_possible_tokens_are(settings):
    """Impossible tokens cost nothing and change nothing: as with logits so low that they are never drawn."""
    rng = np.random.default_rng(0)
    sampling = Sampling(**settings, temperature=0.9, seed=3)
    for position in range(200):
        logits = rng.standard_normal(300).astype(np.float32)
        allowed = rng.random(300) < rng.choice([0.02, 0.2, 0.9])
        allowed[7] = True
        low, masked = np.where(allowed, logits, np.float32(-90)), np.where(allowed, logits, np.float32(-np.inf))
        assert pick(masked, sampling, sample=1, position=position) == pick(low, sampling, sample=1, position=position)
        law, near = (np.exp(processed_logprobs(row, sampling)) for row in (masked, low))
        np.testing.assert_allclose(law, near, atol=1e-6)
        assert not law[~allowed].any()
