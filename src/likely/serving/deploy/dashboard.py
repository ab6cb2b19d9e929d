"""A Grafana dashboard of what `/metrics` has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WINDOW = "$__rate_interval"
ACROSS, TALL = 12, 8  # of a panel, in Grafana's grid of 24 columns


@dataclass(frozen=True)
class Panel:
    """A graph: (PromQL, legend) per line; unit as Grafana names it."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate(likely:{metric}[{WINDOW}]))"


def _share(part: str, whole: str) -> str:
    return f"{_rate(part)} / {_rate(whole)}"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    buckets = _rate(f"{metric}_bucket", "le")
    return tuple((f"histogram_quantile({q}, {buckets})", f"p{round(100 * q)}") for q in (0.5, 0.95))


PANELS = (
    Panel(
        "Requests", "short",
        (("likely:num_requests_running", "running"), ("likely:num_requests_waiting", "waiting")),
    ),
    Panel(
        "Tokens per second", "short",
        ((_rate("generation_tokens_total"), "written"), (_rate("prompt_tokens_total"), "of prompts")),
    ),
    Panel("Time to the first token", "s", _quantiles("time_to_first_token_seconds")),
    Panel("Time between tokens", "s", _quantiles("inter_token_latency_seconds")),
    Panel("Whole request", "s", _quantiles("e2e_request_latency_seconds")),
    Panel("Waiting in the queue", "s", _quantiles("request_queue_time_seconds")),
    Panel("Room for tokens", "percentunit", (("likely:kv_cache_usage_perc", "in use"),)),
    Panel(
        "Prompt tokens known from earlier texts", "percentunit",
        ((_share("prefix_cache_hits_total", "prefix_cache_queries_total"), "share"),),
    ),
    Panel(
        "Guessed tokens that the model took", "percentunit",
        ((_share("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"), "share"),),
    ),
    Panel("Guessed tokens per text and call", "short", (("likely:speculation_length", "lately"),)),
    Panel("Who answered chats with a threshold", "short", ((_rate("route_total", "route"), "{{route}}"),)),
    Panel("How texts ended", "short", ((_rate("request_success_total", "finished_reason"), "{{finished_reason}}"),)),
    Panel("Replies", "short", ((_rate("http_responses_total", "status"), "{{status}}"),)),
)  # fmt: skip


def grafana_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for the Prometheus data source once."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = [
        {
            "id": i + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": source,
            "gridPos": {"x": ACROSS * (i % 2), "y": TALL * (i // 2), "w": ACROSS, "h": TALL},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + n), "expr": expression, "legendFormat": legend, "datasource": source}
                for n, (expression, legend) in enumerate(panel.lines)
            ],
        }
        for i, panel in enumerate(PANELS)
    ]
    return {
        "uid": "likely",
        "title": "likely",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}],
        },
        "panels": panels,
    }
