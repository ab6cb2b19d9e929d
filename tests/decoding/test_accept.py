"""Every acceptance rule emits exactly the target's distribution: enumerated, against known values; wrong rules fail."""

from __future__ import annotations

import itertools
from inspect import signature

import numpy as np
import pytest
from exact_distributions import (
    best_possible,
    candidates_distribution,
    distribution_of,
    random_distributions,
    rule_k,
    rule_r_iid,
    rule_r_without,
)
from statistics_of_draws import chi_square_p

from likely.decoding.accept import (
    acceptance as chances,
)
from likely.decoding.accept import (
    k_sequential,
    matched_walk,
    recursive_rejection,
    sample_from,
    sampled_walk,
    spectr_gamma,
)
from likely.decoding.drafting.protocol import Draft, DraftDistribution
from likely.decoding.sampling import gumbel

P3, Q3 = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
P4, Q4 = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
P2, Q2 = np.array([0.9, 0.1]), np.array([0.3, 0.7])
RULES = {"iid": (rule_r_iid, True), "without": (rule_r_without, False), "spectr": (rule_k, True)}


def acceptance(rule: str, p: np.ndarray, q: np.ndarray, k: int) -> float:
    function, replaced = RULES[rule]
    return distribution_of(function, p, q, candidates_distribution(q, k, replaced=replaced))[1]


def law(rule, p, q, k, *, replaced):
    return distribution_of(rule, p, q, candidates_distribution(q, k, replaced=replaced))[0]


@pytest.mark.parametrize("kind", ["any", "zeros", "equal", "disjoint"])
@pytest.mark.parametrize("rule", RULES)
def test_emitted_tokens_have_the_law_of_the_target(rule, kind):
    function, replaced = RULES[rule]
    rng = np.random.default_rng(hash_of(rule, kind))
    for size in (2, 3, 4):
        for k in (1, 2, 3, 4):
            for _ in range(3 if k < 4 else 1):
                p, q = random_distributions(size, kind, rng)
                emitted, accepted = distribution_of(function, p, q, candidates_distribution(q, k, replaced=replaced))
                assert np.abs(emitted - p).max() < 1e-12, (p, q, k)
                if kind == "equal":
                    assert accepted == pytest.approx(1)
                if kind == "disjoint":
                    assert accepted == 0


def hash_of(*words: str) -> int:
    return sum(map(ord, "".join(words)))


@pytest.mark.parametrize(
    "rule, p, q, values",
    [
        ("iid", P3, Q3, [0.6, 0.76, 0.828]),
        ("without", P3, Q3, [0.6, 0.9, 1]),
        ("spectr", P3, Q3, [0.6, 0.785330, 0.858518]),
        ("iid", P4, Q4, [0.6, 0.72, 0.768, 0.7912]),
        ("without", P4, Q4, [0.6, 0.764286, 0.840298, 1]),
        ("iid", P2, Q2, [0.4, 0.58]),
        ("without", P2, Q2, [0.4, 1]),
    ],
)
def test_known_acceptance(rule, p, q, values):
    assert [acceptance(rule, p, q, k + 1) for k in range(len(values))] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_acceptance_is_what_the_rule_does(rule):
    """Summed over all candidates it is the enumerated value, and it is what the decisions of the rule give."""
    function, replaced = RULES[rule]
    how = {
        "distribution": DraftDistribution.IID if replaced else DraftDistribution.WITHOUT_REPLACEMENT,
        "rule": "spectr" if rule == "spectr" else "rejection",
    }
    rng = np.random.default_rng(8)
    for kind in ("any", "zeros", "equal", "disjoint"):
        for k in (1, 2, 3):
            p, q = random_distributions(4, kind, rng)
            lists = candidates_distribution(q, k, replaced=replaced)
            total = sum(weight * chances(p, q, xs, **how).sum() for xs, weight in lists.items())
            assert total == pytest.approx(distribution_of(function, p, q, lists)[1], abs=1e-12)
            for xs in lists:
                assert chances(p, q, xs, **how).sum() == pytest.approx(
                    distribution_of(function, p, q, {xs: 1.0})[1], abs=1e-12
                )


def test_known_gammas():
    assert spectr_gamma(P3, Q3, 1) == 1
    assert spectr_gamma(P3, Q3, 2) == pytest.approx(0.8 + np.sqrt(0.44))  # γ = 2 - β, β = 0.4 + 0.2 / γ
    assert spectr_gamma(P3, Q3, 3) == pytest.approx(1.7926, abs=1e-4)
    assert spectr_gamma(P3, P3, 4) == 1
    for k in (2, 3):
        gamma = spectr_gamma(P4, Q4, k)
        beta = np.minimum(Q4, P4 / gamma).sum()
        assert 1 - (1 - beta) ** k == pytest.approx(gamma * beta)


@pytest.mark.parametrize("p, q", [(P3, Q3), (P4, Q4)])
def test_no_rule_beats_optimal_transport(p, q):
    for rule, (_, replaced) in RULES.items():
        for k in (1, 2):
            best = best_possible(p, candidates_distribution(q, k, replaced=replaced))
            found = acceptance(rule, p, q, k)
            assert found <= best + 1e-9
            if k == 1:
                assert found == pytest.approx(best)  # one candidate: rule R and K are optimal
            if rule == "spectr":
                assert found >= (1 - 1 / np.e) * best  # Sun et al. 2023
    assert acceptance("without", p, q, 2) >= acceptance("iid", p, q, 2)


def test_one_candidate_under_the_targets_own_noise():
    """Rule G: P(argmax(log q + g) = argmax(log p + g)) = Σ_i 1 / Σ_j max(p_j/p_i, q_j/q_i)."""
    exact = sum(1 / np.maximum(P3 / P3[i], Q3 / Q3[i]).sum() for i in range(3))
    assert exact == pytest.approx(0.576471, abs=1e-6)
    tv = np.abs(P3 - Q3).sum() / 2
    assert exact > (1 - tv) / (1 + tv) == pytest.approx(0.428571, abs=1e-6)
    ids = np.arange(3)
    noise = np.array([gumbel(5, 0, position, ids) for position in range(40_000)])
    matches = (np.log(P3) + noise).argmax(1) == (np.log(Q3) + noise).argmax(1)
    assert chi_square_p(matches.tolist(), {True: exact, False: 1 - exact}) > 1e-6


@pytest.mark.parametrize("alpha, length, expected", [(0.8, 4, 3.3616), (0.6, 4, 2.3056)])
def test_chains_emit_the_geometric_sum(alpha, length, expected):
    """(1 - α^(L+1)) / (1 - α), by walking chains that the target matches with probability α at each token."""
    rng = np.random.default_rng(3)
    chain = Draft.chain([0] * length)
    emitted = [len(matched_walk(chain, lambda *_: int(rng.random() >= alpha))[1]) for _ in range(20_000)]
    assert (1 - alpha ** (length + 1)) / (1 - alpha) == pytest.approx(expected)
    assert np.mean(emitted) == pytest.approx(expected, abs=5 * np.std(emitted) / np.sqrt(len(emitted)))


# --- facts of rule R --------------------------------------------------------------------------------------------------


def test_a_token_that_the_target_cannot_emit_is_refused_even_at_u_zero():
    p, q = np.array([0.0, 1.0]), np.array([0.9, 0.1])
    assert recursive_rejection(p, q, [0], lambda: 0.0, replaced=True)[0] is None
    assert k_sequential(p, q, [0, 0], lambda: 0.0)[0] is None


def test_a_refused_token_is_not_emitted_and_its_repetition_is_refused():
    p, q = np.array([0.2, 0.8]), np.array([0.9, 0.1])
    kept, rest = recursive_rejection(p, q, [0, 0], lambda: 0.5, replaced=True)
    assert kept is None and rest[0] == 0 and rest.sum() == pytest.approx(1)


def test_all_tokens_as_candidates_leave_nothing_to_refuse():
    rng = np.random.default_rng(4)
    for _ in range(200):
        p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
        kept, _ = recursive_rejection(p, q, rng.permutation(4).tolist(), rng.random, replaced=False)
        assert kept is not None


def test_a_residual_of_rounding_errors_is_not_divided():
    p = np.array([0.25, 0.75])
    kept, rest = recursive_rejection(p, p.copy(), [0], lambda: 1.0, replaced=True)
    assert kept is None and np.array_equal(rest, p)


@pytest.mark.parametrize("p, q", [(P3, Q3), (P4, Q4), (P2, Q2)])
def test_one_candidate_has_the_law_of_transformers(p, q, monkeypatch):
    """The same decisions for the same uniforms, and the same distribution of the correction."""
    torch = pytest.importorskip("torch")
    from transformers.generation.utils import _speculative_sampling

    more = {"is_done_candidate": False} if "is_done_candidate" in signature(_speculative_sampling).parameters else {}
    drawn_from = []
    monkeypatch.setattr(torch, "multinomial", lambda law, num_samples: drawn_from.append(law) or torch.tensor([[0]]))
    target, draft = torch.log(torch.tensor(np.array([p, p])))[None], torch.log(torch.tensor(q))[None, None]
    for x in range(len(p)):
        for u in (0.0, 0.3, 0.65, 0.999):
            monkeypatch.setattr(torch, "rand_like", lambda like, u=u: torch.full_like(like, u))
            _, n = _speculative_sampling(torch.tensor([[0, x]]), draft, 1, target, **more)
            kept, rest = recursive_rejection(p, q, [x], lambda u=u: u, replaced=True)
            assert int(n) == (kept is not None)
            assert np.allclose(drawn_from[-1][0].numpy(), p if kept is not None else rest, atol=1e-12)


# --- walks ------------------------------------------------------------------------------------------------------------


def tree(distribution: DraftDistribution, **more) -> Draft:
    return Draft(np.array([1, 2, 0]), np.array([-1, -1, 0]), distribution, **more)


def test_the_walk_descends_where_the_target_agrees():
    calls = []

    def pick(node, path):
        calls.append((node, path))
        return {(): 1, (1,): 0, (1, 0): 2}[path]

    assert matched_walk(tree(DraftDistribution.FIXED), pick) == ([0, 2], [1, 0, 2])
    assert calls == [(-1, ()), (0, (1,)), (2, (1, 0))]
    assert matched_walk(tree(DraftDistribution.FIXED), lambda node, path: 0) == ([], [0])
    assert matched_walk(Draft.chain([]), lambda node, path: 7) == ([], [7])


def test_the_sampled_walk_descends_and_ends_with_the_targets_distribution():
    q = {-1: np.log(np.array([0.1, 0.5, 0.4])), 0: np.log(np.array([0.8, 0.1, 0.1]))}
    draft = tree(DraftDistribution.WITHOUT_REPLACEMENT, log_q=q, draws={-1: (1, 0), 0: (2,)})
    laws = {-1: np.array([0.1, 0.9, 0.0]), 0: np.array([1.0, 0.0, 0.0]), 2: np.array([0.0, 0.0, 1.0])}
    seen = []

    def distribution_at(node, path):
        seen.append((node, path))
        return laws[node]

    # token 2 has p = 0 and is refused even at u = 0; then 1, then 0, then the bonus
    assert sampled_walk(draft, distribution_at, lambda: 0.0) == ([0, 2], [1, 0, 2])
    assert seen == [(-1, ()), (0, (1,)), (2, (1, 0))]


def test_rules_refuse_drafts_that_they_are_not_exact_for():
    with pytest.raises(ValueError, match="a fixed draft takes matched_walk"):
        sampled_walk(tree(DraftDistribution.FIXED), lambda *_: P3, lambda: 0.5)
    with pytest.raises(ValueError, match="independent candidates"):
        sampled_walk(tree(DraftDistribution.WITHOUT_REPLACEMENT), lambda *_: P3, lambda: 0.5, rule="spectr")


def test_sample_from_never_takes_an_impossible_token():
    p = np.array([0.0, 0.5, 0.0, 0.5, 0.0])
    assert [sample_from(p, u) for u in (0.0, 0.49, 0.5, 1 - 2**-53)] == [1, 1, 3, 3]


# --- rules that are not lossless must be seen to fail -----------------------------------------------------------------


def swapped(p, q, candidates, uniform):
    return recursive_rejection(q, p, candidates, uniform, replaced=True)


def with_replacement_q(p, q, candidates, uniform):
    return recursive_rejection(p, q, candidates, uniform, replaced=True)


def by_probability(p, q, candidates, uniform):
    return recursive_rejection(p, q, sorted(candidates, key=lambda x: -q[x]), uniform, replaced=False)


def by_index(p, q, candidates, uniform):
    return recursive_rejection(p, q, sorted(candidates), uniform, replaced=False)


def merged(p, q, candidates, uniform):
    kept, rest = recursive_rejection(p, q, once := list(dict.fromkeys(candidates)), uniform, replaced=True)
    return (None if kept is None else candidates.index(once[kept])), rest


def only_likely(p, q, candidates, uniform):
    few = [x for x in candidates if q[x] >= 0.25]
    kept, rest = recursive_rejection(p, q, few, uniform, replaced=True)
    return (None if kept is None else candidates.index(few[kept])), rest


def no_residual(p, q, candidates, uniform):
    return recursive_rejection(p, q, candidates, uniform, replaced=True)[0], p


def of_another_q(p, q, candidates, uniform):
    sharp = q**2 / (q**2).sum()
    return recursive_rejection(p, sharp, candidates, uniform, replaced=True)


@pytest.mark.parametrize(
    "rule, replaced",
    [
        (swapped, True),
        (with_replacement_q, False),
        (by_probability, False),
        (by_index, False),
        (merged, True),
        (only_likely, True),
        (no_residual, True),
        (of_another_q, True),
    ],
)
def test_wrong_rules_have_another_distribution(rule, replaced):
    def chosen(p, q, candidates, uniform):  # candidates sorted anew are reported by their place in the draft
        kept, rest = rule(p, q, candidates, uniform)
        if kept is not None and rule in (by_probability, by_index):
            ordered = sorted(candidates, key=(lambda x: -q[x]) if rule is by_probability else None)
            kept = candidates.index(ordered[kept])
        return kept, rest

    gaps = [np.abs(law(chosen, p, q, 2, replaced=replaced) - p).max() for p, q in ((P3, Q3), (P4, Q4))]
    assert max(gaps) > 0.01, rule.__name__


def test_relaxed_acceptance_has_another_distribution():
    """Typical acceptance takes any candidate with p > ε: of two candidates of Q3, (0 or 1) wins too often."""
    emitted = np.zeros(3)
    for xs, weight in candidates_distribution(Q3, 2, replaced=True).items():
        good = [x for x in xs if P3[x] > 0.25]
        emitted += weight * (np.eye(3)[good[0]] if good else P3)
    assert np.abs(emitted - P3).max() > 0.05


def test_one_draw_per_path_prefers_the_drafted():
    """Each of the paths 0 and 1 makes its own draw of the node they share; the first that matches wins."""
    emitted = np.zeros(3)
    for a, b in itertools.product(range(3), repeat=2):  # what path 0 drew, what path 1 drew
        emitted += P3[a] * P3[b] * (np.eye(3)[0] if a == 0 else np.eye(3)[1] if b == 1 else P3)
    assert emitted == pytest.approx([0.675, 0.255, 0.07])
