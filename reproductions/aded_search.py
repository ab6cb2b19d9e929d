"""The searches that ADED is compared with: Monte Carlo tree search (the paper's), all successors, a greedy chain.

Each takes `look`: pair -> (tokens that may follow, their weights), heaviest first, and returns what `best_first` of
`likely.decoding.drafting.trigram.drafter` does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from likely.decoding.drafting.trigram.drafter import DOUBT, Found, Look, TrigramMemory
from likely.decoding.drafting.trigram.table import Successors, TrigramTable, next_pair
from likely.decoding.sampling import generator

C1, C2 = 32.0, 8.0  # of the exploration bonus, as in the authors' code


def puct(total: float, visits: int, prior: float, parent_visits: int, *, c1: float = C1, c2: float = C2) -> float:
    """How promising a child is: total / visits + (c1 + ln((N + c2 + 1) / c2)) · prior · √N / (1 + visits).

    N = parent_visits.  Unvisited: infinite.  Liu et al. 2025 (ADED), constants as in the authors' code.
    """
    if not visits:
        return math.inf
    bonus = (c1 + math.log((parent_visits + c2 + 1) / c2)) * math.sqrt(parent_visits)
    return total / visits + bonus * prior / (1 + visits)


@dataclass
class _Tree:
    """Nodes in arrays; node 0 is the root pair, children of one node lie side by side, heaviest first."""

    pairs: list[int]
    tokens: list[int]
    parents: list[int]
    levels: list[int]
    priors: list[float]
    sums: list[float]  # Σ weights from the root
    shares: list[float]
    visits: list[int]
    totals: list[float]
    first: list[int]  # -1: not expanded
    sizes: list[int]
    tried: list[int]  # children visited so far

    @classmethod
    def root(cls, pair: int) -> _Tree:
        return cls([pair], [-1], [-1], [0], [1.0], [0.0], [1.0], [0], [0.0], [-1], [0], [0])

    def expand(self, node: int, found: Successors) -> None:
        tokens, weights = found
        n, whole = len(tokens), sum(weights) + DOUBT
        self.first[node], self.sizes[node] = len(self.pairs), n
        self.pairs += [next_pair(self.pairs[node], token) for token in tokens]
        self.tokens += tokens
        self.parents += [node] * n
        self.levels += [self.levels[node] + 1] * n
        self.priors += weights
        self.sums += [self.sums[node] + weight for weight in weights]
        self.shares += [self.shares[node] * weight / whole for weight in weights]
        self.visits += [0] * n
        self.totals += [0.0] * n
        self.first += [-1] * n
        self.sizes += [0] * n
        self.tried += [0] * n

    def best_child(self, node: int) -> int:
        """The child of largest `puct`; an unvisited one first."""
        first = self.first[node]
        if self.tried[node] < self.sizes[node]:
            self.tried[node] += 1
            return first + self.tried[node] - 1
        parent_visits = self.visits[node]
        bonus = (C1 + math.log((parent_visits + C2 + 1) / C2)) * math.sqrt(parent_visits)
        best, best_value = first, -math.inf
        visits, totals, priors = self.visits, self.totals, self.priors
        for child in range(first, first + self.sizes[node]):
            n = visits[child]
            value = totals[child] / n + bonus * priors[child] / (1 + n)
            if value > best_value:
                best, best_value = child, value
        return best


def mcts(
    look: Look, pair: int, *, budget: int, uniform: Iterator[float], depth: int = 4, iterations: int = 150,
    paths: int = 24,
) -> Found:  # fmt: skip
    """Monte Carlo tree search with an exploration bonus (Liu et al. 2025).

    Each iteration descends by `puct`, expands one node, completes the sentence to `depth` tokens by draws in proportion
    to the weights (one `uniform` each), and adds 1 + Σ weights of the sentence to every node on the way.  The draft is
    the `paths` most visited nodes, each continued by its heaviest successor, in the order of their visits.
    """
    tree = _grown(look, pair, uniform, depth, iterations)
    chosen = sorted(range(1, len(tree.pairs)), key=lambda node: -tree.visits[node])[:paths]
    ranks: dict[int, float] = {node: tree.visits[node] for node in chosen}
    for node in chosen:
        if tree.first[node] < 0:
            tree.expand(node, look(tree.pairs[node]))
        if tree.sizes[node]:
            child = tree.first[node]
            estimate = tree.visits[node] * tree.shares[child] / tree.shares[node]
            ranks[child] = max(ranks.get(child, tree.visits[child]), estimate)
    order = sorted(ranks, key=lambda node: (-ranks[node], node))[:budget]  # parents were made before their children
    number = {0: -1} | {node: i for i, node in enumerate(order)}
    return (
        [tree.tokens[node] for node in order],
        [number[tree.parents[node]] for node in order],
        [tree.shares[node] for node in order],
    )


def _grown(look: Look, pair: int, uniform: Iterator[float], depth: int, iterations: int) -> _Tree:
    tree = _Tree.root(pair)
    for _ in range(iterations):
        node = 0
        path = [0]
        while tree.sizes[node]:
            node = tree.best_child(node)
            path.append(node)
        if tree.first[node] < 0 and tree.levels[node] < depth:
            tree.expand(node, look(tree.pairs[node]))
            if tree.sizes[node]:
                node = tree.best_child(node)
                path.append(node)
            elif node == 0:
                break
        value = 1 + tree.sums[node] + _rollout(look, tree.pairs[node], depth - tree.levels[node], uniform)
        for visited in path:
            tree.visits[visited] += 1
            tree.totals[visited] += value
    return tree


def _rollout(look: Look, pair: int, steps: int, uniform: Iterator[float]) -> float:
    """Σ weights of at most `steps` tokens drawn in proportion to their weights."""
    value = 0.0
    for _ in range(steps):
        tokens, weights = look(pair)
        if not tokens:
            break
        ends = list(accumulate(weights))
        i = bisect_right(ends, next(uniform) * ends[-1])
        value += weights[i]
        pair = next_pair(pair, tokens[i])
    return value


def full(look: Look, pair: int, *, budget: int, depth: int = 4) -> Found:
    """All successors level by level, as far as the budget goes."""
    tokens: list[int] = []
    parents: list[int] = []
    shares: list[float] = []
    level = [(-1, pair, 1.0)]
    for _ in range(depth + 1):
        below = []
        for parent, key, share in level:
            found, weights = look(key)
            whole = sum(weights) + DOUBT
            for token, weight in zip(found, weights, strict=True):
                if len(tokens) == budget:
                    return tokens, parents, shares
                below.append((len(tokens), next_pair(key, token), share * weight / whole))
                tokens.append(token)
                parents.append(parent)
                shares.append(below[-1][2])
        level = below
    return tokens, parents, shares


def greedy(look: Look, pair: int, *, budget: int, depth: int = 4) -> Found:
    """One chain: always the heaviest successor."""
    tokens: list[int] = []
    shares: list[float] = []
    share = 1.0
    while len(tokens) < min(budget, depth + 1):
        found, weights = look(pair)
        if not found:
            break
        share *= weights[0] / (sum(weights) + DOUBT)
        tokens.append(found[0])
        shares.append(share)
        pair = next_pair(pair, found[0])
    return tokens, list(range(-1, len(tokens) - 1)), shares


class Searched(TrigramMemory):
    """A trigram memory with one of these searches.

    iterations, paths  of MCTS: sentences tried, most visited nodes taken (None: as many as a draft may have)
    """

    def __init__(
        self,
        table: TrigramTable,
        search: str,
        *,
        iterations: int = 150,
        paths: int | None = None,
        depth: int = 4,
        rate: float = 0.32,
        scope: str = "all",
    ):
        super().__init__(table, depth=depth, rate=rate, scope=scope)  # type: ignore[arg-type]
        self.search, self.iterations, self.paths = search, iterations, paths

    def find(self, look: Look, pair: int, place: int, budget: int) -> Found:
        if self.search != "mcts":
            search: Callable[..., Found] = {"greedy": greedy, "full": full}[self.search]
            return search(look, pair, budget=budget, depth=self.depth)
        draws = generator(pair, place, 0, self.name).random(self.iterations * self.depth)
        return mcts(
            look, pair, budget=budget, uniform=iter(draws.tolist()), depth=self.depth, iterations=self.iterations,
            paths=budget if self.paths is None else self.paths,
        )  # fmt: skip


def memory_of(
    table: TrigramTable, search: str, *, depth: int = 4, rate: float = 0.32, scope: str = "all",
    paths: int | None = None,
) -> TrigramMemory:  # fmt: skip
    """Of the package where it has the search."""
    if search == "best_first":
        return TrigramMemory(table, depth=depth, rate=rate, scope=scope)  # type: ignore[arg-type]
    return Searched(table, search, depth=depth, rate=rate, scope=scope, paths=paths)
