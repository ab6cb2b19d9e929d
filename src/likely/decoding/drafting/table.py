"""The table of drafters: NAME[:ARGUMENT][,SETTING=VALUE ...], or several joined by "+" (the first that has a guess).

Command-line help, error messages, `likely draft`, `likely replay` and the documentation read this table.  A drafter is
imported when it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from likely.errors import nearest

if TYPE_CHECKING:
    from likely.decoding.drafting.protocol import DraftSource
    from likely.decoding.drafting.trees.shapes import DraftShape
    from likely.runtimes.protocol import Runtime
    from likely.tokenizers.protocol import Tokenizer


AUTO_TOKENS = 200_000  # what "auto" remembers of earlier answers, at most


class ModelTokens(TypedDict):
    """What binds a memory file to a model: the fingerprint of its tokenizer, and columns of its logits."""

    tokenizer: str
    vocab_size: int


@dataclass(frozen=True)
class DrafterContext:
    """What a drafter is made from.

    runtime, tokenizer  of the target; None: no model is loaded, and drafters that need one cannot be made
    load                loads a further model by name, for drafters that run one; a second argument: on that runtime
    shared              whether one request's answer may help to draft another's
    """

    runtime: Runtime | None
    tokenizer: Tokenizer | None
    load: Callable[..., tuple[Runtime, Tokenizer]] | None = None
    shared: bool = True

    @property
    def model_tokens(self) -> ModelTokens:
        if self.runtime is None or self.tokenizer is None:
            raise ValueError("this drafter needs to know the model whose tokens it drafts")
        return {"tokenizer": self.tokenizer.fingerprint, "vocab_size": self.runtime.vocab_size}

    @property
    def scope(self) -> Literal["all", "request"]:
        return "all" if self.shared else "request"

    def draft_model(self, name: str, *runtime: str) -> tuple[Runtime, Tokenizer, Tokenizer, int | None]:
        """(runtime and tokenizer of the model `name`, tokenizer and vocabulary size of the target)."""
        if self.load is None or self.tokenizer is None:
            raise ValueError("a draft model needs a local target model")
        return *self.load(name, *runtime), self.tokenizer, self.runtime.vocab_size if self.runtime else None


class Memory(Protocol):
    """A drafter that is counted from texts and kept in a file."""

    def save(self, path: str | Path, *, tokenizer: str) -> None: ...


@dataclass(frozen=True)
class MemoryKind:
    """How the memory file of a drafter is built.

    build     (texts as token ids, vocabulary size, settings) -> the memory
    settings  names of the numbers that it takes
    """

    build: Callable[[Iterable[Sequence[int]], int, dict[str, Any]], Memory]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class DrafterEntry:
    """A row of the table.

    summary             what it guesses, in one line;  good_for: where it gains
    make                (argument, context, **settings) -> the source of drafts
    argument            what may follow "NAME:" ("" nothing);  required: it must be given
    settings            what may follow as ",SETTING=VALUE": each setting's type, a function of its text
    memory              how its memory file is built, for those that have one
    known_distribution  whether it can draw from a q that it knows, as verification="rejection" needs
    runs_model          its drafts depend on a model, not on the text alone
    needs_vocabulary    it must know the target's vocabulary
    capability          what the target's runtime must offer beside pending trees of tokens
    for_clients         a server's client may ask for it: it opens no file and no model, and what it keeps is bounded
    preset              settings of another drafter of the table, not a method of its own
    page                of its paper in docs/papers, or an address
    """

    summary: str
    good_for: str
    make: Callable[..., DraftSource]
    argument: str = ""
    required: bool = False
    settings: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    memory: MemoryKind | None = None
    known_distribution: bool = False
    runs_model: bool = False
    needs_vocabulary: bool = False
    capability: str = ""
    for_clients: bool = False
    preset: bool = False
    page: str = ""


def _lookup(argument: str, context: DrafterContext, **settings: Any) -> DraftSource:
    from likely.decoding.drafting.lookup import PromptLookup

    return PromptLookup(**settings)


def _copy(argument: str, context: DrafterContext, **settings: Any) -> DraftSource:
    from likely.decoding.drafting.lookup import CopySource

    return CopySource(**settings)


def _suffix(argument: str, context: DrafterContext, **settings: Any) -> DraftSource:
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    if not argument:
        return SuffixMemory(**{"scope": context.scope} | settings)
    return SuffixMemory(**settings).load(existing_file(argument, "suffix"), **context.model_tokens)


def _suffix_memory(texts: Iterable[Sequence[int]], vocab_size: int, settings: dict[str, Any]) -> Memory:
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    memory = SuffixMemory(**settings)
    for text in texts:
        memory.remember(text)
    return memory


def _auto(argument: str, context: DrafterContext) -> DraftSource:
    """Of the drafters that cost nothing, the one that replays of recorded answers favour (docs/speculation.md)."""
    from likely.decoding.drafting.suffix.drafter import SuffixMemory

    source = SuffixMemory(scope=context.scope, spec_factor=2.0, max_tokens=AUTO_TOKENS)
    source.name = "auto"
    return source


def _trigram(argument: str, context: DrafterContext, **settings: Any) -> DraftSource:
    from likely.decoding.drafting.trigram.drafter import TrigramMemory

    if not argument:
        return TrigramMemory(**settings)
    memory = TrigramMemory.load(existing_file(argument, "trigram"), **context.model_tokens)
    return TrigramMemory(memory.table, **settings) if settings else memory


def _trigram_memory(texts: Iterable[Sequence[int]], vocab_size: int, settings: dict[str, Any]) -> Memory:
    from likely.decoding.drafting.trigram.drafter import TrigramMemory

    return TrigramMemory.from_texts(texts, vocab_size=vocab_size, **settings)


def _ngram(argument: str, context: DrafterContext, **settings: Any) -> DraftSource:
    from likely.decoding.drafting.ngram.drafter import NgramModel

    if not argument:
        return NgramModel(context.model_tokens["vocab_size"], **settings)
    if settings:
        raise ValueError(
            f"ngram:{argument}: the file says {' and '.join(settings)}: leave out ,{next(iter(settings))}="
        )
    return NgramModel.load(existing_file(argument, "ngram"), **context.model_tokens)


def _ngram_memory(texts: Iterable[Sequence[int]], vocab_size: int, settings: dict[str, Any]) -> Memory:
    from likely.decoding.drafting.ngram.drafter import NgramModel

    return NgramModel.from_texts(texts, vocab_size=vocab_size, **settings)


def _model(argument: str, context: DrafterContext, shape: DraftShape | None = None) -> DraftSource:
    from likely.decoding.drafting.model.drafter import draft_model

    runtime, tokenizer, target, size = context.draft_model(argument)
    return draft_model(runtime, tokenizer, target, vocab_size=size, shape=shape, name=f"model:{argument}")


def _shared(argument: str, context: DrafterContext, shape: DraftShape | None = None) -> DraftSource:
    from likely.decoding.drafting.model.shared_vocabulary import shared_vocabulary_model

    runtime, tokenizer, target, size = context.draft_model(argument)
    return shared_vocabulary_model(runtime, tokenizer, target, vocab_size=size, shape=shape, name=f"shared:{argument}")


def _skip(argument: str, context: DrafterContext, shape: DraftShape | None = None) -> DraftSource:
    from likely.decoding.drafting.layers.drafter import layer_skip

    if context.runtime is None:
        raise ValueError("skip needs a local target model")
    return layer_skip(argument, context.runtime, shape)


def _layer_parallel(
    argument: str, context: DrafterContext, model: str = "", shape: DraftShape | None = None
) -> DraftSource:
    from likely.decoding.drafting.layers.drafter import layer_parallel, parallel_plan
    from likely.decoding.drafting.model.drafter import draft_model

    if model:
        runtime, tokenizer, target, size = context.draft_model(model, "torch")
        plan = parallel_plan(argument, runtime)
        name = f"layer_parallel:{argument},model={model}"
        return draft_model(runtime, tokenizer, target, vocab_size=size, shape=shape, plan=plan, name=name)
    if context.runtime is None:
        raise ValueError("layer_parallel needs a local target model, or a draft model: layer_parallel,model=NAME")
    return layer_parallel(argument, context.runtime, shape)


def _shape(text: str) -> DraftShape:
    from likely.decoding.drafting.trees.shapes import named_shape

    return named_shape(text)


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("write yes or no")
    return text == "yes"


DRAFTERS: dict[str, DrafterEntry] = {
    "lookup": DrafterEntry(
        "prompt lookup: what followed the last tokens when they occurred before", "answers that quote their prompt",
        _lookup, settings={"ngram": int, "occurrence": str}, for_clients=True,
        page="https://github.com/apoorvumang/prompt-lookup-decoding",
    ),
    "copy": DrafterEntry(
        "CopySpec: a longer stretch, from where the last three tokens occurred", "edits of an earlier answer",
        _copy, settings={"gram": int, "copy": int, "occurrence": str}, for_clients=True, page="copyspec",
    ),
    "suffix": DrafterEntry(
        "SuffixDecoding: by counts over this text and earlier answers", "many similar requests: SQL, pipelines",
        _suffix, argument="FILE", settings={
            "spec_factor": float, "spec_offset": float, "min_prob": float, "max_depth": int, "max_tokens": int,
            "max_requests": int, "scope": str, "tree": _yes,
        }, memory=MemoryKind(_suffix_memory, ("max_tokens", "max_requests")),
        page="suffix_decoding",
    ),
    "trigram": DrafterEntry(
        "ADED: an adaptive trigram table, searched as a tree", "a corpus of your own texts",
        _trigram, argument="FILE", settings={"depth": int, "rate": float, "cap": float, "scope": str},
        memory=MemoryKind(_trigram_memory, ("top", "min_count")), page="aded",
    ),
    "ngram": DrafterEntry(
        "an n-gram language model of the text and a corpus", "sampling with `verification=\"rejection\"`",
        _ngram, argument="FILE", settings={"order": int, "discount": float},
        memory=MemoryKind(_ngram_memory, ("order", "discount")), known_distribution=True,
        needs_vocabulary=True,
    ),
    "model": DrafterEntry(
        "a smaller model, of the same or another tokenizer", "general text, where a good small model exists",
        _model, argument="NAME", required=True, settings={"shape": _shape}, known_distribution=True, runs_model=True,
        page="recursive_speculation",
    ),
    "shared": DrafterEntry(
        "a model of another tokenizer, by the tokens that both have", "the same, under rejection too",
        _shared, argument="NAME", required=True, settings={"shape": _shape}, known_distribution=True, runs_model=True,
    ),
    "skip": DrafterEntry(
        "the model itself with layers left out", "models trained for early exits",
        _skip, argument="LAYERS", settings={"shape": _shape}, known_distribution=True, runs_model=True,
        capability="layers",
    ),
    "layer_parallel": DrafterEntry(
        "EasySpec: the model itself, or a draft model, with attentions of several layers side by side",
        "a draft model spread over several devices",
        _layer_parallel, argument="GROUPS", settings={"model": str, "shape": _shape}, known_distribution=True,
        runs_model=True, capability="parallel_layers", page="easyspec",
    ),
    "auto": DrafterEntry(
        "copying, and only as far as it pays", "when you do not want to think about it",
        _auto, for_clients=True, preset=True,
    ),
}  # fmt: skip


# --- what others say of the table -------------------------------------------------------------------------------------


def drafter_names(which: Callable[[DrafterEntry], bool] = lambda entry: True) -> list[str]:
    """Names as they are written, "model:NAME" where an argument is required, of those entries."""
    return [f"{name}:{entry.argument}" if entry.required else name for name, entry in DRAFTERS.items() if which(entry)]


def drafter_help() -> str:
    """The help text of an option that names a drafter."""
    return f"Guess ahead: {', '.join((*drafter_names(), 'none'))}; the text stays."


def memory_kinds() -> dict[str, MemoryKind]:
    """Drafters with a memory file, and how it is built."""
    return {name: entry.memory for name, entry in DRAFTERS.items() if entry.memory}


# --- from a name to a drafter -----------------------------------------------------------------------------------------


def make_drafter(name: str, context: DrafterContext) -> DraftSource | None:
    """The drafter of that name, None for "none"; ValueError with the nearest name for an unknown one."""
    known = list(_parts(name))  # before any of them is made: one may load a model
    sources = [entry.make(argument, context, **settings) for entry, argument, settings in known]
    if len(sources) < 2:
        return sources[0] if sources else None
    from likely.decoding.drafting.composite import FirstOf

    return FirstOf(*sources)


def check_name(text: str) -> None:
    """ValueError unless drafters can be made by this name."""
    list(_parts(text))


def runs_model(text: str) -> bool:
    """Whether a drafter of that name needs more than the text."""
    return any([entry.runs_model for entry, _, _ in _parts(text)])


_SETTING = re.compile(r",\s*([a-z_]+)=")


def _parts(text: str) -> Iterator[tuple[DrafterEntry, str, dict[str, Any]]]:
    """(entry, argument, settings) of each part of a name; none for "none"."""
    for part in text.split("+") if text.strip() != "none" else ():
        named, *pairs = _SETTING.split(part.strip())
        name, colon, argument = named.partition(":")
        entry = DRAFTERS.get(name)
        if entry is None:
            raise ValueError(f'unknown drafter "{name}"{nearest(name, DRAFTERS)} (known: {", ".join(DRAFTERS)}, none)')
        if entry.required and not argument:
            raise ValueError(f"the drafter {name} needs an argument: {name}:{entry.argument}")
        if colon and not entry.argument:
            raise ValueError(f'the drafter {name} takes no argument, got "{argument}"')
        yield entry, argument, _settings(name, entry, pairs)


def _settings(drafter: str, entry: DrafterEntry, pairs: list[str]) -> dict[str, Any]:
    """Of names and texts in turn."""
    return {name: _setting(drafter, entry, name, text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}


def _setting(drafter: str, entry: DrafterEntry, name: str, value: str) -> Any:
    if name not in entry.settings:
        known = ", ".join(entry.settings) or "none"
        raise ValueError(
            f'the drafter {drafter} has no setting "{name}"{nearest(name, entry.settings)} (it has: {known})'
        )
    try:
        return entry.settings[name](value.strip())
    except ValueError as error:
        raise ValueError(f'the drafter {drafter}: {name}="{value}" cannot be used: {error}') from None


def existing_file(path: str, what: str) -> Path:
    """A file named in a drafter's argument."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ValueError(f"{what}: {path} is not a file")
    return found
