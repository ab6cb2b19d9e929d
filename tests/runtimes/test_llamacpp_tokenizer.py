"""llama.cpp's tokenizer: exact bytes, ends, special tokens."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from tiny_gguf import write_tiny_llama

from likely.runtimes.llamacpp.tokenizer import vocabulary_of
from likely.tokenizers.gguf import tokenizer_from_gguf
from likely.tokenizers.protocol import begin, decode

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@pytest.fixture(scope="module", params=["gpt2", "llama", pytest.param("smollm2", marks=pytest.mark.real)])
def opened(request, tmp_path_factory):
    if request.param == "smollm2":
        path = request.getfixturevalue("smollm2_path")
    else:
        path = write_tiny_llama(tmp_path_factory.mktemp("t") / "t.gguf", tokenizer=request.param, vocab=300)
    with vocabulary_of(path) as tokenizer:
        yield tokenizer, path


@pytest.fixture(scope="module")
def gemma(gemma3_path):
    with vocabulary_of(gemma3_path) as tokenizer:
        yield tokenizer


def joined(tokenizer, text, **options):
    raw = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, **options)))
    return raw.removeprefix(b" ") if tokenizer.adds_space and text else raw


@settings(deadline=None)
@given(text=TEXT)
def test_bytes_of_the_tokens_join_to_the_text(opened, text):
    missing = opened[0].missing_bytes
    assert joined(opened[0], text) == bytes(b for b in text.encode() if b not in missing)


@pytest.mark.slow
@pytest.mark.real
@settings(deadline=None)
@given(text=TEXT)
@example(text="a ▁b")
def test_bytes_of_gemma_tokens_join_to_the_text(gemma, text):
    """SentencePiece spells a space as ▁, so that the sign itself reads as one."""
    assert joined(gemma, text) == text.replace("▁", " ").encode()


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(text=TEXT)
def test_ids_equal_those_of_the_tokenizer_built_from_the_file(opened, text):
    tokenizer, path = opened
    ours = _BUILT.setdefault(path, tokenizer_from_gguf(path))
    # a text with bytes that no token stands for cannot be scored; the two may merge differently around what they drop
    if "\0" not in text and not tokenizer.missing_bytes & set(text.encode()):
        assert tokenizer.encode(text) == ours.encode(text)
    for token in tokenizer.encode(text):
        assert tokenizer.token_bytes(token) == ours.token_bytes(token)


_BUILT: dict = {}


@pytest.mark.slow
@pytest.mark.real
def test_bytes_that_a_vocabulary_lacks_are_named(smollm2_path, gemma):
    with vocabulary_of(smollm2_path) as tokenizer:
        never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
        assert tokenizer.missing_bytes - never_in_utf8 == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    assert gemma.missing_bytes == frozenset()


def test_control_tokens_are_text_unless_asked_for(opened):
    tokenizer = opened[0]
    name, token = "<|im_end|>", tokenizer.special_tokens["<|im_end|>"]
    assert token in tokenizer.encode(f"a{name}b", parse_special=True)
    assert token not in tokenizer.encode(f"a{name}b")
    assert joined(tokenizer, f"a{name}b") == f"a{name}b".encode()
    assert tokenizer.token_bytes(token) == b"" and tokenizer.token_text(token) == name


def test_facts_agree_with_the_tokenizer_built_from_the_file(opened):
    tokenizer, path = opened
    ours = tokenizer_from_gguf(path)
    for name in ("vocab_size", "bos_id", "eos_id", "add_bos", "chat_template", "special_tokens"):
        assert getattr(tokenizer, name) == getattr(ours, name), name
    assert tokenizer.end_ids == ours.end_ids and tokenizer.eos_id in tokenizer.end_ids


def test_fingerprints_differ_by_what_determines_ids(tmp_path):
    prints = []
    for i, options in enumerate(({}, {"seed": 1}, {"vocab": 300}, {"pre": "smollm"}, {"tokenizer": "llama"})):
        with vocabulary_of(write_tiny_llama(tmp_path / f"{i}.gguf", **options)) as tokenizer:
            prints.append(tokenizer.fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_wrong_arguments_are_refused(opened):
    tokenizer = opened[0]
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside"):
            tokenizer.token_bytes(token)
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode("\ud800")
    with pytest.raises(TypeError):
        tokenizer.encode(b"a")


def test_a_closed_vocabulary_is_an_error_and_no_crash(tmp_path):
    with vocabulary_of(write_tiny_llama(tmp_path / "t.gguf")) as tokenizer:
        pass
    with pytest.raises(ValueError, match="shut down"):
        tokenizer.encode("a")


@pytest.mark.slow
@pytest.mark.real
def test_gemma_begins_with_bos_and_ends_turns(gemma):
    assert gemma.add_bos and gemma.bos_id == 2 and {1, 106} <= gemma.end_ids
    assert begin(gemma, gemma.encode("hi"))[0] == 2
    assert decode(gemma, gemma.encode("Grüße 👋🏽\n\n  x")) == "Grüße 👋🏽\n\n  x"
    assert gemma.token_text(106) == "<end_of_turn>"
