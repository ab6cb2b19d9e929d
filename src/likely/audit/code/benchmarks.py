"""Does generated code work?  HumanEval and MBPP problems, their tests run in the sandbox, and pass@k."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from likely.audit.code.lame_prompts import lame_prompt
from likely.audit.code.sandbox import Execution, Isolation, SandboxLimits, run_python
from likely.data.datasets import load_records
from likely.errors import DataError
from likely.metrics.bootstrap import mean_interval

Benchmark = Literal["humaneval", "mbpp"]
COMPLETE = "Complete this Python function. Answer with the whole function in one block of code.\n\n```python\n{}```"
SHOTS = (2, 3, 4)  # the MBPP tasks that its authors show before each task
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One task.

    prompt     what a model continues;  lame: the same without examples, None if it has none
    question, lame_question  the same for a chat model
    stop       strings after which a continuation holds nothing more of the answer
    reference  a continuation of the prompt that passes
    head       code before the continuation;  tests: code after it
    name       the function that a whole answer of a chat model must define
    """

    id: str
    prompt: str
    lame: str | None
    question: str
    lame_question: str | None
    stop: tuple[str, ...]
    reference: str
    head: str
    tests: str
    name: str

    def program(self, continuation: str) -> str:
        """The whole program of a continuation of the prompt."""
        return f"{self.head}{continuation}\n{self.tests}"

    def program_of_answer(self, answer: str) -> str:
        """The whole program of a chat model's answer: its first block of code, or all of it."""
        block = FENCE.search(answer)
        code = block[1] if block else answer
        if not re.search(rf"^\s*def {re.escape(self.name)}\b", code, re.MULTILINE):
            code = self.head + code
        imports = "\n".join(line for line in self.head.splitlines() if line.startswith(("import ", "from ")))
        return f"{imports}\n{code}\n{self.tests}"


def problems(
    benchmark: Benchmark, *, limit: int | None = None, shots: bool = True, data_dir: str | None = None
) -> list[Problem]:
    """The problems of a benchmark in order: HumanEval's first 120, or the 250 MBPP test problems of the data sets.

    shots  MBPP prompts show the three solved tasks of its paper (Austin et al. 2021, arXiv:2108.07732), with tests
    """
    if benchmark == "humaneval":
        found = [humaneval_problem(r) for r in load_records("humaneval", data_dir=data_dir)]
    elif benchmark == "mbpp":
        shown = {r["task_id"]: r for r in load_records("mbpp", "prompt", data_dir=data_dir)}
        solved = "".join(_mbpp_task(shown[i]) + f"{shown[i]['code']}\n[DONE]\n\n" for i in SHOTS)
        found = [mbpp_problem(r, solved if shots else "") for r in load_records("mbpp", "test", data_dir=data_dir)]
    else:
        raise ValueError(f"benchmark must be humaneval or mbpp, got {benchmark!r}")
    return found[:limit]


def humaneval_problem(record: dict[str, Any]) -> Problem:
    prompt, name = record["prompt"], record["entry_point"]
    lame = _lame(prompt, "docstring")
    return Problem(
        record["task_id"],
        prompt,
        lame,
        COMPLETE.format(prompt),
        None if lame is None else COMPLETE.format(lame),
        ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n@", "\nassert"),
        record["canonical_solution"],
        prompt,
        f"{record['test']}\ncheck({name})\n",
        name,
    )


def mbpp_problem(record: dict[str, Any], shots: str = "") -> Problem:
    """shots  solved tasks to show before this one"""
    prompt, tests = shots + _mbpp_task(record), "\n".join(record["test_list"])
    question = f"{record['text']} Your code should pass these tests:\n{tests}\nAnswer with one block of Python code."
    called = re.search(r"def\s+(\w+)\s*\(", record["code"])
    return Problem(
        f"MBPP/{record['task_id']}",
        prompt,
        _lame(prompt, "asserts"),
        question,
        _lame(question, "asserts"),
        ("[DONE]", "\nassert", "\n[BEGIN]"),
        record["code"],
        "",
        f"{record.get('test_setup_code') or ''}\n{tests}\n",
        called[1] if called else "",
    )


def _mbpp_task(record: dict[str, Any]) -> str:
    tests = "\n".join(record["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {record['text']} "
        f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    )


def _lame(prompt: str, style: Literal["docstring", "asserts"]) -> str | None:
    try:
        return lame_prompt(prompt, style)
    except DataError:
        return None


# --- execution --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProgramVerdict:
    """passed: every test ran to its end and held.  why: "" if so, else a line that says what happened."""

    passed: bool
    why: str
    execution: Execution


def check(program: str, limits: SandboxLimits | None = None) -> ProgramVerdict:
    """Run a program with its tests in the sandbox.

    Passed means that it reached its last line: one that exits before its tests has not passed.  (A program made to
    deceive could read that line in its own file; nothing that a model writes by chance does.)
    """
    proof = secrets.token_hex(16)
    found = run_python(f"{program}\nprint('\\n{proof}')\n", limits)
    if found.status == "ok" and found.stdout.rstrip().endswith(proof):
        return ProgramVerdict(True, "", found)
    if found.status == "ok":
        return ProgramVerdict(False, "ended before its tests", found)
    lines = found.stderr.strip().splitlines()
    return ProgramVerdict(False, lines[-1][:200] if found.status == "failed" and lines else found.status, found)


def check_all(
    programs: Sequence[str],
    limits: SandboxLimits | None = None,
    *,
    workers: int = 2,
    progress: Callable[[int], None] = lambda n: None,
) -> list[ProgramVerdict]:
    """`check` of each, `workers` at a time."""
    found = []
    with ThreadPoolExecutor(workers) as pool:
        for verdict in pool.map(lambda program: check(program, limits), programs):
            found.append(verdict)
            progress(1)
    return found


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples passes, estimated without bias from c of n that did.

    1 - C(n - c, k) / C(n, k).  Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


@dataclass(frozen=True)
class Solved:
    """The samples of one problem."""

    id: str
    texts: list[str]
    verdicts: list[ProgramVerdict]

    @property
    def passed(self) -> int:
        return sum(v.passed for v in self.verdicts)


@dataclass(frozen=True)
class Report:
    """What a model made of a benchmark; `contrasted`: problems whose texts were sampled with a contrast."""

    benchmark: str
    solved: list[Solved]
    contrasted: int = 0
    isolation: Isolation = "limits"

    def pass_at(self, k: int) -> tuple[float, float, float]:
        """(estimate, low, high): mean over problems with its 95 % interval (bootstrap over problems)."""
        each = [pass_at_k(len(s.verdicts), s.passed, k) for s in self.solved]
        low, high = mean_interval(each)
        return float(np.mean(each)), low, high


class SolveOptions(TypedDict, total=False):
    """How programs are sampled, as in `generate`; max_tokens is 384 here."""

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    max_tokens: int
    drafter: Any


def evaluate(
    model: Any,
    found: Sequence[Problem],
    *,
    benchmark: str = "",
    chat: bool = False,
    contrast: Callable[[str], Any] | None = None,
    limits: SandboxLimits | None = None,
    batch: int = 8,
    progress: Callable[[int], None] = lambda n: None,
    **options: Unpack[SolveOptions],
) -> Report:
    """Let a model (`generate`, `ask`) solve problems, and run what it wrote.  This executes code that nobody has read.

    chat      ask for the whole function, instead of letting the prompt be continued
    contrast  lame prompt -> a Contrast with it, used for the problems that have one
    """
    settings: dict[str, Any] = {"max_tokens": 384, **options}
    many = settings.get("n", 1) > 1
    solved: list[Solved] = []
    contrasted = 0
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        groups: list[tuple[Problem, list[Any]]] = []
        if contrast is None and not chat:  # one call for all; the prompts of a benchmark share their stop strings
            made = model.generate([p.prompt for p in part], stop=part[0].stop, **settings)
            groups = [(p, list(g) if many else [g]) for p, g in zip(part, made, strict=True)]
        else:
            for problem in part:
                own = dict(settings)
                lame = problem.lame_question if chat else problem.lame
                if contrast is not None and lame is not None:
                    own["contrast"] = contrast(lame)
                    contrasted += 1
                if chat:
                    sampled = [model.ask(problem.question, **{**own, "n": 1, "seed": own.get("seed", 0) + i})
                             for i in range(own.get("n", 1))]  # fmt: skip
                else:
                    one = model.generate(problem.prompt, stop=problem.stop, **own)
                    sampled = list(one) if many else [one]
                groups.append((problem, sampled))
        texts = [[g.text for g in sampled] for _, sampled in groups]
        programs = [
            p.program_of_answer(text) if chat else p.program(text)
            for (p, _), each in zip(groups, texts, strict=True)
            for text in each
        ]
        verdicts = iter(check_all(programs, limits))
        for (problem, _), each in zip(groups, texts, strict=True):
            solved.append(Solved(problem.id, each, [next(verdicts) for _ in each]))
            progress(1)
    held = {v.execution.isolation for s in solved for v in s.verdicts}
    weakest: Isolation = "limits" if "limits" in held else "partial" if "partial" in held else "full"
    return Report(benchmark, solved, contrasted, weakest)
