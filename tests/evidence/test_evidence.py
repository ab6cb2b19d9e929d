"""Results files: a schema that refuses half-told numbers, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from fnmatch import fnmatchcase

import pytest
from pydantic import ValidationError
from sample_evidence import CHECK, FIGURE, evidence
from scripts import script

from likely.errors import DataError
from likely.evidence import (
    Check,
    Figure,
    read_result,
    read_results,
    verdict_of,
    write_result,
)
from likely.evidence.papers import index
from likely.evidence.results import results_dir


def test_what_is_written_is_what_is_read(tmp_path):
    path = write_result(evidence(), tmp_path / "new")
    assert path.name == "trial.json" and read_result(path) == evidence()
    assert read_results(tmp_path / "new") == {"trial": evidence()}
    assert [p.name for p in path.parent.iterdir()] == ["trial.json"]
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_surroundings_say_machine_versions_and_day():
    found = script("study").surroundings()
    assert found["machine"].cores >= 1 and found["versions"]["likely"] and len(found["date"]) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"figures": []},
        {"not_shown": []},
        {"models": [{"name": "m", "sha256": "abc"}]},
        {"verdict": "not reproduced"},
        {"checks": []},
        {"extra": 1},
        {"id": "../trial"},
        {"seconds": -1},
        {"date": "yesterday"},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_half_told_result_is_refused(changes):
    with pytest.raises(ValidationError):
        evidence(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"low": None},
        {"low": None, "high": None},
        {"low": 0.55},
        {"value": math.nan, "low": None, "high": None, "note": "none"},
        {"value": math.inf, "high": math.inf},
        {"n": 0},
        {"unit": ""},
    ],
)
def test_a_figure_needs_unit_size_and_interval_or_a_reason(changes):
    Figure(**FIGURE)
    with pytest.raises(ValidationError):
        Figure(**{**FIGURE, **changes})


def test_the_verdict_follows_from_the_checks():
    good, bad = Check(**CHECK), Check(**{**CHECK, "bound": 0.1})
    assert verdict_of([good]) == "reproduced"
    assert verdict_of([good, bad]) == "partly reproduced"
    assert verdict_of([bad]) == "not reproduced"


def test_the_verdict_is_about_the_headline_and_the_rest_is_counted():
    """As papers.toml tells them apart."""
    held = {**CHECK, "statement": "corpus alone: less"}
    others = [{**CHECK, "statement": "another"}, {**CHECK, "statement": "missed", "value": 2.0}]
    found = evidence(id="aded", checks=[held, *others])
    assert (found.verdict, found.secondary_held) == ("reproduced", "1 of 2")
    missed = evidence(id="aded", checks=[{**held, "value": 2.0}, *others])
    assert (missed.verdict, missed.secondary_held) == ("not reproduced", "1 of 2")
    unknown = evidence(checks=[held, *others])
    assert (unknown.verdict, unknown.secondary_held) == ("partly reproduced", "")


def test_every_headline_has_checks_and_every_miss_its_reason():
    results = read_results(results_dir())
    assert len(results) >= 20
    for entry in index():
        if (result := results.get(entry.id)) is None:
            assert not entry.misses  # what a headline is may be said before it is measured
            continue
        assert result.headline
        statements = [check.statement for check in result.checks]
        for pattern in (*entry.headline, *(pattern for pattern, _ in entry.misses)):
            assert any(fnmatchcase(statement, pattern) for statement in statements), (entry.id, pattern)
        for check in result.checks:
            assert check.holds or entry.why_missed(check.statement), (entry.id, check.statement)


def test_a_quick_run_never_replaces_a_full_one(tmp_path):
    write_result(evidence(mode="full"), tmp_path)
    quick = write_result(evidence(), tmp_path)
    assert quick.name == "trial.quick.json" and read_result(tmp_path / "trial.json").mode == "full"
    assert list(read_results(tmp_path)) == ["trial"]
    write_result(evidence(mode="full", ours="0.6 nats"), tmp_path)
    assert read_result(tmp_path / "trial.json").ours == "0.6 nats"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_result(evidence(), tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_result(evidence(ours="other"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["trial.json"]
    assert read_result(tmp_path / "trial.json").ours == "0.5 nats"


def test_a_broken_file_names_itself_and_the_field(tmp_path):
    path = write_result(evidence(), tmp_path)
    record = json.loads(path.read_text())
    record["figures"][0]["n"] = 0
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"trial.json: figures.0.n"):
        read_result(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"trial.json"):
        read_results(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        read_result(tmp_path / "none.json")
    path.unlink()
    write_result(evidence(), tmp_path).rename(tmp_path / "other.json")
    with pytest.raises(DataError, match='id is "trial"'):
        read_results(tmp_path)
    assert read_results(None) == read_results(tmp_path / "nowhere") == {}


@pytest.mark.real
def test_the_source_of_a_model_is_its_file(smollm2_path):
    source = script("study").model_source("smollm2")
    assert source.name == smollm2_path.name and source.licence
    assert source.sha256 == hashlib.sha256(smollm2_path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match='no model is known by the name "gpt-9"'):
        script("study").model_source("gpt-9")
