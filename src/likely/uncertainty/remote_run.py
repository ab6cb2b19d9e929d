"""A plan carried out by a server: texts, with the log-probabilities that it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from likely.errors import CapabilityError
from likely.metrics.checks import Floats, Ints
from likely.runtimes.kinds import kinds_with
from likely.uncertainty.p_true import answers, p_true_of, p_true_prompts
from likely.uncertainty.plan import GatherPlan
from likely.uncertainty.types import Gathered, GenerationScores, scores_of

CONCURRENT = 8  # requests at a time
NOTE = "log-probabilities of a server, which may leave out the end token's"
SAMPLED = f"{NOTE}; sampled with temperature 1 and top_p 1, but the server may truncate by a top_k or min_p of its own"


def gather_remotely(
    lm: Any, prompts: list[str], shown: list[str], plan: GatherPlan, progress: Callable[[int], None] | None
) -> Gathered:
    """See `planner.gather`."""
    for need, why in (
        ("token_entropy", "a server gives no entropies"), ("beams", "a server has no beam search"),
        ("sample_states", "a server gives no hidden states"),
    ):  # fmt: skip
        if need in plan.needs:
            raise CapabilityError(f"{why}: load the model locally ({kinds_with()}), or leave out what needs {need}")
    greedy: list[Any] = []
    samples: list[list[Any]] = []
    jobs: list[tuple[str, str | None, int | None]] = []
    for i, prompt in enumerate(prompts):
        numbers: list[int | None] = [None] if "greedy" in plan.needs else []
        numbers += [*range(plan.samples)] if "samples" in plan.needs else []
        jobs += [(prompt, plan.system(i), number) for number in numbers]
    with ThreadPoolExecutor(CONCURRENT, thread_name_prefix="likely-uncertainty") as pool:
        done = pool.map(lambda job: _one(lm, plan, *job), jobs)
        for _ in prompts:
            if "greedy" in plan.needs:
                greedy.append(next(done))
            if "samples" in plan.needs:
                samples.append([next(done) for _ in range(plan.samples)])
            if progress:
                progress(1)
    gathered = Gathered(
        shown,
        _scores([[text] for text in greedy]) if greedy else None,
        _scores(samples, SAMPLED) if samples else None,
    )
    if "p_true" in plan.needs:
        gathered = replace(gathered, extra={"p_true": _p_true(lm, gathered, plan)})
    return gathered


def _one(lm: Any, plan: GatherPlan, prompt: str, system: str | None, sample: int | None) -> Any:
    """The greedy text, or one sample with a seed of its own."""
    settings: dict[str, Any] = {"max_tokens": plan.max_tokens, "temperature": 0.0 if sample is None else 1.0}
    if sample is not None:
        digest = hashlib.sha256(f"{plan.seed}\n{sample}\n{prompt}".encode()).digest()
        settings |= {"seed": int.from_bytes(digest[:4], "little") >> 1, "top_p": 1.0}
    if plan.stop:
        settings["stop"] = plan.stop
    if plan.questions:
        return lm.ask(prompt, system=system, **settings)
    return lm.generate(prompt, **settings)


def _scores(groups: Sequence[Sequence[Any]], note: str = NOTE) -> GenerationScores:
    if any(text.token_logprobs is None for group in groups for text in group):
        raise CapabilityError(
            "this server gives no log-probabilities of what it writes, and these estimators rest on them: use a "
            f"server that does, or load the model locally ({kinds_with()})"
        )
    return scores_of(groups, _sizes, note)


def _sizes(text: Any) -> Ints | None:
    """Bytes per token, if the server's tokens spell the text."""
    if text.tokens is None or not "".join(text.tokens).startswith(text.text):
        return None
    return np.array([len(token.encode()) for token in text.tokens], np.int64)


def _p_true(lm: Any, gathered: Gathered, plan: GatherPlan) -> Floats:
    """The questions as raw prompts: a server applies no template to a text that it only scores."""
    pairs = [
        (text, answer)
        for orders in p_true_prompts(gathered, plan.brainstormed)
        for text in orders
        for answer in answers()
    ]
    scored = lm.score_pairs(pairs)
    return p_true_of(np.array([s.sequence_logprob for s in scored]).reshape(gathered.n, 2, len(answers())))
