"""Rooms have an order and imports run downwards only; no circle of files or of rooms."""

from __future__ import annotations

import pytest
from source_tree import circles, imports, modules, outside_imports, room

pytestmark = pytest.mark.xdist_group("architecture")  # every file is parsed once

# from the ground up; "likely" is the package's own face: what it offers is made in the rooms before it
ROOMS = (
    "errors", "lazy", "io", "metrics", "data", "formats", "tokenizers", "sequence", "runtimes", "models", "scoring",
    "decoding", "guided", "queries", "code", "training", "compression", "calibration", "forecasting", "uncertainty",
    "weak_supervision", "prompting", "alignment", "audit", "lm", "likely", "bench", "show", "evidence", "serving",
    "cli", "__main__",
)  # fmt: skip
# and, inside functions, what trains: see below
TORCH = ("sequence", "runtimes.torch", "runtimes.recurrent", "training", "compression", "alignment")
TRAINS = (
    "calibration.h", "forecasting", "uncertainty.split_point", "weak_supervision", "prompting.hints", "audit.reach",
    "audit.inversion", "audit.spectral", "bench.sequence",
)  # fmt: skip


def test_every_room_has_its_place():
    assert {room(module) for module in modules()} == set(ROOMS)


def test_imports_run_downwards():
    above = [
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in sorted(others)
        if ROOMS.index(room(other)) > ROOMS.index(room(module)) and module != "likely"
    ]
    assert not above
    assert not [other for other in imports()["likely"] if ROOMS.index(room(other)) > ROOMS.index("likely")]


def test_no_circle_of_files():
    assert circles(imports()) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_nobody_below_imports_the_server_or_the_command_line():
    users = {room(m) for m, others in imports().items() for o in others if room(o) in ("serving", "cli")}
    assert users <= {"serving", "cli", "__main__"}


def test_torch_is_imported_by_the_torch_runtime_and_by_what_trains():
    allowed = (*TORCH, *TRAINS)
    strangers = [
        module
        for module in modules()
        if outside_imports(module) & {"torch", "transformers", "peft", "accelerate"}
        and not module.removeprefix("likely.").startswith(allowed)
    ]
    assert not strangers
