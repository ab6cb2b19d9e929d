"""The page on split points works as typed; the language model of its second part is a tiny one here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

pytest.importorskip("torch")
PAGE = (Path(__file__).parents[2] / "docs" / "split-points.md").read_text(encoding="utf-8")


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbers, options = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    found: dict = {}
    exec(numbers, found)
    assert (tmp_path / "cubic.safetensors").exists() and abs(found["v"][1] - 27) < 6
    assert (found["low"] < found["v"]).all() and found["sds"][2] > found["sds"][0]
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=1024)
    exec(options.replace('"smollm2"', repr(str(path))), found)
    assert found["probs"].shape == (18, 3) and np.isfinite(found["sds"]).all()
    for question in found["questions"]:
        assert question["choices"][question["answer"]] == str(eval(question["question"][8:-1]))
