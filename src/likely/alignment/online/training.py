"""Preference optimisation on the model's own samples: online IPO, IPO-MD, Nash-MD and online DPO.  torch.

Every step draws completions from the policy as it is now (or from its geometric mixture with the reference), asks which
of two is better, and moves the policy.  With a regularisation of τ, online IPO ends at the Nash equilibrium of the
preferences (`tabular`), and so does the mixture of IPO-MD and Nash-MD, whether or not these come from a reward.
Calandriello et al. 2024, arXiv:2403.08635; Munos et al. 2023, arXiv:2312.00886.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from likely.alignment.labellers import Hardness, Labeller, PreferencePair, checked, label_pairs
from likely.alignment.methods import PreferenceMethod, dpo, ipo, pair_batch_loss
from likely.alignment.online.mixture import GeometricMixture
from likely.alignment.online.policy_gradient import KL_FORMS, KlForm, nash_md_loss
from likely.alignment.online.tabular import check_beta
from likely.alignment.scores import Completion, completion_scores
from likely.alignment.sources import FromPolicy, Prompt
from likely.decoding.sampling import stream_key
from likely.errors import check_choice
from likely.runtimes.protocol import Output, Work
from likely.runtimes.torch.runtime import TorchRuntime
from likely.training.fit import TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.metrics_log import MetricsLog
from likely.training.policy import Policy
from likely.training.processes import Processes

OnlineMethod = Literal["online_ipo", "ipo_md", "nash_md", "online_dpo"]
TAU: dict[str, float] = {"online_ipo": 1.0, "ipo_md": 1.0, "nash_md": 0.008, "online_dpo": 0.1}
BETA: dict[str, float] = {"online_ipo": 0.0, "ipo_md": 0.125, "nash_md": 0.125, "online_dpo": 0.0}
ONLINE_METHODS = tuple(TAU)
Opponents = Literal["one", "all"]
OPPONENTS = ("one", "all")


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
    samples     completions per prompt, an even number
    opponents   whom each meets: "one" other, or "all", which scores no more texts and scatters less: what a sample's
                log-ratio is drawn to is then the mean over all others (of nash_md: over the mixture's half)
    max_tokens  of a completion;  temperature: of sampling; what holds of these methods holds at 1
    hard        whether only the winner counts, not p (`label_pairs`); ties are then left out
    """

    method: OnlineMethod = "online_ipo"
    tau: float | None = None
    beta: float | None = None
    kl: KlForm = "sequence"
    samples: int = 2
    opponents: Opponents = "one"
    max_tokens: int = 64
    temperature: float = 1.0
    hard: Hardness = False

    def __post_init__(self) -> None:
        check_choice("method", self.method, ONLINE_METHODS)
        check_choice("kl", self.kl, KL_FORMS)
        check_choice("opponents", self.opponents, OPPONENTS)
        check_beta(self.mixture_weight)
        if self.beta and not BETA[self.method]:
            raise ValueError(f"{self.method} draws from the policy alone: drop beta={self.beta:g}, or take ipo_md")
        if not self.strength > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")
        if self.samples < 2 or self.samples % 2:
            raise ValueError(f"samples must be an even number >= 2, got {self.samples}")

    @property
    def strength(self) -> float:
        """τ, or its default."""
        return TAU[self.method] if self.tau is None else self.tau

    @property
    def mixture_weight(self) -> float:
        """β, or its default."""
        return BETA[self.method] if self.beta is None else self.beta

    @property
    def pair_method(self) -> PreferenceMethod:
        """The loss of pairs; nash_md has none."""
        return dpo(beta=self.strength) if self.method == "online_dpo" else ipo(tau=self.strength)


class ReferenceRuntime(TorchRuntime):
    """The frozen reference of a policy as a runtime with a cache of its own: for adapters the same weights with the
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
    """What a step does between prompts and loss: it draws, judges and scores.

    policy      what is trained; its reference is frozen as it is when this is made
    preference  pairs of completions -> p(first ≻ second) in [0, 1]; symmetrised with a warning where it is not
    seed        of the samples: a step's completions depend on it, the step, the prompt and the policy alone
    """

    policy: Policy
    preference: Labeller
    settings: OnlineSettings = field(default_factory=OnlineSettings)
    seed: int = 0
    ties: int = 0  # left out so far

    def __post_init__(self) -> None:
        with self.policy.reference():  # frozen as it is now
            pass
        self._judge: Labeller | None = None

    @cached_property
    def _reference(self) -> ReferenceRuntime:
        return ReferenceRuntime(self.policy)

    @cached_property
    def mixture(self) -> GeometricMixture:
        return GeometricMixture(self._reference, self.settings.mixture_weight)

    def close(self) -> None:
        """Free the cache of the reference; harmless when repeated."""
        if "_reference" in self.__dict__:
            self._reference.shutdown()
            del self.__dict__["_reference"]
            self.__dict__.pop("mixture", None)

    def draw(self, step: int, prompts: Seq[Prompt]) -> tuple[list[Completion], list[Completion]]:
        """Firsts and seconds of a step, pair by pair of one prompt; of nash_md the seconds are the mixture's."""
        settings, half = self.settings, self.settings.samples // 2
        if settings.method == "nash_md":
            firsts = self._samples(prompts, half, mixed=False, seed=stream_key(self.seed, step, 0))
            seconds = self._samples(prompts, half, mixed=True, seed=stream_key(self.seed, step, 1))
        else:
            mixed = settings.method == "ipo_md"
            drawn = self._samples(prompts, settings.samples, mixed=mixed, seed=stream_key(self.seed, step, 0))
            firsts, seconds = [row[:half] for row in drawn], [row[half:] for row in drawn]
        if settings.opponents == "one":
            meetings = [pair for rows in zip(firsts, seconds, strict=True) for pair in zip(*rows, strict=True)]
        elif settings.method == "nash_md":
            meetings = [pair for rows in zip(firsts, seconds, strict=True) for pair in itertools.product(*rows)]
        else:
            meetings = [pair for row in drawn for pair in itertools.combinations(row, 2)]
        return [first for first, _ in meetings], [second for _, second in meetings]

    def _samples(self, prompts: Seq[Prompt], n: int, *, mixed: bool, seed: int) -> list[tuple[Completion, ...]]:
        source = FromPolicy(
            self.policy.lm, n=n, temperature=self.settings.temperature, max_tokens=self.settings.max_tokens,
            processors=(self.mixture,) if mixed and self.settings.mixture_weight else (),
        )  # fmt: skip
        return [candidates.completions for candidates in source.draw(prompts, seed=seed)]

    def pairs(self, step: int, prompts: Seq[Prompt]) -> list[PreferencePair]:
        """The judged pairs of a step; the runtime must have been refreshed since the last one."""
        firsts, seconds = self.draw(step, prompts)
        if self._judge is None:
            self._judge = checked(self.preference, firsts, seconds)
        rng = np.random.default_rng([stream_key(self.seed, step), *(len(c.tokens) for c in firsts)])
        labels = label_pairs(self._judge, firsts, seconds, hard=self.settings.hard, rng=rng)
        self.ties += labels.ties
        found = []
        for i, p in zip(labels.kept.tolist(), labels.preferences.tolist(), strict=True):
            same = firsts[i].tokens == seconds[i].tokens  # nothing to prefer, whatever a noisy judge says
            found.append(PreferencePair(firsts[i], seconds[i], 0.5 if same else p))
        return found

    def loss(self, pairs: Seq[PreferencePair]) -> LossOutput:
        """The sum over pairs, and what is logged of them.

        `log_ratio` is an estimate of KL(π‖π_ref) where samples are the policy's own (not for ipo_md).
        """
        firsts, seconds = [pair.first for pair in pairs], [pair.second for pair in pairs]
        both, nash_md = [*firsts, *seconds], self.settings.method == "nash_md"
        with self.policy.reference() as module:
            reference = completion_scores(module, firsts if nash_md else both)
        p = torch.tensor([pair.preference for pair in pairs], device=self.policy.device)
        if nash_md:
            scores = completion_scores(self.policy.module, firsts)
            losses = nash_md_loss(
                scores.token_logprobs, reference.token_logprobs, scores.mask, p, tau=self.settings.strength,
                kl=self.settings.kl,
            )  # fmt: skip
            found = LossOutput(losses.sum(), {
                "win_rate": (float(p.sum()), len(pairs)),
                "log_ratio": (float((scores.sum.detach() - reference.sum).sum()), len(pairs)),
            })  # fmt: skip
        else:
            found = pair_batch_loss(self.settings.pair_method, self.policy.module, pairs, reference.sum)
        drawn = {
            "length": (float(sum(len(c.tokens) for c in both)), float(len(both))),
            "finished": (float(sum(c.finished for c in both)), float(len(both))),
        }
        return LossOutput(found.loss, {**found.metrics, **drawn})


def train_online(
    policy: Policy,
    prompts: Seq[Prompt],
    preference: Labeller,
    training: TrainingSettings,
    settings: OnlineSettings | None = None,
    *,
    folder: Path | None = None,
    recipe: dict[str, Any] | None = None,
    processes: Processes | None = None,
    log: MetricsLog | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a policy on completions that it draws itself; the loss of each step.

    prompts     every step takes `training.batch` of them;  preference: who says which completion is better
    training    `piece` counts pairs;  settings: the method, by default online IPO
    folder      for checkpoints: a run that was stopped goes on bit for bit, with the samples that it would have drawn
    """
    settings = settings or OnlineSettings()
    online = OnlinePreferences(policy, preference, settings, training.seed)
    try:
        return fit(
            policy, prompts, online.loss, training, expand=online.pairs, folder=folder,
            recipe={"online": asdict(settings), **(recipe or {})}, processes=processes, log=log, progress=progress,
        )  # fmt: skip
    finally:
        online.close()
