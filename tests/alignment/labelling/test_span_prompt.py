"""Prompts: the tokens of every strategy's targets, demonstrations that fit, and never the query among them."""

from __future__ import annotations

import pytest
from byte_tokenizer import PieceTokenizer

from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.prompt import NearestDemonstrations, RandomDemonstrations, SpanPrompt
from likely.alignment.labelling.sentences import Sentence
from likely.alignment.labelling.spans import LabelledSpan
from likely.errors import DataError

CODEC = SpanCodec(["city"])
BYTES = PieceTokenizer([bytes([b]) for b in range(256)], control=["<end>"])


def sentence(text, *cities):
    words = tuple(text.split())
    spans = tuple(LabelledSpan(words.index(c), words.index(c) + 1, "city") for c in cities)
    return Sentence(words, spans, f"file:{text}")


POOL = [sentence("fly to Oslo", "Oslo"), sentence("hello there"), sentence("from Rome to Bonn", "Rome", "Bonn")]
QUERY = sentence("meet in Bonn", "Bonn")


def prompt(context=1000, **settings):
    return SpanPrompt(CODEC, BYTES, context, **settings)


def target_text(made):
    parts, last = [], -2
    for at, (token, on) in enumerate(zip(made.tokens, made.targets, strict=True)):
        if on:
            if at != last + 1:
                parts.append("")
            parts[-1] += "<end>" if token == BYTES.eos_id else BYTES.token_bytes(token).decode()
            last = at
    return parts


def test_targets_are_the_responses_with_their_ends():
    assert target_text(prompt().build(QUERY, POOL[:2], strategy="mrc")) == [
        " Oslo:city<end>", " none<end>", " Bonn:city<end>",
    ]  # fmt: skip
    assert target_text(prompt().build(QUERY, POOL[:2], strategy="src")) == [" Bonn:city<end>"]
    whole = prompt().build(QUERY, POOL[:2], strategy="vanilla")
    assert whole.targets == (False, *[True] * (len(whole.tokens) - 1))
    assert target_text(prompt().build(QUERY, strategy="mrc")) == target_text(prompt().build(QUERY, strategy="src"))


def test_the_text_of_a_prompt():
    made = prompt(instruction="Find cities.").build(QUERY, POOL[:1], answered=False)
    text = "".join("<end>" if t == BYTES.eos_id else chr(BYTES.token_bytes(t)[0]) for t in made.tokens)
    assert text == (
        "### Instruction: Find cities. ### Options: city\n### Sentence: fly to Oslo\n### Response: Oslo:city<end>\n"
        "### Sentence: meet in Bonn\n### Response:"
    )
    assert prompt().build(QUERY, POOL).tokens[: len(prompt().build(QUERY, POOL, answered=False).tokens)] == (
        prompt().build(QUERY, POOL, answered=False).tokens
    )


def test_fewer_demonstrations_are_a_prefix():
    long = prompt().build(QUERY, POOL, strategy="mrc")
    for k in range(3):
        short = prompt().build(POOL[k], POOL[:k], strategy="src")
        assert long.tokens[: len(short.tokens)] == short.tokens


def test_whole_demonstrations_are_left_out_where_they_do_not_fit_and_the_query_never():
    alone = len(prompt().build(QUERY).tokens)
    two = len(prompt().build(QUERY, POOL[1:]).tokens)
    assert prompt(two).build(QUERY, POOL) == prompt().build(QUERY, POOL[1:])
    assert prompt(two - 1).build(QUERY, POOL) == prompt().build(QUERY, POOL[2:])
    assert prompt(alone).build(QUERY, POOL).demonstrations == 0
    assert prompt(two).build(QUERY, POOL, reserve=1).demonstrations == 1
    with pytest.raises(DataError, match=f"file:meet in Bonn: {alone} tokens are needed"):
        prompt(alone - 1).build(QUERY, POOL)


def test_what_cannot_be_written_names_its_row():
    with pytest.raises(DataError, match=r"file:x: .*none of the options"):
        prompt().build(Sentence(("x",), (LabelledSpan(0, 1, "river"),), "file:x"))
    with pytest.raises(DataError, match="file:x: no tags"):
        prompt().build(QUERY, [Sentence(("x",), None, "file:x")])
    overlap = (LabelledSpan(0, 2, "city"), LabelledSpan(1, 2, "city"))
    with pytest.raises(DataError, match=r"file:x: .*overlap"):
        prompt().build(Sentence(("x", "y"), overlap, "file:x"))
    with pytest.raises(ValueError, match="strategy"):
        prompt().build(QUERY, strategy="mean")


def test_demonstrations_repeat_with_the_seed_and_are_never_the_query():
    pool = [*POOL, QUERY]
    seen = set()
    for seed in range(12):
        selector = RandomDemonstrations(seed)
        chosen = selector.select(QUERY, pool, 2)
        assert chosen == RandomDemonstrations(seed).select(QUERY, pool, 2) and 3 not in chosen
        assert 3 not in selector.select(Sentence(QUERY.tokens), pool, 3)  # the same words from elsewhere
        seen.add(tuple(chosen))
    assert len(seen) > 3
    assert len({tuple(RandomDemonstrations(0).select(q, POOL, 2)) for q in (QUERY, sentence("a b"))}) == 1
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            RandomDemonstrations(0).select(QUERY, pool, wrong)


def test_the_nearest_share_rare_words():
    nearest = NearestDemonstrations()
    assert nearest.select(QUERY, POOL, 1) == [2]  # Bonn
    assert nearest.select(sentence("to Oslo"), POOL, 2) == [2, 0]  # the nearest last
    assert 0 not in nearest.select(POOL[0], POOL, 2)
