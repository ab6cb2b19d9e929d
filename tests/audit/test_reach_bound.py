"""The self-attention bound: no control passes it, some come near, and real layers obey it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from likely.audit.reach import attention_bound
from likely.errors import CapabilityError, DataError


def head_output(u, x, w_q, w_k, w_v):
    """(m, d_v) of the state's rows with the control in front: the slow obvious form."""
    rows = np.concatenate([u, x])
    scores = (x @ w_q) @ (rows @ w_k).T / np.sqrt(w_q.shape[1])
    k = len(u)
    for i in range(len(x)):
        scores[i, k + i + 1 :] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ (rows @ w_v)


def across(y, bare):
    unit = bare / np.linalg.norm(bare, axis=1, keepdims=True)
    return y - (y * unit).sum(1, keepdims=True) * unit


def test_no_random_control_passes_the_bound():
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(300):
        d, m, k = rng.integers(2, 8), rng.integers(1, 5), rng.integers(1, 5)
        x = rng.normal(size=(m, d)) * rng.uniform(0.2, 1.5)
        w_q, w_k, w_v = (rng.normal(size=(d, d)) * rng.uniform(0.2, 0.8) for _ in range(3))
        u = rng.normal(size=(k, d))
        most = float(np.linalg.norm(u, axis=1).max())
        bound = attention_bound(x, w_q, w_k, w_v, k, most_control_norm=most)
        bare = head_output(np.empty((0, d)), x, w_q, w_k, w_v)
        np.testing.assert_allclose(bound.output, bare, atol=1e-9)
        y = head_output(u, x, w_q, w_k, w_v)
        ratio = np.linalg.norm(across(y, bare), axis=1) / bound.beta
        largest = max(largest, float(ratio.max()))
        assert not bound.unreachable(y).any()
    assert 0.05 < largest <= 1


def test_an_aligned_control_comes_near_the_bound():
    d = 4
    x = np.zeros((1, d))
    x[0, 0] = 1.0
    w_q = w_k = np.eye(d)
    w_v = np.diag([1.0, 1.0, 0.0, 0.0])
    u = np.zeros((3, d))
    u[:, :2] = np.array([0.9, np.sqrt(1 - 0.81)])  # near the query, so that it is attended to, and off it
    bound = attention_bound(x, w_q, w_k, w_v, 3, most_control_norm=1.0)
    y = head_output(u, x, w_q, w_k, w_v)
    assert 0.3 < np.linalg.norm(across(y, bound.output)) / bound.beta[0] <= 1
    # a key that the query meets in full, a value off the state's own: nearly all that the bound allows
    w_q, w_v = np.zeros((d, d)), np.zeros((d, d))
    w_q[1, 0], w_v[0, 2], w_v[1, 3] = 1.0, 1.0, 1e-3
    x = np.array([[0.0, 1.0, 0.0, 0.0]])
    u = np.tile(np.array([1.0, 0.0, 0.0, 0.0]), (3, 1))
    bound = attention_bound(x, w_q, np.eye(d), w_v, 3, most_control_norm=1.0)
    y = head_output(u, x, w_q, np.eye(d), w_v)
    assert 0.99 < np.linalg.norm(across(y, bound.output)) / bound.beta[0] <= 1 + 1e-9


def test_the_bound_grows_with_k_and_ends_at_what_any_control_can():
    rng = np.random.default_rng(1)
    x, w_q, w_k, w_v = (rng.normal(size=s) * 0.3 for s in ((3, 5), (5, 5), (5, 5), (5, 5)))
    betas = [attention_bound(x, w_q, w_k, w_v, k, most_control_norm=1.0).beta for k in (0, 1, 2, 1000, 10**9)]
    assert (betas[0] == 0).all() and all((a < b).all() for a, b in pairwise(betas))
    np.testing.assert_allclose(betas[-1], np.linalg.norm(w_v, 2), rtol=1e-6)
    far = attention_bound(x, w_q, w_k, w_v, 1, most_control_norm=1.0)
    wanted = far.output.copy()
    wanted[0] += 1e3
    assert far.unreachable(wanted).tolist()[0]
    with pytest.raises(ValueError, match="must be >= 0"):
        attention_bound(x, w_q, w_k, w_v, -1, most_control_norm=1.0)


def test_a_real_layer_with_rotary_positions_and_grouped_heads_obeys_it():
    torch = pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.audit.reach import attention_report
    from likely.audit.reach.bound import _layers

    module = tiny_module("llama")
    state, k = [5, 9, 20, 31], 3
    report = [row for row in attention_report(module, state, [k]) if row.layer == 0]
    assert len(report) == 4 and all(row.beta > 0 and 0 < row.saturation <= 1 for row in report)

    def outputs(ids):
        attention, _, x, scores, heads = next(iter(_layers(torch, module, ids)))
        value = attention.v_proj.weight.detach().double().numpy().T
        width = attention.head_dim
        found = []
        for head in range(heads):
            own = value[:, head // 2 * width : (head // 2 + 1) * width]
            row = scores[head][-1]
            weights = np.exp(row - row.max())
            found.append(weights / weights.sum() @ (x @ own))
        return found

    bare = outputs(state)
    rng = np.random.default_rng(0)
    for control in rng.integers(0, 64, (20, k)).tolist():
        for row, y, plain in zip(report, outputs([*control, *state]), bare, strict=True):
            assert np.linalg.norm(across(y[None], plain[None])) <= row.beta
            assert row.output_norm == pytest.approx(np.linalg.norm(plain))


def test_the_outputs_of_heads_with_biases_are_those_of_the_model():
    torch = pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.audit.reach import attention_report

    module, state = tiny_module("qwen2"), [5, 9, 20, 31]
    layer = module.model.layers[0].self_attn
    with torch.no_grad():
        for part in (layer.q_proj, layer.k_proj, layer.v_proj):
            part.bias.normal_(generator=torch.Generator().manual_seed(0))
    seen = []
    hook = layer.o_proj.register_forward_pre_hook(lambda part, args: seen.append(args[0][0, -1]))
    report = [row for row in attention_report(module, state, [1]) if row.layer == 0]
    hook.remove()
    norms = seen[0].unflatten(0, (len(report), -1)).norm(dim=1).tolist()
    assert [row.output_norm for row in report] == pytest.approx(norms, rel=1e-4)


def test_models_that_are_built_differently_are_refused():
    pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.audit.reach import attention_report

    with pytest.raises(CapabilityError, match="q_proj"):
        attention_report(tiny_module("gpt2"), [1, 2], [1])
    with pytest.raises(CapabilityError, match="normalise their queries"):
        attention_report(tiny_module("qwen3"), [1, 2], [1])
    with pytest.raises(DataError, match="one token"):
        attention_report(tiny_module("llama"), [], [1])
