"""The OpenAI-compatible API of one model: completions with echo, chats with tools, scores, tokens, metrics.

app = create_app(likely.load("smollm2"))
uvicorn.run(app)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from likely import __version__
from likely.errors import LikelyError
from likely.lm.confidence import AnsweringModel, IfUnavailable, ThresholdOptions
from likely.lm.model import Model
from likely.serving.api.answering import Answering
from likely.serving.api.confidence import ChatConfidence
from likely.serving.api.endpoints.chats import ChatsEndpoint
from likely.serving.api.endpoints.completions import CompletionsEndpoint
from likely.serving.api.endpoints.responses import ResponsesEndpoint, ResponsesRequest
from likely.serving.api.endpoints.reviews import ReviewsEndpoint
from likely.serving.api.gate import Gate, check_key, log_of
from likely.serving.api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ScoreRequest,
    TokenizeRequest,
    parse,
    served_name,
)
from likely.serving.api.streaming import while_connected
from likely.serving.engine import AsyncEngine
from likely.serving.limits import Admission, ApiError, ServerLimits, discard_body, json_response, read_json, refusal
from likely.serving.metrics import CONTENT_TYPE, ServerMetrics
from likely.serving.page import add_page
from likely.serving.routing.router import Router
from likely.serving.upstream.proxy import UpstreamProxy


def create_app(
    model: Model,
    *,
    limits: ServerLimits | None = None,
    api_key: str | Mapping[str, str] | None = None,
    hosts: Collection[str] | None = None,
    fallback: AnsweringModel | None = None,
    if_unavailable: IfUnavailable = "error",
    upstreams: UpstreamProxy | None = None,
    router: Router | None = None,
    reviews: Mapping[str, Path] | None = None,
    **confidence: Unpack[ThresholdOptions],
) -> FastAPI:
    """An application that serves `model`; its engine runs from the application's start to its shutdown.

    api_key     if given, every request but /health must carry it: Authorization: Bearer KEY.  Several: name -> key;
                those who ask with different keys share nothing that is kept of earlier prompts
    hosts       names that the Host header may have beside addresses and localhost; None: any
    fallback    another model, which chats may ask instead of giving an answer below their threshold; with a threshold
                here all chats do, and /v1/models lists "auto" for them
    if_unavailable  what a chat gets where the fallback's server cannot be reached: "error", or "answer": the model's
                own answer, marked as such
    upstreams   other servers, whose models are listed beside this one's and get the requests that name them
    router      between this model and a larger one, which chats that ask for the model "auto" go through, those with
                tools among them; it has its own threshold, so give no other
    reviews     queues for people to judge on the page, name -> file (`review_files`)
    confidence  what is done about the confidence of chats that do not say otherwise, see `ConfidencePolicy`; as the
                model's `with_confidence` said where it is not given
    """
    policy, _ = model.confidence.override(confidence)
    if fallback is None and policy.fallback is not None:
        fallback = model.beside(policy.fallback) if isinstance(policy.fallback, str) else policy.fallback
    if policy.has_threshold:
        policy = replace(policy, fallback=fallback)
    policy = replace(policy, if_unavailable=if_unavailable)
    if router is not None and (policy.has_threshold or router.small is not model):
        raise ValueError("a router is of this model, and has its own threshold: drop at_least and risk")
    limits = limits or ServerLimits()
    keys = {"default": api_key} if isinstance(api_key, str) else api_key
    name = served_name(model.info.name)
    metrics = ServerMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = AsyncEngine(
            model,
            max_running=limits.max_running,
            max_queue=limits.max_queue,
            cached_tokens=limits.cached_tokens,
            metrics=metrics,
        )
        app.state.engine = engine
        sure = ChatConfidence(model, policy, fallback, limits.max_running, router, metrics.cost.inc)
        app.state.answering = answering = Answering(engine, name, limits, sure)
        app.state.completions, app.state.chats = CompletionsEndpoint(answering), ChatsEndpoint(answering)
        app.state.responses = ResponsesEndpoint(app.state.chats)
        try:
            yield
        finally:
            answering.close()
            engine.close()
            if upstreams is not None:
                await upstreams.close()

    app = FastAPI(
        title="likely", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.draining = False
    admission = Admission(limits)
    app.add_middleware(Gate, hosts=hosts, metrics=metrics, draining=lambda: app.state.draining)
    _watch(metrics, app, model)

    @app.get("/health")
    async def health(request: Request) -> Response:
        engine: AsyncEngine = app.state.engine
        status = "failed" if engine.failure is not None else "draining" if app.state.draining else "ok"
        body = {
            "status": status,
            "model": name,
            "version": __version__,
            "requests": engine.waiting,
            "running": engine.running,
            "free_tokens": engine.free_tokens,
            "cached_tokens": engine.prefixes.tokens,
        }
        return json_response(body, status=200 if status == "ok" else 503)

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        check_key(request, keys)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        check_key(request, keys)
        others = []
        if upstreams is not None:
            await upstreams.refresh()
            others = upstreams.cards()
        return json_response({"object": "list", "data": [*app.state.answering.cards, *others]})

    @app.get("/v1/models/{model_id:path}")
    async def one_model(request: Request, model_id: str) -> Response:
        check_key(request, keys)
        answering: Answering = app.state.answering
        found = next((card for card in answering.cards if card["id"] == model_id), None)
        if found is None:
            answering.check_model(model_id)
        return json_response(found or answering.card)

    async def is_elsewhere(asked: object) -> bool:
        """Whether a model of that name is served by an upstream and not here."""
        own = (None, name, model.info.name, *(card["id"] for card in app.state.answering.cards))
        return upstreams is not None and asked not in own and await upstreams.serves(asked)

    async def answer(
        request: Request, work: Callable[[Request, dict, str], Awaitable[Response]], *, own: bool = False
    ) -> Response:
        """own: never for another server."""
        try:
            key = check_key(request, keys)
            with admission.reading() as took:
                body = await read_json(request, limits, took)
            with admission.enter():
                if not own and upstreams is not None and await is_elsewhere(body.get("model")):
                    path, number = request.url.path.removeprefix("/v1"), request.scope["state"].get("request_id")
                    return await while_connected(request, upstreams.forward(path, body, number))
                return await work(request, body, key)
        except Exception as error:
            if not (isinstance(error, ApiError) and error.status == 413):  # of that, enough was read
                await discard_body(request, limits)
            log_of(request)["error"] = str(error)[:200]
            raise

    add_page(app)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        state = app.state
        return await answer(request, lambda r, b, key: state.completions.answer(r, parse(CompletionRequest, b), key))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, lambda r, b, key: app.state.chats.answer(r, parse(ChatRequest, b), key))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        state = app.state
        return await answer(request, lambda r, b, key: state.responses.answer(r, parse(ResponsesRequest, b), key))

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await answer(request, lambda r, b, key: app.state.answering.score(r, parse(ScoreRequest, b)))

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await answer(request, lambda r, b, key: app.state.answering.tokenize(r, parse(TokenizeRequest, b)))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        return await answer(request, lambda r, b, key: app.state.answering.detokenize(r, parse(DetokenizeRequest, b)))

    desk = ReviewsEndpoint(dict(reviews or {}))

    @app.get("/v1/reviews")
    async def review_queues(request: Request) -> Response:
        check_key(request, keys)
        with admission.enter():
            return await desk.listed()

    @app.post("/v1/reviews/next")
    async def next_review(request: Request) -> Response:
        return await answer(request, lambda r, b, key: desk.next(r, b), own=True)

    @app.post("/v1/reviews/vote")
    async def review_vote(request: Request) -> Response:
        return await answer(request, lambda r, b, key: desk.vote(r, b), own=True)

    for kind in (ApiError, LikelyError, ValueError, TimeoutError, HTTPException):
        app.add_exception_handler(kind, partial(_respond, limits))
    app.add_exception_handler(Exception, partial(_respond, limits))
    return app


def _watch(metrics: ServerMetrics, app: FastAPI, model: Model) -> None:
    """What the engine knows at the moment that somebody asks."""

    def engine() -> AsyncEngine:
        return app.state.engine

    most = model.runtime.limits.tokens_held
    metrics.watch("num_requests_running", "Requests that are written", lambda: engine().running)
    metrics.watch("num_requests_waiting", "Requests behind them", lambda: engine().waiting - engine().running)
    metrics.watch(
        "kv_cache_usage_perc", "Share of the tokens held that texts need", lambda: 1 - engine().free_tokens / most
    )
    metrics.watch("prefix_cache_tokens", "Tokens kept of texts that have ended", lambda: engine().prefixes.tokens)
    metrics.watch("prefix_cache_queries", "Tokens of prompts", lambda: engine().prefixes.looked_up, total=True)
    metrics.watch("prefix_cache_hits", "Tokens of prompts that were kept", lambda: engine().prefixes.found, total=True)


async def _respond(limits: ServerLimits, request: Request, error: Exception) -> Response:
    return refusal(error, limits).response()
