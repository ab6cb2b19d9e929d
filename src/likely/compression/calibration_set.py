"""Windows of tokens that a method looks at, or that a model is judged on: from data sets, files, or nonsense."""

from __future__ import annotations

import codecs
import gzip
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from likely.data import find_set, load_records
from likely.errors import DataError, nearest
from likely.io.hashes import fingerprint
from likely.io.jsonl import parse_line
from likely.runtimes.protocol import IntArray
from likely.tokenizers.protocol import Tokenizer, begin

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
NONSENSE = ("random_tokens", "random_punctuation", "bos_only")
MADE = (*NONSENSE, "python_stdlib")  # sets that need no file
MOST_CHARACTERS = 64 << 20  # of a text that is read for windows
_FIELDS = (("prompt", "canonical_solution"), ("text", "code"), ("text",), ("prompt", "answer"), ("question", "answer"))
_CHARACTERS = 8  # read per token wanted; more is read where that was not enough


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """N windows of T tokens each, all whole: nothing is padded.

    input_ids (N, T); name as it was asked for; source says what the text is; seed of the draw, None: the first windows
    """

    input_ids: IntArray
    name: str
    source: str
    seed: int | None = None

    @property
    def digest(self) -> str:
        """Of the token ids: sets of one digest are the same set."""
        return fingerprint(np.ascontiguousarray(self.input_ids, "<i8").tobytes() + repr(self.input_ids.shape).encode())

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        return self.input_ids.size


def calibration_set(
    name: str | Path,
    tokenizer: Tokenizer,
    *,
    windows: int,
    length: int,
    seed: int | None = None,
    data_dir: str | Path | None = None,
) -> CalibrationSet:
    """Windows of a text, one after the other and without overlap; each begins as the model wants it (BOS or not).

    name    a data set (wikitext2:valid, c4_sample, mbpp:train, udhr:fra), several with "+" (equal shares), a file
            (.txt, .jsonl with a field "text"; .gz), python_stdlib, or one of `NONSENSE`: random_tokens,
            random_punctuation, bos_only (the token that begins a text, and nothing else)
    seed    draws the windows among all of the text; None: the first ones.  Of random sets it is the seed of the text
    DataError where the text is shorter than asked: it is never repeated.
    """
    if windows < 1 or length < 2:
        raise ValueError(f"a calibration set needs at least 1 window of 2 tokens, got {windows} of {length}")
    parts = str(name).split("+") if not Path(name).exists() else [str(name)]
    if len(parts) > windows:
        raise ValueError(f"{len(parts)} sources need as many windows, got {windows}")
    shares = [windows // len(parts) + (i < windows % len(parts)) for i in range(len(parts))]
    found = [
        _windows(part, tokenizer, share, length, seed, data_dir) for part, share in zip(parts, shares, strict=True)
    ]
    return CalibrationSet(
        np.concatenate([ids for ids, _ in found]), str(name), "; ".join(source for _, source in found), seed
    )


def texts_of(name: str, data_dir: str | Path | None = None) -> tuple[Iterator[str], str]:
    """Pieces of the text behind a name, in order, and what it is; lines of plain text files keep their line breaks."""
    if name == "python_stdlib":
        return _standard_library(), f"the standard library of Python {sys.version.split()[0]}, without tests"
    path = Path(name).expanduser()
    if path.is_file():
        return _file(path), str(path)
    if path.suffix or "/" in name:
        wrong = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{name} {wrong}: give a text or JSONL file, a data set, or one of {', '.join(MADE)}")
    set_name, _, split = name.partition(":")
    try:
        described = find_set(set_name, data_dir=data_dir)
    except DataError as error:
        hint = nearest(set_name, MADE)
        raise DataError(f"{error}; without a data set: a file, or one of {', '.join(MADE)}{hint}") from None
    if set_name == "udhr":
        rows = load_records(set_name, data_dir=data_dir)
        chosen = [row["text"] for row in rows if not split or row["lang"].split("_")[0] == split]
        if not chosen:
            raise DataError(f'udhr has no language "{split}" (as in udhr:eng, udhr:fra, udhr:deu)')
        return iter(chosen), name
    file = described.find(split or None)
    records = load_records(set_name, file.name, data_dir=data_dir)
    if file.kind in (".txt", ".raw"):
        return (row["text"] + "\n" for row in records), f"{set_name}/{file.name}"
    return (_text_of_record(row, f"{set_name}/{file.name}") for row in records), f"{set_name}/{file.name}"


def _windows(
    name: str, tokenizer: Tokenizer, count: int, length: int, seed: int | None, data_dir: str | Path | None
) -> tuple[IntArray, str]:
    front = begin(tokenizer, [])
    size = length - len(front)
    rng = np.random.default_rng(seed or 0)
    if name == "random_tokens":
        special = set(tokenizer.special_tokens.values())
        plain = np.array([i for i in range(tokenizer.vocab_size) if i not in special], np.int64)
        ids, source = rng.choice(plain, count * size), "independent token ids, special ones left out"
    elif name == "bos_only":
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if first is None:
            raise DataError("bos_only: this tokenizer has no token that begins or ends a text")
        ids, source = np.full(count * size, first, np.int64), "the token that begins a text, repeated"
    elif name == "random_punctuation":
        text = "".join(rng.choice(list(PUNCTUATION), count * size * 4))
        ids, source = np.array(tokenizer.encode(text), np.int64), "independent ASCII punctuation"
    else:
        pieces, source = texts_of(name, data_dir)
        wanted = MOST_CHARACTERS if seed is not None else count * size * _CHARACTERS
        text = _read(pieces, wanted)
        ids = np.array(tokenizer.encode(text), np.int64)
        if seed is None and len(ids) < count * size:
            ids = np.array(tokenizer.encode(text + _read(pieces, MOST_CHARACTERS)), np.int64)
    whole = len(ids) // size
    if whole < count:
        raise DataError(
            f"{name} has {len(ids)} tokens; {count} windows of {length} need {count * size}: ask for fewer, or shorter"
        )
    drawn = name not in NONSENSE and seed is not None
    chosen = np.sort(rng.permutation(whole)[:count]) if drawn else np.arange(count)
    body = ids[: whole * size].reshape(whole, size)[chosen]
    return np.concatenate([np.tile(np.array(front, np.int64), (count, 1)), body], axis=1), source


def _read(pieces: Iterator[str], most: int) -> str:
    """Pieces until there are `most` characters."""
    kept, count = [], 0
    for piece in pieces:
        kept.append(piece)
        count += len(piece)
        if count >= most:
            break
    return "".join(kept)


def _file(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw:
            if Path(path.name.removesuffix(".gz")).suffix == ".jsonl":
                for number, line in enumerate(raw, 1):
                    if line.strip():
                        yield _text_of_record(parse_line(line, f"{path}:{number}"), f"{path}:{number}")
            else:
                text = raw.read(MOST_CHARACTERS)  # its end may lie within a character
                yield codecs.getincrementaldecoder("utf-8")().decode(text, final=len(text) < MOST_CHARACTERS)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason})") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _text_of_record(record: dict[str, Any], where: str) -> str:
    for names in _FIELDS:
        if all(isinstance(record.get(name), str) for name in names):
            joint = "" if "canonical_solution" in names else "\n"
            return joint.join(record[name] for name in names) + "\n\n"
    known = ", ".join("+".join(names) for names in _FIELDS)
    raise DataError(f"{where}: no text in this record (fields looked for: {known}; found: {', '.join(record)})")


def _standard_library() -> Iterator[str]:
    """Sources of this interpreter's own library, in order of name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: Iterable[Path] = sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py"))
    kept = (p for p in found if not any("test" in part or part == "site-packages" for part in p.parts[-2:]))
    for path in islice(kept, 1000):
        try:
            yield path.read_text("utf-8") + "\n\n"
        except (OSError, UnicodeDecodeError):
            continue
