"""Errors of a transcript, counted in words: the edit distance to what was said."""

from __future__ import annotations

from collections.abc import Sequence


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
