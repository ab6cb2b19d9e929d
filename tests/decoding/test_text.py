from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.decoding.text import TextStream


def run(pieces, stops=()):
    stream = TextStream(stops)
    shown = [stream.push(piece) for piece in pieces]
    shown.append(stream.finish())
    assert "".join(shown) == stream.text
    return stream, shown


def test_characters_are_never_cut():
    _, shown = run([b"a\xf0\x9f", b"\x98", b"\x80b"])
    assert shown == ["a", "", "😀b", ""]


def test_a_cut_character_at_the_end_becomes_the_replacement_mark():
    stream, _ = run([b"a\xf0\x9f"])
    assert stream.text == "a�"


def test_text_is_held_back_while_it_could_begin_a_stop():
    stream = TextStream(["</end>"])
    assert stream.push(b"hi <") == "hi "
    assert stream.push(b"/e") == ""
    assert stream.push(b"x") == "</ex"
    assert stream.push(b"</end> more") == ""
    assert stream.stopped and stream.finish() == "" and stream.text == "hi </ex"


def test_the_earliest_stop_wins():
    stream, _ = run([b"one two three"], ["three", "two"])
    assert stream.text == "one " and stream.stopped


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_any_cutting_gives_the_text_before_the_first_stop(text, stops, data):
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    edges = [0, *cuts, len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(edges)]
    stream, _shown = run(pieces, stops)
    found = [text.find(s) for s in stops if s in text]
    # cut anywhere, a stop may be seen before an overlapping one that begins earlier but ends later
    if not found:
        assert stream.text == text and not stream.stopped
    else:
        assert stream.stopped and text.startswith(stream.text)
        assert not any(s in stream.text for s in stops)


@given(st.binary(max_size=40), st.data())
def test_any_bytes_decode_as_a_whole(raw, data):
    cut = data.draw(st.integers(0, len(raw)))
    stream, _ = run([raw[:cut], raw[cut:]])
    assert stream.text == raw.decode("utf-8", "replace")


def test_a_fork_goes_its_own_way():
    stream = TextStream(["xy"])
    stream.push(b"ab\xc3")
    stream.push(b"\xa4x")
    copy = stream.fork()
    stream.push(b"y")
    copy.push(b"z")
    assert stream.stopped and not copy.stopped and copy.text == "abäxz" and stream.text == "abä"


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TextStream([""])
