"""Who takes part in a step: admission of waiting requests, policies, and what happens when there is no room."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from likely.decoding.beam import BeamSearch
from likely.decoding.particles import Particles
from likely.decoding.request import Event, Finished, Request
from likely.decoding.sequence_state import SequenceState
from likely.errors import ConstraintError, KvFull
from likely.runtimes.prefix_cache import PrefixCache
from likely.runtimes.protocol import Runtime
from likely.runtimes.protocol import Sequence as Held
from likely.tokenizers.protocol import common_length

ROOM_AHEAD = 16  # tokens kept free per running sample when a request is admitted
WORTH_WAITING = 32  # tokens of a prompt that another request is just computing


@dataclass(eq=False)
class ActiveRequest:
    """A request that waits or runs, with the state of each of its samples."""

    id: int
    request: Request
    states: list[SequenceState]
    select: BeamSearch | Particles | None = None  # what is kept after each step; None: every sample by itself

    @classmethod
    def begin(
        cls, number: int, request: Request, held: Held | None, *, runtime: Runtime, end_ids: frozenset[int]
    ) -> ActiveRequest:
        """One state, from which samples are split off; held: a sequence that keeps the first tokens of the prompt."""
        state = SequenceState(
            number,
            request,
            request.first_sample,
            list(request.prompt[held.length if held else 0 :]),
            request.new_stream(),
            held,
            waiting_for=1 if request.selects else request.samples,
            constraint=request.constraint.fork() if request.constraint else None,
            logits_processors=tuple(p.begin(runtime, request.prompt) for p in request.logits_processors),
        )
        select: BeamSearch | Particles | None = None
        if request.beams:
            select = BeamSearch(request, end_ids | request.stop_tokens)
        elif request.particles:
            select = Particles(request, end_ids)
        return cls(number, request, [state], select)


class PrefillPace:
    """How many tokens of prompts are computed in a step that texts wait for, learned from the steps before.

    most      tokens;  0: any number
    slowdown  what such a step may take, in steps without prompts; 0: `most` alone counts

    A prompt's token counts with the seconds that one took in the last such steps, since it takes longer the longer the
    prompt is; the number grows by at most half from step to step, so that a few tokens that cost nothing prove little.
    """

    LEAST = 4  # tokens, whatever they cost

    def __init__(self, most: int, slowdown: float = 0.0):
        if slowdown and not slowdown > 1:
            raise ValueError(f"prefill_slowdown must be > 1, or 0 for no bound, got {slowdown}")
        self.most, self.slowdown = most, slowdown
        self.last = most if not slowdown else min(2 * self.LEAST, most)  # tokens of the last step
        self._token_s = 0.0
        self._alone_s: float | None = None  # of the step that is running, without its prompts

    def tokens(self, alone_s: float) -> int:
        """For a step that would take so many seconds without prompts, nan where that is not known."""
        if not self.slowdown:
            return self.most
        if not math.isnan(alone_s):
            worth = (self.slowdown - 1) * alone_s / self._token_s if self._token_s else math.inf
            self.last = int(min(max(worth, self.LEAST), 1.5 * self.last, self.most))
            self._alone_s = alone_s
        return self.last

    def record(self, tokens: int, seconds: float) -> None:
        """What a step with so many tokens of prompts took; one for which `tokens` was not asked teaches nothing."""
        if self._alone_s is not None and tokens:
            token_s = max(seconds - self._alone_s, 0.0) / tokens
            self._token_s = (self._token_s + token_s) / 2 if self._token_s else token_s
        self._alone_s = None


class SchedulingPolicy(Protocol):
    """What the scheduler asks before each step."""

    def admits(self, running: int) -> bool: ...  # whether a further request joins the `running` continuations
    def choose(self, ready: Sequence[SequenceState]) -> list[SequenceState]: ...  # some of them, at least one


@dataclass(frozen=True)
class AtMost:
    """A policy: up to `running` texts are written at a time, and those that run all take part in every call."""

    running: int

    def admits(self, running: int) -> bool:
        return running < self.running

    def choose(self, ready: Sequence[SequenceState]) -> list[SequenceState]:
        return list(ready)


@dataclass(eq=False)
class Scheduler:
    """Requests that wait and that run, each in the order of arrival, those that wait by their priority first.

    prefixes  beginnings of texts that were computed before; what it keeps gives way to any text
    One that finds no room for its tokens goes back to the queue, to be computed anew.  Where only one runs, its samples
    are put aside until others of them have ended; a text that is left with all the room and needs more ends there.
    """

    runtime: Runtime
    policy: SchedulingPolicy | None = None
    prefixes: PrefixCache | None = None
    waiting: list[ActiveRequest] = field(default_factory=list)
    running: list[ActiveRequest] = field(default_factory=list)

    def participants(self) -> list[SequenceState]:
        """Who takes part in the next step."""
        self._admit()
        active = [state for each in self.running for state in each.states if not state.put_aside]
        if self.policy and active:
            active = self.policy.choose([state for state in active if state.row is None])
        if len(active) > 1:  # one whose constraint waits for an analysis keeps nobody else waiting
            active = [state for state in active if state.ready and state.row is None]
            if not active:  # all wait: whoever is answered first goes on
                time.sleep(0.001)
        return active

    def add(self, active: ActiveRequest) -> None:
        """Behind all that wait with the same or a smaller priority."""
        at = next((i for i, other in enumerate(self.waiting) if other.request.priority > active.request.priority), None)
        self.waiting.insert(len(self.waiting) if at is None else at, active)

    def _admit(self) -> None:
        """Waiting requests begin in order, while their sequences and prompts fit beside the running ones."""
        while self.waiting:
            if self.policy and not self.policy.admits(sum(len(each.states) for each in self.running)):
                return
            first = self.waiting[0]
            if self._is_being_computed(first):
                return
            looked_for = self._take_prefix(first)
            need = sum(len(state.todo) * (1 + len(state.logits_processors)) for state in first.states)
            ahead = ROOM_AHEAD * sum(len(each.states) for each in self.running)
            if self.running and not self._is_free(need + ahead):
                if looked_for:
                    self.give_up_place(first.states[0])
                return
            try:
                first.states[0].sequence = first.states[0].sequence or self.open()
                request = first.request
                for state in first.states:
                    if state.drafter is None and request.drafter is not None:
                        state.drafter = request.drafter.begin(request.prompt, request.sampling_context(state.sample))
            except KvFull:
                for state in first.states:
                    self.give_up_place(state)
                if self.running:
                    return
                raise
            if looked_for and self.prefixes is not None:
                self.prefixes.count(len(first.request.prompt), first.states[0].shared)
                first.states[0].cached_tokens = first.states[0].shared
            self.running.append(self.waiting.pop(0))

    # --- beginnings that are known --------------------------------------------------------------------------------

    def _is_being_computed(self, active: ActiveRequest) -> bool:
        """Whether a running request is computing a good part of the prompt, which can then be shared."""
        if self.prefixes is None or not self.prefixes.able or active.states[0].sequence is not None:
            return False
        request, known = active.request, None
        for each in self.running:
            computes = any(len(state.todo) > 1 and not state.put_aside for state in each.states)
            if not computes or each.request.cache_salt != request.cache_salt:
                continue
            common = common_length(request.prompt[:-1], each.request.prompt)
            if common >= WORTH_WAITING:
                known = self.prefixes.match(request.prompt[:-1], request.cache_salt) if known is None else known
                if common >= known + WORTH_WAITING:
                    return True
        return False

    def _take_prefix(self, active: ActiveRequest) -> bool:
        """Begin with what the prefix cache keeps of the prompt; whether it was asked."""
        [state, *others] = active.states
        if self.prefixes is None or others or state.sequence is not None or state.logits_processors:
            return False
        request = active.request
        tokens = [*request.prompt, *state.tokens]
        if (held := self.prefixes.fork(tokens, request.cache_salt)) is not None:
            state.sequence, state.shared, state.todo = held, held.length, tokens[held.length :]
        return True

    def keep_prompt(self, state: SequenceState) -> None:
        """The prompt has just been computed: others may begin with it from now on."""
        if self.prefixes is None or state.tokens or state.sequence is None or state.logits_processors:
            return
        request = state.request
        if self.prefixes.match(request.prompt, request.cache_salt) == len(request.prompt):
            return
        try:
            copy = self.runtime.fork(state.sequence)
        except KvFull:
            return
        if self.prefixes.keep(request.prompt, copy, request.cache_salt, shared=state.shared):
            state.shared = len(request.prompt)
        else:
            self.runtime.close(copy)

    def _keep_text(self, state: SequenceState) -> None:
        """The text has ended: its sequence stays for texts that go on from it."""
        if self.prefixes is None or state.sequence is None or state.logits_processors or state.request.selects:
            return
        request, sequence = state.request, state.sequence
        if sequence.pending:
            self.runtime.commit([(sequence, [])])
        tokens = [*request.prompt, *state.tokens][: sequence.length]
        if self.prefixes.keep(tokens, sequence, request.cache_salt, shared=state.shared):
            state.sequence = None

    # --- room -----------------------------------------------------------------------------------------------------

    def _is_free(self, tokens: int) -> bool:
        return self.runtime.free_tokens() >= tokens or (self.prefixes is not None and self.prefixes.make_room(tokens))

    def reclaim(self, full: KvFull) -> bool:
        """Give up what is only kept for later; whether there was any."""
        return self.prefixes is not None and self.prefixes.evict(full)

    def open(self) -> Held:
        try:
            return self.runtime.open()
        except KvFull as full:
            if not self.reclaim(full):
                raise
            return self.runtime.open()

    def owner(self, state: SequenceState) -> ActiveRequest:
        return next(each for each in self.running if each.id == state.request_id)

    # --- want of room ---------------------------------------------------------------------------------------------

    def make_room(self, active: list[SequenceState], full: KvFull) -> tuple[list[SequenceState], list[Event]]:
        """Put off the youngest running request: (who still takes part, the end of texts that had all the room)."""
        youngest = self.running[-1]
        events = self.put_off(youngest, full)
        stays = {id(state) for state in youngest.states if not state.put_aside} if youngest in self.running else set()
        return [state for state in active if state.request_id != youngest.id or id(state) in stays], events

    def put_off(self, active: ActiveRequest, full: KvFull) -> list[Event]:
        """Its tokens are kept: back to the queue, or, alone, its last sample is put aside.

        A single text, or beams and particles, which go on together, end with what they have; a prompt that does not
        fit ends with the error.
        """
        if self.reclaim(full):
            for state in active.states:
                self.give_up_place(state)
            return []
        if len(self.running) > 1:
            for state in active.states:
                self.give_up_place(state)
            self.running.remove(active)
            self.waiting.insert(0, active)
            return []
        going = [state for state in active.states if not state.put_aside]
        if len(going) > 1 and active.select is None:
            self.give_up_place(going[-1])
            going[-1].put_aside = True
            return []
        events = self._end_of_context(active, going, full)
        self.remove_ended()
        return events

    def _end_of_context(self, active: ActiveRequest, going: list[SequenceState], full: KvFull) -> list[Event]:
        if not all(state.tokens for state in going):
            return self._failed(active, full)
        if active.select is None:
            [state] = going
            event = state.end("context")
            self.drop(state)
            return [event]
        try:
            return self.finish(active, active.select.end(active.states, "context"))
        except ConstraintError as error:
            return self._failed(active, error)

    def _failed(self, active: ActiveRequest, error: Exception) -> list[Event]:
        events = [Event(active.id, state.sample, error=error) for state in active.states]
        self.release(active)
        return events

    def finish(self, active: ActiveRequest, done: list[Finished]) -> list[Event]:
        """The end of a request whose texts were chosen among each other."""
        self.release(active)
        first = active.request.first_sample
        return [
            Event(active.id, first + i, each.text, tuple(each.tokens), tuple(each.logprobs), each)
            for i, each in enumerate(done)
        ]

    def give_up_place(self, state: SequenceState) -> None:
        """Close its sequence; everything is to be computed anew."""
        self.close_sequence(state)
        state.todo = [*state.request.prompt, *state.tokens]
        state.row, state.put_aside, state.shared = None, False, 0

    def fork_sequence(self, state: SequenceState) -> Held | None:
        """A fork of its sequence; None for want of room: it is then computed anew when there is some."""
        if state.sequence is None:
            return None
        try:
            return self.runtime.fork(state.sequence)
        except KvFull as full:
            if self.reclaim(full):
                return self.fork_sequence(state)
            return None

    # --- endings --------------------------------------------------------------------------------------------------

    def close_sequence(self, state: SequenceState) -> None:
        for processor in state.logits_processors:
            processor.drop()
        if state.sequence is not None:
            self.runtime.close(state.sequence)
            state.sequence = None

    def drop(self, state: SequenceState) -> None:
        """One sample has ended."""
        self._keep_text(state)
        self.close_sequence(state)
        if state.drafter:
            state.drafter.end()
        owner = self.owner(state)
        owner.states = [other for other in owner.states if other is not state]
        for other in owner.states:
            other.put_aside = False

    def release(self, active: ActiveRequest) -> None:
        """All samples of a request have ended."""
        for state in active.states:
            self.close_sequence(state)
            state.dropped = True
            if state.drafter:
                state.drafter.end()
        active.states = []

    def remove_ended(self) -> None:
        self.running = [each for each in self.running if each.states]

    def cancel(self, number: int) -> list[Event]:
        """End every sample of a request, also those not yet split off, with the text so far."""
        events = []
        for group in (self.running, self.waiting):
            for active in [each for each in group if each.id == number]:
                for state in active.states:
                    events += [state.end("cancelled", state.sample + i) for i in range(state.waiting_for)]
                self.release(active)
                group.remove(active)
        return events

    def close(self) -> None:
        """Drop everything that waits or runs."""
        for active in (*self.running, *self.waiting):
            self.release(active)
        self.running, self.waiting = [], []
