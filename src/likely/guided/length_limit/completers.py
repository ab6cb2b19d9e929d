"""How a text can be completed in few tokens: what `Closing` asks before the budget runs out.

A closer knows one completion of the text so far (`plan`).  Its token count, an upper bound of what is needed, decides
which tokens still fit.  The first token of a fewest-token spelling of the plan always fits, so a text never gets stuck.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from likely.decoding.constraint import Mask, mask_of, members, pack
from likely.guided.engines.automaton import UNREACHABLE, ByteAutomaton
from likely.guided.engines.reference import TokenSteps
from likely.guided.length_limit.search import find_completion, search_completion
from likely.guided.length_limit.spelling import UNWRITABLE, Spelling

CANDIDATES = 256  # where more tokens are allowed close to the end, so many are looked at: those of the lowest ids
CHECKED = 1024  # the same, farther from the end
STEPS = 50_000  # bytes of completions that are looked for after the tokens of one place
PLAIN_GROWTH = 16  # tokens that one inside a string adds at most to what is needed (escapes, cut characters)
END = 256  # the end token of the vocabulary of bytes


class Closer(Protocol):
    """Follows one text.

    needed  tokens that complete it, UNWRITABLE if none are known;  plan  the bytes of that completion
    """

    @property
    def needed(self) -> int: ...
    @property
    def plan(self) -> bytes: ...

    def roomy(self, budget: int) -> bool:
        """Whether every token leaves at most `budget` to be needed."""
        ...

    def within(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        """(the tokens of `mask` after which at most `budget` complete the text, whether none is missing)"""
        ...

    def needed_after(self, text: bytes) -> int: ...
    def take(self, text: bytes) -> None: ...
    def undo(self, n: int) -> None: ...
    def fork(self) -> Closer: ...


class AutomatonCloser:
    """Exact distances in bytes, spelled in the fewest tokens; every token is decided, at every budget."""

    def __init__(self, steps: TokenSteps, spelling: Spelling):
        self.steps, self.spelling = steps, spelling
        self._distance = steps.automaton.distances(spelling.usable)
        self._usable = spelling.usable
        self._ceiling = int(self._distance.max())
        self._needed: dict[int, int] = {}
        self._states = [0]

    @property
    def automaton(self) -> ByteAutomaton:
        return self.steps.automaton

    @property
    def plan(self) -> bytes:
        return self._completion(self._states[-1]) or b""

    @property
    def needed(self) -> int:
        return self._tokens(self._states[-1])

    def _completion(self, state: int) -> bytes | None:
        """The shortest in bytes, and of these the first in byte order: so its end is the completion further on."""
        if self._distance[state] >= UNREACHABLE:
            return None
        out = bytearray()
        while self._distance[state]:
            row = self.automaton.table[state]
            nearer = (row >= 0) & self._usable & (self._distance[row] == self._distance[state] - 1)
            out.append(int(np.argmax(nearer)))
            state = int(row[out[-1]])
        return bytes(out)

    def _tokens(self, state: int) -> int:
        if state not in self._needed:
            text = self._completion(state)
            self._needed[state] = UNWRITABLE if text is None else self.spelling.fewest(text)
        return self._needed[state]

    def _fits(self, state: int, budget: int) -> bool:
        """No completion takes more tokens than bytes."""
        return bool(self._distance[state] <= budget) or self._tokens(state) <= budget

    def roomy(self, budget: int) -> bool:
        return budget >= self._ceiling

    def within(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        if self.roomy(budget):
            return mask, True
        after = self.steps.after(self._states[-1])
        ids = members(mask)
        states, which = np.unique(after[ids], return_inverse=True)
        fits = np.array(
            [s >= 0 and (self._distance[s] <= budget or self._tokens(s) <= budget) for s in states.tolist()]
        )
        chosen = np.zeros(self.spelling.vocabulary.size, np.bool_)
        chosen[ids] = fits[which]
        return pack(chosen), True

    def needed_after(self, text: bytes) -> int:
        state = self.automaton.walk(self._states[-1], text)
        return UNWRITABLE if state < 0 else self._tokens(state)

    def take(self, text: bytes) -> None:
        self._states.append(self.automaton.walk(self._states[-1], text))

    def undo(self, n: int) -> None:
        if n:
            del self._states[-n:]

    def fork(self) -> AutomatonCloser:
        copy = object.__new__(AutomatonCloser)
        copy.__dict__.update(self.__dict__, _states=self._states.copy())
        return copy


@dataclass(frozen=True, eq=False)
class Habits:
    """What a closer over a matcher takes for granted about one form.

    growth  most tokens that one token can add to what is needed: farther from the end nothing is checked
    plain   tokens that stay inside free text where one is, and add at most PLAIN_GROWTH there; None: unknown
    """

    growth: int
    plain: Mask | None = None


@dataclass(eq=False)
class MatcherCloser:
    """Greedy completions found by a second matcher of the same grammar, over single bytes.

    The plan after a token is: the rest of the plan, where the token follows it or ends with its beginning; else the
    same plan, where it still completes the text; else a fresh one.  So it depends on the tokens alone.
    """

    matcher: Any
    spelling: Spelling
    habits: Habits
    usable: np.ndarray
    _plans: list[bytes | None] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _asked: tuple[bytes, bytes | None] | None = None  # the text that was asked about last and the plan after it

    def __post_init__(self) -> None:
        if not self._plans:  # here a little more time is spent: its length is what users are told
            found = [find_completion(self.matcher, self.usable), search_completion(self.matcher, self.usable)]
            self._plans = [min((plan for plan in found if plan is not None), key=len, default=None)]

    @property
    def plan(self) -> bytes:
        return self._plans[-1] or b""

    @property
    def needed(self) -> int:
        return self._tokens(self._plans[-1])

    def _tokens(self, plan: bytes | None) -> int:
        return UNWRITABLE if plan is None else self.spelling.fewest(plan)

    def _plan_after(self, text: bytes) -> bytes | None:
        if self._asked is None or self._asked[0] != text:
            self._asked = text, self._find(text)
        return self._asked[1]

    def _find(self, text: bytes) -> bytes | None:
        plan = self._plans[-1]
        if plan is not None:
            if plan.startswith(text):
                return plan[len(text) :]
            for common in range(min(len(text) - 1, len(plan)), -1, -1):
                if text.endswith(plan[:common]):
                    whole = [*text, *plan[common:], END]
                    if self.matcher.validate_tokens(whole) == len(whole):
                        return plan[common:]
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(list(text)):
            return None
        return find_completion(matcher, self.usable)

    def roomy(self, budget: int) -> bool:
        return budget >= self.needed + self.habits.growth

    def within(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        needed, habits = self.needed, self.habits
        if self.roomy(budget):
            return mask, True
        vocabulary = self.spelling.vocabulary
        ids, exact, kept = members(mask), True, np.zeros_like(mask)
        if len(ids) > CANDIDATES:
            far = budget >= needed + PLAIN_GROWTH
            if far and habits.plain is not None and self._in_free_text():
                kept = mask & habits.plain
                ids = members(mask & ~habits.plain)
            limit = CHECKED if far else CANDIDATES
            limit = min(limit, max(16, STEPS // max(1, len(self.plan))))
            if len(ids) > limit:
                ids, exact = ids[:limit], False
        texts = {vocabulary.tokens[i] for i in ids.tolist()}
        if self.plan:
            texts.add(self.spelling.first(self.plan))
        fitting = [i for text in texts if self.needed_after(text) <= budget for i in vocabulary.ids_of[text]]
        return kept | (mask_of(fitting, vocabulary.size) & mask), exact

    def _in_free_text(self) -> bool:
        """Whether any letter and a bracket may follow, which in JSON is so inside strings alone."""
        return all(self.matcher.validate_tokens([byte]) == 1 for byte in b"z{")

    def needed_after(self, text: bytes) -> int:
        return self._tokens(self._plan_after(text))

    def take(self, text: bytes) -> None:
        plan = self._plan_after(text)
        self.matcher.consume_tokens(list(text))
        self._plans.append(plan)
        self._lengths.append(len(text))
        self._asked = None

    def undo(self, n: int) -> None:
        if n:
            self._asked = None
            self.matcher.rollback(sum(self._lengths[-n:]))
            del self._plans[-n:], self._lengths[-n:]

    def fork(self) -> MatcherCloser:
        return MatcherCloser(
            self.matcher.deep_copy(),
            self.spelling,
            self.habits,
            self.usable,
            self._plans.copy(),
            self._lengths.copy(),
        )


@dataclass(eq=False)
class LedCloser:
    """A closer of a text that begins with given bytes, before the form (token healing)."""

    closer: Closer
    spelling: Spelling
    lead: bytes
    _leads: list[tuple[bytes, bool]] = field(default_factory=list)  # before each token; whether the closer took a part

    @property
    def plan(self) -> bytes:
        return self.lead + self.closer.plan

    @property
    def needed(self) -> int:
        return self.spelling.fewest(self.plan) if self.closer.needed < UNWRITABLE else UNWRITABLE

    def roomy(self, budget: int) -> bool:
        return self.closer.roomy(budget - len(self.lead))

    def within(self, mask: Mask, budget: int) -> tuple[Mask, bool]:
        if not self.lead:
            return self.closer.within(mask, budget)
        if self.roomy(budget):
            return mask, True
        vocabulary = self.spelling.vocabulary
        ids = members(mask)
        texts = {vocabulary.tokens[i] for i in ids[:CHECKED].tolist()} | {self.spelling.first(self.plan)}
        fitting = [i for text in texts if self.needed_after(text) <= budget for i in vocabulary.ids_of[text]]
        return mask_of(fitting, vocabulary.size) & mask, len(ids) <= CHECKED

    def needed_after(self, text: bytes) -> int:
        if self.lead.startswith(text):
            return self.spelling.fewest(self.lead[len(text) :] + self.closer.plan)
        if not text.startswith(self.lead):
            return UNWRITABLE
        return self.closer.needed_after(text[len(self.lead) :])

    def take(self, text: bytes) -> None:
        rest = text[len(self.lead) :]
        self._leads.append((self.lead, bool(rest)))
        self.lead = self.lead[len(text) :]
        if rest:
            self.closer.take(rest)

    def undo(self, n: int) -> None:
        for _ in range(n):
            self.lead, took = self._leads.pop()
            if took:
                self.closer.undo(1)

    def fork(self) -> LedCloser:
        return LedCloser(self.closer.fork(), self.spelling, self.lead, self._leads.copy())
