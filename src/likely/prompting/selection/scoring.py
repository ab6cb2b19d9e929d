"""Score every input in every prompt of a pool, resumable: the model's part of prompt selection."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.metrics.checks import Floats, Ints
from likely.prompting.selection.scores import ARRAYS, PromptScores
from likely.prompting.templates import CHOICES, LABEL, TEXT, PromptPool, Template
from likely.scoring.scored import PairScorer, Scored

CONTENT_FREE = ("", "N/A", "[MASK]")
BLOCK = 8  # prompts with the same beginning that are scored together: they share the tokens of the inputs
CHUNK = 64  # inputs handed to the model at once


@dataclass(frozen=True)
class _Block:
    """The scores of some prompts for some inputs: (T, N, K), and (T, N) of the prompts themselves."""

    sums: Floats
    tokens: Ints
    first: Floats
    inputs: Floats | None


def score_pool(
    lm: PairScorer,
    pool: PromptPool,
    inputs: Sequence[str | Mapping[str, Any]],
    *,
    content_free: Sequence[str] = CONTENT_FREE,
    perplexity: bool = False,
    cache: str | Path | None = None,
    overwrite: bool = False,
    origin: Mapping[str, Any] | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] | None = None,
) -> PromptScores:
    """log p(answer | prompt around input) for T prompts × N inputs × K answers.

    inputs        texts, or records with the fields that the templates ask for; a "label" (number, or one of the first
                  prompt's answers) is kept, never shown to the model; "answer_choices" makes the task dynamic
    content_free  inputs without content, for CC and PMI; () leaves them out, as does a dynamic task
    perplexity    also the log-probability of the filled-in prompts, for PPL (with a large vocabulary this costs more
                  than all answers together)
    cache         an npz file: prompts that it holds for the same inputs and origin are not scored again, and it is
                  written whole and renamed after every block of at most 8 prompts; prompts of other names that it holds
                  stay in it
    overwrite     begin the cache anew: what it holds is not read, and stays until the first block replaces it
    origin        what else the numbers depend on (the model's name and hash); must agree with the cache's
    chunk         inputs handed to the model at once: what stands before the first field of a prompt is computed once
                  for so many of them
    progress      called with the number of prompt-input pairs that are done
    """
    records = [{TEXT: item} if isinstance(item, str) else dict(item) for item in inputs]
    if len(records) < 2:
        raise ValueError(f"{len(records)} input(s): at least 2 are needed, prompts are compared over inputs")
    k, dynamic = _answers(pool, records)
    if dynamic:
        content_free = ()
        warnings.warn(
            "every input brings answers of its own: scores and CBM then speak of positions, not of meanings, and hold "
            "only if the right answer stands everywhere equally often (shuffle_answers does that)",
            stacklevel=2,
        )
    without = [_emptied(pool, text) for text in content_free]
    # of the whole records: prompts that ask for more of their fields are prompts for the same inputs
    digest = _inputs_digest(records, {CHOICES, TEXT}.union(*records) - {LABEL}, content_free)
    head = {**(origin or {}), "inputs_digest": digest}
    scores = _empty(pool, records, k, tuple(content_free), perplexity, dynamic, head)
    old = None
    if cache is not None and not overwrite and Path(cache).exists():
        old = PromptScores.load(cache)
        if old.origin.get("inputs_digest") == _inputs_digest(records, {CHOICES} | _fields(pool), content_free):
            old = replace(old, origin={**old.origin, "inputs_digest": digest})  # of the fields that this pool asks for
        _take_over(scores, old, str(cache))
    waiting = [t for t, done in enumerate(scores.done) if not done]
    if progress and len(waiting) < len(pool):
        progress((len(pool) - len(waiting)) * len(records))
    for at in _blocks(pool, waiting):
        block = [pool.templates[t] for t in at]
        _store(scores, at, _scored(lm, block, records, perplexity, progress, chunk))
        if without:
            free = _scored(lm, block, without, False, None, chunk)
            assert scores.content_free is not None and scores.content_free_tokens is not None
            assert scores.content_free_first is not None
            scores.content_free[:, at] = free.sums.swapaxes(0, 1)
            scores.content_free_tokens[:, at] = free.tokens.swapaxes(0, 1)
            scores.content_free_first[:, at] = free.first.swapaxes(0, 1)
        if cache is not None:
            _with_others(scores, old).save(cache)
    if cache is not None and not waiting:
        _with_others(scores, old).save(cache)
    return scores


def shuffle_answers(records: Sequence[Mapping[str, Any]], *, seed: int = 0) -> list[dict[str, Any]]:
    """Each record's `answer_choices` in an order of its own, its label moved along: positions then mean nothing."""
    rng = np.random.default_rng(seed)
    out = []
    for i, record in enumerate(records):
        if not isinstance(record.get(CHOICES), list | tuple):
            raise DataError(f'input {i}: "{CHOICES}" must be a list to be shuffled')
        order = rng.permutation(len(record[CHOICES])).tolist()
        moved = {**record, CHOICES: [record[CHOICES][j] for j in order]}
        if isinstance(record.get(LABEL), int):
            moved[LABEL] = order.index(record[LABEL])
        out.append(moved)
    return out


def label_numbers(records: Sequence[Mapping[str, Any]], choices: Sequence[str]) -> Ints | None:
    """(N,) the records' labels as numbers, -1 where there is none; None if no record has one.

    A label is a number in 0..K-1 or one of the K texts in `choices` (or of the record's own answer_choices).
    """
    out = np.full(len(records), -1, np.int64)
    for i, record in enumerate(records):
        label = record.get(LABEL)
        if label is None:
            continue
        own = list(record.get(CHOICES) or choices)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(own):
            out[i] = label
        elif isinstance(label, str) and label in own:
            out[i] = own.index(label)
        else:
            raise DataError(f"input {i}: label {label!r} is neither a number in 0..{len(own) - 1} nor one of {own}")
    return out if (out >= 0).any() else None


def _answers(pool: PromptPool, records: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
    """(K, whether inputs bring answers of their own); DataError where they are of different number."""
    own = [record.get(CHOICES) is not None for record in records]
    if any(own) and not all(own):
        raise DataError(f'input {own.index(False)} has no "{CHOICES}", others have: give all or none')
    first = pool.templates[0]
    counts = [len(first.answer_choices(record)) for record in records]
    for i, count in enumerate(counts):
        if count != counts[0]:
            raise DataError(f"input {i} has {count} answers, input 0 {counts[0]}: every input needs as many")
    return counts[0], any(own)


def _fields(pool: PromptPool) -> set[str]:
    return {name for template in pool for name in template.fields} | {TEXT}


def _emptied(pool: PromptPool, text: str) -> dict[str, Any]:
    """An input without content: the same text in every field."""
    return dict.fromkeys(_fields(pool), text)


def _inputs_digest(records: Sequence[Mapping[str, Any]], names: set[str], content_free: Sequence[str]) -> str:
    return fingerprint([[r.get(name) for r in records] for name in sorted(names)] + [*content_free])


def _prompt_digests(pool: PromptPool) -> list[str]:
    return [fingerprint([t.source, list(t.choices), *([t.prefix] if t.prefix else [])]) for t in pool]


def _empty(
    pool: PromptPool, records: Sequence[Mapping[str, Any]], k: int, without: tuple[str, ...], perplexity: bool,
    dynamic: bool, origin: dict[str, Any],
) -> PromptScores:  # fmt: skip
    t, n, c = len(pool), len(records), len(without)
    free = (c, t, k) if c else None
    return PromptScores(
        names=pool.names,
        logprobs=np.full((t, n, k), np.nan),
        tokens=np.zeros((t, n, k), np.int64),
        first=np.full((t, n, k), np.nan),
        content_free=np.full(free, np.nan) if free else None,
        content_free_tokens=np.zeros(free, np.int64) if free else None,
        content_free_first=np.full(free, np.nan) if free else None,
        input_logprobs=np.full((t, n), np.nan) if perplexity else None,
        without=without,
        labels=label_numbers(records, pool.templates[0].choices),
        dynamic=dynamic,
        origin={**origin, "prompt_digests": _prompt_digests(pool)},
    )


def _take_over(scores: PromptScores, old: PromptScores, where: str) -> None:
    """What a cache holds of these prompts; DataError if it is of other inputs or another model."""
    for key in scores.origin.keys() | old.origin.keys():
        if key != "prompt_digests" and scores.origin.get(key) != old.origin.get(key):
            raise DataError(
                f"{where} was made with another {key} ({old.origin.get(key)}, now {scores.origin.get(key)}): "
                f"choose another file or --overwrite"
            )
    if scores.logprobs.shape[1:] != old.logprobs.shape[1:]:
        (_, k), (_, other) = scores.logprobs.shape[1:], old.logprobs.shape[1:]
        raise DataError(f"{where} holds prompts of {other} answers, these have {k}: choose another file or --overwrite")
    for t, s in _shared(scores, old):
        if scores.input_logprobs is not None and (old.input_logprobs is None or np.isnan(old.input_logprobs[s]).any()):
            continue
        for name in ARRAYS:
            mine, theirs = getattr(scores, name), getattr(old, name)
            if mine is not None:
                where_t, where_s = ((slice(None), t), (slice(None), s)) if name.startswith("content") else (t, s)
                mine[where_t] = theirs[where_s]


def _shared(scores: PromptScores, old: PromptScores) -> list[tuple[int, int]]:
    """(t, s) of the prompts that both hold, as they are now, and that `old` holds to the end."""
    known = {prompt: s for s, prompt in enumerate(zip(old.names, old.origin["prompt_digests"], strict=True))}
    now = enumerate(zip(scores.names, scores.origin["prompt_digests"], strict=True))
    return [(t, known[prompt]) for t, prompt in now if prompt in known and old.done[known[prompt]]]


def _with_others(scores: PromptScores, old: PromptScores | None) -> PromptScores:
    """What the cache holds from now on: these prompts, then those of other names that it held; perplexities, too."""
    if old is None:
        return scores
    others = [s for s, name in enumerate(old.names) if name not in scores.names and old.done[s]]
    digests = scores.origin["prompt_digests"] + [old.origin["prompt_digests"][s] for s in others]
    arrays: dict[str, Any] = {"input_logprobs": None}
    if scores.input_logprobs is not None or old.input_logprobs is not None:
        mine, theirs = (
            np.full(one.logprobs.shape[:2], np.nan) if one.input_logprobs is None else one.input_logprobs.copy()
            for one in (scores, old)
        )
        if scores.input_logprobs is None:
            for t, s in _shared(scores, old):
                mine[t] = theirs[s]
        arrays["input_logprobs"] = np.concatenate([mine, theirs[others]])
    for name in ARRAYS[:-1]:
        if (array := getattr(scores, name)) is not None:
            free = name.startswith("content")
            more = getattr(old, name)[:, others] if free else getattr(old, name)[others]
            arrays[name] = np.concatenate([array, more], axis=int(free))
    names = (*scores.names, *(old.names[s] for s in others))
    return replace(scores, names=names, origin={**scores.origin, "prompt_digests": digests}, **arrays)


def _store(scores: PromptScores, at: Sequence[int], block: _Block) -> None:
    assert scores.first is not None
    scores.logprobs[at], scores.tokens[at], scores.first[at] = block.sums, block.tokens, block.first
    if scores.input_logprobs is not None:
        assert block.inputs is not None
        scores.input_logprobs[at] = block.inputs


def _blocks(pool: PromptPool, waiting: Sequence[int]) -> Iterator[list[int]]:
    """Prompts that begin alike together, at most BLOCK of them."""
    ordered = sorted(waiting, key=lambda t: (pool.templates[t].lead, t))
    for _, group in itertools.groupby(ordered, key=lambda t: pool.templates[t].lead):
        alike = list(group)
        yield from (alike[start : start + BLOCK] for start in range(0, len(alike), BLOCK))


def _scored(
    lm: PairScorer,
    block: Sequence[Template],
    records: Sequence[Mapping[str, Any]],
    perplexity: bool,
    progress: Callable[[int], None] | None,
    size: int,
) -> _Block:
    rows: list[list[Scored]] = []  # per input, then prompt: K answers, and the prompt itself
    width = 0
    for start in range(0, len(records), size):
        pairs: list[tuple[str, str]] = []
        chunk = records[start : start + size]
        for record in chunk:
            for template in block:
                own = template.pairs(record)
                width = len(own) + perplexity
                pairs += [*own, ("", own[0][0])] if perplexity else own
                if perplexity and not own[0][0]:
                    raise DataError(f'prompt "{template.name}" is empty for an input: it has no perplexity')
        scored = lm.score_pairs(pairs)
        rows += [scored[i : i + width] for i in range(0, len(scored), width)]
        if progress:
            progress(len(chunk) * len(block))
    shape = (len(records), len(block), width)
    k = width - perplexity

    def table(of: Callable[[Scored], float]) -> Floats:
        return np.array([[of(s) for s in row] for row in rows], np.float64).reshape(shape).swapaxes(0, 1)

    sums, tokens = table(lambda s: s.sequence_logprob), table(lambda s: len(s.token_logprobs))
    return _Block(
        sums[..., :k], tokens[..., :k].astype(np.int64), table(lambda s: s.token_logprobs[0])[..., :k],
        sums[..., k] / tokens[..., k] if perplexity else None,
    )  # fmt: skip
