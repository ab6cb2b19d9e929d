"""The object a user holds, on a tiny model with both engines, and on the toy where laws are exact."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, ConstraintError, DataError, LikelyError, ModelError
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime, exact_logprob
from likely.scoring.likelihood import Item, score_items


def toy_model(seed=1, **options):
    info = ModelInfo("toy", "toy", "toy", "float32", "0", "chars", template=False)
    return Model(ToyRuntime.random(7, seed=seed, **options), CharTokenizer("abcde", add_bos=True), info)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture(scope="module", params=["llamacpp", "torch"])
def lm(request, path):
    with likely.load(str(path), runtime=request.param) as model:
        yield model


def test_a_generation_is_scored_by_the_model_that_made_it():
    lm = toy_model()
    for seed in range(5):
        result = lm.generate("ab", max_tokens=9, seed=seed, temperature=1.3)
        exact = exact_logprob(lm.runtime, result.token_ids, given=(5, 0, 1))
        assert math.isclose(result.sequence_logprob, exact, abs_tol=1e-5)
        assert math.isclose(result.mean_logprob, exact / len(result.token_ids), abs_tol=1e-5)
        if result.finish_reason == "length":
            [scored] = lm.score("ab", [result.text])
            assert math.isclose(scored.sequence_logprob, exact, abs_tol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 2, "n": 3},
        {"temperature": 0.0, "beams": 3},
        {"temperature": 0.0, "drafter": "lookup", "draft_budget": 3},
        {"regex": "[abc ]{4,12}", "seed": 1},
        {"regex": "[abc ]{4,12}", "sampler": "smc", "particles": 4},
        {"heal": True, "seed": 1},
    ],
)
def test_entropies_are_those_of_scoring_and_guesses_are_counted(lm, options):
    """Whatever chooses the tokens, the entropy at each is the model's own there."""
    prompt = "ab ab ab"
    results = lm.generate(prompt, max_tokens=12, entropy=True, top_logprobs=1, **options)
    for result in results if isinstance(results, list) else [results]:
        assert len(result.entropies) == len(result.token_ids) == len(result.token_logprobs)
        assert (result.drafted is None) == (result.proposed == 0)
        if result.drafted is not None:
            assert sum(result.drafted) == result.accepted and len(result.drafted) == len(result.token_ids)
        if "heal" not in options and result.finish_reason == "length":
            tokens = lm.encode_prompt(prompt)
            [scored] = score_items(lm.runtime, [Item((*tokens, *result.token_ids), len(tokens))], entropy=True)
            assert result.entropies == pytest.approx(scored.entropies, abs=2e-3)


def test_shapes_of_results(lm):
    assert isinstance(lm.generate("ab", max_tokens=2), likely.Generation)
    assert [r.prompt_tokens for r in lm.generate(["a", "ab c"], max_tokens=2)] == [1, len(lm.encode_prompt("ab c"))]
    assert [r.sample for r in lm.generate("ab", max_tokens=2, n=3)] == [0, 1, 2]
    assert [[r.sample for r in group] for group in lm.generate(["a", "b"], max_tokens=2, n=2)] == [[0, 1], [0, 1]]
    assert lm.generate([], max_tokens=2) == []
    assert len(lm.generate("ab", max_tokens=3, beams=3, n=2, temperature=0.0)) == 2


def test_batches_equal_one_at_a_time(lm):
    prompts = ["a", "the cat", "x y z", "", "mat " * 9, "q", "zz"]
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_k": 9, "drafter": "lookup"}):
        for prompt, together in zip(prompts, lm.generate(prompts, max_tokens=8, **options), strict=True):
            alone = lm.generate(prompt, max_tokens=8, **options)
            assert alone.token_ids == together.token_ids and alone.text == together.text
            np.testing.assert_allclose(alone.token_logprobs, together.token_logprobs, atol=1e-4)


def test_both_engines_score_alike(path):
    pairs = [("the cat", " sat"), ("", "on the mat"), ("a", ""), ("x", "é\n1 2")]
    with likely.load(str(path), runtime="torch") as a, likely.load(str(path), runtime="llamacpp") as b:
        for ours, theirs in zip(a.score_pairs(pairs), b.score_pairs(pairs), strict=True):
            assert ours.token_ids == theirs.token_ids
            np.testing.assert_allclose(ours.token_logprobs, theirs.token_logprobs, atol=1e-3)


def test_streams_join_to_the_whole_and_can_be_stopped(lm):
    whole = lm.generate("ab", max_tokens=12, seed=2, min_tokens=12)
    stream = lm.stream("ab", max_tokens=12, seed=2, min_tokens=12)
    assert "".join(stream) == whole.text == stream.result.text
    assert stream.result.token_ids == whole.token_ids
    free = lm.runtime.free_tokens()
    stream = lm.stream("ab", max_tokens=50, seed=2, min_tokens=50)
    next(stream)
    partial = stream.close()
    assert partial.finish_reason == "cancelled" and whole.text.startswith(partial.text[:3])
    assert stream.close() is partial and lm.runtime.free_tokens() == free


def test_an_interrupted_consumer_keeps_the_partial_text(lm):
    stream = lm.stream("ab", max_tokens=40, min_tokens=40)
    with pytest.raises(KeyboardInterrupt):
        for _ in stream:
            raise KeyboardInterrupt
    assert stream.close().finish_reason == "cancelled"
    last, seen = lm.stream("ab", choices=["yes"]), ""
    while seen != "yes":
        seen += next(last)
    assert last.close().text == "yes"  # stopped while the last piece is read


def test_ask_and_chat_see_the_template(lm):
    answer = lm.ask("Hello?", max_tokens=3, system="Be kind.")
    assert answer.confidence is None and answer.prompt.count("Hello?") == 1 and "Be kind." in answer.prompt
    again = lm.chat([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}], max_tokens=3)
    assert again.prompt == answer.prompt
    with pytest.raises(DataError):
        lm.chat([])
    with pytest.raises(ValueError, match="empty"):
        lm.ask("  ")


def test_a_base_model_is_asked_in_plain_words_and_cannot_chat(tmp_path):
    with likely.load(str(write_tiny_llama(tmp_path / "b.gguf", chat_template=None))) as lm:
        assert lm.ask("Why?", max_tokens=3).prompt == "Question: Why?\nAnswer:"
        with pytest.raises(ModelError, match="no chat template"):
            lm.chat([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_token": 3}, TypeError, 'did you mean "max_tokens"'),
        ({"temperature": -1}, ValueError, "temperature"),
        ({"drafter": "magic"}, ValueError, "drafter"),
        ({"schema": {"uniqueItems": True}}, ConstraintError, "uniqueItems"),
        ({"beams": 2}, CapabilityError, "temperature=0"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"stop": [""]}, ValueError, "stop"),
    ],
)
def test_wrong_options_are_refused_by_name(options, error, words):
    with pytest.raises(error, match=words):
        toy_model().generate("ab", **options)


def test_answers_must_be_a_list():
    with pytest.raises(TypeError, match="list"):
        toy_model().score("ab", "c")


def test_load_refuses_in_one_line(path, tmp_path):
    for call, words in (
        (lambda: likely.load(str(path), runtime="llamacpp", dtype="float32"), "torch"),
        (lambda: likely.load("smollm3"), 'did you mean "smollm2"'),
        (lambda: likely.load(str(path), runtime="llama"), 'did you mean "llamacpp"'),
        (lambda: likely.load(str(path), dtype="fp32"), "float32"),
        (lambda: likely.load("http://127.0.0.1:9", dtype="float32"), "server"),
    ):
        with pytest.raises(LikelyError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_dtype_alone_chooses_torch(path):
    with likely.load(str(path), dtype="float32") as lm:
        assert lm.info.runtime == "torch" and lm.info.dtype == "float32" and len(lm.info.sha256) == 64


def test_both_engines_take_threads_and_context(path):
    for runtime in ("llamacpp", "torch"):
        with likely.load(str(path), runtime=runtime, threads=1, context=100) as lm:
            assert 100 <= lm.runtime.limits.tokens_held < 600
            assert lm.generate("a", max_tokens=2).token_ids


def test_importing_likely_is_light():
    code = "import sys, likely; print([m for m in ('torch', 'numpy', 'llama_cpp', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_llamacpp_path_imports_neither_torch_nor_half_of_scipy(path):
    code = (
        "import sys, likely\n"
        f"lm = likely.load({str(path)!r}, runtime='llamacpp')\n"
        "lm.score('a', ['b']); lm.generate('a', max_tokens=2); lm.ask('q', max_tokens=2)\n"
        "assert not {'torch', 'transformers', 'scipy.stats', 'scipy.optimize'} & sys.modules.keys()\n"
        "lm.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
