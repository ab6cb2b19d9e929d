"""One self-contained page of a query's run: its text with every hole in place, what was asked of it, what it cost.

Like `html.page`: no script, nothing loaded, one style sheet allowed by its hash, every text made visible and escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from likely.show.colours import level_of
from likely.show.html import _data, _style, opening
from likely.show.tokens import visible

_MORE = """
.run { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
.hole { border-radius: .25rem; padding: .1rem .15rem; border: 1px solid var(--line); forced-color-adjust: none; }
.hole sup { font-size: .6875rem; opacity: .85; }
.nested { opacity: .65; }
.texts { grid-template-columns: 1fr; }
"""


def query_page(results: Sequence[Any], *, title: str, origin: Mapping[str, Any] | None = None) -> str:
    """The page of one or several runs (`guided.query.QueryResult`)."""
    parts = opening(title, _style() + _MORE, origin)
    if results:
        source = escape(visible(results[0].trace.query))
        parts.append(f'<details><summary>Query</summary><pre dir="auto">{source}</pre></details>')
    parts += ["</header>", '<main class="texts">']
    parts += [_article(result, number) for number, result in enumerate(results, 1)]
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _article(result: Any, number: int) -> str:
    cost = result.cost
    numbers = {
        "model queries": cost.model_queries, "decoder calls": cost.decoder_calls,
        "billable tokens": cost.billable_tokens, "tokens computed": cost.forward_tokens,
    }  # fmt: skip
    costs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    costs += f"<div><dt>log weight</dt><dd>{_data(result.log_weight)}</dd></div>"
    settings = result.trace.settings
    about = f"{settings['decoder']['name']}, seed {result.trace.seed}, run {result.trace.sample}"
    text = "".join(_piece(event) for event in result.trace.events)
    return (
        f'<article aria-labelledby="h{number}"><h2 id="h{number}">Run {number}</h2><p class="soft">{escape(about)}</p>'
        f'<dl>{costs}</dl><div class="run" dir="auto">{text}</div>{_distribution(result)}{_table(result)}</article>'
    )


def _piece(event: Any) -> str:
    """A piece of the text; a hole is coloured by its mean log-probability."""
    shown = escape(visible(event.text))
    if event.depth:
        return f'<span class="nested">{shown}</span>' if event.text else ""
    if event.kind == "text":
        return shown
    if event.kind not in ("hole", "distribution", "nested"):
        return ""
    mean = _mean(event)
    level = "" if mean is None else f" l{level_of(mean)}"
    return f'<span class="hole{level}">{shown}<sup>{escape(event.name)}</sup></span>'


def _mean(event: Any) -> float | None:
    if event.kind == "distribution":
        return math.log(max(event.probabilities[event.text], 1e-300))
    return event.logprob / len(event.logprobs) if event.logprobs else None


def _distribution(result: Any) -> str:
    if not result.distribution:
        return ""
    rows = "".join(
        f"<tr><td><code><bdi>{escape(visible(value))}</bdi></code></td><td class=n>{_data(p)}</td></tr>"
        for value, p in sorted(result.distribution.items(), key=lambda item: -item[1])
    )
    head = '<tr><th scope="col">value</th><th scope="col" class=n>probability</th></tr>'
    table = f"<table><caption>Distribution</caption><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table(result: Any) -> str:
    heads = ("#", "hole", "text", "where", "ended by", "tokens", "logprob", "log weight")
    numeric = {"#", "tokens", "logprob", "log weight"}
    head = "".join(f'<th scope="col"{" class=n" if name in numeric else ""}>{name}</th>' for name in heads)
    rows = []
    for place, event in enumerate((e for e in result.trace.events if e.kind == "hole"), 1):
        weight = _data(float(sum(event.log_masses))) if event.log_masses else ""
        rows.append(
            f"<tr><td class=n>{place}</td><td>{escape(event.name)}</td>"
            f"<td><code><bdi>{escape(visible(event.text))}</bdi></code></td><td><code>{escape(visible(event.where))}</code></td>"
            f"<td>{escape(event.reason)}{' (approximate masks)' if event.approximate else ''}</td>"
            f"<td class=n>{len(event.tokens)}</td><td class=n>{_data(event.logprob)}</td><td class=n>{weight}</td></tr>"
        )
    return (
        '<details><summary>Table of the holes</summary><div class="scroll"><table>'
        "<caption>logprob: of the model, in nats; "
        f"log weight: log-probability of what the conditions allowed</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
