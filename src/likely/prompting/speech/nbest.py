"""What a speech recogniser may have heard: transcripts of one utterance with scores, and prompts that show them.

A transcript's posterior is p(h_j) ∝ Σ exp(κ s) over the recogniser's entries that read h_j; κ scales scores of acoustic
models, which count each of hundreds of dependent frames as if it were independent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from likely.errors import check_choice

NBestStyle = Literal["plain", "explained", "scores"]
STYLES = get_args(NBestStyle)
EXPLANATION = (
    "These are alternative transcriptions of one utterance by a speech recogniser, the most likely first; "
    "all of them may be wrong."
)
_FILLER = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\+\+[^+\s]+\+\+|\(null\)", re.IGNORECASE)
_PRONUNCIATION = re.compile(r"(?<=\S)\(\d+\)(?=\s|$)")


def plain_words(transcript: str) -> str:
    """Words alone, lower case: without fillers (<sil>, [NOISE], ++breath++) and marks of pronunciation ("read(2)")."""
    return " ".join(_PRONUNCIATION.sub("", _FILLER.sub(" ", transcript)).lower().split())


@dataclass(frozen=True)
class NBest:
    """Transcripts of one utterance as a recogniser gave them, its first choice first; several may read the same.

    logscores  natural logarithms; a constant added to all of them changes nothing
    """

    hyps: tuple[str, ...]
    logscores: tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.hyps, str):
            raise ValueError(f"hyps must be a list of transcripts, got the text {self.hyps!r}: put it in brackets")
        object.__setattr__(self, "hyps", tuple(self.hyps))
        object.__setattr__(self, "logscores", tuple(float(s) for s in self.logscores))
        if len(self.hyps) != len(self.logscores):
            raise ValueError(f"{len(self.hyps)} transcripts have {len(self.logscores)} scores: one each is needed")
        for i, score in enumerate(self.logscores):
            if np.isnan(score) or score == np.inf:
                raise ValueError(f"logscores: entry {i} is {score}: a number or -inf is needed")
        if self.hyps and max(self.logscores) == -np.inf:
            raise ValueError("logscores: every entry is -inf, so no transcript is possible")

    @classmethod
    def heard(cls, best: str | None, others: Iterable[tuple[str, float] | None] = ()) -> NBest:
        """From a recogniser's best path and its n-best list, of which entries may be None or empty.

        The best path comes first whatever the list says.  Its score is that of the list's entry with its words, else
        the list's highest: scores of the two searches are not on one scale.  Where the list calls every entry
        impossible (-inf), the best path was heard all the same: its score is then 0.
        """
        listed = [entry for entry in others if entry is not None and plain_words(entry[0])]
        first = plain_words(best or "")
        if not first:
            return cls(tuple(t for t, _ in listed), tuple(s for _, s in listed))
        at = next((i for i, (text, _) in enumerate(listed) if plain_words(text) == first), None)
        highest = max((s for _, s in listed if s > -np.inf), default=0.0)
        listed.insert(0, (first, highest) if at is None else listed.pop(at))  # popped: not to be counted twice
        if all(s == -np.inf for _, s in listed):
            listed[0] = (listed[0][0], 0.0)
        return cls(tuple(t for t, _ in listed), tuple(s for _, s in listed))

    def distinct(self, n: int | None = None, *, kappa: float = 1.0) -> tuple[list[str], NDArray[np.float64]]:
        """(the first n transcripts that differ in words, their posteriors, which sum to 1).

        Entries of the same words become one, with the sum of their posteriors, before n are taken.  Where there are
        fewer than n, fewer come back; where nothing was heard, one empty transcript.
        """
        if n is not None and n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if not kappa >= 0 or kappa == np.inf:
            raise ValueError(f"kappa must be a number >= 0, got {kappa}")
        order: dict[str, list[float]] = {}
        for text, score in zip(self.hyps, self.logscores, strict=True):
            if words := plain_words(text):
                order.setdefault(words, []).append(score)
        if not order:
            return [""], np.ones(1)
        texts = list(order)[:n]
        best = max(max(order[text]) for text in texts)
        if best == -np.inf:  # those taken are impossible beside one that is not: nothing tells them apart
            return texts, np.full(len(texts), 1 / len(texts))
        shares = np.array([sum(_power(s - best, kappa) for s in order[text]) for text in texts])
        return texts, shares / shares.sum()


def _power(score: float, kappa: float) -> float:
    return float(np.exp(kappa * score)) if score > -np.inf else 0.0


@dataclass(frozen=True)
class SpokenTask:
    """What is asked about an utterance: one question, K possible answers.

    answers  as they are scored after the prompt, without the leading space
    listed   whether the prompt lists them (a model that was not fine-tuned has to be told)
    """

    instruction: str
    answers: tuple[str, ...]
    listed: bool = True
    heard: str = "Heard:"
    asked: str = "Answer:"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        if len(set(self.answers)) < len(self.answers) or len(self.answers) < 2:
            raise ValueError(f"answers must be at least 2 different texts, got {list(self.answers)}")
        if not all(a.strip() for a in self.answers):
            raise ValueError("answers must not be empty texts")


def transcript_prompt(task: SpokenTask, transcript: str) -> str:
    """The prompt that shows one transcript."""
    return "\n".join([*_head(task), f"{task.heard} {transcript}", task.asked])


def nbest_prompt(
    task: SpokenTask, nbest: NBest, n: int = 5, style: NBestStyle = "explained", *, kappa: float = 1.0
) -> str:
    """The prompt that shows up to n transcripts, one numbered line each.

    plain      the lines alone;  explained: with a sentence that says what they are;  scores: and with posteriors
    With n = 1, or where only one transcript is there, this is `transcript_prompt`, byte for byte.
    """
    check_choice("style", style, STYLES)
    texts, posteriors = nbest.distinct(n, kappa=kappa)
    if len(texts) == 1:
        return transcript_prompt(task, texts[0])
    ends = [f" ({p:.2f})" if style == "scores" else "" for p in posteriors]
    lines = [f"{i}. {text}{end}" for i, (text, end) in enumerate(zip(texts, ends, strict=True), 1)]
    explanation = [] if style == "plain" else [EXPLANATION]
    return "\n".join([*_head(task), *explanation, task.heard, *lines, task.asked])


def _head(task: SpokenTask) -> Sequence[str]:
    head = [task.instruction] if task.instruction else []
    return [*head, f"Options: {', '.join(task.answers)}"] if task.listed else head
