"""Run a model once for everything that several estimators need; then each of them is arithmetic (`table.estimate`).

Greedy text, samples and beams of a prompt grow from one computed prefix in the batch of one loop, beside those of other
prompts; what all prompts begin with is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from likely.errors import CapabilityError
from likely.uncertainty.local_run import gather_locally
from likely.uncertainty.plan import GatherPlan
from likely.uncertainty.remote_run import gather_remotely
from likely.uncertainty.table import BRAINSTORMED, needs_of
from likely.uncertainty.types import Gathered


def gather(
    lm: Any,
    prompts: Sequence[str],
    *,
    needs: Iterable[str],
    samples: int = 10,
    max_tokens: int = 64,
    seed: int = 0,
    beams: int = 5,
    stop: str | Sequence[str] = (),
    questions: bool = False,
    system: str | Sequence[str | None] | None = None,
    shown: Sequence[str] | None = None,
    brainstormed: int = BRAINSTORMED,
    progress: Callable[[int], None] | None = None,
) -> Gathered:
    """Run the model once for everything that is needed.

    lm        a `Model`, or a `RemoteModel` (greedy texts and samples with what log-probabilities the server gives)
    prompts   raw texts to continue; with questions=True what is asked, under `system` (one for all, or one each)
    needs     names of estimators or of needs ("greedy", "samples", "token_entropy", "beams", "p_true")
    shown     the questions as P(True) and clusterers read them; default: the prompts
    progress  called with the number of prompts that are done
    The others: see `GatherPlan`.  CapabilityError where this model cannot give what is needed.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of strings, got the string {prompts!r}")
    if not prompts:
        raise ValueError("no prompts: at least one is needed")
    if shown is not None and len(shown) != len(prompts):
        raise ValueError(f"shown has {len(shown)} questions for {len(prompts)} prompts")
    systems = (system,) * len(prompts) if isinstance(system, str) else tuple(system or ())
    if systems and len(systems) != len(prompts):
        raise ValueError(f"system has {len(systems)} messages for {len(prompts)} prompts")
    plan = GatherPlan(
        needs_of(needs, brainstormed=brainstormed),
        samples=samples,
        beams=beams,
        max_tokens=max_tokens,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        brainstormed=brainstormed,
        questions=questions,
        systems=systems,
    )
    texts = list(prompts if shown is None else shown)
    if hasattr(lm, "runtime"):
        return gather_locally(lm, list(prompts), texts, plan, progress)
    if hasattr(lm, "generate"):
        return gather_remotely(lm, list(prompts), texts, plan, progress)
    raise CapabilityError(f"cannot gather from {type(lm).__name__}: give a model that likely.load made")
