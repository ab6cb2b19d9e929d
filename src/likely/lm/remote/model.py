"""A model behind an OpenAI-compatible server: the local model object's verbs, as far as the server can be trusted."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, Unpack

from likely.decoding.options import check_names
from likely.errors import CapabilityError, ConstraintError, ModelError, RemoteError
from likely.lm.base import BaseLanguageModel, Decide
from likely.lm.extract import Extracted, extracted, extraction_prompt
from likely.lm.options import (
    EXTRACT_DEFAULTS,
    ConnectionOptions,
    ExtractOptions,
    GenerateOptions,
    ScoringOptions,
    TextOptions,
)
from likely.lm.questions import QuestionLine
from likely.lm.remote.completions import Completions, RemoteStream
from likely.lm.remote.echo import Unusable, check_scoring, read_echo, score_answer, top_row
from likely.lm.remote.http import Endpoint
from likely.lm.remote.reply import ServerSettings, choices_of, prompt_tokens_of
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


class RemoteModel(BaseLanguageModel[tuple[dict[str, Any], ServerSettings]]):
    """Verbs: score, generate, stream, ask, chat, extract.  `capabilities` asks the server once whether it can score.

    url         with or without /v1;  model: its name there (None: the only one that the server lists)
    connection  api_key=, timeout_s= ...: see `ConnectionOptions`

    A server shows no token ids: `token_ids` is None and `tokens` are its strings.  It does not say in how many calls
    a text was made: `target_calls` is None.  Log-probabilities of generated tokens are None where it gives none;
    whether they are taken before or after temperature is the server's affair.  Safe to use from several threads.
    """

    template_hash = None  # the server makes its own prompts

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        **connection: Unpack[ConnectionOptions],
    ):
        super().__init__()
        self._endpoint = Endpoint(url, **connection)
        self._model, self._lock = model, threading.RLock()
        self._scoring: str | None = None  # "": works; else why not; None: not asked yet
        self._echo_tokens = 1  # what to ask for beside the echo
        self._server = Completions(self._endpoint, lambda: self.name)

    def __repr__(self) -> str:
        return f"RemoteModel({self._endpoint.shown!r}, model={self._model!r})"

    def close(self) -> None:
        self._endpoint.close()
        super().close()

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
    def info(self) -> ModelInfo:  # type: ignore[override]
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

    def render(self, messages: Sequence[Message]) -> Any:
        raise CapabilityError("the server applies its own chat template and does not show it; /history may help")

    # --- scoring --------------------------------------------------------------------------------------------------

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[ScoringOptions],
    ) -> list[Scored]:
        """A request for each pair."""
        check_names(options, ScoringOptions.__annotations__)
        for name in ("entropy", "window", "stride"):
            if options.get(name):
                raise CapabilityError(f"a server cannot score with {name}=; load the model locally")
        self._check_scoring()

        def one(pair: tuple[str, str]) -> Scored:
            try:
                scored = self._score(*pair, top=options.get("top_logprobs", 0))
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
        # Control tokens are left out: as given text they may be plain text, nothing at all, or an error.
        return [(t, lp) for t, lp in texts if not re.fullmatch(r"|bytes:.*|.*\ufffd.*|\s*[<\[].*[>\]]\s*", t)][:3]

    # --- generation -----------------------------------------------------------------------------------------------

    def _samples(self, prompts: Sequence[str], options: Mapping[str, Any]) -> Sequence[Sequence[Generation]]:
        """Eight requests at a time.  CapabilityError where the server has no such form."""
        settings = ServerSettings.of(options)
        groups = _in_parallel(lambda text: self._server.samples("/completions", {"prompt": text}, settings), prompts)
        return [[Generation(**found) for found in group] for group in groups]

    def stream(self, prompt: str | Sequence[Message], **options: Unpack[GenerateOptions]) -> RemoteStream:
        if isinstance(prompt, str):
            return RemoteStream(self._server, "/completions", {"prompt": prompt}, _single(options))
        return RemoteStream(self._server, "/chat/completions", {"messages": check_messages(prompt)}, _single(options))

    def _question(
        self, question: str, system: str | None, settings: Mapping[str, Any]
    ) -> tuple[dict[str, Any], ServerSettings]:
        return {"messages": _messages(question, system)}, _single(settings)

    def _turn(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> tuple[dict[str, Any], ServerSettings]:
        return {"messages": check_messages(messages)}, _single(settings)

    def _answer(self, prepared: tuple[dict[str, Any], ServerSettings]) -> Answer:
        return Answer(**self._server.samples("/chat/completions", *prepared)[0])

    def _answer_stream(self, prepared: tuple[dict[str, Any], ServerSettings], decide: Decide) -> RemoteStream:
        return RemoteStream(self._server, "/chat/completions", *prepared, decide)

    def _answer_all(
        self, questions: Sequence[QuestionLine], system: str | None, settings: Mapping[str, Any]
    ) -> Iterator[Answer]:
        for question in questions:
            yield self._answer(self._question(question.asked, question.system or system, settings))

    def extract_each(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> Iterator[Extracted]:
        for document in documents:
            prompt, settings = _extraction(document, schema, options)
            try:
                outcome: Sequence[Generation] | ConstraintError = [
                    self._answer(({"messages": _messages(prompt, None)}, settings))
                ]
            except ConstraintError as error:
                outcome = error
            yield extracted(outcome)

    def preview(self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]) -> str:
        _single(options)
        _messages(question, system)
        return ""

    def preview_extraction(self, document: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> str:
        return _extraction(document, schema, options)[0]


def _no_scoring(why: str) -> CapabilityError:
    return CapabilityError(
        f'This server returned no log-probabilities for the prompt, so "score" would be meaningless ({why}). '
        f"Use a runtime with prompt scoring: {kinds_with()}."
    )


def _messages(question: str, system: str | None) -> list[dict[str, str]]:
    if not question.strip():
        raise ValueError("the question is empty")
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": question}]


def _extraction(document: str, schema: Any, options: Mapping[str, Any]) -> tuple[str, ServerSettings]:
    options = {**EXTRACT_DEFAULTS, **options, "schema": schema}
    return extraction_prompt(document, schema, options.pop("instruction", None)), _single(options)


def _single(options: Mapping[str, Any]) -> ServerSettings:
    settings = ServerSettings.of(options)
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
