"""From a user's JSONL to an adapter: rows, runs that resume, reports, and what opens the result."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.edit_invariant.own_outputs import EditInvariantSettings
from likely.alignment.methods import dpo, ipo, make_method, slic
from likely.alignment.rewards import LengthReward
from likely.alignment.runs.examples import read_examples, train_on_examples
from likely.alignment.runs.folder import RunSettings
from likely.alignment.runs.preferences import train_on_preferences
from likely.alignment.runs.reward import open_reward, train_reward_model
from likely.alignment.runs.rows import RowEncoder, read_pairs
from likely.alignment.runs.sampling import write_pairs
from likely.errors import CapabilityError, DataError, ModelError
from likely.models.load import load_local
from likely.training.fit import TrainingSettings
from likely.training.policy import LoraSettings, Policy

WORDS = ["the cat", "the mat", "this is", "and the other", "the sun", "the thing", "cats sat", "on the mat"]
PAIRS = [{"prompt": w, "chosen": " sat on", "rejected": " there too"} for w in WORDS]
CHAT = [{"role": "user", "content": "the cat?"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_tiny_llama(tmp_path_factory.mktemp("runs") / "tiny.gguf", dim=32))


@pytest.fixture(scope="module")
def lm(path):
    return load_local(path, runtime="torch")


def written(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def settings(path, out, steps=4, **more):
    training = TrainingSettings(steps=steps, batch=2, lr=0.02, checkpoint_every=1, seed=1)
    given = {"epochs": 0, "held_out": 0.25, "max_length": 64, "lora": LoraSettings(rank=4, alpha=8), **more}
    return RunSettings(path, out, training, **given)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "chosen": "", "rejected": "b"}, r'row 2: "chosen" is empty'),
        ({"prompt": "a", "chosen": " b", "rejected": " b"}, r'row 2: "chosen" and "rejected" are the same'),
        ({"prompt": "a", "chosen": " b"}, r'row 2: field "rejected" is missing'),
        ({"prompt": "a", "chosen": 3, "rejected": " b"}, r'row 2: "chosen" must be a text'),
        ({"prompt": "a", "chosen": " b", "rejected": " c", "p": 1.5}, r'row 2: "p" must lie in \[0, 1\]'),
        ({"prompt": "a", "chosen": " b", "rejected": " c", "p": None}, r'row 2: "p" must be a number'),
        (
            {"prompt": "a", "chosen": " b", "rejected": " c", "chosen_finished": "no"},
            r'row 2: "chosen_finished" must be',
        ),
        ({"prompt": "a" * 99, "chosen": " b", "rejected": " c"}, r"row 2: the prompt has \d+ tokens, max_length is 64"),
        ({"prompt": "a", "chosen": "b" * 99, "rejected": " c"}, r"row 2: .* tokens, max_length is 64: raise it"),
        ({"prompt": [{"role": "nobody", "content": "x"}], "chosen": "b", "rejected": "c"}, r"row 2: .*unknown role"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_ids": [1], "rejected_ids": [2], "tokenizer": "x"},
            r"row 2: the ids are those of another tokenizer",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_named_by_its_row(lm, tmp_path, row, message):
    rows = written(tmp_path, [PAIRS[0], row])
    with pytest.raises(DataError, match=message):
        read_pairs(rows, RowEncoder(lm, 64))


def test_nan_is_refused_by_its_row(lm, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": " b", "rejected": " c", "margin": NaN}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*NaN is not a JSON number"):
        read_pairs(tmp_path / "rows.jsonl", RowEncoder(lm, 64))


@pytest.mark.parametrize("ids", [None, [], ["a"], [10**6], [1.0]])
def test_a_prompts_ids_are_checked_and_never_left_out_as_too_long(lm, tmp_path, ids):
    row = {**PAIRS[0], "prompt_ids": ids, "chosen_ids": [1], "rejected_ids": [2], "tokenizer": lm.tokenizer.fingerprint}
    with pytest.raises(DataError, match='row 2: "prompt_ids" must be a list of this model'):
        read_pairs(written(tmp_path, [PAIRS[1], row]), RowEncoder(lm, 64, "drop"))


def test_whether_an_example_is_finished_is_true_or_false(lm, tmp_path):
    with pytest.raises(DataError, match='row 1: "finished" must be true or false, got 0'):
        read_examples(written(tmp_path, [{"prompt": "a", "completion": " b", "finished": 0}]), RowEncoder(lm, 64))


def test_a_completion_ends_unless_it_was_cut(lm, tmp_path):
    long = {"prompt": "the cat", "chosen": " sat" * 40, "rejected": " on"}
    rows = written(tmp_path, [PAIRS[0], {**PAIRS[1], "chosen_finished": False}, long])
    encoder = RowEncoder(lm, 32, "cut")
    whole, given, cut = read_pairs(rows, encoder)
    ends = lm.tokenizer.end_ids
    assert whole.first.finished and whole.first.tokens[-1] in ends and not ends & set(whole.first.tokens[:-1])
    assert not given.first.finished and not ends & set(given.first.tokens)
    assert not cut.first.finished and len(cut.first) == 32 and not ends & set(cut.first.tokens)
    assert cut.second.finished and encoder.cut == [3]
    dropping = RowEncoder(lm, 32, "drop")
    assert len(read_pairs(rows, dropping)) == 2 and dropping.dropped == [3]


def test_a_conversations_answer_is_what_follows_its_prompt(lm, tmp_path, path):
    rows = written(tmp_path, [{"prompt": CHAT, "chosen": "sat", "rejected": [{"role": "assistant", "content": "on"}]}])
    (pair,) = read_pairs(rows, RowEncoder(lm, 64))
    with likely.load(path, runtime="torch") as model:
        assert list(pair.first.prompt) == model.render(CHAT).tokens
    text = b"".join(map(lm.tokenizer.token_bytes, pair.first.tokens))
    assert text == b"sat" and pair.first.tokens[-1] in lm.tokenizer.end_ids and pair.second.text == "on"


def test_masks_show_the_assistants_turns(lm, tmp_path):
    answer, more = {"role": "assistant", "content": "sat"}, {"role": "user", "content": "and?"}
    rows = written(tmp_path, [{"messages": [*CHAT, answer, more, {**answer, "content": "on the mat"}]}])
    encoder = RowEncoder(lm, 128)

    def learned(loss_on):
        (text,) = read_examples(rows, encoder, loss_on=loss_on)
        return b"".join(lm.tokenizer.token_bytes(t) for t, s in zip(text.tokens, text.scored, strict=True) if s)

    assert learned("completion") == b"on the mat" and learned("assistant") == b"saton the mat"
    assert learned("all").endswith(b"on the mat\n") or learned("all").endswith(b"on the mat")
    with pytest.raises(DataError, match="no turn of an assistant"):
        read_examples(written(tmp_path, [{"messages": CHAT}]), encoder, loss_on="assistant")


# --- runs -------------------------------------------------------------------------------------------------------------


def test_pairs_become_an_adapter_that_likely_and_transformers_open(path, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, out = written(tmp_path, PAIRS), tmp_path / "out"
    said = []
    report = train_on_preferences(
        rows, dpo(beta=0.5), settings(path, out, steps=8, merged=True), reward=LengthReward(), say=said.append
    )
    before, after = report["before"], report["after"]
    assert len(report["losses"]) == 8 and report["losses"][0] == pytest.approx(0.6931, abs=1e-3)
    assert before["reward_accuracy"] is None and after["reward_accuracy"]["accuracy"] == 1.0
    assert before["brier"] == pytest.approx(0.25, abs=1e-3) and after["brier"] < before["brier"] - 0.05
    assert before["samples"]["kl"] == pytest.approx(0, abs=1e-3) and after["samples"]["kl"] != 0
    assert 0 <= after["samples"]["win_rate"] <= 1 and "of memory" in said[0]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    assert {"accuracy", "margin", "winner_logprob", "loser_logprob", "gradient_norm"} <= lines[0].keys()
    names = {p.name for p in out.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "likely_adapter.json", "before.json", "merged",
        "metrics.jsonl", "reference_logprobs.jsonl", "report.json", "run.json",
    }  # fmt: skip
    found = {}
    for place in (out, out / "merged"):
        with likely.load(str(place), runtime="torch") as model:
            assert model.tokenizer.end_ids
            (found[place.name],) = model.score("the cat", [" sat on"])
    assert found["out"].sequence_logprob == pytest.approx(found["merged"].sequence_logprob, abs=1e-4)
    module = AutoModelForCausalLM.from_pretrained(out / "merged").eval()
    ids = AutoTokenizer.from_pretrained(out / "merged")("the cat sat on", return_tensors="pt").input_ids
    rows_ = torch.log_softmax(module(ids).logits[0].float(), -1)
    n = len(found["merged"].token_ids)
    theirs = sum(rows_[-n - 1 + i, t].item() for i, t in enumerate(found["merged"].token_ids))
    assert theirs == pytest.approx(found["merged"].sequence_logprob, abs=1e-3)
    base = load_local(path, runtime="torch").runtime.module
    adapted = PeftModel.from_pretrained(base, str(out)).eval()
    torch.testing.assert_close(adapted(ids).logits, module(ids).logits, atol=1e-3, rtol=0)
    with pytest.raises(CapabilityError, match="adapters run in torch"):
        likely.load(str(out), runtime="native")


def test_a_killed_run_goes_on_and_a_finished_one_only_reports(path, tmp_path):
    rows = written(tmp_path, PAIRS)
    whole = train_on_preferences(rows, dpo(), settings(path, tmp_path / "whole"), sampled_prompts=0)

    def stop(what, done, of):
        if what == "steps" and done == 3:
            raise KeyboardInterrupt

    said = []
    with pytest.raises(KeyboardInterrupt):
        train_on_preferences(rows, dpo(), settings(path, tmp_path / "out"), sampled_prompts=0, progress=stop)
    resumed = train_on_preferences(rows, dpo(), settings(path, tmp_path / "out"), sampled_prompts=0, say=said.append)
    assert "goes on" in said[0] and resumed["losses"] == whole["losses"] and resumed["after"] == whole["after"]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]
    again = train_on_preferences(rows, dpo(), settings(path, tmp_path / "out"), sampled_prompts=0, say=said.append)
    assert again == resumed and "is finished" in said[-1]
    with pytest.raises(DataError, match="holds a run with another"):
        train_on_preferences(rows, ipo(), settings(path, tmp_path / "out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DataError, match="holds something else than a training run"):
        train_on_preferences(rows, dpo(), settings(path, tmp_path / "other"))


def test_a_finished_run_is_merged_when_that_is_asked_for_later(path, tmp_path):
    rows, out = written(tmp_path, PAIRS), tmp_path / "out"
    report = train_on_preferences(rows, dpo(), settings(path, out), sampled_prompts=0)
    assert train_on_preferences(rows, dpo(), settings(path, out, merged=True), sampled_prompts=0) == report
    train_on_preferences(rows, dpo(), settings(path, tmp_path / "at once", merged=True), sampled_prompts=0)
    weights = [(place / "merged" / "model.safetensors").read_bytes() for place in (out, tmp_path / "at once")]
    assert weights[0] == weights[1]


def test_a_run_that_begins_anew_leaves_nothing_of_the_earlier_one(path, tmp_path):
    rows, out = written(tmp_path, PAIRS), tmp_path / "out"
    train_reward_model(rows, settings(path, out, steps=1, merged=True))
    assert (out / "reward_head.safetensors").exists() and (out / "merged").exists()

    def stop(what, done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_preferences(rows, slic(), settings(path, out, overwrite=True), sampled_prompts=0, progress=stop)
    assert {p.name for p in out.iterdir()} <= {"run.json", "before.json", "reference_logprobs.jsonl", "metrics.jsonl"}


def test_a_reward_model_of_another_tokenizer_judges_nothing(path, tmp_path):
    rows = written(tmp_path, PAIRS)
    train_reward_model(rows, settings(path, tmp_path / "reward", steps=1))
    reward = open_reward(str(tmp_path / "reward"))
    other = str(write_tiny_llama(tmp_path / "other.gguf", vocab=310))
    for work in (
        lambda: write_pairs(rows, tmp_path / "pairs.jsonl", reward, model=other, max_tokens=2),
        lambda: train_on_preferences(rows, dpo(), settings(other, tmp_path / "out"), reward=reward),
    ):
        with pytest.raises(DataError, match="reads another tokenizer's ids"):
            work()


def test_settings_that_cannot_be_together_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="give one of both"):
        settings(path, tmp_path / "out", lora=None, adapter=tmp_path / "sft")
    with pytest.raises(ValueError, match="choose another folder for --out"):
        settings(path, tmp_path / "sft", adapter=tmp_path / "sft")
    with pytest.raises(ValueError, match='need loss="eisl", got "cross-entropy"'):
        train_on_examples("rows.jsonl", settings(path, tmp_path / "out"), eisl=EditInvariantSettings())
    with pytest.raises(CapabilityError, match="is not installed"):  # before the model is loaded
        train_on_examples("rows.jsonl", settings("nothing.gguf", tmp_path / "out", trackers=("aim", "dvclive")))


def test_a_disk_that_is_full_is_said_in_one_line(path, tmp_path):
    resource = pytest.importorskip("resource")
    with Policy(path, LoraSettings(rank=4, alpha=8)) as policy:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            for save in (policy.save_adapter, policy.save_merged):
                with pytest.raises(DataError, match=r"cannot write to .*File too large"):
                    save(tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_are_learned_and_reported_on_are_said(path, tmp_path):
    said = []
    rows = written(tmp_path, PAIRS + PAIRS)
    train_on_preferences(rows, slic(), settings(path, tmp_path / "out", steps=1), sampled_prompts=0, say=said.append)
    assert "of 4 rows of the report are learned, too" in said[0]


def test_sft_then_preferences_from_its_adapter(path, tmp_path):
    examples = written(tmp_path, [{"prompt": w, "completion": " sat on"} for w in WORDS], "sft.jsonl")
    report = train_on_examples(examples, settings(path, tmp_path / "sft", steps=12))
    assert report["after"]["perplexity"] < 0.5 * report["before"]["perplexity"]
    rows = written(tmp_path, PAIRS)
    report = train_on_preferences(
        rows, slic(), settings(path, tmp_path / "out", steps=1, adapter=tmp_path / "sft"), sampled_prompts=2
    )
    assert report["before"]["reward_accuracy"] is None  # the reference is the adapter, not the bare model
    with likely.load(str(tmp_path / "out")) as model:
        assert model.info.name == str(tmp_path / "out")
    other = write_tiny_llama(tmp_path / "other.gguf", dim=32, seed=5)
    with pytest.raises(ModelError, match="trained on other weights"):
        train_on_preferences(rows, dpo(), settings(str(other), tmp_path / "x", adapter=tmp_path / "sft"))


def test_a_reward_model_judges_samples_that_become_pairs(path, tmp_path):
    rows = written(tmp_path, PAIRS)
    report = train_reward_model(rows, settings(path, tmp_path / "reward", steps=20))
    assert report["before"]["accuracy"] is None and report["after"]["accuracy"]["accuracy"] == 1.0
    prompts = written(tmp_path, [{"prompt": w} for w in WORDS[:3]], "prompts.jsonl")
    reward = open_reward(str(tmp_path / "reward"))
    found = write_pairs(prompts, tmp_path / "pairs.jsonl", reward, model=path, n=3, max_tokens=4)
    assert found["prompts"] == 3 and found["samples"] == 9 and 0 < found["pairs"] <= 3
    lm = load_local(path, runtime="torch")
    pairs = read_pairs(tmp_path / "pairs.jsonl", RowEncoder(lm, 64))
    assert all(p.preference >= 0.5 for p in pairs)
    assert all(reward([p.first])[0] >= reward([p.second])[0] for p in pairs)

    def stop(what, done, of):
        raise KeyboardInterrupt

    whole, part = (tmp_path / "pairs.jsonl").read_bytes(), tmp_path / "pairs.jsonl.part"
    settings_ = {"model": path, "n": 3, "max_tokens": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("likely.alignment.runs.sampling.TOGETHER", 2)
        with pytest.raises(KeyboardInterrupt):
            write_pairs(prompts, tmp_path / "pairs.jsonl", reward, **settings_, progress=stop)
        assert len(part.read_text().splitlines()) == 3  # a header and two prompts
        with pytest.raises(DataError, match="made with another seed"):
            write_pairs(prompts, tmp_path / "pairs.jsonl", reward, **settings_, seed=1)
        drawn = []
        assert write_pairs(
            prompts, tmp_path / "pairs.jsonl", reward, **settings_, progress=lambda *a: drawn.append(a)
        ) == found  # fmt: skip
    assert len(drawn) == 1 and (tmp_path / "pairs.jsonl").read_bytes() == whole and not part.exists()
    with pytest.raises(DataError, match='no reward is called "vader"'):
        open_reward("vader")


def test_all_weights_and_an_estimate(path, tmp_path):
    rows = written(tmp_path, PAIRS)
    told = train_on_preferences(rows, dpo(), settings(path, tmp_path / "e"), only_estimate=True)
    assert not (tmp_path / "e").exists()
    assert told["estimate"]["seconds"] > 0 and told["estimate"]["memory_bytes"] > 1e5
    report = train_on_preferences(rows, dpo(), settings(path, tmp_path / "full", steps=2, lora=None), sampled_prompts=0)
    assert report["steps"] == 2 and (tmp_path / "full" / "merged" / "model.safetensors").exists()
    with likely.load(str(tmp_path / "full" / "merged"), runtime="torch") as model:
        assert model.score("the cat", [" sat"])


def test_an_adapter_of_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_model.safetensors").touch()
    for config, message in (
        ({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path)}, "is an adapter, too"),
        ({"peft_type": "IA3", "base_model_name_or_path": "smollm2"}, "adapters of peft_type LORA are opened"),
        ({"peft_type": "LORA"}, "does not name the model"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=message):
            likely.load(str(tmp_path))


def test_methods_by_name():
    assert make_method("dpo", {"beta": 0.3}).link == dpo(beta=0.3).link
    with pytest.raises(ValueError, match='did you mean "dpo"'):
        make_method("dpoo", {})
    with pytest.raises(ValueError, match="dpo has no setting tau"):
        make_method("dpo", {"tau": 1})
    with pytest.raises(ValueError, match="beta must be a number"):
        make_method("dpo", {"beta": "big"})
