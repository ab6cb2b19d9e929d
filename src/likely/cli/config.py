"""Defaults of a person's own for options that say how models are run, kept in one file; a flag goes before them."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from likely.errors import DataError, nearest
from likely.io.whole_file import write_for_user
from likely.models.catalog import DEFAULT_MODEL

NAMES: Mapping[str, type[str] | type[int]] = {
    "model": str, "runtime": str, "dtype": str, "context": int, "threads": int,
}  # fmt: skip


def config_file() -> Path:
    """$LIKELY_CONFIG, else $XDG_CONFIG_HOME/likely/config.toml, else ~/.config/likely/config.toml."""
    if own := os.environ.get("LIKELY_CONFIG"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "likely" / "config.toml"


def read_config() -> dict[str, Any]:
    """The defaults that are set; DataError in one line for a file that says something else."""
    path = config_file()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    return {name: checked(name, value, str(path)) for name, value in found.items()}


def check_name(name: str, where: str) -> None:
    if name not in NAMES:
        raise DataError(f'{where}: no default is called "{name}"{nearest(name, NAMES)} (known: {", ".join(NAMES)})')


def checked(name: str, value: Any, where: str) -> str | int:
    """The value, if it may be a default of this option."""
    check_name(name, where)
    if type(value) is not NAMES[name]:
        kind = "a text" if NAMES[name] is str else "a whole number"
        raise DataError(f"{where}: {name} must be {kind}, got {value!r}")
    return NAMES[name](value)


def write_config(settings: Mapping[str, Any]) -> None:
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()]
    write_for_user(config_file(), "".join(lines).encode())


def defaults_for(command: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same by verb, as click's `default_map` has them; a model only where a verb would take the usual one."""
    if hasattr(command, "commands"):
        return {name: defaults_for(verb, settings) for name, verb in command.commands.items()}
    names = {p.name for p in command.params if p.name != "model" or p.default == DEFAULT_MODEL}
    return {name: value for name, value in settings.items() if name in names}
