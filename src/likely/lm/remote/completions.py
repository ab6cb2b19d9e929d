"""Texts from an OpenAI-compatible server, whole or in pieces, with log-probabilities where it gives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, TypeVar

from likely.errors import CapabilityError, RemoteError
from likely.lm.base import Decide
from likely.lm.remote.echo import Unusable
from likely.lm.remote.http import Endpoint
from likely.lm.remote.reply import (
    ServerSettings,
    TokenLogprobs,
    choices_of,
    logprobs_of,
    prompt_tokens_of,
    record,
    text_of,
)
from likely.lm.results import Answer, AnswerStream, Generation

R = TypeVar("R")


class Completions:
    """What one server completes.  model: its name there, asked for at the first need"""

    def __init__(self, endpoint: Endpoint, model: Callable[[], str]):
        self.endpoint, self._name = endpoint, model
        self._gives_logprobs = True

    @property
    def model(self) -> str:
        return self._name()

    def samples(self, path: str, what: dict[str, Any], settings: ServerSettings) -> list[dict[str, Any]]:
        """Fields of a Generation for each of n samples."""
        found: list[dict[str, Any]] = []
        while len(found) < settings.n:
            body = {**what, "model": self.model, **settings.body()}
            if found:  # a server that ignores n is asked for the others one by one
                body["n"] = 1
                if settings.seed is not None:
                    body["seed"] = settings.seed + len(found)
            started = time.perf_counter()
            reply = self.with_logprobs(lambda extended: self.endpoint.post(path, extended), path, body, settings)
            seconds = time.perf_counter() - started
            for choice in self.believed(choices_of, reply)[: settings.n - len(found)]:
                text, held = text_of(choice), self.believed(logprobs_of, choice)
                if text is None:
                    raise self.endpoint.fail("answered without text")
                found.append(
                    {
                        **record(text, held, choice.get("finish_reason"), settings),
                        "seconds": seconds,
                        "prompt_tokens": prompt_tokens_of(reply),
                        "sample": len(found),
                        "seed": body.get("seed"),
                    }
                )
        return found

    def believed(self, read: Callable[[Mapping[str, Any]], R], reply: Mapping[str, Any]) -> R:
        """What `read` finds in a reply, or a RemoteError."""
        try:
            return read(reply)
        except Unusable as why:
            raise self.endpoint.fail(f"gave a reply that makes no sense: {why}") from None

    def with_logprobs(
        self, send: Callable[[dict[str, Any]], R], path: str, body: dict[str, Any], settings: ServerSettings
    ) -> R:
        """Ask with log-probabilities; where the server refuses because of them, without (once, then always)."""

        def sent(body: dict[str, Any]) -> R:
            try:
                return send(body)
            except RemoteError as error:
                if settings.form is not None and (refused := settings.form.refusal(error)):
                    raise refused from None
                raise

        wanted = max(settings.top_logprobs, 1)
        more = {"logprobs": wanted} if path == "/completions" else {"logprobs": True, "top_logprobs": wanted}
        refusal = "it refused them before"
        if self._gives_logprobs:
            try:
                return sent({**body, **more})
            except RemoteError as error:
                if error.status not in (400, 422, 500, 501) or "logprob" not in str(error).lower():
                    raise
                refusal = str(error)
        if settings.top_logprobs:
            raise CapabilityError(f"This server gives no log-probabilities: {refusal}. Ask without top_logprobs=.")
        result = sent(body)
        self._gives_logprobs = False
        return result


class RemoteStream(AnswerStream):
    """Text pieces of one generation of a server, which does not show what its template made of the messages."""

    def __init__(
        self, server: Completions, path: str, what: dict[str, Any], settings: ServerSettings,
        decide: Decide | None = None,
    ):  # fmt: skip
        self._server, self._path, self._settings = server, path, settings
        self._decide = decide
        self._body = {**what, "model": server.model, **settings.body(), "stream": True}
        self._started = time.perf_counter()
        self._texts: list[str] = []
        self._held: TokenLogprobs | None = None
        self._reason: object = None
        self._prompt_tokens: int | None = None
        self._pieces = self._generator = self._run()

    def close(self) -> Any:
        self._generator.close()
        if self.result is None:
            self.result = self._made("cancelled")
        return self.result

    def _run(self) -> Generator[str, None, None]:
        endpoint = self._server.endpoint

        def begun(body: dict[str, Any]) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
            events = endpoint.events(self._path, body)
            return next(events, None), events  # a refusal comes with the first event

        events: Iterator[dict[str, Any]] = iter(())
        try:
            event, events = self._server.with_logprobs(begun, self._path, self._body, self._settings)
            while event is not None:
                piece = self._take(event)
                if piece:
                    yield piece
                event = self._next(events)
            self.result = self._decided(self._made(self._reason))
        finally:
            if isinstance(events, Generator):
                events.close()  # frees the connection
            if self.result is None:
                self.result = self._made("cancelled")

    def _next(self, events: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return next(events, None)
        except RemoteError:
            if self._reason is None:
                raise
            return None  # all was said; only [DONE] is missing

    def _take(self, event: Mapping[str, Any]) -> str:
        self._prompt_tokens = prompt_tokens_of(event) or self._prompt_tokens
        if not event.get("choices"):
            return ""  # usage comes without choices
        choice = self._server.believed(choices_of, event)[0]
        held = self._server.believed(logprobs_of, choice)
        self._reason = choice.get("finish_reason") or self._reason
        if held is not None:
            self._held = self._held or TokenLogprobs()
            self._held.extend(held)
        piece = text_of(choice) or ""
        self._texts.append(piece)
        return piece

    def _made(self, reason: object) -> Generation:
        values = {
            **record("".join(self._texts), self._held, reason, self._settings),
            "seconds": time.perf_counter() - self._started,
            "prompt_tokens": self._prompt_tokens,
            "seed": self._settings.seed,
        }
        return Generation(**values) if self._path == "/completions" else Answer(**values)

    def _decided(self, made: Generation) -> Generation:
        return self._decide(made) if self._decide is not None and isinstance(made, Answer) else made
