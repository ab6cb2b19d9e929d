"""How a text is steered from outside the model: hard sets of allowed tokens, and soft changes of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from likely.decoding.masks import Mask
from likely.errors import ConstraintError
from likely.models.runtime import FloatArray, Output, Runtime, Work


class ConstraintDeadEnd(ConstraintError):
    """No token may follow. `position`: tokens emitted so far; `text`: what they say."""

    def __init__(self, position: int, text: str, reason: str = ""):
        shown = text if len(text) <= 80 else f"...{text[-77:]}"
        super().__init__(
            f"no token can follow after {position} tokens ({shown!r}){': ' + reason if reason else ''}. "
            f"The constraint contradicts itself or the vocabulary cannot spell what it wants."
        )
        self.position, self.text = position, text


class ConstraintViolation(ConstraintError):
    """A token was given to a constraint that does not allow it."""


class Constraint(Protocol):
    """A recogniser of one text, token by token.  Tokens are byte strings; control tokens are never text.

    vocab_size   V; ids at and past the tokenizer's own are never allowed
    accepting    the text so far is a whole member of the language
    finished     nothing but an end token may follow
    approximate  some mask so far was not the exact set (log_weight is then a bound or an estimate); False if unknown
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def accepting(self) -> bool: ...
    @property
    def finished(self) -> bool: ...
    @property
    def approximate(self) -> bool: ...

    def allowed(self, remaining: int | None = None) -> Mask:
        """The tokens that may come next; end tokens are among them exactly when the text may end here.

        remaining  tokens that may still be emitted; constraints that close within a budget leave out what would make
                   the text longer than that.  The set is a function of the text so far and `remaining`.
        """
        ...

    def permits(self, token: int) -> bool:
        """Whether this one token may come next; cheaper than `allowed`.

        A constraint whose `judges_late` is true may leave tokens in `allowed` that only `permits` refuses; the loop
        then chooses again without them.
        """
        ...

    def advance(self, token: int) -> None:
        """Take one token, an end token included.  ConstraintViolation if it is not allowed; the state then stays."""
        ...

    def forced(self) -> list[int]:
        """A guess of the tokens that come next whatever the model says, for drafting; [] where nothing is forced."""
        ...

    def fork(self) -> Constraint:
        """An independent copy; cheap."""
        ...

    def rollback(self, n: int) -> None:
        """Undo the last n tokens."""
        ...

    def ready(self, wait: bool = False) -> bool:
        """Whether `allowed` can answer at once.  False while something outside is asked; wait: until it is there."""
        ...


class Transform(Protocol):
    """A soft change of the logits along one text, possibly from other contexts than the prompt.

    The loop calls `begin` once, then for every token `apply` and, with what was emitted, `advance`.  Sequences that a
    transform holds are its own; `drop` gives them up, and they are computed anew when needed.  It may have `room`, the
    most tokens that it can follow, and `steps`, what it noted about each emitted token.
    Logits given to `apply` are -inf where a token is impossible, by a constraint or otherwise.
    """

    def begin(self, runtime: Runtime, prompt: Sequence[int]) -> Transform:
        """A copy for one text, bound to the runtime that it may call."""
        ...

    def work(self, work: Work) -> list[Work]:
        """What it wants computed in the same call as this piece of the text's own work; [] if nothing."""
        ...

    def read(self, outputs: list[Output]) -> None:
        """The outputs of `work`, in its order."""
        ...

    def apply(self, path: Sequence[int], logits: FloatArray) -> FloatArray:
        """New logits (V,) after prompt, emitted tokens and `path`.  Tokens of `path` will be emitted for certain."""
        ...

    def advance(self, tokens: Sequence[int], accepted: Sequence[int]) -> None:
        """`tokens` were emitted; `accepted`: nodes of the draft (numbered as in `work`) that are among them."""
        ...

    def fork(self) -> Transform: ...

    def drop(self) -> None:
        """Free what the runtime holds for it."""
        ...
