"""Through a decoder block by block with the hidden states of all calibration windows: memory is that of one block.

A method sees the inputs of each matrix as the blocks before it, already changed, give them ("true sequential").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from likely.compression.architecture import DecoderBlock, DecoderMap
from likely.runtimes.protocol import IntArray


@dataclass(frozen=True, eq=False)
class Stage:
    """Matrices of one block that read the same inputs.

    parts   ("q", "k", "v"), ("o",), ("gate", "up") or ("down",)
    inputs  (N·T, in), window after window
    """

    block: DecoderBlock
    parts: tuple[str, ...]
    inputs: torch.Tensor


class _Stop(Exception):
    """The input that was looked for is known; the rest of the call is not needed."""


class BlockWalk:
    """windows (N, T) token ids, all whole.  Use: `for stage in walk.stages(number)` for each block in turn.

    What the caller changes in a block between two stages counts from the next stage on.
    """

    @torch.no_grad()
    def __init__(self, decoder: DecoderMap, windows: IntArray):
        if windows.size == 0:
            raise ValueError("the calibration set is empty")
        self.decoder = decoder
        self._arguments: list[dict[str, Any]] = []
        self._hidden: list[torch.Tensor] = []  # (1, T, D) each
        inner: Any = decoder.module.model
        ids = [torch.from_numpy(np.ascontiguousarray(window))[None] for window in windows]

        def keep_arguments(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            self._arguments.append(rest | {"past_key_values": None, "use_cache": False})

        hooks = [b.module.register_forward_pre_hook(keep_arguments, with_kwargs=True) for b in decoder.blocks]
        try:
            inner(input_ids=ids[0], use_cache=False)  # masks and rotary angles: those of every window
        finally:
            for hook in hooks:
                hook.remove()
        first = decoder.blocks[0].module
        for window in ids:
            self._hidden.append(_input_of(first, inner, input_ids=window, use_cache=False))

    def __len__(self) -> int:
        return len(self._arguments)

    @property
    def hidden(self) -> torch.Tensor:
        """(N, T, D) states that the next block reads."""
        return torch.cat(self._hidden)

    @torch.no_grad()
    def stages(self, number: int) -> Iterator[Stage]:
        """The four stages of a block, in order; after the last one the states are those behind the block."""
        block = self._block(number)
        yield self._stage(block, ("q", "k", "v"), inputs := [block.input_norm(h) for h in self._hidden])

        block, arguments = self._block(number), self._arguments[number]
        layer: Any = block.module
        inputs = [_input_of(block.o, layer, h, **arguments) for h in self._hidden]
        yield self._stage(block, ("o",), inputs)

        block = self._block(number)
        plain = torch.nn.Identity()
        after = block.after_attention or plain
        self._hidden = [h + after(block.o(x)) for h, x in zip(self._hidden, inputs, strict=True)]
        yield self._stage(block, ("gate", "up"), inputs := [block.mlp_norm(h) for h in self._hidden])

        block = self._block(number)
        mlp: Any = block.module.mlp
        inputs = [_input_of(block.down, mlp, block.mlp_norm(h)) for h in self._hidden]
        yield self._stage(block, ("down",), inputs)

        block = self._block(number)
        after = block.after_mlp or plain
        self._hidden = [h + after(block.down(x)) for h, x in zip(self._hidden, inputs, strict=True)]

    def _block(self, number: int) -> DecoderBlock:
        """As it is now: the caller may have put other modules into it."""
        return DecoderMap.of(self.decoder.module).blocks[number]

    @staticmethod
    def _stage(block: DecoderBlock, parts: tuple[str, ...], inputs: list[torch.Tensor]) -> Stage:
        rows = torch.cat(inputs)
        return Stage(block, parts, rows.reshape(-1, rows.shape[-1]))


def second_moment(inputs: torch.Tensor) -> torch.Tensor:
    """H = (2/n) XᵀX of inputs X (n, in): twice the Hessian of the squared output error of one row."""
    return 2 / len(inputs) * (inputs.T @ inputs)


def replace_linear(block: DecoderBlock, part: str, linear: torch.nn.Linear) -> None:
    """Put another module where a part of a block is."""
    owner: Any = block.module.mlp if part in ("gate", "up", "down") else block.module.self_attn
    setattr(owner, f"{part}_proj", linear)


def _input_of(module: torch.nn.Module, call: Callable[..., object], *given: Any, **named: Any) -> torch.Tensor:
    """What the module is given within a call, which ends there."""
    found: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        call(*given, **named)
    except _Stop:
        pass
    finally:
        hook.remove()
    return found[0]
