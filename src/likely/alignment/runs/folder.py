"""One training run in one folder: its settings, what is kept of it when it stops, what it leaves.  torch."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from likely.alignment.rewards import HEAD
from likely.alignment.rewards import SETTINGS as REWARD_SETTINGS
from likely.alignment.runs.rows import RowEncoder, TooLong
from likely.alignment.scores import Completion, ReferenceSums
from likely.alignment.sequence_match.training import OWN_TEXTS
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.whole_file import write_whole_file
from likely.models.load import Loaded, load_local
from likely.runtimes.machine import free_bytes
from likely.training.fit import STATE, TrainingSettings
from likely.training.loop import LossOutput
from likely.training.metrics_log import MetricsLog, open_trackers, tracker_classes
from likely.training.policy import ABOUT, LoraSettings, Policy
from likely.training.processes import Processes

T = TypeVar("T")
Say = Callable[[str], None]
RunProgress = Callable[[str, int, int], None]  # what is done, how many of how many
REPORT, RECIPE, LOG, REFERENCE, BEFORE, MERGED = (
    "report.json", "run.json", "metrics.jsonl", "reference_logprobs.jsonl", "before.json", "merged",
)  # fmt: skip
WEIGHTS = ("adapter_model.safetensors", "adapter_config.json")  # as peft names them
SHOWN_ROWS = 12  # numbers of rows in one line


@dataclass(frozen=True)
class RunSettings:
    """What every run of this room is told.

    model      name, GGUF file, folder or hub id;  adapter: folder of an adapter that the run goes on from
    out        the folder to write;  merged: the whole model, not the adapter alone
    lora       None: all weights are trained, and the model is written whole
    training   see `TrainingSettings`; `epochs` > 0 sets its steps to so many passes over the training rows
    held_out   share of the file that is not trained on, when there is no test file
    trackers   accelerate's names, such as "tensorboard"
    shard      each of several processes holds its share of the weights while it trains, not all of them
    """

    model: str
    out: Path
    training: TrainingSettings
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    adapter: Path | None = None
    epochs: float = 1.0
    max_length: int = 256
    too_long: TooLong = "error"
    held_out: float = 0.1
    limit: int | None = None
    merged: bool = False
    overwrite: bool = False
    threads: int | None = None
    trackers: tuple[str, ...] = ()
    shard: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if self.epochs < 0:
            raise ValueError(f"epochs must be >= 0, got {self.epochs}")
        if self.adapter is not None and self.lora is None:
            raise ValueError("all weights are trained (--full), or an adapter goes on (--adapter): give one of both")
        if self.adapter is not None and self.adapter.resolve() == self.out.resolve():
            raise ValueError(f"{self.out} is the adapter that the run goes on from: choose another folder for --out")

    def with_steps(self, rows: int) -> TrainingSettings:
        if not self.epochs:
            return self.training
        return replace(self.training, steps=max(1, round(self.epochs * rows / self.training.batch)))


@dataclass
class Run:
    """A run that is open: model, policy and folder.  Use it in a `with` block."""

    settings: RunSettings
    lm: Loaded
    policy: Policy
    encoder: RowEncoder
    processes: Processes
    say: Say = field(default=lambda line: None)
    logs: list[MetricsLog] = field(default_factory=list)

    @classmethod
    def open(
        cls, settings: RunSettings, say: Say = lambda line: None,
        prepare: Callable[[Loaded, RunSettings], RunSettings] = lambda lm, settings: settings,
    ) -> Run:  # fmt: skip
        """Load the model; DataError where the folder holds something else than this run.

        prepare  what changes the model before adapters are added, and gives the settings for it
        """
        _check_folder(settings)
        tracker_classes(settings.trackers)
        options = {} if settings.threads is None else {"threads": settings.threads}
        lm = load_local(settings.model, runtime="torch", **options)  # type: ignore[arg-type]
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        settings = prepare(lm, settings)
        encoder = RowEncoder(lm, min(settings.max_length, lm.runtime.context_length), settings.too_long)
        policy = Policy(lm, settings.lora, adapter=settings.adapter, seed=settings.training.seed)
        processes = Processes.from_environment(cpu=policy.device.type == "cpu")
        return cls(settings, lm, policy, encoder, processes, say if processes.first else lambda line: None)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self.logs:
            log.close()
        self.policy.close()
        self.lm.runtime.shutdown()

    @property
    def out(self) -> Path:
        return self.settings.out

    @property
    def model(self) -> str:
        """By which the model is found from anywhere."""
        path = Path(self.settings.model).expanduser()
        return str(path.resolve()) if path.exists() else self.settings.model

    def begin(self, recipe: dict[str, Any]) -> dict[str, Any] | None:
        """Write what the run depends on, or check it; gives the report if the run is finished already."""
        whole = {**recipe, **self.policy.recipe(), "training": asdict(self.settings.training),
                 "max_length": self.settings.max_length}  # fmt: skip
        path = self.out / RECIPE
        if path.exists() and not self.settings.overwrite:
            known, wanted = _read(path), json.loads(json.dumps(whole, default=str))
            for name in known.keys() | wanted.keys():
                if known.get(name) != wanted.get(name):
                    raise DataError(
                        f"{self.out} holds a run with another {name} ({_short(known.get(name))}, now "
                        f"{_short(wanted.get(name))}): choose another folder or --overwrite"
                    )
            if (self.out / REPORT).exists():
                if self.settings.merged and self.processes.first and not (self.out / MERGED).exists():
                    self._merge()
                return _read(self.out / REPORT)
            if (self.out / STATE).exists():
                self.say(f"{self.out}: a run that was stopped goes on")
        elif self.processes.first:
            _make_folder(self.out)
            for name in (REPORT, STATE, LOG, BEFORE, OWN_TEXTS, ABOUT, *WEIGHTS, HEAD, REWARD_SETTINGS):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.out / MERGED, ignore_errors=True)
            self._write(RECIPE, whole)
        self.processes.wait()
        return None

    def _merge(self) -> None:
        """Write merged/ of a run that was finished without it."""
        self.policy.close()
        self.policy = Policy(self.lm, None, adapter=self.out)
        unfinished = self.out / f"{MERGED}.part"
        self.policy.save_merged(unfinished)
        unfinished.rename(self.out / MERGED)

    def log(self) -> MetricsLog:
        trackers = open_trackers(self.settings.trackers, self.out) if self.processes.first else []
        self.logs.append(MetricsLog(self.out / LOG, trackers))
        return self.logs[-1]

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a file of the folder holds, made first where it is not there: an earlier run may have come so far."""
        if self.processes.first and not (self.out / name).exists():
            self._write(name, make())
        self.processes.wait()
        return _read(self.out / name)

    def reference(self, completions: Seq[Completion], progress: RunProgress | None = None) -> ReferenceSums:
        """The reference's log-probabilities of completions, kept in the folder."""
        if self.processes.first:
            known, done = ReferenceSums(self.policy, self.out / REFERENCE), 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                if progress:
                    progress("reference", done, len(completions))

            known.prepare(completions, advance)
        self.processes.wait()
        return known if self.processes.first else ReferenceSums(self.policy, self.out / REFERENCE)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        try:
            write_whole_file(self.out / name, json.dumps(record, indent=1, default=str).encode())
        except OSError as error:
            raise DataError(f"cannot write {self.out / name}: {error.strerror or error}") from None

    def finish(self, report: Callable[[], dict[str, Any]], save: Callable[[], None] | None = None) -> dict[str, Any]:
        """Save what was learned, then the report; the checkpoint is not needed any more.

        save  what a run writes beside the model
        """
        if self.processes.first:
            record = report()
            about = {"model": self.model, "sha256": self.lm.info.sha256, "method": record["method"]}
            if self.policy.saves_adapter:
                self.policy.save_adapter(self.out, about)
            if self.settings.merged or not self.policy.saves_adapter:
                self.policy.save_merged(self.out / MERGED)
            if save is not None:
                save()
            self._write(REPORT, record)
            (self.out / STATE).unlink(missing_ok=True)
        self.processes.wait()
        return _read(self.out / REPORT)

    def divide(
        self, path: Path | str, read: Callable[..., list[T]], test: Path | str | None
    ) -> tuple[list[T], list[T]]:
        """(training rows, held-out rows): of two files, or of one by the seed; sets the steps of `epochs`."""
        rows = read(path, self.encoder, limit=self.settings.limit)
        for what, numbers in (("left out", self.encoder.dropped), ("cut", sorted(set(self.encoder.cut)))):
            if numbers:
                shown = ", ".join(map(str, numbers[:SHOWN_ROWS])) + (" ..." if len(numbers) > SHOWN_ROWS else "")
                self.say(
                    f"{path}: {len(numbers)} rows have more than {self.encoder.max_length} tokens and are {what}: "
                    f"{shown}"
                )
        if test is not None:
            training, held = rows, read(test, self.encoder)
        else:
            order = np.random.default_rng(self.settings.training.seed).permutation(len(rows))
            out = set(order[: round(self.settings.held_out * len(rows))].tolist())
            training = [row for i, row in enumerate(rows) if i not in out]
            held = [row for i, row in enumerate(rows) if i in out]
        if not training or not held:
            raise DataError(f"{path}: {len(rows)} rows are too few to train on some and hold out others: give --test")
        learned = {_content(row) for row in training}
        if both := sum(_content(row) in learned for row in held):
            self.say(f"{both} of {len(held)} rows of the report are learned, too: it looks better than it is")
        self.settings = replace(self.settings, training=self.settings.with_steps(len(training)))
        return training, held

    def rows_left_out(self) -> dict[str, Any]:
        """How many rows were too long, and which."""
        dropped, cut = self.encoder.dropped, sorted(set(self.encoder.cut))
        return {"dropped": len(dropped), "cut": len(cut), "dropped_rows": list(dropped), "cut_rows": cut}


# --- before it starts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a run will take: seconds from one measured piece, bytes from the sizes of what is held."""

    seconds: float
    memory_bytes: int
    free_bytes: int
    steps: int
    trained_parameters: int

    def line(self) -> str:
        time_ = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        return (
            f"{self.steps} steps on {self.trained_parameters / 1e6:,.2f} M parameters: about {time_}, "
            f"{self.memory_bytes / 2**30:.1f} GiB of memory ({self.free_bytes / 2**30:.1f} GiB are free)"
        )


def estimate(
    run: Run, items: Seq[T], loss: Callable[[Seq[T]], LossOutput], settings: TrainingSettings,
    length: Callable[[T], int], *, scored: Seq[T] = (),
) -> Estimate:  # fmt: skip
    """Measure one piece of items of mean length, forwards and backwards, warmed up; nothing is learned.

    scored  items whose log-probabilities are computed beside, for the reference or a report: a third of a step
    """
    mean = float(np.mean([length(i) for i in items]))
    piece = sorted(items, key=lambda item: abs(length(item) - mean))[: settings.piece]
    seconds = math.inf
    for _ in range(2):  # the first call is slower
        started = time.perf_counter()
        with torch.random.fork_rng():
            loss(piece).loss.backward()
        seconds = min(seconds, (time.perf_counter() - started) / max(1, sum(map(length, piece))))
    parameters = run.policy.parameters()
    for parameter in parameters:
        parameter.grad = None
    tokens = settings.steps * settings.batch * mean / run.processes.size
    whole = sum(map(length, scored))
    return Estimate(
        tokens * seconds + whole * seconds / 3,
        _memory(run.policy, max(map(length, items)) * settings.piece, run.processes.size if run.settings.shard else 1),
        free_bytes(), settings.steps, sum(p.numel() for p in parameters),
    )  # fmt: skip


def _memory(policy: Policy, tokens: int, shares: int) -> int:
    """Weights, gradients and two moments of what is trained, in so many shares (before they are made, weights stand
    twice), and the activations and logits of one piece."""
    config: Any = policy.lm.runtime.text_config
    weights = sum(p.numel() * p.element_size() for p in policy.module.parameters())
    trained = sum(p.numel() * 12 for p in policy.parameters())
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", 4 * hidden) or 4 * hidden
    held = weights + trained if shares == 1 else max((weights + trained) / shares, 2 * weights)
    return int(held + tokens * 4 * (layers * (10 * hidden + 4 * inner) + 2 * policy.lm.runtime.vocab_size))


def steps_of(progress: RunProgress | None, steps: int) -> Callable[[int, float], None] | None:
    """The loop's progress as steps of a run."""
    return None if progress is None else lambda step, loss: progress("steps", step + 1, steps)


def data_of(path: Path | str, rows: int) -> dict[str, Any]:
    """What a number depends on of a file."""
    try:
        return {"file": Path(path).name, "sha256": fingerprint(Path(path).read_bytes()), "rows": rows}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _check_folder(settings: RunSettings) -> None:
    out = settings.out
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: --out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECIPE).exists() and not settings.overwrite:
        raise DataError(f"{out} holds something else than a training run: choose another folder or --overwrite")
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DataError(f"cannot write to {out}: {there} is {'read-only' if there.is_dir() else 'a file'}")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {out}: {error.strerror or error}") from None


def _content(row: Any) -> str:
    """What a row says, wherever it stands in its file."""
    return repr(replace(row, row=0))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): choose another folder or --overwrite") from None
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
