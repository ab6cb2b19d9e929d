"""A small language server for tests: completes members from comments "# NAME: a, b, c" in the text it was sent.

Arguments say how it behaves: "hang NAME" never answers for that receiver, "crash NAME" ends, "incomplete" says that its
lists are not whole, "chatty" asks the client things before it answers, "broken" sends what is no JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time


def read():
    length = 0
    while (line := sys.stdin.buffer.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length"):
            length = int(line.split(b":")[1])
    return json.loads(sys.stdin.buffer.read(length)) if length else None


def write(record):
    body = json.dumps({"jsonrpc": "2.0", **record}).encode()
    sys.stdout.buffer.write(b"Content-Length: %d\r\nContent-Type: x\r\n\r\n%s" % (len(body), body))
    sys.stdout.buffer.flush()


def receiver(text, position):
    """Columns count UTF-16 units."""
    line = text.split("\n")[position["line"]].encode("utf-16-le")[: 2 * position["character"]].decode("utf-16-le")
    match = re.search(r"(\w+)\.$", line)
    return match[1] if match else ""


def main():
    how = sys.argv[1:]
    texts = {}
    while (asked := read()) is not None:
        method, params = asked.get("method"), asked.get("params")
        if method == "initialize":
            assert params["capabilities"]["general"]["positionEncodings"] == ["utf-16"]
            write({"id": asked["id"], "result": {"capabilities": {"completionProvider": {"triggerCharacters": ["."]}}}})
        elif method == "textDocument/didOpen":
            texts[params["textDocument"]["uri"]] = params["textDocument"]["text"]
        elif method == "textDocument/didChange":
            assert params["textDocument"]["uri"] in texts
            texts[params["textDocument"]["uri"]] = params["contentChanges"][-1]["text"]
        elif method == "textDocument/completion":
            text = texts[params["textDocument"]["uri"]]
            name = receiver(text, params["position"])
            if how[:1] == ["hang"] and name == how[1]:
                time.sleep(3600)
            if how[:1] == ["crash"] and name == how[1]:
                sys.exit(3)
            if how == ["broken"]:
                sys.stdout.buffer.write(b"Content-Length: 4\r\n\r\n{no}")
                sys.stdout.buffer.flush()
                continue
            if how == ["chatty"]:
                write({"method": "window/logMessage", "params": {"type": 3, "message": "thinking"}})
                write({"id": 77, "method": "workspace/configuration", "params": {"items": [{}, {}]}})
                assert read() == {"jsonrpc": "2.0", "id": 77, "result": [None, None]}
                write({"id": 78, "method": "workspace/applyEdit", "params": {}})
                assert "error" in read()
            if "open only" in text and text.count("(") != text.count(")"):
                write({"id": asked["id"], "result": None})
                continue
            found = re.search(rf"# {name}: (.*)", text)
            items = [{"label": n.strip(), "kind": 2} for n in found[1].split(",")] if name and found else []
            items += (
                [{"label": "return", "kind": 14}, {"label": "a.py", "kind": 17}, {"label": "call()", "kind": 3}]
                if items
                else []
            )
            write(
                {"id": asked["id"], "result": {"isIncomplete": how == ["incomplete"], "items": items} if how else items}
            )
        elif method not in ("initialized", None):
            write({"id": asked.get("id"), "error": {"code": -32601, "message": f"no {method}"}})


if __name__ == "__main__":
    main()
