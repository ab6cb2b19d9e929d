"""A model behind an OpenAI-compatible server: the local model object's verbs, as far as the server can be trusted."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

import httpx

from likely.errors import CapabilityError, ModelError, RemoteError
from likely.lm.remote.echo import Unusable, check_scoring, read_echo, score_answer, top_row
from likely.lm.remote.http import Endpoint
from likely.lm.remote.reply import (
    Settings,
    TokenLogprobs,
    choices_of,
    logprobs_of,
    prompt_tokens_of,
    record,
    text_of,
)
from likely.lm.results import Answer, Generation
from likely.models.chat_template import Message, check_messages
from likely.models.load import ModelInfo
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import Capabilities
from likely.scoring.scored import Scored

CONCURRENT = 8  # requests at a time for a list
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class RemoteCapabilities(Capabilities):
    """What the server can do beside generating: score, and if not, why not."""

    score: bool = False
    why_not: str = ""


class RemoteModel:
    """Verbs: score, generate, stream, ask, chat.  `capabilities` asks the server once whether it can score.

    url        with or without /v1;  model: its name there (None: the only one that the server lists)
    api_key    None: LIKELY_API_KEY, or OPENAI_API_KEY for OpenAI's own address; sent nowhere else, never printed
    transport  of httpx, for tests and proxies

    A server shows no token ids: `token_ids` is None and `tokens` are its strings.  It does not say in how many calls
    a text was made: `target_calls` is None.  Log-probabilities of generated tokens are None where it gives none;
    whether they are taken before or after temperature is the server's affair.  Safe to use from several threads.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        retries: int = 3,
        backoff_s: float = 0.5,
    ):
        self._endpoint = Endpoint(
            url, api_key=api_key, timeout_s=timeout_s, transport=transport, retries=retries, backoff_s=backoff_s
        )
        self._model, self._lock = model, threading.RLock()
        self._scoring: str | None = None  # "": works; else why not; None: not asked yet
        self._echo_tokens = 1  # what to ask for beside the echo
        self._gives_logprobs = True

    def __repr__(self) -> str:
        return f"RemoteModel({self._endpoint.shown!r}, model={self._model!r})"

    def close(self) -> None:
        """Close the connections; harmless when repeated."""
        self._endpoint.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def models(self) -> list[str]:
        """Names that the server lists."""
        data = self._endpoint.get("/models").get("data")
        names = [item.get("id") for item in data if isinstance(item, Mapping)] if isinstance(data, list) else []
        return [name for name in names if isinstance(name, str)]

    @cached_property
    def name(self) -> str:
        """The model that is asked."""
        if self._model is not None:
            return self._model
        if len(self.models) != 1:
            listed = ", ".join(self.models[:10]) or "none"
            raise ModelError(f"choose a model with model=; {self._endpoint.shown} lists: {listed}")
        return self.models[0]

    @cached_property
    def info(self) -> ModelInfo:
        """Where numbers came from. A server says neither what weights nor what tokenizer it runs."""
        return ModelInfo(self.name, self._endpoint.shown, "server", "unknown", "unknown", "unknown", template=True)

    @property
    def capabilities(self) -> RemoteCapabilities:
        """Asks the server a few short questions the first time."""
        try:
            self._check_scoring()
        except CapabilityError as error:
            return RemoteCapabilities(why_not=str(error))
        return RemoteCapabilities(score=True)

    @property
    def tokenizer(self) -> Any:
        raise CapabilityError("a server does not show its tokenizer: load the model locally")

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(self, prompt: str, answers: Sequence[str], **options: Any) -> list[Scored]:
        """log p(answer | prompt) in nats for each answer; options of `score_pairs`.

        CapabilityError unless the server's log-probabilities of given text pass the checks of `remote_echo`.
        """
        if isinstance(answers, str):
            raise TypeError(f"answers must be a list of strings, got the string {answers!r}")
        return self.score_pairs([(prompt, answer) for answer in answers], **options)

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_logprobs: int = 0,
        entropy: bool = False,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Scored]:
        """Score many (prompt, answer) pairs, a request for each. progress(n): n more are done."""
        for name, value in (("entropy", entropy), ("window", window), ("stride", stride)):
            if value:
                raise CapabilityError(f"a server cannot score with {name}=; load the model locally")
        self._check_scoring()

        def one(pair: tuple[str, str]) -> Scored:
            try:
                scored = self._score(*pair, top=top_logprobs)
            except Unusable as why:
                raise _no_scoring(str(why)) from None
            if progress is not None:
                progress(1)
            return scored

        return _in_parallel(one, pairs)

    def _check_scoring(self) -> None:
        with self._lock:
            if self._scoring is None:
                try:
                    check_scoring(self._score, self._next_tokens)
                    self._scoring = ""
                except Unusable as why:
                    self._scoring = str(why)
                except RemoteError as error:
                    if error.status not in (400, 404, 405, 422, 500, 501):
                        raise  # says nothing about what it can do
                    self._scoring = str(error)
        if self._scoring:
            raise _no_scoring(self._scoring)

    def _score(self, prompt: str, answer: str, *, top: int = 0) -> Scored:
        text = prompt + answer
        if not text:
            return Scored(answer, None, [], 0.0, None, [])
        body = {"prompt": text, "echo": True, "logprobs": max(top, 1), "temperature": 1.0}
        reply = self._echo(body)
        echo = read_echo(choices_of(reply)[0], text)
        return score_answer(echo, prompt, answer, prompt_tokens=prompt_tokens_of(reply), top=top)

    def _echo(self, body: dict[str, Any]) -> dict[str, Any]:
        # One token, not none: some servers take max_tokens=0 for "until the context is full".
        body["model"] = self.name
        try:
            return self._endpoint.post("/completions", {**body, "max_tokens": self._echo_tokens})
        except RemoteError as error:
            if error.status not in (400, 422) or self._echo_tokens == 0:
                raise
            reply = self._endpoint.post("/completions", {**body, "max_tokens": 0})
            self._echo_tokens = 0
            return reply

    def _next_tokens(self, prompt: str) -> list[tuple[str, float]]:
        body = {"model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "logprobs": 5, "seed": 0}
        held = choices_of(self._endpoint.post("/completions", body))[0].get("logprobs")
        rows = held.get("top_logprobs") if isinstance(held, Mapping) else None
        if not isinstance(rows, list) or not rows:
            raise Unusable("it gives no log-probabilities of what it writes either")
        texts = [(top.text, top.logprob) for top in top_row(rows[0])]
        # Control tokens are left out: told, they may be plain text, nothing at all, or an error.
        return [(t, lp) for t, lp in texts if not re.fullmatch(r"|bytes:.*|.*\ufffd.*|\s*[<\[].*[>\]]\s*", t)][:3]

    # --- generation -----------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[Generation]: ...

    def generate(self, prompt: str | Sequence[str], **options: Any) -> Any:
        """Continue a prompt, or each of a list of prompts (eight requests at a time).

        max_tokens=128, temperature=1.0 (0: greedy), top_p=1.0, presence_penalty, frequency_penalty, seed=0, stop=(),
        n=1 (samples; then a list per prompt), top_logprobs=0.

        schema, regex, grammar or choices: the server is asked for that form, and its answer is checked here: one
        without the form has no value and complete=False.  CapabilityError where the server has no such thing.
        """
        settings = Settings.of(options)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        groups = _in_parallel(lambda text: self._samples("/completions", {"prompt": text}, settings), prompts)
        shaped = [
            [Generation(**found) for found in group] if settings.n > 1 else Generation(**group[0]) for group in groups
        ]
        return shaped[0] if isinstance(prompt, str) else shaped

    def chat(self, messages: Sequence[Message], **options: Any) -> Answer:
        """The next assistant message; options of `generate` (n=1), by default temperature 0.2, top_p 0.9."""
        settings = _single({"temperature": 0.2, "top_p": 0.9, "max_tokens": 512, **options})
        return Answer(**self._samples("/chat/completions", {"messages": check_messages(messages)}, settings)[0])

    def ask(self, question: str, *, system: str | None = None, **options: Any) -> Answer:
        """Answer a question, greedily unless a temperature is given. The server applies its own chat template."""
        return self.chat(_question(question, system), **_for_a_question(options))

    def extract(self, documents: str | Sequence[str], **options: Any) -> Any:
        """The values that a schema asks for, from a document or each of a list, as `Model.extract`."""
        from likely.lm.extract import extract

        return extract(self, documents, **options)

    def stream(self, prompt: str | Sequence[Message], **options: Any) -> RemoteStream:
        """Text pieces as they come, for a prompt or for chat messages; `.result` holds the whole at the end."""
        settings = _single(options)
        if isinstance(prompt, str):
            return RemoteStream(self, "/completions", {"prompt": prompt}, settings)
        return RemoteStream(self, "/chat/completions", {"messages": check_messages(prompt)}, settings)

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> RemoteStream:
        """The streaming form of `chat`."""
        return self.stream(list(messages), **{"temperature": 0.2, "top_p": 0.9, "max_tokens": 512, **options})

    def stream_ask(self, question: str, *, system: str | None = None, **options: Any) -> RemoteStream:
        """The streaming form of `ask`."""
        return self.stream(_question(question, system), **_for_a_question(options))

    def _samples(self, path: str, what: dict[str, Any], settings: Settings) -> list[dict[str, Any]]:
        """Fields of a Generation for each of n samples."""
        found: list[dict[str, Any]] = []
        while len(found) < settings.n:
            body = {**what, "model": self.name, **settings.body()}
            if found:  # a server that ignores n is asked for the others one by one
                body["n"] = 1
                if settings.seed is not None:
                    body["seed"] = settings.seed + len(found)
            started = time.perf_counter()
            reply = self._with_logprobs(lambda extended: self._endpoint.post(path, extended), path, body, settings)
            seconds = time.perf_counter() - started
            for choice in self._believed(choices_of, reply)[: settings.n - len(found)]:
                text, held = text_of(choice), self._believed(logprobs_of, choice)
                if text is None:
                    raise self._endpoint.fail("answered without text")
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

    def _believed(self, read: Callable[[Mapping[str, Any]], R], reply: Mapping[str, Any]) -> R:
        """What `read` finds in a reply, or a RemoteError."""
        try:
            return read(reply)
        except Unusable as why:
            raise self._endpoint.fail(f"gave a reply that makes no sense: {why}") from None

    def _with_logprobs(
        self, send: Callable[[dict[str, Any]], R], path: str, body: dict[str, Any], settings: Settings
    ) -> R:
        """Ask with log-probabilities; where the server refuses because of them, without (once, then always)."""
        wanted = max(settings.top_logprobs, 1)
        more = {"logprobs": wanted} if path == "/completions" else {"logprobs": True, "top_logprobs": wanted}
        refusal = "it refused them before"
        if self._gives_logprobs:
            try:
                return send({**body, **more})
            except RemoteError as error:
                if settings.form is not None and (refused := settings.form.refusal(error)):
                    raise refused from None
                if error.status not in (400, 422, 500, 501) or "logprob" not in str(error).lower():
                    raise
                refusal = str(error)
        if settings.top_logprobs:
            raise CapabilityError(f"This server gives no log-probabilities: {refusal}. Ask without top_logprobs=.")
        try:
            result = send(body)
        except RemoteError as error:
            if settings.form is not None and (refused := settings.form.refusal(error)):
                raise refused from None
            raise
        self._gives_logprobs = False
        return result


class RemoteStream:
    """Text pieces of one generation, as an iterator; then `.result`.

    Stopped early (`close()`, or an exception in the consumer), `.result` is the partial text with finish_reason
    "cancelled".
    """

    prompt = ""  # a server does not show what its template made of the messages

    def __init__(self, model: RemoteModel, path: str, what: dict[str, Any], settings: Settings):
        self._model, self._path, self._settings = model, path, settings
        self._body = {**what, "model": model.name, **settings.body(), "stream": True}
        self._started = time.perf_counter()
        self._texts: list[str] = []
        self._held: TokenLogprobs | None = None
        self._reason: object = None
        self._prompt_tokens: int | None = None
        self.result: Answer | Generation | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def finish(self) -> Any:
        """Run to the end and give the result."""
        for _ in self._pieces:
            pass
        return self.result

    def close(self) -> Any:
        """Stop here; gives the partial result."""
        self._pieces.close()
        if self.result is None:
            self._finish("cancelled")
        return self.result

    def _run(self) -> Generator[str, None, None]:
        endpoint = self._model._endpoint

        def begun(body: dict[str, Any]) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
            events = endpoint.events(self._path, body)
            return next(events, None), events  # a refusal comes with the first event

        events: Iterator[dict[str, Any]] = iter(())
        try:
            event, events = self._model._with_logprobs(begun, self._path, self._body, self._settings)
            while event is not None:
                piece = self._take(event)
                if piece:
                    yield piece
                event = self._next(events)
            self._finish(self._reason)
        finally:
            if isinstance(events, Generator):
                events.close()  # frees the connection
            if self.result is None:
                self._finish("cancelled")

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
        choice = self._model._believed(choices_of, event)[0]
        held = self._model._believed(logprobs_of, choice)
        self._reason = choice.get("finish_reason") or self._reason
        if held is not None:
            self._held = self._held or TokenLogprobs()
            self._held.extend(held)
        piece = text_of(choice) or ""
        self._texts.append(piece)
        return piece

    def _finish(self, reason: object) -> None:
        values = {
            **record("".join(self._texts), self._held, reason, self._settings),
            "seconds": time.perf_counter() - self._started,
            "prompt_tokens": self._prompt_tokens,
            "seed": self._settings.seed,
        }
        self.result = Generation(**values) if self._path == "/completions" else Answer(**values)


def _no_scoring(why: str) -> CapabilityError:
    return CapabilityError(
        f'This server returned no log-probabilities for the prompt, so "score" would be meaningless ({why}). '
        f"Use a runtime with prompt scoring: {kinds_with()}."
    )


def _question(question: str, system: str | None) -> list[dict[str, str]]:
    if not question.strip():
        raise ValueError("the question is empty")
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": question}]


def _for_a_question(options: dict[str, Any]) -> dict[str, Any]:
    return {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, **options}


def _single(options: Mapping[str, Any]) -> Settings:
    settings = Settings.of(options)
    if settings.n > 1:
        raise CapabilityError("a stream or an answer is one text: use generate for n > 1")
    return settings


def _in_parallel(one: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Results in order, eight at a time; the first error ends it."""
    if len(items) < 2:
        return [one(item) for item in items]
    pool = ThreadPoolExecutor(min(CONCURRENT, len(items)), thread_name_prefix="likely-remote")
    try:
        return list(pool.map(one, items))
    finally:
        pool.shutdown(cancel_futures=True)
