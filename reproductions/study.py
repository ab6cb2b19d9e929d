"""What every script in reproductions/ does the same: its arguments, its sources, its record, what it prints and writes.

A script measures, states its figures and checks, and ends in `conclude`; its `main` is
`run_study(arguments(...), measure)`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import inspect
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.data.datasets import find_set
from likely.errors import DataError, LikelyError
from likely.evidence.results import (
    Check,
    Evidence,
    Figure,
    MachineRecord,
    Source,
    results_dir,
    write_result,
)
from likely.io.hashes import cache_dir, file_sha256
from likely.metrics.bootstrap import bootstrap_ratio
from likely.metrics.intervals import wilson
from likely.runtimes.machine import cores, machine
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer

VERSIONS = ("likely", "numpy", "torch", "transformers", "llama-cpp-python")


@dataclass(frozen=True)
class RunningModel:
    """What `likely.compression` compares: likelihoods, and the tokenizer of their tokens."""

    runtime: Runtime
    tokenizer: Tokenizer


def data_sources(files: Iterable[tuple[str, str | None]]) -> list[Source]:
    """One Source per (data set, file or split), as the manifest of data sets states it; None: the set's only file."""
    found = []
    for name, wanted in files:
        described = find_set(name)
        file = described.find(wanted)
        digest = file.sha256 or file_sha256(file.path)
        found.append(Source(name=f"{name}/{file.name}", sha256=digest, licence=described.licence))
    return found


def model_source(name: str, *, part: str = "") -> Source:
    """The Source of a model that is known by name; part: what was used, where it was not the whole model."""
    from likely.models.catalog import find_model, known_model

    known = known_model(name)
    if known is None:
        raise DataError(f'no model is known by the name "{name}" (likely models lists them)')
    path = find_model(name)
    return Source(name=f"{path.name} ({part})" if part else path.name, sha256=file_sha256(path), licence=known.licence)


def figure_with(
    subject: str, quantity: str, value: float, interval: Sequence[float] | NDArray, *, unit: str, n: int, of: str,
    note: str = "",
) -> Figure:  # fmt: skip
    """A figure with its interval (low, high), widened where resampling left the value itself outside."""
    low, high = interval
    return Figure(
        subject=subject, quantity=quantity, value=float(value), low=min(float(low), float(value)),
        high=max(float(high), float(value)), unit=unit, n=n, of=of, note=note,
    )  # fmt: skip


def share_figure(subject: str, quantity: str, count: int, n: int, *, unit: str, of: str) -> Figure:
    """A share of n with Wilson's interval."""
    return figure_with(subject, quantity, count / n, wilson(count, n), unit=unit, n=n, of=of)


def ratio_figure(
    subject: str, quantity: str, top: ArrayLike, bottom: ArrayLike | None = None, *, unit: str, of: str,
    resamples: int = 2000,
) -> Figure:  # fmt: skip
    """Σ top / Σ bottom, by default the mean of top, with a bootstrap interval over their n pairs."""
    tops = np.asarray(top, np.float64)
    bottoms = np.ones(len(tops)) if bottom is None else np.asarray(bottom, np.float64)
    interval = bootstrap_ratio(tops.tolist(), bottoms.tolist(), resamples=resamples)
    return figure_with(subject, quantity, tops.sum() / bottoms.sum(), interval, unit=unit, n=len(tops), of=of)


def surroundings() -> dict[str, Any]:
    """Machine, versions and date: the fields of Evidence that are the same for every claim."""
    versions = {}
    for package in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "machine": MachineRecord(**asdict(machine())),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def conclude(
    name: str,
    *,
    title: str,
    claim: str,
    paper_figure: str | None,
    ours: str,
    figures: Sequence[Figure],
    checks: Sequence[Check],
    samples: str,
    intervals: str,
    not_shown: Sequence[str],
    full: bool,
    seconds: float,
    models: Sequence[Source] = (),
    data: Sequence[Source] = (),
    threads: int = 1,
    command: str = "",
    versions: dict[str, str] | None = None,
) -> Evidence:
    """The record of a study, its verdict from its checks; the fields are those of Evidence.

    full      whether --full was given: a run without it is "quick"
    command   by default the script's name, with --full where it was given
    versions  of packages besides those that every record names
    """
    around = surroundings()
    around["versions"] |= versions or {}
    return Evidence(
        id=name, title=title, claim=claim, paper_figure=paper_figure, ours=ours, figures=list(figures),
        checks=list(checks), samples=samples, intervals=intervals, mode="full" if full else "quick",
        models=list(models), data=list(data),
        command=command or f"python reproductions/{name}.py{' --full' * full}", threads=threads,
        seconds=round(seconds, 1), not_shown=list(not_shown), **around,
    )  # fmt: skip


def arguments(*, full: str = "", quick: str = "", threads: str = "", kept: str = "") -> argparse.ArgumentParser:
    """A parser with the arguments that mean the same in every script; the script's docstring is its description.

    full, quick, threads  help texts; an argument without one does not exist
    kept   file or folder in the cache folder where --kept keeps what was measured, and a later run goes on
    --full the whole study, --quick a smoke run that writes no result, --threads N, --out FOLDER of the result
    """
    script = inspect.stack()[1].frame.f_globals
    parser = argparse.ArgumentParser(description=(script["__doc__"] or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group() if full and quick else parser
    if full:
        size.add_argument("--full", action="store_true", help=full)
    if quick:
        size.add_argument("--quick", action="store_true", help=f"{quick}; no result is written")
    if threads:
        parser.add_argument("--threads", type=_at_least_one, default=cores(), help=threads)
    if kept:
        parser.add_argument("--kept", type=Path, default=cache_dir() / kept, help="where a later run goes on from")
    out = results_dir() or Path("results")
    parser.add_argument("--out", type=Path, default=out, help="folder of the result")
    return parser


def run_study(
    parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Evidence | None]
) -> Evidence | None:
    """Measure, print figures, checks and verdict, write the result; None where `measure` had nothing to conclude."""
    options = parser.parse_args()
    evidence = measure(options)
    if evidence is None:
        return None
    print(figure_table(evidence.figures))
    for check in evidence.checks:
        print(f"{'holds' if check.holds else 'FAILS'}: {check.statement}: {check.value:.4g} <= {check.bound:.4g}")
    print(evidence.ours)
    where = "not written" if getattr(options, "quick", False) else str(write_result(evidence, options.out))
    print(f"{evidence.verdict}; {evidence.seconds} s; {where}")
    return evidence


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main: an error that a user can mend in one line, Ctrl-C and SIGTERM as the shell expects them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as with Ctrl-C, temporary folders go
    try:
        main()
    except LikelyError as error:
        raise SystemExit(f"Error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def report(line: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(line, flush=True)


def figure_table(figures: Sequence[Figure]) -> str:
    """One line a figure: subject, quantity, value, interval (or why there is none) and sample size."""
    widths = [max((len(text) for text in column), default=0) for column in ([f.subject for f in figures],
              [f.quantity for f in figures])]  # fmt: skip
    lines = []
    for f in figures:
        ends = f.note if f.low is None or f.high is None else f"[{f.low:.4g}, {f.high:.4g}]"
        lines.append(f"{f.subject:{widths[0]}}  {f.quantity:{widths[1]}}  {f.value:9.4g}  {ends}  n={f.n}")
    return "\n".join(lines)


def _at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text}")
    return int(text)
