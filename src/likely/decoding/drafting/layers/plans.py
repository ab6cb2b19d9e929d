"""Layer plans by their notation, by default, and in files: which layers a draft leaves out or runs side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from likely.errors import CapabilityError, DataError
from likely.io.hashes import cache_dir
from likely.io.whole_file import write_whole_file
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import LayerPlan, Runtime

PlanUse = Literal["skip", "layer_parallel"]  # the drafter whose plan it is
_PART = re.compile(r"(?:(attn|mlp):)?(\d+)(?:-(\d+))?")
_MOST_BYTES = 1 << 20  # of a plan file


def check_plan(runtime: Runtime, plan: LayerPlan, name: str) -> None:
    """CapabilityError unless the runtime can run by such a plan; name: of the drafter that needs it."""
    able = runtime.capabilities
    if not able.layers:
        raise CapabilityError(f"{name} needs a runtime that can leave out layers: {kinds_with('layers')}")
    if plan.parallel and not able.parallel_layers:
        raise CapabilityError(
            f"{name} needs a runtime that can run the attentions of several layers side by side: "
            f"{kinds_with('parallel_layers')}, for models whose MLP reads what attention has added"
        )


# --- layers left out --------------------------------------------------------------------------------------------------


def parse_skipped(argument: str, layers: int) -> LayerPlan:
    """From "4" (early exit after 4 layers), "3,5-9" (these layers, counted from 0, are left out), "attn:3,mlp:4-6"
    (these sublayers are); ValueError that says what is allowed.  A single layer n is "n-n".
    """
    text = argument.replace(" ", "")
    if text.isdigit():
        kept = int(text)
        if not 1 <= kept < layers:
            raise ValueError(f"skip:{argument}: early exit after 1..{layers - 1} of {layers} layers")
        return LayerPlan.exit_after(kept, layers)
    attention: set[int] = set()
    mlp: set[int] = set()
    for part in text.split(","):
        if not (found := _PART.fullmatch(part)):
            raise ValueError(
                f'skip:{argument}: "{part}" is not understood; write 4 (exit after 4 layers), 3,5-9 (layers left '
                f"out) or attn:3,mlp:4-6 (sublayers left out)"
            )
        kind, first, last = found[1], int(found[2]), int(found[3] or found[2])
        if not first <= last < layers:
            raise ValueError(f"skip:{argument}: layers are counted from 0 to {layers - 1}, got {part}")
        named = range(first, last + 1)
        attention.update(named if kind != "mlp" else ())
        mlp.update(named if kind != "attn" else ())
    return LayerPlan(frozenset(attention), frozenset(mlp))


def default_skipped(layers: int) -> LayerPlan:
    """Every fourth attention of the middle half.

    A beginning, no gain: on SmolLM2-135M (384 tokens of wikitext-2) it finds the whole model's best token on 67 % of
    the positions at 97 % of the weights read; early exit after 20 of 30 layers on 21 %, at 74 %.  Models trained for
    early exit, or much deeper ones, may stand more: `benchmarks/skip_plan.py` searches for a plan.
    """
    return LayerPlan(frozenset(range(layers // 4, 3 * layers // 4, 4)))


# --- layers side by side ----------------------------------------------------------------------------------------------


def groups_of(size: int, layers: int, *, first: int = 1, last: int = 1) -> LayerPlan:
    """Attentions side by side in groups of `size`, but for the first `first` and the last `last` layers.

    The defaults are EasySpec's plan (arXiv:2502.02493), there with groups of 4.
    """
    if size < 1:
        raise ValueError(f"a parallel group holds 1 layer or more, got {size}")
    end = layers - last
    return LayerPlan(parallel=tuple(tuple(range(n, min(n + size, end))) for n in range(first, end, size)))


def parse_groups(argument: str, layers: int) -> LayerPlan:
    """From "4" (EasySpec's plan, groups of 4) or "8-11,12-15" (these groups); ValueError that says what is allowed."""
    text = argument.replace(" ", "")
    if text.isdigit():
        if not 2 <= int(text) <= layers:
            raise ValueError(f"layer_parallel:{argument}: groups of 2..{layers} layers")
        return groups_of(int(text), layers)
    groups = []
    for part in text.split(","):
        if not (found := _PART.fullmatch(part)) or found[1] or not found[3]:
            raise ValueError(
                f'layer_parallel:{argument}: "{part}" is not understood; write 4 (groups of 4) or 8-11,12-15 (groups)'
            )
        first, last = int(found[2]), int(found[3])
        if not first <= last < layers:
            raise ValueError(f"layer_parallel:{argument}: layers are counted from 0 to {layers - 1}, got {part}")
        groups.append(tuple(range(first, last + 1)))
    return LayerPlan(parallel=tuple(groups))


def default_groups(layers: int) -> LayerPlan:
    """Pairs of layers behind the first quarter, the last layer by itself.

    The first layers bear it least (docs/papers/easyspec.md); `likely draft plan` searches for a plan of the model.
    """
    return groups_of(2, layers, first=-(-layers // 4))


# --- files ------------------------------------------------------------------------------------------------------------


def plan_path(use: PlanUse, revision: str) -> Path:
    """Where the plan of a drafter for the model of that revision is kept."""
    return cache_dir() / "layer_plans" / use / f"{re.sub(r'[^A-Za-z0-9.-]', '-', revision)[:64]}.json"


def save_plan(plan: LayerPlan, revision: str, path: Path, *, agreement: Mapping[str, float] | None = None) -> Path:
    """Write a plan for the model of that revision, with its agreement for readers; `plan_path`: the drafter's own."""
    record = {
        "revision": revision,
        "skip_attention": sorted(plan.skip_attention),
        "skip_mlp": sorted(plan.skip_mlp),
        "parallel": [list(group) for group in plan.parallel],
        **({} if agreement is None else {"agreement": dict(agreement)}),
    }
    write_whole_file(path, json.dumps(record, indent=1).encode())
    return path


def load_plan(path: Path, revision: str, layers: int) -> LayerPlan:
    """DataError unless the file holds a plan for the model of that revision."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        record = json.loads(path.read_bytes())
        if record["revision"] != revision:
            raise DataError(f"{path}: a plan for the model {record['revision']}, not for {revision}: search one for it")
        attention, mlp = (frozenset(record[name]) for name in ("skip_attention", "skip_mlp"))
        plan = LayerPlan(attention, mlp, tuple(tuple(group) for group in record["parallel"]))
        if not all(isinstance(n, int) and 0 <= n < layers for n in plan.named):
            raise ValueError(f"layers are counted from 0 to {layers - 1}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no layer plan ({error})") from None
    return plan


def saved_plan(use: PlanUse, revision: str, layers: int) -> LayerPlan | None:
    """The plan kept for a drafter; None if there is none that can be read."""
    try:
        return load_plan(plan_path(use, revision), revision, layers)
    except DataError:
        return None
