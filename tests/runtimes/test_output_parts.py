from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.runtimes.protocol import Want
from likely.runtimes.rows import CallOutputs, reduce_rows

LOGITS = np.random.default_rng(0).standard_normal((12, 7)).astype(np.float32)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.sampled_from(["none", "last", "all"]), st.lists(st.integers(0, 11), max_size=6).map(tuple)),
    st.one_of(st.none(), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 6)), max_size=9)),
    st.booleans(),
    st.integers(0, 3),
    st.booleans(),
    st.lists(st.integers(1, 11), max_size=4),
)
def test_any_cutting_gives_what_one_piece_gives(rows, pairs, logits, top, entropy, cuts):
    pairs = None if pairs is None else np.array(pairs, np.int64).reshape(-1, 2)
    want = Want(rows=rows, logits=logits, top=top, entropy=entropy, pairs=pairs)
    parts = CallOutputs([want], [12], 7)
    edges = [0, *sorted(set(cuts)), 12]
    for low, high in reversed(list(itertools.pairwise(edges))):
        for row in parts.head_rows[0]:
            if low <= row < high:
                parts.add_row(0, row, LOGITS[row])
    [output] = parts.outputs()
    whole = reduce_rows(want, 12, lambda row: LOGITS[row])
    for name in ("logits", "top_ids", "top_logprobs", "entropy", "logprobs"):
        ours, theirs = getattr(output, name), getattr(whole, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))
