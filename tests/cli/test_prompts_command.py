"""likely prompts select: a ranking, its file, and one line for what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_commands import one_line

from likely.prompting.selection.scores import PromptScores

POOL = [
    {"name": "a", "template": "{{ text }} is ||| {{ answer_choices[label] }}", "answer_choices": ["bad", "good"]},
    {"name": "b", "template": "Say: {{ text }}", "answer_choices": ["bad", "good"]},
    {"name": "c", "template": "{{ text }} was ||| {{ answer_choices[label] }}", "answer_choices": ["no", "yes"]},
]
INPUTS = [{"text": word, "label": i % 2} for i, word in enumerate(["sun", "cat", "mat", "the dog", "tea", "x"])]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def pool(tmp_path):
    return write(tmp_path / "pool.jsonl", POOL)


@pytest.fixture
def inputs(tmp_path):
    return write(tmp_path / "inputs.jsonl", INPUTS)


def test_a_ranking_and_the_same_from_the_saved_scores(cli, tiny, pool, inputs, tmp_path):
    saved = tmp_path / "s.npz"
    first = cli(
        "prompts", "select", "--pool", pool, "--inputs", inputs, "-m", tiny, "--threads", 1, "-o", saved, "--json"
    ).json
    assert first["prompts"] == 3 and first["inputs"] == 6 and first["model"] and first["sha256"]
    values = [row["value"] for row in first["ranking"]]
    assert values == sorted(values, reverse=True) and first["chosen"] == first["ranking"][0]["prompt"]
    assert {row["prompt"] for row in first["ranking"]} == {"a", "b", "c"}
    labels = np.array([r["label"] for r in INPUTS])
    assert first["accuracy"] == pytest.approx((np.array(first["answers"]) == labels).mean())
    low, high = first["accuracy_interval"]
    assert low <= first["accuracy"] <= high and 0 < first["scaled_f1"] <= 1
    assert cli("prompts", "select", saved, "--json").json == first
    again = cli(
        "prompts", "select", "--pool", pool, "--inputs", inputs, "-m", tiny, "--threads", 1, "-o", saved, "--json"
    ).json
    assert again == first
    repaired = cli("prompts", "select", saved, "--calibrate", "cbm", "--where", "A", "--json").json
    assert repaired["chosen"] == first["chosen"] and repaired["where"] == "A"
    each = cli("prompts", "select", saved, "--method", "MI_GL", "--json").json
    assert each["chosen"] is None and len(each["chosen_per_input"]) == 6


def test_what_people_see(cli, tiny, pool, inputs, tmp_path):
    done = cli("prompts", "select", "--pool", pool, "--inputs", inputs, "-m", tiny, "--threads", 1, "--show", 2)
    lines = done.out.splitlines()
    assert lines[0] == "3 prompts, 6 inputs, 2 answers; MI_G: higher is better"
    assert "accuracy" in lines[1] and lines[4].strip() == "... and 1 more (--show 3)" and "chosen: " in lines[5]
    bare = write(tmp_path / "bare.jsonl", [{"text": r["text"]} for r in INPUTS])
    plain = cli("prompts", "select", "--pool", pool, "--inputs", bare, "-m", tiny, "--threads", 1)
    assert plain.code == 0 and "accuracy" not in plain.out
    piped = cli(
        "prompts", "select", "--pool", pool, "--inputs", "-", "-m", tiny, "--threads", 1, stdin=bare.read_text()
    )
    assert piped.out == plain.out


def test_perplexity_is_scored_when_it_is_asked_for(cli, tiny, pool, inputs, tmp_path):
    saved = tmp_path / "s.npz"
    common = ("prompts", "select", "--pool", pool, "--inputs", inputs, "-m", tiny, "--threads", 1, "-o", saved)
    assert cli(*common).code == 0
    one_line(cli("prompts", "select", saved, "--method", "PPL"), 2, "perplexity=True")
    found = cli(*common, "--method", "PPL", "--json").json
    ppl = PromptScores.load(saved).perplexity.mean(axis=1)
    assert found["chosen"] == "abc"[ppl.argmin()] and (ppl > 1).all()


def test_one_line_for_what_is_wrong(cli, tiny, pool, inputs, tmp_path):
    saved = tmp_path / "s.npz"
    common = ("prompts", "select", "--pool", pool, "-m", tiny, "--threads", 1)
    assert cli(*common, "--inputs", inputs, "-o", saved).code == 0
    one_line(cli("prompts", "select"), 2, "--pool and --inputs")
    one_line(cli(*common, "--inputs", inputs, "--method", "MIG"), 2, 'did you mean "MI_G"')
    one_line(cli(*common, "--inputs", inputs, "--task", "x"), 1, 'no prompt of the task "x"')
    one_line(cli(*common, "--inputs", inputs, "--limit", 1), 1, "at least 2 inputs")
    one_line(cli(*common, "--inputs", inputs, "--limit", 3, "-o", saved), 1, "another inputs_digest", "--overwrite")
    assert cli(*common, "--inputs", inputs, "--limit", 3, "-o", saved, "--overwrite").code == 0
    held = saved.read_bytes()
    gone = ("prompts", "select", "--pool", pool, "-m", "no-such-model", "--inputs", inputs, "-o", saved, "--overwrite")
    assert cli(*gone).code == 1 and saved.read_bytes() == held
    one_line(cli(*common, "--inputs", inputs, "-o", inputs), 2, "replace the input")
    one_line(cli("prompts", "select", saved, "--pool", pool), 2, "saved scores need no --pool")
    one_line(cli("prompts", "select", pool), 1, "not a file of prompt scores (likely prompts select -o")
    bad = write(tmp_path / "bad.jsonl", [INPUTS[0], {"text": "x", "label": 7}])
    one_line(cli(*common, "--inputs", bad), 1, "bad.jsonl:2: label 7")
    bad = write(tmp_path / "bad.jsonl", [INPUTS[0], {"question": "x"}])
    one_line(cli(*common, "--inputs", bad), 1, "bad.jsonl:2", 'asks for the field "text"')
