"""A contextual bandit over hints: a softmax policy on features of the question, trained by GRPO on rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from likely.calibration.recalibrators.protocol import Learned, read_learned
from likely.errors import DataError
from likely.io.whole_file import read_text, write_whole_file
from likely.metrics.checks import Floats, Ints, softmax
from likely.prompting.hints.downstream import ChoiceQuestion, Downstream, Stated, hint_features
from likely.prompting.hints.reward import group_advantages
from likely.training.grpo import grpo_loss
from likely.training.loop import train

LEAST = {"group": 2, "batch": 1, "inner": 1, "clip": 0, "beta": 0, "lr": 0, "seed": 0}
SETTINGS = tuple(LEAST)
FORMAT = 1  # of policy files
LEARNED = {
    "weights_": Learned("hf"), "bias_": Learned("h"), "mean_": Learned("f"), "spread_": Learned("f", low=1e-300),
}  # fmt: skip
BanditRewards = Callable[[Ints, Ints], Any]


@dataclass
class HintBandit:
    """π(hint h | question x) = softmax_h(W φ(x) + b), trained by GRPO.

    hints  the texts to choose from; "" is a hint, too: none
    group  hints sampled per question;  batch: questions per step;  inner: gradient steps on each batch
    clip, beta  of `grpo_loss`
    Learned: `weights_` (H, F), `bias_` (H,), and `mean_`, `spread_` (F,) by which features are standardised.
    """

    hints: Sequence[str]
    group: int = 8
    batch: int = 32
    inner: int = 4
    clip: float = 0.2
    beta: float = 0.0
    lr: float = 0.05
    seed: int = 0
    rewards_: list[float] = field(default_factory=list, init=False)

    def fit(self, features: Any, rewards: BanditRewards, *, steps: int = 200) -> Self:
        """features (N, F) of N questions; rewards(questions (M,), hints (M,)) -> (M,), called only for sampled pairs.

        `rewards_` is the mean reward of each step.
        """
        import torch

        x = _features(features)
        if len(self.hints) < 2:
            raise ValueError(f"{len(self.hints)} hint: there is nothing to choose from, give 2 or more")
        for name in ("group", "batch", "inner"):
            if getattr(self, name) < (2 if name == "group" else 1):
                raise ValueError(f"{name} must be at least {2 if name == 'group' else 1}, got {getattr(self, name)}")
        self.mean_, spread = x.mean(axis=0), x.std(axis=0)
        self.spread_ = np.where(spread > 0, spread, 1.0)
        inputs = torch.tensor(self._standardised(x))
        weights = torch.zeros(len(self.hints), x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(self.hints), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([weights, bias], lr=self.lr)
        rng = np.random.default_rng(self.seed)
        uniform = -float(np.log(len(self.hints)))  # log p of every hint before training
        self.rewards_ = []

        def logprobs(rows: Any) -> torch.Tensor:
            return torch.log_softmax(inputs[rows] @ weights.T + bias, dim=1)

        def rollouts() -> Iterator[tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]]:
            """(rows, hints sampled for each, their log p then, advantages), each as often as there are inner steps."""
            for _ in range(steps):
                rows = rng.choice(len(x), min(self.batch, len(x)), replace=False)
                with torch.no_grad():
                    before = logprobs(rows)
                points = rng.random((len(rows), self.group))
                sampled = (before.exp().cumsum(dim=1).numpy()[:, None, :] < points[..., None]).sum(axis=2)
                sampled = np.minimum(sampled, len(self.hints) - 1)
                got = rewards(np.repeat(rows, self.group), sampled.ravel())
                got = np.asarray(got, np.float64).reshape(sampled.shape)
                self.rewards_.append(float(got.mean()))
                chosen = torch.tensor(sampled)
                ready = rows, chosen, before.gather(1, chosen), torch.tensor(group_advantages(got))
                for _ in range(self.inner):
                    yield ready

        def loss(ready: tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
            rows, chosen, old, gain = ready
            flat = logprobs(rows).gather(1, chosen).reshape(-1, 1)
            return grpo_loss(
                flat, old.reshape(-1, 1), torch.full_like(flat, uniform), torch.ones_like(flat), gain.ravel(),
                clip=self.clip, beta=self.beta,
            )  # fmt: skip

        train(rollouts(), loss, optimiser)
        self.weights_, self.bias_ = weights.detach().numpy(), bias.detach().numpy()
        return self

    def predict_proba(self, features: Any) -> Floats:
        """(N, H) the probability of each hint."""
        if not hasattr(self, "weights_"):
            raise ValueError("HintBandit is not fitted: call fit first")
        x = _features(features)
        if x.shape[1] != len(self.mean_):
            raise ValueError(f"features has {x.shape[1]} columns, fit saw {len(self.mean_)}")
        return softmax(self._standardised(x) @ self.weights_.T + self.bias_)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same choices."""
        self.predict_proba(np.zeros((1, len(self.mean_)) if hasattr(self, "mean_") else (1, 1)))  # is it fitted?
        learned = {name: getattr(self, name).tolist() for name in LEARNED}
        return {"hints": list(self.hints), "settings": {n: getattr(self, n) for n in SETTINGS}, "learned": learned}

    @classmethod
    def from_dict(cls, record: Any) -> HintBandit:
        """DataError names what is missing or wrong."""
        if not isinstance(record, Mapping) or not {"hints", "settings", "learned"} <= record.keys():
            raise DataError("a policy over hints is an object with hints, settings and learned")
        hints, settings = record["hints"], record["settings"]
        if not isinstance(hints, list) or len(hints) < 2 or not all(isinstance(hint, str) for hint in hints):
            raise DataError("hints: must be a list of at least 2 texts")
        if not isinstance(settings, Mapping) or not settings.keys() <= set(SETTINGS):
            raise DataError(f"settings: must hold only {', '.join(SETTINGS)}")
        _check_settings(settings)
        made = cls(hints, **settings)
        for name, value in read_learned(record["learned"], LEARNED).items():
            setattr(made, name, value)
        if len(made.bias_) != len(hints):
            raise DataError(f"learned.bias_: has {len(made.bias_)} entries, there are {len(hints)} hints")
        return made

    def save(self, path: Path, *, origin: Mapping[str, Any]) -> None:
        """Write a file that `load` reads; origin: what it was learned with, for people."""
        record = {"likely_hint_policy": FORMAT, "origin": dict(origin), "policy": self.to_dict()}
        write_whole_file(path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> HintBandit:
        """DataError names the file and what is wrong with it."""
        try:
            record = json.loads(read_text(path))
        except ValueError as error:
            raise DataError(f"{path} is not a policy: {error}") from None
        if not isinstance(record, dict) or record.get("likely_hint_policy") != FORMAT:
            raise DataError(f"{path} is not a policy over hints: make one with likely prompts learn-hints")
        try:
            return cls.from_dict(record.get("policy"))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def choose(self, features: Any) -> Ints:
        """(N,) the number of the likeliest hint."""
        return self.predict_proba(features).argmax(axis=1)

    def _standardised(self, x: Floats) -> Floats:
        return (x - self.mean_) / self.spread_


def learn_hints(
    downstream: Downstream, questions: Sequence[ChoiceQuestion], hints: Sequence[str], *,
    steps: int = 200, seed: int = 0, progress: Callable[[int], None] | None = None,
) -> tuple[HintBandit, dict[str, Stated]]:  # fmt: skip
    """A policy over no hint and these, from questions with known answers; and what each hint made of all of them.

    Every question is asked with every hint once; the policy then learns from draws of that table.
    """
    choice = ["", *hints]
    table = {hint: downstream.stated(questions, [hint] * len(questions), progress=progress) for hint in choice}
    rewards = np.stack([stated.rewards() for stated in table.values()], axis=1)
    policy = HintBandit(choice, seed=seed, beta=0.01).fit(
        hint_features(questions, table[""]), lambda rows, sampled: rewards[rows, sampled], steps=steps
    )
    return policy, table


def answer_with_hints(
    downstream: Downstream, policy: HintBandit, questions: Sequence[ChoiceQuestion], *,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[str], Stated, Stated]:  # fmt: skip
    """(the hint that the policy chooses for each question, the answers without hints, the answers with them)"""
    plain = downstream.stated(questions, [""] * len(questions), progress=progress)
    hints = [policy.hints[i] for i in policy.choose(hint_features(questions, plain))]
    return hints, plain, downstream.stated(questions, hints, progress=progress)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """DataError names the first that is not of its kind or out of its range."""
    for name, value in settings.items():
        whole, least = name not in ("clip", "beta", "lr"), LEAST[name]
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not least <= value < math.inf:
            kind = "a whole number" if whole else "a number"
            raise DataError(f"settings.{name}: must be {kind} of at least {least}, got {value!r}")


def _features(values: Any) -> Floats:
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"features must be (questions, features), got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"features: row {int((~np.isfinite(x)).any(axis=1).argmax())} is not finite")
    return x
