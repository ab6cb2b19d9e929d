"""AWQ: channels that activations use most are scaled up before rounding, and groups are clipped (Lin et al. 2023)."""

from __future__ import annotations

import numpy as np
import torch

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.gptq import output_error
from likely.compression.quantisers.walk import BlockWalk, Stage, second_moment
from likely.compression.quantized import FloatArray, fit_grid, round_to_grid, round_to_nearest
from likely.compression.schemes import QuantScheme
from likely.compression.settings import MethodSettings, Quantized
from likely.compression.transforms.scaling import norm_of, repeat_heads, scale_neurons, scale_norm, scale_values

ALPHAS = tuple(i / 20 for i in range(20))
CLIPS = tuple(1 - i / 40 for i in range(20))  # 1.0 .. 0.525
NOT_CLIPPED = ("q", "k")
_LEAST = 1e-4


def awq_scale(mean_abs: torch.Tensor, alpha: float) -> torch.Tensor:
    """s = a^α of the mean magnitudes a (in,), around 1: divided by √(max s · min s)."""
    scale = (mean_abs**alpha).clamp_min(_LEAST)
    return scale / (scale.max() * scale.min()).sqrt()


def search_scale(
    weights: list[FloatArray], mean_abs: torch.Tensor, hessian: torch.Tensor, scheme: QuantScheme
) -> tuple[torch.Tensor, float]:
    """The s of `ALPHAS` with the least ‖Q(W diag s) diag(s)⁻¹ x - W x‖², summed over matrices with these inputs.

    α = 0 is s = 1, so that the error is never above that of rounding to nearest.  Lin et al. 2023, arXiv:2306.00978,
    eq. 4 and 5.
    """

    def error(alpha: float) -> float:
        scale = awq_scale(mean_abs, alpha).numpy().astype(np.float32)
        return sum(output_error(w, round_to_nearest(w * scale, scheme).dequantize() / scale, hessian) for w in weights)

    errors = [error(alpha) for alpha in ALPHAS]
    best = int(np.argmin(errors))
    return awq_scale(mean_abs, ALPHAS[best]), errors[best]


def search_clip(weights: FloatArray, hessian: torch.Tensor, scheme: QuantScheme) -> FloatArray:
    """(out, groups) share of each group's range that its grid covers, of `CLIPS`: least error of the group's output."""
    rows, width = weights.shape
    groups = scheme.groups_of(width)
    size = width // groups
    blocks = torch.stack([hessian[i : i + size, i : i + size] for i in range(0, width, size)])  # (groups, size, size)
    errors = []
    for ratio in CLIPS:
        rounded = round_to_grid(weights, fit_grid(weights, scheme, ratio), scheme).dequantize()
        difference = torch.from_numpy(rounded - weights).reshape(rows, groups, size).transpose(0, 1)
        errors.append(((difference @ blocks) * difference).sum(-1).T)
    return np.array(CLIPS, np.float32)[torch.stack(errors).argmin(0).numpy()]


def run_awq(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """As a method of `compress`: scales found with float inputs are folded, then matrices are clipped and rounded."""
    scheme, calibration = settings.needed()
    names = {(block.number, part): name for name, block, part, _ in decoder.linears()}
    walk, quantized = BlockWalk(decoder, calibration.input_ids), {}
    for number in range(len(walk)):
        moments = {}
        for stage in walk.stages(number):
            scale = _scale_stage(decoder, stage, scheme)
            hessian = second_moment(stage.inputs / scale)
            moments.update(dict.fromkeys(stage.parts, hessian))
        for part, linear in decoder.blocks[number].linears().items():
            weights = linear.weight.detach().numpy()
            clip = None if part in NOT_CLIPPED else search_clip(weights, moments[part], scheme)
            quantized[names[number, part]] = round_to_grid(weights, fit_grid(weights, scheme, clip), scheme)
        if settings.progress is not None:
            settings.progress(number + 1, len(walk))
    return quantized


def _scale_stage(decoder: DecoderMap, stage: Stage, scheme: QuantScheme) -> torch.Tensor:
    """Find and fold the scale (in,) of what a stage's matrices read."""
    block, linears = stage.block, [stage.block.linears()[part] for part in stage.parts]
    mean_abs = stage.inputs.abs().mean(0)
    if stage.parts == ("o",):  # one scale for the query heads that read the same values
        mean_abs = mean_abs.reshape(decoder.kv_heads, -1, decoder.head_dim).mean(1).reshape(-1)
        mean_abs = repeat_heads(decoder, mean_abs)
    scale, _ = search_scale(
        [linear.weight.detach().numpy() for linear in linears], mean_abs, second_moment(stage.inputs), scheme
    )
    if stage.parts == ("o",):
        groups = decoder.heads // decoder.kv_heads
        scale_values(decoder, block, scale.reshape(-1, groups, decoder.head_dim)[:, 0].reshape(-1))
    elif stage.parts == ("down",):
        scale_neurons(block, scale)
    else:
        scale_norm(decoder, norm_of(block, "attention" if "q" in stage.parts else "mlp"), linears, scale)
    return scale
