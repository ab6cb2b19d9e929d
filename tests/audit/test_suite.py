"""The suite: cases of its own are always the same, what cannot be run is told, and the summary says what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from likely.audit import AuditPart, AuditReport, AuditSuite, Finding
from likely.audit.spectral import SpectralReport, TextSpectrum, spectral_report
from likely.audit.standard import (
    FRAMES,
    SIZES,
    TOLD,
    framed_probes,
    instruction_prompts,
    paragraph_states,
    school_questions,
    spread_records,
    standard_part,
    told_cases,
    told_report,
)
from likely.errors import CapabilityError, DataError, LikelyError
from likely.show.audits import audit_page

HEADER = {"model": "toy", "likely": "0"}


def report(title, **more):
    return AuditReport(
        title, "What moves?", ["It does."], [Finding("a", f"figure {i}", float(i)) for i in range(5)], HEADER,
        reading=["0 is good."], advice=["Look twice."], **more,
    )  # fmt: skip


def part(name, run):
    return AuditPart(name, "3 cases", run)


def refuse(at):
    raise CapabilityError("torch is not installed")


@pytest.mark.parametrize(
    ("low", "said"), [(0.5, "Nothing: it reads"), (-0.5, "in 3 cases it does not show that it uses")]
)
def test_what_few_cases_cannot_show_is_not_claimed(low, said):
    found = [Finding(name, "gain given none", 1.0, low, 2.0, "nats", 3) for name in TOLD]
    passages, digits = told_report(replace(report("Told"), findings=found)).advice
    assert said in passages and digits.endswith("mislead it does not show in 3 cases.")


def test_a_summary_says_what_was_found_what_to_do_and_what_was_not_run():
    said = []
    suite = AuditSuite([part("one", lambda at: report("One")), part("two", refuse)], ["three: not asked for"])
    summary, one = suite.run(None, header=HEADER, said=said.append)
    assert one.title == "One" and summary.title == "Audit of toy"
    assert summary.verdicts == ["One: It does."] and summary.advice == ["One: Look twice."]
    calm = AuditSuite(
        [part("calm", lambda at: replace(report("Calm"), advice=["Nothing: it is well."])), suite.parts[0]]
    )
    advice = calm.run(None, header=HEADER)[0].advice
    assert advice == ["One: Look twice.", "Calm: Nothing: it is well."]  # what is to be done comes first
    assert [f.quantity for f in summary.findings] == ["a: figure 0", "a: figure 1", "a: figure 2"]
    assert summary.reading[0] == "Asked with: one: 3 cases." and any("nats" in line for line in summary.reading)
    assert summary.caveats[:2] == ("Not run: three: not asked for", "Not run: two: torch is not installed")
    assert said[0] == "one: 3 cases" and "s of processor time" in said[1]
    page = audit_page([summary, one])
    for text in ("What to do", "How to read it", "Look twice.", "0 is good.", "Not run: two", 'href="#a2"'):
        assert text in page and (text.startswith("href") or text in summary.to_markdown() + one.to_markdown())
    with pytest.raises(LikelyError, match="no audit could be run: two: torch"):
        AuditSuite([part("two", refuse)]).run(None, header=HEADER)
    with pytest.raises(ValueError, match="nothing to audit"):
        AuditSuite([])


def test_a_report_comes_back_from_its_record():
    made = report("One", cases=[{"id": "1", "gain": 0.1}], caveats=["x"])
    again = AuditReport.from_dict(made.to_dict())
    assert again.to_jsonl() == made.to_jsonl() and again.to_markdown() == made.to_markdown()
    assert audit_page([again]) == audit_page([made])


def test_a_kept_report_is_made_once(tmp_path):
    made = []

    def run(at):
        return at.kept("exposure", {"seed": 0}, lambda header: made.append(header) or report("One"))

    suite = AuditSuite([part("exposure", run)])
    first = suite.run(None, header=HEADER, folder=tmp_path)
    again = suite.run(None, header=HEADER, folder=tmp_path)
    assert len(made) == 1 and [r.to_jsonl() for r in again] == [r.to_jsonl() for r in first]
    assert made[0] == {**HEADER, "kind": "audit exposure", "settings": {"seed": 0}}
    with pytest.raises(DataError, match="another model or settings"):
        suite.run(None, header={**HEADER, "model": "other"}, folder=tmp_path)


def test_cases_of_its_own_are_always_the_same_and_right():
    some, more = told_cases(5), told_cases(9)
    assert more[:5] == some
    for case in more:
        colour = case.choices[case.answer]
        assert f"is {colour}." in case.segments["passage"] and len(set(case.choices)) == 4
        assert not any(choice in case.segments["digits"] for choice in case.choices) and set(TOLD) < set(case.segments)
    probes = framed_probes(some)
    assert len(probes) == 5 * len(FRAMES) and all(some[0].segments["question"] in p.text for p in probes[: len(FRAMES)])
    prompts = instruction_prompts(50)
    assert len(set(prompts)) == 50 and instruction_prompts(80)[:50] == prompts
    records = [{"seed": flow, "n": n} for flow in "abcd" for n in range(3)]
    assert {r["seed"] for r in spread_records(records, 4)} == set("abcd") and len(spread_records(records, 99)) == 12
    with pytest.raises(ValueError, match="unknown audit"):
        standard_part("reech", lambda model, prompt: [])


def test_cases_of_data_sets():
    questions = school_questions(3)
    assert len(questions) == 3 and all(0 <= case.answer < len(case.choices) for case in questions)

    class Characters:
        def encode(self, text, *, parse_special=False):
            return [ord(character) for character in text]

        def token_bytes(self, token):
            return chr(token).encode()

    states = paragraph_states(Characters(), 4)
    assert len(states) == 4 and all(len(case.segments["target"]) == 1 for case in states)
    assert [len(case.segments["state"]) for case in states] == [6, 7, 8, 9]


@pytest.mark.parametrize("name", SIZES)
def test_every_audit_has_cases_of_its_own(name):
    made = standard_part(name, lambda model, prompt: [1], most=3)
    assert made.name == name and made.cases


def test_without_data_sets_the_reason_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("LIKELY_DATA", str(tmp_path))
    for name in ("probes", "mermaid", "reach", "spectral"):
        with pytest.raises(DataError):
            standard_part(name, lambda model, prompt: [1])
    assert standard_part("ablate", lambda model, prompt: [1]).name == "ablate"


def test_spectra_as_a_report_say_that_no_value_is_good_alone():
    texts = [TextSpectrum(i, 9, 16, 5.0, 0.5, 0.6, 4.0, 0.7 + i / 10, 3.0 + i) for i in range(3)]
    found = spectral_report(SpectralReport("toy", 2, 2, texts, []), header=HEADER)
    assert found.finding("last layer", "effective rank").value == pytest.approx(np.mean([3, 4, 5]))
    assert "4 of 16 dimensions" in found.verdicts[0] and "No value is good or bad" in found.reading[0]
    assert len(found.cases) == 3 and found.caveats
