"""Tasks that a tiny diffusion language model learns in minutes: Sudoku, addition with its work shown, text.

Each draws examples of one prompt length and one answer length, some of which are held out: never drawn for training.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from likely.data.datasets import data_root, find_path
from likely.errors import check_choice

MASK, END = "<mask>", "<end>"


class TinyTask(Protocol):
    """What a model is trained on.

    alphabet       the characters of its texts; ids of tokens: 0 the mask, 1 the end, then these in order
    prompt_length, answer_length  in characters; a shorter answer is filled up with end tokens
    answer_span    (start, end) of the part of the answer that counts, behind its work; None: all of it
    """

    @property
    def name(self) -> str: ...
    @property
    def alphabet(self) -> str: ...
    @property
    def prompt_length(self) -> int: ...
    @property
    def answer_length(self) -> int: ...
    @property
    def answer_span(self) -> tuple[int, int] | None: ...

    def draw(self, rng: np.random.Generator, count: int, *, held_out: bool = False) -> list[tuple[str, str]]:
        """Examples (prompt, answer), of training or of what is held out from it."""

    def is_right(self, prompt: str, answer: str) -> bool:
        """Whether an answer, without its end tokens, solves what the prompt asks."""


# --- Sudoku -----------------------------------------------------------------------------------------------------------


def is_valid_grid(grid: str) -> bool:
    """Whether 16 digits are a 4x4 Sudoku: 1 to 4 in every row, column and 2x2 box."""
    if not re.fullmatch("[1-4]{16}", grid):
        return False
    rows = [grid[i : i + 4] for i in (0, 4, 8, 12)]
    columns = [grid[i::4] for i in range(4)]
    boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return all(len(set(four)) == 4 for four in (*rows, *columns, *boxes))


@cache
def sudoku_grids() -> tuple[str, ...]:
    """All 288 valid grids of 4x4, as 16 digits, in order."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    bands = [a + b for a, b in itertools.product(rows, repeat=2) if len({*a[:2], *b[:2]}) == len({*a[2:], *b[2:]}) == 4]
    return tuple(grid for a, b in itertools.product(bands, repeat=2) if is_valid_grid(grid := a + b))


@dataclass(frozen=True)
class Sudoku:
    """A 4x4 grid with 4 to 12 blanks (".") -> the whole grid.  58 of the 288 grids are held out."""

    held_out: int = 58
    blanks: tuple[int, int] = (4, 12)
    name: str = "sudoku"
    alphabet: str = "1234."
    prompt_length: int = 16
    answer_length: int = 16
    answer_span: None = None

    def draw(self, rng: np.random.Generator, count: int, *, held_out: bool = False) -> list[tuple[str, str]]:
        grids = np.array(sudoku_grids())[np.random.default_rng(0).permutation(288)]
        grids = grids[: self.held_out] if held_out else grids[self.held_out :]
        found = []
        for grid in rng.choice(grids, count):
            cells = list(grid)
            for at in rng.permutation(16)[: rng.integers(self.blanks[0], self.blanks[1] + 1)]:
                cells[at] = "."
            found.append(("".join(cells), str(grid)))
        return found

    def is_right(self, prompt: str, answer: str) -> bool:
        """A valid grid that keeps the clues; a puzzle may have several."""
        return (
            len(prompt) == 16
            and is_valid_grid(answer)
            and all(clue in (".", cell) for clue, cell in zip(prompt, answer, strict=True))
        )


# --- addition ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Addition:
    """Two numbers of three digits -> column by column from the right, with carries, then "The answer is N".

    345+678= becomes 5+8+0=13,4+7+1=12,3+6+1=10. The answer is 1023, with end tokens behind.  One pair of ten is held
    out.
    """

    digits: int = 3
    name: str = "addition"
    alphabet: str = "0123456789+=,. Taehinrsw"
    suffix: str = ". The answer is "

    @property
    def prompt_length(self) -> int:
        return 2 * self.digits + 2

    @property
    def answer_start(self) -> int:
        """Where in the answer N begins."""
        return 9 * self.digits - 1 + len(self.suffix)

    @property
    def answer_span(self) -> tuple[int, int]:
        return self.answer_start, self.answer_start + self.digits + 1

    @property
    def answer_length(self) -> int:
        return -(-self.answer_span[1] // 8) * 8

    def draw(self, rng: np.random.Generator, count: int, *, held_out: bool = False) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        low = 10 ** (self.digits - 1)
        while len(found) < count:
            a, b = (int(x) for x in rng.integers(low, 10 * low, 2))
            if ((7919 * a + 6007 * b) % 1009 % 10 == 0) == held_out:  # of every pair of last digits about a tenth
                found.append((f"{a}+{b}=", self.worked(a, b)))
        return found

    def worked(self, a: int, b: int) -> str:
        """The answer with its work."""
        steps, carry = [], 0
        for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
            total = int(x) + int(y) + carry
            steps.append(f"{x}+{y}+{carry}={total:02d}")
            carry = total // 10
        return ",".join(steps) + self.suffix + str(a + b)

    def is_right(self, prompt: str, answer: str) -> bool:
        """N is the sum, whatever the work says."""
        a, b = prompt.removesuffix("=").split("+")
        return answer[self.answer_start :] == str(int(a) + int(b))


# --- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shakespeare:
    """Windows of tinyshakespeare: `prompt_length` characters -> those that follow.  The last tenth is held out."""

    prompt_length: int = 32
    answer_length: int = 96
    data_dir: str | None = None
    name: str = "shakespeare"
    answer_span: None = None
    text: str = field(default="", repr=False, compare=False)

    @property
    def alphabet(self) -> str:
        return _characters(self.whole)

    @property
    def whole(self) -> str:
        """The text, of which the last tenth is held out."""
        return self.text or _shakespeare(data_root(self.data_dir))

    def draw(self, rng: np.random.Generator, count: int, *, held_out: bool = False) -> list[tuple[str, str]]:
        text, length = self.whole, self.prompt_length + self.answer_length
        cut = len(text) * 9 // 10
        text = text[cut:] if held_out else text[:cut]
        starts = rng.integers(0, len(text) - length + 1, count)
        return [(text[s : s + self.prompt_length], text[s + self.prompt_length : s + length]) for s in starts]

    def is_right(self, prompt: str, answer: str) -> bool:
        """Whether the text is long enough: there is no other right or wrong."""
        return len(answer) == self.answer_length


@cache
def _characters(text: str) -> str:
    return "".join(sorted(set(text)))


@cache
def _shakespeare(root: Path) -> str:
    with gzip.open(
        find_path("tinyshakespeare", "input.txt.gz", data_dir=root), "rt", encoding="utf-8", newline=""
    ) as file:
        return file.read()


TASKS: Mapping[str, type[Sudoku] | type[Addition] | type[Shakespeare]] = {
    "sudoku": Sudoku, "addition": Addition, "shakespeare": Shakespeare
}  # fmt: skip


def make_task(name: str) -> TinyTask:
    """A task by name: sudoku, addition, shakespeare."""
    check_choice("task", name, TASKS)
    return TASKS[name]()


# --- tokens -----------------------------------------------------------------------------------------------------------


def encode_examples(task: TinyTask, examples: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(ids (B, T), answer (B, T) bool): prompts, then answers filled up with end tokens."""
    place = {char: number for number, char in enumerate(task.alphabet, 2)}
    length = task.prompt_length + task.answer_length
    ids = np.ones((len(examples), length), np.int64)
    for row, (prompt, answer) in zip(ids, examples, strict=True):
        text = prompt + answer
        row[: len(text)] = [place[char] for char in text]
    is_answer = np.zeros(ids.shape, bool)
    is_answer[:, task.prompt_length :] = True
    return ids, is_answer


def decode_answer(task: TinyTask, ids: Iterable[int]) -> str:
    """The text of an answer's tokens before its first end token; "?" for one that is no character."""
    text = ""
    for token in ids:
        if token == 1:
            break
        text += task.alphabet[token - 2] if token > 1 else "?"
    return text


def tokenizer_files(task: TinyTask) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a task: one token per character, the mask and the end in front."""
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    from likely.tokenizers.huggingface import byte_alphabet
    from tokenizers import AddedToken, Tokenizer

    spelled = byte_alphabet()
    if any(ord(char) > 127 for char in task.alphabet):
        raise ValueError("the alphabet of a task is ASCII")
    vocab = {MASK: 0, END: 1, **{spelled[ord(char)]: number for number, char in enumerate(task.alphabet, 2)}}
    backend = Tokenizer(BPE(vocab, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = Decoder()
    backend.add_special_tokens([AddedToken(MASK, normalized=False), AddedToken(END, normalized=False)])
    settings = {"eos_token": END, "mask_token": MASK, "add_bos_token": False}
    return {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
    }
