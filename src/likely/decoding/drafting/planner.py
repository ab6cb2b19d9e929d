"""Which tokens are drafted in a step: what the drafters propose, what the budget allows, what a constraint forces."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from likely.decoding.constraint import Constraint
from likely.decoding.drafting.budget.acceptance import (
    LIMIT,
    OWN,
    AcceptanceEstimate,
    AcceptanceTracker,
    match_class,
)
from likely.decoding.drafting.budget.controller import Candidate, Controller, PlannedCall
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, DraftsTogether
from likely.decoding.request import longest_text
from likely.decoding.sequence_state import SequenceState
from likely.errors import ConstraintError
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import common_length

FORCED, FORCED_MATCH = "constraint", 128  # drafts of what a constraint forces, and how far they are trusted untried
REJECTION_BUDGET = 16  # drafted tokens per call under rules R and K, unless the request says


@dataclass(eq=False)
class DraftPlanner:
    """Sets the draft of every state that takes part in a step, and tells drafters what came of it."""

    runtime: Runtime
    controller: Controller
    clock: Callable[[], float] = time.perf_counter
    seconds: float = 0.0  # spent in drafters

    def plan(self, decoding: list[SequenceState], room: int, *, prefill: int = 0, others: int = 0) -> None:
        """Set `draft` of every decoding state; at most `room` tokens in all, and no more leaves than fit.

        prefill  tokens of prompts that the same call reads;  others: texts that do not decode yet and wait for its end
        """
        # the contexts of logits processors hold the draft, too
        copies = 1 + max((len(state.logits_processors) for state in decoding), default=0)
        call = PlannedCall(
            positions=len(decoding),
            emitted=float(len(decoding)),
            room=room,
            leaves=self.runtime.limits.leaves // copies - len(decoding),
            sequences=max(len(decoding), 1),
            context=sum(state.sequence.length for state in decoding if state.sequence is not None),
            prefill=prefill,
            others=others,
        )
        for state in decoding:
            state.draft, state.drafted = NO_DRAFT, 0
            self._force(state, call)
        wishes = self._wishes(decoding, call)
        started = self.clock()
        drafts = self._propose(wishes)
        self._set(wishes, drafts, call)
        self.seconds += self.clock() - started

    def _wishes(self, decoding: list[SequenceState], call: PlannedCall) -> list[tuple[SequenceState, int]]:
        """The states whose drafters are asked, and for how many tokens."""
        wishes: dict[int, int] = {}
        chosen: dict[str, list[tuple[int, int]]] = {}  # by source: (state, most tokens) whose number follows from costs
        for i, state in enumerate(decoding):
            request, source = state.request, state.request.drafter
            if state.drafter is None or source is None or state.waiting_for > 1:
                continue  # samples are split off a sequence without pending tokens
            depth = self._depth(state)  # bounds the nodes only where their number is chosen by what calls cost
            sampled, timed = request.verification != "keyed", request.most_drafted is None
            limit = min(call.room, depth) if depth <= 0 or (timed and not sampled) else call.room
            if request.most_drafted is not None:
                wish = request.most_drafted
            elif sampled:
                wish = REJECTION_BUDGET  # not timed: tokens shall be a function of the seed
            elif source.free:
                state.tracker = state.tracker or AcceptanceTracker(self.controller.of(source.name))
                wish = state.tracker.wish()
            else:
                chosen.setdefault(source.name, []).append((i, limit))
                continue
            wish = min(wish, limit)
            if sampled:  # to drop a draft for what was sampled would bias the text: its room is set aside before
                wish = min(wish, call.leaves + 1)
                call.leaves -= max(wish - 1, 0)
            if wish > 0 and (sampled or not source.free):
                call.add(wish)
            wishes[i] = wish
        for name, asked in chosen.items():
            lengths, kept = self.controller.draft(
                name, [limit for _, limit in asked], call, runs=[self._runs(decoding[i], name) for i, _ in asked]
            )
            call.emitted += kept
            call.add(sum(lengths))
            wishes |= {i: length for (i, _), length in zip(asked, lengths, strict=True)}
        return [(decoding[i], wish) for i, wish in sorted(wishes.items()) if wish > 0]

    def _runs(self, state: SequenceState, source: str) -> AcceptanceEstimate:
        """What is known of this text's drafts; before any, what is known of the source's."""
        state.runs = state.runs or AcceptanceEstimate(self.controller.of(source).runs, weight=OWN)
        return state.runs

    def _set(self, wishes: list[tuple[SequenceState, int]], drafts: list[Draft], call: PlannedCall) -> None:
        """Take what the drafters proposed, as far as depth, constraint, budget and room allow."""
        taken: list[tuple[SequenceState, Draft]] = []
        timed: list[tuple[int, AcceptanceTracker]] = []  # place among those taken
        candidates: list[Candidate] = []
        for (state, wish), proposed in zip(wishes, drafts, strict=True):
            request, source = state.request, state.request.drafter
            assert source is not None
            proposed.check(budget=wish, vocab_size=self.runtime.vocab_size, name=source.name)
            draft = proposed.cut(self._depth(state))
            if request.verification != "keyed":
                state.draft, state.drafted = (draft if len(draft) else state.draft), len(draft)
                continue
            if state.constraint:
                draft = permitted(draft, state.constraint)
            if source.free and request.most_drafted is None and state.tracker:
                state.tracker.propose(draft)
                candidates.append(Candidate(source.name, draft, call.room, state.tracker.trust))
                timed.append((len(taken), state.tracker))
            elif source.free:
                draft = draft if len(draft) <= call.room else NO_DRAFT
                call.add(len(draft))
            taken.append((state, draft))
        lengths, kept = self.controller.verify(candidates, call)
        call.emitted += kept
        for (i, tracker), n in zip(timed, lengths, strict=True):
            state, draft = taken[i]
            tracker.verified(n)
            taken[i] = state, draft.first(n)
            call.add(n)
        for state, draft in taken:
            state.drafted = len(draft)
            draft = with_chain(draft, state.draft.tokens.tolist())
            tips = len(draft) - len(set(draft.parents.tolist()) - {-1})
            if len(draft) and call.leaves < max(tips - 1, 0):
                continue
            call.leaves -= max(tips - 1, 0)
            state.draft = draft

    def record(self, state: SequenceState, accepted: list[int], emitted: list[int]) -> None:
        """Drafter and controller learn what was really emitted."""
        source, drafter = state.request.drafter, state.drafter
        if len(state.draft) and not state.drafted:
            self.controller.of(FORCED).record(match_class(state.draft), accepted, min(len(state.draft), LIMIT))
        if drafter is None or source is None:
            return
        drafter.observe(emitted)
        if state.tracker:
            state.tracker.observe(emitted)
        if not source.free and state.drafted:  # what a constraint forced comes behind the drafter's own nodes
            kept = [node for node in accepted if node < state.drafted]
            self.controller.of(source.name).judge(state.draft, kept, state.drafted, state.runs)

    def _force(self, state: SequenceState, call: PlannedCall) -> None:
        """Draft what the constraint forces, as much of it as pays."""
        request = state.request
        if state.constraint is None or request.selects or state.waiting_for > 1 or request.most_drafted == 0:
            return
        if not self.runtime.capabilities.trees:
            return
        most = LIMIT if request.most_drafted is None else request.most_drafted
        try:
            chain = state.constraint.forced()[: max(0, min(call.room, self._depth(state), most))]
        except ConstraintError:  # too complex an engine's state, say: the choice of the token meets it again
            return
        draft = Draft.chain(chain, match=FORCED_MATCH)
        timed = request.most_drafted is None and request.verification == "keyed" and self.controller.costs.known
        if timed:  # the engine's guess of the tokens is mostly, and not always, what the model writes
            [n], kept = self.controller.verify([Candidate(FORCED, draft, call.room)], call)
            draft = draft.first(n)
            call.emitted += kept
        state.draft = draft
        call.add(len(draft))

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
            started = self.clock()
            drafts[i] = drafter.propose(wish)
            if not source.free:
                nodes = len(drafts[i]) or wish
                self.controller.of(source.name).time(nodes, nodes, self.clock() - started)
        for indices in together.values():
            source = wishes[indices[0]][0].request.drafter
            assert isinstance(source, DraftsTogether)
            started = self.clock()
            found = source.propose_many([wishes[i][0].drafter for i in indices], [wishes[i][1] for i in indices])
            sizes = [len(draft) or wishes[i][1] for i, draft in zip(indices, found, strict=True)]
            record = self.controller.of(source.name)
            record.together = True
            record.time(max(sizes), sum(sizes), self.clock() - started)
            for i, draft in zip(indices, found, strict=True):
                drafts[i] = draft
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
