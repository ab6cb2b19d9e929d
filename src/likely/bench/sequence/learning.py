"""A small model of one kind of layer learns one task: how well it does along the way, and what it weighs.  torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.bench.sequence.examples import IGNORED, Examples, TaskMeta
from likely.bench.sequence.tasks import SequenceTask
from likely.training.loop import EarlyStopping, TrainingDiverged, import_torch, train

if TYPE_CHECKING:
    from torch import Tensor

    from likely.sequence.backbone import SequenceClassifier

POOL = {"tokens": "none", "values": "none", "class": "mean", "last values": "last"}
MixerSettings = Mapping[str, Mapping[str, Any]]  # layer -> keyword arguments of its class


@dataclass(frozen=True)
class SequenceTraining:
    """The same for every layer and task.

    width, depth  of the model: `depth` blocks of a mixer, with a feed-forward part of mlp_size where that is not 0
    learning_rate, recurrence_rate  AdamW's, and its bound for decays and time steps of recurrences; both rise over the
                  first tenth of the steps and fall to a tenth by a cosine
    every         steps from one test to the next
    """

    width: int = 64
    depth: int = 2
    mlp_size: int = 0
    steps: int = 400
    batch: int = 32
    learning_rate: float = 3e-3
    recurrence_rate: float = 1e-3
    weight_decay: float = 0.01
    every: int = 50

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < (name not in ("mlp_size", "weight_decay")) * (1 if isinstance(value, int) else 1e-12):
                raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class LearnedTask:
    """The metric on the test set after `steps` (the last is the end); of a run that diverged both end earlier.

    meta, length  of the test set;  tokens: seen in training, padding included
    """

    meta: TaskMeta
    length: int
    steps: list[int]
    curve: list[float]
    tokens: int
    diverged: bool = False

    @property
    def value(self) -> float | None:
        """At the end; None if there is none."""
        return None if self.diverged or not self.curve else self.curve[-1]


def layer_names(row: str, depth: int) -> list[str]:
    """The mixers of `depth` blocks: "mamba2" in each, or those of "mamba2+attention" in turn."""
    names = row.split("+")
    return [names[i % len(names)] for i in range(depth)]


def build_model(
    row: str, meta: TaskMeta, training: SequenceTraining, *, mixers: MixerSettings | None = None, seed: int = 0
) -> SequenceClassifier:
    """A new model that reads the task's inputs and answers in the form of its targets; the seed draws its weights.

    Embeddings start with variance 1: much smaller ones are drowned by the first block's outputs, and recall is learned
    more slowly.
    """
    torch = import_torch()
    from likely.sequence.backbone import SequenceClassifier, SequenceConfig, SequenceRegressor

    config = SequenceConfig(
        vocab_size=max(meta.vocabulary, 1), input_size=meta.channels, hidden_size=training.width,
        layers=layer_names(row, training.depth), mixers={name: dict(own) for name, own in (mixers or {}).items()},
        mlp_size=training.mlp_size, outputs=meta.outputs, pool=POOL[meta.targets],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (SequenceRegressor if "values" in meta.targets else SequenceClassifier)(config)
        if meta.inputs == "tokens":
            torch.nn.init.normal_(model.backbone.embed_tokens.weight)
    return model


def learn(
    row: str, task: SequenceTask, training: SequenceTraining, *, seed: int = 0, mixers: MixerSettings | None = None,
    data_dir: Path | None = None, progress: Callable[[int], None] | None = None,
) -> LearnedTask:  # fmt: skip
    """Train on the task's training split, test on its test split; weights, batches and tests all follow the seed."""
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LambdaLR

    from likely.sequence.optim import param_groups

    test = task.examples(task.test, seed, "test", data_dir=data_dir)
    model = build_model(row, test.meta, training, mixers=mixers, seed=seed)
    groups = param_groups(
        model, lr=training.learning_rate, weight_decay=training.weight_decay, recurrence_lr=training.recurrence_rate
    )
    optimizer = AdamW(groups)
    schedule = LambdaLR(optimizer, lambda step: warm_cosine(step, training.steps))
    tests = EarlyStopping[None](
        lambda: evaluate(model, test), lambda: None, every=training.every, patience=training.steps + 1
    )
    diverged = False
    try:
        losses = train(
            batches(task, training, seed, data_dir), lambda batch: batch_loss(model, batch), optimizer,
            schedule=schedule, clip=1.0, stopping=tests,
            progress=None if progress is None else lambda step, _: progress(step),
        )  # fmt: skip
        if len(losses) % training.every:
            tests.evaluate()
    except TrainingDiverged:
        diverged = True
    curve = list(itertools.takewhile(math.isfinite, tests.curve))
    diverged = diverged or len(curve) < len(tests.curve)
    steps = [min((i + 1) * training.every, training.steps) for i in range(len(curve))]
    length = test.inputs.shape[1]
    return LearnedTask(test.meta, length, steps, curve, training.steps * training.batch * length, diverged)


def warm_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate at a step: up over the first tenth, then down to 0.1."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def batches(
    task: SequenceTask, training: SequenceTraining, seed: int, data_dir: Path | None = None
) -> Iterator[Examples]:
    """A batch for each step: fresh examples, or where the task has a fixed number of them, those in random order."""
    if task.train is None:
        for step in range(training.steps):
            yield task.examples(training.batch, seed * 1_000_003 + step, "train", data_dir=data_dir)
        return
    whole = task.examples(task.train, seed, "train", data_dir=data_dir)
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(task.train) for _ in range(-(-training.steps * training.batch // task.train))]
    )
    for step in range(training.steps):
        rows = order[step * training.batch : (step + 1) * training.batch]
        yield Examples(whole.inputs[rows], whole.targets[rows], whole.meta)


def _run(model: SequenceClassifier, examples: Examples) -> Tensor:
    import torch

    mask = None if examples.meta.padding is None else torch.from_numpy(examples.mask)
    return model(torch.from_numpy(examples.inputs), mask).logits


def batch_loss(model: SequenceClassifier, examples: Examples) -> Tensor:
    """Mean cross-entropy or squared error of the targets that count."""
    import torch

    return model.loss(_run(model, examples), torch.from_numpy(examples.targets))


def evaluate(model: SequenceClassifier, examples: Examples, *, batch: int = 128) -> float:
    """The task's metric over all examples.

    accuracy: share of the targets that count;  bits per byte: mean −log2 p;  normalised MSE: Σ error² / Σ target²
    """
    import torch

    meta, top, bottom = examples.meta, 0.0, 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(examples.inputs), batch):
            part = Examples(examples.inputs[start : start + batch], examples.targets[start : start + batch], meta)
            outputs, targets = _run(model, part), torch.from_numpy(part.targets)
            if meta.metric == "normalised MSE":
                known = ~targets.isnan()
                top += float((outputs[known].double() - targets[known]).square().sum())
                bottom += float(targets[known].double().square().sum())
                continue
            known = targets != IGNORED
            bottom += int(known.sum())
            if meta.metric == "accuracy":
                top += int((outputs.argmax(-1) == targets)[known].sum())
            else:
                rows = torch.log_softmax(outputs[known].float(), -1)
                top -= float(rows.gather(1, targets[known][:, None]).sum()) / math.log(2)
    model.train()
    return top / bottom


def measure_state(model: SequenceClassifier, length: int) -> int | None:
    """Bytes of one sequence's state after `length` random inputs; None where there is no state to go on from."""
    import torch

    config = model.config
    rng = np.random.default_rng(0)
    drawn: Any = rng.standard_normal((1, length, config.input_size)).astype(np.float32)
    inputs = torch.from_numpy(drawn if config.input_size else rng.integers(0, config.vocab_size, (1, length)))
    if not all(mixer.causal and mixer.state_kind != "none" for mixer in model.backbone.mixers):
        return None
    with torch.no_grad():
        state = model.backbone(inputs, return_state=True).state
    return int(state.nbytes)
