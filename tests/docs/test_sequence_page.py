"""The page of sequence layers: its example runs, its commands run, and its table names every layer."""

from __future__ import annotations

import re
from pathlib import Path

from likely.cli.app import run
from likely.sequence import MIXERS, make_mixer

TEXT = (Path(__file__).parents[2] / "docs" / "sequence.md").read_text(encoding="utf-8")


def test_the_example_of_one_layer_runs():
    names: dict[str, object] = {}
    example = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "make_mixer" in block)
    exec(example, names)
    assert names["out"].y.shape == (2, 300, 64) and names["more"].y.shape == (2, 50, 64)


def test_the_commands_run(capsys):
    for line in re.findall(r"```sh\n(.*?)```", TEXT, re.S)[0].splitlines():
        assert run(line.split()[1:]) == 0
    assert "mamba2" in capsys.readouterr().out


def test_the_table_names_layers_and_their_kinds_of_state():
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))
    kinds = {entry.state_kind for entry in MIXERS.values()}
    arguments = {"positions", "states_at", "return_state", "state"}
    assert named - kinds - arguments <= set(MIXERS) and kinds <= named
    assert all(make_mixer(name, 64).state_kind == entry.state_kind for name, entry in MIXERS.items())
