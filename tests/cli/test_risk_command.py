"""likely risk as a stranger would use it: any table with a task file, results that resume, one-line errors."""

from __future__ import annotations

import csv
import json

import pytest
from tiny_gguf import write_tiny_llama

from likely.io.hashes import fingerprint
from likely.prompting.risk.report import order_bias, risk_report

CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TASK = """
target = "ill"
question = "Is the patient ill?"
word_question = "Is the patient {options}?"
description = "Patients of a clinic."
[[choice]]
code = "0"
text = "No"
word = "well"
value = 0
[[choice]]
code = "1"
text = "Yes"
word = "ill"
value = 1
[[column]]
name = "age"
unit = "years"
[[column]]
name = "smokes"
[column.values]
"0" = "no"
"1" = "yes"
"""


def one_line(done, code):
    assert done.code == code and len(done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err and not done.out
    return done.err


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "clinic.toml"
    path.write_text(TASK)
    return path


def rows(n=30, first=20):
    return [{"age": str(first + i), "smokes": str(i % 2), "sex": "fm"[i % 3 == 0], "ill": str((i * 7) % 3 % 2)}
            for i in range(n)]  # fmt: skip


def table(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return path
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def results(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_table_of_ones_own(cli, tiny, task, tmp_path):
    people = table(tmp_path / "people.csv", rows())
    done = cli("risk", people, "--task", task, "-m", tiny, "-o", tmp_path / "r.jsonl", "--subgroup", "sex")
    assert done.code == 0, done.err
    assert '30 of 30 rows, risk of "Yes"' in done.out and "order_bias" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[-2:]] == ["f", "m"]  # the larger first
    header, *records = results(tmp_path / "r.jsonl")
    assert header["kind"] == "risk" and header["settings"]["task"] == "task" and len(records) == 30
    for record, row in zip(records, rows(), strict=True):
        assert record["label"] == int(row["ill"]) and sum(record["probs"]) == pytest.approx(1)
        assert record["risk"] == pytest.approx(sum(record["per_order"]) / 2) and 0 <= record["risk"] <= 1
    summary = cli("risk", people, "--task", task, "-m", tiny, "--json").json
    expected = risk_report([r["risk"] for r in records], [r["label"] for r in records])
    for name in ("auc", "ece_top", "ece_positive", "brier", "mean", "base_rate"):
        assert summary[name] == pytest.approx(expected[name], abs=1e-6), name
    bias = order_bias([r["choice_probs"] for r in records], [(0, 1), (1, 0)], [0, 1])
    assert summary["order_bias"] == pytest.approx(bias.order_bias, abs=1e-6)


def test_jsonl_tsv_and_standard_input_give_the_same_risks(cli, tiny, task, tmp_path):
    records = rows(6)
    csv_file = table(tmp_path / "t.csv", records)
    (tmp_path / "t.tsv").write_text(csv_file.read_text().replace(",", "\t"))
    sources = [csv_file, table(tmp_path / "t.jsonl", records), tmp_path / "t.tsv", "-"]
    found = []
    for n, source in enumerate(sources):
        out = tmp_path / f"r{n}.jsonl"
        stdin = csv_file.read_text() if source == "-" else None
        assert cli("risk", source, "--task", task, "-m", tiny, "-o", out, stdin=stdin).code == 0
        found.append([r["risk"] for r in results(out)[1:]])
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("style", ["mc", "numeric", "cot"])
def test_other_styles(cli, task, tmp_path, style):
    tiny = write_tiny_llama(tmp_path / "roomy.gguf", context=1024)
    people = table(tmp_path / "people.csv", rows(4))
    done = cli("risk", people, "--task", task, "-m", tiny, "--style", style, "--json")
    assert done.code == 0, done.err
    assert done.json["style"] == style and done.json["rows"] == 4
    if style == "cot":  # a tiny model states nothing
        assert done.json["n"] == 0 and done.json["parse_rate"] == 0
        said = cli("risk", people, "--task", task, "-m", tiny, "--style", style)
        assert "none of 4 rows has a probability" in said.out
    else:
        assert ("order_bias" in done.json) == (style == "mc") and done.json["parse_rate"] == 1


def test_a_run_that_was_cut_goes_on(cli, tiny, task, tmp_path):
    people, out = table(tmp_path / "people.csv", rows(8)), tmp_path / "r.jsonl"
    call = ("risk", people, "--task", task, "-m", tiny, "-o", out)
    assert cli(*call).code == 0
    whole = out.read_bytes()
    out.write_bytes(b"\n".join(whole.split(b"\n")[:4]) + b'\n{"line": 4, "in')
    again = cli(*call)
    assert again.code == 0 and out.read_bytes() == whole and "8 of 8 rows" in again.out
    table(people, rows(8, first=21))
    assert "has changed" in one_line(cli(*call), 1)
    table(people, rows(8))
    assert "was made with another settings" in one_line(cli(*call, "--style", "mc"), 1)
    assert cli(*call, "--style", "mc", "--overwrite").code == 0


def test_few_shot_and_unlabelled_rows(cli, tiny, task, tmp_path):
    people = table(tmp_path / "people.csv", [{k: v for k, v in row.items() if k != "ill"} for row in rows(3)])
    worked = table(tmp_path / "worked.csv", rows(5, first=60))
    call = ("risk", people, "--task", task, "-m", tiny, "--one-order", "--json")
    plain, few = cli(*call).json, cli(*call, "--few-shot", 1, "--examples", worked).json
    assert plain["mean"] != few["mean"] and few["few_shot"] == 1 and few["examples_sha256"]
    assert "auc" not in plain and "order_bias" not in plain and plain["n"] == 3
    said = cli("risk", people, "--task", task, "-m", tiny)
    assert "no outcomes in the table, nothing to check" in said.out
    assert "--examples" in one_line(cli(*call, "--few-shot", 1), 2)
    assert "its own example" in one_line(cli(*call, "--few-shot", 1, "--examples", people), 2)
    assert "no reasoning" in one_line(cli(*call, "--few-shot", 1, "--examples", worked, "--style", "cot"), 2)
    assert "9 worked examples are wanted, 5 rows" in one_line(cli(*call, "--few-shot", 9, "--examples", worked), 1)


def test_a_worked_row_is_not_scored(cli, task, tmp_path):
    """Before a model is loaded; rows that differ in one column, shown or not, are different rows."""
    people, worked = table(tmp_path / "people.csv", rows(6)), tmp_path / "worked.csv"
    call = ("risk", people, "--task", task, "-m", "no-such-model", "--few-shot", 1, "--examples")
    table(worked, [{**rows(6)[3], "sex": rows(6)[3]["sex"].upper(), "smokes": " 1"}])
    assert "people.csv: row 4 is also one of the worked examples" in one_line(cli(*call, worked), 1)
    table(worked, [{**rows(6)[3], "sex": "x"}])
    assert "no-such-model" in one_line(cli(*call, worked), 1)
    assert "--few-shot" in one_line(cli(*call[:-3], "--examples", worked), 2)


def test_what_a_risk_depends_on_is_in_the_header(cli, task, tmp_path):
    people, out = table(tmp_path / "people.csv", rows(4)), tmp_path / "r.jsonl"
    chatty = write_tiny_llama(tmp_path / "chatty.gguf", context=1024, chat_template=CHAT)
    call = ("risk", people, "--task", task, "-m", chatty, "-o", out)
    assert cli(*call, "--context", 512).code == 0
    header = results(out)[0]
    assert header["settings"]["context"] == 512 and header["template"] is None
    assert "was made with another settings" in one_line(cli(*call, "--context", 256), 1)
    assert cli(*call, "--chat", "--overwrite").code == 0
    assert results(out)[0]["template"] == fingerprint(CHAT)


def test_outcomes_in_between_are_counted_and_teach_nothing(cli, tiny, tmp_path):
    task, people = tmp_path / "three.toml", tmp_path / "people.csv"
    task.write_text(TASK + '[[choice]]\ncode = "2"\ntext = "A little"\nword = "unwell"\nvalue = 0.5\n')
    records = [{**row, "ill": str(i % 3)} for i, row in enumerate(rows(12))]
    call = ("risk", table(people, records), "--task", task, "-m", tiny)
    found = cli(*call, "--json").json
    assert found["rows"] == 12 and found["n"] == 8 and found["outcomes_between"] == 4
    assert "4 rows with an outcome between 0 and 1 are left out" in cli(*call).out
    table(people, [{**row, "ill": "2"} for row in records])
    assert "no outcomes of 0 or 1 in the table" in cli(*call).out
    assert "outcomes_between" not in cli("risk", table(people, rows(4)), "--task", task, "-m", tiny, "--json").json


@pytest.mark.slow
def test_risks_can_be_calibrated(cli, tiny, task, tmp_path):
    people, out = table(tmp_path / "people.csv", rows(60)), tmp_path / "r.jsonl"
    summary = cli("risk", people, "--task", task, "-m", tiny, "-o", out, "--json").json
    before = cli("calibrate", "eval", out, "--json").json
    assert before["n"] == 60 and before["brier"] == pytest.approx(summary["brier"])
    made = cli("calibrate", "fit", out, "--method", "platt", "-o", tmp_path / "cal.json", "--json").json
    assert made["binding"] is None and made["after"]["ece"] < made["before"]["ece"]
    assert "-o cal.json" in one_line(cli("calibrate", "fit", out, "--method", "platt"), 2)


def test_one_outcome_only(cli, tiny, task, tmp_path):
    people = table(tmp_path / "people.csv", [{**row, "ill": "0"} for row in rows(5)])
    done = cli("risk", people, "--task", task, "-m", tiny, "--subgroup", "sex")
    assert done.code == 0 and "every outcome is 0: the AUC is not defined" in done.out
    assert "one outcome only" in done.out
    assert cli("risk", people, "--task", task, "-m", tiny, "--json").json["auc"] is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"),
        (b"age,smokes,ill\n", "holds no rows"),
        (b"age,ill\n30,1\n", 'row 1: column "smokes" is missing'),
        (b"age,smokes,ill\n30,1,0\n31,7,0\n", 'row 2: "smokes": no text for the value "7"'),
        (b"age,smokes,ill\n30,1,yes\n", 'row 1: target "ill": unknown value "yes"'),
        (b"age,smokes,ill\n\xff\xfe,1,0\n", "not UTF-8"),
        (b"age,smokes,ill\n30,1\n", "2 cells, the header has 3"),
    ],
)
def test_a_bad_table_is_told_before_a_model_is_loaded(cli, task, tmp_path, raw, message):
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    error = one_line(cli("risk", path, "--task", task, "-m", "no-such-model"), 1)
    assert message in error and "t.csv" in error


def test_what_else_is_refused(cli, tiny, task, tmp_path):
    people = table(tmp_path / "people.csv", rows(3))
    call = ("risk", people, "-m", tiny)
    assert "cannot read" in one_line(cli("risk", tmp_path / "no.csv", "--task", task, "-m", tiny), 1)
    assert 'no task is called "adlut"' in one_line(cli(*call, "--task", "adlut"), 1)
    assert 'no column "gender"' in one_line(cli(*call, "--task", task, "--subgroup", "gender"), 2)
    assert "replace the input" in one_line(cli(*call, "--task", task, "-o", people), 2)
    assert "--task" in one_line(cli(*call), 2)
    leak = tmp_path / "leak.toml"
    leak.write_text(TASK + '[[column]]\nname = "ill"\n')
    assert 'the target "ill" is among the features' in one_line(cli(*call, "--task", leak), 1)
    for text, message in (
        ("x", "not TOML"),
        (TASK.replace("value = 1", 'value = "high"'), "must be a number"),
        (TASK.replace("value = 1", "value = 0.5"), "span 0 to 1"),
        (TASK.replace("target", "goal"), 'unknown field "goal"'),
        (TASK + "bands = 3\n", "unknown field|table of texts"),
    ):
        leak.write_text(text)
        error = one_line(cli(*call, "--task", leak), 1)
        assert any(part in error for part in message.split("|")) and "leak.toml" in error
