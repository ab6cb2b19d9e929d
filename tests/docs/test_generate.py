"""The documentation's tables come from results files, and --check sees any difference."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from sample_evidence import evidence

from likely.errors import DataError
from likely.evidence import read_results, write_result

ROOT = Path(__file__).parents[2]


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """The script, on a copy of the files that it reads and writes, with the README's outputs filled."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    (tmp_path / "docs" / "papers").mkdir(parents=True)
    write_result(evidence(id="runtime_parity", mode="full"), tmp_path / "results")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "output_of", lambda command: f"output of {command}")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
        return module.main()

    module.run = run
    assert run("--outputs") == 0
    return module


def test_writing_then_checking_agrees(docs, capsys):
    assert docs.run("--check") == 0 and "agree" in capsys.readouterr().out
    text = (docs.ROOT / "README.md").read_text()
    assert "@@" not in text and "0.5 [0.4, 0.6]" in text
    assert docs.run() == 0 and (docs.ROOT / "README.md").read_text() == text
    page = (docs.ROOT / "docs" / "papers" / "runtime_parity.md").read_text()
    for word in ("It is small.", "large models", "python reproductions/trial.py", "a" * 64, "95 %, bootstrap", "nats"):
        assert word in page


def test_a_study_without_a_model_file_says_so(docs):
    from likely.evidence.papers import index

    entry = next(entry for entry in index() if entry.id == "runtime_parity")
    assert "No model file" not in docs.paper_page(entry, evidence(id="runtime_parity"))
    page = docs.paper_page(entry, evidence(id="runtime_parity", models=[]))
    assert page.endswith("No model file is needed.\n\n")


def test_a_typed_number_is_found(docs, capsys):
    readme = docs.ROOT / "README.md"
    readme.write_text(readme.read_text().replace("0.5 [0.4, 0.6]", "0.4 [0.3, 0.5]"))
    assert docs.run("--check") == 1
    out = capsys.readouterr().out
    assert "-|" in out.replace(" ", "") and "0.4 [0.3, 0.5]" in out and "run: python docs/generate.py" in out


def test_a_changed_result_makes_the_tables_old(docs):
    path = docs.ROOT / "results" / "runtime_parity.json"
    path.write_text(path.read_text().replace('"ours": "0.5 nats"', '"ours": "0.7 nats"'))
    assert docs.run("--check") == 1
    assert docs.run() == 0 and docs.run("--check") == 0
    assert "0.7 nats" in (docs.ROOT / "docs" / "papers" / "index.md").read_text()
    speeds = docs.ROOT / "benchmarks" / "results" / "decode.json"
    record = json.loads(speeds.read_text())
    record["models"]["smollm2"]["ratio"]["median"] = 9.876
    speeds.write_text(json.dumps(record))
    assert docs.run("--check") == 1


def test_check_changes_nothing(docs):
    (docs.ROOT / "docs" / "papers" / "index.md").write_text("old")
    before = {p: p.read_bytes() for p in docs.ROOT.rglob("*") if p.is_file()}
    assert docs.run("--check") == 1
    assert {p: p.read_bytes() for p in docs.ROOT.rglob("*") if p.is_file()} == before


def test_a_page_without_its_result_is_removed(docs, capsys):
    stray = docs.ROOT / "docs" / "papers" / "gone.md"
    stray.write_text(f"# Gone\n\n{docs.NOTE}")
    by_hand = docs.ROOT / "docs" / "papers" / "notes.md"
    by_hand.write_text("# Notes\n")
    assert docs.run("--check") == 1 and "gone.md" in capsys.readouterr().out
    assert docs.run() == 0 and not stray.exists() and by_hand.exists()


def test_lost_markers_and_changed_commands_are_errors(docs):
    readme = docs.ROOT / "README.md"
    text = readme.read_text()
    readme.write_text(text.replace("<!-- generated: speed -->\n", ""))
    with pytest.raises(DataError, match="one marked part each"):
        docs.run("--check")
    readme.write_text(text.replace("--max-tokens 24 --seed 1\n", "--max-tokens 25 --seed 1\n"))
    with pytest.raises(DataError, match="the command that made the output of generate"):
        docs.run("--check")
    readme.write_text(text.replace(f"output of {docs.COMMANDS['score'][0]}\n", ""))
    with pytest.raises(DataError, match="the output of score is empty"):
        docs.run("--check")
    readme.write_text(text)
    write_result(evidence(id="unheard_of"), docs.ROOT / "results")
    with pytest.raises(DataError, match=r"unheard_of.json has no entry"):
        docs.run("--check")


def test_the_index_names_all_papers_and_their_state(docs):
    from likely.evidence.papers import papers

    text = (docs.ROOT / "docs" / "papers" / "index.md").read_text()
    assert text.count("| planned |") == sum(p.state == "planned" for p in papers())
    for entry in papers():
        assert f"`{entry.id}`" in text
    assert "[Runtime parity: does every engine give the same number?](runtime_parity.md)" in text


def test_the_documentation_of_this_checkout_agrees_with_its_results(monkeypatch, capsys):
    assert "runtime_parity" in read_results(ROOT / "results")
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert module.main() == 0, capsys.readouterr().out
