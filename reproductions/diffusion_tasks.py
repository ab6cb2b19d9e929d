"""Tiny diffusion models on puzzles that they have not seen, for freedave.py and prophet.py, and on text.

Models are trained once a task and seed and kept in likely's cache folder: both studies use the same ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from shared_steps import Cells
from study import report

from likely.decoding.diffusion import Canvas, Predictor
from likely.evidence import Source
from likely.io.hashes import file_sha256
from likely.training.diffusion.tasks import Addition, TinyTask, encode_examples, make_task
from likely.training.diffusion.tiny import DEFAULTS, TinySettings, trained_tiny

TASKS = ("sudoku", "addition")
MASK, END = 0, 1
Size = TypeVar("Size")


@dataclass(frozen=True)
class Puzzles:
    """N puzzles that were held out.  prompts (N, P) and answers (N, L) token ids;  texts of both."""

    task: TinyTask
    prompts: np.ndarray
    answers: np.ndarray
    texts: list[tuple[str, str]]

    @property
    def length(self) -> int:
        return self.answers.shape[1]

    def right(self, answers: np.ndarray) -> list[bool]:
        """Whether each of these answers (N, L) solves its puzzle."""
        return [self.is_right(n, answer) for n, answer in enumerate(answers)]

    def is_right(self, number: int, answer: np.ndarray) -> bool:
        text = "".join(self.task.alphabet[token - 2] for token in answer if token > END)
        return self.task.is_right(self.texts[number][0], text)

    @property
    def suffix(self) -> dict[int, int]:
        """Position -> token of "The answer is" in an answer of addition; nothing in other tasks."""
        if not isinstance(self.task, Addition):
            return {}
        begin = self.task.answer_start - len(self.task.suffix)
        return {at: int(self.answers[0, at]) for at in range(begin, self.task.answer_start)}

    @property
    def span(self) -> tuple[int, int]:
        """Where the answer that counts stands: the sum with the end behind it, or all of a grid."""
        if not isinstance(self.task, Addition):
            return 0, self.length
        return self.task.answer_start, self.task.answer_start + self.task.digits + 1


def puzzles(name: str, count: int, seed: int) -> Puzzles:
    task = make_task(name)
    texts = task.draw(np.random.default_rng(seed), count, held_out=True)
    ids, _ = encode_examples(task, texts)
    return Puzzles(task, ids[:, : task.prompt_length], ids[:, task.prompt_length :], texts)


def predictor(name: str, seed: int, settings: TinySettings | None = None) -> tuple[Predictor, Path]:
    """The trained model of a task and seed, and its folder."""
    from likely.runtimes.torch.masked import MaskedPredictor, load_masked

    wanted = replace(settings or DEFAULTS[name], seed=seed)

    def progress(step: int, loss: float) -> None:
        if (step + 1) % 250 == 0:
            report(f"{name}, seed {seed}: step {step + 1} of {wanted.steps}, loss {loss:.3f}")

    folder = trained_tiny(name, settings=wanted, progress=progress)
    return MaskedPredictor(load_masked(folder)), folder


def source(folder: Path) -> Source:
    """Trained here: the digest is of the weights of this run."""
    return Source(name=f"{folder.name} (trained by this script)", sha256=file_sha256(folder / "model.safetensors"))


def size_and_cells(options: argparse.Namespace, *, quick: Size, smoke: Size, full: Size) -> tuple[Size, Cells]:
    """The size of a study (a dataclass) that was asked for, and its cells; torch computes with --threads then."""
    import torch

    torch.set_num_threads(options.threads)
    size = full if options.full else smoke if options.quick else quick
    return size, Cells(options.kept, json.loads(json.dumps(asdict(cast(Any, size)))))


class ExitAt:
    """A stop rule that looks at nothing: row b is filled at step steps[b]; total: steps of static decoding."""

    commit: Literal["all"] = "all"

    def __init__(self, steps: np.ndarray, total: int):
        self.steps, self.total = np.asarray(steps), total

    def decide(self, logits: np.ndarray, canvas: Canvas, progress: np.ndarray) -> np.ndarray:
        return np.rint(progress * self.total) >= self.steps[canvas.rows]


def steps_with_mean(mean: float, count: int, seed: int = 0) -> np.ndarray:
    """(count,) whole numbers around this mean, the two next to it at random in the right share."""
    low = int(np.floor(mean))
    upper = round((mean - low) * count)
    steps = np.full(count, low)
    steps[:upper] += 1
    return np.maximum(1, np.random.default_rng(seed).permutation(steps))


def pooled(cells: Sequence[Mapping[str, Any]], method: str, name: str) -> np.ndarray:
    """The values of a method over all seeds."""
    return np.concatenate([np.asarray(cell[method][name]) for cell in cells])
