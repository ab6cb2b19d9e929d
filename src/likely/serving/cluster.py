"""Generation and scoring of a table of prompts: in this process, or by many on Ray Data, with the same results.

import ray, likely.serving
rows = ray.data.read_json("prompts.jsonl")                        # a row: {"prompt": "...", ...}
done = likely.serving.map_rows(rows, model="smollm2", concurrency=4, max_tokens=64, temperature=0)
done.write_json("answers")

Without Ray `rows` is any iterable of dicts, and what comes back an iterator of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import numpy as np

from likely.errors import DataError, LikelyError, check_choice
from likely.lm.api import load
from likely.lm.options import GenerateOptions
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from ray.data import Dataset

RowTask = Literal["generate", "chat", "score"]
Row = dict[str, Any]
RowColumns = dict[str, Any]  # name -> array or list, one value per row


class ClusterOptions(TypedDict, total=False):
    """How the model is opened by each worker (see `likely.load`)."""

    runtime: str | None
    dtype: str | None
    threads: int
    context: int


class BatchWorker:
    """A model that works on columns; on Ray each actor is one.

    task     "generate": `prompt` is continued; "chat": it is a user's message; "score": `answer` after `prompt`
    model    a name, file, folder or URL;  opened: how it is opened
    options  of `generate` or `chat`
    A row that fails has its reason in `error` and no other result; it stops no other row.
    """

    def __init__(
        self,
        model: str,
        task: RowTask,
        opened: ClusterOptions | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        check_choice("task", task, get_args(RowTask))
        self._lm = load(model, **(opened or {}))
        self._task, self._options = task, dict(options or {})

    def __call__(self, columns: RowColumns) -> RowColumns:
        """The same columns and those of the results."""
        wanted = ("prompt", "answer") if self._task == "score" else ("prompt",)
        for name in wanted:
            if name not in columns:
                raise DataError(f'{self._task} needs a column "{name}" (there are: {", ".join(columns) or "none"})')
        asked = list(zip(*(columns[name] for name in wanted), strict=True))
        found = self._of(asked)
        names = list(dict.fromkeys(name for row in found for name in row))
        return {**columns, **{name: [row.get(name) for row in found] for name in names}}

    def close(self) -> None:
        self._lm.close()

    def _of(self, asked: list[tuple[str, ...]]) -> list[Row]:
        """All at once; one by one where that fails, so that only what is wrong fails."""
        try:
            return self._results(asked)
        except (LikelyError, ValueError, TypeError) as error:
            if len(asked) == 1:
                return [{**dict.fromkeys(_RESULTS[self._task]), "error": str(error)}]
            return [row for each in asked for row in self._of([each])]

    def _results(self, asked: list[tuple[str, ...]]) -> list[Row]:
        lm = self._lm
        texts = [[str(part) for part in row] for row in asked]
        records: list[Any]
        match self._task:
            case "score":
                records = lm.score_pairs([(prompt, answer) for prompt, answer in texts])
            case "chat":
                records = [lm.chat([{"role": "user", "content": prompt}], **self._options) for [prompt] in texts]
            case _:
                records = lm.generate([prompt for [prompt] in texts], **self._options)
        return [{**{name: _value(record, name) for name in _RESULTS[self._task]}, "error": None} for record in records]


_TEXT = ("text", "finish_reason", "sequence_logprob", "mean_logprob", "tokens_written")
_RESULTS = {"generate": _TEXT, "chat": _TEXT, "score": ("sequence_logprob", "mean_logprob", "tokens_scored")}


def _value(record: Any, name: str) -> Any:
    if name in ("tokens_written", "tokens_scored"):
        return len(record.token_logprobs or ())
    return getattr(record, name)


def map_rows(
    rows: Dataset | Iterable[Row],
    *,
    model: str = DEFAULT_MODEL,
    task: RowTask = "generate",
    concurrency: int = 1,
    batch_size: int = 32,
    opened: ClusterOptions | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Unpack[GenerateOptions],
) -> Dataset | Iterator[Row]:
    """Rows with the results of the task beside their own columns; see `BatchWorker`.

    rows         a `ray.data.Dataset`, whose result is one too, computed by `concurrency` actors with a model each; or
                 any dicts, computed here, one after the other and in their order
    batch_size   rows that a model works on together: sort rows by prompt, and those that begin alike are near
    num_cpus, num_gpus  per actor, as Ray counts them;  opened["threads"] should not be more than num_cpus

    One text per row (n > 1 is refused).  What a text is depends on prompt, options and seed, not on how rows were cut.
    """
    if options.get("n", 1) != 1 or options.get("beams"):
        raise ValueError("one text per row: repeat rows with other seeds instead of n or beams")
    if task == "score" and options:
        raise ValueError(f"score takes no options of generate, got {', '.join(options)}")
    check_choice("task", task, get_args(RowTask))
    for name, value in (("concurrency", concurrency), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if hasattr(rows, "map_batches"):
        return rows.map_batches(
            BatchWorker,
            fn_constructor_args=(model, task, opened, dict(options)),
            batch_size=batch_size,
            batch_format="numpy",
            concurrency=concurrency,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
    return _here(rows, BatchWorker(model, task, opened, options), batch_size)


def _here(rows: Iterable[Row], worker: BatchWorker, size: int) -> Iterator[Row]:
    waiting = iter(rows)
    try:
        while batch := list(islice(waiting, size)):
            names = list(dict.fromkeys(name for row in batch for name in row))
            columns = worker({name: [row.get(name) for row in batch] for name in names})
            for i in range(len(batch)):
                yield {name: _plain(values[i]) for name, values in columns.items()}
    finally:
        worker.close()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
