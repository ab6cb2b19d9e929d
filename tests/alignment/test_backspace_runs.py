"""From a user's examples to a model that can delete: resuming, reports, the command line, decoding of what it wrote."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.runs.backspace import backspace_of, sequence_match_settings, train_with_backspace
from likely.alignment.runs.folder import RunSettings
from likely.errors import CapabilityError, DataError
from likely.models.load import load_local
from likely.training.fit import TrainingSettings
from likely.training.policy import LoraSettings

WORDS = ["the cat", "the mat", "this is", "and the other", "the sun", "the thing", "cats sat", "on the mat"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_tiny_llama(tmp_path_factory.mktemp("runs") / "tiny.gguf", dim=32))


@pytest.fixture
def examples(tmp_path):
    rows = [{"prompt": word, "completion": " sat on"} for word in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def settings(path, out, steps=5, **more):
    training = TrainingSettings(steps=steps, batch=2, lr=0.02, checkpoint_every=2, seed=1)
    given = {"lora": LoraSettings(rank=4, alpha=8), "epochs": 0, "held_out": 0.25, "max_length": 32, **more}
    return RunSettings(path, out, training, **given)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoraSettings(rank=4, alpha=8), None])
def test_a_stopped_run_goes_on_and_its_model_deletes(path, examples, tmp_path, lora):
    backspace = load_local(path, runtime="torch").tokenizer.vocab_size - 1
    method = sequence_match_settings({"refresh": 2, "drawn": 4, "noise": 0.2}, TrainingSettings(steps=1))
    given = {"backspace": backspace, "max_tokens": 6}
    whole = train_with_backspace(examples, method, settings(path, tmp_path / "whole", lora=lora), **given)

    def stop(what, done, of):
        if what == "steps" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_with_backspace(examples, method, settings(path, tmp_path / "o", lora=lora), progress=stop, **given)
    said = []
    again = train_with_backspace(examples, method, settings(path, tmp_path / "o", lora=lora), say=said.append, **given)
    assert any("goes on" in line for line in said)
    assert again["losses"] == whole["losses"] and again["after"] == whole["after"] and len(whole["losses"]) == 5
    files = [(tmp_path / name / "merged" / "model.safetensors").read_bytes() for name in ("whole", "o")]
    assert files[0] == files[1] and not (tmp_path / "o" / "adapter_model.safetensors").exists()
    with likely.load(str(tmp_path / "o" / "merged"), runtime="torch") as lm:
        made = lm.generate("the cat", backspace_id=backspace, n=4, seed=1, max_tokens=12)
        assert all(backspace not in one.token_ids for one in made)
        found = lm.score("the cat", [" sat on"])[0]
    assert found.mean_logprob > -4


@pytest.mark.slow
def test_the_verb_refuses_in_one_line(path, examples, tmp_path, capsys):
    from likely.cli.app import run

    given = ["align", "train", str(examples), "-m", path, "-o", str(tmp_path / "a"), "--method", "sequence_match"]
    for more, said in (
        ([], "backspace must be a token that no text needs, got None"),
        (["-s", "backspace=<nothing>"], "got '<nothing>'"),
        (["-s", "alhpa=1"], 'no setting alhpa; did you mean "alpha"'),
        (["-s", "backspace=9", "--adapter", "sft"], "goes on from a whole model"),
        (["-s", "backspace=9", "--reward", "length"], "learns from examples alone"),
    ):
        assert run([*given, *more]) != 0 and said in " ".join(capsys.readouterr().err.split())


def test_settings_and_tokens(path):
    chosen = sequence_match_settings({"alpha": 0.1}, TrainingSettings(steps=40, batch=3, lr=0.5))
    assert (chosen.steps, chosen.batch, chosen.learning_rate, chosen.warm_up, chosen.alpha) == (40, 3, 0.5, 4, 0.1)
    tokenizer = load_local(path, runtime="torch").tokenizer
    with pytest.raises(DataError, match="begins or ends texts"):
        backspace_of(tokenizer, next(iter(tokenizer.end_ids)))


def test_a_text_that_holds_the_backspace_is_named_by_its_row(path, examples, tmp_path):
    token = load_local(path, runtime="torch").tokenizer.encode(" sat")[0]
    method = sequence_match_settings({}, TrainingSettings(steps=1))
    with pytest.raises(DataError, match=r"rows.jsonl: row \d+ holds the backspace"):
        train_with_backspace(examples, method, settings(path, tmp_path / "out"), backspace=token)
    with pytest.raises(CapabilityError, match="no --shard"):
        train_with_backspace(examples, method, settings(path, tmp_path / "out", shard=True), backspace=token)
