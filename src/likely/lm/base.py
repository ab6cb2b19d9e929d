"""What models on this machine and behind a server do alike: ask, chat, extract, and what confidence means for them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from likely.errors import CapabilityError
from likely.lm.confidence import Again, AskOptions, BoundPolicy, ConfidenceOptions, ConfidencePolicy, system_of
from likely.lm.extract import Extracted
from likely.lm.options import (
    ASK_DEFAULTS,
    CHAT_DEFAULTS,
    FORMS,
    ExtractOptions,
    GenerateOptions,
    ScoringOptions,
    TextOptions,
)
from likely.lm.questions import QuestionLine
from likely.lm.results import Answer, AnswerStream, Generation
from likely.models.chat_template import Message
from likely.models.load import ModelInfo
from likely.runtimes.protocol import Capabilities
from likely.scoring.scored import Scored

Decide = Callable[[Answer], Answer]
Prepared = TypeVar("Prepared")  # a request, as the model sends it


class BaseLanguageModel(ABC, Generic[Prepared]):
    """Scores, generates, answers.  What a model cannot raises CapabilityError with one that can.

    template_hash  of what turns a question into the model's text; None where a server does that
    confidence     what `ask` and `chat` do about confidence where a call does not say otherwise
    opener         opens a model by name as this one was opened; None: it was not opened by name
    """

    info: ModelInfo
    tokenizer: Any
    template_hash: str | None

    own_settings: Mapping[str, Any] = MappingProxyType({})  # of answers, see `models.catalog.KnownModel`

    def __init__(self) -> None:
        self.confidence = ConfidencePolicy()
        self.opener: Callable[[str], LanguageModel] | None = None
        self._beside: dict[str, LanguageModel] = {}

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[ScoringOptions],
    ) -> list[Scored]:
        """Score many (prompt, answer) pairs: shared prefixes are computed once, calls are filled.

        progress(n): n more are done
        """

    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Generation: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Generation]: ...

    def generate(self, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]) -> Any:
        """Continue a prompt, or each of a list of prompts (together; the same results as one at a time).

        options   `lm.options.OPTIONS` lists them all with their defaults.  n > 1: a list of samples per prompt
        a form    schema, regex, grammar or choices: the result then has `value`, `complete`, `log_weight`,
                  `guided_logprob`.  A server is asked for it, and its answer is checked here
        sampler   "importance", "smc", "rejection" draw from the model conditioned on the form (temperature 1, nothing
                  truncated), see `guided.conditional_sampling`: the result then has `log_evidence` and `ess`
        contrast  the distribution less that of a negative prompt or a weaker model: the result then has `steering`
        heal      `text` and its log-probabilities begin after the prompt; `healing_log_weight` is of the rest

        The text depends on (model, prompt, settings, seed) alone; with verification="rejection" also on the drafter.
        Ctrl-C raises KeyboardInterrupt; use `stream` to keep the partial text.
        """
        groups = self._samples([prompt] if isinstance(prompt, str) else list(prompt), options)
        shaped = [group if options.get("n", 1) > 1 else group[0] for group in groups]
        return shaped[0] if isinstance(prompt, str) else shaped

    @abstractmethod
    def _samples(self, prompts: Sequence[str], options: Mapping[str, Any]) -> Sequence[Sequence[Generation]]:
        """The samples of each prompt."""

    @abstractmethod
    def stream(self, prompt: str | Sequence[Message], **options: Unpack[GenerateOptions]) -> AnswerStream:
        """Text pieces as they come, for a prompt or for chat messages; `.result` holds the whole at the end."""

    @abstractmethod
    def preview(self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]) -> str:
        """The text that the model would see ("" where a server makes it); an error for what it could never answer."""

    @abstractmethod
    def preview_extraction(self, document: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> str:
        """The text that the model would see when this is extracted; wrong settings are refused."""

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

    def close(self) -> None:
        """Free what the model holds, and the models that were opened beside it; harmless when repeated."""
        for model in self._beside.values():
            model.close()
        self._beside.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self.info
        own = f", weights={info.weights!r}" if info.weights not in ("", info.dtype) else ""
        return f"{type(self).__name__}({info.name!r}, runtime={info.runtime!r}, dtype={info.dtype!r}{own})"

    def with_confidence(self, **options: Unpack[ConfidenceOptions]) -> Self:
        """Bind what `ask` and `chat` do about confidence where a call does not say otherwise."""
        self.confidence = ConfidencePolicy(**options)
        return self

    def beside(self, name: str) -> LanguageModel:
        """Another model, opened once as this one was, and closed together with it."""
        if name not in self._beside:
            if self.opener is None:
                raise CapabilityError(
                    f'fallback "{name}": this model was not opened by likely.load: give an opened model'
                )
            self._beside[name] = self.opener(name)
            if not self._beside[name].info.template:
                warnings.warn(f"fallback {name} is a base model, which answers few questions", stacklevel=2)
        return self._beside[name]

    def score(self, prompt: str, answers: Sequence[str], **options: Unpack[ScoringOptions]) -> list[Scored]:
        """log p(answer | prompt) in nats for each answer; the prompt is computed once.

        prompt   raw text; control tokens written in it are control tokens.  "" means: a text begins here

        A server must pass the checks of `remote.echo` on its log-probabilities of given text: else CapabilityError.
        """
        if isinstance(answers, str):
            raise TypeError(f"answers must be a list of strings, got the string {answers!r}")
        for text in (prompt, *answers):
            if not isinstance(text, str):
                raise TypeError(f"prompt and answers must be strings, got {text!r}")
        return self.score_pairs([(prompt, a) for a in answers], **options)

    def ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> Answer:
        """Answer a question, greedily unless a temperature is given.

        calibrator, task, at_least, risk, delta, fallback: what is done about confidence, see `ConfidencePolicy`; as
        `with_confidence` said where it is not given.  Look at `abstained` where there is a threshold.

        Local models without a chat template are asked as "Question: ... Answer:", ended by a blank line.
        """
        _check_question(question)
        bound, settings = self._bound(options, ASK_DEFAULTS, system)
        again = _ask_again(question, system)
        return bound.decide(self._answer(self._question(question, system, settings)), again)

    def stream_ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> AnswerStream:
        """The streaming form of `ask`; confidence and threshold come at the end."""
        _check_question(question)
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

    def settings(self, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, over the model's own settings for answers, over a verb's defaults.

        A text that is held to a form takes none of the model's: JSON has to repeat itself.
        """
        held = any(given.get(name) is not None for name in (*FORMS, "constraint"))
        return {**defaults, **({} if held else self.own_settings), **given}

    def fitting(self, messages: Sequence[Message], max_tokens: int) -> list[Message]:
        """The conversation without its oldest turns, so that an answer of max_tokens has room in the context.

        The system message and the last message always stay; a quarter of the context is room enough.  A server gets
        the whole conversation.
        """
        return list(messages)

    def _bound(
        self, options: Mapping[str, Any], defaults: Mapping[str, Any], system: str | None
    ) -> tuple[BoundPolicy, dict[str, Any]]:
        """(what is done about confidence, settings of the text)"""
        policy, given = self.confidence.override(options)
        return policy.bind(self, {**defaults, **given}, system), self.settings(defaults, given)


LanguageModel = BaseLanguageModel[Any]  # on this machine or behind a server


def _check_question(question: str) -> None:
    if not isinstance(question, str):
        raise TypeError(f"the question must be a string, got {question!r}: ask_each answers several, chat messages")


def _ask_again(question: str, system: str | None) -> Again:
    return lambda other, options: other.ask(question, system=system, **options)


def _chat_again(messages: Sequence[Message]) -> Again:
    said = list(messages)
    return lambda other, options: other.chat(said, **options)
