"""GCG against a slow form of what nanogcg 0.3.0 does: gradients, candidates, the filter, losses that are reached.

Its package wants an older transformers than ours, so that its formulas stand here anew: ∂L/∂onehot by autograd of the
whole matrix, +inf where a token is forbidden, the top k of its negative per position, a uniform position and a uniform
one of its k, the best of all moved to; texts that change when they are tokenised anew are left out.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from likely.audit.reach import GCG, CandidateTest, ReachProblem, TokenGradient, search_control

torch = pytest.importorskip("torch")
V, K = 64, 8
FORBIDDEN = (0, 1, 2, 63)


@pytest.fixture(scope="module")
def module():
    from tiny_torch import tiny_module

    return tiny_module("llama")


@pytest.fixture(scope="module")
def runtime(module):
    from likely.runtimes.torch.runtime import TorchRuntime

    return TorchRuntime(module, revision="tiny")


def slow_losses(module, problem, controls):
    """(N,) mean cross-entropy of the target, (N,) whether it is the argmax throughout; a plain forward per control."""
    losses, exact = [], []
    for control in controls:
        ids = torch.tensor([[*problem.before, *control, *problem.after, *problem.target]])
        with torch.no_grad():
            logits = module(input_ids=ids).logits[0, -len(problem.target) - 1 : -1]
        target = torch.tensor(problem.target)
        losses.append(float(torch.nn.functional.cross_entropy(logits, target)))
        exact.append(bool((logits.argmax(-1) == target).all()))
    return np.array(losses), np.array(exact)


def slow_gradient(module, problem, control):
    """(k, V), +inf for what is forbidden."""
    table = module.get_input_embeddings().weight
    onehot = torch.zeros(1, len(control), V)
    onehot[0, torch.arange(len(control)), torch.tensor(control)] = 1
    onehot.requires_grad_()
    around = [table[torch.tensor([ids], dtype=torch.long)] for ids in (problem.before, problem.after, problem.target)]
    embedded = torch.cat([around[0], onehot @ table, around[1], around[2]], dim=1)
    n = len(problem.target)
    logits = module(inputs_embeds=embedded).logits[0, -n - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(problem.target))
    [slope] = torch.autograd.grad(loss, onehot)
    slope[0, :, list(FORBIDDEN)] = float("inf")
    return slope[0]


def slow_candidates(slope, control, count, generator):
    """(count, k) controls, with repetitions and with the control itself among them."""
    top = (-slope).topk(K, dim=1).indices
    made = torch.tensor(control).repeat(count, 1)
    places = torch.randint(0, len(control), (count,), generator=generator)
    values = top[places, torch.randint(0, K, (count,), generator=generator)]
    made[torch.arange(count), places] = values
    return made.numpy()


PROBLEMS = [
    ReachProblem((5, 9, 20), (33,), (1,)),
    ReachProblem((40, 7), (12, 50)),
    ReachProblem((8,), (30, 31, 4), (1, 3)),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_candidates_are_the_top_k_of_the_same_gradient(module, problem):
    control, allowed = (11, 25, 48), np.setdiff1d(np.arange(V), FORBIDDEN)
    slope = slow_gradient(module, problem, control)
    ours = TokenGradient(module)(problem, control)
    free = torch.tensor(allowed)
    np.testing.assert_allclose(ours[:, allowed], slope[:, free].numpy(), atol=1e-6, rtol=1e-4)
    drawn = slow_candidates(slope, control, 4000, torch.Generator().manual_seed(0))
    theirs = set(map(tuple, drawn.tolist())) - {control}
    method = GCG(TokenGradient(module), candidates=3 * K, top=K)
    found = method._swaps(problem, control, allowed, {control}, np.random.default_rng(0))
    assert set(map(tuple, found.tolist())) == theirs and len(found) == len(theirs)  # all of them, each once
    few = GCG(TokenGradient(module), candidates=5, top=K)
    some = set(map(tuple, few._swaps(problem, control, allowed, {control}, np.random.default_rng(1)).tolist()))
    assert len(some) == 5 and some < theirs


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_losses_and_exact_matches_of_candidates_are_the_same(module, runtime, problem):
    controls = np.random.default_rng(0).integers(3, 60, (12, 3))
    losses, exact = slow_losses(module, problem, controls.tolist())
    found = CandidateTest(runtime, problem)(controls)
    np.testing.assert_allclose(found.losses, losses, atol=1e-5)
    assert (found.reached == exact).all() and found.best == np.lexsort((losses, ~exact))[0]


def test_controls_that_change_as_text_are_left_out_as_the_filter_does(runtime):
    class Digits:
        """Two digits a token where they can be paired from the left: ids 10 to 63 as 2 digits, 0 to 9 as one."""

        def encode(self, text, *, parse_special=False):
            out, i = [], 0
            while i < len(text):
                two = text[i : i + 2]
                size = 2 if len(two) == 2 and 10 <= int(two) < V else 1
                out.append(int(text[i : i + size]))
                i += size
            return out

        def token_bytes(self, token):
            return str(token).encode()

    def survives(ids):  # decode, encode, compare
        return Digits().encode("".join(map(str, ids))) == list(ids)

    controls = np.random.default_rng(0).integers(0, V, (60, 3))
    kept = np.array([survives(row) for row in controls.tolist()])
    assert 5 < kept.sum() < 55
    alone = CandidateTest(runtime, ReachProblem((), (9,), (1,)), Digits())(controls)
    assert (np.isfinite(alone.losses) == kept).all()
    after = (7, 30)  # ours also reads what follows, where tokens may merge
    found = CandidateTest(runtime, ReachProblem(after, (9,), (1,)), Digits())(controls)
    with_after = np.array([survives([*row, *after]) for row in controls.tolist()])
    assert (np.isfinite(found.losses) == with_after).all()


@pytest.mark.slow
def test_final_losses_are_of_one_distribution(module, runtime):
    width, steps, k = 24, 8, 3
    allowed = np.setdiff1d(np.arange(V), FORBIDDEN)
    theirs, ours, reached = [], [], []
    for number, target in enumerate((33, 4, 17, 58, 29, 41, 12, 50, 22, 36)):
        problem = ReachProblem((5, 9, 20 + number), (target,), (1,))
        generator = torch.Generator().manual_seed(number)
        current = tuple(int(t) for t in allowed[torch.randint(0, len(allowed), (k,), generator=generator).numpy()])
        seen = []
        for _ in range(steps):
            drawn = slow_candidates(slow_gradient(module, problem, current), current, width, generator)
            losses, exact = slow_losses(module, problem, drawn.tolist())
            current = tuple(drawn[losses.argmin()].tolist())
            seen.append(float(losses.min()))
            if exact.any():  # its early stop
                break
        theirs.append(min(seen))
        method = GCG(TokenGradient(module), candidates=width, top=K, steps=steps, accept="always")
        found = search_control(runtime, problem, method, lengths=(k,), forbid=FORBIDDEN, seed=number)
        ours.append(found.loss)
        reached.append((bool(exact.any()), found.token_reachable))
    assert mannwhitneyu(theirs, ours).pvalue > 0.01
    assert abs(sum(a for a, _ in reached) - sum(b for _, b in reached)) <= 3
