"""Seeing likelihoods: tokens coloured in the terminal, one self-contained page, pictures of results files."""

from __future__ import annotations

from likely.show.colours import BREAKPOINTS, level_of
from likely.show.html import page
from likely.show.terminal import print_shown
from likely.show.tokens import Shown, shown, visible

__all__ = ["BREAKPOINTS", "Shown", "level_of", "page", "print_shown", "shown", "visible"]
