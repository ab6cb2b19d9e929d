"""How much of each channel's range the codes cover: per channel by its own error, per layer by that of the outputs."""

from __future__ import annotations

import torch

from likely.compression.mergequant.merged import Steps, round_merged
from likely.compression.quantisers.activations import code_range, to_codes

CHANNEL_RATIOS = tuple(1 - i / 20 for i in range(11))  # 1.0 .. 0.5
LAYER_RATIOS = tuple(1 - i / 40 for i in range(13))  # 1.0 .. 0.7
WEIGHT_RATIOS = tuple(1 - i / 20 for i in range(5))  # 1.0 .. 0.8
TOKENS = 1024  # of the calibration set that ratios are chosen on
_LEAST = 1e-12


def some_tokens(inputs: torch.Tensor, tokens: int = TOKENS) -> torch.Tensor:
    """At most so many rows, evenly spaced."""
    return inputs if len(inputs) <= tokens else inputs[torch.linspace(0, len(inputs) - 1, tokens).long()]


def fit_steps(inputs: torch.Tensor, bits: int) -> torch.Tensor:
    """(in,) max_t |y_tj| / Qmax of inputs (n, in); a channel that never fires gets the median step."""
    steps = inputs.abs().amax(0) / code_range(bits)[1]
    fires = steps > _LEAST
    if not fires.any():
        return torch.ones_like(steps)
    return torch.where(fires, steps, steps[fires].median())


def clip_channels(inputs: torch.Tensor, steps: torch.Tensor, bits: int) -> torch.Tensor:
    """(in,) steps times the ratio of `CHANNEL_RATIOS` with the least squared error of each channel.

    How strongly a channel counts, Σ_i W_ij², is a factor of its error and moves no minimum.
    """
    sample = some_tokens(inputs)
    errors = torch.stack(
        [(to_codes(sample, c * steps, bits) * (c * steps) - sample).square().sum(0) for c in CHANNEL_RATIOS]
    )
    return steps * torch.tensor(CHANNEL_RATIOS, dtype=steps.dtype)[errors.argmin(0)]


def clip_layer(
    inputs: torch.Tensor, weights: torch.Tensor, steps: torch.Tensor, copies: torch.Tensor, w_bits: int, a_bits: int
) -> Steps:  # fmt: skip
    """One factor on all steps, then one ratio of the weights: those with the least error of the outputs W y.

    weights (out, in) of all matrices that read the inputs (n, in), one below the other
    """
    sample = some_tokens(inputs)
    wanted = sample @ weights.T

    def error(found: Steps) -> float:
        codes = to_codes(sample, found.values, a_bits)
        integers, scales = round_merged(weights, found, copies, w_bits)
        return float((codes @ (integers * scales).T - wanted).square().sum())

    best = min((Steps(ratio * steps) for ratio in LAYER_RATIOS), key=error)
    return min((Steps(best.values, ratio) for ratio in WEIGHT_RATIOS), key=error)
