"""Texts and conversations of requests become tokens, on a thread of their own, refused early where they cannot fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from likely.decoding.constraint import Constraint
from likely.decoding.request import longest_text
from likely.guided.form import Form
from likely.lm.model import Model
from likely.models.chat_template import Rendered
from likely.scoring.likelihood import Item, joint_item, surface_lengths
from likely.serving.limits import ApiError
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

    def __init__(self, model: Model):
        self._model, self._context = model, longest_text(model.runtime)
        self._thread = ThreadPoolExecutor(1, "likely-prepare")
        self._longest = self._thread.submit(_longest_token, model.tokenizer)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def texts(self, texts: Sequence[str], *, echo: bool, wanted: int) -> list[EncodedPrompt]:
        """Prompts that leave room for `wanted` tokens (at least for one of them); `echo`: they will be sent back."""
        return await self.away(lambda: [self._text(text, echo, wanted) for text in texts])

    async def conversation(self, messages: list[dict[str, Any]]) -> Rendered:
        """Messages in the model's chat template, with room for an answer."""

        def render() -> Rendered:
            for message in messages:
                self._check_bytes(str(message.get("content", "")))
            rendered = self._model.render(messages)
            self._check_tokens(len(rendered.tokens), 1)
            return rendered

        return await self.away(render)

    async def joint(self, prompt: str, answers: Sequence[str]) -> list[tuple[Item, bool]]:
        """`joint_item` of each answer."""

        def join(answer: str) -> tuple[Item, bool]:
            self._check_bytes(prompt, answer)
            item, straddles = joint_item(self._model.tokenizer, prompt, answer)
            self._check_tokens(len(item.tokens), 0)
            return item, straddles

        return await self.away(lambda: [join(answer) for answer in answers])

    async def constraint(self, form: Form | None) -> Constraint | None:
        """The form on the model's tokens, in its first state.  The engine bounds what compiling may cost."""
        return None if form is None else await self.away(lambda: self._model.guide.constraint(form))

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
