"""Calls of tools are checked first and then executed: parse, schema, references, preconditions, execute, result.

box = Toolbox([get_weather])
reply = client.chat.completions.create(model="smollm2", messages=messages, tools=box.definitions)
messages += [reply.choices[0].message, *box.run(reply.choices[0].message.tool_calls)]
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from likely.errors import DataError, nearest
from likely.io.hashes import fingerprint
from likely.serving.tools.registry import KEY, CallRefused, Observation, Tool

Outcome = Literal["done", "refused", "failed", "unknown"]
Approve = Callable[[Tool, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class CallResult:
    """What became of one call.

    outcome      "done";  "refused": by a check, nothing was executed;  "failed": a tool that changes nothing raised,
                 took too long or gave a wrong result;  "unknown": one that changes something did, so that nobody knows
                 whether it has
    value        its result, where it is done
    observation  what was wrong, None where it is done
    key          the idempotency key of the call
    """

    name: str
    outcome: Outcome
    value: Any = None
    observation: Observation | None = None
    key: str = ""

    @property
    def executed(self) -> bool:
        return self.outcome != "refused"

    @property
    def may_repair(self) -> bool:
        """Whether the model may be asked for a better call."""
        return self.outcome in ("refused", "failed")

    def content(self) -> str:
        """As a message to the model: the result, a text as it is, or {"error": {"stage", "path", "message"}}."""
        if self.observation is not None:
            return json.dumps({"error": self.observation.to_dict()}, ensure_ascii=False)
        return self.value if isinstance(self.value, str) else TypeAdapter(Any).dump_json(self.value).decode()


@dataclass
class Toolbox:
    """Tools by name, and what was done with them.

    writes   whether tools that change something are called
    approve  asked before each call of such a tool, with its arguments; False refuses the call
    """

    tools: Sequence[Tool]
    writes: bool = True
    approve: Approve | None = None
    _by_name: dict[str, Tool] = field(init=False, repr=False)
    _done: dict[str, CallResult] = field(init=False, repr=False, default_factory=dict)  # writes by their keys
    _unknown: set[str] = field(init=False, repr=False, default_factory=set)  # writes whose outcome nobody knows
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._by_name = {each.name: each for each in self.tools}
        if len(self._by_name) < len(self.tools):
            raise DataError(f"two tools have one name: {', '.join(each.name for each in self.tools)}")

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """For the field `tools` of a chat request."""
        return [each.definition for each in self.tools]

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The functions of these, as `tool_form` and `with_tools` take them."""
        return [each.definition["function"] for each in self.tools]

    def run(self, calls: Iterable[Any] | None) -> list[dict[str, Any]]:
        """A message with role "tool" per call, as the official client or JSON has calls.

        What is refused or fails becomes {"error": ...} in the message: the model reads it and may do better.
        """
        found = []
        for call in calls or ():
            plain = call if isinstance(call, Mapping) else call.model_dump()
            function = plain["function"]
            result = self.execute(function["name"], function["arguments"], key=plain["id"])
            found.append({"role": "tool", "tool_call_id": plain["id"], "content": result.content()})
        return found

    def check(self, name: str, arguments: str) -> Observation | None:
        """What is wrong with a call before anything is executed; None: nothing."""
        found = self._checked(name, arguments)
        return found if isinstance(found, Observation) else None

    def _checked(self, name: str, arguments: str) -> tuple[Tool, dict[str, Any]] | Observation:
        found = self._by_name.get(name)
        if found is None:
            known = ", ".join(self._by_name)
            message = f'there is no tool "{name}"{nearest(name, self._by_name)} (there are: {known})'
            return Observation("references", "", message)
        try:
            return found, found.check(arguments)
        except CallRefused as refused:
            return refused.observation

    def execute(self, name: str, arguments: str, *, key: str | None = None) -> CallResult:
        """Check a call, execute it in a worker thread with the tool's timeout, check its result.

        key  of the call, by default a new one.  A call that changes something is executed once per key: asked again,
             its first result is given.  After an unknown outcome no call with the same arguments is executed, whatever
             its key
        """
        key = secrets.token_hex(12) if key is None else key
        found = self._checked(name, arguments)
        if isinstance(found, Observation):
            return CallResult(name, "refused", None, found, key)
        tool, given = found
        if tool.effect != "write":
            return self._execute(tool, given, key)
        with self._lock:  # one change at a time: what was done is known before the next begins
            same = fingerprint([name, json.loads(arguments)], 32)
            refusal = self._why_not(tool, given, same, key)
            if refusal is not None:
                return CallResult(name, "refused", None, Observation("preconditions", "", refusal), key)
            if key not in self._done:
                self._done[key] = self._execute(tool, given, key)
                if self._done[key].outcome == "unknown":
                    self._unknown.add(same)
            return self._done[key]

    def _why_not(self, found: Tool, given: Mapping[str, Any], same: str, key: str) -> str | None:
        if not self.writes:
            return f"{found.name} changes something, which is not allowed here"
        if key in self._done:
            return None
        if same in self._unknown:
            return f"nobody knows whether the same call of {found.name} has done its work: look first, do not repeat it"
        if self.approve is not None and not self.approve(found, given):
            return f"this call of {found.name} was not approved"
        return None

    def _execute(self, found: Tool, given: dict[str, Any], key: str) -> CallResult:
        failed: Outcome = "unknown" if found.effect == "write" else "failed"
        settled = threading.Event()
        ended: list[tuple[Any, BaseException | None]] = []

        def work() -> None:
            try:
                ended.append((found.function(**given, **({KEY: key} if found.takes_key else {})), None))
            except BaseException as error:
                ended.append((None, error))
            settled.set()

        threading.Thread(target=work, name=f"tool-{found.name}", daemon=True).start()
        if not settled.wait(found.timeout_s):
            late = f"{found.name} took more than {found.timeout_s:g} s"
            return CallResult(found.name, failed, None, Observation("execute", "", late), key)
        [(value, error)] = ended
        if error is not None:
            said = " ".join(str(error).split())[:1000] or type(error).__name__
            return CallResult(found.name, failed, None, Observation("execute", "", said), key)
        try:
            found.check_result(value)
        except CallRefused as refused:
            return CallResult(found.name, failed, None, refused.observation, key)
        return CallResult(found.name, "done", value, None, key)
