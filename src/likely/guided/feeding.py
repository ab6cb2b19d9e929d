"""Bytes into constraints that take tokens: a part of a token is fed as the single bytes it is made of."""

from __future__ import annotations

from likely.decoding.steer import Constraint
from likely.errors import CapabilityError
from likely.guided.vocabulary import Vocabulary


def check_bytes(vocabulary: Vocabulary) -> None:
    """CapabilityError unless every byte that occurs in a token is a token by itself."""
    lacking = {b for text in vocabulary.ids_of for b in text} - {t[0] for t in vocabulary.ids_of if len(t) == 1}
    if lacking:
        raise CapabilityError(
            f"tokens cannot be cut where one form ends inside them: no token writes byte {min(lacking)} alone"
        )


def after_bytes(constraint: Constraint, text: bytes, vocabulary: Vocabulary) -> Constraint | None:
    """A fork that has taken these bytes, None if they cannot follow.

    For constraints over bytes, to which all ways to cut a text into tokens are equal.
    """
    state = constraint.fork()
    if whole := vocabulary.ids_of.get(text):
        if not state.permits(whole[0]):
            return None
        state.advance(whole[0])
        return state
    for byte in text:
        token = vocabulary.ids_of[bytes([byte])][0]
        if not state.permits(token):
            return None
        state.advance(token)
    return state
