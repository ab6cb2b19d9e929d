"""The Runtime protocol: weights that hold many token sequences and evaluate new tokens on them.

Everything that runs a model (scoring, sampling, speculation, serving) is one call of `forward` over a list of `Work`.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, ModelError
from likely.runtimes.kinds import KINDS, kinds_with
from likely.runtimes.turns import Turn

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Path = Seq[int]  # pending node numbers, from a child of the last kept token downwards


@dataclass(frozen=True)
class Want:
    """What one piece of work returns. A row is the model's output after one of its tokens.

    rows    which rows: "none", "last", "all", or row numbers; the four flags below apply to them
    logits  (R, V) raw logits        top  the k most likely tokens and their logprobs
    entropy (R,) nats                hidden  (R, D) last hidden states, after the final norm
    pairs   (P, 2) of (row, token id): the logprob of that token after that row; rows need not be in `rows`

    All logprobs are natural logarithms from a log-softmax in fp32 over all V columns.
    """

    rows: Literal["none", "last", "all"] | tuple[int, ...] = "last"
    logits: bool = False
    top: int = 0
    entropy: bool = False
    hidden: bool = False
    pairs: IntArray | None = None

    NONE: ClassVar[Want]
    LAST: ClassVar[Want]
    ALL: ClassVar[Want]

    def row_numbers(self, n: int) -> IntArray:
        """The rows asked for in a piece of work of n tokens, in the order asked."""
        if self.rows == "none":
            return np.empty(0, np.int64)
        if self.rows == "last":
            return np.array([n - 1], np.int64)
        if self.rows == "all":
            return np.arange(n, dtype=np.int64)
        return np.asarray(self.rows, np.int64)


Want.NONE = Want(rows="none")
Want.LAST = Want(rows="last", logits=True)
Want.ALL = Want(rows="all", logits=True)


@dataclass(frozen=True)
class Output:
    """What came back for one piece of work; a field that was not wanted is None. R rows as asked, P pairs as asked."""

    logits: FloatArray | None = None  # (R, V)
    top_ids: IntArray | None = None  # (R, k), most likely first
    top_logprobs: FloatArray | None = None  # (R, k)
    entropy: FloatArray | None = None  # (R,)
    hidden: FloatArray | None = None  # (R, D)
    logprobs: FloatArray | None = None  # (P,)


@dataclass(frozen=True)
class LayerPlan:
    """How a call departs from a model's layers, counted from 0; the final norm and the head always run.

    skip_attention, skip_mlp  these sublayers add nothing to the residual stream; a layer in both sets costs nothing
    parallel  groups of consecutive layers whose attentions all read the group's input, so that they can run at the same
              time: a_j = attention_j(norm_j(h)), then x = h and, layer by layer, x += a_j; x += mlp_j(norm'_j(x)).
              A group of one layer is that layer as it is
    """

    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()
    parallel: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        grouped: set[int] = set()
        for group in self.parallel:
            if not group or list(group) != list(range(group[0], group[0] + len(group))):
                raise ValueError(f"a parallel group holds consecutive layers, got {list(group)}")
            for what, taken in (("in two groups", grouped), ("left out", self.skip_attention | self.skip_mlp)):
                if both := taken.intersection(group):
                    raise ValueError(f"layer {min(both)} of the parallel group {list(group)} is also {what}")
            grouped.update(group)

    @property
    def named(self) -> frozenset[int]:
        """Every layer that it mentions."""
        return self.skip_attention.union(self.skip_mlp, *self.parallel)

    def attention_depth(self, layers: int) -> int:
        """How many attentions of a model of so many layers must run one after the other."""
        return layers - len(self.skip_attention) - sum(len(group) - 1 for group in self.parallel)

    @classmethod
    def exit_after(cls, kept: int, of: int) -> LayerPlan:
        """Early exit: only the first `kept` of `of` layers."""
        rest = frozenset(range(kept, of))
        return cls(rest, rest)


@dataclass(eq=False)
class Sequence:
    """A token sequence held by a runtime: `length` kept tokens, then a tree of `pending` ones.

    parents[i] is the pending node before node i, or -1 for the last kept token.
    plan is what the pending nodes were computed under; None: all of the model.
    """

    length: int = 0
    parents: list[int] = field(default_factory=list)
    closed: bool = False
    plan: LayerPlan | None = None

    @property
    def pending(self) -> int:
        return len(self.parents)

    def depth(self, node: int) -> int:
        """Steps from the last kept token: 1 for its children. The node's position is length + depth - 1."""
        depth = 0
        while node != -1:
            depth, node = depth + 1, self.parents[node]
        return depth

    def path(self, node: int) -> list[int]:
        """Pending nodes from a child of the last kept token down to `node`."""
        path = []
        while node != -1:
            path.append(node)
            node = self.parents[node]
        return path[::-1]


@dataclass(frozen=True)
class Work:
    """What one sequence asks of one call.

    tokens     (n,) new token ids, n >= 1
    parents    None: a chain after the last kept token, kept at once (not allowed while nodes are pending).
               Else (n,) pending node numbers, counted since the last commit: node i of this work has number
               sequence.pending + i, its parent a smaller number or -1 (the last kept token); the nodes stay pending
               until `commit`. A later call may extend pending nodes.
    attention  "full": these tokens see each other, too (a diffusion canvas); always pending, parents a chain
    layers     computed with parts of the model left out or side by side: always pending and never kept, since their
               keys and values are not the model's; all pending nodes of a sequence share one plan
    """

    sequence: Sequence
    tokens: IntArray
    parents: IntArray | None = None
    attention: Literal["causal", "full"] = "causal"
    want: Want = Want.LAST
    layers: LayerPlan | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a runtime can do, as data.

    layers  how many layers a call may leave out parts of (`Work.layers`); 0: none
    parallel_layers  whether attentions of several layers may read one input (`LayerPlan.parallel`)
    invariant_logits  rows are the same, bit for bit, however their text is cut, batched, forked or drafted
    canvas  predicts the masked tokens of a canvas (a diffusion model) and keeps no token sequences
    """

    trees: bool = False
    fork: bool = False
    truncate: bool = False
    hidden: bool = False
    full_attention: bool = False
    gradients: bool = False
    layers: int = 0
    parallel_layers: bool = False
    invariant_logits: bool = False
    canvas: bool = False

    @classmethod
    def of_kind(cls, name: str, *, layers: int = 0) -> Capabilities:
        """What all models of a runtime kind can do; what depends on their layers is not among it."""
        depends = {"layers", "parallel_layers"}
        return cls(layers=layers, **{can: True for can in KINDS[name].capabilities - depends})


@dataclass(frozen=True)
class Limits:
    """Hard bounds of a runtime, counted over all its open sequences."""

    sequences: int
    leaves: int  # tree leaves pending at one time
    tokens_held: int
    tokens_per_call: int  # the size of a call that is computed at once; larger calls are split


@runtime_checkable
class Runtime(Protocol):
    """See the module's first line. `forward` either does all its work or raises.

    turn  held by a thread for a whole operation, so that other threads wait; each method is safe without it
    A `forward` that raises KvFull, or refuses its input, leaves all state unchanged.
    """

    vocab_size: int
    context_length: int
    capabilities: Capabilities
    limits: Limits
    turn: Turn
    revision: str  # of weights, adapter and settings: a change invalidates sequences, packs and caches

    def open(self) -> Sequence: ...
    def fork(self, sequence: Sequence, length: int | None = None) -> Sequence: ...
    def forward(self, work: Seq[Work]) -> list[Output]: ...
    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None: ...
    def truncate(self, sequence: Sequence, length: int) -> None: ...
    def close(self, sequence: Sequence) -> None: ...
    def free_tokens(self) -> int: ...
    def shutdown(self) -> None: ...


# --- input checks, the same for every runtime -----------------------------------------------------------------------


def check_open(sequence: Sequence) -> None:
    if sequence.closed:
        raise ValueError("this sequence is closed")


def check_work(work: Seq[Work], *, vocab_size: int, context_length: int, capabilities: Capabilities) -> None:
    """Raise on a call that no runtime could do. Costs O(tokens); changes nothing."""
    seen: set[int] = set()
    for item in work:
        sequence, n = item.sequence, len(item.tokens)
        check_open(sequence)
        if id(sequence) in seen:
            raise ValueError("one call may hold only one piece of work per sequence")
        seen.add(id(sequence))
        if n == 0:
            raise ValueError("a piece of work needs at least one token")
        tokens = np.asarray(item.tokens)
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
            raise ValueError(f"token id {bad} is outside 0..{vocab_size - 1}")
        if item.parents is None:
            if item.attention == "full":
                raise ValueError("full attention is always pending: give parents")
            if sequence.pending:
                raise ValueError(f"{sequence.pending} nodes are pending: commit them before a chain that is kept")
            deepest = n
        else:
            deepest = _check_parents(item, n, capabilities)
        if item.layers is not None or sequence.plan is not None:
            _check_layers(item, capabilities)
        if sequence.length + deepest > context_length:
            raise ModelError(
                f"{sequence.length + deepest} tokens do not fit the context of {context_length} tokens: "
                f"shorten the input or load the model with a larger context="
            )
        _check_want(item.want, n, vocab_size, capabilities)


def _check_parents(item: Work, n: int, capabilities: Capabilities) -> int:
    """Depth of the deepest node; raises unless every parent comes before its child."""
    sequence, first = item.sequence, item.sequence.pending
    parents = np.asarray(item.parents)
    if parents.shape != (n,):
        raise ValueError(f"parents must have shape ({n},), got {parents.shape}")
    depths = [sequence.depth(i) for i in range(first)]
    for i, parent in enumerate(parents.tolist()):
        if not -1 <= parent < first + i:
            raise ValueError(f"parents[{i}] is {parent}; a parent must be -1 or come before node {first + i}")
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    is_chain = all(p == first + i - 1 for i, p in enumerate(parents.tolist()))
    if not capabilities.trees and not (is_chain and first == 0 and item.attention == "causal"):
        raise CapabilityError(f"this runtime cannot hold a tree of pending tokens (can: {kinds_with('trees')})")
    if item.attention == "full":
        if not capabilities.full_attention:
            raise CapabilityError(f"this runtime has no full attention (have: {kinds_with('full_attention')})")
        if not is_chain or first:
            raise ValueError("full attention takes one canvas: a chain, with nothing pending before it")
    return max(depths)


def _check_layers(item: Work, capabilities: Capabilities) -> None:
    plan, sequence = item.layers, item.sequence
    if plan is not None:
        if not capabilities.layers:
            raise CapabilityError(f"this runtime cannot leave out layers (can: {kinds_with('layers')})")
        if plan.parallel and not capabilities.parallel_layers:
            raise CapabilityError(
                f"this runtime cannot run the attentions of several layers side by side (can: "
                f"{kinds_with('parallel_layers')}, for models whose MLP reads what attention has added)"
            )
        if bad := sorted(n for n in plan.named if not 0 <= n < capabilities.layers):
            raise ValueError(f"layer {bad[0]} is outside 0..{capabilities.layers - 1}")
        if item.parents is None:
            raise ValueError("tokens computed under a layer plan cannot be kept: give parents")
    if sequence.pending and plan != sequence.plan:
        raise ValueError("the pending nodes were computed under another layer plan: commit or drop them first")


def _check_want(want: Want, n: int, vocab_size: int, capabilities: Capabilities) -> None:
    rows = want.row_numbers(n)
    if rows.size and (rows.min() < 0 or rows.max() >= n):
        raise ValueError(f"wanted rows must lie in 0..{n - 1}")
    if not 0 <= want.top <= vocab_size:
        raise ValueError(f"top must lie in 0..{vocab_size}, got {want.top}")
    if want.hidden and not capabilities.hidden:
        raise CapabilityError(f"this runtime does not give hidden states (do: {kinds_with('hidden')})")
    if want.pairs is not None and len(want.pairs):
        pairs = np.asarray(want.pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs must have shape (P, 2), got {pairs.shape}")
        if pairs[:, 0].min() < 0 or pairs[:, 0].max() >= n or pairs[:, 1].min() < 0 or pairs[:, 1].max() >= vocab_size:
            raise ValueError(f"pairs must be (row in 0..{n - 1}, token id in 0..{vocab_size - 1})")


def check_path(sequence: Sequence, path: Path) -> None:
    """Raise unless `path` runs from a child of the last kept token along pending nodes."""
    check_open(sequence)
    if len(path) and sequence.plan is not None:
        raise ValueError("nodes computed under a layer plan cannot be kept: commit the empty path")
    before = -1
    for node in path:
        if not 0 <= node < sequence.pending:
            raise ValueError(f"node {node} is not pending (pending: {sequence.pending})")
        if sequence.parents[node] != before:
            raise ValueError(f"node {node} follows node {sequence.parents[node]}, not {before}")
        before = node


def check_length(sequence: Sequence, length: int) -> None:
    """Raise unless the sequence can be cut to `length` kept tokens."""
    check_open(sequence)
    if not 0 <= length <= sequence.length:
        raise ValueError(f"length must lie in 0..{sequence.length}, got {length}")
