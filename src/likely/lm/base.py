"""What models on this machine and behind a server do alike: ask, chat, extract, and what confidence means for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from likely.lm.confidence import Again, Beside, BoundPolicy, ConfidencePolicy, system_of
from likely.lm.extract import Extracted
from likely.lm.options import ASK_DEFAULTS, CHAT_DEFAULTS, ExtractOptions
from likely.lm.protocol import AnswerStream, AskOptions, ConfidenceOptions, LanguageModel
from likely.lm.questions import QuestionLine
from likely.lm.results import Answer
from likely.models.chat_template import Message
from likely.models.load import ModelInfo

Decide = Callable[[Answer], Answer]
Prepared = TypeVar("Prepared")  # a request, as the model sends it


class BaseLanguageModel(ABC, Generic[Prepared]):
    """The verbs whose meaning does not depend on where the model runs.

    confidence  what `ask` and `chat` do about confidence where a call does not say otherwise
    opened      models that were opened beside this one, such as a fallback
    """

    info: ModelInfo
    template_hash: str | None

    def __init__(self) -> None:
        self.confidence = ConfidencePolicy()
        self.opened = Beside()

    @abstractmethod
    def _question(self, question: str, system: str | None, settings: Mapping[str, Any]) -> Prepared:
        """What is sent to the model for a question; wrong settings are refused."""

    @abstractmethod
    def _turn(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Prepared:
        """The same for the next message of a conversation."""

    @abstractmethod
    def _answer(self, prepared: Prepared) -> Answer:
        """The whole answer, without confidence."""

    @abstractmethod
    def _answer_stream(self, prepared: Prepared, decide: Decide) -> AnswerStream:
        """The answer in pieces; decide: what is made of it at its end."""

    @abstractmethod
    def _answer_all(
        self, questions: Sequence[QuestionLine], system: str | None, settings: Mapping[str, Any]
    ) -> Iterator[Answer]:
        """The answers in order, without confidence."""

    @abstractmethod
    def extract_each(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> Iterator[Extracted]:
        """The documents in their order, each as soon as it and all before it are done."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_confidence(self, **options: Unpack[ConfidenceOptions]) -> Self:
        """Bind what `ask` and `chat` do about confidence where a call does not say otherwise."""
        self.confidence = ConfidencePolicy(**options)
        return self

    def beside(self, name: str) -> LanguageModel:
        """Another model, opened once as this one was, and closed together with it."""
        return self.opened.open(name)

    def ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> Answer:
        """Answer a question, greedily unless a temperature is given.

        calibrator, task, at_least, risk, delta, fallback: what is done about confidence, see `ConfidencePolicy`; as
        `with_confidence` said where it is not given.  Look at `abstained` where there is a threshold.

        Local models without a chat template are asked as "Question: ... Answer:", ended by a blank line.
        """
        bound, settings = self._bound(options, ASK_DEFAULTS, system)
        again = _ask_again(question, system)
        return bound.decide(self._answer(self._question(question, system, settings)), again)

    def stream_ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> AnswerStream:
        """The streaming form of `ask`; confidence and threshold come at the end."""
        bound, settings = self._bound(options, ASK_DEFAULTS, system)
        again = _ask_again(question, system)
        prepared = self._question(question, system, settings)
        return self._answer_stream(prepared, lambda answer: bound.decide(answer, again))

    def ask_each(
        self, questions: Sequence[str | QuestionLine], *, system: str | None = None, **options: Unpack[AskOptions]
    ) -> Iterator[Answer]:
        """The answers of many questions in their order, each as soon as it and all before it are finished.

        A question with a system message of its own has no confidence: the calibrator is for the common one.
        """
        bound, settings = self._bound(options, ASK_DEFAULTS, system)
        listed = [QuestionLine(q) if isinstance(q, str) else q for q in questions]
        for question, answer in zip(listed, self._answer_all(listed, system, settings), strict=True):
            own = question.system or system
            yield bound.decide(answer, _ask_again(question.asked, own), fits=own == system)

    def chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> Answer:
        """The next assistant message; same options as `ask`, by default temperature 0.2, top_p 0.9.

        A calibrator that was fitted on single questions says less about later turns.
        """
        bound, settings = self._bound(options, CHAT_DEFAULTS, system_of(messages))
        return bound.decide(self._answer(self._turn(messages, settings)), _chat_again(messages))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> AnswerStream:
        """The streaming form of `chat`; confidence and threshold come at the end."""
        bound, settings = self._bound(options, CHAT_DEFAULTS, system_of(messages))
        again = _chat_again(messages)
        return self._answer_stream(self._turn(messages, settings), lambda answer: bound.decide(answer, again))

    @overload
    def extract(self, documents: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> Extracted: ...
    @overload
    def extract(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> list[Extracted]: ...

    def extract(self, documents: str | Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]) -> Any:
        """The values that a schema asks for, from a document or from each of a list.

        instruction  what to look for, in place of `extract.INSTRUCTION`;  the other options as for `generate`, by
                     default greedy, max_tokens=512

        A document that gives no value (too long, cut, against the schema) has an `error` instead and stops no other.
        """
        listed = [documents] if isinstance(documents, str) else documents
        found = list(self.extract_each(listed, schema=schema, **options))
        return found[0] if isinstance(documents, str) else found

    def _bound(
        self, options: Mapping[str, Any], defaults: Mapping[str, Any], system: str | None
    ) -> tuple[BoundPolicy, dict[str, Any]]:
        """(what is done about confidence, settings of the text)"""
        policy, settings = self.confidence.override(options)
        settings = {**defaults, **settings}
        return policy.bind(self, settings, system), settings


def _ask_again(question: str, system: str | None) -> Again:
    return lambda other, options: other.ask(question, system=system, **options)


def _chat_again(messages: Sequence[Message]) -> Again:
    said = list(messages)
    return lambda other, options: other.chat(said, **options)
