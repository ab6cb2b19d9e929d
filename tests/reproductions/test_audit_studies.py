"""The studies of audits on models whose answers are known: checks hold where they must, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from reading_models import ReadingModel
from scripts import script

from likely.data import load_records
from likely.errors import DataError
from likely.evidence import Source

SOURCES = [Source(name="made up", sha256="0" * 64)]


class Biologist(ReadingModel):
    """Knows the answers about a protein that it recognises by one segment; in other prompts it reads the passage."""

    def __init__(self, segment, proteins, questions, terms):
        super().__init__("Passage")
        self.segment, self.tokenizer = segment, self
        self.special_tokens = {}
        right = {p["accession"]: set() for p in proteins}
        for asked in questions:
            right[asked["accession"]].add(asked["choices"][asked["answer"]])
        self.known = {
            "; ".join(terms(p["context"])) if segment == "Context" else p["sequence"][:50]: right[p["accession"]]
            for p in proteins
        }

    def _scored(self, prompt, answer):
        for line in prompt.splitlines():
            name, _, text = line.partition(": ")
            if name == self.segment and answer.strip() in self.known.get(text, ()):
                return super()._scored(f"Passage: {answer.strip()}", answer)
        return super()._scored(prompt, answer)

    def encode(self, text):
        return list(text.encode())

    def token_bytes(self, token):
        return bytes([token])


@pytest.fixture(scope="module")
def proteins():
    return [list(load_records("protein-context-qa", f"{name}.jsonl")) for name in ("proteins", "questions")]


@pytest.mark.parametrize("segment", ["Context", "Sequence"])
def test_coke_finds_out_what_a_model_reads(proteins, segment):
    coke = script("coke")
    evidence = coke.study(
        {"toy": Biologist(segment, *proteins, coke.context_terms)}, *proteins, residues=50, told=12, full=False,
        sources=SOURCES, data=[],
        report=lambda line: None,
    )  # fmt: skip
    held = {check.statement: check.holds for check in evidence.checks}
    assert held["context over sequence: lower end of the gain, negated"] == (segment == "Context")
    assert held["sequence over its shuffle: lower end"] == (segment == "Context")
    assert held["toy: a passage that holds the answer, lower end of its gain, negated"]
    value = {(f.subject, f.quantity): f.value for f in evidence.figures}
    assert value["toy, sequences", "tokens per residue"] == 1
    assert (value["context over sequence", "log p of the right answer"] > 0) == (segment == "Context")


def test_coke_refuses_sequences_that_are_none(proteins):
    coke = script("coke")
    first = proteins[0][0]
    with pytest.raises(DataError, match="no amino acids"):
        coke.protein_cases([{**first, "sequence": "ACDx"}], [], ("sequence", "context"), None)
    with pytest.raises(DataError, match="twice"):
        coke.protein_cases([first, first], [], ("sequence", "context"), None)


class DiagramWriter:
    """Free answers are prose, guided ones the diagram of the example or of nothing; as judge it counts lines."""

    info = SimpleNamespace(name="toy", sha256="0")

    def ask_each(self, questions, **options):
        return [SimpleNamespace(text="Here.", finish_reason="stop", tokens=[], token_logprobs=[]) for _ in questions]

    def ask(self, question, **options):
        text = "sequenceDiagram\n    participant User\n    User->>User: x\n"
        return SimpleNamespace(text=text, finish_reason="stop", complete=True, tokens=[], token_logprobs=[])

    def score_pairs(self, pairs):
        return [
            SimpleNamespace(sequence_logprob=float(answer) * (prompt.count("\n") - 30) / 50) for prompt, answer in pairs
        ]


def test_mermaid_tells_guided_from_free():
    study = script("mermaid_seq_bench")
    flows, labelled = (list(load_records(*file)) for file in study.FILES)
    evidence = study.study(
        {"toy": DiagramWriter()}, study.spread_records(flows, 6), labelled[:80], max_tokens=8, judged=6, full=False,
        sources=SOURCES, data=[], report=lambda line: None,
    )  # fmt: skip
    held = {check.statement: check.holds for check in evidence.checks}
    assert held["toy: guided diagrams that are not valid"] and held["toy: guided over zero-shot, lower end, negated"]
    value = {(f.subject, f.quantity): f.value for f in evidence.figures}
    assert value["toy as judge, reference less faulty", "expected score"] > 0
    assert value["our parser, labels of the parser alone", "agrees with Mermaid's"] > 0.97
    assert len({flow["seed"] for flow in study.spread_records(flows, 6)}) == 6


class Rewriter:
    info = SimpleNamespace(name="writer", sha256="w")

    def generate(self, prompts, **options):
        return [SimpleNamespace(text=f" {prompt.rpartition('Question: ')[2][:30]} or so?") for prompt in prompts]

    def score_pairs(self, pairs):
        return [SimpleNamespace(sequence_logprob=float(answer.strip() in prompt)) for prompt, answer in pairs]


def test_llmauditor_on_a_model_that_never_changes_its_answer():
    study = script("llmauditor")
    sets = {name: study.questions(name, file, 30) for name, file in study.FILES}
    evidence = study.study(
        Rewriter(), ReadingModel(None, name="steady"), sets, n=1, gains=4, full=False, sources=SOURCES, data=[],
        report=lambda line: None,
    )  # fmt: skip
    held = {check.statement: check.holds for check in evidence.checks}
    assert not held["truthfulqa, rules: flip rate missing to 15 %"]
    assert held["probes of other questions that the screens let pass"]
    value = {(f.subject, f.quantity): f.value for f in evidence.figures}
    assert value["truthfulqa, rules", "flip rate"] == 0 == value["arc-easy, rules", "dispersion"]
    assert (
        value["a frame of the question", "likelier by, per byte"] > value["another question", "likelier by, per byte"]
    )
