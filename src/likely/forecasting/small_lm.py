"""SMETimes: a small language model, frozen, reads patches of a series and predicts the next one.  torch.

Fan et al. 2025, arXiv:2503.03594.  Where its published code is faulty we differ: prompts of rolled patches describe the
*forecast*, not the truth (which holds the answer's mean and spread); statistics are each column's own; the penalty on
the experts' weights is added; no test window is dropped; the width is the model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from likely.errors import CapabilityError, ModelError, check_choice
from likely.forecasting.backbone import BACKBONES, BackboneKind, LMBackbone
from likely.forecasting.forecaster import Forecaster, Progress
from likely.forecasting.network import (
    ENCODERS,
    FUSIONS,
    LIKELIHOODS,
    Fusion,
    Likelihood,
    NextPatches,
    PatchEncoder,
    PatchNetwork,
    next_patch_loss,
)
from likely.forecasting.prompts import PROMPTS, EmbeddingCache, PromptKind, patch_prompts
from likely.forecasting.series import TimeSeries
from likely.forecasting.windows import EPSILON, Windows, windows_of
from likely.metrics.checks import Floats, Ints
from likely.training.loop import EarlyStopping, train
from likely.training.lora import HasRuntime

Norm = Literal["lookback", "causal"]
NORMS = ("lookback", "causal")
PUBLISHED_SIZE = 3**-0.5  # root mean square of what fresh linear layers make of unit inputs
EPOCHS, FEWEST_STEPS = 10, 200  # where nobody says otherwise
LOOKS = 12  # at the validation rows, at most
_READ = 256  # windows that are forecast together
_STOP_WINDOWS = 256  # of validation, that decide when training stops


@dataclass(frozen=True)
class _Batch:
    """What one step reads: patches, targets (B, n, S), mean, std (B, n, 1), text (B, n, D) or None."""

    patches: torch.Tensor
    targets: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor | None


class SmallLMForecaster(Forecaster):
    """A frozen small language model between a patch encoder and a mixture head that predicts the next patch.

    model       a model on the torch runtime, or a name or file to load there
    patch       S, values of a patch;  lookback  a multiple of it
    experts     K of the head; 1 is a linear map
    fusion      of a patch with its text: "gate" σ(g) Enc(x) + (1 − σ(g)) m with a learned g, "add", "none"
    prompt      what the text says: "stats" (time stamps, mean, std, change), "time" (stamps alone), "none" (no text)
    backbone    "frozen", "lora" (factors of its attention are trained), "random" (random frozen weights: does
                pretraining help?), "none" (no model: each patch by itself)
    layers      how many of its layers, from the first; None: all
    likelihood  "point" (squared error), "gaussian" or "student_t": log p(y|x) of a forecast (`log_prob`)
    norm        what a patch is normalised with: the "lookback"'s mean and std (as published), or those of the values up
                to its own end ("causal")
    vector_size  root mean square of patch vectors at the start, and of texts.  As published it is √⅓; to vectors of
                that size the first layers of SmolLM2 answer with activations hundreds of times as large, which hide
                them.  Without a backbone it is √⅓ always
    balance     weight of `balance_loss`
    stride      rows between windows to train on; default: 5/8 of a patch, so that windows begin at different hours of
                the day also where a patch is a day
    epochs, batch, lr, patience   Adam with a cosine; default: 10 epochs, and at least 200 steps.  Validation rows are
                looked at after each epoch, 12 times at most: training stops once `patience` times bring no lower error,
                and the best state is kept
    cache       file for the texts' vectors, so that another run need not read them again
    Learned: `network_`, `backbone_`, `losses_` of each step, `validation_` each time.
    """

    name: ClassVar[str] = "small-lm"
    calibration_windows: ClassVar[int] = 100

    def __init__(
        self,
        model: HasRuntime | str | Path = "smollm2",
        *,
        patch: int = 96,
        lookback: int = 672,
        experts: int = 4,
        fusion: Fusion = "gate",
        prompt: PromptKind = "stats",
        backbone: BackboneKind = "frozen",
        layers: int | None = None,
        likelihood: Likelihood = "point",
        norm: Norm = "lookback",
        encoder: PatchEncoder = "linear",
        vector_size: float = 10.0,
        balance: float = 0.01,
        stride: int | None = None,
        epochs: int | None = None,
        batch: int = 32,
        lr: float = 1e-3,
        patience: int = 3,
        lora_rank: int = 8,
        seed: int = 0,
        cache: str | Path | None = None,
    ):
        for what, value, allowed in (
            ("fusion", fusion, FUSIONS), ("prompt", prompt, PROMPTS), ("backbone", backbone, BACKBONES),
            ("norm", norm, NORMS), ("likelihood", likelihood, LIKELIHOODS), ("encoder", encoder, ENCODERS),
        ):  # fmt: skip
            check_choice(what, value, allowed)
        for what, number in (
            ("patch", patch), ("experts", experts), ("epochs", epochs), ("batch", batch), ("lr", lr),
            ("stride", stride), ("patience", patience), ("lora_rank", lora_rank), ("vector_size", vector_size),
        ):  # fmt: skip
            if number is not None and not number > 0:
                raise ValueError(f"{what} must be > 0, got {number}")
        if lookback < patch or lookback % patch:
            raise ValueError(f"lookback must be a multiple of patch ({patch}), got {lookback}")
        if balance < 0:
            raise ValueError(f"balance must be >= 0, got {balance}")
        self.model, self.patch, self.lookback, self.experts, self.fusion = model, patch, lookback, experts, fusion
        self.prompt, self.backbone, self.layers, self.likelihood, self.norm = prompt, backbone, layers, likelihood, norm
        self.encoder, self.balance, self.stride, self.epochs, self.batch = encoder, balance, stride, epochs, batch
        self.vector_size = vector_size
        self.lr, self.patience, self.lora_rank, self.seed, self.cache = lr, patience, lora_rank, seed, cache
        self.network_: PatchNetwork
        self.backbone_: LMBackbone
        self.losses_: list[float] = []
        self.validation_: list[float] = []
        self._texts: EmbeddingCache

    @property
    def calibration_stride(self) -> int:
        return self._stride  # on its grid patches recur, and so do their texts

    @property
    def _stride(self) -> int:
        return max(1, 5 * self.patch // 8) if self.stride is None else self.stride

    @property
    def label(self) -> str:
        about = f"{self.backbone_.layers} layers, {self.backbone}, prompt {self.prompt}"
        return f"{self.name} ({about}, {self.likelihood})" if self.likelihood != "point" else f"{self.name} ({about})"

    # --- learning -----------------------------------------------------------------------------------------------------

    def _learn(self, series: TimeSeries, val: TimeSeries | None, horizon: int, progress: Progress | None) -> None:
        windows = windows_of(series, self.lookback, self.patch, stride=self._stride)
        self._open()
        held = self._stop_windows(val) if val is not None else None
        text = self._window_texts(windows)
        held_text = self._window_texts(held) if held is not None else None
        self._texts.save()
        per_epoch = math.ceil(len(windows) / self.batch)
        steps = per_epoch * (self.epochs or max(EPOCHS, math.ceil(FEWEST_STEPS / per_epoch)))
        every = max(per_epoch, math.ceil(steps / LOOKS))
        optimizer = torch.optim.Adam([*self.network_.parameters(), *self.backbone_.parameters().values()], lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))

        def loss(rows: Ints) -> torch.Tensor:
            batch = self._batch(windows.take(rows), None if text is None else text[rows])
            found = self.network_(batch.patches, batch.text, self.backbone_)
            return next_patch_loss(found, batch.targets, batch.mean, batch.std, balance=self.balance)

        stopping = None
        if held is not None:
            stopping = EarlyStopping(lambda: self._error(held, held_text), self._state, every, self.patience)
        with self.backbone_.training():
            self.losses_ = train(
                self._order(len(windows), steps), loss, optimizer, schedule=schedule, stopping=stopping,
                progress=None if progress is None else lambda step, _: progress(step + 1, steps),
            )  # fmt: skip
        if progress:
            progress(steps, steps)
        if stopping is not None and stopping.best is not None:
            self.validation_ = stopping.curve
            self._set_state(stopping.best)
        self.network_.eval()

    def _open(self) -> None:
        """The backbone, a fresh network and the texts' cache; a backbone that suits is kept between fits."""
        known = getattr(self, "backbone_", None)
        if known is None or self.backbone == "lora":
            self.backbone_ = LMBackbone(
                self.model, kind=self.backbone, layers=self.layers, rank=self.lora_rank, seed=self.seed
            )
            self._texts = EmbeddingCache(self.backbone_.embed_texts, self.backbone_.revision, self.cache)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network_ = PatchNetwork(
                self.patch, self.backbone_.width, experts=self.experts, fusion=self.fusion, encoder=self.encoder,
                likelihood=self.likelihood,
                size=self.vector_size if self.backbone != "none" else PUBLISHED_SIZE,
            ).to(self.backbone_.device)  # fmt: skip

    def _order(self, count: int, steps: int) -> Iterator[Ints]:
        rng = np.random.default_rng(self.seed)
        for _ in range(steps // math.ceil(count / self.batch)):
            order = rng.permutation(count)
            yield from (order[i : i + self.batch] for i in range(0, count, self.batch))

    def _stop_windows(self, val: TimeSeries) -> Windows:
        windows = windows_of(val, self.lookback, self.patch, stride=self._stride)
        return windows.take(slice(None, None, -(-len(windows) // _STOP_WINDOWS)))

    def _error(self, windows: Windows, text: NDArray[np.float32] | None) -> float:
        """The loss on windows, without the balance of experts."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(windows), _READ):
                rows = slice(start, start + _READ)
                part = windows.take(rows)
                batch = self._batch(part, None if text is None else text[rows])
                found = self.network_(batch.patches, batch.text, self.backbone_)
                total += len(part) * float(next_patch_loss(found, batch.targets, batch.mean, batch.std))
        return total / len(windows)

    def _batch(self, windows: Windows, text: NDArray[np.float32] | None) -> _Batch:
        whole = np.concatenate([windows.past, windows.future], 1).reshape(len(windows), -1, self.patch)
        patches, mean, std = self._normalised(whole[:, :-1])
        return _Batch(
            self._tensor(patches), self._tensor(whole[:, 1:]), self._tensor(mean), self._tensor(std),
            None if text is None else self._tensor(text),
        )  # fmt: skip

    def _normalised(self, patches: Floats) -> tuple[Floats, Floats, Floats]:
        """(B, n, S) normalised, and mean and std (B, n, 1)."""
        count = patches.shape[1] * self.patch
        if self.norm == "lookback":
            mean = np.repeat(patches.mean((1, 2), keepdims=True), patches.shape[1], 1)
            var = np.repeat(patches.var((1, 2), keepdims=True), patches.shape[1], 1)
        else:
            seen = np.arange(self.patch, count + 1, self.patch)[None, :, None]
            mean = patches.sum(2, keepdims=True).cumsum(1) / seen
            var = np.maximum((patches**2).sum(2, keepdims=True).cumsum(1) / seen - mean**2, 0)
        std = np.sqrt(var + EPSILON)
        return (patches - mean) / std, mean, std

    # --- texts --------------------------------------------------------------------------------------------------------

    def describe(self, windows: Windows, patches: Floats, first: int) -> list[str]:
        """A text for each patch of each window, windows first.

        patches (N, n, S) standardised, true or forecast;  first  where they begin, in patches behind a window's start
        """
        n = patches.shape[1]
        starts = np.stack([windows.times((first + i) * self.patch) for i in range(n)], 1)
        ends = np.stack([windows.times((first + i + 1) * self.patch - 1) for i in range(n)], 1)
        return patch_prompts(self.prompt, starts.ravel(), ends.ravel(), patches.reshape(-1, self.patch))

    def _vectors(self, windows: Windows, patches: Floats, first: int) -> NDArray[np.float32] | None:
        """(N, n, D); None without texts."""
        if self.prompt == "none" or self.fusion == "none":
            return None
        found = self._texts.vectors(self.describe(windows, patches, first))
        return found.reshape(*patches.shape[:2], -1)

    def _window_texts(self, windows: Windows) -> NDArray[np.float32] | None:
        return self._vectors(windows, windows.past.reshape(len(windows), -1, self.patch), 0)

    # --- forecasts ----------------------------------------------------------------------------------------------------

    def forecast(self, windows: Windows, horizon: int) -> Floats:
        windows = windows.narrowed(self.lookback)
        parts = [self._rolled(windows.take(slice(i, i + _READ)), horizon) for i in range(0, len(windows), _READ)]
        return np.concatenate(parts)

    def _rolled(self, windows: Windows, horizon: int) -> Floats:
        """Patch by patch: each forecast is read, and described, as if it had happened."""
        patches = windows.past.reshape(len(windows), -1, self.patch)
        vectors = self._vectors(windows, patches, 0)
        out: list[Floats] = []
        for done in range(1, math.ceil(horizon / self.patch) + 1):
            found, mean, std = self._read(patches, vectors)
            new = found.mean[:, -1:].double().cpu().numpy() * std[:, -1:] + mean[:, -1:]
            out.append(new[:, 0])
            if done * self.patch >= horizon:
                break
            patches = np.concatenate([patches[:, 1:], new], 1)
            if vectors is not None:
                own = self._vectors(windows, new, self.lookback // self.patch + done - 1)
                assert own is not None
                vectors = np.concatenate([vectors[:, 1:], own], 1)
        return np.concatenate(out, 1)[:, :horizon]

    def _read(self, patches: Floats, vectors: NDArray[np.float32] | None) -> tuple[NextPatches, Floats, Floats]:
        normalised, mean, std = self._normalised(patches)
        with torch.no_grad():
            text = None if vectors is None else self._tensor(vectors)
            return self.network_(self._tensor(normalised), text, self.backbone_), mean, std

    def log_prob(self, history: TimeSeries, future: TimeSeries) -> Floats:
        """(H, C) log p(y_h | x, patches before), nats, densities in the units of the data.

        The sum over h is the log-likelihood of the whole future: patches that have passed are read as they were.
        """
        self._check_fitted()
        if self.likelihood == "point":
            raise CapabilityError('a point forecast has no density: fit with likelihood="gaussian" or "student_t"')
        self._check_names(history)
        self._check_names(future)
        whole = TimeSeries(
            np.concatenate([history.times, future.times]), np.concatenate([history.values, future.values]), self.names_
        )
        known = self.scale_.apply(whole)
        out: list[Floats] = []
        for done in range(0, len(future), self.patch):
            start = len(history) + done - self.lookback
            if start < 0:
                raise ValueError(f"history has {len(history)} rows, the lookback is {self.lookback}")
            columns = np.arange(len(self.names_))
            windows = Windows(known, np.full(len(columns), start), columns, self.lookback, 0)
            patches = windows.past.reshape(len(windows), -1, self.patch)
            found, mean, std = self._read(patches, self._vectors(windows, patches, 0))
            true = known.values[start + self.lookback : start + self.lookback + self.patch].T  # (C, up to S)
            padded = np.zeros((len(columns), self.patch))
            padded[:, : true.shape[1]] = true
            at = self._tensor((padded - mean[:, -1]) / std[:, -1])[:, None]
            last = NextPatches(
                found.mean[:, -1:], found.log_scale[:, -1:] if found.log_scale is not None else None,
                found.df[:, -1:] if found.df is not None else None, found.gates[:, -1:],
            )  # fmt: skip
            dense = last.log_prob(at)[:, 0, : true.shape[1]].double().cpu().numpy()
            out.append((dense - np.log(std[:, -1])).T)
        return np.concatenate(out) - np.log(self.scale_.std)

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.backbone_.device)

    # --- files --------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, torch.Tensor]:
        """Everything that is learned."""
        own = {f"network/{name}": p.detach().clone() for name, p in self.network_.state_dict().items()}
        return own | {f"lora/{name}": p.detach().clone() for name, p in self.backbone_.parameters().items()}

    def _set_state(self, state: dict[str, torch.Tensor]) -> None:
        prefix = "network/"
        self.network_.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
        with torch.no_grad():
            for name, parameter in self.backbone_.parameters().items():
                parameter.copy_(state[f"lora/{name}"])

    def _saved_params(self) -> dict[str, Any]:
        given = self.get_params(deep=False) | {"cache": None}
        given["model"] = str(self.model) if isinstance(self.model, str | Path) else self.model.info.source  # type: ignore[attr-defined]
        return given

    def _learned(self) -> dict[str, Any]:
        return {"revision": self.backbone_.model_revision, "losses": self.losses_, "validation": self.validation_}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: tensor.cpu().numpy() for name, tensor in self._state().items()}

    def _take_up(self, learned: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        self._open()
        if learned["revision"] != self.backbone_.model_revision:
            raise ModelError(
                f"{self.model}: these are not the weights that the forecaster was fitted on (revision "
                f"{learned['revision']}, here {self.backbone_.model_revision})"
            )
        self._set_state({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.network_.eval()
        self.losses_, self.validation_ = list(learned["losses"]), list(learned["validation"])
