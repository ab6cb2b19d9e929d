"""What layers cost on this machine: training and prefill per token, a step after a long prefix, and memory.  torch.

All layers of one length are measured in turn (`likely.bench.timing`), so that drift of the machine hits them alike.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.bench.sequence.comparison import LayerComparison
from likely.bench.sequence.examples import TaskMeta
from likely.bench.sequence.learning import MixerSettings, SequenceTraining, build_model
from likely.bench.timing import interleaved

if TYPE_CHECKING:
    from likely.sequence.backbone import SequenceClassifier

_META = TaskMeta("speed", "tokens", "tokens", 256, 1 / 256, vocabulary=256)


def measure_speed(
    found: LayerComparison, *, lengths: Sequence[int] = (1024, 4096, 16384), training_length: int = 256,
    rounds: int = 5, mixers: MixerSettings | None = None, memory: bool = True,
    say: Callable[[str], None] | None = None,
) -> LayerComparison:  # fmt: skip
    """The comparison with these figures in each row's `speed`, medians over rounds:

    train tokens/s      a step of the optimiser on a batch as in training, of rows of `training_length`
    prefill ms, L       one sequence of L tokens;  step ms, L: one token more after them
    MB, L               peak memory that training on one sequence of the largest L adds to a process of its own
    """
    speeds: dict[str, dict[str, float]] = {row.layer: {} for row in found.rows}
    models = {row.layer: build_model(row.layer, _META, found.training, mixers=mixers) for row in found.rows}

    def note(name: str, times: dict[str, Callable[[], object]], figure: Callable[[float], float]) -> None:
        for layer, timing in interleaved(times, rounds=rounds).items():
            speeds[layer][name] = figure(timing.median_s)
        if say:
            say(f"{name}: " + ", ".join(f"{layer} {speeds[layer][name]:.4g}" for layer in times))

    tokens = found.training.batch * training_length
    note(
        "train tokens/s",
        {layer: training_step(model, found.training.batch, training_length) for layer, model in models.items()},
        lambda seconds: tokens / seconds,
    )
    for length in lengths:
        calls = {layer: forward_calls(model, length) for layer, model in models.items()}
        note(f"prefill ms, {length:,}", {layer: prefill for layer, (prefill, _) in calls.items()}, lambda s: 1e3 * s)
        steps = {layer: step for layer, (_, step) in calls.items() if step is not None}
        note(f"step ms, {length:,}", steps, lambda s: 1e3 * s)
    if memory:
        for layer in speeds:
            speeds[layer][f"MB, {max(lengths):,}"] = training_memory(layer, found.training, max(lengths), mixers) / 1e6
    return replace(found, rows=[replace(row, speed=speeds[row.layer]) for row in found.rows])


def training_step(model: SequenceClassifier, batch: int, length: int) -> Callable[[], object]:
    """A call that computes a loss of random tokens and its gradients, and steps an optimiser."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, _META.vocabulary, (batch, length)))

    def call() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    return call


def forward_calls(model: SequenceClassifier, length: int) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """Calls that read `length` tokens, and one token more; None where there is no state to go on from."""
    import torch

    ids = torch.from_numpy(np.random.default_rng(0).integers(0, _META.vocabulary, (1, length)))
    goes_on = all(mixer.causal and mixer.state_kind != "none" for mixer in model.backbone.mixers)

    def prefill() -> Any:
        with torch.no_grad():
            return model.backbone(ids, return_state=goes_on).state

    if not goes_on:
        return prefill, None
    state = prefill()

    def step() -> object:
        with torch.no_grad():
            return model.backbone(ids[:, :1], state=state, return_state=True)

    return prefill, step


def training_memory(row: str, training: SequenceTraining, length: int, mixers: MixerSettings | None = None) -> int:
    """Bytes that one training step on a sequence of this length adds to the peak memory of a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_added, row, training, length, mixers).result()


def _memory_added(row: str, training: SequenceTraining, length: int, mixers: MixerSettings | None) -> int:
    model = build_model(row, _META, training, mixers=mixers)
    training_step(model, 1, 16)()  # what libraries take at their first use
    before = _peak_bytes()
    training_step(model, 1, length)()
    return _peak_bytes() - before


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
