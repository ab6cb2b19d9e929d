"""Does a converted model still give the same likelihoods? Fixed strings are scored on the source and on the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, ModelError
from likely.models.load import available_runtimes
from likely.runtimes.kinds import KINDS
from likely.runtimes.protocol import Runtime, Want, Work
from likely.tokenizers.huggingface import HFTokenizer
from likely.tokenizers.protocol import begin

TEXTS = (
    "The history of the town goes back to the twelfth century, when monks built a small abbey beside the river.",
    "Water boils at 100 degrees Celsius at sea level; at 3,000 metres it boils at about 90.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "She said: \"I don't know whether they'll come, but we should wait.\"",
    "Die Katze sitzt auf der Matte. Le chat est assis sur le tapis. El gato se sienta en la alfombra.",
    "Question: What is the capital of France?\nAnswer: Paris.\n\nQuestion: What is 12 + 30?\nAnswer: 42.",
)

Logprobs = NDArray[np.float64]
Scorer = Callable[[Path, list[list[int]]], list[Logprobs]]


@dataclass(frozen=True)
class LikelihoodCheck:
    """Per token: |log p on the source - log p on the target|, in nats, over all tokens after the first of each text."""

    tokens: int
    mean_abs_difference: float
    max_abs_difference: float
    bound: float  # on the mean
    source_runtime: str
    target_runtime: str


def compare_models(
    source: Path,
    target: Path,
    tokenizer: HFTokenizer,
    *,
    bound: float,
    scorer: Scorer | None = None,
    context_length: int = 512,
) -> LikelihoodCheck:
    """Score TEXTS on both. ModelError if the mean difference is above `bound` or a number is not finite."""
    sequences = [begin(tokenizer, tokenizer.encode(text))[:context_length] for text in TEXTS]
    sequences = [tokens for tokens in sequences if len(tokens) > 1]
    names, scores = [], []
    for path in (source, target):
        name, score = ("given", scorer) if scorer is not None else runtime_for(path)
        names.append(name)
        scores.append(np.concatenate(score(path, sequences)))
    difference = np.abs(scores[0] - scores[1])
    check = LikelihoodCheck(
        len(difference), float(difference.mean()), float(difference.max()), bound, names[0], names[1]
    )
    if not np.isfinite(difference).all():
        raise ModelError("the converted model gives log-probabilities that are not finite; it was not kept")
    if check.mean_abs_difference > bound:
        raise ModelError(
            f"the converted model is not the same model: log-probabilities differ by {check.mean_abs_difference:.3g} "
            f"nats per token on average, at most {bound:g} are expected; it was not kept"
        )
    return check


def runtime_for(path: Path) -> tuple[str, Scorer]:
    """llama.cpp for a GGUF file, torch for a folder, torch for both where llama.cpp is not installed."""
    have = available_runtimes()
    if path.is_file() and have["llamacpp"]:
        return "llamacpp", score_with_llamacpp
    if have["torch"]:
        return "torch", score_with_torch
    raise CapabilityError(
        f"no runtime here can score {path.name}, so the result cannot be checked: "
        f"{KINDS['llamacpp' if path.is_file() else 'torch'].pip}, or convert with verify=False"
    )


def score_with_llamacpp(path: Path, sequences: list[list[int]], *, threads: int | None = None) -> list[Logprobs]:
    from likely.runtimes.llamacpp.runtime import LlamaCppRuntime

    runtime = LlamaCppRuntime(path, context=max(map(len, sequences)), sequences=4, threads=threads)
    return _score(runtime, sequences)


def score_with_torch(path: Path, sequences: list[list[int]]) -> list[Logprobs]:
    from likely.runtimes.torch.runtime import TorchRuntime

    load: Any = TorchRuntime.from_gguf if path.is_file() else TorchRuntime.from_pretrained
    return _score(load(path, dtype="float32", tokens_held=4 * max(map(len, sequences)), revision="check"), sequences)


def _score(runtime: Runtime, sequences: list[list[int]]) -> list[Logprobs]:
    """For each sequence the logprob of every token after the first; the runtime is shut down."""
    found = []
    try:
        for tokens in sequences:
            held = runtime.open()
            pairs = np.column_stack([np.arange(len(tokens) - 1), tokens[1:]])
            work = Work(held, np.asarray(tokens, np.int64), want=Want(pairs=pairs))
            logprobs = runtime.forward([work])[0].logprobs
            runtime.close(held)
            found.append(np.asarray(logprobs, np.float64))
    finally:
        runtime.shutdown()
    return found
