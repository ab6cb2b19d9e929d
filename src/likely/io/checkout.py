"""Where the project's own files lie (results/, reproductions/): only in a checkout, not in an installed package."""

from __future__ import annotations

from pathlib import Path

from likely.errors import LikelyError


def find_checkout() -> Path | None:
    """The root of the checkout that this package runs from, None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "likely").is_dir() else None


def need_checkout(what: str) -> Path:
    """The root of the checkout; LikelyError that says why `what` needs one."""
    root = find_checkout()
    if root is None:
        raise LikelyError(
            f"{what} comes with the project's source, not with the installed package: "
            f"run it from a checkout (pip install -e .)"
        )
    return root
