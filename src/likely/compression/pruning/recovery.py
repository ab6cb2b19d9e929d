"""After pruning: low-rank factors learn what was lost, and are added to the weights at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from likely.compression.architecture import PARTS
from likely.compression.calibration_set import CalibrationSet
from likely.errors import check_choice
from likely.runtimes.protocol import IntArray
from likely.training.loop import train
from likely.training.lora import add_factors, learned_factors, peft_model

Target = Literal["distill", "loss"]
TARGETS = ("distill", "loss")
LINEARS = tuple(f"{part}_proj" for part in PARTS)


def recover(
    pruned: torch.nn.Module,
    reference: torch.nn.Module,
    data: CalibrationSet,
    *,
    target: Target = "distill",
    steps: int = 200,
    batch: int = 2,
    rank: int = 8,
    alpha: int = 16,
    lr: float = 1e-4,
    clip: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train LoRA factors on every matrix of the blocks and add them to the weights; returns the loss of each step.

    target  "distill": KL(reference ‖ pruned) per token of the windows.  "loss": −log p of their next tokens, as the
            paper does on instructions
    steps   of AdamW with `batch` windows each; every window comes up before one does again
    Rank, alpha and rate are those of NIRVANA's official scripts; the pruned module is changed in place.
    """
    check_choice("target", target, TARGETS)
    for name, value in (("steps", steps), ("batch", batch), ("rank", rank), ("lr", lr), ("clip", clip)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    reference.eval()

    def loss(windows: IntArray) -> torch.Tensor:
        ids = torch.from_numpy(windows).long().to(next(pruned.parameters()).device)
        logits = wrapped(input_ids=ids, use_cache=False).logits.float()
        if target == "loss":
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        with torch.no_grad():
            theirs = reference(input_ids=ids, use_cache=False).logits.float()
        return mean_kl(theirs, logits)

    with peft_model(pruned, rank=rank, alpha=alpha, dropout=0.0, targets=LINEARS, seed=seed) as wrapped:
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        wrapped.train()
        losses = train(_windows(data, batch, steps, seed), loss, optimizer, clip=clip, progress=progress)
        factors = learned_factors(wrapped)
    add_factors(pruned, factors, alpha / rank)
    return losses


def mean_kl(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Mean over positions of KL(p ‖ q) of logits (B, T, V); the first position of a window counts too."""
    p, q = torch.log_softmax(reference, dim=-1), torch.log_softmax(candidate, dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).mean()


def _windows(data: CalibrationSet, batch: int, steps: int, seed: int) -> Iterator[IntArray]:
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < batch:
            waiting += rng.permutation(len(data)).tolist()
        chosen, waiting = waiting[:batch], waiting[batch:]
        yield data.input_ids[chosen]
