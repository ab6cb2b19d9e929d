from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop

from likely.decoding.drafting.lookup import PredictedText, PromptLookup
from likely.decoding.drafting.protocol import SamplingContext
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling


def by_scan(tokens, ngram, budget, first):
    """The slow obvious form."""
    for n in range(min(ngram, len(tokens)), 0, -1):
        tail = tokens[-n:]
        places = [i + n for i in range(len(tokens) - n) if tokens[i : i + n] == tail]
        if places:
            start = places[0] if first else places[-1]
            return tokens[start : start + budget]
    return []


@pytest.mark.parametrize("occurrence", ["first", "last"])
def test_equals_a_scan_of_the_text(occurrence):
    rng = np.random.default_rng(1)
    for _ in range(60):
        tokens = rng.integers(0, 5, rng.integers(1, 40)).tolist()
        drafter = PromptLookup(occurrence=occurrence).begin(tokens[:3], SamplingContext())
        drafter.observe(tokens[3:])
        assert drafter.propose(6).tokens.tolist() == by_scan(tokens, 3, 6, occurrence == "first")


def test_first_occurrence_agrees_with_transformers():
    torch = pytest.importorskip("torch")
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    rng = np.random.default_rng(2)
    for _ in range(60):
        tokens = rng.integers(3, 8, 30)
        theirs = PromptLookupCandidateGenerator(
            num_output_tokens=5, max_matching_ngram_size=3, max_length=1000, eos_token_id=torch.tensor([1])
        ).get_candidates(torch.from_numpy(tokens)[None])[0][0, 30:]
        ours = PromptLookup().begin(tokens.tolist(), SamplingContext()).propose(5)
        assert ours.tokens.tolist() == theirs.tolist()


def test_rollback_undoes_observe_and_forks_are_apart():
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 4, 30).tolist()
    drafter = PromptLookup().begin(tokens, SamplingContext())
    fork = drafter.fork(SamplingContext())
    drafter.observe([1, 2, 3, 1, 2])
    drafter.rollback(5)
    assert drafter._tokens == fork._tokens and drafter._follows == fork._follows
    fork.observe([0])
    assert drafter._tokens == tokens


def test_edges():
    drafter = PromptLookup().begin([7], SamplingContext())
    assert len(drafter.propose(5)) == 0
    drafter.observe([])
    drafter.observe([7])
    assert drafter.propose(0).tokens.tolist() == [] and drafter.propose(3).tokens.tolist() == [7]
    drafter.end()
    drafter.end()
    with pytest.raises(ValueError, match="ngram"):
        PromptLookup(ngram=0)


def test_a_predicted_text_is_drafted_from_its_beginning_and_where_the_answer_agrees_again():
    predicted = [20, 21, 22, 23, 24, 25, 26]
    drafter = PredictedText(predicted).begin([1, 2, 3, 2, 3], SamplingContext())
    assert drafter.propose(4).tokens.tolist() == [20, 21, 22, 23]
    drafter.observe([20, 21, 99])  # another word
    assert drafter.propose(4).tokens.tolist() == []
    drafter.observe([24])
    assert drafter.propose(4).tokens.tolist()[:2] == [25, 26]
    drafter.rollback(2)
    assert drafter.propose(2).tokens.tolist() == [22, 23]


def test_a_predicted_text_changes_no_text():
    request = Request((1, 2), Sampling(seed=3), max_tokens=20, min_tokens=20)
    [[plain]] = run(toy_loop(), request)
    for predicted in (plain.tokens, plain.tokens[3:], [0] * 9):
        [[found]] = run(toy_loop(), replace(request, drafter=PredictedText(predicted), draft_budget=6))
        assert found.tokens == plain.tokens
    [[found]] = run(toy_loop(), replace(request, drafter=PredictedText(plain.tokens), draft_budget=6))
    assert found.accepted >= 15 and found.target_calls <= 5
