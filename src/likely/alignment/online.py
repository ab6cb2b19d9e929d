"""Preference optimisation on the model's own samples: online IPO, IPO-MD, Nash-MD and online DPO.  torch.

Every step draws completions from the policy as it is now (or from its geometric mixture with the reference), asks which
of two is better, and moves the policy.  With a regularisation of τ, online IPO and IPO-MD end at the Nash equilibrium of
the preferences (`tabular`), whether or not these come from a reward.
Calandriello et al. 2024, arXiv:2403.08635; Munos et al. 2023, arXiv:2312.00886.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from likely.alignment.labellers import Hardness, Labeller, checked, label_pairs
from likely.alignment.links import Link, Logistic, Square, pair_loss
from likely.alignment.mixture import GeometricMixture
from likely.alignment.policy_gradient import KlForm, nash_md_loss
from likely.alignment.scores import Completion, SequenceScores, completion_scores
from likely.alignment.sources import FromPolicy, Prompt
from likely.alignment.tabular import check_beta
from likely.decoding.sampling import stream_key
from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.runtimes.protocol import Output, Work
from likely.runtimes.torch.runtime import TorchRuntime
from likely.training.checkpoints import Checkpoints
from likely.training.loop import LossOutput, train
from likely.training.metrics_log import MetricsLog
from likely.training.policy import Policy
from likely.training.processes import Processes

Schedule = Literal["constant", "cosine"]
OnlineMethod = Literal["online_ipo", "ipo_md", "nash_md", "online_dpo"]
TAU: dict[str, float] = {"online_ipo": 1.0, "ipo_md": 1.0, "nash_md": 0.008, "online_dpo": 0.1}
BETA: dict[str, float] = {"online_ipo": 0.0, "ipo_md": 0.125, "nash_md": 0.125, "online_dpo": 0.0}
ONLINE_METHODS = tuple(TAU)
MOST_LOGIT = 30.0  # of a preference that is 0 or 1, where a missing end is held against it


@dataclass(frozen=True)
class OnlineSettings:
    """What is drawn, and what is done with it.

    method      "online_ipo": pairs of the policy;  "ipo_md": pairs of the mixture, both with the squared loss;
                "nash_md": the policy against the mixture, by policy gradient;  "online_dpo": pairs of the policy with
                the logistic loss
    tau         how much KL to the reference counts: τ of IPO and Nash-MD, γ of online DPO (whose trade-off is another:
                sweep each by itself, in log scale).  None: the paper's choice, 1, 1 and 0.008, and 0.1
    beta        weight of the reference in the mixture, in [0, 1]; None: 0.125, and 0 for methods without a mixture
    kl          of nash_md, see `nash_md_loss`
    samples     completions per prompt, an even number; each meets one other
    max_tokens  of a completion;  missing_end_penalty: taken from the logit of p for a completion that was cut there
    temperature of sampling; what holds of these methods holds at 1
    hard        whether only the winner counts, not p (`label_pairs`); ties are then left out
    together    completions whose gradients are computed at one time; it changes memory, not the step
    """

    method: OnlineMethod = "online_ipo"
    tau: float | None = None
    beta: float | None = None
    kl: KlForm = "sequence"
    samples: int = 2
    max_tokens: int = 64
    missing_end_penalty: float = 0.0
    temperature: float = 1.0
    hard: Hardness = False
    together: int = 32

    def __post_init__(self) -> None:
        check_choice("method", self.method, ONLINE_METHODS)
        check_beta(self.mixture_weight)
        if self.beta and not BETA[self.method]:
            raise ValueError(f"{self.method} draws from the policy alone: drop beta={self.beta:g}, or take ipo_md")
        if not self.strength > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")
        if self.samples < 2 or self.samples % 2:
            raise ValueError(f"samples must be an even number >= 2, got {self.samples}")
        if self.together < 2:
            raise ValueError(f"together must be >= 2, a pair, got {self.together}")
        if not self.missing_end_penalty >= 0:
            raise ValueError(f"missing_end_penalty must be >= 0, got {self.missing_end_penalty}")

    @property
    def strength(self) -> float:
        return TAU[self.method] if self.tau is None else self.tau

    @property
    def mixture_weight(self) -> float:
        return BETA[self.method] if self.beta is None else self.beta

    @property
    def link(self) -> Link:
        return Logistic(self.strength) if self.method == "online_dpo" else Square(self.strength)


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one step."""

    step: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class JudgedPairs:
    """B pairs of completions and p(first ≻ second) (B,); `ties` were left out."""

    firsts: list[Completion]
    seconds: list[Completion]
    preferences: Floats
    ties: int = 0


class ReferenceRuntime(TorchRuntime):
    """The frozen reference of a policy as a runtime with a cache of its own: for LoRA the same weights with the
    adapters off during its calls, otherwise a copy."""

    def __init__(self, policy: Policy):
        self._policy: Policy | None = None
        with policy.reference() as module:
            super().__init__(policy.base if policy.adapts else module, revision=policy.reference_revision)
        self._policy = policy if policy.adapts else None

    def forward(self, work: Seq[Work]) -> list[Output]:
        if self._policy is None:
            return super().forward(work)
        with self._policy.reference():
            return super().forward(work)


@dataclass
class OnlinePreferences:
    """The loss of a step of `training.train`: it draws, judges and scores.

    policy      what is trained; asked for its reference before the first step
    preference  pairs of completions -> p(first ≻ second) in [0, 1]; symmetrised with a warning where it is not
    seed        of the samples: a step's completions depend on it, the step, the prompt and the policy alone
    """

    policy: Policy
    preference: Labeller
    settings: OnlineSettings = field(default_factory=OnlineSettings)
    seed: int = 0
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        with self.policy.reference():  # frozen as it is now
            pass
        self._judge: Labeller | None = None

    @cached_property
    def reference(self) -> ReferenceRuntime:
        return ReferenceRuntime(self.policy)

    @cached_property
    def _mixture(self) -> GeometricMixture:
        return GeometricMixture(self.reference, self.settings.mixture_weight)

    def draw(self, batch: PromptBatch) -> tuple[list[Completion], list[Completion]]:
        """Firsts and seconds of a step, of one prompt each: the other player's samples are the seconds."""
        settings, prompts = self.settings, self.processes.part(batch.prompts)
        half = settings.samples // 2
        if settings.method == "nash_md":
            firsts = self._samples(prompts, half, mixed=False, seed=stream_key(self.seed, batch.step, 0))
            seconds = self._samples(prompts, half, mixed=True, seed=stream_key(self.seed, batch.step, 1))
            return [c for row in firsts for c in row], [c for row in seconds for c in row]
        seed = stream_key(self.seed, batch.step, 0)
        drawn = self._samples(prompts, settings.samples, mixed=settings.method == "ipo_md", seed=seed)
        return [c for row in drawn for c in row[:half]], [c for row in drawn for c in row[half:]]

    def _samples(self, prompts: Seq[Prompt], n: int, *, mixed: bool, seed: int) -> list[tuple[Completion, ...]]:
        source = FromPolicy(
            self.policy.lm, n=n, temperature=self.settings.temperature, max_tokens=self.settings.max_tokens,
            processors=(self._mixture,) if mixed and self.settings.mixture_weight else (),
        )  # fmt: skip
        return [candidates.completions for candidates in source.draw(prompts, seed=seed)]

    def judge(self, firsts: list[Completion], seconds: list[Completion], step: int) -> JudgedPairs:
        if self._judge is None:
            self._judge = checked(self.preference, firsts, seconds)
        rng = np.random.default_rng([self.seed % 2**64, step, self.processes.rank])
        labels = label_pairs(self._penalised, firsts, seconds, hard=self.settings.hard, rng=rng)
        kept = labels.kept.tolist()
        return JudgedPairs([firsts[i] for i in kept], [seconds[i] for i in kept], labels.preferences, labels.ties)

    def _penalised(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats:
        """p, with the penalty for completions that were cut."""
        assert self._judge is not None
        p = np.asarray(self._judge(firsts, seconds), np.float64)
        cut = np.array([float(b.finished) - float(a.finished) for a, b in zip(firsts, seconds, strict=True)])
        if not self.settings.missing_end_penalty or not cut.any():
            return p
        with np.errstate(divide="ignore"):
            logits = np.clip(np.log(p) - np.log1p(-p), -MOST_LOGIT, MOST_LOGIT)
        return np.where(cut == 0, p, 1 / (1 + np.exp(self.settings.missing_end_penalty * cut - logits)))

    def __call__(self, batch: PromptBatch) -> Iterator[LossOutput]:
        """Summands of the step's loss: its mean over all pairs of all processes."""
        self.policy.refresh()  # samples come from the weights as they are now
        pairs = self.judge(*self.draw(batch), batch.step)
        total = max(len(batch.prompts) * (self.settings.samples // 2), 1)
        size = self.settings.together // (1 if self.settings.method == "nash_md" else 2)
        if not pairs.firsts:  # nothing but ties
            zero = sum((p.sum() * 0.0 for p in self.policy.parameters()), torch.zeros(()))
            yield LossOutput(zero, {"ties": (float(pairs.ties), 1.0)})
        for start in range(0, len(pairs.firsts), max(size, 1)):
            part = slice(start, start + max(size, 1))
            yield self._summand(
                pairs.firsts[part], pairs.seconds[part], pairs.preferences[part], total,
                ties=pairs.ties if start == 0 else 0,
            )  # fmt: skip

    def _summand(
        self, firsts: list[Completion], seconds: list[Completion], preferences: Floats, total: int, *, ties: int
    ) -> LossOutput:
        settings = self.settings
        p = torch.tensor(preferences, dtype=torch.float32, device=self.policy.device)
        scored = firsts if settings.method == "nash_md" else [*firsts, *seconds]
        scores, reference = self._scores(scored)
        ratios = scores.sum - reference.sum
        if settings.method == "nash_md":
            losses = nash_md_loss(
                scores.token_logprobs, reference.token_logprobs, scores.mask, p, tau=settings.strength, kl=settings.kl
            )
        else:
            margin = ratios[: len(firsts)] - ratios[len(firsts) :]
            losses = pair_loss(settings.link, margin, p)
        metrics = _metrics(firsts, seconds, p, ratios.detach(), mixed=settings.method == "ipo_md")
        return LossOutput(losses.sum() / total, {**metrics, "ties": (float(ties), 1.0 if ties else 0.0)})

    def _scores(self, completions: list[Completion]) -> tuple[SequenceScores, SequenceScores]:
        """Log-probabilities under the policy, with gradients, and under the reference."""
        scores = completion_scores(self.policy.module, completions)
        with self.policy.reference() as module:
            return scores, completion_scores(module, completions)


def _metrics(
    firsts: list[Completion], seconds: list[Completion], p: Tensor, ratios: Tensor, *, mixed: bool
) -> dict[str, tuple[float, float]]:
    """Sums and counts over completions and pairs; the KL estimate is log π/π_ref of samples, where they are π's own."""
    n, both = len(firsts), [*firsts, *seconds]
    found = {
        "length": (float(sum(len(c.tokens) for c in both)), float(2 * n)),
        "finished": (float(sum(c.finished for c in both)), float(2 * n)),
        "decided": (float((2 * p - 1).abs().sum()), float(n)),
    }
    if not mixed:
        found["kl"] = (float(ratios.sum()), float(len(ratios)))
    if len(ratios) == 2 * n:
        margin = ratios[:n] - ratios[n:]
        found["accuracy"] = (float(((margin > 0) == (p > 0.5)).float().sum()), float(n))
    else:
        found["win_rate"] = (float(p.sum()), float(n))
    return found


def prompt_batches(prompts: Seq[Prompt], *, batch: int, steps: int, seed: int = 0) -> list[PromptBatch]:
    """The prompts of every step: each pass over them in a new order."""
    if not prompts:
        raise ValueError("no prompts: at least one is needed")
    rng, order = np.random.default_rng(seed), []
    while len(order) < batch * steps:
        order += rng.permutation(len(prompts)).tolist()
    return [PromptBatch(i, tuple(prompts[j] for j in order[i * batch : (i + 1) * batch])) for i in range(steps)]


def rate_at(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """The learning rate of a step as a share of the largest."""
    rising = min(1.0, (step + 1) / max(warmup, 1))
    if schedule == "constant":
        return rising
    return rising * 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / max(steps - warmup, 1)))


def train_online(
    policy: Policy,
    prompts: Seq[Prompt],
    preference: Labeller,
    settings: OnlineSettings | None = None,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 1e-5,
    warmup: int = 0,
    schedule: Schedule = "constant",
    clip: float = 1.0,
    seed: int = 0,
    checkpoints: Checkpoints | None = None,
    log: MetricsLog | None = None,
    processes: Processes | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a policy on completions that it draws itself; the loss of each step.

    prompts       of which every step takes `batch`;  preference: who says which completion is better
    steps         of AdamW without weight decay
    warmup        steps in which the rate rises to `learning_rate`;  schedule: what it does then, "cosine" falls to 0
    checkpoints   a run that was stopped goes on from there, with the samples it would have drawn
    The policy's samples are its own again after the last step (`Policy.refresh`).
    """
    settings, processes = settings or OnlineSettings(), processes or Processes()
    for name, value in (("steps", steps), ("batch", batch), ("learning_rate", learning_rate), ("clip", clip)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    check_choice("schedule", schedule, ("constant", "cosine"))
    loss = OnlinePreferences(policy, preference, settings, seed, processes)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate_at(t, steps, warmup, schedule))
    if checkpoints is not None:
        recipe: dict[str, Any] = {
            **policy.recipe(), **asdict(settings), "steps": steps, "batch": batch, "learning_rate": learning_rate,
            "warmup": warmup, "schedule": schedule, "seed": seed,
        }  # fmt: skip
        checkpoints = replace(checkpoints, recipe={**checkpoints.recipe, **recipe})
    losses = train(
        prompt_batches(prompts, batch=batch, steps=steps, seed=seed), loss, optimizer, schedule=rate, clip=clip,
        checkpoints=checkpoints, log=log, processes=processes, progress=progress,
    )  # fmt: skip
    policy.refresh()
    return losses
