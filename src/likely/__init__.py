"""likely: the sequence likelihood of a language model, and everything that follows from it."""

from __future__ import annotations

__version__ = "0.1.0"
