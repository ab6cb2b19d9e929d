"""likely scale: many chains of a small model for each question, taken over by a large one at a controlled rate."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, Chunks, FileRun, is_questions_file, read_file
from likely.cli.printing import for_terminal, print_json, progress, with_interval
from likely.errors import CapabilityError, DataError, LikelyError, RemoteError
from likely.io.jsonl import Line
from likely.io.whole_file import check_target
from likely.lm.questions import QuestionLine, question_of
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.serving.scaling import ScalingRun

Coverage = Literal["marginal", "conditional"]


@dataclass(frozen=True)
class ModelPair:
    """Two models, and how they are run."""

    draft: Annotated[str, typer.Option("--draft", help="The model that writes: as --model elsewhere.")] = DEFAULT_MODEL
    target: Annotated[str, typer.Option("--target", help="The model that scores and takes over.")] = "gemma3"
    runtime: flags.RuntimeOption = None
    dtype: flags.DtypeOption = None
    context: flags.ContextOption = None
    threads: flags.ThreadsOption = None

    def opened(self, name: str) -> Any:
        """The model; how to run it is for those of this machine."""
        from likely.models.load import is_url

        local = () if is_url(name) else (self.runtime, self.dtype, self.context, self.threads)
        return flags.ModelFlags(name, *local).open("batch")


@flags.grouped
def scale(
    models: ModelPair,
    out: flags.FileFlags,
    questions: Annotated[
        str,
        typer.Argument(help='A .jsonl file of {"question", "answer"}, a data set (NAME, NAME/FILE), or a question.'),
    ],
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Chains of a question.")] = 16,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Most rounds of a chain.")] = 15,
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", min=1, help="Most tokens of a draft.")] = 500,
    target_tokens: Annotated[int, typer.Option("--target-tokens", min=1, help="Most tokens of a take-over.")] = 500,
    reject_rate: Annotated[
        float, typer.Option("--reject-rate", help="Share of drafts that the target takes over, above 0 and below 1.")
    ] = 0.4,
    coverage: Annotated[
        Coverage | None,
        typer.Option("--coverage", help="Calibrate once, or for each question.  [default: once for a file]"),
    ] = None,
    calibration: Annotated[
        Literal["first", "each"],
        typer.Option("--calibration", help="Scores of the first round for all rounds, or of each round for itself."),
    ] = "first",
    calibration_questions: Annotated[
        int, typer.Option("--calibration-questions", min=1, help="Questions that calibrate, from the first on.")
    ] = 25,
    calibration_file: Annotated[
        Path | None,
        typer.Option("--calibration-file", help="Read if it is there, else written.  [default: beside --output]"),
    ] = None,
    on_reject: Annotated[
        Literal["continue", "replace"],
        typer.Option("--on-reject", help="The target continues a rejected draft, or writes in its place."),
    ] = "continue",
    answers: Annotated[
        Literal["number", "choice", "line"], typer.Option("--answers", help="What an answer is, and how it is graded.")
    ] = "number",
    vote: Annotated[
        Literal["majority", "likelihood"], typer.Option("--vote", help="A chain weighs 1, or its likelihood per token.")
    ] = "majority",
    temperature: flags.TemperatureOption = 0.8,
    seed: flags.SeedOption = 0,
    draft_concurrency: Annotated[
        int, typer.Option("--draft-concurrency", min=1, max=1024, help="Calls of the draft model at a time.")
    ] = 16,
    target_concurrency: Annotated[
        int, typer.Option("--target-concurrency", min=1, max=1024, help="Calls of the target at a time.")
    ] = 4,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=256, help="Questions on their way at a time.")] = 4,
    draft_prompt: Annotated[
        str | None, typer.Option("--draft-prompt", help="Prompt with {question} in it.  [default: the chat template]")
    ] = None,
    target_prompt: Annotated[
        str | None, typer.Option("--target-prompt", help="The same for the target; a server's default is plain text.")
    ] = None,
    stop: flags.StopOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Answer hard questions by many chains of a small model; a large one scores each turn and takes the worst over.

    Which turns are the worst is decided by conformal p-values, so that the share of take-overs is what was asked for
    and no chain waits for another.

    Examples:

      likely scale questions.jsonl --draft smollm2 --target gemma3 -o scaled.jsonl

      likely scale gsm8k --limit 20 -n 8 --rounds 4 --draft-tokens 64 --target-tokens 64 --reject-rate 0.3

      likely scale "Ann has 3 bags of 4 apples and eats 2. How many are left?" -n 8 --rounds 2

      likely scale questions.jsonl --draft http://localhost:8000 --target http://localhost:8001 --json
    """
    lines = None if _is_question(questions) else _questions(questions, out)
    if lines is None and out.given:
        raise typer.BadParameter("--output, --overwrite and --limit are for a file of questions", param_hint="--output")
    coverage = coverage or ("conditional" if lines is None else "marginal")
    if lines is None and coverage == "marginal" and calibration_file is None:
        raise typer.BadParameter(
            "one question has its own calibration, or give --calibration-file", param_hint="--coverage"
        )
    settings: dict[str, Any] = {
        "samples": samples, "rounds": rounds, "draft_tokens": draft_tokens, "target_tokens": target_tokens,
        "reject_rate": reject_rate, "coverage": coverage, "calibration": calibration, "on_reject": on_reject,
        "answers": answers, "vote": vote, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    prompts = {"draft_prompt": draft_prompt, "target_prompt": target_prompt, "stop": list(stop) if stop else None}
    saved = calibration_file or (out.output and out.output.with_suffix(".calibration.json"))
    if saved is not None and not saved.exists():
        check_target(saved)

    from likely.serving.scaling import ATTS, ScalingRun, client_of

    with ExitStack() as opened:
        draft, target = (opened.enter_context(models.opened(name)) for name in (models.draft, models.target))
        stops = tuple(stop) if stop else None
        atts = ATTS(
            client_of(draft, template=draft_prompt, stop=stops, concurrency=draft_concurrency),
            client_of(target, template=target_prompt, stop=stops, concurrency=target_concurrency, scores=True),
            draft_concurrency=draft_concurrency, target_concurrency=target_concurrency, **settings,
        )  # fmt: skip
        scaling = opened.enter_context(ScalingRun(atts))
        header = {
            "kind": "scale", "draft": options.origin(draft), "target": options.origin(target),
            "templates": [draft.template_hash, target.template_hash], "settings": {**settings, **prompts},
        }  # fmt: skip
        if coverage == "marginal":
            asked = [] if lines is None else [lines.item(line).asked for line in lines.lines[:calibration_questions]]
            _calibrate(scaling, asked, header, saved, overwrite=out.overwrite)
            assert atts.gate is not None
            header["calibration"] = atts.gate.fingerprint
        if lines is None:
            _one(scaling, questions, header, as_json)
        else:
            _file(scaling, lines, header, at_once, as_json)


def _is_question(argument: str) -> bool:
    return any(map(str.isspace, argument.strip()))


def _questions(argument: str, out: flags.FileFlags) -> FileRun[QuestionLine]:
    """The lines of a file, or of a file of a data set."""
    file = argument
    if argument != "-" and not is_questions_file(argument):
        from likely.data import find_path
        from likely.data.datasets import find_set

        name, _, part = argument.partition("/")
        file = str(find_path(name, find_set(name).find(part or None).name))
    return read_file(
        file, lambda line, where: question_of(line.record, f"{where}:{line.number}"), out,
        expected='lines like {"question": "...", "answer": "..."}',
    )  # fmt: skip


def _calibrate(
    scaling: ScalingRun, asked: Sequence[str], header: Mapping[str, Any], saved: Path | None, *, overwrite: bool
) -> None:
    """Read the calibration of an earlier run, or make it from these questions and save it."""
    from likely.serving.scaling import read_gate, write_gate

    atts = scaling.atts
    decides = ("samples", "draft_tokens", "target_tokens", "reject_rate", "calibration", "on_reject", "temperature")
    settings = header["settings"]
    made_with = {
        "draft": header["draft"], "target": header["target"], "templates": header["templates"],
        **{name: settings[name] for name in (*decides, "draft_prompt", "target_prompt", "stop")},
        "rounds": atts.rounds if atts.calibration == "each" else 1,
    }  # fmt: skip
    if saved is not None and saved.exists() and not overwrite:
        atts.gate = read_gate(saved, made_with)
        return
    if not asked:
        raise DataError(f"{saved} is not there: calibrate with a file of questions first")
    steps = len(asked) * atts.samples * (atts.rounds if atts.calibration == "each" else 1)
    with progress(steps, "calibrating", unit="drafts") as advance:
        gate = scaling.calibrate(asked, progress=advance)
    if saved is not None:
        write_gate(saved, gate, made_with)


def _one(scaling: ScalingRun, question: str, header: Mapping[str, Any], as_json: bool) -> None:
    found = scaling.solve(question)
    if as_json:
        print_json({**header, "question": question, **found.to_dict()})
        return
    typer.echo(found.answer if found.answer is not None else "no chain has an answer")
    votes = ", ".join(f"{answer} {weight:.3g}" for answer, weight in found.weights.items())
    typer.echo(f"votes: {for_terminal(votes) or 'none'}", err=True)
    _say_rates([rate.to_dict() for rate in found.rates()])


def _file(
    scaling: ScalingRun, lines: FileRun[QuestionLine], header: Mapping[str, Any], at_once: int, as_json: bool
) -> None:
    from likely.serving.scaling import is_right, summarise

    atts = scaling.atts

    def work(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, Mapping[str, Any]]]:
        todo = [line for chunk in chunks for line in chunk]
        asked = [lines.item(line).asked for line in todo]
        with closing(scaling.solve_each(asked, at_once=at_once)) as each:
            for line in todo:
                try:
                    found = next(each)
                except (CapabilityError, RemoteError):
                    raise
                except LikelyError as error:
                    raise DataError(f"{lines.where}:{line.number}: {error}") from None
                known = lines.item(line).passed_on
                right = is_right(atts.answers, found.answer, known)
                graded = {} if right is None else {"correct": int(right)}
                record = {**known, **found.to_dict(), **graded}
                advance(1)
                if not as_json:
                    _print_line(line.number, record)
                yield line, record

    shown = "" if sys.stdout.isatty() and not as_json else "solving"
    lines.run(header, work, label=shown, unit="questions", size=1, stdout=as_json, keep=True)
    scores = atts.gate.count() if atts.gate is not None else atts.samples
    found = summarise(lines.records(), reject_rate=atts.reject_rate, calibration_scores=scores)
    if as_json:
        if lines.output is not None:
            print_json({**header, **found})
        return
    accuracy = found["accuracy"]
    if accuracy is not None:
        typer.echo(
            f"accuracy {with_interval(accuracy['accuracy'], accuracy['interval'])} of {accuracy['n']} with a reference",
            err=True,
        )
    failed = f"; {found['failed']} chains failed" if found["failed"] else ""
    typer.echo(f"tokens: {found['draft_tokens']} drafted, {found['target_tokens']} by the target{failed}", err=True)
    _say_rates(found["rates"])


def _print_line(number: int, record: Mapping[str, Any]) -> None:
    """Past the bar, which takes over what is printed in the ordinary way."""
    right = {None: "", 1: ", right", 0: ", wrong"}[record.get("correct")]
    share = "" if record["share"] is None else f" ({record['share']:.0%} of the votes)"
    answer = "no answer" if record["answer"] is None else record["answer"]
    failed = f", {record['failed']} chains failed" if record["failed"] else ""
    line = f"{number}: {answer}{share}{right}, {record['rejected']} of {record['drafts']} drafts taken over{failed}"
    sys.stdout.buffer.write(for_terminal(line).encode() + b"\n")
    sys.stdout.buffer.flush()


def _say_rates(rates: Sequence[Mapping[str, Any]]) -> None:
    for rate in rates:
        spread = ""
        if rate["expected_low"] is not None:
            spread = (
                f"; {rate['calibration_scores']} calibration scores hold it to "
                f"[{rate['expected_low']:.2f}, {rate['expected_high']:.2f}]"
            )
        typer.echo(
            f"round {rate['rounds']}: {rate['rejected']} of {rate['drafts']} drafts taken over, {rate['rate']:.2f} for "
            f"a nominal {rate['nominal']:g}{spread}",
            err=True,
        )
