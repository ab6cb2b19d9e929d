"""Vocabularies, buffers and providers for tests of monitors."""

from __future__ import annotations

from collections.abc import Sequence

from fixed_members import FixedMembers

from likely.code.analysis.members import Analyses, Parameter
from likely.code.buffer import CodeBuffer
from likely.code.monitors.arity import ArityMonitor
from likely.code.monitors.monitor import MonitorConstraint
from likely.code.monitors.triggers import DereferenceMonitor
from likely.decoding.constraint import members
from likely.guided.vocabulary import Vocabulary


def vocabulary(*pieces: str | bytes) -> Vocabulary:
    """These pieces and one end token behind them."""
    tokens = [p.encode() if isinstance(p, str) else p for p in pieces]

    def encode(text: str) -> list[int]:
        raw, ids = text.encode(), []
        while raw:
            best = max((t for t in tokens if t and raw.startswith(t)), key=len, default=None)
            if best is None:
                return []
            ids.append(tokens.index(best))
            raw = raw[len(best) :]
        return ids

    return Vocabulary((*tokens, b""), frozenset({len(tokens)}), len(tokens), encode)


def dereference(receivers: dict[str, Sequence[str]], **options) -> DereferenceMonitor:
    return DereferenceMonitor(Analyses(FixedMembers(receivers)), **options)


def arity(**signatures: Sequence[Parameter]) -> ArityMonitor:
    return ArityMonitor(Analyses(FixedMembers({}, signatures)))


def plain(*names: str, optional: Sequence[str] = (), kind: str = "POSITIONAL_OR_KEYWORD") -> list[Parameter]:
    return [Parameter(n, kind, True) for n in names] + [Parameter(n, kind, False) for n in optional]


def constraint(vocab: Vocabulary, prefix: str, *monitors, suffix: str = "", **options) -> MonitorConstraint:
    return MonitorConstraint(monitors, vocab, CodeBuffer("", prefix + suffix, len(prefix)), **options)


def legal(state: MonitorConstraint) -> set[bytes]:
    """Texts of the tokens that may come next, judged one by one; b"" stands for the end."""
    return {state.vocabulary.tokens[i] for i in members(state.allowed()).tolist() if state.permits(i)}


def write(state: MonitorConstraint, *pieces: str) -> MonitorConstraint:
    for piece in pieces:
        state.advance(state.vocabulary.tokens.index(piece.encode()))
    return state
