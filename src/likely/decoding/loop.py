"""The loop: many requests share one runtime; each step is one call of the model.

Plain decoding is speculation with zero drafts; prefill is a long piece of work: there is no second path.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.accept import matched_walk
from likely.decoding.beam import BeamSearch
from likely.decoding.draft import NO_DRAFT, Draft
from likely.decoding.hypothesis import Choice, Hypothesis
from likely.decoding.request import Event, Request
from likely.decoding.text import TextStream
from likely.errors import CapabilityError, KvFull, ModelError
from likely.models.runtime import Output, Runtime, Sequence, Want, Work


@dataclass(eq=False)
class _Running:
    """A request on its way."""

    id: int
    request: Request
    hypotheses: list[Hypothesis]
    beam: BeamSearch | None = None


@dataclass(eq=False)
class Loop:
    """`add` requests, `step` until `idle`; events come in order per sample.

    token_bytes  bytes of a token's text (b"" for control tokens);  end_ids  tokens that end a text
    step_tokens  most tokens computed in one step (long prompts are prefilled in pieces beside running requests)

    One thread calls `step`; `add` and `cancel` may come from any.  A request that cannot go on for want of room waits
    and is recomputed later (its tokens are kept); one that can never run ends with an error event.
    """

    runtime: Runtime
    token_bytes: Callable[[int], bytes]
    end_ids: frozenset[int]
    step_tokens: int = 0
    _inbox: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _ids: itertools.count = field(default_factory=itertools.count)
    _waiting: list[_Running] = field(default_factory=list)
    _running: list[_Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step_tokens = self.step_tokens or self.runtime.limits.tokens_per_call

    def add(self, request: Request) -> int:
        """Queue a request; returns its id.  Raises if it can never run here."""
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
        if max(request.samples, request.beams) > 1 and not runtime.capabilities.fork:
            raise CapabilityError("several samples from one prompt need a runtime that forks: torch, llamacpp")
        if request.drafter is not None and not runtime.capabilities.trees:
            raise CapabilityError("drafts need a runtime with pending tokens: torch, llamacpp")
        request_id = next(self._ids)
        self._inbox.put(("add", request_id, request))
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
        if not active:
            return events
        while True:
            try:
                work = self._plan(active)
                outputs = self.runtime.forward([item for _, item in work])
                break
            except KvFull as full:
                active, failed = self._make_room(active, full)
                events += failed
                if not active:
                    return events
        for (hypothesis, item), output in zip(work, outputs, strict=True):
            events += self._digest(hypothesis, item, output)
        for running in list(self._running):
            if running.beam:
                events += self._select_beams(running)
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
            verb, request_id, request = self._inbox.get()
            if verb == "add":
                hypothesis = Hypothesis(
                    request_id,
                    request,
                    request.first_sample,
                    list(request.prompt),
                    TextStream(request.stop),
                    waiting_for=1 if request.beams else request.samples,
                )
                beam = BeamSearch(request, self.end_ids | request.stop_tokens) if request.beams else None
                self._waiting.append(_Running(request_id, request, [hypothesis], beam))
                continue
            for group in (self._running, self._waiting):
                for running in [r for r in group if r.id == request_id]:
                    events += self._end_all(running, "cancelled")
                    group.remove(running)
        return events

    def _admit(self) -> list[Hypothesis]:
        """Running requests, then waiting ones in order while their sequences and prompts fit."""
        while self._waiting:
            waiting = self._waiting[0]
            need = sum(len(h.todo) for h in waiting.hypotheses)
            if self._running and self.runtime.free_tokens() < need + self._reserve():
                break
            try:
                first = waiting.hypotheses[0]
                first.sequence = first.sequence or self.runtime.open()
                for hypothesis in waiting.hypotheses:
                    if hypothesis.drafter is None and waiting.request.drafter is not None:
                        prompt = waiting.request.prompt
                        hypothesis.drafter = waiting.request.drafter.begin(prompt, sampling=waiting.request.sampling)
            except KvFull:
                self._close_sequences(waiting)
                if self._running:
                    break
                raise
            self._running.append(self._waiting.pop(0))
        return [h for r in self._running for h in r.hypotheses]

    def _reserve(self) -> int:
        """Room that the running samples take in the next few steps."""
        return 16 * sum(len(r.hypotheses) for r in self._running)

    def _make_room(self, active: list[Hypothesis], full: KvFull) -> tuple[list[Hypothesis], list[Event]]:
        """Send the youngest running request back to the queue, its tokens kept; alone, it ends with the error."""
        youngest = self._running[-1]
        self._close_sequences(youngest)
        self._running.remove(youngest)
        events = []
        if self._running:
            for hypothesis in youngest.hypotheses:
                hypothesis.todo = [*youngest.request.prompt, *hypothesis.tokens]
            self._waiting.insert(0, youngest)
        else:
            events = [Event(youngest.id, h.sample, error=full) for h in youngest.hypotheses]
            self._release(youngest)
        return [h for h in active if h.request_id != youngest.id], events

    # --- one call -------------------------------------------------------------------------------------------------

    def _plan(self, active: list[Hypothesis]) -> list[tuple[Hypothesis, Work]]:
        """Decoding first, with drafts; prefill takes what is left of the step's tokens, at least one piece."""
        budget, leaves = self.step_tokens, 0
        plan: list[tuple[Hypothesis, Work]] = []
        full: KvFull | None = None
        for hypothesis in sorted(active, key=lambda h: len(h.todo) > 1):
            if hypothesis.row is not None:  # a beam that waits for its companions
                continue
            try:
                sequence = hypothesis.sequence = hypothesis.sequence or self.runtime.open()
            except KvFull as error:  # others may end and make room
                full = error
                continue
            if len(hypothesis.todo) == 1:
                hypothesis.draft = draft = self._propose(hypothesis, budget - 1, leaves)
                leaves += 1
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

    def _propose(self, hypothesis: Hypothesis, budget: int, leaves: int) -> Draft:
        if hypothesis.drafter is None or hypothesis.request.drafter is None:
            return NO_DRAFT
        if hypothesis.waiting_for > 1:  # samples are split off a sequence without pending tokens
            return NO_DRAFT
        depth = min(
            hypothesis.request.max_tokens - len(hypothesis.tokens) - 1,
            self.runtime.context_length - hypothesis.position - 1,
        )
        budget = min(budget, hypothesis.request.draft_budget)
        if depth <= 0 or budget <= 0:
            return NO_DRAFT
        draft = hypothesis.drafter.propose(min(budget, depth) if budget else 0)
        draft.check(budget=budget, vocab_size=self.runtime.vocab_size, name=hypothesis.request.drafter.name)
        draft = draft.cut(depth)
        tips = len(draft) - len(set(draft.parents.tolist()) - {-1})
        return draft if leaves + max(tips, 1) <= self.runtime.limits.leaves else NO_DRAFT

    def _digest(self, hypothesis: Hypothesis, item: Work, output: Output) -> list[Event]:
        hypothesis.target_calls += 1
        if item.parents is None and len(item.tokens) < len(hypothesis.todo):
            hypothesis.todo = hypothesis.todo[len(item.tokens) :]
            return []
        if hypothesis.request.beams:
            assert output.logits is not None
            hypothesis.row = output.logits[-1]
            return []
        events = []
        for sibling in self._split(hypothesis):
            events.append(self._emit(sibling, output))
        return events

    def _split(self, hypothesis: Hypothesis) -> list[Hypothesis]:
        """The samples that continue from this prefill: itself and forks of it."""
        count, hypothesis.waiting_for = hypothesis.waiting_for, 1
        family = [hypothesis]
        running = next(r for r in self._running if r.id == hypothesis.request_id)
        for i in range(1, count):
            drafter = hypothesis.drafter.fork() if hypothesis.drafter else None
            family.append(hypothesis.fork(hypothesis.sample + i, self._fork(hypothesis), drafter))
            running.hypotheses.append(family[-1])
        return family

    def _emit(self, hypothesis: Hypothesis, output: Output) -> Event:
        """Walk the draft, append what the target chose, and move the cache."""
        choices: list[Choice] = []

        def pick(node: int, path: tuple[int, ...]) -> int:
            # row 0 belongs to the newest token, row i + 1 to draft node i; a chunk of prefill has one row
            token, choice = hypothesis.choose(output, node + 1, path, self.end_ids)
            choices.append(choice)
            return token

        draft = hypothesis.draft
        accepted, tokens = matched_walk(draft, pick)
        hypothesis.proposed += len(draft)
        hypothesis.accepted += len(accepted)
        emitted, text, reason = 0, "", None
        for token, choice in zip(tokens, choices, strict=True):
            hypothesis.append(token, choice)
            emitted += 1
            reason, piece = self._advance_text(hypothesis, token)
            text += piece
            if reason:
                break
        new = slice(len(hypothesis.tokens) - emitted, None)
        finish = None
        if reason:
            text += hypothesis.stream.finish()
            finish = hypothesis.finished(reason)
            self._drop(hypothesis)
        else:
            if len(draft):
                self.runtime.commit([(hypothesis.sequence, [0, *(node + 1 for node in accepted)])])  # type: ignore[list-item]
            hypothesis.continue_with(tokens[-1])
            if hypothesis.drafter:
                hypothesis.drafter.observe(tokens)
        return Event(
            hypothesis.request_id,
            hypothesis.sample,
            text,
            tuple(hypothesis.tokens[new]),
            tuple(hypothesis.logprobs[new]),
            finish,
            tops=tuple(hypothesis.tops[new]),
        )

    def _advance_text(self, hypothesis: Hypothesis, token: int) -> tuple[str | None, str]:
        """(why the text ends here or None, text that became safe)"""
        request = hypothesis.request
        if token in self.end_ids or token in request.stop_tokens:
            return "stop", ""
        text = hypothesis.stream.push(self.token_bytes(token))
        if hypothesis.stream.stopped:
            return "stop", text
        if len(hypothesis.tokens) >= request.max_tokens:
            return "length", text
        if hypothesis.position >= self.runtime.context_length:
            return "context", text
        return None, text

    def _select_beams(self, running: _Running) -> list[Event]:
        beam = running.beam
        assert beam is not None
        if any(h.row is None for h in running.hypotheses):
            return []
        running.hypotheses, done = beam.select(
            running.hypotheses,
            lambda h: h.fork(h.sample, self._fork(h), None),
            self._close_sequence,
            self._advance_text,
        )
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

    def _fork(self, hypothesis: Hypothesis) -> Sequence | None:
        """A fork of its sequence; None for want of room: it is then computed anew when there is some."""
        if hypothesis.sequence is None:
            return None
        try:
            return self.runtime.fork(hypothesis.sequence)
        except KvFull:
            return None

    # --- endings --------------------------------------------------------------------------------------------------

    def _close_sequence(self, hypothesis: Hypothesis) -> None:
        if hypothesis.sequence is not None:
            self.runtime.close(hypothesis.sequence)
            hypothesis.sequence = None

    def _drop(self, hypothesis: Hypothesis) -> None:
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
