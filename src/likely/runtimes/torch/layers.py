"""Run a transformers model with sublayers left out: what a layer plan names adds nothing to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from likely.runtimes.protocol import LayerPlan
from likely.runtimes.torch.module import ModuleCall

_LISTS = ("layers", "h", "blocks")
_ATTENTION = ("self_attn", "attn", "attention")
_MLP = ("mlp", "feed_forward")
Replacement = Callable[..., Any]


class LayerParts:
    """The layers of a decoder, each with its attention and its feed-forward part.

    A part is left out by giving its module another `forward` for the time of a call: zeros where it added to the
    stream, the unchanged stream where a whole layer is left out.  What its `forward` returns beside that (router
    scores, say) is replaced by None, in the shape that the model's own forward was seen to return.
    """

    def __init__(self, layers: list[torch.nn.Module], attention: list[torch.nn.Module], mlp: list[torch.nn.Module]):
        self._layers, self._attention, self._mlp = layers, attention, mlp
        self._extra: dict[int, int] | None = None  # id of a part -> how many more things it returns; -1: no tuple

    @classmethod
    def of(cls, module: torch.nn.Module) -> LayerParts | None:
        """None where layers with one attention and one feed-forward part each are not found."""
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
        found = next((part for name in _LISTS if (part := getattr(decoder, name, None)) is not None), None)
        if not isinstance(found, torch.nn.ModuleList) or not len(found):
            return None
        layers = list(found)
        attention, mlp = ([_named(layer, names) for layer in layers] for names in (_ATTENTION, _MLP))
        if None in attention or None in mlp:
            return None
        return cls(layers, attention, mlp)

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def leaving_out(self, plan: LayerPlan, call: ModuleCall) -> Iterator[list[int]]:
        """Within, the module runs by the plan; gives the numbers of the layers whose attention runs."""
        extra = self._extra = self._extra or self._probe(call)
        whole = plan.skip_attention & plan.skip_mlp
        with ExitStack() as stack:
            for n in whole:
                stack.enter_context(_replaced(self._layers[n], _unchanged(extra[id(self._layers[n])])))
            for parts, skipped in ((self._attention, plan.skip_attention), (self._mlp, plan.skip_mlp)):
                for n in skipped - whole:
                    stack.enter_context(_replaced(parts[n], _nothing(extra[id(parts[n])])))
            yield [n for n in range(len(self)) if n not in plan.skip_attention]

    def _probe(self, call: ModuleCall) -> dict[int, int]:
        """One plain forward over two tokens, to see what each part returns."""
        seen: dict[int, int] = {}

        def look(part: torch.nn.Module, _inputs: Any, out: Any) -> None:
            seen[id(part)] = len(out) - 1 if isinstance(out, tuple) else -1

        with ExitStack() as stack:
            for part in (*self._layers, *self._attention, *self._mlp):
                stack.callback(part.register_forward_hook(look).remove)
            call(np.zeros(2, np.int64), np.array([1]))
        return seen


def _named(layer: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Module | None:
    found = [part for name in names if isinstance(part := getattr(layer, name, None), torch.nn.Module)]
    return found[0] if len(found) == 1 else None


def _stream(arguments: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    return arguments[0] if arguments else named["hidden_states"]


def _shaped(value: torch.Tensor, extra: int) -> Any:
    return value if extra < 0 else (value, *[None] * extra)


def _unchanged(extra: int) -> Replacement:
    return lambda *arguments, **named: _shaped(_stream(arguments, named), extra)


def _nothing(extra: int) -> Replacement:
    return lambda *arguments, **named: _shaped(torch.zeros_like(_stream(arguments, named)), extra)


@contextmanager
def _replaced(part: torch.nn.Module, forward: Replacement) -> Iterator[None]:
    """The part with another forward, its own back in place afterwards."""
    own = part.__dict__.get("forward")
    part.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del part.__dict__["forward"]
        else:
            part.__dict__["forward"] = own
