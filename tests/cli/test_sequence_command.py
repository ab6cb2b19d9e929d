"""likely sequence: the table of layers, for people and for machines."""

from __future__ import annotations

import json

from likely.sequence import MIXERS, make_mixer


def test_layers_are_listed_with_the_bytes_that_they_hold(cli):
    found = json.loads(cli("sequence", "layers", "--width", "32", "--length", "100", "--json").out)
    assert (found["width"], found["length"]) == (32, 100)
    assert [row["name"] for row in found["layers"]] == list(MIXERS)
    for row in found["layers"]:
        mixer = make_mixer(row["name"], 32)
        assert row["state_bytes"] == mixer.state_bytes(100)
        assert (row["step_bytes"] == 0) == (row["state_kind"] == "recurrent")


def test_layers_are_shown_as_a_table(cli):
    shown = cli("sequence", "layers").out
    assert all(f"\n{name} " in shown for name in MIXERS)
    assert "parameters" in shown.splitlines()[0]
    helped = cli("sequence", "--help").out
    assert helped.index("Examples:") < helped.index("Options")


def test_a_width_that_a_layer_cannot_have_is_one_line(cli):
    done = cli("sequence", "layers", "--width", "3")
    assert done.code == 2 and done.err.count("\n") == 1 and "heads = 4" in done.err and "multiple of 8" in done.err
    for width in (8, 24, 40):
        assert cli("sequence", "layers", "--width", width).code == 0
