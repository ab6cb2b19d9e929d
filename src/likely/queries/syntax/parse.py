"""Queries written as text: Python in which a bare string is a prompt statement.

    argmax(max_tokens=60)
    "Q: {question}\\nA:[ANSWER]" where STOPS_BEFORE(ANSWER, "\\n") and len(TOKENS(ANSWER)) < 40
    "\\nThe answer is [LABEL]" distribution LABEL in ["yes", "no"]

The text is rewritten into Python that calls the methods of `QueryRun`; line numbers stay.  A text with arguments is one
function definition; the paper's form (decoder, prompt, `from` model, `where`, `distribution`) is understood, too.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import textwrap
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from likely.errors import ConstraintError
from likely.queries.decoders import OPTIONS as DECODERS
from likely.queries.decoders import Decoder, make_decoder
from likely.queries.syntax.rewrite import Rewriter, bound_names, prompt_of

RUN = "__q__"  # the name of the run in rewritten programs
SUBQUERY = "__subquery__"  # makes a query of a rewritten function


class QuerySyntaxError(ConstraintError):
    """A query that cannot be read; line and column (from 1) of what is wrong."""

    def __init__(self, message: str, file: str, line: int, column: int):
        super().__init__(f"{file}:{line}:{column}: {message}")
        self.line, self.column = line, column


@dataclass(frozen=True)
class Parsed:
    """function: name of a definition in the module, whose first parameter is the run;  holes: their names in order"""

    module: ast.Module
    function: str
    decoder: Decoder | None
    model: str | None
    holes: tuple[str, ...]


@dataclass(frozen=True)
class _Sections:
    body: str
    decoder: str = ""
    model: str = ""
    where: str = ""
    distribution: str = ""
    lines: tuple[int, int] = (1, 1)  # where the last two begin


def parse(text: str, file: str = "query") -> Parsed:
    """The program of a text.  QuerySyntaxError says where it is wrong."""
    source = text if text.endswith("\n") else text + "\n"
    sections = _standalone(source, file) or _Sections(source)
    body = _with_methods(sections.body, file)
    module = _parsed(body, file)
    assert isinstance(module, ast.Module)
    decoder = _decoder(_expression(sections.decoder, file, 1), file) if sections.decoder else None
    model = _literal_model(sections.model) if sections.model else None
    statements = module.body
    if statements and (found := take_decoder(statements[0], file)):
        decoder, statements = found, statements[1:]
    function, before = _function_of(statements, file)
    if before is None:
        before = []
    elif function.body and (found := take_decoder(function.body[0], file)):
        decoder, function.body = found, function.body[1:] or [ast.Pass()]
    outside = bound_names(before)
    rewriter = Rewriter(file, body, QuerySyntaxError, RUN, lambda name: name in outside or hasattr(builtins, name))
    if sections.where:
        rewriter.where = _expression(sections.where, file, sections.lines[0])
    if sections.distribution:
        rewriter.distribution = _expression(sections.distribution, file, sections.lines[1])
    rewritten = rewriter.function(function)
    others = [_as_subquery(s, file, body, rewriter.known) for s in before]
    made = ast.Module(body=[*others, rewritten], type_ignores=[])
    ast.fix_missing_locations(made)
    return Parsed(made, rewritten.name, decoder, model, tuple(rewriter.holes))


def _as_subquery(statement: ast.stmt, file: str, source: str, known: Callable[[str], bool]) -> ast.stmt:
    """A function with prompts, that stands before the query, as a query of its own; any other statement as it is."""
    if not isinstance(statement, ast.FunctionDef) or not any(map(prompt_of, ast.walk(statement))):
        return statement
    if ast.get_docstring(statement) and sum(prompt_of(s) is not None for s in ast.walk(statement)) == 1:
        return statement
    made = Rewriter(file, source, QuerySyntaxError, RUN, known).function(statement)
    made.decorator_list = [ast.Name(SUBQUERY, ast.Load())]
    return made


def parse_function(function: ast.FunctionDef, source: str, file: str, known: Callable[[str], bool]) -> Parsed:
    """The program of a Python function whose bare strings are prompts."""
    decoder = take_decoder(function.body[0], file)
    if decoder:
        function.body = function.body[1:] or [ast.Pass()]
    rewriter = Rewriter(file, source, QuerySyntaxError, RUN, known)
    rewritten = rewriter.function(function)
    module = ast.fix_missing_locations(ast.Module(body=[rewritten], type_ignores=[]))
    return Parsed(module, rewritten.name, decoder, None, tuple(rewriter.holes))


def _function_of(statements: list[ast.stmt], file: str) -> tuple[ast.FunctionDef, list[ast.stmt] | None]:
    """(the function that is the query, what stands before it): a last definition, where no prompt stands outside.

    Else all statements are its body (and None stands before it).
    """
    last = statements[-1] if statements else None
    if isinstance(last, ast.FunctionDef) and not any(map(prompt_of, statements)):
        return last, statements[:-1]
    if not any(prompt_of(s) for statement in statements for s in ast.walk(statement)):
        raise QuerySyntaxError("a query needs a prompt: a string as a statement of its own", file, 1, 1)
    made = ast.parse("def query(): pass").body[0]
    assert isinstance(made, ast.FunctionDef)
    made.body = statements
    return made, None


def take_decoder(statement: ast.stmt, file: str) -> Decoder | None:
    """argmax, sample(n=3), ... as a statement of its own."""
    if not isinstance(statement, ast.Expr):
        return None
    node = statement.value
    name = node.func if isinstance(node, ast.Call) else node
    if not (isinstance(name, ast.Name) and name.id in DECODERS):
        return None
    return _decoder(node, file)


def _decoder(node: ast.expr, file: str) -> Decoder:
    try:
        if isinstance(node, ast.Name):
            return make_decoder(node.id)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError(
                f"a decoder is one of {', '.join(DECODERS)}, perhaps with settings, not {ast.unparse(node)}"
            )
        values = [ast.literal_eval(a) for a in node.args]
        options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return make_decoder(node.func.id, *values, **options)
    except (ValueError, TypeError) as error:
        raise QuerySyntaxError(str(error), file, node.lineno, node.col_offset + 1) from None


def _literal_model(text: str) -> str:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = text.strip()
    return str(value)


def _expression(text: str, file: str, line: int) -> ast.expr:
    node = _parsed("\n" * (line - 1) + "(" + text.strip() + ")", file, line, "eval")
    assert isinstance(node, ast.Expression)
    return node.body


def _parsed(source: str, file: str, line: int = 1, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    try:
        return ast.parse(source, file, mode)
    except SyntaxError as error:
        raise QuerySyntaxError(error.msg, file, error.lineno or line, error.offset or 1) from None
    except (ValueError, RecursionError, MemoryError) as error:  # NUL characters; brackets without end
        raise QuerySyntaxError(str(error) or "too deeply nested", file, line, 1) from None


# --- trailing keywords ------------------------------------------------------------------------------------------------


def _tokens(source: str, file: str) -> list[tokenize.TokenInfo]:
    try:
        return list(tokenize.generate_tokens(io.StringIO(source).readline))
    except tokenize.TokenError as error:
        message, (line, column) = error.args
        raise QuerySyntaxError(message, file, line, column + 1) from None
    except SyntaxError as error:
        raise QuerySyntaxError(error.msg, file, error.lineno or 1, error.offset or 1) from None


_SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def _with_methods(source: str, file: str) -> str:
    """`"..." where C distribution D` becomes `"...".where(C).distribution(D)`; nothing moves to another line."""
    lines = source.splitlines(keepends=True)
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    row: list[tokenize.TokenInfo] = []
    for token in _tokens(source, file):
        if token.type not in _SKIPPED:
            row.append(token)
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            edits += _edits(row, file)
            row = []
    for start, end, text in sorted(edits, reverse=True):
        (line, column), (_, until) = start, end
        lines[line - 1] = lines[line - 1][:column] + text + lines[line - 1][until:]
    return "".join(lines)


def _edits(row: list[tokenize.TokenInfo], file: str) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    count = next((i for i, t in enumerate(row) if t.type != tokenize.STRING), len(row))
    if not count or count == len(row):
        return []
    first = row[count]
    if first.type != tokenize.NAME or first.string not in ("where", "distribution"):
        return []
    edits, depth = [], 0
    opened = False
    for token in row[count:]:
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if depth == 0 and token.type == tokenize.NAME and token.string in ("where", "distribution"):
            edits.append((token.start, token.end, (")" if opened else "") + f".{token.string}("))
            opened = True
    last = row[-1].end
    edits.append((last, last, ")"))
    return edits


def _standalone(source: str, file: str) -> _Sections | None:
    """The paper's form, if the text has it: a decoder first and a `from` that is no import."""
    tokens = [t for t in _tokens(source, file) if t.type not in _SKIPPED]
    if not tokens or tokens[0].string not in DECODERS:
        return None
    depth = 0
    marks: list[tokenize.TokenInfo] = []
    for i, token in enumerate(tokens):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if depth or token.type != tokenize.NAME:
            continue
        if token.string == "from" and not any(
            t.string == "import" for t in tokens[i + 1 : i + 8] if t.start[0] == token.start[0]
        ):
            if not marks:
                marks.append(token)
        elif token.string in ("where", "distribution") and marks:
            marks.append(token)
    if not marks:
        return None
    offsets = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    starts = [offsets[t.start[0] - 1] + t.start[1] for t in marks]
    ends = [offsets[t.end[0] - 1] + t.end[1] for t in marks]
    pieces = {"from": "", "where": "", "distribution": ""}
    lines = {"where": 1, "distribution": 1}
    for mark, end, following in zip(marks, ends, [*starts[1:], len(source)], strict=True):
        pieces[mark.string] = source[end:following]
        lines[mark.string] = mark.start[0]
    head, depth = 0, 0  # the last token of the decoder
    if len(tokens) > 1 and tokens[1].string == "(":
        while head == 0 or depth:
            head += 1
            depth += (tokens[head].string == "(") - (tokens[head].string == ")")
    cut = offsets[tokens[head].end[0] - 1] + tokens[head].end[1]
    decoder = source[:cut]
    body = "\n" * decoder.count("\n") + _dedent(source[cut : starts[0]])
    return _Sections(
        body + "\n",
        decoder,
        pieces["from"],
        pieces["where"],
        pieces["distribution"],
        (lines["where"], lines["distribution"]),
    )


def _dedent(block: str) -> str:
    """The block at the left margin; text on the first line belongs to it."""
    first, newline, others = block.partition("\n")
    if first.strip():
        return first.strip() + newline + re.sub(r"(?m)^[ \t]+", "", others)
    return newline + textwrap.dedent(others)
