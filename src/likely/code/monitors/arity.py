"""In the arguments of a call: no `)` while required ones are missing, no `,` when none is left.

Nested brackets, strings, lambdas and comprehensions are not counted.  A call with an unknown or overloaded signature,
or with *args or **kwargs in it, is not constrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

from likely.code.analysis.members import Analyses, AnalysisReply, Parameter
from likely.code.analysis.python_lexer import KEYWORDS, NAME_BYTES, START, Lexed, reading, step
from likely.code.buffer import CodeBuffer
from likely.code.monitors.monitor import MonitorState, Walk
from likely.decoding.constraint import Mask, mask_of
from likely.guided.vocabulary import Vocabulary

STRUCTURE = frozenset(b"()[]{},\"'#=*:\\")  # bytes after which a token must be walked
ROUND, COMMA, EQUALS, STAR, COLON, HASH = 41, 44, 61, 42, 58, 35
BLANKS = frozenset(b" \t\r\n\f\\")


@dataclass(frozen=True)
class ArityMonitor:
    """analyses: where signatures are asked for."""

    analyses: Analyses
    name: ClassVar[str] = "arity"
    judges_late: ClassVar[bool] = True  # which call a `)` inside a token closes is seen when it is walked

    def start(self, buffer: CodeBuffer, vocabulary: Vocabulary) -> MonitorState:
        """Calls that the text before the cursor leaves open are counted from their opening bracket."""
        prefix = buffer.prefix.encode()
        state = OpenCalls(CallTokens(self.analyses, vocabulary), ())
        lexed, begin = START, 0
        for at, byte in enumerate(prefix):
            lexed = step(lexed, byte)
            if lexed == START:
                begin = at + 1
        lexed = START
        for at in range(begin, len(prefix)):
            after = step(lexed, prefix[at])
            before = reading(lexed, prefix[at])
            state = state.counted(prefix[at], before, after)
            if _opens_call(before, prefix[at]):
                text = prefix[: at + 1].decode()
                asked = CodeBuffer(buffer.path, text + buffer.suffix, len(text), buffer.project_root)
                state = state.opened(len(after.frames), asked)
            lexed = after
        return state


@dataclass(eq=False)
class CallTokens:
    """Tokens of a vocabulary by the first byte of them that shapes a call."""

    analyses: Analyses
    vocabulary: Vocabulary

    @cached_property
    def _by_shape(self) -> dict[tuple[int, bool], Mask]:
        ids: dict[tuple[int, bool], list[int]] = {}
        for text, found in self.vocabulary.ids_of.items():
            at = next((i for i, byte in enumerate(text) if byte in STRUCTURE), None)
            if at is None or text[at] not in (ROUND, COMMA) or b"lambda" in text[:at] or b"for" in text[:at]:
                continue
            ids.setdefault((text[at], bool(text[:at].strip())), []).extend(found)
        return {key: mask_of(found, self.vocabulary.size) for key, found in ids.items()}

    @cached_property
    def _all(self) -> Mask:
        return self.vocabulary.text_mask | self.vocabulary.end_mask

    def without(self, shapes: Sequence[tuple[int, bool]]) -> Mask:
        """All tokens but those whose first shaping byte is one of these (byte, something stands before it)."""
        mask = self._all
        for shape in shapes:
            if shape in self._by_shape:
                mask = mask & ~self._by_shape[shape]
        return mask


@dataclass(frozen=True)
class OpenCall:
    """An open call.

    depth     frames of the lexer inside its bracket;  question: its signature
    done      whole positional arguments;  named: keyword arguments
    argument  what there is of the present one;  equals: `name =`, unless another = follows
    aside     "lambda", "for": within `lambda ...:` or `for ... in`, where commas separate other things
    free      not constrained
    """

    depth: int
    question: Signature
    done: int = 0
    named: frozenset[bytes] = frozenset()
    argument: Literal["", "word", "other", "named"] = ""
    equals: bool = False
    word: bytes = b""
    aside: str = ""
    free: bool = False

    def may_close(self, filled: bool) -> bool:
        """Whether `)` is legal.  filled: something more of the present argument comes before it."""
        parameters = self._parameters()
        return parameters is None or not missing(parameters, *self._counted(filled))

    def may_go_on(self, filled: bool) -> bool:
        """Whether `,` is legal."""
        parameters = self._parameters()
        return parameters is None or left(parameters, *self._counted(filled))

    def _parameters(self) -> tuple[Parameter, ...] | None:
        return None if self.free or self.aside else self.question.parameters()

    def _counted(self, filled: bool) -> tuple[int, frozenset[bytes]]:
        """(positional arguments, keyword arguments), the present one included."""
        if self.equals:
            return self.done, self.named | {self.word}
        present = self.argument in ("word", "other") or (filled and not self.argument)
        return self.done + present, self.named


def missing(parameters: Sequence[Parameter], positional: int, named: frozenset[bytes]) -> list[str]:
    """Names of the required parameters that neither `positional` arguments nor the `named` ones fill."""
    in_order = [p for p in parameters if p.kind in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")]
    by_place = {p.name for p in in_order[:positional]}
    return [p.name for p in parameters if p.required and p.name not in by_place and p.name.encode() not in named]


def left(parameters: Sequence[Parameter], positional: int, named: frozenset[bytes]) -> bool:
    """Whether a further argument can follow."""
    if any(p.kind.startswith("VAR_") for p in parameters):
        return True
    return positional + len(named) < len(parameters)


@dataclass(eq=False)
class Signature:
    """The question for one call's signature, asked when it is needed."""

    analyses: Analyses
    buffer: CodeBuffer
    _future: Future[AnalysisReply] | None = field(default=None, repr=False)

    def asked(self) -> Future[AnalysisReply]:
        if self._future is None:
            self._future = self.analyses.ask("signature", self.buffer)
        return self._future

    def parameters(self) -> tuple[Parameter, ...] | None:
        answer = self.asked().result()
        return answer.parameters if answer.status == "answered" else None


@dataclass(frozen=True)
class OpenCalls(MonitorState):
    """The open calls, outermost first."""

    shape: CallTokens
    calls: tuple[OpenCall, ...]

    def step(self, byte: int, walk: Walk) -> MonitorState | None:
        before = reading(walk.before, byte)
        call = self._here(before)
        if call is not None and byte == ROUND and not call.may_close(False):
            return None
        if call is not None and byte == COMMA and not call.may_go_on(False):
            return None
        after = self.counted(byte, before, walk.after)
        return after.opened(len(walk.after.frames), walk.so_far()) if _opens_call(before, byte) else after

    def opened(self, depth: int, buffer: CodeBuffer) -> OpenCalls:
        """After the bracket that opens a call."""
        return replace(self, calls=(*self.calls, OpenCall(depth, Signature(self.shape.analyses, buffer))))

    def counted(self, byte: int, before: Lexed, after: Lexed) -> OpenCalls:
        """After a byte, but for a call that it opens."""
        if not self.calls:
            return self
        call, outer = self.calls[-1], self.calls[:-1]
        if len(after.frames) < call.depth:
            return replace(self, calls=outer)
        return replace(self, calls=(*outer, _after(call, byte, before)))

    def _here(self, lexed: Lexed) -> OpenCall | None:
        """The call whose arguments stand directly at this place."""
        if self.calls and lexed.in_code and len(lexed.frames) == self.calls[-1].depth:
            return self.calls[-1]
        return None

    def mask(self, lexed: Lexed) -> tuple[Mask | None, bool]:
        if not self.calls:
            return None, True
        call = self._here(lexed)
        if call is None or call.question.parameters() is None:
            return None, True
        forbidden = [(ROUND, filled) for filled in (False, True) if not call.may_close(filled)]
        forbidden += [(COMMA, filled) for filled in (False, True) if not call.may_go_on(filled)]
        return (self.shape.without(forbidden) if forbidden else None), True

    def asked(self) -> Future[AnalysisReply] | None:
        return self.calls[-1].question.asked() if self.calls else None

    def idle(self) -> MonitorState:
        return replace(self, calls=tuple(replace(call, free=True) for call in self.calls))


def _opens_call(before: Lexed, byte: int) -> bool:
    """Whether this byte is the opening bracket of a call, and not of a definition or a group."""
    return byte == 40 and before.in_code and before.value and before.before not in (b"def", b"class")


def _after(call: OpenCall, byte: int, before: Lexed) -> OpenCall:
    """The call after a byte inside its brackets."""
    if not (before.in_code and len(before.frames) == call.depth):
        return call
    if call.equals:
        if byte == EQUALS:
            return replace(call, equals=False, argument="other")
        call = replace(call, equals=False, argument="named", named=call.named | {call.word})
    if byte not in NAME_BYTES:
        if before.word in (b"lambda", b"for"):
            call = replace(call, aside=before.word.decode(), argument=call.argument or "other")
        elif before.word == b"in" and call.aside == "for":
            call = replace(call, aside="")
    if byte in BLANKS or byte == HASH:
        return call
    if byte == COMMA and not call.aside:
        return replace(call, done=call.done + (call.argument in ("word", "other")), argument="", word=b"")
    if byte == COLON and call.aside == "lambda":
        return replace(call, aside="")
    if call.argument == "named":
        return call
    if byte == STAR and not call.argument:
        return replace(call, free=True, argument="other")
    word = before.word or before.finished
    if byte == EQUALS and call.argument == "word" and word not in KEYWORDS:
        return replace(call, equals=True, word=word)
    if byte in NAME_BYTES and (not call.argument or (call.argument == "word" and before.word)):
        return replace(call, argument="word")
    return replace(call, argument="other")
