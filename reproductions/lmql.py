"""LMQL: what do holes, masks and early stops save over chunk-wise generation, at equal accuracy?

Three programs, each as a query and in the way of the paper's baseline: generate a chunk of 30 tokens, look for what one
wants with a regular expression, cut there, and send the whole prompt again.  Greedy, SmolLM2-135M-Instruct; both sides
are counted by one meter.  The tasks are made as long as the paper's, whose baseline makes 8, 7 and 5 calls of the
decoder.

  odd one out  one of four words does not belong: a sentence about each, then the probability of the four
  arithmetic   GSM8K problems of five steps and more: the model writes <<expression=, a calculator writes the value
  look-ups     questions of four steps over a small dictionary, in the manner of ReAct

  python reproductions/lmql.py          12 items each
  python reproductions/lmql.py --full   50, 50 and 19 items
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from study import arguments, conclude, data_sources, model_source, ratio_figure, run_script, run_study, share_figure

import likely
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.metrics.intervals import wilson
from likely.queries import ActionError, Lookup, QueryCost, calculate, query
from likely.queries.session import QuerySettings, Session
from likely.queries.text import Segment

FILES = (("gsm8k", "test.jsonl.gz"),)
CHUNK = 30  # tokens per call of the baseline, as in the paper
SENTENCE = 3 * CHUNK  # most tokens of free text
MOST = 10  # calls of the baseline per item
METRICS = {"model queries": "model_queries", "decoder calls": "decoder_calls", "billable tokens": "billable_tokens"}

# --- odd one out ------------------------------------------------------------------------------------------------------

KINDS = {
    "a piece of clothing": ("skirt", "dress", "jacket", "shirt", "coat", "scarf", "glove", "sock"),
    "a fruit": ("apple", "pear", "plum", "cherry", "grape", "lemon", "peach", "melon"),
    "an animal": ("horse", "cow", "sheep", "goat", "dog", "cat", "rabbit", "fox"),
    "a tool": ("hammer", "saw", "drill", "wrench", "pliers", "chisel", "shovel", "rake"),
    "a piece of furniture": ("table", "chair", "sofa", "bed", "desk", "shelf", "bench", "stool"),
    "an instrument": ("violin", "piano", "flute", "drum", "guitar", "trumpet", "harp", "cello"),
}
ODD = (
    "Pick the odd word out: oak, lily, birch, maple\n"
    "Reasoning: If somebody asks what oak is, the answer is that oak is a tree. If somebody asks what lily is, the "
    "answer is that lily is a flower. If somebody asks what birch is, the answer is that birch is a tree. If somebody "
    "asks what maple is, the answer is that maple is a tree.\nThe odd one is lily\n\n"
    "Pick the odd word out: bus, tram, train, river\n"
    "Reasoning: If somebody asks what bus is, the answer is that bus is a vehicle. If somebody asks what tram is, the "
    "answer is that tram is a vehicle. If somebody asks what train is, the answer is that train is a vehicle. If "
    "somebody asks what river is, the answer is that river is a water.\nThe odd one is river\n\n"
    "Pick the odd word out: {words}\nReasoning:"
)
THEN = "\nThe odd one is"
ODD_ONE = query(
    """
def odd_one(prompt, words):
    "{prompt}[REASONING]" where STOPS_BEFORE(REASONING, "\\n")
    "\\nThe odd one is[WORD]" distribution WORD in words
    return WORD
"""
)


def odd_items(n: int) -> list[tuple[str, str]]:
    """(prompt, the word that does not belong)"""
    rng, kinds, items = np.random.default_rng(0), list(KINDS), []
    for _ in range(n):
        one, other = (KINDS[kinds[i]] for i in rng.choice(len(kinds), 2, replace=False))
        odd = str(rng.choice(other))
        words = [*(str(w) for w in rng.choice(one, 3, replace=False)), odd]
        items.append((ODD.format(words=", ".join(rng.permutation(words))), f" {odd}"))
    return items


def words_of(prompt: str) -> list[str]:
    """The words to choose from, as they follow THEN."""
    last = prompt.rsplit("odd word out: ", 1)[1]
    return [f" {word}" for word in last.split("\n")[0].split(", ")]


def odd_by_chunks(session: Session, prompt: str) -> str:
    text, words = "", words_of(prompt)
    for _ in range(SENTENCE // CHUNK):
        text += chunk(session, prompt + text)
        if "\n" in text:
            break
    whole = prompt + text.split("\n")[0] + THEN
    scores = session.score([Segment(whole, False)], words)
    return words[int(np.argmax([sum(s.logprobs) for s in scores]))]


# --- arithmetic -------------------------------------------------------------------------------------------------------

SOLVE = (
    "Q: A farm has 6 barns with 4 cows each. Every cow gives 20 litres of milk a day, sold for 2 dollars a litre. Feed "
    "costs 3 dollars a cow. What is the profit of a day?\n"
    "A: The farm has <<6*4=24>>24 cows. They give <<24*20=480>>480 litres. The milk is sold for <<480*2=960>>960 "
    "dollars. The feed costs <<24*3=72>>72 dollars. The profit is <<960-72=888>>888 dollars. The answer is 888.\n\n"
    "Q: Tom has 100 dollars. He buys 3 books for 12 dollars each and 4 pens for 2 dollars each. He gives half of the "
    "rest to his 2 sisters in equal parts. How much does each sister get?\n"
    "A: The books cost <<3*12=36>>36 dollars. The pens cost <<4*2=8>>8 dollars. Together that is <<36+8=44>>44 "
    "dollars. The rest is <<100-44=56>>56 dollars. Half of it is <<56/2=28>>28 dollars. Each sister gets "
    "<<28/2=14>>14 dollars. The answer is 14.\n\n"
    "Q: A train has 5 cars with 40 seats each. Three quarters of the seats are taken. Half of the passengers pay 10 "
    "dollars, the others 6 dollars. How much do they pay in all?\n"
    "A: The train has <<5*40=200>>200 seats. There are <<200*3/4=150>>150 passengers. Half of them are "
    "<<150/2=75>>75 passengers. They pay <<75*10=750>>750 dollars. The others pay <<75*6=450>>450 dollars. Together "
    "that is <<750+450=1200>>1200 dollars. The answer is 1200.\n\n"
    "Q: {question}\nA:"
)
STEPS = 5  # at least so many expressions stand in the reference solution
ARITHMETIC = query(
    r"""
def solve(prompt, tool):
    "{prompt}"
    for step in range(8):
        "[TEXT]" where STOPS_AT(TEXT, "<<") and STOPS_BEFORE(TEXT, "The answer is") and STOPS_BEFORE(TEXT, "\n")
        if not TEXT.endswith("<<"):
            break
        "[EXPRESSION]" where REGEX(EXPRESSION, r"[0-9][0-9.+*/() -]{0,30}=")
        "{tool(EXPRESSION[:-1])}>>"
    "The answer is [RESULT: int]" where len(RESULT) < 9
    return RESULT
"""
)


def tool(expression: str) -> str:
    try:
        return f"{calculate(expression):g}"
    except ActionError:
        return "?"


def arithmetic_items(n: int) -> list[tuple[str, int]]:
    rows = [r for r in load_records("gsm8k", "test") if r["answer"].count("<<") >= STEPS]
    chosen = np.random.default_rng(1).permutation(len(rows))[:n]
    return [
        (SOLVE.format(question=rows[i]["question"]), int(rows[i]["answer"].split("####")[1].replace(",", "")))
        for i in chosen
    ]


def solve_by_chunks(session: Session, prompt: str) -> int | None:
    text, done, tried = "", 0, 0  # done: up to where expressions were replaced; tried: chunks since
    for _ in range(MOST):
        if tried == SENTENCE // CHUNK:
            break
        text, tried = text + chunk(session, prompt + text), tried + 1
        found = re.compile(r"<<([0-9][0-9.+*/() -]{0,30})=").search(text, done)
        end = text.find("\n", done)
        if found and (end < 0 or found.start() < end):
            text = f"{text[: found.end()]}{tool(found[1])}>>"
            done, tried = len(text), 0
            continue
        answer = re.compile(r"The answer is (-?[0-9]+)[^0-9]").search(text)
        if answer:
            return int(answer[1])
        if end >= 0:
            break
    last = re.search(r"The answer is (-?[0-9]+)", text)
    return int(last[1]) if last else None


# --- look-ups ---------------------------------------------------------------------------------------------------------

COUNTRIES = {
    "France": ("Paris", "French"), "Spain": ("Madrid", "Spanish"), "Italy": ("Rome", "Italian"),
    "Germany": ("Berlin", "German"), "Portugal": ("Lisbon", "Portuguese"), "Poland": ("Warsaw", "Polish"),
    "Greece": ("Athens", "Greek"), "Sweden": ("Stockholm", "Swedish"), "Norway": ("Oslo", "Norwegian"),
    "Denmark": ("Copenhagen", "Danish"), "Finland": ("Helsinki", "Finnish"), "Hungary": ("Budapest", "Hungarian"),
    "Romania": ("Bucharest", "Romanian"), "Bulgaria": ("Sofia", "Bulgarian"), "Turkey": ("Ankara", "Turkish"),
    "Russia": ("Moscow", "Russian"), "Ukraine": ("Kyiv", "Ukrainian"), "Japan": ("Tokyo", "Japanese"),
    "Thailand": ("Bangkok", "Thai"), "Vietnam": ("Hanoi", "Vietnamese"),
}  # fmt: skip
ENTRIES = {
    c: f"{c} is a country. Its capital is {city} and its language is {word}." for c, (city, word) in COUNTRIES.items()
}
ENTRIES |= {city: f"{city} is the capital of {country}." for country, (city, _) in COUNTRIES.items()}
FIRMS = (
    "Alden", "Borvik", "Castell", "Dunmore", "Elbrook", "Fenwick", "Garland", "Holmgren", "Ironside", "Jarrow",
    "Kestrel", "Lindqvist", "Marlow", "Northgate", "Oakham", "Pemberton", "Quarry", "Redwood", "Stanton", "Thornton",
)  # fmt: skip
PEOPLE = (
    "Ada", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Irene", "Jonas", "Karin", "Louis", "Maria",
    "Nora", "Oscar", "Paula", "Robert", "Sofie", "Thomas", "Vera",
)  # fmt: skip
PLACES = dict(zip(PEOPLE, zip(FIRMS, COUNTRIES, strict=True), strict=True))
ENTRIES |= {firm: f"{firm} is a company. It has its seat in {COUNTRIES[c][0]}." for firm, c in PLACES.values()}
ENTRIES |= {person: f"{person} is an engineer. {person} works for {firm}." for person, (firm, _) in PLACES.items()}
ASKED = "Which language is spoken in the country where the company of {person} has its seat?"
SHOWN = "Ada"
REACT = (
    f"Question: {ASKED.format(person=SHOWN)}\n"
    + "".join(
        f"Look up: {key}\nFound: {ENTRIES[key]}\n"
        for key in (SHOWN, PLACES[SHOWN][0], COUNTRIES[PLACES[SHOWN][1]][0], PLACES[SHOWN][1])
    )
    + f"Answer: {COUNTRIES[PLACES[SHOWN][1]][1]}\n\nQuestion: {{question}}\n"
)
LOOKUPS = query(
    r"""
def react(prompt, find, keys):
    "{prompt}"
    for step in range(6):
        "[ACTION]" where ACTION in ["Look up:", "Answer:"]
        if ACTION == "Answer:":
            break
        "[KEY]" where KEY in keys
        "\nFound: {find(KEY)}\n"
    else:
        "Answer:"
    "[ANSWER]" where STOPS_BEFORE(ANSWER, "\n") and len(TOKENS(ANSWER)) < 12
    return ANSWER.strip().strip(".")
"""
)
FIND = Lookup(ENTRIES)


def lookup_items(n: int) -> list[tuple[str, str]]:
    """(prompt, right answer); no more than there are people beside the example."""
    rest = [person for person in PEOPLE if person != SHOWN]
    chosen = np.random.default_rng(2).permutation(len(rest))[:n]
    return [(REACT.format(question=ASKED.format(person=rest[i])), COUNTRIES[PLACES[rest[i]][1]][1]) for i in chosen]


def react_by_chunks(session: Session, prompt: str) -> str | None:
    text, done = "", 0
    for _ in range(MOST):
        text += chunk(session, prompt + text)
        answer = re.compile(r"Answer: ?([^\n]*)\n").search(text, done)
        found = re.compile(r"Look up: ?([^\n]*)\n").search(text, done)
        if found and (not answer or found.start() < answer.start()):
            text = f"{text[: found.end()]}Found: {FIND(found[1])}\n"
            done = len(text)
        elif answer:
            return answer[1].strip().strip(".")
    last = re.compile(r"Answer: ?([^\n]*)").search(text, done)
    return last[1].strip().strip(".") if last else None


# --- both ways, counted alike -----------------------------------------------------------------------------------------


def chunk(session: Session, text: str) -> str:
    """The baseline's only verb: the next 30 tokens of a text that is sent whole."""
    (decoded,) = session.decode(session.tokens([Segment(text, False)]), max_tokens=CHUNK)
    return decoded.text + ("\n" if decoded.reason == "stop" else "")  # the end of the text ends its line, too


@dataclass(frozen=True)
class Task:
    """items: (prompt, right answer);  ask: the query;  by_chunks: the baseline;  saved: share of calls to be saved"""

    name: str
    items: Sequence[tuple[str, Any]]
    ask: Callable[[Any, str], Any]
    by_chunks: Callable[[Session, str], Any]
    saved: float


@dataclass(frozen=True)
class Side:
    costs: list[QueryCost]
    right: list[bool]

    def of(self, metric: str) -> list[int]:
        return [getattr(c, metric) for c in self.costs]


def tasks(full: bool) -> list[Task]:
    a, b, c = (50, 50, 19) if full else (12, 12, 12)
    keys = [f" {k}" for k in ENTRIES]
    return [
        Task(
            "odd one out", odd_items(a), lambda lm, p: ODD_ONE(lm, p, words_of(p), max_tokens=SENTENCE), odd_by_chunks,
            0.25,
        ),
        Task(
            "arithmetic", arithmetic_items(b), lambda lm, p: ARITHMETIC(lm, p, tool, max_tokens=SENTENCE),
            solve_by_chunks, 0.75,
        ),
        Task(
            "look-ups", lookup_items(c), lambda lm, p: LOOKUPS(lm, p, FIND, keys, max_tokens=SENTENCE), react_by_chunks,
            0.75,
        ),
    ]  # fmt: skip


def both_sides(lm: Any, task: Task) -> tuple[Side, Side]:
    """(queries, baseline)"""
    ours, theirs = Side([], []), Side([], [])
    for prompt, answer in task.items:
        result = task.ask(lm, prompt)
        ours.costs.append(result.cost)
        ours.right.append(result.value == answer)
        session = Session(lm, QuerySettings(keep=False, max_tokens=CHUNK))
        theirs.right.append(task.by_chunks(session, prompt) == answer)
        theirs.costs.append(session.meter.total)
    return ours, theirs


def figures_of(task: str, ours: Side, theirs: Side) -> list[Figure]:
    figures = []
    n = len(ours.right)
    ones = [1] * n
    for name, side in ((f"{task}: chunks", theirs), (f"{task}: query", ours)):
        figures.append(share_figure(name, "accuracy", sum(side.right), n, unit="share of items", of="items"))
        for metric, field in METRICS.items():
            figures.append(ratio(name, metric, side.of(field), ones, f"{metric.split()[1]} per item"))
        figures.append(ratio(name, "computed tokens", side.of("forward_tokens"), ones, "tokens per item"))
    for metric, field in METRICS.items():
        figures.append(ratio(f"{task}: query over chunks", metric, ours.of(field), theirs.of(field), "ratio"))
    return figures


def ratio(subject: str, quantity: str, top: Sequence[int], bottom: Sequence[int], unit: str) -> Figure:
    return ratio_figure(subject, quantity, top, bottom, unit=unit, of="items")


def checks_of(task: Task, ours: Side, theirs: Side) -> list[Check]:
    def saved(field: str) -> float:
        return sum(ours.of(field)) / sum(theirs.of(field))

    low, _ = wilson(sum(theirs.right), len(theirs.right))
    return [
        Check(
            statement=f"{task.name}: decoder calls, query over chunks", value=saved("decoder_calls"),
            bound=1 - task.saved, unit="ratio",
        ),
        Check(
            statement=f"{task.name}: billable tokens, query over chunks", value=saved("billable_tokens"), bound=0.75,
            unit="ratio",
        ),
        Check(
            statement=f"{task.name}: accuracy of the query below the lower end of the baseline's interval",
            value=low - sum(ours.right) / len(ours.right), bound=0.0, unit="difference",
        ),
    ]  # fmt: skip


def study(
    lm: Any, todo: Sequence[Task], *, full: bool, models: list[Source], data: list[Source],
    report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    figures: list[Figure] = []
    checks: list[Check] = []
    said = []
    for task in todo:
        ours, theirs = both_sides(lm, task)
        figures += figures_of(task.name, ours, theirs)
        checks += checks_of(task, ours, theirs)
        less = {m: 1 - sum(ours.of(f)) / sum(theirs.of(f)) for m, f in METRICS.items()}
        said.append(
            f"{task.name}: {less['model queries']:.0%} fewer model queries, {less['decoder calls']:.0%} fewer decoder "
            f"calls, {less['billable tokens']:.0%} fewer billable tokens, {sum(ours.right)} against "
            f"{sum(theirs.right)} of {len(ours.right)} right"
        )
        report(said[-1])
    return conclude(
        "lmql",
        title="LMQL: prompting is programming",
        claim="Queries with holes, masks and early stops cost less than chunk-wise generation, at equal accuracy.",
        paper_figure=(
            "26 to 85 % lower cost at equal or better accuracy (abstract); billable tokens down by 27 to 31 % for "
            "chain of thought, 76 % for ReAct, 85 % for arithmetic with a calculator (second-hand)"
        ),
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=", ".join(f"{len(t.items)} items of {t.name}" for t in todo),
        intervals="95 %, percentile bootstrap over items, 2000 resamples, fixed seed; accuracies: Wilson",
        full=full,
        models=models,
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Accuracies of models of 6 to 30 billion parameters, and the paper's own tasks and prompts: SmolLM2-135M "
            "solves little of GSM8K, so equal accuracy there says that nothing was lost, not that anything was won.",
            "Seconds: the meter counts what is asked and computed; the columns of computed tokens say what a local "
            "model with a kept prefix saves.",
            "A baseline that keeps its prefix: a server with a prefix cache computes less than it bills.",
            "Where the baseline's regular expression finds nothing within its calls, it ends without an answer.",
            "Short tasks, on which less is saved. Measured before: questions of TREC with some reasoning (8 calls of "
            "the baseline) 12 % fewer decoder calls, 13 % fewer billable tokens; look-ups of two steps (2.4 calls) 58 "
            "% of either, GSM8K problems of any length (2.4 calls) 58 and 69 %. What is saved depends on how long the "
            "baseline's way is.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    with likely.load("smollm2", runtime="native", threads=1) as lm:
        return study(
            lm, tasks(options.full), full=options.full, data=data_sources(FILES), models=[model_source("smollm2")]
        )


def main() -> None:
    run_study(arguments(full="50, 50 and 19 items"), measure)


if __name__ == "__main__":
    run_script(main)
