"""Diffusion models on text: how far is the bound of a tiny one from an autoregressive twin, and does SmolLM2 adapt?

Shakespeare by characters, 32 given and 96 predicted.  A tiny masked model gives a lower bound of log p; a network of
the same size, trained for as many steps on the same windows, but with a causal mask, gives log p itself.  Then
SmolLM2-135M loses its causal mask (annealed) in a few steps on the same text; its bound is judged before and after.

  python reproductions/diffusion_text.py            1 seed
  python reproductions/diffusion_text.py --full     3 seeds, more steps; adaptation without annealing, too
  python reproductions/diffusion_text.py --quick    tiny, no result is written
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_tasks import predictor, size_and_cells, source
from shared_steps import Cells
from study import arguments, conclude, data_sources, model_source, ratio_figure, report, run_script, run_study

from likely.decoding.diffusion import Predictor, exact_bound, likelihood_bound
from likely.evidence import Check, Evidence, Figure, Source
from likely.models.catalog import find_model, known_model
from likely.models.convert import convert
from likely.runtimes.torch.masked import MaskedPredictor, MaskedTransformer, load_masked
from likely.runtimes.torch.masked.checkpoint import load_causal
from likely.tokenizers.huggingface import HFTokenizer
from likely.training.diffusion import AdaptSettings, Shakespeare, TinySettings, adapt_causal
from likely.training.diffusion.adapt import causal_as_masked
from likely.training.diffusion.tasks import encode_examples
from likely.training.diffusion.tiny import new_network
from likely.training.loop import train

NAME = "diffusion_text"
DIFFUSION, TWIN = "masked, lower bound", "autoregressive twin, exact"
BEFORE, AFTER, CAUSAL, COLD = (
    "SmolLM2 without its causal mask", "the same, adapted", "SmolLM2 as it is, exact", "adapted without annealing",
)  # fmt: skip
SHORT = 8  # characters of an answer whose masks are all enumerated


@dataclass(frozen=True)
class Size:
    """windows: held-out texts that are judged;  samples: masks of each for the bound;  given: tokens of a prompt"""

    seeds: tuple[int, ...]
    windows: int
    samples: int
    enumerated: int
    tiny: TinySettings
    adapt: AdaptSettings
    adapted_windows: int
    adapted_samples: int
    given: int = 8
    cold: bool = False
    model: str = "smollm2"


TINY = TinySettings(steps=1000, width=96, layers=3, lr=3e-3, batch=16)
ADAPT = AdaptSettings(steps=60, batch=4, length=32, lr=1e-4, warmup=10, checkpoint_every=1000)
SMOKE = Size(
    (1,), 4, 4, 2, TinySettings(steps=2, width=16, layers=1, heads=2, batch=4),
    AdaptSettings(steps=6, batch=2, length=16, warmup=2, lr=1e-2), 3, 4, given=4, cold=True,
)  # fmt: skip
QUICK = Size((1,), 100, 64, 20, TINY, ADAPT, 16, 8)
FULL = Size((1, 2, 3), 200, 128, 40, replace(TINY, steps=4000), replace(ADAPT, steps=500, length=64), 64, 32, cold=True)


# --- characters -------------------------------------------------------------------------------------------------------


def bounds(model: Predictor, ids: np.ndarray, given: int, samples: int, seed: int) -> list[float]:
    """Nats per token of each row (N, T) after its first `given` tokens, at most."""
    found = [
        likelihood_bound(model, row[:given], row[given:], samples=samples, seed=1000 * seed + number, batch=16)
        for number, row in enumerate(ids)
    ]
    return [-one.value / one.tokens for one in found]


def causal_mask(length: int) -> torch.Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


def causal_nats(network: MaskedTransformer, ids: torch.Tensor, given: int) -> torch.Tensor:
    """(N,) nats per token after the first `given` ones, each given those before it."""
    logits = network(ids[:, :-1], attend=causal_mask(ids.shape[1] - 1))[:, given - 1 :]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, given:], reduction="none")
    return each.mean(1)


def train_twin(task: Shakespeare, settings: TinySettings) -> MaskedTransformer:
    """The network, optimiser, windows and steps of `train_tiny`; each token is predicted from those before it."""
    torch.manual_seed(settings.seed)
    network = new_network(task, settings)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )

    def batches() -> Iterator[torch.Tensor]:
        for step in range(settings.steps):
            ids, _ = encode_examples(task, task.draw(np.random.default_rng([settings.seed, step]), settings.batch))
            yield torch.from_numpy(ids)

    def progress(step: int, loss: float) -> None:
        if (step + 1) % 250 == 0:
            report(f"twin, seed {settings.seed}: step {step + 1} of {settings.steps}, loss {loss:.3f}")

    train(
        batches(), lambda ids: causal_nats(network, ids, task.prompt_length).mean(), optimizer,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate), clip=settings.clip, progress=progress,
    )  # fmt: skip
    return network.eval()


def characters(task: Shakespeare, model: Predictor, size: Size, seed: int) -> dict[str, Any]:
    """Nats per character of each window by both models; and bounds of short answers, enumerated and estimated."""
    ids, _ = encode_examples(task, task.draw(np.random.default_rng([seed, 7]), size.windows, held_out=True))
    bound = bounds(model, ids, task.prompt_length, size.samples, seed)
    report(f"seed {seed}: bound {np.mean(bound) / math.log(2):.3f} bits per character")
    twin = train_twin(task, replace(size.tiny, seed=seed))
    with torch.inference_mode():
        exact = causal_nats(twin, torch.from_numpy(ids), task.prompt_length).tolist()
    errors = []
    for number, row in enumerate(ids[: size.enumerated]):
        prompt, answer = row[-task.prompt_length - SHORT : -SHORT], row[-SHORT:]
        estimate = likelihood_bound(model, prompt, answer, samples=128, seed=number)
        difference = estimate.value - exact_bound(model, prompt, answer).value
        errors.append(difference / (estimate.standard_error or math.inf))
    return {DIFFUSION: bound, TWIN: exact, "errors": errors}


def frequencies(text: str) -> float:
    """Bits per character by how often each stands in the text."""
    counts = np.unique(np.array(list(text)), return_counts=True)[1]
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


# --- SmolLM2 ----------------------------------------------------------------------------------------------------------


def adaptation(text: str, size: Size, seed: int) -> dict[str, Any]:
    """Nats per token of each held-out window before and after adaptation, and by the causal model; losses of training.

    The text's last tenth is held out.
    """
    settings = replace(size.adapt, seed=seed)
    rng = np.random.default_rng([seed, 8])
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name), find_model(size.model) if known_model(size.model) else Path(size.model)
        convert(file, folder / "causal", to="safetensors", verify=False)
        tokens = np.array(HFTokenizer.from_folder(folder / "causal").encode(text))
        cut = len(tokens) * 9 // 10
        starts = rng.integers(cut, len(tokens) - settings.length + 1, size.adapted_windows)
        ids = np.stack([tokens[start : start + settings.length] for start in starts])
        judge = partial(bounds, ids=ids, given=size.given, samples=size.adapted_samples, seed=seed)
        with torch.inference_mode():
            exact = causal_nats(load_causal(folder / "causal"), torch.from_numpy(ids), size.given).tolist()
        found: dict[str, Any] = {CAUSAL: exact, BEFORE: judge(MaskedPredictor(causal_as_masked(folder / "causal")))}
        report(f"before: at most {np.mean(found[BEFORE]):.2f} nats per token, causal {np.mean(exact):.2f}")
        for way, anneal in ((AFTER, settings.anneal), *(((COLD, 0.0),) if size.cold else ())):

            def progress(step: int, loss: float) -> None:
                if (step + 1) % 10 == 0:
                    report(f"adaptation: step {step + 1} of {settings.steps}, loss {loss:.2f}")

            place = folder / f"adapted-{anneal}"
            losses = adapt_causal(
                folder / "causal", tokens[:cut].tolist(), place, replace(settings, anneal=anneal), progress=progress
            )
            found |= {way: judge(MaskedPredictor(load_masked(place))), f"losses, {way}": losses}
    return found


# --- the study --------------------------------------------------------------------------------------------------------


def mean_figure(subject: str, values: np.ndarray, unit: str) -> Figure:
    """A mean over windows with its bootstrap interval; its standard error stands in the note."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    found = ratio_figure(subject, unit, values, unit=unit, of="windows")
    return found.model_copy(update={"note": f"{subject}: standard error {error:.3f}"})


def upper_end(difference: np.ndarray) -> float:
    """Of the 95 % interval of a mean of paired differences."""
    high = ratio_figure("difference", "mean", difference, unit="1", of="windows").high
    assert high is not None
    return high


def study(size: Size, cells: Cells, *, full: bool, threads: int = 1) -> Evidence:
    started = time.process_time()
    task, models, rows = Shakespeare(), list[Source](), list[Mapping[str, Any]]()
    text = task.whole
    for seed in size.seeds:
        model, folder = predictor("shakespeare", seed, size.tiny)
        models.append(source(folder))
        rows.append(cells.value(f"characters {seed}", partial(characters, task, model, size, seed)))
    bits = {way: np.concatenate([row[way] for row in rows]) / math.log(2) for way in (DIFFUSION, TWIN)}
    errors = np.abs(np.concatenate([row["errors"] for row in rows]))
    smol = cells.value("adaptation", partial(adaptation, text, size, size.seeds[0]))
    nats = {way: np.array(smol[way]) for way in (CAUSAL, BEFORE, AFTER, *((COLD,) if size.cold else ()))}
    figures = [mean_figure(way, values, "bits per character") for way, values in bits.items()]
    figures += [mean_figure(way, values, "nats per token") for way, values in nats.items()]
    figures.append(
        Figure(subject="frequencies of characters", quantity="bits per character", value=frequencies(text),
               unit="bits per character", n=len(text), of="characters", note="the whole text, without an interval")
    )  # fmt: skip
    checks = [
        Check(statement="Shakespeare: the twin's bits over the bound's, upper end of the interval", bound=0.0,
              value=upper_end(bits[TWIN] - bits[DIFFUSION]), unit="bits per character"),
        Check(statement="Shakespeare: the bound's bits over those of the frequencies of characters", bound=0.0,
              value=float(bits[DIFFUSION].mean()) - frequencies(text), unit="bits per character"),
        Check(statement=f"bounds of {SHORT} characters, enumerated and estimated: the largest difference", bound=4.0,
              value=float(errors.max()), unit="standard errors"),
        Check(statement="SmolLM2: nats after adaptation over those before, upper end of the interval", bound=0.0,
              value=upper_end(nats[AFTER] - nats[BEFORE]), unit="nats per token"),
    ]  # fmt: skip
    losses = smol[f"losses, {AFTER}"]
    ours = (
        f"tiny Shakespeare: at most {bits[DIFFUSION].mean():.2f} bits per character by the masked model, "
        f"{bits[TWIN].mean():.2f} by the autoregressive twin, {frequencies(text):.2f} by frequencies; SmolLM2-135M: at "
        f"most {nats[BEFORE].mean():.2f} nats per token without its causal mask, {nats[AFTER].mean():.2f} after "
        f"{size.adapt.steps} steps of {size.adapt.batch * size.adapt.length} tokens (with the mask "
        f"{nats[CAUSAL].mean():.2f}; loss of the first 10 steps {np.mean(losses[:10]):.2f}, of the last 10 "
        f"{np.mean(losses[-10:]):.2f})"
    )
    return conclude(
        NAME,
        title="Diffusion models on text: a bound beside an autoregressive twin, and SmolLM2 adapted",
        claim=(
            "A tiny masked model's bound of Shakespeare by characters is worse than the likelihood of an "
            "autoregressive twin of the same size and steps; a causal model without its mask learns to predict masked "
            "tokens."
        ),
        paper_figure=None,
        ours=ours,
        figures=figures,
        checks=checks,
        samples=(
            f"{len(size.seeds)} seed(s) of a network of {size.tiny.width} dimensions and {size.tiny.layers} layers, "
            f"{size.tiny.steps} steps of {size.tiny.batch} windows; {size.windows} held-out windows a seed, "
            f"{size.samples} masks each; adaptation: {size.adapt.steps} steps of {size.adapt.batch} windows of "
            f"{size.adapt.length} tokens, {size.adapted_windows} held-out windows, {size.given} tokens given, "
            f"{size.adapted_samples} masks each"
        ),
        intervals="95 %, percentile bootstrap over windows, which holds the error of the masks",
        full=full,
        models=[*models, *([model_source(size.model)] if known_model(size.model) else [])],
        data=data_sources([("tinyshakespeare", None)]),
        threads=threads,
        seconds=time.process_time() - started,
        not_shown=[
            "A diffusion model that is any good on text: that takes billions of tokens.",
            "Whether the bound or the model is worse: the bound is not tight unless all orders of prediction agree.",
            "seconds are of the processor, not of the clock, and of the cells that this run measured.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence:
    size, cells = size_and_cells(options, quick=QUICK, smoke=SMOKE, full=FULL)
    return study(size, cells, full=options.full, threads=options.threads)


def main() -> None:
    parser = arguments(full="more seeds and steps", quick="tiny", threads="of torch", kept=f"studies/{NAME}.jsonl")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
