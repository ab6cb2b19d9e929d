"""What drafters that copy cost: microseconds per proposal and observed token, bytes per remembered token.

The text is a stream of SQL questions and grade-school problems with their answers (tokens of SmolLM2), repeated in new
orders once it is used up.  lookup, copy and the suffix counts of one text hold it as the context of one request; the
suffix memory as earlier answers, beside the context of one question.  The official suffix trees (arctic_inference)
stand beside where they are installed.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import protocol

import likely
from likely.bench.timing import timed
from likely.data import load_records
from likely.decoding.accept import matched_walk
from likely.decoding.drafting.lookup import CopySource, PromptLookup
from likely.decoding.drafting.protocol import Draft, Drafter, DraftSource, SamplingContext
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.metrics.bootstrap import median_interval

Task = tuple[list[int], list[int]]  # prompt, answer
SIZES = (10_000, 100_000, 1_000_000)
BUDGET = 64
TASKS = 20  # per round


def tasks() -> list[Task]:
    with likely.load("smollm2") as lm:
        encode = lm.tokenizer.encode
        sql = [(r["question"], r["sql"]) for r in load_records("text-to-sql", "questions.jsonl.gz")]
        school = [(r["question"], r["answer"]) for r in load_records("gsm8k")]
        return [(encode(question + "\n"), encode(answer + "\n")) for question, answer in (*sql, *school)]


def stream(pool: Sequence[Task], seed: int) -> Iterator[Task]:
    """Without end; each pass in another order."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(pool, len(pool))


@dataclass
class Times:
    """Microseconds: per proposal; per token observed, read as a prompt, remembered when the request ends."""

    propose: list[float] = field(default_factory=list)
    observe: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)


class Subject(Protocol):
    def fill(self, task: Task) -> int: ...  # tokens remembered of it
    def run(self, task: Task, times: Times) -> None: ...


def noted(into: list[float], per: int, do: Callable[[], Any]) -> Any:
    result, seconds = timed(do)
    into.append(1e6 * seconds / max(per, 1))
    return result


def answer_it(answer: list[int], propose: Callable[[int], Draft], observe: Callable[[list[int]], Any], times: Times):
    """The rounds of a replay, each step timed."""
    done = 0
    while done < len(answer):
        most = min(BUDGET, len(answer) - done - 1)
        draft = noted(times.propose, 1, lambda most=most: propose(most))
        _, emitted = matched_walk(draft, lambda _, path, at=done: answer[at + len(path)])
        noted(times.observe, len(emitted), lambda emitted=emitted: observe(emitted))
        done += len(emitted)


class OneText:
    """A drafter that knows its own text alone: the whole stream is one."""

    def __init__(self, source: DraftSource):
        self.drafter: Drafter = source.begin([0], SamplingContext())

    def fill(self, task: Task) -> int:
        for part in task:
            self.drafter.observe(part)
        return len(task[0]) + len(task[1])

    def run(self, task: Task, times: Times) -> None:
        prompt, answer = task
        noted(times.read, len(prompt), lambda: self.drafter.observe(prompt))
        answer_it(answer, self.drafter.propose, self.drafter.observe, times)


class Memory:
    """A source that remembers answers: each task is a request."""

    def __init__(self, source: SuffixMemory):
        self.source = source

    def fill(self, task: Task) -> int:
        self.source.remember(task[1])
        return len(task[1])

    def run(self, task: Task, times: Times) -> None:
        prompt, answer = task
        drafter = noted(times.read, len(prompt), lambda: self.source.begin(prompt, SamplingContext()))
        answer_it(answer, drafter.propose, drafter.observe, times)
        noted(times.end, len(answer), drafter.end)


class Official:
    """arctic_inference's cache, in path mode; it takes each token into the shared tree when it is observed."""

    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self.cache, self.number = SuffixDecodingCache(max_tree_depth=64), 0

    def fill(self, task: Task) -> int:
        self.number += 1
        self.cache.start_request(self.number, np.zeros(1, np.int32))
        self.cache.add_active_response(self.number, np.array(task[1], np.int32))
        self.cache.stop_request(self.number)
        return len(task[1])

    def run(self, task: Task, times: Times) -> None:
        prompt, answer = (np.array(part, np.int32) for part in task)
        self.number += 1
        number, text = self.number, prompt
        noted(times.read, len(prompt), lambda: self.cache.start_request(number, prompt))

        def propose(budget: int) -> Draft:
            return Draft.chain(self.cache.speculate(number, text[-64:], max_spec_tokens=budget).token_ids)

        def observe(tokens: list[int]) -> None:
            nonlocal text
            new = np.array(tokens, np.int32)
            self.cache.add_active_response(number, new)
            text = np.concatenate([text, new])

        answer_it(answer.tolist(), propose, observe, times)
        noted(times.end, len(answer), lambda: self.cache.stop_request(number))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "lookup": lambda: OneText(PromptLookup()),
    "copy": lambda: OneText(CopySource()),
    "suffix, one text": lambda: OneText(SuffixMemory(scope="request")),
    "suffix, memory": lambda: Memory(SuffixMemory()),
    "suffix, memory, trees": lambda: Memory(SuffixMemory(tree=True)),
}


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(make: Callable[[], Subject], pool: Sequence[Task], size: int) -> tuple[Subject, float, float]:
    """(subject, bytes and microseconds per remembered token)."""
    before, started = resident_bytes(), time.perf_counter()
    subject, tokens, source = make(), 0, stream(pool, 0)
    while tokens < size:
        tokens += subject.fill(next(source))
    seconds = time.perf_counter() - started
    return subject, (resident_bytes() - before) / tokens, 1e6 * seconds / tokens


def summary(rounds: list[Times]) -> dict[str, Any]:
    """Medians over rounds of each round's mean, with intervals, and quantiles over everything."""
    found: dict[str, Any] = {}
    for name in ("propose", "observe", "read", "end"):
        each = [getattr(times, name) for times in rounds]
        if not each[0]:
            continue
        means, together = [float(np.mean(values)) for values in each], np.concatenate(each)
        found[f"{name}_us"] = float(np.median(means))
        found[f"{name}_us_interval"] = median_interval(means)
        found[f"{name}_us_median"], found[f"{name}_us_p99"] = (float(q) for q in np.quantile(together, [0.5, 0.99]))
    return found


def measure(size: int, rounds: int) -> dict[str, Any]:
    """All subjects at one size, in turns."""
    pool, subjects = tasks(), dict(SUBJECTS)
    if importlib.util.find_spec("arctic_inference"):
        subjects["official suffix trees"] = Official
    ready = {name: filled(make, pool, size) for name, make in subjects.items()}
    found: dict[str, list[Times]] = {name: [] for name in ready}
    source = stream(pool, 1)
    for number in range(1 + rounds):  # the first is not counted
        chosen = [next(source) for _ in range(TASKS)]
        for name, (subject, _, _) in ready.items():
            times = Times()
            for task in chosen:
                subject.run(task, times)
            if number:
                found[name].append(times)
    return {
        name: {"bytes_per_token": each_bytes, "fill_us_per_token": each_us, **summary(found[name])}
        for name, (_, each_bytes, each_us) in ready.items()
    }


def main() -> None:
    options = protocol.arguments(__doc__)
    pool = tasks()
    distinct = {"prompts": sum(len(p) for p, _ in pool), "answers": sum(len(a) for _, a in pool)}
    record: dict[str, Any] = {"budget": BUDGET, "rounds": options.rounds, "tokens_of_one_pass": distinct, "sizes": {}}
    for size in SIZES[:1] if options.quick else SIZES:
        # a process of its own: memory that an earlier size gave back would hide what this one takes
        with multiprocessing.get_context("spawn").Pool(1) as child:
            cells = child.apply(measure, (size, options.rounds))
        record["sizes"][str(size)] = cells
        for name, cell in cells.items():
            print(
                f"{size:,} tokens, {name}: propose {cell['propose_us']:.1f} us "
                f"(median {cell['propose_us_median']:.1f}, p99 {cell['propose_us_p99']:.0f}), "
                f"observe {cell['observe_us']:.1f} us, {cell['bytes_per_token']:.0f} bytes/token",
                flush=True,
            )
    protocol.write("drafting_cost", record, quick=options.quick)


if __name__ == "__main__":
    main()
