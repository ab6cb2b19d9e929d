"""The process in which jedi runs: one JSON object per line in, one out.  python -m likely.code.analysis.worker

Requests: {"id", "root", "kind", "path", "prefix", "suffix"}.  Replies: {"id", ...} with fields of
`AnalysisReply`; first {"ready"}.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import json
import os
import re
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from likely.code.analysis.questions import JediQuestions

_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def main() -> None:
    # whatever prints inside the analyser must not get between the replies
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from jedi import settings

    with tempfile.TemporaryDirectory(prefix="likely-analysis-") as folder:
        projects: dict[str, JediQuestions] = {}

        def project(root: str) -> JediQuestions:
            if root not in projects:
                links = tempfile.mkdtemp(dir=folder)
                projects[root] = JediQuestions(root, search_path(root, links))
            return projects[root]

        def ask(root: str, *question: str) -> dict[str, Any]:
            found = _answer(project(root), question)
            if found["status"] == "failed" and settings.cache_directory != folder:
                # jedi keeps parsed files in a folder of the user's, and does not write them whole: one that was
                # stopped while writing, or is writing now, leaves half a file there
                settings.cache_directory = folder
                found = _answer(project(root), question)
            return found

        # what every question needs is read before the first one, whose time is limited
        ask(os.environ.get("LIKELY_ANALYSIS_ROOT", ""), "members", "", "''.", "")
        _write(replies, {"ready": True})
        for line in sys.stdin.buffer:
            request = json.loads(line)
            found = ask(request["root"], request["kind"], request["path"], request["prefix"], request["suffix"])
            _write(replies, {"id": request["id"], **found})


def _answer(project: JediQuestions, question: tuple[str, ...]) -> dict[str, Any]:
    try:
        kind, path, prefix, suffix = question
        return project.answer(kind, path, prefix, suffix)
    except RecursionError:
        return {"status": "failed", "detail": "RecursionError"}
    except Exception as error:  # jedi raises many kinds for code that it cannot follow
        return {"status": "failed", "detail": f"{type(error).__name__}: {error}"[:500]}


def _write(stream: Any, record: dict[str, Any]) -> None:
    stream.write(json.dumps(record).encode() + b"\n")
    stream.flush()


def search_path(root: str, links: str) -> list[str]:
    """Where jedi may look, in order: the project, what it says it depends on, the standard library.

    links  an empty folder, filled with links to the packages of declared dependencies that are installed here

    Nothing else that happens to be installed: heavy packages make single questions take minutes.
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


if __name__ == "__main__":
    main()
