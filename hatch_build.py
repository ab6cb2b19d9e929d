"""Wheels that bring the native runtime compiled: with LIKELY_PREBUILT=all, as `cibuildwheel` sets it (pyproject.toml).

It may also name instruction sets of `PREBUILT`, "avx2,amx". Without it a wheel holds Python and C++ sources alone, and
the library is compiled on first use.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WANTED = os.environ.get("LIKELY_PREBUILT", "")


class NativeBuildHook(BuildHookInterface):
    """Compile the native runtime once per instruction set and put the libraries into the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [line for line in self.metadata.core.dependencies if line.startswith("numpy")] if WANTED else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or not WANTED:
            return
        sys.path.insert(0, str(Path(self.root) / "src"))
        from likely.runtimes.native.build import PREBUILT, compile_library

        if platform.machine() not in ("x86_64", "AMD64"):
            raise SystemExit(f"LIKELY_PREBUILT: no instruction sets are listed for {platform.machine()} yet; unset it")
        names = list(PREBUILT) if WANTED == "all" else WANTED.split(",")
        if unknown := sorted({*names} - {*PREBUILT}):
            raise SystemExit(f"LIKELY_PREBUILT: no instruction set {unknown[0]} (all, or of {', '.join(PREBUILT)})")
        for isa in names:
            made = Path(self.root) / "build" / "prebuilt" / f"likely-{isa}.so"
            compile_library(isa, made)
            build_data["force_include"][str(made)] = f"likely/runtimes/native/prebuilt/{made.name}"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
