"""The OpenAI-compatible API: checked requests, prompts, answers and streams of one served model."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.api.app import create_app as create_app

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
