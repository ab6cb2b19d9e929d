"""Hydragen: is attention with shared prefixes the same as without, and what does it save?

Decoding of many sequences that share prefixes in a tree, in the torch runtime with `group_prefixes` on and off: tokens
and logits, rows of keys and values read per step, and (--speed) time.

  python reproductions/hydragen.py            exactness and reads, fp32 (3 min of one core)
  python reproductions/hydragen.py --full     more questions and longer answers
  python reproductions/hydragen.py --speed    times, alone on a quiet machine, added to the result (6 min)

A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from shared_steps import (
    HEADS,
    KV_HEADS,
    PREFIXES,
    SPEED,
    SUFFIX,
    WIDTH,
    Cells,
    Findings,
    families,
    forward,
    grow,
    speed,
    step,
)
from study import (
    arguments,
    conclude,
    data_sources,
    figure_table,
    model_source,
    run_script,
    run_study,
)
from torch.nn.functional import scaled_dot_product_attention

import likely
from likely.bench import refuse_busy
from likely.data import load_records
from likely.evidence import Evidence, Figure, Source, read_result, write_result
from likely.runtimes.protocol import IntArray
from likely.runtimes.torch import PrefixLevel, shared_prefix_attention

NAME = "hydragen"
DATA = (("gsm8k", None),)
LOGITS, OPERATOR = 1e-3, 1e-5  # largest differences allowed: of a logit, and of attention's output in fp32
LEVELS = (
    [[1], [10]],
    [[3], [6, 7]],
    [[7, 7], [9, 10, 11, 4], [1, 129, 30, 64, 2, 17, 128, 5]],
    [[16384], [1, 128, 256]],
)
SAMPLES = 12
NOT_TIMED = "speed was not measured yet: --speed adds it"


@dataclass(frozen=True)
class Size:
    """branches, questions, samples of the tree; new tokens of each sequence, and of those of the windowed model."""

    branches: int
    questions: int
    samples: int
    tokens: int
    windowed_tokens: int
    batches: tuple[int, ...]
    prefixes: tuple[int, ...]


QUICK = Size(2, 2, 6, 64, 16, (16, 32), PREFIXES[:2])
FULL = Size(4, 8, 6, 128, 64, (16, 32), PREFIXES)


def compare_decoding(
    runtime: Any, levels: Sequence[Sequence[IntArray]], samples: int, steps: int
) -> tuple[int, int, float, int]:
    """(tokens that differ, tokens, largest difference of a logit before the first one that differs, tokens saved).

    Each leaf goes on `samples` times: sample i starts with its i-th likely token and is greedy from there.
    """
    runs, every, saved = {}, [], runtime.kv_reads.saved
    for share in (True, False):
        leaves, logits, all_of_it = grow(runtime, levels, share)
        forks = [runtime.fork(leaf) for leaf in leaves for _ in range(samples)]
        first = np.argsort(-logits, axis=1, kind="stable")[:, :samples].reshape(-1)
        runs[share], every = (forks, first), every + all_of_it + forks
    differ, worst = 0, 0.0
    same = np.ones(len(runs[True][0]), bool)
    for _ in range(steps):
        rows = {}
        for share, (forks, tokens) in runs.items():
            rows[share] = forward(runtime, forks, [t[None] for t in tokens], share)
            runs[share] = forks, rows[share].argmax(1)
        if same.any():  # so far: both rows stand on the same text
            worst = max(worst, float(np.abs(rows[True] - rows[False])[same].max()))
        same &= runs[True][1] == runs[False][1]
        differ += int((~same).sum())
    for sequence in every:
        runtime.close(sequence)
    return differ, steps * len(same), worst, runtime.kv_reads.saved - saved


def add_exactness(found: Findings, name: str, compared: tuple[int, int, float, int]) -> None:
    differ, tokens, worst, saved = compared
    found.figures += [
        Figure(subject=name, quantity="tokens that differ", value=differ, unit="tokens", n=tokens, of="tokens",
               note="a count"),
        Figure(subject=name, quantity="largest difference of a logit", value=worst, unit="logit", n=tokens, of="rows",
               note="a maximum"),
    ]  # fmt: skip
    found.must_be(f"exact: tokens that differ, {name}", differ, 0, "tokens")
    found.must_be(f"exact: largest difference of a logit, {name}", worst, LOGITS, "logit")
    found.must_be(f"exact: path not taken, {name}", float(saved == 0), 0, "cases")
    found.said.append(f"{name}: {differ} of {tokens} tokens differ, logits by at most {worst:.1e}")


def operator_error(seed: int = 0) -> float:
    """Largest difference of shared_prefix_attention from attention over each concatenation, over LEVELS."""
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    for lengths in LEVELS:
        b = len(lengths[-1])
        query = torch.randn(b, 1, HEADS, WIDTH, generator=generator)
        levels = [
            PrefixLevel(*(torch.randn(len(sizes), max(sizes), KV_HEADS, WIDTH, generator=generator) for _ in range(2)),
                        torch.arange(b) * len(sizes) // b, torch.tensor(sizes))
            for sizes in lengths
        ]  # fmt: skip
        own = levels[-1]
        out, _ = shared_prefix_attention(query, levels[:-1], own.key, own.value, lengths=own.lengths)
        for i in range(b):
            parts = [(level, int(level.parents[i])) for level in levels]
            k, v = (
                torch.cat([(level.key, level.value)[n][at, : int(level.lengths[at])] for level, at in parts])  # type: ignore[index]
                for n in (0, 1)
            )
            whole = scaled_dot_product_attention(*(t[None].transpose(1, 2) for t in (query[i], k, v)), enable_gqa=True)
            worst = max(worst, float((out[i] - whole[0].transpose(0, 1)).abs().max()))
    return worst


def reads_of_steps(runtime: Any, size: Size, suffix: int) -> list[list[float]]:
    """(B, P, bytes read by one step with sharing, without, and where everything is read once), for all of size."""
    layers, found = len(runtime.layer_windows), []
    for (b, p), sequences in families(runtime, size.batches, size.prefixes, suffix).items():
        row: list[float] = [b, p]
        for share in (True, False):
            before = runtime.kv_reads.read
            step(runtime, sequences, share)
            row.append((runtime.kv_reads.read - before) * runtime.kv_bytes_per_token / layers)
        found.append([*row, (p + b * (suffix + 1)) * runtime.kv_bytes_per_token])
        for sequence in sequences:
            runtime.close(sequence)
    return found


def add_reads(found: Findings, rows: Sequence[Sequence[float]]) -> None:
    for b, p, shared, plain, once in rows:
        subject = f"B={b:.0f}, prefix {p:,.0f}"
        for way, value in (("shared", shared), ("not shared", plain)):
            found.figures.append(
                Figure(subject=subject, quantity=f"keys and values read per step, {way}", value=value / 1e6,
                       unit="MB", n=int(b), of="sequences", note="counted")
            )  # fmt: skip
        found.must_be(f"{subject}: keys and values read, over one read of each", shared / once, 1, "times")
    b, p, shared, plain, _ = max(rows)
    found.said.append(f"at B={b:.0f} and a prefix of {p:,.0f} a step reads {plain / shared:.0f}x less")


def texts_that_differ(lm: Any, prompt: str, samples: int, tokens: int) -> int:
    """Of samples of one prompt, as a user draws them."""
    texts = {}
    for share in (True, False):
        lm.runtime.group_prefixes = share
        texts[share] = [one.token_ids for one in lm.generate(prompt, n=samples, max_tokens=tokens, seed=1)]
    return sum(a != b for a, b in zip(texts[True], texts[False], strict=True))


# --- the study -------------------------------------------------------------------------------------------------------


def problem(record: Mapping[str, Any], *, solved: bool) -> str:
    return f"Question: {record['question']}\nAnswer:" + (f" {record['answer']}\n\n" if solved else "")


def tree_of_texts(
    encode: Callable[[str], Sequence[int]], problems: Sequence[Mapping[str, Any]], size: Size, common: int = 2
) -> list[list[IntArray]]:
    """The `common` first problems with answers for all, one more for each branch, the same questions under each."""

    def ids(*parts: str) -> IntArray:
        return np.array(encode("".join(parts)), np.int64)

    branches, questions = problems[common:][: size.branches], problems[common + size.branches :][: size.questions]
    return [
        [ids(*(problem(p, solved=True) for p in problems[:common]))],
        [ids(problem(p, solved=True)) for p in branches],
        [ids(problem(p, solved=False)) for _ in branches for p in questions],
    ]


def compare_windowed(
    windowed: Any, problems: Sequence[Mapping[str, Any]], size: Size
) -> tuple[str, tuple[int, int, float, int]]:
    """(what was compared, as `compare_decoding`), with a common text that is longer than the windows."""
    with windowed() as lm:
        windows = sorted({w for w in lm.runtime.layer_windows if w is not None})
        levels = tree_of_texts(lm.tokenizer.encode, problems, size, common=5)[:2]
        tokens = len(levels[0][0])
        name = f"{lm.info.name}, windows of {', '.join(map(str, windows))}, {tokens} tokens in common"
        return name, compare_decoding(lm.runtime, levels, 3, size.windowed_tokens)


def study(
    lm: Any, windowed: Any, problems: Sequence[Mapping[str, Any]], size: Size, cells: Cells, *,
    models: Sequence[Source], data: Sequence[Source], full: bool, suffix: int = SUFFIX,
) -> Evidence:  # fmt: skip
    """lm: a model in torch, fp32; windowed: the same of one with sliding windows, opened when it is asked for."""
    started, found = time.process_time(), Findings()
    error = cells.value("operator", operator_error)
    found.figures.append(
        Figure(subject="operator", quantity="largest difference from SDPA", value=error, unit="absolute", n=len(LEVELS),
               of="trees", note="a maximum, fp32")
    )  # fmt: skip
    found.must_be("exact: operator, largest difference from SDPA over the concatenation", error, OPERATOR, "absolute")
    levels = tree_of_texts(lm.tokenizer.encode, problems, size)
    shape = f"{lm.info.name}, tree {'-'.join(str(len(level)) for level in levels)}-{len(levels[-1]) * size.samples}"
    compared = cells.value("tree", lambda: compare_decoding(lm.runtime, levels, size.samples, size.tokens))
    add_exactness(found, shape, compared)
    prompt = "".join(problem(p, solved=True) for p in problems[:2]) + problem(problems[9], solved=False)
    differ = cells.value("samples", lambda: texts_that_differ(lm, prompt, SAMPLES, 12))
    found.figures.append(
        Figure(subject="samples of one prompt", quantity="texts that differ", value=differ, unit="texts", n=SAMPLES,
               of="texts", note="a count")
    )  # fmt: skip
    found.must_be("exact: texts that differ, samples of one prompt", differ, 0, "texts")
    add_reads(found, cells.value("reads", lambda: reads_of_steps(lm.runtime, size, suffix)))
    add_exactness(found, *cells.value("windows", lambda: compare_windowed(windowed, problems, size)))
    found.must_be(f"B=32, {SPEED}: measurement missing", 1, 0, "runs")  # add_speed puts times in its place
    return conclude(
        NAME,
        title="Hydragen: exact attention with shared prefixes",
        claim="Attention to a prefix that many sequences share is computed once for all of them: the same numbers, and "
        "a longer prefix costs hardly any throughput.",
        paper_figure="Up to 32x end-to-end throughput with CodeLlama-13B; a prefix of 16K instead of 1K costs less "
        "than 15 % of it, baselines lose over 90 % (abstract)",
        ours="; ".join(found.said) + f"; {NOT_TIMED}",
        figures=found.figures,
        checks=found.checks,
        samples=f"GSM8K problems as few-shot prompts, {size.tokens} tokens per sequence; reads of one step after "
        f"{suffix} own tokens",
        intervals="counts and maxima have none; times: of the median over rounds, alternatives in turn",
        models=models,
        data=data,
        full=full,
        seconds=time.process_time() - started,
        threads=1,
        not_shown=[
            "32x: the paper's is CodeLlama on eight GPUs with batches of up to 4,096.",
            "Tensor parallel, CUDA graphs, GPUs at all: sharing is off by default there.",
            "seconds are of the processor, not of the clock; --speed alone measures times.",
        ],
    )


def add_speed(options: argparse.Namespace) -> None:
    """Put times into the result, in place of what stood there."""
    if not options.even_if_busy:
        refuse_busy()
    cells = Cells(options.kept, {"threads": options.threads, "rounds": options.rounds})
    found = speed(options, cells)
    print(figure_table(found.figures))
    before = read_result(options.out / f"{NAME}.json")
    exact = before.ours.split(f"; {SPEED}")[0]
    added = before.model_copy(
        update={
            "figures": [f for f in before.figures if SPEED not in f.subject] + found.figures,
            "checks": [c for c in before.checks if SPEED not in c.statement] + found.checks,
            "ours": f"{exact}; {SPEED}, {options.threads} thread(s): " + "; ".join(found.said),
        }
    )
    print(f"added to {write_result(added, options.out)}")
    cells.forget()


def measure(options: argparse.Namespace) -> Evidence | None:
    if options.speed:
        add_speed(options)
        return None
    torch.set_num_threads(1)
    size = FULL if options.full else QUICK
    problems = list(islice(load_records("gsm8k"), 12 + size.branches + size.questions))
    cells = Cells(options.kept, {"full": options.full})
    with likely.load("smollm2", runtime="torch", threads=1, context=16384) as lm:
        evidence = study(
            lm, lambda: likely.load("gemma3", runtime="torch", threads=1, context=8192), problems, size, cells,
            models=[model_source("smollm2"), model_source("gemma3")], data=data_sources(DATA), full=options.full,
        )  # fmt: skip
    cells.forget()
    return evidence


def main() -> None:
    parser = arguments(full="more questions, longer answers", threads="of --speed", kept="hydragen-cells.jsonl")
    parser.add_argument("--speed", action="store_true", help="measure times and add them to the result")
    parser.add_argument("--rounds", type=int, default=5, help="of --speed")
    parser.add_argument("--even-if-busy", action="store_true", help="measure times while other programs run")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
