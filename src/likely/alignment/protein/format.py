"""How proteins are written for a language model, and which tokens that becomes.

Lv et al. 2024, "ProLLaMA: A Protein Large Language Model for Multi-Task Protein Language Processing", arXiv:2402.16445.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from likely.errors import DataError, ModelError
from likely.scoring.likelihood import Item
from likely.tokenizers.protocol import Tokenizer, begin, decode

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
GENERATE, DETERMINE = "[Generate by superfamily]", "[Determine superfamily]"
SEQUENCE, SUPERFAMILY, CLOSE = "Seq=<", "Superfamily=<", ">"
_FIELDS = re.compile(f"({SEQUENCE}|{SUPERFAMILY})([^<>]*)({CLOSE}?)")
TokenKind = Literal["residue", "bpe"]


@dataclass(frozen=True, eq=False)
class ProteinFormat:
    """Texts `Seq=<MKRVL>` and `Superfamily=<NAME>`, the two instructions about them, and their token ids.

    tokens        "residue": each letter within Seq=<...> is the one token that the tokenizer has for it, so that the
                  ids of a prefix are a prefix of the ids, and every residue has a likelihood.  "bpe": as the tokenizer
                  likes, as in the paper: it joins residues, and differently in a prefix than in the whole
    alphabet      letters of a sequence
    replacements  letter -> letter, for those outside the alphabet, such as {"U": "C"}; others are an error
    """

    tokenizer: Tokenizer
    tokens: TokenKind = "residue"
    alphabet: str = RESIDUES
    replacements: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tokens not in ("residue", "bpe"):
            raise ValueError(f'tokens must be "residue" or "bpe", got "{self.tokens}"')
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet) or set(self.alphabet) & set("<>"):
            raise ValueError(f"alphabet must be different letters, none of them < or >, got {self.alphabet!r}")
        for old, new in self.replacements.items():
            if len(old) != 1 or new not in self.alphabet or len(new) != 1:
                raise ValueError(f"replacements must map one letter to one of {self.alphabet}, got {old!r}: {new!r}")
        if self.tokenizer.eos_id is None:
            raise ModelError("this tokenizer has no end token, so a model cannot learn where a protein ends")
        if self.tokens == "residue":
            _ = self.letter_ids

    @cached_property
    def letter_ids(self) -> dict[str, int]:
        """The token of each letter and of `>`."""
        found = {}
        for letter in (*self.alphabet, CLOSE):
            ids = self.tokenizer.encode(letter)
            if len(ids) != 1:
                raise ModelError(f'this tokenizer writes "{letter}" in {len(ids)} tokens, not one: use tokens="bpe"')
            found[letter] = ids[0]
        return found

    # --- texts --------------------------------------------------------------------------------------------------------

    def checked(self, sequence: str, where: str = "") -> str:
        """The sequence with replacements made; DataError that names the first letter outside the alphabet.

        where  put in front of the message, such as "families.jsonl:17: "
        """
        if not sequence:
            raise DataError(f"{where}the sequence is empty")
        letters = [self.replacements.get(letter, letter) for letter in sequence]
        for place, letter in enumerate(letters, 1):
            if letter not in self.alphabet:
                raise DataError(
                    f'{where}residue {place} is "{letter}", allowed are {self.alphabet}: mend it, or name a replacement'
                )
        return "".join(letters)

    def sequence_text(self, sequence: str) -> str:
        return f"{SEQUENCE}{self.checked(sequence)}{CLOSE}"

    def superfamily_text(self, name: str, where: str = "") -> str:
        if not name.strip() or set(name) & set("<>"):
            raise DataError(f"{where}a superfamily needs a name without < and >, got {name!r}")
        return f"{SUPERFAMILY}{name}{CLOSE}"

    def generate_prompt(self, name: str) -> str:
        return f"{GENERATE} {self.superfamily_text(name)}"

    def determine_prompt(self, sequence: str) -> str:
        return f"{DETERMINE} {self.sequence_text(sequence)}"

    # --- token ids ----------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids, without a beginning-of-sequence token; of any text, in which the fields are found."""
        if self.tokens == "bpe":
            return self.tokenizer.encode(text)
        ids: list[int] = []
        at = 0
        for match in _FIELDS.finditer(text):
            head, inner, close = match.groups()
            ids += self.tokenizer.encode(text[at : match.start()] + head)
            ids += self._letters(inner) if head == SEQUENCE else self.tokenizer.encode(inner)
            ids += [self.letter_ids[CLOSE]] if close else []
            at = match.end()
        return ids + (self.tokenizer.encode(text[at:]) if text[at:] else [])

    def _letters(self, sequence: str) -> list[int]:
        return [self.letter_ids[letter] for letter in self.checked(sequence)] if sequence else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens say nothing."""
        return decode(self.tokenizer, ids)

    def document(self, sequence: str) -> Item:
        """A protein of stage 1 and the end token; all of it is learned but the first token, which has no condition."""
        return Item((*begin(self.tokenizer, self.encode(self.sequence_text(sequence))), self._end), 1)

    def generate_item(self, name: str, sequence: str) -> Item:
        """A row of stage 2: the sequence and the end token are learned, given instruction and superfamily."""
        return self._row(self.generate_prompt(name), self.sequence_text(sequence))

    def determine_item(self, sequence: str, name: str) -> Item:
        """A row of stage 2: the superfamily and the end token are learned, given instruction and sequence."""
        return self._row(self.determine_prompt(sequence), self.superfamily_text(name))

    def started(self, name: str | None, prefix: str = "") -> list[int]:
        """Ids after which a sequence is generated: the instruction (None: a bare protein) and its first residues."""
        text = f"{SEQUENCE}{self.checked(prefix) if prefix else ''}"
        return self.conditioned(None if name is None else self.generate_prompt(name), text)

    def conditioned(self, prompt: str | None, text: str) -> list[int]:
        """Ids of prompt and text, tokenised apart, with a space between them."""
        if prompt is None:
            return begin(self.tokenizer, self.encode(text))
        return [*begin(self.tokenizer, self.encode(prompt)), *self.encode(f" {text}")]

    def _row(self, prompt: str, target: str) -> Item:
        ids = self.conditioned(prompt, target)
        return Item((*ids, self._end), len(begin(self.tokenizer, self.encode(prompt))))

    @property
    def _end(self) -> int:
        assert self.tokenizer.eos_id is not None
        return self.tokenizer.eos_id
