"""Which of several answers to one question mean the same?  Clusterers: a name and a function.

Greedy, in order: a text joins the first cluster whose first member means the same (Kuhn et al. 2023, arXiv:2302.09664,
algorithm 1).  No model of entailment comes with this package; bring one (`nli`), or ask the model itself (`by_model`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.metrics.grading import normalise, numbers
from likely.uncertainty.samples import rouge_l


@dataclass(frozen=True)
class Clusterer:
    """groups(question, texts) -> the cluster of each text, 0, 1, ... in the order of their first members."""

    name: str
    groups: Callable[[str, Sequence[str]], list[int]]


def numbered(keys: Sequence[Any]) -> list[int]:
    """Equal keys, equal cluster; numbered in the order of appearance."""
    seen: dict[Any, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def grouped(same: Callable[[str, str], bool], texts: Sequence[str]) -> list[int]:
    """Greedy clustering by a relation, `same(first member, text)`; identical texts are compared once."""
    firsts: list[str] = []
    known: dict[str, int] = {}
    out = []
    for text in texts:
        if text not in known:
            at = next((i for i, first in enumerate(firsts) if same(first, text)), len(firsts))
            if at == len(firsts):
                firsts.append(text)
            known[text] = at
        out.append(known[text])
    return out


def same_words(text: str) -> str:
    """What two texts must share to be equal but for case, space, punctuation and articles."""
    return normalise(text) or text.strip().lower()


_ONLY_A_NUMBER = re.compile(r"\s*[-−+]?\s?[$€£¥]?[-−]?[0-9][0-9,./ ]*(?:[eE][-+]?[0-9]+)?\s*")


def same_words_or_number(text: str) -> Any:
    """The value of a text that is nothing but a number ("1,000", "1000.0", "$1000"), else `same_words`."""
    if _ONLY_A_NUMBER.fullmatch(text) and len(found := numbers(text)) == 1:
        return found[0]
    return same_words(text)


EXACT = Clusterer("exact", lambda question, texts: numbered([same_words(t) for t in texts]))
NUMBER = Clusterer("number", lambda question, texts: numbered([same_words_or_number(t) for t in texts]))


def lexical(threshold: float = 0.7) -> Clusterer:
    """ROUGE-L >= threshold.  Texts that hold numbers must hold the same ones, and then it is enough.

    "The answer is 12" and "The answer is 13" share three words of four: without the rule they would be one meaning.
    """

    def same(a: str, b: str) -> bool:
        one, other = Counter(numbers(a)), Counter(numbers(b))
        if one or other:
            return one == other
        return rouge_l(a, b) >= threshold or same_words(a) == same_words(b)

    return Clusterer(f"lexical({threshold:g})", lambda question, texts: grouped(same, texts))


def embedding(embed: Callable[[list[str]], Any], threshold: float = 0.9) -> Clusterer:
    """Cosine of embeddings >= threshold.  embed(texts) -> (n, D); rows of zeros are refused."""

    def groups(question: str, texts: Sequence[str]) -> list[int]:
        distinct = list(dict.fromkeys(texts))
        vectors = np.asarray(embed(distinct), np.float64)
        if vectors.ndim != 2 or len(vectors) != len(distinct):
            raise ValueError(f"embed must give ({len(distinct)}, D), got shape {vectors.shape}")
        sizes = np.linalg.norm(vectors, axis=1)
        if not (sizes > 0).all() or not np.isfinite(sizes).all():
            raise ValueError(f"the embedding of {distinct[int((~(sizes > 0)).argmax())]!r} has no direction")
        cosine = (vectors / sizes[:, None]) @ (vectors / sizes[:, None]).T
        place = {text: i for i, text in enumerate(distinct)}
        return grouped(lambda a, b: bool(cosine[place[a], place[b]] >= threshold), texts)

    return Clusterer(f"embedding({threshold:g})", groups)


def nli(entails: Callable[[str, str], bool]) -> Clusterer:
    """Both texts entail each other, the question in front of each, as Kuhn et al. do.  entails(premise, hypothesis)."""

    def groups(question: str, texts: Sequence[str]) -> list[int]:
        def same(a: str, b: str) -> bool:
            one, other = f"{question} {a}", f"{question} {b}"
            return bool(entails(one, other)) and bool(entails(other, one))

        return grouped(same, texts)

    return Clusterer("nli", groups)


def by_model(lm: Any) -> Clusterer:
    """The model itself is asked whether two answers mean the same, by the likelihood of " yes" against " no".

    Identical words are not asked about.  Small models answer this badly.
    """

    def groups(question: str, texts: Sequence[str]) -> list[int]:
        def same(a: str, b: str) -> bool:
            if same_words_or_number(a) == same_words_or_number(b):
                return True
            prompt = SAME.format(question=question, one=a.strip(), other=b.strip())
            yes, no = lm.score(prompt, [" yes", " no"])
            return bool(yes.sequence_logprob > no.sequence_logprob)

        return grouped(same, texts)

    return Clusterer("model", groups)


SAME = (
    "Question: {question}\nPossible answer 1: {one}\nPossible answer 2: {other}\n"
    "Do the two possible answers mean the same? Answer yes or no.\nAnswer:"
)
