"""Texts and conversations of requests become tokens, on a thread of their own, refused early where they cannot fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from likely.decoding.constraint import Constraint
from likely.decoding.request import Finished, longest_text
from likely.errors import LikelyError
from likely.guided.fields import read_fields
from likely.guided.length_limit.constraint import why_cut
from likely.lm.model import Model
from likely.models.chat_template import Rendered, go_on
from likely.scoring.likelihood import Item, joint_item, surface_lengths
from likely.serving.api.replies import json_safe
from likely.serving.form_worker import FormDescription, FormWorker
from likely.serving.limits import ApiError, ServerLimits
from likely.tokenizers.protocol import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedPrompt:
    """A text as the model reads it.

    hidden  tokens in front that are not in the text;  skip  bytes of the first visible one that are not
    """

    text: str
    tokens: list[int]
    hidden: int = 0
    skip: int = 0


class PromptEncoder:
    """Reads for one model. Neither its template nor its tokenizer is asked from several threads at once."""

    def __init__(self, model: Model, limits: ServerLimits):
        self._model, self._context, self._limits = model, longest_text(model.runtime), limits
        self._worker: FormWorker | None = None
        self._forms = ThreadPoolExecutor(1, "likely-forms")
        self._thread = ThreadPoolExecutor(1, "likely-prepare")
        self._longest = self._thread.submit(_longest_token, model.tokenizer)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()  # whoever waits for it hears that
        self._forms.shutdown(cancel_futures=True)
        if self._worker is not None:
            self._worker.close()
        self._thread.shutdown(cancel_futures=True)

    async def prompts(self, prompts: Sequence[str | list[int]], *, echo: bool, wanted: int) -> list[EncodedPrompt]:
        """Texts or token ids that leave room for `wanted` tokens (at least for one); `echo`: they will be sent back."""
        return await self.away(
            lambda: [self._text(p, echo, wanted) if isinstance(p, str) else self._ids(p, wanted) for p in prompts]
        )

    async def conversation(self, messages: list[dict[str, Any]], begun: str | None = None) -> Rendered:
        """Messages in the model's chat template, with room for an answer.

        begun  the content of the last message, which is the beginning of the answer; None: it begins anew
        """

        def render() -> Rendered:
            for message in messages:
                self._check_bytes(str(message.get("content", "")))
            rendered = self._model.render(messages if begun is None else messages[:-1])
            if begun is not None:
                rendered = go_on(self._model.tokenizer, rendered, begun)
            self._check_tokens(len(rendered.tokens), 1)
            return rendered

        return await self.away(render)

    async def tokens_of(self, text: str, special: bool) -> list[int]:
        """As a prompt, or without what the model wants in front of one."""

        def encode() -> list[int]:
            self._check_bytes(text)
            return self._model.encode_prompt(text) if special else self._model.tokenizer.encode(text)

        return await self.away(encode)

    async def text_of(self, tokens: Sequence[int]) -> str:
        """Bytes that are no text become U+FFFD."""

        def decode() -> str:
            self._check_ids(tokens)
            return self._written(tokens)

        return await self.away(decode)

    async def joint(self, prompt: str, answers: Sequence[str]) -> list[tuple[Item, bool]]:
        """`joint_item` of each answer."""

        def join(answer: str) -> tuple[Item, bool]:
            self._check_bytes(prompt, answer)
            item, straddles = joint_item(self._model.tokenizer, prompt, answer)
            self._check_tokens(len(item.tokens), 0)
            return item, straddles

        return await self.away(lambda: [join(answer) for answer in answers])

    async def predicted(self, text: str) -> list[int]:
        """What the client expects the answer to be, as tokens; [] where it is longer than the context."""
        if len(text.encode("utf-8", "replace")) > self._context * self._longest.result():
            return []
        return await self.away(lambda: self._model.tokenizer.encode(text))

    async def constraint(self, described: FormDescription | None, field: str, warnings: list[str]) -> Constraint | None:
        """The form on the model's tokens, in its first state, if a process of its own could compile it in its limits.

        field  of the request, for errors;  warnings: of its reply, where a form that may be cut is named
        """
        if described is None:
            return None
        loop = asyncio.get_running_loop()
        try:
            if not await self.away(lambda: self._worker is not None and self._worker.accepted(described)):
                await loop.run_in_executor(self._forms, self._check_form, described)
            held = await self.away(lambda: self._model.guide.constraint(described.form))
        except (LikelyError, ValueError, TypeError) as error:
            raise ApiError(400, f"{field}: {error}", param=field) from None
        if why := why_cut(described.form, held):
            warnings.append(f"{field}: {why}")
        return held

    async def fields(
        self, described: FormDescription | None, constraint: Constraint | None, finished: Finished
    ) -> dict[str, Any]:
        """`fields` of a whole text that was held to a schema: its values, and the log-probabilities of their tokens.

        constraint  of the form, in its first state.  Nothing where there are no such values
        """
        if described is None or described.option != "schema" or constraint is None or not finished.complete:
            return {}

        def read() -> dict[str, Any]:
            found = read_fields(
                finished.text, described.form, constraint, finished.tokens, self._model.tokenizer.token_bytes,
                finished.logprobs, finished.log_masses,
            )  # fmt: skip
            return {} if found is None else {"fields": json_safe([asdict(field) for field in found[0]])}

        return await self.away(read)

    def _check_form(self, described: FormDescription) -> None:
        if self._worker is None:
            limits = self._limits
            self._worker = FormWorker(
                self._model.guide.vocabulary,
                seconds=limits.form_s,
                memory_mib=limits.form_mib,
                size_bytes=limits.form_bytes,
            )
        self._worker.check(described)

    async def away(self, work: Callable[[], T]) -> T:
        """Do it on the thread that prepares prompts: what takes milliseconds must not hold up other clients."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _text(self, text: str, echo: bool, wanted: int) -> EncodedPrompt:
        self._check_bytes(text)
        tokens = self._model.encode_prompt(text)
        self._check_tokens(len(tokens), wanted)
        if not echo:
            return EncodedPrompt(text, tokens)
        tokenizer = self._model.tokenizer
        if text:
            joint_item(tokenizer, text, "")  # refuses text that the tokens cannot write: it would be another text's
        plain = tokenizer.encode(text, parse_special=True)
        more = sum(surface_lengths(tokenizer, plain)) - len(text.encode())
        return EncodedPrompt(text, tokens, len(tokens) - len(plain), max(0, more))

    def _ids(self, tokens: list[int], wanted: int) -> EncodedPrompt:
        self._check_ids(tokens)
        self._check_tokens(len(tokens), wanted)
        return EncodedPrompt(self._written(tokens), tokens)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        size = self._model.runtime.vocab_size
        if (worst := max(tokens, default=0)) >= size:
            raise ApiError(400, f"token {worst} is not in the vocabulary of {size} tokens", param="prompt")

    def _written(self, tokens: Sequence[int]) -> str:
        """Their text, control tokens in their written form."""
        tokenizer = self._model.tokenizer
        names = {number: text.encode() for text, number in tokenizer.special_tokens.items()}
        return b"".join(names.get(t) or tokenizer.token_bytes(t) for t in tokens).decode("utf-8", "replace")

    def _check_bytes(self, *texts: str) -> None:
        """Refuse a text that cannot fit, without the seconds that it takes to tokenise a megabyte."""
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if size > self._context * self._longest.result():
            raise _too_long(
                f"the text has {size} bytes, far more than the context of {self._context} tokens holds: shorten it"
            )

    def _check_tokens(self, tokens: int, wanted: int) -> None:
        if tokens + min(wanted, 1) > self._context:
            raise _too_long(
                f"the prompt has {tokens} tokens, the context {self._context}"
                + (", and one more is needed to write into" if tokens == self._context else "")
                + ": shorten it, or start the server with a larger --context"
            )


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, param="prompt", code="context_length_exceeded")


def _longest_token(tokenizer: Tokenizer) -> int:
    """Bytes of the longest token."""
    written = (len(text.encode()) for text in tokenizer.special_tokens)
    return max(*(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)), *written, 1)
