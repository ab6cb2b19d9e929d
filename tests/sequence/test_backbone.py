"""Models of mixers: saved and loaded, packed, padded, in pieces, with heads, and their groups of parameters."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from likely.errors import ModelError
from likely.sequence.backbone import (
    ModelState,
    SequenceClassifier,
    SequenceConfig,
    SequenceLM,
    SequenceRegressor,
    layers_of,
)
from likely.sequence.optim import param_groups
from likely.sequence.table import MIXERS

HYBRID = {"mamba2": {"head_dim": 8, "d_state": 4}, "attention": {"heads": 2}}
FALCON = {"branches": ["mamba2", "attention"], "settings": [HYBRID["mamba2"], HYBRID["attention"]]}
SETTINGS = {**HYBRID, "parallel": FALCON, "mamba": {"d_state": 4}}


def config(layers="MM*", **more):
    named = layers_of(layers) if isinstance(layers, str) else layers
    mixers = {name: SETTINGS[name] for name in set(named) if name in SETTINGS}
    return SequenceConfig(
        **{"vocab_size": 23, "hidden_size": 16, "layers": named, "mixers": mixers, "mlp_size": 24, **more}
    )


def made(kind=SequenceLM, layers="MM*", seed=0, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config(layers, **more))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ids_of(*shape):
    return torch.randint(23, shape, generator=torch.Generator().manual_seed(1))


def test_patterns_name_mixers():
    assert layers_of("MM*L") == ["mamba2", "mamba2", "attention", "linear_attention"]
    assert layers_of("LLLN") == ["linear_attention"] * 3 + ["attention"]
    with pytest.raises(ModelError, match='has "Q"'):
        layers_of("MQ")


def test_new_embeddings_are_neither_drowned_nor_sure_of_anything():
    torch.manual_seed(0)
    sizes = {"vocab_size": 500, "hidden_size": 256, "layers": ["attention"]}
    model = SequenceLM(SequenceConfig(**sizes))
    assert float(model.backbone.embed_tokens.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert 0.8 < float(model(torch.arange(60)[None]).logits.detach().std()) < 1.2
    untied = SequenceConfig(**sizes, tie_word_embeddings=False)
    for other in (SequenceLM(untied), SequenceClassifier(untied)):
        assert float(other.backbone.embed_tokens.weight.detach().std()) == pytest.approx(1, rel=0.02)
    given = SequenceLM(SequenceConfig(**sizes, initializer_range=0.02)).backbone.embed_tokens
    assert float(given.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    with pytest.raises(ModelError, match="initializer_range must be > 0 or None, got 0"):
        SequenceConfig(initializer_range=0.0)


@pytest.mark.parametrize("name", sorted(MIXERS))
@torch.no_grad()
def test_saved_models_are_the_same_when_they_are_loaded(name, tmp_path):
    """Also what a mixer derives and does not save, in the two ways that transformers loads."""
    more = {} if name in SETTINGS else {"mixers": {}}
    kind = SequenceLM if MIXERS[name].state_kind != "none" else SequenceClassifier
    torch.manual_seed(3)
    model = kind(config([name], hidden_size=32, mixers={name: SETTINGS.get(name) or {}} if not more else {})).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "likely_sequence"
    assert [f.suffix for f in tmp_path.glob("model*")] == [".safetensors"]
    ids = ids_of(2, 11)
    again = kind.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    if kind is SequenceLM:
        auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert type(auto) is SequenceLM
        torch.testing.assert_close(auto(ids).logits, model(ids).logits)


@torch.no_grad()
def test_pieces_steps_and_states_at_positions():
    model, ids = made(), ids_of(2, 17)
    whole = model(ids, return_state=True, states_at=[4, 9, 16])
    for at, state in zip((4, 9, 16), whole.states, strict=True):
        if at < 16:
            rest = model(ids[:, at + 1 :], state=state).logits
            torch.testing.assert_close(rest, whole.logits[:, at + 1 :], rtol=0, atol=1e-5)
    following = ids_of(2, 1)
    one, other = (model(following, state=s).logits for s in (whole.state, whole.states[-1]))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("letter", ["M", "S"])
@torch.no_grad()
def test_states_after_every_draft_take_one_projection(letter):
    model, ids = made(layers=letter * 2), ids_of(2, 6)
    before = model(ids_of(2, 9), return_state=True).state
    calls = []
    hooks = [
        m.in_proj.register_forward_hook(lambda _, x, __: calls.append(x[0].shape[1])) for m in model.backbone.mixers
    ]
    found = model(ids, state=before, return_state=True, states_at=range(6))
    assert calls == [6, 6]
    state = before
    for at in range(6):
        state = model(ids[:, at : at + 1], state=state, return_state=True).state
        for one, other in zip(found.states[at].layers, state.layers, strict=True):
            assert one.tensors.keys() == other.tensors.keys()
            for name in one.tensors:
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found.logits, model(ids, state=before).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_states_are_selected_stacked_and_forked():
    model = made()
    states = [model(ids_of(1, n), return_state=True).state for n in (3, 9)]
    both = ModelState.stack(states)
    assert both.batch == 2
    step = ids_of(2, 1)
    rows = model(step, state=both).logits
    for i in range(2):
        torch.testing.assert_close(model(step[i : i + 1], state=states[i]).logits[0], rows[i], rtol=0, atol=1e-5)
    swapped = model(step.flip(0), state=both.select([1, 0])).logits
    torch.testing.assert_close(swapped.flip(0), rows, rtol=0, atol=1e-5)
    forked = model(step, state=states[0].fork(2)).logits
    torch.testing.assert_close(forked[0], rows[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_packed_documents_are_those_alone():
    model, ids = made(), ids_of(1, 20)
    documents = torch.tensor([[5] * 7 + [2] * 4 + [8] * 9])
    packed = model(ids, seq_idx=documents).logits[0]
    for part in (slice(0, 7), slice(7, 11), slice(11, 20)):
        torch.testing.assert_close(packed[part], model(ids[:, part]).logits[0], rtol=0, atol=1e-5)


def test_the_loss_is_that_of_the_next_token():
    model, ids = made(), ids_of(2, 12)
    labels = ids.clone()
    labels[0, :5] = -100
    found = model(ids, labels=labels)
    rows = found.logits.log_softmax(-1)
    terms = [-rows[b, t, ids[b, t + 1]] for b in range(2) for t in range(11) if b == 1 or t >= 4]
    torch.testing.assert_close(found.loss, torch.stack(terms).mean())
    found.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    kept = model(ids, logits_to_keep=3).logits
    torch.testing.assert_close(kept, found.logits[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([2, 5])).logits, found.logits[:, [2, 5]])
    assert len(model(ids, output_hidden_states=True).hidden_states or ()) in (0, 4)


@torch.no_grad()
def test_padded_ids_are_impossible():
    model = made(padded_ids=3)
    logits = model(ids_of(1, 4) % 20).logits
    assert (logits[..., 20:] == -torch.inf).all() and logits[..., :20].isfinite().all()


@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_heads_do_not_see_padding(pool):
    classify = made(SequenceClassifier, outputs=4, pool=pool)
    ids, mask = ids_of(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    found = classify(ids, mask)
    alone = classify(ids[1:, :6]).logits
    got = found.logits[1:, :6] if pool == "none" else found.logits[1:]
    torch.testing.assert_close(got, alone, rtol=0, atol=1e-5)
    labels = torch.tensor([1, 3]) if pool != "none" else torch.randint(4, (2, 9)).masked_fill(mask == 0, -100)
    loss = classify(ids, mask, labels).loss
    rows = found.logits.log_softmax(-1).flatten(0, -2)
    known = labels.flatten() >= 0
    torch.testing.assert_close(loss, -rows[known].gather(1, labels.flatten()[known, None]).mean())


def test_real_numbers_in_and_out():
    torch.manual_seed(0)
    model = SequenceRegressor(config("MM", input_size=3, outputs=2, pool="last")).train()
    inputs, targets = torch.randn(8, 10, 3), torch.randn(8, 2)
    targets[0, 0] = torch.nan
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(inputs, labels=targets).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_recurrences_have_their_own_group():
    model = made(layers="MS*")
    groups = {g["name"]: g for g in param_groups(model, lr=4e-3, weight_decay=0.1)}
    names = {id(p): n for n, p in model.named_parameters()}
    found = {name: {names[id(p)].rpartition(".")[2] for p in g["params"]} for name, g in groups.items()}
    assert found["recurrence"] == {"A_log", "dt_bias"}
    assert {"bias", "D"} <= found["vectors"] and found["weights"] == {"weight"}
    assert sum(len(g["params"]) for g in groups.values()) == len(list(model.parameters()))
    assert [(g["lr"], g["weight_decay"]) for g in (groups["weights"], groups["vectors"], groups["recurrence"])] == [
        (4e-3, 0.1), (4e-3, 0.0), (1e-3, 0.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be > 0"):
        param_groups(model, lr=0.0)


def test_what_makes_no_model_is_refused():
    for settings, words in (
        ({"layers": ["mamba3"]}, 'unknown layer "mamba3"; did you mean "mamba'),
        ({"pool": "max"}, "pool must be mean, last or none"),
        ({"padded_ids": 23}, "padded_ids must lie in"),
    ):
        with pytest.raises((ModelError, ValueError), match=words):
            config(**{"layers": ["mamba2"], **settings})
    with pytest.raises(ModelError, match="reads token ids"):
        SequenceLM(config("M", input_size=2))
    with pytest.raises(ValueError, match="one of them"):
        made().backbone()
