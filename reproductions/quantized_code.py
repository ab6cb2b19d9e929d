"""Quantizing code models: how few bits, and does it help to calibrate on code?

SmolLM2-135M by GPTQ at 8, 4, 3 and 2 bits and by additive quantisation at 2, calibrated on C4, on MBPP's training part,
or half and half.  The model solves next to no task, so pass@1 cannot tell precisions apart; measured instead: KL to the
original and NLL per token of MBPP reference solutions, and on how many tasks the solution is likelier than the same
program with one fault.  WikiText-2 shows what calibrating on code costs elsewhere.

  python reproductions/quantized_code.py             16 tasks, GPTQ, 2,048 tokens to calibrate on (8 min of one core)
  python reproductions/quantized_code.py --additive  also additive 2x8, and 3 bits on half and half (6 min more)
  python reproductions/quantized_code.py --full      all methods and sets in 2 draws of 8,192 tokens, 100 tasks
  --kept FILE                                        a run that was stopped goes on there
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
    share_figure,
)

import likely
from likely.audit.code import CodeEvaluation, CodeTask, code_tasks, evaluate, problems
from likely.compression import compress
from likely.compression.evaluate import Likelihoods
from likely.compression.methods import CompressedModel
from likely.compression.study.evaluations import LikelihoodEvaluation
from likely.compression.study.grid import CellFile, StudyGrid, StudyMethod, StudyModel, run_grid
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics import McNemar, benjamini_hochberg, mcnemar_exact
from likely.models.catalog import find_model
from likely.models.convert import convert

NAME = "quantized_code"
GENERAL, MIXED, CODE = "c4_sample", "c4_sample+mbpp:train", "mbpp:train"
GPTQ = {8: "gptq:w8g64", 4: "gptq:w4g64", 3: "gptq:w3g64", 2: "gptq:w2g64"}
ADDITIVE = "additive:2x8"
FOUR = "4 bits, rounded to nearest"
APART = 1 / 5  # KL of 4 bits over that of 3
SMALLER = 0.3  # of the size in fp16
SIGNIFICANT = 0.05
FILES = (("c4_sample", None), ("mbpp", "train"), ("mbpp", "test"), ("wikitext2", "test"))


@dataclass(frozen=True)
class Part:
    """Methods on calibration sets, each drawn so many times."""

    methods: tuple[str, ...]
    calibrations: tuple[str, ...]
    draws: int = 1


@dataclass(frozen=True)
class Size:
    """Calibration windows and their length, the same of WikiText-2, tasks, tasks that are solved."""

    parts: tuple[Part, ...]
    windows: int
    length: int
    text_windows: int
    text_length: int
    tasks: int
    solved: int


QUICK = Size(
    (
        Part((GPTQ[2], GPTQ[3], GPTQ[4]), (GENERAL, CODE)),
        Part((GPTQ[8],), (GENERAL,)),
    ),
    8, 256, 4, 128, 16, 4,
)  # fmt: skip
MORE = (Part((ADDITIVE,), (CODE,)), Part((GPTQ[3],), (MIXED,)))
FULL = Size((Part((*GPTQ.values(), ADDITIVE), (GENERAL, MIXED, CODE), 2),), 16, 512, 16, 256, 100, 50)


@dataclass(eq=False)
class PerTask(CodeEvaluation):
    """Numbers of each task as well, and processor time since the cell before; the original's rows outlast a grid."""

    _since: float = field(default_factory=time.process_time)

    def measure(self, original: Likelihoods, candidate: Likelihoods) -> dict[str, float | None]:
        found = self.compare(original, candidate)
        numbers = found.numbers()
        parts = {
            "kl": found.totals("kl"), "logprob": found.totals("candidate"), "original": found.totals("reference"),
            "tokens": found.tokens, "right": found.candidate, "original right": found.original,
        }  # fmt: skip
        for what, values in parts.items():
            for task, value in zip(self.tasks, values, strict=True):
                numbers[f"{what} of {task.problem.id}"] = float(value)
        assert isinstance(candidate, CompressedModel)
        before, self._since = self._since, time.process_time()
        return numbers | {"weight bytes": float(candidate.nbytes), "seconds": self._since - before}

    def close(self) -> None:
        """Nothing: see `free`."""

    def free(self) -> None:
        super().close()


@dataclass(frozen=True)
class Cell:
    """What was measured of one candidate: numbers on code and on text."""

    code: Mapping[str, float | None]
    text: Mapping[str, float | None]
    tasks: tuple[str, ...]

    def each(self, what: str) -> np.ndarray:
        """One number a task."""
        return np.array([self.code[f"{what} of {task}"] for task in self.tasks], np.float64)

    @property
    def kl(self) -> float:
        return float(self.each("kl").sum() / self.each("tokens").sum())

    @property
    def mcnemar(self) -> McNemar:
        return mcnemar_exact((self.each("original right") > 0).tolist(), (self.each("right") > 0).tolist())


@dataclass
class Cells:
    """All cells by method, calibration set and draw."""

    found: dict[tuple[str, str, int], Cell] = field(default_factory=dict)

    def kl(self, method: str, calibration: str) -> float:
        """On code, the mean over draws."""
        return float(np.mean([cell.kl for cell in self.of(method, calibration)]))

    def of(self, method: str, calibration: str) -> list[Cell]:
        return [cell for (m, c, _), cell in self.found.items() if (m, c) == (method, calibration)]

    def has(self, method: str, *calibrations: str) -> bool:
        return all(self.of(method, calibration) for calibration in calibrations)


def measure_cells(
    model: StudyModel, tasks: Sequence[CodeTask], size: Size, *, text: str = "wikitext2:test",
    cells: CellFile | None = None, said: Callable[[str], None] = report,
) -> Cells:  # fmt: skip
    """Every part of the grid; the same cell is measured once."""
    code, prose = PerTask(tasks), LikelihoodEvaluation(text, size.text_windows, size.text_length)
    names = tuple(task.problem.id for task in tasks)
    cells, found = cells or CellFile(), Cells()
    for part in size.parts:
        grid = StudyGrid(
            methods=[StudyMethod.parse(name) for name in part.methods], calibrations=part.calibrations,
            evaluations=[code, prose], draws=part.draws, windows=size.windows, length=size.length,
        )  # fmt: skip
        rows = run_grid([model], grid, cells=cells, said=said)
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            assert one.calibration is not None and one.draw is not None
            method = part.methods[[m.name for m in grid.methods].index(one.method)]
            found.found[method, one.calibration, one.draw] = Cell(one.numbers, other.numbers, names)
    code.free()
    return found


def cell_figures(found: Cells, text: str, windows: int) -> list[Figure]:
    figures = []
    for (method, calibration, draw), cell in found.found.items():
        subject = f"{method}, {calibration}" + (f", draw {draw}" if draw else "")
        tokens = cell.each("tokens")
        kl, se = cell.text["kl"], cell.text["kl_se"]
        assert kl is not None
        half = stats.t.ppf(0.975, windows - 1) * (se or 0.0)
        test = cell.mcnemar
        bootstrapped = {"unit": "nats per token", "of": "tasks"}
        figures += [
            ratio_figure(subject, "KL on code", cell.each("kl"), tokens, **bootstrapped),
            ratio_figure(subject, "NLL of solutions", -cell.each("logprob"), tokens, **bootstrapped),
            share_figure(subject, "solution above its mutants", int(cell.each("right").sum()), len(cell.tasks),
                         unit="share", of="tasks"),
            figure_with(subject, f"KL on {text}", kl, (max(0.0, kl - half), kl + half), unit="nats per token",
                        n=windows, of="windows"),
            Figure(subject=subject, quantity="McNemar p against the original", value=test.p, unit="p", n=test.n,
                   of="tasks", note=f"exact; {test.lost} tasks lost, {test.gained} gained"),
        ]  # fmt: skip
    first = next(iter(found.found.values()))
    figures += [
        ratio_figure("original", "NLL of solutions", -first.each("original"), first.each("tokens"),
                     unit="nats per token", of="tasks"),
        share_figure("original", "solution above its mutants", int(first.each("original right").sum()),
                     len(first.tasks), unit="share", of="tasks"),
    ]  # fmt: skip
    return figures


def checks_of(found: Cells) -> tuple[list[Check], list[str]]:
    """The claim's parts, of what was measured, and what they say in words."""
    checks, said = [], []

    def check(statement: str, value: float, bound: float, unit: str = "ratio") -> None:
        checks.append(Check(statement=statement, value=value, bound=bound, unit=unit))

    for calibration in (GENERAL, CODE):
        kls = {bits: found.kl(m, calibration) for bits, m in GPTQ.items() if found.has(m, calibration)}
        said.append(
            f"GPTQ on {calibration}: KL on code " + ", ".join(f"{kl:.3g} at {bits} bits" for bits, kl in kls.items())
        )
        check(f"{calibration}: KL on code at 4 bits over that at 3", kls[4] / kls[3], APART)
    gaps = {}
    for bits in (2, 3, 4):
        by_set = {c: found.kl(GPTQ[bits], c) for c in (GENERAL, MIXED, CODE) if found.has(GPTQ[bits], c)}
        gaps[bits] = by_set[GENERAL] - by_set[CODE]
        if bits < 4:
            others = min(kl for name, kl in by_set.items() if name != CODE)
            check(f"{bits} bits: KL on code, calibrated on code, over the best other set's", by_set[CODE] / others, 1.0)
        said.append(f"{bits} bits: {by_set[CODE] / by_set[GENERAL]:.2f} of the KL of C4 when calibrated on code")
    check("KL that calibrating on code saves at 3 bits, over that at 2", gaps[3] / gaps[2], 1.0)
    check("KL that calibrating on code saves at 4 bits, over that at 3", gaps[4] / gaps[3], 1.0)
    for calibration in (GENERAL, CODE):
        if found.has(ADDITIVE, calibration):
            ratio = found.kl(ADDITIVE, calibration) / found.kl(GPTQ[2], calibration)
            check(f"{calibration}: KL on code of additive 2x8 over that of GPTQ with 2 bits", ratio, 1.0)
            said.append(f"additive 2x8 on {calibration}: {ratio:.2f} of the KL of GPTQ with 2 bits")
    tests = {bits: found.of(m, GENERAL)[0].mcnemar for bits, m in GPTQ.items() if found.has(m, GENERAL)}
    adjusted = dict(zip(tests, benjamini_hochberg([test.p for test in tests.values()]), strict=True))
    for bits in (8, 4):
        check(f"{bits} bits: significance that discrimination is lost, 1 - adjusted p", 1 - float(adjusted[bits]),
              1 - SIGNIFICANT, "1 - p")  # fmt: skip
    said.append("adjusted p of a loss of discrimination: " + ", ".join(f"{p:.2g} at {b}" for b, p in adjusted.items()))
    return checks, said


def price_figures(found: Cells, text: str) -> list[Figure]:
    """What calibrating on code costs on other text: KL over that of the general set, means of draws."""
    figures = []
    for bits in (4, 3, 2):
        kls = [np.mean([cell.text["kl"] for cell in found.of(GPTQ[bits], c)]) for c in (CODE, GENERAL)]
        figures.append(
            Figure(subject=f"{bits} bits, calibrated on code instead of C4", quantity=f"KL on {text}, ratio",
                   value=float(kls[0] / kls[1]), unit="ratio", n=len(found.of(GPTQ[bits], CODE)), of="draws",
                   note="a ratio of means over draws: too few for an interval")
        )  # fmt: skip
    return figures


def study(
    model: StudyModel, tasks: Sequence[CodeTask], size: Size, *, text: str = "wikitext2:test",
    cells: CellFile | None = None, sizes: Mapping[str, int] | None = None,
    solved: Mapping[str, tuple[int, int]] | None = None, sources: Sequence[Source] = (), data: Sequence[Source] = (),
    full: bool = False, command: str = "", said: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    """The whole grid.  sizes: bytes of files, "fp16" among them; solved: (solved, tasks) of files that were run."""
    found = measure_cells(model, tasks, size, text=text, cells=cells, said=said)
    checks, ours = checks_of(found)
    figures = [*cell_figures(found, text, size.text_windows), *price_figures(found, text)]
    for name, count in (sizes or {}).items():
        figures.append(Figure(subject=f"file: {name}", quantity="size", value=count / 1e6, unit="MB", n=1, of="files",
                              note="a size has no interval"))  # fmt: skip
    for (method, calibration, draw), cell in found.found.items():
        if draw == 0 and calibration == CODE:
            count = cell.code["weight bytes"]
            assert count is not None
            figures.append(Figure(subject=f"packed: {method}", quantity="size", value=count / 1e6, unit="MB", n=1,
                                  of="models", note="codes with scales and codebooks, all else in fp16"))  # fmt: skip
    if sizes:
        four, sixteen = sizes[FOUR], sizes["fp16"]
        checks.append(Check(statement="size: the file with 4 bits over that in fp16", value=four / sixteen,
                            bound=SMALLER, unit="ratio"))  # fmt: skip
        ours.append(f"the file with 4 bits is {1 - four / sixteen:.0%} smaller than fp16")
    for name, (count, of) in (solved or {}).items():
        figures.append(share_figure(f"greedy: {name}", "pass@1", count, of, unit="share", of="tasks"))
    return conclude(
        NAME,
        title="Quantizing LLMs for code generation: a replication",
        claim=(
            "A code model loses nothing significant at 4 bits and is 70 % smaller; at 3 and 2 bits calibrating on code "
            "limits the loss."
        ),
        paper_figure="4 bits: 70 % smaller on average, no significant loss of pass@1 (CodeLlama, DeepSeek-Coder)",
        ours="; ".join(ours),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(tasks)} MBPP test tasks, their solutions and {sum(len(t.mutants) for t in tasks)} mutants; "
            f"calibration {size.windows} x {size.length} tokens; "
            f"{size.text_windows} x {size.text_length} tokens of {text}"
        ),
        intervals="95 %: bootstrap over tasks; Wilson's for shares; Student's over windows of text",
        full=full,
        command=command,
        models=sources,
        data=data,
        threads=torch.get_num_threads(),
        seconds=sum(cell.code["seconds"] or 0.0 for cell in found.found.values()),
        not_shown=[
            "pass@1 of models of 7B to 34B, Java, McEval, significance at the paper's sample sizes.",
            "Whether 4 bits lose discrimination: on so few tasks even the ruined 2-bit model is not told from the "
            "original beyond doubt once p is adjusted, so that no significance at 4 bits says little; KL says more.",
            "Code in general: MBPP's training part is text of the very kind that is judged on.",
            "Rounding of original weights: the packaged model is 4-bit already, and is rounded a second time.",
            "AQLM's block fine-tuning and the end-to-end fine-tuning of the 2-bit models.",
            "seconds are of the processor, not of the clock.",
            *([] if found.has(ADDITIVE, CODE) else ["Additive quantisation, and half of each text: see --additive."]),
        ],
    )


def files_and_solutions(model: str, size: Size, folder: Path) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Sizes of real files, which any rounding gives, and how many of some tasks the original and one of them solve."""
    original, four = find_model(model), folder / "4.gguf"
    convert(original, folder / "16.gguf", to="f16", verify=False)
    compress(model, scheme="w8g64").export(folder / "8.gguf")
    compress(model, scheme="w4g64").export(four)
    names = {"fp16": folder / "16.gguf", "8 bits": folder / "8.gguf", FOUR: four}
    solved = {}
    for name, path in (("original", original), (FOUR, four)):
        with closing(likely.load(path, runtime="native", threads=torch.get_num_threads())) as lm:
            done = evaluate(lm, problems("mbpp", limit=size.solved, shots=False), benchmark="mbpp", max_tokens=128)
            solved[name] = sum(one.passed for one in done.solved), len(done.solved)
    return {name: path.stat().st_size for name, path in names.items()}, solved


def measure(options: argparse.Namespace) -> Evidence:
    torch.set_num_threads(options.threads)
    size = FULL if options.full else replace(QUICK, parts=QUICK.parts + MORE * options.additive)
    tasks = code_tasks(limit=size.tasks, run_mutants=True)
    with CellFile(options.kept) as cells, tempfile.TemporaryDirectory() as folder:
        model = StudyModel.open("smollm2")
        sizes, solved = files_and_solutions("smollm2", size, Path(folder))
        return study(
            model, tasks, size, cells=cells, sizes=sizes, solved=solved, sources=[model_source("smollm2")],
            data=data_sources(FILES), full=options.full,
            command=f"python reproductions/{NAME}.py{' --additive' * options.additive}{' --full' * options.full}",
        )  # fmt: skip


def main() -> None:
    parser = arguments(full="every method on every set in 2 draws, more tasks and tokens", threads="of torch")
    parser.add_argument("--additive", action="store_true", help="also additive 2x8, and 3 bits on half and half")
    parser.add_argument("--kept", type=Path, help="JSONL file of what was measured, to go on after a stop")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
