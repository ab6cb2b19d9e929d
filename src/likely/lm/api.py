"""The four functions that a newcomer needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack, cast

from likely.errors import CapabilityError, nearest
from likely.lm.base import LanguageModel
from likely.lm.confidence import AskOptions
from likely.lm.model import Model
from likely.lm.options import GenerateOptions, ScoringOptions, ServerOptions
from likely.models.catalog import DEFAULT_MODEL
from likely.models.load import is_url, load_local
from likely.runtimes.kinds import LocalOptions

if TYPE_CHECKING:
    from likely.lm.remote.model import RemoteModel
    from likely.lm.results import Answer, Generation
    from likely.scoring.scored import Scored


class LoadOptions(LocalOptions, ServerOptions, total=False):
    """Settings of a runtime on this machine, or of a server."""


def load(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    runtime: str | None = None,
    dtype: str | None = None,
    use: str = "single",
    **options: Unpack[LoadOptions],
) -> Model | RemoteModel:
    """Open a model: a known name ("smollm2", "gemma3"), GGUF file, folder, hub id (org/name, or org/name:Q4_K_M for
    one GGUF file of it), or URL of a server.

    runtime  "native", "llamacpp" or "torch"; None: for a GGUF file native where it can be, else llama.cpp; for a folder
             torch (`models.load.load_local` says it in full); "auto": what `likely bench` has measured as the fastest
             for `use` ("single" texts, a "batch" of them, "scoring")
    dtype    torch: "float32" (the oracle), "bfloat16", "float16"; native: "int8", "bfloat16", "float32", "file" (a GGUF
             file's own codes), "int4"; "int8", "file" and "int4" alone mean native
    options  of the runtime (context=, threads= ...: `LocalOptions`) or of the server (model=, api_key= ...)
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f'the model is a name such as "{DEFAULT_MODEL}", a path or a URL, got {name!r}')
    name = os.fspath(name)
    if is_url(name):
        from likely.lm.remote.model import RemoteModel

        if (runtime, dtype) != (None, None):
            raise CapabilityError("a server chooses its own runtime and dtype: load the URL without them")
        for option in options:
            if option not in ServerOptions.__annotations__:
                known = nearest(option, ServerOptions.__annotations__)
                raise TypeError(f"a server has no option {option}={known}")
        server = RemoteModel(name, **cast("ServerOptions", options))
        server.opener = load
        return server
    loaded = load_local(name, runtime=runtime, dtype=dtype, use=use, **cast("LocalOptions", options))
    for line in loaded.info.warnings:
        warnings.warn(line, stacklevel=2)
    if loaded.runtime.capabilities.canvas:
        from likely.lm.diffusion.model import DiffusionModel

        model: Model = DiffusionModel(loaded.runtime, loaded.tokenizer, loaded.info)
    else:
        model = Model(loaded.runtime, loaded.tokenizer, loaded.info)
    model.opener = partial(_load_alike, runtime=runtime, dtype=dtype, use=use, **options)
    return model


def _load_alike(name: str, **settings: Any) -> LanguageModel:
    """Another model, run as the first one is; a server chooses for itself."""
    return load(name) if is_url(name) else load(name, **settings)


@lru_cache(maxsize=1)
def _default(name: str) -> LanguageModel:
    return load(name)


def score(
    prompt: str, answers: Sequence[str], *, model: str = DEFAULT_MODEL, **options: Unpack[ScoringOptions]
) -> list[Scored]:
    """log p(answer | prompt) for each answer, on a model that stays loaded for the next call."""
    return _default(model).score(prompt, answers, **options)


def generate(prompt: str, *, model: str = DEFAULT_MODEL, **options: Unpack[GenerateOptions]) -> Generation:
    """Continue a prompt, on a model that stays loaded for the next call."""
    return _default(model).generate(prompt, **options)


def ask(
    question: str, *, model: str = DEFAULT_MODEL, system: str | None = None, **options: Unpack[AskOptions]
) -> Answer:
    """Answer a question, on a model that stays loaded for the next call."""
    return _default(model).ask(question, system=system, **options)
