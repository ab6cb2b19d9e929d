"""likely prompts reask: items, rules and a budget in; risks and second answers out."""

from __future__ import annotations

import json

import pytest

HAM = ["see you at home", "thanks a lot", "home by nine", "thanks for lunch", "are you home", "lunch at nine"]
SPAM = [
    "win a free prize",
    "free entry call now",
    "call now to win",
    "a free prize for you",
    "win cash now",
    "call now",
]
RULES = [
    {"label": "spam", "pattern": "free", "text": "It offers something free."},
    {"label": "spam", "pattern": "(win|call)", "name": "win or call"},
    {"label": "ham", "pattern": "thanks"},
    {"label": "ham", "pattern": "home"},
]
USUAL = ("--labels", "ham,spam", "--instruction", "Spam or ham?", "--threads", 1)


def one_line(done, code):
    assert done.code == code and len(done.err.splitlines()) == 1, done.err
    return done.err


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def rules(tmp_path):
    return write(tmp_path / "rules.jsonl", RULES)


@pytest.fixture
def items(tmp_path):
    """Right answers but for the first message of each kind; three times over."""
    records = []
    for label, texts in (("ham", HAM), ("spam", SPAM)):
        for i, text in enumerate(texts * 3):
            answer = label if i else {"ham": "spam", "spam": "ham"}[label]
            records.append({"text": text, "answer": answer, "label": label})
    return write(tmp_path / "items.jsonl", records)


def test_override_mends_what_rules_know(cli, tiny, items, rules, tmp_path):
    out = tmp_path / "out.jsonl"
    how = ("--rules", rules, *USUAL, "-m", tiny, "--policy", "override", "--budget", 0.1, "-o", out)
    found = cli("prompts", "reask", items, *how, "--json").json
    header, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert header["kind"] == "reask" and header["settings"]["budget"] == 0.1 and len(lines) == 36
    assert found["items"] == 36 and found["chosen"] == 2 and found["asked"] == 0 and found["labelled"] == 36
    assert found["before"]["accuracy"] == pytest.approx(34 / 36) and found["after"]["accuracy"] == 1
    assert found["risk_auroc"] > 0.95
    risks = [line["risk"] for line in lines]
    assert all(0 <= r <= 1 for r in risks) and lines[0]["chosen"] and lines[18]["chosen"]
    assert lines[0]["answer"] == "spam" and lines[0]["final"] == "ham" and lines[0]["rules"] == ["rule 4"]
    assert lines[18]["rules"] == ["rule 1", "win or call"]
    assert sum(line["chosen"] for line in lines) == 2 and min(risks) < 0.5  # the next risk is shared by more than fit
    kept = out.read_bytes()
    assert cli("prompts", "reask", items, *how).code == 0 and out.read_bytes() == kept
    assert "another settings" in one_line(cli("prompts", "reask", items, *how[:-3], 0.2, "-o", out), 1)
    assert out.read_bytes() == kept


def test_a_file_belongs_to_all_of_its_items(cli, tiny, items, rules, tmp_path, monkeypatch):
    """Refused, or told again, before the model and the harmonizer do any work."""
    out, texts = tmp_path / "out.jsonl", items.read_text().splitlines(keepends=True)
    call = ("prompts", "reask", items, "--rules", rules, *USUAL, "-m", tiny, "--budget", 0.25, "-o", out)
    first = cli(*call, "--json").json
    kept = out.read_bytes()
    out.write_bytes(b"\n".join(kept.split(b"\n")[:7]) + b"\n")
    assert cli(*call, "--json").json == first and out.read_bytes() == kept  # cut in the middle of the writing

    def fit(*args):
        raise AssertionError("fitted")

    monkeypatch.setattr("likely.weak_supervision.harmonizer.Harmonizer.fit", fit)
    assert cli(*call, "--json").json == first and out.read_bytes() == kept
    assert "another items_sha256" in one_line(cli(*call, "--limit", 20), 1)
    items.write_text("".join([*texts, json.dumps({"text": "one more", "answer": "ham"}) + "\n"]))
    assert "another items_sha256" in one_line(cli(*call), 1)
    items.write_text("".join(texts))
    assert "another settings" in one_line(cli(*call, "--seed", 1), 1) and out.read_bytes() == kept


def test_null_is_not_known_and_a_worked_item_is_refused(cli, tiny, rules, tmp_path):
    records = [{"text": text, "answer": "ham", "label": None} for text in HAM] + [{"text": t} for t in SPAM]
    items = write(tmp_path / "items.jsonl", [*records, {"text": "so long", "answer": None}])
    usual = ("prompts", "reask", items, "--rules", rules, *USUAL, "-m")
    done = cli(*usual, tiny, "--policy", "override")
    assert done.code == 0 and {line["label"] for line in done.lines[1:]} == {None} and "accuracy" not in done.err
    worked = write(tmp_path / "worked.jsonl", [{"text": "hello", "label": "ham"}, {"text": "So  LONG", "label": "ham"}])
    error = one_line(cli(*usual, "no-such-model", "--examples", worked), 1)
    assert "items.jsonl:13 is also worked example 2, whose answer stands in the prompt" in error
    write(worked, [{"text": "hello", "label": None}, {"text": "you", "label": "ham"}])
    assert 'worked.jsonl:1: a worked example needs its "label"' in one_line(cli(*usual, tiny, "--examples", worked), 1)


def test_evidence_asks_only_within_the_budget(cli, tiny, items, rules):
    done = cli("prompts", "reask", items, "--rules", rules, *USUAL, "-m", tiny, "--budget", 0.25)
    assert done.code == 0 and done.lines[0]["kind"] == "reask"
    lines = done.lines[1:]
    asked = [line for line in lines if line["asked"]]
    assert 0 < len(asked) <= 9 and all(line["rules"] and sum(line["probs"]) == pytest.approx(1) for line in asked)
    assert all(line["final"] == line["answer"] and line["probs"] is None for line in lines if not line["asked"])
    chosen = [line["risk"] for line in lines if line["chosen"]]
    assert min(chosen) > max(line["risk"] for line in lines if not line["chosen"])
    assert "asked again (evidence)" in done.err and "accuracy before 0.944" in done.err


def test_items_without_an_answer_are_asked_first(cli, tiny, tmp_path, rules):
    items = write(tmp_path / "bare.jsonl", [{"text": text} for text in HAM + SPAM])
    done = cli("prompts", "reask", items, "--rules", rules, *USUAL, "-m", tiny, "--policy", "reconsider")
    assert done.code == 0 and {line["answer"] for line in done.lines[1:]} <= {"ham", "spam"}
    assert sum(line["asked"] for line in done.lines[1:]) <= 2 and "accuracy" not in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a", "answer": "spma"}, 'answer "spma"; did you mean "spam"'),
        ({"answer": "spam"}, 'field "text" must be a text'),
        ({"text": "a", "label": "eggs"}, "allowed: ham, spam"),
    ],
)
def test_wrong_items_are_one_line(cli, tiny, tmp_path, rules, line, said):
    items = write(tmp_path / "items.jsonl", [{"text": "b"}, line])
    done = cli("prompts", "reask", items, "--rules", rules, *USUAL, "-m", tiny)
    assert said in one_line(done, 1) and "items.jsonl:2" in done.err


def test_wrong_use_is_one_line(cli, tiny, items, rules, tmp_path):
    usual = ("prompts", "reask", items, "--rules", rules, "-m", tiny, "--instruction", "?")
    assert "at least 2 different names" in one_line(cli(*usual, "--labels", "ham"), 2)
    assert "choose another file" in one_line(cli(*usual, "--labels", "ham,spam", "-o", items), 2)
    assert cli(*usual, "--labels", "ham,spam", "--budget", 1.5).code == 2
    bad = write(tmp_path / "bad.jsonl", [{"label": "ham", "pattern": "("}])
    done = cli("prompts", "reask", items, "--rules", bad, *USUAL, "-m", tiny)
    assert "bad.jsonl:1" in one_line(done, 1)
