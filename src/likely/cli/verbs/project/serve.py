"""likely serve: an OpenAI-compatible server around one model."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags, options
from likely.cli.confidence import ConfidenceFlags
from likely.errors import LikelyError, missing_extra

MIB = 2**20
FILES_BESIDE = 64  # descriptors that are not connections
SWITCH_S = 5e-4  # a thread that reads requests gives way to the one that writes texts after so many seconds


@flags.grouped
def serve(
    model: flags.ModelFlags,
    confidence: ConfidenceFlags,
    source: Annotated[str | None, typer.Argument(metavar="MODEL", help="The model, as -m names it.")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 127.0.0.1: this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    api_key_env: Annotated[
        list[str] | None,
        typer.Option("--api-key-env", metavar="NAME", help="Environment variable that holds an API key; repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", metavar="NAME", help="Name by which clients may call it; *: any. Repeatable."),
    ] = None,
    max_running: Annotated[int, typer.Option("--max-running", min=1, help="Texts that are written at a time.")] = 64,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=0, help="Requests that wait behind them; more get 429.")
    ] = 256,
    max_body: Annotated[
        int, typer.Option("--max-body", min=1, max=64, metavar="MIB", help="Largest request, in MiB.")
    ] = 1,
    deadline: Annotated[float, typer.Option("--deadline", min=0.1, help="Seconds that a request may take.")] = 600.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds that running requests get when it is told to end.")
    ] = 30.0,
    cache_tokens: Annotated[
        int | None,
        typer.Option("--cache-tokens", min=0, help="Kept for prompts that begin like earlier ones; 0: none."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="A line of JSON on standard error for each request.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate (PEM): serve https.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key (PEM).")] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option("--upstream", metavar="URL", help="Another server, whose models are served, too. Repeatable."),
    ] = None,
    upstream_key_env: Annotated[
        str | None, typer.Option("--upstream-key-env", metavar="NAME", help="Environment variable with their API key.")
    ] = None,
    hedge: Annotated[
        bool, typer.Option("--hedge", help="Ask a second --upstream where the first is slower than 19 of 20 replies.")
    ] = False,
    if_unavailable: Annotated[
        Literal["error", "answer"],
        typer.Option(
            "--if-unavailable", help="Where --fallback is a server that cannot be reached: own answer, or none."
        ),
    ] = "error",
    router: Annotated[
        Path | None,
        typer.Option("--router", help='A fitted router between MODEL and --fallback, for the model "auto".'),
    ] = None,
    drafter: Annotated[
        str | None, typer.Option("--drafter", help="Guess ahead in every request that names no drafter of its own.")
    ] = None,
    reviews: Annotated[
        Path | None,
        typer.Option("--reviews", metavar="PATH", help="A review queue, or a folder of them, to judge on the page."),
    ] = None,
    draft_budget: Annotated[
        str,
        typer.Option(
            "--draft-budget",
            metavar="N",
            help="Most guessed tokens per text and call, where a request names none; auto: as many as pay at the load "
            "of the moment; off: none in any request.",
        ),
    ] = "auto",
) -> None:
    """Serve a model to OpenAI-compatible clients, until Ctrl-C.

    Examples:

      likely serve

      likely serve model.gguf --port 8080 --access-log

      likely serve --fallback http://127.0.0.1:8001 --risk 0.1

      likely serve --fallback http://127.0.0.1:8001 --router router.json

      likely serve --drafter suffix --draft-budget auto

      likely serve --reviews queue.jsonl

      LIKELY_KEY=secret likely serve --host 0.0.0.0 --api-key-env LIKELY_KEY
    """
    from likely.models.load import installed

    if not all(map(installed, ("fastapi", "uvicorn", "prometheus_client"))):
        raise missing_extra("fastapi, uvicorn or prometheus-client", "serve")

    from likely.calibration.calibrator import Calibrator
    from likely.serving.api.app import create_app
    from likely.serving.api.endpoints.reviews import review_files
    from likely.serving.limits import ServerLimits
    from likely.serving.listening import server
    from likely.serving.routing import load_router
    from likely.serving.upstream import Hedging, UpstreamProxy

    model = model.named(source)
    keys = {name: _key(name) for name in api_key_env or ()}
    options.drafting(drafter, draft_budget)
    wanted = replace(confidence, fallback=None).given()  # requests may name a threshold of their own
    own_threshold = confidence.at_least is not None or confidence.risk is not None
    if router is not None and (confidence.fallback is None or own_threshold):
        raise typer.BadParameter(
            "a router needs --fallback, and has its own threshold: drop --at-least and --risk", param_hint="--router"
        )
    if confidence.calibrator is not None:
        Calibrator.load(confidence.calibrator).check_answers()  # a wrong file is refused now
    limits = ServerLimits(
        max_running=max_running,
        max_queue=max_queue,
        max_connections=_most_connections(),
        max_body_bytes=max_body * MIB,
        deadline_s=deadline,
        cached_tokens=cache_tokens,
    )
    others = None
    if upstream:
        key = _key(upstream_key_env, "--upstream-key-env") if upstream_key_env else None
        others = UpstreamProxy(upstream, api_key=key, limits=limits, hedging=Hedging() if hedge else None)
    _check_tls(tls_cert, tls_key)
    queues = None if reviews is None else review_files(reviews)
    if access_log:
        _log_to_stderr()
    listener = _listen(host, port)
    with listener, model.open_local("batch") as lm:
        if drafter is not None:
            lm.drafter(drafter)  # a wrong file or model is refused now
            lm.drafters.default = drafter
        lm.drafters.budget = "off" if draft_budget == "off" else options.draft_budget(draft_budget)
        lm.drafters.share_memory = False  # what clients choose by name learns from their own request alone
        other = None if confidence.fallback is None else lm.beside(confidence.fallback)  # a wrong file is refused now
        # a browser that was led here has no key, but it may ask a server that wants none
        hosts = None if keys else {host, *(allowed_host or ())}
        kept_router = None if router is None or other is None else load_router(router, lm, other)
        if kept_router is not None and if_unavailable == "answer":
            kept_router.if_unavailable = if_unavailable
        app = create_app(
            lm,
            limits=limits,
            api_key=keys,
            hosts=hosts,
            upstreams=others,
            reviews=queues,
            if_unavailable=if_unavailable,
            router=kept_router,
            **{**wanted, "fallback": other},
        )
        running = server(
            app,
            limits,
            drain_s=drain,
            certificate=None if tls_cert is None else str(tls_cert),
            key=None if tls_key is None else str(tls_key),
        )
        _print_address(host, listener.getsockname()[1], next(iter(keys), None), secure=tls_cert is not None)
        sys.setswitchinterval(SWITCH_S)
        with contextlib.suppress(KeyboardInterrupt):  # before it listens for signals
            running.run(sockets=[listener])
    typer.echo("stopped", err=True)


def _key(name: str, option: str = "--api-key-env") -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        raise typer.BadParameter(f"the environment variable {name} is not set", param_hint=option)
    if not (key.isascii() and key.isprintable()):
        raise typer.BadParameter(f"the key in {name} holds characters that no header carries", param_hint=option)
    return key


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    """Refuse a certificate that cannot be used before a model is loaded for nothing."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise typer.BadParameter("TLS needs both: a certificate and its key", param_hint="--tls-cert, --tls-key")
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise typer.BadParameter(f"the certificate cannot be used: {error}", param_hint="--tls-cert") from None


def _log_to_stderr() -> None:
    log = logging.getLogger("likely.access")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _most_connections() -> int:
    """As many as there are descriptors for, of which the system gives as many as it may."""
    try:
        import resource
    except ImportError:
        return 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(1, min(1024, soft - FILES_BESIDE))


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before a model is loaded for nothing."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = "; choose another --port (0: any free one)" if taken else "; is --host an address of this machine?"
        raise LikelyError(f"cannot listen on {host}:{port}: {error.strerror or error}{hint}") from None
    return listener


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _print_address(host: str, port: int, key_name: str | None, *, secure: bool) -> None:
    if not _is_this_machine(host):
        what = "ask with the key" if key_name else "use the model: there is no --api-key-env"
        typer.echo(f"Warning: listening on {host}, so whoever reaches this machine can {what}.", err=True)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    scheme = "https" if secure else "http"
    url = f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{port}/v1"
    key = f' -H "Authorization: Bearer ${key_name}"' if key_name else ""
    typer.echo(f"serving at {url}  (Ctrl-C ends it)")
    typer.echo(f"page: {url.removesuffix('v1')}")
    typer.echo(
        f'try: curl {url}/completions -H "Content-Type: application/json"{key} '
        '-d \'{"prompt": "Once upon a time", "max_tokens": 20}\''
    )
