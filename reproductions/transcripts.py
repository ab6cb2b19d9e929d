"""Transcripts compared word by word: ROVER makes one of several, word error rates count what was heard wrongly."""

from __future__ import annotations

from collections.abc import Sequence

Slot = dict[str, float]  # votes of each word at one place; "" votes for no word


def rover(transcripts: Sequence[str], weights: Sequence[float]) -> str:
    """One transcript by a vote on every word, where each transcript has its weight (its posterior, say).

    Transcripts are aligned one after the other to what the earlier ones gave, with the fewest changes; ties of votes
    go to the word that came first.  Fiscus 1997, DOI 10.1109/ASRU.1997.659110.
    """
    if not transcripts or len(transcripts) != len(weights):
        raise ValueError(
            f"{len(transcripts)} transcripts have {len(weights)} weights: one each is needed, at least one"
        )
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"weights must be >= 0 with a sum > 0, got {list(weights)}")
    slots: list[Slot] = [{word: weights[0]} for word in transcripts[0].split()]
    so_far = weights[0]
    for text, weight in zip(transcripts[1:], weights[1:], strict=True):
        slots = _joined(slots, text.split(), weight, so_far)
        so_far += weight
    return " ".join(filter(None, (max(slot, key=lambda word: slot[word]) for slot in slots)))


def _joined(slots: list[Slot], words: Sequence[str], weight: float, so_far: float) -> list[Slot]:
    """The slots after one more transcript: cost 1 for a word that a slot lacks, for a word skipped, for a new slot."""
    skip = [0 if "" in slot else 1 for slot in slots]
    cost = [list(range(len(words) + 1))]
    for i, slot in enumerate(slots):
        row = [cost[i][0] + skip[i]]
        for j, word in enumerate(words):
            row.append(min(cost[i][j] + (word not in slot), cost[i][j + 1] + skip[i], row[j] + 1))
        cost.append(row)
    joined: list[Slot] = []
    i, j = len(slots), len(words)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (words[j - 1] not in slots[i - 1]):
            i, j = i - 1, j - 1
            joined.append(_voted(slots[i], words[j], weight))
        elif i and cost[i][j] == cost[i - 1][j] + skip[i - 1]:
            i -= 1
            joined.append(_voted(slots[i], "", weight))
        else:
            j -= 1
            joined.append({"": so_far, words[j]: weight})
    return joined[::-1]


def _voted(slot: Slot, word: str, weight: float) -> Slot:
    return {**slot, word: slot.get(word, 0.0) + weight}


def word_errors(said: str, heard: str) -> int:
    """Fewest insertions, deletions and replacements of words that turn one text into the other (Levenshtein)."""
    reference, words = said.split(), heard.split()
    row = list(range(len(words) + 1))
    for i, wanted in enumerate(reference, 1):
        above, row[0] = row[0], i
        for j, word in enumerate(words, 1):
            above, row[j] = row[j], min(above + (word != wanted), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Errors of all texts divided by the words said in all of them; it may exceed 1."""
    return oracle_word_error_rate(said, [[text] for text in heard], 1)


def oracle_word_error_rate(said: Sequence[str], heard: Sequence[Sequence[str]], n: int) -> float:
    """The same where of each text's first n transcripts the best is taken: what a perfect choice could reach."""
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if len(said) != len(heard):
        raise ValueError(f"{len(said)} texts were said, {len(heard)} heard: one list of transcripts each is needed")
    for i, transcripts in enumerate(heard):
        if not transcripts:
            raise ValueError(f'text {i} has no transcript: "" says that nothing was heard')
    words = sum(len(text.split()) for text in said)
    if not words:
        raise ValueError("no word was said: the rate is not defined")
    return sum(min(word_errors(t, h) for h in list(hs)[:n]) for t, hs in zip(said, heard, strict=True)) / words
