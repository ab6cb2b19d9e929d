"""Errors meant for users: one family, one clear line each (what, value, allowed, what to do)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


class LikelyError(Exception):
    """Root of every error that a user can act on. The command line prints it in one line and exits with 1."""


class ModelError(LikelyError):
    """A model cannot be loaded, its architecture is not supported, or tokenizers disagree."""


class CapabilityError(LikelyError):
    """This runtime cannot do that; the message names one that can."""


class ConstraintError(LikelyError):
    """A grammar or schema is refused, cannot be satisfied, or is over budget."""


class DataError(LikelyError):
    """Input data are wrong: file, line, field, what was expected."""


class KvFull(LikelyError):
    """A call needs more cached tokens or sequences than are free. The runtime's state is unchanged.

    needed, available  in `unit`: "tokens" or "sequences"
    """

    def __init__(self, needed: int, available: int, unit: str = "tokens"):
        super().__init__(
            f"The cache is full: {needed} {unit} needed, {available} free. "
            f"Close sequences, send less at once, or load the model with a larger context=."
        )
        self.needed, self.available, self.unit = needed, available, unit


class RemoteError(LikelyError):
    """A server failed. `status` is its HTTP status (None: not reached); `retryable`: trying again may help."""

    def __init__(self, message: str, *, status: int | None = None, retryable: bool = False):
        super().__init__(message)
        self.status, self.retryable = status, retryable


def missing_extra(package: str, extra: str) -> CapabilityError:
    """The one line for a missing optional package."""
    return CapabilityError(f"{package} is not installed. Run: pip install 'likely[{extra}]'")


def missing_optional(error: ModuleNotFoundError) -> CapabilityError | None:
    """The one line for a package that an import did not find; None where no extra of likely brings it."""
    from importlib.metadata import PackageNotFoundError, requires  # where something is missing, and not at every start

    package = (error.name or "").split(".")[0]
    brought: dict[str, list[str]] = {}  # packages by extra
    with suppress(PackageNotFoundError):
        for line in requires("likely") or ():
            if found := re.match(r"([\w.-]+).*extra == .([\w-]+)", line):
                brought.setdefault(found[2], []).append(re.sub(r"[._]", "-", found[1]).lower())
    extras = [extra for extra, names in brought.items() if package.replace("_", "-").lower() in names]
    return missing_extra(package, min(extras, key=lambda extra: len(brought[extra]))) if extras else None


@contextmanager
def needs(package: str, extra: str) -> Iterator[None]:
    """Around the import of an optional package: `missing_extra` where it is not installed."""
    try:
        yield
    except ImportError:
        raise missing_extra(package, extra) from None


def check_choice(what: str, value: object, allowed: Iterable[str]) -> None:
    """ValueError for a value that is not allowed: 'unknown norm "sun"; did you mean "sum"? (allowed: sum, token)'."""
    known = list(allowed)
    if value not in known:
        raise ValueError(f'unknown {what} "{value}"{nearest(str(value), known)} (allowed: {", ".join(known)})')


def shortened(text: str, most: int = 60) -> str:
    """At most so many characters, for a message: a longer text ends in "..."."""
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def names_in(record: Iterable[str]) -> str:
    """'"a", "b"', what a record has instead of what was expected."""
    return ", ".join(f'"{name}"' for name in record) or "nothing"


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "x"?' or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{match[0]}"?' if match else ""
