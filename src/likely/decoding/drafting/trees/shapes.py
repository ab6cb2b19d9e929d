"""Shapes of drafts that come from a model with a known q: grown level by level, one call of the draft per level.

A growth is a generator: it yields a level (tokens, parents; node numbers count on from the last level, the first
level is empty and stands for the root), receives log q (n, V) after each node of that level (after the root: (1, V)),
and returns the Draft.  Many growths advance together: one call of the draft model serves one level of all of them.

q is the draft's distribution after its own temperature and truncation.  How a shape chooses follows from how the target
does:

greedy          the likeliest tokens of q; a FIXED draft
keyed           the largest of log q + g, g being the noise that the target itself will use at that position: the draft
                guesses the target's own perturbed ranking; a FIXED draft
rejection, spectr   draws from q by noise of the draft's own; an IID or WITHOUT_REPLACEMENT draft

A budget below the size of the shape makes it smaller by a rule that does not look at what is sampled: fewer children,
narrower beams, fewer levels.  To drop samples for their own probability would bias the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, SamplingContext
from likely.decoding.drafting.trees.draws import independent, stochastic_beam_step, without_replacement
from likely.decoding.sampling import generator, gumbel
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.rows import logsumexp, top_tokens

TreeLevel = tuple[IntArray, IntArray]
DraftGrowth = Generator[TreeLevel, FloatArray, Draft]


class DraftShape(Protocol):
    """How a draft grows.  `position` is the absolute position of the token after the root."""

    @property
    def distributions(self) -> frozenset[DraftDistribution]: ...

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth: ...


@dataclass(frozen=True)
class ConstantBranching:
    """Every node at level l gets branching[l] children: N = Σ_l Π_{i<=l} branching[i].

    Sampled without replacement (RSD-C, Jeon et al. 2024, arXiv:2402.14160), or, with independent=True, independently,
    repeats included (SpecInfer, Miao et al. 2023, arXiv:2305.09781).  (1, .., 1) is speculative sampling.
    """

    branching: tuple[int, ...] = (3, 2, 1)
    independent: bool = False

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise ValueError(f"branching needs at least one level and numbers >= 1, got {tuple(self.branching)}")

    @property
    def _sampled(self) -> DraftDistribution:
        return DraftDistribution.IID if self.independent else DraftDistribution.WITHOUT_REPLACEMENT

    @property
    def distributions(self) -> frozenset[DraftDistribution]:
        return frozenset({DraftDistribution.FIXED, self._sampled})

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth:
        if chosen_by_target(context):
            return (yield from _ranked(self.branching, None, context, position, budget))
        noise = own_noise(context, position)
        sample = independent if self.independent else without_replacement
        tree = _Tree()
        for most in self.branching:
            tips = tree.tips
            counts = children_per_node(most, len(tips), budget - len(tree))
            if not any(counts):
                break
            rows = yield tree.level()
            for node, row, k in zip(tips, rows, counts, strict=True):
                if k:
                    tree.add_draws(node, row, sample(row, k, noise))
        return tree.draft(self._sampled)


@dataclass(frozen=True)
class Chain:
    """One guess after another, at most `length`: speculative sampling (Leviathan et al. 2023; Chen et al. 2023).

    confidence  the draft ends where q's best token has less probability
    Whether it goes on depends on q alone, not on what is sampled from it, so that each guess is distributed as q.
    Zhang et al. 2024, "Draft & Verify", arXiv:2309.08168.
    """

    length: int = 5
    confidence: float = 0.0
    distributions = frozenset({DraftDistribution.FIXED, DraftDistribution.IID})

    def __post_init__(self) -> None:
        check_positive(length=self.length)
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence}")

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth:
        sampling, noise = context.sampling, own_noise(context, position)
        tree, node = _Tree(), -1
        while len(tree) < min(self.length, budget):
            [log_q] = yield tree.level()
            if self.confidence and log_q.max() < np.log(self.confidence):
                break
            if not chosen_by_target(context):
                [node] = tree.add_draws(node, log_q, independent(log_q, 1, noise))
            else:
                z = log_q
                if not sampling.greedy:
                    z = log_q + gumbel(context.noise, context.sample, position + len(tree), len(log_q))
                node = tree.child(node, int(z.argmax()))
        return tree.draft(DraftDistribution.FIXED if chosen_by_target(context) else DraftDistribution.IID)


@dataclass(frozen=True)
class StochasticBeam:
    """RSD-S: whole sequences without replacement, `width` nodes at each of `depth` levels.

    Unlikely branches end early and the size is known beforehand: width * depth.  Jeon et al. 2024, arXiv:2402.14160;
    stochastic beam search: Kool et al. 2019, arXiv:1903.06059.
    """

    width: int = 4
    depth: int = 4
    distributions = frozenset({DraftDistribution.FIXED, DraftDistribution.WITHOUT_REPLACEMENT})

    def __post_init__(self) -> None:
        check_positive(width=self.width, depth=self.depth)

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth:
        widths = level_widths(self.width, self.depth, budget)
        if chosen_by_target(context):
            return (yield from _ranked((self.width,) * len(widths), widths, context, position, budget))
        noise = own_noise(context, position)
        tree = _Tree()
        phi = perturbed = np.zeros(1)
        for width in widths:
            tips = tree.tips
            rows = yield tree.level()
            step = stochastic_beam_step(phi, perturbed, rows, noise.gumbel(size=rows.shape), width)
            places: list[int] = []  # in the beam, of each new node
            for row, node in enumerate(tips):
                # the beam is sorted, so the children of a node come in the order of sampling
                here = np.flatnonzero(step.parents == row)
                if len(here):
                    tree.add_draws(node, rows[row], step.tokens[here])
                    places += here.tolist()
            phi, perturbed = step.phi[places], step.perturbed[places]
        return tree.draft(DraftDistribution.WITHOUT_REPLACEMENT)


@dataclass(frozen=True)
class IidPaths:
    """`paths` independent continuations of `depth` tokens, shared beginnings merged (SpecTr, Sun et al. 2023).

    A node that m paths pass through has m independent draws below it.  arXiv:2310.15141.
    """

    paths: int = 4
    depth: int = 4
    distributions = frozenset({DraftDistribution.FIXED, DraftDistribution.IID})

    def __post_init__(self) -> None:
        check_positive(paths=self.paths, depth=self.depth)

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth:
        widths = level_widths(self.paths, self.depth, budget)
        if chosen_by_target(context):
            return (yield from _ranked((self.paths,) * len(widths), widths, context, position, budget))
        noise = own_noise(context, position)
        tree = _Tree()
        ends = [-1] * (widths[0] if widths else 0)  # the last node of each path
        for width in widths:
            tips = tree.tips
            rows = yield tree.level()
            before, ends = ends[:width], []
            for node, row in zip(tips, rows, strict=True):
                if m := before.count(node):
                    ends += tree.add_draws(node, row, independent(row, m, noise))
        return tree.draft(DraftDistribution.IID)


_NAMED: dict[str, Callable[..., DraftShape]] = {
    "chain": lambda *sizes: Chain(*sizes),
    "rsd-c": lambda *sizes: ConstantBranching(sizes),
    "rsd-s": lambda *sizes: StochasticBeam(*sizes),
    "specinfer": lambda *sizes: ConstantBranching(sizes, independent=True),
    "spectr": lambda *sizes: IidPaths(*sizes),
}


def named_shape(text: str) -> DraftShape:
    """A shape as it is written: chain-5 (length), rsd-c-3-2-1 and specinfer-3-2-1 (children per level), rsd-s-4-4
    (width, depth), spectr-4-4 (paths, depth).
    """
    found = re.fullmatch(r"([a-z][a-z-]*?)((?:-\d{1,3})+)", text)
    two = found is not None and found[1] in ("rsd-s", "spectr")
    sizes = [int(size) for size in found[2][1:].split("-")] if found else []
    if not found or found[1] not in _NAMED or (two and len(sizes) != 2) or (found[1] == "chain" and len(sizes) != 1):
        raise ValueError("write chain-5, rsd-c-3-2-1, rsd-s-4-4, specinfer-3-2-1 or spectr-4-4")
    return _NAMED[found[1]](*sizes)


def chosen_by_target(context: SamplingContext) -> bool:
    """Whether the target's own pick decides at each node, so that the draft is FIXED."""
    return context.verification == "keyed" or context.sampling.greedy


def own_noise(context: SamplingContext, position: int) -> np.random.Generator:
    """The draft's noise of one round, independent of what the target uses."""
    return generator(context.noise, context.sample, position, "draft")


def _ranked(
    branching: Sequence[int], widths: Sequence[int] | None, context: SamplingContext, position: int, budget: int
) -> DraftGrowth:
    """A FIXED draft: the branching[l] best children of every node; with widths, only the best widths[l] of a level.

    Best by z = log q (greedy) or log q + g (keyed); a node's confidence is the sum of log softmax(z) down to it.
    """
    sampling = context.sampling
    tree, confidence = _Tree(), [0.0]  # the root's confidence comes last: index -1
    for level, most in enumerate(branching):
        tips = tree.tips
        counts = [most] * len(tips) if widths else children_per_node(most, len(tips), budget - len(tree))
        if not any(counts):
            break
        rows = yield tree.level()
        if not sampling.greedy:
            rows = rows + gumbel(context.noise, context.sample, position + level, rows.shape[1])
        found: list[tuple[float, int, int]] = []
        for node, z, k in zip(tips, rows, counts, strict=True):
            norm = logsumexp(z) if k else 0.0
            best = top_tokens(z, k)
            for token in best[z[best] > -np.inf].tolist():
                found.append((confidence[node] + min(float(z[token]) - norm, 0.0), node, token))
        found.sort(key=lambda each: -each[0])
        for sum_logprob, node, token in found[: widths[level] if widths else None]:
            tree.child(node, token)
            confidence.insert(-1, sum_logprob)
    return tree.ranked(confidence[:-1])


def children_per_node(most: int, nodes: int, left: int) -> list[int]:
    """(nodes,) how many children each node of a level gets: `most`, fewer if only `left` fit, the first ones first.

    It looks at nothing but numbers that are known before the children are sampled.
    """
    each = min(most, left // nodes)
    more = left - each * nodes if each < most else 0
    return [each + (i < more) for i in range(nodes)]


def level_widths(width: int, depth: int, budget: int) -> list[int]:
    """Widths of `depth` levels of at most `width` nodes, non-increasing, their sum at most `budget`; no empty level."""
    each, more = divmod(max(budget, 0), depth)
    widths = [min(width, each + (level < more)) for level in range(depth)]
    return [w for w in widths if w]


def check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")


@dataclass
class _Tree:
    """Nodes in level order, -1 being the root."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    log_q: dict[int, FloatArray] = field(default_factory=dict)
    draws: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _child: dict[tuple[int, int], int] = field(default_factory=dict)
    _yielded: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tips(self) -> list[int]:
        """The nodes of the level to be yielded next."""
        return list(range(self._yielded, len(self.tokens))) if self.tokens else [-1]

    def level(self) -> TreeLevel:
        first, self._yielded = self._yielded, len(self.tokens)
        return np.array(self.tokens[first:], np.int64), np.array(self.parents[first:], np.int64)

    def child(self, parent: int, token: int) -> int:
        """The node of that token below `parent`, made if there is none."""
        node = self._child.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def add_draws(self, parent: int, log_q: FloatArray, tokens: Iterable[int]) -> list[int]:
        """Hang draws from q below `parent`, in the order of sampling; returns their nodes."""
        nodes = [self.child(parent, int(token)) for token in tokens]
        self.log_q[parent], self.draws[parent] = np.asarray(log_q, np.float32), tuple(nodes)
        return nodes

    def draft(self, distribution: DraftDistribution) -> Draft:
        if not self.tokens:
            return NO_DRAFT
        return Draft(np.array(self.tokens), np.array(self.parents), distribution, self.log_q, self.draws)

    def ranked(self, confidence: Sequence[float]) -> Draft:
        """As a FIXED draft, most confident nodes first; no child may be more confident than its parent."""
        if not self.tokens:
            return NO_DRAFT
        order = np.argsort(-np.array(confidence), kind="stable")
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        parents = np.array(self.parents)[order]
        return Draft(np.array(self.tokens)[order], np.where(parents >= 0, number[parents], -1))
