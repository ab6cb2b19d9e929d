"""The loop of a diffusion model: requests that fill their canvases block by block, one call of the model per step.

It keeps the face of `decoding.Loop`, so that `generate`, streams and the server drive both alike.  Texts with the same
settings that wait together share a canvas run; the event of a block comes when the block is complete.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from likely.decoding.diffusion.generate import DiffusionRun, begin_diffusion
from likely.decoding.diffusion.prophet import Prophet
from likely.decoding.loop import CallCounts, Loop
from likely.decoding.request import Event, Request, longest_text
from likely.decoding.sequence_state import SequenceState
from likely.errors import LikelyError, ModelError
from likely.io.hashes import fingerprint
from likely.lm.diffusion.settings import DiffusionSettings, refuse_options
from likely.runtimes.protocol import Sequence

MOST_ROWS = 32  # texts of one run


@dataclass(eq=False)
class _Run:
    """Texts that are decoded together; a row without a state has ended."""

    run: DiffusionRun
    states: list[SequenceState | None]


@dataclass(eq=False)
class CanvasLoop(Loop):
    """See the module's first lines.

    settings  how canvases are filled;  encode: the tokens of pinned text
    """

    settings: DiffusionSettings = field(default_factory=DiffusionSettings)
    encode: Callable[[str], list[int]] = list  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._runs: list[_Run] = []

    def add(self, request: Request, *, held: Sequence | None = None) -> int:
        """Queue a request; CapabilityError for what a diffusion model cannot follow."""
        refuse_options(_said(request))
        replace(request, samples=1).check_runtime(self.runtime, held)
        if self.runtime.predictor.mask_id in request.prompt:  # type: ignore[attr-defined]
            raise ModelError("the prompt holds the mask token: give tokens that stand inside the answer as pinned text")
        number = next(self._ids)
        self._inbox.put(("add", number, (request, None)))
        return number

    def _step(self) -> list[Event]:
        events = self._drain()
        self.last_call = None
        events += self._begin()
        self._runs = [run for run in self._runs if any(s is not None and not s.dropped for s in run.states)]
        if not self._runs:
            return events
        active = self._runs.pop(0)
        for row, state in enumerate(active.states):
            if state is not None and state.dropped:  # cancelled
                active.states[row] = None
                active.run.fill(row, 0 if active.run.mask_id else 1)
        decoding = sum(state is not None for state in active.states)
        started = self.clock()
        active.run.advance()
        self.verify_s += self.clock() - started
        self.last_call = CallCounts(decoding * active.run.canvas.ids.shape[1], decoding, 0)
        for row, state in enumerate(active.states):
            if state is not None:
                events += self._news(active, row, state)
        self._runs.append(active)
        self.scheduler.remove_ended()
        return events

    def close(self) -> None:
        super().close()
        self._runs = []

    def _begin(self) -> list[Event]:
        """Waiting requests begin, those of one kind in one run; news of those that cannot."""
        begun: dict[Any, list[SequenceState]] = {}
        scheduler = self.scheduler
        while scheduler.waiting:
            running = sum(len(active.states) for active in scheduler.running)
            if running and self.policy is not None and not self.policy.admits(running):
                break
            active = scheduler.waiting.pop(0)
            request, first = active.request, active.states[0]
            first.waiting_for = 1
            active.states = [first, *(first.fork(first.sample + i, None, None) for i in range(1, request.samples))]
            scheduler.running.append(active)
            for state in active.states:
                begun.setdefault(self._key(state), []).append(state)
        failed: list[Event] = []
        for (length, block, temperature, seed), states in begun.items():
            for at in range(0, len(states), MOST_ROWS):
                rows = states[at : at + MOST_ROWS]
                try:
                    self._start(rows, length, block, temperature, seed)
                except (LikelyError, ValueError) as error:
                    failed += [Event(state.request_id, state.sample, error=error) for state in rows]
                    for state in rows:
                        scheduler.drop(state)
        scheduler.remove_ended()
        return failed

    def _key(self, state: SequenceState) -> tuple[int, int, float, int]:
        request = state.request
        room = longest_text(self.runtime) - len(request.prompt)
        length, block = self.settings.canvas(request.max_tokens, room)
        sampling = request.sampling
        if sampling.greedy:
            return length, block, 0.0, 0
        return length, block, sampling.temperature, sample_seed(sampling.seed, state.sample)

    def _start(self, states: list[SequenceState], length: int, block: int, temperature: float, seed: int) -> None:
        settings, stop, end_id = self.settings, self.settings.stop, min(self.end_ids, default=None)
        if isinstance(stop, Prophet) and stop.end_id is None:
            stop = copy.copy(stop)
            stop.end_id = end_id
        one_length = settings.cache == "none" and not settings.guidance
        groups: dict[int, list[SequenceState]] = {}
        for state in states:
            groups.setdefault(0 if one_length else len(state.request.prompt), []).append(state)
        for group in groups.values():
            run = begin_diffusion(
                self.runtime.predictor,  # type: ignore[attr-defined]
                [state.request.prompt for state in group], length=length, block_length=block,
                steps=settings.steps(length, block), proposal=settings.proposal, temperature=temperature,
                guidance=settings.guidance, schedule=settings.schedule, pinned=self._pinned(length),
                cache=settings.cache, end_id=end_id, end_policy=settings.end_policy,
                accelerator=settings.accelerator, stop=stop, seed=seed,
            )  # fmt: skip
            self._runs.append(_Run(run, list(group)))

    def _pinned(self, length: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for place, text in self.settings.pinned.items():
            tokens = self.encode(text)
            if text.encode() not in b"".join(map(self.token_bytes, tokens)):
                raise ModelError(f"pinned text {text!r} holds characters that this model has no tokens for")
            if not tokens or place < 0 or place + len(tokens) > length:
                raise ModelError(f"pinned text {text!r} at {place} does not fit an answer of {length} tokens")
            found |= dict(enumerate(tokens, place))
        return found

    def _news(self, active: _Run, row: int, state: SequenceState) -> list[Event]:
        """What a row has completed with this call: whole blocks, and its end."""
        run = active.run
        masked = np.flatnonzero(run.answers[row] == run.mask_id)
        whole = not len(masked)
        done = len(run.answers[row]) if whole else int(np.searchsorted(run.blocks, run.blocks[masked[0]]))
        state.target_calls = int(run.row_calls[row])
        before, text, reason = len(state.tokens), "", None
        for token in run.answers[row, before:done].tolist():
            state.tokens.append(token)
            reason, piece = self._advance_text(state, token)
            text += piece
            if reason:
                break
        if not reason and whole:
            reason = "context"
        last = None
        if reason:
            state.rounds = [0] * state.target_calls
            last = state.end(reason)
            self.scheduler.drop(state)
            active.states[row] = None
            if not whole:
                run.fill(row, 0 if run.mask_id else 1)
        new = tuple(state.tokens[before:])
        if not new and last is None:
            return []
        return [
            Event(
                state.request_id, state.sample, text + (last.text if last else ""), new,
                finish=last.finish if last else None, drafted=(False,) * len(new),
            )
        ]  # fmt: skip


def sample_seed(seed: int, sample: int) -> int:
    """The seed of a sample's noise; that of sample 0 is the request's own."""
    return seed if sample == 0 else int(fingerprint([seed, sample], 15), 16)


def _said(request: Request) -> dict[str, Any]:
    """What a request asks for, by the names of its options."""
    sampling = {name: getattr(request.sampling, name) for name in vars(request.sampling) if name != "seed"}
    return {
        **sampling, "drafter": request.drafter, "beams": request.beams, "constraint": request.constraint,
        "logits_processors": request.logits_processors, "min_tokens": request.min_tokens,
        "top_logprobs": request.top_logprobs, "entropy": request.entropy, "processed_logprobs": request.processed,
        "verification": request.verification, "backspace_id": request.backspace_id,
    }  # fmt: skip
