"""How completed code compares with the true code: pure functions of texts (Agrawal et al. 2023, section 4)."""

from __future__ import annotations

import ast
import io
import keyword
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Sequence

NAME = re.compile(r"[^\W\d]\w*")


def next_identifier_match(completion: str, truth: str) -> bool:
    """NIM: whether the first identifier of the completion is that of the truth."""
    mine, theirs = NAME.search(completion), NAME.search(truth)
    return theirs is not None and mine is not None and mine[0] == theirs[0]


def identifiers(code: str) -> list[str]:
    """Identifiers of a piece of Python in order; keywords, strings and comments are none."""
    return [t for t in language_tokens(code) if NAME.fullmatch(t) and not keyword.iskeyword(t)]


def language_tokens(code: str) -> list[str]:
    """Python's tokens of a piece of code, which need not be whole; comments and blanks are none.

    What `tokenize` cannot read (an open string) is cut into words and single characters.
    """
    found: list[str] = []
    lines = code.splitlines(keepends=True)
    end = (1, 0)
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP, tokenize.ERRORTOKEN)
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type in kinds and token.string.strip():
                found.append(token.string)
            end = max(end, token.end)
    except (tokenize.TokenError, SyntaxError, IndentationError):
        rest = "".join(lines[end[0] - 1 :])[end[1] :] if end[0] <= len(lines) else ""
        found += re.findall(r"\w+|[^\w\s]", rest)
    return found


def prefix_match(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """Length of the longest common beginning over the length of `theirs`; 1 where that is empty."""
    if not theirs:
        return 1.0
    same = 0
    for a, b in zip(mine, theirs, strict=False):
        if a != b:
            break
        same += 1
    return same / len(theirs)


def identifier_sequence_match(completion: str, truth: str) -> float:
    """ISM: share of the true identifiers that the completion begins with, in order."""
    return prefix_match(identifiers(completion), identifiers(truth))


def language_prefix_match(completion: str, truth: str) -> float:
    """PM: the same over all tokens of the language."""
    return prefix_match(language_tokens(completion), language_tokens(truth))


def score_at_k(scores: Sequence[float], k: int) -> float:
    """Expected best of k out of n samples drawn without replacement.

    scores v_1 >= ... >= v_n (sorted here): (1 / C(n, k)) sum_{i=1}^{n-k+1} v_i C(n - i, k - 1).
    For scores 0 and 1 it is pass@k, 1 - C(n - c, k) / C(n, k); for k = 1 the mean.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n} (the number of samples), got {k}")
    ordered = sorted(scores, reverse=True)
    return sum(v * math.comb(n - i, k - 1) for i, v in enumerate(ordered[: n - k + 1], 1)) / math.comb(n, k)


def parses(code: str) -> bool:
    """Whether a whole file is legal Python."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def member_accesses(code: str) -> list[tuple[int, str]]:
    """(character offset of the member's name, the name) for each `receiver.name` of a file that parses."""
    starts = [0]
    lines = code.splitlines(keepends=True)
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.end_lineno is not None and node.end_col_offset is not None:
            line = lines[node.end_lineno - 1].encode()[: node.end_col_offset].decode()
            end = starts[node.end_lineno - 1] + len(line)
            found.append((end - len(node.attr), node.attr))
    return sorted(found)


def undefined_members(code: str, legal: Callable[[int], Iterable[str] | None]) -> set[str]:
    """Members that are accessed and that the analysis says the receiver does not have.

    legal  offset of the member's name -> the members there, None where they are not known
    """
    missing = set()
    for at, name in member_accesses(code):
        known = legal(at)
        if known is not None and name not in set(known):
            missing.add(name)
    return missing


def compiles(code: str, reference: str, legal: Callable[[str, int], Iterable[str] | None]) -> bool:
    """CR for Python: the file parses, and accesses no undefined member that the true file does not access as well.

    legal  (file, offset of a member's name) -> the members there, None where they are not known
    """
    if not parses(code):
        return False
    new = undefined_members(code, lambda at: legal(code, at))
    if not new:
        return True
    return not new - undefined_members(reference, lambda at: legal(reference, at))
