"""NIRVANA: does pruning by first-order saliency keep more of the likelihoods than by size, by chance, or by the loss?

Groups of heads and neurons of SmolLM2 are removed, and KL(original || pruned) per token is measured on other text.
Then: the ratio of what MLP and attention lose, one order over the whole model against the same share of every layer,
the choice of the calibration text by KL, a short recovery, and whether llama.cpp says of the file what torch says.

  python reproductions/nirvana.py            1,024 tokens of evaluation (15 min of one core)
  python reproductions/nirvana.py --full     8,192 tokens and two more texts, more draws
  python reproductions/nirvana.py --speed    how fast pruned files are, alone, on a quiet machine; added to the result
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from study import (
    RunningModel,
    arguments,
    conclude,
    data_sources,
    figure_table,
    figure_with,
    model_source,
    report,
    run_script,
    run_study,
)

import likely
from likely.bench import interleaved, refuse_busy, speedup
from likely.compression import CalibrationSet, LikelihoodReport, RememberedRows, compare_all, compress
from likely.compression.architecture import open_module
from likely.compression.calibration_set import calibration_set
from likely.compression.pruning import (
    PruningPlan,
    UnitScores,
    magnitude,
    make_plan,
    recover,
    saliency,
)
from likely.compression.pruning.nirvana import deal
from likely.evidence import Check, Evidence, Figure, Source, read_result, write_result
from likely.models.convert import convert
from likely.runtimes.protocol import Runtime, Want, Work
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.protocol import Tokenizer

NAME = "nirvana"
NIRVANA, TAYLOR, MAGNITUDE, RANDOM = "NIRVANA", "Taylor on the loss", "magnitude", "random"
TOLERATED = 1.1  # of the KL of Taylor pruning
RECOVERED = 2 / 3  # of the KL may be left
SAME_FILE = 1e-3  # nats per token between torch and llama.cpp in fp32
GOAL = 1.15  # times as fast at a sparsity of .2
SPEED = "speed: "
CONTEXT = 512


@dataclass(frozen=True)
class Size:
    """How much is measured. sparsities of uniform plans; of plans with one order over the model: whole_model."""

    sparsities: tuple[float, ...]
    whole_model: tuple[float, ...]
    random_seeds: int
    gammas: tuple[float, ...]
    steps: int
    recovery_lr: float


QUICK = Size((0.1, 0.2, 0.35, 0.5), (0.2,), 2, (1.0, 6.0, math.inf), 40, 1e-3)
FULL = Size((0.1, 0.2, 0.35, 0.5), (0.1, 0.2, 0.35, 0.5), 3, (1.0, 6.0, math.inf), 200, 1e-3)


@dataclass(frozen=True)
class Texts:
    """calibration of all methods; draws among which KL chooses, and its holdout; evaluations, the first is the main."""

    calibration: CalibrationSet
    draws: Sequence[CalibrationSet]
    holdout: CalibrationSet
    recovery: CalibrationSet
    evaluations: Mapping[str, CalibrationSet]


@dataclass
class Findings:
    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Judge:
    """KL of plans to one original, on remembered rows."""

    def __init__(self, module: torch.nn.Module, tokenizer: Tokenizer, say: Callable[[str], None]):
        self.module, self.tokenizer, self.say = module, tokenizer, say
        self._stack = ExitStack()
        self._original = RunningModel(TorchRuntime(module), tokenizer)
        self._known: dict[str, RememberedRows] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of_module(self, name: str, pruned: torch.nn.Module, data: CalibrationSet) -> LikelihoodReport:
        if data.digest not in self._known:
            self._known[data.digest] = RememberedRows(self._original, data)
            self._stack.callback(self._known[data.digest].close)
        found = self._known[data.digest].compare(RunningModel(TorchRuntime(pruned, revision=name), self.tokenizer))
        self.say(f"{name}: KL {found.kl:.4f} on {data.name}, perplexity {found.perplexity:.1f}")
        return found

    def of_plan(self, name: str, plan: PruningPlan, data: CalibrationSet) -> LikelihoodReport:
        return self.of_module(name, plan.apply(self.module), data)


def kl_figures(subject: str, found: LikelihoodReport, note: str = "") -> list[Figure]:
    """KL with Student's interval over windows, and perplexity."""
    half = stats.t.ppf(0.975, found.windows - 1) * found.kl_se if found.kl_se is not None else 0.0
    common = {"n": found.tokens, "of": "tokens"}
    return [
        figure_with(
            subject, f"KL, {found.data}", found.kl, (max(0.0, found.kl - half), found.kl + half), unit="nats per token",
            note=note, **common,
        ),
        Figure(subject=subject, quantity=f"perplexity, {found.data}", value=found.perplexity, unit="perplexity",
               note="of the same tokens; the interval is that of KL", **common),
    ]  # fmt: skip


def random_scores(like: UnitScores, seed: int) -> UnitScores:
    rng = np.random.default_rng(seed)
    return UnitScores(rng.random(like.groups.shape), rng.random(like.neurons.shape), like.sizes, like.model)


def ratio_check(statement: str, top: float, bottom: float, bound: float = 1.0) -> Check:
    return Check(statement=statement, value=top / bottom, bound=bound, unit="times")


def study(
    module: torch.nn.Module, tokenizer: Tokenizer, texts: Texts, size: Size, *, sources: Sequence[Source],
    data: Sequence[Source], full: bool, multiple_of: int = 32,
    same_file: Callable[[], Mapping[str, float]] | None = None, say: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    """Everything but speed.  same_file: KL between torch and engines that load a pruned file, in fp32."""
    started = time.process_time()
    main = next(iter(texts.evaluations.values()))
    found = Findings()
    with Judge(module, tokenizer, say) as judge:
        scores = {
            NIRVANA: saliency(module, texts.calibration),
            TAYLOR: saliency(module, texts.calibration, objective="loss"),
            MAGNITUDE: magnitude(module),
        }
        say("scores computed")
        for allocation, sparsities in (("uniform", size.sparsities), ("global", size.whole_model)):
            for sparsity in sparsities:
                where = f"{allocation}, sparsity {sparsity:g}"
                _methods(judge, found, scores, where, main, size.random_seeds, lambda s, a=allocation, r=sparsity: (
                    make_plan(module, s, r, allocation=a, multiple_of=multiple_of)))  # fmt: skip
        _gammas(judge, found, scores[NIRVANA], main, size, multiple_of)
        _selection(judge, found, texts, multiple_of)
        _recovery(judge, found, scores[NIRVANA], texts, main, size, multiple_of)
    if same_file is not None:
        for engine, kl in same_file().items():
            found.checks.append(
                Check(statement=f"KL between torch and {engine} of the pruned file, fp32", value=kl, bound=SAME_FILE,
                      unit="nats per token")
            )  # fmt: skip
    seconds = time.process_time() - started
    return conclude(
        NAME,
        title="NIRVANA: structured pruning",
        claim=(
            "Removing the heads and neurons with the least first-order effect on the logits keeps more of a model than "
            "other structured pruning at equal sparsity."
        ),
        paper_figure=(
            "Better perplexity and zero-shot accuracy than existing structured pruning at sparsities of .2 to .5 on "
            "Llama 3, Qwen and T5 (abstract)"
        ),
        ours="; ".join(found.said),
        figures=found.figures,
        checks=found.checks,
        samples=(
            f"{main.tokens} tokens of {main.name} in windows of {main.input_ids.shape[1]}; calibration "
            f"{len(texts.calibration)} x {texts.calibration.input_ids.shape[1]} tokens of {texts.calibration.name}"
        ),
        intervals="95 %: Student's over windows; random: over its seeds there is no interval, the mean stands",
        full=full,
        models=sources,
        data=data,
        threads=torch.get_num_threads(),
        seconds=seconds,
        not_shown=[
            "Models of 1B and more, zero-shot suites, other structured pruning (SliceGPT, FLAP, LLM-Pruner's "
            "grouping).",
            "The official recovery on Alpaca: ours is a short distillation on C4.",
            "seconds are of the processor, not of the clock; how fast pruned files run is measured by --speed alone.",
        ],
    )


def _methods(
    judge: Judge, found: Findings, scores: Mapping[str, UnitScores], where: str, main: CalibrationSet, seeds: int,
    plan_of: Callable[[UnitScores], PruningPlan],
) -> None:  # fmt: skip
    kl: dict[str, float] = {}
    plan = plan_of(scores[NIRVANA])
    for name, of in scores.items():
        one = judge.of_plan(f"{where}, {name}", plan_of(of), main)
        found.figures += kl_figures(f"{where}: {name}", one, f"{plan.sparsity:.3f} of the blocks' weights removed")
        kl[name] = one.kl
    drawn = [
        judge.of_plan(f"{where}, {RANDOM} {seed}", plan_of(random_scores(scores[NIRVANA], seed)), main).kl
        for seed in range(seeds)
    ]
    kl[RANDOM] = float(np.mean(drawn))
    found.figures.append(
        Figure(subject=f"{where}: {RANDOM}", quantity=f"KL, {main.name}", value=kl[RANDOM], unit="nats per token",
               n=seeds, of="seeds", note=f"from {min(drawn):.3f} to {max(drawn):.3f}")
    )  # fmt: skip
    for name in (MAGNITUDE, RANDOM):
        found.checks.append(ratio_check(f"{where}: KL of {NIRVANA} over that of {name}", kl[NIRVANA], kl[name]))
    statement = f"{where}: KL of {NIRVANA} over that of {TAYLOR}"
    found.checks.append(ratio_check(statement, kl[NIRVANA], kl[TAYLOR], TOLERATED))
    found.said.append(f"{where}: KL " + ", ".join(f"{value:.2f} {name}" for name, value in kl.items()))


def _gammas(
    judge: Judge, found: Findings, scores: UnitScores, main: CalibrationSet, size: Size, multiple_of: int
) -> None:
    sizes, kl = scores.sizes, {}
    auto = sizes.mlp / sizes.attention
    for gamma in (auto, *size.gammas):
        name = f"global, sparsity 0.2, gamma {gamma:g}{' (auto)' if gamma == auto else ''}"
        plan = make_plan(judge.module, scores, 0.2, gamma=gamma, allocation="global", multiple_of=multiple_of)
        one = judge.of_plan(name, plan, main)
        found.figures += kl_figures(name, one)
        kl[gamma] = one.kl
    found.checks.append(ratio_check("KL at gamma auto over that at gamma 1, global, sparsity 0.2", kl[auto], kl[1.0]))


def _selection(judge: Judge, found: Findings, texts: Texts, multiple_of: int) -> None:
    """Each draw's plan on the holdout, and on every evaluation: does the best of the one do well on the others?"""
    held, evaluated = [], []
    for number, draw in enumerate(texts.draws):
        plan = make_plan(judge.module, saliency(judge.module, draw), 0.2, multiple_of=multiple_of)
        pruned = plan.apply(judge.module)
        held.append(judge.of_module(f"draw {number}", pruned, texts.holdout).kl)
        evaluated.append([judge.of_module(f"draw {number}", pruned, e).kl for e in texts.evaluations.values()])
    kl = np.array(evaluated)
    best = int(np.argmin(held))
    spread = (kl.max(axis=0) - kl.min(axis=0)) / kl.mean(axis=0)
    for column, name in enumerate(texts.evaluations):
        found.figures.append(
            Figure(subject="choice of the calibration text", quantity=f"spread of KL over draws, {name}",
                   value=float(spread[column]), unit="share of the mean", n=len(kl), of="draws",
                   note="largest less smallest over the mean")
        )  # fmt: skip
    found.checks.append(
        ratio_check(
            "KL of the draw that the holdout chose over the mean of all draws, averaged over texts",
            float((kl[best] / kl.mean(axis=0)).mean()), 1.0,
        )
    )  # fmt: skip
    found.said.append(f"{len(kl)} calibration draws differ by {spread.mean():.0%} in KL at sparsity 0.2")


def _recovery(
    judge: Judge, found: Findings, scores: UnitScores, texts: Texts, main: CalibrationSet, size: Size, multiple_of: int
) -> None:
    pruned = make_plan(judge.module, scores, 0.2, multiple_of=multiple_of).apply(judge.module)
    before = judge.of_module("before recovery", pruned, main)
    after_module = copy.deepcopy(pruned)
    recover(after_module, judge.module, texts.recovery, steps=size.steps, lr=size.recovery_lr)
    after = judge.of_module("after recovery", after_module, main)
    tokens = 2 * texts.recovery.input_ids.shape[1]
    how = f"{size.steps} steps of distillation, {tokens} tokens each, lr {size.recovery_lr:g}"
    found.figures += kl_figures("uniform, sparsity 0.2: NIRVANA, recovered", after, how)
    found.checks.append(ratio_check("KL after recovery over that before, sparsity 0.2", after.kl, before.kl, RECOVERED))
    found.said.append(f"{size.steps} steps of distillation: KL {before.kl:.2f} to {after.kl:.2f} at sparsity 0.2")


# --- the file, and its speed ------------------------------------------------------------------------------------------


def kl_of_the_file(model: str, folder: Path, tokens: int = 256) -> dict[str, float]:
    """KL(torch, in memory || an engine, from the file) of one pruned model in fp32, by engine."""
    pruned = compress(model, method="nirvana", sparsity=0.2, windows=4)
    pruned.export(folder / "pruned.gguf")
    convert(folder / "pruned.gguf", folder / "pruned-f32.gguf", to="f32", verify=False)
    text = calibration_set("wikitext2:test", pruned.tokenizer, windows=1, length=tokens)
    with (
        likely.load(folder / "pruned-f32.gguf", runtime="llamacpp") as llama_cpp,
        likely.load(folder / "pruned.gguf", runtime="native", dtype="float32") as native,
    ):
        found = compare_all(pruned, {"llama.cpp": llama_cpp, "native": native}, text)
    return {name: one.kl for name, one in found.items()}


class Calls:
    """A prompt of 512 tokens, and one token after it."""

    def __init__(self, runtime: Runtime):
        self.runtime, self._rng = runtime, np.random.default_rng(0)
        self._text = runtime.open()
        runtime.forward([Work(self._text, self._tokens(CONTEXT), want=Want.NONE)])

    def _tokens(self, n: int) -> np.ndarray:
        return self._rng.integers(3, min(20_000, self.runtime.vocab_size), n)

    def prefill(self) -> None:
        text = self.runtime.open()
        self.runtime.forward([Work(text, self._tokens(CONTEXT), want=Want(rows="last", top=1))])
        self.runtime.close(text)

    def decode(self) -> None:
        self.runtime.forward([Work(self._text, self._tokens(1), want=Want(rows="all", top=1))])
        self.runtime.truncate(self._text, CONTEXT)


def speed(model: str, sparsities: Sequence[float], threads: int, rounds: int) -> tuple[list[Figure], list[Check]]:
    """Original and pruned, all in Q8_0, in turn: how many times as fast the pruned ones are."""
    figures, checks = [], []
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        folder = Path(made)
        files = {0.0: folder / "original.gguf"}
        convert(open_module(model)[0], files[0.0], to="q8_0", verify=False)
        for sparsity in sparsities:
            files[sparsity] = folder / f"{sparsity:g}.gguf"
            compress(model, method="nirvana", sparsity=sparsity).export(folder / "as-floats.gguf", overwrite=True)
            convert(folder / "as-floats.gguf", files[sparsity], to="q8_0", verify=False)
        runs = {}
        for runtime in ("native", "llamacpp"):
            for sparsity, path in files.items():
                loaded = stack.enter_context(likely.load(path, runtime=runtime, threads=threads))
                calls = Calls(loaded.runtime)
                runs[f"{runtime} prefill {sparsity:g}"] = calls.prefill
                runs[f"{runtime} decode {sparsity:g}"] = calls.decode
        refuse_busy()
        times = interleaved(runs, rounds=rounds, settled=True)
    for runtime in ("native", "llamacpp"):
        for what in ("prefill", "decode"):
            for sparsity in sparsities:
                gain = speedup(times[f"{runtime} {what} {sparsity:g}"], times[f"{runtime} {what} 0"])
                subject = f"{SPEED}{runtime}, sparsity {sparsity:g}"
                figures.append(
                    figure_with(subject, f"{what}, times as fast", gain.median, (gain.low, gain.high), unit="times",
                                n=gain.rounds, of="rounds",
                                note=f"512 tokens, Q8_0, {threads} thread(s), the original in turn")
                )  # fmt: skip
                if sparsity == 0.2 and what == "prefill":
                    checks.append(
                        Check(statement=f"{SPEED}time of the pruned over that of the original, {runtime}, prefill, 0.2",
                              value=1 / gain.median, bound=1 / GOAL, unit="times")
                    )  # fmt: skip
    return figures, checks


def add_speed(options: argparse.Namespace) -> None:
    """Measure speed alone and put it into the result in place of what stood there."""
    figures, checks = speed("smollm2", (0.2, 0.5), options.threads, options.rounds)
    print(figure_table(figures))
    path = options.out / f"{NAME}.json"
    before = read_result(path)
    added = before.model_copy(
        update={
            "figures": [f for f in before.figures if not f.subject.startswith(SPEED)] + figures,
            "checks": [c for c in before.checks if not c.statement.startswith(SPEED)] + checks,
        }
    )
    print(f"added to {write_result(added, options.out)}")


def texts_of(tokenizer: Tokenizer, *, full: bool) -> Texts:
    """Draws, holdout and text of recovery are dealt out of one set of windows, so that they share none."""
    windows, draws, held = (32, 8, 32) if full else (8, 4, 8)
    all_of_c4 = calibration_set("c4_sample", tokenizer, windows=400, length=128, seed=0)
    calibration, *rest = deal(all_of_c4, 12)

    def some(of: CalibrationSet, count: int) -> CalibrationSet:
        return CalibrationSet(of.input_ids[:count], of.name, of.source, of.seed)

    evaluations = {"wikitext2:test": (16, 512) if full else (8, 128), "mbpp:test": (8, 512) if full else (4, 128)}
    if full:
        evaluations["tinyshakespeare"] = (4, 512)
    return Texts(
        calibration=some(calibration, 32),
        draws=[some(draw, windows) for draw in rest[:draws]],
        holdout=some(rest[draws], held),
        recovery=CalibrationSet(
            np.concatenate([calibration.input_ids, *(r.input_ids for r in rest[draws + 1 :])]),
            all_of_c4.name, all_of_c4.source, all_of_c4.seed,
        ),
        evaluations={
            name: calibration_set(name, tokenizer, windows=count, length=length)
            for name, (count, length) in evaluations.items()
        },
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    torch.set_num_threads(options.threads)
    if options.speed:
        add_speed(options)
        return None
    _, module, tokenizer = open_module("smollm2")
    texts = texts_of(tokenizer, full=options.full)
    used = [("c4_sample", None), ("wikitext2", "test"), ("mbpp", "test")]
    with tempfile.TemporaryDirectory() as folder:
        return study(
            module, tokenizer, texts, FULL if options.full else QUICK, sources=[model_source("smollm2")],
            data=data_sources([*used, ("tinyshakespeare", None)] if options.full else used), full=options.full,
            same_file=lambda: kl_of_the_file("smollm2", Path(folder)),
        )  # fmt: skip


def main() -> None:
    parser = arguments(full="more tokens, draws and texts (about 2 h of one core)", threads="of torch")
    parser.add_argument("--speed", action="store_true", help="measure speed alone, and add it to the result")
    parser.add_argument("--rounds", type=int, default=20, help="of the timing")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
