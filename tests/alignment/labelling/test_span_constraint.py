"""Constrained responses: the language is exactly what the codec reads back without a problem and in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_vocabularies import all_bytes, all_spellings, of

from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.constraint import SpanAutomaton, SpanConstraint
from likely.alignment.labelling.spans import LabelledSpan
from likely.decoding.constraint import members
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.runtimes.toy import ToyRuntime

CODEC = SpanCodec(["a", "ab"], empty="n")


def accepts(automaton, text):
    return automaton.accepts(automaton.walk(automaton.first, text.encode()))


def all_span_sets(n, labels, start=0):
    """Every list of spans that lie apart, in order."""
    yield []
    for first in range(start, n):
        for end in range(first + 1, n + 1):
            for label in labels:
                for rest in all_span_sets(n, labels, end):
                    yield [LabelledSpan(first, end, label), *rest]


@pytest.mark.parametrize("words", [["b", "b", "n"], ["x", "x:", "x"], ["n", "nb"]])
def test_the_language_is_the_set_of_all_responses(words):
    """By enumeration: all texts of the automaton are the responses of all lists of spans."""
    automaton = SpanAutomaton(CODEC, words, " ")
    expected = {" " + CODEC.encode_spans(words, spans) for spans in all_span_sets(len(words), ["a", "ab"])}
    found, open_ = set(), [(automaton.first, b"")]
    while open_:
        states, text = open_.pop()
        if automaton.accepts(states):
            found.add(text.decode())
        open_ += [(automaton.step(states, b), text + bytes([b])) for b in automaton.next_bytes(states)]
    assert found == expected
    assert max(map(len, (t.encode() for t in found))) <= automaton.longest
    for text in found:
        read = CODEC.decode_spans(text, words)
        assert not read.problems and list(read.spans) == sorted(read.spans)


def test_other_texts_are_not_in_it():
    automaton = SpanAutomaton(CODEC, ["one", "two", "one"])
    for text in ("", "one", "one:b", "two:a;two:a", "two:a;one:a;one:a", "one:a;", "o:a", "n;one:a", "one:A", "one :a"):
        assert not accepts(automaton, text), text
    for text in ("n", "one:a", "one:ab;two one:a", "one:a;one:ab", "one:a;two:a;one:a"):
        assert accepts(automaton, text), text


def test_masks_are_those_of_a_walk_over_every_token():
    vocabulary = all_bytes((b"ab", b" a", b"b:", b"a;", b"n", b"a", b"\xc3\xa9b", b"\xa9"))
    automaton = SpanAutomaton(CODEC, ["a", "éb", "b"], " ")
    rng = np.random.default_rng(0)
    for _ in range(20):
        constraint = SpanConstraint(automaton, vocabulary)
        for _ in range(12):
            states = constraint._states[-1]
            slow = [
                i for i, text in enumerate(vocabulary.tokens)
                if (automaton.accepts(states) if i in vocabulary.end_ids else text and automaton.walk(states, text))
            ]  # fmt: skip
            fast = members(constraint.allowed()).tolist()
            assert fast == slow
            constraint.advance(int(rng.choice(fast)))
            if constraint.ended:
                break


def test_every_constrained_text_of_any_model_is_read_and_ends():
    vocabulary = all_bytes((b"ab", b" a", b"b:", b"a;", b"n"))
    runtime = ToyRuntime.random(vocabulary.size, seed=3, context_length=200)
    loop = Loop(runtime, lambda t: vocabulary.tokens[t], vocabulary.end_ids)
    words = ["a", "b", "ab", "b"]
    automaton = SpanAutomaton(CODEC, words, " ")
    requests = [
        Request((1,), Sampling(temperature=t, seed=seed), automaton.longest + 1,
                constraint=SpanConstraint(automaton, vocabulary))
        for seed, t in itertools.product(range(8), (0.0, 1.0))
    ]  # fmt: skip
    texts = set()
    for [event] in run(loop, requests):
        assert event.finish.reason == "stop" and event.finish.complete
        read = CODEC.decode_spans(event.finish.text, words)
        assert not read.problems and list(read.spans) == sorted(read.spans)
        texts.add(event.finish.text)
    assert len(texts) >= 3


def test_no_valid_response_is_masked_however_it_is_cut_into_tokens():
    """So that greedy output which is already valid is the same with the constraint."""
    vocabulary = of(b"n", b"a", b":", b";", b"b", b"x", b"y", b"a:", b"x;b", b"b:y", b" b", b" ")
    words, codec = ["a", "b"], SpanCodec(["x", "y"], empty="n")
    automaton, cuts = SpanAutomaton(codec, words), 0
    for spans in all_span_sets(2, ["x", "y"]):
        for tokens in all_spellings(vocabulary, codec.encode_spans(words, spans).encode()):
            constraint = SpanConstraint(automaton, vocabulary)
            for token in (*tokens, vocabulary.eos_id):
                assert token in members(constraint.allowed())
                constraint.advance(token)
            cuts += 1
    assert cuts > 20


def test_a_sentence_without_words_is_refused():
    with pytest.raises(ValueError, match="needs words"):
        SpanAutomaton(CODEC, [])
