"""likely replay on small files, in-process."""

from __future__ import annotations

import json

import pytest

CHAT = [
    {"role": "user", "content": "the cat sat on the mat"},
    {"role": "assistant", "content": "the cat sat on the mat and ran"},
]


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def ids(tmp_path):
    """Two answers that copy their prompt after a beginning of their own; no model is needed."""
    return lines(
        tmp_path / "ids.jsonl",
        {"prompt_ids": [1, 2, 3, 4, 5, 6, 7, 8], "answer_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]},
        {"prompt_ids": [11, 12, 13], "answer_ids": [14, 15]},
    )


def test_known_numbers_in_the_table_and_as_json(cli, ids):
    done = cli("replay", ids, "--drafter", "copy", "--json")
    (copy,) = done.json["drafters"]
    # 1, 2, 3 come one by one; then one call for 4..8 and 9; then two for the other answer
    assert (copy["calls"], copy["tokens_per_call"]) == (6, 11 / 6)
    assert copy["acceptance_rate"] == 1.0 and copy["drafted_per_call"] == 5 / 6
    assert copy["interval"][0] <= 11 / 6 <= copy["interval"][1] and "curve" not in copy
    assert done.json["answers"] == 2 and done.json["tokens"] == 11 and "model" not in done.json
    shown = cli("replay", ids, "--drafter", "copy").out.splitlines()
    assert "2 answers of 11 tokens" in shown[0] and shown[2].split()[:2] == ["copy", "1.83"] and "100.0%" in shown[2]


def test_the_budget_and_the_limit_count(cli, ids):
    one = cli("replay", ids, "--drafter", "copy", "--budget", "2", "--json").json["drafters"][0]
    assert one["calls"] == 7 and one["budget"] == 2
    assert cli("replay", ids, "--drafter", "copy", "--limit", "1", "--json").json["answers"] == 1


def test_all_drafters_that_need_no_model_by_default(cli, ids):
    found = cli("replay", ids, "--json").json["drafters"]
    assert [entry["drafter"] for entry in found] == ["lookup", "copy", "suffix", "trigram"]
    both = cli("replay", ids, "--drafter", "copy", "--drafter", "copy+lookup", "--drafter", "copy", "--json").json
    assert [entry["drafter"] for entry in both["drafters"]] == ["copy", "copy+lookup"]


def test_curves_as_bars_and_as_a_picture(cli, ids, tmp_path):
    pytest.importorskip("matplotlib")
    shown = cli("replay", ids, "--drafter", "copy", "--plot", "terminal")
    bars = [line for line in shown.out.splitlines() if "#" in line]
    assert [len(line.split("#")) for line in bars] == sorted(len(line.split("#")) for line in bars) and len(bars) == 7
    picture = tmp_path / "gain.png"
    done = cli("replay", ids, "--drafter", "copy", "--drafter", "lookup", "--plot", picture, "--json")
    assert picture.read_bytes()[:4] == b"\x89PNG" and f"wrote {picture}" in done.err
    curve = done.json["drafters"][0]["curve"]
    assert [point["budget"] for point in curve] == [1, 2, 4, 8, 10, 16, 32]
    assert cli("replay", ids, "--plot", tmp_path / "gain.txt").code == 2
    assert cli("replay", ids, "--plot", "terminal", "--json").code == 2


def test_text_and_chats_take_a_model_s_tokenizer(cli, tiny, tmp_path):
    file = lines(
        tmp_path / "text.jsonl",
        {"prompt": "the cat sat", "answer": " on the mat", "other": 1},
        {"prompt_ids": [5, 6], "answer_ids": [7]},
    )
    done = cli("replay", file, "-m", tiny, "--drafter", "ngram", "--drafter", "lookup", "--json")
    assert [entry["drafter"] for entry in done.json["drafters"]] == ["ngram", "lookup"]
    assert done.json["answers"] == 2 and done.json["tokenizer"]
    piped = cli("replay", "-", "-m", tiny, "--drafter", "lookup", "--json", stdin=file.read_bytes())
    assert piped.json["drafters"][0]["calls"] == done.json["drafters"][1]["calls"]


@pytest.mark.slow
@pytest.mark.real
def test_a_chat_with_and_without_its_answer_apart(cli, tmp_path, smollm2_path):
    whole = lines(tmp_path / "whole.jsonl", {"messages": CHAT})
    apart = lines(tmp_path / "apart.jsonl", {"messages": CHAT[:1], "answer": CHAT[1]["content"]})
    found = [cli("replay", file, "-m", smollm2_path, "--drafter", "copy", "--json").json for file in (whole, apart)]
    calls = [record["drafters"][0]["calls"] for record in found]
    assert calls[0] == calls[1] and found[0]["tokens"] > calls[0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, 'bad.jsonl:2: give one of "prompt", "messages" and "prompt_ids" (found: "question")'),
        ({"prompt": "x", "messages": [], "answer": "y"}, "bad.jsonl:2: give one of"),
        ({"prompt": "x"}, 'bad.jsonl:2: field "answer" is missing'),
        ({"prompt": "x", "answer": ""}, 'bad.jsonl:2: field "answer" is empty'),
        ({"prompt": 3, "answer": "y"}, 'bad.jsonl:2: field "prompt" must be a string'),
        ({"messages": "x"}, 'bad.jsonl:2: field "messages" must be a list'),
        ({"messages": [{"role": "user"}]}, "bad.jsonl:2:"),
        ({"messages": CHAT[:1]}, 'bad.jsonl:2: field "answer" is missing, and the last'),
        ({"prompt_ids": [1, -2], "answer_ids": [1]}, 'bad.jsonl:2: field "prompt_ids" must be a list'),
        ({"prompt_ids": [1], "answer_ids": []}, 'bad.jsonl:2: field "answer_ids" must be a list'),
        ({"prompt_ids": [1]}, 'bad.jsonl:2: field "answer_ids" must be a list'),
    ],
)
def test_bad_lines_are_named(cli, tmp_path, record, message):
    file = lines(tmp_path / "bad.jsonl", {"prompt_ids": [1], "answer_ids": [2]}, record)
    done = cli("replay", file)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1 and not done.out


def test_a_token_outside_the_model_is_named(cli, tiny, tmp_path):
    file = lines(tmp_path / "far.jsonl", {"prompt_ids": [1], "answer_ids": [10**6]})
    done = cli("replay", file, "-m", tiny, "--drafter", "copy")
    assert done.code == 1 and "far.jsonl:1: token id 1000000 is outside 0.." in done.err


@pytest.mark.parametrize("name", ["model:smollm2", "skip:1-2", "copy+model:smollm2"])
def test_drafts_that_depend_on_a_model_are_refused(cli, ids, name):
    done = cli("replay", ids, "--drafter", name)
    assert done.code == 2 and "depend on a model" in done.err and done.err.count("\n") == 1


def test_wrong_use(cli, ids, tmp_path):
    for arguments, message in (
        (("--drafter", "cpoy"), 'did you mean "copy"'),
        (("--drafter", "none"), "drafts nothing"),
        (("--drafter", "ngram"), "give it with -m"),
        (("--drafter", "copy:x"), "takes no argument"),
        (("--budget", "0"), "--budget"),
    ):
        done = cli("replay", ids, *arguments)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no records" in cli("replay", tmp_path / "empty.jsonl").err
    assert cli("replay", tmp_path / "nothing.jsonl").code == 1
