"""The suffix counts of one text that grows, and can be cut back, at its end."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from likely.decoding.drafting.suffix.tree import Place, SuffixTree


class GrowingText:
    """All suffixes of one text, each token added in a few steps.

    A suffix enters the tree as soon as it differs from all earlier ones, or has max_depth tokens.  The last
    `repeated` suffixes wait: each of them is the beginning of an earlier one, and shorter than max_depth.  So the last
    m < max_depth tokens have occurred before just for m <= repeated, and counts add those that wait to the tree's.
    """

    def __init__(self, max_depth: int, tokens: Sequence[int] = ()):
        self.tree = SuffixTree(max_depth, newest=False)
        self.text = self.tree.text
        self._inserted = 0  # the first suffix that waits
        self._after = array("q")  # _inserted after each token
        self._place: Place | None = None  # of the longest suffix that waits
        for token in tokens:
            self.append(token)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def repeated(self) -> int:
        return len(self.text) - self._inserted

    def append(self, token: int) -> None:
        tree, text = self.tree, self.text
        text.append(token)
        n = len(text)
        at, place = self._inserted, self._place
        if at == n - 1:
            place = tree.find(text, at, n)
        else:
            assert place is not None
            place = tree.follow(*place, token)
        while at < n and (place is None or n - at == tree.max_depth):
            tree.insert(at, n - at)
            at += 1
            place = tree.find(text, at, n) if at < n else None
        self._inserted, self._place = at, place
        self._after.append(at)

    def cut(self, n: int) -> None:
        """Take back the last n tokens."""
        if not 0 <= n <= len(self.text):
            raise ValueError(f"cannot take back {n} of {len(self.text)} tokens")
        if n == 0:
            return
        end = len(self.text)
        keep = self._after[end - n - 1] if n < end else 0
        for at in range(self._inserted - 1, keep - 1, -1):
            self.tree.remove(at, min(self.tree.max_depth, end - at))
        del self.text[end - n :], self._after[end - n :]
        self._inserted = keep
        end -= n
        self._place = self.tree.find(self.text, keep, end) if keep < end else None

    def ends(self, m: int) -> list[int]:
        """Where those occurrences of the last m <= repeated tokens end that wait; the end of the text is one."""
        text, n = self.text, len(self.text)
        pattern = text[n - m :]
        last = text[-1]
        window = text[self._inserted + m - 1 :]
        if window.count(last) == 1:
            return [n]
        offset = self._inserted + m
        places = (offset + i for i, token in enumerate(window) if token == last)
        return [end for end in places if text[end - m : end] == pattern]

    def count(self, tokens: Sequence[int]) -> int:
        """Occurrences of 1 to max_depth tokens in the text."""
        pattern, n = array("i", tokens), len(tokens)
        waiting = range(self._inserted, len(self.text) - n + 1)
        return self.tree.count(tokens) + sum(self.text[i : i + n] == pattern for i in waiting)

    def copy(self) -> GrowingText:
        twin = GrowingText(self.tree.max_depth)
        twin.tree = self.tree.copy()
        twin.text = twin.tree.text
        twin._inserted, twin._after, twin._place = self._inserted, self._after[:], self._place
        return twin
