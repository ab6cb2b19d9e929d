"""Constraints by llguidance: lazy regex derivatives under an Earley parser, walked along a trie of the tokens.

It enforces what it accepts and refuses the rest, which is the only behaviour that deserves the word guarantee.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from likely.decoding.constraint import Mask, contains, no_tokens
from likely.errors import ConstraintError, needs
from likely.guided.json_schema.document import Schema
from likely.guided.settings import FormSettings, Whitespace
from likely.guided.text_constraint import TextConstraint
from likely.guided.vocabulary import Vocabulary

MAX_STATES = 50_000  # of one form's lexer, of some 1-2 kB each


class LLGuidance:
    """The engine for one vocabulary: compiles grammars into constraints."""

    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary, *, slices: Sequence[str] | None = None):
        """slices  regular expressions whose tokens are prepared as one set each; None: the engine's own choice"""
        self.vocabulary, self._slices = vocabulary, None if slices is None else list(slices)
        with needs("llguidance", "guided"):
            import llguidance
        self._library = llguidance

    @cached_property
    def _limits(self) -> Any:
        """The engine's own bounds on the work of compiling (some 20 ms) and of a step, with fewer states kept."""
        return self._library.LLParserLimits(max_lexer_states=MAX_STATES, verbose_errors=False)

    @cached_property
    def _tokenizer(self) -> Any:
        vocabulary = self.vocabulary
        wrapper = self._library.TokenizerWrapper(_Tokens(vocabulary))
        ends = sorted(vocabulary.end_ids, key=lambda i: i != vocabulary.eos_id)
        return self._library.LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=ends, slices=self._slices)

    def compile_schema(self, schema: Schema, settings: FormSettings) -> LLGuidanceConstraint:
        """A constraint in its first state, from a schema that passed the preflight."""
        return self.compile("start: " + inline_schema(schema, settings))

    def compile(self, lark: str) -> LLGuidanceConstraint:
        """A constraint in its first state, from a grammar in llguidance's dialect of Lark.

        Masks hold every way to cut a text into tokens, not only the tokenizer's own: "no_forcing" says so.
        """
        whole = lark if lark.lstrip().startswith("%llguidance") else '%llguidance {"no_forcing": true}\n' + lark
        grammar = self._library.LLMatcher.grammar_from_lark(whole)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise ConstraintError(why_refused(lark) or _first_lines(matcher.get_error()))  # places in the user's text
        return LLGuidanceConstraint(self.vocabulary, matcher)


def why_refused(lark: str) -> str:
    """What is wrong with a grammar, whatever the model: line(column) and the reason; "" for one that can be used."""
    with needs("llguidance", "guided"):
        from llguidance import LLMatcher
    message = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark))
    return _first_lines(message) if message else ""


@dataclass(eq=False)
class LLGuidanceConstraint(TextConstraint):
    """The state of one text, most of it the engine's own: its matcher, which never sees the end token."""

    matcher: Any
    _mask: Mask | None = field(default=None, repr=False)

    @property
    def accepting(self) -> bool:
        return self.ended or self.matcher.is_accepting()

    @property
    def finished(self) -> bool:
        return self.ended or (self.matcher.is_stopped() and self.matcher.is_accepting())

    def _text_mask(self) -> Mask:
        if self._mask is None:
            mask = no_tokens(self.vocab_size)
            self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if not self.matcher.get_error().startswith("NoExtensionBias"):  # its word for an empty set
                self._check()
            self._mask = mask & self.vocabulary.text_mask
        return self._mask

    def _may_follow(self, token: int, text: bytes) -> bool:
        if self._mask is not None:
            return contains(self._mask, token)
        return self.matcher.validate_tokens([token]) == 1  # one token is tried in less time than all

    def _forced(self) -> list[int]:
        return self.vocabulary.guess(self.matcher.compute_ff_bytes())

    def _take(self, token: int) -> None:
        self.matcher.consume_token(token)
        self._check()
        self._mask = None

    def _undo(self, n: int) -> None:
        self._mask = None
        if not self.matcher.rollback(n):
            raise ValueError(f"cannot take back {n} tokens: {_first_lines(self.matcher.get_error())}")

    def fork(self) -> LLGuidanceConstraint:
        return replace(self, matcher=self.matcher.deep_copy())

    def _check(self) -> None:
        if self.matcher.is_error():
            raise ConstraintError(_first_lines(self.matcher.get_error()))


def inline_schema(schema: Schema, settings: FormSettings) -> str:
    """A schema that passed the preflight, as part of a rule in this engine's dialect of Lark."""
    options = _json_options(schema, settings.whitespace)
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def _json_options(schema: Schema, whitespace: Whitespace) -> dict[str, Any]:
    """How JSON is written.

    Characters are not written as \\uXXXX, so that a key has one spelling; only where the schema names control
    characters, which have no other.
    """
    ways: dict[str, dict[str, Any]] = {
        "compact": {"whitespace_flexible": False},
        "single": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
        "any": {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,8}"},  # each run may also be left out
    }
    options = ways[whitespace]
    if not _UNNAMED_CONTROLS.search(json.dumps(schema, ensure_ascii=False)):
        options["json_allowed_escapes"] = 'nrbtf\\"'
    return options


_UNNAMED_CONTROLS = re.compile(r"(?:\\u00|\\\\x)(?:0[0-7be-f]|1[0-9a-f]|7f)|\x7f")  # as values, or within patterns


class _Tokens:
    """The vocabulary in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary):
        self.eos_token_id, self.bos_token_id = vocabulary.eos_id, None
        # every id without text is special, named by its number: no text of a grammar can reach it
        self.tokens = [text or b"<|%d|>" % i for i, text in enumerate(vocabulary.tokens)]
        self.special_token_ids = [i for i, text in enumerate(vocabulary.tokens) if not text]
        self._spell = vocabulary.spell

    def __call__(self, text: bytes | str) -> Sequence[int]:
        return self._spell(text.encode() if isinstance(text, str) else text)


def _first_lines(message: str) -> str:
    """The engine's error in one line, without its excerpt of the grammar and its own state."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines()]
    said = [line for line in lines if line.strip("^ ") and not re.match(r"\d+ \|", line)]
    return " ".join(said)[:400] or "unknown error of llguidance"
