"""Reports: the same figures in every form, texts of models that cannot break a table or a page."""

from __future__ import annotations

import json
import re

import pytest

from likely.audit.report import AuditReport, Finding, ReportExample, markdown_table, share_interval
from likely.show.audits import audit_page

EVIL = '<script>alert("x")</script>|a\nb'
REPORT = AuditReport(
    "An audit", "What moves?", [f"It does: {EVIL}"],
    [Finding("a", "gain", 0.5, 0.25, 0.75, "nats", 9), Finding("b", "gain", None, note="nothing to count")],
    {"model": "toy", "sha256": "f" * 64, "settings": {"seed": 1}},
    [{"id": EVIL, "gain": 0.5, "right": True}, {"id": "2", "other": None}],
    [ReportExample("one", "note", EVIL, (" Par", "is"), (-0.05, -9.0)), ReportExample("two", text="plain")],
    ["Everything else."],
)  # fmt: skip


def test_all_forms_hold_the_same_figures():
    lines = [json.loads(line) for line in REPORT.to_jsonl().splitlines()]
    assert [line["kind"] for line in lines] == ["report", "finding", "finding", "case", "case"]
    assert lines[1]["value"] == 0.5 and lines[2]["value"] is None
    for text in (REPORT.to_markdown(), audit_page([REPORT])):
        assert "0.500 [0.250, 0.750] nats" in text and "nothing to count" in text and REPORT.digest in text
        assert "Everything else." in text and "What moves?" in text


def test_the_digest_is_of_the_settings_alone():
    same = AuditReport("x", "y", [], [], dict(REPORT.header))
    other = AuditReport("x", "y", [], [], {**REPORT.header, "settings": {"seed": 2}})
    assert same.digest == REPORT.digest != other.digest


def test_a_page_runs_and_loads_nothing():
    page = audit_page([REPORT, REPORT], title="Two")
    assert "<script" not in page and "default-src &#x27;none&#x27;" in page and page.count("<article") == 2
    assert not re.search(r"(?:src|href)=\"(?!#)", page) and " style=" not in page
    assert 'class="t l0"' in page and 'class="t l6"' in page  # a likely token and an unlikely one
    with pytest.raises(ValueError):
        audit_page([])


def test_cells_cannot_break_a_table():
    table = markdown_table(("a",), [(EVIL,)])
    assert len(table.splitlines()) == 3 and "\\|" in table


def test_counts_have_no_decimals_and_measured_values_have():
    assert Finding("a", "rank", 576.0, unit="dimensions").text() == "576 dimensions"
    assert Finding("a", "error", 0.25, unit="nats").text() == "0.250 nats"
    assert Finding("a", "flip rate", 1.0, 0.8, 1.0, "share").text() == "1.000 [0.800, 1.000] share"


def test_few_alike_cases_are_no_certainty():
    low, high = share_interval([0.0, 0.0])
    assert low == 0 and high == pytest.approx(0.658, abs=1e-3)  # Wilson's of 0 of 2; a bootstrap says [0, 0]
    low, high = share_interval([0.0, 0.5, 1.0])
    assert 0 <= low < 0.5 < high <= 1


def test_findings_by_name():
    assert REPORT.finding("a", "gain").n == 9
    with pytest.raises(KeyError):
        REPORT.finding("a", "loss")
