"""Samples from the geometric mixture of a policy and its reference, token by token, with the cache of each.

  log μ(v | h) = (1 - β) log π(v | h) + β log π_ref(v | h) + const        Munos et al. 2023, arXiv:2312.00886, section 7
Per step it is normalised, so that it is not the mixture of whole sequences, whose normaliser differs by prefix.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from likely.alignment.online.tabular import check_beta
from likely.errors import CapabilityError, ConstraintError, KvFull, ModelError
from likely.guided.contrast import LoadedModel, check_same_tokens
from likely.runtimes.protocol import FloatArray, Output, Runtime, Sequence, Want, Work
from likely.runtimes.rows import log_softmax


class ReferenceCalls:
    """A reference model beside a loop: what the texts of one step want from it is computed in one call."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.calls = 0
        self._waiting: dict[GeometricMixture, Work] = {}

    def add(self, text: GeometricMixture, tokens: Any, parents: Any = None) -> None:
        """Compute these new tokens of a text in the next call, in the place of what it asked for before."""
        want = Want.LAST if parents is None else Want.ALL
        self._waiting[text] = Work(text.opened(), np.asarray(tokens), parents, want=want)

    def remove(self, text: GeometricMixture) -> None:
        self._waiting.pop(text, None)

    def compute(self, text: GeometricMixture) -> None:
        """All that waits, if this text is part of it; where that does not fit, what this text alone waits for."""
        if text not in self._waiting:
            return
        batch = self._waiting
        try:
            outputs = self._call(list(batch.values()))
        except KvFull:
            own = batch.pop(text)
            if not batch:
                raise
            text.receive(self._call([own])[0])
            return
        self._waiting = {}
        for each, output in zip(batch, outputs, strict=True):
            each.receive(output)

    def _call(self, work: list[Work]) -> list[Output]:
        self.calls += 1
        return self.runtime.forward(work)


class GeometricMixture:
    """A LogitsProcessor: next-token distributions mixed with those of a reference model of the same vocabulary.

    reference  where the reference runs; `between` also compares the tokenizers
    beta       weight of the reference, in [0, 1].  0: the policy's samples, 1: the reference's, token for token

    The reference sees the prompt and what was emitted, in a cache of its own that moves in lock-step: prompts are read
    once, drafts are verified as trees, samples and beams fork it; all texts of a step share one call.  Give the same
    object to all requests.  Temperature, truncation, penalties and constraints act on the mixture, as they would on the
    model; `logprobs` stay those of the policy, `processed_logprobs=True` gives those of the mixture as sampled from.
    A token that the policy or the reference cannot give has probability 0 in the mixture.
    """

    def __init__(self, reference: Runtime, beta: float):
        check_beta(beta)
        if not hasattr(reference, "forward"):
            raise CapabilityError(
                f"the reference must run on this machine, where whole rows of logits can be read, got "
                f"{type(reference).__name__}: give the runtime of a loaded model"
            )
        self.beta = beta
        self.reference = ReferenceCalls(reference)
        self._start: list[int] = []
        self._begin_text([])

    @classmethod
    def between(cls, policy: LoadedModel, reference: LoadedModel, beta: float) -> GeometricMixture:
        """Of two loaded models; ValueError unless each token id means the same in both."""
        for name, model in (("policy", policy), ("reference", reference)):
            if not hasattr(model, "runtime"):
                raise CapabilityError(
                    f"a mixture needs the logits of the {name}, which a {type(model).__name__} does not give: load it "
                    f"on this machine"
                )
        check_same_tokens(reference, policy.tokenizer, policy.runtime.vocab_size, role="reference model")
        return cls(reference.runtime, beta)

    def _begin_text(self, prompt: list[int]) -> None:
        self._prompt_length = len(prompt)
        self._text = prompt
        self._held = 0  # of the text, and of tokens that will be emitted for certain, how many the sequence keeps
        self._sequence: Sequence | None = None
        self._rows: dict[tuple[int, ...], FloatArray] = {}  # path after the text -> logits of the reference
        self._paths: list[tuple[int, ...]] = []  # the paths whose rows come out of the next call

    @property
    def room(self) -> int:
        """The most tokens that the reference can follow behind the prompt."""
        if self.beta == 0:
            return 2**62
        return self.reference.runtime.context_length - self._prompt_length

    def begin(self, runtime: Runtime, prompt: Seq[int]) -> GeometricMixture:
        other = self.reference.runtime
        if other.vocab_size != runtime.vocab_size:
            raise ValueError(
                f"the reference model has {other.vocab_size} tokens, this one {runtime.vocab_size}: both must have the "
                f"same vocabulary"
            )
        if self.beta and len(prompt) >= other.context_length:
            raise ModelError(
                f"the prompt has {len(prompt)} tokens; the reference model's context is {other.context_length}: "
                f"shorten it or load the reference with a larger context="
            )
        copy = self._copy()
        copy._begin_text([int(t) for t in prompt])
        return copy

    def _copy(self) -> GeometricMixture:
        copy = object.__new__(GeometricMixture)
        copy.__dict__ |= self.__dict__
        return copy

    # --- one call -----------------------------------------------------------------------------------------------------

    def work(self, work: Work) -> list[Work]:
        if self.beta == 0:
            return []
        if self._sequence is not None and self._sequence.pending:  # of a draft that was given up
            self.reference.runtime.commit([(self._sequence, [])])
        self._paths, self._rows = [()], {}
        self.reference.remove(self)
        if work.parents is None:
            if rest := self._text[self._held :]:
                self.reference.add(self, rest)
        elif self.reference.runtime.capabilities.trees:
            # a draft: its first node is the newest token, the last of our text
            self._catch_up(self._text[:-1])
            for token, parent in zip(work.tokens[1:].tolist(), work.parents[1:].tolist(), strict=True):
                self._paths.append((*self._paths[parent], token))
            self.reference.add(self, work.tokens, work.parents)
        return []  # nothing of the policy's own runtime

    def read(self, outputs: list[Output]) -> None:
        return None

    def opened(self) -> Sequence:
        if self._sequence is None:
            self._sequence, self._held = self.reference.runtime.open(), 0
        return self._sequence

    def receive(self, output: Output) -> None:
        """The reference's rows of what was asked for."""
        assert output.logits is not None and self._sequence is not None
        if not self._sequence.pending:
            self._held = len(self._text)
        self._rows = dict(zip(self._paths, output.logits, strict=True))

    def apply(self, path: Seq[int], logits: FloatArray) -> FloatArray:
        if self.beta == 0:
            return logits
        row = self._row(tuple(path))
        if self.beta == 1:
            mixed = row
        else:
            mixed = np.float32(1 - self.beta) * log_softmax(logits) + np.float32(self.beta) * log_softmax(row)
        mixed = np.where(logits > -np.inf, mixed, np.float32(-np.inf)).astype(np.float32)
        if mixed.max() == -np.inf:
            raise ConstraintError(
                f"after {len(self._text) - self._prompt_length + len(path)} tokens no token is possible under the "
                f"policy, the reference and what the text is held to at once: lower beta={self.beta:g} to 0"
            )
        return mixed

    def _row(self, path: tuple[int, ...]) -> FloatArray:
        if path not in self._rows:
            self.reference.compute(self)
        if path not in self._rows:  # a runtime without trees, or no room for all at once
            self._rows[path] = self._catch_up([*self._text, *path])
        return self._rows[path]

    def _catch_up(self, tokens: list[int]) -> Any:
        """Compute what is not held yet of `tokens`, in a call of its own; the last row of logits, if there was any."""
        rest = tokens[self._held :]
        if not rest:
            return None
        output = self.reference.runtime.forward([Work(self.opened(), np.array(rest), want=Want.LAST)])[0]
        self._held = len(tokens)
        assert output.logits is not None
        return output.logits[-1]

    # --- between calls ------------------------------------------------------------------------------------------------

    def advance(self, tokens: Seq[int], accepted: Seq[int]) -> None:
        if self._sequence is not None and self._sequence.pending:
            self.reference.runtime.commit([(self._sequence, list(accepted))])
            self._held += len(accepted)
        self._text = [*self._text, *tokens]
        self._rows = {}

    def fork(self) -> GeometricMixture:
        runtime = self.reference.runtime
        try:
            self.reference.compute(self)  # so that samples share one reading of the prompt
            sequence = (
                runtime.fork(self._sequence) if self._sequence is not None and runtime.capabilities.fork else None
            )
        except KvFull:  # computed anew when there is room
            sequence = None
        copy = self._copy()
        copy._rows, copy._paths = self._rows.copy(), self._paths.copy()
        copy._sequence, copy._held = sequence, self._held if sequence is not None else 0
        return copy

    def drop(self) -> None:
        self.reference.remove(self)
        if self._sequence is not None:
            self.reference.runtime.close(self._sequence)
        self._sequence, self._held, self._rows = None, 0, {}
