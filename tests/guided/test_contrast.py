"""Contrast: the formula, its identities, lazy against eager, settings that are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.guided.contrast import ALWAYS_OPEN, PRESETS, CollisionGate, Contrast, contrasted, jensen_shannon
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime

V = 6
GREEDY = Sampling(temperature=0.0)
ROWS = arrays(np.float32, 9, elements=st.floats(-30, 30, width=32))


class Never:
    always = False

    def opens(self, collision: float) -> bool:
        return False


def long_text_runtime(**limits) -> ToyRuntime:
    """Its end token (3) is impossible, so that texts run to max_tokens."""
    inner = ToyRuntime.random(V, seed=8, order=3, scale=1.5, context_length=512)

    def logits_of(prefix):
        row = inner._logits_of(prefix).copy()
        row[3] = -np.inf
        return row

    return ToyRuntime(logits_of, vocab_size=V, context_length=512, **limits)


def tokens_of(runtime, *, request=None, contrast=None, **changes):
    request = request or Request((1, 2), GREEDY, max_tokens=40)
    logits_processors = () if contrast is None else (contrast,)
    return run(toy_loop(runtime), replace(request, logits_processors=logits_processors, **changes))[0][0]


# --- the formula ------------------------------------------------------------------------------------------------------


@given(ROWS, ROWS, st.floats(0, 3), st.floats(0.01, 1))
def test_the_set_holds_the_argmax_and_nothing_under_alpha(logits, negative, eta, alpha):
    logp = log_softmax(logits)
    scores = contrasted(logp, log_softmax(negative), a=1.0, b=eta, alpha=alpha)
    p = np.exp(logp.astype(np.float64))
    kept = scores > -np.inf
    assert kept[logp.argmax()]
    assert not kept[p < alpha * p.max() * (1 - 1e-4)].any() and kept[p > alpha * p.max() * (1 + 1e-4)].all()
    assert kept[int(scores.argmax())]


@given(ROWS, ROWS, st.floats(0, 3))
def test_alpha_one_is_plain_argmax(logits, negative, eta):
    logp = log_softmax(logits)
    assert logp[contrasted(logp, log_softmax(negative), a=1.0, b=eta, alpha=1.0).argmax()] == logp.max()


@given(ROWS, st.floats(0, 0.95))
def test_the_same_context_and_a_small_eta_keep_the_order(logits, eta):
    logp = np.maximum(log_softmax(logits), -40)  # above the clamp
    scores = contrasted(logp, logp, a=1.0, b=eta, alpha=None)
    np.testing.assert_allclose(scores, (1 - eta) * logp, atol=1e-4)


def test_known_answer():
    logp, other = np.log(np.float32([0.5, 0.3, 0.15, 0.05])), np.log(np.float32([0.7, 0.1, 0.1, 0.1]))
    scores = contrasted(logp, other, a=1.0, b=1.0, alpha=0.2)
    np.testing.assert_allclose(np.exp(scores[:3]), [0.5 / 0.7, 3, 1.5], rtol=1e-6)
    assert scores[3] == -np.inf


def test_what_the_other_law_never_says_cannot_win_by_that_alone():
    logp = log_softmax(np.float32([0, -1, -60]))
    other = log_softmax(np.float32([0, 0, -np.inf]))
    assert contrasted(logp, other, a=1.0, b=1.0, alpha=None).argmax() == 0  # -60 + 50 < 0 - log 1/2
    far = log_softmax(np.float32([0, 0, -80]))
    assert contrasted(logp, far, a=1.0, b=1.0, alpha=1e-30)[2] == pytest.approx(logp[2] + 50, abs=1e-4)
    assert contrasted(logp, far, a=1.0, b=1.0, alpha=None)[2] == pytest.approx(logp[2] - far[2], abs=1e-4)


def test_weights_of_the_presets():
    made = {mode: Contrast([1], mode) for mode in ("uscd", "cad", "cfg")}
    assert [(c.a, c.b, c.alpha) for c in made.values()] == [(1, 0.1, 0.1), (1.5, 0.5, None), (1.5, 0.5, None)]
    assert (Contrast([1], "cfg", weight=2.0).a, Contrast([1], "cad", eta=0.3).b) == (3.0, 0.3)


# --- divergence -------------------------------------------------------------------------------------------------------


@given(ROWS, ROWS)
def test_jensen_shannon_is_symmetric_bounded_and_zero_for_equals(one, other):
    p, q = log_softmax(one), log_softmax(other)
    assert 0 <= jensen_shannon(p, q) <= 1
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-6)
    assert jensen_shannon(p, p) < 1e-6


def test_jensen_shannon_against_scipy_and_at_its_ends():
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(30))
        expected = jensenshannon(p, q, base=2) ** 2
        assert jensen_shannon(np.log(p).astype(np.float32), np.log(q).astype(np.float32)) == pytest.approx(
            expected, abs=1e-5
        )
    with np.errstate(divide="ignore"):
        left, right = np.log(np.float32([1, 0])), np.log(np.float32([0, 1]))
    assert jensen_shannon(left, right) == pytest.approx(1)


# --- identities of whole texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_no_weight_a_closed_gate_or_the_same_context_change_nothing(seed):
    runtime = ToyRuntime.random(V, seed=seed, context_length=64)
    plain = tokens_of(runtime).tokens
    for contrast in (
        Contrast([5, 4], eta=0.0, gate=ALWAYS_OPEN),
        Contrast([5, 4], gate=Never()),
        Contrast([5, 4], alpha=1.0, gate=ALWAYS_OPEN, eta=2.0),
        Contrast([1, 2], "cfg", weight=3.0),
        Contrast([1, 2], "cad"),
        Contrast([1, 2], eta=0.9, gate=ALWAYS_OPEN),
    ):
        assert tokens_of(runtime, contrast=contrast).tokens == plain


def test_another_context_does_change_the_text():
    changed = 0
    for seed in range(10):
        runtime = ToyRuntime.random(V, seed=seed, order=6, context_length=64)
        changed += (
            tokens_of(runtime).tokens != tokens_of(runtime, contrast=Contrast([5, 4, 3], "cfg", weight=2.0)).tokens
        )
    assert changed > 5


@pytest.mark.parametrize("mode", ["uscd", "cad", "cfg"])
def test_lazy_and_eager_decide_alike_on_200_steps(mode):
    runtime = long_text_runtime()
    request = Request((1, 2), GREEDY, max_tokens=200)
    for gate in (PRESETS[mode].gate, CollisionGate(0.6)):
        eager, lazy = (
            tokens_of(runtime, request=request, contrast=Contrast([5, 4, 2], mode, gate=gate, eager=e))
            for e in (True, False)
        )
        assert len(eager.tokens) == 200 and eager.tokens == lazy.tokens and eager.steering == lazy.steering
    assert 0 < sum(step.gated for step in lazy.steering) < 200


def test_lazy_computes_in_one_call_what_waited():
    """Calls: one per token of the text, one more per step with an open gate, and every token of each context once."""
    runtime = long_text_runtime()
    found = tokens_of(runtime, request=Request((1, 2), GREEDY, max_tokens=100), contrast=Contrast([5, 4, 2]))
    gated = [i for i, step in enumerate(found.steering) if step.gated]
    assert runtime.calls == 100 + len(gated)
    assert runtime.tokens_computed == (2 + 99) + (3 + gated[-1])


def test_an_open_gate_takes_no_call_of_its_own():
    runtime = long_text_runtime()
    tokens_of(runtime, request=Request((1, 2), GREEDY, max_tokens=50), contrast=Contrast([5, 4, 2], "cfg"))
    assert runtime.calls == 50
    runtime = long_text_runtime()
    drafted = tokens_of(
        runtime,
        request=Request((1, 2), GREEDY, max_tokens=50, drafter=RandomTrees(V), draft_budget=6),
        contrast=Contrast([5, 4, 2], "cfg"),
    )
    assert runtime.calls == drafted.target_calls < 50


def test_steps_say_what_was_seen():
    runtime = long_text_runtime()
    found = tokens_of(runtime, contrast=Contrast([5, 4], "uscd", gate=CollisionGate(0.6)))
    for i, step in enumerate(found.steering):
        logp = log_softmax(runtime._logits_of((1, 2, *found.tokens[:i])))
        other = log_softmax(runtime._logits_of((5, 4, *found.tokens[:i])))
        assert step.collision == pytest.approx(float(np.sqrt((np.exp(logp) ** 2).sum())), abs=1e-6)
        assert step.gated == (step.collision <= 0.6)
        assert step.js == (pytest.approx(jensen_shannon(logp, other), abs=1e-6) if step.gated else None)


def test_end_tokens_are_contrasted_too():
    """Plain text goes on for ever; the negative context never wants to end, so the contrast ends at once."""

    def logits_of(prefix):
        return np.float32([1.0, 0, 0, 0.9 if prefix[0] == 1 else -9])

    runtime = ToyRuntime(logits_of, vocab_size=4, context_length=64)
    assert len(tokens_of(runtime, request=Request((1,), GREEDY, max_tokens=9)).tokens) == 9
    assert tokens_of(runtime, contrast=Contrast([2], "cfg"), request=Request((1,), GREEDY)).tokens == [3]


def test_cfg_is_what_transformers_computes():
    """Log-softmax of the processed scores along a text, to 1e-4."""
    import torch
    from tiny_torch import VOCAB, tiny_module
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

    from likely.runtimes.torch.runtime import TorchRuntime

    module = tiny_module("llama")
    runtime = TorchRuntime(module, tokens_held=512, sequences=8, tokens_per_call=64)
    prompt, negative, rng = [1, 2, 3, 4], [9, 8, 7], np.random.default_rng(0)
    for scale in (1.5, 3.0):
        theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, module, torch.tensor([negative]))
        ours = Contrast(negative, "cfg", weight=scale - 1).begin(runtime, prompt)
        text = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                logits = module(torch.tensor([text])).logits[:, -1]
                expected = torch.log_softmax(theirs(torch.tensor([text]), logits), -1)[0].numpy()
            found = ours.apply((), logits[0].numpy())
            np.testing.assert_allclose(log_softmax(found), expected, atol=1e-4)
            token = int(rng.integers(VOCAB))
            ours.advance([token], [])
            text.append(token)
        ours.drop()
    runtime.shutdown()


# --- another model ----------------------------------------------------------------------------------------------------


class Loaded:
    def __init__(self, runtime, tokenizer=None):
        self.runtime, self.tokenizer = runtime, tokenizer


def test_a_weaker_model_sees_the_prompt_itself():
    strong, weak = long_text_runtime(), ToyRuntime.random(V, seed=2, context_length=512)
    found = tokens_of(strong, contrast=Contrast(Loaded(weak), "cd"))
    text = [1, 2]
    for token in found.tokens:
        logp, other = log_softmax(strong._logits_of(tuple(text))), log_softmax(weak._logits_of(tuple(text)))
        scores = np.where(logp >= logp.max() + np.log(0.1), logp - other, -np.inf)
        assert token == scores.argmax()
        text.append(token)
    assert weak.calls == len(found.tokens) and not weak._open and not strong._open


def test_a_model_of_another_vocabulary_is_refused():
    from likely.runtimes.toy import CharTokenizer

    contrast = Contrast(Loaded(ToyRuntime.random(V + 1, seed=1)), "cd")
    with pytest.raises(ValueError, match="same vocabulary"):
        contrast.begin(ToyRuntime.random(V, seed=1), (1,))
    here, there = CharTokenizer("abcd"), CharTokenizer("abdc")
    with pytest.raises(ValueError, match=r"token 2 is 'c' here and 'd'"):
        Contrast(Loaded(ToyRuntime.random(V, seed=1), there), "cd").prepared(here, V, lambda text: [])
    assert Contrast(Loaded(ToyRuntime.random(V, seed=1), here), "cd").prepared(here, V, lambda text: []) is not None


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_full_negative_context_ends_the_text():
    inner = long_text_runtime()
    runtime = ToyRuntime(inner._logits_of, vocab_size=V, context_length=30)
    for eager in (True, False):
        for drafter in (None, RandomTrees(V)):
            request = Request((1, 2), GREEDY, max_tokens=60, drafter=drafter, draft_budget=4)
            found = tokens_of(runtime, request=request, contrast=Contrast([5] * 20, "cfg", eager=eager))
            assert (found.reason, len(found.tokens)) == ("context", 10)


@pytest.mark.parametrize("eager", [True, False])
def test_where_two_texts_do_not_fit_they_take_turns_with_the_same_texts(eager):
    requests = [
        Request(prompt, GREEDY, max_tokens=20, logits_processors=(Contrast([5, 4, 2], "cfg", eager=eager),))
        for prompt in ((1, 2), (2, 1), (4,))
    ]
    alone = [run(toy_loop(long_text_runtime()), r)[0][0].tokens for r in requests]
    for held in (50, 60, 75, 100):
        runtime = long_text_runtime(tokens_held=held)
        together = [f[0].tokens for f in run(toy_loop(runtime), *requests)]
        assert together == alone and not runtime._open


@pytest.mark.parametrize("eager", [True, False])
def test_samples_and_beams_where_room_is_short(eager):
    contrast = Contrast([5, 4, 2], "cfg", eager=eager)
    drawn = Request((1, 2), Sampling(seed=3), max_tokens=12, samples=3, logits_processors=(contrast,))
    beams = Request((1, 2), GREEDY, max_tokens=12, beams=3, logits_processors=(contrast,))
    other = Request((2, 4, 1), GREEDY, max_tokens=12, logits_processors=(contrast,))
    wide = [[f.tokens for f in group] for group in run(toy_loop(long_text_runtime()), other, drawn, beams)]
    for held in (110, 140, 180):
        runtime = long_text_runtime(tokens_held=held)
        tight = [[f.tokens for f in group] for group in run(toy_loop(runtime), other, drawn, beams)]
        assert tight == wide and not runtime._open


def test_a_text_whose_contrast_fills_the_cache_ends_there_and_frees_everything():
    runtime = long_text_runtime(tokens_held=20)
    found = tokens_of(runtime, contrast=Contrast([5, 4, 2], "cfg", eager=False))
    assert found.reason == "context" and 0 < len(found.tokens) < 18 and not runtime._open


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"alpha": 1.5}, "alpha must lie in"),
        ({"eta": -0.1}, "eta must be >= 0"),
        ({"weight": float("inf"), "mode": "cfg"}, "weight must be >= 0"),
        ({"eta": 0.1, "weight": 0.1}, "give one"),
        ({"mode": "dola"}, "mode must be one of"),
        ({"negative": ""}, "empty"),
        ({"negative": " \n"}, "empty"),
        ({"negative": []}, "empty"),
        ({"negative": None}, "no prompt"),
        ({"mode": "cd"}, "another loaded model"),
        ({"negative": Loaded(None)}, "another loaded model"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Contrast(**{"negative": [1], **options})


def test_tokens_outside_the_vocabulary_and_unprepared_text_are_refused():
    from likely.runtimes.toy import CharTokenizer

    with pytest.raises(ValueError, match=r"outside 0\.\.5"):
        Contrast([9]).prepared(CharTokenizer("abcd"), V, lambda text: [])
    with pytest.raises(ValueError, match="is text"):
        Contrast("Say it badly.").begin(ToyRuntime.random(V, seed=1), (1,))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["apply", "advance", "fork", "drop", "work"]), min_size=1, max_size=25), st.booleans())
def test_any_order_of_calls_gives_the_direct_answer(verbs, eager):
    """Forks live on beside each other; dropped ones are computed anew."""
    from likely.runtimes.protocol import Work

    runtime = ToyRuntime.random(V, seed=4, order=4, context_length=128)
    live = [(Contrast([5, 4], "cfg", eager=eager).begin(runtime, (1, 2)), [])]
    rng = np.random.default_rng(len(verbs))
    for verb in verbs:
        transform, text = live[int(rng.integers(len(live)))]
        if verb == "advance":
            tokens = rng.integers(0, V, 2).tolist()
            for i in range(2):  # as in a walk: the rows along what is emitted are asked for
                transform.apply(tokens[:i], np.zeros(V, np.float32))
            transform.advance(tokens, [])
            text += tokens
        elif verb == "fork":
            live.append((transform.fork(), text.copy()))
        elif verb == "drop":
            transform.drop()
        elif verb == "work":
            sequence = runtime.open()
            items = transform.work(Work(sequence, np.array([0])))
            transform.read(runtime.forward(items)) if items else None
            runtime.close(sequence)
        for one, said in live:
            logits = runtime._logits_of((1, 2, *said))
            logp, other = log_softmax(logits), log_softmax(runtime._logits_of((5, 4, *said)))
            np.testing.assert_allclose(one.apply((), logits), 1.5 * logp - 0.5 * other, atol=1e-5)
    for one, said in live:
        assert len(one.steps) == len(said) + 1  # and the one just looked at
        one.drop()
    assert not runtime._open
