"""Trees of pending tokens: which chains of nodes can be read next, and the states after each node."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from likely.runtimes.protocol import IntArray
from likely.runtimes.recurrent.checkpoints import StateRow
from likely.runtimes.recurrent.reading import TokenRun


def longest_chains(parents: Seq[int], first: int) -> list[list[int]]:
    """New nodes first, first + 1, ... as chains from parent to child: every node is in one, and a node's longest
    branch goes on its chain, so that a tree of n nodes is at most 1 + log2(n) chains deep."""
    n = len(parents)
    height, goes_on = [1] * n, [-1] * n
    for node in reversed(range(n)):
        parent = parents[node] - first
        if parent >= 0 and height[node] >= height[parent]:
            height[parent], goes_on[parent] = height[node] + 1, node
    chains = []
    for node in range(n):
        parent = parents[node] - first
        if parent >= 0 and goes_on[parent] == node:
            continue
        chain = [node]
        while goes_on[chain[-1]] >= 0:
            chain.append(goes_on[chain[-1]])
        chains.append([first + at for at in chain])
    return chains


class PendingTree:
    """The new nodes of one piece of work.

    parents  of each, among all pending nodes of the sequence: -1 is the last kept token
    earlier  states of the nodes that were pending before;  root: the state after the last kept token
    """

    def __init__(self, item: int, tokens: IntArray, parents: Seq[int], earlier: Seq[StateRow], root: StateRow):
        self._item, self._tokens, self._parents, self._root = item, tokens, list(parents), root
        self._first = len(earlier)
        self._states = dict(enumerate(earlier))
        self._left = longest_chains(self._parents, self._first)
        self._given: list[tuple[list[int], TokenRun]] = []

    def ready(self) -> list[TokenRun]:
        """The chains that begin at a node whose parent has been read; those given before must have been read."""
        for chain, run in self._given:
            self._states.update(zip(chain, run.found, strict=True))
        self._given, left = [], []
        for chain in self._left:
            parent = self._parents[chain[0] - self._first]
            before = self._root if parent < 0 else self._states.get(parent)
            if before is None:
                left.append(chain)
                continue
            own = [node - self._first for node in chain]
            self._given.append((chain, TokenRun(self._item, self._tokens[own], own, before, every=True)))
        self._left = left
        return [run for _, run in self._given]

    def states(self) -> list[StateRow]:
        """After each of the new nodes, when `ready` has nothing more to give."""
        return [self._states[self._first + node] for node in range(len(self._parents))]
