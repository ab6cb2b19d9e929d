"""likely query: arguments, the question before code runs, JSON that replays, a page without a script."""

from __future__ import annotations

import json
import re

import pytest

QUERY = """
def capital(country, n=2):
    argmax(max_tokens=4)
    for i in range(n):
        "The capital of {country} is[CITY] <b>\\n" where len(WORDS(CITY)) < 3 and STOPS_BEFORE(CITY, ".")
    "So[X]" distribution X in [" yes", " no"]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "capital.lmql"
    path.write_text(QUERY)
    return path


def test_a_query_runs_and_says_what_it_cost(cli, tiny, file):
    done = cli("query", file, "-m", tiny, "--arg", "country=France", "--yes")
    assert done.code == 0, done.err
    assert done.out.count("The capital of France is") == 2
    assert re.search(r"^\s+0\.\d{4}   (yes|no)$", done.out, re.M)
    assert re.search(r"\d+ model queries, \d+ decoder calls, \d+ billable tokens", done.err)


def test_code_is_run_only_with_consent(cli, tiny, tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.lmql"
    path.write_text(f'open({str(marker)!r}, "w").close()\n"a[X]"\n')
    done = cli("query", path, "-m", tiny, stdin="")
    assert done.code == 2 and "read it, then give --yes" in done.err and not marker.exists()
    assert cli("query", path, "-m", tiny, "--yes", "--max-tokens", 2).code == 0 and marker.exists()


def test_json_holds_a_trace_that_replays(cli, tiny, file, tmp_path):
    call = ("query", file, "-m", tiny, "-a", "country=Italy", "-a", "n=1", "-y", "--json", "--seed", 3)
    done = cli(*call, "--decoder", "sample(n=1, temperature=0.7)")
    record = done.json
    assert record["cost"]["decoder_calls"] == 3 and abs(sum(record["distribution"].values()) - 1) < 1e-6
    run = tmp_path / "run.json"
    run.write_text(done.out)
    again = cli("query", file, "-m", tiny, "-y", "--replay", run, "--json", "-a", "country=x").json
    assert again["text"] == record["text"]
    changed = json.loads(done.out)
    hole = next(e for e in changed["trace"]["events"] if e["kind"] == "hole")
    hole["tokens"][0] += 1
    run.write_text(json.dumps(changed))
    refused = cli("query", file, "-m", tiny, "-y", "--replay", run, "-a", "country=x")
    assert refused.code == 1 and "the replay differs from the trace" in refused.err


def test_the_page_is_escaped_and_loads_nothing(cli, tiny, file, tmp_path):
    page = tmp_path / "run.html"
    done = cli("query", file, "-m", tiny, "-a", "country=<script>alert(1)</script>", "-y", "--html", page)
    assert done.code == 0, done.err
    text = page.read_text("utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "&lt;b&gt;" in text
    assert "http-equiv" in text and not re.search(r'(src|href)="(?!#)', text)
    assert text.count("<sup>CITY</sup>") == 2 and "STOPS_BEFORE(CITY, &#x27;.&#x27;)" in text


@pytest.mark.parametrize(
    "text, arguments, code, message",
    [
        (QUERY, (), 2, "--arg country=..."),
        (QUERY, ("-a", "country=x", "-a", "contry=y"), 2, "did you mean"),
        (QUERY, ("-a", "country"), 2, "NAME=VALUE"),
        (QUERY, ("-a", "country=x", "--decoder", "beem(3)"), 2, "did you mean"),
        ('"abc [1]"', (), 1, "bad.lmql:1:6: [1] is no hole"),
        ('"a"\n1 / 0\n', (), 1, "ZeroDivisionError: division by zero (bad.lmql, line 2)"),
        ('"a[X]" where X in ["a"] and len(X) > 3', (), 1, "no text fulfils"),
    ],
)
def test_wrong_use_is_one_line(cli, tiny, tmp_path, monkeypatch, text, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.lmql").write_text(text)
    done = cli("query", "bad.lmql", "-m", tiny, "-y", *arguments)
    assert done.code == code and message in done.err
