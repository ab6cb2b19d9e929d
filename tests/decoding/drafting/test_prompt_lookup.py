from __future__ import annotations

import numpy as np
import pytest

from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.drafting.protocol import SamplingContext


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
