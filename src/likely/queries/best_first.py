"""best_k: best-first search over programs, token by token, until k have ended or the budget is spent.

Each step takes the most promising unfinished program from a heap and adds one token to its open hole in a few ways.
A program's rank is its mean log-probability per generated token less κ·age^β, its age counted in steps since it was
made: fresh programs are preferred, so that the search goes down as well as sideways.  (After Xu et al. 2022, "Massive-
scale decoding for text generation using lattices"; defaults of LMQL's implementation.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.decoding.constraint import Constraint, ConstraintDeadEnd, log_mass, only, unpack
from likely.errors import CapabilityError
from likely.queries.decoders import CompletedProgram, Program, score_of
from likely.queries.holes import Pending, Undecided, hole_event
from likely.queries.run import QueryRun
from likely.queries.session import Decoded, Session
from likely.queries.trace import QueryEvent
from likely.queries.where.stops import Cut
from likely.runtimes.protocol import FloatArray, Want, Work
from likely.runtimes.rows import log_softmax, logsumexp


@dataclass(frozen=True, eq=False)
class _Partial:
    """An unfinished program: decided events, and the tokens of the open hole."""

    script: list[QueryEvent]
    pending: Pending
    constraint: Constraint | None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    masses: tuple[float, ...] = ()
    born: int = 0

    def rank(self, now: int, kappa: float, beta: float) -> float:
        before = sum(len(e.tokens) for e in self.script)
        score = score_of(self.script) + sum(self.logprobs) - sum(self.masses)
        return score / max(1, before + len(self.tokens)) - kappa * (now - self.born) ** beta


def best_k(
    program: Program,
    make_run: Callable[..., QueryRun],
    session: Session,
    *,
    k: int = 4,
    budget: int = 30,
    kappa: float = 1.0,
    beta: float = 0.5,
    gamma: float = 0.05,
    continuations: int = 5,
    heap: int = 500,
) -> list[CompletedProgram]:
    """At most k ended programs, best summed log-probability per token first.

    budget         steps per ended program: after k · budget of them the best open program is completed greedily, if
                   none has ended
    continuations  most tokens tried at a step, each of probability >= gamma (the likeliest always)
    heap           most open programs that are remembered
    """
    if session.settings.logits_processors:
        raise CapabilityError("best_k takes no logits_processors: use argmax, sample or beam")
    live: list[_Partial] = []
    done: list[CompletedProgram] = []

    def go_on(script: list[QueryEvent], now: int) -> None:
        run = make_run(script=script, branches=True)
        try:
            value = program(run)
        except Undecided as found:
            compiled = found.pending.compiled
            constraint = compiled.constraint
            live.append(_Partial(script, found.pending, constraint.fork() if constraint else None, born=now))
        else:
            done.append(CompletedProgram(run, value, score_of(run.events)))

    go_on([], 0)
    now = 0
    while live and len(done) < k and (now < k * budget or not done):
        greedy = now >= k * budget
        best = max(live, key=lambda p: p.rank(now, 0.0 if greedy else kappa, beta))
        live.remove(best)
        if greedy:
            live.clear()
        now += 1
        row = _row(session, [*best.pending.prompt, *best.tokens])
        for token, logprob, mass in _continuations(best, row, session, 1 if greedy else continuations, gamma):
            child, decoded = _child(best, token, logprob, mass, session, now)
            if decoded is None:
                live.append(child)
            else:
                go_on([*best.script, hole_event(best.pending, decoded)], now)
        live = sorted(live, key=lambda p: -p.rank(now, kappa, beta))[:heap]
    if not done:
        raise ConstraintDeadEnd(0, "", "best_k found no program that ends")
    return sorted(done, key=lambda e: -e.score / max(1, sum(len(x.tokens) for x in e.run.events)))[:k]


def _row(session: Session, tokens: list[int]) -> FloatArray:
    """Logits after the tokens."""
    runtime = session.runtime
    with session.meter.timed():
        sequence = runtime.take(tokens)
        held = sequence.length if sequence is not None else 0
        if sequence is None:
            sequence = runtime.open()
        output = runtime.forward([Work(sequence, np.array(tokens[held:], np.int64), want=Want.LAST)])[0]
        runtime.close(sequence)
    session.meter.generated(len(tokens), held, 1)
    assert output.logits is not None
    return output.logits[-1]


def _continuations(
    partial: _Partial, row: FloatArray, session: Session, most: int, gamma: float
) -> list[tuple[int, float, float]]:
    """(token, log p, log mass of the allowed tokens) of the likeliest allowed ones."""
    raw, mass, masked = log_softmax(row), 0.0, row
    if partial.constraint is not None:
        if partial.pending.compiled.peek is not None:
            partial.pending.compiled.peek.apply((), row)
        allowed = unpack(partial.constraint.allowed(partial.pending.max_tokens - len(partial.tokens)), len(row))
        mass, masked = log_mass(row, allowed, logsumexp(row)), only(row, allowed)
    order = np.argsort(-masked, kind="stable")[:most].tolist()
    log_gamma = float(np.log(gamma)) if gamma > 0 else -float("inf")
    return [
        (t, float(raw[t]), mass)
        for i, t in enumerate(order)
        if masked[t] > -np.inf and (i == 0 or raw[t] - mass >= log_gamma)
    ]


def _child(
    partial: _Partial, token: int, logprob: float, mass: float, session: Session, now: int
) -> tuple[_Partial, Decoded | None]:
    """The program with one more token, and the hole's result if it ended by it."""
    vocabulary, pending = session.vocabulary, partial.pending
    constraint = partial.constraint.fork() if partial.constraint is not None else None
    if constraint is not None:
        constraint.advance(token)
    tokens = (*partial.tokens, token)
    logprobs, masses = (*partial.logprobs, logprob), (*partial.masses, mass)
    child = _Partial(partial.script, pending, constraint, tokens, logprobs, masses, now)
    before = vocabulary.text(partial.tokens)
    text = before + vocabulary.tokens[token]
    cut: Cut | None = pending.compiled.rule.cut(text, len(before), len(tokens)) if pending.compiled.rule.stops else None
    if token in vocabulary.end_ids:
        reason = "stop"
    elif cut is not None:
        reason = "stops_at" if cut.stop.include else "stops_before"
    elif len(tokens) >= pending.max_tokens:
        reason = "length"
    elif len(pending.prompt) + len(tokens) >= session.runtime.context_length:
        reason = "context"
    else:
        return child, None
    complete: Any = True if cut is not None else None if constraint is None else constraint.accepting
    shown = text if cut is None else text[: cut.length]
    return child, Decoded(
        shown.decode("utf-8", "replace"), list(tokens), list(logprobs), list(masses) if constraint else [], reason,
        complete, constraint.approximate if constraint else False, len(pending.prompt), 0,
        len(tokens) - (token in vocabulary.end_ids),
    )  # fmt: skip
