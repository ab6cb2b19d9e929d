"""Hidden states where an answer begins, and split points on a language model's options."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama
from toy_language import bigram

import likely
from likely.errors import CapabilityError, DataError
from likely.scoring import hidden
from likely.scoring.choices import choice_pairs, score_choices
from likely.scoring.hidden import hidden_states, option_features
from likely.uncertainty.split_point.classifier import SplitPointClassifier

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_tiny_llama(tmp_path_factory.mktemp("split") / "tiny.gguf", context=1024))


@pytest.fixture(scope="module")
def lm(path):
    with likely.load(path, runtime="torch", threads=1) as model:
        yield model


def arc(data_dir, n: int) -> list[dict]:
    with gzip.open(data_dir / "arc-easy" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    short = [r for r in records if len(r["choices"]) == 4 and len(r["question"]) < 100]
    return short[:n]


PROMPTS = ["the cat sat on", "a", "then they went on and on\nAnswer:", "the cat sat on the mat"]


def test_the_state_is_the_last_of_what_transformers_gives(lm):
    found = hidden_states(lm, PROMPTS)
    for row, prompt in zip(found, PROMPTS, strict=True):
        with torch.no_grad():
            out = lm.runtime.module(input_ids=torch.tensor([lm.encode_prompt(prompt)]), output_hidden_states=True)
        np.testing.assert_allclose(row, out.hidden_states[-1][0, -1].numpy(), atol=1e-4)
        logits = lm.runtime.module.get_output_embeddings()(torch.tensor(row, dtype=torch.float32))
        np.testing.assert_allclose(logits.detach().numpy(), out.logits[0, -1].numpy(), atol=1e-3)
    assert np.abs(found[0] - found[3]).max() > 0.1


def test_company_changes_nothing_and_nothing_stays_open(lm, monkeypatch):
    free, done = lm.runtime.free_tokens(), []
    together = hidden_states(lm, PROMPTS, progress=done.append)
    monkeypatch.setattr(hidden, "TOGETHER", 2)
    np.testing.assert_allclose(hidden_states(lm, PROMPTS, progress=done.append), together, atol=1e-5)
    assert done == [4, 2, 2] and lm.runtime.free_tokens() == free
    with pytest.raises(likely.errors.LikelyError):
        hidden_states(lm, ["a", "the cat " * 1000])
    assert lm.runtime.free_tokens() == free


def test_other_runtimes_say_what_would_work(path):
    class Server:
        pass

    with likely.load(path, runtime="llamacpp") as native:
        for model in (native, bigram(0), Server()):
            with pytest.raises(CapabilityError, match="hidden states; runtimes that do: torch, native"):
                hidden_states(model, ["abc"])


def test_bad_prompts_and_questions_are_refused(lm):
    with pytest.raises(TypeError, match="list of strings"):
        hidden_states(lm, "the cat")
    with pytest.raises(ValueError, match="no prompts"):
        hidden_states(lm, [])
    with pytest.raises(DataError, match="no questions"):
        option_features(lm, [])
    two = [
        {"question": "q", "choices": ["a", "b"], "answer": 0},
        {"question": "q", "choices": ["a", "b", "c"], "answer": 0},
    ]
    with pytest.raises(DataError, match="item 1: has 3 options, item 0 has 2"):
        option_features(lm, two)


@pytest.mark.parametrize("style", ["letters", "answers"])
def test_split_points_on_the_options_of_questions(lm, data_dir, style):
    items = arc(data_dir, 12)
    found = option_features(lm, items, style=style)
    assert found.hidden.shape[0] == 12 and found.probs.shape == (12, 4)
    assert found.labels.tolist() == [item["answer"] for item in items]
    for row, result in zip(found.probs, score_choices(lm, items, style=style).results, strict=True):
        assert row.max() == pytest.approx(result.raw_confidence) and row.argmax() == result.prediction
    prompt = choice_pairs(likely.scoring.choices.choice_item(items[3]), style=style, normalise="sum")[0][0]
    assert prompt.endswith("Answer:")
    np.testing.assert_allclose(hidden_states(lm, [prompt])[0], found.hidden[3], atol=1e-4)

    fitted = SplitPointClassifier(hidden=16, epochs=150, learning_rate=1e-2).fit(*found)
    seen = fitted.predict(found.hidden, found.probs)
    strange = fitted.predict(found.hidden + 30 * found.hidden.std(axis=0), found.probs)
    assert seen.probs.shape == (12, 4) and np.abs(seen.probs.sum(axis=1) - 1).max() < 1e-12
    assert strange.sds.mean() > 2 * seen.sds.mean()  # the same answers after states unlike those fitted
    hits = np.eye(4)[found.labels]
    error = np.abs(fitted.heads_["mar"](found.hidden) - np.abs(hits - found.probs)).mean()
    assert error < 0.1  # twelve rows can be learned by heart
