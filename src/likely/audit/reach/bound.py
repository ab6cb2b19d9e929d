"""What no control of k tokens can do to one attention head: the self-attention bound, also on real layers (torch).

For the output Y_i of a head at row i of the state, with k control tokens of norm at most M_u in front,

    Y_i = λ Ȳ_i + Y_{i,u},    λ = g_i / (g_i + d_u),    ‖Y_{i,u}‖ ≤ β_i = σ_v M_u k e^α / (g_i + k e^α)

where Ȳ_i is the output without control, g_i = Σ_j exp(x_i W_q W_kᵀ x_jᵀ / √d_k) over the visible rows of the state, d_u
the same sum over the control, α = σ_q σ_k M_u M_x / √d_k.  Bhargava et al. 2023, arXiv:2310.04444, theorem 1 (the
official notebook has σ_v in place of σ_k in α, and no factor σ_v M_u; the derivation gives the form above).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, DataError
from likely.training.loop import import_torch

if TYPE_CHECKING:
    from torch.nn import Module

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AttentionBound:
    """Of one head, for each of m rows of the state.

    beta        (m,) no control moves the head's output by more than this off the line of Ȳ_i
    saturation  (m,) k e^α / (g_i + k e^α): 1 where the control may take all attention, so that the bound is that of any
                control
    lambda_min  (m,) 1 − saturation: the least share of Ȳ_i that is left
    output      (m, d_v) Ȳ_i
    """

    beta: Floats
    saturation: Floats
    output: Floats

    @property
    def lambda_min(self) -> Floats:
        return 1 - self.saturation

    def unreachable(self, wanted: Floats) -> NDArray[np.bool_]:
        """(m,) whether row i of `wanted` (m, d_v) cannot be this head's output, whatever the k control tokens are.

        By the component orthogonal to Ȳ_i, and by that along it, which lies in [λ_min ‖Ȳ_i‖ − β_i, ‖Ȳ_i‖ + β_i].
        """
        norms = np.linalg.norm(self.output, axis=1)
        unit = self.output / np.where(norms > 0, norms, 1)[:, None]
        along = (wanted * unit).sum(1)
        across = np.linalg.norm(wanted - along[:, None] * unit, axis=1)
        outside = (along < self.lambda_min * norms - self.beta) | (along > norms + self.beta)
        return (across > self.beta) | (outside & (norms > 0))


def attention_bound(
    x: Floats, w_q: Floats, w_k: Floats, w_v: Floats, k: int, *, most_control_norm: float,
    scores: Floats | None = None, scale: float | None = None,
    biases: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> AttentionBound:  # fmt: skip
    """The bound of one causal head.

    x (m, d) the state's rows;  w_q, w_k (d, d_k), w_v (d, d_v);  most_control_norm M_u >= ‖u_j‖
    scores  (m, m) scaled scores as the model computes them, with rotary positions; None: x W_q W_kᵀ xᵀ · scale
    scale   of the scores; None: 1/√d_k
    biases  norms of the biases of query, key and value: they widen the bound, ‖q‖ ≤ σ_q M_x + ‖b_q‖ and so on
    """
    if k < 0 or most_control_norm < 0:
        raise ValueError(f"k and most_control_norm must be >= 0, got {k} and {most_control_norm}")
    x, w_q, w_k, w_v = (np.asarray(a, np.float64) for a in (x, w_q, w_k, w_v))
    scale = 1 / np.sqrt(w_q.shape[1]) if scale is None else scale
    raw = (x @ w_q) @ (x @ w_k).T * scale if scores is None else np.asarray(scores, np.float64)
    seen = np.tril(np.ones_like(raw, bool))
    with np.errstate(under="ignore"):
        log_g = np.logaddexp.reduce(np.where(seen, raw, -np.inf), axis=1)
        weights = np.exp(np.where(seen, raw, -np.inf) - log_g[:, None])
    sigma_q, sigma_k, sigma_v = map(_largest_singular_value, (w_q, w_k, w_v))
    query = sigma_q * float(np.linalg.norm(x, axis=1).max()) + biases[0]
    alpha = scale * query * (sigma_k * most_control_norm + biases[1])
    most_value = sigma_v * most_control_norm + biases[2]
    log_u = np.log(k) + alpha if k else -np.inf
    saturation = np.exp(log_u - np.logaddexp(log_g, log_u)) if k else np.zeros(len(x))
    return AttentionBound(most_value * saturation, saturation, weights @ (x @ w_v))


def _largest_singular_value(matrix: Floats) -> float:
    small = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(small)[-1])))


@dataclass(frozen=True)
class HeadReport:
    """One head of one layer at the last row of a state: β, the norm of Ȳ, and the saturation, for k control tokens."""

    layer: int
    head: int
    k: int
    beta: float
    output_norm: float
    saturation: float


def attention_report(module: Module, state: Sequence[int], ks: Sequence[int]) -> list[HeadReport]:
    """The bound of every head of a transformers model with q_proj, k_proj, v_proj, at the last token of a state.

    M_u follows from the weights alone: the input of attention is normalised, so that ‖u_j‖ ≤ √d · max|γ| for any
    control in any layer.  Rotary positions turn query and key without changing their norms.  The state's own rows are
    those of the text without control: in layers above the first, the control changes them, too, and the bound is that
    of the layer alone.  CapabilityError for a model whose attention is built differently.
    """
    torch = import_torch()
    if not len(state):
        raise DataError("the bound needs a state of one token or more")
    found: list[HeadReport] = []
    for number, (attention, norm, x, scores, heads) in enumerate(_layers(torch, module, state)):
        weight = norm.weight.detach().double().cpu().numpy()
        gain = np.abs(weight + 1 if _adds_one(norm) else weight).max()
        most = float(np.sqrt(x.shape[1]) * gain)
        q, key, value = (
            getattr(attention, name).weight.detach().double().cpu().numpy().T for name in ("q_proj", "k_proj", "v_proj")
        )
        width = q.shape[1] // heads
        share = heads // (key.shape[1] // width)
        for head in range(heads):
            own, shared = (
                slice(head * width, (head + 1) * width),
                slice(head // share * width, (head // share + 1) * width),
            )
            biases = tuple(
                0.0 if part.bias is None else float(part.bias.detach()[of].double().norm())
                for part, of in ((attention.q_proj, own), (attention.k_proj, shared), (attention.v_proj, shared))
            )
            bias = attention.v_proj.bias
            always = 0.0 if bias is None else bias.detach()[shared].double().cpu().numpy()  # weights sum to 1
            for k in ks:
                bound = attention_bound(
                    x, q[:, own], key[:, shared], value[:, shared], k, most_control_norm=most, scores=scores[head],
                    scale=float(attention.scaling), biases=(biases[0], biases[1], biases[2]),
                )  # fmt: skip
                found.append(
                    HeadReport(
                        number, head, k, float(bound.beta[-1]), float(np.linalg.norm(bound.output[-1] + always)),
                        float(bound.saturation[-1]),
                    )
                )  # fmt: skip
    return found


def _adds_one(norm: Any) -> bool:
    """Gemma's RMSNorm multiplies by 1 + weight."""
    return type(norm).__name__.startswith("Gemma")


def _layers(torch: Any, module: Any, state: Sequence[int]) -> list[tuple[Any, Any, Floats, Floats, int]]:
    """(attention, its norm, normalised inputs (m, d), scaled scores (H, m, m), heads) of each layer."""
    layers = getattr(getattr(module, "model", module), "layers", None)
    known = ("q_proj", "k_proj", "v_proj", "scaling")
    if layers is None or not all(hasattr(layer.self_attn, name) for layer in layers for name in known):
        raise CapabilityError("the bound needs layers with q_proj, k_proj and v_proj (Llama, Qwen 2): use such a model")
    if hasattr(layers[0].self_attn, "q_norm"):
        raise CapabilityError("the bound does not know heads that normalise their queries: use a Llama or Qwen 2 model")
    inputs: list[Any] = []
    hooks = [
        layer.self_attn.register_forward_hook(
            lambda part, args, kwargs, out: inputs.append(
                (kwargs.get("hidden_states", args[0] if args else None), kwargs["position_embeddings"])
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            module(input_ids=torch.tensor([list(state)], device=next(module.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    config = getattr(module.config, "get_text_config", lambda: module.config)()
    heads = config.num_attention_heads
    return [
        (layer.self_attn, layer.input_layernorm, hidden[0].double().cpu().numpy(),
         _scores(torch, layer.self_attn, hidden, positions, heads), heads)
        for layer, (hidden, positions) in zip(layers, inputs, strict=True)
    ]  # fmt: skip


def _scores(torch: Any, attention: Any, hidden: Any, positions: Any, heads: int) -> Floats:
    """(H, m, m) scaled scores with rotary positions, in float64."""
    with torch.no_grad():
        cos, sin = (part.double() for part in positions)
        query, key = (
            part(hidden).double().unflatten(-1, (-1, part.out_features // n)).transpose(1, 2)
            for part, n in (
                (attention.q_proj, heads),
                (attention.k_proj, attention.k_proj.out_features * heads // attention.q_proj.out_features),
            )
        )
        turned = []
        for part in (query, key):
            half = part.shape[-1] // 2
            swapped = torch.cat([-part[..., half:], part[..., :half]], -1)
            turned.append(part * cos[:, None] + swapped * sin[:, None])
        query, key = turned
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
        return np.asarray((query @ key.transpose(-1, -2) * attention.scaling)[0].cpu().numpy(), np.float64)
