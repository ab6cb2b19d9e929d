"""ROVER: votes by word, with known answers and what must hold for any transcripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import script

transcripts_of = script("transcripts")
rover, word_errors, _joined = transcripts_of.rover, transcripts_of.word_errors, transcripts_of._joined

texts = st.lists(st.sampled_from("abc"), max_size=5).map(" ".join)
weights = st.floats(0.01, 1)


@pytest.mark.parametrize(
    ("transcripts", "votes", "expected"),
    [
        (["wake me up", "make me up", "wake we up"], [1, 1, 1], "wake me up"),
        (["make me up", "wake me up", "wake we up"], [0.3, 0.4, 0.3], "wake me up"),
        (["turn the light on", "turn light on", "turn light on"], [1, 1, 1], "turn light on"),  # a word voted out
        (["turn light on", "turn the light on", "turn the light on"], [1, 1, 1], "turn the light on"),  # and in
        (["a", "b"], [1, 1], "a"),  # ties: the earlier
        (["a b c", "x y z", "x y z"], [0.6, 0.2, 0.2], "a b c"),
        (["", "on", "on"], [0.5, 0.3, 0.3], "on"),
        (["on"], [0.2], "on"),
        ([""], [1], ""),
    ],
)
def test_known_answers(transcripts, votes, expected):
    assert rover(transcripts, votes) == expected


@given(texts, texts, weights, weights)
def test_of_two_the_heavier_wins_whole(first, second, a, b):
    assert rover([first, second], [a, b]) == (first if a >= b else second)


@given(texts, st.lists(weights, min_size=1, max_size=5))
def test_agreement_is_kept(text, votes):
    assert rover([text] * len(votes), votes) == text


@given(st.lists(st.tuples(texts, weights), min_size=1, max_size=5))
def test_a_majority_by_itself_wins(entries):
    transcripts, votes = [t for t, _ in entries], [w for _, w in entries]
    assert rover(["b a", *transcripts], [sum(votes) * 1.01, *votes]) == "b a"


@given(texts, texts)
def test_the_alignment_of_two_has_the_fewest_changes(first, second):
    slots = _joined([{word: 1.0} for word in first.split()], second.split(), 10.0, 1.0)
    assert sum(len(slot) > 1 for slot in slots) == word_errors(first, second)


@given(st.lists(texts, min_size=2, max_size=4))
def test_each_alignment_has_the_fewest_changes(transcripts):
    """Against every way to align: a word that a slot lacks, a word skipped for the first time, or a new slot cost 1."""

    def fewest(slots, words):
        if not slots:
            return len(words)
        skipped = fewest(slots[1:], words) + ("" not in slots[0])
        if not words:
            return skipped
        return min(skipped, fewest(slots[1:], words[1:]) + (words[0] not in slots[0]), fewest(slots, words[1:]) + 1)

    slots = [{word: 1.0} for word in transcripts[0].split()]
    for i, text in enumerate(transcripts[1:], 1):
        before, slots = slots, _joined(slots, text.split(), 2.0**i, 2.0**i - 1)
        changed = sum(2.0**i in slot.values() for slot in slots)  # its vote stands alone
        assert changed == fewest(tuple(before), tuple(text.split()))


@given(st.lists(texts, min_size=1, max_size=6))
def test_every_transcript_can_be_read_back_from_the_slots(transcripts):
    """With weights 1, 2, 4 ... a sum of votes says who cast them."""
    slots = [{word: 1.0} for word in transcripts[0].split()]
    for i, text in enumerate(transcripts[1:], 1):
        slots = _joined(slots, text.split(), 2.0**i, 2.0**i - 1)
    assert all(sum(slot.values()) == 2 ** len(transcripts) - 1 for slot in slots)
    for i, text in enumerate(transcripts):
        voted = [word for slot in slots for word, votes in slot.items() if int(votes) >> i & 1 and word]
        assert voted == text.split()


def test_what_cannot_vote_is_an_error():
    for transcripts, votes, said in (
        ([], [], "at least one"),
        (["a"], [1, 2], "1 transcripts have 2 weights"),
        (["a", "b"], [1, -1], "weights must be >= 0"),
        (["a"], [0], "sum > 0"),
    ):
        with pytest.raises(ValueError, match=said):
            rover(transcripts, votes)
