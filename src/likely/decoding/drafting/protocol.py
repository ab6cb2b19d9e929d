"""Drafts: guesses of what comes next, as trees of tokens, and who makes them.

A drafter can be slow, never wrong: what is emitted is decided by the target alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from likely.decoding.sampling import Sampling
from likely.runtimes.protocol import FloatArray, IntArray, Runtime
from likely.runtimes.protocol import Sequence as Held

Verification = Literal["keyed", "rejection", "spectr"]


class DraftDistribution(Enum):
    """How the children of a node were chosen; it decides which acceptance rules of `decoding.accept` are exact."""

    FIXED = "fixed"  # in any way that has not seen the target's choice: rules M and G
    IID = "iid"  # sampled independently from q: also rules R and K
    WITHOUT_REPLACEMENT = "without_replacement"  # sampled from q, each without the earlier ones: also rule R


@dataclass(frozen=True)
class Draft:
    """A tree of guesses under the last emitted token, likeliest nodes first where the drafter knows.

    tokens        (N,) target token ids;  parents: (N,) with parents[i] < i, -1 for a child of the root.  No two
                  siblings alike.  Any first n nodes are a draft, too.
    distribution  how siblings were chosen
    log_q         of a sampled draft: node (-1: root) -> log q (V,) fp32 that its children were sampled from, after the
                  draft's own temperature and truncation
    draws         of a sampled draft: node -> its children in the order of sampling, repeats (IID) included
    match         how many of the last tokens agree with the place that the guess was copied from; 0: unknown
    expected      the drafter's own estimate of how many of its nodes will be kept; None: unknown
    """

    tokens: IntArray
    parents: IntArray
    distribution: DraftDistribution = DraftDistribution.FIXED
    log_q: Mapping[int, FloatArray] = field(default_factory=lambda: MappingProxyType({}))
    draws: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    match: int = 0
    expected: float | None = None

    @classmethod
    def chain(cls, tokens: Sequence[int], *, match: int = 0, expected: float | None = None) -> Draft:
        n = len(tokens)
        return cls(np.asarray(tokens, np.int64), np.arange(-1, n - 1, dtype=np.int64), match=match, expected=expected)

    def __len__(self) -> int:
        return len(self.tokens)

    def check(self, *, budget: int, vocab_size: int, name: str) -> None:
        """ValueError that names the drafter, unless this is a tree of at most `budget` tokens of the vocabulary."""
        n = len(self.tokens)
        if n > budget:
            raise ValueError(f"drafter {name} proposed {n} tokens, its budget was {budget}")
        if self.parents.shape != (n,):
            raise ValueError(f"drafter {name}: parents must have shape ({n},), got {self.parents.shape}")
        if n and (self.tokens.min() < 0 or self.tokens.max() >= vocab_size):
            raise ValueError(f"drafter {name} proposed a token outside 0..{vocab_size - 1}")
        if n and ((self.parents < -1) | (self.parents >= np.arange(n))).any():
            raise ValueError(f"drafter {name}: each parent must be -1 or come before its child")
        if len(set(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))) != n:
            raise ValueError(f"drafter {name} proposed the same token twice under one parent")
        if self.distribution is not DraftDistribution.FIXED:
            self._check_distribution(vocab_size, name)

    def _check_distribution(self, vocab_size: int, name: str) -> None:
        for parent, children in self.children().items():
            q, draws = self.log_q.get(parent), self.draws.get(parent, ())
            if q is None or q.shape != (vocab_size,):
                raise ValueError(
                    f"drafter {name}: its distribution is {self.distribution.value}, but log_q of node {parent} is "
                    f"missing"
                )
            if set(draws) != set(children.values()):
                raise ValueError(f"drafter {name}: draws of node {parent} must name its children, got {draws}")
            if self.distribution is DraftDistribution.WITHOUT_REPLACEMENT and len(draws) != len(children):
                raise ValueError(f"drafter {name}: a child of node {parent} was sampled twice without replacement")

    def depths(self) -> IntArray:
        """(N,) 1 for children of the root."""
        depths = np.zeros(len(self.tokens), np.int64)
        for i, parent in enumerate(self.parents.tolist()):
            depths[i] = 1 + (depths[parent] if parent >= 0 else 0)
        return depths

    def cut(self, depth: int) -> Draft:
        """Without the nodes below `depth`: exact for every distribution, for a depth fixed beforehand."""
        if not len(self) or len(self) <= depth:
            return self
        keep = self.depths() <= depth
        if keep.all():
            return self
        return self.only(keep)

    def first(self, n: int) -> Draft:
        """The first n nodes.  Only for fixed drafts: elsewhere n would depend on the samples, and bias the text."""
        if n >= len(self):
            return self
        if self.distribution is not DraftDistribution.FIXED:
            raise ValueError(f"a draft of distribution {self.distribution.value} cannot be cut after it was sampled")
        return replace(self, tokens=self.tokens[:n], parents=self.parents[:n])

    def only(self, keep: np.ndarray) -> Draft:
        """The nodes where keep (N,) is True; with a node its parent must stay."""
        number = np.where(keep, np.cumsum(keep) - 1, -1)
        parents = self.parents[keep]
        renumber = dict(zip(np.flatnonzero(keep).tolist(), number[keep].tolist(), strict=True)) | {-1: -1}
        draws = {
            renumber[node]: tuple(renumber[c] for c in children if c in renumber)
            for node, children in self.draws.items()
            if node in renumber and any(c in renumber for c in children)
        }
        return replace(
            self,
            tokens=self.tokens[keep],
            parents=np.where(parents >= 0, number[parents], -1),
            log_q={renumber[node]: q for node, q in self.log_q.items() if renumber.get(node) in draws},
            draws=draws,
        )

    def children(self) -> dict[int, dict[int, int]]:
        """node (-1: root) -> {token: child node}."""
        out: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(self.parents.tolist(), self.tokens.tolist(), strict=True)):
            out.setdefault(parent, {})[token] = node
        return out

    @property
    def is_chain(self) -> bool:
        return bool((self.parents == np.arange(-1, len(self) - 1)).all())


NO_DRAFT = Draft.chain([])


@dataclass(frozen=True)
class SamplingContext:
    """How the target samples one text, so that its drafter can guess accordingly.

    sample, noise the noise is keyed by both; see `Request.noise`
    verification  "keyed": rules M and G, any draft; a drafter may use the target's own noise
                  "rejection", "spectr": rules R and K; the draft must be sampled from its q, with noise of its own
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    sample: int = 0
    verification: Verification = "keyed"
    noise: int = 0


class Drafter(Protocol):
    """The guesses for one sequence; it has seen the prompt."""

    def propose(self, budget: int) -> Draft: ...  # N <= budget; N = 0 is fine
    def observe(self, tokens: Sequence[int]) -> None: ...  # what was really emitted, each token exactly once
    def fork(self, context: SamplingContext) -> Drafter: ...  # for another sample of the same prompt
    def rollback(self, n: int) -> None: ...  # forget the last n observed tokens
    def end(self) -> None: ...  # release; may be called twice


class DraftSource(Protocol):
    """Knowledge shared by all requests; makes one Drafter per sequence.

    distributions  what its drafts may be
    free           whether a proposal costs next to nothing beside a call of the target (no model runs); the budget
                   controller then asks for a draft first and decides afterwards how much of it to verify
    """

    name: str
    distributions: frozenset[DraftDistribution]
    free: bool

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> Drafter: ...


@runtime_checkable
class DraftsTogether(Protocol):
    """A source that gains from drafting for many sequences at once."""

    def propose_many(self, drafters: Sequence[Drafter], budgets: Sequence[int]) -> list[Draft]: ...


@runtime_checkable
class UsesTarget(Protocol):
    """A drafter that runs the target's own weights on the target's own sequence (and leaves it as it was).

    Called before each proposal: `held` keeps everything but the newest token `root`; no node is pending.
    """

    def attach(self, runtime: Runtime, held: Held, root: int) -> None: ...


def check_rollback(n: int, observed: int) -> None:
    """ValueError unless n of the observed tokens can be forgotten."""
    if not 0 <= n <= observed:
        raise ValueError(f"cannot forget {n} tokens, {observed} were observed")


FIXED_ONLY = frozenset({DraftDistribution.FIXED})  # drafts of a source that knows no q
