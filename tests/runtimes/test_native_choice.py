"""likely.load(engine=, use=): which runtime computes, what is measured, what is refused."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, LikelyError, ModelError
from likely.io.hashes import file_sha256
from likely.models import load as loading
from likely.models.load import ENGINES, USES, load_local
from likely.runtimes.cost_curve import CallCost, CostCurve
from likely.runtimes.machine import machine
from likely.runtimes.native.architecture import Architecture

CPU = machine().cpu


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=3)


@pytest.fixture(autouse=True)
def cache(native_library, tmp_path, monkeypatch):
    """Nothing is measured yet."""
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))


def store(path, runtime, engine, single, batch, scoring, *, cpu=CPU, source=None):
    """A curve as `likely bench` leaves it, of these seconds per token."""
    decode = [CallCost(runtime, engine, 1, 1, 128, 1, cpu, 1e3 * single, 1 / single)]
    decode.append(CallCost(runtime, engine, 16, 16, 128, 1, cpu, 16e3 * batch, 1 / batch))
    decode.append(CallCost(runtime, engine, 64, 1, 128, 1, cpu, 0.001, 1e9))  # many positions of one text: no use
    decode.append(CallCost(runtime, engine, 1, 1, 512, 1, cpu, 0.001, 1e9))  # a longer context: not compared
    prefill = CallCost(runtime, engine, 512, 1, 0, 1, cpu, 512e3 * scoring, 1 / scoring, "prefill")
    source = file_sha256(path) if source is None else source
    return CostCurve(f"{source[:8]}-{runtime}-{engine}-{cpu}", [*decode, prefill], source).save()


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


@pytest.mark.parametrize("asked", [{"engine": "auto"}, {"runtime": "auto"}, {"engine": "auto", "runtime": "auto"}])
def test_auto_is_the_fastest_for_each_use(path, asked):
    store(path, "llamacpp", "f32", single=1, batch=9, scoring=9)
    store(path, "torch", "float32", single=9, batch=2, scoring=9)
    store(path, "torch", "bfloat16", single=5, batch=5, scoring=5)
    store(path, "native", "int8", single=9, batch=9, scoring=3)
    assert chosen(path, **asked) == chosen(path, use="single", **asked) == ("llamacpp", "f32")
    assert chosen(path, use="batch", **asked) == ("torch", "float32")
    assert chosen(path, use="scoring", **asked) == ("native", "int8")


def test_any_curves_give_the_smallest_time(path):
    """Over random times of every engine: the one that a person would pick from the table of `likely bench`."""
    rng = np.random.default_rng(0)
    engines = [("llamacpp", "f32"), *(("native", dtype) for dtype in ENGINES.values()), ("torch", "float32")]
    have = dict.fromkeys(("llamacpp", "native", "torch"), True)
    for _ in range(20):
        times = rng.permutation(len(engines) * 3).reshape(-1, 3) + 1.0
        for (runtime, dtype), row in zip(engines, times, strict=True):
            store(path, runtime, dtype, *row)
        for i, use in enumerate(USES):
            runtime, dtype = engines[int(times[:, i].argmin())]
            expected = (runtime, None if runtime == "llamacpp" else dtype)
            assert loading._fastest("gguf", path, None, use, have) == expected
            others = have | {runtime: False}  # not installed: the best of the rest
            left = [j for j, (name, _) in enumerate(engines) if name != runtime]
            best = engines[min(left, key=lambda j, i=i: times[j, i])]
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
        assert chosen(path, engine="auto", use=use) == chosen(path) == ("llamacpp", "f32")


def test_curves_of_other_processors_and_models_and_broken_ones_do_not_count(path):
    store(path, "torch", "float32", 1, 1, 1, cpu="another processor")
    store(path, "torch", "bfloat16", 1, 1, 1, source="0" * 64)
    store(path, "native", "int8", 1, 1, 1).write_text("{broken")
    CostCurve("no-rows", [], file_sha256(path)).save()
    assert chosen(path, engine="auto") == chosen(path)


def test_a_batch_is_judged_by_the_largest_that_was_measured(path):
    rows = [CallCost("toy", "toy", n, n, 128, 1, CPU, 1e3 * n * s, 1 / s) for n, s in ((1, 1.0), (4, 3.0), (16, 2.0))]
    assert CostCurve("x", rows).seconds_per_token("batch") == 2.0
    assert CostCurve("x", rows).seconds_per_token("single") == 1.0
    assert CostCurve("x", rows[:1]).seconds_per_token("batch") is None
    assert CostCurve("x", rows).seconds_per_token("scoring") is None


def test_a_use_that_was_not_measured_is_not_guessed(path):
    sha256 = file_sha256(path)
    CostCurve("only-decode", [CallCost("torch", "float32", 1, 1, 128, 1, CPU, 1.0, 1e3)], sha256).save()
    assert chosen(path, engine="auto", use="single") == ("torch", "float32")
    for use in ("batch", "scoring"):
        assert chosen(path, engine="auto", use=use) == chosen(path)


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "dtype"), ENGINES.items())
def test_an_engine_is_the_native_runtime_in_a_dtype(path, engine, dtype):
    for options in ({"engine": engine}, {"runtime": "native", "dtype": dtype}, {"engine": engine, "runtime": "native"}):
        with likely.load(str(path), threads=1, context=99, **options) as lm:
            assert (lm.info.runtime, lm.info.dtype, lm.runtime.kind) == ("native", dtype, engine)
            assert lm.info.sha256 == file_sha256(path) and lm.info.source == str(path) and lm.info.template
            assert lm.runtime.limits.tokens_held == 99 and lm.runtime.threads == 1


def test_int8_is_the_native_runtimes_default_and_int8_means_native(path):
    assert chosen(path, runtime="native") == chosen(path, dtype="int8") == ("native", "int8")


def test_the_same_text_has_the_same_tokens_and_probabilities_as_on_torch(path):
    prompt, answers = "the cat sat on", [" the mat", " a dog", ""]
    with likely.load(str(path), engine="float32") as ours, likely.load(str(path), runtime="torch") as theirs:
        assert ours.info.tokenizer == theirs.info.tokenizer
        for a, b in zip(ours.score(prompt, answers[:2]), theirs.score(prompt, answers[:2]), strict=True):
            assert a.token_ids == b.token_ids
            np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, rtol=0, atol=1e-4)
        assert ours.generate(prompt, max_tokens=12).token_ids == theirs.generate(prompt, max_tokens=12).token_ids


def test_progress_is_told_while_weights_are_packed(path):
    steps = []
    for _ in range(2):
        load_local(str(path), engine="int8", threads=1, progress=lambda *step: steps.append(step)).runtime.shutdown()
        assert steps[-1][0] == steps[-1][1] and steps.count(steps[-1]) == 1
    load_local(str(path), runtime="llamacpp", progress=lambda *_: pytest.fail("nothing is packed")).runtime.shutdown()


# --- in the stead of the native engine ------------------------------------------------------------------------------


@pytest.fixture
def unknown(monkeypatch):
    """An architecture that the native engine does not compute."""

    def refuse(config):
        raise CapabilityError("the native engine runs llama, not this: use runtime='torch'")

    monkeypatch.setattr(Architecture, "of_config", refuse)


@pytest.mark.parametrize("engine", ["bfloat16", "float32"])
def test_transformers_runs_what_the_engine_does_not_know(path, unknown, engine):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with likely.load(str(path), engine=engine, threads=1, progress=print) as lm:
            assert (lm.info.runtime, lm.info.dtype) == ("torch", ENGINES[engine])
    lines = [str(w.message) for w in caught if "native engine" in str(w.message)]
    assert len(lines) == 1 and "transformers" in lines[0] and "\n" not in lines[0]


def test_nothing_stands_in_for_int8_or_for_a_runtime_by_name(path, unknown):
    for options in ({"engine": "int8"}, {"runtime": "native"}, {"runtime": "native", "dtype": "bfloat16"}):
        one_line(lambda options=options: likely.load(str(path), **options), "torch", error=CapabilityError)


def test_nothing_stands_in_for_a_broken_model(path, monkeypatch):
    """A fallback is for what the engine cannot do, not for files that are wrong."""

    def broken(config):
        raise ModelError("config.json: hidden_size must be a positive number")

    monkeypatch.setattr(Architecture, "of_config", broken)
    one_line(lambda: likely.load(str(path), engine="bfloat16"), "hidden_size", error=ModelError)


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "int9"}, ['unknown engine "int9"', 'did you mean "int8"', "auto"]),
        ({"engine": "bf61"}, ['did you mean "bfloat16"']),
        ({"engine": "native"}, ["unknown engine", "int8, bf16, fp32, auto"]),
        ({"runtime": "natve"}, ['did you mean "native"']),
        ({"runtime": "native", "dtype": "bfloat61"}, ['did you mean "bfloat16"']),
        ({"runtime": "native", "dtype": "int9"}, ['did you mean "int8"']),
        ({"engine": "auto", "use": "scorng"}, ['unknown use "scorng"', 'did you mean "scoring"']),
        ({"use": "bacth"}, ['did you mean "batch"']),
        ({"engine": "int8", "dtype": "int8"}, ["leave out", "dtype"]),
        ({"engine": "float32", "dtype": "bfloat16"}, ["leave out", "bfloat16"]),
        ({"engine": "auto", "dtype": "float32"}, ["leave out", "float32"]),
        ({"engine": "auto", "runtime": "torch"}, ["leave out", "torch"]),
        ({"runtime": "torch", "dtype": "int8"}, ["torch", "int8", 'runtime="native"']),
        ({"runtime": "llamacpp", "dtype": "int8"}, ["llamacpp", "int8", 'runtime="native"']),
        ({"runtime": "native", "dtype": "float16"}, ["float16", "bfloat16", "int8"]),
        ({"runtime": "native", "align": "repad"}, ["align", "torch"]),
        ({"engine": "int8", "align": "grup"}, ['did you mean "group"']),
    ],
)
def test_wrong_words_and_contradictions_are_one_line(path, options, words):
    one_line(lambda: likely.load(str(path), **options), *words)


def test_every_pair_of_engine_and_another_runtime_is_refused(path):
    for engine, runtime in itertools.product(ENGINES, ("torch", "llamacpp", "auto")):
        one_line(lambda e=engine, r=runtime: likely.load(str(path), engine=e, runtime=r), "leave out", runtime)


def test_a_server_chooses_its_own_engine():
    one_line(lambda: likely.load("http://127.0.0.1:9", engine="int8"), "server", "engine")


def test_a_name_that_is_wrong_is_seen_before_anything_is_read(tmp_path):
    one_line(lambda: likely.load(str(tmp_path / "no.gguf"), engine="int9"), "int9")
    one_line(lambda: likely.load(str(tmp_path / "no.gguf"), engine="int8"), "does not exist")
