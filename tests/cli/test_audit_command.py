"""likely audit: from a file of cases to a report, resumed, and people's judgements at a terminal."""

from __future__ import annotations

import json

import pytest

from likely.audit.review import Criterion, ReviewItem, ReviewQueue


@pytest.fixture
def cases(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(
        json.dumps({"id": f"c{i}", "segments": {"context": f"the cat {i}", "question": "who?"},
                    "choices": ["the cat", "a hat"], "answer": i % 2}) + "\n"
        for i in range(6)
    ))  # fmt: skip
    return path


def test_ablate_reports_and_goes_on(cli, tiny, cases, tmp_path):
    out, page, text = tmp_path / "out.jsonl", tmp_path / "report.html", tmp_path / "report.md"
    command = ("audit", "ablate", cases, "-m", tiny, "--threads", 1, "--segments", "context", "--control",
               "shuffle:context", "--guard", "context", "--cut", "context", "-o", out)  # fmt: skip
    found = cli(*command, "--report", page, "--report", text, "--json").json
    assert found["header"]["settings"]["controls"] == ["shuffle:context"] and len(found["cases"]) == 6
    assert found["header"]["kind"] == "audit ablate" and found["config"] in page.read_text()
    assert found["verdicts"][0].removeprefix("- ") in text.read_text()
    whole = out.read_bytes()
    out.write_bytes(whole[:900])
    assert cli(*command, "--json").json == found and out.read_bytes() == whole
    shown = cli(*command)
    assert shown.code == 0 and found["verdicts"][0] in shown.out
    other = cli(*command, "--seed", 1)
    assert other.code == 1 and "another settings" in other.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--segments", "contxt"), 'no segment "contxt"'),
        (("--segments", "context", "--control", "shake:context"), "unknown control"),
        (("--segments", "context", "--report", "x.pdf"), "must end in"),
    ],
)
def test_wrong_options_are_one_line_before_a_model_is_loaded(cli, cases, options, message):
    done = cli("audit", "ablate", cases, "-m", "no-such-model", *options)
    assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1


@pytest.fixture
def queue(tmp_path):
    criteria = (Criterion("relevance", "Same meaning?"), Criterion("diversity", "Other words?"))
    items = [ReviewItem(f"i{n}", {"probe": f"text {n}"}, {"writer": "hidden"}) for n in range(3)]
    return ReviewQueue.create(tmp_path / "queue.jsonl", criteria, items).path


def test_review_at_a_terminal_goes_on_after_q(cli, queue, tmp_path):
    first = cli("audit", "review", queue, "--annotator", "anna", stdin="3\nx\n2\nwell said\nq\n")
    assert first.code == 0 and "must be one of 1, 2, 3" in first.err and "2 left" in first.err
    assert "hidden" not in first.out and "1 of 3" in first.out
    second = cli("audit", "review", queue, "-a", "anna", stdin="3\n2\n\n1\n1\n\n")
    assert "1 of 2" in second.out and "nothing is left" in second.err
    votes = tmp_path / "votes.csv"
    votes.write_text("annotator,item,relevance,diversity\n" + "".join(f"bert,i{n},3,2\n" for n in range(3)))
    found = cli("audit", "review", queue, "--import", votes, "--freeze", "--json").json
    assert found["votes"] == 6 and found["frozen"] and found["agreement"][0]["measure"] == "kappa"
    assert ReviewQueue.open(queue).votes[0].reason == "well said"
    assert "frozen" in cli("audit", "review", queue, "--import", votes).err
    assert "relevance" in cli("audit", "review", queue).out


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        {"id": f"q{i}", "question": f"the cat {i}", "choices": ["the cat", "a hat"], "answer": i % 2} for i in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_probes_from_making_to_a_report(cli, tiny, questions, tmp_path):
    probes, queue, template = tmp_path / "probes.jsonl", tmp_path / "queue.jsonl", tmp_path / "template.json"
    made = cli("audit", "probes", "make", questions, "-m", tiny, "--threads", 1, "--n", 2, "-o", probes,
               "--template", "naive", "--json").json  # fmt: skip
    assert made["questions"] == 4 and made["probes"] == 8
    lines = [json.loads(line) for line in probes.read_text().splitlines()]
    for i, line in enumerate(lines[1:]):  # what a model of random weights writes passes no screen
        line.update(failed=[], text=f"say cat {i}")
    probes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "was made with another" in cli("audit", "probes", "make", questions, "-m", tiny, "-o", probes).err
    assert "8 probes" in cli("audit", "probes", "queue", questions, probes, "-o", queue).out
    votes = tmp_path / "votes.csv"
    rows = [f"{who},q{i}/{k},3,3\n" for who in ("anna", "bert") for i in range(4) for k in range(2)]
    votes.write_text("annotator,item,relevance,diversity\n" + "".join(rows))
    assert cli("audit", "review", queue, "--import", votes, "--json").json["pass_rate"] == 1
    assert "frozen: naive" in cli("audit", "probes", "freeze", queue, "-o", template, "--template", "naive").out
    same = cli("audit", "probes", "run", questions, probes, "-m", tiny, "--threads", 1)
    assert same.code == 1 and "take another writer" in same.err
    command = ("audit", "probes", "run", questions, probes, "-m", tiny, "--threads", 1, "--allow-self")
    found = cli(*command, "--json", "--report", tmp_path / "page.html").json
    assert len(found["cases"]) == 4 and found["cases"][0]["probes"] == 2 and (tmp_path / "page.html").exists()


@pytest.mark.parametrize("n", [1, 3])
def test_probes_that_were_stopped_go_on(cli, tiny, questions, tmp_path, monkeypatch, n):
    from likely.audit import probes as room

    command = ("audit", "probes", "make", questions, "-m", tiny, "--threads", 1, "--n", n, "--template", "naive")
    monkeypatch.setattr("likely.cli.verbs.audit.probes.TOGETHER", 2)
    cli(*command, "-o", tmp_path / "whole.jsonl")
    write, calls = room.write_probes, []

    def stopped(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments, **settings)

    monkeypatch.setattr(room, "write_probes", stopped)
    part = cli(*command, "-o", tmp_path / "part.jsonl")
    assert part.code == 130 and f"stopped: {2 * n} new" in part.err
    assert cli(*command, "-o", tmp_path / "part.jsonl", "--json").json["probes"] == 4 * n
    assert len(calls) == 3 and (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_mermaid_checks_a_diagram_and_measures_flows(cli, tiny, tmp_path):
    diagram, flows = tmp_path / "a.mmd", tmp_path / "flows.jsonl"
    diagram.write_text("sequenceDiagram\nA->>B: x\n")
    assert cli("audit", "mermaid", diagram).out == "valid: 2 participants, 1 messages\n"
    diagram.write_text("sequenceDiagram\nA->B\n")
    done = cli("audit", "mermaid", diagram)
    assert done.code == 1 and "line 2, column 5" in done.err
    assert cli("audit", "mermaid", tmp_path / "none.mmd").err.count("none.mmd") == 1
    record = {"id": "f", "input_prompt": "Participants: A, B.", "expected_output": "sequenceDiagram\nA->>B: x\n"}
    flows.write_text(json.dumps(record) + "\n")
    found = cli("audit", "mermaid", flows, "-m", tiny, "--threads", 1, "--modes", "zero-shot,guided",
                "--max-tokens", 40, "--report", tmp_path / "m.md", "--json").json  # fmt: skip
    by = {(f["subject"], f["quantity"]): f["value"] for f in found["findings"]}
    assert by["guided", "valid"] == 1 and found["header"]["settings"]["modes"] == ["zero-shot", "guided"]


def test_all_audits_in_one_report(cli, tiny, cases, questions, tmp_path):
    probes, page = tmp_path / "probes.jsonl", tmp_path / "all.html"
    probes.write_text("".join(
        json.dumps({"line": i, "case": f"q{i}", "number": 0, "text": "say cat", "failed": [], "origin": {}}) + "\n"
        for i in range(4)
    ))  # fmt: skip
    command = ("audit", "all", "-m", tiny, "--threads", 1, "--cases", cases, "--segments", "context", "--questions",
               questions, "--probes", probes, "--limit", 3, "--kept", tmp_path / "kept", "--report", page)  # fmt: skip
    found = cli(*command, "--json").json["reports"]
    titles = [report["title"] for report in found]
    assert titles[0].startswith("Audit of") and len(titles) == 3 and page.read_text().count("<article") == 3
    assert len(found[0]["verdicts"]) == len(found[1]["verdicts"]) + len(found[2]["verdicts"])
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert set(kept) == {"ablate.jsonl", "probes.jsonl"}
    assert cli(*command, "--json").json["reports"] == found
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == kept
    for options in (("--segments", "context"), ("--probes", probes)):
        done = cli("audit", "all", "no-such-model", *options)
        assert done.code == 2 and "given together" in done.err
    assert 'unknown audit "reech"; did you mean "reach"' in cli("audit", "all", "--only", "reech").err


def test_all_audits_without_files_ask_cases_of_their_own(cli, tiny, tmp_path):
    kept, page = tmp_path / "kept", tmp_path / "all.md"
    command = ("audit", "all", tiny, "--threads", 1, "--only", "ablate,exposure", "--limit", 2, "--kept", kept,
               "--report", page)  # fmt: skip
    found = cli(*command, "--json").json["reports"]
    summary, ablate = found[:2]
    assert "made-up questions" in summary["reading"][0] and "passage" in ablate["verdicts"][1]
    assert any(line == "Not run: reach: not asked for" for line in summary["caveats"])
    for one in found:
        assert one["question"].endswith((".", "?")) and one["advice"] and one["reading"] and one["caveats"]
        assert all(line in page.read_text() for line in (*one["advice"], *one["reading"]))
    assert cli(*command, "--json").json["reports"] == found
