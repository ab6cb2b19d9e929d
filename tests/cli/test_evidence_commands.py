"""likely datasets, papers and reproduce, as a stranger would use them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from written_sets import FILES, write_set

from likely.evidence import papers
from likely.io import checkout

ROOT = Path(__file__).parents[2]


def one_line(done, code, *words):
    assert done.code == code, done
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err, done.err


@pytest.fixture
def home(tmp_path):
    write_set(tmp_path / "data", "mixed", FILES)
    return tmp_path / "data"


def test_datasets_lists_and_shows(cli, home):
    done = cli("datasets", "--data-dir", home)
    assert done.code == 0 and "mixed" in done.out and "CC BY 4.0" in done.out
    [card] = cli("datasets", "--data-dir", home, "--json").json["datasets"]
    assert card["name"] == "mixed" and {f["name"] for f in card["files"]} == set(FILES)
    shown = cli("datasets", "mixed", "--data-dir", home)
    assert shown.code == 0 and shown.out.count("sha256 as stated") == len(FILES)


def test_datasets_says_what_is_wrong(cli, home):
    one_line(cli("datasets", "mixd", "--data-dir", home), 1, 'did you mean "mixed"?')
    one_line(cli("datasets", "--data-dir", home / "nowhere"), 1, "nowhere")
    (home / "mixed" / "lines.txt").write_text("changed")
    done = cli("datasets", "mixed", "--data-dir", home)
    one_line(done, 1, "lines.txt", "manifest says")
    assert done.out.count("NOT AS STATED") == 1
    record = json.loads(cli("datasets", "mixed", "--data-dir", home, "--json").out)
    assert [f["name"] for f in record["files"] if not f["verified"]] == ["lines.txt"]


def test_an_empty_data_folder_is_an_empty_list(cli, tmp_path):
    done = cli("datasets", "--data-dir", tmp_path)
    assert done.code == 0 and "0 data sets" in done.out


def test_papers_lists_all_and_by_room(cli):
    rows = cli("papers", "--json").json["papers"]
    assert [row["id"] for row in rows] == [entry.id for entry in papers.index()]
    some = cli("papers", "--room", "serving", "--json").json["papers"]
    assert some and all(row["room"] == "serving" for row in some)
    table = cli("papers", "--room", "sequence")
    assert table.code == 0 and "seqboat" in table.out and "smetimes" not in table.out
    done = cli("papers", "--room", "decodng")
    one_line(done, 2, 'did you mean "decoding"?')


def test_papers_show_our_figure_from_the_results(cli):
    from likely.evidence import read_results

    results = read_results(ROOT / "results")
    for row in cli("papers", "--json").json["papers"]:
        found = results.get(row["id"])
        assert row["ours"] == (found.ours if found else None)


def test_papers_works_without_a_checkout(cli, monkeypatch):
    monkeypatch.setattr("likely.evidence.results.find_checkout", lambda: None)
    assert all(row["ours"] is None for row in cli("papers", "--json").json["papers"])


def test_reproduce_refuses_what_it_cannot_run(cli, monkeypatch, tmp_path):
    one_line(cli("reproduce", "runtime-party"), 1, 'did you mean "runtime_parity"?')
    one_line(cli("reproduce", "../evil"), 1, "no paper or study")
    (tmp_path / "reproductions").mkdir()
    (tmp_path / "reproductions" / "runtime_parity.py").touch()
    monkeypatch.setattr("likely.io.checkout.find_checkout", lambda: tmp_path)
    one_line(cli("reproduce", "prophet"), 1, "has no script in reproductions/", "ready: runtime_parity")
    monkeypatch.setattr(checkout, "find_checkout", lambda: None)
    one_line(cli("reproduce", "runtime_parity"), 1, "checkout")


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("sys.exit(3)", 1), ("sys.exit(2)", 2)])
def test_reproduce_runs_the_script_with_this_interpreter(cli, monkeypatch, tmp_path, ending, code):
    scripts = tmp_path / "reproductions"
    scripts.mkdir()
    (scripts / "runtime_parity.py").write_text(
        f"import sys, pathlib\npathlib.Path('seen').write_text(repr([sys.executable, *sys.argv[1:]]))\n{ending}\n"
    )
    monkeypatch.setattr("likely.io.checkout.find_checkout", lambda: tmp_path)
    assert cli("reproduce", "runtime_parity", "--full").code == code
    assert (tmp_path / "seen").read_text() == repr([sys.executable, "--full"])
