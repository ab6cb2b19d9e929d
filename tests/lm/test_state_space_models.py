"""A converted Mamba folder is a model like any other: it scores, generates with drafts and a schema, and serves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from helpers_for_serving import ask
from tiny_states import readable_folder

import likely
from likely.errors import CapabilityError
from likely.sequence.convert import convert_folder

PROMPT = "abcabcabcabc"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
}


@pytest.fixture(scope="module")
def source():
    return readable_folder("mamba")


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    return convert_folder(source, tmp_path_factory.mktemp("converted") / "mamba").target


@pytest.fixture(scope="module")
def lm(folder):
    with likely.load(folder, context=4096, threads=1) as model:
        yield model


def test_it_opens_on_the_recurrent_runtime(lm, source):
    assert (lm.info.runtime, lm.info.dtype, lm.info.kv_bytes_per_token) == ("recurrent", "float32", 0)
    with likely.load(source, threads=1, checkpoint_every=8) as theirs:  # the folder of transformers as it is
        assert theirs.info.runtime == "recurrent" and theirs.runtime.checkpoint_every == 8
        one, other = (model.score(PROMPT, ["abc", "d"]) for model in (lm, theirs))
        for ours, same in zip(one, other, strict=True):
            np.testing.assert_allclose(ours.token_logprobs, same.token_logprobs, atol=1e-5)


def test_scores_are_those_of_transformers(lm, source):
    answers = ["abc", " and more", "x"]
    module = transformers.AutoModelForCausalLM.from_pretrained(source)
    prompt = lm.encode_prompt(PROMPT)
    for _answer, scored in zip(answers, lm.score(PROMPT, answers), strict=True):
        ids = torch.tensor([[*prompt, *scored.token_ids]])
        with torch.no_grad():
            rows = module(ids).logits[0].log_softmax(-1)
        expected = rows[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        np.testing.assert_allclose(scored.token_logprobs, expected.numpy(), atol=1e-4)
        assert scored.sequence_logprob == pytest.approx(float(expected.sum()), abs=1e-3)


@pytest.mark.parametrize("drafter", ["lookup", "suffix", "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_text(lm, drafter, temperature):
    settings = {"max_tokens": 24, "temperature": temperature, "seed": 5}
    plain, drafted = (lm.generate(PROMPT, drafter=name, **settings) for name in (None, drafter))
    assert drafted.token_ids == plain.token_ids
    np.testing.assert_allclose(drafted.token_logprobs, plain.token_logprobs, atol=1e-4)


def test_another_state_space_model_drafts(lm):
    folder = readable_folder("mamba2")
    settings = {"max_tokens": 16, "temperature": 0.0}
    drafted = lm.generate(PROMPT, drafter=f"model:{folder}", draft_budget=4, **settings)
    assert drafted.token_ids == lm.generate(PROMPT, **settings).token_ids


def test_a_schema_with_and_without_drafts(lm):
    settings = {"schema": SCHEMA, "max_tokens": 64, "temperature": 0.8, "seed": 3}
    plain, drafted = (lm.generate(PROMPT, drafter=name, **settings) for name in (None, "lookup"))
    assert drafted.text == plain.text and drafted.token_ids == plain.token_ids
    found = json.loads(plain.text)
    assert set(found) == {"name", "n"} and 0 <= found["n"] <= 99 and len(found["name"]) <= 6


def test_batches_and_samples_are_those_alone(lm):
    prompts = [PROMPT, "a", "hello there, " * 9]
    together = lm.generate(prompts, max_tokens=9, temperature=0.7, seed=2)
    for prompt, found in zip(prompts, together, strict=True):
        assert found.token_ids == lm.generate(prompt, max_tokens=9, temperature=0.7, seed=2).token_ids
    samples = lm.generate(PROMPT, n=3, max_tokens=9, temperature=0.7, seed=2)
    assert samples[0].token_ids == together[0].token_ids
    assert len(lm.generate(PROMPT, beams=3, max_tokens=6, temperature=0.0).token_ids) <= 6


def test_it_serves(folder):
    with likely.load(folder, context=4096, threads=1) as model:
        expected = model.generate(PROMPT, max_tokens=10, temperature=0.0).text
        body = {"prompt": PROMPT, "max_tokens": 10, "temperature": 0}

        async def question(client):
            first = await client.ok("/v1/completions", **body)
            again = await client.ok("/v1/completions", **body)  # its beginning is kept in the prefix cache
            parts = await client.events("/v1/completions", **body)
            return first, again, "".join(part["choices"][0]["text"] for part in parts if part["choices"])

        first, again, streamed = ask(model, question)
    assert first["choices"][0]["text"] == again["choices"][0]["text"] == streamed == expected


def test_torch_runs_the_same_folder_and_other_dtypes(folder, lm):
    with likely.load(folder, runtime="torch", threads=1) as other:
        assert other.info.runtime == "torch" and not other.runtime.cached
        np.testing.assert_allclose(
            other.score(PROMPT, ["abc"])[0].token_logprobs, lm.score(PROMPT, ["abc"])[0].token_logprobs, atol=1e-4
        )
    with likely.load(folder, dtype="bfloat16", threads=1) as other:
        assert other.info.runtime == "torch"
    with pytest.raises(CapabilityError, match="recurrent computes in float32"):
        likely.load(folder, runtime="recurrent", dtype="bfloat16")
    with pytest.raises(CapabilityError, match="reads folders of state-space models"):
        likely.load("smollm2", runtime="recurrent")
