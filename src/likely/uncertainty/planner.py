"""Run a model once for everything that several estimators need; then each of them is arithmetic (`table.estimate`).

Greedy text, samples and beams of a prompt grow from one computed prefix in the batch of one loop, beside those of other
prompts; what all prompts begin with is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from likely.errors import CapabilityError
from likely.metrics.ranking import discrimination
from likely.uncertainty.clusters import EXACT, NUMBER, Clusterer, by_model, lexical
from likely.uncertainty.local_run import gather_locally
from likely.uncertainty.plan import GatherPlan
from likely.uncertainty.remote_run import gather_remotely
from likely.uncertainty.table import BRAINSTORMED, ESTIMATORS, estimate, needs_of
from likely.uncertainty.types import Gathered


def gather(
    lm: Any,
    prompts: Sequence[str],
    *,
    needs: Iterable[str],
    samples: int = 10,
    max_tokens: int = 64,
    seed: int = 0,
    beams: int = 5,
    stop: str | Sequence[str] = (),
    questions: bool = False,
    system: str | Sequence[str | None] | None = None,
    shown: Sequence[str] | None = None,
    brainstormed: int = BRAINSTORMED,
    progress: Callable[[int], None] | None = None,
) -> Gathered:
    """Run the model once for everything that is needed.

    lm        a `Model`, or a `RemoteModel` (greedy texts and samples with what log-probabilities the server gives)
    prompts   raw texts to continue; with questions=True what is asked, under `system` (one for all, or one each)
    needs     names of estimators or of needs ("greedy", "samples", "sample_states", "token_entropy", "beams", "p_true")
    shown     the questions as P(True) and clusterers read them; default: the prompts
    progress  called with the number of prompts that are done
    The others: see `GatherPlan`.  CapabilityError where this model cannot give what is needed.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of strings, got the string {prompts!r}")
    if not prompts:
        raise ValueError("no prompts: at least one is needed")
    if shown is not None and len(shown) != len(prompts):
        raise ValueError(f"shown has {len(shown)} questions for {len(prompts)} prompts")
    systems = (system,) * len(prompts) if isinstance(system, str) else tuple(system or ())
    if systems and len(systems) != len(prompts):
        raise ValueError(f"system has {len(systems)} messages for {len(prompts)} prompts")
    plan = GatherPlan(
        needs_of(needs, brainstormed=brainstormed),
        samples=samples,
        beams=beams,
        max_tokens=max_tokens,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        brainstormed=brainstormed,
        questions=questions,
        systems=systems,
    )
    texts = list(prompts if shown is None else shown)
    if hasattr(lm, "runtime"):
        return gather_locally(lm, list(prompts), texts, plan, progress)
    if hasattr(lm, "generate"):
        return gather_remotely(lm, list(prompts), texts, plan, progress)
    raise CapabilityError(f"cannot gather from {type(lm).__name__}: give a model that likely.load made")


def all_estimators(lm: Any) -> list[str]:
    """The names of all estimators that this model can give: without hidden states not those that read them."""
    return [name for name, of in ESTIMATORS.items() if lm.capabilities.hidden or "sample_states" not in of.needs]


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
