"""A discrete-event simulator of serving: the loop and scheduler of the server on a virtual clock, without a model.

A call takes the seconds that a `StepCost` predicts, a drafted token is accepted with a given probability, and requests
come from a trace or a Poisson process.  Everything else is the code that serves real models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from likely.decoding.drafting.budget.controller import Controller
from likely.decoding.drafting.protocol import FIXED_ONLY, Draft, SamplingContext
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.decoding.scheduling import AtMost
from likely.errors import KvFull
from likely.metrics.checks import Floats
from likely.runtimes.protocol import Capabilities, Limits, Output, Path, Work
from likely.runtimes.protocol import Sequence as Held
from likely.runtimes.step_cost import StepCost
from likely.runtimes.turns import Turn

WRONG, RIGHT = 0, 1  # the whole vocabulary: every text is RIGHT RIGHT RIGHT ...


class VirtualClock:
    """Seconds that pass only when somebody spends them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class SimulatedRuntime:
    """A Runtime whose calls compute nothing and take the seconds that `cost` predicts; it counts the tokens held.

    jitter  standard deviation of the logarithm of what a call takes beside the prediction
    """

    def __init__(
        self,
        cost: StepCost,
        clock: VirtualClock,
        *,
        context_length: int = 16_384,
        tokens_held: int = 2**22,
        tokens_per_call: int = 2048,
        jitter: float = 0.0,
        seed: int = 0,
    ):
        self.vocab_size, self.context_length, self.revision, self.turn = 2, context_length, "simulated", Turn()
        self.capabilities = Capabilities(trees=True, fork=True, truncate=True, invariant_logits=True)
        self.limits = Limits(2**16, 2**20, tokens_held, tokens_per_call)
        self.cost, self.clock, self.calls, self.held = cost, clock, 0, 0
        self._jitter, self._rng = jitter, np.random.default_rng(seed)
        self._outputs: dict[int, Output] = {}

    def open(self) -> Held:
        return Held()

    def fork(self, sequence: Held, length: int | None = None) -> Held:
        copy = Held(sequence.length if length is None else length)
        self._take(copy.length)
        return copy

    def forward(self, work: Sequence[Work]) -> list[Output]:
        count = sum(len(item.tokens) for item in work)
        self._take(count)
        seconds = float(self.cost.seconds(len(work), count, sum(item.sequence.length for item in work)))
        if self._jitter:
            seconds *= float(np.exp(self._jitter * self._rng.standard_normal()))
        self.clock.spend(seconds)
        self.calls += 1
        for item in work:
            if item.parents is None:
                item.sequence.length += len(item.tokens)
            else:
                item.sequence.parents.extend(item.parents.tolist())
        return [self._rows(len(item.want.row_numbers(len(item.tokens)))) for item in work]

    def commit(self, accepted: Iterable[tuple[Held, Path]]) -> None:
        for sequence, path in accepted:
            self.held -= sequence.pending - len(path)
            sequence.length += len(path)
            sequence.parents = []

    def truncate(self, sequence: Held, length: int) -> None:
        self.held -= sequence.length + sequence.pending - length
        sequence.length, sequence.parents = length, []

    def close(self, sequence: Held) -> None:
        if not sequence.closed:
            self.truncate(sequence, 0)
            sequence.closed = True

    def free_tokens(self) -> int:
        return self.limits.tokens_held - self.held

    def shutdown(self) -> None:
        """Nothing is kept outside of its sequences."""

    def _take(self, tokens: int) -> None:
        if tokens > self.free_tokens():
            raise KvFull(tokens, self.free_tokens())
        self.held += tokens

    def _rows(self, count: int) -> Output:
        if count not in self._outputs:
            self._outputs[count] = Output(
                top_ids=np.full((count, 1), RIGHT, np.int64), top_logprobs=np.zeros((count, 1), np.float32)
            )
        return self._outputs[count]


class BernoulliDrafts:
    """DraftSource: chains whose tokens are right with probability α, independently; without a cost, or with one.

    alpha   one number, or one per position of a draft
    cost    of a call that extends the drafts of all texts by one token; None: drafts are free, as copying is
    spread  > 0: every text has its own α, from a Beta distribution around alpha with this standard deviation
    found   share of the steps in which there is a draft at all (copying finds nothing to copy)
    """

    distributions = FIXED_ONLY

    def __init__(
        self,
        alpha: float | Sequence[float],
        *,
        clock: VirtualClock,
        cost: StepCost | None = None,
        spread: float = 0.0,
        found: float = 1.0,
        seed: int = 0,
    ):
        self.name, self.free, self.clock, self.cost = "bernoulli", cost is None, clock, cost
        self.alpha = np.atleast_1d(np.asarray(alpha, np.float64))
        if not ((self.alpha >= 0) & (self.alpha <= 1)).all() or not 0 <= found <= 1:
            raise ValueError(f"alpha and found must lie in [0, 1], got {alpha} and {found}")
        mean = float(self.alpha.mean())
        if spread and not 0 < spread**2 < mean * (1 - mean):
            raise ValueError(f"a spread of {spread} is impossible around {mean:g}")
        self.spread, self.found, self._rng = spread, found, np.random.default_rng(seed)
        if cost is not None:
            self.propose_many = self._propose_many

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> BernoulliDrafter:
        alpha = self.alpha
        if self.spread:
            mean = float(alpha.mean())
            size = mean * (1 - mean) / self.spread**2 - 1
            alpha = np.atleast_1d(self._rng.beta(mean * size, (1 - mean) * size))
        return BernoulliDrafter(self, alpha)

    def chain(self, alpha: Floats, k: int) -> Draft:
        if self.found < 1 and self._rng.random() >= self.found:
            return Draft.chain([])
        rates = alpha[np.minimum(np.arange(k), len(alpha) - 1)]
        return Draft.chain((self._rng.random(k) < rates).astype(int).tolist(), match=8)

    def _propose_many(self, drafters: Sequence[BernoulliDrafter], budgets: Sequence[int]) -> list[Draft]:
        assert self.cost is not None
        left = sorted(budgets, reverse=True)
        for level in range(max(budgets, default=0)):
            while left and left[-1] <= level:
                left.pop()
            context = sum(drafter.length for drafter in drafters[: len(left)])
            self.clock.spend(float(self.cost.seconds(len(left), len(left), context)))
        return [drafter.draft(budget) for drafter, budget in zip(drafters, budgets, strict=True)]


class BernoulliDrafter:
    """Of one text."""

    def __init__(self, source: BernoulliDrafts, alpha: Floats):
        self.source, self.alpha, self.length = source, alpha, 0

    def draft(self, budget: int) -> Draft:
        return self.source.chain(self.alpha, budget)

    def propose(self, budget: int) -> Draft:
        return self.draft(budget)

    def observe(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)

    def fork(self, context: SamplingContext) -> BernoulliDrafter:
        copy = BernoulliDrafter(self.source, self.alpha)
        copy.length = self.length
        return copy

    def rollback(self, n: int) -> None:
        self.length -= n

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Arrival:
    """A request that comes at a time, with a prompt and an answer of these lengths."""

    at_s: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"an arrival needs a time >= 0 and lengths >= 1, got {self}")


def poisson_arrivals(rate: float, count: int, *, lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[Arrival]:
    """`count` arrivals of a Poisson process of `rate` per second; (prompt, output) lengths are drawn from a list."""
    if not rate > 0:
        raise ValueError(f"the rate must be > 0, got {rate}")
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, count))
    picks = rng.integers(0, len(lengths), count)
    return [Arrival(float(t), *lengths[int(i)]) for t, i in zip(times, picks, strict=True)]


@dataclass(frozen=True)
class RequestTiming:
    """When a simulated request came, began to run, had its first token, and ended."""

    arrival: Arrival
    begun_s: float
    first_token_s: float
    end_s: float

    @property
    def latency_s(self) -> float:
        return self.end_s - self.arrival.at_s

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_token_s - self.arrival.at_s

    @property
    def waiting_s(self) -> float:
        return self.begun_s - self.arrival.at_s


@dataclass(frozen=True)
class ServedLoad:
    """What a simulated load was like for those who sent it; requests in the order of arrival.

    seconds  virtual time from the first arrival to the last token;  calls: of the model
    drafted, accepted  tokens;  most_waiting, most_running: requests at one time
    """

    requests: list[RequestTiming]
    seconds: float
    calls: int
    drafted: int
    accepted: int
    most_waiting: int
    most_running: int

    def latencies(self) -> Floats:
        """(N,) seconds from arrival to the last token."""
        return np.array([each.latency_s for each in self.requests])

    def summary(self) -> dict[str, float]:
        """Means and 95 % quantiles in seconds, and tokens per second."""
        latency = self.latencies()
        first = np.array([each.time_to_first_token_s for each in self.requests])
        waiting = np.array([each.waiting_s for each in self.requests])
        tokens = sum(each.arrival.output_tokens for each in self.requests)
        return {
            "latency_s": float(latency.mean()),
            "latency_p95_s": float(np.quantile(latency, 0.95)),
            "time_to_first_token_s": float(first.mean()),
            "waiting_s": float(waiting.mean()),
            "waiting_max_s": float(waiting.max()),
            "tokens_per_s": tokens / self.seconds,
            "tokens_per_call": tokens / self.calls,
            "accepted_share": self.accepted / self.drafted if self.drafted else 0.0,
        }


@dataclass
class _Times:
    arrival: Arrival
    begun_s: float = -1.0
    first_token_s: float = -1.0


@dataclass(frozen=True)
class SimulatedServer:
    """A server to simulate: what its calls cost, how it schedules, and how it drafts.

    draft_alpha   acceptance of drafted tokens (see `BernoulliDrafts`, also for draft_spread); None: no drafter
    draft_cost    of a call of the draft model; None: drafts are free
    draft_budget  as `lm.generate` takes it: "auto", "off" or a number
    profiled      whether the controller knows `cost` beforehand, as after likely profile; else it learns from zero
    """

    cost: StepCost
    draft_alpha: float | tuple[float, ...] | None = None
    draft_cost: StepCost | None = None
    draft_spread: float = 0.0
    draft_budget: int | Literal["auto", "off"] = "auto"
    granularity: Literal["request", "batch"] = "request"
    max_running: int = 64
    prefill_tokens: int = 512
    prefill_slowdown: float = 0.0
    step_tokens: int = 2048
    tokens_held: int = 2**22
    jitter: float = 0.0
    profiled: bool = True

    def serve(self, arrivals: Iterable[Arrival], *, controller: Controller | None = None, seed: int = 0) -> ServedLoad:
        """Every request of the load, to its end; controller: one that an earlier load has taught."""
        load = sorted(arrivals, key=lambda each: each.at_s)
        if not load:
            raise ValueError("a load needs at least one request")
        known = Controller(step=self.cost if self.profiled else None, granularity=self.granularity)
        return _Run(self, controller or known, seed).through(load)


@dataclass(eq=False)
class _Run:
    """One load on one server."""

    server: SimulatedServer
    controller: Controller
    seed: int
    clock: VirtualClock = field(default_factory=VirtualClock)
    times: dict[int, _Times] = field(default_factory=dict)

    def through(self, load: Sequence[Arrival]) -> ServedLoad:
        server, clock = self.server, self.clock
        longest = max(each.prompt_tokens + each.output_tokens for each in load) + 1
        runtime = SimulatedRuntime(
            server.cost, clock, context_length=longest, tokens_held=server.tokens_held,
            tokens_per_call=server.step_tokens, jitter=server.jitter, seed=self.seed,
        )  # fmt: skip
        loop = Loop(
            runtime, lambda token: b"", frozenset(), controller=self.controller, policy=AtMost(server.max_running),
            prefill_tokens=server.prefill_tokens, prefill_slowdown=server.prefill_slowdown, clock=clock,
        )  # fmt: skip
        drafts = None
        if server.draft_alpha is not None:
            drafts = BernoulliDrafts(
                server.draft_alpha, clock=clock, cost=server.draft_cost, spread=server.draft_spread, seed=self.seed
            )
        greedy, at = Sampling(temperature=0.0), 0
        done: dict[int, RequestTiming] = {}
        drafted = accepted = most_waiting = most_running = 0
        begun: set[int] = set()
        while at < len(load) or not loop.idle:
            if loop.idle:
                clock.now = max(clock.now, load[at].at_s)
            while at < len(load) and load[at].at_s <= clock.now:
                each = load[at]
                number = loop.add(
                    Request(
                        (RIGHT,) * each.prompt_tokens, greedy, max_tokens=each.output_tokens, drafter=drafts,
                        draft_budget=server.draft_budget,
                    )
                )  # fmt: skip
                self.times[number] = _Times(each)
                at += 1
            before = clock.now
            events = loop.step()
            running = {active.id for active in loop.scheduler.running} | {event.request for event in events}
            for number in running - begun:
                self.times[number].begun_s = before
            begun = running
            most_waiting = max(most_waiting, len(loop.scheduler.waiting))
            most_running = max(most_running, len(running))
            for event in events:
                if event.error:
                    raise event.error
                of = self.times[event.request]
                if of.first_token_s < 0:
                    of.first_token_s = clock.now
                if event.finish:
                    drafted += event.finish.proposed
                    accepted += event.finish.accepted
                    done[event.request] = RequestTiming(of.arrival, of.begun_s, of.first_token_s, clock.now)
                    del self.times[event.request]
                    begun.discard(event.request)
        timings = [done[number] for number in sorted(done)]
        return ServedLoad(
            timings, clock.now - load[0].at_s, runtime.calls, drafted, accepted, most_waiting, most_running
        )
