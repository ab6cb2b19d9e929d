"""Rows reduced on the device give what the numpy form gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.runtimes.protocol import Want
from likely.runtimes.rows import reduce_rows
from likely.runtimes.rows import top_tokens as numpy_top_tokens
from likely.runtimes.torch.rows import RowCollector, top_tokens

V = 17
WANTS = [
    Want.LAST,
    Want.ALL,
    Want.NONE,
    Want(rows=(3, 0, 3), logits=True, top=4, entropy=True),
    Want(rows="all", top=V),
    Want(rows="none", pairs=np.array([[4, 2], [0, 0], [4, 16], [4, 2]])),
    Want(rows="last", entropy=True, pairs=np.array([[1, 5]])),
    Want(rows=(), top=2, entropy=True, logits=True, pairs=np.empty((0, 2), np.int64)),
]


def fields(output):
    return {name: getattr(output, name) for name in ("logits", "top_ids", "top_logprobs", "entropy", "logprobs")}


@pytest.mark.parametrize("cut", [5, 1, 3])
def test_any_cut_gives_the_numpy_numbers(cut):
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(5, V)).astype(np.float32) * 3 for _ in WANTS]
    rows = RowCollector(WANTS, [5] * len(WANTS), V)
    for start in range(0, 5, cut):
        where = [(i, own[(own >= start) & (own < start + cut)]) for i, own in enumerate(rows.head_rows)]
        rows.add(torch.from_numpy(np.concatenate([logits[i][own] for i, own in where])), where)
    for want, values, found in zip(WANTS, logits, rows.outputs(), strict=True):
        expected = fields(reduce_rows(want, 5, lambda row, values=values: values[row]))
        for name, got in fields(found).items():
            assert (got is None) == (expected[name] is None), name
            if got is not None and len(got):
                assert got.dtype == expected[name].dtype
                np.testing.assert_allclose(got, expected[name], atol=2e-6, rtol=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.data())
def test_ties_go_to_the_smaller_id(values, data):
    row = np.array(values, np.float32)
    row[row == -2] = -np.inf
    k = data.draw(st.integers(1, len(row)))
    ids, found = top_tokens(torch.from_numpy(row)[None], k)
    expected = numpy_top_tokens(row, k)
    np.testing.assert_array_equal(ids[0].numpy(), expected)
    np.testing.assert_array_equal(found[0].numpy(), row[expected])


def test_minus_infinity_is_legal_and_nan_is_an_error():
    row = torch.tensor([[0.0, -torch.inf, 1.0]])
    rows = RowCollector([Want(entropy=True, pairs=np.array([[0, 1]]))], [1], 3)
    rows.add(row, [(0, np.array([0]))])
    output = rows.outputs()[0]
    p = 1 / (1 + np.e)
    assert output.logprobs[0] == -np.inf
    np.testing.assert_allclose(output.entropy, -(p * np.log(p) + (1 - p) * np.log(1 - p)), rtol=1e-6)
    with pytest.raises(FloatingPointError, match="NaN"):
        RowCollector([Want.LAST], [1], 3).add(torch.tensor([[0.0, torch.nan, 1.0]]), [(0, np.array([0]))])


def test_hidden_states_alone_need_no_logits():
    rows = RowCollector([Want(rows="all", hidden=True)], [4], V)
    assert not len(rows.head_rows[0]) and len(rows.hidden_rows[0]) == 4
