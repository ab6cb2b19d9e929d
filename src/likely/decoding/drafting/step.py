"""Which tokens are drafted in a step: what the drafters propose, what the budget allows, what a constraint forces."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from likely.decoding.constraint import Constraint
from likely.decoding.drafting.budget import ANY, LIMIT, AcceptanceTracker, Controller
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, DraftsTogether
from likely.decoding.sequence_state import SequenceState
from likely.errors import ConstraintError
from likely.runtimes.protocol import Runtime

REJECTION_BUDGET = 16  # drafted tokens per call under rules R and K, unless the request says


@dataclass(eq=False)
class Drafting:
    """Sets the draft of every hypothesis that takes part in a step, and tells drafters what came of it."""

    runtime: Runtime
    controller: Controller
    seconds: float = 0.0  # spent in drafters

    def draft(self, decoding: list[SequenceState], room: int) -> None:
        """Set `draft` of every decoding hypothesis; at most `room` tokens in all, and no more leaves than fit."""
        positions, emitted = len(decoding), float(len(decoding))
        wishes: list[tuple[SequenceState, int]] = []
        copies = 1 + max(
            (len(h.logits_processors) for h in decoding), default=0
        )  # contexts of logits_processors hold the draft, too
        leaves = self.runtime.limits.leaves // copies - len(decoding)
        for hypothesis in decoding:
            hypothesis.draft, hypothesis.drafted = NO_DRAFT, 0
            room -= self._force(hypothesis, room)
        for hypothesis in decoding:
            request, source = hypothesis.request, hypothesis.request.drafter
            if hypothesis.drafter is None or source is None or hypothesis.waiting_for > 1:
                continue  # samples are split off a sequence without pending tokens
            # the depth cap: the target's own token takes the last place
            limit = min(room, self._depth(hypothesis))
            drawn = request.verification != "keyed"
            if request.draft_budget != "auto":
                wish = request.draft_budget
            elif drawn:
                wish = REJECTION_BUDGET  # not timed: tokens shall be a function of the seed
            elif source.free:
                hypothesis.shadow = hypothesis.shadow or AcceptanceTracker(self.controller.of(source.name))
                wish = hypothesis.shadow.wish()
            else:
                wish, kept = self.controller.draft(source.name, limit, positions=positions, emitted=emitted)
                emitted += kept
            wish = min(wish, limit)
            if drawn:  # to drop a draft for what was drawn would bias the text: its room is set aside before
                wish = min(wish, leaves + 1)
                leaves -= max(wish - 1, 0)
            if wish > 0:
                wishes.append((hypothesis, wish))
                if drawn or not source.free:
                    room, positions = room - wish, positions + wish
        started = time.perf_counter()
        for (hypothesis, wish), draft in zip(wishes, self._propose(wishes), strict=True):
            source = hypothesis.request.drafter
            assert source is not None
            draft.check(budget=wish, vocab_size=self.runtime.vocab_size, name=source.name)
            draft = draft.cut(self._depth(hypothesis))
            if hypothesis.request.verification != "keyed":
                hypothesis.draft, hypothesis.drafted = (draft if len(draft) else hypothesis.draft), len(draft)
                continue
            if hypothesis.constraint:
                draft = _permitted(draft, hypothesis.constraint)
            hypothesis.drafted = len(draft)
            if source.free:
                shadow = hypothesis.shadow
                if shadow and hypothesis.request.draft_budget == "auto":
                    shadow.propose(draft)
                    n, kept = self.controller.verify(
                        source.name, draft, room, positions=positions, emitted=emitted, trust=shadow.trust
                    )
                    shadow.verified(n)
                    draft, emitted = draft.first(n), emitted + kept
                elif len(draft) > room:
                    draft = NO_DRAFT
                hypothesis.drafted = len(draft)
                room, positions = room - len(draft), positions + len(draft)
            draft = with_chain(draft, hypothesis.draft.tokens.tolist())
            tips = len(draft) - len(set(draft.parents.tolist()) - {-1})
            if len(draft) and leaves < max(tips - 1, 0):
                continue
            leaves -= max(tips - 1, 0)
            hypothesis.draft = draft
        self.seconds += time.perf_counter() - started

    def tell(self, hypothesis: SequenceState, accepted: list[int], emitted: list[int]) -> None:
        """Drafter and controller learn what was really emitted."""
        source, drafter = hypothesis.request.drafter, hypothesis.drafter
        if drafter is None or source is None:
            return
        drafter.observe(emitted)
        if hypothesis.shadow:
            hypothesis.shadow.observe(emitted)
        if not source.free and hypothesis.drafted:  # what a constraint forced comes behind the drafter's own nodes
            kept = [node for node in accepted if node < hypothesis.drafted]
            self.controller.of(source.name).record(ANY, kept, min(hypothesis.drafted, LIMIT))

    def _force(self, hypothesis: SequenceState, room: int) -> int:
        """Draft what the constraint forces; gives the number of tokens."""
        if hypothesis.constraint is None or hypothesis.request.selects or hypothesis.waiting_for > 1:
            return 0
        if not self.runtime.capabilities.trees:
            return 0
        try:
            chain = hypothesis.constraint.forced()[: max(0, min(room, self._depth(hypothesis)))]
        except ConstraintError:  # too complex an engine's state, say: the choice of the token meets it again
            return 0
        hypothesis.draft = Draft.chain(chain)
        return len(chain)

    def _propose(self, wishes: list[tuple[SequenceState, int]]) -> list[Draft]:
        """Drafts in the order of the wishes; sources that gain from it are asked once for all their sequences."""
        together: dict[int, list[int]] = {}
        drafts = [NO_DRAFT] * len(wishes)
        for i, (hypothesis, wish) in enumerate(wishes):
            source, drafter = hypothesis.request.drafter, hypothesis.drafter
            assert source is not None and drafter is not None and hypothesis.sequence is not None
            if hasattr(drafter, "attach"):  # UsesTarget; asking the protocol costs microseconds for every token
                drafter.attach(self.runtime, hypothesis.sequence, hypothesis.todo[0])
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

    def _depth(self, hypothesis: SequenceState) -> int:
        """Most tokens that a draft of this sequence may be deep."""
        return min(
            hypothesis.request.max_tokens - len(hypothesis.tokens) - 1,
            hypothesis.room(self.runtime.context_length) - 1,
        )


def _permitted(draft: Draft, constraint: Constraint) -> Draft:
    try:
        return permitted(draft, constraint)
    except ConstraintError:
        return NO_DRAFT


def permitted(draft: Draft, constraint: Constraint) -> Draft:
    """The draft without the nodes that the constraint forbids, and what hangs below them.  For fixed drafts."""
    if draft.law is not DraftDistribution.FIXED or not len(draft):
        return draft
    keep = np.zeros(len(draft), np.bool_)
    state = constraint.fork()
    held: list[int] = []  # the nodes that `state` has taken
    parents = draft.parents.tolist()
    for node, token in enumerate(draft.tokens.tolist()):
        parent = parents[node]
        if parent >= 0 and not keep[parent]:
            continue
        path = _path(parents, parent)
        shared = next(
            (i for i, (a, b) in enumerate(zip(held, path, strict=False)) if a != b), min(len(held), len(path))
        )
        state.rollback(len(held) - shared)
        for ancestor in path[shared:]:
            state.advance(int(draft.tokens[ancestor]))
        held = path
        if state.ready() and state.permits(token):
            keep[node] = True
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
