"""Many users of one model: `Engine` (one thread owns it), `create_app` (the OpenAI-compatible API around an engine)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from likely.serving.api.app import create_app
    from likely.serving.engine import Engine, Overloaded
    from likely.serving.limits import Limits

_LAZY = {
    "Engine": "likely.serving.engine",
    "Overloaded": "likely.serving.engine",
    "Limits": "likely.serving.limits",
    "create_app": "likely.serving.api.app",
}
__all__ = ["Engine", "Limits", "Overloaded", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
