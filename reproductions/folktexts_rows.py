"""Every style's risk of a row in one call, so that a model reads the row once; parts are kept and taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from likely.io.jsonl import Line, Results, read_lines, unfinished
from likely.prompting.risk.prompts import RiskStyle, answer_texts, choice_orders, row_prompt
from likely.prompting.risk.report import order_bias
from likely.prompting.risk.task import TableTask
from likely.prompting.risk.text import TableRow
from likely.scoring.digits import DIGITS, expected_number
from likely.scoring.letters import Shares, shares
from likely.scoring.scored import Scored

COMPARED: tuple[RiskStyle, ...] = ("mc", "word")
CHUNK = 20  # rows


def asked_together(lm: Any, task: TableTask, rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Per row: "mc" and "word" in both orders with their masses, and "numeric" (mean over the first digit).

    The same numbers as `RiskScorer` gives for one style at a time, for less than half of the tokens.
    """
    both = choice_orders(len(task.choices))
    pairs: list[tuple[str, str]] = []
    for row in rows:
        for style in COMPARED:
            for order in both:
                pairs += _pairs(row_prompt(row, task, style=style, order=order).text, answer_texts(task, style, order))
        pairs += _pairs(row_prompt(row, task, style="numeric").text, [list(DIGITS)])
    scored = iter(lm.score_pairs(pairs))
    made = []
    for _ in rows:
        record: dict[str, Any] = {}
        for style in COMPARED:
            per_order = [_shares(scored, answer_texts(task, style, order)) for order in both]
            record[style] = [found.probs.tolist() for found in per_order]
            record[f"{style}_mass"] = [found.mass for found in per_order]
        record["numeric"] = expected_number({digit: next(scored).sequence_logprob for digit in DIGITS})
        made.append(record)
    return made


def asked_with_examples(
    lm: Any, task: TableTask, rows: Sequence[TableRow], shots: Sequence[TableRow]
) -> list[dict[str, Any]]:
    """Per row: "few", words in one order after worked rows."""
    order = choice_orders(len(task.choices))[0]
    forms = answer_texts(task, "word", order)
    pairs = []
    for row in rows:
        pairs += _pairs(row_prompt(row, task, style="word", order=order, examples=shots).text, forms)
    scored = iter(lm.score_pairs(pairs))
    return [{"few": _shares(scored, forms).probs.tolist()} for _ in rows]


def _shares(scored: Iterator[Scored], forms: Sequence[Sequence[str]]) -> Shares:
    return shares([[next(scored).sequence_logprob for _ in form] for form in forms])


def _pairs(text: str, forms: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    return [(text, answer) for form in forms for answer in form]


def kept_answers(
    ask: Callable[[list[TableRow]], list[dict[str, Any]]], lines: Sequence[Line], *, kept: Path, header: dict[str, Any],
    report: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """What `ask` says of all lines, written to `kept` as it comes; what stands there already is not asked again.

    Each record also holds the seconds that its share of a call took.
    """
    with Results(kept, header) as results:
        todo = unfinished(lines, results, "rows", size=CHUNK)
        for number, chunk in enumerate(todo, 1):
            started = time.perf_counter()
            made = ask([line.record for line in chunk])
            each = (time.perf_counter() - started) / len(chunk)
            results.write(
                {"line": line.number, "input": line.digest, **record, "seconds": each}
                for line, record in zip(chunk, made, strict=True)
                if not results.is_done(line, "rows")
            )
            report(f"{kept.stem}: {number} of {len(todo)} parts, {each:.2f} s a row")
    wanted = {line.number for line in lines}
    found = [line.record for line in read_lines(kept) if line.record.get("line") in wanted]
    return sorted(found, key=lambda record: record["line"])


def risks_of(records: Sequence[dict[str, Any]], task: TableTask) -> dict[str, Any]:
    """Style -> (N,) risks; "mc first", "mc second": in one order; "bias": what the order does, per compared style."""
    both, values = choice_orders(len(task.choices)), [choice.value for choice in task.choices]
    found: dict[str, Any] = {"bias": {}}
    for style in COMPARED:
        probs = np.array([record[style] for record in records])
        found[style] = (probs @ np.array(values)).mean(axis=1)
        found["bias"][style] = order_bias(probs, both, values)
    letters = np.array([record["mc"] for record in records]) @ np.array(values)
    found["mc first"], found["mc second"] = letters[:, 0], letters[:, 1]
    found["numeric"] = np.array([record["numeric"] for record in records])
    return found
