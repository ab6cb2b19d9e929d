"""From a user's prompts to an adapter by training on own samples: reports, resuming, the command line."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

from tiny_gguf import write_tiny_llama

from likely.alignment.rewards import LengthReward
from likely.alignment.runs.folder import RunSettings
from likely.alignment.runs.online import online_settings, train_on_own_samples
from likely.training.fit import TrainingSettings
from likely.training.policy import LoraSettings

WORDS = ["the cat", "the mat", "this is", "and the other", "the sun", "the thing"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_tiny_llama(tmp_path_factory.mktemp("runs") / "tiny.gguf", dim=32))


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in WORDS))
    return tmp_path / "prompts.jsonl"


def settings(path, out, steps=3, **more):
    training = TrainingSettings(steps=steps, batch=2, lr=0.02, checkpoint_every=1, seed=1)
    return RunSettings(path, out, training, lora=LoraSettings(rank=4, alpha=8), epochs=0, held_out=0.34, **more)


@pytest.mark.parametrize(
    "method",
    ["ipo_md", pytest.param("online_ipo", marks=pytest.mark.slow), pytest.param("nash_md", marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_and_a_finished_one_reports(path, prompts, tmp_path, method):
    online = online_settings(method, {"tau": 0.2, "samples": 4, "max_tokens": 4})
    whole = train_on_own_samples(prompts, online, settings(path, tmp_path / "whole"), reward=LengthReward())
    assert len(whole["losses"]) == 3 and whole["after"]["samples"]["reward"] > 0 and "before" in whole

    def stop(what, done, of):
        if what == "steps" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_own_samples(prompts, online, settings(path, tmp_path / "o"), reward=LengthReward(), progress=stop)
    said = []
    again = train_on_own_samples(
        prompts, online, settings(path, tmp_path / "o"), reward=LengthReward(), say=said.append
    )
    assert again["losses"] == whole["losses"] and again["after"] == whole["after"] and "goes on" in said[0]
    assert (tmp_path / "o" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter_model.safetensors"
    ).read_bytes()
    line = json.loads((tmp_path / "o" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"length", "finished", "log_ratio", "gradient_norm"} <= line.keys()


def test_the_verb_trains_on_own_samples(path, prompts, tmp_path, capsys):
    from likely.cli.app import run

    given = ["align", "train", str(prompts), "-m", path, "-o", str(tmp_path / "a"), "--epochs", "0", "--steps", "2"]
    given += ["--batch", "2", "--held-out", "0.34", "--method", "online_ipo", "-s", "max_tokens=4"]
    code = run([*given, "--reward", "length", "-s", "scale=2.0", "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    report = json.loads(out)
    assert report["method"] == "online_ipo" and report["settings"]["scale"] == 2.0 and report["steps"] == 2
    for more, said in (
        (["-o", str(tmp_path / "b")], "--reward"),
        (["-o", str(tmp_path / "b"), "--reward", "length", "-s", "gamma=1"], "online_ipo has no setting gamma"),
        (["-o", str(tmp_path / "b"), "--reward", "length", "--method", "online_ipoo"], "did you mean"),
        (["-o", str(tmp_path / "b"), "--reward", "length", "-s", "scale=big"], "scale must be a number > 0"),
    ):
        assert run([*given, *more]) != 0 and said in " ".join(capsys.readouterr().err.split())


def test_a_report_without_prompts_is_empty(path, prompts, tmp_path):
    online = online_settings("online_ipo", {"max_tokens": 4})
    given = settings(path, tmp_path / "out", steps=1)
    report = train_on_own_samples(prompts, online, given, reward=LengthReward(), sampled_prompts=0)
    assert report["before"] == report["after"] == {} and "NaN" not in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"tua": 1}, 'no setting tua; did you mean "tau"'),
        ({"samples": 2.5}, "samples must be a whole number, got 2.5"),
        ({"tau": "big"}, "tau must be a number, got 'big'"),
        ({"kl": "token"}, "unknown kl"),
    ],
)
def test_settings_are_refused_by_name(numbers, said):
    with pytest.raises(ValueError, match=said):
        online_settings("nash_md", numbers)
