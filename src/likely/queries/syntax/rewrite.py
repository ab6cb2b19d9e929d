"""The rewriting of a parsed query: prompt statements become calls of the run, clauses become trees of nodes."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

from likely.queries.syntax.template import HoleAt, LiteralText, PromptPiece, TemplateError, Value, pieces_of
from likely.queries.where.clause import ClauseWriter
from likely.queries.where.ops import registered

_ESCAPE = re.compile(r"\\(\n|[0-7]{1,3}|x[0-9a-fA-F]{2}|N\{[^}]*\}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.S)


class Rewriter:
    """error: made with (message, file, line, column);  run: name of the first parameter;  known: a name from outside"""

    def __init__(self, file: str, source: str, error: Callable[..., Exception], run: str, known: Callable[[str], bool]):
        self.file, self.error, self.run, self.known = file, error, run, known
        self.lines = source.splitlines(keepends=True)
        self.holes: list[str] = []
        self.where: ast.expr | None = None  # a clause that counts for every hole
        self.distribution: ast.expr | None = None  # for the whole program

    def function(self, function: ast.FunctionDef) -> ast.FunctionDef:
        prompts = [s for s in ast.walk(function) if isinstance(s, ast.Expr) and prompt_of(s)]
        self._prompts = sorted(prompts, key=lambda s: (s.lineno, s.col_offset))
        for statement in self._prompts:
            for piece in self._pieces(statement)[0]:
                if isinstance(piece, HoleAt) and piece.name not in self.holes:
                    self.holes.append(piece.name)
        self._check_distribution(function)
        clauses = [c for s in self._prompts if (c := self._pieces(s)[1].get("where")) is not None]
        for clause in clauses + ([self.where] if self.where is not None else []):
            self._check_names(clause, function)
        made = _Statements(self).visit(copy.deepcopy(function))
        made.args.posonlyargs = [ast.arg(self.run), *made.args.posonlyargs]
        made.decorator_list = []
        return made

    def fail(self, message: str, node: ast.AST, column: int | None = None, line: int | None = None) -> Exception:
        at = getattr(node, "col_offset", 0) if column is None else column
        return self.error(message, self.file, getattr(node, "lineno", 1) if line is None else line, at + 1)

    # --- one prompt statement -------------------------------------------------------------------------------------

    def statements(self, statement: ast.stmt) -> list[ast.stmt]:
        pieces, clauses, options = self._pieces(statement)
        names = [p.name for p in pieces if isinstance(p, HoleAt)]
        where, distribution = clauses.get("where"), clauses.get("distribution")
        joined = [w for w in (where, self.where) if w is not None]
        if where is not None and not names:
            raise self.fail("where has no hole to restrict: its prompt has none", where)
        target, values = self._target(distribution or (self.distribution if self._is_last(names) else None), names)
        made: list[ast.stmt] = []
        for number, piece in enumerate(pieces):
            match piece:
                case LiteralText(text):
                    made.append(self._call("say", [ast.Constant(text)]))
                case Value(expression, at):
                    made.append(self._call("put", [self._expression(expression, statement, at)]))
                case HoleAt(name, tactic, at, decorator):
                    later = [p.name for p in pieces[number + 1 :] if isinstance(p, HoleAt)]
                    call: ast.expr
                    if name == target:
                        call = self._method("distribution", [ast.Constant(name), values], options)
                    else:
                        call = self._gen(name, tactic, at, joined, later, statement)
                    made.append(ast.Assign([ast.Name(name, ast.Store())], call))
                    if decorator:
                        function = self._expression(decorator, statement, at)
                        changed = self._method("decorated", [ast.Constant(name), function])
                        made.append(ast.Assign([ast.Name(name, ast.Store())], changed))
        for node in made:
            for inner in ast.walk(node):
                if not hasattr(inner, "lineno"):
                    ast.copy_location(inner, statement)
        return made or [ast.copy_location(ast.Pass(), statement)]

    def _gen(
        self, name: str, tactic: str, at: int, joined: list[ast.expr], later: list[str], statement: ast.stmt
    ) -> ast.expr:
        keywords = []
        if tactic:
            kind = self._expression(tactic, statement, at + len(name) + 1)
            if isinstance(kind, ast.Call):  # another query with arguments
                kind = self._method("nested", [kind.func, *kind.args], kind.keywords)
            keywords.append(ast.keyword("type", kind))
        if joined:
            writer = ClauseWriter(set(self.holes), self.run, self.fail)
            parts = [writer.condition(copy.deepcopy(w)) for w in joined]
            body = parts[0] if len(parts) == 1 else writer.call("both", parts)
            nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
            keywords.append(ast.keyword("where", ast.Lambda(nothing, body)))
            keywords.append(ast.keyword("later", ast.Tuple([ast.Constant(h) for h in later], ast.Load())))
        return self._method("gen", [ast.Constant(name)], keywords)

    def _target(self, node: ast.expr | None, names: list[str]) -> tuple[str, ast.expr]:
        """(the distribution hole, its values); ("", ...) for none."""
        if node is None:
            return "", ast.Constant(None)
        if not (isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and isinstance(node.ops[0], ast.In)):
            raise self.fail("distribution reads: distribution HOLE in [values]", node)
        name = node.left.id
        if name not in names:
            raise self.fail(f"distribution names {name}, which is no hole of this prompt", node.left)
        if names[-1] != name:
            raise self.fail(f"the distribution hole {name} must be the last, {names[-1]} comes after it", node.left)
        return name, node.comparators[0]

    def _is_last(self, names: list[str]) -> bool:
        node = self.distribution
        return isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id in names

    def _check_distribution(self, function: ast.FunctionDef) -> None:
        """A distribution must belong to the last prompt with a hole, outside of loops."""
        order = self._prompts
        holes = [s for s in order if any(isinstance(p, HoleAt) for p in self._pieces(s)[0])]
        for statement in order:
            clause = self._pieces(statement)[1].get("distribution")
            if clause is None:
                continue
            later = [s for s in holes if s.lineno > statement.lineno]
            loop = next(
                (n for n in ast.walk(function) if isinstance(n, (ast.For, ast.While)) and statement in ast.walk(n)),
                None,
            )
            if loop is not None:
                raise self.fail("a distribution hole must be the last hole: it cannot stand in a loop", statement)
            if later and not _exclusive(function, statement, later):
                raise self.fail(
                    f"a distribution hole must be the last hole: another follows in line {later[0].lineno}", statement
                )

    def _check_names(self, clause: ast.expr, inside: ast.FunctionDef) -> None:
        """Every name of a clause is a hole or a name that the program or Python knows."""
        bound = bound_names([inside, clause])
        bound |= {a.arg for tree in (inside, clause) for a in ast.walk(tree) if isinstance(a, ast.arg)}
        for node in ast.walk(clause):
            if not isinstance(node, ast.Name) or node.id in bound or node.id in self.holes:
                continue
            if node.id not in (*ClauseWriter.NAMES, *registered()) and not self.known(node.id):
                holes = ", ".join(self.holes) or "none"
                raise self.fail(f"where names {node.id}, which is no hole of this query (holes: {holes})", node)

    # --- helpers --------------------------------------------------------------------------------------------------

    def _pieces(self, statement: ast.stmt) -> tuple[list[PromptPiece], dict[str, ast.expr], list[ast.keyword]]:
        found = prompt_of(statement)
        assert found is not None
        constant, calls = found
        clauses: dict[str, ast.expr] = {}
        options: list[ast.keyword] = []
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            if len(call.args) != 1:
                raise self.fail(f"{call.func.attr} takes one condition", call)
            if call.func.attr in clauses:
                raise self.fail(f"{call.func.attr} stands twice", call)
            clauses[call.func.attr] = call.args[0]
            options += call.keywords
        try:
            return pieces_of(str(constant.value)), clauses, options
        except TemplateError as error:
            line, column = self._place(constant, error.at)
            raise self.fail(str(error), constant, column, line) from None

    def _place(self, constant: ast.Constant, at: int) -> tuple[int, int]:
        """(line, column from 0) of character `at` of a string in the source."""
        line, column = constant.lineno, constant.col_offset
        raw = self.lines[line - 1].encode()[column:].decode() if line <= len(self.lines) else ""
        rest = raw + "".join(self.lines[line:])
        head = re.match(r"([A-Za-z]*)('''|\"\"\"|'|\")", rest)
        if not head:
            return line, column
        place, raw_string = head.end(), "r" in head[1].lower()
        while at > 0 and place < len(rest):
            escape = None if raw_string or rest[place] != "\\" else _ESCAPE.match(rest, place)
            if escape:
                at -= 0 if escape[1] == "\n" else 1
                place = escape.end()
            else:
                at, place = at - 1, place + 1
        before = rest[:place]
        if "\n" in before:
            return line + before.count("\n"), len(before) - before.rindex("\n") - 1
        return line, column + place

    def _expression(self, text: str, statement: ast.stmt, at: int) -> ast.expr:
        found = prompt_of(statement)
        assert found is not None
        line, column = self._place(found[0], at)
        try:
            node = ast.parse(f"({text})", self.file, "eval").body
        except SyntaxError as error:
            raise self.fail(f"{error.msg}: {text[:60]}", statement, column, line) from None
        for inner in ast.walk(node):
            if hasattr(inner, "lineno"):
                inner.lineno = inner.end_lineno = line  # type: ignore[attr-defined]
                inner.col_offset = inner.end_col_offset = column  # type: ignore[attr-defined]
        return node

    def _method(self, name: str, args: list[ast.expr], keywords: list[ast.keyword] | None = None) -> ast.Call:
        return ast.Call(ast.Attribute(ast.Name(self.run, ast.Load()), name, ast.Load()), args, keywords or [])

    def _call(self, name: str, args: list[Any]) -> ast.stmt:
        return ast.Expr(self._method(name, args))


class _Statements(ast.NodeTransformer):
    """Replaces prompt statements, in nested blocks, too."""

    def __init__(self, rewriter: Rewriter):
        self.rewriter = rewriter

    def visit_Expr(self, node: ast.Expr) -> Any:
        if prompt_of(node) is None:
            return node
        return self.rewriter.statements(node)


def bound_names(trees: Sequence[ast.AST]) -> set[str]:
    """Names that these define."""
    nodes = [n for tree in trees for n in ast.walk(tree)]
    found = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    found |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return found | {n.asname or n.name.split(".")[0] for n in nodes if isinstance(n, ast.alias)}


def prompt_of(statement: ast.AST) -> tuple[ast.Constant, list[ast.Call]] | None:
    """(the string, its .where and .distribution calls) of a prompt statement; None for any other."""
    if not isinstance(statement, ast.Expr):
        return None
    node, calls = statement.value, []
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr not in ("where", "distribution"):
            return None
        calls.append(node)
        node = node.func.value
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node, calls
    return None


def _exclusive(function: ast.FunctionDef, statement: ast.stmt, later: Sequence[ast.stmt]) -> bool:
    """Whether all later prompts stand in other branches of an `if` around the statement."""
    for node in ast.walk(function):
        if isinstance(node, ast.If):
            inside = [s for part in node.body for s in ast.walk(part)]
            others = [s for part in node.orelse for s in ast.walk(part)]
            if statement in inside and all(s in others for s in later):
                return True
    return False
