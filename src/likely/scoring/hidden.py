"""A language model's last hidden state as features: at the end of a text, or where an answer is about to begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from likely.errors import CapabilityError, DataError
from likely.metrics.checks import Floats, Ints, softmax
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import FloatArray, Runtime, Want, Work
from likely.scoring.choices import ChoiceItem, ChoiceStyle, Normalise, choice_item, choice_pairs, score_choices

TOGETHER = 32  # prompts in one call


class OptionFeatures(NamedTuple):
    """N questions of K options: what `SplitPointClassifier` is fitted on.

    hidden  (N, D) last hidden state after the final norm, at the last token of the prompt
    probs   (N, K) softmax of what the options are compared by;  labels (N,): the right one
    """

    hidden: Floats
    probs: Floats
    labels: Ints


def hidden_states(lm: Any, prompts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Floats:
    """(N, D) the last layer's state, after the final norm, at the last token of each prompt: where the answer begins.

    lm  a `Model` on a runtime with the capability "hidden"; CapabilityError for another, or for a server
    The state is what the head turns into the logits of the next token.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of strings, got the string {prompts!r}")
    if not prompts:
        raise ValueError("no prompts: at least one is needed")
    runtime = runtime_with_hidden(lm)
    texts = [lm.encode_prompt(prompt) for prompt in prompts]
    return np.concatenate(list(_states(runtime, texts, "last", progress))).astype(np.float64)


def token_states(lm: Any, texts: Sequence[Sequence[int]], *, rows: Literal["last", "all"] = "all") -> list[FloatArray]:
    """(T, D) per text of T token ids: the last layer's state, after the final norm, at each of its tokens.

    lm    as for `hidden_states`
    rows  "last": (1, D), at the last token alone
    """
    return list(_states(runtime_with_hidden(lm), texts, rows))


def runtime_with_hidden(lm: Any) -> Runtime:
    """Its runtime, or CapabilityError where that gives no hidden states."""
    runtime: Runtime | None = getattr(lm, "runtime", None)
    if runtime is None or not runtime.capabilities.hidden:
        what = "a server" if runtime is None else type(runtime).__name__
        raise CapabilityError(f"{what} gives no hidden states; runtimes that do: {kinds_with('hidden')}")
    return runtime


def _states(
    runtime: Runtime,
    texts: Sequence[Sequence[int]],
    rows: Literal["last", "all"],
    progress: Callable[[int], None] | None = None,
) -> Iterator[FloatArray]:
    with runtime.turn:
        for group in _groups(texts, runtime.free_tokens()):
            yield from _states_of_group(runtime, group, rows)
            if progress:
                progress(len(group))


def _states_of_group(
    runtime: Runtime, texts: Sequence[Sequence[int]], rows: Literal["last", "all"]
) -> list[FloatArray]:
    """(R, D) per text, in one call."""
    opened = []
    try:
        for tokens in texts:
            opened.append((runtime.open(), tokens))
        work = [Work(s, np.asarray(t, np.int64), want=Want(rows=rows, hidden=True)) for s, t in opened]
        return [output.hidden for output in runtime.forward(work) if output.hidden is not None]
    finally:
        for sequence, _ in opened:
            runtime.close(sequence)


def option_features(
    lm: Any,
    items: Sequence[ChoiceItem | Mapping[str, Any]],
    *,
    style: ChoiceStyle = "letters",
    normalise: Normalise = "sum",
    progress: Callable[[int], None] | None = None,
) -> OptionFeatures:
    """Hidden state, option probabilities and right answer of multiple-choice questions.

    items             as for `choices.score_choices`, all with as many options: DataError names the first that differs
    style, normalise  what is asked and how options are compared, as there
    """
    ready = [item if isinstance(item, ChoiceItem) else choice_item(item, f"item {i}") for i, item in enumerate(items)]
    if not ready:
        raise DataError("no questions: at least one is needed")
    for i, item in enumerate(ready):
        if len(item.choices) != len(ready[0].choices):
            raise DataError(
                f"item {i}: has {len(item.choices)} options, item 0 has {len(ready[0].choices)}: heads need one number "
                f"of classes, so keep the questions of one number of options together"
            )
    hidden = hidden_states(lm, [choice_pairs(item, style=style, normalise="sum")[0][0] for item in ready])
    report = score_choices(lm, ready, style=style, normalise=normalise, progress=progress)
    values = np.array([result.values for result in report.results])
    return OptionFeatures(hidden, softmax(values), np.array([item.answer for item in ready], np.int64))


def _groups(texts: Sequence[Sequence[int]], free: int) -> Iterator[list[Sequence[int]]]:
    """Texts in their order, as many together as there is room for; a text of its own may exceed it, and then fails."""
    group, used = list[Sequence[int]](), 0
    for tokens in texts:
        if group and (len(group) == TOGETHER or used + len(tokens) > free):
            yield group
            group, used = [], 0
        group.append(tokens)
        used += len(tokens)
    yield group


class HiddenFeatures:
    """texts → (N, D): the hidden state after the last token of each, of a frozen model.

    lm      a model whose runtime gives hidden states (torch, native, recurrent), or CapabilityError
    prompt  what a text is put into; "{}" stands for it

    See `hidden_states`: a text that does not fit the model's context is an error, none is cut.
    """

    def __init__(self, lm: Any, prompt: str = "{}"):
        self.lm, self.prompt = lm, prompt

    def __call__(self, texts: Sequence[str]) -> Floats:
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got the string {texts!r}")
        return hidden_states(self.lm, [self.prompt.replace("{}", text) for text in texts])
