"""Codes and codebooks of a matrix for the inputs it meets: k-means, then codes and codebooks in turn.

Egiazarian et al. 2024, "Extreme Compression of Large Language Models via Additive Quantization", arXiv:2401.06118.
There codebooks follow gradients (Adam); the loss is quadratic in them, so here it is conjugate gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from likely.compression.architecture import DecoderMap
from likely.compression.quantisers.additive.tensor import AdditiveScheme, AdditiveTensor
from likely.compression.quantisers.gptq import inverse_factor
from likely.compression.quantisers.walk import BlockWalk, second_moment
from likely.compression.quantized import FloatArray, check_finite
from likely.compression.settings import MethodSettings

ROUNDS, TOLERANCE = 3, 0.01  # at most so many, and as long as a round takes so much of the loss
STEPS = 4  # of conjugate gradients in a round
SAMPLE, ITERATIONS, SETTLED = 64, 30, 3e-3  # of k-means: points for each codeword, and when it ends
COLUMNS = 128  # products of errors with the Hessian are gathered over so many

Array = NDArray[Any]  # fp32, or fp64 where the Hessian is


def fit_additive(
    weights: FloatArray, hessian: torch.Tensor, scheme: AdditiveScheme, *, beam: int = 1, rounds: int = ROUNDS,
    seed: int = 0, name: str = "the weights", losses: list[float] | None = None,
) -> AdditiveTensor:  # fmt: skip
    """Codes of weights (out, in) with a small tr((W - Ŵ) H (W - Ŵ)ᵀ), H (in, in) the second moment of the inputs.

    Rows are divided by their root mean square, residual k-means gives codebooks, and then a round updates codes (see
    `encode`), codebooks and scales, as long as it takes 1 % of the loss.  No step raises the loss.
    beam    sets of codes that are kept while the codes of one group are chosen
    losses  takes the loss after each step
    """
    check_finite(weights, name)
    if beam < 1:
        raise ValueError(f"beam must be at least 1, got {beam}")
    groups = scheme.groups_of(weights.shape[1])
    h = np.ascontiguousarray((hessian / hessian.diagonal().mean().clamp_min(1e-30)).numpy())
    w = weights.astype(h.dtype)
    scales = _fp16(np.sqrt((w**2).mean(axis=1)))
    scales[scales == 0] = 1
    rng = np.random.default_rng(seed)
    points = (w / scales[:, None]).reshape(-1, scheme.group_size)
    books, codes = _residual_kmeans(points, scheme, rng)
    codes = codes.reshape(len(w), groups, -1)
    books = _fp16(books)
    seen = [] if losses is None else losses
    loss = output_loss(w, codes, books, scales, h)
    seen.append(loss)
    for number in range(rounds):
        before = loss
        found = (encode if number else encode_in_order)(w, codes, books, scales, h, beam=beam)
        if (after := output_loss(w, found, books, scales, h)) < loss:
            codes, loss = found, after
        seen.append(loss)
        better = _fp16(_codebooks(w, codes, books, scales, h))
        if (after := output_loss(w, codes, better, scales, h)) < loss:
            books, loss = better, after
        seen.append(loss)
        rescaled = _scales(w, codes, books, scales, h)
        if (after := output_loss(w, codes, books, rescaled, h)) < loss:
            scales, loss = rescaled, after
        seen.append(loss)
        if before - loss <= TOLERANCE * before:
            break
    return AdditiveTensor(codes.astype(np.int16), books.astype(np.float32), scales.astype(np.float32), scheme)


def encode(weights: Array, codes: Array, codebooks: Array, scales: Array, hessian: Array, *, beam: int = 1) -> Array:
    """Codes (out, groups, M) after one pass over the groups, each chosen with all others as they are at that time.

    With e the error of a row and ŵ_K the group's present value, the loss of another value c is c H_KK cᵀ - 2 c·a and a
    constant, a = (e H)_K + ŵ_K H_KK.  A group's codes are replaced one codebook after the other; the `beam` best sets
    go on to the next codebook.  The present codes are among the candidates, so that no group raises the loss.
    Weights (out, in), codebooks (M, 2^B, g), scales (out,), hessian (in, in).
    """
    codes = codes.copy()
    size = codebooks.shape[2]
    approximation = decode(codes, codebooks, scales)
    error = weights - approximation
    width = weights.shape[1]
    step = max(1, COLUMNS // size) * size
    for start in range(0, width, step):
        block = slice(start, min(start + step, width))
        pull = _product(error, hessian[:, block])
        for left in range(block.start, block.stop, size):
            own, local = slice(left, left + size), slice(left - start, left - start + size)
            h = hessian[own, own]
            present = approximation[:, own]
            towards = pull[:, local] + present @ h
            chosen, value = _codes_of_group(towards, h, codes[:, left // size], present, codebooks, scales, beam)
            codes[:, left // size] = chosen
            change = present - value
            error[:, own] += change
            pull[:, local.stop :] += _product(change, hessian[own, left + size : block.stop])
    return codes


def encode_in_order(
    weights: Array, codes: Array, codebooks: Array, scales: Array, hessian: Array, *, beam: int = 1
) -> Array:
    """Codes (out, groups, M) by GPTQ's rule for whole groups: those that follow make up for each error.

    With H⁻¹ = UᵀU a group errs by d; it is chosen for a small d S dᵀ, S⁻¹ = U_KKᵀ U_KK, which is what is left of the
    loss where all later weights are free; then later weights lose d U_KK⁻¹ U_K,later.
    """
    codes, current = codes.copy(), weights.copy()
    size, width = codebooks.shape[2], weights.shape[1]
    factor = inverse_factor(torch.from_numpy(hessian)).numpy()
    step = max(1, COLUMNS // size) * size
    for start in range(0, width, step):
        stop = min(start + step, width)
        errors = np.empty((len(weights), stop - start), weights.dtype)
        for left in range(start, stop, size):
            own = slice(left, left + size)
            inverse = np.linalg.inv(factor[own, own])
            metric = inverse @ inverse.T
            group = codes[:, left // size]
            present = scales[:, None] * sum(book[group[:, m]] for m, book in enumerate(codebooks))
            chosen, value = _codes_of_group(current[:, own] @ metric, metric, group, present, codebooks, scales, beam)
            codes[:, left // size] = chosen
            error = (current[:, own] - value) @ inverse
            current[:, left + size : stop] -= _product(error, factor[own, left + size : stop])
            errors[:, left - start : left - start + size] = error
        current[:, stop:] -= _product(errors, factor[start:stop, stop:])
    return codes


def decode(codes: Array, codebooks: Array, scales: Array) -> Array:
    """(out, in) values of codes (out, groups, M)."""
    rows: Array = _one_hot(codes, codebooks, scales) @ codebooks.reshape(-1, codebooks.shape[2])
    return rows.reshape(len(codes), -1)


def output_loss(weights: Array, codes: Array, codebooks: Array, scales: Array, hessian: Array) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ)."""
    error = weights - decode(codes, codebooks, scales)
    return float((_product(error, hessian) * error).sum(dtype=np.float64))


def run_additive(decoder: DecoderMap, settings: MethodSettings) -> dict[str, AdditiveTensor]:
    """As a method of `compress`: every matrix of every block, each seeing the inputs that those before it now give."""
    scheme, calibration = settings.scheme, settings.calibration
    assert isinstance(scheme, AdditiveScheme) and calibration is not None
    names = {(block.number, part): name for name, block, part, _ in decoder.linears()}
    walk, found = BlockWalk(decoder, calibration.input_ids), {}
    for number in range(len(walk)):
        for stage in walk.stages(number):
            hessian = second_moment(stage.inputs)
            for part in stage.parts:
                name, linear = names[number, part], stage.block.linears()[part]
                tensor = fit_additive(
                    linear.weight.detach().numpy(), hessian, scheme, beam=settings.beam, seed=settings.seed, name=name
                )
                found[name] = tensor
                with torch.no_grad():
                    linear.weight.copy_(torch.from_numpy(tensor.dequantize()))
        if settings.progress is not None:
            settings.progress(number + 1, len(walk))
    return found


# --- codes ------------------------------------------------------------------------------------------------------------


def _codes_of_group(
    towards: Array, h: Array, codes: Array, present: Array, codebooks: Array, scales: Array, beam: int
) -> tuple[Array, Array]:
    """Codes (out, M) and values (out, g) of one group in all rows."""
    rows, at = len(codes), np.arange(len(codes))[:, None]
    kept, values = codes[:, None, :].copy(), present[:, None, :]  # (out, beams, M), (out, beams, g)
    scale = scales[:, None, None]
    for m, book in enumerate(codebooks):
        last = m == len(codebooks) - 1
        others = values - scale * book[kept[:, :, m]]
        slope = 2 * (others @ h - towards[:, None])  # of c H c - 2 c·a, at the other codebooks' sum
        norms = ((book @ h) * book).sum(axis=1)
        # s·(slope·C + s C H C), and what differs between beams
        columns = np.concatenate([slope, np.broadcast_to(scale, (*slope.shape[:2], 1))], axis=2)
        table = np.concatenate([book, norms[:, None]], axis=1)
        losses = _product(columns.reshape(-1, columns.shape[2]), table.T).reshape(rows, -1)
        if values.shape[1] > 1:
            fixed = ((others @ h - 2 * towards[:, None]) * others).sum(axis=2) / scales[:, None]
            losses += np.repeat(fixed, len(book), axis=1)
        most = 1 if last else min(beam, losses.shape[1])
        best = losses.argmin(axis=1)[:, None] if most == 1 else np.argpartition(losses, most - 1, axis=1)[:, :most]
        origin, word = best // len(book), best % len(book)
        kept = kept[at, origin]
        kept[:, :, m] = word
        values = others[at, origin] + scale * book[word]
    return kept[:, 0], values[:, 0]


# --- codebooks and scales ---------------------------------------------------------------------------------------------


def _codebooks(weights: Array, codes: Array, codebooks: Array, scales: Array, hessian: Array) -> Array:
    """Closer to the least-squares codebooks of these codes: conjugate gradients, preconditioned by the diagonal."""
    count, words, size = codebooks.shape
    rows = len(weights)
    lookup = _one_hot(codes, codebooks, scales)
    gather = lookup.T
    importance = np.tile(hessian.diagonal().reshape(-1, size), (rows, 1))
    diagonal = (lookup * lookup).T @ importance
    diagonal[diagonal <= 0] = 1
    books = codebooks.reshape(-1, size)
    error = weights - (lookup @ books).reshape(weights.shape)
    residual = gather @ _product(error, hessian).reshape(-1, size)
    scaled = residual / diagonal
    direction, size_of = scaled, float((residual * scaled).sum(dtype=np.float64))
    for _ in range(STEPS):
        if size_of <= 0:
            break
        step = (lookup @ direction).reshape(weights.shape)
        pushed = _product(step, hessian)
        curvature = float((pushed * step).sum(dtype=np.float64))
        if curvature <= 0:
            break
        length = weights.dtype.type(size_of / curvature)
        books = books + length * direction
        residual = residual - length * (gather @ pushed.reshape(-1, size))
        scaled = residual / diagonal
        new = float((residual * scaled).sum(dtype=np.float64))
        direction, size_of = scaled + weights.dtype.type(new / size_of) * direction, new
    return books.reshape(count, words, size)


def _scales(weights: Array, codes: Array, codebooks: Array, scales: Array, hessian: Array) -> Array:
    """The best scale of each row, in fp16: (u H w) / (u H u) of its unscaled value u; the present one where u is 0."""
    unscaled = decode(codes, codebooks, np.ones_like(scales))
    pushed = _product(unscaled, hessian)
    top, bottom = (pushed * weights).sum(axis=1), (pushed * unscaled).sum(axis=1)
    fitted = _fp16(np.divide(top, bottom, out=scales.copy(), where=bottom > 0))
    return np.where(fitted > 0, fitted, scales)


def _residual_kmeans(points: Array, scheme: AdditiveScheme, rng: np.random.Generator) -> tuple[Array, Array]:
    """Codebooks (M, 2^B, g), each k-means of what those before it leave of points (n, g), and the codes (n, M)."""
    books, codes, rest = [], [], points
    for _ in range(scheme.codebooks):
        book = _kmeans(rest, 1 << scheme.bits, rng)
        nearest, _ = _nearest(rest, book)
        rest = rest - book[nearest]
        books.append(book)
        codes.append(nearest)
    return np.stack(books), np.stack(codes, axis=1)


def _kmeans(points: Array, count: int, rng: np.random.Generator) -> Array:
    """Centroids (count, g) of a sample of points (n, g); the points themselves where no more than `count` differ."""
    if len(np.unique(points[: 4 * count], axis=0)) <= count and len(distinct := np.unique(points, axis=0)) <= count:
        return np.concatenate([distinct, np.zeros((count - len(distinct), points.shape[1]), points.dtype)])
    sample = points[rng.permutation(len(points))[: SAMPLE * count]]
    centroids = np.unique(sample[: 2 * count], axis=0)
    centroids = centroids[rng.permutation(len(centroids))[:count]]
    if len(centroids) < count:
        extra = rng.integers(0, len(sample), count - len(centroids))
        centroids = np.concatenate([centroids, sample[extra]])
    before = np.inf
    for _ in range(ITERATIONS):
        nearest, distances = _nearest(sample, centroids)
        if (total := float(distances.sum(dtype=np.float64))) >= (1 - SETTLED) * before:
            break
        before = total
        members = sparse.csr_array(
            (np.ones(len(sample), points.dtype), nearest, np.arange(len(sample) + 1)), shape=(len(sample), count)
        )
        sizes = np.bincount(nearest, minlength=count)
        centroids = (members.T @ sample) / np.maximum(sizes, 1).astype(points.dtype)[:, None]
        if (empty := np.flatnonzero(sizes == 0)).size:
            centroids[empty] = sample[np.argsort(-distances)[: len(empty)]]
    return centroids


def _nearest(points: Array, centroids: Array) -> tuple[Array, Array]:
    """The nearest centroid of each point, and the squared distance to it."""
    nearest, distances = np.empty(len(points), np.int64), np.empty(len(points), points.dtype)
    norms = (centroids**2).sum(axis=1)
    for start in range(0, len(points), 4096):
        part = slice(start, start + 4096)
        table = _product(points[part], -2 * centroids.T)
        table += norms
        nearest[part] = table.argmin(axis=1)
        distances[part] = table[np.arange(len(table)), nearest[part]] + (points[part] ** 2).sum(axis=1)
    return nearest, distances


def _one_hot(codes: Array, codebooks: Array, scales: Array) -> Any:
    """Sparse (out · groups, M · 2^B): which codewords a group is the sum of, times its row's scale."""
    rows, groups, count = codes.shape
    words = codebooks.shape[1]
    places = (codes.astype(np.int32) + np.arange(count, dtype=np.int32) * words).reshape(-1)
    starts = np.arange(rows * groups + 1, dtype=np.int32) * count
    return sparse.csr_array((np.repeat(scales, groups * count), places, starts), shape=(rows * groups, count * words))


def _product(one: Array, other: Array) -> Array:
    """A matrix product, by torch: on the threads that the rest of a method uses."""
    found: Array = (torch.from_numpy(np.ascontiguousarray(one)) @ torch.from_numpy(np.ascontiguousarray(other))).numpy()
    return found


def _fp16(values: Array) -> Array:
    """The nearest numbers of fp16."""
    return values.astype(np.float16).astype(values.dtype)
