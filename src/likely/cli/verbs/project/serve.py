"""likely serve: an OpenAI-compatible server around one model."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from dataclasses import replace
from typing import Annotated

import typer

from likely.cli import flags, options
from likely.cli.confidence import ConfidenceFlags
from likely.errors import LikelyError, missing_extra

MIB = 2**20


@flags.grouped
def serve(
    model: flags.ModelFlags,
    confidence: ConfidenceFlags,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 127.0.0.1: this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds an API key.")
    ] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Requests at a time; more are told to wait.")] = (
        64
    ),
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, max=64, metavar="MIB", help="Largest request, in MiB.")
    ] = 1,
    deadline: Annotated[float, typer.Option("--deadline", min=0.1, help="Seconds that a request may take.")] = 600.0,
    drafter: Annotated[
        str | None, typer.Option("--drafter", help="Guess ahead in every request that names no drafter of its own.")
    ] = None,
) -> None:
    """Serve a model to OpenAI-compatible clients, until Ctrl-C.

    Examples:

      likely serve

      likely serve -m model.gguf --port 8080

      LIKELY_KEY=secret likely serve --host 0.0.0.0 --api-key-env LIKELY_KEY
    """
    from likely.models.load import installed

    if not (installed("fastapi") and installed("uvicorn")):
        raise missing_extra("fastapi or uvicorn", "serve")
    import uvicorn

    from likely.calibration.calibrator import Calibrator
    from likely.serving.api.app import create_app
    from likely.serving.limits import ServerLimits

    key = _key(api_key_env)
    options.drafting(drafter, "auto")
    wanted = replace(confidence, fallback=None).given()  # requests may name a threshold of their own
    if confidence.calibrator is not None:
        Calibrator.load(confidence.calibrator).check_answers()  # a wrong file is refused now
    limits = ServerLimits(max_queue=max_queue, max_body_bytes=max_body * MIB, deadline_s=deadline)
    listener = _listen(host, port)
    with listener, model.open_local("batch") as lm:
        if drafter is not None:
            lm.drafter(drafter)  # a wrong file or model is refused now
            lm.drafters.default = drafter
        lm.drafters.share_memory = False  # what clients choose by name learns from their own request alone
        other = None if confidence.fallback is None else lm.beside(confidence.fallback)  # a wrong file is refused now
        app = create_app(lm, limits=limits, api_key=key, **{**wanted, "fallback": other})
        _print_address(host, listener.getsockname()[1], key is not None, api_key_env)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, server_header=False
        )
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn after it has shut down
            uvicorn.Server(config).run(sockets=[listener])
    typer.echo("stopped", err=True)


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise typer.BadParameter(f"the environment variable {name} is not set", param_hint="--api-key-env")
    if not (key.isascii() and key.isprintable()):
        raise typer.BadParameter(
            f"the key in {name} holds characters that no header carries", param_hint="--api-key-env"
        )
    return key


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before a model is loaded for nothing."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        hint = "; choose another --port (0: any free one)" if port else ""
        raise LikelyError(f"cannot listen on {host}:{port}: {error.strerror or error}{hint}") from None
    return listener


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _print_address(host: str, port: int, has_key: bool, key_name: str | None) -> None:
    if not _is_this_machine(host):
        what = "ask with the key" if has_key else "use the model: there is no --api-key-env"
        typer.echo(f"Warning: listening on {host}, so whoever reaches this machine can {what}.", err=True)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"
    key = f' -H "Authorization: Bearer ${key_name}"' if has_key else ""
    typer.echo(f"serving at {url}  (Ctrl-C ends it)")
    typer.echo(
        f'try: curl {url}/completions -H "Content-Type: application/json"{key} '
        '-d \'{"prompt": "Once upon a time", "max_tokens": 20}\''
    )
