"""Monitor-guided decoding: static analysis says, while code is written, which tokens may come next.

Agrawal et al. 2023, "Monitor-Guided Decoding of Code LMs with Static Analysis of Repository Context".  A monitor waits
(state s_0) until the text triggers it, asks an analysis, and masks until what it asked about is written.  Here every
monitor is a machine over bytes with immutable states, so that forks share them and a rollback is a step to the parent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from likely.code.analysis.members import AnalysisReply
from likely.code.analysis.python_lexer import START, Lexed, step
from likely.code.buffer import CodeBuffer
from likely.decoding.constraint import ConstraintViolation, Mask, contains
from likely.guided.vocabulary import Vocabulary

AcrossTrigger = Literal["check", "split", "allow"]
log = logging.getLogger("likely.code")


class MonitorState:
    """What one monitor knows after some text; never changed.  By itself it is s_0, which allows everything."""

    def step(self, byte: int, walk: Walk) -> MonitorState | None:
        """After one more byte; None: this byte is illegal here.  May have to wait for an analysis."""
        return self

    def mask(self, lexed: Lexed) -> tuple[Mask | None, bool]:
        """(tokens that may come next, None for all; whether some of them turn out illegal only when walked)."""
        return None, False

    def may_end(self) -> bool:
        return True

    def asked(self) -> Future[AnalysisReply] | None:
        """The analysis that this state needs, started now if it was not; None if it needs none."""
        return None

    def settled(self) -> MonitorState:
        """This state with the answer taken in; waits for it."""
        return self

    def forced(self) -> bytes:
        """Bytes that come next whatever the model says."""
        return b""

    def idle(self) -> MonitorState:
        """The state s_0 of this monitor."""
        return self

    def choices(self) -> frozenset[bytes]:
        """The names one of which is due exactly here; empty where none is."""
        return frozenset()

    def chosen(self, names: frozenset[bytes]) -> MonitorState:
        """This state with only some of its choices left."""
        return self


class Monitor(Protocol):
    """One property of the code.

    judges_late  whether it judges some tokens only when they are chosen
    """

    @property
    def name(self) -> str: ...
    @property
    def judges_late(self) -> bool: ...

    def start(self, buffer: CodeBuffer, vocabulary: Vocabulary) -> MonitorState:
        """The state at the cursor of a buffer, with a question that the text before it raises."""
        ...


@runtime_checkable
class MonitorQuestion(Protocol):
    """An analysis that a text raised: buffer with the cursor at the place, what came of it."""

    @property
    def monitor_name(self) -> str: ...
    @property
    def buffer(self) -> CodeBuffer: ...
    @property
    def typed(self) -> bytes: ...
    def answer(self) -> AnalysisReply: ...
    def settled(self) -> MonitorState: ...


Choose = Callable[[Sequence[int], Sequence[bytes]], bytes]  # (tokens so far, names that are legal here) -> one of them


@dataclass(frozen=True, eq=False)
class Walk:
    """One byte of a token on its way: token[at], with the lexer before and after it."""

    constraint: MonitorConstraint
    node: _Node
    token: bytes
    at: int
    before: Lexed
    after: Lexed

    @property
    def first(self) -> bool:
        return self.at == 0

    @property
    def last(self) -> bool:
        return self.at == len(self.token) - 1

    @property
    def rest(self) -> bytes:
        return self.token[self.at :]

    def so_far(self) -> CodeBuffer:
        """The buffer with everything up to this byte written."""
        written = self.node.written() + self.token[: self.at + 1]
        return self.constraint.buffer.insert(written.decode("utf-8", "ignore"))

    def ask(self, question: MonitorQuestion) -> None:
        """Remember a question, for the report on the text."""
        self.constraint.raised.append(question)


@dataclass(eq=False)
class _Node:
    """The state after one token.  Forks share nodes; only what is worked out later about a node is added to it."""

    parent: _Node | None
    token: int
    piece: bytes
    lexed: Lexed
    states: tuple[MonitorState, ...]
    approximate: bool = False
    ended: bool = False
    refused: set[int] = field(default_factory=set)
    walked: dict[int, tuple[Lexed, tuple[MonitorState, ...]]] = field(default_factory=dict)
    joined: tuple[Mask, list[int]] | None = None
    uncertain: bool = False

    def settle(self) -> tuple[MonitorState, ...]:
        self.states = tuple(state.settled() for state in self.states)
        return self.states

    def path(self) -> list[_Node]:
        """The nodes of the tokens taken, first to last."""
        path = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def written(self) -> bytes:
        return b"".join(node.piece for node in self.path())


@dataclass(eq=False)
class MonitorConstraint:
    """Monitors as a constraint on the tokens of one completion (likely.decoding.constraint.Constraint).

    monitors    in order of priority: where their masks exclude each other, the first ones count (logged)
    vocabulary  of the model;  buffer: the file, its cursor where the generated text begins
    choose      picks one of the legal names where one is due at the beginning of a token; None: the model does
    raised      every question asked, on drafts and forks, too

    The mask is exact except for tokens that hold a trigger and go on after it (`.get` in one token): those are walked
    when they are chosen, and chosen again without if they are illegal.  `approximate` says whether there were any.
    """

    monitors: Sequence[Monitor]
    vocabulary: Vocabulary
    buffer: CodeBuffer
    choose: Choose | None = None
    raised: list[MonitorQuestion] = field(default_factory=list, repr=False)
    _node: _Node | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self._node is None:
            states = tuple(monitor.start(self.buffer, self.vocabulary) for monitor in self.monitors)
            self._node = _Node(None, -1, b"", START.feed(self.buffer.prefix.encode()), states)
            self.raised += [state for state in states if isinstance(state, MonitorQuestion)]
            _ask(self._node)

    # --- the protocol of constraints --------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def accepting(self) -> bool:
        return self._at.ended or (self.ready() and all(state.may_end() for state in self._at.settle()))

    @property
    def finished(self) -> bool:
        return self._at.ended

    @property
    def judges_late(self) -> bool:
        return any(monitor.judges_late for monitor in self.monitors)

    @property
    def approximate(self) -> bool:
        return self._at.approximate

    def allowed(self, remaining: int | None = None) -> Mask:
        node = self._at
        if node.ended:
            return self.vocabulary.end_mask & ~self.vocabulary.end_mask
        mask, _ = self._joined(node)
        if node.uncertain:
            node.approximate = True
        return mask

    def permits(self, token: int) -> bool:
        """Exact, byte by byte.  `allowed` keeps a refused token: the mask depends on the text alone."""
        node = self._at
        if node.ended or not 0 <= token < self.vocab_size:
            return False
        mask, dropped = self._joined(node)
        if token in node.refused or not contains(mask, token):
            return False
        if token in self.vocabulary.end_ids or token in node.walked:
            return True
        found = self._walk(node, token, dropped)
        if found is None:
            node.refused.add(token)
            return False
        node.walked[token] = found
        return True

    def advance(self, token: int) -> None:
        node = self._at
        if not self.permits(token):
            name = self.vocabulary.tokens[token] if 0 <= token < self.vocab_size else b""
            raise ConstraintViolation(f"token {token} ({name!r}) is not allowed here")
        if token in self.vocabulary.end_ids:
            self._node = _Node(node, token, b"", node.lexed, node.states, node.approximate, ended=True)
            return
        lexed, states = node.walked[token]
        self._node = _Node(node, token, self.vocabulary.tokens[token], lexed, states, node.approximate)
        _ask(self._node)

    def forced(self) -> list[int]:
        if self._at.ended or not self.ready():
            return []
        for state in self._at.settle():
            if text := state.forced():
                return self.vocabulary.guess(text)
        return []

    def fork(self) -> MonitorConstraint:
        return MonitorConstraint(self.monitors, self.vocabulary, self.buffer, self.choose, self.raised, self._node)

    def rollback(self, n: int) -> None:
        node: _Node = self._at
        for _ in range(n):
            if node.parent is None:
                raise ValueError(f"cannot take back {n} tokens: there are fewer")
            node = node.parent
        self._node = node

    def ready(self, wait: bool = False) -> bool:
        for state in self._at.states:
            asked = state.asked()
            if asked is not None and wait:
                asked.result()
            if asked is not None and not asked.done():
                return False
        return True

    # --- what callers of a completion want to know ------------------------------------------------------------------

    def push(self, token: int) -> None:
        """Take a token whether or not it is legal; monitors that object wait for their next trigger."""
        node = self._at
        if token in self.vocabulary.end_ids:
            self._node = _Node(node, token, b"", node.lexed, node.states, node.approximate, ended=True)
            return
        piece = self.vocabulary.tokens[token]
        if self.permits(token):
            lexed, states = node.walked[token]
        else:
            found = self._walk(node, token, list(range(len(self.monitors))))
            assert found is not None
            lexed, states = found
        self._node = _Node(node, token, piece, lexed, states, node.approximate)
        _ask(self._node)

    @property
    def written(self) -> bytes:
        """The bytes of the tokens taken so far."""
        return self._at.written()

    @property
    def states(self) -> tuple[MonitorState, ...]:
        """The states now, answers taken in."""
        return self._at.settle()

    def questions(self, written: bytes) -> list[MonitorQuestion]:
        """The questions that a text which this constraint or its forks took has raised, in its order."""
        text = self.buffer.prefix + written.decode("utf-8", "ignore")
        found: dict[tuple[int, str], MonitorQuestion] = {}
        for question in self.raised:
            if text.startswith(question.buffer.prefix):
                found.setdefault((question.buffer.cursor or 0, question.monitor_name), question)
        return [found[key] for key in sorted(found)]

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _at(self) -> _Node:
        assert self._node is not None
        return self._node

    @cached_property
    def _everything(self) -> Mask:
        return self.vocabulary.text_mask | self.vocabulary.end_mask

    def _joined(self, node: _Node) -> tuple[Mask, list[int]]:
        """(the mask at a node, numbers of the monitors that were overruled there)"""
        if node.joined is None:
            masks = []
            node.settle()
            if self.choose is not None:
                self._narrow(node, self.choose)
            for state in node.states:
                mask, uncertain = state.mask(node.lexed)
                node.uncertain = node.uncertain or uncertain
                if mask is None:
                    mask = self._everything
                masks.append(mask if state.may_end() else mask & ~self.vocabulary.end_mask)
            mask, dropped = join(masks, self._everything)
            if dropped:
                names = ", ".join(self.monitors[i].name for i in dropped)
                log.info("no token suits all monitors: overruled %s after %r", names, self.written[-40:])
            node.joined = mask, dropped
        return node.joined

    def _narrow(self, node: _Node, choose: Choose) -> None:
        """Where names are due, keep the chosen one."""
        sets = [choices for state in node.states if (choices := state.choices())]
        names = frozenset.intersection(*sets) if sets else frozenset()
        if len(names) > 1:
            kept = frozenset({choose([each.token for each in node.path()], sorted(names))})
            node.states = tuple(state.chosen(kept) if state.choices() else state for state in node.states)

    def _walk(self, node: _Node, token: int, dropped: Sequence[int]) -> tuple[Lexed, tuple[MonitorState, ...]] | None:
        """(lexer, states) after a token; None if a monitor that counts forbids it."""
        piece, lexed, states = self.vocabulary.tokens[token], node.lexed, list(node.settle())
        for at, byte in enumerate(piece):
            after = step(lexed, byte)
            walk = Walk(self, node, piece, at, lexed, after)
            for number, state in enumerate(states):
                following = state.step(byte, walk)
                if following is None:
                    if number not in dropped:
                        return None
                    following = state.idle()
                states[number] = following
            lexed = after
        return lexed, tuple(states)


def _ask(node: _Node) -> None:
    """Start the analyses that a node needs."""
    for state in node.states:
        state.asked()


def join(masks: Sequence[Mask], everything: Mask) -> tuple[Mask, list[int]]:
    """What several monitors allow: (the intersection of `everything` and the masks, the numbers of those left out).

    masks  in order of priority: one that would leave no token beside what the masks before it allow is left out
    """
    found, dropped = everything, []
    for number, mask in enumerate(masks):
        both = found & mask
        if both.any() or not mask.any():  # one that allows nothing at all is a dead end, not a conflict
            found = both
        else:
            dropped.append(number)
    return found, dropped
