"""Where an analyser may look: the standard library, the project, and what the project says it depends on.

Nothing else that happens to be installed: heavy packages make single questions take minutes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import os
import re
import sysconfig
import tomllib
from pathlib import Path

_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def search_path(root: str, links: str) -> list[str]:
    """Folders for an analyser of the project at `root`, in order.

    links  an empty folder, filled with links to the packages of declared dependencies that are installed here
    """
    places = [str(p) for p in (Path(root), Path(root) / "src") if root and p.is_dir()]
    for name in dependencies(declared(Path(root)) if root else []):
        _link(name, Path(links))
    stdlib = sysconfig.get_path("stdlib")
    return [*places, links, stdlib, os.path.join(stdlib, "lib-dynload")]


def declared(root: Path) -> list[str]:
    """What a project depends on: names of distributions, from pyproject.toml or the metadata of an unpacked wheel."""
    lines: list[str] = []
    with contextlib.suppress(OSError, tomllib.TOMLDecodeError, AttributeError):
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {})
        lines += [str(line) for line in project.get("dependencies", [])]
    for file in sorted(root.glob("*.dist-info/METADATA")):
        with contextlib.suppress(OSError):
            for line in file.read_text("utf-8", "replace").splitlines():
                if line.startswith("Requires-Dist:") and "extra ==" not in line:
                    lines.append(line.removeprefix("Requires-Dist:"))
    return _names(lines)


def dependencies(names: list[str]) -> list[str]:
    """These and what they in turn need, as far as installed here."""
    found: list[str] = []
    todo = list(names)
    while todo:
        name = todo.pop(0)
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
        todo += _names([line for line in requires if "extra ==" not in line])
    return found


def _names(lines: list[str]) -> list[str]:
    return [match[1].lower().replace("_", "-") for line in lines if (match := _NAME.match(line))]


def _link(name: str, links: Path) -> None:
    distribution = metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or () if file.parts and file.parts[0] != ".."}
    for top in sorted(tops):
        place = Path(str(distribution.locate_file(top)))
        if top.endswith(".dist-info") or top == "__pycache__" or not place.exists():
            continue
        with contextlib.suppress(OSError):
            (links / top).symlink_to(place)
