"""Segments on and off: exact gains of models that read one segment or none, and prompts that hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reading_models import ReadingModel

from likely.audit.ablation import (
    EMPTY,
    SegmentAblation,
    ablation_report,
    motif_tokens,
    prompt_of,
    spoilt,
    without_answers,
)
from likely.audit.case import Case, likelihoods, run_audit
from likely.errors import DataError

WORDS = ("oak", "elm", "fir", "ash", "yew", "box")
CASES = [
    Case(
        f"t{i}",
        {"sequence": "ACDEFGHIKL" * 3, "context": (f"the tree is {word}", "it is old"), "question": "Which tree?"},
        (word, WORDS[(i + 1) % 6], WORDS[(i + 2) % 6]), 0,
    )
    for i, word in enumerate(WORDS)
]  # fmt: skip
ABLATION = SegmentAblation(
    ("sequence", "context"), (("shuffle", "sequence"), ("swap", "context")), guarded=("context",)
)


def report(model, ablation=ABLATION, cases=CASES):
    records = run_audit(cases, ablation.perturb(cases), likelihoods(model), header={})
    return ablation_report(records, ablation, header={"model": "toy"}, resamples=500)


def test_a_model_that_ignores_a_segment_gains_exactly_nothing():
    found = report(ReadingModel("Context"))
    for given in ("none", "context"):
        one = found.finding("sequence", f"gain given {given}")
        assert (one.value, one.low, one.high) == (0, 0, 0)
    assert found.finding("sequence", "gain over its shuffle").value == 0
    assert found.verdicts[0].startswith("sequence is noise")


def test_a_model_that_copies_from_a_segment_gains_and_its_controls_do_not():
    found = report(ReadingModel("Context"))
    closed_form = math.log(0.9) - math.log(0.05)
    for quantity in ("gain given none", "gain given sequence", "gain over its swap"):
        assert found.finding("context", quantity).value == pytest.approx(closed_form)
    assert found.finding("context", "gain with the guard").value == 0  # the answer is gone, and with it the gain
    assert found.finding("guard", "terms left out").value == 12  # one term in each of two guarded variants
    assert found.verdicts[1].startswith("context is used") and "likeliest with context" in found.verdicts[2]
    assert found.finding("context", "accuracy").value == 1


def test_a_segment_that_misleads_does_harm():
    wrong = [Case(c.id, c.segments, c.choices[::-1], 0) for c in CASES]

    class Misled(ReadingModel):
        def _scored(self, prompt, answer):
            found = super()._scored(prompt, answer)
            return super()._scored("", answer + "!" * 9) if self.reads in prompt else found

    assert "does harm" in report(Misled("Context"), SegmentAblation(("context",)), wrong).verdicts[0]


def test_variants_hold_exactly_the_declared_segments_and_one_question():
    variants = {v.name: v for v in ABLATION.perturb(CASES)(CASES[0])}
    assert list(variants)[:4] == ["none", "sequence", "context", "sequence+context"]
    for name, variant in variants.items():
        on = name.replace(" guarded", "").split("+")
        assert ("Sequence: " in variant.prompt) == bool({"sequence", "shuffle:sequence"} & set(on))
        assert ("Context: " in variant.prompt) == bool({"context", "swap:context"} & set(on))
        assert variant.prompt.endswith("Question: Which tree?\nAnswer:")
        assert variant.answers == (" oak", " elm", " fir")
    assert "the tree is elm" in variants["swap:context"].prompt
    assert variants["context"].prompt.startswith("Context: the tree is oak; it is old\n")
    again = ABLATION.perturb(CASES)(CASES[0])
    assert again == list(variants.values())  # the shuffle is the case's own


def test_the_guard_compares_words():
    terms, dropped = without_answers(("Oak!", "an oak tree", "soak", "old"), ("oak",))
    assert terms == ("soak", "old") and dropped == 2
    text, dropped = without_answers("It is an artist. The ART is old.\nNo more", ("art",))
    assert text == "It is an artist. No more" and dropped == 1
    assert without_answers(("a",), ("...",)) == (("a",), 0)  # a choice without words is found nowhere


def test_controls_keep_what_they_say():
    rng = np.random.default_rng(0)
    assert sorted(spoilt("shuffle", "ACDEFGHIKL", "", rng)) == sorted("ACDEFGHIKL")
    assert sorted(spoilt("shuffle", "one two three four", "", rng).split()) == sorted(["one", "two", "three", "four"])
    assert len(spoilt("filler", "x" * 37, "", rng)) == 37 and spoilt("swap", "a", ("b",), rng) == ("b",)


def test_an_empty_segment_says_so_and_is_counted():
    empty = [Case("e", {"context": (), "question": "q?"}, ("a", "b"), 0)]
    ablation = SegmentAblation(("context",))
    variant = ablation.perturb(empty)(empty[0])[1]
    assert f"Context: {EMPTY}\n" in variant.prompt and variant.notes == {"empty": ["context"]}


def test_only_the_named_segment_is_cut_and_the_cut_is_told():
    def made(room):
        ablation = SegmentAblation(("sequence", "context"), cut="sequence", room=room, count_tokens=len)
        return {v.name: v for v in ablation.perturb(CASES)(CASES[0])}

    whole = prompt_of(CASES[0].segments)
    room = len(whole) - 10
    cut = made(room)["sequence+context"]
    assert len(cut.prompt + " oak") == room and cut.notes == {"kept_characters": 16}  # 30 - 10 - the answer's 4
    assert cut.prompt.endswith("Context: the tree is oak; it is old\nQuestion: Which tree?\nAnswer:")
    assert not made(room)["context"].notes and not made(room + 100)["sequence+context"].notes
    with pytest.raises(DataError, match="does not fit 40 tokens even without"):
        made(40)
    with pytest.raises(DataError, match="and none of its segments may be cut"):
        made(20)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"switched": ()}, ValueError, "1 to 4"),
        ({"switched": ("sequence",), "controls": (("shufle", "sequence"),)}, ValueError, 'did you mean "shuffle"'),
        ({"switched": ("sequence",), "controls": (("swap", "context"),)}, ValueError, "not switched"),
        ({"switched": ("sequence",), "room": 5}, ValueError, "together"),
        ({"switched": ("structure",)}, DataError, 'no segment "structure"'),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        SegmentAblation(**settings).perturb(CASES)


def test_tokens_over_motifs():
    bytes_ = motif_tokens(lambda text: list(text.encode()), lambda ids: [1] * len(ids), ["ACDCD", "CD"], ["CD", "XX"])
    assert (bytes_.per_character, bytes_.aligned, bytes_.cuts) == (1.0, 1.0, {"CD": 1, "XX": 0})
    pairs = motif_tokens(lambda t: range((len(t) + 1) // 2), lambda ids: [2] * len(ids), ["ACDCDE"], ["CD"])
    assert (pairs.per_character, pairs.aligned, pairs.cuts["CD"]) == (0.5, 0.0, 1)
    with pytest.raises(ValueError):
        motif_tokens(list, len, [], ["CD"])
