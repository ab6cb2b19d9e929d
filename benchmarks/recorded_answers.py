"""What drafts gain on answers that larger models, or people, have written: seconds of native, the text forced.

The drafters of three papers on the texts of their reproductions: CopySpec on self-correction and on second turns of
Qwen2.5, SuffixDecoding on SQL (a first pass, and the same requests once more), ADED on solutions of HumanEval with a
table of MBPP.  SmolLM2 reads each answer once token by token and once with drafts; prompts are read before the clock
runs.  What is kept depends on the text alone, what it costs on the model: a larger one gains more from a call that is
left out.

  python benchmarks/recorded_answers.py            28 answers of each kind, one thread
  python benchmarks/recorded_answers.py --quick    two of each; not written
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import protocol

import likely
from likely.data import load_records
from likely.decoding.accept import matched_walk
from likely.decoding.drafting.lookup import CopySource
from likely.decoding.drafting.protocol import NO_DRAFT, DraftSource, SamplingContext
from likely.decoding.drafting.replay import RecordedAnswer
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.decoding.drafting.trigram.drafter import TrigramMemory
from likely.metrics.bootstrap import bootstrap_ratio
from likely.runtimes.protocol import Runtime, Want, Work

sys.path.insert(0, str(Path(__file__).parents[1] / "reproductions"))
import copyspec
import suffix_decoding

ANSWERS = 28
BUDGET, TREE = 10, 24  # drafted tokens per call: of a copy, of a tree


@dataclass(frozen=True)
class Kind:
    """Recorded answers, a drafter for them, and how much it may draft; source() remembers from answer to answer."""

    name: str
    answers: Sequence[RecordedAnswer]
    source: Callable[[], DraftSource]
    budget: int
    passes: int = 1


@dataclass(frozen=True)
class Pass:
    """Seconds and calls of one answer."""

    seconds: float
    calls: int


def forced(runtime: Runtime, answer: RecordedAnswer, source: DraftSource | None, budget: int) -> Pass:
    """The answer through the runtime as in greedy decoding, its own tokens in place of the model's choices."""
    text, calls, done = list(answer.answer), 0, 0
    sequence = runtime.open()
    try:
        if len(answer.prompt) > 1:
            runtime.forward([Work(sequence, np.array(answer.prompt[:-1]), want=Want.NONE)])
        root = answer.prompt[-1]
        started = time.perf_counter()
        drafter = source.begin(list(answer.prompt), SamplingContext()) if source else None
        while done < len(text):
            most = min(budget, len(text) - done - 1)
            draft = drafter.propose(most).cut(most) if drafter and most else NO_DRAFT
            nodes = np.concatenate([[root], draft.tokens]).astype(np.int64)
            parents = np.concatenate([[-1], draft.parents + 1]).astype(np.int64)
            output = runtime.forward([Work(sequence, nodes, parents, want=Want.ALL)])[0]
            assert output.logits is not None
            output.logits.argmax(axis=1)  # what greedy decoding would look at
            kept, emitted = matched_walk(draft, lambda node, path, at=done: text[at + len(path)])  # type: ignore[misc]
            runtime.commit([(sequence, [0, *(node + 1 for node in kept)])])
            done, root, calls = done + len(emitted), emitted[-1], calls + 1
            if drafter:
                drafter.observe(emitted)
        if drafter:
            drafter.end()
        return Pass(time.perf_counter() - started, calls)
    finally:
        runtime.close(sequence)


def gains(runtime: Runtime, kind: Kind) -> list[dict[str, Any]]:
    """One line a pass over the answers: seconds without drafts over seconds with them, an interval over answers."""
    source, lines = kind.source(), []
    for number in range(1, kind.passes + 1):
        pairs = []
        for i, answer in enumerate(kind.answers):
            turns = [(None, 0), (source, kind.budget)]
            found = [forced(runtime, answer, *turn) for turn in (turns if i % 2 else turns[::-1])]
            pairs.append(found if i % 2 else found[::-1])
        plain, drafted = ([pair[k] for pair in pairs] for k in (0, 1))
        slow, fast = [p.seconds for p in plain], [p.seconds for p in drafted]
        low, high = bootstrap_ratio(slow, fast, resamples=2000)
        lines.append(
            {
                "answers": kind.name, "pass": number, "n": len(pairs), "faster": sum(slow) / sum(fast), "low": low,
                "high": high, "tokens_per_call": sum(p.calls for p in plain) / sum(p.calls for p in drafted),
            }
        )  # fmt: skip
    return lines


def kinds(lm: likely.Model, count: int) -> list[Kind]:
    """The recorded answers of the reproductions, `count` of each kind at equal distances."""

    def some(traces: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
        fits = [t for t in traces if len(t.prompt) + len(t.answer) < 2000]
        return list(fits[:: max(1, len(fits) // count)][:count])

    def render(messages: list[dict[str, str]]) -> list[int]:
        return lm.render(messages).tokens

    encode = lm.tokenizer.encode
    pairs, programs = (list(load_records(*file)) for file in copyspec.FILES)
    turns = copyspec.turns([row for row in pairs if row["model"] == "qwen2.5-7b"], render, encode)
    rounds = copyspec.corrections(programs, render, encode)
    found = [
        Kind(f"CopySpec, self-correction, round {i}", some([t for t in rounds if t.group.startswith(f"round {i}|")]),
             CopySource, BUDGET)
        for i in (1, 2, 3)
    ]  # fmt: skip
    for what in (copyspec.FIRST, copyspec.PLAIN, copyspec.REDUNDANT):
        chosen = [t for t in turns if t.group.split("|")[1] == what]
        found.append(Kind(f"CopySpec, Qwen2.5-7B, {what}", some(chosen), CopySource, BUDGET))
    sql = some(suffix_decoding.sql_traces(lm))
    found.append(Kind("SuffixDecoding, text-to-SQL", sql, SuffixMemory, suffix_decoding.MOST, passes=2))
    corpus = [encode(row["code"]) for split in ("prompt", "validation", "train", "test")
              for row in load_records("mbpp", split)]  # fmt: skip
    human = [RecordedAnswer(encode(r["prompt"]), encode(r["canonical_solution"])) for r in load_records("humaneval")]
    table = TrigramMemory.from_texts(corpus).table
    found.append(Kind("ADED, HumanEval", some(human), lambda: TrigramMemory(table), TREE))
    return found


def main() -> None:
    options = protocol.arguments(__doc__ or "")
    lines = []
    with likely.load("smollm2", runtime="native", threads=1) as lm:
        for kind in kinds(lm, 2 if options.quick else ANSWERS):
            for line in gains(lm.runtime, kind):
                print(
                    f"{line['answers']}, pass {line['pass']}: {line['faster']:.2f}x [{line['low']:.2f}, "
                    f"{line['high']:.2f}], {line['tokens_per_call']:.2f} tokens per call",
                    flush=True,
                )
                lines.append(line)
    record = {
        "model": "smollm2, native, 1 thread", "figures": lines,
        "interval": "95 %, percentile bootstrap over answers, 2000 resamples",
    }  # fmt: skip
    protocol.write("recorded_answers", record, quick=options.quick)


if __name__ == "__main__":
    main()
