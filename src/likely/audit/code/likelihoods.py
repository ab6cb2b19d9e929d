"""What a compressed model makes of known programs: KL per token of reference solutions, and whether a correct program
is still likelier than the same with one fault.

For models too small to solve the tasks, which pass@k cannot tell apart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from likely.audit.code.benchmarks import Problem, check, problems
from likely.audit.code.mutants import Mutant, mutants, one_of_each_kind
from likely.compression.evaluate import Compared, Likelihoods, Rows, compare_rows, log_softmax
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.metrics.paired import McNemar, benjamini_hochberg, mcnemar_exact
from likely.runtimes.protocol import Runtime, Want, Work
from likely.scoring.likelihood import Item, joint_item
from likely.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    from likely.compression.study.grid import StudyRow


@dataclass(frozen=True)
class CodeTask:
    """A problem whose `reference` follows its prompt, and programs with one fault each."""

    problem: Problem
    mutants: tuple[Mutant, ...]


def code_tasks(
    *, limit: int = 50, seed: int = 0, run_mutants: bool = False, data_dir: str | None = None
) -> list[CodeTask]:
    """The first MBPP test problems whose solutions have a mutant: at most one of each kind.

    run_mutants  run them in the sandbox, and draw from those that fail their tests: some edits change nothing
    """
    found = []
    for problem in problems("mbpp", shots=False, data_dir=data_dir):
        edits = mutants(problem.reference)
        if run_mutants:
            chosen = one_of_each_kind(edits, seed, accept=partial(_fails, problem))
        else:
            chosen = one_of_each_kind(edits, seed)
        if chosen:
            found.append(CodeTask(problem, tuple(chosen)))
        if len(found) == limit:
            break
    if not found:
        raise DataError("no problem has a solution that can be mutated")
    return found


def _fails(problem: Problem, mutant: Mutant) -> bool:
    return not check(problem.program(mutant.code)).passed


@dataclass(frozen=True, eq=False)
class TaskReading:
    """One task as a model sees it.

    rows      (A, V) log-probabilities before each of the solution's tokens
    solution  log p(solution | prompt);  mutants  log p(mutant | prompt) of each, nats
    """

    rows: Rows
    solution: float
    mutants: tuple[float, ...]

    @property
    def discriminates(self) -> bool:
        """Whether the solution is likelier than every mutant."""
        return self.solution > max(self.mutants)


@dataclass(frozen=True, eq=False)
class CodeReport:
    """A candidate against the original on T tasks, one entry for each.

    compared         KL and log-probabilities of the solution's tokens
    original, candidate  (T,) whether each says that the solution is likelier than all its mutants
    """

    compared: list[Compared]
    original: NDArray[np.bool_]
    candidate: NDArray[np.bool_]

    @property
    def tokens(self) -> NDArray[np.int64]:
        """(T,) tokens of each solution."""
        return np.array([len(task.kl) for task in self.compared])

    def totals(self, field: str) -> NDArray[np.float64]:
        """(T,) sums over each solution's tokens of "kl", "reference" or "candidate" (log-probabilities)."""
        return np.array([getattr(task, field).sum() for task in self.compared])

    @property
    def mcnemar(self) -> McNemar:
        return mcnemar_exact(self.original.tolist(), self.candidate.tolist())

    def numbers(self) -> dict[str, float | None]:
        """As a study's table shows them: kl and nll per token, discrimination as a share of tasks."""
        count, test = int(self.tokens.sum()), self.mcnemar
        per_task = self.totals("kl") / self.tokens
        several = len(per_task) > 1
        return {
            "kl": float(self.totals("kl").sum() / count),
            "kl_se": float(per_task.std(ddof=1) / np.sqrt(len(per_task))) if several else None,
            "nll": float(-self.totals("candidate").sum() / count),
            "original_nll": float(-self.totals("reference").sum() / count),
            "discrimination": float(self.candidate.mean()),
            "original_discrimination": float(self.original.mean()),
            "lost": float(test.lost),
            "gained": float(test.gained),
            "p": test.p,
        }


def read_task(runtime: Runtime, tokenizer: Tokenizer, task: CodeTask) -> TaskReading:
    """Run the prompt with its solution; of each mutant only what follows the edit."""
    prompt = task.problem.prompt
    item, _ = joint_item(tokenizer, prompt, task.problem.reference)
    tokens, start = np.array(item.tokens, np.int64), item.start
    sequence = runtime.open()
    try:
        wanted = tuple(range(start - 1, len(tokens) - 1))
        [output] = runtime.forward([Work(sequence, tokens[:-1], want=Want(rows=wanted, logits=True))])
        assert output.logits is not None
        rows = log_softmax(output.logits)
        known = rows[np.arange(len(rows)), tokens[start:]].astype(np.float64)
        others = [joint_item(tokenizer, prompt, mutant.code)[0] for mutant in task.mutants]
        logprobs = tuple(_after_the_edit(runtime, sequence, item, known, rows, other) for other in others)
    finally:
        runtime.close(sequence)
    return TaskReading(rows, float(known.sum()), logprobs)


def _after_the_edit(runtime: Runtime, sequence: Any, item: Item, known: Any, rows: Rows, other: Item) -> float:
    """log p of another answer to the same prompt; the sequence holds prompt and solution but for its last token."""
    pairs = zip(item.tokens, other.tokens, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(item.tokens), len(other.tokens)))
    shared = min(shared, len(item.tokens) - 1)
    if shared < item.start or shared >= len(other.tokens):
        raise DataError("a mutant must differ from its solution within the solution, and be no beginning of it")
    total = float(known[: shared - item.start].sum() + rows[shared - item.start, other.tokens[shared]])
    rest = np.array(other.tokens[shared:], np.int64)
    if len(rest) > 1:
        branch = runtime.fork(sequence, shared)
        try:
            pairs_wanted = np.stack([np.arange(len(rest) - 1), rest[1:]], axis=1)
            want = Want(rows="none", pairs=pairs_wanted)
            [output] = runtime.forward([Work(branch, rest[:-1], want=want)])
            assert output.logprobs is not None
            total += float(output.logprobs.sum(dtype=np.float64))
        finally:
            runtime.close(branch)
    return total


@dataclass(eq=False)
class CodeEvaluation:
    """As an evaluation of a study: `CodeReport.numbers` on some tasks, the original's rows kept on disk."""

    tasks: Sequence[CodeTask]
    name: str = "code"
    _kept: tuple[Likelihoods, list[TaskReading], Any] | None = field(default=None, repr=False)

    def key(self, original: Likelihoods) -> dict[str, Any]:
        texts = [[t.problem.prompt, t.problem.reference, *(m.code for m in t.mutants)] for t in self.tasks]
        return {"code": fingerprint(texts)}

    def measure(self, original: Likelihoods, candidate: Likelihoods) -> dict[str, float | None]:
        return self.compare(original, candidate).numbers()

    def compare(self, original: Likelihoods, candidate: Likelihoods) -> CodeReport:
        if self._kept is None or self._kept[0] is not original:
            self.close()
            self._kept = original, *self._read(original)
        compared, ours = [], []
        for task, theirs in zip(self.tasks, self._kept[1], strict=True):
            reading = read_task(candidate.runtime, candidate.tokenizer, task)
            if reading.rows.shape != theirs.rows.shape:
                raise DataError("another tokenizer than the original's: likelihoods of tokens cannot be compared")
            item, _ = joint_item(candidate.tokenizer, task.problem.prompt, task.problem.reference)
            compared.append(compare_rows(theirs.rows, reading.rows, np.array(item.tokens[item.start :], np.int64)))
            ours.append(reading.discriminates)
        return CodeReport(compared, np.array([t.discriminates for t in self._kept[1]]), np.array(ours))

    def _read(self, original: Likelihoods) -> tuple[list[TaskReading], Any]:
        """Readings of the original, their rows in an unnamed file."""
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        readings, offset = [], 0
        for task in self.tasks:
            reading = read_task(original.runtime, original.tokenizer, task)
            shape = reading.rows.shape
            kept = np.memmap(file, np.float32, "r+" if offset else "w+", offset=offset, shape=shape)
            kept[:] = reading.rows
            offset += kept.nbytes
            readings.append(replace(reading, rows=kept))
        return readings, file

    def close(self) -> None:
        if self._kept is not None:
            file, self._kept = self._kept[2], None
            file.close()


def adjusted_p(rows: Sequence[StudyRow], evaluation: str = "code") -> list[float]:
    """Of each row of this evaluation, McNemar's p, adjusted over the methods of its model, calibration set and draw."""
    chosen = [row for row in rows if row.evaluation == evaluation]
    families: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(chosen):
        families.setdefault((row.model, row.calibration, row.draw), []).append(number)
    found = [1.0] * len(chosen)
    for numbers in families.values():
        values = benjamini_hochberg([float(chosen[i].numbers["p"] or 0.0) for i in numbers])
        for i, value in zip(numbers, values, strict=True):
            found[i] = float(value)
    return found
