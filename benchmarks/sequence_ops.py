"""Kernels of sequence layers on this machine: chunked against step by step, and what one more token costs at length L.

Kernels: seconds forward, and forward with backward, of the fast form and of its definition as a loop (and of
transformers' slow path where it has the same function).  Layers: seconds of one step after 1k to 64k tokens, whose
states are made in pieces of 1,024, and seconds per token of training on one text of that length; a recurrent layer's
should be flat, attention's should grow (it is trained up to 16k only: longer texts take minutes).

  python benchmarks/sequence_ops.py           lengths of the paper's order
  python benchmarks/sequence_ops.py --quick   tiny ones
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import protocol
import torch
from torch import Tensor

from likely.sequence import linear_attention, linear_scan, make_mixer, ssd
from likely.sequence.ops import linear_attention_by_steps, scan_by_steps, ssd_by_steps

TRAINED = ("mamba2", "s4d", "linear_attention", "gla", "attention")
STEPPED = ("mamba2", "mamba", "s4d", "gated_deltanet", "linear_attention", "attention")


def kernels(length: int, batch: int = 2, heads: int = 4, size: int = 64) -> dict[str, dict[str, Callable[[], Any]]]:
    """Name -> {"chunked": run, "by steps": run, "transformers": run}; each gives one tensor to sum."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).requires_grad_()

    q, k, v = (normal(batch, length, heads, size) for _ in range(3))
    unit = torch.nn.functional.normalize(k.detach(), dim=-1).requires_grad_()
    decay, beta = -normal(batch, length, heads).detach().abs() / 8, torch.sigmoid(normal(batch, length, heads).detach())
    per_key = (-normal(batch, length, heads, size).detach().abs() / 8).requires_grad_()
    a = torch.sigmoid(normal(batch, length, heads * size).detach())
    b = normal(batch, length, heads * size)
    return {
        "linear_scan": {"chunked": lambda: linear_scan(a, b)[0], "by steps": lambda: scan_by_steps(a, b)[0]},
        "ssd": {"chunked": lambda: ssd(v, decay, k, q)[0], "by steps": lambda: ssd_by_steps(v, decay, k, q)[0]},
        "gla": {
            "chunked": lambda: linear_attention(q, k, v, log_decay=per_key)[0],
            "by steps": lambda: linear_attention_by_steps(q, k, v, log_decay=per_key)[0],
        },
        "gated delta rule": {
            "chunked": lambda: linear_attention(q, unit, v, log_decay=decay, beta=beta)[0],
            "by steps": lambda: linear_attention_by_steps(q, unit, v, log_decay=decay, beta=beta)[0],
            "transformers": lambda: torch_chunk_gated_delta_rule(q, unit, v, g=decay, beta=beta)[0],
        },
    }


def seconds(run: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Median and range of the wall time of a call, after one that is not counted."""
    run()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return {"median_s": float(np.median(found)), "low_s": min(found), "high_s": max(found)}


def with_backward(run: Callable[[], Any]) -> None:
    run().sum().backward()


def time_kernels(length: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, forms in kernels(length).items():
        for form, run in forms.items():
            with torch.no_grad():
                forward = seconds(run, rounds)
            both = seconds(
                partial(with_backward, run), 1 if form == "by steps" else rounds
            )  # O(length²) under autograd
            rows.append({"kernel": name, "form": form, "length": length, "forward": forward, "with_backward": both})
    return rows


@torch.no_grad()
def time_steps(lengths: list[int], rounds: int, width: int = 256) -> list[dict[str, Any]]:
    rows = []
    for name in STEPPED:
        torch.manual_seed(0)
        layer = make_mixer(name, width).eval()
        state, held = layer.init_state(1), 0
        for length in lengths:
            while held < length:
                count = min(1024, length - held)
                state = layer(torch.randn(1, count, width), state, return_state=True).state
                held += count
            x = torch.randn(1, width)
            step = seconds(partial(layer.step, x, state), 4 * rounds)
            rows.append({"layer": name, "length": length, "state_bytes": state.nbytes, "step": step})
    return rows


def time_training(lengths: list[int], rounds: int, width: int = 64) -> list[dict[str, Any]]:
    """Seconds per token of one layer, forward and backward, on one text."""
    rows = []
    for name in TRAINED:
        torch.manual_seed(0)
        layer = make_mixer(name, width)
        for length in lengths:
            if name == "attention" and length > 16384:
                continue
            x = torch.randn(1, length, width)
            found = seconds(
                partial(with_backward, lambda layer=layer, x=x: layer(x).y), rounds if length < 16384 else 1
            )
            rows.append({
                "layer": name, "length": length,
                "per_token": {key: value / length for key, value in found.items()},
            })  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__ or "", argv)
    torch.set_num_threads(1)
    length, lengths = (64, [64, 128]) if options.quick else (1024, [1024, 4096, 16384, 65536])
    record = {
        "threads": 1,
        "dtype": "float32",
        "kernels": time_kernels(length, options.rounds),
        "steps": time_steps(lengths, options.rounds),
        "training": time_training(lengths, options.rounds),
    }
    protocol.write("sequence_ops", record, quick=options.quick)


if __name__ == "__main__":
    main()
