"""Cases for whoever has none: what `likely audit all MODEL` asks of a model.  Made here, or from data sets by name.

Small and public, so that two models can be compared on them; they say little about prompts of another kind, and are no
substitute for cases of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from likely.audit.ablation import SegmentAblation
from likely.audit.case import Case
from likely.audit.mermaid.benchmark import diagram_cases
from likely.audit.probes import Probe, question_of_case
from likely.audit.report import AuditReport
from likely.audit.suite import (
    AuditPart,
    ablate_part,
    exposure_part,
    invert_part,
    mermaid_part,
    probes_part,
    reach_part,
    spectral_part,
)
from likely.compression.calibration_set import calibration_set
from likely.data import find_path, load_records
from likely.errors import check_choice
from likely.tokenizers.protocol import Tokenizer, decode

FRAMES = (  # the same question for certain: rules, no model
    "Please answer this question. {}",
    "Here is a question that somebody asked: {}",
    "{} What is the right answer to this?",
)
RULES = "rules"
PROMPT_TEMPLATES = (
    "Write a {form} about {topic} for {who}.",
    "Explain {topic} to {who} in {n} {unit}.",
    "List {n} {thing} about {topic}.",
    "Give {who} {n} {thing} on {topic} as a {form}.",
)
FILLERS = {
    "form": ("poem", "letter", "summary", "story", "speech", "song", "report", "dialogue"),
    "topic": (
        "rivers", "volcanoes", "chess", "bread", "glaciers", "bees", "trains", "tea", "satellites", "whales", "violins",
        "castles", "coffee", "earthquakes", "vaccines", "dinosaurs", "bridges", "honey", "deserts", "magnets", "sleep",
        "batteries", "forests", "money",
    ),
    "who": ("children", "engineers", "my boss", "a friend", "nurses", "farmers", "tourists", "students"),
    "n": ("two", "three", "four", "five", "seven", "ten"),
    "unit": ("sentences", "words", "steps", "lines"),
    "thing": ("facts", "questions", "jokes", "risks", "tips", "myths"),
}  # fmt: skip
TOLD = ("digits", "passage")  # segments of `told_cases`
TEXT, SPECTRAL_TOKENS = "wikitext2:test", 256
# cases of each audit: sized for an hour of two cores, together, with a model of 135M parameters
SIZES = {"ablate": 24, "probes": 40, "mermaid": 6, "reach": 6, "exposure": 1, "invert": 300, "spectral": 8}


def standard_part(
    name: str, render: Callable[[Any, str], Sequence[int]], *, most: int | None = None, max_tokens: int = 256
) -> AuditPart:
    """An audit by its name, with cases of its own.  DataError where the data set that it needs is not here.

    render  (model, hidden prompt) -> the token ids that the model reads;  most: cases at most
    """
    check_choice("audit", name, SIZES)
    size = SIZES[name] if most is None else min(SIZES[name], most)
    match name:
        case "ablate":
            ablation = SegmentAblation(TOLD, tuple(("swap", segment) for segment in TOLD))
            part = ablate_part(told_cases(size), ablation, "made-up questions whose answer stands in a passage")
            return AuditPart(part.name, part.cases, lambda at: told_report(part.run(at)))
        case "probes":
            questions = school_questions(size)
            return probes_part(questions, framed_probes(questions), "school questions (arc-easy)")
        case "mermaid":
            return mermaid_part(diagram_flows(max(2, size)), "flows in words (mermaid-sequence)", max_tokens=max_tokens)
        case "reach":
            find_path("wikitext2", "test")
            what = f"{size} beginnings of paragraphs (wikitext2), their next token as the target"
            return reach_part(lambda tokenizer: paragraph_states(tokenizer, size), what)
        case "exposure":
            return exposure_part()
        case "invert":
            return invert_part(instruction_prompts(max(3, size)), render, "made-up instructions")
    find_path("wikitext2", "test")

    def windows(tokenizer: Tokenizer) -> list[list[int]]:
        found: list[list[int]] = calibration_set(
            TEXT, tokenizer, windows=size, length=SPECTRAL_TOKENS
        ).input_ids.tolist()
        return found

    return spectral_part(windows, f"{size} windows of {TEXT}", tokens=SPECTRAL_TOKENS)


def told_cases(count: int) -> list[Case]:
    """Questions whose answer stands in one segment, beside one of random digits: it is known what must be found."""
    rng = np.random.default_rng(0)
    names = ("Ann", "Bert", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
    colours = ("red", "green", "blue", "yellow", "white", "black")
    found = []
    for number in range(count):
        owner, colour = names[number % len(names)], str(rng.choice(colours))
        others = [c for c in colours if c != colour]
        choices = [colour, *map(str, rng.permutation(others)[:3])]
        order = rng.permutation(4)
        digits = "".join(map(str, rng.integers(10, size=120)))
        found.append(
            Case(
                f"told-{number}",
                {"digits": digits, "passage": f"The car of {owner} is {colour}.",
                 "question": f"Which colour has the car of {owner}?"},
                tuple(choices[i] for i in order), int(np.flatnonzero(order == 0)[0]),
            )
        )  # fmt: skip
    return found


def told_report(report: AuditReport) -> AuditReport:
    """The ablation of `told_cases`, where it is known what should be found."""
    gained, noise = (report.finding(name, "gain given none") for name in ("passage", "digits"))
    reads, misled = (gained.low or 0.0) > 0, (noise.high or 0.0) < 0
    advice = [
        "Nothing: it reads the passage that it is given." if reads
        else f"Do not rely on passages in its prompt (retrieval, documents): in {gained.n} cases it does not "
        "show that it uses even a plain one.",
        "Keep what does not matter out of its prompts: random digits make its right answers less likely." if misled
        else f"Nothing: that random digits beside the question mislead it does not show in {noise.n} cases.",
    ]  # fmt: skip
    title = "Passages and noise: does it use what it is told, and pass over random digits?"
    return replace(report, title=title, advice=advice)


def school_questions(count: int) -> list[Case]:
    """Multiple-choice questions of the natural sciences (data set arc-easy)."""
    return [
        Case(f"arc-easy-{number}", {"question": record["question"]}, tuple(record["choices"]), int(record["answer"]))
        for number, record in enumerate(islice(load_records("arc-easy", "test.jsonl.gz"), count))
    ]


def framed_probes(cases: Sequence[Case]) -> list[Probe]:
    """Each question in sentences around it that keep its meaning for certain: probes without a writer."""
    return [
        Probe(case.id, i, frame.format(question_of_case(case)), origin={"writer": RULES})
        for case in cases
        for i, frame in enumerate(FRAMES)
    ]


def diagram_flows(count: int) -> list[Case]:
    """Flows in words with their diagrams (data set mermaid-sequence), spread over the kinds of flows."""
    records = spread_records(list(load_records("mermaid-sequence", "prompts.jsonl")), count)
    return diagram_cases(records, "mermaid-sequence")


def spread_records(records: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """As many records, spread over flows ("seed") and over their variations."""
    if count >= len(records):
        return list(records)
    by_flow: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_flow.setdefault(str(record["seed"]), []).append(record)
    flows = list(by_flow.values())
    return [flows[i % len(flows)][(i + i // len(flows)) % len(flows[i % len(flows)])] for i in range(count)]


def paragraph_states(tokenizer: Tokenizer, count: int, *, seed: int = 0) -> list[Case]:
    """Beginnings of paragraphs (6 to 9 tokens) with the token that follows as the target (data set wikitext2)."""
    rows = load_records("wikitext2", "test")
    paragraphs = [line for record in rows if len((line := str(record["text"]).strip()).split()) > 30]
    found = []
    for n, i in enumerate(np.random.default_rng(seed).permutation(len(paragraphs))[:count].tolist()):
        tokens, length = tokenizer.encode(paragraphs[i]), 6 + n % 4
        state, target = decode(tokenizer, tokens[:length]), decode(tokenizer, tokens[length : length + 1])
        found.append(Case(f"wikitext2-{i}", {"state": state, "target": target}))
    return found


def instruction_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Different instructions of one small grammar, to be hidden and recovered."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        template = PROMPT_TEMPLATES[int(rng.integers(len(PROMPT_TEMPLATES)))]
        found[template.format(**{name: words[int(rng.integers(len(words)))] for name, words in FILLERS.items()})] = None
    return list(found)
