"""A few more tokens of a few sequences, computed in C++: Mamba and Mamba-2 blocks without a call of torch; and Mamba's
recurrence over whole texts.

A step of torch makes some forty calls per block, which take longer than the arithmetic of a small model.  Blocks of
other layers run in torch, between those that are compiled.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from likely.errors import CapabilityError
from likely.runtimes.native.build import library
from likely.runtimes.native.library import Library
from likely.runtimes.turns import freeing
from likely.sequence.backbone import ModelState, SequenceBlock, SequenceLM
from likely.sequence.layers.mamba import Mamba
from likely.sequence.layers.mamba2 import Mamba2
from likely.sequence.mixer import MixerState
from likely.sequence.ops.scan import selective_scan, selective_scans_by

MOST_STATE = 64  # numbers of a channel's state that a scan holds
MOST_ROWS = 16  # tokens of all sequences up to which this is faster than torch's products of matrices
TOLERANCE = 1e-4  # of the largest value, between this and torch
GATE_THEN_NORM, NORM_THEN_GATE, GATE_ALONE = range(3)

_pointer, _int, _float = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class _DenseLayer(ctypes.Structure):
    _fields_ = [("weight", _pointer), ("bias", _pointer), ("outputs", _int), ("inputs", _int)]


class _RecurrentBlock(ctypes.Structure):
    """As cpp/recurrent.h has it."""

    _fields_ = [
        *[(name, _DenseLayer) for name in ("into", "out", "select", "steps", "gate", "up", "down")],
        *[(name, _pointer) for name in ("norm", "mlp_norm", "gate_norm", "conv", "conv_bias", "decay", "direct",
                                        "step_bias")],
        *[(name, _int) for name in ("selective", "inner", "heads", "groups", "state", "taps", "gating")],
        *[(name, _float) for name in ("norm_epsilon", "gate_epsilon", "shortest_step", "longest_step")],
    ]  # fmt: skip


class _RecurrentState(ctypes.Structure):
    _fields_ = [(name, _pointer) for name in ("memory", "window", "next_memory", "next_window")]


class _SelectiveScan(ctypes.Structure):
    _fields_ = [
        *[(name, _int) for name in ("rows", "length", "inner", "state")],
        *[(name, _pointer) for name in ("u", "dt", "A", "B", "C", "memory", "y", "next_memory")],
    ]


class CompiledStep:
    """Reads as many tokens for each of a few sequences, up to MOST_ROWS in all.

    Weights are read where torch holds them, so that changes in place are seen, except those of decays and convolutions,
    which are copied: after such a change make a new step.
    """

    def __init__(self, model: SequenceLM, compiled: Library):
        self._backbone, self._library = model.backbone, compiled
        self._kept: list[Tensor] = []  # what pointers lead to
        self._runs: list[tuple[int, int, Any]] = []  # first block, how many, and the blocks; None: one that torch runs
        widest = model.config.hidden_size
        for number, block in enumerate(model.backbone.layers):
            made = self._block(block) if can_compile(block) else None
            if made is None:
                self._runs.append((number, 1, None))
                continue
            widest = max(widest, made.into.outputs, made.inner, made.select.outputs, made.up.outputs)
            if self._runs and self._runs[-1][2] is not None:
                first, count, blocks = self._runs.pop()
                self._runs.append((first, count + 1, (_RecurrentBlock * (count + 1))(*blocks, made)))
            else:
                self._runs.append((number, 1, (_RecurrentBlock * 1)(made)))
        self._session = compiled.stepper_open(torch.get_num_threads(), MOST_ROWS, widest)
        if not self._session:
            raise CapabilityError("no memory or threads are left for steps in C++")
        freeing(self, compiled.stepper_close, self._session)

    @classmethod
    def of(cls, model: SequenceLM) -> CompiledStep | None:
        """None where no block can be compiled, there is no C++ compiler, or it does not compute what torch does."""
        if model.device.type != "cpu" or not any(map(can_compile, model.backbone.layers)):
            return None
        try:
            made = cls(model, library())
        except CapabilityError:
            return None
        if (error := made.difference_from_torch(model)) <= TOLERANCE:
            return made
        warnings.warn(f"steps in C++ differ from torch by {error:.1e}: torch is used", stacklevel=2)
        return None

    def __call__(self, ids: Tensor, state: ModelState) -> tuple[Tensor, list[ModelState]]:
        """The last hidden states (B, T, D) of ids (B, T), and the state after each of the T; inside inference_mode."""
        backbone, tokens = self._backbone, ids.shape[1]
        x = backbone.embed_tokens(ids.T.contiguous())  # (T, B, D)
        x = x * backbone.config.embedding_multiplier if backbone.config.embedding_multiplier != 1 else x
        after: list[list[MixerState]] = [[] for _ in range(tokens)]
        for first, count, blocks in self._runs:
            if blocks is None:
                y, mixed = backbone.layers[first](x.transpose(0, 1), state.layers[first], states_at=range(tokens))
                x = y.transpose(0, 1).contiguous()
                for states, found in zip(after, mixed.states, strict=True):
                    states.append(found)
            else:
                self._run(blocks, x, state.layers[first : first + count], after)
        return backbone.norm(x).transpose(0, 1), [ModelState(tuple(states)) for states in after]

    def _run(self, blocks: Any, x: Tensor, before: Sequence[MixerState], after: list[list[MixerState]]) -> None:
        """x through these blocks, in place; their states after each token are added to its list in `after`."""
        places = (_RecurrentState * (len(after) * len(before)))()
        held = [(layer["h"].contiguous(), layer["conv"].contiguous()) for layer in before]
        at = [(memory.data_ptr(), window.data_ptr()) for memory, window in held]
        for t, states in enumerate(after):
            for i, (memory, window) in enumerate(held):
                following = torch.empty_like(memory), torch.empty_like(window)
                place, read = places[t * len(before) + i], at[i]
                at[i] = following[0].data_ptr(), following[1].data_ptr()
                place.memory, place.window, place.next_memory, place.next_window = *read, *at[i]
                states.append(MixerState({"h": following[0], "conv": following[1]}, before[i].document))
        self._library.stepper_run(self._session, blocks, places, len(before), *x.shape[:2], x.data_ptr(), x.shape[2])

    def selective_scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`likely.sequence.selective_scan`, one pass over the tokens with the states in registers and cache."""
        if A.shape[1] > MOST_STATE:  # of a block that runs in torch
            with selective_scans_by(None):
                return selective_scan(u, delta, A, B, C, h0=h0)
        read = [t.contiguous() for t in (u, delta, A, B, C, h0)]
        made = torch.empty_like(read[0]), torch.empty_like(read[5])
        addresses = [t.data_ptr() for t in (*read, *made)]
        self._library.selective_scan(self._session, ctypes.byref(_SelectiveScan(*u.shape, A.shape[1], *addresses)))
        return made

    @torch.inference_mode()
    def difference_from_torch(self, model: SequenceLM) -> float:
        """The largest difference of hidden states and memories after a few random tokens, over the largest value."""
        ids = torch.randint(model.config.vocab_size, (2, 4), generator=torch.Generator().manual_seed(0))
        read: Callable[..., Any] = functools.partial(model.backbone, return_state=True)  # type: ignore[misc]
        wanted = read(ids[:, -2:], state=read(ids[:, :-2]).state)
        with selective_scans_by(self.selective_scan):
            hidden, states = self(ids[:, -2:], read(ids[:, :-2]).state)
        pairs = [(hidden, wanted.last_hidden_state)]
        for own, theirs in zip(states[-1].layers, wanted.state.layers, strict=True):
            pairs += [(own[name].float(), theirs[name].float()) for name in own.tensors]
        found = [(own - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6) for own, theirs in pairs]
        return float(torch.stack(found).max())  # a NaN stays one

    # --- pointers -------------------------------------------------------------------------------------------------

    def _address(self, t: Tensor | None) -> int | None:
        if t is None:
            return None
        self._kept.append(t.detach())
        return t.data_ptr()

    def _dense(self, layer: nn.Linear) -> _DenseLayer:
        return _DenseLayer(self._address(layer.weight), self._address(layer.bias), *layer.weight.shape)

    def _block(self, block: SequenceBlock) -> _RecurrentBlock:
        mixer: Any = block.mixer
        made = _RecurrentBlock(
            into=self._dense(mixer.in_proj), out=self._dense(mixer.out_proj), norm=self._address(block.norm.weight),
            norm_epsilon=block.norm.eps, inner=mixer.width, state=mixer.d_state, taps=mixer.halo + 1,
            conv=self._address(mixer.conv1d.weight[:, 0].T.contiguous()), conv_bias=self._address(mixer.conv1d.bias),
            decay=self._address(-mixer.A_log.float().exp()), direct=self._address(mixer.D), groups=1, heads=1,
        )  # fmt: skip
        if block.mlp is not None and block.mlp_norm is not None:
            made.mlp_norm = self._address(block.mlp_norm.weight)
            made.gate, made.up = self._dense(block.mlp.gate_proj), self._dense(block.mlp.up_proj)
            made.down = self._dense(block.mlp.down_proj)
        if isinstance(mixer, Mamba):
            made.selective, made.select, made.steps = 1, self._dense(mixer.x_proj), self._dense(mixer.dt_proj)
            return made
        made.heads, made.groups, made.step_bias = mixer.heads, mixer.groups, self._address(mixer.dt_bias)
        made.shortest_step, made.longest_step = mixer.dt_limit
        made.gating = GATE_ALONE
        if mixer.norm is not None:
            made.gate_norm, made.gate_epsilon = self._address(mixer.norm.weight), mixer.norm.eps
            made.gating = GATE_THEN_NORM if mixer.norm.gate_first else NORM_THEN_GATE
        return made


def can_compile(block: SequenceBlock) -> bool:
    """Whether its mixer is Mamba or Mamba-2 with plain matrices in float32, one after the other in memory."""
    mixer = block.mixer
    if type(mixer) not in (Mamba, Mamba2) or not mixer.halo:
        return False
    if isinstance(mixer, Mamba) and mixer.d_state > MOST_STATE:
        return False
    if isinstance(mixer, Mamba2) and (mixer.scales is not None or mixer.in_scale != 1.0):
        return False
    names = ("in_proj", "out_proj", *(("x_proj", "dt_proj") if isinstance(mixer, Mamba) else ()))
    matrices = [*(getattr(mixer, name) for name in names), *(block.mlp.children() if block.mlp is not None else ())]
    plain = all(type(matrix) is nn.Linear for matrix in matrices)
    return plain and all(p.dtype == torch.float32 and p.is_contiguous() for p in block.parameters())
