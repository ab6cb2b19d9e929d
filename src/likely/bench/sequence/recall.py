"""Tasks of memory: copying, induction heads, associative recall.  Ids below the vocabulary, all lengths in tokens.

Copying at a fixed lag needs memory only; selective copying, induction and recall need a state that depends on the input
(Gu and Dao 2023, section 3.1; Arora et al. 2023, "Zoology", MQAR).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from likely.bench.sequence.examples import IGNORED, Examples, Split, TaskMeta, distinct, task_rng


def make_copy(
    n: int, seed: int, *, split: Split = "train", tokens: int = 8, blanks: int = 64, vocabulary: int = 8
) -> Examples:
    """`tokens` random ids, `blanks` blanks, `tokens` markers: at the markers the ids are to be said in their order.

    Ids 0 to vocabulary-1; vocabulary is the blank, vocabulary+1 the marker.  Length 2·tokens + blanks; every id comes
    back after tokens + blanks places, so that a time-invariant layer can do it.
    """
    rng = task_rng("copy", n, seed, split, {"tokens": tokens, "blanks": blanks, "vocabulary": vocabulary})
    places = np.broadcast_to(np.arange(tokens), (n, tokens))
    return _copied("copy", rng, places, tokens + blanks, vocabulary)


def make_selective_copy(
    n: int, seed: int, *, split: Split = "train", tokens: int = 8, blanks: int = 64, vocabulary: int = 8
) -> Examples:
    """As `make_copy`, but the ids stand at random places among the blanks: each lag differs from row to row.

    The sizes of Mamba's paper are tokens 16, blanks 4096, vocabulary 16.
    """
    rng = task_rng("selective-copy", n, seed, split, {"tokens": tokens, "blanks": blanks, "vocabulary": vocabulary})
    places = np.sort(distinct(rng, n, tokens + blanks, tokens), 1)
    return _copied("selective-copy", rng, places, tokens + blanks, vocabulary)


def _copied(task: str, rng: np.random.Generator, places: NDArray[np.int64], before: int, vocabulary: int) -> Examples:
    n, tokens = places.shape
    said = rng.integers(0, vocabulary, (n, tokens))
    inputs = np.full((n, before + tokens), vocabulary, np.int64)
    np.put_along_axis(inputs, places, said, 1)
    inputs[:, before:] = vocabulary + 1
    targets = np.full_like(inputs, IGNORED)
    targets[:, before:] = said
    return Examples(inputs, targets, _tokens(task, vocabulary + 2, 1 / vocabulary))


def make_induction(n: int, seed: int, *, split: Split = "train", length: int = 256, vocabulary: int = 16) -> Examples:
    """Random ids with one special id (the number `vocabulary`) in the first half, and again at the end.

    The target, at the last place, is the id that followed the special one.
    """
    rng = task_rng("induction", n, seed, split, {"length": length, "vocabulary": vocabulary})
    if length < 4:
        raise ValueError(f"induction: length must be >= 4, got {length}")
    inputs = rng.integers(0, vocabulary, (n, length))
    place = rng.integers(0, length // 2, n)
    inputs[np.arange(n), place] = inputs[:, -1] = vocabulary
    targets = np.full_like(inputs, IGNORED)
    targets[:, -1] = inputs[np.arange(n), place + 1]
    return Examples(inputs, targets, _tokens("induction", vocabulary + 1, 1 / vocabulary))


def make_mqar(
    n: int, seed: int, *, split: Split = "train", length: int = 64, pairs: int = 8, vocabulary: int = 64,
    filler: str = "zeros",
) -> Examples:  # fmt: skip
    """Recall with many questions: `pairs` keys with their values first, then every key once more.

    The target at a key's second place is its value.  Keys are 1 to vocabulary/2 - 1, values vocabulary/2 to
    vocabulary-1, different within a row.  The second places lie at even offsets after the pairs, drawn without
    replacement with weights proportional to i^(a-1), a = 0.01.  Other places hold 0, or with filler "random" any id but
    the row's keys.
    """
    sizes = {"length": length, "pairs": pairs, "vocabulary": vocabulary}
    rng = task_rng("mqar", n, seed, split, sizes)
    keys, values = _pairs("mqar", rng, n, pairs, vocabulary)
    room = (length - 2 * pairs) // 2
    if length % 2 or room < pairs:
        raise ValueError(f"mqar: length must be even and >= 4·pairs = {4 * pairs}, got {length}")
    weights = np.arange(1, room + 1) ** (0.01 - 1)
    gaps = (np.log(weights) + rng.gumbel(size=(n, room))).argsort(1)[:, ::-1][:, :pairs]  # by successive draws
    inputs = _filled(rng, n, length, vocabulary, keys, filler)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    asked = 2 * pairs + 2 * gaps
    np.put_along_axis(inputs, asked, keys, 1)
    targets = np.full_like(inputs, IGNORED)
    np.put_along_axis(targets, asked, values, 1)
    return Examples(inputs, targets, _tokens("mqar", vocabulary, 1 / (vocabulary - vocabulary // 2)))


def make_recall(
    n: int, seed: int, *, split: Split = "train", length: int = 64, pairs: int = 8, vocabulary: int = 64,
    filler: str = "zeros",
) -> Examples:  # fmt: skip
    """Recall with one question: the pairs of `make_mqar`, and at the last place one of the keys again."""
    sizes = {"length": length, "pairs": pairs, "vocabulary": vocabulary}
    rng = task_rng("recall", n, seed, split, sizes)
    if length <= 2 * pairs:
        raise ValueError(f"recall: length must be > 2·pairs = {2 * pairs}, got {length}")
    keys, values = _pairs("recall", rng, n, pairs, vocabulary)
    inputs = _filled(rng, n, length, vocabulary, keys, filler)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    asked = rng.integers(0, pairs, n)
    inputs[:, -1] = keys[np.arange(n), asked]
    targets = np.full_like(inputs, IGNORED)
    targets[:, -1] = values[np.arange(n), asked]
    return Examples(inputs, targets, _tokens("recall", vocabulary, 1 / (vocabulary - vocabulary // 2)))


def _pairs(
    task: str, rng: np.random.Generator, n: int, pairs: int, vocabulary: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, pairs) keys, and values, different within a row."""
    half = vocabulary // 2
    if pairs > half - 1:
        raise ValueError(f"{task}: {pairs} pairs need a vocabulary of >= {2 * pairs + 2}, got {vocabulary}")
    return 1 + distinct(rng, n, half - 1, pairs), half + distinct(rng, n, vocabulary - half, pairs)


def _filled(
    rng: np.random.Generator, n: int, length: int, vocabulary: int, keys: NDArray[np.int64], filler: str
) -> NDArray[np.int64]:
    if filler == "zeros":
        return np.zeros((n, length), np.int64)
    if filler != "random":
        raise ValueError(f'filler must be "zeros" or "random", got "{filler}"')
    drawn = rng.integers(0, vocabulary, (n, length))
    is_key = np.zeros((n, vocabulary), bool)
    np.put_along_axis(is_key, keys, True, 1)
    return np.where(np.take_along_axis(is_key, drawn, 1), 0, drawn)


def _tokens(task: str, vocabulary: int, chance: float) -> TaskMeta:
    return TaskMeta(task, "tokens", "tokens", vocabulary, chance, vocabulary=vocabulary)
