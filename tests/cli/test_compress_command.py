from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from tiny_gguf import write_tiny_llama


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "wide.gguf", dim=64, ffn=128)


def test_compress_then_compare(cli, wide, tmp_path):
    made = cli("compress", wide, "--scheme", "w8g32", "--out", tmp_path / "w8.gguf", "--json").json
    assert made["bytes"] == (tmp_path / "w8.gguf").stat().st_size and made["scheme"] == "w8g32"
    said = cli("compress", wide, "--scheme", "w4g64", "--out", tmp_path / "w4.gguf")
    assert said.code == 0 and "4.50 bits per quantised weight" in said.out and "likely compare" in said.err
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 20)
    both = cli(
        "compare", wide, tmp_path / "w8.gguf", tmp_path / "w4.gguf", "--data", text, "--tokens", 120, "--length", 40,
        "--threads", 1, "--json",
    ).json["candidates"]  # fmt: skip
    assert 0 < both[0]["kl"] < both[1]["kl"] and both[0]["tokens"] == 3 * 39
    one = cli("compare", wide, tmp_path / "w8.gguf", "--data", text, "--tokens", 120, "--length", 40, "--json").json
    assert one["kl"] == pytest.approx(both[0]["kl"], rel=1e-4)
    assert {"kl", "kl_se", "top1", "perplexity", "reference_perplexity", "bytes"} <= one.keys()
    table = cli("compare", wide, wide, "--data", text, "--tokens", 120, "--length", 40, "--threads", 1)
    assert "0.0000" in table.out and "100.0%" in table.out


def test_errors_come_before_the_work(cli, wide, tmp_path):
    for arguments, message in (
        (("--scheme", "w3g32", "--out", tmp_path / "a.gguf"), "no GGUF type"),
        (("--scheme", "w4k", "--out", tmp_path / "a.gguf"), "is not understood"),
        (("--method", "rnt", "--out", tmp_path / "a.gguf"), 'did you mean "rtn"'),
        (("--out", tmp_path / "nosuch" / "a.gguf"), "create it first"),
        (("--sparsity", "0.5", "--out", tmp_path / "a.gguf"), "no sparsity"),
        (("--method", "gptq", "--calibration", "", "--out", tmp_path / "a.gguf"), "no data set"),
        (("--method", "gptq", "--calibration", tmp_path, "--out", tmp_path / "a.gguf"), "is not a file"),
        ((), "Missing option"),
    ):
        done = cli("compress", wide, *arguments)
        assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1, done.err
    assert "another tokenizer" in cli("compare", wide, write_other(tmp_path), "--data", "python_stdlib").err
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert "has 0 tokens" in cli("compare", wide, wide, "--data", empty).err
    assert "named twice" in cli("compare", wide, "x", "x").err


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_a_command_that_is_ended_leaves_nothing_behind(wide, tmp_path):
    program = (
        "import os, signal, likely.models.convert as convert; from likely.cli import main\n"
        "convert._sync = lambda path: os.kill(os.getpid(), signal.SIGTERM)\nmain()"
    )
    arguments = ["compress", wide, "--scheme", "w8", "--out", tmp_path / "w8.gguf"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr.strip() == "" and list(tmp_path.iterdir()) == []


def test_too_little_memory_is_said_in_a_line(cli, wide, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("likely.compression.methods.compress", fail)
    done = cli("compress", wide, "--out", tmp_path / "w4.gguf")
    assert done.code == 1 and done.err.startswith("Error: out of memory (Unable to allocate 9 GiB): take a smaller")


def test_stats_of_several_texts(cli, wide, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 20)
    options = ("--calibration", text, "--calibration", "python_stdlib", "--windows", 2, "--length", 32)
    said = cli("stats", wide, *options)
    assert said.code == 0 and len(said.out.splitlines()) == 1 + 2 * 6 and "down" in said.out
    rows = cli("stats", wide, *options, "--json").json["rows"]
    assert len(rows) == 2 * 2 * 6 * 3  # sets, layers, inputs, first and other tokens and both
    assert all(row["absmax"] >= row["q5"] > 0 for row in rows)
    assert "does not exist" in cli("stats", wide, "--calibration", "nosuch.txt").err


def write_other(folder):
    return write_tiny_llama(folder / "other.gguf", vocab=300)


def test_formats_of_keys_and_values_are_compared(cli, wide, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 20)
    rest = ("--data", text, "--tokens", 80, "--length", 40, "--threads", 1)
    coarse = cli("compare", wide, wide, "--kv", "bfp11n16", *rest, "--json").json
    fine = cli("compare", wide, wide, "--kv", "bfp16n16", "--k-sort", *rest, "--json").json
    assert 0 < fine["kl"] < coarse["kl"] and fine["k_sort"] and not coarse["k_sort"]
    assert coarse["kv_bytes_per_token"] / fine["kv_bytes_per_token"] == pytest.approx(3.5 / 8.5)
    for sort in ((), ("--k-sort",)):
        native = cli("compare", wide, wide, "--kv", "bfp16n16", *sort, "--candidate-runtime", "native", *rest, "--json")
        assert native.json["kl"] == pytest.approx(fine["kl"], rel=0.5) and native.json["runtime"] == "native"
        assert native.json["kv_bytes_per_token"] == fine["kv_bytes_per_token"]
    assert "bytes a token" in cli("compare", wide, wide, "--kv", "bfp16n16", *rest).out
    for arguments, message in (
        (("--kv", "bfp12n80"), "do not divide"),
        (("--kv", "q4"), "bfp12"),
        (("--kv", ""), "is not understood"),
        (("--kv", "q8_0"), "a format of native and llamacpp"),
        (("--kv", "bfp12", "--candidate-runtime", "recurrent"), "choose torch, native or llamacpp"),
        (("--k-sort",), "--kv bfp12"),
        (("--kv", "bfp12", "--k-sort", "--candidate-runtime", "llamacpp"), "torch and native"),
    ):
        done = cli("compare", wide, wide, *arguments, *rest)
        assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1, done.err


def test_help_begins_with_commands(cli):
    for verb in ("compress", "compare"):
        assert "Examples:" in cli(verb, "--help").out
    assert "rtn" in cli("compress", "--help").out
