"""What a new user reads first: fifty ordinary questions under the settings that `ask` could have by default.

    python benchmarks/first_minute.py

Per model, runtime and settings: right answers (of the thirty questions that have one), texts that run in circles, that
are not English, that are empty, that are cut at 256 tokens, and the median length.  Every second question chooses the
settings, the others check the choice.  `--texts FILE` keeps the answers, to be read by eye.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import protocol

import likely
from likely.lm.results import Answer
from likely.metrics.intervals import wilson

QUESTIONS = Path(__file__).with_suffix(".jsonl")
RUNTIMES = (("native", "int8"), ("native", "bfloat16"), ("llamacpp", None))  # the first under all settings
SHORT = "Answer in one short sentence."
SYSTEMS = {
    "none": None,
    "helpful": "You are a helpful assistant.",
    "short": SHORT,
    "english": "You are a helpful assistant. Answer in English, briefly and correctly.",
    "concise": "You are a helpful assistant. Give a short, correct answer in English.",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, frequency .6": {"temperature": 0.0, "frequency_penalty": 0.6},
    "greedy, repetition 1.1": {"temperature": 0.0, "repetition_penalty": 1.1},
    "model card: T .2, top-p .9": {"temperature": 0.2, "top_p": 0.9},
    "T .8, top-k 40, top-p .95": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    "T 1": {"temperature": 1.0},
}
FOREIGN, ENGLISH = (
    frozenset(words.split())
    for words in (
        "le la les de des et un une est que el los las y en der die das und ist du il",
        "the a an of and to is in it that for with on as are you i be this was your can",
    )
)


def circles(text: str) -> bool:
    """The same six words stand four times or more."""
    words = text.split()
    counts = Counter(tuple(words[i : i + 6]) for i in range(len(words) - 5))
    return bool(counts) and max(counts.values()) >= 4


def foreign(text: str) -> bool:
    """More function words of other languages than of English."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return sum(w in FOREIGN for w in words) > max(2, sum(w in ENGLISH for w in words))


def judged(rows: Sequence[dict[str, Any]], answers: Sequence[Answer]) -> dict[str, Any]:
    """What the answers are like, counted."""
    keyed = [(row["right"], answer.text) for row, answer in zip(rows, answers, strict=True) if "right" in row]
    right = sum(bool(re.search(pattern, text, re.IGNORECASE)) for pattern, text in keyed)
    lengths = sorted(len(answer.token_ids) for answer in answers)
    return {
        "questions": len(rows),
        "right": right,
        "of": len(keyed),
        "right_interval": list(wilson(right, len(keyed))),
        "circles": sum(circles(answer.text) for answer in answers),
        "foreign": sum(foreign(answer.text) for answer in answers),
        "empty": sum(not answer.text.strip() for answer in answers),
        "cut": sum(answer.finish_reason == "length" for answer in answers),
        "median_tokens": lengths[len(lengths) // 2],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures are not kept")
    parser.add_argument(
        "--models", default="smollm2,gemma3", help="without smollm2 the results' file is named after them"
    )
    parser.add_argument("--threads", type=int, help="texts of native are the same with any number")
    parser.add_argument("--texts", type=Path, help="keep the answers in this file")
    options = parser.parse_args(argv)
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    if options.quick:
        rows = rows[:4]
    found, texts = [], []
    models = options.models.split(",")
    for model in models:
        for runtime, dtype in RUNTIMES[: 1 if options.quick else None]:
            with likely.load(model, runtime=runtime, dtype=dtype, threads=options.threads) as lm:
                lm.own_settings, lm.info = {}, replace(lm.info, system=None)  # what is to be chosen here
                whole = dtype == "int8" and not options.quick
                systems = SYSTEMS if lm.info.template else ["none"]  # a base model has no place for one
                for settings, system in product(SETTINGS if whole else ["greedy"], systems):
                    answers = list(
                        lm.ask_each(
                            [row["question"] for row in rows],
                            system=SYSTEMS[system], max_tokens=256, stop_repetition=False, **SETTINGS[settings],
                        )
                    )  # fmt: skip
                    name = {"model": model, "runtime": runtime, "dtype": dtype, "system": system, "settings": settings}
                    halves = {half: judged(rows[k::2], answers[k::2]) for k, half in enumerate(("choose", "check"))}
                    found.append({**name, "all": judged(rows, answers), **halves})
                    texts += [
                        {**name, "question": row["question"], "text": answer.text, "finish": answer.finish_reason}
                        for row, answer in zip(rows, answers, strict=True)
                    ]
                    print(json.dumps({**name, **found[-1]["all"]}), file=sys.stderr, flush=True)
    if options.texts:
        options.texts.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))
    file = "first_minute" if "smollm2" in models else f"first_minute_{'_'.join(models)}"
    protocol.write(file, {"systems": SYSTEMS, "settings": SETTINGS, "rows": found}, quick=options.quick)


if __name__ == "__main__":
    main()
