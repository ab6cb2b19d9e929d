"""EasySpec: what does it cost to run attentions of neighbouring layers of a draft model on one input, side by side?

SmolLM2 and Gemma 3 270M are their own drafts: the whole model is the target, a layer plan the draft.  On wikitext-2 the
draft's next token is compared with the target's (a) with the attentions of each group side by side, or whole layers,
which is the paper's ablation, (b) with keys and values of the text calibrated after every round, or never, (c) by the
place and number of layers that stand together.  Whole texts through the loop show that nothing of it changes a text.  A
wider model of random weights shows where side by side is harmless: in layers that each change little.

  python reproductions/easyspec.py            512 tokens of SmolLM2, 96 of Gemma
  python reproductions/easyspec.py --quick    a smoke run, not written
  python reproductions/easyspec.py --full     twice as many tokens and prompts

Seconds are another script's: benchmarks/parallel_layers.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, model_source, ratio_figure, report, run_script, run_study

import likely
from likely.data import load_records
from likely.decoding.drafting.layers.agreement import PlanComparison
from likely.decoding.drafting.layers.drafter import SelfSpeculation
from likely.decoding.drafting.layers.plans import groups_of
from likely.decoding.drafting.layers.search import DraftCost, search_plan
from likely.decoding.drafting.model.drafter import DraftModel
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.drafting.trees.shapes import Chain, ConstantBranching
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.evidence import Check, Evidence, Figure, Source
from likely.runtimes.protocol import LayerPlan
from likely.runtimes.torch.runtime import TorchRuntime

K = 4  # tokens of a draft
SIZES = (2, 4)  # of the groups
BLOCK = 16  # tokens that are resampled together
ATTENTION, LAYERS_TOO = "attentions side by side", "whole layers side by side"
NEVER, EACH_ROUND = "never calibrated", "calibrated every 4 tokens"
SAME, OVERLAP = "same best token", "overlap Σ min(p, q)"
COST = DraftCost()
DROP = 0.07  # of speculation accuracy, at most, in the paper
PAPER = "draft model, groups of 4"
FILES = (("wikitext2", "test"), ("wikitext2", "valid"))


@dataclass(frozen=True)
class Size:
    """How much is measured of one model.

    tokens   of one text for agreement, `search` of another for the search
    prompts  of `context` tokens, followed for `rounds` rounds of K tokens, and continued by `written` tokens
    """

    tokens: int
    search: int
    prompts: int
    context: int = 64
    rounds: int = 12
    written: int = 24


@dataclass(frozen=True)
class Subject:
    """A model and its texts, as tokens; end_ids: tokens that end a text."""

    name: str
    runtime: TorchRuntime
    text: Sequence[int]
    searched: Sequence[int]
    prompts: Sequence[Sequence[int]]
    size: Size
    end_ids: frozenset[int] = frozenset()

    @property
    def layers(self) -> int:
        return self.runtime.capabilities.layers


@dataclass
class Found:
    """What was found of one model."""

    figures: list[Figure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    plan: LayerPlan = field(default_factory=LayerPlan)

    def compare(self, difference: Figure) -> None:
        """A difference whose interval must lie below zero."""
        assert difference.high is not None
        statement = f"{difference.subject}, {difference.quantity}, upper end of the interval"
        self.figures.append(difference)
        self.checks.append(Check(statement=statement, value=difference.high, bound=0.0, unit=difference.unit))


class Cells:
    """What was found part by part, in a file of one line each, so that a run goes on where another one stopped."""

    def __init__(self, path: Path | None = None):
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path is not None and path.exists() else []
        self._known = {record["cell"]: record for record in map(json.loads, lines)}

    def get(self, name: str, measure: Callable[[Found], object]) -> Found:
        """The cell of that name, measured into an empty one unless it is known."""
        if name not in self._known:
            measure(found := Found())
            record = {
                "cell": name,
                "figures": [figure.model_dump() for figure in found.figures],
                "checks": [check.model_dump() for check in found.checks],
                "lines": found.lines,
                "groups": [list(group) for group in found.plan.parallel],
            }
            self._known[name] = record
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
        record = self._known[name]
        return Found(
            [Figure(**figure) for figure in record["figures"]],
            [Check(**check) for check in record["checks"]],
            list(record["lines"]),
            LayerPlan(parallel=tuple(tuple(group) for group in record["groups"])),
        )  # fmt: skip


# --- the ablation: whole layers side by side --------------------------------------------------------------------------


@contextmanager
def whole_layers(module: Any, plan: LayerPlan) -> Iterator[None]:
    """Within, all layers of a group read the group's input h: x = h + Σ_j (layer_j(h) - h)."""
    layers = module.get_decoder().layers
    try:
        for group in plan.parallel:
            shared: dict[str, Any] = {}
            for n in group:
                layers[n].forward = _on_shared(layers[n].forward, shared, first=n == group[0], last=n == group[-1])
        yield
    finally:
        for n in {n for group in plan.parallel for n in group}:
            layers[n].__dict__.pop("forward", None)


def _on_shared(own: Callable[..., Any], shared: dict[str, Any], *, first: bool, last: bool) -> Callable[..., Any]:
    def forward(stream: Any, *arguments: Any, **named: Any) -> Any:
        if first:
            shared.update(h=stream, sum=0)
        out = own(shared["h"], *arguments, **named)
        tensor = out[0] if isinstance(out, tuple) else out
        shared["sum"] = shared["sum"] + (tensor - shared["h"])
        result = shared["h"] + shared["sum"] if last else stream
        return (result, *out[1:]) if isinstance(out, tuple) else result

    return forward


# --- agreement --------------------------------------------------------------------------------------------------------


def blocks(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sums, sizes) of neighbouring BLOCK values."""
    starts = np.arange(0, len(values), BLOCK)
    return np.add.reduceat(values.astype(np.float64), starts), np.diff(np.append(starts, len(values))).astype(float)


def mean_figure(subject: str, quantity: str, values: NDArray[Any], unit: str = "share of tokens") -> Figure:
    return ratio_figure(subject, quantity, *blocks(values), unit=unit, of=f"blocks of {BLOCK} tokens")


def agreements(subject: Subject, regime: str, found: Found, say: Callable[[str], None]) -> None:
    """Attentions or whole layers side by side, in groups of 2 and 4 of all inner layers."""
    length = None if regime == NEVER else K
    with PlanComparison(subject.runtime, subject.text, draft_length=length) as comparison:
        for size in SIZES:
            plan = groups_of(size, subject.layers)
            one = comparison.rows(plan)
            with whole_layers(subject.runtime.module, plan):
                both = comparison.rows(LayerPlan())
            for what, (same, overlap) in ((ATTENTION, one), (LAYERS_TOO, both)):
                at = f"{subject.name}, {what}, groups of {size}, {regime}"
                found.figures += [mean_figure(at, SAME, same), mean_figure(at, OVERLAP, overlap)]
                say(f"{at}: same best token {same.mean():.3f}, overlap {overlap.mean():.3f}")
            at = f"{subject.name}, groups of {size}, {regime}: whole layers less attentions"
            found.compare(mean_figure(at, SAME, both[0].astype(float) - one[0]))
        for size in SIZES:
            first = -(-subject.layers // 4)
            same, _ = comparison.rows(groups_of(size, subject.layers, first=first))
            at = f"{subject.name}, {ATTENTION}, groups of {size}, first {first} layers exact, {regime}"
            found.figures.append(mean_figure(at, SAME, same))
            say(f"{at}: {same.mean():.3f}")


def by_round(subject: Subject, found: Found, say: Callable[[str], None]) -> None:
    """The same best token, round by round behind an exact prompt, the paper's plan: calibrated or never."""
    plan, size = groups_of(4, subject.layers), subject.size
    rounds: dict[str, NDArray[np.float64]] = {}
    for regime, length in ((EACH_ROUND, K), (NEVER, None)):
        rows = []
        for prompt in subject.prompts:
            with PlanComparison(subject.runtime, prompt, draft_length=length, start=size.context) as comparison:
                rows.append(comparison.rows(plan)[0].reshape(size.rounds, K).mean(1))
        rounds[regime] = np.array(rows)  # (prompts, rounds)
        say(f"{subject.name}, {regime}, by round: {' '.join(f'{v:.2f}' for v in rounds[regime].mean(0))}")
    third = size.rounds // 3
    for regime, values in rounds.items():
        for what, part in (("first third", slice(third)), ("last third", slice(-third, None))):
            at = f"{subject.name}, groups of 4, {regime}, {what} of {size.rounds} rounds"
            found.figures.append(ratio_figure(at, SAME, values[:, part].mean(1), unit="share of tokens", of="prompts"))
    less = (rounds[NEVER] - rounds[EACH_ROUND])[:, 1:].mean(1)
    fall = rounds[NEVER][:, -third:].mean(1) - rounds[NEVER][:, :third].mean(1)
    for what, values in (
        (f"rounds 2 to {size.rounds}: {NEVER} less calibrated", less),
        (f"{NEVER}: last third of {size.rounds} rounds less first third", fall),
    ):
        at = f"{subject.name}, groups of 4, {what}"
        found.compare(ratio_figure(at, SAME, values, unit="share of tokens", of="prompts"))


def similarity(module: Any, tokens: Sequence[int], apart: int = 3) -> NDArray[np.float64]:
    """(L - 2 - apart,) mean cosine of the inputs of layers l and l + apart: the first and last of a group of 4."""
    import torch

    with torch.no_grad():
        states = module(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
    pairs = [(states[n][0], states[n + apart][0]) for n in range(1, len(states) - 1 - apart)]
    return np.array([float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairs])


# --- which layers, and what it would save -----------------------------------------------------------------------------


def searched(subject: Subject, found: Found, say: Callable[[str], None]) -> None:
    """Sensitivity by place, and the plan that a search finds."""
    search = search_plan(subject.runtime, subject.searched, draft_length=K, cost=COST)
    n = len(subject.searched)
    quarters = np.array_split(np.array([pair.overlap for pair in search.pairs]), 4)
    for what, values in zip(("first", "second", "third", "last"), quarters, strict=True):
        subject_ = f"{subject.name}, one pair of layers side by side, {what} quarter of the places"
        found.figures.append(
            ratio_figure(subject_, OVERLAP, values, unit="probability", of=f"places, each over {n} tokens")
        )
    for step in search.steps:
        found.figures.append(
            Figure(
                subject=f"{subject.name}, merged one by one to {step.attention_depth} attentions in sequence",
                quantity=OVERLAP, value=step.agreement.overlap, unit="probability", n=n, of="tokens",
                note="on the text of the search",
            )
        )  # fmt: skip
    for what, step in (("whole model", search.steps[0]), ("plan found", search.best)):
        found.figures += predicted(subject, f"{subject.name}, {what}", step.plan, step.agreement.overlap, n)
    with PlanComparison(subject.runtime, subject.searched, draft_length=K) as comparison:
        for size in SIZES:
            plan = groups_of(size, subject.layers)
            overlap = comparison.agreement(plan).overlap
            found.figures += predicted(subject, f"{subject.name}, groups of {size}, the paper's plan", plan, overlap, n)
    groups = ", ".join(f"{group[0]}-{group[-1]}" for group in search.best.plan.parallel) or "none"
    say(f"{subject.name}: pairs {' '.join(f'{pair.overlap:.2f}' for pair in search.pairs)}; plan found: {groups}")
    found.lines.append(
        f"{subject.name}: the fastest plan by prediction has {search.best.attention_depth} of {subject.layers} "
        f"attentions in sequence (overlap {search.best.agreement.overlap:.2f}, "
        f"{search.best.speed / search.steps[0].speed:.3f} times the whole draft); by weights its attentions "
        f"are {attention_share(subject.runtime.module):.0%} of a step"
    )
    found.plan = search.best.plan
    near = similarity(subject.runtime.module, subject.text)
    at = f"{subject.name}, inputs of the first and last layer of a group of 4"
    found.figures.append(ratio_figure(at, "cosine", near, unit="cosine", of="places"))


def predicted(subject: Subject, at: str, plan: LayerPlan, overlap: float, n: int) -> list[Figure]:
    """Critical path and speed of a draft step by `COST`; no clock."""
    note = f"attention {COST.attention:.0%} of a draft step, a draft step {COST.draft:g} calls of the target"
    speed = COST.speed(overlap, plan, subject.layers, K)

    def figure(quantity: str, value: float, unit: str, why: str) -> Figure:
        return Figure(subject=at, quantity=quantity, value=value, unit=unit, n=n, of="tokens", note=why)

    return [
        figure("attentions in sequence", plan.attention_depth(subject.layers), "layers", "counted"),
        figure("predicted speed of a draft step", 1 / COST.step(plan, subject.layers), "times the whole draft", note),
        figure("predicted tokens per target time", speed, "tokens", note),
    ]


def attention_share(module: Any) -> float:
    """Weights of the attentions among all that one token reads: layers and head."""
    sums = {"self_attn": 0, "mlp": 0}
    for layer in module.get_decoder().layers:
        for part in sums:
            sums[part] += sum(p.numel() for p in getattr(layer, part).parameters())
    return sums["self_attn"] / (sum(sums.values()) + module.get_output_embeddings().weight.numel())


# --- whole texts ------------------------------------------------------------------------------------------------------


def texts(subject: Subject, found: Found, best: LayerPlan, say: Callable[[str], None]) -> None:
    """Drafted texts against plain ones, and how many drafted tokens are kept."""
    runtime, size = subject.runtime, subject.size
    prompts = [tuple(prompt[: size.context]) for prompt in subject.prompts][: max(2, size.prompts // 3)]

    def write(sampling: Sampling, drafter: DraftSource | None) -> list[Finished]:
        requests = [
            Request(prompt, sampling, max_tokens=size.written, drafter=drafter, draft_budget=K) for prompt in prompts
        ]
        loop = Loop(runtime, token_bytes=lambda token: b"", end_ids=subject.end_ids)
        return [event.finish for events in run(loop, requests) for event in events if event.finish]

    paper, tree = groups_of(4, subject.layers), ConstantBranching((2, 1))
    drafters: dict[str, DraftSource] = {
        "whole model as the draft": DraftModel(runtime, shape=Chain(K)),
        PAPER: DraftModel(runtime, plan=paper, shape=Chain(K)),
        "draft model, plan found": DraftModel(runtime, plan=best, shape=Chain(K)),
        "the target itself, groups of 4": SelfSpeculation(paper, shape=tree),
    }
    changed, written = 0, 0
    for temperature, names in ((0.0, list(drafters)), (0.8, [PAPER, "the target itself, groups of 4"])):
        sampling = Sampling(temperature=temperature, seed=5)
        plain = [finished.tokens for finished in write(sampling, None)]
        for name in names:
            drafter = drafters[name]
            drafted = write(sampling, drafter)
            changed += sum(a.tokens != b for a, b in zip(drafted, plain, strict=True))
            written += len(plain)
            kept, calls, proposed = (
                np.array(values, float)
                for values in zip(*((sum(f.rounds), len(f.rounds), f.proposed) for f in drafted), strict=True)
            )
            at = f"{subject.name}, T = {temperature:g}, {name}"
            found.figures.append(
                ratio_figure(at, "tokens per target call", kept + calls, calls, unit="tokens", of="texts")
            )
            accepted = ratio_figure(at, "drafted tokens kept", kept, proposed, unit="share", of="texts")
            found.figures.append(accepted)
            say(f"{at}: {found.figures[-2].value:.2f} tokens per call, {accepted.value:.2f} of drafted kept")
            if name == PAPER:
                found.checks.append(
                    Check(
                        statement=f"{subject.name}, T = {temperature:g}: drafted tokens refused under the paper's "
                        "plan, of a draft that is never refused when whole", value=1 - accepted.value, bound=DROP,
                        unit="share of drafted tokens",
                    )
                )  # fmt: skip
    found.checks.append(
        Check(statement=f"{subject.name}: of {written} drafted texts, those that differ from plain decoding",
              value=changed, bound=0, unit="texts")
    )  # fmt: skip


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    subjects: Sequence[Subject],
    wide: Callable[[], TorchRuntime],
    *,
    cells: Cells,
    models: Sequence[Source],
    data: Sequence[Source],
    full: bool,
    threads: int,
    say: Callable[[str], None] = report,
) -> Evidence:
    """All parts on every model, and the wide model's agreement."""
    started, founds = time.perf_counter(), []
    for subject in subjects:
        for regime in (NEVER, EACH_ROUND):
            founds.append(
                cells.get(f"{subject.name}, {regime}", lambda f, r=regime, s=subject: agreements(s, r, f, say))
            )
        founds.append(cells.get(f"{subject.name}, rounds", lambda f, s=subject: by_round(s, f, say)))
        founds.append(cells.get(f"{subject.name}, search", lambda f, s=subject: searched(s, f, say)))
        best = founds[-1].plan
        founds.append(cells.get(f"{subject.name}, texts", lambda f, s=subject, b=best: texts(s, f, b, say)))
    founds.append(cells.get("random weights", lambda f: random_weights(wide(), f, say)))
    figures = [figure for found in founds for figure in found.figures]
    checks = [check for found in founds for check in found.checks]
    values = {(f.subject, f.quantity): f.value for f in figures}

    def told(subject: Subject) -> str:
        def of(what: str, size: int, regime: str) -> float:
            return values[f"{subject.name}, {what}, groups of {size}, {regime}", SAME]

        return (
            f"{subject.name}: same best token as the whole model with attentions side by side in groups of 2 / 4 "
            f"{of(ATTENTION, 2, NEVER):.2f} / {of(ATTENTION, 4, NEVER):.2f}, whole layers "
            f"{of(LAYERS_TOO, 2, NEVER):.2f} / {of(LAYERS_TOO, 4, NEVER):.2f}; calibrated every {K} tokens "
            f"{of(ATTENTION, 2, EACH_ROUND):.2f} / {of(ATTENTION, 4, EACH_ROUND):.2f}"
        )

    ours = "; ".join([*(told(subject) for subject in subjects), *(line for found in founds for line in found.lines)])
    return conclude(
        "easyspec",
        title="EasySpec: layer-parallel drafting",
        claim="Attentions of several layers of a draft model can run at the same time on one input, with calibrated "
        "keys and values and at most 7 % lower speculation accuracy; whole layers cannot; the target's text stays.",
        paper_figure="drafting up to 1.62 times faster, 4.17 times plain decoding at its peak, at most 7 % lower "
        "accuracy (drafts of 7 and 8 billion parameters, 8 A100)",
        ours=ours, figures=figures, checks=checks,
        samples="; ".join(
            f"{s.name}: {len(s.text)} tokens of wikitext-2 (test), {len(s.prompts)} prompts of {s.size.context} tokens "
            f"followed for {s.size.rounds} rounds of {K}, search on {len(s.searched)} tokens of the valid split"
            for s in subjects
        ),
        intervals=f"95 % percentile bootstrap over blocks of {BLOCK} tokens, prompts, places or texts; paired for "
        "differences; fixed seed",
        not_shown=[
            "Seconds: a device per layer of a group is needed; the predicted figures hold where attention is "
            f"{COST.attention:.0%} of a draft step, which is what 1.62 times with groups of 4 of 32 layers implies.",
            "Drafts of 7 and 8 billion parameters, in which neighbouring layers are more alike.",
            "A larger target: the draft's whole model stands in for it, so that what is lost is the plan's alone.",
        ],
        full=full, seconds=time.perf_counter() - started, models=models, data=data, threads=threads,
    )  # fmt: skip


def random_weights(runtime: TorchRuntime, found: Found, say: Callable[[str], None]) -> None:
    """Overlap by size of the groups in a model of random weights, whose layers each change little."""
    tokens = np.random.default_rng(0).integers(0, runtime.vocab_size, 192).tolist()
    layers, parts = runtime.capabilities.layers, []
    name = f"random weights, width {runtime.text_config.hidden_size}, {layers} layers"
    with PlanComparison(runtime, tokens, draft_length=None) as comparison:
        for size in (2, 4, layers - 2):
            plan = groups_of(size, layers)
            one = comparison.rows(plan)[1]
            with whole_layers(runtime.module, plan):
                both = comparison.rows(LayerPlan())[1]
            for what, overlap in ((ATTENTION, one), (LAYERS_TOO, both)):
                at = f"{name}, {what}, groups of {size}, {NEVER}"
                found.figures.append(mean_figure(at, OVERLAP, overlap, unit="probability"))
                say(f"{at}: overlap {overlap.mean():.4f}")
            parts.append(f"{one.mean():.3f} in groups of {size}")
    near = similarity(runtime.module, tokens)
    at = f"{name}, inputs of the first and last layer of a group of 4"
    found.figures.append(ratio_figure(at, "cosine", near, unit="cosine", of="places"))
    found.lines.append(f"{name}: overlap {', '.join(parts)} (cosine {near.mean():.2f})")


def wide_runtime(width: int = 1024, layers: int = 16, vocab: int = 4096) -> TorchRuntime:
    """A Llama of random matrices that keep lengths; what is added to the stream is scaled by 1 / sqrt(2 L) (GPT-2)."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=1024, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config).eval()
        for name, weights in module.named_parameters():
            if weights.dim() > 1:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 1.0 if "embed" in name else width**-0.5 * ((2 * layers) ** -0.5 if added else 1.0)
                torch.nn.init.normal_(weights, std=std)
    return TorchRuntime(module, tokens_held=1024, revision="random")


def subject_of(name: str, model: str, size: Size, threads: int) -> Subject:
    """A packaged model in torch fp32, and its texts of wikitext-2."""
    lm = likely.load(model, runtime="torch", dtype="float32", threads=threads)
    assert isinstance(lm.runtime, TorchRuntime)
    each = size.context + size.rounds * K

    def tokens(split: str, most: int) -> list[int]:
        rows = list(load_records("wikitext2", f"wiki.{split}.raw.gz"))[: most // 4]
        return lm.tokenizer.encode("\n".join(row["text"] for row in rows))[:most]

    test = tokens("test", size.tokens + size.prompts * each)
    rest = test[size.tokens :]
    prompts = [rest[i * each : (i + 1) * each] for i in range(size.prompts)]
    return Subject(
        name, lm.runtime, test[: size.tokens], tokens("valid", size.search), prompts, size, lm.tokenizer.end_ids
    )


def measure(options: argparse.Namespace) -> Evidence:
    import torch

    torch.set_num_threads(options.threads)
    times = 2 if options.full else 1
    sizes = (Size(512 * times, 96 * times, 12 * times), Size(96 * times, 48 * times, 6 * times, written=16))
    if options.quick:
        sizes = (Size(64, 16, 2, rounds=3, written=8),) * 2
    subjects = [
        subject_of("SmolLM2-135M", "smollm2", sizes[0], options.threads),
        subject_of("Gemma 3 270M", "gemma3", sizes[1], options.threads),
    ]
    return study(
        subjects, lambda: wide_runtime(256, 8) if options.quick else wide_runtime(), cells=Cells(options.kept),
        models=[model_source("smollm2"), model_source("gemma3")], data=data_sources(FILES), full=options.full,
        threads=options.threads,
    )  # fmt: skip


def main() -> Evidence | None:
    parser = arguments(full="twice as many tokens and prompts", quick="a few tokens", threads="of torch")
    parser.add_argument("--kept", type=Path, help="a file that keeps what is measured, to go on from there")
    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
