"""Which layers of a draft model may run side by side: neighbours are merged while that is predicted to pay.

EasySpec (arXiv:2502.02493) takes groups of 4 of all layers but the first and the last; which layers bear it depends on
the model, so this looks.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from likely.decoding.drafting.layers.agreement import Agreement, PlanComparison
from likely.runtimes.protocol import LayerPlan, Runtime


@dataclass(frozen=True)
class DraftCost:
    """What drafting costs where every attention of a group has a device of its own.

    attention      share of a step of the whole draft model that its attentions take, one after the other; the default
                   is what the paper's 1.62 times faster drafting with groups of 4 in 32 layers implies
    draft          that step, in calls of the target: the ratio of their sizes where both use the same devices, up to
                   about 1 where the target is spread over as many devices as it is larger
    communication  of one group, in such steps: its input to all devices, the results back
    """

    attention: float = 0.55
    draft: float = 0.5
    communication: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.attention <= 1 or self.draft < 0 or self.communication < 0:
            raise ValueError(
                f"attention must lie in 0..1, draft and communication must be >= 0, got attention={self.attention}, "
                f"draft={self.draft}, communication={self.communication}"
            )

    def step(self, plan: LayerPlan, layers: int) -> float:
        """One step under the plan, in steps of the whole model: the critical path Σ_groups max(attention) + Σ MLP."""
        groups = sum(len(group) > 1 for group in plan.parallel)
        saved = self.attention * (1 - plan.attention_depth(layers) / layers)
        return 1 - saved + self.communication * groups

    def speed(self, overlap: float, plan: LayerPlan, layers: int, draft_length: int) -> float:
        """Predicted tokens in the time of one call of the target, for a target that agrees with the whole draft model.

        A round: one exact pass, which gives the first token, draft_length - 1 steps under the plan, one call of the
        target; the i-th token is accepted with probability overlap^(i - 1).
        """
        tokens = 1 + sum(overlap**i for i in range(draft_length))
        return tokens / (1 + self.draft * (1 + (draft_length - 1) * self.step(plan, layers)))


@dataclass(frozen=True)
class SearchStep:
    """A plan on the way: its agreement with the whole model, its attentions in sequence, its predicted speed."""

    plan: LayerPlan
    agreement: Agreement
    attention_depth: int
    speed: float


@dataclass(frozen=True)
class PlanSearch:
    """steps  from the whole model on, each with one more pair merged
    pairs  agreement with layers n and n + 1 alone side by side: how much each place bears
    """

    steps: tuple[SearchStep, ...]
    pairs: tuple[Agreement, ...]

    @property
    def best(self) -> SearchStep:
        """The fastest by prediction."""
        return max(self.steps, key=lambda step: step.speed)


def search_plan(
    runtime: Runtime,
    tokens: Seq[int],
    *,
    draft_length: int = 4,
    max_group: int = 4,
    cost: DraftCost | None = None,
    patience: int = 3,
    progress: Callable[[int], None] | None = None,
) -> PlanSearch:
    """Greedy: from the whole model on, merge the neighbours that cost least overlap, while speed rises.

    tokens    of a text like those that will be drafted; a few hundred
    patience  it ends after so many merges without a faster plan
    progress  is called with 1 after each plan that was measured

    Each merge takes one attention off the critical path, so the least loss is the least per attention saved.  Losses
    measured earlier order the candidates, and only the first are measured anew: losses mostly grow with the groups.
    """
    if max_group < 2 or patience < 1:
        raise ValueError(f"max_group must be >= 2 and patience >= 1, got {max_group} and {patience}")
    cost = cost or DraftCost()
    with PlanComparison(runtime, tokens, draft_length=draft_length) as comparison:
        layers = runtime.capabilities.layers

        def measured(joined: frozenset[int]) -> SearchStep:
            plan = joined_plan(joined, layers)
            found = comparison.agreement(plan)
            if progress is not None:
                progress(1)
            speed = cost.speed(found.overlap, plan, layers, draft_length)
            return SearchStep(plan, found, plan.attention_depth(layers), speed)

        joined: frozenset[int] = frozenset()
        steps = [measured(joined)]
        pairs = tuple(measured(frozenset({n})).agreement for n in range(layers - 1))
        loss = {n: 1 - pair.overlap for n, pair in enumerate(pairs)}
        while places := [n for n in loss if n not in joined and _largest(joined | {n}, layers) <= max_group]:
            fresh: dict[int, SearchStep] = {}
            while (n := min(places, key=loss.__getitem__)) not in fresh:
                fresh[n] = measured(joined | {n})
                loss[n] = steps[-1].agreement.overlap - fresh[n].agreement.overlap
            joined |= {n}
            steps.append(fresh[n])
            speeds = [step.speed for step in steps]
            if len(speeds) > patience and max(speeds[-patience:]) <= max(speeds[:-patience]):
                break
    return PlanSearch(tuple(steps), pairs)


def joined_plan(joined: frozenset[int], layers: int) -> LayerPlan:
    """The plan in which layers n and n + 1 stand in one group for every n in `joined`."""
    groups = [[0]]
    for n in range(1, layers):
        if n - 1 in joined:
            groups[-1].append(n)
        else:
            groups.append([n])
    return LayerPlan(parallel=tuple(tuple(group) for group in groups if len(group) > 1))


def _largest(joined: frozenset[int], layers: int) -> int:
    return max((len(group) for group in joined_plan(joined, layers).parallel), default=1)
