"""Suffix trees with counts, of finished texts and of one that grows: how often did these tokens occur, what came next?

Every suffix of the remembered text, cut at D tokens, is a path from the root.  A node covers a run of tokens (a place
in the text and a length) and counts the suffixes that go through all of it; a suffix that no other shares is not a node
but an entry of its parent's dictionary, the complement of its place.  A node with one child has a larger count than it.

Oliaro et al. 2024, arXiv:2411.04975 (SuffixDecoding).  Counts, and with them all proposals, are theirs; differences:
suffixes are inserted once, when they are complete or stand alone, so that a token costs a few steps instead of D, and
nodes are numbers in arrays (nothing for the garbage collector to walk), so that memory is about three small objects per
distinct suffix.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

ROOT = 0
END = -1  # stands after each sequence of a text of many
STALE = -1  # the most frequent child has to be looked for

TreePlace = tuple[int, int]  # (child, tokens used of its run); child < 0: the lone suffix at ~child


class SuffixTree:
    """Counts of all n-grams, n <= max_depth, of the suffixes inserted and not removed.

    Places in the text are absolute: they stay when the front of the text is dropped.
    newest  runs refer to the newest (else: to the oldest) suffix that goes through them.  A run's text must outlive the
            run, so texts that are forgotten from the front need True, from the end False
    """

    def __init__(self, max_depth: int, *, newest: bool):
        self.max_depth, self.newest = max_depth, newest
        self.text = array("i")
        self.base = 0  # the place of text[0]
        self._start = array("q", [0])
        self._length = array("i", [0])
        self._count = array("q", [0])
        self._best = array("i", [0])
        self._best_count = array("q", [0])
        self._children: list[dict[int, int] | None] = [{}]
        self._free: list[int] = []
        self._ids: dict[int, int] = {}  # one object per token id, shared by all dictionaries

    # --- reading ------------------------------------------------------------------------------------------------------

    def find(self, text: array, at: int, end: int) -> TreePlace | None:
        """The place after text[at:end], 1 to max_depth tokens; None if no suffix begins so."""
        own, base, lengths, children = self.text, self.base, self._length, self._children
        child = n = 0
        while at < end:
            kids = children[child]
            found = kids.get(text[at]) if kids else None
            if found is None:
                return None
            child = found
            if child < 0:
                n, start = end - at, ~child - base
                return (child, n) if own[start : start + n] == text[at:end] else None
            n = lengths[child]
            if n > 1:
                n = min(n, end - at)
                start = self._start[child] - base
                if own[start : start + n] != text[at : at + n]:
                    return None
            at += n
        return child, n

    def count(self, tokens: Sequence[int]) -> int:
        """How many suffixes begin with these tokens (at most max_depth)."""
        if not tokens:
            return self._count[ROOT]
        place = self.find(array("i", tokens), 0, len(tokens))
        return 0 if place is None else self.weight(place[0])

    def weight(self, child: int) -> int:
        """Suffixes that go through a place inside this child's run."""
        return 1 if child < 0 else self._count[child]

    def run(self, child: int, used: int, most: int) -> array:
        """What certainly follows inside the child's run, at most `most` tokens."""
        if child >= 0:
            start = self._start[child] - self.base
            return self.text[start + used : start + min(self._length[child], used + most)]
        start = ~child - self.base + used
        run = self.text[start : start + most]
        return run[: run.index(END)] if END in run else run

    def kids(self, node: int) -> dict[int, int]:
        """token -> child, after the end of the node's run."""
        return self._children[node] or {} if node >= 0 else {}

    def best(self, node: int) -> int | None:
        """The most frequent next token after a node's run, the smallest of equals; None if nothing follows."""
        if node < 0:
            return None
        if self._best_count[node] == STALE:
            best, most = 0, 0
            for token, child in (self._children[node] or {}).items():
                n = 1 if child < 0 else self._count[child]
                if n > most or (n == most and token < best):
                    best, most = token, n
            self._best[node], self._best_count[node] = best, most
        return self._best[node] if self._best_count[node] else None

    def follow(self, child: int, used: int, token: int) -> TreePlace | None:
        """The place one token on."""
        run = self.run(child, used, 1)
        if run:
            return (child, used + 1) if run[0] == token else None
        found = self.kids(child).get(token)
        return None if found is None else (found, 1)

    @property
    def size_bytes(self) -> int:
        """Of the text and the tree; looks at every node."""
        numbers = (self.text, self._start, self._length, self._count, self._best, self._best_count)
        total = sum(a.buffer_info()[1] * a.itemsize for a in numbers) + sys.getsizeof(self._children)
        total += sys.getsizeof(self._ids) + 28 * len(self._ids)
        return total + sum(sys.getsizeof(kids) + 32 * len(kids) for kids in self._children if kids is not None)

    # --- writing ------------------------------------------------------------------------------------------------------

    def insert(self, at: int, size: int) -> None:
        """Count the suffix at place `at`, of which `size` (1 to max_depth) tokens are known.

        A suffix of fewer than max_depth tokens may grow later if it stands alone.
        """
        text, base, counts, children = self.text, self.base, self._count, self._children
        end = at + size
        node = ROOT
        counts[ROOT] += 1
        while at < end:
            token = text[at - base]
            kids = children[node]
            if kids is None:
                kids = children[node] = {}
            child = kids.get(token)
            if child is None:
                kids[self._ids.setdefault(token, token)] = ~at
                self._raise(node, token, 1)
                return
            start, length = (~child, end - at) if child < 0 else (self._start[child], self._length[child])
            k = 1 if length == 1 else self._common(start, at, min(length, end - at))
            if child < 0 or k < length:
                room = self.max_depth - (size - (end - at))
                kids[token] = middle = self._split(child, start, k, at, room)
                self._raise(node, token, counts[middle])
                if at + k < end:
                    token = text[at + k - base]
                    rest = children[middle]
                    if rest is None:
                        rest = children[middle] = {}
                    rest[self._ids.setdefault(token, token)] = ~(at + k)
                    self._raise(middle, token, 1)
                return
            counts[child] += 1
            if self.newest:
                self._start[child] = at
            self._raise(node, token, counts[child])
            node = child
            at += k

    def remove(self, at: int, size: int) -> None:
        """Take back an insert: the suffix at place `at`, with as many tokens as are known now, at most max_depth."""
        text, base, counts, children = self.text, self.base, self._count, self._children
        end = at + size
        node, above, entry = ROOT, ROOT, 0
        counts[ROOT] -= 1
        while at < end:
            token = text[at - base]
            kids = children[node]
            assert kids is not None
            child = kids[token]
            self._lower(node, token)
            if child < 0:
                del kids[token]
                break
            counts[child] -= 1
            if counts[child] == 1:  # the one that stays is a lone suffix again
                kids[token] = ~self._start[child]
                self._discard(child)
                return
            above, entry, node = node, token, child
            at += self._length[child]
        self._join(above, entry, node)

    def _common(self, one: int, other: int, most: int) -> int:
        """How many of at most `most` tokens at two places agree; the first one does."""
        text, one, other = self.text, one - self.base, other - self.base
        if text[one : one + most] == text[other : other + most]:
            return most
        k = 1
        while text[one + k] == text[other + k]:
            k += 1
        return k

    def _split(self, child: int, start: int, k: int, at: int, room: int) -> int:
        """A node over the first k tokens of a child's run, through which the suffix at `at` goes, too.

        room  tokens that a lone suffix may have here
        """
        node = self._new(at if self.newest else start, k, self.weight(child) + 1)
        if child >= 0:
            self._start[child] = start + k
            self._length[child] -= k
        else:
            child = ~(start + k)
            if k == room or self.text[start + k - self.base] == END:
                return node
        token = self.text[start + k - self.base]
        self._children[node] = {self._ids.setdefault(token, token): child}
        self._raise(node, token, self.weight(child))
        return node

    def _join(self, above: int, entry: int, node: int) -> None:
        """Merge a node with its only child if that has the same count."""
        kids = self._children[node]
        if not kids:
            self._children[node] = None if node != ROOT else {}
            return
        if node == ROOT or len(kids) > 1:
            return
        [child] = kids.values()
        if child < 0 or self._count[child] != self._count[node]:
            return
        self._start[child] -= self._length[node]
        self._length[child] += self._length[node]
        parent = self._children[above]
        assert parent is not None
        parent[entry] = child
        self._children[node] = None
        self._free.append(node)

    def _raise(self, node: int, token: int, count: int) -> None:
        """A child's count grew to this: is it the most frequent one now?"""
        most = self._best_count[node]
        if most != STALE and (count > most or (count == most and token < self._best[node])):
            self._best[node], self._best_count[node] = token, count

    def _lower(self, node: int, token: int) -> None:
        if self._best[node] == token:
            self._best_count[node] = STALE

    def _new(self, start: int, length: int, count: int) -> int:
        if self._free:
            node = self._free.pop()
            self._start[node], self._length[node], self._count[node] = start, length, count
            self._best[node] = self._best_count[node] = 0
            return node
        self._start.append(start)
        self._length.append(length)
        self._count.append(count)
        self._best.append(0)
        self._best_count.append(0)
        self._children.append(None)
        return len(self._children) - 1

    def _discard(self, node: int) -> None:
        stack = [node]
        while stack:
            node = stack.pop()
            stack += [child for child in (self._children[node] or {}).values() if child >= 0]
            self._children[node] = None
            self._free.append(node)

    def copy(self) -> SuffixTree:
        twin = SuffixTree(self.max_depth, newest=self.newest)
        twin.text, twin.base = self.text[:], self.base
        twin._start, twin._length, twin._count = self._start[:], self._length[:], self._count[:]
        twin._best, twin._best_count = self._best[:], self._best_count[:]
        twin._children = [None if kids is None else kids.copy() for kids in self._children]
        twin._free, twin._ids = self._free.copy(), self._ids.copy()
        return twin


class GrowingText:
    """The suffix tree of one text that grows, and can be cut back, at its end; a token is added in a few steps.

    A suffix enters the tree as soon as it differs from all earlier ones, or has max_depth tokens.  The last
    `repeated` suffixes wait: each of them is the beginning of an earlier one, and shorter than max_depth.  So the last
    m < max_depth tokens have occurred before just for m <= repeated, and counts add those that wait to the tree's.
    """

    def __init__(self, max_depth: int, tokens: Sequence[int] = ()):
        self.tree = SuffixTree(max_depth, newest=False)
        self.text = self.tree.text
        self._inserted = 0  # the first suffix that waits
        self._after = array("q")  # _inserted after each token
        self._place: TreePlace | None = None  # of the longest suffix that waits
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
