"""likely.load(runtime=, dtype=, use=): which runtime computes, what is measured, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, LikelyError, ModelError
from likely.io.hashes import file_sha256
from likely.models import load as loading
from likely.models.load import USES, load_local
from likely.runtimes.cost_curve import CallCost, CostCurve
from likely.runtimes.kinds import KINDS
from likely.runtimes.machine import machine
from likely.runtimes.native.architecture import Architecture

CPU = machine().cpu
NATIVE = KINDS["native"].dtypes


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=3)


@pytest.fixture(autouse=True)
def cache(native_library, tmp_path, monkeypatch):
    """Nothing is measured yet."""
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))


def store(path, runtime, dtype, single, batch, scoring, *, cpu=CPU, source=None):
    """A curve as `likely bench` leaves it, of these seconds per token."""
    decode = [CallCost(runtime, dtype, 1, 1, 128, 1, cpu, 1e3 * single, 1 / single)]
    decode.append(CallCost(runtime, dtype, 16, 16, 128, 1, cpu, 16e3 * batch, 1 / batch))
    decode.append(CallCost(runtime, dtype, 64, 1, 128, 1, cpu, 0.001, 1e9))  # many positions of one text: no use
    decode.append(CallCost(runtime, dtype, 1, 1, 512, 1, cpu, 0.001, 1e9))  # a longer context: not compared
    prefill = CallCost(runtime, dtype, 512, 1, 0, 1, cpu, 512e3 * scoring, 1 / scoring, "prefill")
    source = file_sha256(path) if source is None else source
    return CostCurve(f"{source[:8]}-{runtime}-{dtype}-{cpu}", [*decode, prefill], source).save()


def chosen(path, **options):
    loaded = load_local(str(path), threads=1, **options)
    loaded.runtime.shutdown()
    return loaded.info.runtime, loaded.info.dtype


def one_line(call, *words, error=LikelyError):
    with pytest.raises(error) as found:
        call()
    text = str(found.value)
    assert "\n" not in text and all(word in text for word in words), text


# --- auto -----------------------------------------------------------------------------------------------------------


def test_auto_is_the_fastest_for_each_use(path):
    store(path, "llamacpp", "f32", single=1, batch=9, scoring=9)
    store(path, "torch", "float32", single=9, batch=2, scoring=9)
    store(path, "torch", "bfloat16", single=5, batch=5, scoring=5)
    store(path, "native", "int8", single=9, batch=9, scoring=3)
    assert chosen(path, runtime="auto") == chosen(path, use="single", runtime="auto") == ("llamacpp", "f32")
    assert chosen(path, use="batch", runtime="auto") == ("torch", "float32")
    assert chosen(path, use="scoring", runtime="auto") == ("native", "int8")


def test_any_curves_give_the_smallest_time(path):
    """Over random times of every kind: the one that a person would pick from the table of `likely bench`."""
    rng = np.random.default_rng(0)
    kinds = [("llamacpp", "f32"), *(("native", dtype) for dtype in NATIVE), ("torch", "float32")]
    have = dict.fromkeys(("llamacpp", "native", "torch"), True)
    for _ in range(20):
        times = rng.permutation(len(kinds) * 3).reshape(-1, 3) + 1.0
        for (runtime, dtype), row in zip(kinds, times, strict=True):
            store(path, runtime, dtype, *row)
        for i, use in enumerate(USES):
            runtime, dtype = kinds[int(times[:, i].argmin())]
            expected = (runtime, None if runtime == "llamacpp" else dtype)
            assert loading._fastest("gguf", path, None, use, have) == expected
            others = have | {runtime: False}  # not installed: the best of the rest
            left = [j for j, (name, _) in enumerate(kinds) if name != runtime]
            best = kinds[min(left, key=lambda j, i=i: times[j, i])]
            assert loading._fastest("gguf", path, None, use, others)[0] == best[0]


def test_a_dtype_limits_the_choice(path):
    store(path, "llamacpp", "f32", 1, 1, 1)
    store(path, "native", "int8", 2, 2, 2)
    store(path, "torch", "float32", 3, 3, 3)
    store(path, "native", "float32", 4, 4, 4)
    assert chosen(path, runtime="auto", dtype="float32") == ("torch", "float32")
    assert chosen(path, runtime="auto", dtype="int8") == ("native", "int8")
    assert chosen(path, runtime="auto", dtype="bfloat16") == chosen(path, dtype="bfloat16")  # nothing measured


def test_without_measurements_auto_is_the_default(path):
    for use in USES:
        assert chosen(path, runtime="auto", use=use) == chosen(path) == ("native", "int8")


def test_curves_of_other_processors_and_models_and_broken_ones_do_not_count(path):
    store(path, "torch", "float32", 1, 1, 1, cpu="another processor")
    store(path, "torch", "bfloat16", 1, 1, 1, source="0" * 64)
    store(path, "native", "int8", 1, 1, 1).write_text("{broken")
    CostCurve("no-rows", [], file_sha256(path)).save()
    assert chosen(path, runtime="auto") == chosen(path)


def test_a_batch_is_judged_by_the_largest_that_was_measured(path):
    rows = [CallCost("toy", "toy", n, n, 128, 1, CPU, 1e3 * n * s, 1 / s) for n, s in ((1, 1.0), (4, 3.0), (16, 2.0))]
    assert CostCurve("x", rows).seconds_per_token("batch") == 2.0
    assert CostCurve("x", rows).seconds_per_token("single") == 1.0
    assert CostCurve("x", rows[:1]).seconds_per_token("batch") is None
    assert CostCurve("x", rows).seconds_per_token("scoring") is None


def test_a_use_that_was_not_measured_is_not_guessed(path):
    sha256 = file_sha256(path)
    CostCurve("only-decode", [CallCost("torch", "float32", 1, 1, 128, 1, CPU, 1.0, 1e3)], sha256).save()
    assert chosen(path, runtime="auto", use="single") == ("torch", "float32")
    for use in ("batch", "scoring"):
        assert chosen(path, runtime="auto", use=use) == chosen(path)


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NATIVE)
def test_the_native_runtime_computes_in_the_dtype_it_is_given(path, dtype):
    with likely.load(str(path), threads=1, context=99, runtime="native", dtype=dtype) as lm:
        assert (lm.info.runtime, lm.info.dtype, lm.runtime.dtype) == ("native", dtype, dtype)
        assert lm.info.sha256 == lm.runtime.sha256 == file_sha256(path)
        assert lm.info.source == str(path) and lm.info.template
        assert lm.runtime.limits.tokens_held == 99 and lm.runtime.threads == 1


def test_int8_is_the_native_runtimes_default_and_int8_means_native(path):
    assert chosen(path, runtime="native") == chosen(path, dtype="int8") == ("native", "int8")


def test_the_same_text_has_the_same_tokens_and_probabilities_as_on_torch(path):
    prompt, answers = "the cat sat on", [" the mat", " a dog", ""]
    with (
        likely.load(str(path), runtime="native", dtype="float32") as ours,
        likely.load(str(path), runtime="torch") as theirs,
    ):
        assert ours.info.tokenizer == theirs.info.tokenizer
        for a, b in zip(ours.score(prompt, answers[:2]), theirs.score(prompt, answers[:2]), strict=True):
            assert a.token_ids == b.token_ids
            np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, rtol=0, atol=1e-4)
        assert ours.generate(prompt, max_tokens=12).token_ids == theirs.generate(prompt, max_tokens=12).token_ids


def test_progress_is_told_while_weights_are_packed(path):
    steps = []
    for _ in range(2):
        load_local(str(path), dtype="int8", threads=1, progress=lambda *step: steps.append(step)).runtime.shutdown()
        assert steps[-1][0] == steps[-1][1] and steps.count(steps[-1]) == 1
    load_local(str(path), runtime="llamacpp", progress=lambda *_: pytest.fail("nothing is packed")).runtime.shutdown()


# --- nothing stands in for the native runtime ------------------------------------------------------------------------


def test_nothing_stands_in_for_what_it_does_not_know(path, monkeypatch):
    def refuse(config):
        raise CapabilityError("the native runtime runs llama, not this: use runtime='torch'")

    monkeypatch.setattr(Architecture, "of_config", refuse)
    for options in ({"dtype": "int8"}, {"runtime": "native"}, {"runtime": "native", "dtype": "bfloat16"}):
        one_line(lambda options=options: likely.load(str(path), **options), "torch", error=CapabilityError)


def test_nothing_stands_in_for_a_broken_model(path, monkeypatch):
    def broken(config):
        raise ModelError("config.json: hidden_size must be a positive number")

    monkeypatch.setattr(Architecture, "of_config", broken)
    one_line(lambda: likely.load(str(path), runtime="native"), "hidden_size", error=ModelError)


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "natve"}, ['unknown runtime "natve"', 'did you mean "native"', "auto"]),
        ({"runtime": "int8"}, ["unknown runtime", "llamacpp, torch, native, recurrent, auto"]),
        ({"runtime": "native", "dtype": "bfloat61"}, ['did you mean "bfloat16"']),
        ({"runtime": "native", "dtype": "int9"}, ['did you mean "int8"']),
        ({"runtime": "auto", "use": "scorng"}, ['unknown use "scorng"', 'did you mean "scoring"']),
        ({"use": "bacth"}, ['did you mean "batch"']),
        ({"runtime": "torch", "dtype": "int8"}, ["torch", "int8", 'runtime="native"']),
        ({"runtime": "llamacpp", "dtype": "int8"}, ["llamacpp", "int8", 'runtime="native"']),
        ({"runtime": "llamacpp", "dtype": "bfloat16"}, ['runtime="torch" or runtime="native"']),
        ({"runtime": "native", "dtype": "float16"}, ["float16", "bfloat16", "int8", 'runtime="torch"']),
        ({"runtime": "torch", "invariant": True}, ["invariant", "llamacpp"]),
        ({"runtime": "llamacpp", "device": "cpu"}, ["device", "torch"]),
    ],
)
def test_wrong_words_and_contradictions_are_one_line(path, options, words):
    one_line(lambda: likely.load(str(path), **options), *words)


def test_an_option_that_does_not_exist_is_an_error_that_names_the_nearest(path):
    with pytest.raises(TypeError, match='no option contxt=; did you mean "context"'):
        likely.load(str(path), contxt=100)
    with pytest.raises(TypeError, match="no option engine="):
        likely.load(str(path), engine="int8")
    with pytest.raises(TypeError, match='server has no option api_ky=; did you mean "api_key"'):
        likely.load("http://127.0.0.1:9", api_ky="x")


def test_an_option_of_none_is_the_default(path):
    assert chosen(path, kv_dtype=None, device=None) == chosen(path)


def test_a_server_chooses_its_own_runtime():
    one_line(lambda: likely.load("http://127.0.0.1:9", dtype="int8"), "server", "dtype")


def test_a_name_that_is_wrong_is_seen_before_anything_is_read(tmp_path):
    one_line(lambda: likely.load(str(tmp_path / "no.gguf"), runtime="int9"), "int9")
    one_line(lambda: likely.load(str(tmp_path / "no.gguf"), dtype="int8"), "does not exist")
