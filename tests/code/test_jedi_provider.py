"""jedi in its process: real answers about a small project, time limits, restarts."""

from __future__ import annotations

import sys

import pytest

from likely.code.analysis.jedi_provider import RECYCLED_AFTER, JediProvider
from likely.code.analysis.members import Analyses
from likely.code.analysis.questions import closing_brackets, project_exceptions
from likely.code.analysis.worker import declared, search_path
from likely.code.buffer import CodeBuffer

pytest.importorskip("jedi")

SHOP = '''
import abc
import enum

class Colour(enum.Enum):
    RED = 1
    GREEN = 2

class Cart:
    """Things to buy."""
    def add_item(self, name: str, count: int, *, gift: bool = False) -> "Receipt": ...
    def _check(self): ...
    @property
    def total_price(self) -> int: return 1

class Receipt:
    number: int = 1
    colour: Colour = Colour.RED

class Anything:
    def __getattr__(self, name): return 1

class Broken(ValueError): ...
class Worse(Broken): ...
class Base(abc.ABC, Exception):
    @abc.abstractmethod
    def why(self): ...
'''  # fmt: skip
USER = """from shop import Cart, Receipt, Anything, Colour, Broken

def buy(cart: Cart, thing: Anything, colour: Colour, free):
    """


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "shop.py").write_text(SHOP)
    (root / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["typing-extensions>=4", "absent"]\n')
    return root


@pytest.fixture(scope="module")
def jedi(project):
    provider = JediProvider(str(project), limit_s=60.0)
    yield provider
    provider.close()


def ask(jedi, project, line, kind="members", suffix="\n"):
    text = USER + line
    return jedi.about(kind, CodeBuffer(str(project / "user.py"), text + suffix, len(text), str(project)))


def names(answer):
    return {m.name for m in answer.members if not m.name.startswith("__")}


def test_members_come_from_another_file(jedi, project):
    answer = ask(jedi, project, "cart.")
    assert answer.status == "answered" and names(answer) == {"add_item", "_check", "total_price"}
    assert {m.defined_in for m in answer.members if m.name == "add_item"} == {str(project / "shop.py")}
    assert names(ask(jedi, project, "cart.add_item('a', 1).")) == {"number", "colour"}


def test_text_that_does_not_parse_is_read_all_the_same(jedi, project):
    assert "total_price" in names(ask(jedi, project, "print([cart."))
    assert "total_price" in names(ask(jedi, project, "x = {1: (cart.", suffix="\n    return x\n"))
    assert "total_price" in names(ask(jedi, project, "(cart\n    ."))
    assert "total_price" in names(ask(jedi, project, "cart.\n    "))


@pytest.mark.slow
def test_half_written_files_of_its_cache_do_not_matter(project, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        provider = JediProvider(str(project), limit_s=60.0)
        assert "total_price" in names(ask(provider, project, "cart."))
        provider.close()
        kept = list(tmp_path.rglob("*.pkl"))
        assert kept
        for path in kept:
            path.write_bytes(path.read_bytes()[:100])


def test_what_is_not_known_is_said(jedi, project):
    free, nothing = ask(jedi, project, "free."), ask(jedi, project, "nothing.")
    assert free.status == nothing.status == "unknown", (free.detail, nothing.detail)
    assert ask(jedi, project, "thing.").dynamic and not ask(jedi, project, "cart.").dynamic


def test_signatures(jedi, project):
    found = ask(jedi, project, "cart.add_item(", "signature").parameters
    assert [(p.name, p.kind, p.required) for p in found] == [
        ("name", "POSITIONAL_OR_KEYWORD", True), ("count", "POSITIONAL_OR_KEYWORD", True),
        ("gift", "KEYWORD_ONLY", False),
    ]  # fmt: skip
    assert ask(jedi, project, "max(", "signature").status == "unknown"  # overloaded
    assert ask(jedi, project, "what(", "signature").status == "unknown"


def test_cases_are_members_of_the_subject(jedi, project):
    line = "match colour:\n        case "
    assert names(ask(jedi, project, line, "cases")) == {"Colour.RED", "Colour.GREEN"}
    assert names(
        ask(jedi, project, "match colour:\n        case Colour.RED:\n            pass\n        case ", "cases")
    )
    assert ask(jedi, project, "match cart:\n        case ", "cases").status == "unknown"
    assert ask(jedi, project, "match (colour, 1):\n        case ", "cases").status == "unknown"


def test_exceptions_are_visible_and_concrete(jedi, project):
    found = names(ask(jedi, project, "raise ", "exceptions"))
    assert {"ValueError", "Broken", "cart", "KeyError"} <= found
    assert not found & {"Cart", "Receipt", "int", "print", "Worse", "Base"}  # no exceptions, or not imported


def test_exceptions_of_a_project(project):
    found = project_exceptions(str(project), "class Mine(Worse): ...\nclass Other: ...\ndef f(")
    assert found["Mine"] and found["Worse"] and not found["Other"] and not found["Base"] and not found["Cart"]


def test_what_closes_the_brackets():
    assert (
        closing_brackets("f(a, [b, {c.") == "}])"
        and closing_brackets("f'{g(x.") == ")"
        and closing_brackets("'(' # (") == ""
    )


def test_only_the_project_and_what_it_declares_is_searched(project, tmp_path):
    assert declared(project) == ["typing-extensions", "absent"]
    path = search_path(str(project), str(tmp_path))
    assert path[0] == str(project) and str(tmp_path) in path
    assert not any("site-packages" in place for place in path)
    assert [p.name for p in tmp_path.iterdir()] == ["typing_extensions.py"]
    info = project / "y-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Name: y\nRequires-Dist: numpy (>=1)\nRequires-Dist: torch; extra == 'big'\n\nbody\n"
    )
    assert declared(project) == ["typing-extensions", "absent", "numpy"]


WORKER = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "hang" in asked["prefix"]: time.sleep(3600)
    if "crash" in asked["prefix"]: sys.exit(1)
    if "noise" in asked["prefix"]: print("no json", flush=True); continue
    print(json.dumps({"id": asked["id"], "status": "answered", "members": [["a", "function", "here"]]}), flush=True)
"""


def test_a_worker_that_hangs_crashes_or_babbles_is_replaced():
    provider = JediProvider(limit_s=1.0, command=[sys.executable, "-c", WORKER])
    try:
        for text, status in (
            ("x.", "answered"), ("hang.", "timed out"), ("x.", "answered"), ("crash.", "failed"), ("x.", "answered"),
            ("noise.", "failed"), ("x.", "answered"),
        ):  # fmt: skip
            provider.limit_s = 1.0 if text == "hang." else 60.0
            assert provider.about("members", CodeBuffer("", text)).status == status
        assert provider.restarts == 3
        provider._asked = RECYCLED_AFTER
        assert provider.about("members", CodeBuffer("", "x.")).status == "answered" and provider.restarts == 4
    finally:
        provider.close()
    assert provider.about("members", CodeBuffer("", "x.")).status == "failed"


def test_answers_are_remembered_but_not_failures():
    provider = JediProvider(limit_s=60.0, command=[sys.executable, "-c", WORKER])
    analyses = Analyses(provider, kept=2)
    try:
        for _ in range(3):
            assert analyses.ask("members", CodeBuffer("", "x.")).result().status == "answered"
        for _ in range(2):
            assert analyses.ask("members", CodeBuffer("", "crash.")).result().status == "failed"
        assert analyses.counts == {"answered": 1, "remembered": 2, "failed": 2}
        for text in ("y.", "z.", "x."):
            analyses.ask("members", CodeBuffer("", text)).result()
        assert analyses.counts["answered"] == 4  # the oldest was given up
    finally:
        analyses.close()


def test_a_limit_must_be_positive():
    with pytest.raises(ValueError, match="limit_s"):
        JediProvider(limit_s=0)
