"""S4: does a HiPPO state remember what other states forget, and is one layer enough for pixels, trees and fast steps?

(a) delay: repeat a band-limited signal from 128 steps before; one linear layer of 64 channels, S4 and S4D (both start
    from HiPPO) against the same diagonal layer with random eigenvalues, after the same steps.
(b) sequential digits, pixel by pixel, in order and in a random order: two layers of width 64 against an LSTM of the
    same size.
(c) ListOps, small trees: two layers against the most frequent value.
(d) generation (--timing): tokens per second, one step at a time, against attention with a KV cache, as texts grow.

  python reproductions/s4.py             3 seeds
  python reproductions/s4.py --full      5 seeds, more steps
  python reproductions/s4.py --timing    (d) as well
  python reproductions/s4.py --quick     tiny, no result is written
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from sequence_models import SmallNetwork, fit, mean_figure, predictions
from shared_steps import Cells
from study import arguments, conclude, report, run_script, run_study
from torch import nn

from likely.bench import interleaved, speedup
from likely.bench.sequence import make_delay, make_digits, make_listops
from likely.evidence import Check, Evidence, Figure
from likely.sequence import make_mixer

NAME = "s4"
LEGS, DIAGONAL, RANDOM = "S4, HiPPO-LegS", "S4D, eigenvalues of HiPPO-LegS", "S4D, random eigenvalues"
LSTM, ORDERED, PERMUTED = "LSTM", "digits in order", "digits permuted"
REMEMBERED, FORGOTTEN = 0.1, 0.5  # normalised MSE of a delay that is learned, and of one that is not
LEAST_DIGITS = 0.96  # accuracy
LEAST_GAIN = 0.10  # over the most frequent value of ListOps
CHANNELS = 64
DROPOUT = 0.1


@dataclass(frozen=True)
class Size:
    """delay_steps, digit_epochs, list_epochs of training;  lengths of (d)"""

    seeds: int
    delay_length: int
    lag: int
    delay_steps: int
    digit_epochs: int
    digits: int
    lists: int
    list_epochs: int
    lengths: tuple[int, ...] = (256, 1024, 4096, 8192)
    rounds: int = 7


SMOKE = Size(2, 48, 8, 6, 1, 64, 64, 1, (16, 32), 3)
QUICK = Size(3, 512, 128, 300, 20, 1257, 4000, 3)
FULL = Size(5, 1024, 300, 1000, 40, 1257, 20000, 10)


def layer(name: str, length: int, *, mix_channels: bool = True) -> nn.Module:
    """One of the three state spaces, by its name here."""
    if name == LEGS:
        return make_mixer("s4", CHANNELS, {"l_max": length, "mix_channels": mix_channels})
    made = make_mixer("s4d", CHANNELS, {"init": "legs", "mix_channels": mix_channels})
    if name == RANDOM:
        with torch.no_grad():  # log-normal decays, normal frequencies: nothing that knows of time
            made.A_log.normal_()
            made.A_imag.normal_()
    return made


def delay_error(name: str, size: Size, seed: int) -> dict[str, float]:
    """Normalised MSE on signals that were not seen, of u[t − lag] from one linear layer."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"length": size.delay_length, "lag": size.lag}
    network = SmallNetwork(1, 1, [layer(name, size.delay_length, mix_channels=False)], norm=False)

    def batch(step: int) -> Any:
        return make_delay(8, seed * 100_000 + step, **settings)

    fit(network, batch, steps=size.delay_steps, rate=1e-2)
    test = make_delay(32, seed, split="test", **settings)
    wanted = test.targets[:, size.lag :]
    found = predictions(network, test)[:, size.lag :]
    return {"error": float(((found - wanted) ** 2).mean() / (wanted**2).mean())}


def digit_accuracy(name: str, task: str, size: Size, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    permuted = task == PERMUTED
    train = make_digits(size.digits, seed, permuted=permuted)
    mixers = [nn.LSTM(CHANNELS, CHANNELS, batch_first=True) if name == LSTM else layer(name, 64) for _ in range(2)]
    network = SmallNetwork(1, 10, mixers, pool=True, dropout=DROPOUT)
    fit(network, train, epochs=size.digit_epochs, rate=5e-3, seed=seed)
    test = make_digits(min(size.digits, 360), 0, split="test", permuted=permuted)
    right = predictions(network, test).argmax(-1) == test.targets
    return {"right": int(right.sum()), "of": len(right), "numbers": sum(p.numel() for p in network.parameters())}


def list_accuracy(size: Size, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    train = make_listops(size.lists, seed)
    mixers = [layer(LEGS, 150) for _ in range(2)]
    network = SmallNetwork(train.meta.vocabulary, 10, mixers, pool=True, tokens=True, dropout=DROPOUT)
    fit(network, train, epochs=size.list_epochs, rate=5e-3, seed=seed)
    test = make_listops(min(size.lists, 1000), 0, split="test")
    right = predictions(network, test).argmax(-1) == test.targets
    return {"right": int(right.sum()), "of": len(right), "majority": test.meta.chance}


def step_seconds(size: Size) -> dict[str, list[float]]:
    """Seconds of one token after L others, of two layers of width 256: S4 from its state, attention from its cache."""
    width, runs = 256, {}
    torch.manual_seed(0)
    layers = {
        LEGS: [make_mixer("s4", width, {"l_max": 256}) for _ in range(2)],
        "attention with a KV cache": [make_mixer("attention", width, {"heads": 4}) for _ in range(2)],
    }
    token = torch.randn(1, width)
    for name, mixers in layers.items():
        for length in size.lengths:
            with torch.no_grad():
                states = [m(torch.randn(1, length, width), return_state=True).state for m in mixers]

            def run(mixers: list[Any] = mixers, states: list[Any] = states) -> None:
                with torch.no_grad():
                    x = token
                    for mixer, state in zip(mixers, states, strict=True):
                        x, _ = mixer.step(x, state)

            runs[f"{name}, {length} tokens"] = run
    return {name: timing.seconds for name, timing in interleaved(runs, rounds=size.rounds, settled=True).items()}


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    cells: Cells, size: Size, *, full: bool, timing: bool, threads: int = 1, command: str = "",
    say: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    torch.set_num_threads(threads)
    figures: list[Figure] = []
    checks: list[Check] = []
    seeds = range(size.seeds)

    def must_be(statement: str, value: float, bound: float, unit: str) -> None:
        checks.append(Check(statement=statement, value=float(value), bound=bound, unit=unit))

    def rows(cell: str, measure: Callable[[int], dict[str, float]]) -> list[dict[str, float]]:
        found = [cells.value(f"{cell}, seed {seed}", lambda seed=seed: measure(seed)) for seed in seeds]
        say(f"{cell}: {found}")
        return found

    errors = {}
    for name in (LEGS, DIAGONAL, RANDOM):
        found = rows(f"delay, {name}", lambda seed, name=name: delay_error(name, size, seed))
        errors[name] = mean_figure(name, "delay, normalised MSE", [row["error"] for row in found], "of the variance")
        figures.append(errors[name])
    for name in (LEGS, DIAGONAL):
        must_be(f"delay of {size.lag}: normalised MSE of {name}", errors[name].value, REMEMBERED, "of the variance")
    must_be(
        f"delay of {size.lag}: {FORGOTTEN} less normalised MSE of {RANDOM}", FORGOTTEN - errors[RANDOM].value, 0.0,
        "of the variance",
    )  # fmt: skip

    digits: dict[tuple[str, str], Figure] = {}
    numbers = {}
    for task in (ORDERED, PERMUTED):
        for name in (LEGS, LSTM):
            found = rows(f"{task}, {name}", lambda seed, n=name, t=task: digit_accuracy(n, t, size, seed))
            digits[task, name] = mean_figure(name, task, [row["right"] / row["of"] for row in found], "accuracy")
            figures.append(digits[task, name])
            numbers[name] = int(found[0]["numbers"])
        must_be(f"{task}: {LEAST_DIGITS} less accuracy of S4", LEAST_DIGITS - digits[task, LEGS].value, 0.0, "accuracy")
    must_be(
        f"{PERMUTED}: accuracy of the LSTM less that of S4",
        digits[PERMUTED, LSTM].value - digits[PERMUTED, LEGS].value, 0.0, "accuracy",
    )  # fmt: skip

    found = rows("ListOps", lambda seed: list_accuracy(size, seed))
    lists = mean_figure(LEGS, "ListOps, small", [row["right"] / row["of"] for row in found], "accuracy")
    majority = found[0]["majority"]
    figures.append(lists)
    figures.append(
        Figure(
            subject="most frequent value", quantity="ListOps, small", value=majority, unit="accuracy",
            n=int(found[0]["of"]), of="trees", note="a share of the test set itself",
        )
    )  # fmt: skip
    must_be(
        f"ListOps: {LEAST_GAIN} over the most frequent value, less the accuracy of S4",
        majority + LEAST_GAIN - lists.value, 0.0, "accuracy",
    )  # fmt: skip
    if timing:
        figures_, checks_ = timing_figures(cells, size)
        figures += figures_
        checks += checks_
    return conclude(
        NAME,
        title="S4: structured state spaces",
        claim=(
            "A state space whose matrix is HiPPO's, run as a convolution by the Woodbury and Cauchy form, learns long "
            "dependencies that random matrices do not, and generates with a state of fixed size."
        ),
        paper_figure=(
            "91.13 % on sequential CIFAR-10; Long Range Arena 86.09 % on average (revised version), every task best, "
            "Path-X 96.35 %; permuted MNIST 98.70 %; generation 60x faster than a Transformer"
        ),
        ours=(
            f"delay of {size.lag} steps, normalised MSE: S4 {errors[LEGS].value:.3f}, S4D "
            f"{errors[DIAGONAL].value:.3f}, random eigenvalues {errors[RANDOM].value:.2f}; digits pixel by pixel: S4 "
            f"{digits[ORDERED, LEGS].value:.1%}, LSTM {digits[ORDERED, LSTM].value:.1%}; permuted: S4 "
            f"{digits[PERMUTED, LEGS].value:.1%}, LSTM {digits[PERMUTED, LSTM].value:.1%}; small ListOps: S4 "
            f"{lists.value:.1%}, most frequent value {majority:.1%}"
        ),
        figures=figures,
        checks=checks,
        samples=(
            f"{size.seeds} seeds; delay: one layer of {CHANNELS} channels, N = 64, {size.delay_steps} steps of 8 "
            f"signals of {size.delay_length}; digits: scikit-learn's 1257 to train on and 360 to test, "
            f"{size.digit_epochs} epochs, {numbers[LEGS]} parameters (LSTM {numbers[LSTM]}); ListOps: {size.lists} "
            f"trees of 30 to 150 tokens, {size.list_epochs} epochs, 1000 to test"
        ),
        intervals="95 %: Student's t over seeds",
        full=full,
        threads=threads,
        seconds=time.perf_counter() - started,
        command=command,
        not_shown=[
            "Sequential CIFAR-10, the Long Range Arena, Path-X, WikiText-103: hours on a GPU.",
            *([] if timing else ["The speed of generation: run with --timing on a machine that does nothing else."]),
        ],
    )


def timing_figures(cells: Cells, size: Size) -> tuple[list[Figure], list[Check]]:
    """Tokens per second of both, and whether S4's stays as it is while attention's falls."""
    from likely.bench import Timing

    seconds = cells.value("steps", lambda: step_seconds(size))
    timings = {name: Timing(name, found) for name, found in seconds.items()}
    figures = []
    for name, found in timings.items():
        low, high = found.interval_s()
        subject, _, after = name.rpartition(", ")
        figures.append(
            Figure(
                subject=subject, quantity=f"tokens per second after {after}", value=1 / found.median_s, low=1 / high,
                high=1 / low, unit="tokens per second", n=len(found.seconds), of="rounds",
            )
        )  # fmt: skip
    short, long = min(size.lengths), max(size.lengths)
    grown = speedup(timings[f"{LEGS}, {short} tokens"], timings[f"{LEGS}, {long} tokens"])
    against = speedup(timings[f"{LEGS}, {long} tokens"], timings[f"attention with a KV cache, {long} tokens"])
    checks = [
        Check(
            statement=f"time of a step of S4 after {long} tokens over that after {short} (upper end of its interval)",
            value=grown.high, bound=1.2, unit="x",
        ),
        Check(
            statement=f"time of a step of S4 over that of attention, after {long} tokens", value=1 / against.median,
            bound=1.0, unit="x",
        ),
    ]  # fmt: skip
    return figures, checks


def measure(options: argparse.Namespace) -> Evidence:
    size = SMOKE if options.quick else FULL if options.full else QUICK
    cells = Cells(options.kept, json.loads(json.dumps(asdict(size))))
    flags = "".join(f" --{flag}" for flag in ("full", "timing") if getattr(options, flag))
    return study(
        cells, size, full=options.full, timing=options.timing, threads=options.threads,
        command=f"python reproductions/s4.py{flags}",
    )  # fmt: skip


def main() -> None:
    parser = arguments(full="5 seeds, more steps", quick="tiny", threads="of torch", kept="s4_cells.jsonl")
    parser.set_defaults(threads=1)
    parser.add_argument("--timing", action="store_true", help="also the speed of generation")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
