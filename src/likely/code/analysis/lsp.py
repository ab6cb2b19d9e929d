"""Members by any language server: the completion request of the Language Server Protocol 3.17, on standard streams."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from likely.code.analysis.child import Child, ChildProvider
from likely.code.analysis.members import AnalysisKind, AnalysisReply, Member
from likely.code.analysis.questions import closing_brackets
from likely.code.buffer import CodeBuffer, line_and_column

# CompletionItemKind of things that can stand after a dot; texts, keywords, snippets, colours, files are none
KINDS = {
    2: "method", 3: "function", 4: "constructor", 5: "field", 6: "variable", 7: "class", 8: "interface", 9: "module",
    10: "property", 11: "unit", 12: "value", 13: "enum", 20: "enum member", 21: "constant", 22: "struct", 23: "event",
    25: "type parameter",
}  # fmt: skip
_NAME = re.compile(r"[^\W\d]\w*")
METHOD_NOT_FOUND = -32601


class LspProvider(ChildProvider):
    """A language server for one project.

    command      how it is started, e.g. ["pyright-langserver", "--stdio"]
    language_id  as the protocol names it: "python", "java", "rust", ...
    limit_s      seconds that a question may take, start_limit_s: the start; then the server is killed and started anew
    options      initializationOptions of the server

    A list that the server calls incomplete is "unknown": a member that is missing in it may be legal.
    """

    name = "lsp"

    def __init__(
        self, command: Sequence[str], root: str = "", *, language_id: str = "python", limit_s: float = 2.0,
        start_limit_s: float = 60.0, options: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__(root, limit_s)
        self.command, self.language_id = tuple(command), language_id
        self.start_limit_s, self.options = start_limit_s, dict(options or {})
        self._versions: dict[str, int] = {}  # of the documents that the server knows

    def _ask(self, child: Child, kind: AnalysisKind, buffer: CodeBuffer) -> AnalysisReply:
        """Asked with the text as it is, and with its open brackets closed; what either answer holds is legal."""
        if kind != "members":
            return AnalysisReply("unknown")
        found: dict[str, Member] = {}
        prefix = buffer.prefix.rstrip()
        deadline = time.monotonic() + self.limit_s
        for middle in dict.fromkeys(("", closing_brackets(prefix)) if self.language_id == "python" else ("",)):
            items, whole = self._complete(child, buffer, prefix, f"{middle}\n{buffer.suffix}", deadline)
            if not whole:
                return AnalysisReply("unknown", detail="the server's list is not complete")
            for member in items:
                found.setdefault(member.name, member)
        return AnalysisReply("answered", tuple(found.values())) if found else AnalysisReply("unknown")

    # --- the conversation -------------------------------------------------------------------------------------------

    def _complete(
        self, child: Child, buffer: CodeBuffer, prefix: str, rest: str, deadline: float
    ) -> tuple[list[Member], bool]:
        uri = _uri(buffer.path or os.path.join(self.root or os.getcwd(), "untitled.py"))
        text = prefix + rest
        if uri in self._versions:
            self._versions[uri] += 1
            document = {"uri": uri, "version": self._versions[uri]}
            self._notify(
                child, "textDocument/didChange", {"textDocument": document, "contentChanges": [{"text": text}]}
            )
        else:
            self._versions[uri] = 1
            document = {"uri": uri, "languageId": self.language_id, "version": 1, "text": text}
            self._notify(child, "textDocument/didOpen", {"textDocument": document})
        line, column = line_and_column(prefix, len(prefix))
        in_line = prefix[len(prefix) - column :]
        position = {"line": line - 1, "character": len(in_line.encode("utf-16-le")) // 2}
        asked = {
            "textDocument": {"uri": uri},
            "position": position,
            "context": {"triggerKind": 2, "triggerCharacter": "."},
        }
        result = self._request(child, "textDocument/completion", asked, deadline)
        items = result.get("items", []) if isinstance(result, dict) else result or []
        whole = not (isinstance(result, dict) and result.get("isIncomplete"))
        return [m for item in items if (m := _member(item))], whole

    def _start(self) -> Child:
        self._versions = {}
        return Child(self.command, read_message, cwd=self.root or None)

    def _greet(self, child: Child) -> None:
        root = _uri(self.root) if self.root else None
        started = {
            "processId": os.getpid(), "rootUri": root, "initializationOptions": self.options,
            "workspaceFolders": [{"uri": root, "name": Path(self.root).name}] if root else None,
            "capabilities": {
                "general": {"positionEncodings": ["utf-16"]},
                "textDocument": {"completion": {"completionItem": {"snippetSupport": False}}},
            },
        }  # fmt: skip
        self._request(child, "initialize", started, time.monotonic() + self.start_limit_s)
        self._notify(child, "initialized", {})

    def _request(self, child: Child, method: str, params: Any, deadline: float) -> Any:
        """The result; what the server asks meanwhile is answered, what it tells is passed over."""
        self._number += 1
        number = self._number
        child.send(message({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
        while True:
            found = json.loads(child.receive(deadline - time.monotonic()))
            if "method" in found and "id" in found:
                child.send(message({"jsonrpc": "2.0", "id": found["id"], **_reply(found)}))
            elif found.get("id") == number and "method" not in found:
                if "error" in found:
                    raise ValueError(f"{method}: {found['error'].get('message', 'error')}")
                return found.get("result")

    def _notify(self, child: Child, method: str, params: Any) -> None:
        child.send(message({"jsonrpc": "2.0", "method": method, "params": params}))


def message(record: Mapping[str, Any]) -> bytes:
    """A message as it goes over the wire."""
    body = json.dumps(record).encode()
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def read_message(stream: IO[bytes]) -> bytes | None:
    """The body of the next message, None at the end."""
    length = None
    while line := stream.readline():
        if line in (b"\r\n", b"\n"):
            if length is None:
                continue
            body = stream.read(length)
            return body if len(body) == length else None
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    return None


def _reply(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a client without settings says to a server's request."""
    if asked["method"] == "workspace/configuration":
        return {"result": [None for _ in asked.get("params", {}).get("items", [])]}
    if asked["method"] in (
        "client/registerCapability",
        "client/unregisterCapability",
        "window/workDoneProgress/create",
    ):
        return {"result": None}
    return {"error": {"code": METHOD_NOT_FOUND, "message": "this client does not do that"}}


def _member(item: Mapping[str, Any]) -> Member | None:
    """The member that a completion item stands for, None if it is none."""
    kind = item.get("kind", 2)
    if kind not in KINDS:
        return None
    name = _NAME.match(str(item.get("filterText") or item["label"]).lstrip(".:->"))
    return Member(name[0], KINDS[kind], str(item.get("detail") or "")) if name else None


def _uri(path: str) -> str:
    return Path(path).resolve().as_uri()
