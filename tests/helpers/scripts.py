"""The scripts in reproductions/ and benchmarks/ as modules that a test can call."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name: str, *, folder: str = "reproductions", named: str = ""):
    """The module of folder/NAME.py, which finds its neighbours while it is imported.

    named  the module's name, where an installed package may have that of the script
    """
    path = ROOT / folder
    sys.path.insert(0, str(path))
    try:
        if not named:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(named, path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[named] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path))
