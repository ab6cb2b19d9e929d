"""What is trained around a language model: patches to vectors, fusion with texts, experts, next patches.  torch.

Shapes: B windows, n patches of S values, D width, K experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Fusion = Literal["gate", "add", "none"]
Likelihood = Literal["point", "gaussian", "student_t"]
PatchEncoder = Literal["linear", "mlp"]
FUSIONS, LIKELIHOODS, ENCODERS = ("gate", "add", "none"), ("point", "gaussian", "student_t"), ("linear", "mlp")
HIDDEN = 512  # of the encoder "mlp"
_OUTPUTS = {"point": 1, "gaussian": 2, "student_t": 3}
_LOG_SCALES = (-7.0, 7.0)


@dataclass(frozen=True)
class NextPatches:
    """What is expected behind each patch, in normalised units: each (B, n, S).

    log_scale  of the distribution, None for a point;  df  degrees of freedom of Student's t, > 2
    gates      (B, n, K) weights of the experts
    """

    mean: Tensor
    log_scale: Tensor | None
    df: Tensor | None
    gates: Tensor

    def log_prob(self, values: Tensor) -> Tensor:
        """(B, n, S) log densities, nats."""
        if self.log_scale is None:
            raise ValueError("a point forecast has no density")
        z = (values - self.mean) * torch.exp(-self.log_scale)
        if self.df is None:
            return -0.5 * (z**2 + math.log(2 * math.pi)) - self.log_scale
        half = (self.df + 1) / 2
        return (
            torch.lgamma(half) - torch.lgamma(self.df / 2) - 0.5 * torch.log(self.df * math.pi) - self.log_scale
            - half * torch.log1p(z**2 / self.df)
        )  # fmt: skip


class MixtureHead(nn.Module):
    """Σ_k softmax(W h)_k E_k h, E_k (D, D) without bias; with K = 1 one linear map.  SMETimes, arXiv:2503.03594."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.Parameter(torch.empty(experts, width, width))
        for expert in self.experts:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))  # as nn.Linear

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, D) -> (B, n, D), (B, n, K) weights."""
        gates = torch.softmax(self.router(states), -1)
        mixed = sum(gates[..., k : k + 1] * (states @ expert.T) for k, expert in enumerate(self.experts))
        return torch.as_tensor(mixed), gates


def balance_loss(gates: Tensor) -> Tensor:
    """K Σ_k p̄_k² − 1, p̄ the mean weight of each expert: 0 where all are used alike, K − 1 where one is.

    The published code multiplies its penalty by 0 and would penalise the sum of a softmax, which is 1 always.
    """
    mean = gates.reshape(-1, gates.shape[-1]).mean(0)
    return gates.shape[-1] * (mean**2).sum() - 1


class PatchNetwork(nn.Module):
    """Patches -> vectors -> (fusion with their texts) -> backbone -> experts -> the patch behind each.

    gate  g of the fusion σ(g) Enc(x) + (1 − σ(g)) m, from 0
    size  root mean square that patch vectors begin with and texts are brought to; √⅓ is that of fresh linear layers, as
          published
    """

    def __init__(
        self, patch: int, width: int, *, experts: int = 4, fusion: Fusion = "gate", encoder: PatchEncoder = "linear",
        likelihood: Likelihood = "point", size: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        self.patch, self.fusion, self.likelihood, self.size = patch, fusion, likelihood, size
        self.encoder: nn.Module = (
            nn.Linear(patch, width) if encoder == "linear"
            else nn.Sequential(nn.Linear(patch, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width))
        )  # fmt: skip
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = MixtureHead(width, experts)
        self.decoder = nn.Linear(width, patch * _OUTPUTS[likelihood])

    def encode(self, patches: Tensor) -> Tensor:
        """(B, n, S) -> (B, n, D)"""
        encoded: Tensor = self.encoder(patches)
        return encoded * (self.size * math.sqrt(3))  # fresh linear layers give unit inputs a variance of 1/3

    def fuse(self, encoded: Tensor, text: Tensor | None) -> Tensor:
        """Both (B, n, D); without texts the patches alone."""
        if text is None or self.fusion == "none":
            return encoded
        text = text * (self.size * text.pow(2).mean(-1, keepdim=True).clamp_min(1e-12).rsqrt())
        if self.fusion == "add":
            return encoded + text
        share = torch.sigmoid(self.gate)
        return share * encoded + (1 - share) * text

    def forward(self, patches: Tensor, text: Tensor | None, backbone: Callable[[Tensor], Tensor]) -> NextPatches:
        """patches (B, n, S) normalised, text (B, n, D) or None."""
        states = backbone(self.fuse(self.encode(patches), text))
        mixed, gates = self.head(states)
        parts = self.decoder(mixed).split(self.patch, -1)
        log_scale = parts[1].clamp(*_LOG_SCALES) if len(parts) > 1 else None
        df = 2 + nn.functional.softplus(parts[2]) if len(parts) > 2 else None
        return NextPatches(parts[0], log_scale, df, gates)


def next_patch_loss(found: NextPatches, target: Tensor, mean: Tensor, std: Tensor, *, balance: float = 0.0) -> Tensor:
    """Mean over windows, patches and steps of the squared error, or of −log p, in standardised units; and
    `balance` times `balance_loss`.

    target (B, n, S) standardised;  mean, std (B, n, 1) what the patches were normalised with
    """
    if found.log_scale is None:
        loss = ((found.mean * std + mean - target) ** 2).mean()
    else:
        loss = (torch.log(std) - found.log_prob((target - mean) / std)).mean()
    if balance and found.gates.shape[-1] > 1:
        loss = loss + balance * balance_loss(found.gates)
    return loss
