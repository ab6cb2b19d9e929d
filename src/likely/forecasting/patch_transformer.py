"""A small transformer over patches, trained from scratch (PatchTST): what a language model has to beat.  torch."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from likely.forecasting.forecaster import Forecaster, Progress, roll
from likely.forecasting.series import TimeSeries
from likely.forecasting.windows import EPSILON, Windows, windows_of
from likely.metrics.checks import Floats
from likely.training.loop import EarlyStopping, train

_READ = 512  # windows that are forecast together
_STOP_WINDOWS = 512


class PatchTransformer(nn.Module):
    """(B, L) -> (B, H): overlapping patches, a bidirectional encoder, one linear map of all its states.

    Each window is normalised by its own mean and std, which are put back (RevIN without learned factors).
    """

    def __init__(self, lookback: int, horizon: int, patch: int, width: int, depth: int, heads: int, dropout: float):
        super().__init__()
        self.patch, self.stride = patch, max(1, patch // 2)
        count = (lookback - patch) // self.stride + 2  # the last value is repeated for one more
        self.embed = nn.Linear(patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(count, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Flatten(1), nn.Dropout(dropout), nn.Linear(count * width, horizon))

    def forward(self, past: Tensor) -> Tensor:
        mean = past.mean(1, keepdim=True)
        std = torch.sqrt(past.var(1, keepdim=True, unbiased=False) + EPSILON)
        values = (past - mean) / std
        values = torch.cat([values, values[:, -1:].expand(-1, self.stride)], 1)
        patches = values.unfold(1, self.patch, self.stride)  # (B, n, S)
        states = self.layers(self.embed(patches) + self.position[: patches.shape[1]])
        return self.head(states) * std + mean


class PatchTransformerForecaster(Forecaster):
    """PatchTST (Nie et al. 2023, arXiv:2211.14730), small: all steps at once, shared by the columns.

    stride   rows between windows to train on
    epochs, batch, lr, patience  Adam with a cosine; with validation rows the state of the lowest error is kept
    Behind the horizon that it was fitted for it goes on from its own forecasts.
    """

    name: ClassVar[str] = "patch-transformer"

    def __init__(
        self, *, lookback: int = 336, patch: int = 16, width: int = 64, depth: int = 2, heads: int = 4,
        dropout: float = 0.2, stride: int = 4, epochs: int = 10, batch: int = 64, lr: float = 1e-3, patience: int = 3,
        seed: int = 0,
    ):  # fmt: skip
        if not 1 <= patch <= lookback:
            raise ValueError(f"patch must lie in 1..{lookback} (the lookback), got {patch}")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
        self.lookback, self.patch, self.width, self.depth, self.heads = lookback, patch, width, depth, heads
        self.dropout, self.stride, self.epochs, self.batch, self.lr = dropout, stride, epochs, batch, lr
        self.patience, self.seed = patience, seed
        self.network_: PatchTransformer

    @property
    def label(self) -> str:
        return f"{self.name} ({self.lookback})"

    def forecast(self, windows: Windows, horizon: int) -> Floats:
        past = windows.narrowed(self.lookback).past
        return np.concatenate([roll(self._next, past[i : i + _READ], horizon) for i in range(0, len(past), _READ)])

    def _next(self, past: Floats) -> Floats:
        with torch.no_grad():
            found: Floats = self.network_(torch.from_numpy(past.astype(np.float32))).double().numpy()
        return found

    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        windows = windows_of(series, self.lookback, horizon, stride=self.stride)
        past, future = (torch.from_numpy(v.astype(np.float32)) for v in (windows.past, windows.future))
        per_epoch = math.ceil(len(windows) / self.batch)
        steps = self.epochs * per_epoch
        rng = np.random.default_rng(self.seed)
        orders = (rng.permutation(len(windows)) for _ in range(self.epochs))
        batches = (order[i : i + self.batch] for order in orders for i in range(0, len(order), self.batch))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network_ = self._fresh(horizon)
            optimizer = torch.optim.Adam(self.network_.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
            stopping = None if val is None else self._stopping(val, horizon, per_epoch)
            train(
                batches, lambda rows: nn.functional.mse_loss(self.network_(past[rows]), future[rows]), optimizer,
                schedule=schedule, stopping=stopping,
                progress=None if progress is None else lambda step, _: progress(step + 1, steps),
            )  # fmt: skip
        if progress:
            progress(steps, steps)
        if stopping is not None and stopping.best is not None:
            self.network_.load_state_dict(stopping.best)
        self.network_.eval()

    def _fresh(self, horizon: int) -> PatchTransformer:
        return PatchTransformer(self.lookback, horizon, self.patch, self.width, self.depth, self.heads, self.dropout)

    def _stopping(self, val: TimeSeries, horizon: int, every: int) -> EarlyStopping[dict[str, Tensor]]:
        held = windows_of(val, self.lookback, horizon, stride=self.stride)
        held = held.take(slice(None, None, -(-len(held) // _STOP_WINDOWS)))

        def error() -> float:
            self.network_.eval()
            found = float(((self.forecast(held, horizon) - held.future) ** 2).mean())
            self.network_.train()
            return found

        def state() -> dict[str, Tensor]:
            return {name: value.detach().clone() for name, value in self.network_.state_dict().items()}

        return EarlyStopping(error, state, every, self.patience)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in self.network_.state_dict().items()}

    def _take_up(self, learned: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self.network_ = self._fresh(self.horizon_)
        self.network_.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.network_.eval()
