"""The page at /: chat and complete with every token coloured by its likelihood; review queues.  Plain files.

Nothing on it comes from elsewhere, and its content policy forbids the browser to ask anybody but this server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Response

__all__ = ["HEADERS", "NAMES", "add_page"]

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
NAMES = (
    "index.html", "style.css", "app.js", "server.js", "answer.js", "details.js", "load.js", "review.js", "icon.svg",
)  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """GET / and the files that it needs; they hold no data, so they need no key."""
    for name in NAMES:
        path = "/" if name == "index.html" else f"/page/{name}"
        app.add_api_route(path, _sender(name), methods=["GET"], include_in_schema=False)


def _sender(name: str) -> Callable[[], Awaitable[Response]]:
    content = files(__package__).joinpath(name).read_bytes()
    kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"

    async def send() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return send
