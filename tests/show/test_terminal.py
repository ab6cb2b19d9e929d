"""The terminal form: with colours, without, narrow, wide characters, poor encodings."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HOSTILE, generation, scored
from rich.cells import cell_len
from rich.console import Console

from likely.show.colours import DARK, level_of
from likely.show.terminal import print_shown, wrap
from likely.show.tokens import shown, visible


def printed(*texts, **console):
    out = io.StringIO()
    print_shown(texts, console=Console(**{"file": out, "width": 40, **console}))
    return out.getvalue()


def test_snapshot_without_colour():
    record = scored(["Once", " upon", " a", " time", "\n", "日本", "\x1b"], [-3.0, -0.6, -0.01, -0.2, -9.5, -1.5, -5.0])
    assert printed(shown(record)) == (
        "level under each token, by logprob in nats  0: ≥ -0.1  1: ≥ -0.5  2: ≥ -1  "
        "3: ≥ -2  4: ≥ -4  5: ≥ -8  6: < -8\n"
        "\n"
        "Once upon a time↵日本␛  sum -19.8100  mean -2.8300  7 tokens\n"
        "Once upon a time↵\n"
        "4...2....0.1....6\n"
        "日本␛\n"
        "3...5\n"
        '  token 5 "↵": logprob -9.5000, p 7.5e-05, entropy 0.5437\n'
        '  token 7 "␛": logprob -5.0000, p 0.0067, entropy 0.3883\n'
        '  token 1 "Once": logprob -3.0000, p 0.0498, entropy 2.7183\n'
    )


def test_marks_stand_under_their_tokens():
    tokens = ["日本", "a", "語", " x", "\u200b", "é"]
    out = printed(shown(scored(tokens)), width=200).splitlines()
    text, marks = out[3], out[4]
    assert cell_len(text) == cell_len(marks)
    column = 0
    for token in tokens:
        assert marks[column].isdigit()
        column += cell_len(visible(token))
    assert sum(c.isdigit() for c in marks) == len(tokens)


def test_colours_are_those_of_the_scale():
    record = scored(["a", " b", " c"], [-0.01, -0.7, -20.0])
    out = printed(shown(record), force_terminal=True, color_system="truecolor", no_color=False)
    body = out[out.index("sum") :]
    for token, logprob in zip(record.tokens, record.token_logprobs, strict=True):
        red, green, blue = (int(DARK[level_of(logprob)].background[i : i + 2], 16) for i in (1, 3, 5))
        assert re.search(rf"48;2;{red};{green};{blue}m{token}\x1b\[0m", body)
    assert out.count("≥") == 6  # the legend


@pytest.mark.parametrize(
    "console",
    [
        {"force_terminal": True, "color_system": "truecolor", "no_color": True},
        {"force_terminal": True, "color_system": "standard", "no_color": False},
        {"force_terminal": False},
    ],
)
def test_no_colour_a_poor_terminal_and_a_pipe_give_marks(console):
    out = printed(shown(scored(["a", " b"])), **console)
    assert "\x1b" not in out and "level under each token" in out and "\n01.\n" in out


def test_no_color_variable_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(shown(scored(["a"])), force_terminal=True, color_system="truecolor")


def test_hostile_tokens_reach_no_terminal():
    for options in ({}, {"force_terminal": True, "color_system": "truecolor", "no_color": False}):
        out = printed(shown(scored(HOSTILE)), **options)
        out = re.sub(r"\x1b\[[0-9;]*m", "", out) if options else out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\u2066\ufeff\ud800]", out)


def test_markup_in_tokens_is_text():
    assert "[bold]x[/bold]:smile:" in printed(shown(scored(["[bold]", "x", "[/bold]", ":smile:"])))


def test_an_ascii_stream_gets_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print_shown([shown(scored(["é", "\n", "日"]))], file=stream)
    assert b"\\xe9" in raw.getvalue() and b"\\u65e5" in raw.getvalue()


def test_empty_answer_and_impossible_token():
    assert "(empty text)  sum 0.0000  0 tokens" in printed(shown(scored([])))
    out = printed(shown(generation(["a"], [float("-inf")])))
    assert "sum -inf" in out and "logprob -inf" in out


@given(st.lists(st.text(st.sampled_from("ab 日\n\u0301é"), max_size=8), max_size=12), st.integers(2, 12))
def test_wrapping_keeps_every_character_and_the_width(texts, width):
    texts = [visible(text) for text in texts]
    lines = list(wrap(texts, width))
    assert all(sum(cell_len(piece) for piece, _ in line) <= width for line in lines)
    back = ["" for _ in texts]
    for line in lines:
        for piece, i in line:
            back[i] += piece
    assert back == [text.replace("\n", "") for text in texts]


def test_words_stay_whole_where_they_fit():
    lines = list(wrap(["The", " cap", "ital", " of", " Fr", "ance"], 12))
    assert ["".join(p for p, _ in line) for line in lines] == ["The capital", " of France"]
    assert ["".join(p for p, _ in line) for line in wrap(["The", " cap", "ital"], 10)] == ["The", " capital"]


def test_a_token_over_two_lines_has_one_digit():
    lines = printed(shown(scored(["x" * 12, "\n\n", "y"], [-3.0, -9.0, -0.01])), width=8).splitlines()
    assert lines[3:11] == ["x" * 8, "4" + "." * 7, "xxxx↵", "....6", "↵", ".", "y", "0"]
