"""The benchmark of servers: rounds are kept as they are measured, one cell can be measured alone, the whole is put
together from them."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
from scripts import script


@pytest.fixture
def bench(monkeypatch, tmp_path):
    found = script("serving", folder="benchmarks", named="serving_benchmark")
    measured = []

    @contextlib.contextmanager
    def served(command, port):
        yield f"http://127.0.0.1:{port}/v1"

    def run(name, url, kind, streams, requests, tokens):
        if tokens > 4:  # not the warm-up
            measured.append((name, kind, streams))
        return found.Load(2.0 if name == "likely" else 8.0, tokens=streams * tokens, first=[0.5], between=[0.1, 0.2])

    def stall(url, tokens, disturbance):
        measured.append(("stall", tokens))
        return 3.0

    monkeypatch.setattr(found, "served", served)
    monkeypatch.setattr(found, "run", run)
    monkeypatch.setattr(found, "stall", stall)
    monkeypatch.setattr(found, "commands", lambda model, llama_server: {"likely": ([], 1), "other": ([], 2)})
    monkeypatch.setattr(found.protocol, "RESULTS", tmp_path)
    found.measured, found.cells = measured, tmp_path / "cells.jsonl"

    def main(*arguments):
        measured.clear()
        monkeypatch.setattr(
            sys, "argv", ["serving.py", "--even-if-busy", "--rounds", "2", "--cells", str(found.cells), *arguments]
        )
        found.main()

    found.call = main
    return found


def test_a_cell_alone_and_then_the_whole_measure_each_round_once(bench, tmp_path, capsys):
    bench.call("--only", "shared-prefix", "--streams", "16")
    assert sorted(bench.measured) == [(name, "shared-prefix", 16) for name in ("likely", "likely", "other", "other")]
    part = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert [row["target"] for row in part["rows"]] == [10.0] and part["rows"][0]["over_other"]["median"] == 4.0
    assert not (tmp_path / "serving.json").exists()  # a part is no result

    lines = bench.cells.read_text().splitlines()
    bench.cells.write_text(lines[0] + "\n")  # cut after the first round
    bench.call("--only", "shared-prefix", "--streams", "16")
    assert len(bench.measured) == 2

    bench.call("--streams", "1,16")
    assert ("likely", "shared-prefix", 16) not in bench.measured and ("likely", "chat", 1) in bench.measured
    whole = json.loads((tmp_path / "serving.json").read_text())
    assert len(whole["rows"]) == 6 and whole["stalls"]["long prompt"]["over_nothing"]["median"] == 1.0
    bench.call("--streams", "1,16")
    assert bench.measured == []


def test_gaps_alone_have_a_file_of_their_own(bench, tmp_path):
    bench.call("--only", "stalls")
    assert len(bench.measured) == 6 and {each[0] for each in bench.measured} == {"stall"}
    found = json.loads((tmp_path / "serving_stalls.json").read_text())
    assert found["rows"] == [] and set(found["stalls"]) == {"nothing", "long prompt", "hostile form"}
