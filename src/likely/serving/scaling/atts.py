"""ATTS: many chains of several rounds, written by a small model, taken over by a large one at a controlled rate.

A round of a chain: the draft model writes at most `draft_tokens`; the target gives their mean log-probability s; the
conformal p-value of s against calibration scores says whether the target takes over.  A chain needs its own score and
the calibration alone, never the other chains', so that no chain waits for another.

Xiong et al. 2025, arXiv:2509.15148.  The official code ranks without the + 1 of the p-value, appends the target's text
to the rejected draft (on_reject="continue"), and uses the scores of the first round for all rounds
(calibration="first").  Take-over is by whole texts: the chains do not follow the target's distribution.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from likely.errors import LikelyError, check_choice
from likely.io.hashes import fingerprint
from likely.serving.scaling.answers import ANSWER_FORMS, Vote
from likely.serving.scaling.chains import Chains, ChainTurn, Finish, OnReject, ReasoningChain
from likely.serving.scaling.clients import TextClient, WrittenText
from likely.serving.scaling.gate import RejectionGate, leave_one_out

R = TypeVar("R")
Coverage = Literal["marginal", "conditional"]
CalibratedRounds = Literal["first", "each"]
CHAIN, CALIBRATION = "chain", "calibration"  # what a chain is for, which keys its noise
DRAFT, TARGET, TIES = "draft", "target", "ties"


@dataclass(frozen=True)
class _DraftScore:
    """A draft and the target's score of it; ended: there is none, and the chain ends."""

    draft: WrittenText
    mean_logprob: float = 0.0
    tokens: int = 0

    @property
    def ended(self) -> bool:
        return not self.tokens


class ATTS:
    """Asynchronous test-time scaling with a draft and a target model.

    draft, target  clients (`client_of`)
    samples        chains of a question, m;  rounds: most rounds of a chain, R
    draft_tokens, target_tokens  most tokens of a turn of each
    reject_rate    share of drafts that the target takes over: the budget, 1 - alpha
    coverage       "marginal": one calibration for all questions, from `calibrate` or `gate`;  "conditional": for each
                   question, from `samples` other chains of it, which cost as much as the chains themselves
    calibration    "first": scores of the first round serve all rounds, as in the paper; the rate of later ones drifts.
                   "each": calibration chains go through all rounds, take-overs included
    on_reject      "continue" the rejected draft, or "replace" it by the target's own text
    answers        `ANSWER_FORMS`: what counts as an answer;  vote: how chains agree on one
    window         None, or the number of newest scores that calibrate: results then depend on the order of arrival
    draft_concurrency, target_concurrency  calls of each model at a time
    temperature    of both models

    What a chain holds depends on question, settings, seed and gate alone, not on what else runs.  Defaults: those of
    the official repository; reject_rate as its example (about 40 %).
    """

    def __init__(
        self,
        draft: TextClient,
        target: TextClient,
        *,
        samples: int = 16,
        rounds: int = 15,
        draft_tokens: int = 500,
        target_tokens: int = 500,
        reject_rate: float = 0.4,
        coverage: Coverage = "marginal",
        calibration: CalibratedRounds = "first",
        on_reject: OnReject = "continue",
        answers: str = "number",
        vote: Vote = "majority",
        window: int | None = None,
        draft_concurrency: int = 16,
        target_concurrency: int = 4,
        temperature: float = 0.8,
        seed: int = 0,
        gate: RejectionGate | None = None,
    ):
        check_choice("coverage", coverage, get_args(Coverage))
        check_choice("calibration", calibration, get_args(CalibratedRounds))
        check_choice("on_reject", on_reject, get_args(OnReject))
        check_choice("vote", vote, get_args(Vote))
        check_choice("answers", answers, ANSWER_FORMS)
        for name, value in (
            ("samples", samples), ("rounds", rounds), ("draft_tokens", draft_tokens), ("target_tokens", target_tokens),
            ("draft_concurrency", draft_concurrency), ("target_concurrency", target_concurrency),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        RejectionGate(reject_rate, window=window)  # refuses what is out of range
        if gate is not None and coverage == "conditional":
            raise ValueError('coverage="conditional" calibrates each question by itself: drop gate=, or "marginal"')
        if gate is not None and gate.reject_rate != reject_rate:
            raise ValueError(f"the gate rejects a share of {gate.reject_rate:g}: give reject_rate={gate.reject_rate:g}")
        self.draft, self.target = draft, target
        self.samples, self.rounds = samples, rounds
        self.draft_tokens, self.target_tokens = draft_tokens, target_tokens
        self.reject_rate, self.coverage, self.calibration = reject_rate, coverage, calibration
        self.on_reject, self.answers, self.vote, self.window = on_reject, answers, vote, window
        self.draft_concurrency, self.target_concurrency = draft_concurrency, target_concurrency
        self.temperature, self.seed, self.gate = temperature, seed, gate
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draft_slots = self._target_slots = asyncio.Semaphore()

    # --- calibration ----------------------------------------------------------------------------------------------

    async def calibrate(
        self, questions: Sequence[str], *, progress: Callable[[int], None] = lambda chains: None
    ) -> RejectionGate:
        """A gate from `samples` chains of each question; with coverage="marginal" it serves all later questions.

        progress  told of each draft that was scored
        """
        self._bind()
        gate = RejectionGate(self.reject_rate, by_round=self.calibration == "each", window=self.window)
        last = self.rounds if self.calibration == "each" else 1
        live = [(q, ReasoningChain(n, on_reject=self.on_reject)) for q in questions for n in range(self.samples)]

        async def draft(question: str, chain: ReasoningChain, number: int) -> _DraftScore:
            found = await self._draft_and_score(question, chain, number, CALIBRATION)
            progress(1)
            return found

        for number in range(1, last + 1):
            tried = await _those_that_work([draft(q, c, number) for q, c in live])
            drafted = [(*live[i], scored) for i, scored in tried if not scored.ended]
            if not drafted:
                break
            scores = [scored.mean_logprob for *_, scored in drafted]
            gate.add(scores, number)
            if number == last:
                break
            rng = np.random.default_rng(self._key(" ".join(questions), 0, number, CALIBRATION, TIES))
            rejected = leave_one_out(scores, gate.alpha, rng)
            turns = await _those_that_work(
                [
                    self._turn(q, c, number, scored, 0.0, no, CALIBRATION)
                    for (q, c, scored), no in zip(drafted, rejected, strict=True)
                ]
            )
            live = [(drafted[i][0], chain) for i, (chain, finish) in turns if finish is None]
            if not live:
                break
        if not gate.scores.groups:
            raise LikelyError("no calibration chain has a draft that the target could score: every draft was empty")
        if self.coverage == "marginal":
            self.gate = gate
        return gate

    # --- questions ------------------------------------------------------------------------------------------------

    async def solve(self, question: str) -> Chains:
        """All chains of a question and their vote.

        A chain that fails ends alone, with its error; if all fail, the first one's error is raised.  Cancelling ends
        all of them and frees what they hold.
        """
        if self.coverage == "marginal" and self.gate is None:
            raise LikelyError('coverage="marginal" needs a calibration: call calibrate(questions) first, or give gate=')
        self._bind()
        started = self._now()
        own = asyncio.create_task(self._gate_for(question))
        try:
            made = await _together([self._chain(question, n, own, started) for n in range(self.samples)])
            gate = await own
        finally:
            await _end([own])
        errors = [error for _, error in made if error is not None]
        if len(errors) == len(made):
            raise errors[0]
        chains = [chain for chain, _ in made]
        rounds = sorted({turn.round for chain in chains for turn in chain.turns})
        return Chains.of(
            question, chains, reject_rate=self.reject_rate, by=self.vote,
            calibration_scores={number: gate.count(number) for number in rounds},
        )  # fmt: skip

    async def solve_each(self, questions: Sequence[str], *, at_once: int = 4) -> AsyncGenerator[Chains, None]:
        """The chains of each question in order, `at_once` questions on their way at a time."""
        if at_once < 1:
            raise ValueError(f"at_once must be at least 1, got {at_once}")
        waiting: deque[asyncio.Task[Chains]] = deque()
        upcoming = iter(questions)
        try:
            while True:
                while len(waiting) < at_once and (question := next(upcoming, None)) is not None:
                    waiting.append(asyncio.create_task(self.solve(question)))
                if not waiting:
                    return
                yield await waiting[0]
                waiting.popleft()
        finally:
            await _end(waiting)

    async def close(self) -> None:
        """Close both clients."""
        await self.draft.close()
        await self.target.close()

    # --- one chain ------------------------------------------------------------------------------------------------

    async def _chain(
        self, question: str, number: int, gate: asyncio.Task[RejectionGate], started: float
    ) -> tuple[ReasoningChain, Exception | None]:
        chain = ReasoningChain(number, on_reject=self.on_reject)
        finish: Finish | None = None
        failed: Exception | None = None
        try:
            for round_number in range(1, self.rounds + 1):
                scored = await self._draft_and_score(question, chain, round_number, CHAIN)
                if scored.ended:
                    finish = "ended"
                    break
                rng = np.random.default_rng(self._key(question, number, round_number, CHAIN, TIES))
                calibrated = await asyncio.shield(gate)
                pvalue, rejected = calibrated.decide(scored.mean_logprob, round_number, rng)
                chain, finish = await self._turn(question, chain, round_number, scored, pvalue, rejected, CHAIN)
                if finish is not None:
                    break
        except Exception as error:
            kind = "" if isinstance(error, LikelyError) else f"{type(error).__name__}: "
            finish, failed = "error", error
            chain = replace(chain, error=kind + " ".join(str(error).split()))
        return chain.ended(finish or "rounds", self._now() - started, self.answers), failed

    async def _draft_and_score(self, question: str, chain: ReasoningChain, number: int, what: str) -> _DraftScore:
        seed = self._key(question, chain.number, number, what, DRAFT)
        async with self._draft_slots:
            draft = await self.draft.sample(
                self.draft.prompt(question) + chain.text,
                max_tokens=self.draft_tokens, temperature=self.temperature, seed=seed,
            )  # fmt: skip
        if not draft.text:
            return _DraftScore(draft)
        async with self._target_slots:
            scored = await self.target.score(self.target.prompt(question) + chain.text, draft.text)
        if scored.mean_logprob is None:
            return _DraftScore(draft)
        return _DraftScore(draft, scored.mean_logprob, len(scored.token_logprobs))

    async def _turn(
        self, question: str, chain: ReasoningChain, number: int, scored: _DraftScore, pvalue: float, rejected: bool,
        what: str,
    ) -> tuple[ReasoningChain, Finish | None]:  # fmt: skip
        """The chain with this round, and why it ends with it; None: it goes on."""
        draft = scored.draft
        turn = ChainTurn(number, draft.text, draft.tokens, scored.mean_logprob, scored.tokens, pvalue, rejected)
        ended = draft.ended
        if rejected:
            before = chain.text + (draft.text if self.on_reject == "continue" else "")
            async with self._target_slots:
                written = await self.target.sample(
                    self.target.prompt(question) + before,
                    max_tokens=self.target_tokens, temperature=self.temperature,
                    seed=self._key(question, chain.number, number, what, TARGET),
                )  # fmt: skip
            turn = replace(turn, target_text=written.text, target_tokens=written.tokens, target_logprob=written.logprob)
            ended = written.ended or not written.text
        chain = chain.with_turn(turn)
        if ANSWER_FORMS[self.answers].is_said(chain.text):
            return chain, "answer"
        return chain, "ended" if ended else None

    async def _gate_for(self, question: str) -> RejectionGate:
        if self.coverage == "conditional":
            return await self.calibrate([question])
        assert self.gate is not None
        return self.gate

    def _key(self, question: str, chain: int, number: int, what: str, who: str) -> int:
        """Of the noise of one step, in 63 bits."""
        return int(fingerprint([self.seed, question, chain, number, what, who]), 16) >> 1

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _bind(self) -> None:
        """Slots belong to one event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._draft_slots = asyncio.Semaphore(self.draft_concurrency)
            self._target_slots = asyncio.Semaphore(self.target_concurrency)


async def _together(work: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
    """All results in order; the first error, or being cancelled, ends the others before it is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def _those_that_work(work: Sequence[Coroutine[Any, Any, R]]) -> list[tuple[int, R]]:
    """(number, result) of those that do not fail; the first error if all do."""

    async def tried(one: Coroutine[Any, Any, R]) -> R | Exception:
        try:
            return await one
        except Exception as error:
            return error

    found = await _together([tried(one) for one in work])
    good = [(i, result) for i, result in enumerate(found) if not isinstance(result, Exception)]
    errors = [result for result in found if isinstance(result, Exception)]
    if errors and not good:
        raise errors[0]
    return good


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


class ScalingRun:
    """`ATTS` for callers without an event loop, for `with`: its clients are closed at the end."""

    def __init__(self, atts: ATTS):
        self.atts = atts
        self._runner = asyncio.Runner()

    def __enter__(self) -> ScalingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self.atts.close())
        finally:
            self._runner.close()

    def calibrate(
        self, questions: Sequence[str], *, progress: Callable[[int], None] = lambda chains: None
    ) -> RejectionGate:
        """`ATTS.calibrate`."""
        return self._runner.run(self.atts.calibrate(questions, progress=progress))

    def solve(self, question: str) -> Chains:
        """`ATTS.solve`."""
        return self._runner.run(self.atts.solve(question))

    def solve_each(self, questions: Sequence[str], *, at_once: int = 4) -> Generator[Chains, None, None]:
        """`ATTS.solve_each`; stopping early ends what is on its way."""
        each = self.atts.solve_each(questions, at_once=at_once)
        try:
            while (found := self._runner.run(_next(each))) is not None:
                yield found
        finally:
            self._runner.run(each.aclose())


async def _next(each: AsyncIterator[Chains]) -> Chains | None:
    return await anext(each, None)
