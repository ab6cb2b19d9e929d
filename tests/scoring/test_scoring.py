from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import ModelError
from likely.runtimes.toy import CharTokenizer, ToyRuntime, all_strings, exact_logprob
from likely.scoring.likelihood import Item, joint_item, score_items, score_pairs, windows
from likely.scoring.rolling import perplexity

TOKENIZER = CharTokenizer("abcd", add_bos=True)


def toy(**options):
    return ToyRuntime.random(6, seed=4, **options)


def test_all_answers_of_one_length_sum_to_one():
    runtime = toy()
    items = [Item((4, 0, *text), 2) for text in all_strings(6, 3)]
    scores = score_items(runtime, items)
    total = sum(np.exp(np.sum(s.logprobs, dtype=np.float64)) for s in scores)
    assert abs(total - 1) < 1e-5
    assert runtime.rows_computed <= 1 + 6 + 36  # every shared prefix once, last tokens never


def test_score_of_a_concatenation_is_the_sum_of_the_parts():
    runtime = toy()
    [[ab]] = [score_pairs(runtime, TOKENIZER, [("c", "abba")])]
    [[a]] = [score_pairs(runtime, TOKENIZER, [("c", "ab")])]
    [[b]] = [score_pairs(runtime, TOKENIZER, [("cab", "ba")])]
    assert ab.token_logprobs == a.token_logprobs + b.token_logprobs
    assert abs(ab.sequence_logprob - exact_logprob(runtime, ab.token_ids, given=(4, 2))) < 1e-5


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 3), max_size=6)),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_any_packing_gives_the_exact_numbers_in_order(pairs, tokens_per_call, leaves):
    runtime = toy()
    object.__setattr__(runtime.limits, "tokens_per_call", tokens_per_call)
    object.__setattr__(runtime.limits, "leaves", leaves)
    items = [Item((4, *prompt, *answer), 1 + len(prompt)) for prompt, answer in pairs]
    ticks = []
    scores = score_items(runtime, items, top=2, entropy=True, progress=ticks.append)
    assert sum(ticks) == len(items) and runtime.free_tokens() == runtime.limits.tokens_held
    for item, score in zip(items, scores, strict=True):
        expected = [
            exact_logprob(runtime, [item.tokens[i]], given=item.tokens[:i]) for i in range(item.start, len(item.tokens))
        ]
        np.testing.assert_allclose(score.logprobs, expected, atol=1e-5)
        assert len(score.entropies) == len(score.tops) == len(expected)
        for i, (top, entropy) in enumerate(zip(score.tops, score.entropies, strict=True)):
            row = runtime._logits_of(item.tokens[: item.start + i]).astype(np.float64)
            p = np.exp(row - np.logaddexp.reduce(row))
            assert [t for t, _ in top] == np.argsort(-row, kind="stable")[:2].tolist()
            assert abs(entropy + (p * np.log(p)).sum()) < 1e-4


def test_few_shot_prefix_is_computed_once_over_many_calls():
    runtime = toy(context_length=256)
    object.__setattr__(runtime.limits, "tokens_per_call", 130)
    rng = np.random.default_rng(0)
    prefix = (4, *rng.integers(0, 4, 100).tolist())
    questions = [tuple(rng.integers(0, 4, 10).tolist()) for _ in range(30)]
    items = [Item((*prefix, *q, a), 111) for q in questions for a in range(4)]
    order = rng.permutation(len(items))
    score_items(runtime, [items[i] for i in order])
    assert runtime.tokens_computed <= 100 + 30 * 10 + 32 * runtime.calls and runtime.calls <= 6


def test_four_answers_to_a_question_are_one_call():
    runtime = toy()
    score_pairs(runtime, TOKENIZER, [("abca", a) for a in ("b", "cc", "d", "ab")])
    assert runtime.calls == 1


def test_empty_answer_is_certain_and_empty_prompt_is_the_beginning():
    runtime = toy()
    empty, first = score_pairs(runtime, TOKENIZER, [("ab", ""), ("", "ab")])
    assert (empty.sequence_logprob, empty.mean_logprob, empty.token_ids) == (0.0, None, [])
    assert abs(first.sequence_logprob - exact_logprob(runtime, (0, 1), given=(4,))) < 1e-5
    without = CharTokenizer("abcd", add_bos=False)
    [same] = score_pairs(runtime, without, [("", "ab")])
    assert same.token_logprobs == first.token_logprobs
    [bare] = score_pairs(runtime, without, [("a", "b")])
    assert abs(bare.sequence_logprob - exact_logprob(runtime, (1,), given=(0,))) < 1e-5 and bare.context_tokens == 1


class PairTokenizer(CharTokenizer):
    """Joins "ab" into one token, as BPE joins a space and a word."""

    def __init__(self):
        super().__init__("abcd")
        self.vocab_size = 7

    def encode(self, text, *, parse_special=False):
        out, i = [], 0
        while i < len(text):
            pair = text[i : i + 2] == "ab"
            out.append(6 if pair else "abcd".index(text[i]))
            i += 2 if pair else 1
        return out

    def token_bytes(self, token):
        return b"ab" if token == 6 else super().token_bytes(token)

    def token_text(self, token):
        return "ab" if token == 6 else super().token_text(token)


def test_the_boundary_is_that_of_the_joint_tokenisation():
    tokenizer = PairTokenizer()
    item, straddles = joint_item(tokenizer, "ca", "bd")
    assert (item.tokens, item.start, straddles) == ((2, 6, 3), 1, True)
    item, straddles = joint_item(tokenizer, "cab", "d")
    assert (item.tokens, item.start, straddles) == ((2, 6, 3), 2, False)
    item, straddles = joint_item(tokenizer, "c", "ab")
    assert (item.tokens, item.start, straddles) == ((2, 6), 1, False)
    [scored] = score_pairs(ToyRuntime.random(7, seed=1), tokenizer, [("ca", "bd")])
    assert scored.straddles and scored.tokens == ["ab", "d"] and scored.text == "bd"


def test_text_that_the_tokens_cannot_write_is_refused():
    class Forgetful(CharTokenizer):
        def encode(self, text, *, parse_special=False):
            return super().encode(text.replace("d", ""))

    with pytest.raises(ModelError, match=r"no tokens for 2 byte"):
        score_pairs(toy(), Forgetful("abcd"), [("ab", "cdd")])


@pytest.mark.parametrize("n", [5, 16, 17, 40, 63])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 1), (16, 15), (7, 3)])
def test_windows_score_every_token_once_with_enough_context(n, window, stride):
    tokens = tuple(range(n))
    for start in (1, 4, n - 1):
        pieces = windows(Item(tokens, start), window=window, stride=stride)
        scored = [t for p in pieces for t in p.tokens[p.start :]]
        assert scored == list(range(start, n))
        for p in pieces:
            assert len(p.tokens) <= max(window, 1) and p.start >= 1
            assert p.tokens[0] == 0 or p.start >= window - stride


def test_windows_of_a_short_memory_model_equal_the_whole():
    """A model that looks back two tokens gives the same numbers in windows."""
    runtime, short = toy(context_length=256), toy(context_length=12)
    text = "".join("abcd"[i] for i in np.random.default_rng(1).integers(0, 4, 60))
    # order 2 and a parity of the length: an even stride keeps the parity
    [whole] = score_pairs(runtime, TOKENIZER, [("", text)])
    [pieces] = score_pairs(short, TOKENIZER, [("", text)], window=12, stride=4)
    with pytest.raises(ModelError, match="window"):
        score_pairs(short, TOKENIZER, [("", text)])
    assert len(pieces.token_logprobs) == 60
    even = [abs(a - b) < 1e-6 for a, b in zip(whole.token_logprobs, pieces.token_logprobs, strict=True)]
    assert sum(even) > 30


def test_perplexity_is_exp_of_the_mean():
    runtime = toy(context_length=256)
    result = perplexity(runtime, TOKENIZER, "abcdabcd", window=64)
    exact = exact_logprob(runtime, [0, 1, 2, 3] * 2, given=(4,))
    assert abs(result.perplexity - np.exp(-exact / 8)) < 1e-4
    assert abs(result.bits_per_byte + exact / np.log(2) / 8) < 1e-5 and result.tokens == 8


@pytest.mark.parametrize(
    "call",
    [
        lambda r: perplexity(r, TOKENIZER, ""),
        lambda r: score_pairs(r, TOKENIZER, [("a", "b")], window=1),
        lambda r: score_pairs(r, TOKENIZER, [("a", "b")], stride=4),
        lambda r: score_pairs(r, TOKENIZER, [("a", "b")], window=8, stride=8),
        lambda r: score_pairs(r, TOKENIZER, [("a", "b")], window=999),
        lambda r: score_items(r, [Item((1, 2), 0)]),
    ],
)
def test_bad_settings_are_refused(call):
    with pytest.raises(ValueError):
        call(toy())
