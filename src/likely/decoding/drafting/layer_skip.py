"""Self-speculation: the target drafts for itself with some of its layers left out.

Zhang et al. 2024, "Draft & Verify", arXiv:2309.08168 (skipped sublayers, an end where the draft is not confident);
Elhoushi et al. 2024, "LayerSkip", arXiv:2404.16710 (early exit).  The draft reads the target's exact keys and values of
the text, its own nodes are pending ones that are dropped again: no second model, no second cache.  Models that were not
trained for it tolerate little skipping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as Seq
from pathlib import Path

from likely.decoding.drafting.protocol import (
    NO_DRAFT,
    Draft,
    DraftDistribution,
    Drafter,
    SamplingContext,
    check_rollback,
)
from likely.decoding.drafting.trees.growth import GrowingDraft, grow_together, log_q_of_row
from likely.decoding.drafting.trees.shapes import Chain, DraftShape
from likely.errors import CapabilityError
from likely.io.hashes import cache_dir
from likely.io.whole_file import write_whole_file
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, LayerPlan, Runtime, Sequence

CONFIDENCE = 0.6  # a draft ends where its best token has less probability


class LayerSkip:
    """DraftSource: the target under a layer plan.  For targets whose runtime can leave out layers."""

    free = False

    def __init__(self, plan: LayerPlan, *, shape: DraftShape | None = None, name: str = "skip"):
        self.plan, self.name = plan, name
        self.shape: DraftShape = Chain(confidence=CONFIDENCE) if shape is None else shape
        self.distributions: frozenset[DraftDistribution] = self.shape.distributions

    @classmethod
    def parse(cls, argument: str, runtime: Runtime) -> LayerSkip:
        """From "4" (early exit after 4 layers), "3,5-9" (these layers, counted from 0, are left out), "attn:3,mlp:4-6"
        (these sublayers are), or "": the plan that was saved for this model, else `default_plan`.

        A single layer n is "n-n".
        """
        layers = _layers(runtime)
        if not argument.strip():
            plan = saved_plan(runtime.revision, layers) or default_plan(layers)
        else:
            plan = parse_plan(argument, layers)
        return cls(plan, name=f"skip:{argument}" if argument else "skip")

    def begin(self, prompt: Seq[int], context: SamplingContext) -> SkipDrafter:
        return SkipDrafter(self, prompt, context)

    def propose_many(self, drafters: Seq[Drafter], budgets: Seq[int]) -> list[Draft]:
        """All texts advance together, one shortened call of the target per level."""
        growing: list[GrowingDraft | None] = []
        runtime: Runtime | None = None
        for drafter, budget in zip(drafters, budgets, strict=True):
            assert isinstance(drafter, SkipDrafter)
            growing.append(drafter.begin_draft(budget))
            runtime = drafter.runtime or runtime
        if runtime is None:
            return [NO_DRAFT] * len(drafters)
        try:
            return grow_together(runtime, growing)
        finally:
            runtime.commit([(each.sequence, []) for each in growing if each is not None and each.sequence.pending])


def _layers(runtime: Runtime) -> int:
    """How many layers there are to leave out; CapabilityError where none can be."""
    if not runtime.capabilities.layers:
        raise CapabilityError(f"skip needs a runtime that can leave out layers: {kinds_with('layers')}")
    return runtime.capabilities.layers


class SkipDrafter:
    """One text; `attach` names the target's sequence before each proposal."""

    def __init__(self, source: LayerSkip, prompt: Seq[int], context: SamplingContext):
        self._source, self._context = source, context
        self._tokens = [int(t) for t in prompt]
        self._prompt = len(self._tokens)
        self.runtime: Runtime | None = None
        self._held: Sequence | None = None
        self._root = -1

    def attach(self, runtime: Runtime, held: Sequence, root: int) -> None:
        _layers(runtime)
        self.runtime, self._held, self._root = runtime, held, root

    def propose(self, budget: int) -> Draft:
        return self._source.propose_many([self], [budget])[0]

    def begin_draft(self, budget: int) -> GrowingDraft | None:
        runtime, held = self.runtime, self._held
        if runtime is None or held is None or held.closed:
            return None
        budget = min(budget, runtime.context_length - held.length - 1)
        if budget <= 0:
            return None
        self._held = None  # of this round only
        growth = self._source.shape.grow(self._context, len(self._tokens), budget)
        return GrowingDraft(held, growth, [self._root], self._log_q, keep_first=False, layers=self._source.plan)

    def _log_q(self, logits: FloatArray, path: list[int]) -> FloatArray:
        settings = self._context.sampling
        text = [*self._tokens, *path] if settings.has_penalties else ()
        return log_q_of_row(logits, settings, settings, text, self._prompt)

    def observe(self, tokens: Seq[int]) -> None:
        self._tokens += [int(t) for t in tokens]

    def rollback(self, n: int) -> None:
        check_rollback(n, len(self._tokens) - self._prompt)
        del self._tokens[len(self._tokens) - n :]

    def fork(self, context: SamplingContext) -> SkipDrafter:
        copy = SkipDrafter(self._source, self._tokens, context)
        copy._prompt = self._prompt
        return copy

    def end(self) -> None:
        self.runtime = self._held = None


# --- plans ------------------------------------------------------------------------------------------------------------

_PART = re.compile(r"(?:(attn|mlp):)?(\d+)(?:-(\d+))?")


def parse_plan(argument: str, layers: int) -> LayerPlan:
    """See `LayerSkip.parse`; ValueError that says what is allowed."""
    text = argument.replace(" ", "")
    if text.isdigit():
        kept = int(text)
        if not 1 <= kept < layers:
            raise ValueError(f"skip:{argument}: early exit after 1..{layers - 1} of {layers} layers")
        return LayerPlan.exit_after(kept, layers)
    attention: set[int] = set()
    mlp: set[int] = set()
    for part in text.split(","):
        if not (found := _PART.fullmatch(part)):
            raise ValueError(
                f'skip:{argument}: "{part}" is not understood; write 4 (exit after 4 layers), 3,5-9 (layers left '
                f"out) or attn:3,mlp:4-6 (sublayers left out)"
            )
        kind, first, last = found[1], int(found[2]), int(found[3] or found[2])
        if not first <= last < layers:
            raise ValueError(f"skip:{argument}: layers are counted from 0 to {layers - 1}, got {part}")
        named = range(first, last + 1)
        attention.update(named if kind != "mlp" else ())
        mlp.update(named if kind != "attn" else ())
    return LayerPlan(frozenset(attention), frozenset(mlp))


def default_plan(layers: int) -> LayerPlan:
    """Every fourth attention of the middle half.

    A beginning, no gain: on SmolLM2-135M (384 tokens of wikitext-2) it finds the whole model's best token on 67 % of
    the positions at 97 % of the weights read; early exit after 20 of 30 layers on 21 %, at 74 %.  Models trained for
    early exit, or much deeper ones, may stand more: `benchmarks/skip_plan.py` searches for a plan.
    """
    return LayerPlan(frozenset(range(layers // 4, 3 * layers // 4, 4)))


def plan_path(revision: str) -> Path:
    return cache_dir() / "skip" / f"{re.sub(r'[^A-Za-z0-9.-]', '-', revision)[:64]}.json"


def save_plan(revision: str, plan: LayerPlan) -> Path:
    """Make this the plan of "skip" for the model of that revision."""
    path = plan_path(revision)
    record = {"revision": revision, "attention": sorted(plan.skip_attention), "mlp": sorted(plan.skip_mlp)}
    write_whole_file(path, json.dumps(record).encode())
    return path


def saved_plan(revision: str, layers: int) -> LayerPlan | None:
    """None if there is none of this revision that can be read."""
    try:
        record = json.loads(plan_path(revision).read_text())
        plan = LayerPlan(frozenset(record["attention"]), frozenset(record["mlp"]))
        fits = all(isinstance(n, int) and 0 <= n < layers for n in plan.skip_attention | plan.skip_mlp)
        return plan if fits and record["revision"] == revision else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
