"""The walk through a decoder: hidden states as the model's own, inputs as each matrix sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_decoders import FAMILIES, random_decoder, windows

from likely.compression.quantisers.walk import BlockWalk, second_moment


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_and_states_are_the_models_own(name):
    decoder, ids = random_decoder(name), windows(3, 16)
    seen = {}
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, key=(block.number, part): seen.update({key: args[0]}))
        for _, block, part, linear in decoder.linears()
    ]
    with torch.no_grad():
        states = decoder.module.model(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    walk = BlockWalk(decoder, ids)
    for number in range(len(walk)):
        parts = []
        for stage in walk.stages(number):
            parts += stage.parts
            for part in stage.parts:
                torch.testing.assert_close(stage.inputs, seen[number, part].reshape(len(stage.inputs), -1))
        assert parts == ["q", "k", "v", "o", "gate", "up", "down"]
    torch.testing.assert_close(decoder.final_norm(walk.hidden), states)


def test_what_is_changed_in_a_block_counts_from_the_next_stage_on():
    decoder, ids = random_decoder(), windows(2, 8)
    walk = BlockWalk(decoder, ids)
    for stage in walk.stages(0):
        if "v" in stage.parts:
            stage.block.v.weight.zero_()
        if "o" in stage.parts:
            assert not stage.inputs.any()


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        BlockWalk(random_decoder(), np.empty((0, 8), np.int64))


def test_the_second_moment_is_twice_the_mean_outer_product():
    x = torch.randn(50, 4, dtype=torch.float64)
    expected = 2 * sum(torch.outer(row, row) for row in x) / 50
    torch.testing.assert_close(second_moment(x), expected)
