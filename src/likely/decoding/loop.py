"""The loop: many requests share one runtime; each step is one call of the model.

Plain decoding is speculation with zero drafts; prefill is a long piece of work: there is no second path.
"""

from __future__ import annotations

import itertools
import math
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.constraint import LogitsProcessor
from likely.decoding.drafting.budget.controller import Controller
from likely.decoding.drafting.planner import DraftPlanner
from likely.decoding.drafting.protocol import NO_DRAFT
from likely.decoding.request import Event, Request, longest_text
from likely.decoding.scheduling import ActiveRequest, PrefillPace, Scheduler, SchedulingPolicy
from likely.decoding.sequence_state import SequenceState
from likely.decoding.text import TextStream, runs_in_circles
from likely.errors import ConstraintError, KvFull, LikelyError
from likely.runtimes.prefix_cache import PrefixCache
from likely.runtimes.protocol import Output, Runtime, Sequence, Want, Work


@dataclass(frozen=True)
class CallCounts:
    """What one call computed: tokens in all, texts that decoded, and guesses for them."""

    tokens: int
    decoding: int
    drafted: int


@dataclass(eq=False)
class Loop:
    """`add` requests, `step` until `idle`; events come in order per sample.

    token_bytes  bytes of a token's text (b"" for control tokens);  end_ids  tokens that end a text
    step_tokens  most tokens computed in one step (long prompts are prefilled in pieces beside running requests)
    controller   what is known about call costs and drafters; loops of one model share it
    policy       who takes part in a step; None: everyone
    prefixes     beginnings of texts that stay computed; loops of one model may share it
    prefill_tokens  most tokens of prompts in a step in which others decode, whose next token waits for it; 0: no bound
    prefill_slowdown  fewer of them, so that such a step takes at most this many times one without prompts; 0: no bound
    clock        seconds, by which calls and drafters are timed

    One thread calls `step`; `add` and `cancel` may come from any.  A text that cannot go on for want of room waits and
    is recomputed later (its tokens are kept); one that has all the room and needs more ends with reason "context".
    """

    runtime: Runtime
    token_bytes: Callable[[int], bytes]
    end_ids: frozenset[int]
    step_tokens: int = 0
    controller: Controller = field(default_factory=Controller)
    policy: SchedulingPolicy | None = None
    prefixes: PrefixCache | None = None
    prefill_tokens: int = 0
    prefill_slowdown: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    verify_s: float = 0.0  # spent in calls of the target with all that follows from them
    _drafts_fit: bool = True  # False for the step after one in which guesses found no room
    _inbox: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    _ids: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.last_call: CallCounts | None = None  # of the last step; None: it had nothing to do
        self.step_tokens = self.step_tokens or self.runtime.limits.tokens_per_call
        self.planner = DraftPlanner(self.runtime, self.controller, self.clock)
        self.scheduler = Scheduler(self.runtime, self.policy, self.prefixes)
        self.pace = PrefillPace(self.prefill_tokens, self.prefill_slowdown)

    @property
    def draft_s(self) -> float:
        """Seconds spent in drafters."""
        return self.planner.seconds

    def add(self, request: Request, *, held: Sequence | None = None) -> int:
        """Queue a request; returns its id.  Raises if it can never run here.

        held  a sequence of this runtime that keeps the first tokens of the prompt (not all); the loop owns it from now
        """
        request.check_runtime(self.runtime, held)
        if request.backspace_id in self.end_ids:
            raise ValueError(f"backspace_id {request.backspace_id} is a token that ends a text of this model")
        request_id = next(self._ids)
        self._inbox.put(("add", request_id, (request, held)))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Stop a request; its samples end with reason "cancelled" and the text so far."""
        self._inbox.put(("cancel", request_id, None))

    @property
    def idle(self) -> bool:
        return not (self.scheduler.running or self.scheduler.waiting) and self._inbox.empty()

    def step(self) -> list[Event]:
        """One call of the model (none if nothing is to be done); other threads may have theirs between two steps."""
        with self.runtime.turn:
            return self._step()

    def _step(self) -> list[Event]:
        events = self._drain()
        self.last_call = None
        active = self.scheduler.participants()
        if not active:
            return events
        drafts, self._drafts_fit = self._drafts_fit, True
        while True:
            try:
                work = self._plan(active, drafts=drafts)
                beside = self._processor_work(work)
                context = sum(item.sequence.length for _, item in work)
                started = self.clock()
                outputs = self.runtime.forward(
                    [item for _, item in work] + [item for _, items in beside for item in items]
                )
                break
            except KvFull as full:
                if self.scheduler.reclaim(full):
                    continue
                if drafts:  # guesses must not cut a text short that has room without them
                    drafts = False
                    continue
                active, ended = self.scheduler.make_room(active, full)
                events += ended
                if not active:
                    return events
        decoding = [state for state, _ in work if len(state.todo) == 1]
        tokens, drafted = sum(len(item.tokens) for _, item in work), sum(len(state.draft) for state in decoding)
        self.last_call = CallCounts(tokens, len(decoding), drafted)
        at = len(work)
        for processor, items in beside:
            processor.read(outputs[at : at + len(items)])
            at += len(items)
        for (state, item), output in zip(work, outputs[: len(work)], strict=True):
            # a sibling sample may have ended the request with an error, or found no room
            if not state.dropped and state.sequence is not None:
                events += self._receive(state, item, output)
        self._record_cost(work, self.clock() - started, context)
        for active_request in list(self.scheduler.running):
            if active_request.select:
                events += self._select(active_request)
        self.scheduler.remove_ended()
        return events

    def close(self) -> None:
        """Drop everything."""
        with self.runtime.turn:
            self._drain()
            self.scheduler.close()

    def _drain(self) -> list[Event]:
        """What came in since the last step: new requests wait, cancelled ones end."""
        events = []
        while not self._inbox.empty():
            verb, number, added = self._inbox.get()
            if verb == "cancel":
                events += self.scheduler.cancel(number)
                continue
            request, held = added
            try:
                self.scheduler.add(
                    ActiveRequest.begin(number, request, held, runtime=self.runtime, end_ids=self.end_ids)
                )
            except (LikelyError, ValueError) as error:  # a logits processor that cannot follow this prompt
                events.append(Event(number, request.first_sample, error=error))
                if held is not None:
                    self.runtime.close(held)
        return events

    # --- one call -------------------------------------------------------------------------------------------------

    def _plan(self, active: list[SequenceState], *, drafts: bool) -> list[tuple[SequenceState, Work]]:
        """Decoding first, with drafts; prefill takes what is left of the step's tokens, at least one piece."""
        budget = self.step_tokens
        plan: list[tuple[SequenceState, Work]] = []
        full: KvFull | None = None
        ready: list[tuple[SequenceState, Sequence]] = []
        for state in sorted(active, key=lambda state: len(state.todo) > 1):
            if state.row is not None:  # a beam or particle that waits for its companions
                continue
            try:
                sequence = state.sequence = state.sequence or self.scheduler.open()
            except KvFull as error:  # others may end and make room
                full = error
                continue
            ready.append((state, sequence))
        decoding = [state for state, _ in ready if len(state.todo) == 1]
        reading = sum(len(state.todo) for state, _ in ready if len(state.todo) > 1)
        self.planner.plan(
            decoding,
            budget - len(decoding) if drafts else 0,
            prefill=min(reading, self.pace.last or reading, max(budget - len(decoding), 0)),
            others=len(ready) - len(decoding) + len(self.scheduler.waiting),
        )
        if decoding and reading and self.prefill_tokens:
            positions = len(decoding) + sum(len(state.draft) for state in decoding)
            alone_s = self._seconds_of(decoding, positions) if self.prefill_slowdown else math.nan
            budget = min(budget, positions + self.pace.tokens(alone_s))
        for state, sequence in ready:
            if len(state.todo) == 1:
                draft = state.draft
                budget -= 1 + len(draft)
                if len(draft):
                    tokens = np.concatenate([[state.todo[0]], draft.tokens])
                    parents = np.concatenate([[-1], draft.parents + 1])
                    plan.append((state, Work(sequence, tokens, parents, want=state.want())))
                else:
                    plan.append((state, Work(sequence, np.array(state.todo), want=state.want())))
            elif budget > 0 or not plan:
                chunk = state.todo[: max(budget, 1)]
                budget -= len(chunk)
                state.draft = NO_DRAFT
                want = state.want() if len(chunk) == len(state.todo) else Want.NONE
                plan.append((state, Work(sequence, np.array(chunk), want=want)))
        if full and not plan:
            raise full
        return plan

    def _seconds_of(self, decoding: list[SequenceState], positions: int) -> float:
        """Predicted seconds of a call for these texts alone, with their drafts; nan: nothing is known of calls."""
        costs = self.controller.costs
        if not costs.known:
            return math.nan
        context = sum(state.sequence.length for state in decoding if state.sequence is not None)
        return float(costs.seconds(np.array([positions]), sequences=len(decoding), context=context)[0])

    def _processor_work(self, work: list[tuple[SequenceState, Work]]) -> list[tuple[LogitsProcessor, list[Work]]]:
        """What logits processors want computed in the same call: for texts whose rows come out of it."""
        return [
            (processor, items)
            for state, item in work
            if state.logits_processors and item.want is not Want.NONE
            for processor in state.logits_processors
            if (items := processor.work(item))
        ]

    def _record_cost(self, work: list[tuple[SequenceState, Work]], seconds: float, context: int) -> None:
        """Learn what the call cost, if every row that it computed was looked at, as in verification."""
        self.verify_s += seconds
        assert self.last_call is not None
        positions = self.last_call.tokens
        self.pace.record(positions - self.last_call.decoding - self.last_call.drafted, seconds)
        if any(state.logits_processors for state, _ in work):  # whose own contexts are part of the time
            return
        if all(item.want.rows == "all" or len(item.tokens) == 1 for _, item in work):
            self.controller.costs.record(positions, seconds, sequences=len(work), context=context)
        elif len(work) == 1:
            self.controller.costs.record_prefill(positions, seconds)

    def _receive(self, state: SequenceState, item: Work, output: Output) -> list[Event]:
        """Of one piece of work: prefill goes on, the row is kept for a selection, or tokens are emitted."""
        if item.parents is None and len(item.tokens) < len(state.todo):
            state.prefill_calls += 1
            state.todo = state.todo[len(item.tokens) :]
            return []
        state.target_calls += 1
        if item.parents is None and len(item.tokens) > 1:
            self.scheduler.keep_prompt(state)
        if state.request.selects:
            assert output.logits is not None
            state.row = output.logits[-1]
            return []
        events = []
        for sibling in self._split(state):
            try:
                events += self._emit(sibling, output)
            except ConstraintError as error:
                self.scheduler.release(self.scheduler.owner(state))
                return [*events, Event(state.request_id, sibling.sample, error=error)]
            except KvFull as full:  # of a logits processor's own context
                if len(state.draft):  # once more without guesses
                    self.scheduler.give_up_place(state)
                    self._drafts_fit = False
                    return events
                return [*events, *self.scheduler.put_off(self.scheduler.owner(state), full)]
        return events

    def _split(self, state: SequenceState) -> list[SequenceState]:
        """The samples that continue from this prefill: itself and forks of it."""
        count, state.waiting_for = state.waiting_for, 1
        family = [state]
        owner = self.scheduler.owner(state)
        for i in range(1, count):
            context = state.request.sampling_context(state.sample + i)
            drafter = state.drafter.fork(context) if state.drafter else None
            family.append(state.fork(state.sample + i, self.scheduler.fork_sequence(state), drafter))
            owner.states.append(family[-1])
        return family

    def _emit(self, state: SequenceState, output: Output) -> list[Event]:
        """Walk the draft, append what the target chose, and move the cache; no event where nothing is certain yet."""
        draft = state.draft
        accepted, tokens, choices = state.choose(output, self.end_ids)
        state.proposed += len(draft)
        before = len(state.tokens)
        text, reason = "", None
        deletion = None
        for token, choice in zip(tokens, choices, strict=True):
            if state.deletes and token == state.request.backspace_id:  # always the last one
                deletion = choice
                break
            state.append(token, choice)
            reason, piece = self._advance_text(state, token)
            text += piece
            if reason:
                break
        if state.constraint and (over := before + len(tokens) - len(state.tokens)):
            state.constraint.rollback(over)  # it has seen the tokens behind the end
        new = slice(before, None)
        state.rounds.append(min(len(accepted), len(state.tokens) - before))
        self.planner.record(state, accepted, state.tokens[new])
        for processor in state.logits_processors:
            processor.advance(state.tokens[new], [0, *(node + 1 for node in accepted)] if len(draft) else [])
        if len(draft):
            kept = [0, *(node + 1 for node in accepted[: len(state.tokens) - before])]
            self.runtime.commit([(state.sequence, kept)])  # type: ignore[list-item]
        if deletion is not None and not reason:
            length = state.delete_last(deletion.logprob, self._text_of(state, state.tokens[:-1]))
            if state.sequence is not None:
                self.runtime.truncate(state.sequence, length)
        elif not reason:
            state.continue_with(tokens[-1])
        if state.deletes and not reason and len(state.actions) >= state.request.most_actions:
            reason = "length"
        last = state.end(reason) if reason else None
        if last:
            self.scheduler.drop(state)
        if state.deletes:
            return [last] if last else []
        return [
            Event(
                state.request_id,
                state.sample,
                text + (last.text if last else ""),
                tuple(state.tokens[new]),
                tuple(state.logprobs[new]),
                last.finish if last else None,
                tops=tuple(state.tops[new]),
                entropies=tuple(state.entropies[new]),
                drafted=tuple(i < state.rounds[-1] for i in range(len(state.tokens) - before)),
            )
        ]

    def _text_of(self, state: SequenceState, tokens: list[int]) -> TextStream:
        """A stream that has taken these tokens."""
        stream = state.request.new_stream()
        for token in tokens:
            stream.push(self.token_bytes(token))
        return stream

    def _advance_text(self, state: SequenceState, token: int) -> tuple[str | None, str]:
        """(why the text ends here or None, text that became safe)"""
        request = state.request
        if token in self.end_ids:
            return "stop", ""
        if token in request.stop_tokens:
            if state.constraint:
                state.constraint.rollback(1)  # it is no part of the text
            return "stop", ""
        text = state.stream.push(self.token_bytes(token))
        if state.stream.stopped:
            return "stop", text
        if len(state.tokens) >= request.max_tokens:
            return "length", text
        may_end = state.constraint is None and len(state.tokens) >= request.min_tokens
        if request.stop_repetition and may_end and runs_in_circles(state.tokens):
            return "repetition", text
        if state.room(longest_text(self.runtime)) <= 0:
            return "context", text
        return None, text

    def _select(self, active: ActiveRequest) -> list[Event]:
        """Beams or particles choose who goes on, once all of them have their rows."""
        select = active.select
        assert select is not None
        if any(state.row is None for state in active.states):
            return []
        try:
            active.states, done = select.select(
                active.states,
                lambda state: state.fork(state.sample, self.scheduler.fork_sequence(state), None),
                self.scheduler.close_sequence,
                self._advance_text,
            )
        except ConstraintError as error:
            self.scheduler.release(active)
            return [Event(active.id, active.request.first_sample, error=error)]
        except KvFull as full:  # of a logits processor's own context
            return self.scheduler.put_off(active, full)
        if done is None:
            return []
        return self.scheduler.finish(active, done)
