"""What decoders of a diffusion model cost and change on texts whose answers can be checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from likely.decoding.diffusion.convergence import (
    ConvergenceRecorder,
    ConvergenceTrace,
    convergence_curve,
    draw_convergence,
)
from likely.decoding.diffusion.fit import FittedThresholds, fit_thresholds
from likely.decoding.diffusion.freedave import FreeDave
from likely.decoding.diffusion.generate import DiffusionOutput, diffusion_generate
from likely.decoding.diffusion.predictor import Predictor
from likely.decoding.diffusion.prophet import PUBLISHED, Prophet, Thresholds
from likely.decoding.diffusion.schedule import ConfidenceThreshold
from likely.errors import check_choice
from likely.io.whole_file import replacing
from likely.metrics.intervals import wilson
from likely.training.diffusion.tasks import TinyTask, decode_answer, encode_examples

BATCH = 50  # texts decoded together
STATIC = "static, 1 per step"


@dataclass(frozen=True)
class NamedDecoder:
    """A name, and the settings of `diffusion_generate`."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderRow:
    """One decoder on N texts.

    right   share of answers that solve the task, with its 95 % interval;  same: share equal to static decoding's
    calls   calls of the model per text;  canvases: computed in them
    stopped share of texts that a stop rule filled before the end
    """

    name: str
    texts: int
    right: float
    interval: tuple[float, float]
    same: float
    calls: float
    canvases: float
    stopped: float


@dataclass(frozen=True)
class DecoderComparison:
    """A row per decoder, and how early answers were settled.

    fractions  of the steps;  right: share of texts whose answer would be right had they been stopped there, by the rule
               that chooses positions ("probability", "random")
    fitted     thresholds of Prophet that were fitted here, None if not
    """

    task: str
    rows: list[DecoderRow]
    fractions: list[float]
    right: dict[str, list[float]]
    fitted: FittedThresholds | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; null stands for a threshold that is never reached."""
        found = asdict(self)
        if self.fitted is not None:
            phases = self.fitted.thresholds
            found["fitted"]["thresholds"] = [[end, gap if math.isfinite(gap) else None] for end, gap in phases]
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DecoderComparison:
        """What `to_dict` gave."""
        fitted = None
        if record["fitted"] is not None:
            phases = tuple((end, math.inf if gap is None else gap) for end, gap in record["fitted"]["thresholds"])
            fitted = FittedThresholds(**{**record["fitted"], "thresholds": phases})
        rows = [DecoderRow(**row) for row in record["rows"]]
        return cls(record["task"], rows, record["fractions"], record["right"], fitted)


def decoders_of(task: TinyTask, block: int = 0) -> list[NamedDecoder]:
    """What is compared where nobody says otherwise: fewer steps, FreeDave, thresholds, Prophet as published.

    block  tokens of a block; 0: the whole answer
    """
    length = task.answer_length
    few = sorted({n for n in (2, 4, block or length) if (block or length) % n == 0})
    return [
        NamedDecoder(STATIC),
        *(NamedDecoder(f"static, {n} per step", {"steps": length // n}) for n in few),
        *(NamedDecoder(f"FreeDave, {k} drafts", {"accelerator": FreeDave(k)}) for k in (2, 4, 8)),
        *(NamedDecoder(f"threshold {tau}", {"schedule": ConfidenceThreshold(tau)}) for tau in (0.9, 0.99)),
        NamedDecoder("Prophet, published", {"stop": prophet_of(task)}),
    ]


def prophet_of(task: TinyTask, thresholds: Thresholds = PUBLISHED) -> Prophet:
    """Prophet on the part of the answer that counts, or on all that is masked."""
    return Prophet(thresholds, region=task.answer_span or "masked")


def compare_decoders(
    predictor: Predictor,
    task: TinyTask,
    *,
    texts: int = 100,
    fit: int = 0,
    epsilon: float = 0.02,
    decoders: Sequence[NamedDecoder] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> DecoderComparison:
    """Decode `texts` held-out examples with each decoder.

    fit      > 0: thresholds of Prophet are fitted to so many other examples, at most a share epsilon changed, and tried
    progress called with the number of decoders that are done
    """
    examples = task.draw(np.random.default_rng([seed, 1]), texts, held_out=True)
    found = list(decoders if decoders is not None else decoders_of(task, getattr(predictor, "block", 0)))
    fitted = None
    if fit:
        others = task.draw(np.random.default_rng([seed, 2]), fit, held_out=True)
        fitted = fit_thresholds(_traces(predictor, task, others, "probability", seed), epsilon=epsilon, seed=seed)
        rule = prophet_of(task, fitted.thresholds)
        found += [
            NamedDecoder(f"Prophet, fitted to {epsilon:.0%}", {"stop": rule}),
            NamedDecoder("the same, FreeDave 4", {"stop": rule, "accelerator": FreeDave(4)}),
        ]
    plain, rows = np.empty(0), []
    for number, decoder in enumerate(found):
        outputs = list(_decoded(predictor, task, examples, decoder.settings, seed))
        answers = np.concatenate([output.answers for output in outputs])
        if not number:
            plain = answers
        rows.append(_row(decoder.name, task, examples, outputs, answers, plain))
        if progress:
            progress(1)
    fractions = [round(0.1 * i, 1) for i in range(1, 11)]
    right = {
        rule: convergence_curve(_right_at(task, examples, _traces(predictor, task, examples, rule, seed)),
                                np.array(fractions)).tolist()
        for rule in ("probability", "random")
    }  # fmt: skip
    return DecoderComparison(task.name, rows, fractions, right, fitted)


def _decoded(
    predictor: Predictor, task: TinyTask, examples: Sequence[tuple[str, str]], settings: Mapping[str, Any], seed: int
) -> Iterator[DiffusionOutput]:
    ids, answer = encode_examples(task, list(examples))
    prompts = ids[~answer].reshape(len(ids), -1)
    blocks = {"block_length": getattr(predictor, "block", 0) or task.answer_length}
    for at in range(0, len(ids), BATCH):
        yield diffusion_generate(
            predictor, prompts[at : at + BATCH], length=task.answer_length, seed=seed, **{**blocks, **settings}
        )  # fmt: skip


def _row(
    name: str, task: TinyTask, examples: Sequence[tuple[str, str]], outputs: Sequence[DiffusionOutput], answers: Any,
    plain: Any,
) -> DecoderRow:  # fmt: skip
    texts = [decode_answer(task, row) for row in answers]
    right = [task.is_right(prompt, text) for (prompt, _), text in zip(examples, texts, strict=True)]
    return DecoderRow(
        name, len(examples), float(np.mean(right)), wilson(sum(right), len(right)),
        float((answers == plain).all(axis=1).mean()),
        float(np.concatenate([output.row_calls for output in outputs]).mean()),
        sum(output.branch_calls for output in outputs) / len(examples),
        float(np.concatenate([output.stopped_at > 0 for output in outputs]).mean()),
    )  # fmt: skip


def _traces(
    predictor: Predictor, task: TinyTask, examples: Sequence[tuple[str, str]], rule: str, seed: int
) -> list[ConvergenceTrace]:
    found: list[ConvergenceTrace] = []
    for at in range(0, len(examples), BATCH):
        recorder = ConvergenceRecorder(prophet_of(task))
        settings = {"stop": recorder, "proposal": rule}
        [output] = _decoded(predictor, task, examples[at : at + BATCH], settings, seed)
        found += recorder.traces(output)
    return found


def _right_at(task: TinyTask, examples: Sequence[tuple[str, str]], traces: Sequence[ConvergenceTrace]) -> list[Any]:
    def judge(prompt: str) -> Callable[[Any], bool]:
        return lambda tokens: task.is_right(prompt, decode_answer(task, tokens))

    return [trace.right(judge(prompt)) for (prompt, _), trace in zip(examples, traces, strict=True)]


def draw_comparison(found: DecoderComparison, file: Path) -> None:
    """The curves of `right` as a figure, written to a .png, .svg or .pdf file."""
    curves = {rule: (np.array(found.fractions), np.array(shares)) for rule, shares in found.right.items()}
    check_choice("ending", file.suffix, (".png", ".svg", ".pdf"))
    figure = draw_convergence(curves, what=f"{found.task}: share right if stopped there")
    with replacing(file) as out:
        figure.savefig(out, format=file.suffix[1:])
