"""Sequences shared by real processes: outputs and all gradients are those of one process (law 6)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import shared_sequences as shared

TOLERANCE = 1e-9
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared_sequences")]


@pytest.fixture(scope="module")
def found():
    return shared.run_processes()


def test_every_layer_equals_one_process(found):
    errors = found["layers"]
    assert {key.split()[0] for key in errors} == set(shared.shared_layer_names())
    assert {int(key.split()[1]) for key in errors} == {1, 2, 3, 4}
    assert {key: error for key, error in errors.items() if not error < TOLERANCE} == {}


def test_one_optimiser_step_gives_the_same_weights(found):
    assert {key: error for key, error in found["steps"].items() if not error < TOLERANCE} == {}


def test_a_linear_layer_takes_two_collectives_of_one_size_whatever_the_length(found):
    traffic = found["traffic"]
    for name in ("linear_attention", "mamba2", "s4d"):
        short, long = traffic[f"{name} 32"], traffic[f"{name} 64"]
        assert short == long and short["calls"] == 2 and short["serial"] == 2
        assert short["received"] == (shared.WORLD - 1) * short["payload"]
    mixer = shared.tiny("linear_attention")
    numbers = shared.BATCH * (math.prod(mixer.recurrent_spec()[0]) + mixer.heads)  # states, and a decay for each head
    assert traffic["linear_attention 32"]["payload"] == 2 * numbers * 8


def test_a_ring_waits_and_attention_grows_with_length(found):
    traffic = found["traffic"]
    assert traffic["linear_attention 64 ring"]["serial"] == 2 * (shared.WORLD - 1)
    for way in ("", " ring"):
        short, long = traffic[f"attention 32{way}"], traffic[f"attention 64{way}"]
        assert long["payload"] == 2 * short["payload"]
    assert traffic["attention 32"]["serial"] == 2 < traffic["attention 32 ring"]["serial"]


def test_a_plan_with_unequal_groups_has_the_gradients_of_the_whole_batch(found):
    result = found["plan"]
    assert len({size for sizes in result["degrees"] for size in sizes}) > 1 and len(result["degrees"]) > 1
    assert result["gradients"] < TOLERANCE and result["loss"] < TOLERANCE


def test_what_one_group_of_a_plan_refuses_is_an_error_of_all(found):
    first, second, *others = found["plan refused"]
    assert "share among fewer processes" in first and first == second
    assert others and all("another group cannot compute" in said for said in others)


def test_wrong_use_is_refused_by_all_before_any_message(found):
    refused = found["refusals"]
    assert refused["agreed"] == "True"
    for name, words in {
        "convolution": "share among fewer processes", "heads": "divides the 4 heads, got 3",
        "packed ring": "use allgather", "tokens": "holds 8 of 32 tokens", "state": "return no state",
        "size": "the group has 4",
    }.items():  # fmt: skip
        assert words in refused[name], (name, refused[name])


def test_models_shared_under_torchrun_have_the_losses_and_gradients_of_one_process(tmp_path):
    script, out = Path(shared.__file__).with_name("torchrun_shared_lm.py"), tmp_path / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text("utf-8"))
    assert found.pop("processes") == found.pop("mesh of one dimension") == 2
    assert "hold different weights" in found.pop("refused")
    assert len(found) == 4
    worst = {f"{name}: {what}": error for name, errors in found.items() for what, error in errors.items()}
    assert {key: error for key, error in worst.items() if not error < TOLERANCE} == {}
