"""Files and folders that a reader can hold in the head."""

from __future__ import annotations

from collections import defaultdict

import pytest
from source_tree import PACKAGE, imports, modules

pytestmark = pytest.mark.xdist_group("architecture")  # every file is parsed once

LONGEST, TINY, FEW = 450, 80, 12
CODE = (".py", ".cpp", ".h")
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*") if path.suffix in CODE})


def name_of(path):
    return str(path.relative_to(PACKAGE.parent))


def lines_of(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_too_long():
    sizes = {name_of(p): lines_of(p) for p in PACKAGE.rglob("*") if p.suffix in CODE}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_holds_few_files(folder):
    files = [p.name for p in folder.iterdir() if p.suffix in CODE and p.name != "__init__.py"]
    assert len(files) <= FEW, f"{len(files)} files: {sorted(files)}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_siblings_with_one_prefix_are_a_folder(folder):
    families = defaultdict(list)
    for path in folder.iterdir():
        if path.suffix in CODE or (path.is_dir() and path in FOLDERS):
            families[path.stem.split("_")[0]].append(path.name)
    assert {first: names for first, names in families.items() if first and len(names) > 1} == {}


@pytest.mark.slow
def test_a_tiny_file_that_only_its_neighbour_reads_belongs_to_it():
    readers = defaultdict(set)
    for module, others in imports().items():
        for other in others:
            if modules()[module].name != "__init__.py":
                readers[other].add(module)
    tiny = []
    for module, path in modules().items():
        users = readers[module]
        if path.name == "__init__.py" or lines_of(path) >= TINY or len(users) != 1:
            continue
        [user] = users
        other = modules()[user]
        if other.parent == path.parent and lines_of(path) + lines_of(other) <= LONGEST:
            tiny.append(f"{module} -> {user}")
    assert tiny == []
