"""Methods of preference optimisation as combinations: how a margin is scored, what it costs, what labels are taken for.

A method says what is learned from pairs; where pairs come from (given, drawn from the policy, chosen by rejection
sampling) is a source's affair.  Replace one field for another method: `dataclasses.replace(dpo(), link=Hinge(0.05))`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from likely.alignment.labellers import PreferencePair
from likely.alignment.links import Hinge, Link, Logistic, Square, pair_loss, robust_preference, smoothed_preference
from likely.alignment.scores import Normaliser, completion_scores, normalise
from likely.errors import check_choice, nearest
from likely.training.logprobs import SequenceScores
from likely.training.loop import LossOutput

LabelTransform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PreferenceMethod:
    """loss = pair_loss(link, s(first) − s(second), labels(p)) + sft_weight · (−log π(first) / tokens).

    normaliser  what s is: see `scores.normalise`
    labels      what is made of a preference probability before it weighs the two directions
    sft_weight  of the likelihood of the preferred completion (SLiC's regulariser), per token
    """

    name: str
    link: Link
    normaliser: Normaliser
    labels: LabelTransform = lambda p: p
    sft_weight: float = 0.0

    @property
    def needs_reference(self) -> bool:
        return self.normaliser.startswith("ratio")


def dpo(*, beta: float = 0.1) -> PreferenceMethod:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); trl's "sigmoid"."""
    return PreferenceMethod("dpo", Logistic(beta), "ratio")


def dpo_mean(*, beta: float = 0.1) -> PreferenceMethod:
    """DPO on log-ratios per token; trl's "sigmoid_norm"."""
    return PreferenceMethod("dpo_mean", Logistic(beta), "ratio_mean")


def cdpo(*, beta: float = 0.1, epsilon: float = 0.1) -> PreferenceMethod:
    """DPO with label smoothing: labels are flipped with probability epsilon, and the loss says so (Mitchell 2023)."""
    return PreferenceMethod("cdpo", Logistic(beta), "ratio", lambda p: smoothed_preference(p, epsilon))


def robust_dpo(*, beta: float = 0.1, epsilon: float = 0.1) -> PreferenceMethod:
    """DPO unbiased under flips of rate epsilon (Chowdhury et al. 2024, arXiv:2403.00409, eq. 12); trl's "robust"."""
    return PreferenceMethod("robust_dpo", Logistic(beta), "ratio", lambda p: robust_preference(p, epsilon))


def ipo(*, tau: float = 0.1) -> PreferenceMethod:
    """Identity preference optimisation as in its paper (Azar et al. 2023, arXiv:2310.12036, eq. 17): sums, no lengths.

    trl's OnlineDPOTrainer agrees; its DPOTrainer divides by lengths, which is `ipo_mean`.
    """
    return PreferenceMethod("ipo", Square(tau), "ratio")


def ipo_mean(*, tau: float = 0.1) -> PreferenceMethod:
    """IPO on log-ratios per token, as in trl's DPOTrainer."""
    return PreferenceMethod("ipo_mean", Square(tau), "ratio_mean")


def slic(*, delta: float = 1.0, sft_weight: float = 0.1) -> PreferenceMethod:
    """SLiC-HF (Zhao et al. 2023, arXiv:2305.10425, eq. 1): max(0, δ − log π(w) + log π(l)) / δ and likelihood of w.

    No reference model: the likelihood term keeps the policy near the data.
    """
    return PreferenceMethod("slic", Hinge(1 / delta), "logp", sft_weight=sft_weight)


def hinge_norm(*, gamma: float = 0.05) -> PreferenceMethod:
    """The hinge on log-ratios (Liu et al. 2024, arXiv:2309.06657, eq. 10); trl's "hinge"."""
    return PreferenceMethod("hinge_norm", Hinge(gamma), "ratio")


METHODS: Mapping[str, Callable[..., PreferenceMethod]] = MappingProxyType({
    "dpo": dpo,
    "dpo_mean": dpo_mean,
    "cdpo": cdpo,
    "robust_dpo": robust_dpo,
    "ipo": ipo,
    "ipo_mean": ipo_mean,
    "slic": slic,
    "hinge_norm": hinge_norm,
})  # fmt: skip


def make_method(name: str, settings: Mapping[str, float]) -> PreferenceMethod:
    """A method of `METHODS` with these numbers; ValueError, with the nearest name, for one that it has not."""
    check_choice("method", name, METHODS)
    make = METHODS[name]
    known = inspect.signature(make).parameters
    for setting, value in settings.items():
        if setting not in known:
            raise ValueError(
                f"{name} has no setting {setting}{nearest(setting, known)} (it has: {', '.join(known) or 'none'})"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{setting} must be a number, got {value!r}")
    return make(**settings)


def implied_preference(method: PreferenceMethod, margin: Tensor) -> Tensor:
    """(B,) the p(first ≻ second) of the data whose loss is lowest at this margin.

    What the link stands for, σ(γδ) of the logistic and ½ + τδ of the square, is what the method's labels made of p (of
    cDPO (1 − 2ε)p + ε): that is undone, within [0, 1].  Of the hinge, which has no such p, σ(γδ), too.
    """
    if isinstance(method.link, Square):
        found = 0.5 + method.link.tau * margin
    else:
        found = torch.sigmoid(getattr(method.link, "gamma", 1.0) * margin)
    none, sure = method.labels(torch.tensor([0.0, 1.0], dtype=margin.dtype, device=margin.device))  # labels are linear
    return ((found - none) / (sure - none)).clamp(0, 1)


@dataclass(frozen=True)
class PairLosses:
    """Of B pairs: loss (B,), margin δ (B,) and the log-probabilities of first and second (B,), nats."""

    loss: Tensor
    margin: Tensor
    first: Tensor
    second: Tensor


def pair_losses(
    method: PreferenceMethod, scores: SequenceScores, preferences: Tensor, reference: Tensor | None = None
) -> PairLosses:
    """The method's loss of each pair.

    scores       of 2B completions: the firsts, then the seconds, in one order
    preferences  (B,) p(first ≻ second);  reference: (2B,) log-probabilities of the frozen reference
    """
    sums, lengths = scores.sum, scores.length
    values = normalise(method.normaliser, sums, lengths, reference)
    first, second = values.chunk(2)
    margin = first - second
    loss = pair_loss(method.link, margin, method.labels(preferences.to(margin)))
    if method.sft_weight:
        better = torch.where(preferences.to(margin) >= 0.5, *(sums / lengths).chunk(2))
        loss = loss - method.sft_weight * better
    return PairLosses(loss, margin, *sums.detach().chunk(2))


def pair_batch_loss(
    method: PreferenceMethod, module: torch.nn.Module, pairs: Seq[PreferencePair], reference: Tensor | None = None
) -> LossOutput:
    """The sum of the losses of pairs in one call of the model, and what is worth logging of them.

    reference  (2B,) as in `pair_losses`, on any device
    """
    scores = completion_scores(module, [pair.first for pair in pairs] + [pair.second for pair in pairs])
    device = scores.mask.device
    preferences = torch.tensor([pair.preference for pair in pairs], device=device)
    known = None if reference is None else reference.to(device)
    found = pair_losses(method, scores, preferences, known)
    better = torch.where(preferences >= 0.5, 1.0, -1.0)
    winners = torch.where(preferences >= 0.5, found.first, found.second)
    losers = found.first + found.second - winners
    n, decided = len(pairs), preferences != 0.5
    right = ((found.margin.detach() * better > 0) & decided).sum().item()
    metrics = {
        "accuracy": (right, int(decided.sum())),
        "margin": ((found.margin.detach() * better).sum().item(), n),
        "winner_logprob": (winners.sum().item(), n),
        "loser_logprob": (losers.sum().item(), n),
    }
    if known is not None:
        metrics["log_ratio"] = ((scores.sum.detach() - known).sum().item(), 2 * n)
    return LossOutput(found.loss.sum(), metrics)
