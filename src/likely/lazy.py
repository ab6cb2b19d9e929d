"""Public names of a room, imported when they are first used: `import likely` stays fast and pulls in no torch."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package, from the imports under its `if TYPE_CHECKING:`.

    package  its `__name__`;  file: its `__file__`

    One list of imports serves editors, type checkers and the running program.
    """
    sources: dict[str, tuple[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for found in node.body:
                if isinstance(found, ast.ImportFrom) and found.module:
                    for alias in found.names:
                        sources[alias.asname or alias.name] = found.module, alias.name

    def load(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = sources[name]
        return getattr(importlib.import_module(module), attribute)

    return sorted(sources), load, lambda: sorted(sources)
