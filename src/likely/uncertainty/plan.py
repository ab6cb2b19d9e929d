"""The planner: what several estimators need together, from one run of the model.

Greedy text, samples and beams of a prompt grow from one computed prefix in the batch of one loop, beside those of other
prompts; what all prompts begin with is computed once.  Then every estimator is arithmetic (`estimate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from likely.errors import CapabilityError
from likely.uncertainty.table import BRAINSTORMED, ESTIMATORS, Estimator, estimate, needs_of
from likely.uncertainty.types import Gathered

__all__ = ["ESTIMATORS", "Estimator", "Plan", "estimate", "gather", "needs_of"]


@dataclass(frozen=True)
class Plan:
    """What is made for each prompt.

    needs     names of `estimators.NEEDS`
    samples   S, drawn at temperature 1 without truncation, each prompt with noise of its own (from seed and prompt);
              a server is asked for top_p=1, and may still truncate by a top_k or min_p of its own (the note says so)
    beams     width of the beam search for M-NLL
    brainstormed  samples that P(True) shows
    questions     ask each prompt as `ask` does (chat template); else it is raw text to continue
    systems       of each question its system message;  empty: none has one
    """

    needs: frozenset[str]
    samples: int = 10
    beams: int = 5
    max_tokens: int = 64
    seed: int = 0
    stop: tuple[str, ...] = ()
    brainstormed: int = BRAINSTORMED
    questions: bool = False
    systems: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.needs:
            raise ValueError("nothing is needed: name an estimator or a need")
        for name, least in (("samples", 1), ("beams", 1), ("max_tokens", 1), ("brainstormed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        if self.systems and not self.questions:
            raise ValueError("system= is for questions=True: a raw prompt says everything itself")

    def system(self, prompt: int) -> str | None:
        """The system message of a question."""
        return self.systems[prompt] if self.systems else None


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
    The others: see `Plan`.  CapabilityError where this model cannot give what is needed.
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
    plan = Plan(
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
        from likely.uncertainty.local_run import gather_locally

        return gather_locally(lm, list(prompts), texts, plan, progress)
    if hasattr(lm, "generate"):
        from likely.uncertainty.remote_run import gather_remotely

        return gather_remotely(lm, list(prompts), texts, plan, progress)
    raise CapabilityError(f"cannot gather from {type(lm).__name__}: give a model that likely.load made")
