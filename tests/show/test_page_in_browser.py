"""The page in a real browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from records import HOSTILE, scored

from likely.show.html import page
from likely.show.tokens import shown, visible

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary: the page was not opened in a browser"),
    pytest.mark.xdist_group("real"),
]


def opened(source, folder):
    """(the document as the browser holds it, what it logged)."""
    (folder / "page.html").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom",
            (folder / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_renders_its_tokens_and_logs_nothing(tmp_path):
    import html

    tokens = ["Once", " upon", " a", " time", *HOSTILE]
    dom, console = opened(page([shown(scored(tokens))], title="likely score", prompt="x"), tmp_path)
    assert console == []
    cells = re.findall(r'<span class="t l\d" tabindex="0"(?: dir="ltr")?>(.*?)<span class="tip"', dom, flags=re.S)
    assert [html.unescape(cell) for cell in cells] == [visible(token) or "∅" for token in tokens]
    assert "<script" not in dom and "<img" not in dom and dom.count("<tr>") == len(tokens) + 1


def test_a_page_that_breaks_its_policy_is_noticed(tmp_path):
    source = page([shown(scored(["a"]))], title="t")
    _, console = opened(source.replace("<body>", "<body><script>1</script><p style='color: red'>"), tmp_path)
    assert len(console) >= 2 and all("Content Security Policy" in line for line in console)
