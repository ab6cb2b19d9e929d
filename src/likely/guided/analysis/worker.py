"""The process in which jedi runs: one JSON object per line in, one out.  python -m likely.guided.analysis.worker

Requests: {"id", "root", "kind", "path", "prefix", "suffix"}.  Replies: {"id", ...} as `Answer` has it; first {"ready"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any


def main() -> None:
    # whatever prints inside the analyser must not get between the replies
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from likely.guided.analysis.jedi_questions import JediQuestions
    from likely.guided.analysis.search_path import search_path

    with tempfile.TemporaryDirectory(prefix="likely-analysis-") as folder:
        projects: dict[str, JediQuestions] = {}

        def project(root: str) -> JediQuestions:
            if root not in projects:
                links = tempfile.mkdtemp(dir=folder)
                projects[root] = JediQuestions(root, search_path(root, links))
            return projects[root]

        # what every question needs is read before the first one, whose time is limited
        project(os.environ.get("LIKELY_ANALYSIS_ROOT", "")).answer("members", "", "''.", "")
        _write(replies, {"ready": True})
        for line in sys.stdin.buffer:
            request = json.loads(line)
            try:
                found = project(request["root"]).answer(
                    request["kind"], request["path"], request["prefix"], request["suffix"]
                )
            except RecursionError:
                found = {"status": "failed", "detail": "RecursionError"}
            except Exception as error:  # jedi raises many kinds for code that it cannot follow
                found = {"status": "failed", "detail": f"{type(error).__name__}: {error}"[:500]}
            _write(replies, {"id": request["id"], **found})


def _write(stream: Any, record: dict[str, Any]) -> None:
    stream.write(json.dumps(record).encode() + b"\n")
    stream.flush()


if __name__ == "__main__":
    main()
