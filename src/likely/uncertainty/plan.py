"""What is made for each prompt in one run of the model, so that several estimators share it."""

from __future__ import annotations

from dataclasses import dataclass

from likely.uncertainty.table import BRAINSTORMED


@dataclass(frozen=True)
class GatherPlan:
    """What is made for each prompt.

    needs     names of `table.NEEDS`
    samples   S, at temperature 1 without truncation, each prompt with noise of its own (from seed and prompt);
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
