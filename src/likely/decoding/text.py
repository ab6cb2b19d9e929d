"""Tokens become text as they come: never a cut UTF-8 character, never the beginning of a stop string.

And whether a text runs in circles: its end is one block of tokens again and again.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns token bytes into text that is safe to show, and watches for stop strings.

    `text` is everything released so far; a stop string and what follows it are never released.
    """

    def __init__(self, stops: Sequence[str] = (), skip: int = 0):
        """skip  bytes at the beginning that are not part of the text"""
        if any(not stop for stop in stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held, self._skip = "", skip
        self._released: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        return "".join(self._released)

    def push(self, data: bytes) -> str:
        """Add the bytes of one token; returns the text that became safe."""
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """No more tokens: release what was held back (a cut character becomes U+FFFD)."""
        out = self._take(self._decoder.decode(b"", final=True))
        if self.stopped:
            return out
        held, self._held = self._held, ""
        if held:
            self._released.append(held)
        return out + held

    def _take(self, new: str) -> str:
        if self.stopped or not new:
            return ""
        text = self._held + new
        if not self._stops:
            self._released.append(text)
            return text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, out, self._held = True, text[: min(found)], ""
        else:
            held = max(_overlap(text, stop) for stop in self._stops)
            out, self._held = text[: len(text) - held], text[len(text) - held :]
        if out:
            self._released.append(out)
        return out

    def fork(self) -> TextStream:
        copy = TextStream(self._stops, self._skip)
        copy._decoder.setstate(self._decoder.getstate())
        copy._held, copy._released, copy.stopped = self._held, self._released.copy(), self.stopped
        return copy


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


# --- circles ----------------------------------------------------------------------------------------------------------

LONGEST = 64  # tokens of a block
TIMES = 5  # so often the block must stand there, one after the other
LEAST = 48  # tokens that all of them have together
LEAST_OF_SHORT = 128  # the same for blocks of one or two tokens: lines of dots and dashes, rows of zeros


def least_of(period: int) -> int:
    """How many tokens at the end must repeat a block of `period` tokens."""
    return max(TIMES * period, LEAST if period > 2 else LEAST_OF_SHORT)


def runs_in_circles(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are one block of at most LONGEST tokens, again and again; of the tokens alone.

    Tables, code, lists and refrains stay far from it: in the six million characters of this project's own sources and
    pages, split as tokenizers do, no block stands five times in a row with 48 tokens together (cells of a table: four).
    """
    n = len(tokens)
    for period in range(1, min(LONGEST, n - 1) + 1):
        if tokens[-1 - period] != tokens[-1]:
            continue
        least = least_of(period)
        if n >= least and _repeats(tail := tokens[n - least :], period):
            if period > 2 and _repeats(tail, 2):  # it is made of a short block, which may stand there more often
                continue
            return True
    return False


def _repeats(tokens: Sequence[int], period: int) -> bool:
    return tokens[period:] == tokens[:-period]
