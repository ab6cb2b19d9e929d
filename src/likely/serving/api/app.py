"""The OpenAI-compatible API of one model: completions with echo, chats, and /v1/score.

app = create_app(likely.load("smollm2"))
uvicorn.run(app)
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Unpack

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from likely import __version__
from likely.errors import LikelyError
from likely.lm.confidence import AnsweringModel, ThresholdOptions
from likely.lm.model import Model
from likely.serving.api.answering import Answering
from likely.serving.api.confidence import ChatConfidence
from likely.serving.api.schemas import ChatRequest, CompletionRequest, ScoreRequest, parse, served_name
from likely.serving.engine import AsyncEngine
from likely.serving.limits import Admission, ApiError, ServerLimits, discard_body, json_response, read_json, refusal


def create_app(
    model: Model,
    *,
    limits: ServerLimits | None = None,
    api_key: str | None = None,
    fallback: AnsweringModel | None = None,
    **confidence: Unpack[ThresholdOptions],
) -> FastAPI:
    """An application that serves `model`; its engine runs from the application's start to its shutdown.

    api_key     if given, every request but /health must carry it: Authorization: Bearer KEY
    fallback    another model, which chats may ask instead of giving an answer below their threshold; with a threshold
                here all chats do
    confidence  what is done about the confidence of chats that do not say otherwise, see `ConfidencePolicy`; as the
                model's `with_confidence` said where it is not given
    """
    policy, _ = model.confidence.override(confidence)
    if fallback is None and policy.fallback is not None:
        fallback = model.beside(policy.fallback) if isinstance(policy.fallback, str) else policy.fallback
    if policy.has_threshold:
        policy = replace(policy, fallback=fallback)
    limits = limits or ServerLimits()
    name = served_name(model.info.name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine = AsyncEngine(model, max_queue=limits.max_queue)
        app.state.engine = engine
        chats = ChatConfidence(model, policy, fallback, limits.max_queue)
        app.state.answering = Answering(engine, name, limits, chats)
        try:
            yield
        finally:
            app.state.answering.close()
            engine.close()

    app = FastAPI(
        title="likely", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    admission = Admission(limits.max_queue)

    def check_key(request: Request) -> None:
        if api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, b"Bearer " + api_key.encode()):
            raise ApiError(
                401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="invalid_api_key"
            )

    @app.get("/health")
    async def health(request: Request) -> Response:
        engine: AsyncEngine = app.state.engine
        body = {
            "status": "ok" if engine.failure is None else "failed",
            "model": name,
            "version": __version__,
            "requests": engine.waiting,
            "free_tokens": engine.free_tokens,
        }
        return json_response(body, status=200 if engine.failure is None else 503)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        check_key(request)
        return json_response({"object": "list", "data": [app.state.answering.card]})

    @app.get("/v1/models/{model_id:path}")
    async def one_model(request: Request, model_id: str) -> Response:
        check_key(request)
        app.state.answering.check_model(model_id)
        return json_response(app.state.answering.card)

    async def answer(request: Request, work: Callable[[Request, dict], Awaitable[Response]]) -> Response:
        try:
            check_key(request)
            with admission.enter():
                return await work(request, await read_json(request, limits))
        except Exception as error:
            if not (isinstance(error, ApiError) and error.status == 413):  # of that, enough was read
                await discard_body(request, limits)
            raise

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, lambda r, body: app.state.answering.completion(r, parse(CompletionRequest, body)))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, lambda r, body: app.state.answering.chat(r, parse(ChatRequest, body)))

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await answer(request, lambda r, body: app.state.answering.score(r, parse(ScoreRequest, body)))

    for kind in (ApiError, LikelyError, ValueError, TimeoutError, HTTPException):
        app.add_exception_handler(kind, partial(_respond, limits))
    app.add_exception_handler(Exception, partial(_respond, limits))
    return app


async def _respond(limits: ServerLimits, request: Request, error: Exception) -> Response:
    return refusal(error, limits).response()
