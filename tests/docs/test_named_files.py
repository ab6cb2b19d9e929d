"""What the pages name exists: files of the project, modules and names of the package, a page of reference per room."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "likely"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli")
PLACES = {"src", "tests", "docs", "benchmarks", "reproductions", "examples", "likely", *ROOMS}
PAGES = [
    *sorted(path for path in (ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "reproductions/README.md", "benchmarks/README.md")),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = {
        name.removeprefix("./") for name in re.findall(r"[\w./-]*\w/[\w./-]*\w\.(?:py|cpp|h|toml)\b", page.read_text())
    }
    ours = {name for name in named if name.split("/")[0] in PLACES and "NAME" not in name}
    assert {n for n in ours if not any((base / n).is_file() for base in (ROOT, ROOT / "src", PACKAGE))} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_the_package_in_a_page_exist(page):
    named = set(re.findall(r"(?<![\w/])likely(?:\.[a-zA-Z_]\w*)+", page.read_text())) - {"likely.md"}
    assert {name for name in named if not resolves(name)} == set()


@pytest.mark.slow  # it imports most of the package
def test_what_pages_import_exists():
    found = {
        (name_of(page), f"{module}.{one.split(' as ')[0].strip()}")
        for page in PAGES
        for module, some, more in re.findall(
            r"^from (likely[\w.]*) import (?:\(([^)]*)\)|([^\n(#]+))", page.read_text(), flags=re.MULTILINE
        )
        for one in (some or more).split(",")
        if one.strip()
    }
    assert len(found) > 100
    assert {(page, name) for page, name in found if not resolves(name)} == set()


def resolves(name: str) -> bool:
    """Whether a dotted name is a module of the package, or what one offers."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_room_has_its_page_of_reference():
    pages = {path.stem: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert set(pages) == {*ROOMS, "likely", "options"}
    assert all(f"::: likely.{room}\n" in pages[room] for room in ROOMS)
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f"- reference/{room}.md" in nav for room in pages)
