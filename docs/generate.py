"""Write every table of the documentation from the results files: README.md, docs/papers/.

  python docs/generate.py            rewrite what comes from files
  python docs/generate.py --outputs  run the README's commands again, too (needs the smollm2 model)
  python docs/generate.py --check    change nothing; exit 1 if a file is not what the results say

In README.md a part between `<!-- generated: NAME -->` and `<!-- end -->` belongs to this script.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from likely.errors import DataError, LikelyError
from likely.evidence.papers import Paper, index
from likely.evidence.results import Evidence, Figure, MachineRecord, read_results
from likely.io.whole_file import write_whole_file
from likely.lm.options import ASK_DEFAULTS, CHAT_DEFAULTS, OPTIONS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # of the tables, which each page imports for itself
COMMANDS = {
    "score": ['likely score --prompt "The capital of France is" --answer " Paris" --answer " London"'],
    "generate": [
        'likely generate "Once upon a time" --max-tokens 24 --seed 1',
        'likely generate "Once upon a time" --max-tokens 24 --seed 1 --drafter lookup',
    ],
}
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


# --- pieces of text ---------------------------------------------------------------------------------------------------


def grid(header: list[str], rows: list[list[str]], *, right: int = 1) -> str:
    """A Markdown table; columns from `right` on are aligned to the right."""
    rule = ["---" if i < right else "---:" for i in range(len(header))]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]]) + "\n"


def short(value: float) -> str:
    """Two significant digits, three from 1 on; powers of ten below 0.001."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def with_interval(figure: Figure) -> str:
    if figure.unit.startswith("share") and figure.value == 0:
        return f"0 of {figure.n:,}"
    if figure.low is None or figure.high is None:
        return short(figure.value)
    if figure.unit.startswith("share"):
        return f"{figure.value:.1%} [{figure.low:.1%}, {figure.high:.1%}]"
    return f"{short(figure.value)} [{short(figure.low)}, {short(figure.high)}]"


def machine_line(machine: MachineRecord) -> str:
    flags = " ".join(machine.flags) or "no known vector extensions"
    return f"{machine.cpu}, {machine.cores} cores ({flags})"


def paragraph(*sentences: str) -> str:
    """Sentences as one wrapped paragraph."""
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def figures_table(result: Evidence, *, without: tuple[str, ...] = ()) -> str:
    """One row per subject, one column per quantity, in the order of the file."""
    subjects = list(dict.fromkeys(f.subject for f in result.figures))
    quantities = [q for q in dict.fromkeys(f.quantity for f in result.figures) if q not in without]
    unit = {f.quantity: f.unit for f in result.figures}
    found = {(f.subject, f.quantity): with_interval(f) for f in result.figures}
    header = ["", *(q if unit[q].startswith("share") else f"{q}, {unit[q].split()[0]}" for q in quantities)]
    return grid(header, [[s, *(found.get((s, q), "") for q in quantities)] for s in subjects])


# --- README -----------------------------------------------------------------------------------------------------------


def parity(results: dict[str, Evidence]) -> str:
    result = results.get("runtime_parity")
    if result is None:
        raise DataError("results/runtime_parity.json is missing. Run: python reproductions/runtime_parity.py --full")
    models = ", ".join(model.name for model in result.models)
    return (
        "The same strings, scored by every runtime, against a plain transformers forward in fp32, token by token:\n\n"
        + figures_table(result, without=("median KL",))
        + "\n"
        + paragraph(
            "Where weights are quantised, llama.cpp rounds activations to 8 bit as well: hence the last two rows.",
            f"Model: {models}. Data: {result.samples}. Brackets: {result.intervals}.",
            f"Machine: {machine_line(result.machine)}; {result.date}.",
            "More: [docs/papers/runtime_parity.md](docs/papers/runtime_parity.md).",
        )
    )


def ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f}× [{found['low']:.2f}, {found['high']:.2f}]"


def seconds(found: dict[str, float]) -> str:
    return f"{short(found['median'])} s [{short(found['low'])}, {short(found['high'])}]"


def speed(benchmarks: dict[str, dict[str, Any]]) -> str:
    """Three benchmarks as one table; each line of the footer says what its numbers depend on."""
    decode, arc, startup = (benchmarks[name] for name in ("decode", "score_arc", "startup"))
    rows = []
    for name, model in decode["models"].items():
        rows.append(
            [
                f"greedy decoding, {name} ({decode['tokens']} tokens, log-probabilities on)",
                f"{model['likely_tokens_per_s']:.0f} tokens/s",
                f"llama-cpp-python: {model['llama_cpp_python_tokens_per_s']:.0f} tokens/s",
                ratio(model["ratio"]),
            ]
        )
    items, best = arc["items_per_s"], f"lm_eval batch {arc['best_batch']}"
    for name, key in (("lm_eval batch 1", "ratio_batch_1"), (best, "ratio_best_batch")):
        rows.append(
            [
                f"ARC-Easy, {arc['questions']} questions, smollm2 in torch fp32",
                f"{items['likely']:.1f} questions/s",
                f"{name}: {items[name]:.1f} questions/s",
                ratio(arc[key]),
            ]
        )
    rows.append(["`likely --help`", seconds(startup["help_s"]), "", ""])
    rows.append(["first token of `likely ask`, from cold, smollm2", seconds(startup["first_token_s"]), "", ""])
    table = grid(["", "likely", "other", "times as fast"], rows)
    rounds = sorted({m["ratio"]["rounds"] for m in decode["models"].values()} | {arc["ratio_best_batch"]["rounds"]})
    machines = {machine_line(MachineRecord(**b["machine"])) for b in (decode, arc, startup)}
    dates = sorted({b["when"] for b in (decode, arc, startup)})
    return f"{table}\n" + paragraph(
        f"Ratios: medians over {' or '.join(map(str, rounds))} interleaved rounds with 95 % bootstrap intervals;",
        f"above 1× likely is faster. {decode['threads']} threads; start-up: {startup['first_token_s']['rounds']} runs.",
        f"On ARC-Easy ({arc['answers']:,} answers) the log-probabilities of the two differ by at most",
        f"{short(arc['largest_difference_nats'])} nats.",
        f"Machine: {'; '.join(sorted(machines))}; {', '.join(dates)}.",
        "Scripts and results: [benchmarks/](benchmarks/README.md).",
    )


def papers_by_room(results: dict[str, Evidence]) -> str:
    """Where the papers stand, a row a room; a study of our own is not counted."""
    entries = [entry for entry in index() if entry.kind == "paper"]
    rows = []
    for room in dict.fromkeys(entry.room for entry in entries):
        mine = [entry for entry in entries if entry.room == room]
        measured = [results[entry.id] for entry in mine if entry.id in results]
        planned = sum(entry.state == "planned" for entry in mine)
        agreed = sum(result.verdict == "reproduced" for result in measured)
        rows.append([room, *(str(n) for n in (len(mine), planned, len(measured), agreed))])
    total = [str(sum(int(row[i]) for row in rows)) for i in range(1, 5)]
    header = ["room", "papers", "planned", "measured", "headline reproduced"]
    return f"{grid(header, [*rows, ['all', *total]])}\n" + paragraph(
        "A headline is the direction of a paper's main claim, at the setting that its page states; other checks are",
        "counted beside it, and each that fails says why. Each paper's headline figure, and ours beside it:",
        "`likely papers`, or [docs/papers/index.md](docs/papers/index.md).",
    )


def output_of(command: str) -> str:
    """What `likely ...` prints, run in this process as a terminal user would."""
    from likely.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(shlex.split(command)[1:])
    if code:
        raise LikelyError(f"{command} failed ({code}): {err.getvalue().strip()}")
    return out.getvalue().rstrip("\n")


def output_block(name: str) -> str:
    return "```\n" + "\n".join(output_of(command) for command in COMMANDS[name]) + "\n```\n"


def check_block(name: str, block: str, readme: str) -> str:
    """An output block stays as it is, but must be there, and its commands must stand in the README as they were run."""
    if not re.fullmatch(r"```\n.+\n```\n", block, re.S):
        raise DataError(f"README.md: the output of {name} is empty. Run: python docs/generate.py --outputs")
    for command in COMMANDS[name]:
        if f"\n{command}\n" not in readme:
            raise DataError(f"README.md: the command that made the output of {name} is not there: {command}")
    return block


def readme(results: dict[str, Evidence], benchmarks: dict[str, dict[str, Any]], *, outputs: bool) -> str:
    """README.md as it should be."""
    text = (ROOT / "README.md").read_text("utf-8")
    made: dict[str, Callable[[str], str]] = {
        "parity": lambda old: parity(results),
        "speed": lambda old: speed(benchmarks),
        "papers": lambda old: papers_by_room(results),
    }
    for name in COMMANDS:
        made[name] = lambda old, name=name: output_block(name) if outputs else check_block(name, old, text)
    seen = [match[2] for match in MARKED.finditer(text)]
    if sorted(seen) != sorted(made) or text.count("<!-- generated: ") != len(made):
        raise DataError(f"README.md: expected one marked part each for {', '.join(made)}; found {', '.join(seen)}")
    return MARKED.sub(lambda match: match[1] + made[match[2]](match[3]) + match[4], text)


def filled(path: Path, made: Mapping[str, Callable[[], str]]) -> str:
    """The page with its marked parts made anew."""
    return MARKED.sub(lambda match: match[1] + made[match[2]]() + match[4], path.read_text("utf-8"))


def speculation_guide(path: Path, benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/speculation.md with its tables."""
    import speculation_tables as tables

    made: dict[str, Callable[[], str]] = {
        "drafters": lambda: tables.drafters(grid),
        "combinations": lambda: tables.combinations(grid),
        "gains": timed(benchmarks, "speculation", tables.gains),
        "engines": timed(benchmarks, "speculation_engines", tables.engines),
        "drafting": timed(benchmarks, "drafting_cost", tables.drafting),
        "clients": timed(benchmarks, "smartspec_live_native", tables.clients),
        "side_by_side": timed(benchmarks, "parallel_layers", tables.side_by_side),
    }
    return filled(path, made)


def native_guide(path: Path, benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/native.md with its tables."""
    import native_tables as tables

    made = {
        "native_quality": timed(benchmarks, "native_quality", tables.quality),
        "native_figures": timed(benchmarks, "native", tables.figures),
        "kv_formats": timed(benchmarks, "kv_formats", tables.kv_formats),
        "shared_prefix": timed(benchmarks, "shared_prefix", tables.shared_prefix),
        "native_bakeoff": timed(benchmarks, "native_bakeoff", tables.bakeoff),
        "packed_weights": timed(benchmarks, "packed_weights", tables.packed),
        "packed_weights_vnni": timed(benchmarks, "packed_weights_vnni", tables.packed),
        "packed_weights_vnni_8b": timed(benchmarks, "packed_weights_vnni_8b", tables.packed),
        "static_codes": timed(benchmarks, "static_codes", tables.static_codes),
        "native_speculation": timed(benchmarks, "speculation_smollm2_native", tables.speculation),
    }
    return filled(path, made)


def guided_guide(path: Path, benchmark: dict[str, Any]) -> str:
    """docs/structured-output.md with its tables."""
    import guided_tables as tables

    made = {
        "guided_engines": lambda: tables.engines(benchmark, grid) + measured_on(benchmark),
        "guided_parts": lambda: tables.parts(benchmark, grid),
    }
    return filled(path, made)


def alignment_guide(path: Path, benchmarks: dict[str, dict[str, Any]], results: dict[str, Evidence]) -> str:
    """docs/alignment.md or docs/frontier.md with what was measured."""
    import alignment_tables as tables

    made = {
        "preference_run": timed(benchmarks, "preference_run", tables.run),
        "preference_step": timed(benchmarks, "preference_step", tables.step),
        "frontier_smollm2": lambda: tables.frontier(results.get("frontier_smollm2"), paragraph),
    }
    return filled(path, made)


def sequence_guide(path: Path, benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/long-context.md with its tables."""
    import sequence_tables as tables

    made = {
        "recurrent_decoding": timed(benchmarks, "recurrent_decoding", tables.decoding),
        "sequence_ops": timed(benchmarks, "sequence_ops", tables.layers),
    }
    return filled(path, made)


def serving_guide(path: Path, benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/server.md or docs/quickstart.md with what was measured."""
    import serving_tables as tables

    made = {
        "serving": timed(benchmarks, "serving", tables.load),
        "serving_stalls": timed(benchmarks, "serving_stalls", tables.stalls),
        "first_minute": timed(benchmarks, "first_minute", tables.first_minute),
        "first_minute_gemma3": timed(benchmarks, "first_minute_gemma3", tables.first_minute),
    }
    return filled(path, made)


def diffusion_guide(path: Path, results: dict[str, Evidence], benchmarks: dict[str, dict[str, Any]]) -> str:
    """docs/diffusion.md with the table of `likely diffusion analyse`, as it prints it, and the figures on text."""

    def analysis() -> str:
        if "diffusion_analysis" not in benchmarks:
            return "Not measured yet: `likely diffusion analyse -m sudoku --fit 400 --json`.\n"
        from likely.bench.diffusion import DecoderComparison
        from likely.cli.verbs.diffusion.analyse import print_comparison

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            print_comparison(DecoderComparison.from_dict(benchmarks["diffusion_analysis"]))
        return f"```text\n{out.getvalue()}```\n"

    def text() -> str:
        if "diffusion_text" not in results:
            return "Not measured yet: `python reproductions/diffusion_text.py`.\n"
        result = results["diffusion_text"]
        samples = f"{result.samples[0].upper()}{result.samples[1:]}."
        return f"{figures_table(result)}\n{paragraph(samples, 'More: [the study](papers/diffusion_text.md).')}"

    made = {"diffusion_analysis": analysis, "diffusion_text": text}
    return filled(path, made)


def timed(benchmarks: dict[str, dict[str, Any]], name: str, table: Callable[..., str]) -> Callable[[], str]:
    """The table of one benchmark and where it was measured; a line while there are no results."""
    if name not in benchmarks:
        return lambda: f"Not measured yet: `python benchmarks/{name}.py`.\n"
    return lambda: table(benchmarks[name], grid) + measured_on(benchmarks[name])


def measured_on(benchmark: dict[str, Any]) -> str:
    return "\n" + paragraph(f"Machine: {machine_line(MachineRecord(**benchmark['machine']))}; {benchmark['when']}.")


# --- docs/papers ------------------------------------------------------------------------------------------------------

NOTE = "<!-- written by docs/generate.py from results/; do not edit -->\n"
SURENESS = {"abstract": "abstract", "paper": "paper or official repository", "second-hand": "second-hand"}


def paper_index(results: dict[str, Evidence]) -> str:
    """The page of all papers and studies."""
    entries = index()
    papers = [entry for entry in entries if entry.kind == "paper"]
    rows, studies = [], []
    for entry in entries:
        result = results.get(entry.id)
        name = f"[{entry.title}]({entry.id}.md)" if result else entry.title
        state, ours = (result.verdict, result.ours) if result else (entry.state, "")
        others = result.secondary_held if result else ""
        if entry.kind == "study":
            studies.append([name, entry.room, state, ours])
            continue
        about = f" ({entry.citation()}{f', arXiv:{entry.arxiv}' if entry.arxiv else ''})" if entry.citation() else ""
        claim = f"{entry.claim} ({SURENESS[entry.known_from]})"
        rows.append([f"`{entry.id}`", name + about, entry.room, state, others, claim, ours])
    measured = sum(entry.id in results for entry in papers)
    return (
        f"# Papers\n\n{NOTE}\n"
        f"likely builds on {len(papers)} papers. Each gets a page here, and a script in `reproductions/` that measures "
        f"its claim again at small scale: `likely reproduce NAME`. {measured} of {len(papers)} are measured so far; "
        f"`planned` means that nothing of it is in the package yet. The paper's figure is in our words, with where we "
        f"know it from; authors, year and arXiv number stand where they are known for certain. The headline is the "
        f'direction of the main claim at a stated setting; "other checks" counts what else was checked and held.\n\n'
        f"{grid(['name', 'paper', 'room', 'headline', 'other checks', 'the paper', 'here'], rows, right=7)}\n"
        f"## Studies of our own\n\n"
        f"{grid(['study', 'room', 'state', 'result'], studies, right=4)}"
    )


def paper_page(entry: Paper, result: Evidence) -> str:
    """The page of one measured entry."""
    sources = [[s.name, s.licence, f"`{s.sha256}`"] for s in (*result.models, *result.data)]
    headline, others = (
        [
            [c.statement, f"{short(c.value)} {c.unit}", f"{c.bound:g} {c.unit}", "yes" if c.holds else "NO"]
            for c in checks
        ]
        for checks in (result.headline, result.secondary)
    )
    header = ["checked", "found", "allowed", "holds"]
    misses = [f"- {c.statement}: {entry.why_missed(c.statement)}.\n" for c in result.checks if not c.holds]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    parts = [
        f"# {result.title}\n\n{NOTE}\n",
        f"Claim: {result.claim}\n\n",
        f"Paper: {result.paper_figure or 'none; this is a study of our own'}.\n\n",
        f"Here: {result.ours}. **Headline: {result.verdict}**.\n\n",
        f"{grid(header, headline, right=1)}\n",
        f"Other checks, {result.secondary_held} hold:\n\n{grid(header, others, right=1)}\n" if others else "",
        f"What does not hold, and why:\n\n{''.join(misses)}\n" if misses else "",
        f"## Figures\n\n{figures_table(result)}\n",
        f"Samples: {result.samples}. Intervals: {result.intervals}.",
        *(f" {note[0].upper()}{note[1:]}." for note in dict.fromkeys(f.note for f in result.figures if f.note)),
        "\n\n## Not shown\n\n",
        "".join(f"- {line}\n" for line in result.not_shown),
        f"\n## Run it\n\n```sh\n{result.command}\n```\n\n",
        f"{result.mode.capitalize()} run of {result.date}, {result.seconds:.0f} s on {result.threads} thread(s) of "
        f"{machine_line(result.machine)}; {versions}.\n\n",
        "" if result.models else "No model file is needed.\n\n",
        grid(["file", "licence", "sha256"], sources, right=3) if sources else "",
    ]
    return "".join(parts)


# --- files ------------------------------------------------------------------------------------------------------------


def option_page() -> str:
    """The settings of `generate` and of the other verbs, from their one table."""
    rows = []
    for option in OPTIONS.values():
        allowed = (
            "" if option.low is None else f"{'above' if option.positive else 'from'} {option.low} to {option.high}"
        )
        shown = dict(option.default) if isinstance(option.default, Mapping) else option.default
        rows.append([f"`{option.name}`", f"`{shown!r}`", allowed, option.help])
    asked = ", ".join(f"{name}={value}" for name, value in ASK_DEFAULTS.items())
    chatted = ", ".join(f"{name}={value}" for name, value in CHAT_DEFAULTS.items())
    return (
        "# Options of generation\n\n<!-- written by docs/generate.py from likely.lm.options; do not edit -->\n\n"
        + paragraph(
            "What `generate`, `stream`, `ask`, `chat` take as keywords, `-s` on the command line,",
            "and the server as far as OpenAI has the field.",
            f"`ask` has {asked} by default, `chat` {chatted}.",
        )
        + "\n"
        + grid(["option", "default", "allowed", "meaning"], rows, right=4)
    )


def documents(*, outputs: bool) -> dict[Path, str]:
    """Every generated file and its text."""
    results = read_results(ROOT / "results")
    entries = {entry.id: entry for entry in index()}
    unknown = sorted(results.keys() - entries.keys())
    if unknown:
        raise DataError(f"results/{unknown[0]}.json has no entry in src/likely/evidence/papers.toml")
    benchmarks = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        benchmarks[path.stem] = json.loads(path.read_text("utf-8"))
    made = {ROOT / "README.md": readme(results, benchmarks, outputs=outputs)}
    guide = ROOT / "docs" / "speculation.md"
    if guide.exists():
        made[guide] = speculation_guide(guide, benchmarks)
    native = ROOT / "docs" / "native.md"
    if native.exists():
        made[native] = native_guide(native, benchmarks)
    forms = ROOT / "docs" / "structured-output.md"
    if forms.exists() and "guided" in benchmarks:
        made[forms] = guided_guide(forms, benchmarks["guided"])
    for page in (ROOT / "docs" / "alignment.md", ROOT / "docs" / "frontier.md"):
        if page.exists():
            made[page] = alignment_guide(page, benchmarks, results)
    sequence = ROOT / "docs" / "long-context.md"
    if sequence.exists():
        made[sequence] = sequence_guide(sequence, benchmarks)
    for page in (ROOT / "docs" / "server.md", ROOT / "docs" / "quickstart.md"):
        if page.exists():
            made[page] = serving_guide(page, benchmarks)
    diffusion = ROOT / "docs" / "diffusion.md"
    if diffusion.exists():
        made[diffusion] = diffusion_guide(diffusion, results, benchmarks)
    made[ROOT / "docs" / "reference" / "options.md"] = option_page()
    made[ROOT / "docs" / "papers" / "index.md"] = paper_index(results)
    for name, result in results.items():
        made[ROOT / "docs" / "papers" / f"{name}.md"] = paper_page(entries[name], result)
    return made


def stray_pages(made: dict[Path, str]) -> list[Path]:
    """Generated pages whose result is gone."""
    pages = (ROOT / "docs" / "papers").glob("*.md")
    return sorted(page for page in pages if page not in made and NOTE in page.read_text("utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 on a difference")
    parser.add_argument("--outputs", action="store_true", help="run the README's commands again")
    options = parser.parse_args()
    if options.check and options.outputs:
        parser.error("--check runs no commands: leave out --outputs")
    made = documents(outputs=options.outputs)
    wrong = 0
    for path, text in made.items():
        old = path.read_text("utf-8") if path.exists() else ""
        if old == text:
            continue
        wrong += 1
        name = str(path.relative_to(ROOT))
        if options.check:
            diff = difflib.unified_diff(old.splitlines(), text.splitlines(), name, f"{name}, generated", "", "", 0, "")
            print("\n".join(list(diff)[:40]))
        else:
            write_whole_file(path, text.encode())
            print(f"wrote {name}")
    for page in stray_pages(made):
        wrong += 1
        print(f"{page.relative_to(ROOT)}: its result is gone{'' if options.check else ', removed'}")
        if not options.check:
            page.unlink()
    if options.check:
        print("run: python docs/generate.py" if wrong else "documentation: tables agree with the results")
        return int(wrong > 0)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LikelyError as error:
        sys.exit(f"Error: {error}")
