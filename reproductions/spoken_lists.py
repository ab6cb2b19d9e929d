"""Commands and messages read aloud and recognised, once: the n-best lists that asr_nbest.py decides from.

Commands of CLINC150 (12 intents) and text messages that address no assistant are read by flite with four voices, white
noise is added, and pocketsphinx recognises them with its general language model.  Nothing is recorded; the same text
gives the same list.  The file grows line by line, and a run that was stopped goes on.

  apt install flite && pip install 'likely[speech]'
  python reproductions/spoken_lists.py            1,049 utterances, about 20 minutes
  python reproductions/spoken_lists.py --full     1,289 utterances
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reading_aloud import VOICES, Recogniser, Utterance, speak_and_listen
from study import run_script

from likely.data import load_records
from likely.errors import DataError
from likely.io.hashes import cache_dir
from likely.io.jsonl import read_lines

# intents of CLINC150 and the answers that stand for them, one token each for SmolLM2
INTENTS = {
    "alarm": "alarm", "timer": "timer", "reminder": "reminder", "calendar": "calendar", "todo_list": "tasks",
    "shopping_list": "shopping", "play_music": "music", "next_song": "next", "balance": "balance",
    "bill_balance": "bill", "bill_due": "due", "transactions": "transactions",
}  # fmt: skip
MESSAGE = "message"
FEW, ALL = {"train": 24, "test": 35}, {"train": 40, "test": 35}  # commands of each intent
FEW_MESSAGES, ALL_MESSAGES = {"train": 112, "test": 230}, {"train": 160, "test": 230}
READABLE = re.compile(r"(?:[A-Za-z0-9 ,'!]|[.?](?![.?]))+")
SNRS_DB = (30.0, 20.0)
FILES = (
    ("clinc150", "train.tsv.gz"), ("clinc150", "val.tsv.gz"), ("clinc150", "test.tsv.gz"),
    ("sms-spam", "train.jsonl.gz"),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What is to be read; label: an intent, or "message"; split: "train" or "test"."""

    id: str
    label: str
    split: str
    text: str

    @property
    def seed(self) -> int:
        return zlib.crc32(self.id.encode())


@dataclass(frozen=True)
class Spoken:
    """A text and what was heard."""

    id: str
    label: str
    split: str
    utterance: Utterance

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "label": self.label, "split": self.split, **self.utterance.to_dict()}


def commands() -> dict[tuple[str, str], list[Text]]:
    """By (intent, split): what CLINC150 holds for training, and what it holds for validation and test, each once."""
    groups: dict[tuple[str, str], list[Text]] = {}
    seen = set()
    for file in ("train", "val", "test"):
        split = "train" if file == "train" else "test"
        for i, row in enumerate(load_records("clinc150", file)):
            if row["intent"] in INTENTS and row["text"] not in seen:
                seen.add(row["text"])
                one = Text(f"{file}-{i}", row["intent"], split, row["text"])
                groups.setdefault((one.label, split), []).append(one)
    return groups


def messages() -> dict[tuple[str, str], list[Text]]:
    """Short messages that people sent to each other, each once, in random order."""
    ham = [row["text"] for row in load_records("sms-spam", "train") if row["label"] == "ham"]
    short = [m for m in dict.fromkeys(ham) if 4 <= len(m.split()) <= 14 and len(m) < 80 and READABLE.fullmatch(m)]
    chosen = random.Random(0).sample(short, sum(ALL_MESSAGES.values()))
    ends = ALL_MESSAGES["train"]
    parts = {"train": chosen[:ends], "test": chosen[ends:]}
    return {
        (MESSAGE, split): [Text(f"message-{split}-{i}", MESSAGE, split, text) for i, text in enumerate(part)]
        for split, part in parts.items()
    }


def texts(*, full: bool) -> list[Text]:
    """All labels and both splits in every part of the list, so that one that is not finished can be used."""
    groups = {**commands(), **messages()}
    counts, message_counts = (ALL, ALL_MESSAGES) if full else (FEW, FEW_MESSAGES)
    placed = []
    for (label, split), group in groups.items():
        wanted = (message_counts if label == MESSAGE else counts)[split]
        placed += [((i + 0.5) / wanted, one.id, one) for i, one in enumerate(group[:wanted])]
    return [one for _, _, one in sorted(placed, key=lambda p: p[:2])]


def make_lists(target: Path, wanted: Iterable[Text], hear: Callable[[Text], Utterance]) -> int:
    """Append to the file what it lacks; returns how many were made.  A line that was cut is dropped and made anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and (whole := target.read_bytes()) and not whole.endswith(b"\n"):
        target.write_bytes(whole[: whole.rfind(b"\n") + 1])
    done = set(read_lists(target)) if target.exists() else set()
    made = 0
    with target.open("a", encoding="utf-8") as file:
        for one in wanted:
            if one.id in done:
                continue
            spoken = Spoken(one.id, one.label, one.split, hear(one))
            file.write(json.dumps(spoken.to_dict(), ensure_ascii=False) + "\n")
            file.flush()
            made += 1
            if made % 50 == 0:
                print(f"{made}: {one.text!r} -> {spoken.utterance.nbest.distinct(1)[0][0]!r}", flush=True)
    return made


def pocketsphinx() -> Callable[[Text], Utterance]:
    """Read aloud and recognise one text; its id decides on voice, noise and ratio of speech to noise."""
    recogniser = Recogniser()

    def hear(one: Text) -> Utterance:
        voice = VOICES[one.seed % len(VOICES)]
        snr_db = SNRS_DB[one.seed // len(VOICES) % len(SNRS_DB)]
        return speak_and_listen(one.text, recogniser, voice=voice, snr_db=snr_db, seed=one.seed, model="general")

    return hear


def read_lists(path: Path) -> dict[str, Spoken]:
    """By id, what `make_lists` wrote; DataError names file and line."""
    found = {}
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        record: Mapping[str, Any] = line.record
        if not all(isinstance(record.get(name), str) for name in ("id", "label", "split")):
            raise DataError(f"{where}: id, label and split are needed: make the file with spoken_lists.py")
        utterance = Utterance.from_dict(line.record, where)
        found[record["id"]] = Spoken(record["id"], record["label"], record["split"], utterance)
    return found


def chosen(lists: Mapping[str, Spoken], wanted: Iterable[Text]) -> Iterator[Spoken]:
    """The utterances of these texts; DataError if one is missing or was made of another text."""
    for one in wanted:
        found = lists.get(one.id)
        if found is None or found.utterance.text != one.text:
            raise DataError(f"the lists lack {one.id} ({one.text!r}): run python reproductions/spoken_lists.py")
        yield found


def default_file() -> Path:
    return cache_dir() / "asr_nbest" / "lists.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all utterances")
    parser.add_argument("--lists", type=Path, default=default_file(), help="the file")
    options = parser.parse_args()
    wanted = texts(full=options.full)
    made = make_lists(options.lists, wanted, pocketsphinx())
    print(f"{options.lists}: {made} of {len(wanted)} utterances made now")


if __name__ == "__main__":
    run_script(main)
