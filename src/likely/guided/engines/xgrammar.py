"""Constraints by xgrammar: a pushdown automaton with masks computed per vocabulary; fast on schemas that come again.

It silently accepts what breaks many keywords, so that a schema reaches it only behind the preflight (schema_keywords).
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from likely.decoding.constraint import Mask
from likely.errors import CapabilityError, ConstraintError, missing_extra
from likely.guided.engines.matcher import MatcherConstraint
from likely.guided.form import Form, FormSettings
from likely.guided.json_schema.document import Schema
from likely.guided.json_schema.patterns import plain_body
from likely.guided.vocabulary import Vocabulary

MOST_WHITESPACE = 8


class XGrammar:
    """The engine for one vocabulary."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        try:
            import xgrammar
        except ImportError:
            raise missing_extra("xgrammar", "xgrammar") from None
        self._library = xgrammar

    @cached_property
    def _compiler(self) -> Any:
        vocabulary, library = self.vocabulary, self._library
        info = library.TokenizerInfo(
            list(vocabulary.tokens),
            vocab_type=library.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=sorted(vocabulary.end_ids),
        )
        return library.GrammarCompiler(info, max_threads=1, cache_enabled=False)  # compiled forms are kept by the guide

    def compile(self, form: Form) -> XGrammarConstraint:
        """A constraint in its first state.  Schemas, choices, and regular expressions of plain characters."""
        if form.kind == "schema":
            return self.compile_schema(form.source, form.settings)
        if form.kind == "choices":
            rule = "root ::= " + " | ".join(_quoted(choice) for choice in form.source)
            return self._made(lambda: self._compiler.compile_grammar(rule))
        if form.kind == "regex":
            body = plain_body(f"^(?:{form.source})$")
            if body is None:
                raise CapabilityError(
                    'backend="xgrammar" takes regular expressions of printable ASCII without anchors, " and \\; '
                    'use backend="llguidance"'
                )
            return self._made(lambda: self._compiler.compile_regex(body))
        raise CapabilityError('backend="xgrammar" takes no grammar in Lark notation: use backend="llguidance"')

    def compile_json(self, schema: Schema) -> XGrammarConstraint:
        """Of a schema as the engine itself reads it, open objects being open: nothing is promised."""
        return self._made(lambda: self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False))

    def compile_schema(self, schema: Schema, settings: FormSettings) -> XGrammarConstraint:
        """Of a schema that passed the preflight."""
        separators = {"compact": (",", ":"), "single": (", ", ": "), "any": None}[settings.whitespace]
        flexible = settings.whitespace == "any"
        return self._made(
            lambda: self._compiler.compile_json_schema(
                json.dumps(schema),
                any_whitespace=flexible,
                separators=separators,
                strict_mode=False,
                max_whitespace_cnt=MOST_WHITESPACE if flexible else None,
            )
        )

    def _made(self, compiled: Any) -> XGrammarConstraint:
        try:
            return XGrammarConstraint(self._library.GrammarMatcher(compiled()), self.vocabulary)
        except RuntimeError as error:
            raise ConstraintError(_one_line(str(error))) from None


class XGrammarConstraint(MatcherConstraint):
    """The state of one text."""

    @property
    def finished(self) -> bool:
        if self.ended:
            return True
        return self.accepting and not (self.allowed() & ~self.vocabulary.end_mask).any()

    def forced(self) -> list[int]:
        if self.ended:
            return []
        try:
            text = self.matcher.find_jump_forward_string().encode()
        except UnicodeDecodeError:  # it ends, or begins, inside a character
            return []
        if not text and self.finished:
            return [self.vocabulary.eos_id]
        return self.vocabulary.guess(text)

    def _is_whole(self) -> bool:
        return self.matcher.is_completed()

    def _fill(self, mask: Mask) -> None:
        if not self.matcher.fill_next_token_bitmask(mask.view("int32")[None]):
            mask[:] = 0xFFFFFFFF  # it left the mask alone: everything goes

    def _take(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise ConstraintError(f"xgrammar refused token {token}, which its own mask allows")

    def _undo(self, n: int) -> None:
        try:
            self.matcher.rollback(n)
        except RuntimeError as error:
            raise ValueError(f"cannot take back {n} tokens: {_one_line(str(error))}") from None

    def _copied(self) -> Any:
        return self.matcher.fork()


def _quoted(text: str) -> str:
    """A literal of xgrammar's EBNF."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isascii() and char.isprintable():
            out.append(char)
        else:
            out.append(f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def _one_line(message: str) -> str:
    """Without the place in the engine's source."""
    return re.sub(r"^\[[\d:]+\] \S+: ", "", " ".join(message.split()))[:400]
