"""Drafters by name: NAME, NAME:ARGUMENT, or several joined by "+" (the first that has a guess).

The one place that knows the names.  Inside the library pass the object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.decoding.drafting.protocol import DraftSource
from likely.errors import nearest

if TYPE_CHECKING:
    from likely.runtimes.protocol import Runtime
    from likely.tokenizers.protocol import Tokenizer


AUTO_TOKENS = 200_000  # what "auto" remembers of earlier answers, at most


@dataclass(frozen=True)
class DrafterContext:
    """What drafters may be made from: the target, and how another model is loaded."""

    runtime: Runtime | None
    tokenizer: Tokenizer | None
    load: Callable[[str], tuple[Runtime, Tokenizer]] | None = None
    shared: bool = True  # whether one request's answer may help to draft another's

    @property
    def bound(self) -> dict[str, Any]:
        """What binds a memory file to a model."""
        if self.runtime is None or self.tokenizer is None:
            raise ValueError("this drafter needs to know the model whose tokens it drafts")
        return {"tokenizer": self.tokenizer.fingerprint, "vocab_size": self.runtime.vocab_size}


def _lookup(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.lookup import PromptLookup

    return PromptLookup()


def _copy(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.lookup import CopySource

    return CopySource()


def _suffix(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    if not argument:
        return SuffixMemory(scope="all" if needs.shared else "request")
    return SuffixMemory.load(existing_file(argument, "suffix"), **needs.bound)


def _auto(argument: str, needs: DrafterContext) -> DraftSource:
    """Of the drafters that cost nothing, the one that replays of recorded answers favour (docs/speculation.md)."""
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    source = SuffixMemory(scope="all" if needs.shared else "request", spec_factor=2.0, max_tokens=AUTO_TOKENS)
    source.name = "auto"
    return source


def _trigram(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.trigram.drafter import TrigramMemory

    if not argument:
        return TrigramMemory()
    return TrigramMemory.load(existing_file(argument, "trigram"), **needs.bound)


def _ngram(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.ngram.drafter import NgramModel

    if not argument:
        return NgramModel(needs.bound["vocab_size"])
    return NgramModel.load(existing_file(argument, "ngram"), **needs.bound)


def _model(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.model.drafter import draft_model

    if needs.load is None or needs.tokenizer is None:
        raise ValueError("a draft model needs a local target model")
    runtime, tokenizer = needs.load(argument)
    size = needs.runtime.vocab_size if needs.runtime else None
    return draft_model(runtime, tokenizer, needs.tokenizer, vocab_size=size, name=f"model:{argument}")


def _shared(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.model.shared_vocabulary import shared_tokens

    if needs.load is None or needs.tokenizer is None:
        raise ValueError("a draft model needs a local target model")
    runtime, tokenizer = needs.load(argument)
    size = needs.runtime.vocab_size if needs.runtime else None
    return shared_tokens(runtime, tokenizer, needs.tokenizer, vocab_size=size, name=f"shared:{argument}")


def _skip(argument: str, needs: DrafterContext) -> DraftSource:
    from likely.decoding.drafting.layer_skip import LayerSkip

    if needs.runtime is None:
        raise ValueError("skip needs a local target model")
    return LayerSkip.parse(argument, needs.runtime)


@dataclass(frozen=True)
class Named:
    """An entry of the list of drafters; `argument` says what may follow the colon ("" nothing).

    runs_model  its drafts depend on a model, not on the text alone
    """

    make: Callable[[str, DrafterContext], DraftSource]
    summary: str
    argument: str = ""
    required: bool = False
    runs_model: bool = False


NAMED: dict[str, Named] = {
    "lookup": Named(_lookup, "what followed the last tokens when they occurred before"),
    "copy": Named(_copy, "CopySpec: copy from where the last tokens occurred"),
    "suffix": Named(_suffix, "SuffixDecoding: counts over this text and earlier answers", "FILE"),
    "auto": Named(_auto, "copying, only as far as it pays"),
    "trigram": Named(_trigram, "ADED: an adaptive trigram table, searched as a tree", "FILE"),
    "ngram": Named(_ngram, "an n-gram language model of the text and a corpus; knows its q", "FILE"),
    "model": Named(_model, "a smaller model, of the same or another tokenizer", "NAME", required=True, runs_model=True),
    "shared": Named(
        _shared,
        "a model of another tokenizer, by the tokens both have; knows its q",
        "NAME",
        required=True,
        runs_model=True,
    ),
    "skip": Named(_skip, "the target itself with layers left out (torch)", "LAYERS", runs_model=True),
}


def make_drafter(name: str, needs: DrafterContext) -> DraftSource | None:
    """The drafter of that name, None for "none"; ValueError with the nearest name for an unknown one."""
    parts = [part.strip() for part in name.split("+")]
    if parts == ["none"]:
        return None
    sources = [_one(part, needs) for part in parts]
    if len(sources) == 1:
        return sources[0]
    from likely.decoding.drafting.composite import FirstOf

    return FirstOf(*sources)


def check_name(text: str) -> None:
    """ValueError unless drafters can be made by this name."""
    if text != "none":
        for part in text.split("+"):
            _entry(part.strip())


def runs_model(text: str) -> bool:
    """Whether a drafter of that name needs more than the text."""
    return text != "none" and any(_entry(part.strip())[0].runs_model for part in text.split("+"))


def _one(text: str, needs: DrafterContext) -> DraftSource:
    entry, argument = _entry(text)
    return entry.make(argument, needs)


def _entry(text: str) -> tuple[Named, str]:
    name, colon, argument = text.partition(":")
    entry = NAMED.get(name)
    if entry is None:
        raise ValueError(f'unknown drafter "{name}"{nearest(name, NAMED)} (known: {", ".join(NAMED)}, none)')
    if entry.required and not argument:
        raise ValueError(f"the drafter {name} needs an argument: {name}:{entry.argument}")
    if colon and not entry.argument:
        raise ValueError(f'the drafter {name} takes no argument, got "{argument}"')
    return entry, argument


def existing_file(path: str, what: str) -> Path:
    """A file named in a drafter's argument."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ValueError(f"{what}: {path} is not a file")
    return found
