"""Cache folders of a test's own that need no compiler."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from likely.errors import CapabilityError
from likely.runtimes.native import build


def private_cache(folder: Path) -> str:
    """A cache folder with the native library that is there already: to compile it takes half a minute.

    Call it before LIKELY_CACHE is set to the folder.
    """
    kept = folder / "native"
    if not kept.exists():
        kept.mkdir(parents=True, mode=0o755)
        with suppress(CapabilityError):  # no compiler
            library = build.build()
            (kept / library.name).symlink_to(library)
    return str(folder)
