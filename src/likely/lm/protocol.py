"""What every language model that a user holds offers, on this machine or behind a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict, Unpack, overload

from likely.lm.extract import Extracted
from likely.lm.options import ExtractOptions, GenerateOptions, TextOptions
from likely.lm.results import Answer, Generation

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator
    from likely.lm.questions import QuestionLine
    from likely.models.chat_template import Message
    from likely.models.load import ModelInfo
    from likely.runtimes.protocol import Capabilities
    from likely.scoring.scored import Scored


class ThresholdOptions(TypedDict, total=False):
    """Where confidence comes from and how much of it an answer needs; see `lm.confidence.ConfidencePolicy`."""

    calibrator: str | Path | Calibrator | None
    task: str
    at_least: float | None
    risk: float | None
    delta: float


class ConfidenceOptions(ThresholdOptions, total=False):
    """The same, and who is asked instead."""

    fallback: str | LanguageModel | None


class AskOptions(TextOptions, ConfidenceOptions, total=False):
    """What `ask` and `chat` take."""


class AnswerStream(Protocol):
    """Text pieces of one generation, as an iterator; then `.result`."""

    result: Any

    @property
    def prompt(self) -> str: ...
    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def finish(self) -> Any: ...
    def close(self) -> Any: ...


class LanguageModel(Protocol):
    """Scores, generates, answers.

    `capabilities` says what it can do; what it cannot raises CapabilityError with a model that can.
    """

    @property
    def info(self) -> ModelInfo: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def template_hash(self) -> str | None:
        """Of what turns a question into the model's text; None where a server does that."""
        ...

    def score(
        self,
        prompt: str,
        answers: Sequence[str],
        *,
        top_logprobs: int = 0,
        entropy: bool = False,
        window: int | None = None,
        stride: int | None = None,
    ) -> list[Scored]: ...
    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_logprobs: int = 0,
        entropy: bool = False,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Scored]: ...
    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> Generation: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[str], **options: Unpack[GenerateOptions]) -> list[Generation]: ...
    def stream(self, prompt: str | Sequence[Message], **options: Unpack[GenerateOptions]) -> AnswerStream: ...
    def ask(self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]) -> Answer: ...
    def stream_ask(
        self, question: str, *, system: str | None = None, **options: Unpack[AskOptions]
    ) -> AnswerStream: ...
    def ask_each(
        self, questions: Sequence[str | QuestionLine], *, system: str | None = None, **options: Unpack[AskOptions]
    ) -> Iterator[Answer]:
        """The answers of many questions in their order, each as soon as it and all before it are finished."""
        ...

    def chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> Answer: ...
    def stream_chat(self, messages: Sequence[Message], **options: Unpack[AskOptions]) -> AnswerStream: ...
    @overload
    def extract(self, documents: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> Extracted: ...
    @overload
    def extract(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> list[Extracted]: ...
    def extract_each(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> Iterator[Extracted]: ...
    def preview(self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]) -> str:
        """The text that the model would see ("" where a server makes it); an error for what it could never answer."""
        ...

    def preview_extraction(self, document: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> str: ...
    def with_confidence(self, **options: Unpack[ConfidenceOptions]) -> Self:
        """Bind what `ask` and `chat` do about confidence where a call does not say otherwise."""
        ...

    def beside(self, name: str) -> LanguageModel:
        """Another model, opened once as this one was, and closed together with it."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
