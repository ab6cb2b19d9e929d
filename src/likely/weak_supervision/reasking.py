"""Ask again only where it is risky: second questions for the answers that a risk score (POLAR, say) distrusts.

Zhao et al. 2023, arXiv:2306.16564, "dynamic prompting".  Three ways to a second answer:

    reconsider   self-examination: the model sees its answer and is asked to look again
    evidence     the prompt says which rules fire on the text, and for which label each speaks
    override     the answer of the model that fused the rules (`Harmonizer`) takes its place; nothing is asked

Answers are compared by their likelihood, as everywhere here, so that each comes with probabilities and none can be
unreadable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from likely.errors import check_choice
from likely.metrics.checks import Floats, Ints, as_floats
from likely.metrics.intervals import Accuracy
from likely.scoring.scored import PairScorer
from likely.uncertainty.types import option_scores
from likely.weak_supervision.harmonizer import Harmonizer
from likely.weak_supervision.labelling_rules import LabelingFunction, Votes
from likely.weak_supervision.risk import risk_quality

ReaskPolicy = Literal["reconsider", "evidence", "override"]
POLICIES = ("reconsider", "evidence", "override")
LOOK_AGAIN = "Look at it again. Is that really right? Answer once more with one of: {labels}."


@dataclass(frozen=True)
class Example:
    """A worked example in front of a question; label is its class."""

    text: str
    label: int


@dataclass(frozen=True)
class LabelTask:
    """How texts are asked about: an instruction, worked examples, the text, "Answer:".

    instruction  the first line;  noun: what a text is called ("Message")
    labels       what the model answers for each of K classes
    """

    instruction: str
    labels: tuple[str, ...]
    noun: str = "Text"
    examples: tuple[Example, ...] = ()

    def prompt(self, text: str) -> str:
        """The question about a text; the answer goes on with " spam"."""
        return "\n\n".join([self.instruction, *(self._case(e.text, e.label) for e in self.examples), self._case(text)])

    def reconsider(self, text: str, answer: int) -> str:
        """The second question of self-examination: the first one, its answer, and the request to look again."""
        again = LOOK_AGAIN.format(labels=", ".join(self.labels))
        return f"{self.prompt(text)} {self.labels[answer]}\n{again}\nAnswer:"

    def evidence(self, text: str, rules: Sequence[LabelingFunction]) -> str:
        """The question with what the rules that fire on the text say; worked examples carry their own evidence.

        The examples show the model how evidence and label go together, which a short instruction cannot do for a
        small one.
        """
        examples = [self._case(e.text, e.label, fired(rules, e.text)) for e in self.examples]
        return "\n\n".join([self.instruction, *examples, self._case(text, rules=fired(rules, text))])

    def _case(self, text: str, label: int | None = None, rules: Sequence[LabelingFunction] = ()) -> str:
        lines = [f"{self.noun}: {' '.join(text.split())}"]
        lines += [f"Evidence: {rule.sentence} This speaks for: {self.labels[rule.label]}." for rule in rules]
        lines.append("Answer:" if label is None else f"Answer: {self.labels[label]}")
        return "\n".join(lines)


def fired(rules: Sequence[LabelingFunction], text: str) -> list[LabelingFunction]:
    """The rules that vote on a text; of several with the same sentence and label the first."""
    found = {(rule.sentence, rule.label): rule for rule in reversed(rules) if rule.vote(text) >= 0}
    return list(found.values())[::-1]


def budget_threshold(risk: Any, budget: float) -> float:
    """The lowest threshold above which at most a share `budget` of the items lies; of ties, none is asked.

    -inf for a budget of 1: all are asked.
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"budget is a share of the items, 0..1, got {budget}")
    falling = np.sort(as_floats(risk, "risk", 1))[::-1]
    most = math.floor(budget * len(falling) + 1e-9)
    return -math.inf if most == len(falling) else float(falling[most])


@dataclass(frozen=True)
class Reasked:
    """N answers after the risky ones were asked again.

    answers  (N,) classes;  chosen (N,) above the threshold;  asked (N,) those of them that the model was asked about
    probs    (N, K) of the second answer, NaN where there was none;  threshold: the δ of ζ > δ
    """

    answers: Ints
    chosen: NDArray[np.bool_]
    asked: NDArray[np.bool_]
    probs: Floats
    threshold: float

    @property
    def cost(self) -> float:
        """Share of the items that the model was asked about a second time."""
        return float(self.asked.mean())


def reask(
    lm: PairScorer | None,
    task: LabelTask,
    texts: Sequence[str],
    answers: Any,
    risk: Any,
    *,
    threshold: float,
    policy: ReaskPolicy = "evidence",
    rules: Sequence[LabelingFunction] = (),
    fused: Any = None,
    progress: Callable[[int], None] | None = None,
) -> Reasked:
    """Second answers for the texts with risk > threshold; all others keep theirs.

    answers    (N,) classes that the model gave, -1: none;  risk (N,), see `budget_threshold`
    policy     "reconsider", "evidence" (needs `rules`), "override" (needs `fused`, (N, K) probabilities; lm may be
               None).  Where no rule fires there is no evidence, and where there was no answer nothing to reconsider:
               the former stay as they are, the latter are asked the plain question
    progress   called with the number of prompts scored
    """
    check_choice("policy", policy, POLICIES)
    n, k = len(texts), len(task.labels)
    first = np.asarray(answers, np.int64)
    values = as_floats(risk, "risk", 1)
    if first.shape != (n,) or values.shape != (n,):
        raise ValueError(f"{n} texts, answers {first.shape}, risk {values.shape}: one of each per text")
    if (first < -1).any() or (first >= k).any():
        raise ValueError(f"answers: row {int(((first < -1) | (first >= k)).argmax())} is no class in -1..{k - 1}")
    chosen = values > threshold
    asked, second, probs = np.zeros(n, bool), first.copy(), np.full((n, k), np.nan)
    if policy == "override":
        own = np.asarray(fused, np.float64)
        if own.shape != (n, k):
            raise ValueError(f"override needs fused, ({n}, {k}) probabilities of the harmonizer, got {own.shape}")
        probs[chosen], second[chosen] = own[chosen], own[chosen].argmax(axis=1)
        return Reasked(second, chosen, asked, probs, threshold)
    if policy == "evidence" and not rules:
        raise ValueError("evidence needs rules: give those whose votes made the risk")
    rows_chosen = np.flatnonzero(chosen).tolist()
    prompts = {i: _second_prompt(task, texts[i], int(first[i]), policy, rules) for i in rows_chosen}
    rows = [i for i, prompt in prompts.items() if prompt is not None]
    if rows:
        if lm is None:
            raise ValueError(f'policy "{policy}" asks a model: lm is None')
        scores = option_scores(lm, [prompts[i] or "" for i in rows], task.labels, progress=progress)
        asked[rows] = True
        probs[rows] = scores.probs()
        second[rows] = probs[rows].argmax(axis=1)
    return Reasked(second, chosen, asked, probs, threshold)


def _second_prompt(
    task: LabelTask, text: str, answer: int, policy: ReaskPolicy, rules: Sequence[LabelingFunction]
) -> str | None:
    if policy == "reconsider":
        return task.prompt(text) if answer < 0 else task.reconsider(text, answer)
    return task.evidence(text, rules) if fired(rules, text) else None


def rate_and_reask(
    lm: Any,
    task: LabelTask,
    texts: Sequence[str],
    answers: Sequence[int],
    rules: Sequence[LabelingFunction],
    *,
    budget: float = 0.2,
    policy: ReaskPolicy = "evidence",
    scalarizer: str = "quadratic",
    seed: int = 0,
    more_texts: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """A risk for each answer, by a harmonizer of rules and answers, and second answers for the riskiest.

    answers     classes, -1 where the model is to be asked first
    budget      share of the texts that may be asked again;  policy: how, see `reask`
    scalarizer, seed  of the `Harmonizer`, which learns from `more_texts`, too
    progress    called with the number of prompts scored
    Returns a record per text: answer, risk, rules (names of those that fired), chosen, asked, final, harmonizer (its
    probabilities), probs (of the second answer, or None).
    """
    names = task.labels
    first = np.array(answers, np.int64)
    unasked = np.flatnonzero(first < 0).tolist()
    if unasked:
        prompts = [task.prompt(texts[i]) for i in unasked]
        first[unasked] = option_scores(lm, prompts, names, progress=progress).probs().argmax(axis=1)
    every = [*texts, *more_texts]
    votes = Votes.of(rules, every, names).with_answers(np.append(first, np.full(len(more_texts), -1)))
    harmonizer = Harmonizer(names, scalarizer=scalarizer, seed=seed).fit(every, votes)
    fused = harmonizer.predict_proba(texts)
    risk = harmonizer.polar(texts, first).values
    found = reask(
        lm, task, texts, first, risk, threshold=budget_threshold(risk, budget), policy=policy, rules=rules,
        fused=fused, progress=progress,
    )  # fmt: skip
    return [
        {
            "answer": names[first[i]], "risk": float(risk[i]), "rules": [rule.name for rule in fired(rules, text)],
            "chosen": bool(found.chosen[i]), "asked": bool(found.asked[i]), "final": names[found.answers[i]],
            "harmonizer": dict(zip(names, fused[i].tolist(), strict=True)),
            "probs": None if np.isnan(found.probs[i]).any() else found.probs[i].tolist(),
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip


def summarise(records: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Any]:
    """Counts of such records; where they carry a "label": accuracy before and after, ECE and AUROC of the risk."""
    threshold = budget_threshold([r["risk"] for r in records], budget)
    known = [r for r in records if r["label"] is not None]
    out: dict[str, Any] = {
        "items": len(records), "covered": sum(bool(r["rules"]) for r in records),
        "chosen": sum(r["chosen"] for r in records), "asked": sum(r["asked"] for r in records),
        "changed": sum(r["final"] != r["answer"] for r in records),
        "threshold": threshold if math.isfinite(threshold) else None, "labelled": len(known),
    }  # fmt: skip
    if known:
        for name, field in (("before", "answer"), ("after", "final")):
            right = Accuracy(sum(r[field] == r["label"] for r in known), len(known))
            out[name] = {"accuracy": right.value, "interval": list(right.interval)}
        quality = risk_quality([r["risk"] for r in known], [int(r["answer"] != r["label"]) for r in known])
        out["risk_ece"], out["risk_auroc"] = quality.ece, None if math.isnan(quality.auroc) else quality.auroc
    return out
