from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_draws import chi_square_p

from likely.decoding.sampling import Sampling, apply_penalties, gumbel, pick, processed_logprobs
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


@pytest.mark.sampled(6)
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
    draws = [pick(LOGITS, s, noise=5, sample=0, position=t) for t in range(20000)]
    assert chi_square_p(draws, law) > 1e-6


def test_the_chi_square_test_can_fail():
    s = Sampling(seed=5)
    wrong = dict(enumerate(np.exp(processed_logprobs(LOGITS, Sampling(temperature=1.1)).astype(np.float64))))
    draws = [pick(LOGITS, s, noise=5, sample=0, position=t) for t in range(20000)]
    assert chi_square_p(draws, wrong) < 1e-6


def test_greedy_is_argmax_with_ties_to_the_smaller_id():
    assert pick(np.array([0, 3, 3, 1], np.float32), Sampling(temperature=0), noise=5, sample=0, position=0) == 1


def test_impossible_tokens_are_never_drawn():
    assert all(pick(LOGITS, Sampling(temperature=50.0), noise=5, sample=0, position=t) != 5 for t in range(3000))


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
    assert pick(apply_penalties(LOGITS, s, [], []), s, noise=5, sample=0, position=0) == 3
    with pytest.raises(ValueError, match="token 99"):
        apply_penalties(LOGITS, Sampling(logit_bias={99: 1.0}), [], [])


def test_inputs_are_not_changed():
    before = LOGITS.copy()
    s = Sampling(repetition_penalty=1.5, presence_penalty=1, logit_bias={1: 2.0}, top_p=0.5)
    pick(apply_penalties(LOGITS, s, [0], [1]), s, noise=5, sample=0, position=0)
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
    assert np.isfinite(logprobs[pick(logits, s, noise=5, sample=0, position=3)])
    if k:
        assert np.isfinite(logprobs).sum() <= k


def slowly_kept(logits, s: Sampling) -> list[int]:
    """The ids that truncation keeps, one rule after the other, all of them sorted; ties go to the smaller id."""
    ids = [i for i in range(len(logits)) if logits[i] > -np.inf]
    values = {i: logits[i] / np.float32(s.temperature) for i in ids}

    def weights():
        found = np.exp(np.array([values[i] for i in ids], np.float32) - max(values[i] for i in ids))
        return dict(zip(ids, found.astype(np.float64).tolist(), strict=True)), float(found.sum(dtype=np.float64))

    def first(order, share):
        reached, kept = 0.0, []
        weight, whole = weights()
        for i in order:
            kept.append(i)
            reached += weight[i]
            if reached >= share * whole:
                break
        return sorted(kept)

    if s.top_k:
        ids = sorted(sorted(ids, key=lambda i: (-values[i], i))[: s.top_k])
    if s.top_p < 1:
        ids = first(sorted(ids, key=lambda i: (-values[i], i)), s.top_p)
    if s.min_p:
        least = max(values[i] for i in ids) + np.float32(np.log(s.min_p))
        ids = [i for i in ids if values[i] >= least]
    if s.typical_p < 1:
        weight, whole = weights()
        top = max(values[i] for i in ids)
        shifted = {i: values[i] - top for i in ids}
        products = np.array([np.float32(weight[i]) * shifted[i] for i in ids], np.float32)
        mean = np.float32(products.sum(dtype=np.float64) / whole)
        ids = first(sorted(ids, key=lambda i: (abs(shifted[i] - mean), -values[i], i)), s.typical_p)
    return ids


SLOW_ROWS = {
    "like a model's": lambda rng, n: 3 * rng.standard_normal(n) + 12 * (rng.random(n) < 4 / n),
    "flat": lambda rng, n: np.zeros(n),
    "nearly flat": lambda rng, n: 1e-3 * rng.standard_normal(n),
    "few levels": lambda rng, n: rng.integers(0, 4, n).astype(float),
    "one certain": lambda rng, n: np.where(np.arange(n) == n // 2, 60.0, rng.standard_normal(n)),
    "half impossible": lambda rng, n: np.where(rng.random(n) < 0.5, -np.inf, 2 * rng.standard_normal(n)),
    "steep": lambda rng, n: -0.5 * rng.permutation(n),
}


@pytest.mark.parametrize("rows", SLOW_ROWS)
def test_truncation_keeps_what_sorting_everything_keeps(rows):
    """Whatever is never sorted: the same set, and the same choice among equals, at every size and setting."""
    rng = np.random.default_rng(7)
    settings_ = [
        *({"top_p": p} for p in (1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-9)),
        *({"typical_p": p} for p in (1e-9, 0.2, 0.7, 0.95, 1 - 1e-9)),
        *({"top_k": k} for k in (1, 7, 4000)),
        {"min_p": 0.05},
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 40, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8},
        {"top_p": 0.97, "typical_p": 0.5},
    ]
    for n in (1, 3, 60, 3000):
        for _ in range(2):
            logits = np.append(SLOW_ROWS[rows](rng, n), 0.25).astype(np.float32)
            for options in settings_:
                s = Sampling(temperature=float(rng.choice([0.3, 0.8, 1.0, 2.0])), **options)
                kept = np.flatnonzero(np.isfinite(processed_logprobs(logits, s))).tolist()
                assert kept == slowly_kept(logits, s), (n, options)


@pytest.mark.parametrize("rows", SLOW_ROWS)
def test_the_pick_is_the_largest_of_all_with_noise(rows):
    """Logarithms are taken for few of many tokens; what is picked is what the noise of all of them says."""
    rng = np.random.default_rng(3)
    for position in range(60):
        logits = np.append(SLOW_ROWS[rows](rng, 5000), 0.25).astype(np.float32)
        s = Sampling(temperature=float(rng.choice([0.2, 1.0, 5.0])), min_p=float(rng.choice([0.0, 1e-6])))
        with np.errstate(divide="ignore"):
            law = logits / np.float32(s.temperature)
            law = np.where(np.isfinite(processed_logprobs(logits, s)), law, np.float32(-np.inf))
        expected = int((law + gumbel(9, 2, position, np.arange(len(law)))).argmax())
        assert pick(logits, s, noise=9, sample=2, position=position) == expected


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
        a, b = (pick(row, sampling, noise=5, sample=1, position=position) for row in (masked, low))
        assert a == b
        law, near = (np.exp(processed_logprobs(row, sampling)) for row in (masked, low))
        np.testing.assert_allclose(law, near, atol=1e-6)
        assert not law[~allowed].any()
