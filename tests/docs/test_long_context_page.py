"""docs/long-context.md: its table is what is kept, its model can be made, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
PAGE = (Path(__file__).parents[2] / "docs" / "long-context.md").read_text(encoding="utf-8")


def test_the_table_of_states_is_what_is_kept():
    from likely.runtimes.recurrent.checkpoints import kept_checkpoints

    rows = re.findall(r"^\| ([\d,]+)(?: tokens)? \| (\d+)(?: states)? \|$", PAGE, flags=re.M)
    assert len(rows) == 4
    for length, states in rows:  # and the last one, and that of nothing
        assert int(states) == 2 + len(kept_checkpoints(int(length.replace(",", "")), 64))
    more = [len(kept_checkpoints(4096, every)) - len(kept_checkpoints(4096, 64)) for every in (16,)]
    assert more == [2] and "16 keeps two states more" in PAGE


def test_the_model_of_the_page_runs(tmp_path, monkeypatch):
    from tiny_states import byte_tokenizer

    import likely

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(compile(blocks[-1], "long-context.md", "exec"), {})
    byte_tokenizer().save("my-model/tokenizer.json")
    with likely.load("my-model", threads=1) as lm:
        assert lm.info.runtime == "recurrent" and lm.info.kv_bytes_per_token > 0
        assert len(lm.generate("abc", max_tokens=4, min_tokens=4).token_ids) == 4
