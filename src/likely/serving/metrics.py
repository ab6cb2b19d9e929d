"""What an operator watches, as Prometheus reads it; names as vLLM has them, with our prefix."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from likely.decoding.loop import CallCounts
from likely.decoding.request import Event
from likely.errors import needs
from likely.serving.tools.report import EnergyMeter

with needs("prometheus-client", "serve"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LATELY = 0.05  # weight of a call in what is shown of the last ones
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ServerMetrics:
    """The metrics of one server, in a registry of their own; written by the engine's thread and the event loop."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"likely:{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"likely:{name}", text, buckets=buckets, registry=registry)

        self.time_to_first_token = histogram("time_to_first_token_seconds", "From submission to the first token", _LONG)
        self.inter_token = histogram("inter_token_latency_seconds", "Between tokens of one text", _SHORT)
        self.queue_time = histogram("request_queue_time_seconds", "Before a request began to run", _LONG)
        self.latency = histogram("e2e_request_latency_seconds", "From submission to the end of a text", _LONG)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("generation_tokens", "Tokens written")
        self.finished = counter("request_success", "Texts that ended, by their reason", "finished_reason")
        self.drafted = counter("spec_decode_num_draft_tokens", "Tokens that were guessed")
        self.accepted = counter("spec_decode_num_accepted_tokens", "Guessed tokens that the model took")
        self.accepted_per_position = counter(
            "spec_decode_num_accepted_tokens_per_pos", "Guessed tokens that the model took, by place", "position"
        )
        self.speculation_length = Gauge(
            "likely:speculation_length", "Guessed tokens per text and call, lately", registry=registry
        )
        self.iteration_tokens = histogram("iteration_tokens_total", "Tokens computed in a call", _SIZES)
        self.routes = counter("route", "Chats with a threshold, by who answered", "route")
        self.cost = counter("cost", "Of chats that a router decided about, by its prices")
        self.forms = counter("schema_valid", "Texts with a form: whether it was complete when they ended", "valid")
        self.tool_calls = counter("tool_calls", "Calls written, by what their schema said", "stage", "outcome")
        self.responses = counter("http_responses", "Replies, by path and status", "path", "status")
        self.goodput = Gauge(
            "likely:goodput_tokens_per_second", "Tokens written per second of calls", registry=registry
        )
        self._recent_tokens = self._recent_s = 0.0
        self._energy, self._used_j = EnergyMeter(), 0.0
        self._energy.__enter__()
        self.watch(
            "energy_joules", "Of the machine (rapl), or processor seconds of the server times 10 watts (estimate)",
            self._joules, total=True, labels={"source": self._energy.source},
        )  # fmt: skip
        self._length = 0.0
        self._last: dict[tuple[int, int], float] = {}  # (request, sample) -> when its last token came

    def watch(
        self, name: str, text: str, value: Callable[[], float], *, total: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """A number that is read when somebody asks for the metrics; total: one that only grows, with labels or not."""
        if total:
            self.registry.register(_Total(f"likely:{name}", text, value, labels or {}))
        else:
            Gauge(f"likely:{name}", text, registry=self.registry).set_function(value)

    def observe(self, submitted: float, request: int, events: Sequence[Event]) -> None:
        """News of one request, as they come."""
        now = time.perf_counter()
        for event in events:
            key = request, event.sample
            if event.tokens:
                last = self._last.get(key)
                if last is None:
                    self.time_to_first_token.observe(now - submitted)
                else:
                    for _ in event.tokens:
                        self.inter_token.observe((now - last) / len(event.tokens))
                self._last[key] = now
                for place in range(sum(event.drafted)):
                    self.accepted_per_position.labels(str(place)).inc()
                self.generation_tokens.inc(len(event.tokens))
            if event.finish:
                self._last.pop(key, None)
                self.finished.labels(event.finish.reason).inc()
                if event.finish.complete is not None:
                    self.forms.labels(str(event.finish.complete).lower()).inc()
                self.latency.observe(now - submitted)
                self.drafted.inc(event.finish.proposed)
                self.accepted.inc(event.finish.accepted)
            if event.error:
                self.finished.labels("error").inc()
                for known in [known for known in self._last if known[0] == request]:
                    del self._last[known]

    def observe_call(self, call: CallCounts, written: int, seconds: float) -> None:
        """One call of the model: tokens that it added to texts, seconds with all that followed from it."""
        self.iteration_tokens.observe(call.tokens)
        self._recent_tokens += LATELY * (written - self._recent_tokens)
        self._recent_s += LATELY * (seconds - self._recent_s)
        self.goodput.set(self._recent_tokens / max(self._recent_s, 1e-9))
        if call.decoding:
            self._length += LATELY * (call.drafted / call.decoding - self._length)
            self.speculation_length.set(self._length)

    def observe_tool_calls(self, count: int, *, complete: bool) -> None:
        """Calls that a text holds; where it was cut the last one is not whole."""
        whole = count if complete else count - 1
        for outcome, number in (("accepted", whole), ("cut", count - whole)):
            if number:
                self.tool_calls.labels("schema", outcome).inc(number)

    def _joules(self) -> float:
        self._energy.__exit__(None, None, None)
        self._used_j += self._energy.joules
        self._energy.__enter__()  # the machine's counters begin anew from time to time
        return self._used_j

    def forget(self) -> None:
        """All requests were broken off."""
        self._last.clear()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Total:
    """A counter whose value somebody else keeps."""

    def __init__(self, name: str, text: str, value: Callable[[], float], labels: Mapping[str, str]):
        from prometheus_client.core import CounterMetricFamily

        def make() -> CounterMetricFamily:
            if not labels:
                return CounterMetricFamily(name, text, value=value())
            family = CounterMetricFamily(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), value())
            return family

        self._make = make

    def collect(self) -> list:
        return [self._make()]
