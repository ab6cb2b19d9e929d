"""Questions in other words, written by a model that is not the one to be audited, and checked by people.

A template asks a writer for probes.  Cheap screens leave out what cannot be one; people rate a sample (see `review`),
and a template whose probes pass is frozen.  What the audited model makes of probes: see `consistency`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from likely.audit.case import Case
from likely.audit.review import Criterion, ReviewItem, ReviewQueue
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import read_lines
from likely.io.whole_file import read_text, write_for_user
from likely.scoring.choices import choice_item
from likely.scoring.scored import PairScorer

Screen = Literal["empty", "copy", "duplicate", "length", "names", "words"]
CODEBOOK = (
    Criterion("relevance", "Would a right answer to the question also answer the probe? 1 no, 2 nearly, 3 yes"),
    Criterion("diversity", "Are the words other than the question's and the other probes'? 1 no, 2 some, 3 yes"),
)
AGREEMENT, PASSING = 0.7, 0.9  # least agreement of the annotators, least share of probes that pass, to freeze
_COPIED, _SHORTEST, _LONGEST, _SHARED = 0.9, 0.4, 2.5, 0.2
_COMMON = """a an the of in on at to for from by with and or but if is are was were be been do does did has have had
what which who whom whose when where why how it its this that these those you your i we they he she can could will would
should may might there than as not no so about into most some any all one"""
_STOP_WORDS = frozenset(_COMMON.split())


@dataclass(frozen=True)
class ProbeTemplate:
    """What a writer is asked to continue; "{question}" stands for the question.

    frozen  what was measured when it was frozen; None: it is a draft
    """

    name: str
    text: str
    frozen: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if "{question}" not in self.text:
            raise ValueError('a template needs "{question}", where the question is put')

    @property
    def digest(self) -> str:
        return fingerprint(self.text)

    def prompt(self, question: str) -> str:
        return self.text.replace("{question}", question)

    def freeze(self, queue: ReviewQueue) -> ProbeTemplate:
        """The template, frozen by a queue of its probes; the queue takes no votes from now on.

        DataError unless the annotators agree (`AGREEMENT`, where defined) and enough of the probes pass (`PASSING`).
        """
        if self.frozen is not None:
            raise DataError(f'template "{self.name}" is frozen already: change its text and begin anew')
        strange = {item.origin.get("template") for item in queue.items.values()} - {self.digest}
        if strange:
            raise DataError(f"{queue.path} holds probes of another template than {self.name} ({self.digest})")
        found = queue.agreement()
        for one in found:
            if one.value is not None and one.value < AGREEMENT:
                raise DataError(
                    f"the annotators agree on {one.criterion} by {one.value:.2f}, at least {AGREEMENT} is wanted: "
                    f"talk about it, revise the codebook and judge other probes"
                )
        if (rate := queue.pass_rate or 0.0) < PASSING:
            raise DataError(f"{rate:.0%} of the probes pass, at least {PASSING:.0%} are wanted: revise the template")
        queue.freeze()
        record = {"codebook": queue.codebook_digest, "pass_rate": rate, "votes": len(queue.votes), "agreement": {
            one.criterion: one.value for one in found
        }}  # fmt: skip
        return replace(self, frozen=record)


STRUCTURED = ProbeTemplate("structured", (
    "Each question is asked again in other words. The meaning, names and numbers stay, the answer stays, the new "
    "question can be understood alone.\n\n"
    "Question: What is the largest city of Brazil?\nIn other words: Which Brazilian city has the most people?\n\n"
    "Question: How long does it take light to reach the Earth from the Sun?\n"
    "In other words: Light leaves the Sun. After how much time does it arrive at the Earth?\n\n"
    "Question: {question}\nIn other words:"
))  # fmt: skip
NAIVE = ProbeTemplate("naive", "Rephrase: {question}\n")
TEMPLATES = {template.name: template for template in (STRUCTURED, NAIVE)}


@dataclass(frozen=True)
class Probe:
    """One probe of a case: its text, which screens it failed, and who wrote it (model and template digest)."""

    case: str
    number: int
    text: str
    failed: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failed


# --- probes are written and screened ----------------------------------------------------------------------------------


def write_probes(
    writer: Any, cases: Sequence[Case], template: ProbeTemplate = STRUCTURED, *, n: int = 5, temperature: float = 0.8,
    seed: int = 0, max_tokens: int = 48,
) -> list[Probe]:  # fmt: skip
    """n probes of each case, screened: sampled continuations of the template, each to the end of its line.

    writer  a model with `generate`
    """
    prompts = [template.prompt(question_of_case(case)) for case in cases]
    origin = {"writer": writer.info.name, "sha256": writer.info.sha256, "template": template.digest}
    rows = []
    for number in range(n):
        made = writer.generate(
            prompts, temperature=temperature, seed=seed + number, max_tokens=max_tokens, stop=("\n",)
        )
        rows.append([_cleaned(one.text) for one in made])
    found = []
    for i, case in enumerate(cases):
        texts = [row[i] for row in rows]
        for number, text in enumerate(texts):
            failed = screen_probe(question_of_case(case), text, texts[:number])
            found.append(Probe(case.id, number, text, failed, origin))
    return found


def screen_probe(question: str, probe: str, earlier: Sequence[str] = ()) -> tuple[Screen, ...]:
    """Which screens a text fails as a probe of a question.

    empty      nothing but marks
    copy       nine tenths of the question's word pairs or more stand in it
    duplicate  an earlier probe or the question, but for case and marks
    length     less than .4 or more than 2.5 times as long as the question
    names      a number or a capitalised name of the question is missing
    words      fewer than a fifth of the question's telling words, names aside, by their first four letters
    """
    asked, said = _words(question), _words(probe)
    if not said:
        return ("empty",)
    failed: list[Screen] = []
    pairs, others = _pairs(asked), set(_pairs(said))
    if pairs and sum(pair in others for pair in pairs) / len(pairs) >= _COPIED:
        failed.append("copy")
    if said == asked or any(said == _words(other) for other in earlier):
        failed.append("duplicate")
    if not _SHORTEST <= len(probe) / len(question) <= _LONGEST:
        failed.append("length")
    if not _names(question) <= {word.casefold() for word in re.findall(r"[^\W_]+", probe)}:
        failed.append("names")
    telling, stems = {w[:4] for w in asked if w not in _STOP_WORDS | _names(question)}, {w[:4] for w in said}
    if telling and len(telling & stems) / len(telling) < _SHARED:
        failed.append("words")
    return tuple(failed)


def probe_queue(path: Any, cases: Sequence[Case], probes: Sequence[Probe], *, sample: int = 30, seed: int = 0
                ) -> ReviewQueue:  # fmt: skip
    """A queue of the probes of some cases (all probes that passed the screens, of `sample` cases), for people."""
    rng = np.random.default_rng(seed)
    chosen = {cases[i].id for i in rng.permutation(len(cases))[:sample]}
    asked = {case.id: question_of_case(case) for case in cases}
    siblings: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.case in chosen and probe.passed:
            siblings.setdefault(probe.case, []).append(probe)
    items = [
        ReviewItem(
            f"{probe.case}/{probe.number}",
            {"question": asked[probe.case], "probe": probe.text,
             "other probes": " | ".join(p.text for p in group if p is not probe)},
            dict(probe.origin),
        )
        for group in siblings.values() for probe in group
    ]  # fmt: skip
    return ReviewQueue.create(path, CODEBOOK, items, seed=seed)


def question_of_case(case: Case) -> str:
    """The question's text."""
    question = case.segments.get("question")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f'case "{case.id}" has no "question"')
    return question


def _cleaned(text: str) -> str:
    return text.strip().strip("\"'“”* ").removeprefix("In other words:").strip()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(words))


def _names(question: str) -> set[str]:
    """Numbers, and words with a capital that do not begin the question."""
    words = re.findall(r"[^\W_]+", question)
    return {w.casefold() for i, w in enumerate(words) if w.isdigit() or (i and w[:1].isupper() and len(w) > 1)}


# --- do probe and question mean the same, by likelihood ---------------------------------------------------------------


def meaning_gains(model: PairScorer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """How much likelier a probe makes its question: log p(question | probe) - log p(question), nats per byte.

    pairs  (question, probe).  A probe that means something else makes the question hardly likelier; what is enough is
    best read off the same numbers of mismatched pairs.
    """
    told = "The same question in other words."
    asked = [(f"{told}\nQuestion: {probe}\nIn other words:", f" {question}") for question, probe in pairs]
    alone = [(f"{told}\nQuestion:", f" {question}") for question, _ in pairs]
    scored = model.score_pairs([*asked, *alone])
    n = len(pairs)
    return [
        (scored[i].sequence_logprob - scored[n + i].sequence_logprob) / max(1, len(pairs[i][0].encode()))
        for i in range(n)
    ]


# --- files ------------------------------------------------------------------------------------------------------------


def question_cases(records: Sequence[Mapping[str, Any]], where: str = "record") -> list[Case]:
    """Records {"question", "choices", "answer", "id" where there is one} as cases."""
    found = []
    for number, record in enumerate(records, 1):
        item = choice_item(record, f"{where}:{number}")
        found.append(Case(str(record.get("id", number)), {"question": item.question}, tuple(item.choices), item.answer))
    if len({case.id for case in found}) != len(found) or not found:
        raise DataError(f"{where} needs questions, each with an id of its own")
    return found


def probe_of(record: Mapping[str, Any], where: str = "record") -> Probe:
    """A probe from its record; DataError names `where`."""
    try:
        made = Probe(
            str(record["case"]), int(record["number"]), record["text"], tuple(record["failed"]), dict(record["origin"])
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: no probe: lines of likely audit probes make are expected") from None
    if not isinstance(made.text, str):
        raise DataError(f'{where}: field "text" must be a text')
    return made


def read_probes(path: Path) -> list[Probe]:
    """The probes of a file that likely audit probes make wrote; DataError for a line that is none."""
    lines = [line for line in read_lines(path) if line.number > 1 or "case" in line.record]  # the first is the header
    if not lines:
        raise DataError(f"{path} holds no probes: likely audit probes make writes them")
    return [probe_of(line.record, f"{path}:{line.number}") for line in lines]


def load_template(path: Path) -> ProbeTemplate:
    """A template that `save_template` wrote."""
    try:
        record = json.loads(read_text(path))
        template = ProbeTemplate(record["name"], record["text"], record["frozen"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no template of probes ({type(error).__name__}: {error})") from None
    if record.get("digest") != template.digest:
        raise DataError(f"{path} was edited after it was written: its text is not the one of its digest")
    return template


def save_template(template: ProbeTemplate, path: Path) -> None:
    """Write a template as JSON."""
    record = {"name": template.name, "text": template.text, "digest": template.digest, "frozen": template.frozen}
    write_for_user(path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
