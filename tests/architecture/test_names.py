"""Names that mean one thing, rooms that say what they are for, settings with types."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict

import pytest
from source_tree import PACKAGE, imports, modules, room, tree

from likely.cli.app import GROUPS, VERBS

pytestmark = pytest.mark.xdist_group("architecture")  # every file is parsed once

PACKAGES = sorted(module for module, path in modules().items() if path.name == "__init__.py")
# words of an earlier private dialect: (module or identifier) -> the field's term is used instead
DIALECT = {
    "deciding", "sure", "sureness", "closers", "closing", "told", "code_cage", "cage", "healing", "steer",
    "seeing", "asking", "retokenise", "Hypothesis", "Transform", "Law", "Shadow", "Needs", "Sure", "Sureness",
}  # fmt: skip


def definitions():
    """Name -> {module: what it is}, for classes and for capitalised aliases of types."""
    found = defaultdict(dict)
    for module in modules():
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef):
                found[node.name][module] = ast.dump(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    name = getattr(target, "id", "")
                    if name[:1].isupper() and not name.isupper():
                        found[name][module] = ast.unparse(node)
    return found


def test_one_class_name_has_one_meaning():
    doubles = {
        name: sorted(places)
        for name, places in definitions().items()
        if not name.startswith("_") and len(set(places.values())) > 1
    }
    assert doubles == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_says_what_it_is_for_and_lists_its_public_names(package):
    module = importlib.import_module(package)
    assert module.__doc__ and len(module.__doc__.split()) >= 4, "a docstring that says what the room is for"
    if package in ("likely.cli", *(p for p in PACKAGES if p.startswith("likely.cli."))):
        return  # a program, not a library
    assert module.__all__ and list(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.slow
def test_every_module_is_used_by_another_or_offered_by_its_room():
    users = defaultdict(set)
    for module, others in imports().items():
        for other in others:
            users[other].add(module)
    run_by_path = {"likely.__main__", "likely.code.analysis.worker", "likely.audit.code.child"}  # programs
    run_by_path |= {f"likely.cli.verbs.{module}" for module in [*VERBS.values(), *GROUPS.values()]}
    idle = [
        module
        for module, path in modules().items()
        if path.name != "__init__.py" and not users[module] and module not in run_by_path
    ]
    assert idle == []


def test_no_word_of_a_private_dialect():
    found = []
    for module in modules():
        found += [f"{module}: {part}" for part in module.split(".") if part in DIALECT]
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in DIALECT:
                found.append(f"{module}: {node.name}")
    assert found == []


def public_functions(module):
    """(qualified name, node) of functions and methods whose names do not begin with an underscore."""

    def walk(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield f"{prefix}{node.name}", node

    return walk(tree(module).body, "")


def test_settings_of_public_callables_are_typed():
    loose = [
        f"{module}.{name}(**{node.args.kwarg.arg}: Any)"
        for module in modules()
        for name, node in public_functions(module)
        if node.args.kwarg is not None
        and (node.args.kwarg.annotation is None or ast.unparse(node.args.kwarg.annotation) == "Any")
    ]
    assert loose == []


def test_only_the_command_line_and_the_server_ask_the_package_for_itself():
    users = {room(m) for m, others in imports().items() if "likely" in others}
    assert users <= {"serving", "cli"}
    assert PACKAGE.name == "likely"
