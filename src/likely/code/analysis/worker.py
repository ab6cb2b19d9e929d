"""The process in which jedi runs: one JSON object per line in, one out.  python -m likely.code.analysis.worker

Requests: {"id", "root", "kind", "path", "prefix", "suffix"}.  Replies: {"id", ...} as `Answer` has it; first {"ready"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likely.code.analysis.questions import JediQuestions


def main() -> None:
    # whatever prints inside the analyser must not get between the replies
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from jedi import settings

    from likely.code.analysis.questions import JediQuestions
    from likely.code.analysis.search_path import search_path

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


if __name__ == "__main__":
    main()
