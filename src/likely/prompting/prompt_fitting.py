"""A row's prompt as the text that a model is given: cut from the left where the context is short, through a chat
template on request, and never with a control token that came out of the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from likely.errors import DataError, ModelError
from likely.prompting.risk_prompts import Prompt


def fitted_texts(
    lm: Any, prompts: Sequence[Prompt], *, chat: bool = False, room: int = 16, description: bool = True
) -> list[str]:
    """What the model reads for each prompt.

    chat         as a user's turn, the beginning of the answer as that of the assistant's
    room         tokens kept free for the answer
    description  whether the first part is the task's description (in a chat, the system message; a template without a
                 system role gets it at the beginning of the user's turn)

    Where a prompt is too long, the description, then worked examples, then the row's first lines are left out, with a
    warning: the question always stays.  ModelError if that is not enough.
    """
    texts, cut = [], 0
    seen: set[str] = set()  # worked examples are the same for many rows
    for i, prompt in enumerate(prompts):
        _check_control(lm, prompt.row, f"row {i}")
        for example in prompt.parts[1 if description else 0 :]:
            if example not in seen:
                _check_control(lm, example, "a worked example")
                seen.add(example)
        text, dropped = _fitted(lm, prompt, chat, room, description, i)
        texts.append(text)
        cut += dropped
    if cut:
        warnings.warn(
            f"{cut} of {len(prompts)} prompts were longer than the context and lost their beginning (description, "
            f"examples, first columns); load the model with a larger context=",
            stacklevel=3,
        )
    return texts


def _fitted(lm: Any, prompt: Prompt, chat: bool, room: int, description: bool, index: int) -> tuple[str, bool]:
    text = _text(lm, prompt, chat, description)
    context = getattr(getattr(lm, "runtime", None), "context_length", None)
    if context is None or _fits(lm, text, context - room):
        return text, False
    while prompt.parts or prompt.row:
        if prompt.parts:
            prompt, description = replace(prompt, parts=prompt.parts[1:]), False
        else:
            prompt = replace(prompt, row="\n".join(prompt.row.split("\n")[1:]))
        text = _text(lm, prompt, chat, description)
        if _fits(lm, text, context - room):
            return text, True
    raise ModelError(
        f"row {index}: the question alone does not fit the context of {context} tokens with {room} for the answer: "
        f"load the model with a larger context="
    )


def _fits(lm: Any, text: str, tokens: int) -> bool:
    # no token is shorter than a byte, so that short texts need not be encoded
    return len(text.encode()) < tokens or len(lm.encode_prompt(text)) <= tokens


def _text(lm: Any, prompt: Prompt, chat: bool, description: bool) -> str:
    if not chat:
        return prompt.text
    system = [{"role": "system", "content": prompt.parts[0]}] if description and prompt.parts else []
    user = replace(prompt, parts=prompt.parts[1:]) if system else prompt
    return str(lm.render([*system, {"role": "user", "content": user.question}]).text) + prompt.answer


def _check_control(lm: Any, text: str, where: str) -> None:
    """The texts are parsed for control tokens, and a table must not be able to write one."""
    tokenizer = getattr(lm, "tokenizer", None)
    for control in getattr(tokenizer, "special_tokens", ()):
        if len(control) > 1 and control in text:
            raise DataError(f'{where} holds the text "{control}", a control token of this model: change the value')
