"""Train a model by SequenceMatch: batches of data and of its own texts, which are drawn anew as it changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from likely.alignment.sequence_match.objective import (
    DIVERGENCES,
    Divergence,
    Weights,
    action_values,
    sequence_match_loss,
)
from likely.alignment.sequence_match.trajectories import Trajectory, corrupt, to_trees, tree_logits
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.errors import DataError, check_choice
from likely.io.hashes import fingerprint
from likely.io.kept import KeptValues
from likely.runtimes.protocol import Runtime
from likely.training.checkpoints import Checkpoints
from likely.training.fit import STATE
from likely.training.loop import LossOutput, train
from likely.training.metrics_log import MetricsLog

OWN_TEXTS = "own_texts.jsonl"


@dataclass(frozen=True)
class SequenceMatchSettings:
    """How to train; the defaults are the paper's where it states them (gamma, alpha, noise).

    steps, batch    optimiser steps; texts of the data in each, and as many of the model's own
    divergence      "mle" needs no texts of the model: with a backspace and noise it is behaviour cloning
    offset          taken from every logit in the objective (`sequence_match_loss`); None: the mean value of the first
                    batch's states, which maximum likelihood leaves anywhere, so that values begin near 0
    noise           probability of a wrong token, and its deletion, before each token of the data; None: .001 with a
                    backspace, 0 without
    refresh         steps between draws of the model's texts;  drawn: texts of each;  kept: most of them in the buffer
    warm_up         steps in which alpha and the learning rate rise from 0
    precision       "bfloat16": products in bfloat16; weights and values of states stay fp32
    """

    steps: int
    batch: int = 16
    divergence: Divergence = "chi2_mixture"
    gamma: float = 0.998
    alpha: float = 0.01
    weights: Weights = "uniform"
    model_values: float = 0.5
    offset: float | None = None
    noise: float | None = None
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    warm_up: int = 20
    refresh: int = 100
    drawn: int = 64
    kept: int = 2048
    temperature: float = 1.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_choice("precision", self.precision, ("float32", "bfloat16"))
        for name in ("steps", "batch", "refresh", "drawn", "kept", "learning_rate", "clip", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


@dataclass
class SequenceMatchRun:
    """losses of each step;  metrics: of each step of this call, means by name (`sequence_match_loss`);  drawn: own
    texts in all;  offset: that was taken from the logits."""

    losses: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    drawn: int = 0
    offset: float | None = None


def sample_trajectories(
    runtime: Runtime,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end_ids: frozenset[int],
    backspace_id: int | None,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Trajectory]:
    """One text of the model after each prompt, sampled through the decoding loop, deletions allowed."""
    requests = [
        Request(
            tuple(prompt), Sampling(temperature=temperature, seed=seed + i), max_tokens=max_tokens,
            backspace_id=backspace_id,
        )
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    done = run(Loop(runtime, token_bytes=lambda token: b"", end_ids=end_ids), requests)
    found = []
    for request, [event] in zip(requests, done, strict=True):
        finish = event.finish
        assert finish is not None
        actions = tuple(finish.actions if backspace_id is not None else finish.tokens)
        found.append(Trajectory(request.prompt, actions, finish.reason == "stop"))
    return found


def train_sequence_match(
    module: torch.nn.Module,
    data: Sequence[Trajectory],
    settings: SequenceMatchSettings,
    *,
    max_tokens: int,
    end_ids: frozenset[int],
    backspace_id: int | None = None,
    candidates: Sequence[int] | None = None,
    folder: Path | None = None,
    recipe: Mapping[str, Any] = MappingProxyType({}),
    checkpoint_every: int = 20,
    log: MetricsLog | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> SequenceMatchRun:
    """Train a causal language model of transformers in place (or what peft has wrapped) on texts of the data.

    data        texts after their prompts; begin with a model that maximum likelihood has trained on such texts
    max_tokens  of the model's own texts, which continue prompts of the data;  end_ids  tokens that end a text
    backspace_id  a token of the vocabulary that stands for a deletion; None: the model cannot delete
    candidates  wrong tokens that the data is disturbed with; by default all that occur in it
    folder      for checkpoints, every `checkpoint_every` steps, and the model's own texts: a run of the same settings,
                data and `recipe` that was stopped goes on bit for bit
    log         a line of metrics per step
    The same arguments give the same weights on one machine.  TrainingDiverged where the loss is no finite number.
    """
    data = list(data)
    if not data:
        raise DataError("no texts: at least one trajectory is needed")
    for i, trajectory in enumerate(data):
        if backspace_id is not None and backspace_id in (*trajectory.prompt, *trajectory.actions):
            raise DataError(f"trajectory {i}: holds the backspace ({backspace_id}), which is no token of a text")
    noise = settings.noise if settings.noise is not None else (0.001 if backspace_id is not None else 0.0)
    if noise and backspace_id is None:
        raise ValueError(f"noise is {noise}, and there is no backspace_id to mend it with: give one, or noise=0")
    if candidates is None:
        candidates = sorted({token for each in data for token in each.actions} - end_ids)
    rng, found = np.random.default_rng(settings.seed), SequenceMatchRun(offset=settings.offset)
    uses_model = settings.divergence != "mle"
    own: deque[Trajectory] = deque(maxlen=settings.kept)
    about = {
        **asdict(settings), **recipe, "max_tokens": max_tokens, "backspace": backspace_id,
        "candidates": list(map(int, candidates)), "end_ids": sorted(end_ids),
        "data": fingerprint([[each.prompt, each.actions, each.finished] for each in data]),
    }  # fmt: skip
    checkpoints = None if folder is None else Checkpoints(folder / STATE, checkpoint_every, about)
    written_before = KeptValues(None if folder is None else folder / OWN_TEXTS)
    name_of = fingerprint(about)  # of this run among the values
    if found.offset is None:
        found.offset = written_before.get(f"{name_of} offset")
    # the module is looked at by a runtime of its own, which holds no copy of the weights
    runtime = _runtime_of(module) if uses_model else None
    optimiser = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=settings.learning_rate, betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    rise = max(1, settings.warm_up)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / rise, 1.0))

    def batches() -> Iterator[tuple[int, list[Trajectory], list[Trajectory]]]:
        order: list[int] = []
        for step in range(settings.steps):
            if runtime is not None and step % settings.refresh == 0:
                chosen = [data[i].prompt for i in rng.integers(0, len(data), settings.drawn)]
                if f"{name_of} {step}" not in written_before:
                    runtime.refresh(f"step {step}")
                    module.eval()
                    drawn = sample_trajectories(
                        runtime, chosen, max_tokens=max_tokens, end_ids=end_ids, backspace_id=backspace_id,
                        temperature=settings.temperature, seed=settings.seed + 1_000_003 * (step + 1),
                    )  # fmt: skip
                    module.train()
                    rows = [[list(each.prompt), list(each.actions), each.finished] for each in drawn]
                    written_before.add({f"{name_of} {step}": rows})
                own.extend(
                    Trajectory(tuple(prompt), tuple(actions), finished)
                    for prompt, actions, finished in written_before[f"{name_of} {step}"]
                )
                found.drawn += len(chosen)
            if len(order) < settings.batch:
                order += rng.permutation(len(data)).tolist()
            taken, order = [data[i] for i in order[: settings.batch]], order[settings.batch :]
            if backspace_id is not None and noise:
                taken = [corrupt(each, noise, rng, backspace_id=backspace_id, candidates=candidates) for each in taken]
            written = [own[i] for i in rng.integers(0, len(own), len(taken))] if own else []
            yield step, taken, written

    device = next(module.parameters()).device
    half = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")

    def loss(batch: tuple[int, list[Trajectory], list[Trajectory]]) -> LossOutput:
        step, taken, written = batch
        trees = to_trees([*taken, *written], backspace_id=backspace_id)
        is_data = torch.arange(len(trees)) < len(taken)
        with half:
            logits = tree_logits(module, trees)
        if found.offset is None:
            with torch.no_grad():
                real = torch.from_numpy(trees.real).to(logits.device)
                found.offset = float(action_values(logits, trees)[1][real].mean())
            written_before.add({f"{name_of} offset": found.offset})
        result = sequence_match_loss(
            logits, trees, is_data, gamma=settings.gamma, alpha=settings.alpha * min((step + 1) / rise, 1.0),
            offset=found.offset, divergence=settings.divergence, weights=settings.weights,
            model_values=settings.model_values, backspace_id=backspace_id,
        )  # fmt: skip
        found.metrics.append({name: total / count for name, (total, count) in result.metrics.items()})
        return result

    module.train()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)  # dropout
            found.losses = train(
                batches(), loss, optimiser, schedule=schedule, clip=settings.clip, progress=progress, log=log,
                checkpoints=checkpoints,
            )  # fmt: skip
    finally:
        module.eval()
        if runtime is not None:
            runtime.shutdown()
    return found


def initialise_backspace(module: torch.nn.Module, backspace_id: int) -> None:
    """Make a token of the vocabulary ready to become the backspace: its rows are the mean of all others'.

    Its logit is then the mean of the others', so that its probability is at most 1 / V in every state: deletions
    begin rare, and are learned from there.
    """
    given: Any = module
    with torch.no_grad():
        for table in (given.get_input_embeddings(), given.get_output_embeddings()):
            weight = table.weight
            others = torch.arange(len(weight), device=weight.device) != backspace_id
            weight[backspace_id] = weight[others].float().mean(0).to(weight.dtype)
            if getattr(table, "bias", None) is not None:
                table.bias[backspace_id] = table.bias[others].mean()


def _runtime_of(module: Any) -> Any:
    from likely.runtimes.torch.runtime import TorchRuntime

    inner = module.get_base_model() if hasattr(module, "get_base_model") else module  # of peft: its layers stay active
    return TorchRuntime(inner, revision="step 0")
