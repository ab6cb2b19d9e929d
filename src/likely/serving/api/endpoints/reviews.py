"""GET /v1/reviews, POST /v1/reviews/next and /v1/reviews/vote: people judge items of review queues, on the page.

The queues are those of `likely audit review`, in the same files by the same rules: a vote is on the disk before the
reply, what people see says nothing of who made an item or of others' votes, and both ways go on where the other
stopped.  Which files there are is said where the server starts; a request names one of them and never a path.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request, Response
from pydantic import Field, field_validator

from likely.audit.review import ReviewQueue
from likely.errors import DataError, nearest
from likely.serving.api.schemas import RequestBody, parse
from likely.serving.limits import ApiError, json_response

MOST_QUEUES = 256
MOST_BYTES = 64 * 2**20  # of a queue's file, which is read anew for each request
Name = Annotated[str, Field(min_length=1, max_length=200)]


class ReviewRequest(RequestBody):
    """Which queue, and who asks."""

    queue: Name
    annotator: Annotated[str, Field(min_length=1, max_length=100)]

    @field_validator("annotator")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not (name.strip() and name.isprintable()):
            raise ValueError("a name of printable characters is expected")
        return name.strip()


class ReviewVoteRequest(ReviewRequest):
    """A judgement of one item: criterion -> rating."""

    item: Name
    ratings: dict[Name, int] = Field(max_length=32)
    reason: str = Field("", max_length=2000)


def review_files(path: Path) -> dict[str, Path]:
    """Queues by the names that people see: a file, or all queues of a folder (*.jsonl), by their names."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found: dict[str, Path] = {}
    for file in files:
        try:
            ReviewQueue.open(file)
        except DataError:
            if not path.is_dir():
                raise
            continue  # a folder may hold other files
        found[file.stem] = file.resolve()
    if not 0 < len(found) <= MOST_QUEUES:
        raise DataError(f"{path} holds {len(found)} review queues, 1 to {MOST_QUEUES} are expected")
    return found


class ReviewsEndpoint:
    """Answers for these queues; one request at a time touches the files."""

    def __init__(self, files: dict[str, Path]):
        self._files = dict(files)
        self._thread = ThreadPoolExecutor(1, "likely-reviews")  # requests for texts wait for none of this

    async def listed(self) -> Response:
        """Names, sizes and whether votes are taken."""
        return json_response({"object": "list", "data": await self._alone(self._list)})

    async def next(self, request: Request, body: dict[str, Any]) -> Response:
        """The next item that this annotator has not judged; none left: how far the annotators agree."""
        asked = parse(ReviewRequest, body)
        return json_response(await self._alone(lambda: self._state(asked, self._open(asked))))

    async def vote(self, request: Request, body: dict[str, Any]) -> Response:
        """Keep a vote; the reply is that of `next`."""
        asked = parse(ReviewVoteRequest, body)

        def write() -> dict[str, Any]:
            queue = self._open(asked)
            queue.vote(asked.annotator, asked.item, asked.ratings, asked.reason)
            return self._state(asked, queue)

        return json_response(await self._alone(write))

    async def _alone(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except DataError as error:  # clients are told names, never paths of this machine
            said = str(error)
            for file in self._files.values():
                said = said.replace(str(file), file.name)
            raise DataError(said) from None

    def _list(self) -> list[dict[str, Any]]:
        found = []
        for name, file in self._files.items():
            with contextlib.suppress(DataError):  # whoever asks for this one is told what is wrong
                queue = _read(file)
                found.append({"id": name, "items": len(queue.items), "frozen": queue.frozen})
        return found

    def _open(self, asked: ReviewRequest) -> ReviewQueue:
        file = self._files.get(asked.queue)
        if file is None:
            message = f'there is no review queue "{asked.queue}"{nearest(asked.queue, self._files)}'
            raise ApiError(404, message, param="queue")
        return _read(file)

    def _state(self, asked: ReviewRequest, queue: ReviewQueue) -> dict[str, Any]:
        left = queue.pending(asked.annotator)
        state: dict[str, Any] = {
            "queue": asked.queue, "items": len(queue.items), "judged": len(queue.items) - len(left),
            "frozen": queue.frozen, "criteria": [], "item": None, "agreement": None, "warnings": asked.warnings,
        }  # fmt: skip
        if left:
            state["criteria"] = [
                {"name": c.name, "question": c.question, "scale": list(c.scale)} for c in queue.criteria
            ]
            state["item"] = {"id": left[0].id, "shown": dict(left[0].shown)}
        elif len({vote.annotator for vote in queue.votes}) > 1:
            state["agreement"] = [asdict(one) for one in queue.agreement()]
        return state


def _read(file: Path) -> ReviewQueue:
    if file.is_file() and file.stat().st_size > MOST_BYTES:
        raise DataError(f"{file.name} is larger than {MOST_BYTES // 2**20} MiB")
    return ReviewQueue.open(file)
