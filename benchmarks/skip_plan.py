"""Which sublayers a model can do without when it drafts for itself (drafter `skip`): a random search.

Zhang et al. 2024, "Draft & Verify", arXiv:2309.08168, use Bayesian optimisation over the same bit masks and the same
objective.

  python benchmarks/skip_plan.py MODEL [--runtime torch] [--trials 40] [--save]

--save makes the plan that was found the one of "skip" for this model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

import likely
from likely.bench.speculation import BUILTIN
from likely.decoding.drafting.layers.drafter import SelfSpeculation
from likely.decoding.drafting.layers.plans import plan_path, save_plan
from likely.decoding.drafting.protocol import SamplingContext
from likely.decoding.drafting.trees.shapes import Chain, DraftGrowth, DraftShape
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.runtimes.protocol import LayerPlan, Runtime

BUDGET = 16


@dataclass(frozen=True)
class FoundPlan:
    """What a plan is worth: speedup = τ / (1 + draft calls per call × cost), in calls of the whole target; 1: no gain.

    cost  of one call under the plan; a call that verifies a whole draft counts as one
    """

    plan: LayerPlan
    speedup: float
    tokens_per_call: float
    draft_calls_per_call: float
    cost: float


def relative_cost(plan: LayerPlan, layers: int, *, attention: float, mlp: float, head: float) -> float:
    """Of one call under the plan, in calls of the whole model: the kept share of the weights that it reads.

    attention, mlp, head  weights of one such sublayer, and of the output matrix
    """
    whole = layers * (attention + mlp) + head
    return 1 - (len(plan.skip_attention) * attention + len(plan.skip_mlp) * mlp) / whole


def speed_on(
    runtime: Runtime,
    prompts: Seq[Seq[int]],
    *,
    cost: Callable[[LayerPlan], float],
    max_tokens: int = 32,
    shape: DraftShape | None = None,
) -> Callable[[LayerPlan], FoundPlan]:
    """Measures plans by greedy decoding of these prompts; cost: of a call under a plan, say `relative_cost`."""
    inner = Chain(confidence=0.6) if shape is None else shape

    def speed(plan: LayerPlan) -> FoundPlan:
        counted = _Counted(inner)
        source = SelfSpeculation(plan, shape=counted)
        loop = Loop(runtime, token_bytes=lambda token: b"", end_ids=frozenset())
        requests = [
            Request(tuple(prompt), Sampling(temperature=0.0), max_tokens, drafter=source, draft_budget=BUDGET)
            for prompt in prompts
        ]
        finished = [event.finish for [event] in run(loop, requests) if event.finish]
        tokens = sum(len(text.tokens) for text in finished)
        calls = sum(len(text.rounds) for text in finished)
        each, tau, drafting = cost(plan), tokens / calls, counted.levels / calls
        return FoundPlan(plan, tau / (1 + drafting * each), tau, drafting, each)

    return speed


class _Counted:
    """A shape that counts the calls of the draft."""

    def __init__(self, shape: DraftShape):
        self._shape, self.distributions, self.levels = shape, shape.distributions, 0

    def grow(self, context: SamplingContext, position: int, budget: int) -> DraftGrowth:
        growth = self._shape.grow(context, position, budget)
        try:
            level = next(growth)
            while True:
                self.levels += 1
                level = growth.send((yield level))
        except StopIteration as stop:
            return stop.value


def search(
    speed: Callable[[LayerPlan], FoundPlan], layers: int, rng: np.random.Generator, *, trials: int = 40, flips: int = 3
) -> FoundPlan:
    """The best plan of a random search: each trial flips up to `flips` sublayers of the best one so far.

    speed  measures a plan (`speed_on`).  It begins with every other inner layer left out; the first layer and the last
    always run.
    """
    inner = [(kind, n) for kind in (0, 1) for n in range(1, layers - 1)]
    half = frozenset(range(1, layers - 1, 2))
    best = speed(LayerPlan(half, half))
    for _ in range(trials if inner else 0):
        chosen = rng.choice(len(inner), size=int(rng.integers(1, min(flips, len(inner)) + 1)), replace=False)
        sets = [set(best.plan.skip_attention), set(best.plan.skip_mlp)]
        for kind, n in (inner[i] for i in chosen):
            sets[kind] ^= {n}
        found = speed(LayerPlan(frozenset(sets[0]), frozenset(sets[1])))
        if found.speedup > best.speedup:
            best = found
    return best


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("model")
    options.add_argument("--runtime", default="torch")
    options.add_argument("--trials", type=int, default=40)
    options.add_argument("--save", action="store_true")
    asked = options.parse_args()
    lm = likely.load(asked.model, runtime=asked.runtime)
    layers = lm.runtime.capabilities.layers
    prompts = [lm.encode_prompt(text) for task in BUILTIN for text in task.prompts if isinstance(text, str)]
    # as in Llama's family: an attention of 4 d^2 weights or less, an MLP of 8 d^2, and a head that is left out here
    speed = speed_on(
        lm.runtime, prompts, cost=lambda plan: relative_cost(plan, layers, attention=1.0, mlp=2.0, head=0.0)
    )
    found = search(speed, layers, np.random.default_rng(0), trials=asked.trials)
    print(f"{found.speedup:.2f}x, {found.tokens_per_call:.2f} tokens per call, a draft call costs {found.cost:.2f}")
    print(f"attention left out: {sorted(found.plan.skip_attention)}; MLP: {sorted(found.plan.skip_mlp)}")
    if asked.save:
        revision = lm.runtime.revision
        print("saved:", save_plan(found.plan, revision, plan_path("skip", revision)))


if __name__ == "__main__":
    main()
