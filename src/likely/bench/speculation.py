"""What drafters gain on this machine: each against plain decoding of the same runtime, interleaved, on given tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from likely.bench.timing import Timing, speedup
from likely.decoding.request import Finished, Request
from likely.decoding.run import events
from likely.decoding.sampling import Sampling
from likely.metrics.bootstrap import median_interval
from likely.runtimes.protocol import Sequence as Held
from likely.runtimes.protocol import Want, Work

if TYPE_CHECKING:
    from likely.lm.model import Model

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Task:
    """Prompts of one kind: raw texts, or lists of chat messages."""

    name: str
    prompts: Sequence[str | list[dict[str, str]]]


BUILTIN = (
    Task(
        "repeat a text",
        [
            "The ferry leaves the island at seven in the morning and comes back at noon. In winter there is one trip "
            "a day, and the captain decides whether the sea is calm enough.\n\nThe same text again, word for word:\n\n"
            "The ferry leaves the island at seven in the morning and"
        ],
    ),
    Task(
        "continue a table",
        [
            "INSERT INTO towns (name, country, people) VALUES ('Lisbon', 'Portugal', 545000);\n"
            "INSERT INTO towns (name, country, people) VALUES ('Porto', 'Portugal', 232000);\n"
            "INSERT INTO towns (name, country, people) VALUES ('Braga', 'Portugal', 193000);\n"
        ],
    ),
    Task("tell a story", ["Once upon a time there was a clockmaker who had never seen the sea. One morning"]),
)


@dataclass(frozen=True)
class DrafterTiming:
    """One drafter on one task.  Ratios are plain decoding's time over the drafter's, prefill left out.

    near_ties     texts that left the plain one where two tokens were within `NEAR` nats; gaps holds each gap
    unexplained   texts that left it elsewhere: must be 0
    """

    task: str
    drafter: str
    ratio: float
    low: float
    high: float
    rounds: int
    ms_per_token: float
    tokens_per_call: float
    proposed_per_call: float
    acceptance_rate: float | None
    texts: int
    identical: int
    near_ties: int
    unexplained: int
    gaps: list[float] = field(default_factory=list)


NEAR = 0.5


@dataclass(eq=False)
class _Prompt:
    request: Request
    held: Held  # all of the prompt but its last token, computed once
    plain: Finished | None = None


def compare(
    lm: Model,
    tasks: Sequence[Task],
    drafters: Sequence[str],
    *,
    max_tokens: int = 64,
    rounds: int = 5,
    fewer: int | None = None,
    prompt_tokens: int = 400,
    draft_budget: int | Literal["auto", "off"] = "auto",
    sampling: Sampling = GREEDY,
    progress: Callable[[str], None] | None = None,
) -> list[DrafterTiming]:
    """One result per task and drafter.

    Each round runs plain decoding and every drafter on every prompt of the task, in turn; a drafter is made anew for
    each round and sees the task's prompts one after another.  The first round does not count.
    fewer          rounds for drafters other than "auto" (None: as many)
    prompt_tokens  longer prompts keep their last tokens
    """
    rows = []
    for task in tasks:
        if progress:
            progress(task.name)
        with _prepared(lm, task, sampling, max_tokens, prompt_tokens) as prompts:
            rows += _one_task(lm, task.name, prompts, drafters, rounds, fewer, draft_budget)
    return rows


def _one_task(
    lm: Model,
    name: str,
    prompts: list[_Prompt],
    drafters: Sequence[str],
    rounds: int,
    fewer: int | None,
    draft_budget: int | Literal["auto", "off"],
) -> list[DrafterTiming]:
    seconds: dict[str, list[float]] = {d: [] for d in ("none", *drafters)}
    texts: dict[str, list[Finished]] = {d: [] for d in ("none", *drafters)}
    for number in range(rounds + 1):
        for drafter in ("none", *drafters):
            if drafter not in ("none", "auto") and fewer is not None and number > fewer:
                continue
            source = lm.drafter(drafter, remembered=False)
            spent = 0.0
            for prompt in prompts:
                request = replace(prompt.request, drafter=source, draft_budget=draft_budget)
                finished, elapsed = _decoded(lm, request, prompt.held)
                spent += elapsed
                if number:
                    texts[drafter].append(finished)
                if drafter == "none":
                    prompt.plain = finished
            if number:
                seconds[drafter].append(spent)
    return [_row(lm, name, d, seconds, texts[d], prompts) for d in drafters]


def _row(
    lm: Model,
    task: str,
    drafter: str,
    seconds: dict[str, list[float]],
    texts: list[Finished],
    prompts: list[_Prompt],
) -> DrafterTiming:
    count = len(seconds[drafter])
    ratio = speedup(Timing(drafter, seconds[drafter]), Timing("none", seconds["none"][:count]))
    tokens = sum(len(f.tokens) for f in texts)
    calls = sum(len(f.rounds) for f in texts)
    proposed, accepted = sum(f.proposed for f in texts), sum(f.accepted for f in texts)
    gaps, identical, unexplained = [], 0, 0
    for i, finished in enumerate(texts):
        prompt = prompts[i % len(prompts)]
        gap = divergence_gap(lm, prompt, finished)
        if gap is None:
            identical += 1
        elif gap <= NEAR:
            gaps.append(gap)
        else:
            unexplained += 1
    per_token = [1e3 * s / (tokens / count) for s in seconds[drafter]]
    return DrafterTiming(
        task,
        drafter,
        ratio.median,
        ratio.low,
        ratio.high,
        count,
        float(np.median(per_token)),
        tokens / calls,
        proposed / calls,
        accepted / proposed if proposed else None,
        len(texts),
        identical,
        len(gaps),
        unexplained,
        gaps,
    )


def divergence_gap(lm: Model, prompt: _Prompt, finished: Finished) -> float | None:
    """None if the text is the plain one; else how far apart, in nats, the two tokens were where it left it.

    The row is computed anew from the common beginning: the numbers of neither run.
    """
    assert prompt.plain is not None
    plain, other = prompt.plain.tokens, finished.tokens
    at = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), None)
    if at is None:
        return None if len(plain) == len(other) else float("inf")
    tokens = np.array([*prompt.request.prompt, *plain[:at]])
    sequence = lm.runtime.open()
    try:
        want = Want(rows="last", pairs=np.array([[len(tokens) - 1, plain[at]], [len(tokens) - 1, other[at]]]))
        logprobs = lm.runtime.forward([Work(sequence, tokens, want=want)])[0].logprobs
    finally:
        lm.runtime.close(sequence)
    assert logprobs is not None
    return float(abs(logprobs[0] - logprobs[1]))


def _decoded(lm: Model, request: Request, held: Held) -> tuple[Finished, float]:
    """(the text, seconds of decoding it after its prompt) of one request, alone."""
    loop = lm.loop()
    loop.add(request, held=lm.runtime.fork(held))
    started = time.perf_counter()
    finished = None
    try:
        for event in events(loop):
            finished = event.finish or finished
    finally:
        loop.close()
    elapsed = time.perf_counter() - started
    assert finished is not None
    return finished, elapsed


@contextmanager
def _prepared(
    lm: Model, task: Task, sampling: Sampling, max_tokens: int, prompt_tokens: int
) -> Iterator[list[_Prompt]]:
    prompts = []
    try:
        for text in task.prompts:
            ids = list(lm.encode_prompt(text) if isinstance(text, str) else lm.render(text).tokens)
            ids = ids[-prompt_tokens:]
            held = lm.runtime.open()
            if ids[:-1]:
                lm.runtime.forward([Work(held, np.array(ids[:-1]), want=Want.NONE)])
            request = Request(tuple(ids), sampling, max_tokens=max_tokens, min_tokens=0)
            prompts.append(_Prompt(request, held))
        yield prompts
    finally:
        for prompt in prompts:
            lm.runtime.close(prompt.held)


def overall(rows: Sequence[DrafterTiming], drafter: str) -> dict[str, Any]:
    """Median ratio of a drafter over tasks, with a bootstrap interval over them."""
    ratios = [row.ratio for row in rows if row.drafter == drafter]
    low, high = median_interval(ratios)
    return {"drafter": drafter, "median": float(np.median(ratios)), "low": low, "high": high, "tasks": len(ratios)}
