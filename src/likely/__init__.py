"""likely: the sequence likelihood of a language model, and everything that follows from it.

import likely
lm = likely.load("smollm2")
lm.score("2 + 2 =", [" 4", " 5"])
lm.ask("Capital of France?").text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from likely.errors import (
    CapabilityError,
    ConstraintError,
    DataError,
    KvFull,
    LikelyError,
    ModelError,
    RemoteError,
)

if TYPE_CHECKING:
    from likely import datasets
    from likely.api import ask, generate, load, score
    from likely.guided.query import query
    from likely.model import Model
    from likely.models.remote import RemoteModel
    from likely.results import Answer, Generation, Scored

__version__ = "0.1.0"

_LAZY = {
    "load": "likely.api",
    "score": "likely.api",
    "generate": "likely.api",
    "ask": "likely.api",
    "Model": "likely.model",
    "RemoteModel": "likely.models.remote",
    "Answer": "likely.results",
    "Generation": "likely.results",
    "Scored": "likely.results",
    "query": "likely.guided.query",
}

__all__ = [
    "Answer",
    "CapabilityError",
    "ConstraintError",
    "DataError",
    "Generation",
    "KvFull",
    "LikelyError",
    "Model",
    "ModelError",
    "RemoteError",
    "RemoteModel",
    "Scored",
    "ask",
    "datasets",
    "generate",
    "load",
    "query",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "datasets":
        return importlib.import_module("likely.datasets")
    if name not in _LAZY:
        raise AttributeError(f"module 'likely' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
