"""What can be wrong with a JSON Schema, or with a text that was to follow it."""

from __future__ import annotations

from collections.abc import Sequence

from likely.errors import ConstraintError, shortened


class InvalidSchema(ConstraintError):
    """Not a schema, or one that nothing can satisfy.  `pointer`: where (JSON pointer, "" is the whole schema)."""

    def __init__(self, pointer: str, reason: str):
        super().__init__(f"Not a usable JSON Schema: {reason}, at {pointer or 'the top'}.")
        self.pointer, self.reason = pointer, reason


class UnsupportedSchema(ConstraintError):
    """A keyword that the backend cannot enforce.  `pointer`: its schema; `keyword`; `reason`."""

    def __init__(self, pointer: str, keyword: str, reason: str = "", *, checkable: bool = True):
        why = f" ({reason})" if reason else ""
        advice = 'Remove it or use on_unsupported="validate"' if checkable else "Remove it or write it otherwise"
        what = f'"{keyword}"' if keyword else "what stands"
        super().__init__(f"Schema not supported: {what} at {pointer or 'the top'}{why}. {advice}.")
        self.pointer, self.keyword, self.reason, self.checkable = pointer, keyword, reason, checkable


class InvalidText(ValueError):
    """A finished text that does not follow its schema.  `errors`: one line each, with the place in the text."""

    def __init__(self, errors: Sequence[str]):
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)


class SchemaUnsatisfied(ConstraintError):
    """No sampled text follows the schema.  `text`: the last one; `errors`: what is wrong with it."""

    def __init__(self, text: str, errors: Sequence[str], draws: int = 1):
        shown = shortened(text, 80)
        who = "the sampled text does not follow" if draws == 1 else f"none of {draws} sampled texts follows"
        super().__init__(
            f"{who} the schema: {'; '.join(errors[:3])} (in {shown!r}). Raise retries= or relax the schema."
        )
        self.text, self.errors, self.draws = text, tuple(errors), draws
