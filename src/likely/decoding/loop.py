"""The loop: many requests share one runtime; each step is one call of the model.

Plain decoding is speculation with zero drafts; prefill is a long piece of work: there is no second path.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.beam import BeamSearch
from likely.decoding.constraint import LogitsProcessor
from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.protocol import NO_DRAFT
from likely.decoding.drafting.step import Drafting
from likely.decoding.particles import Particles
from likely.decoding.request import Event, Request
from likely.decoding.scheduling import Policy
from likely.decoding.sequence_state import SequenceState
from likely.decoding.text import TextStream
from likely.errors import CapabilityError, ConstraintError, KvFull, LikelyError, ModelError
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import Output, Runtime, Sequence, Want, Work


@dataclass(eq=False)
class _Running:
    """A request on its way."""

    id: int
    request: Request
    hypotheses: list[SequenceState]
    select: BeamSearch | Particles | None = None  # what is kept after each step; None: every sample by itself


@dataclass(eq=False)
class Loop:
    """`add` requests, `step` until `idle`; events come in order per sample.

    token_bytes  bytes of a token's text (b"" for control tokens);  end_ids  tokens that end a text
    step_tokens  most tokens computed in one step (long prompts are prefilled in pieces beside running requests)
    controller   what is known about call costs and drafters; loops of one model share it
    policy       who takes part in a step (`pool.SameLength`); None: everyone

    One thread calls `step`; `add` and `cancel` may come from any.  A request that cannot go on for want of room waits
    and is recomputed later (its tokens are kept); one that can never run ends with an error event.
    """

    runtime: Runtime
    token_bytes: Callable[[int], bytes]
    end_ids: frozenset[int]
    step_tokens: int = 0
    controller: Controller = field(default_factory=Controller)
    policy: Policy | None = None
    verify_s: float = 0.0  # spent in calls of the target with all that follows from them
    _inbox: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _ids: itertools.count = field(default_factory=itertools.count)
    _waiting: list[_Running] = field(default_factory=list)
    _running: list[_Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step_tokens = self.step_tokens or self.runtime.limits.tokens_per_call
        self.drafting = Drafting(self.runtime, self.controller)

    @property
    def draft_s(self) -> float:
        """Seconds spent in drafters."""
        return self.drafting.seconds

    def add(self, request: Request, *, held: Sequence | None = None) -> int:
        """Queue a request; returns its id.  Raises if it can never run here.

        held  a sequence of this runtime that keeps the first tokens of the prompt (not all); the loop owns it from now
        """
        runtime = self.runtime
        if len(request.prompt) >= runtime.context_length:
            raise ModelError(
                f"the prompt has {len(request.prompt)} tokens; this model's context is {runtime.context_length}: "
                f"shorten it or load the model with a larger context="
            )
        bad = [t for t in request.prompt if not 0 <= t < runtime.vocab_size]
        if bad:
            raise ValueError(f"token id {bad[0]} is outside 0..{runtime.vocab_size - 1}")
        worst = max(request.sampling.logit_bias, default=0)
        if worst >= runtime.vocab_size:
            raise ValueError(f"logit_bias names token {worst}, the vocabulary has {runtime.vocab_size}")
        if max(request.samples, request.beams, request.particles) > 1 and not runtime.capabilities.fork:
            raise CapabilityError(f"several samples from one prompt need a runtime that forks: {kinds_with('fork')}")
        if request.drafter is not None and not runtime.capabilities.trees:
            raise CapabilityError(f"drafts need a runtime with pending tokens: {kinds_with('trees')}")
        constraint = request.constraint
        if constraint is not None and constraint.vocab_size != runtime.vocab_size:
            raise ValueError(
                f"the constraint was made for {constraint.vocab_size} tokens, this model has {runtime.vocab_size}"
            )
        if getattr(constraint, "judges_late", False) and (request.selects or request.verification != "keyed"):
            raise CapabilityError(
                'a monitor that judges tokens when they are chosen takes no beams and only verification="keyed": use '
                'across_trigger="split" and no arity monitor'
            )
        if held is not None and (held.pending or held.length >= len(request.prompt)):
            raise ValueError(
                f"held must keep fewer than the prompt's {len(request.prompt)} tokens and nothing pending, "
                f"it keeps {held.length} (pending: {held.pending})"
            )
        request_id = next(self._ids)
        self._inbox.put(("add", request_id, (request, held)))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Stop a request; its samples end with reason "cancelled" and the text so far."""
        self._inbox.put(("cancel", request_id, None))

    @property
    def idle(self) -> bool:
        return not (self._running or self._waiting) and self._inbox.empty()

    def step(self) -> list[Event]:
        """One call of the model (none if nothing is to be done)."""
        events = self._drain()
        active = self._admit()
        if self.policy and active:
            active = self.policy.choose([h for h in active if h.row is None])
        if len(active) > 1:  # one whose constraint waits for an analysis keeps nobody else waiting
            active = [h for h in active if h.ready and h.row is None]
            if not active:  # all wait: whoever is answered first goes on
                time.sleep(0.001)
                return events
        if not active:
            return events
        while True:
            try:
                work = self._plan(active)
                beside = self._beside(work)
                started = time.perf_counter()
                outputs = self.runtime.forward(
                    [item for _, item in work] + [item for _, items in beside for item in items]
                )
                break
            except KvFull as full:
                active, failed = self._make_room(active, full)
                events += failed
                if not active:
                    return events
        at = len(work)
        for transform, items in beside:
            transform.read(outputs[at : at + len(items)])
            at += len(items)
        for (hypothesis, item), output in zip(work, outputs[: len(work)], strict=True):
            # a sibling sample may have ended the request with an error, or found no room
            if not hypothesis.dropped and hypothesis.sequence is not None:
                events += self._digest(hypothesis, item, output)
        self._time(work, time.perf_counter() - started)
        for running in list(self._running):
            if running.select:
                events += self._select(running)
        self._running = [r for r in self._running if r.hypotheses]
        return events

    def close(self) -> None:
        """Drop everything."""
        self._drain()
        for running in (*self._running, *self._waiting):
            self._release(running)
        self._running, self._waiting = [], []

    # --- who takes part -------------------------------------------------------------------------------------------

    def _drain(self) -> list[Event]:
        events = []
        while not self._inbox.empty():
            verb, request_id, added = self._inbox.get()
            if verb == "add":
                try:
                    self._waiting.append(self._begin(request_id, *added))
                except (LikelyError, ValueError) as error:  # a transform that cannot follow this prompt
                    events.append(Event(request_id, added[0].first_sample, error=error))
                    if added[1] is not None:
                        self.runtime.close(added[1])
                continue
            for group in (self._running, self._waiting):
                for running in [r for r in group if r.id == request_id]:
                    events += self._end_all(running, "cancelled")
                    group.remove(running)
        return events

    def _begin(self, request_id: int, request: Request, held: Sequence | None) -> _Running:
        hypothesis = SequenceState(
            request_id,
            request,
            request.first_sample,
            list(request.prompt[held.length if held else 0 :]),
            TextStream(request.stop, len(request.healed or b"")),
            held,
            waiting_for=1 if request.selects else request.samples,
            constraint=request.constraint.fork() if request.constraint else None,
            logits_processors=tuple(t.begin(self.runtime, request.prompt) for t in request.logits_processors),
        )
        select: BeamSearch | Particles | None = None
        if request.beams:
            select = BeamSearch(request, self.end_ids | request.stop_tokens)
        elif request.particles:
            select = Particles(request, self.end_ids)
        return _Running(request_id, request, [hypothesis], select)

    def _admit(self) -> list[SequenceState]:
        """Running requests, then waiting ones in order while their sequences and prompts fit."""
        while self._waiting:
            if self.policy and not self.policy.admits(sum(len(r.hypotheses) for r in self._running)):
                break
            waiting = self._waiting[0]
            need = sum(len(h.todo) * (1 + len(h.logits_processors)) for h in waiting.hypotheses)
            if self._running and self.runtime.free_tokens() < need + self._reserve():
                break
            try:
                first = waiting.hypotheses[0]
                first.sequence = first.sequence or self.runtime.open()
                for hypothesis in waiting.hypotheses:
                    request = waiting.request
                    if hypothesis.drafter is None and request.drafter is not None:
                        hypothesis.drafter = request.drafter.begin(request.prompt, request.draw(hypothesis.sample))
            except KvFull:
                self._send_back(waiting)
                if self._running:
                    break
                raise
            self._running.append(self._waiting.pop(0))
        return [h for r in self._running for h in r.hypotheses]

    def _reserve(self) -> int:
        """Room that the running samples take in the next few steps."""
        return 16 * sum(len(r.hypotheses) for r in self._running)

    def _make_room(self, active: list[SequenceState], full: KvFull) -> tuple[list[SequenceState], list[Event]]:
        """Send the youngest running request back to the queue, its tokens kept; alone, it ends with the error."""
        youngest = self._running[-1]
        events = self._put_off(youngest, full)
        return [h for h in active if h.request_id != youngest.id], events

    def _put_off(self, running: _Running, full: KvFull) -> list[Event]:
        """Back to the queue, its tokens kept; alone, it ends with the error."""
        self._send_back(running)
        self._running.remove(running)
        if self._running:
            self._waiting.insert(0, running)
            return []
        events = [Event(running.id, h.sample, error=full) for h in running.hypotheses]
        self._release(running)
        return events

    def _send_back(self, running: _Running) -> None:
        """Give up its place in the runtime; everything is to be computed anew."""
        self._close_sequences(running)
        for hypothesis in running.hypotheses:
            hypothesis.todo = [*running.request.prompt, *hypothesis.tokens]
            hypothesis.row = None

    # --- one call -------------------------------------------------------------------------------------------------

    def _plan(self, active: list[SequenceState]) -> list[tuple[SequenceState, Work]]:
        """Decoding first, with drafts; prefill takes what is left of the step's tokens, at least one piece."""
        budget = self.step_tokens
        plan: list[tuple[SequenceState, Work]] = []
        full: KvFull | None = None
        ready: list[tuple[SequenceState, Sequence]] = []
        for hypothesis in sorted(active, key=lambda h: len(h.todo) > 1):
            if hypothesis.row is not None:  # a beam or particle that waits for its companions
                continue
            try:
                sequence = hypothesis.sequence = hypothesis.sequence or self.runtime.open()
            except KvFull as error:  # others may end and make room
                full = error
                continue
            ready.append((hypothesis, sequence))
        decoding = [h for h, _ in ready if len(h.todo) == 1]
        self.drafting.draft(decoding, budget - len(decoding))
        for hypothesis, sequence in ready:
            if len(hypothesis.todo) == 1:
                draft = hypothesis.draft
                budget -= 1 + len(draft)
                if len(draft):
                    tokens = np.concatenate([[hypothesis.todo[0]], draft.tokens])
                    parents = np.concatenate([[-1], draft.parents + 1])
                    plan.append((hypothesis, Work(sequence, tokens, parents, want=hypothesis.want())))
                else:
                    plan.append((hypothesis, Work(sequence, np.array(hypothesis.todo), want=hypothesis.want())))
            elif budget > 0 or not plan:
                chunk = hypothesis.todo[: max(budget, 1)]
                budget -= len(chunk)
                hypothesis.draft = NO_DRAFT
                want = hypothesis.want() if len(chunk) == len(hypothesis.todo) else Want.NONE
                plan.append((hypothesis, Work(sequence, np.array(chunk), want=want)))
        if full and not plan:
            raise full
        return plan

    def _beside(self, work: list[tuple[SequenceState, Work]]) -> list[tuple[LogitsProcessor, list[Work]]]:
        """What logits_processors want computed in the same call: for texts whose rows come out of it."""
        return [
            (transform, items)
            for hypothesis, item in work
            if hypothesis.logits_processors and item.want is not Want.NONE
            for transform in hypothesis.logits_processors
            if (items := transform.work(item))
        ]

    def _time(self, work: list[tuple[SequenceState, Work]], seconds: float) -> None:
        """Learn what the call cost, if every row that it computed was looked at, as in verification."""
        self.verify_s += seconds
        if any(h.logits_processors for h, _ in work):  # whose own contexts are part of the time
            return
        if all(item.want.rows == "all" or len(item.tokens) == 1 for _, item in work):
            self.controller.costs.record(sum(len(item.tokens) for _, item in work), seconds)
        elif len(work) == 1:
            self.controller.costs.record_prefill(len(work[0][1].tokens), seconds)

    def _digest(self, hypothesis: SequenceState, item: Work, output: Output) -> list[Event]:
        hypothesis.target_calls += 1
        if item.parents is None and len(item.tokens) < len(hypothesis.todo):
            hypothesis.todo = hypothesis.todo[len(item.tokens) :]
            return []
        if hypothesis.request.selects:
            assert output.logits is not None
            hypothesis.row = output.logits[-1]
            return []
        events = []
        for sibling in self._split(hypothesis):
            try:
                events.append(self._emit(sibling, output))
            except ConstraintError as error:
                self._release(self._owner(hypothesis))
                return [*events, Event(hypothesis.request_id, sibling.sample, error=error)]
            except KvFull as full:  # of a transform's own context
                return [*events, *self._put_off(self._owner(hypothesis), full)]
        return events

    def _owner(self, hypothesis: SequenceState) -> _Running:
        return next(r for r in self._running if r.id == hypothesis.request_id)

    def _split(self, hypothesis: SequenceState) -> list[SequenceState]:
        """The samples that continue from this prefill: itself and forks of it."""
        count, hypothesis.waiting_for = hypothesis.waiting_for, 1
        family = [hypothesis]
        running = self._owner(hypothesis)
        for i in range(1, count):
            draw = hypothesis.request.draw(hypothesis.sample + i)
            drafter = hypothesis.drafter.fork(draw) if hypothesis.drafter else None
            family.append(hypothesis.fork(hypothesis.sample + i, self._fork(hypothesis), drafter))
            running.hypotheses.append(family[-1])
        return family

    def _emit(self, hypothesis: SequenceState, output: Output) -> Event:
        """Walk the draft, append what the target chose, and move the cache."""
        draft = hypothesis.draft
        accepted, tokens, choices = hypothesis.choose(output, self.end_ids)
        hypothesis.proposed += len(draft)
        before = len(hypothesis.tokens)
        text, reason = "", None
        for token, choice in zip(tokens, choices, strict=True):
            hypothesis.append(token, choice)
            reason, piece = self._advance_text(hypothesis, token)
            text += piece
            if reason:
                break
        if hypothesis.constraint and (over := before + len(tokens) - len(hypothesis.tokens)):
            hypothesis.constraint.rollback(over)  # it has seen the tokens behind the end
        new = slice(before, None)
        hypothesis.rounds.append(min(len(accepted), len(hypothesis.tokens) - before))
        self.drafting.tell(hypothesis, accepted, hypothesis.tokens[new])
        for transform in hypothesis.logits_processors:
            transform.advance(hypothesis.tokens[new], [0, *(node + 1 for node in accepted)] if len(draft) else [])
        finish = None
        if reason:
            text += hypothesis.stream.finish()
            finish = hypothesis.finished(reason)
            self._drop(hypothesis)
        else:
            if len(draft):
                self.runtime.commit([(hypothesis.sequence, [0, *(node + 1 for node in accepted)])])  # type: ignore[list-item]
            hypothesis.continue_with(tokens[-1])
        return Event(
            hypothesis.request_id,
            hypothesis.sample,
            text,
            tuple(hypothesis.tokens[new]),
            tuple(hypothesis.logprobs[new]),
            finish,
            tops=tuple(hypothesis.tops[new]),
        )

    def _advance_text(self, hypothesis: SequenceState, token: int) -> tuple[str | None, str]:
        """(why the text ends here or None, text that became safe)"""
        request = hypothesis.request
        if token in self.end_ids:
            return "stop", ""
        if token in request.stop_tokens:
            if hypothesis.constraint:
                hypothesis.constraint.rollback(1)  # it is no part of the text
            return "stop", ""
        text = hypothesis.stream.push(self.token_bytes(token))
        if hypothesis.stream.stopped:
            return "stop", text
        if len(hypothesis.tokens) >= request.max_tokens:
            return "length", text
        if hypothesis.room(self.runtime.context_length) <= 0:
            return "context", text
        return None, text

    def _select(self, running: _Running) -> list[Event]:
        select = running.select
        assert select is not None
        if any(h.row is None for h in running.hypotheses):
            return []
        try:
            running.hypotheses, done = select.select(
                running.hypotheses,
                lambda h: h.fork(h.sample, self._fork(h), None),
                self._close_sequence,
                self._advance_text,
            )
        except ConstraintError as error:
            self._release(running)
            return [Event(running.id, running.request.first_sample, error=error)]
        except KvFull as full:  # of a transform's own context
            return self._put_off(running, full)
        if done is None:
            return []
        for hypothesis in running.hypotheses:
            self._close_sequence(hypothesis)
        running.hypotheses = []
        return [
            Event(
                running.id,
                running.request.first_sample + i,
                finished.text,
                tuple(finished.tokens),
                tuple(finished.logprobs),
                finished,
            )
            for i, finished in enumerate(done)
        ]

    def _fork(self, hypothesis: SequenceState) -> Sequence | None:
        """A fork of its sequence; None for want of room: it is then computed anew when there is some."""
        if hypothesis.sequence is None:
            return None
        try:
            return self.runtime.fork(hypothesis.sequence)
        except KvFull:
            return None

    # --- endings --------------------------------------------------------------------------------------------------

    def _close_sequence(self, hypothesis: SequenceState) -> None:
        for transform in hypothesis.logits_processors:
            transform.drop()
        if hypothesis.sequence is not None:
            self.runtime.close(hypothesis.sequence)
            hypothesis.sequence = None

    def _drop(self, hypothesis: SequenceState) -> None:
        self._close_sequence(hypothesis)
        if hypothesis.drafter:
            hypothesis.drafter.end()
        for running in self._running:
            if running.id == hypothesis.request_id:
                running.hypotheses = [h for h in running.hypotheses if h is not hypothesis]

    def _close_sequences(self, running: _Running) -> None:
        for hypothesis in running.hypotheses:
            self._close_sequence(hypothesis)

    def _release(self, running: _Running) -> None:
        self._close_sequences(running)
        for hypothesis in running.hypotheses:
            hypothesis.dropped = True
            if hypothesis.drafter:
                hypothesis.drafter.end()
        running.hypotheses = []

    def _end_all(self, running: _Running, reason: str) -> list[Event]:
        """End every sample of a request, also those not yet split off."""
        events = []
        for hypothesis in running.hypotheses:
            text = hypothesis.stream.finish()
            for i in range(hypothesis.waiting_for):
                finish = hypothesis.finished(reason)
                events.append(Event(running.id, hypothesis.sample + i, text, finish=finish))
        self._release(running)
        return events
