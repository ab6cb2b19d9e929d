"""Attention in parts: the merge against attention to everything at once, shared prefixes against copies of them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from likely.runtimes.torch import PrefixLevel, attention_with_lse, merge_attention, shared_prefix_attention

HEADS = [(3, 3), (9, 3), (8, 1)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def drawn(b, t, s, heads=9, h_kv=3, width=64, dtype=torch.float32, value_width=None):
    shapes = ((b, t, heads, width), (b, s, h_kv, width), (b, s, h_kv, value_width or width))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def whole(query, key, value, visible=None, scale=None, softcap=None):
    """All scores in fp64, head by head: slow and obvious."""
    share = query.shape[2] // key.shape[2]
    q, k, v = query.double(), key.double().repeat_interleave(share, 2), value.double().repeat_interleave(share, 2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return torch.einsum("bhts,bshd->bthd", weights, v), lse.transpose(1, 2)


def close(found, expected, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other.double(), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("width", [32, 128])
def test_parts_of_any_sizes_merge_to_the_whole(heads, width, dtype):
    for sizes in ([5, 12], [1, 0, 40], [0, 3, 0, 1, 9], [7, 1, 1, 30, 2, 64]):
        q, k, v = drawn(2, 3, sum(sizes), *heads, width, dtype)
        parts = [attention_with_lse(q, *kv) for kv in zip(k.split(sizes, 1), v.split(sizes, 1), strict=True)]
        out, lse = merge_attention([out.float() for out, _ in parts], [lse for _, lse in parts])
        assert parts[0][0].dtype == dtype and lse.dtype == torch.float32
        expected, expected_lse = whole(q, k, v)
        at_once = scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)), enable_gqa=True)
        rounding = 0 if dtype == torch.float32 else (at_once.transpose(1, 2) - expected).abs().max()
        assert (out - expected).abs().max() < (1e-5 if dtype == torch.float32 else 2e-3 + 2 * rounding)
        close([lse], [expected_lse], atol=1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("method", ["flash", "matmul"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_both_operators_equal_all_scores_written_out(heads, method):
    b, t, s = 3, 4, 21
    q, k, v = drawn(b, t, s, *heads)
    lengths, columns, rows = torch.tensor([21, 2, 0]), torch.arange(s), torch.arange(t)
    mask = torch.rand(b, t, s) < 0.5
    in_length = (columns < lengths[:, None])[:, None].expand(b, t, s)
    before = columns <= lengths[:, None, None] - t + rows[:, None]
    below = (columns <= s - t + rows[:, None]).expand(b, t, s)
    cases = {
        "all": ({}, None),
        "causal": ({"causal": True}, below),
        "window": ({"causal": True, "window": 3}, below & (columns > s - t + rows[:, None] - 3)),
        "lengths": ({"lengths": lengths}, in_length),
        "causal lengths": ({"causal": True, "lengths": lengths}, in_length & before),
        "mask": ({"mask": mask}, mask),
        "everything": ({"mask": mask, "causal": True, "lengths": lengths, "scale": 0.3}, mask & in_length & before),
    }
    for name, (settings, visible) in cases.items():
        out, lse = attention_with_lse(q, k, v, method=method, **settings)
        expected = whole(q, k, v, visible, settings.get("scale"))
        close((out, lse), expected)
        blind = torch.zeros(b, t, dtype=torch.bool) if visible is None else ~visible.any(-1)
        assert (lse[blind] == -torch.inf).all() and (out[blind] == 0).all(), name
        assert blind.any() == ("lengths" in settings)
    square = drawn(2, 6, 6, *heads)
    close(attention_with_lse(*square, causal=True, method=method), whole(*square, torch.ones(2, 6, 6).tril().bool()))


def test_soft_capping_and_other_value_widths_take_the_products():
    q, k, v = drawn(2, 3, 17, value_width=16)
    close(attention_with_lse(q * 9, k, v, softcap=4.0), whole(q * 9, k, v, softcap=4.0))
    assert (whole(q * 9, k, v)[0] - whole(q * 9, k, v, softcap=4.0)[0]).abs().max() > 0.1
    for value, softcap in ((v, None), (k, 4.0)):
        with pytest.raises(ValueError, match="flash operator"):
            attention_with_lse(q, k, value, softcap=softcap, method="flash")


def test_gradients_of_merged_parts_are_those_of_the_whole():
    q, k, v = (t.double().requires_grad_() for t in drawn(1, 2, 9, 2, 1, 4))
    parts = [attention_with_lse(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 4), (4, 9))]
    merged, lse = merge_attention(*zip(*parts, strict=True))
    (merged.square().sum() + lse.sum()).backward()
    found = [t.grad.clone() for t in (q, k, v)]
    for t in (q, k, v):
        t.grad = None
    out, lse = whole(q, k, v)
    (out.square().sum() + lse.sum()).backward()
    close(found, [t.grad for t in (q, k, v)], atol=1e-12)


def test_the_order_and_the_tree_of_a_merge_do_not_matter():
    q, k, v = drawn(1, 2, 40)
    parts = [attention_with_lse(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 1), (1, 20), (20, 20), (20, 40))]
    expected = whole(q, k, v)
    for order in itertools.permutations(parts):
        close(merge_attention(*zip(*order, strict=True)), expected)
    left, right = (merge_attention(*zip(*pair, strict=True)) for pair in (parts[:2], parts[2:]))
    close(merge_attention(*zip(left, right, strict=True)), expected)
    close(merge_attention(*zip(parts[1], strict=True)), parts[1])


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_scores_neither_overflow_nor_vanish(shift):
    q, k, v = drawn(1, 2, 12)
    outs, lses = zip(*(attention_with_lse(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 5), (5, 12))), strict=True)
    plain, lse = merge_attention(outs, lses)
    shifted, high = merge_attention(outs, [lse + shift for lse in lses])
    torch.testing.assert_close(shifted, plain, atol=1e-2, rtol=0)  # LSEs near 1e4 have steps of 1e-3
    torch.testing.assert_close(high, lse + shift, atol=2e-3, rtol=0)
    only, _ = merge_attention(outs, [lses[0] + shift, lses[1]])
    torch.testing.assert_close(only, outs[0] if shift > 0 else outs[1])


def test_one_key_of_a_huge_score_takes_all():
    q = torch.zeros(1, 1, 2, 32)
    q[..., 0] = 1
    k, v = torch.randn(1, 9, 2, 32), torch.randn(1, 9, 2, 32)
    k[0, 6, :, 0] = 1e4
    parts = [attention_with_lse(q, k[:, a:b], v[:, a:b], scale=1.0) for a, b in ((0, 5), (5, 9))]
    out, lse = merge_attention(*zip(*parts, strict=True))
    assert torch.equal(out[0, 0], v[0, 6]) and (lse == 1e4).all()


def test_parts_that_hold_nothing():
    q, k, v = drawn(2, 3, 0)
    out, lse = attention_with_lse(q, k, v)
    assert out.shape == q.shape and (out == 0).all() and (lse == -torch.inf).all()
    nothing = merge_attention([out, out], [lse, lse])
    assert (nothing[0] == 0).all() and (nothing[1] == -torch.inf).all()
    some = attention_with_lse(*drawn(2, 3, 5))
    close(merge_attention([out, some[0], out], [lse, some[1], lse]), some)


@pytest.mark.parametrize("wrong", ["swapped", "log2", "no lse"])
def test_a_wrong_merge_would_be_seen(wrong):
    q, k, v = drawn(1, 3, 30)
    parts = [attention_with_lse(q, k[:, a:b], v[:, a:b]) for a, b in ((0, 3), (3, 30))]
    outs, lses = zip(*parts, strict=True)
    wrongly = {"swapped": lses[::-1], "log2": [x / 0.6931 for x in lses], "no lse": [0 * x for x in lses]}
    assert (merge_attention(outs, wrongly[wrong])[0] - whole(q, k, v)[0]).abs().max() > 1e-2


# --- shared prefixes ------------------------------------------------------------------------------------------------


def tree(lengths, width=64, heads=9, h_kv=3, t=1):
    """Prefixes of these lengths per level, the last level the sequences' own; each prefix serves consecutive ones."""
    b = len(lengths[-1])
    query = torch.randn(b, t, heads, width)
    levels, texts = [], [([], []) for _ in range(b)]
    for n, sizes in enumerate(lengths):
        key, value = (torch.randn(len(sizes), max(sizes), h_kv, width) for _ in range(2))
        parents = torch.arange(b) * len(sizes) // b
        levels.append(PrefixLevel(key, value, parents, torch.tensor(sizes)))
        for i, parent in enumerate(parents.tolist()):
            texts[i][0].append(key[parent, : sizes[parent]])
            texts[i][1].append(value[parent, : sizes[parent]])
        if n < len(lengths) - 1:
            key[torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]] = torch.nan  # never read
    return query, levels[:-1], levels[-1], [(torch.cat(k), torch.cat(v)) for k, v in texts]


def check_tree(query, levels, own, texts, softcap=None):
    found = shared_prefix_attention(query, levels, own.key, own.value, lengths=own.lengths, softcap=softcap)
    t = query.shape[1]
    for i, (key, value) in enumerate(texts):
        seen = torch.arange(len(key)) <= len(key) - t + torch.arange(t)[:, None]
        expected = whole(query[i : i + 1], key[None], value[None], seen[None], softcap=softcap)
        close([part[i : i + 1] for part in found], expected)


LEVELS = [
    [[1], [10]],
    [[3], [6, 7]],
    [[7, 7], [9, 10, 11, 4], [1, 129, 30, 64, 2, 17, 128, 5]],
    [[16384], [1, 128, 256]],
    [[5, 0], [3, 3, 1, 9]],
]


@pytest.mark.parametrize("lengths", LEVELS, ids=["one", "two", "depth 3", "long", "empty"])
def test_trees_of_prefixes_equal_attention_to_each_text(lengths):
    check_tree(*tree(lengths))
    if lengths[0][0] < 100:
        check_tree(*tree(lengths, heads=4, h_kv=1, width=32), softcap=3.0)


def test_several_queries_and_parents_in_any_order():
    query, levels, own, texts = tree([[40], [6, 9], [5, 3, 4, 8]], t=3)
    check_tree(query, levels, own, texts)
    order = torch.tensor([2, 0, 3, 1])
    moved = [PrefixLevel(level.key, level.value, level.parents[order], level.lengths) for level in levels]
    of_own = PrefixLevel(own.key[order], own.value[order], own.parents, own.lengths[order])
    check_tree(query[order], moved, of_own, [texts[i] for i in order.tolist()])


def test_a_sequence_with_nothing_of_its_own_attends_to_its_prefix():
    query, levels, _, texts = tree([[20], [4, 4]])
    nothing = torch.zeros(2, 0, 3, 64)
    expected = whole(query, *(torch.stack([text[n][:20] for text in texts]) for n in (0, 1)))
    close(shared_prefix_attention(query, levels, nothing, nothing), expected)


def test_bad_input_names_the_level_and_the_shapes():
    query, levels, own, _ = tree([[3], [6, 7]])
    level = levels[0]
    wrong = [
        (PrefixLevel(level.key, level.value, torch.tensor([0])), "level 0: parents .* 1 prefixes .* 2 sequences"),
        (PrefixLevel(level.key, level.value, torch.tensor([0, 1])), r"level 0: parents .*\[0, 1\]"),
        (PrefixLevel(level.key, level.value, level.parents, torch.tensor([-1])), "level 0: lengths .* from 0 to 3"),
        (PrefixLevel(level.key, level.value, level.parents, torch.tensor([4])), "level 0: lengths"),
        (PrefixLevel(level.key, level.value[:, :2], level.parents), r"level 0: key .*\(1, 3, 3, 64\).*\(1, 2, 3, 64\)"),
        (PrefixLevel(level.key[..., :32], level.value, level.parents), "level 0: D must be"),
        (PrefixLevel(level.key[0], level.value[0], level.parents), "level 0: key must be"),
    ]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            shared_prefix_attention(query, [bad], own.key, own.value)
    q, k, v = drawn(2, 3, 5)
    for call, message in (
        (lambda: attention_with_lse(q[0], k, v), "needs"),
        (lambda: attention_with_lse(q, k[:1], v[:1]), "B and D"),
        (lambda: attention_with_lse(q[:, :, :8], k, v), "divisor"),
        (lambda: attention_with_lse(q, k, v, mask=torch.ones(3, 5, dtype=torch.bool)), "mask must be"),
        (lambda: attention_with_lse(q, k, v, lengths=torch.tensor([5, 6])), "lengths must be"),
        (lambda: attention_with_lse(q, k, v, window=2), "causal=True"),
        (lambda: attention_with_lse(q, k, v, window=0, causal=True), "window must be"),
        (lambda: attention_with_lse(q, k, v, softcap=0.0), "softcap must be"),
        (lambda: merge_attention([], []), "one or more"),
        (lambda: merge_attention([q], [q]), "part 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # uncompiled, it says that it is slow
def test_flex_attention_gives_the_same_lse():
    """torch's other kernel as a second reference, under a window and a shared prefix."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    t, window = 96, 20
    q, k, v = (part.transpose(1, 2) for part in drawn(2, t, t, 6, 2, 32))
    mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, t, t, device="cpu")
    out, aux = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True))
    found = attention_with_lse(*(part.transpose(1, 2) for part in (q, k, v)), causal=True, window=window)
    close(found, (out.transpose(1, 2), aux.lse.transpose(1, 2)))

    query, levels, own, texts = tree([[33], [7, 7]])
    found = shared_prefix_attention(query, levels, own.key, own.value, lengths=own.lengths)
    k, v = (torch.stack([text[n] for text in texts]).transpose(1, 2) for n in (0, 1))
    out, aux = flex_attention(query.transpose(1, 2), k, v, enable_gqa=True, return_aux=AuxRequest(lse=True))
    close(found, (out.transpose(1, 2), aux.lse.transpose(1, 2)))
