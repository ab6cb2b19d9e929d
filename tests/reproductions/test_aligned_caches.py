"""Rows that grow by different numbers of tokens: each layout gives what rows give alone; broken ones do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from helpers_for_loops import RandomTrees, run
from scripts import script
from tiny_torch import VOCAB, tiny_module

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError, KvFull
from likely.runtimes.protocol import Want, Work
from likely.runtimes.torch.runtime import TorchRuntime

ALIGNED = script("aligned_caches")
GroupTorchRuntime, RepadTorchRuntime = ALIGNED.GroupTorchRuntime, ALIGNED.RepadTorchRuntime
RectangleRow, common_end = ALIGNED.RectangleRow, ALIGNED.common_end
SameLength = script("same_length").SameLength
KINDS = {"mask": TorchRuntime, "repad": RepadTorchRuntime, "group": GroupTorchRuntime}
GREEDY = Sampling(temperature=0)
PAD = END = 2  # as in SmolLM2, whose padding token is its end token


def decode(runtime, requests, *, end_ids=frozenset(), policy=None):
    loop = Loop(runtime, token_bytes=lambda t: b"x", end_ids=end_ids, policy=policy)
    return [done for [done] in run(loop, *requests)]


def alone(requests, *, name="llama", end_ids=frozenset()):
    """Each request by itself, without drafts, in the pool of slots."""
    runtime = TorchRuntime(tiny_module(name))
    return [decode(runtime, [replace(r, drafter=None)], end_ids=end_ids)[0] for r in requests]


def texts(n, *, seed=0, longest=40):
    """Prompts of mixed lengths from 1 on, with repeats in them, so that lookup finds something."""
    rng = np.random.default_rng(seed)
    lengths = [1, longest, *rng.integers(2, longest, n)][:n]
    return [tuple(int(t) for t in np.tile(rng.integers(0, VOCAB, 7), longest)[:length]) for length in lengths]


def requests_of(prompts, *, drafter=None, sampling=GREEDY, budget=5):
    """They finish at different times."""
    return [
        Request(p, replace(sampling, seed=i) if not sampling.greedy else sampling, max_tokens=6 + 3 * (i % 4),
                drafter=drafter, draft_budget=budget)
        for i, p in enumerate(prompts)
    ]  # fmt: skip


class Knowing:
    """Drafts the true continuation of the first `right` tokens of each round, then rubbish: rows keep unequal parts."""

    name = "knowing"
    distributions, free = PromptLookup.distributions, True

    def __init__(self, answers):
        self.answers = answers  # prompt -> tokens

    def begin(self, prompt, context):
        return _Knows(self.answers[tuple(prompt)], len(prompt))


class _Knows:
    def __init__(self, answer, seed):
        self.rest, self.rng = list(answer), np.random.default_rng(seed)

    def propose(self, budget):
        from likely.decoding.drafting.protocol import Draft

        right = int(self.rng.integers(0, budget + 1))
        guess = self.rest[:right]
        return Draft.chain((guess + [(t + 1) % VOCAB for t in self.rest[right:]] + [0] * budget)[:budget])

    def observe(self, tokens):
        self.rest = self.rest[len(tokens) :]

    def end(self):
        pass


def ragged(n, *, seed=0, name="llama", sampling=GREEDY, prompts=None, end_ids=frozenset()):
    """(requests whose rounds keep unequal numbers of drafted tokens, what each gives alone)."""
    base = requests_of(prompts or texts(n, seed=seed), sampling=sampling)
    plain = alone(base, name=name, end_ids=end_ids)
    source = Knowing({r.prompt: done.tokens for r, done in zip(base, plain, strict=True)})
    return [replace(r, drafter=source) for r in base], plain


def assert_same(found, plain):
    for a, b in zip(found, plain, strict=True):
        assert a.tokens == b.tokens and a.reason == b.reason
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["repad", "group"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss"])
def test_ragged_batches_equal_rows_alone(kind, name):
    """Grouped heads, logit soft caps, sliding windows and attention sinks; eight rows, drafts kept unequally."""
    requests, plain = ragged(8, name=name)
    runtime = KINDS[kind](tiny_module(name))
    assert_same(decode(runtime, requests), plain)
    assert runtime.alignment.copied > 5 and runtime.align_s > 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.9)], ids=["greedy", "keyed"])
def test_any_batch_size_any_drafter_greedy_and_keyed(kind, batch, sampling):
    prompts = texts(8, seed=batch, longest=60)
    plain = alone(requests_of(prompts, sampling=sampling))
    runtime = KINDS[kind](tiny_module("llama"))
    for drafter in (None, PromptLookup(), RandomTrees(VOCAB), RandomTrees(VOCAB, shape="chain")):
        requests = requests_of(prompts, sampling=sampling, drafter=drafter)
        policy = SameLength(batch_size=batch, window=max(batch, 5))
        assert_same(decode(runtime, requests, policy=policy), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_prompts_permutes_outputs_and_rounds_are_those_of_rows_alone(kind):
    requests, plain = ragged(6)
    runtime = KINDS[kind](tiny_module("llama"))
    one_by_one = [decode(runtime, [r])[0] for r in requests]
    together = decode(runtime, requests)
    backwards = decode(runtime, requests[::-1])[::-1]
    for a, b, c in zip(one_by_one, together, backwards, strict=True):
        assert a.tokens == b.tokens == c.tokens and a.rounds == b.rounds == c.rounds
    assert sum(done.accepted for done in together) > 0
    assert_same(together, plain)


@pytest.mark.parametrize("kind", ["repad", "group"])
def test_fifty_columns_of_padding_change_nothing(kind):
    requests, plain = ragged(3, prompts=[(5, 6, 7), tuple(range(53)), (9,)])
    assert_same(decode(KINDS[kind](tiny_module("llama")), requests), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_pad_and_end_tokens_in_prompt_and_answer_are_ordinary_tokens(kind):
    """The end token ends an answer that emits it; in a prompt it is text, and so is a padding token anywhere."""
    prompts = [(PAD, PAD, 5, 6), (7, PAD, 8), (PAD,), (PAD, 9, PAD, PAD, PAD, 4)]
    for end_ids in (frozenset(), frozenset({END})):
        requests, plain = ragged(4, prompts=prompts, end_ids=end_ids)
        assert_same(decode(KINDS[kind](tiny_module("llama")), requests, end_ids=end_ids), plain)


def test_rows_that_join_and_leave():
    """Requests added while others are half done."""
    requests, plain = ragged(9)
    loop = Loop(RepadTorchRuntime(tiny_module("llama")), token_bytes=lambda t: b"x", end_ids=frozenset())
    done, waiting = {}, list(enumerate(requests))
    ids = {}
    while waiting or not loop.idle:
        for number, request in waiting[:2]:
            ids[loop.add(request)] = number
        waiting = waiting[2:]
        for _ in range(3):
            done |= {ids[e.request]: e.finish for e in loop.step() if e.finish}
    assert_same([done[i] for i in range(9)], plain)


def test_padding_does_not_accumulate():
    """Before each call the rectangle is exactly as wide as its longest row."""
    requests, _ = ragged(8)
    widths = []

    class Seen(RepadTorchRuntime):
        def _bring_together(self, rows):
            past = super()._bring_together(rows)
            longest = max(len(row.columns) for row in rows)
            widths.append((past[0][0].shape[2] if past else 0, longest))
            return past

    decode(Seen(tiny_module("llama")), requests)
    assert len(widths) > 5 and all(width == longest for width, longest in widths)


# --- what moves, and what is counted ----------------------------------------------------------------------------------


def prefilled(runtime, lengths):
    sequences = [runtime.open() for _ in lengths]
    runtime.forward([Work(s, np.arange(n) % VOCAB, want=Want.NONE) for s, n in zip(sequences, lengths, strict=True)])
    return sequences


def step(runtime, sequences, keep):
    """One round of three drafted nodes each, of which keep[i] are kept."""
    chain = np.arange(-1, 2)
    runtime.forward([Work(s, np.array([1, 2, 3]), chain, want=Want.NONE) for s in sequences])
    runtime.commit([(s, range(n)) for s, n in zip(sequences, keep, strict=True)])


@pytest.mark.parametrize("kind", ["repad", "group"])
def test_rows_in_step_are_not_moved(kind):
    runtime = KINDS[kind](tiny_module("llama"))
    sequences = prefilled(runtime, [5, 5, 5])
    for _ in range(3):
        step(runtime, sequences, [2, 2, 2])
    assert (runtime.alignment.copied, runtime.alignment.bytes) == (0, 0)
    assert runtime.grouped_share == 1.0
    step(runtime, sequences, [1, 2, 3])
    step(runtime, sequences, [1, 2, 3])
    longest, layers, heads, size = 5 + 3 * 2 + 3, 2, 2, 8
    assert runtime.alignment.copied == 1
    assert runtime.alignment.bytes == 3 * longest * layers * 2 * heads * size * 4  # what was written, fp32
    assert runtime.grouped_share == pytest.approx(4 / 5)


def test_equal_lengths_from_different_calls_stack_without_padding():
    runtime = GroupTorchRuntime(tiny_module("llama"))
    a, b = prefilled(runtime, [4]), prefilled(runtime, [6])
    step(runtime, a, [3])
    step(runtime, b, [1])
    tokens = [np.array([5, 6])] * 2
    outputs = runtime.forward([Work(s, t, want=Want.ALL) for s, t in zip(a + b, tokens, strict=True)])
    assert runtime.grouped_share == 1.0 and runtime.alignment.copied == 1
    for text, output in zip(([*range(4), 1, 2, 3], [*range(6), 1]), outputs, strict=True):
        plain = runtime.plain_logits([*text, 5, 6])[-2:]
        np.testing.assert_allclose(output.logits, plain, atol=1e-4)


def test_a_fork_owns_its_tokens():
    runtime = RepadTorchRuntime(tiny_module("llama"), tokens_held=20)
    [sequence] = prefilled(runtime, [8])
    fork = runtime.fork(sequence, 6)
    assert runtime.free_tokens() == 20 - 14
    with pytest.raises(KvFull):
        runtime.fork(sequence)
    runtime.close(sequence)
    runtime.close(fork)
    assert runtime.free_tokens() == 20 and fork.rectangle == []


def test_a_failing_call_leaves_sequences_as_they_were(monkeypatch):
    runtime = RepadTorchRuntime(tiny_module("llama"))
    sequences = prefilled(runtime, [5, 9])
    step(runtime, sequences, [1, 3])
    free = runtime.free_tokens()
    monkeypatch.setattr(runtime, "_run", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(runtime, sequences, [0, 0])
    monkeypatch.undo()
    assert runtime.free_tokens() == free and [s.length for s in sequences] == [6, 12]
    [output, _] = runtime.forward([Work(s, np.array([7])) for s in sequences])
    np.testing.assert_allclose(output.logits[0], runtime.plain_logits([*range(5), 1, 7])[-1], atol=1e-4)


def test_low_precision_and_full_attention_work():
    runtime = RepadTorchRuntime(tiny_module("llama", dtype=torch.bfloat16))
    sequences = prefilled(runtime, [5, 9])
    work = [Work(s, np.arange(4), np.arange(-1, 3), attention="full", want=Want.ALL) for s in sequences]
    assert all(np.isfinite(o.logits).all() for o in runtime.forward(work))


# --- negative controls: each of these is a mistake found in batch implementations -------------------------------------


class Broken(RepadTorchRuntime):
    broken = False  # set afterwards: the check of a model when it is loaded already refuses some of these


class TruncatedToTheShortest(Broken):
    """All rows are cut where the row that kept fewest tokens ends; texts and positions go on as if nothing happened."""

    def _bring_together(self, rows):
        if self.broken and all(len(row.columns) for row in rows):
            end = min(int(row.columns[-1]) for row in rows) + 1
            for row in rows:
                row.columns = np.maximum(np.arange(end - len(row.columns), end), 0)
        return super()._bring_together(rows)


class NotPaddedAnew(Broken):
    """The cache keeps the columns of refused tokens; only lengths, positions and masks are updated."""

    def _bring_together(self, rows):
        for row in rows:
            if self.broken and len(row.columns):
                end = row.rectangle[0][0].shape[2]
                row.columns = np.arange(end - len(row.columns), end)
        return super()._bring_together(rows)


class PaddingByTokenId(Broken):
    """A column whose token is the padding token is taken for padding, in the mask."""

    ids: dict | None = None

    def _compute(self, sequences, work, tokens, slots):
        self.ids = self.ids or {}
        for s, own in zip(sequences, tokens, strict=True):
            known = self.ids.get(s, [])[: s.length + s.pending]
            self.ids[s] = [*known, *own.tolist()]
        self._texts = [self.ids[s] for s in sequences]
        return super()._compute(sequences, work, tokens, slots)

    def commit(self, accepted):
        accepted = list(accepted)
        for s, path in accepted if self.broken else ():
            ids = self.ids[s]
            self.ids[s] = [*ids[: s.length], *(ids[s.length + node] for node in path)]
        super().commit(accepted)

    def _piece(self, layout, part):
        piece, text = super()._piece(layout, part), np.array(self._texts[part.item])
        if not self.broken:
            return piece
        wrong = type("Wrong", (type(piece),), {"visible": lambda self, window: _without_pads(self, window, text)})
        return wrong(**{name: getattr(piece, name) for name in piece.__dataclass_fields__})


def _without_pads(piece, window, text):
    from likely.runtimes.slots.layout import SequenceQueries

    seen = SequenceQueries.visible(piece, window)
    first, last = piece.first_column(window), len(piece.slots)
    hidden = seen & (text[first:last] == PAD)[None, :]
    seen[hidden] = False
    seen[np.arange(len(seen)), seen.shape[1] - len(seen) + np.arange(len(seen))] = True  # each sees itself
    return seen


@pytest.mark.parametrize("broken", [TruncatedToTheShortest, NotPaddedAnew, PaddingByTokenId])
def test_a_broken_layout_is_caught(broken):
    prompts = [(*text, PAD, 5) for text in texts(8)]
    requests, plain = ragged(8, prompts=prompts)
    runtime = broken(tiny_module("llama"))
    assert_same(decode(runtime, requests), plain)
    runtime.broken = True
    found = decode(runtime, requests)
    same = sum(a.tokens == b.tokens for a, b in zip(found, plain, strict=True))
    assert same < 4


def test_the_check_at_loading_refuses_what_one_text_shows():
    class FromTheStart(NotPaddedAnew):
        broken = True

    with pytest.raises(CapabilityError, match="its logits over slots differ"):
        FromTheStart(tiny_module("llama"))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_model_without_cuttable_caches_is_refused():
    with pytest.raises(CapabilityError, match="use TorchRuntime"):
        RepadTorchRuntime(tiny_module("mamba"))


def test_common_end_wants_all_rows_of_one_rectangle_in_order():
    layers = [(torch.zeros(2, 1, 6, 4), torch.zeros(2, 1, 6, 4))]
    rows = [RectangleRow(layers, 0, np.arange(1, 5)), RectangleRow(layers, 1, np.arange(3, 5))]
    assert common_end(rows) == 5
    assert common_end(rows[::-1]) is None and common_end(rows[:1]) is None
    assert common_end([rows[0], RectangleRow(layers, 1, np.arange(3, 6))]) is None
    assert common_end([rows[0], RectangleRow(layers, 1, np.array([1, 4]))]) is None
    assert common_end([RectangleRow([], 0, np.arange(0))]) is None
