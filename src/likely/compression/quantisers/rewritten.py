"""Rounding to nearest as it is, and after an exact rewrite: SmoothQuant and rotations."""

from __future__ import annotations

import torch

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.gptq import quantize_decoder
from likely.compression.quantisers.walk import BlockWalk
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import QuantScheme, parse_scheme
from likely.compression.settings import MethodSettings, Quantized
from likely.compression.transforms.hadamard import rotation_matrix
from likely.compression.transforms.residual import check_rotatable, rotate_residual, rotate_values
from likely.compression.transforms.scaling import fold_norms, norm_of, scale_norm

_LEAST = 1e-5


def round_decoder(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """RTN on every matrix of every block."""
    assert isinstance(settings.scheme, QuantScheme)
    found = {}
    for name, _, _, linear in decoder.linears():
        found[name] = round_to_nearest(linear.weight.detach().float().numpy(), settings.scheme, name=name)
    return found


def smoothing_scale(absmax: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α) from absmax (in,) and weights (out, in), at least 1e-5.

    Xiao et al. 2022, arXiv:2211.10438, eq. 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    columns = weights.abs().amax(0).clamp_min(_LEAST)
    return (absmax.clamp_min(_LEAST) ** alpha / columns ** (1 - alpha)).clamp_min(_LEAST)


def parse_smoothed(text: str | QuantScheme) -> QuantScheme:
    """A scheme that SmoothQuant takes; ValueError for one that leaves activations as floats."""
    scheme = parse_scheme(text)
    if scheme.activation_bits is None:
        raise ValueError(f"smoothquant rounds activations, too: got {scheme.name}, write it as in w8a8")
    return scheme


def run_smoothquant(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """Scales of the norms' outputs go into the matrices that read them; then RTN.  Activations follow the scheme."""
    scheme, calibration = settings.needed()
    parse_smoothed(scheme)
    walk = BlockWalk(decoder, calibration.input_ids)
    for number in range(len(walk)):
        for stage in walk.stages(number):
            if len(stage.parts) == 1:
                continue
            linears = [stage.block.linears()[part] for part in stage.parts]
            weights = torch.cat([linear.weight.detach() for linear in linears])
            scale = smoothing_scale(stage.inputs.abs().amax(0), weights, settings.alpha)
            norm = norm_of(stage.block, "attention" if "q" in stage.parts else "mlp")
            scale_norm(decoder, norm, linears, scale)
        if settings.progress is not None:
            settings.progress(number + 1, len(walk))
    return round_decoder(decoder, settings)


def run_rotation(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """Residual stream and values of each head are rotated by random Hadamard matrices; then RTN or GPTQ."""
    check_rotatable(decoder)
    decoder = fold_norms(decoder)
    rotate_residual(decoder, rotation_matrix(decoder.embedding.embedding_dim, settings.seed))
    for block in decoder.blocks:
        rotate_values(decoder, block, rotation_matrix(decoder.head_dim, settings.seed + 1 + block.number))
    return (quantize_decoder if settings.rounding == "gptq" else round_decoder)(decoder, settings)
