"""Sequences that share prefixes in the torch and the native runtime: how they are made, one step of them, and its time.

Part of hydragen.py, whose --speed runs `speed`.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import figure_with, report
from torch.nn.functional import scaled_dot_product_attention

import likely
from likely.bench import Timing, interleaved, speedup
from likely.evidence import Check, Figure
from likely.io.whole_file import write_whole_file
from likely.metrics.bootstrap import median_interval
from likely.runtimes.protocol import IntArray, Want, Work
from likely.runtimes.protocol import Sequence as Held
from likely.runtimes.torch import PrefixLevel, shared_prefix_attention

HEADS, KV_HEADS, WIDTH = 9, 3, 64  # of SmolLM2-135M
SPEED = "speed"  # in the name of what is timed
MOST_BYTES = 2**30  # of keys and values of a micro cell
PREFIXES, SUFFIX = (256, 1024, 4096), 16
TOKENS_HELD = 32768
TREE = (4, 8, 4)  # prefixes, questions of each, samples of each question


@dataclass
class Findings:
    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def must_be(self, statement: str, value: float, bound: float, unit: str) -> None:
        self.checks.append(Check(statement=statement, value=float(value), bound=bound, unit=unit))


def forward(runtime: Any, sequences: Sequence[Held], tokens: Sequence[IntArray], share: bool | None) -> np.ndarray:
    """(B, V) logits after these tokens, which are kept."""
    if share is not None:
        runtime.group_prefixes = share
    outputs = runtime.forward([Work(s, t, want=Want.LAST) for s, t in zip(sequences, tokens, strict=True)])
    return np.stack([output.logits[-1] for output in outputs])


def grow(
    runtime: Any, levels: Sequence[Sequence[IntArray]], share: bool | None
) -> tuple[list[Held], np.ndarray, list[Held]]:
    """Leaves of a tree of texts, the logits of each, and all its sequences.

    levels[0] is one text; each text of a level is followed by as many of the next as that is longer.
    """
    root = runtime.open()
    above, every = [root], [root]
    logits = forward(runtime, above, levels[0], share)
    for texts in levels[1:]:
        times = len(texts) // len(above)
        above = [runtime.fork(above[i // times]) for i in range(len(texts))]
        every += above
        logits = forward(runtime, above, texts, share)
    return above, logits, every


def families(
    runtime: Any, batches: Sequence[int], prefixes: Sequence[int], suffix: int
) -> dict[tuple[int, int], list[Held]]:
    """(B, P) -> B sequences, each with P tokens that all share and `suffix` of its own."""
    rng = np.random.default_rng(0)
    vocabulary = min(runtime.vocab_size, 40000)
    if hasattr(runtime, "group_prefixes"):
        runtime.group_prefixes = True
    root = runtime.open()
    runtime.forward([Work(root, rng.integers(0, vocabulary, max(prefixes)), want=Want.NONE)])
    made = {}
    for p in prefixes:
        for b in batches:
            made[b, p] = [runtime.fork(root, p) for _ in range(b)]
            runtime.forward([Work(s, rng.integers(0, vocabulary, suffix), want=Want.NONE) for s in made[b, p]])
    runtime.close(root)
    return made


def step(runtime: Any, sequences: Sequence[Held], share: bool | None) -> None:
    """One token more for each sequence, taken back again."""
    if share is not None:
        runtime.group_prefixes = share
    runtime.forward([Work(s, np.array([7]), np.array([-1])) for s in sequences])
    runtime.commit([(s, []) for s in sequences])


# --- speed -----------------------------------------------------------------------------------------------------------


class Cells:
    """What was measured, in a file, one cell a line, so that a run which was cut off goes on.

    settings  cells of other settings are kept, and not used
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], say: Callable[[str], None] = report):
        self.path, self._settings, self._say = path, dict(settings), say
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._rows = [json.loads(line) for line in lines]

    def value(self, cell: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, as JSON; measured once."""
        for row in self._rows:
            if row["cell"] == cell and row["settings"] == self._settings:
                return row["value"]
        self._rows.append({"cell": cell, "settings": self._settings, "value": measure()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_file(self.path, "".join(json.dumps(row) + "\n" for row in self._rows).encode())
        self._say(f"{cell}: done")
        return self._rows[-1]["value"]

    def timed(self, cell: str, measure: Callable[[], Mapping[str, Timing]]) -> dict[str, Timing]:
        value = self.value(cell, lambda: {name: timing.seconds for name, timing in measure().items()})
        found = {name: Timing(name, seconds) for name, seconds in value.items()}
        self._say(f"{cell}: " + ", ".join(f"{name} {1e3 * timing.median_s:.3g} ms" for name, timing in found.items()))
        return found

    def forget(self) -> None:
        """Remove the file: what it held is written elsewhere."""
        self.path.unlink(missing_ok=True)


def micro(b: int, p: int, rounds: int, suffix: int = 32) -> dict[str, Timing]:
    """One layer's attention of B single tokens; keys of each sequence side by side, as is best for SDPA."""
    share = HEADS // KV_HEADS
    query = torch.randn(b, 1, HEADS, WIDTH)
    prefix = [torch.randn(1, p, KV_HEADS, WIDTH) for _ in range(2)]
    own = [torch.randn(b, suffix, KV_HEADS, WIDTH) for _ in range(2)]
    k, v = (
        torch.cat([a.expand(b, -1, -1, -1), o], 1).transpose(1, 2).contiguous()
        for a, o in zip(prefix, own, strict=True)
    )
    level = PrefixLevel(*prefix, torch.zeros(b, dtype=torch.int64))
    folded = query.view(b, KV_HEADS, share, WIDTH)
    with torch.no_grad():
        return interleaved(
            {
                "shared": lambda: shared_prefix_attention(query, [level], *own, causal=False),
                "SDPA": lambda: scaled_dot_product_attention(folded, k, v),
            },
            rounds=rounds, settled=True,
        )  # fmt: skip


Ways = Mapping[str, tuple[Any, bool | None]]  # name -> a runtime, and whether it is told to share


def ways_of(lm: Any, other: Any = None) -> Ways:
    """With sharing and without, as far as the runtime can be told; other: a runtime that was opened without."""
    if other is not None:
        return {"shared": (lm.runtime, None), "not shared": (other, None)}
    if hasattr(lm.runtime, "group_prefixes"):
        return {"shared": (lm.runtime, True), "not shared": (lm.runtime, False)}
    return {"as it is": (lm.runtime, None)}


def apart_from(lm: Any, threads: int) -> Any:
    """A second native runtime that shares nothing; None where there is no such setting."""
    from likely.runtimes.native.runtime import NativeRuntime

    if "group_prefixes" not in inspect.signature(NativeRuntime.__init__).parameters:
        return None
    settings: dict[str, Any] = {"threads": threads, "tokens_held": TOKENS_HELD, "group_prefixes": False}
    return NativeRuntime(lm.info.source, **settings)


def steps(ways: Ways, batch: int, prefixes: Sequence[int], rounds: int, suffix: int = SUFFIX) -> dict[str, Timing]:
    """One step of the model after prefixes of these lengths, in each way."""
    made: dict[int, dict[tuple[int, int], list[Held]]] = {}
    runs: dict[str, Callable[[], None]] = {}
    for way, (runtime, share) in ways.items():
        if id(runtime) not in made:
            made[id(runtime)] = families(runtime, [batch], prefixes, suffix)
        for (_, p), sequences in made[id(runtime)].items():
            runs[f"prefix {p:,}, {way}"] = partial(step, runtime, sequences, share)
    found = interleaved(runs, rounds=rounds)
    for runtime, _ in ways.values():
        for sequences in made.pop(id(runtime), {}).values():
            for sequence in sequences:
                runtime.close(sequence)
    return found


def tree_steps(runtime: Any, tree: Sequence[int], lengths: Sequence[int], rounds: int) -> dict[str, Timing]:
    """One step of a tree of prefixes and questions, of the same where only prefixes are shared, and without sharing.

    "..., tokens held" of the first two are no seconds.
    """
    rng, vocabulary = np.random.default_rng(0), min(runtime.vocab_size, 40000)
    prefixes, questions, samples = tree
    count = prefixes * questions

    def texts(n: int, length: int) -> list[IntArray]:
        return [rng.integers(0, vocabulary, length) for _ in range(n)]

    free = runtime.free_tokens()
    levels = [
        [texts(1, 1)[0]],
        texts(prefixes, lengths[0]),
        texts(count, lengths[1]),
        texts(count * samples, lengths[2]),
    ]
    leaves, _, _ = grow(runtime, levels, True)
    held = {"tree": free - runtime.free_tokens()}
    apart = [np.concatenate([levels[2][i // samples], own]) for i, own in enumerate(levels[3])]
    one, _, _ = grow(runtime, [*levels[:2], apart], True)
    held["prefixes only"] = free - held["tree"] - runtime.free_tokens()
    times = interleaved(
        {
            "tree": lambda: step(runtime, leaves, True),
            "prefixes only": lambda: step(runtime, one, True),
            "not shared": lambda: step(runtime, leaves, False),
        },
        rounds=rounds,
    )
    return times | {f"{name}, tokens held": Timing(name, [float(n)]) for name, n in held.items()}


def faster(subject: str, fast: Timing, slow: Timing, note: str) -> Figure:
    gain = speedup(fast, slow)
    return figure_with(subject, "times as fast", gain.median, (gain.low, gain.high), unit="times", n=gain.rounds,
                       of="rounds", note=note)  # fmt: skip


def per_second(subject: str, way: str, timing: Timing, batch: int) -> Figure:
    low, high = median_interval(timing.seconds)
    return figure_with(subject, f"tokens/s, {way}", batch / timing.median_s, (batch / high, batch / low),
                       unit="tokens/s", n=len(timing.seconds), of="rounds")  # fmt: skip


def speed(options: argparse.Namespace, cells: Cells) -> Findings:
    """All cells; each is measured once and kept."""
    found, rounds = Findings(), options.rounds
    torch.set_num_threads(options.threads)
    for b in (1, 4, 16, 32, 64):
        for p in (256, 1024, 4096, 16384):
            if 2 * 4 * b * (p + 32) * KV_HEADS * WIDTH > MOST_BYTES:
                continue
            times = cells.timed(f"micro, B={b}, prefix {p:,}", lambda b=b, p=p: micro(b, p, 2 * rounds))
            found.figures.append(
                faster(f"{SPEED}: one layer, B={b}, prefix {p:,}", times["shared"], times["SDPA"],
                       f"SDPA {1e3 * times['SDPA'].median_s:.3g} ms, shared {1e3 * times['shared'].median_s:.3g} ms")
            )  # fmt: skip
            if (b, p) == (32, 4096):
                found.must_be(f"{SPEED}, one layer, B=32, prefix 4,096: time over that of SDPA",
                              1 / found.figures[-1].value, 0.25, "times")  # fmt: skip
    for kind in ("torch", "native"):
        with likely.load("smollm2", runtime=kind, threads=options.threads, context=TOKENS_HELD) as lm:
            other = apart_from(lm, options.threads) if kind == "native" else None
            for b in (16, 32):
                times = cells.timed(f"{kind}, B={b}", lambda b=b: steps(ways_of(lm, other), b, PREFIXES, rounds))  # noqa: B023
                add_steps(found, kind, b, times)
            if kind == "torch":
                times = cells.timed("torch, tree", lambda: tree_steps(lm.runtime, TREE, (512, 128, 8), rounds))
                add_tree(found, times, lm.runtime.kv_bytes_per_token)
            if other is not None:
                other.shutdown()
    return found


def add_steps(found: Findings, kind: str, b: int, times: Mapping[str, Timing]) -> None:
    low, high = min(PREFIXES), max(PREFIXES)
    for p in PREFIXES:
        subject = f"{SPEED}: {kind}, B={b}, prefix {p:,}"
        ways = {
            way: times[f"prefix {p:,}, {way}"]
            for way in ("shared", "not shared", "as it is")
            if f"prefix {p:,}, {way}" in times
        }
        found.figures += [per_second(subject, way, timing, b) for way, timing in ways.items()]
        if len(ways) == 2:
            found.figures.append(faster(subject, ways["shared"], ways["not shared"], f"{kind}, SmolLM2, one step"))
    if kind == "torch" and b == 32:
        shared, plain = ([times[f"prefix {p:,}, {way}"] for p in (low, high)] for way in ("shared", "not shared"))
        kept = speedup(shared[1], shared[0]).median  # tokens/s of the long prefix over those of the short one
        lost = speedup(plain[1], plain[0]).median
        gain = speedup(shared[1], plain[1]).median
        found.must_be(
            f"B={b}, {SPEED}: time of a step at prefix {high:,} over {low:,}, shared", 1 / kept, 4 / 3, "times"
        )
        found.must_be(f"B={b}, {SPEED}: tokens/s at prefix {high:,} over {low:,}, not shared", lost, 0.5, "times")
        found.must_be(f"B={b}, {SPEED}: time of a step at prefix {high:,}, shared over not", 1 / gain, 1 / 3, "times")
        found.said.append(
            f"torch, B={b}: a prefix of {high:,} instead of {low:,} costs {1 - kept:.0%} of the tokens/s with sharing "
            f"and {1 - lost:.0%} without; at {high:,} sharing is {gain:.1f}x as fast"
        )


def add_tree(found: Findings, times: Mapping[str, Timing], bytes_per_token: int) -> None:
    prefixes, questions, samples = TREE
    subject = f"{SPEED}: torch, tree of {prefixes} prefixes, {questions} questions each, {samples} samples each"
    for way in ("prefixes only", "not shared"):
        found.figures.append(faster(f"{subject}, over {way}", times["tree"], times[way], "one step"))
    for way in ("tree", "prefixes only"):
        n = times[f"{way}, tokens held"].seconds[0]
        found.figures.append(
            Figure(subject=f"{subject}, {way}", quantity="keys and values held", value=n * bytes_per_token / 1e6,
                   unit="MB", n=int(n), of="tokens", note="counted")
        )  # fmt: skip
    found.must_be(f"{SPEED}, tree: time of a step over that with prefixes only",
                  1 / speedup(times["tree"], times["prefixes only"]).median, 1.0, "times")  # fmt: skip
