"""Run a transformers model by a layer plan: sublayers left out, or attentions of consecutive layers side by side.

Side by side: EasySpec, "layer-parallel" or fuzzy drafting, arXiv:2502.02493, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from likely.runtimes.protocol import LayerPlan
from likely.runtimes.torch.attention import attend_in_threads
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
    def under(self, plan: LayerPlan, call: ModuleCall, pool: Executor | None = None) -> Iterator[list[int]]:
        """Within, the module runs by the plan; gives the numbers of the layers whose attention runs.

        pool  of threads in which the attentions of a group run; None: they run one after the other
        """
        extra = self._extra = self._extra or self._probe(call)
        whole = plan.skip_attention & plan.skip_mlp
        with ExitStack() as stack:
            for n in whole:
                stack.enter_context(_replaced(self._layers[n], _unchanged(extra[id(self._layers[n])])))
            for parts, skipped in ((self._attention, plan.skip_attention), (self._mlp, plan.skip_mlp)):
                for n in skipped - whole:
                    stack.enter_context(_replaced(parts[n], _nothing(extra[id(parts[n])])))
            for numbers in plan.parallel:
                if len(numbers) > 1:
                    layers, attention = ([parts[n] for n in numbers] for parts in (self._layers, self._attention))
                    group = _ParallelGroup(layers, attention, pool)
                    for layer in layers:
                        stack.enter_context(_replaced(layer, partial(group.forward, extra[id(layer)])))
            yield [n for n in range(len(self)) if n not in plan.skip_attention]

    def attention_before_mlp(self, call: ModuleCall) -> bool:
        """Whether the MLP of a layer reads what its attention has added, as layers side by side suppose.

        Blocks that compute both from one input (GPT-J, GPT-NeoX, Falcon) do not.
        """
        if len({type(layer) for layer in self._layers}) > 1:
            return False
        extra = self._extra = self._extra or self._probe(call)
        attention = self._attention[0]
        seen: list[torch.Tensor] = []

        def see(*arguments: Any, **named: Any) -> Any:
            seen.append(_stream(arguments, named))
            raise _HalfWay

        for nothing in (True, False):
            added = (_nothing if nothing else _something)(extra[id(attention)])
            with _replaced(self._mlp[0], see), _replaced(attention, added), suppress(_HalfWay):
                call(np.zeros(2, np.int64), np.array([1]))
        return not torch.equal(*seen)

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


class _HalfWay(Exception):
    """A layer has run as far as it was wanted."""


class _ParallelGroup:
    """Consecutive layers whose attentions read the first one's input.

    All but the last hand the stream on unchanged and note what they were called with; the last one's `forward` runs
    every attention on the stream, then the layers in order, each with its attention's result in place.
    """

    def __init__(self, layers: list[torch.nn.Module], attention: list[torch.nn.Module], pool: Executor | None):
        self._forwards: list[Replacement] = [layer.forward for layer in layers]
        self._attention, self._pool = attention, pool
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, extra: int, *arguments: Any, **named: Any) -> Any:
        """In place of the `forward` of each of the layers, which returns `extra` more things than the stream."""
        self._calls.append((arguments, named))
        stream = _stream(arguments, named)
        if len(self._calls) < len(self._forwards):
            return _shaped(stream, extra)
        calls, self._calls = self._calls, []
        steps = list(zip(self._forwards, self._attention, calls, strict=True))
        halves = [partial(_attention_of, *step) for step in steps]
        results = [half() for half in halves] if self._pool is None else attend_in_threads(halves, self._pool)
        out: Any = stream
        for (forward, attention, (given, more)), result in zip(steps, results, strict=True):
            with _replaced(attention, lambda *_, _result=result, **__: _result):
                rest = {name: value for name, value in more.items() if name != "hidden_states"}
                out = forward(out[0] if isinstance(out, tuple) else out, *given[1:], **rest)
        return out


def _attention_of(
    forward: Replacement, attention: torch.nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> Any:
    """What the attention of a layer returns when the layer is called so; the rest of the layer does not run."""
    own, found = attention.forward, []

    def attend(*arguments: Any, **named: Any) -> Any:
        found.append(own(*arguments, **named))
        raise _HalfWay

    with _replaced(attention, attend), suppress(_HalfWay):
        forward(*call[0], **call[1])
    return found[0]


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


def _something(extra: int) -> Replacement:
    """Values that no normalisation takes for none."""

    def forward(*arguments: Any, **named: Any) -> Any:
        like = _stream(arguments, named)
        return _shaped(
            torch.linspace(-1, 1, like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like), extra
        )

    return forward


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
