"""Which runtime runs a model where none is named."""

from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.models import load as loading
from likely.models.load import load_local


@pytest.fixture
def path(tmp_path):
    return str(write_tiny_llama(tmp_path / "m.gguf"))


def runtime_of(path, **options):
    with likely.load(path, **options) as lm:
        return lm.info.runtime


def have(monkeypatch, *names):
    monkeypatch.setattr(loading, "available_runtimes", lambda: {name: name in names for name in loading.KINDS})


def test_a_gguf_file_runs_natively(path, native_library):
    assert runtime_of(path) == "native"


def test_where_that_is_missing_in_llama_cpp_then_in_torch(path, monkeypatch):
    have(monkeypatch, "llamacpp", "torch")
    assert runtime_of(path) == "llamacpp"
    have(monkeypatch, "torch")
    assert runtime_of(path) == "torch"


def test_a_large_file_whose_types_are_not_kept_runs_in_llama_cpp(path, monkeypatch, native_library):
    monkeypatch.setattr(loading, "MOST_INT8_BYTES", 100)
    assert runtime_of(path) == "native"
    monkeypatch.setattr("likely.runtimes.native.library.TYPES", ("Q4_0",))  # the file has others
    assert runtime_of(path) == "llamacpp"
    have(monkeypatch, "native", "torch")
    assert runtime_of(path) == "native"


def test_options_choose_among_runtimes(path, native_library):
    assert runtime_of(path, invariant=False) == "llamacpp"
    assert runtime_of(path, device="cpu") == "torch"
    assert runtime_of(path, dtype="float32") == "torch"
    assert runtime_of(path, dtype="int8") == "native"


def test_an_architecture_that_the_native_runtime_does_not_know_runs_in_the_next_one(path, monkeypatch, native_library):
    monkeypatch.setattr("likely.runtimes.native.architecture.MODEL_TYPES", ("other",))
    assert runtime_of(path) == "llamacpp"
    with pytest.raises(likely.errors.CapabilityError, match="native runtime runs"):
        load_local(path, runtime="native")


def test_the_default_model_has_a_system_message_and_a_penalty_of_its_own(monkeypatch, path):
    from likely.models.catalog import known_model

    known = known_model("smollm2")
    assert known.system and known.settings["frequency_penalty"] > 0
    assert known_model("gemma3").system is None


def test_settings_of_a_model_stand_between_defaults_and_what_is_given(path):
    with likely.load(path) as lm:
        lm.own_settings = {"repetition_penalty": 1.1}
        assert lm.settings({"temperature": 0.0}, {}) == {"temperature": 0.0, "repetition_penalty": 1.1}
        assert lm.settings({}, {"repetition_penalty": 1.3}) == {"repetition_penalty": 1.3}
        assert lm.settings({}, {"regex": "a"}) == {"regex": "a"}


def test_a_system_message_of_the_model_begins_a_conversation_without_one(path):
    from dataclasses import replace

    with likely.load(path) as lm:
        hello = [{"role": "user", "content": "Hello"}]
        plain = lm.render(hello).text
        lm.info = replace(lm.info, system="Be brief.")
        assert lm.render(hello).text == lm.render([{"role": "system", "content": "Be brief."}, *hello]).text != plain
        own = [{"role": "system", "content": "Other."}, *hello]
        assert (
            "Be brief." not in lm.render(own).text
            and "Be brief." not in lm.render([{**own[0], "content": ""}, *hello]).text
        )
