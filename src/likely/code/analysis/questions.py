"""Questions answered by jedi.  Runs inside the worker process only, which may be killed at any moment."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from likely.code.analysis.python_lexer import START
from likely.code.buffer import CLOSING, line_and_column

NOT_MEMBERS = ("keyword", "path")


class JediQuestions:
    """Answers about one project."""

    def __init__(self, root: str, path: list[str]):
        import jedi
        from jedi.api.environment import InterpreterEnvironment

        self._jedi, self._root = jedi, root
        # only the given folders: a whole environment may hold packages whose analysis takes minutes
        self._project = jedi.Project(root or ".", sys_path=path, smart_sys_path=False)
        self._environment = InterpreterEnvironment()

    def answer(self, kind: str, path: str, prefix: str, suffix: str) -> dict[str, Any]:
        return {
            "members": self.members, "signature": self.signature, "cases": self.cases, "exceptions": self.exceptions,
        }[kind](path, prefix, suffix)  # fmt: skip

    def _script(self, path: str, code: str) -> Any:
        return self._jedi.Script(code, path=path or None, project=self._project, environment=self._environment)

    def _complete(self, path: str, prefix: str, suffix: str) -> list[Any]:
        """Completions at the end of `prefix`, once as it is and once with its open brackets closed, each name once."""
        found: dict[str, Any] = {}
        for middle in dict.fromkeys(("", closing_brackets(prefix))):
            script = self._script(path, f"{prefix}{middle}\n{suffix}")
            for completion in script.complete(*line_and_column(prefix, len(prefix))):
                found.setdefault(completion.name_with_symbols, completion)
        return list(found.values())

    def members(self, path: str, prefix: str, suffix: str) -> dict[str, Any]:
        prefix = prefix.rstrip()
        found = [c for c in self._complete(path, prefix, suffix) if c.type not in NOT_MEMBERS]
        if not found:
            return {"status": "unknown"}
        dynamic = any(c.name == "__getattr__" for c in found)
        return {"status": "answered", "members": [_record(c) for c in found], "dynamic": dynamic}

    def signature(self, path: str, prefix: str, suffix: str) -> dict[str, Any]:
        found = self._script(path, f"{prefix})\n{suffix}").get_signatures(*line_and_column(prefix, len(prefix)))
        if len(found) != 1:  # none known, or overloaded
            return {"status": "unknown"}
        parameters = []
        for one in found[0].params:
            kind = one.kind.name
            text = one.to_string()
            parameters.append([one.name, kind, "=" not in text and not kind.startswith("VAR_")])
        return {"status": "answered", "parameters": parameters}

    def cases(self, path: str, prefix: str, suffix: str) -> dict[str, Any]:
        """Qualified members of the enum that the subject of the innermost `match` is."""
        subject = _match_subject(prefix)
        if subject is None:
            return {"status": "unknown"}
        kept = prefix[: prefix.rfind("\n") + 1]
        indent = prefix[len(kept) :][: len(prefix[len(kept) :]) - len(prefix[len(kept) :].lstrip())]
        # a `match` with an unfinished case does not parse, so the subject is looked up in a statement of its own
        head = _without_match(kept)
        probe = f"{head}{indent}{subject}"
        kinds = self._script(path, f"{probe}\n{suffix}").infer(*line_and_column(probe, len(probe)))
        names = {n.full_name for n in kinds if n.type == "instance"}
        if len(names) != 1:
            return {"status": "unknown"}
        full_name = names.pop()
        for spelling in _spellings(full_name):
            ask = f"{head}{indent}{spelling}."
            found = self._complete(path, ask, suffix)
            if not any(c.name in ("__members__", "_missing_") for c in found):
                continue
            members = [c.name for c in found if c.full_name == full_name and not c.name.startswith("_")]
            if members:
                return {"status": "answered", "members": [[f"{spelling}.{name}", "enum", ""] for name in members]}
        return {"status": "unknown"}

    def exceptions(self, path: str, prefix: str, suffix: str) -> dict[str, Any]:
        """Names that may be raised: every visible name except classes that are known to be no exceptions."""
        found = self._complete(path, prefix, suffix)
        project = project_exceptions(self._root, prefix + "\n" + suffix)
        kept = []
        for c in found:
            if c.type == "keyword" or c.name.startswith("__"):
                continue
            builtin = getattr(builtins, c.name, None)
            if c.type == "class":
                if c.name in project:
                    allowed = project[c.name]
                elif isinstance(builtin, type):
                    allowed = issubclass(builtin, BaseException)
                else:
                    allowed = True  # a class from elsewhere: not known to be none
            else:
                allowed = builtin is None  # print, len, ...
            if allowed:
                kept.append(_record(c))
        return {"status": "answered", "members": kept} if kept else {"status": "unknown"}


def closing_brackets(code: str) -> str:
    """What closes the brackets that are open at the end of `code`, innermost first."""
    frames = START.feed(code.encode()).frames
    brackets = [chr(frame) for frame in reversed(frames) if isinstance(frame, int) and frame > 0]
    return "".join(bracket for bracket in brackets if bracket in CLOSING.values())


def _record(completion: Any) -> list[str]:
    module = completion.module_path
    return [completion.name, completion.type, str(module) if module else completion.module_name or ""]


def _match_subject(prefix: str) -> str | None:
    """The subject of the `match` statement that the last line is a case of, if it is a plain dotted name."""
    lines = prefix.split("\n")
    indent = len(lines[-1]) - len(lines[-1].lstrip())
    for line in reversed(lines[:-1]):
        here = len(line) - len(line.lstrip())
        if line.strip() and here < indent:
            found = re.fullmatch(r"\s*match\s+([A-Za-z_][\w.]*)\s*:\s*(#.*)?", line)
            return found[1] if found else None
    return None


def _without_match(code: str) -> str:
    """The lines before the innermost `match` statement, with one that keeps the indented block below it legal."""
    lines = code.split("\n")
    at = max(i for i, line in enumerate(lines) if re.match(r"\s*match\s+[A-Za-z_]", line))
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    return "\n".join([*lines[:at], f"{indent}if True:", ""])


def _spellings(full_name: str) -> list[str]:
    """Color, colors.Color, shop.colors.Color: how a class may be written where it is imported."""
    parts = full_name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]


def project_exceptions(root: str, open_file: str) -> dict[str, bool]:
    """Class names of a project -> whether they are concrete exceptions, judged by the names of their bases."""
    classes: dict[str, tuple[list[str], bool]] = dict(_project_classes(root)) if root else {}
    classes.update(_classes(_tolerant(open_file)))

    def is_exception(name: str, seen: frozenset[str]) -> bool:
        builtin = getattr(builtins, name, None)
        if isinstance(builtin, type):
            return issubclass(builtin, BaseException)
        if name in seen or name not in classes:
            return False
        return any(is_exception(base, seen | {name}) for base in classes[name][0])

    return {name: is_exception(name, frozenset()) and not abstract for name, (_, abstract) in classes.items()}


@cache
def _project_classes(root: str) -> tuple[tuple[str, tuple[list[str], bool]], ...]:
    found: list[tuple[str, tuple[list[str], bool]]] = []
    for file in sorted(Path(root).rglob("*.py"))[:5000]:
        try:
            found += _classes(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
    return tuple(found)


def _classes(code: str) -> Iterator[tuple[str, tuple[list[str], bool]]]:
    """(name, (last names of the bases, whether it has abstract methods)) of the classes of a text that parses."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            named = [b for b in node.bases if isinstance(b, (ast.Name, ast.Attribute))]
            bases = [b.id if isinstance(b, ast.Name) else b.attr for b in named]
            methods = [f for f in node.body if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
            abstract = any("abstractmethod" in ast.dump(d) for f in methods for d in f.decorator_list)
            yield node.name, (bases, abstract)


def _tolerant(code: str) -> str:
    """Only the class statements of a text that does not parse, as empty classes."""
    try:
        ast.parse(code)
        return code
    except (SyntaxError, ValueError, RecursionError):
        heads = re.findall(r"^[ \t]*(class\s+\w+\s*(?:\([^()]*\))?)\s*:", code, re.MULTILINE)
        return "\n".join(f"{head}: pass" for head in heads)
