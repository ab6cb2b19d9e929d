"""The prompts of the speculation benchmarks: copy-heavy ones, and ordinary ones as controls."""

from __future__ import annotations

from itertools import islice

from likely.bench.speculation import Task
from likely.data import load_records

COPY_HEAVY = ("second turns", "self-correction", "text-to-SQL")
FIX = "Go over the code again and look for faults; change nothing if there are none."
FINAL = "Now give the code that you believe to be right. Keep the first version if it is."


def tasks(count: int) -> list[Task]:
    """`count` prompts of each kind."""
    return [
        Task("second turns", second_turns(count)),
        Task("self-correction", self_corrections(count)),
        Task("text-to-SQL", text_to_sql(count)),
        *(Task(name, spec_bench(category, count)) for name, category in SPEC_BENCH.items()),
        Task("code", code(count)),
    ]


SPEC_BENCH = {
    "summaries": "summarization",
    "translation": "translation",
    "arithmetic": "math_reasoning",
    "questions": "qa",
}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def as_text(prompt: str | list[dict[str, str]]) -> str:
    """A conversation for a model without a chat template."""
    if isinstance(prompt, str):
        return prompt
    turns = "".join(f"{'Question' if m['role'] == 'user' else 'Answer'}: {m['content']}\n\n" for m in prompt)
    return f"{turns}Answer:"


def second_turns(count: int) -> list[list[dict[str, str]]]:
    rows = [
        row
        for row in load_records("mt-redundant", "answers.jsonl.gz")
        if row["set"] == "mt-redundant" and row["model"] == "qwen2.5-7b" and len(row["answers"][0]) < 1200
    ]
    step = max(1, len(rows) // count)
    return [[user(r["turns"][0]), assistant(r["answers"][0]), user(r["turns"][1])] for r in rows[::step][:count]]


def self_corrections(count: int) -> list[list[dict[str, str]]]:
    found = []
    for row in islice(load_records("gsm8k-selfcorrect"), count):
        first, critique, _ = (text.replace("<|im_end|>", "").strip() for text in row["rounds"])
        question = f"Write a Python program in a code block that solves this and prints the answer. {row['question']}"
        found.append([user(question), assistant(first), user(FIX), assistant(critique), user(FINAL)])
    return found


def text_to_sql(count: int) -> list[str]:
    """Solved questions on one schema, then one more question: what an application sends again and again."""
    rows = [row for row in load_records("text-to-sql", "questions.jsonl.gz") if row["kind"] == "gen"]
    by_db: dict[str, list[dict]] = {}
    for row in rows:
        by_db.setdefault(row["db"], []).append(row)
    prompts = []
    for group in [rows for rows in by_db.values() if len(rows) > 5][:count]:
        shown, asked = group[:5], group[5]
        solved = "".join(f"Question: {r['question']}\nSQL: {r['sql']}\n\n" for r in shown)
        prompts.append(f"{solved}Question: {asked['question']}\nSQL:")
    return prompts


def spec_bench(category: str, count: int) -> list[list[dict[str, str]]]:
    rows = [row for row in load_records("spec-bench") if row["category"] == category]
    return [[user(row["turns"][0])] for row in rows[:count]]


def code(count: int) -> list[str]:
    return [row["prompt"] for row in islice(load_records("humaneval"), count)]
