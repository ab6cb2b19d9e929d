"""Logged conversations with tools as examples to train a model on: of their calls those that were carried out.

export_training_data(logged, "examples.jsonl")
likely align sft examples.jsonl --loss-on assistant -o adapter
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from likely.errors import DataError
from likely.io.whole_file import write_for_user
from likely.serving.tools.transcript import with_tools


def training_example(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], *, min_verified: int = 1
) -> dict[str, Any] | None:
    """{"messages"} as a chat template takes them, in which every call is right; None where fewer than min_verified are.

    messages   in OpenAI's form, such as `ToolRun.messages`;  functions: that were offered
    A call is verified where its result is there and no {"error"} of a `Toolbox`.  Other calls are left out with their
    results, so that a call which a repair reached is taught as the first attempt.
    """
    results = {m.get("tool_call_id"): str(m.get("content", "")) for m in messages if m.get("role") == "tool"}
    right = {number for number, content in results.items() if not _is_error(content)}
    kept: list[dict[str, Any]] = []
    verified = 0
    for message in messages:
        if message.get("role") == "tool" and message.get("tool_call_id") not in right:
            continue
        plain = dict(message)
        if calls := plain.pop("tool_calls", None):
            calls = [call for call in calls if call.get("id") in right]
            verified += len(calls)
            if not calls:
                continue
            plain["tool_calls"] = calls
        kept.append(plain)
    while kept and kept[-1].get("role") != "assistant":
        kept.pop()
    return {"messages": with_tools(kept, functions)} if kept and verified >= min_verified else None


def export_training_data(logged: Iterable[Mapping[str, Any]], path: str | Path, *, min_verified: int = 1) -> int:
    """Write the `training_example` of each conversation as a line of JSON; returns how many there are.

    logged  {"messages", "tools"} as in chat requests, the results of calls included
    """
    lines = []
    for number, each in enumerate(logged, 1):
        messages, tools = each.get("messages"), each.get("tools", [])
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            raise DataError(f'conversation {number}: "messages" must be a list of messages')
        if not isinstance(tools, list) or not all(isinstance(t, Mapping) and "function" in t for t in tools):
            raise DataError(f'conversation {number}: "tools" must be a list like the field of a chat request')
        example = training_example(messages, [tool["function"] for tool in tools], min_verified=min_verified)
        if example is not None:
            lines.append(json.dumps(example, ensure_ascii=False) + "\n")
    write_for_user(Path(path), "".join(lines).encode())
    return len(lines)


def _is_error(content: str) -> bool:
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("error"), dict) and "stage" in found["error"]
