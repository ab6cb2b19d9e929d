"""SequenceMatch: are texts better, and are mistakes mended, after as many steps as maximum likelihood takes?

Small models trained from scratch; from one checkpoint by maximum likelihood every method takes the same further steps
of the same batches: maximum likelihood; behaviour cloning (the same with noise and backspace); SequenceMatch without a
backspace (the ablation that the paper leaves out); SequenceMatch with it.
Text: Tiny Shakespeare; a score like MAUVE on hidden states of SmolLM2 (k-means of scipy), repeated 4-grams, held-out
loss.  Arithmetic: sums and differences, sampled at temperature 1, as they are and after a wrong first digit.

  python reproductions/sequence_match.py           3 seeds
  python reproductions/sequence_match.py --full    bigger models, more steps and samples
  python reproductions/sequence_match.py --quick   tiny, no result is written
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from shared_steps import Cells
from study import arguments, conclude, data_sources, figure_with, model_source, run_script, run_study
from tiny_pair import make_tokenizer, texts

import likely
from likely.alignment.sequence_match import (
    SequenceMatchSettings,
    Trajectory,
    mauve_like,
    repeated_ngrams,
    sample_trajectories,
    sequence_match_loss,
    to_trees,
    train_sequence_match,
    tree_logits,
)
from likely.evidence import Check, Evidence, Figure, Source
from likely.runtimes.torch.runtime import TorchRuntime
from likely.scoring.hidden import hidden_states
from likely.scoring.likelihood import Item, score_items

NAME = "sequence_match"
MLE, CLONED, PLAIN, FULL_METHOD = (
    "maximum likelihood", "cloning with backspace", "SequenceMatch without backspace", "SequenceMatch",
)  # fmt: skip
METHODS = (MLE, CLONED, PLAIN, FULL_METHOD)
LEAST_MENDED = 0.2  # of sums with a wrong digit in front that the method should get right more often
CHARACTERS = "0123456789+-=;"
T95 = 4.303  # of Student's t with 2 degrees of freedom


@dataclass(frozen=True)
class Part:
    """One model and how it is trained and judged."""

    width: int
    layers: int
    base: int  # steps by maximum likelihood that all methods share
    steps: int  # of each method after them
    batch: int
    noise: float
    judged: int  # texts, or sums
    rate: float = 5e-4  # of learning, after the base


@dataclass(frozen=True)
class Size:
    text: Part
    sums: Part
    seeds: int
    prompt: int = 8
    length: int = 40


SMOKE = Size(Part(32, 1, 4, 3, 4, 0.1, 12), Part(32, 1, 4, 3, 8, 0.1, 10), 2, 4, 8)
QUICK = Size(Part(128, 2, 250, 120, 16, 0.05, 250), Part(96, 2, 700, 150, 48, 0.2, 150), 3)
FULL = Size(Part(256, 4, 1500, 600, 32, 0.02, 1000), Part(192, 4, 4000, 1000, 64, 0.1, 1000), 3, 16, 112)


def settings_of(method: str, part: Part, seed: int) -> tuple[SequenceMatchSettings, bool]:
    """(how to train, whether the model may delete)."""
    ours, backspace = method in (PLAIN, FULL_METHOD), method in (CLONED, FULL_METHOD)
    settings = SequenceMatchSettings(
        steps=part.steps, batch=part.batch, divergence="chi2_mixture" if ours else "mle",
        noise=part.noise if backspace else 0.0, model_values=0.0, learning_rate=part.rate,
        refresh=max(1, part.steps // 3), drawn=32, seed=seed + 100,
    )  # fmt: skip
    return settings, backspace


def small_model(part: Part, vocab: int, seed: int) -> Any:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=part.width, intermediate_size=2 * part.width, num_hidden_layers=part.layers,
            num_attention_heads=max(2, part.width // 32), max_position_embeddings=256, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)


def trained(
    part: Part, vocab: int, data: Sequence[Trajectory], seed: int, *, max_tokens: int, end: int, back: int
) -> Iterator[tuple[str, Any, Any]]:
    """(method, model, what training said) of every method, from one checkpoint."""
    base = small_model(part, vocab, seed)
    first = SequenceMatchSettings(
        steps=part.base, batch=part.batch, divergence="mle", noise=0.0, learning_rate=2e-3, seed=seed
    )
    train_sequence_match(base, data, first, max_tokens=max_tokens, end_ids=frozenset({end}))
    for method in METHODS:
        settings, backspace = settings_of(method, part, seed)
        module = copy.deepcopy(base)
        said = train_sequence_match(
            module, data, settings, max_tokens=max_tokens, end_ids=frozenset({end}),
            backspace_id=back if backspace else None,
        )  # fmt: skip
        yield method, module, (said, back if backspace else None)


# --- text -------------------------------------------------------------------------------------------------------------


@cache
def shakespeare(vocab: int = 512) -> tuple[Any, np.ndarray, np.ndarray]:
    """(tokenizer, tokens to train on, tokens held out); the two ids behind them end a text and delete."""
    tokenizer = make_tokenizer(texts()[0], vocab)
    train, held = (np.array(tokenizer.encode(text).ids, np.int64) for text in texts())
    return tokenizer, train, held


def windows(tokens: np.ndarray, count: int, size: Size, rng: np.random.Generator) -> list[Trajectory]:
    at = rng.integers(0, len(tokens) - size.prompt - size.length, count)
    rows = [tokens[i : i + size.prompt + size.length].tolist() for i in at]
    return [Trajectory(tuple(row[: size.prompt]), tuple(row[size.prompt :]), False) for row in rows]


def text_numbers(size: Size, seed: int, features: Callable[[list[str]], np.ndarray]) -> dict[str, Any]:
    """By method: the score like MAUVE, repeated 4-grams, held-out loss, deletions per token."""
    import torch

    tokenizer, train, held = shakespeare()
    rng, part = np.random.default_rng(seed), size.text
    end, back = 512, 513
    data = windows(train, part.batch * max(part.base, part.steps), size, rng)
    people, others = (windows(held, part.judged, size, rng) for _ in range(2))
    of_people = features([tokenizer.decode(list(t.actions)) for t in people])
    control = mauve_like(of_people, features([tokenizer.decode(list(t.actions)) for t in others]), seed=seed)
    found: dict[str, Any] = {"people": {"mauve": control, "repeated": float(np.nanmean(repeated(people, None)))}}
    for method, module, (said, backspace) in trained(part, 514, data, seed, max_tokens=size.length, end=end, back=back):
        runtime = TorchRuntime(module, revision=method)
        written = sample_trajectories(
            runtime, [t.prompt for t in people], max_tokens=size.length, end_ids=frozenset({end}),
            backspace_id=backspace, seed=10_000 * (seed + 1),
        )  # fmt: skip
        trees = to_trees(people[:64], backspace_id=None)
        with torch.no_grad():
            logits = tree_logits(module, trees)
            loss = sequence_match_loss(logits, trees, torch.ones(len(trees), dtype=torch.bool), divergence="mle").loss
        kept = [t.text(backspace) for t in written]
        found[method] = {
            "mauve": mauve_like(of_people, features([tokenizer.decode(text) for text in kept]), seed=seed),
            "repeated": float(np.nanmean(repeated(written, backspace))),
            "loss": float(loss),
            "deleted": sum(t.actions.count(back) for t in written) / sum(len(text) for text in kept),
            "reward": said.metrics[-1].get("reward_model", 0.0),
        }
        runtime.shutdown()
    return found


def repeated(trajectories: Sequence[Trajectory], backspace: int | None) -> np.ndarray:
    return repeated_ngrams([[*t.prompt, *t.text(backspace)] for t in trajectories])


# --- sums -------------------------------------------------------------------------------------------------------------


def sums(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """(to train on, to test on): sums and differences of a number below 100 and one below 10."""
    every = [f"{a}+{b}={a + b};" for a in range(100) for b in range(10)]
    every += [f"{a}-{b}={a - b};" for a in range(100) for b in range(10) if a >= b]
    order = rng.permutation(len(every))
    cut = int(0.85 * len(every))
    return [every[i] for i in order[:cut]], [every[i] for i in order[cut:]]


def as_trajectory(line: str) -> Trajectory:
    asked, answer = line.split("=")
    return Trajectory(ids(asked + "="), ids(answer), True)


def ids(text: str) -> tuple[int, ...]:
    return tuple(CHARACTERS.index(c) for c in text)


def sum_numbers(size: Size, seed: int) -> dict[str, Any]:
    """By method: right as they are; right after a wrong first digit; probability of deleting it, and a right one."""
    rng, part = np.random.default_rng(seed), size.sums
    end, back = CHARACTERS.index(";"), len(CHARACTERS)
    train, test = sums(rng)
    data, asked = [as_trajectory(line) for line in train], [as_trajectory(line) for line in test[: part.judged]]
    wrong = [int(rng.choice([d for d in range(10) if d != t.actions[0]])) for t in asked]
    found = {}
    for method, module, (_, backspace) in trained(part, back + 1, data, seed, max_tokens=6, end=end, back=back):
        runtime = TorchRuntime(module, revision=method)
        written = sample_trajectories(
            runtime, [t.prompt for t in asked], max_tokens=6, end_ids=frozenset({end}), backspace_id=backspace,
            seed=10_000 * (seed + 1),
        )  # fmt: skip
        right = np.array([t.text(backspace) == list(own.actions) for t, own in zip(written, asked, strict=True)])
        injected, kept = (
            np.exp([
                scored.logprobs[0]
                for scored in score_items(runtime, [Item((*t.prompt, d, back), len(t.prompt) + 1) for t, d in pairs])
            ]) * (backspace is not None)
            for pairs in (
                list(zip(asked, wrong, strict=True)),
                [(t, t.actions[0]) for t in asked if t.actions[0] != end],
            )
        )  # fmt: skip
        found[method] = {
            "right": float(right.mean()),
            "mended": float((injected * right).mean()),
            "deletes a wrong digit": float(injected.mean()),
            "deletes a right digit": float(kept.mean()),
        }
        runtime.shutdown()
    return found


# --- the study --------------------------------------------------------------------------------------------------------

TEXT = {"mauve": "score like MAUVE", "repeated": "repeated 4-grams", "loss": "held-out loss",
        "deleted": "deletions per token"}  # fmt: skip
SUMS = {"right": "right", "mended": "right after a wrong digit", "deletes a wrong digit": "deletes a wrong digit",
        "deletes a right digit": "deletes a right digit"}  # fmt: skip


def over_seeds(subject: str, quantity: str, values: Sequence[float], unit: str = "1") -> Figure:
    """The mean of the seeds with Student's interval."""
    mean = float(np.mean(values))
    if len(values) < 3:
        return Figure(subject=subject, quantity=quantity, value=mean, unit=unit, n=len(values), of="seeds",
                      note="too few seeds for an interval")  # fmt: skip
    half = T95 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return figure_with(subject, quantity, mean, (mean - half, mean + half), unit=unit, n=len(values), of="seeds")


def measured(
    size: Size, cells: Cells, features: Callable[[list[str]], np.ndarray], seeds: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(sums, text) of each seed."""
    of_sums = [cells.value(f"sums {s}", lambda s=s: sum_numbers(size, s)) for s in seeds]
    of_text = [cells.value(f"text {s}", lambda s=s: text_numbers(size, s, features)) for s in seeds]
    return of_sums, of_text


def study(
    size: Size, cells: Cells, features: Callable[[list[str]], np.ndarray], *, full: bool, threads: int = 1,
    models: Sequence[Source] = (), files: Sequence[Source] = (),
) -> Evidence:  # fmt: skip
    started = time.process_time()
    of_sums, of_text = measured(size, cells, features, range(size.seeds))

    def each(runs: Sequence[Mapping[str, Any]], method: str, name: str) -> np.ndarray:
        return np.array([run[method][name] for run in runs])

    figures = [
        over_seeds(f"{part}: {method}", shown, each(runs, method, name).tolist())
        for part, runs, names in (("text", of_text, TEXT), ("sums", of_sums, SUMS))
        for method in METHODS
        for name, shown in names.items()
    ]
    figures += [over_seeds("text: of people", TEXT[name], each(of_text, "people", name).tolist())
                for name in ("mauve", "repeated")]  # fmt: skip

    def gap(runs: Sequence[Mapping[str, Any]], name: str, one: str, other: str, subject: str, shown: str) -> float:
        difference = each(runs, one, name) - each(runs, other, name)
        figures.append(over_seeds(f"{subject}: {one} less {other}", f"{shown}, difference", difference.tolist()))
        return float(difference.mean())

    checks = [
        Check(statement="text: score like MAUVE, maximum likelihood less SequenceMatch", bound=0.0, unit="1",
              value=gap(of_text, "mauve", MLE, FULL_METHOD, "text", "score like MAUVE")),
        Check(statement="text: repeated 4-grams, SequenceMatch less maximum likelihood", bound=0.0, unit="1",
              value=gap(of_text, "repeated", FULL_METHOD, MLE, "text", "repeated 4-grams")),
        Check(statement="sums after a wrong digit: right by maximum likelihood less by SequenceMatch",
              bound=-LEAST_MENDED, unit="1", value=gap(of_sums, "mended", MLE, FULL_METHOD, "sums", "mended")),
        Check(statement="sums after a wrong digit: right by cloning less by SequenceMatch", bound=0.0, unit="1",
              value=gap(of_sums, "mended", CLONED, FULL_METHOD, "sums", "mended")),
        Check(statement="sums as they are: right by maximum likelihood less by SequenceMatch", bound=0.05, unit="1",
              value=gap(of_sums, "right", MLE, FULL_METHOD, "sums", "right")),
    ]  # fmt: skip
    gap(of_text, "mauve", MLE, PLAIN, "text", "score like MAUVE")
    said = "; ".join(
        f"{method}: score like MAUVE {each(of_text, method, 'mauve').mean():.3f}, sums right "
        f"{each(of_sums, method, 'right').mean():.2f}, after a wrong digit {each(of_sums, method, 'mended').mean():.2f}"
        for method in METHODS
    )
    text, part = size.text, size.sums
    return conclude(
        NAME,
        title="SequenceMatch: imitation learning with backspace",
        claim=(
            "Training on the model's own texts, with an objective that bounds what they may cost and a token that "
            "deletes, writes better texts than maximum likelihood, and mends mistakes."
        ),
        paper_figure="MAUVE 0.91 against 0.85 by maximum likelihood, Llama2-7B with LoRA (second-hand)",
        ours=f"{said}; texts of people among themselves {each(of_text, 'people', 'mauve').mean():.3f}",
        figures=figures,
        checks=checks,
        samples=(
            f"{size.seeds} seeds; text: {text.judged} continuations of {size.length} tokens, {text.layers} layers of "
            f"{text.width}, {text.base} steps by maximum likelihood and {text.steps} by each method, of {text.batch} "
            f"texts; sums: {part.judged} not seen in training, {part.layers} layers of {part.width}, {part.base} and "
            f"{part.steps} steps of {part.batch}"
        ),
        intervals="95 %: Student's t over seeds",
        full=full,
        models=models,
        data=files,
        threads=threads,
        seconds=time.process_time() - started,
        not_shown=[
            "Values from own texts: they are taken from the data alone (model_values=0), which is calmer at this size.",
            "Llama2-7B, long texts, MAUVE itself (its features come from a much larger model).",
            "A wrong digit counts as mended where it is deleted at once; later deletions are not counted.",
            "seconds are of the processor, not of the clock, and of the cells that this run measured.",
        ],
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Evidence | None:
    import torch

    torch.set_num_threads(options.threads)
    size = FULL if options.full else SMOKE if options.quick else QUICK
    cells = Cells(options.kept, json.loads(json.dumps(asdict(size))))
    with likely.load("smollm2", runtime="native", threads=options.threads) as judge:

        def features(given: list[str]) -> np.ndarray:
            return hidden_states(judge, [text or " " for text in given])

        if options.seed is not None:
            measured(size, cells, features, [options.seed])
            return None
        return study(
            size, cells, features, full=options.full, threads=options.threads, models=[model_source("smollm2")],
            files=data_sources((("tinyshakespeare", None),)),
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="bigger models, more steps", quick="tiny", threads="of torch and of the judge",
        kept=f"studies/{NAME}.jsonl",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="measure the cells of this seed alone and conclude nothing")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
