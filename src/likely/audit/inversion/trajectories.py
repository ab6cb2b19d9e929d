"""What an endpoint shows of a hidden prompt: T steps of greedy decoding with log-probabilities; defences against it.

Arrays alone: no prompt is part of what is collected here, written to a file or said in an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likely.errors import DataError
from likely.runtimes.protocol import Output, Runtime, Want, Work

Singles = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Trajectories:
    """Of N prompts over T steps.

    selected  (N, T, D + 1) log-probabilities of a compressor's tokens, the anchor first
    top_ids, top_logprobs  (N, T, K) the likeliest tokens; [:, :, 0] is the one that greedy decoding took
    """

    selected: Singles
    top_ids: Ids
    top_logprobs: Singles

    def __len__(self) -> int:
        return len(self.selected)

    def of(self, which: Any) -> Trajectories:
        """Some prompts, by numbers, mask or slice."""
        return Trajectories(self.selected[which], self.top_ids[which], self.top_logprobs[which])

    def first(self, steps: int) -> Trajectories:
        """The first steps alone."""
        return Trajectories(self.selected[:, :steps], self.top_ids[:, :steps], self.top_logprobs[:, :steps])


@dataclass(frozen=True)
class InverterInput:
    """What an inverter reads of each step: log-ratios (N, T, D), or weighted tokens (N, T, K); one of the two."""

    ratios: Singles | None = None
    ids: Ids | None = None
    weights: Singles | None = None

    def __post_init__(self) -> None:
        if (self.ratios is None) == (self.ids is None) or (self.ids is None) != (self.weights is None):
            raise ValueError("an inverter reads log-ratios, or ids with weights")

    def __len__(self) -> int:
        return len(self.ratios if self.ratios is not None else self.ids)  # type: ignore[arg-type]

    @property
    def steps(self) -> int:
        return int((self.ratios if self.ratios is not None else self.ids).shape[1])  # type: ignore[union-attr]

    def of(self, which: Any) -> InverterInput:
        parts = (self.ratios, self.ids, self.weights)
        return InverterInput(*(None if part is None else part[which] for part in parts))


class Defence(Protocol):
    """What an endpoint does to its log-probabilities before it returns them."""

    @property
    def name(self) -> str: ...

    def returned(self, seen: Trajectories) -> InverterInput:
        """What an attacker then has."""
        ...

    def error_nats(self, seen: Trajectories) -> float | None:
        """Mean |error| of the chosen token's log-probability, which honest clients read; None: they get none."""
        ...


@dataclass(frozen=True)
class Undefended:
    """Full vectors."""

    name: str = "none"

    def returned(self, seen: Trajectories) -> InverterInput:
        return _ratios(seen.selected)

    def error_nats(self, seen: Trajectories) -> float | None:
        return 0.0


@dataclass(frozen=True)
class RoundedLogprobs:
    """Full vectors, rounded to some decimals."""

    decimals: int = 2

    @property
    def name(self) -> str:
        return f"rounded to {self.decimals} decimals"

    def returned(self, seen: Trajectories) -> InverterInput:
        return _ratios(np.round(seen.selected, self.decimals))

    def error_nats(self, seen: Trajectories) -> float | None:
        chosen = seen.top_logprobs[:, :, 0]
        return float(np.abs(np.round(chosen, self.decimals) - chosen).mean())


@dataclass(frozen=True)
class NoisyLogprobs:
    """Full vectors with independent Gaussian noise, fixed by the seed."""

    sigma: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        return f"noise of {self.sigma:g} nats"

    def returned(self, seen: Trajectories) -> InverterInput:
        noise = np.random.default_rng(self.seed).normal(0, self.sigma, seen.selected.shape)
        return _ratios(seen.selected + noise)

    def error_nats(self, seen: Trajectories) -> float | None:
        return float(self.sigma * np.sqrt(2 / np.pi))


@dataclass(frozen=True)
class TopTokensOnly:
    """The k likeliest tokens with their log-probabilities, without a bias."""

    k: int = 5

    @property
    def name(self) -> str:
        return f"top {self.k}"

    def returned(self, seen: Trajectories) -> InverterInput:
        if self.k > seen.top_ids.shape[2]:
            raise DataError(f"the {self.k} likeliest tokens are needed, {seen.top_ids.shape[2]} were collected")
        return InverterInput(ids=seen.top_ids[:, :, : self.k], weights=np.exp(seen.top_logprobs[:, :, : self.k]))

    def error_nats(self, seen: Trajectories) -> float | None:
        return 0.0


@dataclass(frozen=True)
class TextOnly:
    """The generated text, without log-probabilities."""

    name: str = "text only"

    def returned(self, seen: Trajectories) -> InverterInput:
        ids = seen.top_ids[:, :, :1]
        return InverterInput(ids=ids, weights=np.ones(ids.shape, np.float32))

    def error_nats(self, seen: Trajectories) -> float | None:
        return None


DEFENCES: tuple[Defence, ...] = (RoundedLogprobs(2), NoisyLogprobs(1.0), TopTokensOnly(5), TextOnly())


def collect_trajectories(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    steps: int,
    *,
    top: int = 5,
    batch: int = 32,
    progress: Callable[[int], None] = lambda n: None,
) -> Trajectories:
    """Decode exactly `steps` tokens greedily after each prompt (token ids); an end token does not end it.

    tokens  of a `LogprobCompressor`: whose log-probabilities are kept at each step
    What all prompts begin with is computed once.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise DataError("trajectories need prompts of one token or more")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    longest = max(map(len, prompts)) + steps - 1
    if longest > runtime.context_length:
        raise DataError(f"a prompt with {steps} steps takes {longest} tokens, the context has {runtime.context_length}")
    n, columns = len(prompts), np.asarray(tokens, np.int64)
    found = Trajectories(
        np.empty((n, steps, len(columns)), np.float32), np.empty((n, steps, top), np.int64),
        np.empty((n, steps, top), np.float32),
    )  # fmt: skip
    shared = _shared_length(prompts)
    base = runtime.open()
    try:
        if shared:
            runtime.forward([Work(base, np.asarray(prompts[0][:shared], np.int64), want=Want.NONE)])
        for start in range(0, n, batch):
            part = prompts[start : start + batch]
            _decode(runtime, base, [list(p[shared:]) for p in part], columns, found, start, top)
            progress(len(part))
    finally:
        runtime.close(base)
    return found


def _decode(
    runtime: Runtime, base: Any, texts: list[list[int]], columns: Ids, found: Trajectories, start: int, top: int
) -> None:
    sequences = [runtime.fork(base) for _ in texts]
    try:
        new: list[list[int]] = texts
        for step in range(found.selected.shape[1]):
            outputs = runtime.forward(
                [
                    Work(sequence, np.asarray(text, np.int64), want=_wanted(len(text) - 1, columns, top))
                    for sequence, text in zip(sequences, new, strict=True)
                ]
            )
            for i, out in enumerate(outputs):
                _keep(out, found, start + i, step)
            new = [[int(found.top_ids[start + i, step, 0])] for i in range(len(texts))]
    finally:
        for sequence in sequences:
            runtime.close(sequence)


def _wanted(row: int, columns: Ids, top: int) -> Want:
    return Want(rows=(row,), top=top, pairs=np.stack([np.full(len(columns), row), columns], 1))


def _keep(out: Output, found: Trajectories, i: int, step: int) -> None:
    assert out.logprobs is not None and out.top_ids is not None and out.top_logprobs is not None
    found.selected[i, step] = out.logprobs
    found.top_ids[i, step] = out.top_ids[0]
    found.top_logprobs[i, step] = out.top_logprobs[0]


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, one less than the shortest at most."""
    most = min(map(len, prompts)) - 1
    first = list(prompts[0][:most])
    for prompt in prompts:
        while first != list(prompt[: len(first)]):
            first.pop()
    return len(first)


def _ratios(selected: NDArray[Any]) -> InverterInput:
    return InverterInput(ratios=np.asarray(selected[..., 1:] - selected[..., :1], np.float32))
