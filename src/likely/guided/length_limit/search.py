"""One completion of a text by a grammar, found byte by byte: not the shortest, but a short one."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

LONGEST_COMPLETION = 2000  # bytes
SEARCHED = 400  # states


def find_completion(matcher: Any, usable: np.ndarray) -> bytes | None:
    """Bytes that complete the matcher's text; None if none are found.

    matcher  an LLMatcher over single bytes; it is left as it was
    First one byte after the other; where that does not come to an end, which happens in recursive forms, a search.
    """
    for attempt in (lambda: _greedy(matcher, usable, 256), lambda: search_completion(matcher, usable)):
        if (found := attempt()) is not None:
            return found
    return _greedy(matcher, usable, LONGEST_COMPLETION)


def _greedy(matcher: Any, usable: np.ndarray, longest: int) -> bytes | None:
    matcher, out = matcher.deep_copy(), bytearray()
    while not matcher.is_accepting():
        steps = _steps(matcher, usable)
        if not steps or len(out) > longest:
            return None
        step = steps[0]
        if len(steps) > 1 and out.endswith(step * 8):  # going in a circle
            step = steps[1]
        elif 1 < len(steps) <= 8 and step[0] in _LETTERS:  # the name of a property, say: one whose value is not nested
            step = next((s for s in steps if not _opens(matcher, s)), step)
        if not matcher.consume_tokens(list(step)):
            return None
        out += step
    return bytes(out)


def search_completion(matcher: Any, usable: np.ndarray) -> bytes | None:
    """Best first: short, and few brackets open."""
    todo: list[tuple[int, int, Any, bytes]] = [(0, 0, matcher.deep_copy(), b"")]
    for count in range(SEARCHED):
        if not todo:
            return None
        _, _, state, out = heapq.heappop(todo)
        if state.is_accepting():
            return out
        for i, step in enumerate(_steps(state, usable)[:12]):
            child = state.deep_copy()
            if child.consume_tokens(list(step)):
                text = out + step
                opened = sum(text.count(b) for b in b"{[(") - sum(text.count(b) for b in b"}])")
                heapq.heappush(todo, (len(text) + 8 * max(0, opened), 16 * count + i, child, text))
    return None


def _steps(matcher: Any, usable: np.ndarray) -> list[bytes]:
    """What may come next, those that end it soonest first: what is forced, else single bytes; in free text only one.

    Inside free text the closing quote comes first, elsewhere closing brackets; opening brackets come last.
    """
    if matcher.is_stopped():
        return []
    if forced := matcher.compute_ff_bytes():
        return [forced] if usable[list(forced)].all() else []
    mask = np.zeros(9, np.uint32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    allowed = np.unpackbits(mask.view(np.uint8), count=256, bitorder="little").astype(np.bool_) & usable
    if np.count_nonzero(allowed) > _FREE:
        return [bytes([int(_IN_TEXT[np.argmax(allowed[_IN_TEXT])])])]
    return [bytes([b]) for b in _BETWEEN[allowed[_BETWEEN]].tolist()]


def _opens(matcher: Any, step: bytes) -> bool:
    """Whether this step forces an opening bracket."""
    matcher = matcher.deep_copy()
    return matcher.consume_tokens(list(step)) and any(b in b"{[(" for b in matcher.compute_ff_bytes())


def _order(first: bytes) -> np.ndarray:
    """All bytes: `first`, digits, letters, other printable ones, the rest; opening brackets and the backslash last."""
    last = b"<([{\\"
    digits, letters = b"0123456789", bytes([*range(97, 123), *range(65, 91)])
    middle = [b for b in (*digits, *letters, *range(33, 127), 32, *range(256)) if b not in first and b not in last]
    return np.array([*first, *dict.fromkeys(middle), *last])


_IN_TEXT, _BETWEEN = _order(b"\"}]')>;\n"), _order(b"}])\"'>;,:")
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_FREE = 40  # more allowed bytes than this: inside free text
