"""likely audit reach, exposure and invert on a tiny model: what they print, what they refuse, what they never write."""

from __future__ import annotations

import json

import pytest


def test_reach_of_one_state_and_of_a_file_goes_on(cli, tiny, tmp_path):
    words = ("audit", "reach", tiny, "--threads", 1, "--method", "greedy", "--lengths", "1")
    one = cli(*words, "--state", "the cat", "--target", " sat", "--json").json
    [case] = one["cases"]
    assert case["evaluations"] >= 1 and case["k"] <= 1 and one["header"]["kind"] == "audit reach"
    assert [f["quantity"] for f in one["findings"]][:2] == ["epsilon(0)", "epsilon(1)"]
    states, out = tmp_path / "states.jsonl", tmp_path / "out.jsonl"
    states.write_text("".join(json.dumps({"state": f"the cat {i}", "target": "a"}) + "\n" for i in range(2)))
    found = cli(*words, "--cases", states, "-o", out, "--report", tmp_path / "r.html", "--json").json
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert cli(*words, "--cases", states, "-o", out, "--json").json == found and out.read_bytes() == whole
    assert found["config"] in (tmp_path / "r.html").read_text()
    shown = cli(*words, "--state", "the cat", "--target", " sat")
    assert shown.code == 0 and "targets are reached" in shown.out


def test_explore_and_bound_of_a_state(cli, tiny):
    words = ("audit", "reach", tiny, "--threads", 1, "--state", "the cat", "--explore", 40, "--json")
    found = cli(*words).json
    assert found["header"]["kind"] == "audit reach explore" and found["cases"]
    assert cli(*words).json == found


@pytest.mark.slow
def test_gcg_takes_gradients_and_the_bound_reads_weights(cli, tiny):
    pytest.importorskip("torch")
    words = ("audit", "reach", tiny, "--threads", 1, "--state", "the cat")
    found = cli(*words, "--target", "a", "--lengths", "1,3", "--json").json
    assert found["cases"][0]["method"] in ("none", "greedy", "gcg")
    bound = cli(*words, "--bound", "1,1000", "--json").json
    assert {row["k"] for row in bound["cases"]} == {1, 1000}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reach", "no-such-model", "--state", "x"), "give --cases FILE, or --state with"),
        (("reach", "no-such-model", "--state", "x", "--target", "y", "--lengths", "4,2"), "rising whole numbers"),
        (("reach", "http://localhost:1", "--state", "x", "--target", "y"), "on this machine"),
        (("reach", "no-such-model", "--state", "x", "--target", ""), "is empty"),
        (("exposure", "http://localhost:1", "--hidden-size", "9"), "--i-own-this-endpoint"),
        (("exposure", "http://localhost:1", "--i-own-this-endpoint"), "--hidden-size"),
        (("exposure", "http://localhost:1", "--i-own-this-endpoint", "--hidden-size", "9"), "--tokenizer"),
        (("exposure", "--returns", "top"), "--hidden-size"),
        (("invert", "http://localhost:1"), "--prompts"),
    ],
)
def test_refusals_are_one_line(cli, words, message):
    done = cli("audit", *words)
    assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1


def test_exposure_by_description_and_of_a_model(cli, tiny):
    found = cli(
        "audit", "exposure", "--returns", "top", "--top", 5, "--logit-bias", "--hidden-size", 100, "--json"
    ).json
    calls = next(f["value"] for f in found["findings"] if f["quantity"] == "calls for a whole vector")
    assert calls == 50 and "full vectors" in found["verdicts"][0]
    assert "text alone" in cli("audit", "exposure", "--returns", "text", "--hidden-size", 9).out
    measured = cli("audit", "exposure", tiny, "--threads", 1, "--hidden-size", 40, "--json")
    assert measured.code == 0 or "tokens beside the anchor" in measured.err


def test_exposure_of_a_server_of_your_own(cli, tiny, toy_url, tmp_path):
    url, requests = toy_url
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\nthe dog\n")
    done = cli("audit", "exposure", url, "--i-own-this-endpoint", "--tokenizer", tiny, "--hidden-size", 4, "--top", 5,
               "--most-calls", 6, "--prompts", prompts, "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["header"]["calls"] == 2 and requests
    assert "part of each vector" in done.json["verdicts"][0]  # the server takes a bias and does not heed it
    assert "the cat" not in done.out


@pytest.fixture
def toy_url():
    from fake_server import toy_server

    with toy_server() as server:
        yield server.url, server.requests


@pytest.mark.slow
def test_invert_prints_rates_and_writes_no_prompt(cli, tiny, tmp_path):
    pytest.importorskip("torch")
    prompts, kept, page = tmp_path / "p.jsonl", tmp_path / "kept", tmp_path / "r.html"
    texts = [f"Tell {who} of {what}." for who in ("anna", "bob", "carl") for what in ("cats", "dogs", "owls", "bees")]
    prompts.write_text("".join(json.dumps(text) + "\n" for text in texts))
    words = ("audit", "invert", tiny, "--threads", 1, "--prompts", prompts, "--steps", 2, "--epochs", 1, "--kept", kept,
             "--report", page)  # fmt: skip
    inverter = tmp_path / "inverter.safetensors"
    done = cli(*words, "--json", "--save-inverter", inverter)
    assert done.code == 0, done.err
    assert done.json["header"]["trained_on"] == 10
    written = done.out + done.err + page.read_text() + "".join(str(p) for p in kept.iterdir())
    assert not any(text in written for text in texts)
    assert cli(*words, "--json").json == done.json
    applied = cli("audit", "invert", tiny, "--threads", 1, "--prompts", prompts, "--inverter", inverter, "--json")
    assert applied.json["findings"][0]["n"] == 12 and applied.json["header"]["trained_on"] == "other prompts, before"
    both = cli("audit", "invert", tiny, "--prompts", prompts, "--inverter", inverter, "--save-inverter", inverter)
    assert both.code == 2 and "nothing is trained" in both.err
