"""How far a model's hidden states are spread: nuclear norm, its cheap stand-in, and the entropy of their spectrum.

Numbers of one text's states R (N, d), by default after each column was centred and each row divided by its length.
`CAVEATS` says what they cannot be compared across; whoever shows a number shows them, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.audit.report import AuditReport, Finding
from likely.errors import CapabilityError, DataError
from likely.metrics.bootstrap import mean_interval
from likely.metrics.checks import Floats
from likely.scoring.hidden import token_states

CAVEATS = (
    "MNN / N falls like 1 / sqrt(N): compare texts of the same number of tokens only.",
    "MNN depends on the basis: a rotation of the states changes it and leaves the model the same, so it does not rank "
    "models of different families, nor a rotated model against its original.",
    "MNN bounds the nuclear norm from above only where N >= d; for shorter texts the truncated sum is no bound.",
    "None of these says what the model has lost: that is KL per token (likely compare).",
)
_QUANTITIES = ("mnn", "mnn_per_token", "mnn_relative", "nuclear_norm", "entropy", "effective_rank")


def _matrix(states: Any, normalize: bool) -> NDArray[np.float64]:
    """(N, d) in fp64, normalised if asked for; a tensor of torch is taken as it is."""
    if hasattr(states, "detach"):
        states = states.detach().float().cpu().numpy()
    matrix = np.asarray(states, np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"R must be a matrix (N tokens, d dimensions), got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("R must hold finite numbers: some hidden states are NaN or infinite")
    return normalized(matrix) if normalize else matrix


def normalized(states: ArrayLike) -> Floats:
    """(N, d): every column less its mean over the tokens, then every row divided by its length.

    A row that equals the mean (up to rounding) becomes 0.  Matrix Nuclear-Norm, official code.
    """
    matrix = np.asarray(states, np.float64)
    centred = matrix - matrix.mean(0)
    lengths = np.sqrt((centred**2).sum(1, keepdims=True))
    tiny = lengths <= 1e-12 * max(float(np.abs(matrix).max()), 1e-300) * math.sqrt(matrix.shape[1])
    return np.where(tiny, 0.0, centred / np.where(tiny, 1.0, lengths))


def matrix_nuclear_norm(R: ArrayLike, normalize: bool = True, D: int | None = None) -> float:
    """MNN: the sum of the D largest column norms, an O(N d) stand-in for the nuclear norm of R (N, d).

    normalize  by `normalized` first;  D  by default min(N, d), as published; d sums all columns
    returns    Σ_{j ≤ D} c_(j), c_j = ‖R[:, j]‖₂; NaN for one token, which says nothing once its mean is taken

    Equals the nuclear norm where columns are orthogonal; with D = d (so, too, with D = min(N, d) and N >= d) it is an
    upper bound of it, and at most sqrt(N d) for normalised rows.  It depends on the basis, see `CAVEATS`.
    Li et al. 2024, "Large Language Model Evaluation via Matrix Nuclear-Norm", arXiv:2410.10672.
    """
    matrix = _matrix(R, normalize)
    tokens, width = matrix.shape
    most = min(tokens, width) if D is None else D
    if not 1 <= most <= width:
        raise ValueError(f"D must lie between 1 and the {width} columns, got {D}")
    if normalize and tokens == 1:
        return math.nan
    columns = np.sqrt(np.einsum("ij,ij->j", matrix, matrix))
    return float(np.sort(columns)[width - most :].sum())


def nuclear_norm(R: ArrayLike, normalize: bool = True) -> float:
    """‖R‖_* = Σ σ_i of R (N, d), by a singular value decomposition."""
    return float(np.linalg.svd(_matrix(R, normalize), compute_uv=False).sum())


def matrix_entropy(R: ArrayLike, normalize: bool = True) -> float:
    """H = −Σ λ_i ln λ_i / ln d, λ the spectrum of RᵀR over its trace: 0 for rank 1, 1 where all directions are alike.

    Computed from the smaller of RᵀR and RRᵀ, which share what is not 0.  Wei et al. 2024 (Diff-eRank),
    arXiv:2401.17139.  A zero matrix has 0, and so has d = 1.
    """
    matrix = _matrix(R, normalize)
    width = matrix.shape[1]
    return 0.0 if width == 1 else _spectral_entropy(matrix) / math.log(width)


def effective_rank(R: ArrayLike, normalize: bool = True) -> float:
    """exp(H ln d), H the `matrix_entropy`: how many directions alike would have this entropy.  A zero matrix has 0."""
    matrix = _matrix(R, normalize)
    return math.exp(_spectral_entropy(matrix)) if matrix.any() else 0.0


def _spectral_entropy(matrix: NDArray[np.float64]) -> float:
    """In nats."""
    tokens, width = matrix.shape
    gram = matrix @ matrix.T if tokens < width else matrix.T @ matrix
    trace = float(np.trace(gram))
    if trace == 0:
        return 0.0
    shares = np.linalg.eigvalsh(gram) / trace
    shares = shares[shares > 1e-15]
    return max(0.0, float(-(shares * np.log(shares)).sum()))


# --- of a model's texts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSpectrum:
    """One text: N tokens, d dimensions; mnn_per_token = mnn / N, mnn_relative = mnn / sqrt(N min(N, d)), 0 to 1."""

    text: int
    tokens: int
    dimensions: int
    mnn: float
    mnn_per_token: float
    mnn_relative: float
    nuclear_norm: float
    entropy: float
    effective_rank: float


@dataclass(frozen=True)
class SpectralReport:
    """One layer of one model on some texts.

    layer    0 is the embeddings, `layers` the last one, after the final norm; both -1 where the runtime does not say
    texts    one entry per text of two tokens or more;  skipped: numbers of the others, which have no spectrum
    """

    model: str
    layer: int
    layers: int
    texts: list[TextSpectrum]
    skipped: list[int]

    def mean(self, quantity: str) -> float:
        """Over the texts."""
        return float(np.mean([getattr(text, quantity) for text in self.texts]))

    @property
    def same_length(self) -> bool:
        """Whether all texts have the same number of tokens, so that means can be compared with others of it."""
        return len({text.tokens for text in self.texts}) == 1

    def to_dict(self) -> dict[str, Any]:
        means = {quantity: self.mean(quantity) for quantity in _QUANTITIES}
        return {**asdict(self), "means": means, "same_length": self.same_length, "caveats": list(CAVEATS)}


def spectral_report(found: SpectralReport, *, header: Mapping[str, Any]) -> AuditReport:
    """Means over the texts, with intervals, and how little they say alone."""
    findings, layer = [], "last layer" if found.layer == found.layers else f"layer {found.layer}"
    for quantity, name, unit in (
        ("effective_rank", "effective rank", "dimensions"), ("entropy", "matrix entropy", ""),
        ("mnn_relative", "MNN / sqrt(N D)", ""), ("mnn_per_token", "MNN / N", ""), ("nuclear_norm", "nuclear norm", ""),
    ):  # fmt: skip
        values = [float(getattr(text, quantity)) for text in found.texts]
        low, high = mean_interval(values) if len(values) > 1 else (None, None)
        findings.append(Finding(layer, name, float(np.mean(values)), low, high, unit, len(values)))
    rank, text = findings[0].value, found.texts[0]
    return AuditReport(
        f"Spectrum of the hidden states: {found.model}, {layer}",
        "How many directions do the model's hidden states really use?",
        [f"The states of {text.tokens} tokens vary as much as if they were spread evenly over {rank:.0f} of "
         f"{text.dimensions} dimensions (effective rank)."],
        findings, header, [asdict(one) for one in found.texts], (), CAVEATS,
        ("No value is good or bad by itself. Compare a checkpoint with an earlier one on the same texts: a collapse of "
         "the effective rank or the entropy says that states have become alike.",
         "Matrix entropy lies between 0 (one direction) and 1 (all alike). MNN is the matrix nuclear norm, the sum of "
         "the lengths of the D longest columns of the N tokens' states; D is the smaller of N and the dimensions."),
        ("Keep these numbers beside the model, and measure again after training or compression; what was lost in "
         "likelihood is told by likely compare.",),
    )  # fmt: skip


def measure_spectra(
    lm: Any,
    texts: Sequence[str] | Sequence[Sequence[int]],
    *,
    layers: Sequence[int] = (-1,),
    tokens: int = 256,
    progress: Callable[[int], None] | None = None,
) -> list[SpectralReport]:
    """The spectrum of a model's hidden states on each text; one report per layer, in their order.

    lm      a model whose runtime gives hidden states (torch, native, recurrent), or CapabilityError
    texts   strings, or token ids as they are; each is cut to its first `tokens` tokens
    layers  -1 is the last one, after the final norm, which every such runtime gives; others, from 0 (the embeddings)
            on, come from torch alone.  Negative numbers count from the end
    DataError where no text has two tokens.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of strings, got the string {texts!r}")
    if tokens < 2:
        raise ValueError(f"tokens must be >= 2, got {tokens}: one token has no spectrum")
    if not layers:
        raise ValueError("no layers: at least one is needed")
    cut = [list(lm.encode_prompt(text) if isinstance(text, str) else text)[:tokens] for text in texts]
    skipped = [i for i, text in enumerate(cut) if len(text) < 2]
    if len(skipped) == len(cut):
        raise DataError("no text of two tokens or more: hidden states of one token have no spectrum")
    states_of = _layer_states(lm, layers)
    found: list[list[TextSpectrum]] = [[] for _ in layers]
    numbers: list[int] = [0] * len(layers)
    depth = 0
    for i, text in enumerate(cut):
        if i not in skipped:
            depth, numbers, states = states_of(text)
            for spectra, own in zip(found, states, strict=True):
                spectra.append(_spectrum(i, own))
        if progress:
            progress(1)
    name = getattr(getattr(lm, "info", None), "name", type(lm.runtime).__name__)
    return [
        SpectralReport(name, number, depth, spectra, skipped) for number, spectra in zip(numbers, found, strict=True)
    ]


LayerStates = Sequence[Any]  # (N, d) per layer


def _layer_states(lm: Any, layers: Sequence[int]) -> Callable[[list[int]], tuple[int, list[int], LayerStates]]:
    """What gives (number of layers, the layers asked for counted from 0, their states) of a text."""
    module = getattr(getattr(lm, "runtime", None), "module", None)
    if module is None:
        if other := [layer for layer in layers if layer != -1]:
            what = "a server" if getattr(lm, "runtime", None) is None else type(lm.runtime).__name__
            raise CapabilityError(f'{what} gives no states of layer {other[0]}: load the model with runtime="torch"')
        depth = lm.runtime.capabilities.layers or -1
        return lambda text: (depth, [depth] * len(layers), [token_states(lm, [text])[0]] * len(layers))

    def of_torch(text: list[int]) -> tuple[int, list[int], LayerStates]:
        import torch

        with lm.runtime.turn, torch.no_grad():
            ids = torch.tensor([text], device=next(module.parameters()).device)
            states = module(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer in layers:
            if not -len(states) <= layer < len(states):
                raise ValueError(f"layer must lie between {-len(states)} and {len(states) - 1}, got {layer}")
        return len(states) - 1, [layer % len(states) for layer in layers], [states[layer][0] for layer in layers]

    return of_torch


def _spectrum(number: int, states: Any) -> TextSpectrum:
    unit = _matrix(states, True)
    tokens, width = unit.shape
    mnn = matrix_nuclear_norm(unit, normalize=False)
    return TextSpectrum(
        number, tokens, width, mnn, mnn / tokens, mnn / math.sqrt(tokens * min(tokens, width)),
        nuclear_norm(unit, normalize=False), matrix_entropy(unit, normalize=False),
        effective_rank(unit, normalize=False),
    )  # fmt: skip
