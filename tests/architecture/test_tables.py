"""A fact stands once: whoever lists the names of a table reads the table."""

from __future__ import annotations

import ast
import itertools
import re
from functools import cache

import pytest
from source_tree import modules, tree

from likely.calibration.recalibrators.table import RECALIBRATORS
from likely.decoding.drafting.table import DRAFTERS
from likely.runtimes.kinds import KINDS
from likely.uncertainty.table import ESTIMATORS

pytestmark = pytest.mark.xdist_group("architecture")  # every file is parsed once

TABLES = {
    "likely.decoding.drafting.table": DRAFTERS,
    "likely.runtimes.kinds": KINDS,
    "likely.calibration.recalibrators.table": RECALIBRATORS,
    "likely.uncertainty.table": ESTIMATORS,
}


@cache
def messages(module):
    """Strings of a module that are shown to somebody: not docstrings, not single words."""
    quiet = {
        id(node.value)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet
    ]


def lists_of(text, names):
    """Runs of three or more different names of a table, one after the other, as a hand-written list has them."""
    if sum(name in text for name in names) < 3:
        return []
    words = re.split(r"[\s\"'`]*(?:,|\bor\b|\band\b|\|)[\s\"'`]*", text)
    runs = itertools.groupby(words, key=lambda word: re.split(r"[\s:.]", word.strip())[0] in names)
    return [found for inside, run in runs if inside and len(set(found := list(run))) >= 3]


@pytest.mark.parametrize("table", TABLES)
def test_no_second_list_of_a_tables_names(table):
    names = set(TABLES[table])
    others = [
        f"{module}: {text!r}"
        for module in modules()
        if module != table
        for text in messages(module)
        if lists_of(text, names)
    ]
    assert others == []


def test_a_second_list_would_be_found():
    assert lists_of("Guess ahead: lookup, copy, suffix, none", set(DRAFTERS)) or lists_of(
        "lookup, copy, suffix", set(DRAFTERS)
    )
    assert not lists_of("copy the file, then the model", set(DRAFTERS))
