"""Prefix cache: sequences that have ended stay in the runtime, so that a prompt that begins like one is computed once.

A radix tree over token ids, one per salt. A node is a run of tokens; a leaf holds a sequence of the runtime with all
tokens from the root to it. What two texts share lies in the runtime once, because one was forked from the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from likely.errors import KvFull, ModelError
from likely.runtimes.protocol import IntArray, Runtime, Sequence

LEAST = 8  # tokens that are worth a fork
MOST_TWICE = 64  # tokens of a text that may lie in the runtime twice


@dataclass(eq=False)
class _Node:
    """A run of tokens below `parent`; `sequence` in leaves alone, `used` the time of the last look-up.

    twice  first and end of what the leaf's sequence holds a second time
    """

    tokens: IntArray
    parent: _Node | None
    used: int = 0
    children: dict[int, _Node] = field(default_factory=dict)
    sequence: Sequence | None = None
    twice: tuple[int, int] = (0, 0)

    @property
    def depth(self) -> int:
        """Tokens from the root to its end."""
        node: _Node | None = self
        total = 0
        while node is not None:
            total, node = total + len(node.tokens), node.parent
        return total

    def leaves(self) -> Iterator[_Node]:
        stack = [self]
        while stack:
            node = stack.pop()
            if node.sequence is not None:
                yield node
            stack += node.children.values()


class PrefixCache:
    """Sequences of one runtime, by the tokens that they keep; the least recently used ones give way.

    max_tokens     kept in all; None: half of what the runtime holds
    max_sequences  kept in all; None: an eighth of the runtime's

    The runtime must fork and truncate. Whoever holds the runtime's turn may call; what is kept can be given up at any
    time (`evict`), so it never stands in the way of a text. Rows stay what they are without the cache where the
    runtime's logits do not depend on how a text is cut into calls (`Capabilities.invariant_logits`).
    salt  texts with different salts share nothing: that a prompt comes sooner tells that it was seen before
    """

    def __init__(self, runtime: Runtime, *, max_tokens: int | None = None, max_sequences: int | None = None):
        self._runtime = runtime
        limits = runtime.limits
        self.max_tokens = limits.tokens_held // 2 if max_tokens is None else max_tokens
        self.max_sequences = max(1, limits.sequences // 8) if max_sequences is None else max_sequences
        self.able = runtime.capabilities.fork and runtime.capabilities.truncate and self.max_tokens > 0
        self._roots: dict[str, _Node] = {}
        self._clock = 0
        self.tokens = 0  # kept now
        self.sequences = 0
        self.looked_up = 0  # tokens of prompts that were looked for, and those of them that were found
        self.found = 0

    def match(self, tokens: Seq[int], salt: str = "") -> int:
        """How many of the first tokens are kept."""
        root = self._roots.get(salt)
        return 0 if root is None else self._walk(root, np.asarray(tokens, np.int64))[2]

    def fork(self, tokens: Seq[int], salt: str = "") -> Sequence | None:
        """A sequence that keeps as many of a prompt's first tokens as are known, never all of them; None: too few.

        It belongs to the caller.  None, too, where the runtime has no room for one more.
        """
        if not self.able:
            return None
        root = self._roots.get(salt)
        if root is None:
            return None
        prompt = np.asarray(tokens, np.int64)[: len(tokens) - 1]  # the last one's row is wanted
        node, inside, length = self._walk(root, prompt)
        if length < LEAST:
            return None
        if 0 < inside < len(node.tokens):
            node = self._split(node, inside)
        leaf = next(node.leaves())
        assert leaf.sequence is not None
        try:
            forked = self._runtime.fork(leaf.sequence, length)
        except KvFull:
            return None
        except ModelError:  # other weights than before: what is kept belongs to the old ones
            self._forget()
            return None
        self._touch(node)
        return forked

    def count(self, looked_up: int, found: int) -> None:
        """Of a prompt that is now being computed: its tokens, and those of them that were kept."""
        self.looked_up += looked_up
        self.found += found

    def keep(self, tokens: Seq[int], sequence: Sequence, salt: str = "", *, shared: int | None = None) -> bool:
        """Take over a sequence that keeps exactly these tokens, with nothing pending; whether it is kept.

        shared  how many of its first tokens came from this cache; what it has beyond that in common with others lies in
                the runtime twice, and where that is much it is left out.  None: all that is common counts as shared
        Where it is not kept the caller still owns the sequence.
        """
        held = np.asarray(tokens, np.int64)
        if not self.able or len(held) < LEAST or len(held) > self.max_tokens:
            return False
        root = self._roots.setdefault(salt, _Node(np.empty(0, np.int64), None))
        node, inside, length = self._walk(root, held)
        branch = length if inside < len(node.tokens) or node.sequence is None else length - len(node.tokens)
        twice = (branch if shared is None else min(shared, branch), branch)
        if branch < length and (shared is None or shared > branch):  # it was forked from the leaf that it replaces
            twice = node.twice
        if length == len(held) or twice[1] - twice[0] > MOST_TWICE:
            self._touch(node)
            return False
        if inside < len(node.tokens):
            node = self._split(node, inside)
        leaf = _Node(held[length:].copy(), node, sequence=sequence, twice=twice)
        node.children[int(held[length])] = leaf
        if node.sequence is not None:  # it is a beginning of the new one
            self._runtime.close(node.sequence)
            self.tokens -= node.twice[1] - node.twice[0]
            node.sequence, node.twice = None, (0, 0)
            self.sequences -= 1
        self.sequences += 1
        self.tokens += len(leaf.tokens) + twice[1] - twice[0]
        self._touch(leaf)
        while self.tokens > self.max_tokens or self.sequences > self.max_sequences:
            self._drop_oldest()
        return True

    def evict(self, full: KvFull | None = None) -> bool:
        """Give up the least recently used: at least one and as many as are missing, or all; whether there was any."""
        before, dropped = self.sequences, 0
        while self.sequences:
            self._drop_oldest()
            dropped += 1
            if full is not None:
                tokens = full.unit == "tokens"
                if self._runtime.free_tokens() >= full.needed if tokens else before - self.sequences >= full.needed:
                    break
        return dropped > 0

    def make_room(self, tokens: int) -> bool:
        """Give up what is least recently used until so many tokens are free; whether they are."""
        while self._runtime.free_tokens() < tokens:
            if not self.sequences:
                return False
            self._drop_oldest()
        return True

    def clear(self) -> None:
        """Give up everything."""
        self.evict()
        self._roots = {}

    # --- the tree -------------------------------------------------------------------------------------------------

    def _walk(self, root: _Node, tokens: IntArray) -> tuple[_Node, int, int]:
        """(the node where the common beginning ends, how many of its tokens are common, how many in all)"""
        node, inside, length = root, 0, 0
        while length < len(tokens):
            child = node.children.get(int(tokens[length]))
            if child is None:
                break
            node = child
            n = min(len(node.tokens), len(tokens) - length)
            differ = np.nonzero(node.tokens[:n] != tokens[length : length + n])[0]
            inside = int(differ[0]) if len(differ) else n
            length += inside
            if inside < len(node.tokens):
                break
        return node, inside if node is not root else 0, length

    def _split(self, node: _Node, at: int) -> _Node:
        """Two nodes of one; returns the upper one."""
        upper = _Node(node.tokens[:at], node.parent, node.used)
        assert node.parent is not None
        node.parent.children[int(upper.tokens[0])] = upper
        node.tokens, node.parent = node.tokens[at:], upper
        upper.children[int(node.tokens[0])] = node
        return upper

    def _touch(self, node: _Node | None) -> None:
        self._clock += 1
        while node is not None:
            node.used, node = self._clock, node.parent

    def _drop_oldest(self) -> None:
        """One leaf goes; where it was the only one of its kind its beginning stays, as a leaf of its own."""
        leaf = min((leaf for root in self._roots.values() for leaf in root.leaves()), key=lambda leaf: leaf.used)
        parent, sequence = leaf.parent, leaf.sequence
        assert parent is not None and sequence is not None
        del parent.children[int(leaf.tokens[0])]
        first, end = leaf.twice
        self.tokens -= len(leaf.tokens) + end - first
        if parent.children or parent.parent is None:
            self.sequences -= 1
            self._runtime.close(sequence)
        else:
            self._runtime.truncate(sequence, parent.depth)
            parent.sequence, parent.twice = sequence, (min(first, parent.depth), min(end, parent.depth))
            self.tokens += parent.twice[1] - parent.twice[0]
        for salt in [salt for salt, root in self._roots.items() if not root.children]:
            del self._roots[salt]

    def _forget(self) -> None:
        self._roots, self.tokens, self.sequences = {}, 0, 0
