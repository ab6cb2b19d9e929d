"""Self-speculation: the target drafts for itself with some of its layers left out, or side by side.

Zhang et al. 2024, "Draft & Verify", arXiv:2309.08168 (skipped sublayers, an end where the draft is not confident);
Elhoushi et al. 2024, "LayerSkip", arXiv:2404.16710 (early exit); EasySpec, arXiv:2502.02493 (attentions side
by side).  The draft reads the target's exact keys and values of the text, its own nodes are pending ones that are
dropped again: no second model, no second cache.  Models that were not trained for it tolerate little skipping.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path

from likely.decoding.drafting.layers.plans import (
    check_plan,
    default_groups,
    default_skipped,
    load_plan,
    parse_groups,
    parse_skipped,
    saved_plan,
)
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
from likely.runtimes.protocol import FloatArray, LayerPlan, Runtime, Sequence

CONFIDENCE = 0.6  # a draft ends where its best token has less probability


class SelfSpeculation:
    """DraftSource: the target under a layer plan, for targets whose runtime can run by it.

    Nodes drafted under a plan are dropped before the target verifies, which computes the exact keys and values of what
    it accepts: EasySpec's "bonus calibration" needs no pass of its own here.
    """

    free = False

    def __init__(self, plan: LayerPlan, *, shape: DraftShape | None = None, name: str = "self"):
        self.plan, self.name = plan, name
        self.shape: DraftShape = Chain(confidence=CONFIDENCE) if shape is None else shape
        self.distributions: frozenset[DraftDistribution] = self.shape.distributions

    def begin(self, prompt: Seq[int], context: SamplingContext) -> SelfDrafter:
        return SelfDrafter(self, prompt, context)

    def propose_many(self, drafters: Seq[Drafter], budgets: Seq[int]) -> list[Draft]:
        """All texts advance together, one shortened call of the target per level."""
        growing: list[GrowingDraft | None] = []
        runtime: Runtime | None = None
        for drafter, budget in zip(drafters, budgets, strict=True):
            assert isinstance(drafter, SelfDrafter)
            growing.append(drafter.begin_draft(budget))
            runtime = drafter.runtime or runtime
        if runtime is None:
            return [NO_DRAFT] * len(drafters)
        try:
            return grow_together(runtime, growing)
        finally:
            runtime.commit([(each.sequence, []) for each in growing if each is not None and each.sequence.pending])


class SelfDrafter:
    """One text; `attach` names the target's sequence before each proposal."""

    def __init__(self, source: SelfSpeculation, prompt: Seq[int], context: SamplingContext):
        self._source, self._context = source, context
        self._tokens = [int(t) for t in prompt]
        self._prompt = len(self._tokens)
        self.runtime: Runtime | None = None
        self._held: Sequence | None = None
        self._root = -1

    def attach(self, runtime: Runtime, held: Sequence, root: int) -> None:
        check_plan(runtime, self._source.plan, self._source.name)
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

    def fork(self, context: SamplingContext) -> SelfDrafter:
        copy = SelfDrafter(self._source, self._tokens, context)
        copy._prompt = self._prompt
        return copy

    def end(self) -> None:
        self.runtime = self._held = None


def layer_skip(argument: str, runtime: Runtime, shape: DraftShape | None = None) -> SelfSpeculation:
    """The model with layers left out, by `parse_skipped`; "": the plan saved for it, else `default_skipped`."""
    check_plan(runtime, LayerPlan(), "skip")
    layers = runtime.capabilities.layers
    if argument.strip():
        plan = parse_skipped(argument, layers)
    else:
        plan = saved_plan("skip", runtime.revision, layers) or default_skipped(layers)
    return SelfSpeculation(plan, shape=shape, name=f"skip:{argument}" if argument else "skip")


def parallel_plan(argument: str, runtime: Runtime) -> LayerPlan:
    """Attentions side by side: groups as in `parse_groups`, a file of `likely draft plan` (FILE.json), or "": the plan
    saved for this model, else `default_groups`.
    """
    check_plan(runtime, LayerPlan(parallel=((0, 1),)), "layer_parallel")
    layers = runtime.capabilities.layers
    if argument.strip().endswith(".json"):
        return load_plan(Path(argument.strip()).expanduser(), runtime.revision, layers)
    if argument.strip():
        return parse_groups(argument, layers)
    return saved_plan("layer_parallel", runtime.revision, layers) or default_groups(layers)


def layer_parallel(argument: str, runtime: Runtime, shape: DraftShape | None = None) -> SelfSpeculation:
    """The model with the attentions of neighbouring layers side by side, by `parallel_plan`."""
    name = f"layer_parallel:{argument}" if argument else "layer_parallel"
    return SelfSpeculation(parallel_plan(argument, runtime), shape=shape, name=name)
