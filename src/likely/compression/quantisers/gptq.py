"""GPTQ: round column after column, and let the columns that follow make up for each error (Frantar et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.walk import BlockWalk, Stage, second_moment
from likely.compression.quantized import FloatArray, Grid, QuantizedTensor, check_finite, fit_grid
from likely.compression.schemes import QuantScheme
from likely.compression.settings import MethodSettings, Quantized

Column = NDArray[Any]  # (out,) of the weights' precision
RoundColumn = Callable[[int, Column], Column]  # (number of a column, its values) -> rounded values
DAMPING, COLUMNS, RETRIES = 0.01, 128, 3


def inverse_factor(hessian: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Upper U with H⁻¹ = UᵀU of H + damping · mean(diag H) · I; the damping is raised tenfold at most three times.

    One factorisation of H in reversed order: H = RRᵀ with R upper, and U = R⁻¹.
    """
    mean, eye = hessian.diagonal().mean(), torch.eye(len(hessian), dtype=hessian.dtype)
    for retry in range(RETRIES + 1):
        damped = hessian + damping * 10**retry * mean * eye
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if info == 0:
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    raise ValueError(f"the Hessian is not positive definite, even with damping {damping * 10**RETRIES:g}")


def round_in_order(
    weights: torch.Tensor, hessian: torch.Tensor, round_column: RoundColumn, *, columns: int = COLUMNS,
    damping: float = DAMPING, order: torch.Tensor | None = None,
    begin_group: Callable[[int, NDArray[Any]], None] | None = None,
) -> torch.Tensor:  # fmt: skip
    """Rounded weights (out, in): column j errs by e = (w_j - q_j) / U_jj, and every later column k loses e U_jk.

    hessian      (in, in), see `second_moment`
    columns      updates of later columns are gathered over so many
    order        in which columns are rounded, by default from the left; `round_column` is given their own numbers
    begin_group  called with j and the weights as they now are before each column j, in the order of rounding
    Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
    """
    h = hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    places = np.arange(h.shape[0]) if order is None else order.numpy()
    factor, width = inverse_factor(h[places][:, places], damping).numpy(), h.shape[0]
    current = np.ascontiguousarray(weights.numpy().T[places])  # (in, out): columns are runs of memory
    current[dead.numpy()[places]] = 0
    rounded = np.empty_like(current)
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        errors = np.empty((stop - start, current.shape[1]), current.dtype)
        for j in range(start, stop):
            if begin_group is not None:
                begin_group(j, current.T)
            rounded[j] = round_column(int(places[j]), current[j])
            error = errors[j - start] = (current[j] - rounded[j]) / factor[j, j]
            current[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
        current[stop:] -= factor[start:stop, stop:].T @ errors
    found = np.empty_like(rounded)
    found[places] = rounded
    return torch.from_numpy(np.ascontiguousarray(found.T))


def round_by_gptq(
    weights: FloatArray, hessian: torch.Tensor, scheme: QuantScheme, *, act_order: bool = False,
    name: str = "the weights",
) -> QuantizedTensor:  # fmt: skip
    """Codes of weights (out, in) for inputs with this second moment (in, in).

    act_order  columns with large inputs first; each group's grid is then that of the original weights ("static
               groups"), so that groups stay contiguous.  Otherwise a grid is fitted when its first column is reached.
    """
    check_finite(weights, name)
    width = weights.shape[1]
    size = width // scheme.groups_of(width)
    matrix = torch.from_numpy(np.ascontiguousarray(weights)).to(hessian.dtype)
    scales, minimums = _by_group(fit_grid(weights, scheme), matrix.numpy().dtype)
    codes = np.empty((width, len(matrix)), np.int16)

    def begin_group(column: int, current: NDArray[Any]) -> None:
        if column % size == 0:
            group = np.ascontiguousarray(current[:, column : column + size], np.float32)
            found = _by_group(fit_grid(group, scheme_of_group), scales.dtype)
            scales[column // size], minimums[column // size] = found[0][0], found[1][0]

    def round_column(column: int, values: Column) -> Column:
        scale, minimum = scales[column // size], minimums[column // size]
        code = np.rint((values - minimum) / scale)
        np.clip(code, scheme.lowest, scheme.highest, out=code)
        codes[column] = code
        return code * scale + minimum

    scheme_of_group = QuantScheme(
        bits=scheme.bits, group_size=None, symmetric=scheme.symmetric, zero_point=scheme.zero_point,
        clip_ratio=scheme.clip_ratio, restricted=scheme.restricted,
    )  # fmt: skip
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    columns = size * max(1, COLUMNS // size) if size <= width // 2 else COLUMNS
    round_in_order(
        matrix, hessian, round_column, columns=columns, order=order, begin_group=None if act_order else begin_group
    )
    grid = Grid(*(np.ascontiguousarray(part.T, np.float32) for part in (scales, minimums)[: 2 - scheme.symmetric]))
    return QuantizedTensor(np.ascontiguousarray(codes.T), grid, scheme)


def output_error(weights: FloatArray, rounded: FloatArray, hessian: torch.Tensor) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ): twice the mean squared error of the outputs, summed over rows."""
    difference = torch.from_numpy(weights - rounded).to(hessian.dtype)
    return float(((difference @ hessian) * difference).sum())


def quantize_stage(stage: Stage, settings: MethodSettings, names: dict[int, str]) -> Quantized:
    """Codes of all matrices of a stage, which computes with them from then on."""
    scheme, _ = settings.needed()
    hessian = second_moment(stage.inputs)
    linears = [stage.block.linears()[part] for part in stage.parts]
    together = np.concatenate([linear.weight.detach().numpy() for linear in linears])  # rows do not see each other
    found = round_by_gptq(together, hessian, scheme, act_order=settings.act_order, name=names[id(linears[0])])
    quantized, start = {}, 0
    for linear in linears:
        tensor = found.rows(np.arange(start, start := start + linear.out_features))
        quantized[names[id(linear)]] = tensor
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(tensor.dequantize()))
    return quantized


def quantize_decoder(decoder: DecoderMap, settings: MethodSettings) -> Quantized:
    """GPTQ on every matrix of every block, each seeing inputs that the matrices before it, rounded already, give."""
    _, calibration = settings.needed()
    names = {id(linear): name for name, _, _, linear in decoder.linears()}
    walk, quantized = BlockWalk(decoder, calibration.input_ids), {}
    for number in range(len(walk)):
        for stage in walk.stages(number):
            quantized.update(quantize_stage(stage, settings, names))
        if settings.progress is not None:
            settings.progress(number + 1, len(walk))
    return quantized


def _by_group(grid: Grid, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scales and minimums (groups, out), copied."""
    minimums = np.zeros_like(grid.scales) if grid.minimums is None else grid.minimums
    return grid.scales.T.astype(dtype, order="C"), minimums.T.astype(dtype, order="C")
