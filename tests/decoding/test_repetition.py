"""Texts that run in circles end, others never; with drafters, in batches and beams alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop
from hypothesis import given
from hypothesis import strategies as st

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.decoding.text import LONGEST, TIMES, least_of, runs_in_circles
from likely.runtimes.toy import ToyRuntime

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(temperature=0)


def slowly(tokens) -> bool:
    """The definition, block by block."""
    for period in range(1, LONGEST + 1):
        least = least_of(period)
        tail = tokens[-least:]
        repeated = len(tail) == least and all(tail[i] == tail[i - period] for i in range(period, least))
        if repeated and (period <= 2 or any(tail[i] != tail[i - 2] for i in range(2, least))):
            return True
    return False


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 70))
def test_it_is_what_the_definition_says(before, block, times):
    tokens = [*before, *block * times]
    for end in range(max(0, len(tokens) - 8), len(tokens) + 1):
        assert runs_in_circles(tokens[:end]) == slowly(tokens[:end])


@pytest.mark.parametrize("period", [1, 2, 3, 11, 12, 13, 40, 64])
def test_a_block_is_noticed_at_its_last_token_and_no_sooner(period):
    block = list(range(100, 100 + period))
    tokens = [7, 8, 9, *block * 200]
    ends = [n for n in range(len(tokens)) if runs_in_circles(tokens[:n])]
    assert ends[0] == 3 + least_of(period) and least_of(period) >= TIMES * period


def test_longer_blocks_and_other_texts_go_on():
    assert not any(runs_in_circles(([*range(65)] * 9)[:n]) for n in range(585))
    noise = np.random.default_rng(0).integers(0, 3, 3000).tolist()
    assert not any(runs_in_circles(noise[:n]) for n in range(len(noise)))


def pieces(text: str) -> list[str]:
    """Split as byte-level tokenizers do before they merge: words with their space, digits, signs, white space."""
    return re.findall(r" ?[^\W\d]+| ?\d| ?[^\s\w]+|\s+(?!\S)|\s+", text)


PAGES = sorted(p for pattern in ("*.md", "docs/**/*.md", "src/**/*.py", "examples/**/*") for p in ROOT.glob(pattern))


def test_pages_tables_and_code_are_no_circles():
    """No run in the project's own pages and sources is as long as what ends a text."""
    known: dict[str, int] = {}
    for path in PAGES:
        if path.suffix not in (".md", ".py", ".jsonl", ".csv", ".txt", ".toml"):
            continue
        ids = np.array([known.setdefault(p, len(known)) for p in pieces(path.read_text(encoding="utf-8"))])
        for period in range(1, min(LONGEST, len(ids) - 1) + 1):
            same = np.flatnonzero(np.append(ids[period:] != ids[:-period], True))
            longest = int(np.diff(same, prepend=-1).max()) - 1 + period
            assert longest < least_of(period), (path, period, longest)


TEXTS = {
    "a poem with a refrain": "\n\n".join(
        f"{verse} and the wind was high,\nRow, brothers, row, the stream runs fast,\nThe rapids are near and the "
        "daylight's past." for verse in ("The oars were wet", "The night came down", "The shore was far", "We sang")
    ),
    "a numbered list": "\n".join(f"{n}. The item is in stock." for n in range(1, 40)),
    "a table": "| name | a | b |\n|---|---|---|\n" + "\n".join(f"| row {n} | {n * 7 % 10} | 0 |" for n in range(40)),
    "zeros": "x = [" + ", ".join("0" for _ in range(60)) + "]",
    "a line": "-" * 100 + "\n" + "." * 100 + "\n" + "= " * 40,
    "three identical lines": "    assert value == expected, message\n" * 3,
    "bits": "".join(str(n * n % 97 % 2) for n in range(300)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_may_repeat_does(name):
    ids = {piece: n for n, piece in enumerate(dict.fromkeys(pieces(TEXTS[name])))}
    tokens = [ids[piece] for piece in pieces(TEXTS[name])]
    assert not any(runs_in_circles(tokens[:n]) for n in range(len(tokens) + 1))


def cycle(period: int) -> ToyRuntime:
    """Greedily 0, 1, ... period - 1, and again."""
    vocab = period + 1

    def logits(prefix):
        row = np.zeros(vocab, np.float32)
        row[(prefix[-1] + 1) % period] = 9
        return row

    return ToyRuntime(logits, vocab_size=vocab, context_length=2048, tokens_held=1 << 15)


@pytest.mark.parametrize("period", [1, 3, 5, 20])
def test_a_loop_ends_with_the_same_tokens_whoever_drafts(period):
    runtime = cycle(period)
    request = Request((0,), GREEDY, max_tokens=600, stop_repetition=True)
    drafters = (None, PromptLookup(), RandomTrees(period + 1), RandomTrees(period + 1, shape="chain"))
    found = []
    for drafter in drafters:
        loop = toy_loop(runtime)
        loop.end_ids = frozenset()
        batch = [replace(request, drafter=drafter, draft_budget=7, prompt=(0,) * n) for n in (1, 2)]
        [[one], [other]] = run(loop, *batch)
        assert one.reason == other.reason == "repetition" and one.tokens == other.tokens
        found.append(one.tokens)
    assert all(tokens == found[0] for tokens in found) and len(found[0]) == least_of(period)
    loop = toy_loop(runtime)
    loop.end_ids = frozenset()
    [[free], [later]] = run(loop, replace(request, stop_repetition=False), replace(request, min_tokens=300))
    assert free.reason == "length" and free.tokens[: len(found[0])] == found[0]
    assert later.reason == "repetition" and len(later.tokens) == 300


def test_beams_that_run_in_circles_end():
    loop = toy_loop(cycle(4))
    loop.end_ids = frozenset()
    [found] = run(loop, Request((0,), GREEDY, max_tokens=200, beams=2, samples=1, stop_repetition=True))
    assert found[0].reason == "repetition"


def test_a_wrong_value_is_refused():
    with pytest.raises(ValueError, match="stop_repetition must be true or false, got 3"):
        Request((0,), stop_repetition=3)
