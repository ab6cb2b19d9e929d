"""How sequences are cut: every token once, targets from before the cut, refusals; and one process through the mesh."""

from __future__ import annotations

import pytest
import shared_sequences as shared
import torch
from mixer_laws import names

from likely.errors import CapabilityError, DataError
from likely.sequence import SequenceConfig, SequenceLM
from likely.sequence.parallel import (
    SequenceGroup,
    SequenceShards,
    ShardLayout,
    next_token_targets,
    shard_batch,
    states,
)


@pytest.mark.parametrize("order", ["contiguous", "zigzag"])
@pytest.mark.parametrize(("length", "size"), [(8, 1), (8, 4), (23, 3), (37, 4)])
def test_every_token_is_held_once(order, length, size):
    layout = ShardLayout.of(length, size, order)
    held = torch.cat([layout.columns(rank) for rank in range(size)])
    assert sorted(held.tolist()) == list(range(length))
    assert layout.contiguous == (order == "contiguous")
    side_by_side = torch.full((size, layout.most_tokens), -1)
    for rank in range(size):
        side_by_side[rank, : layout.tokens(rank)] = layout.columns(rank)
    assert side_by_side.flatten()[layout.order_of_gathered()].tolist() == list(range(length))


def test_zigzag_shares_the_work_of_a_causal_mask():
    even, uneven = (ShardLayout.of(64, 4, order) for order in ("zigzag", "contiguous"))
    work = [sum(int(c) + 1 for c in even.columns(rank)) for rank in range(4)]
    assert len(set(work)) == 1
    assert len({int(uneven.columns(rank).sum()) for rank in range(4)}) == 4


def test_targets_come_from_before_the_cut():
    ids = torch.arange(12).view(1, 12)
    layout = ShardLayout.of(12, 3)
    parts = [shard_batch(ids, layout, rank) for rank in range(3)]
    assert [part.targets.tolist()[0] for part in parts] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, -100]]


def test_no_target_crosses_a_document_or_enters_padding():
    ids = torch.arange(8).view(1, 8)
    documents, mask = torch.tensor([[4, 4, 4, 9, 9, 4, 4, 4]]), torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    targets = next_token_targets(ids, mask=mask, seq_idx=documents)
    assert targets.tolist() == [[1, 2, -100, 4, -100, 6, -100, -100]]
    part = shard_batch(ids, ShardLayout.of(8, 2), 1, mask=mask, seq_idx=documents)
    assert part.seq_idx.tolist() == [[1, 2, 2, 2]]  # numbered anew: a document that comes back is another one


def test_wrong_layouts_and_batches_are_refused():
    with pytest.raises(ValueError, match="3 tokens cannot be cut into 4 chunks"):
        ShardLayout.of(3, 2, "zigzag")
    with pytest.raises(ValueError, match="held once"):
        ShardLayout((0, 4, 8), ((0,), (0,)))
    with pytest.raises(ValueError, match="rise from 0"):
        ShardLayout((0, 4, 4), ((0,), (1,)))
    with pytest.raises(ValueError, match='did you mean "zigzag"'):
        ShardLayout.of(8, 2, "zig-zag")
    layout = ShardLayout.of(8, 2)
    with pytest.raises(DataError, match=r"must be \(B, 8\)"):
        shard_batch(torch.zeros(1, 7, dtype=torch.long), layout, 0)
    with pytest.raises(DataError, match="padding must stand at the ends"):
        shard_batch(torch.zeros(1, 8, dtype=torch.long), layout, 0, mask=torch.tensor([[0, *[1] * 7]]))


def test_without_processes_there_is_no_group():
    with pytest.raises(CapabilityError, match="start with torchrun"):
        SequenceGroup.of()


def test_a_model_that_one_process_has_alone_is_shared_with_nobody(monkeypatch):
    """`parallelize` without torchrun; with 2 processes: the slow tests of `test_shared_sequences`."""
    monkeypatch.delenv("RANK", raising=False)
    torch.manual_seed(0)
    model = SequenceLM(SequenceConfig(vocab_size=11, hidden_size=16, layers=["retnet", "attention"])).double()
    ids = shared.random_ids(2, 9)
    alone = model.parallelize()
    assert alone.group.size == 1
    torch.testing.assert_close(alone.logits(ids), model(ids).logits)
    loss = alone.mean_loss(ids)
    assert alone.total(loss.detach()) == pytest.approx(float(model(ids, labels=ids).loss.detach()), abs=1e-6)
    loss.backward()
    alone.sum_gradients()
    with pytest.raises(ValueError, match="1 tokens cannot be cut into 2 chunks"):
        alone.mean_loss(ids[:, :1])


@pytest.mark.parametrize("name", shared.shared_layer_names())
@pytest.mark.parametrize("rows", ["whole", "packed padded"])
def test_one_process_that_holds_all_chunks_gives_the_same(name, rows):
    assert shared.layer_error(name, SequenceGroup(), "zigzag", rows, {}) < 1e-9


def test_every_other_layer_is_refused():
    others = [name for name in names() if name not in shared.shared_layer_names()]
    assert set(names()) >= {"linear_attention", "mamba2", "s4d", "attention"} <= set(shared.shared_layer_names())
    for name in others:
        with pytest.raises(CapabilityError, match=r"no state of fixed size|both directions"):
            shared.layer_error(name, SequenceGroup(), "contiguous", "whole", {})


def test_the_ways_of_sharing_are_checked():
    with pytest.raises(ValueError, match='did you mean "allgather"'):
        SequenceShards(SequenceGroup(), ShardLayout.of(8, 1), attention="allgatter")


def test_a_forgotten_state_or_halo_would_be_noticed(monkeypatch):
    def error(name):
        return shared.layer_error(name, SequenceGroup(), "zigzag", "whole", {})

    with monkeypatch.context() as patch:
        patch.setattr(
            states, "_states_before", lambda mixer, pairs, edges: [torch.zeros_like(state) for _, state in pairs]
        )
        assert error("linear_attention") > 1e-3 and error("s4d") > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(states, "_windows", lambda mixer, chunk: None)
        assert error("mamba2") > 1e-3
    assert error("mamba2") < 1e-9
