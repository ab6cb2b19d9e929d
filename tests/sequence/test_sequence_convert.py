"""Checkpoints of transformers as likely's layers: the same logits, in parallel, step by step, padded, and back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_states import MULTIPLIERS, STATE_CONFIGS, VOCAB, readable_folder, state_module
from tiny_torch import folder_of

from likely.errors import CapabilityError, LikelyError, ModelError
from likely.runtimes.kinds import KINDS
from likely.sequence.backbone import SequenceConfig, SequenceLM
from likely.sequence.convert import convert_folder, from_transformers, load_sequence_lm, to_transformers
from likely.sequence.families import FAMILIES

EXACT = 1e-5


def ids_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=STATE_CONFIGS)
def pair(request):
    theirs = state_module(request.param)
    return theirs, from_transformers(theirs)


def close(found, expected, atol=EXACT):
    assert expected.abs().max() > 1  # logits of some size, so that the tolerance means something
    torch.testing.assert_close(found, expected, rtol=0, atol=atol * float(expected.abs().max()))


@torch.no_grad()
def test_logits_of_a_whole_text(pair):
    theirs, ours = pair
    ids = ids_of(2, 37)
    close(ours(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_steps_are_the_cached_steps_of_transformers(pair):
    theirs, ours = pair
    ids = ids_of(2, 19)
    held = "past_key_values" if theirs.config.model_type == "falcon_h1" else "cache_params"
    cache, state = theirs(ids[:, :8], use_cache=True)[held], ours(ids[:, :8], return_state=True).state
    for at in range(8, 19):
        expected = theirs(ids[:, at : at + 1], **{held: cache}, use_cache=True).logits
        found = ours(ids[:, at : at + 1], state=state, return_state=True)
        state = found.state
        close(found.logits, expected, 3 * EXACT)


@torch.no_grad()
def test_several_tokens_go_on_from_a_state(pair):
    """Which transformers' Mamba does not do: its scan begins from nothing again."""
    _, ours = pair
    ids = ids_of(2, 30)
    whole = ours(ids, return_state=True)
    state, rows = None, []
    for start, stop in ((0, 1), (1, 14), (14, 30)):
        part = ours(ids[:, start:stop], state=state, return_state=True)
        state = part.state
        rows.append(part.logits)
    close(torch.cat(rows, 1), whole.logits)
    for one, other in zip(state.layers, whole.state.layers, strict=True):
        for name in one.tensors:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_left_padded_rows_are_those_alone(pair):
    theirs, ours = pair
    ids = ids_of(2, 23)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    expected = theirs(ids, attention_mask=mask).logits
    found = ours(ids, mask, return_state=True)
    alone = ours(ids[1:, 9:], return_state=True)
    close(found.logits[0], expected[0])
    close(found.logits[1, 9:], expected[1, 9:])
    close(found.logits[1, 9:], alone.logits[0])
    following = ids_of(2, 3, seed=5)
    close(
        ours(following, state=found.state).logits[1],
        ours(following[1:], state=alone.state).logits[0],
    )


@torch.no_grad()
def test_back_to_transformers(pair):
    theirs, ours = pair
    ids = ids_of(2, 20)
    again = to_transformers(ours)
    assert type(again) is type(theirs)
    close(again(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("name", MULTIPLIERS)
@torch.no_grad()
def test_every_multiplier_of_falcon_h1_counts(name):
    """A model with this multiplier alone; without it the logits are others."""
    others = {n: [1.0] * len(v) if isinstance(v, list) else 1.0 for n, v in MULTIPLIERS.items()}
    values = MULTIPLIERS[name]
    ids = ids_of(1, 12)
    plain = from_transformers(state_module("falcon_h1", **others))(ids).logits
    for changed in range(len(values) if isinstance(values, list) else 1):
        value = values
        if isinstance(values, list):
            value = [v if i == changed else 1.0 for i, v in enumerate(values)]
        theirs = state_module("falcon_h1", **{**others, name: value})
        found = from_transformers(theirs)(ids).logits
        close(found, theirs(ids).logits)
        assert (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mamba", {"use_bias": True, "use_conv_bias": False, "expand": 3, "time_step_rank": 5, "conv_kernel": 3}),
        ("mamba2", {"use_bias": True, "time_step_limit": (0.05, 0.6), "n_groups": 1, "tie_word_embeddings": True}),
        ("falcon_h1", {"mamba_rms_norm": True, "attention_bias": True, "mlp_bias": True}),
        ("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "tie_word_embeddings": True}),
        ("falcon_h1", {"mamba_proj_bias": True, "projectors_bias": True, "head_dim": 16}),
    ],
)
@torch.no_grad()
def test_other_settings(name, settings):
    theirs = state_module(name, **settings)
    ids = ids_of(2, 15)
    expected = theirs(ids).logits
    ours = from_transformers(theirs)
    close(ours(ids).logits, expected)
    close(to_transformers(ours)(ids).logits, expected)


@torch.no_grad()
def test_the_original_files(tmp_path):
    """d_model, n_layer, ssm_cfg; 61 tokens filled up to 64, which are never likely."""
    theirs = state_module("mamba")
    weights = {n.replace(".embeddings.", ".embedding."): t.contiguous() for n, t in theirs.state_dict().items()}
    weights.pop("lm_head.weight")  # tied
    save_file(weights, tmp_path / "model.safetensors")
    about = {"d_model": 32, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {"d_state": 4}, "rms_norm": True}
    (tmp_path / "config.json").write_text(json.dumps(about))
    ids = ids_of(1, 12) % 61
    ours = load_sequence_lm(tmp_path)
    found, expected = ours(ids).logits, theirs(ids).logits
    close(found[..., :61], expected[..., :61])
    assert (found[..., 61:] == -torch.inf).all()
    report = convert_folder(tmp_path, tmp_path / "own")
    assert report.model_type == "mamba_ssm" and load_sequence_lm(report.target).config.padded_ids == 3


@torch.no_grad()
def test_folders_there_and_back(tmp_path):
    source = readable_folder("mamba2")
    report = convert_folder(source, tmp_path / "own")
    assert report.largest_difference < EXACT and "logits differ by" in str(report)
    own = load_sequence_lm(tmp_path / "own")
    ids = ids_of(1, 9)
    close(own(ids).logits, load_sequence_lm(source)(ids).logits)
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert own.config.eos_token_id == 256
    convert_folder(tmp_path / "own", tmp_path / "theirs", back=True)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "mamba2"
    close(load_sequence_lm(tmp_path / "theirs")(ids).logits, own(ids).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own", "theirs"]  # nothing half-written


def test_what_cannot_be_converted_is_one_line(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match='"llama" is none of mamba, mamba2, falcon_h1'):
        load_sequence_lm(folder)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelError, match="a pickle"):
        load_sequence_lm(folder)
    with pytest.raises(CapabilityError, match="hidden_act='relu'"):
        from_transformers(state_module("mamba", hidden_act="relu"))
    with pytest.raises(CapabilityError, match="rope_type"):
        scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        from_transformers(state_module("falcon_h1", rope_parameters=scaled))
    hybrid = SequenceLM(SequenceConfig(vocab_size=8, hidden_size=16, layers=["mamba2", "attention"], mixers=SMALL))
    with pytest.raises(CapabilityError, match="attention, mamba2"):
        to_transformers(hybrid)
    source = folder_of(state_module("mamba"))
    for call, words in (
        (lambda: convert_folder(tmp_path, tmp_path / "x"), "no config.json"),
        (lambda: convert_folder(source, folder), "exists already"),
        (lambda: convert_folder(source, tmp_path / "a" / "b"), "does not exist"),
        (lambda: convert_folder(source, tmp_path / "x", back=True), "no folder of likely"),
    ):
        with pytest.raises(LikelyError, match=words) as found:
            call()
        assert "\n" not in str(found.value)


SMALL = {"mamba2": {"head_dim": 8, "d_state": 4}, "attention": {"heads": 2}}


def test_a_wrong_conversion_writes_nothing(tmp_path, monkeypatch):
    """Negative control: a factor that is forgotten is found, and the target does not appear."""
    source = folder_of(state_module("falcon_h1"))
    right = FAMILIES["falcon_h1"].factors
    forgetful = {**vars(FAMILIES["falcon_h1"]), "factors": lambda c: {**right(c), ".branches.1.k_proj.weight": 1.0}}
    monkeypatch.setitem(FAMILIES, "falcon_h1", type(FAMILIES["falcon_h1"])(**forgetful))
    with pytest.raises(ModelError, match="nothing was written"):
        convert_folder(source, tmp_path / "own")
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_refused(tmp_path):
    source = folder_of(state_module("mamba"))
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "state_size": 5}))
    with pytest.raises(ModelError, match="do not fit its configuration"):
        load_sequence_lm(folder)


def test_the_recurrent_runtime_opens_what_can_be_converted():
    assert KINDS["recurrent"].model_types == {SequenceConfig.model_type, *FAMILIES, "mamba_ssm"}


def test_numbers_of_a_state_are_those_that_are_printed(pair):
    _, ours = pair
    ids = ids_of(1, 6)
    state = ours(ids, return_state=True).state
    assert state.nbytes == ours.backbone.state_bytes(6)
    assert np.isfinite(state.nbytes)
