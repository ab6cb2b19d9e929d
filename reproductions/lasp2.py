"""LASP-2: what do processes that share a sequence exchange per layer, and is the result that of one process?

Real processes on this machine (gloo).  Linear layers gather the states of all chunks once (LASP-2) or hand them on in a
ring (LASP-1); softmax attention gathers keys and values (LASP-2H) or hands them around (ring attention).  Measured:
differences of outputs and all gradients from one process, bytes and messages per layer over lengths.  Predicted: what
these messages take among 64 processes, by a latency and a bandwidth.

  python reproductions/lasp2.py             lengths to 2,048
  python reproductions/lasp2.py --full      lengths to 16,384
  python reproductions/lasp2.py --timing    seconds with a delay added to every message; writes no result
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from gloo_world import Groups, HybridLM, random_ids, relative, run_world, seeded_mixer
from shared_steps import Cells
from study import arguments, conclude, run_script, run_study

from likely.evidence import Check, Evidence, Figure
from likely.sequence.parallel import (
    SequenceGroup,
    SequenceShards,
    ShardLayout,
    next_token_targets,
    shared_mean_loss,
    sum_gradients,
)

WIDTH, HEADS, KV_HEADS = 64, 4, 2
LAYERS: Mapping[str, Mapping[str, object]] = {
    "linear_attention": {"heads": HEADS},
    "mamba2": {"d_state": 16, "head_dim": 16},
    "s4d": {"d_state": 16},
    "attention": {"heads": HEADS, "kv_heads": KV_HEADS},
}
HYBRID = ("linear_attention", "mamba2", "s4d", "attention")
PROCESSES = (1, 2, 3, 4)
WORLD = max(PROCESSES)
ORDERS = ("contiguous", "zigzag")
WAYS: Mapping[str, tuple[str, Mapping[str, str]]] = {  # name -> layer, settings of SequenceShards
    "LASP-2": ("linear_attention", {}),
    "LASP-1": ("linear_attention", {"states": "ring"}),
    "keys gathered": ("attention", {}),
    "ring attention": ("attention", {"attention": "ring"}),
}
EXACT = {"float64": 1e-9, "float32": 1e-4}


# --- exactness --------------------------------------------------------------------------------------------------------


def layer_differences(groups: Groups, length: int) -> dict[str, float]:
    """Layer, processes, order, dtype -> largest relative difference of outputs and gradients from one process."""
    found = {}
    for name, settings in LAYERS.items():
        ways: list[dict[str, str]] = [{}]
        ways += [{"attention": "ring"}, {"attention": "ulysses"}] if name == "attention" else [{"states": "ring"}]
        for dtype in (torch.float64, torch.float32):
            mixer = seeded_mixer(name, WIDTH, dtype, settings)
            x, weights = torch.randn(2, 2, length, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
            wanted = differentiated(mixer, x, weights)
            for size, group in groups.items():
                for order in ORDERS:
                    for how in ways:
                        if how.get("states") and order != "contiguous":
                            continue
                        if how.get("attention") == "ulysses" and HEADS % size:
                            continue
                        shards = SequenceShards(group, ShardLayout.of(length, size, order), **how)  # type: ignore[arg-type]
                        own = differentiated(mixer, shards.take(x), shards.take(weights), mesh=shards)
                        key = f"{name}{''.join(' ' + v for v in how.values())}, {size}, {order}, {str(dtype)[6:]}"
                        found[key] = worst(own, wanted, shards)
                if name == "linear_attention" and size == WORLD and dtype is torch.float64:
                    shards = SequenceShards(group, ShardLayout.of(length, size))
                    own = differentiated(mixer, shards.take(x), shards.take(weights))
                    found["no exchange"] = worst(own, wanted, shards)
    return found


def differentiated(mixer: Any, x: torch.Tensor, weights: torch.Tensor, **how: Any) -> list[torch.Tensor]:
    """[y, gradient of x, gradients of parameters] of Σ weights · y."""
    x = x.clone().requires_grad_()
    y = mixer(x, **how).y
    gradients = torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])
    return [y.detach(), *gradients]


def worst(own: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], shards: SequenceShards) -> float:
    """Over this and all other members: y and x's gradient where they are held, parameters' gradients summed."""
    errors = [relative(t, shards.take(w)) for t, w in zip(own[:2], wanted[:2], strict=True)]
    errors += [relative(shards.group.sum(t), w) for t, w in zip(own[2:], wanted[2:], strict=True)]
    return float(shards.group.gather(torch.tensor([max(errors)], dtype=torch.float64)).max())


def model_difference(groups: Groups, length: int) -> float:
    """Largest relative difference of a hybrid model's parameter gradients, packed documents shared by all."""
    group = groups[WORLD]
    layers = {name: LAYERS[name] for name in HYBRID}
    shared, one = (HybridLM(layers, WIDTH, torch.float64) for _ in range(2))
    ids = random_ids(length, 0, batch=2)
    documents = (torch.arange(length) * 5 // length).expand(2, -1)
    targets = next_token_targets(ids, seq_idx=documents)
    shared_mean_loss(one(ids, seq_idx=documents), targets, SequenceGroup()).backward()
    shards = SequenceShards(group, ShardLayout.of(length, WORLD, "zigzag"))
    part = shards.batch(ids, seq_idx=documents)
    logits = shared(part.input_ids, seq_idx=part.seq_idx, mesh=shards)
    shared_mean_loss(logits, part.targets, group).backward()
    sum_gradients(list(shared.parameters()), group)
    pairs = zip(shared.parameters(), one.parameters(), strict=True)
    return max(relative(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


def exactness(groups: Groups, length: int) -> dict[str, Any]:
    return {"layers": layer_differences(groups, length), "model": model_difference(groups, length)}


# --- messages ---------------------------------------------------------------------------------------------------------


def messages(groups: Groups, lengths: Sequence[int]) -> dict[str, dict[str, int]]:
    """Way, processes, length -> bytes received by one process and messages that wait for one another, per step."""
    found = {}
    for way, (name, how) in WAYS.items():
        mixer = seeded_mixer(name, WIDTH, torch.float32, LAYERS[name])
        for size, group in groups.items():
            for length in lengths if size > 1 else ():
                shards = SequenceShards(group, ShardLayout.of(length, size), **how)  # type: ignore[arg-type]
                x = torch.ones(1, shards.tokens, WIDTH, requires_grad=True)
                group.traffic.clear()
                mixer(x, mesh=shards).y.sum().backward()
                most = group.gather(torch.tensor([group.traffic.received, group.traffic.serial])).amax(0).tolist()
                found[f"{way}, {size}, {length}"] = {"received": most[0], "serial": most[1]}
    return found


@dataclass(frozen=True)
class SharedShape:
    """Of a layer: heads and their widths, bytes of a number of a state, and of a key.

    normaliser  whether a state has one column more;  decays: whether a factor per head travels with it
    """

    heads: int
    kv_heads: int
    head_dim: int
    state_bytes: int = 4
    key_bytes: int = 4
    normaliser: int = 1
    decays: int = 1

    def predicted(self, way: str, size: int, length: int) -> tuple[float, int]:
        """(bytes that one process receives, messages that wait for one another), forward and backward, batch 1."""
        state = self.heads * self.head_dim * (self.head_dim + self.normaliser)
        most = -(-length // size)  # tokens of the largest part: the others are filled up
        keys = 2 * most * self.kv_heads * self.head_dim * self.key_bytes
        return {
            "LASP-2": (2 * (size - 1) * (state + self.decays * self.heads) * self.state_bytes, 2),
            "LASP-1": (min(2, size - 1) * state * self.state_bytes, 2 * (size - 1)),  # the ends receive one way
            "keys gathered": (2 * (size - 1) * keys, 2),
            "ring attention": ((size - 1) * keys + (size - 1) * 2 * keys + keys, 2 * size - 1),
        }[way]

    def seconds(self, way: str, size: int, length: int, latency_s: float, bytes_s: float) -> float:
        """Of the messages alone: a collective takes log2(W) latencies, a ring one for each message."""
        received, serial = self.predicted(way, size, length)
        if way == "LASP-1":  # the last process has waited for W − 1 messages of one state each way
            return serial * (latency_s + received / min(2, size - 1) / bytes_s)
        latencies = serial * math.log2(size) if serial == 2 else serial
        return latencies * latency_s + received / bytes_s


SMALL = SharedShape(HEADS, KV_HEADS, WIDTH // HEADS)
LLAMA_1B = SharedShape(16, 16, 128, key_bytes=2, normaliser=0, decays=0)  # Linear-Llama3-1B: hidden 2048
RANKS, LATENCY_S, BYTES_S = 64, 20e-6, 25e9
LONG = (512 * 1024, 2048 * 1024)


# --- time, with a delay in every message ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DelayedGroup(SequenceGroup):
    """As on a slow network: every message arrives `delay_s` later."""

    delay_s: float = 0.0

    def gather(self, t: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay_s)
        return super().gather(t)

    def scatter_sum(self, t: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay_s)
        return super().scatter_sum(t)

    def take_over(self, like: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        received = super().take_over(like, back=back)
        if 0 <= self.rank + (1 if back else -1) < self.size:
            time.sleep(self.delay_s)
        return received


def timed(groups: Groups, length: int, rounds: int, delay_s: float) -> dict[str, float]:
    """Way, processes -> median seconds of a layer's step, the ways in turn."""
    found: dict[str, list[float]] = {}
    mixer = seeded_mixer("linear_attention", WIDTH, torch.float32, LAYERS["linear_attention"])
    for _ in range(rounds):
        for size, group in groups.items():
            for way in ("LASP-2", "LASP-1") if size > 1 else ():
                slow = DelayedGroup(group.rank, group.size, group.ranks, group.process_group, delay_s=delay_s)
                shards = SequenceShards(slow, ShardLayout.of(length, size), **WAYS[way][1])  # type: ignore[arg-type]
                x = torch.ones(1, shards.tokens, WIDTH, requires_grad=True)
                group.sum(torch.zeros(1))  # all begin together
                started = time.perf_counter()
                mixer(x, mesh=shards).y.sum().backward()
                group.sum(torch.zeros(1))
                found.setdefault(f"{way}, {size} processes", []).append(time.perf_counter() - started)
    return {key: sorted(seconds)[len(seconds) // 2] for key, seconds in found.items()}


# --- the study --------------------------------------------------------------------------------------------------------


def figures_of(exact: Mapping[str, Any], sent: Mapping[str, Mapping[str, int]], lengths: Sequence[int]) -> list[Figure]:
    figures = []
    groups: dict[str, list[float]] = {}
    for key, error in exact["layers"].items():
        parts = key.split(", ")
        subject = f"{parts[0]}, {parts[-1]}" if len(parts) > 1 else f"linear_attention with {key}, float64"
        groups.setdefault(subject, []).append(error)
    for subject, errors in groups.items():
        figures.append(_figure(subject, "largest difference from one process", max(errors), "relative", len(errors),
                               "cases"))  # fmt: skip
    for way in WAYS:
        for size in PROCESSES[1:]:
            for length in (lengths[0], lengths[-1]):
                row = sent[f"{way}, {size}, {length}"]
                subject = f"{way}, {size} processes"
                figures.append(_figure(subject, f"bytes received, {length} tokens", row["received"], "bytes"))
            figures.append(_figure(subject, "messages in a row", row["serial"], "messages"))
    for length in LONG:
        for way in WAYS:
            ms = 1e3 * LLAMA_1B.seconds(way, RANKS, length, LATENCY_S, BYTES_S)
            figures.append(_figure(f"predicted: {way}, {RANKS} processes", f"ms a layer, {length // 1024}K tokens", ms,
                                   "ms"))  # fmt: skip
    return figures


def _figure(subject: str, quantity: str, value: float, unit: str, n: int = 1, of: str = "steps") -> Figure:
    note = "a largest value" if n > 1 else "counted, or computed from a model"
    return Figure(subject=subject, quantity=quantity, value=value, unit=unit, n=n, of=of, note=note)


def checks_of(
    exact: Mapping[str, Any], sent: Mapping[str, Mapping[str, int]], lengths: Sequence[int]
) -> tuple[list[Check], str]:
    """(the claims as inequalities, what was found in words)."""
    layers = exact["layers"]
    largest = {dtype: max(e for key, e in layers.items() if key.endswith(dtype)) for dtype in EXACT}
    first, last = lengths[0], lengths[-1]

    def received(way: str, length: int) -> int:
        return sent[f"{way}, {WORLD}, {length}"]["received"]

    def serial(way: str) -> int:
        return sent[f"{way}, {WORLD}, {last}"]["serial"]

    def seconds(way: str) -> float:
        return LLAMA_1B.seconds(way, RANKS, LONG[-1], LATENCY_S, BYTES_S)

    wrong = max(
        abs(SMALL.predicted(way, size, length)[i] - row[quantity])
        for key, row in sent.items()
        for way, size, length in [(key.split(", ")[0], *map(int, key.split(", ")[1:]))]
        for i, quantity in enumerate(("received", "serial"))
    )
    checks = [
        Check(
            statement=f"{dtype}: outputs and all gradients against one process, largest difference",
            value=largest[dtype],
            bound=bound,
            unit="relative",
        )
        for dtype, bound in EXACT.items()
    ]
    checks += [
        Check(statement="hybrid model, packed documents, zigzag: parameters' gradients against one process",
              value=exact["model"], bound=EXACT["float64"], unit="relative"),
        Check(statement=f"LASP-2: bytes at {last} tokens / at {first}", value=received("LASP-2", last)
              / received("LASP-2", first), bound=1.0, unit="x"),
        Check(statement="LASP-2: messages in a row, forward and backward", value=serial("LASP-2"), bound=2,
              unit="messages"),
        Check(statement=f"LASP-2: messages in a row / those of LASP-1, {WORLD} processes",
              value=serial("LASP-2") / serial("LASP-1"), bound=1 / (WORLD - 1), unit="x"),
        Check(statement=f"LASP-2: bytes / those of ring attention at {last} tokens", value=received("LASP-2", last)
              / received("ring attention", last), bound=0.1, unit="x"),
        Check(statement=f"predicted, {RANKS} processes, {LONG[-1] // 1024}K tokens: messages of LASP-2 / of LASP-1",
              value=seconds("LASP-2") / seconds("LASP-1"), bound=1.0, unit="x"),
        Check(statement=f"predicted, {RANKS} processes, {LONG[-1] // 1024}K tokens: messages of LASP-2 / of ring "
              "attention", value=seconds("LASP-2") / seconds("ring attention"), bound=1.0, unit="x"),
        Check(statement="the model's bytes and messages against those counted, largest difference", value=wrong,
              bound=0, unit="bytes"),
        Check(statement="control: .001 over the difference where nothing is exchanged",
              value=1e-3 / layers["no exchange"], bound=1.0, unit="relative"),
    ]  # fmt: skip
    growth = received("keys gathered", last) / received("keys gathered", first)
    words = (
        f"2 to {WORLD} processes: outputs and all gradients equal one process to {largest['float64']:.1e} in float64; "
        f"LASP-2 takes 2 messages in a row and {received('LASP-2', last):,} bytes whatever the length, LASP-1 "
        f"{serial('LASP-1')} messages, gathered keys {growth:.0f} times the bytes at {last // first} times the length; "
        f"predicted for {RANKS} processes at {LONG[-1] // 1024}K tokens per layer: {1e3 * seconds('LASP-2'):.1f} ms of "
        f"messages with LASP-2, {1e3 * seconds('LASP-1'):.1f} with LASP-1, {1e3 * seconds('ring attention'):,.0f} with "
        f"ring attention"
    )
    return checks, words


def study(
    lengths: Sequence[int], exact_length: int, cells: Cells, *, full: bool, report: Callable[[str], None] = print
) -> Evidence:
    started = time.perf_counter()
    exact = cells.value("exactness", functools.partial(run_world, WORLD, exactness, exact_length))
    sent = cells.value("messages", functools.partial(run_world, WORLD, messages, list(lengths)))
    checks, ours = checks_of(exact, sent, lengths)
    return conclude(
        "lasp2",
        title="LASP-2 and LASP-2H: sequence parallelism for linear attention and hybrids",
        claim=(
            "One gathering of states of a fixed size, forward and backward, shares a sequence exactly, and takes less "
            "time than handing states or keys on from process to process."
        ),
        paper_figure=(
            "Linear-Llama3 trains 15.2 % faster than with LASP and 36.6 % faster than with ring attention, 2048K "
            "tokens, 64 GPUs"
        ),
        ours=ours,
        figures=figures_of(exact, sent, lengths),
        checks=checks,
        samples=(
            f"layers of width {WIDTH} with {HEADS} heads, {KV_HEADS} of keys; exactness: {exact_length} tokens, 1 to "
            f"{WORLD} processes, contiguous and zigzag; messages: one layer and step, {lengths[0]} to {lengths[-1]} "
            f"tokens; prediction: 16 heads of 128, {LATENCY_S * 1e6:.0f} µs and {BYTES_S / 1e9:.0f} GB/s"
        ),
        intervals="none: differences are largest values, bytes and messages are counted",
        full=full,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Throughput on GPUs, and what hides behind computation: the prediction is of messages alone.",
            "The paper's percentages are of whole training steps, the ratios here of messages: they are no estimate of "
            "those.",
            "Time with delays added to messages: --timing measures it on this machine.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    lengths = [256, 512, 1024, 2048, *([4096, 8192, 16384] if options.full else [])]
    if options.timing:
        for key, seconds in run_world(WORLD, timed, 1024, 11, 0.005).items():
            print(f"{key}: {1e3 * seconds:.1f} ms a layer and step, 5 ms added to every message")
        return None
    settings = {"width": WIDTH, "lengths": lengths, "processes": list(PROCESSES)}
    return study(lengths, 203, Cells(options.kept, settings), full=options.full)


def main() -> None:
    parser = arguments(full="longer sequences", kept="studies/lasp2.jsonl")
    parser.add_argument("--timing", action="store_true", help="seconds with delayed messages, in place of the study")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
