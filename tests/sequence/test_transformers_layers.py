"""Layers with the weights of transformers' Mamba, Mamba-2, Falcon-H1 and Qwen3-Next give what those layers give."""

from __future__ import annotations

import pytest
import torch
from transformers import FalconH1Config, FalconH1Model, Mamba2Config, MambaConfig, Qwen3NextConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from likely.sequence.layers import GatedDeltaNet, Mamba, Mamba2, ParallelMixer, SoftmaxAttention

WIDTH, LENGTH = 32, 37


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(layer):
    """Random weights everywhere, norms and biases too."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


def inputs():
    return torch.randn(2, LENGTH, WIDTH)


@torch.no_grad()
def agrees(ours, theirs, **options):
    """Outputs whole, and as a prefix that is continued, to 1e-5 of their size."""
    x = inputs()
    expected = theirs(x)
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(ours(x, **options).y, expected, rtol=0, atol=tolerance)
    first = ours(x[:, :13], return_state=True, **options)
    second = ours(x[:, 13:], first.state, **options)
    torch.testing.assert_close(second.y, expected[:, 13:], rtol=0, atol=tolerance)


def test_mamba():
    config = MambaConfig(hidden_size=WIDTH, state_size=5, num_hidden_layers=1, vocab_size=8, use_mambapy=False)
    theirs = shaken(MambaMixer(config, 0))
    ours = Mamba(WIDTH, d_state=5)
    ours.load_state_dict(theirs.state_dict())
    agrees(ours, theirs)


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups):
    config = Mamba2Config(
        hidden_size=WIDTH, state_size=6, head_dim=8, num_heads=8, n_groups=groups, chunk_size=16, num_hidden_layers=1,
        vocab_size=8, time_step_limit=(0.01, 0.3),
    )  # fmt: skip
    theirs = shaken(Mamba2Mixer(config, 0))
    ours = Mamba2(WIDTH, d_state=6, head_dim=8, groups=groups, chunk=16, dt_limit=(0.01, 0.3))
    ours.load_state_dict(theirs.state_dict())
    agrees(ours, theirs)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :9] = 0
    x = inputs()
    with torch.no_grad():
        found, expected = ours(x, mask=mask).y, theirs(x, attention_mask=mask)
    torch.testing.assert_close(
        found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5 * float(expected.abs().max())
    )


@pytest.mark.parametrize(("norm", "first"), [("norm_first", True), ("gate_first", False), ("none", None)])
def test_falcon_h1(norm, first):
    config = FalconH1Config(
        hidden_size=WIDTH, num_hidden_layers=1, vocab_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_d_state=6, mamba_n_groups=2, mamba_chunk_size=16,
        mamba_rms_norm=first is not None, mamba_norm_before_gate=bool(first), key_multiplier=0.7, intermediate_size=16,
        attention_in_multiplier=0.9, attention_out_multiplier=1.3, ssm_in_multiplier=0.8, ssm_out_multiplier=1.1,
        ssm_multipliers=[0.5, 1.5, 0.7, 1.2, 0.9], rope_theta=1e4,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = FalconH1Model(config)
    layer = shaken(model.layers[0])
    mamba = Mamba2(
        WIDTH, d_state=6, head_dim=8, heads=6, groups=2, chunk=16, norm=norm, eps=config.rms_norm_eps,
        scales=(0.5, 1.5, 0.7, 1.2, 0.9), in_scale=0.8,
    )  # fmt: skip
    mamba.load_state_dict(layer.mamba.state_dict(), strict=False)
    attention = SoftmaxAttention(WIDTH, heads=4, kv_heads=2, head_dim=8, key_scale=0.7)
    attention.load_state_dict(layer.self_attn.state_dict())
    ours = ParallelMixer(WIDTH, branches=[mamba, attention], in_scales=(1.0, 0.9), out_scales=(1.1, 1.3))
    causal = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]

    def theirs(x):
        angles = model.rotary_emb(x, torch.arange(LENGTH)[None])
        attended, _ = layer.self_attn(x * 0.9, position_embeddings=angles, attention_mask=causal)
        return layer.mamba(x) * layer.ssm_out_multiplier + attended * layer.attn_out_multiplier

    agrees(ours, theirs)


def test_qwen3_next():
    heads, value_heads, key, value = 2, 4, 6, 5
    config = Qwen3NextConfig(
        hidden_size=WIDTH, num_hidden_layers=1, vocab_size=8, linear_num_key_heads=heads,
        linear_num_value_heads=value_heads, linear_key_head_dim=key, linear_value_head_dim=value,
    )  # fmt: skip
    theirs = shaken(Qwen3NextGatedDeltaNet(config, 0))
    ours = GatedDeltaNet(
        WIDTH, heads=heads, value_heads=value_heads, key_dim=key, value_dim=value, chunk=16, eps=config.rms_norm_eps
    )
    each = value_heads // heads
    q, k, v, z = theirs.in_proj_qkvz.weight.unflatten(0, (heads, -1)).split([key, key, each * value, each * value], 1)
    beta, decay = theirs.in_proj_ba.weight.unflatten(0, (heads, -1)).split([each, each], 1)
    ours.load_state_dict(
        {
            "qkv_proj.weight": torch.cat([t.flatten(0, 1) for t in (q, k, v)]),
            "conv1d.weight": theirs.conv1d.weight,
            "beta_proj.weight": beta.flatten(0, 1),
            "decay_proj.weight": decay.flatten(0, 1),
            "gate_proj.weight": z.flatten(0, 1),
            "dt_bias": theirs.dt_bias,
            "A_log": theirs.A_log,
            "norm.weight": theirs.norm.weight.repeat(value_heads),
            "o_proj.weight": theirs.out_proj.weight,
        }
    )
    agrees(ours, theirs)
