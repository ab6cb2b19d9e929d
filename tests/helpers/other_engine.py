"""The other engine of the comparison, xgrammar, out of reproductions/; tests skip where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("xgrammar")
sys.path.append(str(Path(__file__).parents[2] / "reproductions"))

import xgrammar_constraint

XGRAMMAR = xgrammar_constraint.XGRAMMAR
plain_body = xgrammar_constraint.plain_body


def engine(vocabulary):
    return xgrammar_constraint.XGrammar(vocabulary)
