"""likely draft: memories are built from corpora, shown, and used by generate."""

from __future__ import annotations

import json
import os

import pytest

from likely.decoding.drafting.table import DrafterContext, make_drafter
from likely.models.load import load_local

TEXT = "the cat sat on the mat and the cat sat on the hat"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT, "other": "a b"}) + "\n" for _ in range(3)))
    return path


@pytest.mark.parametrize("kind", ["trigram", "ngram", "suffix"])
def test_each_kind_is_built_shown_and_loaded(cli, tiny, corpus, tmp_path, kind):
    file = tmp_path / "memory"
    built = cli("draft", "build", corpus, "-o", file, "--kind", kind, "-m", tiny, "--json").json
    assert built["texts"] == 3 and built["tokens"] > 30 and built["size_bytes"] == file.stat().st_size
    shown = cli("draft", "show", file, "--json").json
    assert shown["kind"] == kind and shown["size_bytes"] == built["size_bytes"] and shown["arrays"]
    lines = cli("draft", "show", file).out.splitlines()
    assert lines[0].split() == ["kind", kind] and lines[1].split()[0] == "tokenizer"
    loaded = load_local(str(tiny))
    try:
        assert shown["tokenizer"] == loaded.tokenizer.fingerprint
        source = make_drafter(f"{kind}:{file}", DrafterContext(loaded.runtime, loaded.tokenizer))
        assert source is not None and source.name == kind
    finally:
        loaded.runtime.shutdown()


def test_a_built_memory_serves_generate_and_changes_no_text(cli, tiny, corpus, tmp_path):
    file = tmp_path / "memory"
    done = cli("draft", "build", corpus, "-o", file, "-m", tiny)
    assert done.code == 0 and f"--drafter trigram:{file}" in done.out and done.err == ""
    arguments = ("generate", "the cat", "-m", tiny, "--max-tokens", 12, "--threads", 1)
    plain, drafted = cli(*arguments), cli(*arguments, "--drafter", f"trigram:{file}")
    assert plain.code == drafted.code == 0 and plain.out == drafted.out


def test_texts_come_from_several_files_and_another_field(cli, tiny, corpus, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("the mat\nthe hat\n")
    both = cli("draft", "build", corpus, text, "--field", "other", "-o", tmp_path / "m", "-m", tiny, "--json").json
    assert both["texts"] == 4
    one = cli("draft", "build", corpus, "-o", tmp_path / "n", "-m", tiny, "--limit", 1, "--json").json
    piped = cli("draft", "build", "-", "-o", tmp_path / "p", "-m", tiny, "--json", stdin=json.dumps({"text": TEXT}))
    assert one["texts"] == 1 and piped.json["tokens"] == one["tokens"]


def test_long_text_files_become_tokens_in_pieces(monkeypatch):
    from likely.cli.verbs.speed import draft

    monkeypatch.setattr(draft, "PIECE", 7)
    text = "one two\nthree\n\nfour five six seven\nend"
    pieces = list(draft._pieces(text))
    assert "".join(pieces) == text and len(pieces) == 3 and all(p.endswith("\n") for p in pieces[:-1])
    assert list(draft._pieces("")) == []


def test_settings_of_a_kind(cli, tiny, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(json.dumps({"text": "a b a c a d " * 4}))

    def entries(*settings):
        arguments = ("draft", "build", corpus, "-m", tiny, "-o", tmp_path / "m", "--overwrite", *settings)
        assert cli(*arguments).code == 0
        return cli("draft", "show", tmp_path / "m", "--json").json["arrays"]["tokens"][0]

    assert entries("-s", "top=1") <= entries() and entries("-s", "min_count=100") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kind", "trigrams"], 2, 'unknown kind "trigrams"; did you mean "trigram"'),
        (["-s", "tops=3"], 2, 'has no setting "tops"; did you mean "top"'),
        (["-s", "top=many"], 2, "top must be a number, got 'many'"),
        (["--field", "texts"], 1, 'corpus.jsonl:1: field "texts" is missing'),
    ],
)
def test_wrong_use_is_one_line(cli, tiny, corpus, tmp_path, arguments, code, message):
    done = cli("draft", "build", corpus, "-o", tmp_path / "m", "-m", tiny, *arguments)
    assert done.code == code and message in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_files_that_cannot_be_used(cli, tiny, corpus, tmp_path):
    def fails(code, message, *arguments):
        done = cli("draft", *arguments)
        assert done.code == code and message in done.err and done.err.count("\n") == 1, done.err

    out = tmp_path / "m"
    fails(1, "not a draft memory", "show", corpus)
    fails(1, "not a draft memory", "show", tmp_path / "nothing")
    fails(1, "cannot read", "build", tmp_path / "nothing.jsonl", "-o", out, "-m", tiny)
    fails(1, "a corpus is .jsonl", "build", tiny, "-o", out, "-m", tiny)
    fails(2, "would replace the input", "build", corpus, "-o", corpus, "-m", tiny, "--overwrite")
    out.write_text("old")
    fails(2, "exists: choose another file or --overwrite", "build", corpus, "-o", out, "-m", tiny)
    assert out.read_text() == "old"
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    fails(1, "no texts", "build", empty, "-o", tmp_path / "e", "-m", tiny)
    empty.write_bytes(b"\xff")
    fails(1, "not UTF-8", "build", empty, "-o", tmp_path / "e", "-m", tiny)


def test_a_plan_is_searched_saved_and_used(cli, tiny, corpus, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "groups.json"
    search = ("draft", "plan", corpus, "-m", tiny, "--tokens", 16, "--threads", 1)
    done = cli(*search, "-o", file)
    assert done.code == 0 and f"--drafter layer_parallel:{file}" in done.out and done.err == ""
    found = cli(*search, "--json", "--attention", 1, "--draft-cost", 5).json
    assert (
        found["file"].startswith(os.environ["LIKELY_CACHE"])
        and found["groups"] == [[0, 1]]
        and len(found["pairs"]) == 1
    )
    assert [step["attention_depth"] for step in found["steps"]] == [2, 1] and found["steps"][0]["top1"] == 1
    arguments = ("generate", "the cat", "-m", tiny, "--max-tokens", 8, "--threads", 1, "--runtime", "torch")
    plain = cli(*arguments, "--drafter", "none")
    drafted = cli(*arguments, "--drafter", f"layer_parallel:{file},shape=chain-3")
    assert plain.code == drafted.code == 0 and plain.out == drafted.out
    assert cli(*search, "-o", file).code == 2  # it exists
    other = cli("generate", "the cat", "-m", tiny, "--runtime", "native", "--drafter", "layer_parallel")
    assert other.code == 1 and "side by side: torch" in other.err
