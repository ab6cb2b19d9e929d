"""A program at work: `q`, on which a query says text, fills holes and scores values.

Programs written as text are translated into calls of the same methods, so that both forms are one program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from likely.errors import ConstraintError, LikelyError
from likely.queries.holes import HoleType, Pending, Undecided, hole_event, hole_type, plain
from likely.queries.session import Session
from likely.queries.text import Control, Segment
from likely.queries.trace import QueryEvent, ReplayMismatch
from likely.queries.where.clause import CLAUSES, Clauses
from likely.queries.where.nodes import TRUE, UNKNOWN, And, Const, Hole, Node, describe, holes_of, replace_holes
from likely.scoring.likelihood import TokenScores

Normalize = Literal["sum", "token", "byte", "pmi"]


class QueryError(LikelyError):
    """A query asks for something that does not go together."""


class Nested(Protocol):
    """A query as the type of a hole."""

    def body_with(self, q: QueryRun) -> Any: ...


@dataclass(eq=False)
class QueryRun:
    """One execution.

    script    events of an earlier execution, taken instead of new ones while there are some
    branches  stop with `Undecided` where the script ends, instead of decoding
    holes     all holes of the program, where they are known; a clause may name those that have not begun
    checks    compare with the script instead of taking holes from it (external calls still come from it)
    """

    session: Session
    sample: int = 0
    script: Sequence[QueryEvent] = ()
    branches: bool = False
    checks: bool = False
    holes: Sequence[str] = ()
    events: list[QueryEvent] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    vars: dict[str, Any] = field(default_factory=dict)
    _texts: dict[str, Const] = field(default_factory=dict)
    _used: int = 0
    _closed_by: str = ""
    _depth: int = 0

    def __post_init__(self) -> None:
        self.script = [e for e in self.script if e.kind not in ("text", "nested")]

    # --- what a program calls -------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """Everything so far: what the model sees."""
        return "".join(s.text for s in self.segments)

    def say(self, text: Any) -> None:
        """Add text.  Control tokens in it count; for values from elsewhere use `put`."""
        self._write(str(text), own=True)

    def put(self, value: Any) -> None:
        """Add a value: its text is text alone (`control(...)` excepted)."""
        self._write(str(value), own=isinstance(value, Control))

    def gen(
        self,
        name: str,
        *,
        type: Any = None,
        where: Node | Callable[[], Node] | None = None,
        max_tokens: int | None = None,
        later: Sequence[str] = (),
    ) -> Any:
        """Fill a hole and return its value.

        type   int, float, bool, str, Literal[...], a pydantic model, a dataclass, a regular expression, another query
        where  a condition on THIS (or on Hole(name)), or a function that makes it, called when the hole begins
        later  holes that `where` may name, and that come after this one
        """
        self._check_open(name)
        if hasattr(type, "body_with"):
            return self._nested(name, type)
        kind = hole_type(type)
        if self._replays:
            event = self._scripted("hole", name)
        else:
            pending = self._pending(name, kind, where, max_tokens, later)
            if self.branches:
                raise Undecided(pending)
            (decoded,) = self.session.decode(
                pending.prompt,
                constraint=pending.compiled.constraint,
                rule=pending.compiled.rule,
                max_tokens=pending.max_tokens,
                sample=self.sample,
                logits_processors=() if pending.compiled.peek is None else (pending.compiled.peek,),
            )
            event = hole_event(pending, decoded)
            if self.checks:
                self._compare(event)
        return self._take(event, kind)

    def distribution(
        self, name: str, values: Sequence[Any], *, normalize: Normalize = "sum", terminator: str = ""
    ) -> Any:
        """The last hole, one of `values`: their probabilities given the text, and the likeliest is filled in.

        normalize   of l(v) = log p(v | text) before the softmax.  "sum": none, the model's own conditional (the
                    paper's text); "token": per token (the paper's code); "byte": per UTF-8 byte; "pmi": less
                    log p(v) without the text
        terminator  appended to every value when it is scored; needed for "sum" where one value begins another
        """
        self._check_open(name)
        texts = [str(v) for v in values]
        if not texts or len(set(texts)) < len(texts) or not all(texts):
            raise QueryError(f"distribution {name}: give different, non-empty values, got {texts!r}")
        if normalize not in ("sum", "token", "byte", "pmi"):
            raise ValueError(f"normalize must be one of sum, token, byte, pmi, got {normalize!r}")
        if self._replays:
            event = self._scripted("distribution", name)
        else:
            logs = self._logs(texts, normalize, terminator)
            shifted = np.exp(np.array(logs) - max(logs))
            probabilities = dict(zip(texts, (shifted / shifted.sum()).tolist(), strict=True))
            best = max(texts, key=lambda t: probabilities[t])
            event = QueryEvent(
                "distribution", text=best, name=name, value=best, scores=dict(zip(texts, logs, strict=True)),
                probabilities=probabilities, reason=normalize,
            )  # fmt: skip
            if self.checks:
                self._compare(event)
        self._add(event)
        self.segments.append(Segment(event.text, False))
        self._closed_by = name
        self.vars[name] = dict(zip(texts, values, strict=True))[event.text]
        self._texts[name] = Const(event.text)
        return self.vars[name]

    def score(self, values: Sequence[str], *, normalize: Normalize = "sum", terminator: str = "") -> dict[str, float]:
        """{value: log p(value | text)} in nats; nothing is added to the text."""
        texts = [str(v) for v in values]
        if self._replays:
            event = self._scripted("score", "")
        else:
            logs = self._logs(texts, normalize, terminator)
            event = QueryEvent("score", scores=dict(zip(texts, logs, strict=True)), reason=normalize)
            if self.checks:
                self._compare(event)
        self._add(event)
        return dict(event.scores)

    def decorated(self, name: str, function: Callable[[Any], Any]) -> Any:
        """A hole's value becomes function(value); its text stays."""
        self.vars[name] = function(self.vars[name])
        return self.vars[name]

    def nested(self, query: Any, *args: object, **kwargs: object) -> Any:
        """`query(*args)` as the type of a hole: a query with its arguments, or the value of an ordinary call."""
        return query.bind(*args, **kwargs) if hasattr(query, "bind") else query(*args, **kwargs)

    @property
    def clauses(self) -> Clauses:
        """What clauses of text queries are built with."""
        return CLAUSES

    # --- how it is done -------------------------------------------------------------------------------------------

    def effect(self, name: str, call: Callable[[], Any]) -> Any:
        """The result of an external call, from the script where it is there."""
        if self._used < len(self.script):
            event = self._scripted("effect", name)
        else:
            event = QueryEvent("effect", name=name, value=call())
        self._add(event)
        return event.value

    @property
    def _replays(self) -> bool:
        return not self.checks and self._used < len(self.script)

    def _write(self, text: str, *, own: bool) -> None:
        if text:
            self._add(QueryEvent("text", text=text, own=own))
            self.segments.append(Segment(text, own))

    def _add(self, event: QueryEvent) -> None:
        self.events.append(replace(event, depth=self._depth))

    def _check_open(self, name: str) -> None:
        if self._closed_by:
            raise QueryError(
                f"hole {name} comes after the distribution of {self._closed_by}: the distribution hole must be the last"
            )

    def _scripted(self, kind: str, name: str) -> QueryEvent:
        if self._used >= len(self.script):
            raise ReplayMismatch(self._used, f"the program goes on with {kind} {name}, the trace ends")
        event = self.script[self._used]
        if (event.kind, event.name) != (kind, name):
            raise ReplayMismatch(
                self._used,
                f"the program wants {kind} {name}, the trace has {event.kind} {event.name}: mark calls that reach "
                f"outside with @effect",
            )
        self._used += 1
        return event

    def _compare(self, event: QueryEvent) -> None:
        before = self._scripted(event.kind, event.name)
        at = self._used - 1
        if event.prompt != before.prompt:
            raise ReplayMismatch(at, f"the prompt of {event.name} has other tokens")
        if event.tokens != before.tokens:
            raise ReplayMismatch(at, f"{event.name} is {event.text!r}, the trace has {before.text!r}")
        for value, log in event.scores.items():
            if abs(log - before.scores.get(value, np.inf)) > 1e-3:
                raise ReplayMismatch(at, f"log p({value!r}) is {log:.6f}, the trace has {before.scores.get(value)}")

    def _pending(
        self,
        name: str,
        kind: HoleType,
        where: Node | Callable[[], Node] | None,
        max_tokens: int | None,
        later: Sequence[str],
    ) -> Pending:
        node = where() if callable(where) and not isinstance(where, Node) else where
        clause = self._resolved(node, name, later)
        this = Hole(name)
        if kind.node is not None:
            own = replace_holes(kind.node, lambda _: this)
            clause = own if clause is TRUE else And((clause, own))
        form = None if kind.form is None else self.session.host.guide.constraint(kind.form)
        compiled = self.session.where.compile(clause, name, form=form, form_rest=kind.rest(this))
        prompt = tuple(self.session.tokens(self.segments))
        said = "" if clause is TRUE else describe(clause)
        return Pending(name, kind, compiled, said, prompt, max_tokens or self.session.settings.max_tokens)

    def _resolved(self, node: Node | None, name: str, later: Sequence[str]) -> Node:
        """The clause of this hole alone: finished holes are their text, later ones unknown.

        What is only about other holes was enforced, or will be, while they are written.
        """
        parts = node.parts if isinstance(node, And) else () if node is None else (node,)
        mine = tuple(
            p for p in parts if not (names := holes_of(p)) or names & {"", name} or not self._knows(names, later)
        )
        if not mine:
            return TRUE
        node = mine[0] if len(mine) == 1 else And(mine)

        def found(other: str) -> Node:
            if other in ("", name):
                return Hole(name)
            if other in later:
                return UNKNOWN
            if other in self._texts:
                return self._texts[other]
            if other in self.holes:
                return UNKNOWN
            raise QueryError(f"where of hole {name} names {other!r}, which is no hole here{self._known()}")

        return replace_holes(node, found)

    def _knows(self, names: set[str], later: Sequence[str]) -> bool:
        return all(n in self._texts or n in later or n in self.holes for n in names)

    def _known(self) -> str:
        return f" (known: {', '.join(self._texts)})" if self._texts else ""

    def _take(self, event: QueryEvent, kind: HoleType) -> Any:
        if event.complete is False and kind.shown != "str":
            raise ConstraintError(
                f"hole {event.name} ended by {event.reason} before it was a whole {kind.shown}: {event.text[:80]!r}. "
                f"Raise max_tokens"
            )
        value = kind.read(event.text)
        self._add(event)
        self.segments.append(Segment(event.text, False))
        self.vars[event.name], self._texts[event.name] = value, Const(event.text, event.written)
        return value

    def _nested(self, name: str, query: Nested) -> Any:
        mark, outer = len(self.segments), (self.vars, self._texts, self._closed_by)
        self.vars, self._texts, self._closed_by = {}, {}, ""
        self._depth += 1
        try:
            value = query.body_with(self)
            if value is None and self.vars:
                value = list(self.vars.values())[-1]
        finally:
            self._depth -= 1
            self.vars, self._texts, self._closed_by = outer
        del self.segments[mark:]
        text = str(value)
        self._add(QueryEvent("nested", text=text, name=name, value=plain(value)))
        self.segments.append(Segment(text, False))
        self.vars[name], self._texts[name] = value, Const(text)
        return value

    def _logs(self, texts: Sequence[str], normalize: Normalize, terminator: str) -> list[float]:
        whole = [t + terminator for t in texts]
        scores = self.session.score(self.segments, whole)
        if normalize == "pmi":
            alone = self.session.score([], whole)
            return [sum(a.logprobs) - sum(b.logprobs) for a, b in zip(scores, alone, strict=True)]
        return [_normalized(s, t, normalize) for s, t in zip(scores, whole, strict=True)]


def _normalized(scores: TokenScores, text: str, normalize: Normalize) -> float:
    total = float(sum(scores.logprobs))
    if normalize == "token":
        return total / len(scores.logprobs)
    return total / len(text.encode()) if normalize == "byte" else total
