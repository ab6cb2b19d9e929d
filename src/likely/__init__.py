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
    from likely.data import datasets
    from likely.lm.api import ask, generate, load, score
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel
    from likely.lm.results import Answer, Generation
    from likely.queries import query
    from likely.scoring.scored import Scored

__version__ = "0.1.0"

_LAZY = {
    "load": "likely.lm.api",
    "score": "likely.lm.api",
    "generate": "likely.lm.api",
    "ask": "likely.lm.api",
    "Model": "likely.lm.model",
    "RemoteModel": "likely.lm.remote.model",
    "Answer": "likely.lm.results",
    "Generation": "likely.lm.results",
    "Scored": "likely.scoring.scored",
    "query": "likely.queries",
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
        return importlib.import_module("likely.data.datasets")
    if name not in _LAZY:
        raise AttributeError(f"module 'likely' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
