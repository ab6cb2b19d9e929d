"""Which tokens are drafted in a step: what the drafters propose, what the budget allows, what a constraint forces."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from likely.decoding.constraint import Constraint
from likely.decoding.drafting.budget import ANY, LIMIT, AcceptanceTracker, Controller
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, DraftsTogether, common_length
from likely.decoding.request import longest_text
from likely.decoding.sequence_state import SequenceState
from likely.errors import ConstraintError
from likely.runtimes.protocol import Runtime

REJECTION_BUDGET = 16  # drafted tokens per call under rules R and K, unless the request says


@dataclass
class _Call:
    """What the next call holds so far: positions, tokens that it will emit by expectation; and what still fits."""

    positions: int
    emitted: float
    room: int
    leaves: int

    def add(self, nodes: int) -> None:
        self.room, self.positions = self.room - nodes, self.positions + nodes


@dataclass(eq=False)
class DraftPlanner:
    """Sets the draft of every state that takes part in a step, and tells drafters what came of it."""

    runtime: Runtime
    controller: Controller
    seconds: float = 0.0  # spent in drafters

    def plan(self, decoding: list[SequenceState], room: int) -> None:
        """Set `draft` of every decoding state; at most `room` tokens in all, and no more leaves than fit."""
        # the contexts of logits processors hold the draft, too
        copies = 1 + max((len(state.logits_processors) for state in decoding), default=0)
        call = _Call(len(decoding), float(len(decoding)), room, self.runtime.limits.leaves // copies - len(decoding))
        for state in decoding:
            state.draft, state.drafted = NO_DRAFT, 0
            call.room -= self._force(state, call.room)
        wishes = [(state, wish) for state in decoding if (wish := self._wish(state, call)) > 0]
        started = time.perf_counter()
        for (state, wish), draft in zip(wishes, self._propose(wishes), strict=True):
            self._set(state, wish, draft, call)
        self.seconds += time.perf_counter() - started

    def _wish(self, state: SequenceState, call: _Call) -> int:
        """How many tokens to ask this state's drafter for."""
        request, source = state.request, state.request.drafter
        if state.drafter is None or source is None or state.waiting_for > 1:
            return 0  # samples are split off a sequence without pending tokens
        limit = min(call.room, self._depth(state))
        sampled = request.verification != "keyed"
        if request.draft_budget != "auto":
            wish = request.draft_budget
        elif sampled:
            wish = REJECTION_BUDGET  # not timed: tokens shall be a function of the seed
        elif source.free:
            state.tracker = state.tracker or AcceptanceTracker(self.controller.of(source.name))
            wish = state.tracker.wish()
        else:
            wish, kept = self.controller.draft(source.name, limit, positions=call.positions, emitted=call.emitted)
            call.emitted += kept
        wish = min(wish, limit)
        if sampled:  # to drop a draft for what was sampled would bias the text: its room is set aside before
            wish = min(wish, call.leaves + 1)
            call.leaves -= max(wish - 1, 0)
        if wish > 0 and (sampled or not source.free):
            call.add(wish)
        return wish

    def _set(self, state: SequenceState, wish: int, draft: Draft, call: _Call) -> None:
        """Take what the drafter proposed, as far as depth, constraint, budget and room allow."""
        request, source = state.request, state.request.drafter
        assert source is not None
        draft.check(budget=wish, vocab_size=self.runtime.vocab_size, name=source.name)
        draft = draft.cut(self._depth(state))
        if request.verification != "keyed":
            state.draft, state.drafted = (draft if len(draft) else state.draft), len(draft)
            return
        if state.constraint:
            draft = permitted(draft, state.constraint)
        if source.free:
            tracker = state.tracker
            if tracker and request.draft_budget == "auto":
                tracker.propose(draft)
                n, kept = self.controller.verify(
                    source.name, draft, call.room, positions=call.positions, emitted=call.emitted, trust=tracker.trust
                )
                tracker.verified(n)
                draft = draft.first(n)
                call.emitted += kept
            elif len(draft) > call.room:
                draft = NO_DRAFT
            call.add(len(draft))
        state.drafted = len(draft)
        draft = with_chain(draft, state.draft.tokens.tolist())
        tips = len(draft) - len(set(draft.parents.tolist()) - {-1})
        if len(draft) and call.leaves < max(tips - 1, 0):
            return
        call.leaves -= max(tips - 1, 0)
        state.draft = draft

    def record(self, state: SequenceState, accepted: list[int], emitted: list[int]) -> None:
        """Drafter and controller learn what was really emitted."""
        source, drafter = state.request.drafter, state.drafter
        if drafter is None or source is None:
            return
        drafter.observe(emitted)
        if state.tracker:
            state.tracker.observe(emitted)
        if not source.free and state.drafted:  # what a constraint forced comes behind the drafter's own nodes
            kept = [node for node in accepted if node < state.drafted]
            self.controller.of(source.name).record(ANY, kept, min(state.drafted, LIMIT))

    def _force(self, state: SequenceState, room: int) -> int:
        """Draft what the constraint forces; gives the number of tokens."""
        if state.constraint is None or state.request.selects or state.waiting_for > 1:
            return 0
        if not self.runtime.capabilities.trees:
            return 0
        try:
            chain = state.constraint.forced()[: max(0, min(room, self._depth(state)))]
        except ConstraintError:  # too complex an engine's state, say: the choice of the token meets it again
            return 0
        state.draft = Draft.chain(chain)
        return len(chain)

    def _propose(self, wishes: list[tuple[SequenceState, int]]) -> list[Draft]:
        """Drafts in the order of the wishes; sources that gain from it are asked once for all their sequences."""
        together: dict[int, list[int]] = {}
        drafts = [NO_DRAFT] * len(wishes)
        for i, (state, wish) in enumerate(wishes):
            source, drafter = state.request.drafter, state.drafter
            assert source is not None and drafter is not None and state.sequence is not None
            if hasattr(drafter, "attach"):  # UsesTarget; asking the protocol costs microseconds for every token
                drafter.attach(self.runtime, state.sequence, state.todo[0])
            if hasattr(source, "propose_many"):
                together.setdefault(id(source), []).append(i)
                continue
            started = time.perf_counter()
            drafts[i] = drafter.propose(wish)
            if not source.free:
                self.controller.of(source.name).time(len(drafts[i]) or wish, time.perf_counter() - started)
        for indices in together.values():
            source = wishes[indices[0]][0].request.drafter
            assert isinstance(source, DraftsTogether)
            started = time.perf_counter()
            found = source.propose_many([wishes[i][0].drafter for i in indices], [wishes[i][1] for i in indices])
            each = (time.perf_counter() - started) / len(indices)
            for i, draft in zip(indices, found, strict=True):
                drafts[i] = draft
                self.controller.of(source.name).time(len(draft) or wishes[i][1], each)
        return drafts

    def _depth(self, state: SequenceState) -> int:
        """Most tokens that a draft of this sequence may be deep: the target's own token takes the last place."""
        return min(
            state.request.max_tokens - len(state.tokens) - 1,
            state.room(longest_text(self.runtime)) - 1,
        )


def permitted(draft: Draft, constraint: Constraint) -> Draft:
    """The draft without the nodes that the constraint forbids, and what hangs below them.  For fixed drafts."""
    if draft.distribution is not DraftDistribution.FIXED or not len(draft):
        return draft
    keep = np.zeros(len(draft), np.bool_)
    state = constraint.fork()
    held: list[int] = []  # the nodes that `state` has taken
    parents = draft.parents.tolist()
    try:
        for node, token in enumerate(draft.tokens.tolist()):
            parent = parents[node]
            if parent >= 0 and not keep[parent]:
                continue
            path = _path(parents, parent)
            shared = common_length(held, path)
            state.rollback(len(held) - shared)
            for ancestor in path[shared:]:
                state.advance(int(draft.tokens[ancestor]))
            held = path
            if state.ready() and state.permits(token):
                keep[node] = True
    except ConstraintError:
        return NO_DRAFT
    return draft if keep.all() else draft.only(keep)


def with_chain(draft: Draft, chain: list[int]) -> Draft:
    """The draft and, where it does not say so already, these tokens one after the other."""
    if not chain:
        return draft
    children = draft.children()
    node, known = -1, 0
    while known < len(chain) and (child := children.get(node, {}).get(chain[known])) is not None:
        node, known = child, known + 1
    rest = chain[known:]
    if not rest:
        return draft
    first = len(draft)
    parents = [node, *range(first, first + len(rest) - 1)]
    return Draft(
        np.concatenate([draft.tokens, np.asarray(rest, np.int64)]),
        np.concatenate([draft.parents, np.asarray(parents, np.int64)]),
        match=draft.match,
        expected=draft.expected,
    )


def _path(parents: list[int], node: int) -> list[int]:
    """Nodes from the root down to this one."""
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]
