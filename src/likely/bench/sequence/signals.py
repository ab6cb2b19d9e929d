"""Tasks of signals: a delay, a whole window to be kept, handwritten digits pixel by pixel, bytes of a text, a forecast.

Digits come with scikit-learn; texts and series come from the data folder (`likely.data`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.bench.sequence.examples import (
    SPLITS,
    Examples,
    Split,
    TaskMeta,
    majority_share,
    next_fast_size,
    task_rng,
)
from likely.data.datasets import load_records
from likely.errors import DataError, needs


def make_delay(
    n: int, seed: int, *, split: Split = "train", length: int = 512, lag: int = 128, band: float = 0.25
) -> Examples:
    """Band-limited noise u of variance 1; the target at t is u[t - lag], NaN before that.

    band  share of the frequencies up to Nyquist's that the noise holds
    """
    rng = task_rng("delay", n, seed, split, {"length": length, "lag": lag})
    if lag >= length:
        raise ValueError(f"delay: lag must be < length = {length}, got {lag}")
    u = _noise(rng, n, length, band)
    targets = np.full_like(u, np.nan)
    targets[:, lag:] = u[:, :-lag]
    return Examples(u, targets, TaskMeta("delay", "values", "values", 1, 1.0, "normalised MSE", channels=1))


def make_reconstruction(
    n: int, seed: int, *, split: Split = "train", length: int = 256, window: int = 64, band: float = 0.25
) -> Examples:
    """Band-limited noise; after its end all of the last `window` values are wanted at once, oldest first."""
    rng = task_rng("reconstruction", n, seed, split, {"length": length, "window": window})
    if window > length:
        raise ValueError(f"reconstruction: window must be <= length = {length}, got {window}")
    u = _noise(rng, n, length, band)
    meta = TaskMeta("reconstruction", "values", "last values", window, 1.0, "normalised MSE", channels=1)
    return Examples(u, u[:, -window:, 0].copy(), meta)


def _noise(rng: np.random.Generator, n: int, length: int, band: float) -> NDArray[np.float32]:
    """(n, length, 1) Gaussian noise with flat power in the lowest `band` of the frequencies, variance 1."""
    if not 0 < band <= 1:
        raise ValueError(f"band must lie in (0, 1], got {band}")
    size = next_fast_size(2 * length)
    spectrum = np.fft.rfft(rng.standard_normal((n, size)))
    kept = max(1, round(band * size / 2))
    spectrum[:, 0] = 0
    spectrum[:, kept + 1 :] = 0
    power = 2 * kept - (kept == size // 2)  # of the `size` frequencies
    u = np.fft.irfft(spectrum, size)[:, :length] * (size / power) ** 0.5
    return u[:, :, None].astype(np.float32)


def make_digits(n: int, seed: int, *, split: Split = "train", permuted: bool = False, upsample: int = 1) -> Examples:
    """Handwritten digits, pixel by pixel: (n, 64·upsample², 1) values from 0 to 1, ten classes.

    n         drawn without replacement from the split: 1257 training, 180 validation and 360 test pictures
    permuted  pixels in a random order, which is always the same
    upsample  every pixel as a square of this side: 64, 256 (2) or 1024 (4) steps
    """
    rng = task_rng("digits", n, seed, split, {"upsample": upsample})
    images, labels = _digits()
    ends = {"train": (0, 1257), "validation": (1257, 1437), "test": (1437, 1797)}[split]
    rows = np.random.default_rng(0).permutation(len(images))[ends[0] : ends[1]]
    if n > len(rows):
        raise ValueError(f"digits: the {split} split has {len(rows)} pictures, got n {n}")
    rows = rows[rng.permutation(len(rows))[:n]]
    pixels = np.kron(images[rows], np.ones((1, upsample, upsample))).reshape(n, -1) / 16
    if permuted:
        pixels = pixels[:, np.random.default_rng(1).permutation(pixels.shape[1])]
    meta = TaskMeta("digits", "values", "class", 10, majority_share(labels[rows]), channels=1)
    return Examples(pixels[:, :, None].astype(np.float32), labels[rows], meta)


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[Any], NDArray[np.int64]]:
    with needs("scikit-learn", "test"):
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    found = load_digits()
    return found.images, found.target.astype(np.int64)


def make_bytes(
    n: int, seed: int, *, split: Split = "train", length: int = 256, data_dir: str | Path | None = None,
    text: bytes | None = None,
) -> Examples:  # fmt: skip
    """Windows of a text; the target at every place is the next byte.

    text    by default tinyshakespeare of the data folder.  Its first 90 % are for training, then 5 % and 5 %
    chance  bits per byte of the frequencies of single bytes in the training part (each counted once more)
    """
    rng = task_rng("bytes", n, seed, split, {"length": length})
    corpus = np.frombuffer(_shakespeare(data_dir) if text is None else text, np.uint8)
    part = _parts(corpus)[split]
    if len(part) <= length:
        raise DataError(f"bytes: the {split} part has {len(part)} bytes; length {length} needs one more: take less")
    rows = part[rng.integers(0, len(part) - length, n)[:, None] + np.arange(length + 1)].astype(np.int64)
    counts = np.bincount(_parts(corpus)["train"], minlength=256) + 1
    chance = float(-np.log2(counts / counts.sum())[rows[:, 1:]].mean())
    meta = TaskMeta("bytes", "tokens", "tokens", 256, chance, "bits per byte", vocabulary=256)
    return Examples(rows[:, :-1], rows[:, 1:], meta)


@lru_cache(maxsize=1)
def _shakespeare(data_dir: str | Path | None) -> bytes:
    return "\n".join(row["text"] for row in load_records("tinyshakespeare", data_dir=data_dir)).encode()


@lru_cache(maxsize=1)
def _tetouan(data_dir: str | Path | None) -> NDArray[np.float64]:
    rows = list(load_records("tetouan_power", data_dir=data_dir))
    return np.array([[float(value) for name, value in row.items() if name != "date"] for row in rows])


def make_forecast(
    n: int, seed: int, *, split: Split = "train", lookback: int = 144, horizon: int = 48,
    data_dir: str | Path | None = None, series: NDArray[Any] | None = None,
) -> Examples:  # fmt: skip
    """Windows of `lookback` values of a series; the next `horizon` values are wanted at once.

    series  (T, channels), by default the six of tetouan_power, every half hour; each channel is a series of its own.
            The first 60 % are for training, then 20 % and 20 %.  Every window is shifted and scaled by its own mean
            and standard deviation, its targets alike.
    chance  1: what the mean of the window gives, as squared errors are divided by the targets' squares
    """
    rng = task_rng("forecast", n, seed, split, {"lookback": lookback, "horizon": horizon})
    whole = _tetouan(data_dir) if series is None else np.asarray(series, np.float64)
    part = _parts(whole, (0.6, 0.8))[split]
    span = lookback + horizon
    if len(part) < span:
        raise DataError(f"forecast: the {split} part has {len(part)} rows, lookback and horizon need {span}: take less")
    starts = rng.integers(0, len(part) - span + 1, n)
    channels = rng.integers(0, part.shape[1], n)
    rows = part[starts[:, None] + np.arange(span), channels[:, None]]
    past = rows[:, :lookback]
    scaled = (rows - past.mean(1, keepdims=True)) / np.sqrt(past.var(1, keepdims=True) + 1e-5)
    meta = TaskMeta("forecast", "values", "last values", horizon, 1.0, "normalised MSE", channels=1)
    return Examples(scaled[:, :lookback, None].astype(np.float32), scaled[:, lookback:].astype(np.float32), meta)


def _parts(whole: NDArray[Any], ends: tuple[float, float] = (0.9, 0.95)) -> dict[Split, NDArray[Any]]:
    first, second = (int(end * len(whole)) for end in ends)
    return dict(zip(SPLITS, (whole[:first], whole[first:second], whole[second:]), strict=True))
