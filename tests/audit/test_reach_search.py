"""Reach: what a search claims is true by enumeration, and what it may miss is bounded by it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from likely.audit.reach import (
    GCG,
    Backoff,
    CandidateTest,
    ControlResult,
    Exhaustive,
    GreedyBack,
    RandomSearch,
    ReachProblem,
    backoff,
    controllability_curve,
    explore,
    ranked_targets,
    reachable_set,
    search_control,
    search_method,
)
from likely.errors import CapabilityError, DataError
from likely.runtimes.toy import ToyRuntime, exact_logprob

V = 6


@pytest.fixture
def toy():
    return ToyRuntime.random(V, seed=3, order=4)


def greedy(runtime, text, steps):
    """The slow obvious decoding."""
    out = []
    for _ in range(steps):
        out.append(int(np.argmax(runtime._logits_of((*text, *out)))))
    return tuple(out)


@pytest.mark.parametrize("before", [(), (1,), (2, 5, 1)])
def test_candidates_in_one_tree_are_those_evaluated_one_by_one(toy, before):
    problem = ReachProblem((0, 3), (4, 2), before)
    controls = np.array(list(itertools.product(range(V), repeat=2)))
    test = CandidateTest(toy, problem)
    calls = toy.calls
    found = test(controls)
    assert toy.calls - calls <= (2 if len(before) > 1 else 1)
    assert test.evaluations == V**2
    for u, loss, reached, first in zip(controls, found.losses, found.reached, found.first, strict=True):
        text = problem.text(u)
        assert loss == pytest.approx(-exact_logprob(toy, (4, 2), given=text) / 2, abs=1e-5)
        assert reached == (greedy(toy, text, 2) == (4, 2))
        assert first == greedy(toy, text, 1)[0]
    assert test.tokens < controls.size + len(controls) * 3  # shared from the left


def test_the_reachable_set_is_that_of_a_plain_loop(toy):
    found = reachable_set(toy, (0, 3), 2, before=(1,))
    true = {greedy(toy, (1, *u, 0, 3), 1)[0] for k in range(3) for u in itertools.product(range(V), repeat=k)}
    assert found.exact and found.tokens == true
    for token, control in found.controls.items():
        assert greedy(toy, (1, *control, 0, 3), 1)[0] == token
        shorter = itertools.chain.from_iterable(itertools.product(range(V), repeat=k) for k in range(len(control)))
        assert all(greedy(toy, (1, *u, 0, 3), 1)[0] != token for u in shorter)


def test_open_ended_search_stays_within_the_true_set_and_its_budget(toy):
    true = reachable_set(toy, (0,), 3).tokens
    found = explore(toy, (0,), 60, share=0.5)
    assert found.tokens <= true and not found.exact and found.evaluations <= 60
    assert len(found.tokens) > len(reachable_set(toy, (0,), 0).tokens)
    few = explore(toy, (0,), 3)
    assert few.evaluations == 3


def test_exhaustive_search_finds_a_shortest_control_or_there_is_none(toy):
    for target in itertools.product(range(V), repeat=1):
        control = search_control(toy, ReachProblem((0, 3), target), Exhaustive(), lengths=(1, 2))
        true = reachable_set(toy, (0, 3), 2)
        assert control.token_reachable == (target[0] in true.tokens)
        if control.token_reachable:
            assert control.k == len(true.controls[target[0]])
            assert greedy(toy, (*control.ids, 0, 3), 1) == target
            assert control.method == ("exhaustive" if control.k else "none")


def test_greedy_and_random_claim_nothing_that_is_false(toy):
    true = reachable_set(toy, (0, 3), 3).tokens
    for method in (GreedyBack(), RandomSearch(40, batch=8)):
        for target in range(V):
            control = search_control(toy, ReachProblem((0, 3), (target,)), method, lengths=(1, 2, 3), seed=1)
            assert not control.token_reachable or target in true
            assert control.evaluations <= 1 + 3 * 40
            assert control.loss <= control.base_loss or control.token_reachable


def test_a_target_that_needs_no_control_returns_the_empty_one(toy):
    target = greedy(toy, (0, 3), 2)
    control = search_control(toy, ReachProblem((0, 3), target), GreedyBack())
    assert control == ControlResult((), control.loss, control.loss, "none", 1, True)


def test_forbidden_tokens_never_appear(toy):
    for target in range(V):
        found = search_control(toy, ReachProblem((0, 3), (target,)), GreedyBack(), lengths=(1, 2), forbid=(0, 2, 4))
        assert not {0, 2, 4} & set(found.ids)
        found = search_control(toy, ReachProblem((0, 3), (target,)), RandomSearch(9), lengths=(2,), forbid=(1, 3))
        assert not {1, 3} & set(found.ids)
    assert not {1, 3} & set().union(*reachable_set(toy, (0,), 2, forbid=(1, 3)).controls.values())


def test_the_curve_never_rises_and_counts_what_was_reached(toy):
    found = [
        search_control(toy, ReachProblem((a, b), (t,)), Exhaustive(), lengths=(1, 2))
        for a, b, t in itertools.product(range(3), repeat=3)
    ]
    curve = controllability_curve(found, (1, 2))
    assert curve.k == (0, 1, 2) and curve.n == 27
    assert list(curve.eps) == sorted(curve.eps, reverse=True)
    assert curve.reached[2] == sum(c.token_reachable for c in found)
    assert all(low <= eps <= high for low, eps, high in zip(curve.low, curve.eps, curve.high, strict=True))
    with pytest.raises(DataError, match="no controls"):
        controllability_curve([], (1,))


def test_targets_by_rank(toy):
    problems = ranked_targets(toy, (0, 3), (1, 2, V))
    order = np.argsort(-toy._logits_of((0, 3)), kind="stable")
    assert [p.target[0] for p in problems] == [order[0], order[1], order[-1]]
    with pytest.raises(DataError, match="ranks must lie"):
        ranked_targets(toy, (0,), (0,))


class MergingTokenizer:
    """Characters a to f; "ab" is one token: id 4 in place of 0, 1."""

    vocab_size = V

    def encode(self, text, *, parse_special=False):
        out = []
        while text:
            size = 2 if text.startswith("ab") else 1
            out.append(4 if size == 2 else "abcd?f".index(text[0]))
            text = text[size:]
        return out

    def token_bytes(self, token):
        return ("a", "b", "c", "d", "ab", "f")[token].encode()


def test_controls_that_do_not_survive_as_text_are_told_and_can_be_passed_over(toy):
    problem = ReachProblem((1, 3), (2,))  # "bd": a control that ends in "a" becomes "ab", "d"
    tokenizer = MergingTokenizer()
    control = search_control(toy, problem, Exhaustive(), lengths=(1,), tokenizer=tokenizer)
    assert control.text is not None and control.text_reachable is not None
    test = CandidateTest(toy, problem, tokenizer)
    found = test(np.array([[0], [2], [5]]))
    assert np.isinf(found.losses).tolist() == [True, False, False] and test.evaluations == 2
    for target in range(V):
        kept = search_control(
            toy,
            ReachProblem((1, 3), (target,)),
            Exhaustive(),
            lengths=(1, 2),
            tokenizer=tokenizer,
            text_consistent=True,
        )
        if kept.token_reachable and kept.ids:
            assert tokenizer.encode(kept.text + "bd") == [*kept.ids, 1, 3] and kept.text_reachable


@pytest.mark.parametrize(
    ("problem", "error"),
    [
        (lambda: ReachProblem((0,), ()), "the target is empty"),
        (lambda: ReachProblem((0,), (V,)), "outside 0..5"),
        (lambda: ReachProblem((0,) * 63, (1,)), "do not fit the context of 64"),
        (lambda: ReachProblem((0, -1), (1,)), "outside 0..5"),
    ],
)
def test_bad_problems_are_one_line(toy, problem, error):
    with pytest.raises(DataError, match=error):
        search_control(toy, problem(), GreedyBack(), lengths=(1,))


def test_other_refusals(toy):
    problem = ReachProblem((0,), (1,))
    with pytest.raises(ValueError, match="rising"):
        search_control(toy, problem, GreedyBack(), lengths=(2, 1))
    with pytest.raises(ValueError, match="every token is forbidden"):
        search_control(toy, problem, GreedyBack(), forbid=range(V))
    with pytest.raises(CapabilityError, match="too many"):
        reachable_set(toy, (0,), 10)
    with pytest.raises(CapabilityError, match="too many"):
        search_control(toy, ReachProblem((0,), (V - 1,)), Exhaustive(), lengths=(10,))
    with pytest.raises(ValueError, match="unknown accept"):
        GCG(lambda problem, control: np.zeros((1, 1)), accept="worse")


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.audit.reach import TokenGradient
    from likely.runtimes.torch.runtime import TorchRuntime

    module = tiny_module("llama")
    return TorchRuntime(module, revision="tiny"), TokenGradient(module)


@pytest.mark.parametrize(
    ("name", "step", "within"),
    [("gpt2", 1e-5, 1e-6), ("llama", 3e-3, 3e-3), ("gemma3", 3e-3, 3e-3)],  # the norms of the others compute in float32
)
def test_the_gradient_is_that_of_finite_differences(name, step, within):
    torch = pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.audit.reach import TokenGradient

    gradient = TokenGradient(tiny_module(name, dtype=torch.float64))
    problem, control = ReachProblem((5, 9), (7, 3), (1,)), (11, 40)
    found = gradient(problem, control)
    assert found.shape == (2, 64)
    table = gradient._rows()
    ids = torch.tensor([[1, *control, 5, 9, 7]])
    embedded = table[ids[0]][None]

    def loss(at, token, by):
        moved = embedded.clone()
        moved[0, 1 + at] += by * table[token]
        logits = gradient.module(inputs_embeds=moved, use_cache=False).logits[0, 4:]
        return -torch.log_softmax(logits, -1)[torch.arange(2), torch.tensor([7, 3])].mean()

    with torch.no_grad():
        for at, token in ((0, 3), (1, 60)):
            slope = float(loss(at, token, step) - loss(at, token, -step)) / (2 * step)
            assert found[at, token] == pytest.approx(slope, abs=within)


def test_gcg_finds_what_there_is_and_claims_nothing_else(tiny):
    runtime, gradient = tiny
    state, allowed = (5, 9, 20), range(12)  # controls of 12 tokens: all pairs can be tried
    forbid = range(12, 64)
    true = reachable_set(runtime, state, 2, forbid=forbid)
    method = GCG(gradient, candidates=24, top=12, steps=8, restarts=3)
    hits, claims = 0, 0
    for target in sorted(true.tokens) + [t for t in range(64) if t not in true.tokens][:2]:
        found = search_control(runtime, ReachProblem(state, (target,)), method, lengths=(1, 2), forbid=forbid)
        assert not found.token_reachable or target in true.tokens
        assert set(found.ids) <= set(allowed)
        if found.token_reachable:
            row = runtime.plain_logits([*found.ids, *state])[-1]
            assert int(row.argmax()) == target
        hits += found.token_reachable
        claims += target in true.tokens
    assert claims >= 4 and hits >= 0.9 * claims


def test_gcg_tries_no_control_twice_and_improves(tiny):
    runtime, gradient = tiny
    seen = []

    class Recording(CandidateTest):
        def __call__(self, controls):
            seen.extend(map(tuple, np.asarray(controls).tolist()))
            return super().__call__(controls)

    from likely.audit.reach.search import ControlCandidate

    problem = ReachProblem((5, 9, 20), (33,))
    test, rng = Recording(runtime, problem), np.random.default_rng(0)
    start = ControlCandidate((), np.inf, False)
    found = GCG(gradient, candidates=20, top=8, steps=6)(test, 3, start, np.arange(64), rng)
    assert len(seen) == len(set(seen)) and found.loss <= test(np.array([seen[0]])).losses[0]
    again = GCG(gradient, candidates=20, top=8, steps=6)(
        CandidateTest(runtime, problem), 3, start, np.arange(64), np.random.default_rng(0)
    )
    assert again == found


def test_first_order_ranking_evaluates_only_the_best_and_loses_little(tiny):
    runtime, gradient = tiny
    first = reachable_set(runtime, (5, 9, 20), 0).tokens
    for target in [t for t in (3, 8, 30) if t not in first][:2]:
        problem = ReachProblem((5, 9, 20), (target,))
        every = search_control(runtime, problem, GreedyBack(), lengths=(1,))
        some = search_control(runtime, problem, GreedyBack(gradient, top=32), lengths=(1,))
        assert (every.evaluations, some.evaluations) == (65, 33)
        assert every.loss <= some.loss + 1e-6 and some.ids[0] < 64


def test_the_back_off_takes_the_long_method_beyond_its_length(tiny):
    _, gradient = tiny
    chosen = backoff(gradient, quick=True)
    assert isinstance(chosen, Backoff) and chosen.of_length(2).name == "greedy" and chosen.of_length(4).name == "gcg"
    assert search_method("gcg", gradient, quick=False).of_length(8).candidates == 768
    with pytest.raises(CapabilityError, match="needs gradients"):
        search_method("gcg")
