"""The prompts of a row: lettered options, an answer in words, a number, or a reasoned probability.

What the model reads (worked examples in front, cut to its context, through a chat template on request), and which
answers are compared after it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from likely.decoding.request import longest_text
from likely.errors import DataError, ModelError
from likely.prompting.ensembles.demonstrations import normalise_text
from likely.prompting.risk.task import LETTERS, TableChoice, TableTask
from likely.prompting.risk.text import AS_IS, RowLayout, TableRow, code_of, row_text

RiskStyle = Literal["word", "mc", "numeric", "cot"]
STYLES = get_args(RiskStyle)
FORMS = ("", " ", "\n")  # what may stand between "Answer:" and a letter
MOST_PERMUTED = 4  # choices; more are only rotated, since 5! prompts a row are too many
NUMERIC_ANSWER = "Answer (between 0 and 1): 0."
WORKED = "is also one of the worked examples, whose outcome stands in the prompt: leave one of the two out"
REASONING = """
Think step by step about the factors that could influence the answer. Your response MUST end with your estimate in \
the following format:
Probability: X%
where X is a number between 0 and 100.

Reasoning:"""


@dataclass(frozen=True)
class RowPrompt:
    """What a model reads, in the parts that matter when it is too long or goes through a chat template.

    parts   the description and worked examples, each dropped whole from the left where the context is too short
    row     the block of the row in question
    ask     the question; never dropped
    answer  how the answer begins: the end of the prompt, or of the assistant's turn
    """

    parts: tuple[str, ...]
    row: str
    ask: str
    answer: str

    @property
    def question(self) -> str:
        """Everything but the beginning of the answer."""
        return "\n\n".join([*self.parts, f"{self.row}\n\n{self.ask}"])

    @property
    def text(self) -> str:
        return f"{self.question}\n{self.answer}" if self.answer else self.question


def choice_orders(count: int, *, correction: bool = True) -> list[tuple[int, ...]]:
    """The orders in which `count` choices are shown: order[i] is the choice at place i.

    All permutations for up to 4 choices; for more their rotations, in which every choice still stands once at every
    place.  Without correction the one order of the task.
    """
    if not correction:
        return [tuple(range(count))]
    if count <= MOST_PERMUTED:
        return list(itertools.permutations(range(count)))
    return [tuple((i + shift) % count for i in range(count)) for shift in range(count)]


def lettered_question(task: TableTask, order: Sequence[int]) -> str:
    """The question and its options, "A. ..." first."""
    options = (f"{letter}. {task.choices[k].text.rstrip('.')}." for letter, k in zip(LETTERS, order, strict=False))
    return "\n".join([f"Question: {task.question}", *options])


def word_question(task: TableTask, order: Sequence[int]) -> str:
    """The question with the words of the answers in this order: "... above or below $50,000?"."""
    words = [task.choices[k].word for k in order]
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    return f"Question: {task.word_question.replace('{options}', listed)}"


def row_prompt(
    row: TableRow,
    task: TableTask,
    *,
    style: RiskStyle = "word",
    order: Sequence[int] | None = None,
    layout: RowLayout = AS_IS,
    examples: Sequence[TableRow] = (),
) -> RowPrompt:
    """The prompt of one row.

    order     in which the choices are shown (mc, word); default: the task's
    examples  rows with an outcome, worked before the question; not for "cot"
    """
    order = tuple(range(len(task.choices))) if order is None else tuple(order)
    parts = [task.description.strip()] if task.description.strip() else []
    parts += [_worked(example, task, style, order, layout) for example in examples]
    ask, answer = _ask(task, style, order)
    return RowPrompt(tuple(parts), row_text(row, task.columns, layout), ask, answer)


def answer_texts(task: TableTask, style: RiskStyle, order: Sequence[int]) -> list[list[str]]:
    """The answers to compare: per form, one text per choice in the task's order.

    mc: the letter under which each choice is shown, in each of three forms;  word: " below", " above", one form
    """
    if style == "mc":
        letter = {k: LETTERS[place] for place, k in enumerate(order)}
        return [[form + letter[k] for k in range(len(order))] for form in FORMS]
    return [[f" {choice.word}" for choice in task.choices]]


def _ask(task: TableTask, style: RiskStyle, order: Sequence[int]) -> tuple[str, str]:
    if style == "mc":
        return lettered_question(task, order), "Answer:"
    if style == "word":
        return word_question(task, order), task.word_prefix
    question = f"Question: {task.numeric_question}"
    return (question, NUMERIC_ANSWER) if style == "numeric" else (question + "\n" + REASONING, "")


def _worked(row: TableRow, task: TableTask, style: RiskStyle, order: Sequence[int], layout: RowLayout) -> str:
    k = task.outcome(row)
    if k is None:
        raise ValueError(f'a worked example has no "{task.target}"')
    if style == "cot":
        raise ValueError('worked examples are for the styles word, mc and numeric: they hold no reasoning for "cot"')
    ask, answer = _ask(task, style, order)
    return f"{row_text(row, task.columns, layout)}\n\n{ask}\n{answer}{_said(task.choices[k], k, style, order)}"


def _said(choice: TableChoice, k: int, style: RiskStyle, order: Sequence[int]) -> str:
    if style == "mc":
        return f" {LETTERS[list(order).index(k)]}"
    if style == "word":
        return f" {choice.word}"
    return f"{min(choice.value, 0.99):.2f}".removeprefix("0.")


def sample_examples(
    examples: Sequence[TableRow], task: TableTask, count: int, *, balanced: bool = True, seed: int = 0
) -> list[TableRow]:
    """`count` of the examples in a random order.  balanced: the outcomes in turn, as long as none runs out."""
    order = np.random.default_rng(seed).permutation(len(examples))
    if balanced:
        turn: dict[int | None, int] = {}
        ranked: list[tuple[int, int, int]] = []
        for i in order:
            k = task.outcome(examples[i])
            turn[k] = turn.get(k, 0) + 1
            ranked.append((turn[k], len(ranked), i))
        order = np.array([i for _, _, i in sorted(ranked)])
    return [examples[i] for i in order[:count]]


def worked_row(rows: Sequence[TableRow], shots: Sequence[TableRow], task: TableTask) -> int | None:
    """The first row that is also a worked example, so that its outcome stands in the prompt; None if there is none.

    The same in all columns that both have, the target aside, without regard to case and white space.
    """
    known = [{name: _plain(value) for name, value in shot.items() if name != task.target} for shot in shots]
    for i, row in enumerate(rows):
        if any(all(_plain(row[name]) == text for name, text in shot.items() if name in row) for shot in known):
            return i
    return None


def _plain(value: object) -> str:
    return normalise_text(code_of(value))


def prompt_texts(
    lm: Any, prompts: Sequence[RowPrompt], *, chat: bool = False, room: int = 16, description: bool = True
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


def context_of(lm: Any) -> int | None:
    """Most tokens that a prompt and its answer may have; None where a server knows."""
    return longest_text(lm.runtime) if hasattr(lm, "runtime") else None


def _fitted(lm: Any, prompt: RowPrompt, chat: bool, room: int, description: bool, index: int) -> tuple[str, bool]:
    text = _text(lm, prompt, chat, description)
    context = context_of(lm)
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


def _text(lm: Any, prompt: RowPrompt, chat: bool, description: bool) -> str:
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
