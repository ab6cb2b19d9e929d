"""log p(answer | prompt) on any Runtime: shared prefixes computed once, many answers in one call, exact boundaries.

All texts of a call are sorted, so that neighbours share prefixes; each call of the model evaluates a tree of the next
texts below a kept prefix, and only the wanted log-probabilities come back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from likely.errors import ModelError
from likely.runtimes.protocol import Runtime, Sequence, Want, Work
from likely.scoring.scored import Scored, TopLogprob, sums
from likely.tokenizers.protocol import Tokenizer, begin, common_length, opening


@dataclass(frozen=True)
class Item:
    """Tokens of which [start:] are to be scored; start >= 1, since a first token has no condition."""

    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class TokenScores:
    """Per scored token: logprob, and on request entropy (nats) and alternatives at its place."""

    logprobs: list[float]
    entropies: list[float] | None = None
    tops: list[list[tuple[int, float]]] | None = None


# --- text to tokens ---------------------------------------------------------------------------------------------------


def surface_lengths(tokenizer: Tokenizer, tokens: Seq[int]) -> list[int]:
    """Bytes of text per token, control tokens counted as their written form."""
    written = {number: len(text.encode()) for text, number in tokenizer.special_tokens.items()}
    return [written[t] if t in written else len(tokenizer.token_bytes(t)) for t in tokens]


def joint_item(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[Item, bool]:
    """`answer_item` of prompt + answer encoded together: tokenising the two apart and gluing them would score a string
    that the model never writes.
    """
    tokens = tokenizer.encode(prompt + answer, parse_special=True)
    lengths = surface_lengths(tokenizer, tokens)
    dropped = len((prompt + answer).encode()) - sum(lengths)
    if dropped > 0:
        raise ModelError(
            f"this tokenizer has no tokens for {dropped} byte(s) of the text, so its probability is not defined: "
            f"remove control characters, or use another model"
        )
    return answer_item(tokenizer, tokens, lengths, answer)


def answer_item(tokenizer: Tokenizer, tokens: list[int], lengths: Seq[int], answer: str) -> tuple[Item, bool]:
    """(the tokens of a text that ends in the answer with the first one of the answer, whether it straddles).

    The answer's tokens are those that hold at least one byte of the answer; lengths are the `surface_lengths`.  A
    straddling first token also holds the end of the prompt (a trailing space, say).  In front stands the
    beginning-of-sequence token where the model wants one; with an empty prompt and no such token, the model's beginning
    or end token stands for "a text begins here".
    """
    boundary = sum(lengths) - len(answer.encode())
    ends = np.cumsum(lengths)
    start = int(np.searchsorted(ends, boundary, side="right")) if answer else len(tokens)
    straddles = bool(answer) and start < len(tokens) and (int(ends[start]) - lengths[start]) < boundary
    full = begin(tokenizer, tokens)
    start += len(full) - len(tokens)
    if start == 0:
        first = opening(tokenizer)
        if not first:
            raise ModelError("an empty prompt needs a beginning or end token, and this tokenizer has neither")
        full, start = [*first, *full], 1
    return Item(tuple(full), start), straddles


# --- tokens to numbers ------------------------------------------------------------------------------------------------


def windows(item: Item, *, window: int, stride: int) -> list[Item]:
    """Cut a long text into pieces of at most `window` tokens that together score every token once.

    The first piece scores all its tokens, each later one the next `stride`, after window - stride tokens of context.
    """
    if not window >= 2:
        raise ValueError(f"window must be >= 2 tokens, got {window}")
    if not 1 <= stride < window:
        raise ValueError(f"stride must lie in 1..{window - 1} (less than the window), got {stride}")
    if len(item.tokens) <= window:
        return [item]
    pieces, scored, n = [], item.start, len(item.tokens)
    end = min(max(window, scored + stride), n)
    while scored < n:
        first = max(0, end - window)
        pieces.append(Item(item.tokens[first:end], scored - first))
        scored, end = end, min(end + stride, n)
    return pieces


def score_items(
    runtime: Runtime,
    items: Seq[Item],
    *,
    top: int = 0,
    entropy: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[TokenScores]:
    """Scores of each item, in the order given.

    progress is called with the number of items finished by each call of the model.
    """
    scoring = Scoring(runtime, items, top=top, entropy=entropy)
    if progress and scoring.waiting < len(items):
        progress(len(items) - scoring.waiting)
    with runtime.turn:
        try:
            while scoring.waiting:
                done = scoring.step()
                if progress:
                    progress(done)
        finally:
            scoring.release()
    return scoring.results


class Scoring:
    """Items on their way to their scores, one call of the model per `step`: for a caller that does other work between.

    Between two steps it may hold a sequence with the prefix that the next item shares (`held` tokens); `release` gives
    it back, at the price of computing the prefix again.

    begun      a sequence that keeps these tokens already, as a prefix cache has it; it belongs to the scoring from now
    keep_last  the tokens of the last text stay computed, for `hand_over`
    """

    def __init__(
        self, runtime: Runtime, items: Seq[Item], *, top: int = 0, entropy: bool = False,
        begun: tuple[Sequence, Seq[int]] | None = None, keep_last: bool = False,
    ):  # fmt: skip
        for item in items:
            if not 1 <= item.start <= len(item.tokens):
                raise ValueError(f"start must lie in 1..{len(item.tokens)}, got {item.start}")
            if len(item.tokens) > runtime.context_length:
                raise ModelError(
                    f"the text has {len(item.tokens)} tokens, the model's context is {runtime.context_length}: "
                    f"shorten it, load the model with a larger context=, or score in pieces with window="
                )
        self._runtime, self._items, self._top, self._entropy = runtime, items, top, entropy
        self._results: list[TokenScores | None] = [None] * len(items)
        self._keep_last = keep_last
        self._sequence: Sequence | None = begun[0] if begun else None
        self._kept: tuple[int, ...] = tuple(begun[1]) if begun else ()
        self.shared = len(self._kept)  # tokens that it began with
        self._todo = []
        for i in sorted(range(len(items)), key=lambda i: items[i].tokens):
            if items[i].start == len(items[i].tokens):
                self._results[i] = TokenScores([], [] if entropy else None, [] if top else None)
            else:
                self._todo.append(i)

    @property
    def waiting(self) -> int:
        """Items without a score."""
        return len(self._todo)

    @property
    def held(self) -> int:
        """Tokens kept in the runtime."""
        return len(self._kept)

    @property
    def results(self) -> list[TokenScores]:
        """Scores in the order of the items, once none is waiting."""
        assert not self._todo
        return self._results  # type: ignore[return-value]

    def step(self, *, leaves: int | None = None) -> int:
        """One call of the model; returns how many items it finished. After an error it can be tried again.

        leaves  most items in the call, where other sequences take part of the runtime's
        """
        try:
            if self._sequence is None:
                self._sequence = self._runtime.open()
            self._kept, done = _score_next(
                self._runtime, self._sequence, self._kept, self._items, self._todo, self._results,
                top=self._top, entropy=self._entropy, leaves=min(leaves or 2**31, self._runtime.limits.leaves),
                keep_last=self._keep_last,
            )  # fmt: skip
        except BaseException:
            self.release()
            raise
        self._todo = self._todo[done:]
        return done

    def release(self) -> None:
        """Hold nothing in the runtime; harmless when repeated."""
        sequence, _ = self.hand_over()
        if sequence is not None:
            self._runtime.close(sequence)

    def hand_over(self) -> tuple[Sequence | None, tuple[int, ...]]:
        """What it holds, and the tokens that are kept there; the sequence belongs to the caller from now."""
        sequence, kept = self._sequence, self._kept
        self._sequence, self._kept, self.shared = None, (), 0
        return sequence, kept


CHEAP_TOKENS = 32  # kept tokens that a call gives up and computes again rather than ending early


def _choose(items: list[Item], kept: Seq[int], *, tokens: int, leaves: int) -> tuple[int, int]:
    """(how many of the sorted items the next call takes, how many kept tokens it builds on).

    In sorted order a text adds as many nodes to the tree as it has tokens beyond its common prefix with the one
    before.  Its last token is never computed (nothing after it is scored), and the one before its first scored token
    always is (its row is wanted).
    """
    first = items[0]
    depth = min(common_length(kept, first.tokens), first.start - 1)
    total, count = len(first.tokens) - 1 - depth, 1
    for before, item in itertools.pairwise(items):
        shared = min(depth, common_length(kept, item.tokens), item.start - 1)
        added = depth - shared + max(0, len(item.tokens) - 1 - max(shared, common_length(before.tokens, item.tokens)))
        if depth - shared > CHEAP_TOKENS or total + added > tokens or count >= leaves:
            break
        depth, total, count = shared, total + added, count + 1
    return count, depth


def _score_next(
    runtime: Runtime,
    sequence: Sequence,
    kept: tuple[int, ...],
    items: Seq[Item],
    todo: list[int],
    results: list[TokenScores | None],
    *,
    top: int,
    entropy: bool,
    leaves: int,
    keep_last: bool,
) -> tuple[tuple[int, ...], int]:
    """One call of the model; returns (the tokens kept now, how many of `todo` are done)."""
    limits = runtime.limits
    horizon = [items[i] for i in todo[: min(limits.tokens_per_call, leaves) + 1]]
    room = min(limits.tokens_per_call, runtime.free_tokens())
    count, depth = _choose(horizon, kept, tokens=room, leaves=leaves)
    if depth < len(kept):
        runtime.truncate(sequence, depth)
        kept = kept[:depth]

    tokens: list[int] = []
    parents: list[int] = []
    child: dict[tuple[int, int], int] = {}
    pairs: list[tuple[int, int]] = []
    paths: list[list[int]] = []
    for item in horizon[:count]:
        node, path = -1, []
        for token in item.tokens[depth:-1]:
            known = child.get((node, token))
            if known is None:
                known = child[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = known
            path.append(node)
        paths.append(path)
        pairs += [(path[i - 1 - depth], item.tokens[i]) for i in range(item.start, len(item.tokens))]
    rows = tuple(sorted({row for row, _ in pairs})) if top or entropy else "none"
    want = Want(rows=rows, top=top, entropy=entropy, pairs=np.array(pairs, np.int64))  # type: ignore[arg-type]
    output = runtime.forward([Work(sequence, np.array(tokens), np.array(parents), want=want)])[0]
    assert output.logprobs is not None

    place = {row: i for i, row in enumerate(rows)} if rows != "none" else {}
    at = 0
    for i, item in zip(todo, horizon[:count], strict=False):
        n = len(item.tokens) - item.start
        where = [place[row] for row, _ in pairs[at : at + n]] if place else []
        results[i] = TokenScores(
            output.logprobs[at : at + n].astype(float).tolist(),
            [float(output.entropy[j]) for j in where] if output.entropy is not None else None,
            [
                list(zip(output.top_ids[j].tolist(), output.top_logprobs[j].astype(float).tolist(), strict=True))
                for j in where
            ]
            if output.top_ids is not None and output.top_logprobs is not None
            else None,
        )
        at += n

    keep: list[int] = []
    if count < len(horizon):  # what the next text shares with the last one stays
        upcoming = horizon[count]
        shared = min(common_length(horizon[count - 1].tokens[:-1], upcoming.tokens), upcoming.start - 1)
        keep = paths[-1][: max(0, shared - depth)]
    elif keep_last and count == len(todo):
        keep = paths[-1]
    runtime.commit([(sequence, keep)])
    return (*kept, *(tokens[node] for node in keep)), count


# --- numbers to results -----------------------------------------------------------------------------------------------


class ScoringSettings(TypedDict, total=False):
    """See `score_pairs`."""

    top: int
    entropy: bool
    window: int | None
    stride: int | None
    progress: Callable[[int], None] | None


def score_pairs(
    runtime: Runtime,
    tokenizer: Tokenizer,
    pairs: Seq[tuple[str, str]],
    *,
    top: int = 0,
    entropy: bool = False,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Score (prompt, answer) pairs; results in the order given.

    window, stride  texts longer than `window` tokens are scored in overlapping pieces: each token sees at least
                    window - stride tokens before it (default stride: half the window); without window they are an
                    error.
    """
    joint = [joint_item(tokenizer, prompt, answer) for prompt, answer in pairs]
    if window is None:
        if stride is not None:
            raise ValueError("stride needs window=")
        pieces = [[item] for item, _ in joint]
    else:
        if window > runtime.context_length:
            raise ValueError(f"window must be <= the context of {runtime.context_length} tokens, got {window}")
        stride = max(1, window // 2) if stride is None else stride
        pieces = [windows(item, window=window, stride=stride) for item, _ in joint]
    owner = [i for i, group in enumerate(pieces) for _ in group]
    flat = [piece for group in pieces for piece in group]
    scores = score_items(runtime, flat, top=top, entropy=entropy, progress=progress)
    merged = [TokenScores([], [] if entropy else None, [] if top else None) for _ in pieces]
    for i, score in zip(owner, scores, strict=True):
        merged[i].logprobs.extend(score.logprobs)
        if entropy:
            merged[i].entropies.extend(score.entropies)  # type: ignore[union-attr, arg-type]
        if top:
            merged[i].tops.extend(score.tops)  # type: ignore[union-attr, arg-type]
    return [
        scored_answer(tokenizer, answer, item, straddles, score)
        for (_, answer), (item, straddles), score in zip(pairs, joint, merged, strict=True)
    ]


def scored_answer(tokenizer: Tokenizer, answer: str, item: Item, straddles: bool, score: TokenScores) -> Scored:
    ids = list(item.tokens[item.start :])
    total, mean = sums(score.logprobs)
    tops = None
    if score.tops is not None:
        tops = [[TopLogprob(i, tokenizer.token_text(i), lp) for i, lp in row] for row in score.tops]
    return Scored(
        text=answer,
        token_ids=ids,
        token_logprobs=score.logprobs,
        sequence_logprob=total,
        mean_logprob=mean,
        tokens=[tokenizer.token_text(t) for t in ids],
        context_tokens=item.start,
        straddles=straddles,
        entropies=score.entropies,
        top_logprobs=tops,
    )
