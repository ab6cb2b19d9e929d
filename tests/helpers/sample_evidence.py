"""A result of a re-measured claim, whole and valid."""

from __future__ import annotations

from scripts import script

from likely.evidence import Evidence

FIGURE = {
    "subject": "engine", "quantity": "p50", "value": 0.5, "low": 0.4, "high": 0.6, "unit": "nats", "n": 10,
    "of": "tokens",
}  # fmt: skip
CHECK = {"statement": "small enough", "value": 0.5, "bound": 1.0, "unit": "nats"}


def evidence(**changes) -> Evidence:
    record = {
        "id": "trial", "title": "A trial", "claim": "It is small.", "paper_figure": "0.4", "ours": "0.5 nats",
        "figures": [FIGURE], "checks": [CHECK], "samples": "10 tokens", "intervals": "95 %, bootstrap",
        "mode": "quick", "models": [{"name": "m.gguf", "sha256": "a" * 64}], "data": [],
        "command": "python reproductions/trial.py", "threads": 1, "seconds": 1.0,
        "not_shown": ["large models"], **script("study").surroundings(),
    }  # fmt: skip
    return Evidence(**{**record, **changes})
