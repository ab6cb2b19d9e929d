"""Values kept under keys in a JSON-lines file that grows as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from likely.errors import DataError


class KeptValues:
    """Key -> JSON value; with path None they are kept in memory only.

    earlier  how many were there before this run
    A last line that was cut by a kill is left out, and the next one begins on a line of its own.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)
        self._known: dict[str, Any] = {}
        self._cut = False
        if self.path is not None and self.path.exists():
            self._read(self.path)
        self.earlier = len(self._known)

    def _read(self, path: Path) -> None:
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        self._cut = bool(text) and not text.endswith("\n")
        lines = text.split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                self._known[record["key"]] = record["value"]
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                if isinstance(error, ValueError) and '{"key"'.startswith(line[:6]):
                    continue  # an earlier kill cut it
                raise DataError(
                    f'{path}:{number}: expected {{"key": ..., "value": ...}}: choose another file'
                ) from None

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        return self._known.get(key, default)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a value, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._known]

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep values; they are handed to the operating system before this returns."""
        lines = [
            json.dumps({"key": key, "value": value}, ensure_ascii=False, allow_nan=False)
            for key, value in values.items()
        ]
        self._known.update(values)
        if self.path is None or not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write("\n" * self._cut + "\n".join(lines) + "\n")
        self._cut = False
