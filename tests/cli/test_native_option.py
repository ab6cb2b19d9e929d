"""The native runtime from the command line."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def compiled(native_library):
    """Before `cli` moves the cache folder."""


@pytest.fixture
def native(cli, tiny):
    def call(verb, text, *options, runtime="native"):
        return cli(verb, text, "-m", tiny, "--runtime", runtime, "--threads", 1, *options)

    return call


@pytest.mark.parametrize(
    ("asked", "dtype"), [(None, "int8"), ("int8", "int8"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_ask_says_what_computed(native, asked, dtype):
    done = native("ask", "Hello?", "--max-tokens", 5, "--json", *(["--dtype", asked] if asked else []))
    assert (done.json["runtime"], done.json["dtype"]) == ("native", dtype) and done.err == ""
    assert len(done.json["token_ids"]) == len(done.json["token_logprobs"])


def test_fp32_writes_what_torch_writes(native):
    texts = [
        native("generate", "the cat", "--max-tokens", 12, "-t", 0, "--dtype", "float32", runtime=runtime).out
        for runtime in ("native", "torch")
    ]
    assert texts[0] == texts[1] != ""


def test_drafts_change_no_text(native):
    options = ["--seed", 1, "--max-tokens", 16, "-t", 0.8]
    plain = native("generate", "the cat sat on the cat", *options)
    assert plain.code == 0
    assert native("generate", "the cat sat on the cat", *options, "--drafter", "lookup").out == plain.out


def test_auto_without_measurements_is_the_default(native, cli, tiny):
    record = native("ask", "Hello?", "--max-tokens", 3, "--json", runtime="auto").json
    assert record["runtime"] == cli("ask", "Hello?", "-m", tiny, "--max-tokens", 3, "--json").json["runtime"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--runtime", "natve"], 2, ['did you mean "native"']),
        (["--runtime", "native", "--dtype", "float16"], 1, ["float16", "int8"]),
        (["--runtime", "native", "--dtype", "int3"], 2, ["int3", "int8"]),
        (["--runtime", "torch", "--dtype", "int8"], 1, ['runtime="native"']),
        (["--runtime", "llamacpp", "--dtype", "int8"], 1, ['runtime="native"']),
    ],
)
def test_wrong_combinations_are_one_line(cli, tiny, options, code, words):
    done = cli("ask", "x", "-m", tiny, *options)
    assert done.code == code and done.out == ""
    (line,) = done.err.splitlines()
    assert all(word in line for word in words), line


def test_without_a_compiler_it_is_one_line(cli, tiny, monkeypatch, tmp_path):
    from likely.runtimes.native import build as native_build

    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("likely.runtimes.native.runtime.library", native_build.library.__wrapped__)
    done = cli("ask", "x", "-m", tiny, "--runtime", "native")
    assert done.code == 1 and len(done.err.splitlines()) == 1 and "C++ compiler" in done.err


def test_what_bench_measures_auto_then_uses(cli, tiny, monkeypatch, tmp_path):
    """One runtime measured: whatever its times, it is the fastest known."""
    from tiny_gguf import write_tiny_llama

    model = write_tiny_llama(tmp_path / "long.gguf", context=600)
    done = cli("bench", "-m", model, "--runtime", "native", "--quick", "--even-if-busy", "--threads", 1, "--json")
    assert {row["runtime"] for row in done.json["rows"]} == {"native"}
    assert {row["dtype"] for row in done.json["rows"]} == {"int8"}
    record = cli("ask", "Hello?", "-m", model, "--runtime", "auto", "--max-tokens", 2, "--json").json
    assert (record["runtime"], record["dtype"]) == ("native", "int8")
