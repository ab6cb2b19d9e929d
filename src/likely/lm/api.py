"""The four functions that a newcomer needs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Unpack

from likely.lm.model import Model
from likely.lm.options import GenerateOptions
from likely.lm.protocol import AskOptions, LanguageModel
from likely.models.catalog import DEFAULT_MODEL
from likely.models.load import is_url, load_local

if TYPE_CHECKING:
    from likely.lm.remote.model import RemoteModel
    from likely.lm.results import Answer, Generation
    from likely.scoring.scored import Scored


def load(
    name: str = DEFAULT_MODEL,
    *,
    runtime: str | None = None,
    dtype: str | None = None,
    engine: str | None = None,
    use: str = "single",
    **options: Any,
) -> Model | RemoteModel:
    """Open a model: a known name ("smollm2", "gemma3"), GGUF file, folder, hub id, or URL of a server.

    runtime  "llamacpp", "torch" or "native"; None: llama.cpp for GGUF files where installed, else torch; "auto": what
             `likely bench` has measured as the fastest for `use` ("single" texts, a "batch" of them, "scoring")
    dtype    torch: "float32" (the oracle) or "bfloat16"; native: "int8", "bfloat16" or "float32"
    engine   "int8", "bf16" or "fp32": the native runtime in that dtype; "auto": runtime="auto"
    options  of the runtime (context=, threads=) or of the server (model=, api_key=, timeout_s=)
    """
    if is_url(name):
        from likely.errors import CapabilityError
        from likely.lm.remote.model import RemoteModel

        if (runtime, dtype, engine) != (None, None, None):
            raise CapabilityError("a server chooses its own runtime, dtype and engine: load the URL without them")
        server = RemoteModel(name, **options)
        server.opened.opener = load
        return server
    loaded = load_local(name, runtime=runtime, dtype=dtype, engine=engine, use=use, **options)
    for line in loaded.info.warnings:
        warnings.warn(line, stacklevel=2)
    model = Model.from_loaded(loaded)
    model.opened.opener = partial(_load_alike, runtime=runtime, dtype=dtype, engine=engine, use=use, **options)
    return model


def _load_alike(name: str, **settings: Any) -> LanguageModel:
    """Another model, run as the first one is; a server chooses for itself."""
    return load(name) if is_url(name) else load(name, **settings)


@lru_cache(maxsize=1)
def _default(name: str) -> LanguageModel:
    return load(name)


def score(
    prompt: str, answers: Sequence[str], *, model: str = DEFAULT_MODEL, top_logprobs: int = 0, entropy: bool = False,
    window: int | None = None, stride: int | None = None,
) -> list[Scored]:  # fmt: skip
    """log p(answer | prompt) for each answer, on a model that stays loaded for the next call."""
    return _default(model).score(
        prompt, answers, top_logprobs=top_logprobs, entropy=entropy, window=window, stride=stride
    )


def generate(prompt: str, *, model: str = DEFAULT_MODEL, **options: Unpack[GenerateOptions]) -> Generation:
    """Continue a prompt, on a model that stays loaded for the next call."""
    return _default(model).generate(prompt, **options)


def ask(
    question: str, *, model: str = DEFAULT_MODEL, system: str | None = None, **options: Unpack[AskOptions]
) -> Answer:
    """Answer a question, on a model that stays loaded for the next call."""
    return _default(model).ask(question, system=system, **options)
