"""STOPS_AT and STOPS_BEFORE: where a hole ends because a string appeared, even in the middle of a token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from likely.decoding.constraint import (
    Constraint,
    ConstraintDeadEnd,
    Mask,
    mask_of,
    members,
    no_tokens,
)
from likely.errors import ConstraintError
from likely.guided.text_constraint import TextConstraint
from likely.queries.where.final import Partial, evaluate
from likely.queries.where.nodes import TRUE, And, Hole, Node, Stop, children, describe


@dataclass(frozen=True)
class Cut:
    """The value ends after `length` bytes of the text; `stop` is why."""

    length: int
    stop: Stop


@dataclass(frozen=True, eq=False)
class StopRule:
    """Where a text is cut: at the first occurrence of a stop string at which the other conditions hold.

    An occurrence is first if it ends first (of those that end together, the longer one); conditions are judged on the
    value that the hole would have: with the string for STOPS_AT, without it for STOPS_BEFORE.
    """

    stops: tuple[Stop, ...]
    rest: Node  # TRUE: nothing else is asked
    hole: str
    _last: dict[tuple[bytes, int], bool] = field(default_factory=dict, repr=False)

    def holds(self, value: bytes, tokens: int) -> bool:
        """Whether a value written with this many tokens fulfils the other conditions; the latest answers are kept."""
        if self.rest is TRUE:
            return True
        key = (value, tokens)
        if key not in self._last:
            if len(self._last) > 4096:
                self._last.clear()
            self._last[key] = self._evaluated(value, tokens)
        return self._last[key]

    def _evaluated(self, value: bytes, tokens: int) -> bool:
        found, _ = evaluate(self.rest, {self.hole: Partial(value.decode("utf-8", "ignore"), tokens, True)})
        return found is None or bool(found)

    def cut(self, text: bytes, since: int, tokens: int) -> Cut | None:
        """The cut in a text whose bytes from `since` on are new; tokens: how many wrote it."""
        found: list[tuple[int, int, Stop]] = []
        for stop in self.stops:
            string = stop.string.encode()
            at = text.find(string, max(0, since - len(string) + 1))
            while at >= 0:
                found.append((at + len(string), at, stop))
                at = text.find(string, at + 1)
        for end, begin, stop in sorted(found, key=lambda f: f[:2]):
            length = end if stop.include else begin
            if self.holds(text[:length], tokens):
                return Cut(length, stop)
        return None


def split_stops(node: Node) -> tuple[tuple[Stop, ...], Node]:
    """(the stop conditions, the rest of the clause); ConstraintError for one that is not a part of a conjunction."""
    parts = node.parts if isinstance(node, And) else (node,)
    stops: list[Stop] = []
    rest: list[Node] = []
    for part in parts:
        if isinstance(part, And):
            inner, others = split_stops(part)
            stops += inner
            rest += [others] if others is not TRUE else []
        elif isinstance(part, Stop):
            if not part.string:
                raise ConstraintError("a stop string must not be empty")
            if isinstance(part.text, Hole):  # not of a hole that is finished or still to come
                stops.append(part)
        else:
            _refuse_stops(part)
            rest.append(part)
    return tuple(stops), TRUE if not rest else rest[0] if len(rest) == 1 else And(tuple(rest))


def _refuse_stops(node: Node) -> None:
    if isinstance(node, Stop):
        raise ConstraintError(f"{describe(node)} must stand alone or be joined with and: it ends a hole, it is no test")
    for part in children(node):
        _refuse_stops(part)


@dataclass(eq=False)
class HoleConstraint(TextConstraint):
    """The whole clause of one hole: the tiers' constraint, and the stops.

    inner   None: only stops;  clause: for messages
    A token that completes a stop string is allowed, whatever follows the string in it, if the value that it cuts off
    fulfils the clause.  After a stop only the end may follow.
    """

    inner: Constraint | None
    rule: StopRule
    clause: str
    texts: list[bytes] = field(default_factory=list)
    stopped: bool = False
    crossing: dict[tuple[str, int], Mask] = field(default_factory=dict, repr=False)

    @property
    def accepting(self) -> bool:
        return self.stopped or self.inner is None or self.inner.accepting

    @property
    def finished(self) -> bool:
        return self.stopped or self.ended or (self.inner is not None and self.inner.finished)

    @property
    def approximate(self) -> bool:
        return self.inner is not None and self.inner.approximate

    def allowed(self, remaining: int | None = None) -> Mask:
        vocabulary = self.vocabulary
        if self.ended:
            return no_tokens(vocabulary.size)
        if self.stopped:
            return vocabulary.end_mask
        if self.inner is None:
            return vocabulary.text_mask | vocabulary.end_mask
        mask = self.inner.allowed(remaining)
        if self.rule.stops:
            mask = mask | self._stopping(mask)
        if not mask.any():
            text = b"".join(self.texts).decode("utf-8", "replace")
            raise ConstraintDeadEnd(len(self.texts), text, f"where {self.clause}")
        return mask

    def _stopping(self, mask: Mask) -> Mask:
        """Tokens outside the mask that end the hole with a value that fulfils the clause."""
        text = b"".join(self.texts)
        candidates = no_tokens(self.vocab_size)
        for stop in self.rule.stops:
            string = stop.string.encode()
            for overlap in range(len(string)):
                if text.endswith(string[:overlap]):
                    candidates |= self._completing(stop.string, overlap)
        candidates &= ~mask & self.vocabulary.text_mask
        ids = members(candidates).tolist()
        return mask_of((t for t in ids if self._cut(text, self.vocabulary.tokens[t]) is not None), self.vocab_size)

    def _completing(self, string: str, overlap: int) -> Mask:
        """Tokens that hold the string, or its rest after `overlap` bytes at their beginning."""
        key = (string, overlap)
        if key not in self.crossing:
            whole = string.encode()
            found = (
                i
                for i, t in enumerate(self.vocabulary.tokens)
                if (t.startswith(whole[overlap:]) if overlap else whole in t)
            )
            self.crossing[key] = mask_of(found, self.vocab_size)
        return self.crossing[key]

    def _cut(self, text: bytes, token: bytes) -> Cut | None:
        return self.rule.cut(text + token, len(text), len(self.texts) + 1)

    def _may_follow(self, token: int, text: bytes) -> bool:
        if self.stopped:
            return False
        if self.inner is None or self.inner.permits(token):
            return True
        return bool(self.rule.stops) and self._cut(b"".join(self.texts), text) is not None

    def _take(self, token: int) -> None:
        text = self.vocabulary.tokens[token]
        self.stopped = bool(self.rule.stops) and self._cut(b"".join(self.texts), text) is not None
        if not self.stopped and self.inner is not None:
            self.inner.advance(token)
        self.texts.append(text)

    def _forced(self) -> list[int]:
        return self.inner.forced() if self.inner is not None else []

    def fork(self) -> HoleConstraint:
        inner = self.inner.fork() if self.inner is not None else None
        return replace(self, inner=inner, texts=self.texts.copy())

    def _undo(self, n: int) -> None:
        if self.stopped:
            self.stopped, n = False, n - 1
            self.texts.pop()
        if n:
            del self.texts[-n:]
            if self.inner is not None:
                self.inner.rollback(n)

    def ready(self, wait: bool = False) -> bool:
        return self.inner is None or self.inner.ready(wait)
