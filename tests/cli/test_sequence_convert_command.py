"""likely sequence convert, and the folder that it writes on the command line."""

from __future__ import annotations

import json

import pytest
from tiny_states import readable_folder

pytest.importorskip("torch")


def test_convert_then_score_and_generate(cli, tmp_path):
    source, folder = readable_folder("mamba2"), tmp_path / "own"
    report = cli("sequence", "convert", source, "-o", folder, "--json").json
    assert report["model_type"] == "mamba2" and report["largest_difference"] < 1e-5
    scored = cli("score", "-m", folder, "--prompt", "ab", "--answer", "c", "--json").json
    assert scored["runtime"] == "recurrent"
    plain, drafted = (
        cli("generate", "abcabc", "-m", folder, "--max-tokens", 9, "--temperature", 0, "--drafter", name, "--json").json
        for name in ("none", "lookup")
    )
    assert plain["text"] == drafted["text"]
    back = cli("sequence", "convert", folder, "-o", tmp_path / "theirs", "--back")
    assert back.code == 0 and "parameters from likely_sequence; logits differ by" in back.out
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "mamba2"


def test_mistakes_are_one_line(cli, tmp_path):
    source = readable_folder("mamba2")
    for arguments, words in (
        ((source, "-o", source), "exists already"),
        ((tmp_path, "-o", tmp_path / "x"), "holds no config.json"),
        ((source, "-o", tmp_path / "x", "--back"), "no folder of likely"),
    ):
        done = cli("sequence", "convert", *arguments)
        assert done.code == 1 and words in done.err and len(done.err.strip().splitlines()) == 1
