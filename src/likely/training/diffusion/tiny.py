"""Train a tiny masked language model on a task, and keep it in a folder that `likely.load` opens."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from likely.errors import DataError, check_choice
from likely.formats.folder import read_json
from likely.io.hashes import cache_dir, fingerprint
from likely.io.whole_file import write_whole_file
from likely.training.checkpoints import Checkpoints
from likely.training.diffusion.loss import FORMS, diffusion_loss
from likely.training.diffusion.tasks import TASKS, Shakespeare, TinyTask, encode_examples, make_task, tokenizer_files
from likely.training.loop import LossOutput, import_torch, train
from likely.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from likely.runtimes.torch.masked.network import MaskedTransformer

RECORD = "training.json"
STATE = "training_state.safetensors"
LOG = "training_log.jsonl"
VERSION = 1  # of the recipe: a change of what the numbers depend on makes kept models stale


@dataclass(frozen=True)
class TinySettings:
    """How a tiny masked language model is made and trained: AdamW (β 0.9 and 0.98) on `steps` batches.

    width, layers, heads  of the network, see `TinyMaskedLM`
    block      > 0: block-causal.  One block of each text is masked, those before it are given, the rest is not seen
    lr         reached after `warmup` steps, then a cosine to 0;  clip: largest norm of the gradient
    form       of the loss: "time" or "count", see `diffusion_loss`
    checkpoint_every  steps between two checkpoints
    """

    steps: int
    width: int = 64
    layers: int = 3
    heads: int = 4
    block: int = 0
    batch: int = 64
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    form: Literal["time", "count"] = "count"
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "width", "layers", "heads", "batch", "checkpoint_every"):
            if not (isinstance(value := getattr(self, name), int) and value >= 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        for name in ("block", "warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        check_choice("form", self.form, FORMS)

    def rate(self, step: int) -> float:
        """The learning rate of a step over `lr`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


DEFAULTS: Mapping[str, TinySettings] = {
    "sudoku": TinySettings(steps=1500),
    "addition": TinySettings(steps=1200),
    "shakespeare": TinySettings(steps=4000, width=128, layers=4, lr=2e-3, batch=32),
}


def settings_of_task(name: str, given: Mapping[str, Any]) -> tuple[TinyTask, TinySettings]:
    """A task by name, and its settings: those of `DEFAULTS` but for what is given and not None."""
    task = make_task(name)
    return task, replace(DEFAULTS[name], **{key: value for key, value in given.items() if value is not None})


def use_threads(count: int) -> None:
    """How many threads torch computes with in this process."""
    import_torch().set_num_threads(count)


def train_tiny(
    task: TinyTask,
    folder: str | Path,
    settings: TinySettings,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a new model into `folder`; the loss of each step in nats per token.

    A folder of the same settings goes on where it was stopped, bit for bit, and one that is done is left as it is;
    DataError for a folder of others.  progress(step, loss), steps from 0
    """
    torch = import_torch()
    folder = Path(folder)
    if settings.block and task.answer_length % settings.block:
        raise ValueError(
            f"block must divide the {task.answer_length} tokens of an answer of {task.name}, got {settings.block}"
        )
    record = {"task": task.name, "version": VERSION, **_settings_of(task), **asdict(settings)}
    record.pop("checkpoint_every")
    if folder.is_file():
        raise DataError(f"{folder} is a file: choose a folder")
    known = read_json(folder / RECORD)
    if known and {name: known.get(name) for name in record} != json.loads(json.dumps(record)):
        name = next(name for name in record if known.get(name) != json.loads(json.dumps(record[name])))
        raise DataError(
            f"{folder} holds a model that was trained with another {name} ({known.get(name)!r}, now {record[name]!r}): "
            f"choose another folder"
        )
    if known.get("losses"):
        return list(known["losses"])
    if not known and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and no training folder: choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RECORD, record)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = new_network(task, settings)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)

        def loss(batch: tuple[int, Tensor, Tensor, int]) -> LossOutput:
            step, ids, answer, end = batch
            generator.manual_seed(settings.seed * 1_000_003 + step)
            found = diffusion_loss(
                lambda x: _forward(network, x, end), ids[:, :end], answer[:, :end], mask_id=0, form=settings.form,
                generator=generator,
            )  # fmt: skip
            return LossOutput(found)

        losses = train(
            itertools.islice(_batches(task, settings), settings.steps), loss, optimizer, schedule=schedule,
            clip=settings.clip, progress=progress, log=MetricsLog(folder / LOG),
            checkpoints=Checkpoints(folder / STATE, settings.checkpoint_every, record),
        )  # fmt: skip
    save_model(network, task, folder)
    _write(folder / RECORD, {**record, "losses": losses})
    (folder / STATE).unlink(missing_ok=True)
    return losses


def new_network(task: TinyTask, settings: TinySettings) -> MaskedTransformer:
    """A fresh network for the texts of a task; its parameters come from torch's own random numbers."""
    from likely.runtimes.torch.masked.network import TinyMaskedLM

    return TinyMaskedLM(
        len(task.alphabet) + 2, 0, context=task.prompt_length + task.answer_length, width=settings.width,
        layers=settings.layers, heads=settings.heads, block=settings.block,
    )  # fmt: skip


def save_model(network: MaskedTransformer, task: TinyTask, folder: str | Path) -> None:
    """Network and tokenizer of a task, as `likely.load` opens them."""
    from likely.runtimes.torch.masked.checkpoint import save_masked

    folder = Path(folder)
    for name, content in tokenizer_files(task).items():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole_file(folder / name, content)
    save_masked(network, folder)


def trained_tiny(
    name: str,
    *,
    settings: TinySettings | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Path:
    """The folder of a model of a task (sudoku, addition, shakespeare), trained once and then kept.

    settings  None: those of `DEFAULTS`;  cache: where it is kept, in place of likely's cache folder
    The folder's name holds a digest of all that the model depends on.
    """
    task = make_task(name)
    settings = settings or DEFAULTS[name]
    wanted = asdict(replace(settings, checkpoint_every=1)) | _settings_of(task) | {"version": VERSION}
    root = Path(cache) if cache is not None else cache_dir() / "diffusion"
    folder = root / f"{name}-{fingerprint(wanted)}"
    train_tiny(task, folder, settings, progress=progress)
    return folder


def task_of(folder: str | Path) -> TinyTask:
    """The task that the model of a folder was trained on; DataError where nothing says so."""
    if not Path(folder).exists():
        raise DataError(f"there is no folder {folder}: likely diffusion train TASK -o FOLDER makes one")
    record = read_json(Path(folder) / RECORD)
    if record.get("task") not in TASKS:
        raise DataError(
            f"{folder}: {RECORD} names no task of {', '.join(TASKS)}: give a model that likely diffusion train made"
        )
    return make_task(record["task"])


def check_prompt(model: str, prompt: str) -> None:
    """DataError where the model of a puzzle (`train_tiny`) gets a prompt of another length than it was trained on."""
    task = TASKS.get(str(read_json(Path(model) / RECORD).get("task")), Shakespeare)()
    if not isinstance(task, Shakespeare) and len(prompt) != task.prompt_length:
        raise DataError(
            f"a prompt of {task.name} has {task.prompt_length} characters, such as "
            f"{task.draw(np.random.default_rng(0), 1)[0][0]!r}; this one has {len(prompt)}"
        )


def _settings_of(task: TinyTask) -> dict[str, Any]:
    """What an object of a task was made with, as JSON."""
    kept = {
        name: value for name, value in vars(task).items() if name not in ("text", "data_dir", "name", "answer_span")
    }
    if isinstance(task, Shakespeare):
        kept["text"] = fingerprint(task.whole)
    return {"task_settings": json.loads(json.dumps(kept))}


def _batches(task: TinyTask, settings: TinySettings) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, int]]:
    """(step, ids, answer, how many positions are seen), each a function of seed and step alone."""
    torch = import_torch()
    for step in itertools.count():
        rng = np.random.default_rng([settings.seed, step])
        ids, answer = encode_examples(task, task.draw(rng, settings.batch))
        end = ids.shape[1]
        if settings.block:
            first, count = task.prompt_length // settings.block, -(-end // settings.block)
            number = int(rng.integers(first, count))
            end = min(end, (number + 1) * settings.block)
            answer &= np.arange(ids.shape[1]) >= number * settings.block
        yield step, torch.from_numpy(ids), torch.from_numpy(answer), end


def _forward(network: MaskedTransformer, ids: torch.Tensor, length: int) -> torch.Tensor:
    import torch

    from likely.runtimes.torch.masked.predictor import attention_mask

    attend = attention_mask(torch.zeros(1, length, dtype=torch.bool), network.shape.block)
    return network(ids, attend=attend if network.shape.block else None)


def _write(path: Path, value: dict[str, Any]) -> None:
    write_whole_file(path, (json.dumps(value, indent=1) + "\n").encode())
