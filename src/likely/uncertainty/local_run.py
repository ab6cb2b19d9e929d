"""A plan carried out by a model on this machine: one loop, prefixes computed once and forked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from likely.decoding.loop import Loop
from likely.decoding.request import Event, Request
from likely.decoding.run import events
from likely.decoding.sampling import Sampling
from likely.errors import KvFull
from likely.metrics.checks import Floats, Ints
from likely.runtimes.protocol import FloatArray, Output, Runtime, Want, Work
from likely.runtimes.protocol import Sequence as Held
from likely.runtimes.rows import logsumexp
from likely.scoring.hidden import runtime_with_hidden, token_states
from likely.scoring.likelihood import Item, score_items
from likely.uncertainty.p_true import answers, p_true_of, p_true_prompts
from likely.uncertainty.plan import GatherPlan
from likely.uncertainty.types import Gathered, scores_of

ROWS_BYTES = 128 << 20  # of logits in one step
KINDS = ("greedy", "samples", "beams")


def gather_locally(
    lm: Any, prompts: list[str], shown: list[str], plan: GatherPlan, progress: Callable[[int], None] | None
) -> Gathered:
    """See `planner.gather`."""
    if "sample_states" in plan.needs:
        runtime_with_hidden(lm)  # refused before anything is sampled
    wanted = [_requests(lm, prompt, plan, plan.system(i)) for i, prompt in enumerate(prompts)]
    made: dict[str, list[list[Any]]] = {kind: [] for kind in KINDS}
    for group in _run(lm, wanted, plan):
        for kind, texts in group.items():
            made[kind].append(texts)
        if progress:
            progress(1)

    def sizes(text: Any) -> Ints:
        return np.array([len(lm.tokenizer.token_bytes(t)) for t in text.token_ids], np.int64)

    found = {kind: scores_of(groups, sizes) for kind, groups in made.items() if groups}
    gathered = Gathered(shown, found.get("greedy"), found.get("samples"), found.get("beams"))
    if "p_true" in plan.needs:
        gathered = replace(gathered, extra={"p_true": _p_true(lm, gathered, plan)})
    if "sample_states" in plan.needs:
        states = _sample_states(lm, [group["samples"].prompt for group in wanted], made["samples"])
        gathered = replace(gathered, extra={**gathered.extra, "sample_states": states})
    return gathered


def _sample_states(lm: Any, prompts: Sequence[Sequence[int]], samples: Sequence[Sequence[Any]]) -> Floats:
    """(M, D) at the last token of each text; its end token is none."""
    ends = set(lm.tokenizer.end_ids)
    texts = [
        [*prompt, *(ids[:-1] if ids and ids[-1] in ends else ids)]
        for prompt, group in zip(prompts, samples, strict=True)
        for ids in (sample.token_ids for sample in group)
    ]
    return np.concatenate(token_states(lm, texts, rows="last")).astype(np.float64)


def _requests(lm: Any, prompt: str, plan: GatherPlan, system: str | None) -> dict[str, Request]:
    """The requests of one prompt by kind; all have the same tokens as prompt."""
    if plan.questions:
        stop = {"stop": plan.stop} if plan.stop else {}
        first, _ = lm.question(prompt, system=system, temperature=0.0, max_tokens=plan.max_tokens, **stop)
        first = replace(first, drafter=None)
    else:
        tokens = tuple(lm.encode_prompt(prompt))
        first = Request(tokens, Sampling(temperature=0.0), max_tokens=plan.max_tokens, stop=plan.stop)
    out: dict[str, Request] = {}
    if "greedy" in plan.needs:
        out["greedy"] = replace(first, logits_processors=(Entropies(),)) if "token_entropy" in plan.needs else first
    if "samples" in plan.needs:
        noise = Sampling(temperature=1.0, seed=seed_of(plan.seed, first.prompt))
        out["samples"] = replace(first, sampling=noise, samples=plan.samples)
    if "beams" in plan.needs:
        out["beams"] = replace(first, beams=plan.beams, length_penalty=0.0)
    return out


def seed_of(seed: int, tokens: Sequence[int]) -> int:
    """The seed of a prompt's noise: prompts that differ get independent samples, in whatever company."""
    raw = np.array([seed, *tokens], np.int64).tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:6], "little")


@dataclass(eq=False)
class Entropies:
    """A logits processor that changes nothing and notes the entropy of each next token, in nats."""

    steps: list[float] = field(default_factory=list)
    _newest: float = 0.0

    def begin(self, runtime: Runtime, prompt: Sequence[int]) -> Entropies:
        return Entropies()

    def work(self, work: Work) -> list[Work]:
        return []

    def read(self, outputs: list[Output]) -> None:
        pass

    def apply(self, path: Sequence[int], logits: FloatArray) -> FloatArray:
        self._newest = entropy(logits)
        return logits

    def advance(self, tokens: Sequence[int], accepted: Sequence[int]) -> None:
        self.steps += [self._newest] * len(tokens)

    def fork(self) -> Entropies:
        return Entropies(self.steps.copy(), self._newest)

    def drop(self) -> None:
        pass


def entropy(logits: FloatArray) -> float:
    """H of softmax(logits), (V,), in nats; -inf has no part in it."""
    logp = logits - np.float32(logsumexp(logits))
    p = np.exp(logp)
    return float(-(p * np.where(p > 0, logp, 0)).sum(dtype=np.float64)) + 0.0


def _run(lm: Any, wanted: list[dict[str, Request]], plan: GatherPlan) -> Iterator[dict[str, list[Any]]]:
    """Per prompt the finished texts by kind, in the order of the prompts."""
    started = time.perf_counter()
    for request in (next(iter(group.values())) for group in wanted):
        _check(lm, request)
    loop = lm.loop()
    root = _Root(lm.runtime, [next(iter(group.values())).prompt for group in wanted])
    try:
        at = 0
        while at < len(wanted):
            count = _room(lm.runtime, wanted[at:], len(root.tokens))
            yield from _together(lm, loop, root, wanted[at : at + count], started)
            at += count
    finally:
        loop.close()
        root.close()


def _check(lm: Any, request: Request) -> None:
    """Refuse a prompt that can never run before anything is computed."""
    trial = lm.loop()
    trial.add(request)
    trial.close()


def _room(runtime: Runtime, wanted: Sequence[dict[str, Request]], shared: int) -> int:
    """How many of the next prompts run together: their sequences, tokens and rows fit."""
    limits = runtime.limits
    rows = min(limits.sequences - 1, max(1, ROWS_BYTES // (4 * runtime.vocab_size)))
    tokens = 0.9 * limits.tokens_held - shared
    count = 0
    for group in wanted:
        width = 1 + sum(max(r.samples, 2 * r.beams) for r in group.values())
        rows -= width
        first = next(iter(group.values()))
        tokens -= len(first.prompt) - shared + width * first.max_tokens
        if count and (rows < 0 or tokens < 0):
            break
        count += 1
    return count


class _Root:
    """What all prompts begin with, computed once."""

    def __init__(self, runtime: Runtime, prompts: Sequence[tuple[int, ...]]):
        self._runtime = runtime
        self._sequence: Held | None = None
        least, most = min(prompts), max(prompts)
        shared = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
        shared = min(shared, min(len(p) for p in prompts) - 1)
        worth = len(prompts) > 1 and shared > 0 and runtime.capabilities.fork
        self.tokens = least[:shared] if worth else ()

    def branches(self, groups: Sequence[dict[str, Request]]) -> list[list[Held | None]]:
        """Per prompt one sequence for each of its requests, which keeps the prompt but its last token."""
        runtime = self._runtime
        if not runtime.capabilities.fork:
            return [[None] * len(group) for group in groups]
        opened: list[Held] = []
        try:
            if self.tokens and self._sequence is None:
                self._sequence = runtime.open()
                runtime.forward([Work(self._sequence, np.array(self.tokens), want=Want.NONE)])
            work, firsts = [], []
            for group in groups:
                prompt = next(iter(group.values())).prompt
                rest = prompt[len(self.tokens) : -1]
                first = runtime.fork(self._sequence) if self._sequence is not None else runtime.open()
                opened.append(first)
                firsts.append(first)
                if rest:
                    work.append(Work(first, np.array(rest), want=Want.NONE))
            if work:
                runtime.forward(work)
            out: list[list[Held | None]] = []
            for group, first in zip(groups, firsts, strict=True):
                copies = [runtime.fork(first) for _ in range(len(group) - 1)]
                opened += copies
                out.append([first, *copies])
            return out
        except KvFull:  # the loop makes room for itself, one request after the other
            for sequence in opened:
                runtime.close(sequence)
            self.close()
            return [[None] * len(group) for group in groups]

    def close(self) -> None:
        if self._sequence is not None:
            self._runtime.close(self._sequence)
            self._sequence = None


def _together(
    lm: Any, loop: Loop, root: _Root, groups: Sequence[dict[str, Request]], started: float
) -> Iterator[dict[str, list[Any]]]:
    """Some prompts in one batch."""
    held = root.branches(groups)
    ids: list[dict[str, int]] = []
    owner: dict[int, Request] = {}
    for group, sequences in zip(groups, held, strict=True):
        mine = {}
        for (kind, request), sequence in zip(group.items(), sequences, strict=True):
            mine[kind] = loop.add(request, held=sequence)
            owner[mine[kind]] = request
        ids.append(mine)
    done: dict[int, dict[int, Event]] = {number: {} for number in owner}
    for event in events(loop):
        if event.finish:
            done[event.request][event.sample] = event
    seconds = time.perf_counter() - started
    for mine in ids:
        yield {
            kind: [lm.generation(owner[number], event, seconds) for _, event in sorted(done[number].items())]
            for kind, number in mine.items()
        }


def _p_true(lm: Any, gathered: Gathered, plan: GatherPlan) -> Floats:
    """(N,): all questions about answers are scored together."""
    letters = [tuple(lm.tokenizer.encode(text)) for text in answers()]
    items = []
    for orders in p_true_prompts(gathered, plan.brainstormed):
        for text in orders:
            ids = tuple(_as_question(lm, text) if plan.questions else lm.encode_prompt(text))
            items += [Item((*ids, *letter), len(ids)) for letter in letters]
    scored = score_items(lm.runtime, items)
    return p_true_of(np.array([sum(s.logprobs) for s in scored]).reshape(gathered.n, 2, len(letters)))


def _as_question(lm: Any, text: str) -> Sequence[int]:
    if lm.template is None:
        return lm.encode_prompt(text)
    return lm.render([{"role": "user", "content": text}]).tokens
