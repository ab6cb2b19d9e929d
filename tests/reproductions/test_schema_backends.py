"""The study of schema engines: its counts on the test suite, frozen per engine and mode, and what it must notice."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json

import pytest
from scripts import script as load_script

pytest.importorskip("llguidance")

# (right, over, under, refused) of 1,160 instances, for these versions
VERSIONS = {"llguidance": "1.9.1", "xgrammar": "0.2.8"}
FROZEN = {
    ("llguidance", "raw"): (707, 19, 29, 405),
    ("llguidance", "error"): (844, 34, 0, 282),
    ("llguidance", "validate"): (1097, 34, 0, 29),
    ("xgrammar", "raw"): (671, 43, 390, 56),
    ("xgrammar", "error"): (613, 22, 0, 525),
    ("xgrammar", "validate"): (1096, 35, 0, 29),
}


@pytest.fixture(scope="module")
def script():
    return load_script("schema_backends")


@pytest.fixture(scope="module")
def rows(data_dir):
    with (data_dir / "json-schema-tests" / "draft2020-12.jsonl").open() as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("backend, mode", list(FROZEN))
def test_the_counts_of_the_test_suite(script, rows, backend, mode):
    pytest.importorskip(backend)
    compiled = script.raw_engine(backend) if mode == "raw" else script.public(backend, mode)
    found = script.outcomes(rows, compiled)
    counts = tuple(found[name] for name in script.OUTCOMES)
    assert sum(counts) == 1160
    if mode != "raw":
        assert found["under"] == 0  # whatever the version
    if importlib.metadata.version(backend) == VERSIONS[backend]:
        assert counts == FROZEN[backend, mode]


SUITE = [
    {"schema": {"type": "object", "properties": {"a": {}, "b": {}}},
     "tests": [{"data": {"a": 1, "b": 2}, "valid": True}, {"data": {"b": 1, "a": 2}, "valid": True},
               {"data": [], "valid": False}]},
    {"schema": {"const": 1}, "tests": [{"data": 1.0, "valid": True}, {"data": 2, "valid": False}]},
    {"schema": {"type": "array", "uniqueItems": True},
     "tests": [{"data": [1, 1], "valid": False}, {"data": [1, 2], "valid": True}]},
    {"schema": {"type": "string", "format": "time"}, "tests": [{"data": "23:59:60Z", "valid": True}]},
]  # fmt: skip


def test_outcomes_and_their_reasons(script):
    found = script.outcomes(SUITE, script.public("llguidance", "error"))
    assert {name: found[name] for name in script.OUTCOMES} == {"right": 3, "over": 3, "under": 0, "refused": 2}
    assert [found[f"over: {why}"] for why in ("order", "spelling", "language")] == [1, 1, 1]
    assert script.outcomes(SUITE, script.public("llguidance", "validate"))["right"] == 5


def test_an_engine_that_takes_everything_is_noticed(script):
    found = script.outcomes(SUITE, lambda schema: lambda text: True)
    assert found["under"] == 3 and found["over"] == 0


def test_the_study_runs(script):
    functions = [({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1}), ({"not": {}}, {})]
    found = script.study(SUITE, functions, backends=["llguidance"], full=True, report=lambda line: None)
    assert found.mode == "full" and len(found.checks) == 3
    values = {(f.subject, f.quantity): f.value for f in found.figures}
    assert values["llguidance, functions of bfcl", "schemas taken"] == 0.5
    assert values["llguidance, functions of bfcl", "true calls accepted"] == 1.0
    assert any("xgrammar" in line for line in found.not_shown)
