"""Adding one of a kind touches few files: a toy of each is added to a copy of the project, by these edits alone.

CONTRIBUTING.md lists the same files; a test of its own and a page stand beside what the program needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from private_cache import private_cache
from tiny_gguf import write_tiny_llama

ROOT = Path(__file__).parents[2]
DRAFTING, CLI = "src/likely/decoding/drafting", "src/likely/cli"
RECALIBRATORS, RUNTIMES = "src/likely/calibration/recalibrators", "src/likely/runtimes"


@dataclass(frozen=True)
class Addition:
    """new  path -> text of new files;  edits: path -> (a line of the file, what follows it from now on)

    beside  files that people write, too: tests and pages.  NAME stands for the name of the new thing
    """

    new: dict[str, str]
    edits: dict[str, list[tuple[str, str]]]
    beside: tuple[str, ...]
    most: int = 4

    @property
    def files(self) -> set[str]:
        return {re.sub("toys?", "NAME", path) for path in (*self.new, *self.edits)} | set(self.beside)


ADDITIONS = {
    "drafter": Addition(
        new={
            f"{DRAFTING}/toy.py": "from likely.decoding.drafting.lookup import PromptLookup\n\n\n"
            'class ToyDrafts(PromptLookup):\n    """Prompt lookup by another name."""\n\n    name = "toy"\n'
        },
        edits={
            f"{DRAFTING}/table.py": [
                (
                    "# --- what others say of the table",
                    "def _toy(argument, context):\n    from likely.decoding.drafting.toy import ToyDrafts\n\n"
                    '    return ToyDrafts()\n\n\nDRAFTERS["toy"] = DrafterEntry("a toy", "nothing", _toy)\n',
                )
            ]
        },
        beside=("tests/decoding/drafting/test_NAME.py", "docs/speculation.md"),
    ),
    "estimator": Addition(
        new={
            "src/likely/uncertainty/toy.py": "from dataclasses import replace\n\n"
            "from likely.uncertainty.likelihood import g_nll\n\n\n"
            "def toy(greedy):\n    found = g_nll(greedy)\n    return replace(found, values=found.values + 1)\n"
        },
        edits={
            "src/likely/uncertainty/table.py": [
                ("from likely.uncertainty.p_true import", "from likely.uncertainty.toy import toy\n"),
                ("ESTIMATORS: dict[str, Estimator] = {", '    "toy": Estimator("a toy", _G, _greedy(toy)),\n'),
            ]
        },
        beside=("tests/uncertainty/test_NAME.py", "docs/uncertainty.md"),
    ),
    "recalibrator": Addition(
        new={
            f"{RECALIBRATORS}/toy.py": "from likely.calibration.recalibrators.sigmoid import Platt\n\n\n"
            'class Toy(Platt):\n    """Platt scaling by another name."""\n\n    name = "toy"\n'
        },
        edits={
            f"{RECALIBRATORS}/table.py": [
                (
                    "from likely.calibration.recalibrators.sigmoid import",
                    "from likely.calibration.recalibrators.toy import Toy\n",
                ),
                ("_ENTRIES = (", '    RecalibratorEntry(Toy, "a toy"),\n'),
            ]
        },
        beside=("tests/helpers/recalibrator_cases.py", "docs/confidence.md"),
    ),
    "verb": Addition(
        new={
            f"{CLI}/verbs/project/toy.py": "import typer\n\n\n"
            'def toy() -> None:\n    """Say that it is a toy."""\n    typer.echo("a toy")\n'
        },
        edits={f"{CLI}/app.py": [("VERBS = {", '    "toy": "project.toy",\n')]},
        beside=("tests/cli/test_NAME.py", "docs/cli.md"),
    ),
    "runtime": Addition(
        new={
            f"{RUNTIMES}/toys.py": "from likely.runtimes.toy import ToyRuntime\n\n\n"
            "def open_toy(vocab_size):\n    runtime = ToyRuntime.random(vocab_size, seed=1, context_length=64)\n"
            '    runtime.dtype = "float32"\n    return runtime\n'
        },
        edits={
            f"{RUNTIMES}/kinds.py": [
                (
                    "DTYPES = tuple(",
                    'KINDS["toys"] = RuntimeKind(\n    "toys", frozenset({"gguf"}), (), (), "local", '
                    'frozenset({"trees", "fork", "truncate"}), frozenset(_COMMON)\n)\n',
                )
            ],
            "src/likely/models/load.py": [
                (
                    "def _tokens_held(",
                    "def _open_toys(where, place, dtype, options):\n"
                    "    from likely.runtimes.toys import open_toy\n\n"
                    "    tokenizer, path, warnings = _tokenizer(Path(place))\n"
                    "    return open_toy(tokenizer.vocab_size), tokenizer, path, warnings\n\n\n"
                    '_OPEN["toys"] = _open_toys\n\n\n',
                )
            ],
        },
        beside=("tests/helpers/factories.py", "docs/concepts/runtimes.md", "pyproject.toml"),
        most=6,
    ),
    "reproduction": Addition(
        new={
            "reproductions/toy.py": '"""A toy: a number that is what it is."""\n\n'
            "from study import arguments, conclude, figure_with, run_script, run_study\n\n"
            "from likely.evidence import Check, Source\n\n\n"
            "def measure(options):\n"
            '    figure = figure_with("toy", "size", 1.0, (0.9, 1.1), unit="nats", n=10, of="toys")\n'
            "    return conclude(\n"
            '        "toy", title="A toy", claim="It is small.", paper_figure="1", ours="1.0", figures=[figure],\n'
            '        checks=[Check(statement="small", value=1.0, bound=2.0, unit="nats")], samples="10 toys",\n'
            '        intervals="95 %", full=True, models=[Source(name="none", sha256="0" * 64)], data=[], threads=1,\n'
            '        seconds=1.0, not_shown=["anything"],\n    )\n\n\n'
            'if __name__ == "__main__":\n'
            '    run_script(lambda: run_study(arguments(full="all of it"), measure))\n'
        },
        edits={
            "src/likely/evidence/papers.toml": [
                (
                    "# Empty arxiv",
                    '\n[[paper]]\nid = "toy"\ntitle = "A toy"\nauthors = "Nobody"\nyear = 2025\narxiv = ""\n'
                    'room = "decoding"\nspec = "speculative"\nclaim = "1"\nfrom = "abstract"\nstate = "built"\n',
                )
            ]
        },
        beside=("tests/reproductions/test_NAME.py", "mkdocs.yml"),
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def project(request, tmp_path):
    """A copy of the project with one thing more; gives a function that runs its command line or a script of it."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "src", root / "src")  # with what is compiled: dates of files are kept
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "reproductions").mkdir()
    shutil.copy(ROOT / "reproductions" / "study.py", root / "reproductions")
    added = ADDITIONS[request.param]
    for path, text in added.new.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    for path, edits in added.edits.items():
        text = (root / path).read_text()
        for line, more in edits:
            at = text.index(f"\n{line}") + 1
            begins_a_block = line.startswith(("def ", "DTYPES", "# ---"))
            at = at if begins_a_block else text.index("\n", at) + 1
            text = text[:at] + more + text[at:]
        (root / path).write_text(text)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "LIKELY_CACHE": private_cache(tmp_path / "cache")}
        program = ["-c", "from likely.cli import main; main()"] if arguments[0] != "python" else []
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments[not program :])],
            cwd=root, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("project", ["drafter"], indirect=True)
def test_a_drafter(project, tiny):
    text = project("generate", "the cat sat on the cat", "-m", tiny, "--temperature", 0, "--max-tokens", 8)
    assert project(
        "generate", "the cat sat on the cat", "-m", tiny, "--temperature", 0, "--max-tokens", 8, "--drafter", "toy"
    ) == text  # fmt: skip
    assert "toy" in project("generate", "--help")


@pytest.mark.parametrize("project", ["estimator"], indirect=True)
def test_an_estimator(project, tiny):
    found = json.loads(
        project(
            "uncertainty", "the cat", "-m", tiny, "--method", "toy", "--method", "g_nll", "--max-tokens", 4, "--json"
        )
    )["uncertainty"]
    assert found["toy"] == pytest.approx(found["g_nll"] + 1)
    assert "toy" in project("uncertainty", "--help")


@pytest.mark.slow
@pytest.mark.parametrize("project", ["recalibrator"], indirect=True)
def test_a_recalibrator(project, tmp_path):
    lines = tmp_path / "labelled.jsonl"
    lines.write_text(
        "".join(json.dumps({"confidence": (i % 10 + 0.5) / 10, "correct": int(i % 10 > 4)}) + "\n" for i in range(80))
    )
    made = tmp_path / "toy.json"
    project("calibrate", "fit", lines, "--method", "toy", "-o", made)
    assert json.loads(made.read_text())["recalibrator"]["method"] == "toy"
    assert project("calibrate", "eval", lines, "--calibrator", made)


@pytest.mark.parametrize("project", ["verb"], indirect=True)
def test_a_verb(project):
    assert project("toy") == "a toy\n" and "Say that it is a toy." in project("--help")


@pytest.mark.slow
@pytest.mark.parametrize("project", ["runtime"], indirect=True)
def test_a_runtime(project, tiny):
    found = json.loads(
        project("score", "-m", tiny, "--runtime", "toys", "--prompt", "the", "--answer", " cat", "--json")
    )
    assert found["runtime"] == "toys"
    assert project("generate", "the", "-m", tiny, "--runtime", "toys", "--drafter", "lookup", "--max-tokens", 4)
    assert "toys" in project("score", "--help")


@pytest.mark.parametrize("project", ["reproduction"], indirect=True)
def test_a_reproduction(project, tmp_path):
    (tmp_path / "project" / "results").mkdir()
    project("python", "reproductions/toy.py")
    assert json.loads((tmp_path / "project" / "results" / "toy.json").read_text())["checks"]
    assert "A toy" in project("papers", "--json") or "toy" in project("papers")


def listed_in_contributing():
    """Kind -> files, from CONTRIBUTING.md's list."""
    _, _, text = (ROOT / "CONTRIBUTING.md").read_text().partition("<!-- adding -->")
    items = re.findall(r"- \*\*(\w+)\*\*: (.*?)(?=\n- |\Z)", text.partition("<!-- end -->")[0], re.S)
    return {kind: set(re.findall(r"`([^`]+)`", files)) for kind, files in items}


def test_contributing_lists_these_files_and_they_are_few():
    assert listed_in_contributing() == {kind: added.files for kind, added in ADDITIONS.items()}
    for kind, added in ADDITIONS.items():
        assert len(added.files) <= added.most, kind
        for path in added.files:
            if "NAME" not in path:
                assert (ROOT / path).is_file(), path
