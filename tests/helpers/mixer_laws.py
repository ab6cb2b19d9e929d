"""What every sequence layer must hold, as functions of one layer; `test_laws.py` runs them over the table."""

from __future__ import annotations

import itertools

import torch

from likely.sequence import MIXERS, MixerState, SequenceMixer, make_mixer

WIDTH = 8
TINY: dict[str, dict[str, object]] = {  # settings beside the width 8 that keep a layer tiny and its corners in use
    "attention": {"heads": 4, "kv_heads": 2},
    "deltanet": {"heads": 2, "d_conv": 3, "chunk": 5, "beta_max": 2},
    "dss": {"d_state": 4, "l_max": 40, "dt_max": 0.5},
    "ema": {"d_state": 3},
    "gated_deltanet": {"heads": 2, "value_heads": 4, "value_dim": 3, "chunk": 5},
    "gla": {"heads": 2},
    "gss": {"d_state": 4, "l_max": 40},
    "h3": {"d_state": 4, "shift": 3},
    "hyena": {"l_max": 40, "filter_width": 8, "features": 2},
    "linear_attention": {"heads": 2, "chunk": 5},
    "lru": {"d_state": 6, "r_min": 0.3},
    "mamba": {"d_state": 3, "segment": 10, "dt_max": 0.5},
    "mamba2": {"d_state": 4, "head_dim": 4, "groups": 2, "chunk": 5, "dt_limit": (1e-3, 0.08)},
    "parallel": {"settings": [{"d_state": 4, "head_dim": 4}, {"heads": 2}], "out_scales": (0.5, 2.0)},
    "retnet": {"heads": 2, "chunk": 5},
    "s4d": {"d_state": 4, "dt_max": 0.5},
    "s5": {"d_state": 8, "blocks": 2, "dt_max": 0.5},
}


def tiny(name: str, dtype: torch.dtype = torch.float64, **changed: object) -> SequenceMixer:
    """A tiny layer whose parameters are random, biases too."""
    torch.manual_seed(sum(map(ord, name)))
    mixer = make_mixer(name, WIDTH, TINY.get(name, {}) | changed).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return mixer.to(dtype)


def tokens(batch: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)


def same_state(found: MixerState, expected: MixerState, tolerance: float = 1e-9) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, wanted in expected.tensors.items():
        close(found[name], wanted, tolerance)


def step_is_parallel(mixer: SequenceMixer, x: torch.Tensor, tolerance: float = 1e-9) -> None:
    whole = mixer(x, return_state=True)
    state, outputs = mixer.init_state(len(x)), []
    for t in range(x.shape[1]):
        before = {name: value.clone() for name, value in state.tensors.items()}
        y, after = mixer.step(x[:, t], state)
        assert all(torch.equal(state[name], value) for name, value in before.items()), "a state was changed in place"
        outputs.append(y)
        state = after
    close(torch.stack(outputs, 1), whole.y, tolerance)
    same_state(state, whole.state, tolerance)


def chunks_do_not_matter(mixer: SequenceMixer, x: torch.Tensor, cuts, tolerance: float = 1e-9) -> None:
    whole = mixer(x, return_state=True)
    for cut in cuts:
        first = mixer(x[:, :cut], return_state=True)
        second = mixer(x[:, cut:], first.state, return_state=True)
        close(torch.cat([first.y, second.y], 1), whole.y, tolerance)
        same_state(second.state, whole.state, tolerance)
    at = [0, 2, x.shape[1] - 1]
    out = mixer(x, states_at=at, return_state=True)
    close(out.y, whole.y, tolerance)
    for column, state in zip(at, out.states, strict=True):
        same_state(state, mixer(x[:, : column + 1], return_state=True).state, tolerance)


def is_causal(mixer: SequenceMixer, x: torch.Tensor, at: int, training: str) -> None:
    x = x.clone().requires_grad_()
    y = mixer(x).y
    later = x.detach().clone()
    later[:, at:] = later[:, at:] * 3 + 1
    changed = mixer(later).y[:, :at]
    if training == "fft":
        close(changed, y[:, :at])
    else:
        assert torch.equal(changed, y[:, :at])
    (gradient,) = torch.autograd.grad(y[:, :at].sum(), x)
    assert float(gradient[:, at:].abs().max()) < 1e-6
    assert float(gradient[:, :at].abs().max()) > 0
    if training == "scan":
        poked = x.detach().clone()
        poked[:, at:] = torch.nan
        assert torch.equal(mixer(poked).y[:, :at], y[:, :at])


def padding_does_not_matter(mixer: SequenceMixer, x: torch.Tensor) -> None:
    """Padding left, right, in the middle and a row of nothing else; with a state before, and what comes after."""
    length = x.shape[1]
    mask = torch.ones(len(x), length, dtype=torch.bool)
    mask[0, :3], mask[1, -4:], mask[2, 2:5], mask[3] = False, False, False, False
    before = mixer(tokens(len(x), 6, seed=1), return_state=True).state
    noisy = x.masked_fill(~mask[..., None], torch.nan)
    for state in (None, before):
        found = mixer(noisy, state, mask=mask, return_state=True)
        more = mixer(tokens(len(x), 3, seed=2), found.state)
        assert not found.y[~mask].any()
        for row in range(len(x)):
            alone = None if state is None else state.select([row])
            if not mask[row].any():
                expected = mixer.init_state(1) if alone is None else alone
            else:
                run = mixer(x[row : row + 1, mask[row]], alone, return_state=True)
                expected = run.state
                close(found.y[row, mask[row]], run.y[0])
            close(more.y[row : row + 1], mixer(tokens(len(x), 3, seed=2)[row : row + 1], expected).y)
            if mixer.state_kind == "recurrent":
                same_state(found.state.select([row]), expected)


def packing_does_not_matter(mixer: SequenceMixer, x: torch.Tensor) -> None:
    """Documents of one token and of many, padding between them, cut anywhere, with a state before."""
    length = x.shape[1]
    ids = torch.zeros(len(x), length, dtype=torch.long)
    ids[0, 1:], ids[0, 8:] = 3, 1
    ids[1, 5:], ids[1, 6:], ids[1, 7:] = 1, 2, 3
    ids[2] = 7
    ids[3, length - 1 :] = 1
    mask = torch.ones(len(x), length, dtype=torch.bool)
    mask[1, 9:11], mask[3, -1] = False, False
    before = mixer(tokens(len(x), 6, seed=1), return_state=True).state
    for state in (None, before):
        found = mixer(x, state, seq_idx=ids, mask=mask, return_state=True)
        for row in range(len(x)):
            outputs, last = [], None
            for document in ids[row].unique_consecutive().tolist():
                here = (ids[row] == document) & mask[row]
                if not here.any():
                    continue
                alone = None if state is None or document != ids[row, 0] else state.select([row])
                last = mixer(x[row : row + 1, here], alone, return_state=True)
                outputs.append(last.y)
            close(found.y[row, mask[row]], torch.cat(outputs, 1)[0])
            after = tokens(1, 2, seed=3)
            close(mixer(after, found.state.select([row])).y, mixer(after, last.state).y)
        for cut in (5, 8):
            first = mixer(x[:, :cut], state, seq_idx=ids[:, :cut], mask=mask[:, :cut], return_state=True)
            second = mixer(x[:, cut:], first.state, seq_idx=ids[:, cut:], mask=mask[:, cut:])
            close(torch.cat([first.y, second.y], 1), found.y)


def rows_are_independent(mixer: SequenceMixer, x: torch.Tensor) -> None:
    whole = mixer(x, return_state=True)
    changed = x.clone()
    changed[1:] = torch.nan
    found = mixer(changed, return_state=True)
    close(found.y[:1], whole.y[:1])
    same_state(found.state.select([0]), whole.state.select([0]))
    alone = mixer(x[1:2], return_state=True)
    close(alone.y, whole.y[1:2])


def summaries_compose(mixer: SequenceMixer, x: torch.Tensor, cuts) -> None:
    """Chunks that know only what (T, S) of the chunks before them say give the outputs of the whole."""
    whole = mixer(x, return_state=True)
    edges = [0, *cuts, x.shape[1]]
    windows, chunks = None, []
    for begin, end in itertools.pairwise(edges):
        chunks.append(mixer.summary(x[:, begin:end], windows))
        windows = chunks[-1].windows
    state, outputs = mixer.init_state(len(x))["h"], []
    for chunk in chunks:
        outputs.append(mixer.apply_summary(chunk, state))
        state = mixer.fold(chunk.transition, chunk.state, state)
    close(torch.cat(outputs, 1), whole.y)
    close(state, whole.state["h"])


def names() -> list[str]:
    return sorted(MIXERS)
