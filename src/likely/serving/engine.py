"""One thread owns the model; any number of coroutines ask it. Decoding and scoring take turns, a call of each.

engine = AsyncEngine(model, max_queue=64)
async for event in engine.submit(request): ...
scores = await engine.score(items)
engine.close()
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from likely.decoding.request import Event, Request, longest_text
from likely.decoding.scheduling import AtMost
from likely.errors import KvFull, LikelyError
from likely.lm.model import Model
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.prefix_cache import PrefixCache
from likely.scoring.likelihood import Item, Scoring, TokenScores

if TYPE_CHECKING:
    from likely.serving.metrics import ServerMetrics

PREFILL_TOKENS = 128  # most tokens of prompts in a call that others wait for
PREFILL_SLOWDOWN = 2.0  # and no more than make it take so many times as long as a call without


class Overloaded(LikelyError):
    """So many requests are on their way that no more are taken now."""

    def __init__(self, limit: int):
        super().__init__(f"{limit} requests are running or waiting here, as many as this server takes: try again later")


class EngineFailed(LikelyError):
    """The model's engine broke down or was closed; what it was working on is lost."""


class ShuttingDown(EngineFailed):
    """The server ends, and what had not been finished in the time that it waited ends with it."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down: send the request again later")


class Ticket:
    """A submitted request, as an asynchronous iterator of its events; ends with the last sample.

    Raises what ended the request early.  `cancel` stops it; leaving it unread without `cancel` lets it run to its end.
    """

    def __init__(self, request: Request, cancel: Callable[[Ticket], None]):
        self.request, self.id = request, -1
        self.submitted = time.perf_counter()
        self._cancel, self._open = cancel, request.samples
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> Event:
        if self._open <= 0:
            raise StopAsyncIteration
        found = await self._queue.get()
        if isinstance(found, Event) and found.error is None:
            self._open -= found.finish is not None
            return found
        self._open = 0
        raise (found.error or EngineFailed("unknown")) if isinstance(found, Event) else found

    def cancel(self) -> None:
        """Stop the request and free its room; harmless when it has ended."""
        self._cancel(self)

    def _deliver(self, news: Sequence[Event | Exception]) -> None:
        """Called by the engine's thread."""

        def put() -> None:
            for item in news:
                self._queue.put_nowait(item)

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # its event loop was closed: nobody listens
            self.cancel()


@dataclass(eq=False)
class _Job:
    """Items to be scored for somebody; `scoring` is made by the engine's thread."""

    items: Sequence[Item]
    top: int
    entropy: bool
    reuse: bool = False
    future: Future[list[TokenScores]] = field(default_factory=Future)
    scoring: Scoring | None = None


class AsyncEngine:
    """A model and the thread that runs it.

    max_running    texts that are written at a time
    max_queue      requests that may wait behind them; more are refused with Overloaded
    cached_tokens  of texts that have ended and are kept for prompts that begin like them; None: half of what the
                   runtime holds, 0: none

    Nothing else may use the model's runtime until `close`.  An error of one request ends that request alone; an error
    of the runtime itself ends what runs, and the next request starts afresh.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_running: int = 64,
        max_queue: int = 256,
        cached_tokens: int | None = None,
        metrics: ServerMetrics | None = None,
    ):
        if max_running < 1 or max_queue < 0:
            raise ValueError(f"max_running must be at least 1 and max_queue 0, got {max_running} and {max_queue}")
        self.model, self.most = model, max_running + max_queue
        if isinstance(model.runtime, NativeRuntime):
            model.runtime.keep_processors()
        self.prefixes = PrefixCache(model.runtime, max_tokens=cached_tokens)
        self.metrics = metrics
        self._loop = model.loop(
            policy=AtMost(max_running), prefixes=self.prefixes, prefill_tokens=PREFILL_TOKENS,
            prefill_slowdown=PREFILL_SLOWDOWN,
        )  # fmt: skip
        self._begun: set[int] = set()
        self._lock = threading.Lock()
        self._live: dict[int, Ticket] = {}
        self._live_samples: dict[int, int] = {}
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Event()
        self._closing = False
        self.failure: Exception | None = None
        self._closed_because: LikelyError | None = None
        self.free_tokens = model.runtime.free_tokens()  # after the last turn, with what is only kept
        self._thread = threading.Thread(target=self._run, name="likely-engine", daemon=True)
        self._thread.start()

    # --- called from coroutines -----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests and scoring jobs on their way."""
        return len(self._live) + len(self._jobs)

    @property
    def running(self) -> int:
        """Requests whose texts are being written."""
        return len(self._begun)

    def check_room(self, count: int = 1) -> None:
        """Raise Overloaded unless `count` more requests are taken now."""
        if self.failure is not None or self._closing:
            raise self._ended()
        if self.waiting + count > self.most:
            raise Overloaded(self.most)

    def submit(self, request: Request) -> Ticket:
        """Start a request.  Raises at once if it is refused: Overloaded, or what `Loop.add` says."""
        ticket = Ticket(request, self._cancel)
        with self._lock:
            self.check_room()
            ticket.id = self._loop.add(request)
            self._live[ticket.id] = ticket
            self._live_samples[ticket.id] = request.samples
        if self.metrics is not None:
            self.metrics.prompt_tokens.inc(len(request.prompt))
        self._wake.set()
        return ticket

    async def score(
        self, items: Sequence[Item], *, top: int = 0, entropy: bool = False, reuse: bool = False
    ) -> list[TokenScores]:
        """Log-probabilities of given tokens, in turns with decoding.  Cancelling the caller drops the job.

        reuse  begin with what the prefix cache has of the first text, and leave the last one there: for texts that grow
        """
        job = _Job(items, top, entropy, reuse)
        with self._lock:
            self.check_room()
            self._jobs.append(job)
        self._wake.set()
        return await asyncio.wrap_future(job.future)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.id in self._live:
            self._loop.cancel(ticket.id)
            self._wake.set()

    def close(self, why: LikelyError | None = None) -> None:
        """Stop the thread, end what runs with `why` (EngineFailed), and free its room; the model stays open."""
        self._closed_because = self._closed_because or why
        self._closing = True
        self._wake.set()
        self._thread.join()

    # --- the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing and self.failure is None:
                self._wake.clear()
                if not self._turn():
                    self._wake.wait()
        except Exception as broken:  # nobody is to wait for a thread that has ended
            self.failure = broken
        self._fail_all(self._ended())

    def _ended(self) -> LikelyError:
        """What whoever asks or waits is told once the thread takes nothing more."""
        return self._closed_because or EngineFailed(f"the engine has stopped: {self.failure or 'it was closed'}")

    def _turn(self) -> bool:
        """One call for decoding and one for scoring; whether there is more to do."""
        try:
            if not self._fits():
                self._release_jobs()
            before = time.perf_counter()
            events = self._loop.step()
            if self.metrics is not None and self._loop.last_call is not None:
                written = sum(len(event.tokens) for event in events)
                self.metrics.observe_call(self._loop.last_call, written, time.perf_counter() - before)
            self._note_begun(events)
            self._publish(events)
        except Exception as error:
            self._fail_all(EngineFailed(f"the model's engine failed: {type(error).__name__}: {error}"))
        self._score_next()
        self.free_tokens = min(
            self.model.runtime.free_tokens() + self.prefixes.tokens, self.model.runtime.limits.tokens_held
        )
        return not self._loop.idle or bool(self._jobs)

    def _note_begun(self, events: Sequence[Event]) -> None:
        """Requests that began to run with this step, those that ended with it, too."""
        running = {each.id for each in self._loop.scheduler.running}
        if self.metrics is not None:
            now = time.perf_counter()
            for number in (running | {event.request for event in events if event.tokens}) - self._begun:
                if (ticket := self._live.get(number)) is not None:
                    self.metrics.queue_time.observe(now - ticket.submitted)
        self._begun = running

    def _publish(self, events: Sequence[Event]) -> None:
        news: dict[int, list[Event]] = {}
        for event in events:
            news.setdefault(event.request, []).append(event)
        for number, found in news.items():
            with self._lock:
                ticket = self._live.get(number)
                left = self._live_samples.get(number, 0) - sum(1 for event in found if event.finish)
                if left <= 0 or any(event.error for event in found):
                    self._live.pop(number, None)
                    self._live_samples.pop(number, None)
                else:
                    self._live_samples[number] = left
            if ticket is not None:
                if self.metrics is not None:
                    self.metrics.observe(ticket.submitted, number, found)
                ticket._deliver(found)

    def _score_next(self) -> None:
        """One call of the model for the job at the front, which then goes to the back."""
        for job in [job for job in list(self._jobs) if job.future.cancelled()]:
            self._end(job, None)
        if not self._jobs:
            return
        job = self._jobs[0]
        try:
            if job.scoring is None:
                job.scoring = self._begin(job)
            if job.scoring.waiting:
                limits, taken = self.model.runtime.limits, sum(self._live_samples.values()) + len(self._jobs)
                self.prefixes.make_room(min(limits.tokens_per_call, sum(len(item.tokens) for item in job.items)))
                job.scoring.step(leaves=max(1, limits.leaves - taken - self.prefixes.sequences))
            if not job.scoring.waiting:
                self._end(job, job.scoring.results)
            elif not self._fits():
                job.scoring.release()
        except KvFull as full:
            if self.prefixes.evict(full):
                return
            held = any(other.scoring.held for other in list(self._jobs) if other.scoring is not None)
            self._release_jobs()
            if self._loop.idle and not held:  # otherwise others will make room; if there are none, it never fits
                self._end(job, full)
        except Exception as error:
            self._end(job, error)
        with self._lock:
            if len(self._jobs) > 1 and self._jobs[0] is job:
                self._jobs.rotate(-1)

    def _begin(self, job: _Job) -> Scoring:
        if not (job.reuse and job.items):
            return Scoring(self.model.runtime, job.items, top=job.top, entropy=job.entropy)
        first = min(job.items, key=lambda item: item.tokens)
        with self.model.runtime.turn:
            held = self.prefixes.fork(first.tokens)
        begun = None if held is None else (held, first.tokens[: held.length])
        try:
            return Scoring(self.model.runtime, job.items, top=job.top, entropy=job.entropy, begun=begun, keep_last=True)
        except BaseException:
            if held is not None:
                self.model.runtime.close(held)
            raise

    def _keep(self, job: _Job) -> None:
        """What a scoring has computed goes to the prefix cache."""
        if job.scoring is None or not job.reuse:
            return
        shared = job.scoring.shared
        sequence, kept = job.scoring.hand_over()
        if sequence is not None:
            with self.model.runtime.turn:
                if not self.prefixes.keep(kept, sequence, shared=shared):
                    self.model.runtime.close(sequence)

    def _end(self, job: _Job, outcome: list[TokenScores] | Exception | None) -> None:
        """Take the job out, then tell who asked for it."""
        if isinstance(outcome, list):
            self._keep(job)
        if job.scoring is not None:
            job.scoring.release()
        with self._lock:
            self._jobs.remove(job)
        _settle(job.future, outcome)

    def _fits(self) -> bool:
        """Whether all decoding requests could run to their end beside what scoring jobs hold between their turns."""
        held = [job.scoring.held for job in list(self._jobs) if job.scoring is not None and job.scoring.held]
        if not held:
            return True
        runtime = self.model.runtime
        with self._lock:
            requests = [ticket.request for ticket in self._live.values()]
        most = sum(r.samples * min(longest_text(runtime), len(r.prompt) + r.max_tokens) for r in requests)
        limits = runtime.limits
        return (
            most + sum(held) + limits.tokens_per_call <= limits.tokens_held
            and sum(r.samples for r in requests) + len(held) + 1 <= limits.sequences
        )

    def _release_jobs(self) -> None:
        for job in list(self._jobs):
            if job.scoring is not None:
                job.scoring.release()

    def _fail_all(self, error: Exception) -> None:
        """End everything with this error and begin with an empty loop; if that fails, too, the engine has stopped."""
        with self._lock:
            tickets, jobs = list(self._live.values()), list(self._jobs)
            self._live.clear()
            self._live_samples.clear()
            self._jobs.clear()
            self._begun = set()
            if self.metrics is not None:
                self.metrics.forget()
            try:
                self._loop.close()
                with self.model.runtime.turn:
                    self.prefixes.clear()
            except Exception as broken:
                self.failure = broken
        for job in jobs:
            if job.scoring is not None:
                try:
                    job.scoring.release()
                except Exception as broken:
                    self.failure = broken
            _settle(job.future, error)
        for ticket in tickets:
            ticket._deliver([error])


def _settle(future: Future[list[TokenScores]], outcome: list[TokenScores] | Exception | None) -> None:
    """Give the future its outcome unless somebody cancelled it meanwhile."""
    if not future.set_running_or_notify_cancel() or outcome is None:
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
