"""Questions to records: the greedy answer of each, and how uncertain several estimators call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from likely.metrics.ranking import discrimination
from likely.uncertainty.clusters import EXACT, NUMBER, Clusterer, by_model, lexical
from likely.uncertainty.planner import gather
from likely.uncertainty.table import ESTIMATORS, estimate

Clusters = Literal["exact", "number", "lexical", "model"]


def make_clusterer(name: Clusters, lm: Any) -> Clusterer:
    """What makes two answers the same: their words, or their value, shared words, or what the model says."""
    if name == "model":
        return by_model(lm)
    return {"exact": EXACT, "number": NUMBER}[name] if name != "lexical" else lexical()


def answer_and_estimate(
    lm: Any, questions: Sequence[str], methods: Sequence[str], *, system: str | Sequence[str | None] | None = None,
    samples: int = 10, beams: int = 5, clusters: Clusters = "number", max_tokens: int = 64, seed: int = 0,
    stop: Sequence[str] = (), progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record per question: text, its log-probabilities, and the value of each estimator (None where there is none).

    methods  names of `ESTIMATORS`;  system: one message for all questions, or one each
    cut      names of the estimators that saw a text which was cut at max_tokens
    The others: see `gather`.
    """
    gathered = gather(
        lm, questions, needs=[*methods, "greedy"], samples=samples, beams=beams, max_tokens=max_tokens, seed=seed,
        stop=stop, questions=True, system=system, progress=progress,
    )  # fmt: skip
    values = estimate(gathered, methods, clusterer=make_clusterer(clusters, lm))
    greedy = gathered.texts("greedy")
    records = []
    for i in range(gathered.n):
        found = {name: float(value.values[i]) for name, value in values.items()}
        record = {
            "text": greedy.texts[i],
            "finish_reason": greedy.finish_reasons[i],
            "sequence_logprob": float(greedy.logprobs[i]),
            "token_logprobs": greedy.token_logprobs[i].tolist(),
            "confidence": None,
            "uncertainty": {name: value if math.isfinite(value) else None for name, value in found.items()},
            "cut": sorted(name for name, u in values.items() if u.truncated is not None and u.truncated[i]),
        }
        if gathered.samples is not None:
            record["samples"] = [gathered.samples.texts[k] for k in gathered.samples.of(i)]
        records.append(record)
    return records


def compare_estimators(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How well each estimator tells right answers from wrong ones: `discrimination` of records with "correct"."""
    correct = [r["correct"] for r in records]
    return {
        name: discrimination(
            [r["uncertainty"].get(name) for r in records], correct, higher_is=ESTIMATORS[name].higher_is
        )
        for name in methods
    }
