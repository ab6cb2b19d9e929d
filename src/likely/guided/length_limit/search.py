"""One completion of a text by a grammar, found byte by byte: not the shortest, but a short one."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.guided.engines.automaton import ShortestCompletions

LONGEST_COMPLETION = 2000  # bytes
SEARCHED = 400  # states
REPEATED = 4  # bytes that a way loses for each earlier one that allowed the same bytes: other ways come first


@dataclass(frozen=True, eq=False)
class CompletionSearch:
    """usable    (256,) bytes that may be written
    patterns  what strings of a JSON text must match, any of them
    """

    usable: np.ndarray
    patterns: Sequence[ShortestCompletions] = ()

    def find(self, matcher: Any, string: bytes | None) -> bytes | None:
        """Bytes that complete the matcher's text; None if none are found.

        matcher  an LLMatcher over single bytes; it is left as it was
        string   what is written of the JSON string that is open; None: none is
        First one byte after the other; where that does not come to an end, which happens in recursive forms, a search.
        """
        for attempt in (lambda: self._greedy(matcher, string, 256), lambda: self.best_first(matcher, string)):
            if (found := attempt()) is not None:
                return found
        return self._greedy(matcher, string, LONGEST_COMPLETION, in_circles=True)

    def _greedy(self, matcher: Any, string: bytes | None, most_steps: int, *, in_circles: bool = False) -> bytes | None:
        matcher, out = matcher.deep_copy(), bytearray()
        for _ in range(most_steps):
            if matcher.is_accepting():
                return bytes(out)
            steps = self._steps(matcher, string)
            if not steps or len(out) > LONGEST_COMPLETION:
                return None
            step = steps[0]
            if len(steps) > 1 and out.endswith(step * 8):  # going in a circle
                if not in_circles:
                    return None
                step = steps[1]
            elif 1 < len(steps) <= 8 and step[0] in _LETTERS:  # the name of a property, say: not an object
                step = next((s for s in steps if not _opens(matcher, s)), step)
            if not matcher.consume_tokens(list(step)):
                return None
            out += step
            string = open_string(string, step)
        return None

    def best_first(self, matcher: Any, string: bytes | None) -> bytes | None:
        """Short ways first, on which few brackets are open and which lead to something new."""
        todo: list[tuple[int, int, Any, bytes, bytes | None]] = [(0, 0, matcher.deep_copy(), b"", string)]
        seen: Counter[bytes] = Counter()
        judged: set[int] = set()
        for count in range(SEARCHED):
            if not todo:
                return None
            cost, number, state, out, string = heapq.heappop(todo)
            if state.is_accepting():
                return out
            if number not in judged:
                judged.add(number)
                allows = np.packbits(_allowed(state)).tobytes()
                seen[allows] += 1
                if seen[allows] > 1:
                    heapq.heappush(todo, (cost + REPEATED * (seen[allows] - 1), number, state, out, string))
                    continue
            for i, step in enumerate(self._steps(state, string)[:24]):
                child = state.deep_copy()
                if child.consume_tokens(list(step)):
                    text = out + step
                    opened = sum(text.count(b) for b in b"{[(") - sum(text.count(b) for b in b"}])")
                    cost = len(text) + 8 * max(0, opened)
                    heapq.heappush(todo, (cost, 32 * count + i + 1, child, text, open_string(string, step)))
        return None

    def _steps(self, matcher: Any, string: bytes | None) -> list[bytes]:
        """What may come next, those that end it soonest first: what is forced, the rest of a pattern, single bytes.

        Inside free text the closing quote comes first, elsewhere closing brackets; opening brackets come last.
        """
        if matcher.is_stopped():
            return []
        if forced := matcher.compute_ff_bytes():
            return [forced] if self.usable[list(forced)].all() else []
        allowed = _allowed(matcher) & self.usable
        rests = [] if string is None or allowed[QUOTE] else self._rests(matcher, string)
        free = np.count_nonzero(allowed) > _FREE
        order = _IN_TEXT if free else _BETWEEN
        kinds: dict[int, int] = {}  # one letter and one digit stand for all, others come later
        for byte in order[allowed[order]].tolist():
            kinds.setdefault(_KIND[byte], byte)
        others = [] if free else [b for b in order[allowed[order]].tolist() if b not in kinds.values()]
        return rests + [bytes([b]) for b in [*kinds.values(), *others]]

    def _rests(self, matcher: Any, string: bytes) -> list[bytes]:
        """Ends of the open string, by the patterns that it may follow; the shortest first."""
        found = []
        for pattern in self.patterns:
            rest = pattern.after(pattern.automaton.walk(0, string))
            if rest is not None and matcher.validate_tokens([*rest, QUOTE]) == len(rest) + 1:
                found.append(rest + b'"')
        return sorted(found, key=len)


def open_string(before: bytes | None, text: bytes) -> bytes | None:
    """What is written of the JSON string that is open after `text`; before: the same before `text`.  None: none is."""
    content = before
    for byte in text:
        if content is None:
            content = b"" if byte == QUOTE else None
        elif byte == QUOTE and (len(content) - len(content.rstrip(b"\\"))) % 2 == 0:
            content = None
        else:
            content += bytes([byte])
    return content


def _allowed(matcher: Any) -> np.ndarray:
    """(256,) whether each byte may come next."""
    mask = np.zeros(9, np.uint32)
    if not matcher.is_stopped():
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return np.unpackbits(mask.view(np.uint8), count=256, bitorder="little").astype(np.bool_)


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


QUOTE = ord('"')
_IN_TEXT, _BETWEEN = _order(b"\"}]')>;\n"), _order(b"}])\"'>;,:")
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_KIND = {b: 48 if 48 <= b < 58 else 97 if b in _LETTERS else 128 if b > 127 else b for b in range(256)}
_FREE = 40  # more allowed bytes than this: inside free text
