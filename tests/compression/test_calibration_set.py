"""Windows: whole, in order, without overlap, the same for one seed, never repeated, begun as the model wants it."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer

from likely.compression.calibration_set import calibration_set
from likely.errors import DataError

ALL = [bytes([i]) for i in range(256)]
BYTES = PieceTokenizer(ALL)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i:07d} " for i in range(200)))  # every eight bytes are their own number
    return path


def words(found):
    return [bytes(window.tolist()).decode() for window in found.input_ids]


def test_the_first_windows_in_order(text):
    found = calibration_set(text, BYTES, windows=3, length=16)
    assert words(found) == ["0000000 0000001 ", "0000002 0000003 ", "0000004 0000005 "]
    assert (len(found), found.tokens) == (3, 48)


def test_a_seed_draws_other_windows_and_always_the_same(text):
    one, same, other = (calibration_set(text, BYTES, windows=5, length=16, seed=s) for s in (1, 1, 2))
    assert one.digest == same.digest != other.digest
    starts = [int(word[:7]) for word in words(one)]
    assert starts == sorted(set(starts)) and all(start % 2 == 0 for start in starts)


def test_too_short_a_text_is_an_error_and_never_repeated(text):
    assert calibration_set(text, BYTES, windows=100, length=16).tokens == 1600
    with pytest.raises(DataError, match="1600 tokens; 101 windows of 16 need 1616"):
        calibration_set(text, BYTES, windows=101, length=16)


def test_a_model_that_wants_a_first_token_gets_it_in_every_window(text):
    found = calibration_set(text, PieceTokenizer(ALL, control=["<s>"], bos="<s>"), windows=2, length=17)
    assert (found.input_ids[:, 0] == 256).all() and words(calibration_set(text, BYTES, windows=2, length=16)) == [
        bytes(window[1:].tolist()).decode() for window in found.input_ids
    ]


def test_records_and_packed_files(tmp_path):
    lines = tmp_path / "a.jsonl.gz"
    with gzip.open(lines, "wt") as out:
        for i in range(40):
            out.write(json.dumps({"text": f"line {i:02d}"}) + "\n")
    assert words(calibration_set(lines, BYTES, windows=1, length=18)) == ["line 00\n\nline 01\n\n"]
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "a"}\n{"words": 1}\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: no text in this record .*found: words"):
        calibration_set(bad, BYTES, windows=1, length=8)


def test_a_long_file_may_be_cut_within_a_character(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_bytes("né".encode() * 20)
    monkeypatch.setattr("likely.compression.calibration_set.MOST_CHARACTERS", 32)  # after n and the half of é
    assert words(calibration_set(path, BYTES, windows=2, length=15)) == ["né" * 5, "né" * 5]
    path.write_bytes("né".encode()[:2])
    with pytest.raises(DataError, match="not UTF-8"):
        calibration_set(path, BYTES, windows=1, length=2)


def test_equal_shares_of_a_mixture(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("x" * 400)
    both = calibration_set(f"{text}+{other}", BYTES, windows=5, length=16)
    assert [word[0] for word in words(both)] == ["0", "0", "0", "x", "x"]


def test_nonsense_is_drawn_by_the_seed():
    punctuation = calibration_set("random_punctuation", BYTES, windows=2, length=32, seed=3)
    assert not any(c.isalnum() or c.isspace() for word in words(punctuation) for c in word)
    few = PieceTokenizer([b"a", b"b"], control=["<x>", "<y>"])
    tokens = calibration_set("random_tokens", few, windows=4, length=64, seed=3)
    assert tokens.digest == calibration_set("random_tokens", few, windows=4, length=64, seed=3).digest
    assert set(np.unique(tokens.input_ids)) == {0, 1}


def test_the_beginning_of_a_text_and_nothing_else():
    found = calibration_set("bos_only", PieceTokenizer(ALL, control=["<s>"], bos="<s>"), windows=2, length=8, seed=1)
    assert (found.input_ids == 256).all() and found.input_ids.shape == (2, 8)
    with pytest.raises(DataError, match="no token that begins or ends"):
        calibration_set("bos_only", BYTES, windows=1, length=8)


def test_this_interpreters_own_library():
    [word] = words(calibration_set("python_stdlib", BYTES, windows=1, length=2000))
    assert "import" in word


@pytest.mark.parametrize(
    "name,message", [("nosuch.txt", "does not exist"), ("a/b", "does not exist"), ("python_stdlb", "python_stdlib")]
)
def test_an_unknown_name_says_what_there_is(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        calibration_set(name, BYTES, windows=1, length=8, data_dir=tmp_path)


def test_data_sets_by_name_and_part():
    wiki = calibration_set("wikitext2:valid", BYTES, windows=1, length=40)
    assert words(wiki)[0].startswith(" \n = Homarus gammarus")
    assert "Declaration" in words(calibration_set("udhr:eng", BYTES, windows=1, length=200))[0]
    with pytest.raises(DataError, match='no language "xxx"'):
        calibration_set("udhr:xxx", BYTES, windows=1, length=20)
