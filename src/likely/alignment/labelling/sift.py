"""SIFT: supervised in-context fine-tuning for sequence labelling, with LoRA.

Every training example is a prompt with K random demonstrations and a query; with the multi-response loss it trains the
responses of all of them, and so every number of demonstrations from 0 to K at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.alignment.labelling.codec import SpanCodec
from likely.alignment.labelling.labeller import SpanLabeller
from likely.alignment.labelling.prompt import (
    STRATEGIES,
    DemonstrationSelector,
    PromptWithTargets,
    RandomDemonstrations,
    SpanPrompt,
    Strategy,
)
from likely.alignment.labelling.sentences import Sentence, labels_of
from likely.alignment.labelling.spans import LabelledSpan
from likely.errors import DataError, check_choice
from likely.io.hashes import fingerprint
from likely.io.jsonl import read_lines
from likely.io.whole_file import write_whole_file
from likely.training.fit import STATE, TrainingSettings, fit
from likely.training.logprobs import text_logprobs
from likely.training.loop import LossOutput
from likely.training.policy import LoraSettings, Policy

if TYPE_CHECKING:
    import torch

    from likely.training.lora import HasRuntime
    from likely.training.metrics_log import MetricsLog

RECIPE, POOL = "labelling.json", "demonstrations.jsonl"
TRAINING = TrainingSettings(steps=200, batch=4, lr=2e-4)
LORA = LoraSettings()


@dataclass(frozen=True)
class SiftSettings:
    """What is trained, and how prompts are made.

    strategy  what the loss is on, see `SpanPrompt.build`; "mrc" is the method's own
    k         demonstrations before each query, none of them the query
    instruction  None: no instruction, which the method recommends once it is fine-tuned
    """

    strategy: Strategy = "mrc"
    k: int = 4
    instruction: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, STRATEGIES)
        if self.k < 0:
            raise ValueError(f"k must be >= 0 demonstrations, got {self.k}")


def training_prompts(
    prompt: SpanPrompt, sentences: Sequence[Sentence], count: int, settings: SiftSettings
) -> list[PromptWithTargets]:
    """`count` prompts: every sentence is a query before one is again, and demonstrations are drawn anew for each."""
    if not settings.k < len(sentences):
        raise ValueError(
            f"k={settings.k} demonstrations beside the query need {settings.k + 1} sentences, there are "
            f"{len(sentences)}: lower k"
        )
    rng = np.random.default_rng(settings.seed)
    made: list[PromptWithTargets] = []
    while len(made) < count:
        for query in rng.permutation(len(sentences))[: count - len(made)].tolist():
            order = (sentences[i] for i in rng.permutation(len(sentences)).tolist())
            others = list(islice((s for s in order if s.tokens != sentences[query].tokens), settings.k))
            made.append(prompt.build(sentences[query], others, strategy=settings.strategy))
    return made


def response_loss(module: torch.nn.Module, prompts: Sequence[PromptWithTargets]) -> torch.Tensor:
    """Σ −log p(token | all before it) over the target tokens of all prompts, nats; gradients flow to the module."""
    return -text_logprobs(module, [(one.tokens, one.targets) for one in prompts]).sum.sum()


def train_labeller(
    lm: HasRuntime | str | Path,
    sentences: Sequence[Sentence],
    folder: str | Path,
    *,
    settings: SiftSettings = SiftSettings(),
    training: TrainingSettings = TRAINING,
    lora: LoraSettings = LORA,
    codec: SpanCodec | None = None,
    log: MetricsLog | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train on labelled sentences; returns the mean nats per target token of each step.

    lm      a model on the torch runtime, or a name or file to load there; it is unchanged afterwards
    folder  gets the adapter in peft's format, the labels and settings, and the sentences as demonstrations
            (`open_labeller` reads it).  A run of the same recipe that was stopped goes on there bit for bit, one that
            was finished is read; another recipe is a DataError
    codec   None: the labels that occur
    DataError names the row of a sentence that cannot be written as spans.
    """
    for sentence in sentences:
        if sentence.spans is None:
            raise DataError(f"{sentence.where or 'a sentence'}: no tags to learn from")
    labels = labels_of(sentences)
    if codec is None and not labels:
        raise DataError("no sentence has a labelled span: there is nothing to learn")
    codec = codec or SpanCodec(labels)
    place = Path(folder)
    with Policy(lm, lora, seed=training.seed) as policy:
        prompt = SpanPrompt(codec, policy.tokenizer, policy.lm.runtime.context_length, settings.instruction)
        prompts = training_prompts(prompt, sentences, training.steps * training.batch, settings)
        recipe = {
            "labels": codec.labels, "empty": codec.empty, "sep": codec.sep, "kv": codec.kv, **asdict(settings),
            "sentences": fingerprint([[s.tokens, [asdict(x) for x in s.spans or ()]] for s in sentences]),
        }  # fmt: skip
        whole = {"recipe": recipe, "training": asdict(training), "policy": policy.recipe()}
        if (found := _read_recipe(place)) is not None:
            if {name: found.get(name) for name in whole} != json.loads(json.dumps(whole)):
                raise DataError(f"{place} holds a labeller of another recipe: choose another folder or --overwrite")
            return list(found["losses"])
        place.mkdir(parents=True, exist_ok=True)
        losses = fit(
            policy, prompts, lambda some: LossOutput(response_loss(policy.module, some)), training,
            weight=lambda one: sum(one.targets), length=lambda one: len(one.tokens), folder=place, recipe=recipe,
            log=log, progress=progress,
        )  # fmt: skip
        policy.save_adapter(place, {"model": getattr(getattr(policy.lm, "info", None), "name", "")})
        rows = [{"tokens": s.tokens, "spans": [asdict(x) for x in s.spans or ()]} for s in sentences]
        write_whole_file(place / POOL, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        write_whole_file(place / RECIPE, json.dumps({**whole, "losses": losses}, indent=1).encode())
    (place / STATE).unlink(missing_ok=True)
    return losses


def open_labeller(
    lm: HasRuntime, folder: str | Path, *, k: int | None = None, selector: DemonstrationSelector | None = None
) -> SpanLabeller:
    """The labeller of a folder that `train_labeller` wrote, its adapter attached to the model until it is closed.

    k  demonstrations, None: as many as it was trained with;  selector: None: the same for every sentence
    """
    place = Path(folder)
    found = _read_recipe(place)
    if found is None:
        raise DataError(f"{place} holds no {RECIPE}: no labeller was finished there (likely align label train)")
    recipe = found["recipe"]
    codec = SpanCodec(recipe["labels"], empty=recipe["empty"], sep=recipe["sep"], kv=recipe["kv"])
    pool = [
        Sentence(
            tuple(line.record["tokens"]), tuple(LabelledSpan(**span) for span in line.record["spans"]),
            f"{place / POOL}:{line.number}",
        )
        for line in read_lines(place / POOL)
    ]  # fmt: skip
    with ExitStack() as resources:
        resources.enter_context(Policy(lm, None, adapter=place)).refresh()
        return SpanLabeller(
            lm, codec, pool, recipe["k"] if k is None else k, selector or RandomDemonstrations(recipe["seed"]),
            recipe["instruction"], resources.pop_all(),
        )  # fmt: skip


def _read_recipe(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((place / RECIPE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{place / RECIPE}: cannot be read ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict) or "losses" not in found:
        raise DataError(f"{place / RECIPE}: not the record of a labeller that was trained here")
    return found


def remove_labeller(folder: str | Path) -> None:
    """Remove a folder that `train_labeller` wrote or began; DataError for any other."""
    place = Path(folder)
    if not place.exists():
        return
    if place.is_dir() and not any(place.iterdir()):  # a run that was stopped before its first checkpoint
        return
    if not place.is_dir() or not ((place / RECIPE).exists() or (place / STATE).exists()):
        raise DataError(f"{place} was not made by likely align label train, and is left alone: choose another folder")
    shutil.rmtree(place)
