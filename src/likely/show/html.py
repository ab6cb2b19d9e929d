"""One self-contained page: a heat map of tokens per text, or a query's run, with details and a table of all numbers.

A page has no script and loads nothing; its Content-Security-Policy allows one style sheet, by its hash.  Details are
plain elements that CSS shows.  Every text from a model or a user is made visible and escaped; exact values stand in
<data value="...">.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from likely.show.colours import DARK, LIGHT, Cell, legend, legend_probability, level_of
from likely.show.tokens import EMPTY, Shown, Token, one_line, probability, visible

_BYTES = re.compile(r" ?(\\x[0-9a-f]{2})+")  # what a tokenizer writes for bytes that are no character by themselves
_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1a1a1a; --soft: #5c5c5c; --line: #d4d4d0;
  --focus: #0b57d0; @@light@@ }
@media (prefers-color-scheme: dark) { :root { --page: #111111; --card: #1b1b1b; --ink: #ededed; --soft: #a9a9a9;
  --line: #3d3d3d; --focus: #8ab4f8; @@dark@@ } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem 1rem 13rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .875rem; margin: 0; overflow-wrap: anywhere; }
pre { margin: .5rem 0 0; padding: .5rem .75rem; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; font: .875rem/1.5 ui-monospace, monospace; max-height: 16rem;
  overflow: auto; }
summary { cursor: pointer; padding: .25rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem; list-style: none; margin: 1rem 0; padding: 0;
  font-size: .8125rem; align-items: center; }
.legend li { padding: .1rem .5rem; border-radius: .25rem; border: 1px solid var(--line); white-space: nowrap; }
.legend li:first-child { border: 0; padding-left: 0; }
.texts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  align-items: start; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  min-width: 0; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: .5rem 0; }
dl div { display: flex; gap: .4rem; align-items: baseline; }
dt { color: var(--soft); font-size: .875rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: .5rem 0; }
.t { border-radius: .2rem; padding: .15rem 0; box-shadow: inset -1px 0 0 var(--line); cursor: help;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; forced-color-adjust: none;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.legend li { forced-color-adjust: none; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.t:hover, .t:focus { outline: 2px solid var(--focus); outline-offset: 1px; }
.tip { display: none; position: fixed; z-index: 1; left: 0; right: 0; bottom: 0; padding: .6rem 1rem .8rem;
  background: var(--card); color: var(--ink); border-top: 2px solid var(--focus); white-space: normal;
  font-size: .875rem; line-height: 1.45; max-height: min(12.5rem, 45vh); overflow: auto; cursor: default; }
.t:focus > .tip { display: block; }
.t:hover > .tip { display: block; z-index: 2; }
.tip b { font: 600 1rem ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tip .row { display: flex; flex-wrap: wrap; gap: 0 1.25rem; }
.tip .alternatives { display: flex; flex-wrap: wrap; gap: .25rem .5rem; margin-top: .3rem; }
.tip .alternatives > span { border: 1px solid var(--line); border-radius: .25rem; padding: 0 .4rem; }
.tip .alternatives > .taken { border-color: var(--focus); border-width: 2px; }
code { font: .8125rem ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; background: var(--page);
  border-radius: .2rem; padding: .05rem 0; }
td code { white-space: pre; overflow-wrap: normal; }
td .one { display: block; white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; }
a { color: var(--focus); }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; }
@@cells@@
@media print { .tip { display: none !important; } body { padding-bottom: 1rem; } }
"""


def page(
    texts: Sequence[Shown], *, title: str, prompt: str | None = None, origin: Mapping[str, Any] | None = None
) -> str:
    """The whole page.

    prompt   what the texts continue, shown above them
    origin   what the numbers depend on (model, runtime, hashes ...), one line at the top
    """
    parts = opening(title, page_style(), origin)
    if prompt is not None:
        shown_prompt = visible(prompt) or "(empty: a text begins here)"
        parts.append(f'<details open><summary>Prompt</summary><pre dir="auto">{escape(shown_prompt)}</pre></details>')
    parts += [legend_list(), "</header>", '<main class="texts">']
    parts += [_article(text, number) for number, text in enumerate(texts, 1)]
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def opening(title: str, style: str, origin: Mapping[str, Any] | None) -> list[str]:
    """The lines of a page down to its heading: nothing may be loaded, and only this style sheet is applied."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    heading = escape(one_line(title))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{heading}</title>",
        f"<style>{style}</style></head><body>",
        f'<header><h1 dir="auto">{heading}</h1>',
    ]
    if origin:
        parts.append(f'<p class="soft">{escape(" · ".join(_origin(origin)))}</p>')
    return parts


def _origin(origin: Mapping[str, Any]) -> Iterator[str]:
    for name, value in origin.items():
        if value is not None:
            text = str(value)
            short = f"{text[:12]}…" if name in ("sha256", "tokenizer") and len(text) > 12 else one_line(text)
            yield f"{name} {short}"


def page_style() -> str:
    """The style sheet of every page."""

    def variables(cells: Sequence[Cell]) -> str:
        return " ".join(f"--b{k}: {cell.background}; --t{k}: {cell.text};" for k, cell in enumerate(cells))

    cells = "\n".join(f".l{k} {{ background: var(--b{k}); color: var(--t{k}); }}" for k in range(len(LIGHT)))
    return (
        _STYLE.replace("@@light@@", variables(LIGHT)).replace("@@dark@@", variables(DARK)).replace("@@cells@@", cells)
    )


def legend_list() -> str:
    """What the colours mean."""
    items = [
        f'<li class="l{level}">{escape(nats)} <small>(p {escape(p)})</small></li>'
        for level, (nats, p) in enumerate(zip(legend(), legend_probability(), strict=True))
    ]
    return '<ul class="legend" aria-label="Colours"><li>logprob, nats</li>' + "".join(items) + "</ul>"


def _article(text: Shown, number: int) -> str:
    mean = "none" if text.mean_logprob is None else _data(text.mean_logprob)
    note = f'<p class="soft">{escape(text.note)}</p>' if text.note else ""
    return (
        f'<article aria-labelledby="h{number}"><h2 id="h{number}" dir="auto">'
        f"{escape(one_line(text.title, 120)) or '(empty text)'}</h2>{note}"
        f"<dl><div><dt>sum</dt><dd>{_data(text.sequence_logprob)}</dd></div>"
        f"<div><dt>mean</dt><dd>{mean}</dd></div><div><dt>tokens</dt><dd>{len(text.tokens)}</dd></div></dl>"
        f'<a class="skip" href="#table{number}">Skip to the table</a>'
        f'<div class="tokens" dir="auto">{token_cells(text.tokens)}</div>{_table(text, number)}</article>'
    )


def token_cells(tokens: Sequence[Token]) -> str:
    """Tokens in their colours, each with its details."""
    return "".join(_cell(token, place) for place, token in enumerate(tokens, 1))


def _cell(token: Token, place: int) -> str:
    alternatives = ""
    if token.alternatives:
        taken = token.rank
        entries = "".join(
            f"<span{' class=taken' if rank == taken else ''}>{rank}. {_code(top.text)} "
            f"{probability(top.logprob)}</span>"
            for rank, top in enumerate(_ordered(token), 1)
        )
        alternatives = f'<span class="alternatives">{entries}</span>'
    direction = ' dir="ltr"' if _BYTES.fullmatch(token.text) else ""
    numbers = "".join(f"<span>{name} {value}</span>" for name, value in _numbers(token))
    return (
        f'<span class="t l{level_of(token.logprob)}" tabindex="0"{direction}>{_text(token.text)}'
        f'<span class="tip" dir="ltr"><span class="row"><b><bdi>{_text(token.text)}</bdi></b><span>token {place}</span>'
        f"{numbers}</span>{alternatives}</span></span>"
    )


def _numbers(token: Token) -> Iterator[tuple[str, str]]:
    yield "logprob", _data(token.logprob)
    yield "p", probability(token.logprob)
    if token.alternatives:
        yield "rank", _rank(token)
    if token.entropy is not None:
        yield "entropy", _data(token.entropy)


def _ordered(token: Token) -> list[Any]:
    return sorted(token.alternatives, key=lambda top: -top.logprob)


def _rank(token: Token) -> str:
    if token.rank is not None:
        return str(token.rank)
    return f"&gt; {len(token.alternatives)}" if token.alternatives else ""


def _table(text: Shown, number: int) -> str:
    some = any(token.alternatives for token in text.tokens)
    entropies = any(token.entropy is not None for token in text.tokens)
    heads = ["#", "token", "logprob", "p"] + ["rank"] * some + ["entropy"] * entropies + ["alternatives (p)"] * some
    rows = []
    for place, token in enumerate(text.tokens, 1):
        cells = [str(place), _code(token.text), _data(token.logprob), probability(token.logprob)]
        if some:
            cells.append(_rank(token))
        if entropies:
            cells.append("" if token.entropy is None else _data(token.entropy))
        if some:
            cells.append(
                " ".join(
                    f'<span class="one">{_code(top.text)} {probability(top.logprob)}</span>' for top in _ordered(token)
                )
            )
        rows.append(cells)
    table = html_table("Token by token; logprob and entropy in nats", heads, rows)
    return f'<details id="table{number}"><summary>Table of the tokens</summary>{table}</details>'


_NUMBERS = {"#", "logprob", "p", "rank", "entropy", "tokens", "log weight", "probability"}  # columns set to the right


def html_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    numeric = [" class=n" if head in _NUMBERS else "" for head in heads]
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(heads, numeric, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, numeric, strict=True))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _code(text: str) -> str:
    return f"<code><bdi>{_text(text)}</bdi></code>"


def _text(text: str) -> str:
    return escape(visible(text)) or EMPTY


def _data(value: float) -> str:
    """Four decimals for the eye, the exact value for a program."""
    return f'<data value="{value!r}">{value:.4f}</data>'


# --- a query's run: its text with every hole in place, what was asked of it, what it cost ---

_QUERY_STYLE = """
.run { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
.hole { border-radius: .25rem; padding: .1rem .15rem; border: 1px solid var(--line); forced-color-adjust: none; }
.hole sup { font-size: .6875rem; opacity: .85; }
.nested { opacity: .65; }
.texts { grid-template-columns: 1fr; }
"""


def query_page(results: Sequence[Any], *, title: str, origin: Mapping[str, Any] | None = None) -> str:
    """The page of one or several runs (`likely.queries.QueryResult`)."""
    parts = opening(title, page_style() + _QUERY_STYLE, origin)
    if results:
        source = escape(visible(results[0].trace.query))
        parts.append(f'<details><summary>Query</summary><pre dir="auto">{source}</pre></details>')
    parts += ["</header>", '<main class="texts">']
    parts += [_run_article(result, number) for number, result in enumerate(results, 1)]
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


def _run_article(result: Any, number: int) -> str:
    cost = result.cost
    numbers = {
        "model queries": cost.model_queries, "decoder calls": cost.decoder_calls,
        "billable tokens": cost.billable_tokens, "tokens computed": cost.forward_tokens,
    }  # fmt: skip
    costs = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in numbers.items())
    costs += f"<div><dt>log weight</dt><dd>{_data(result.log_weight)}</dd></div>"
    settings = result.trace.settings
    about = f"{settings['decoder']['name']}, seed {result.trace.seed}, run {result.trace.sample}"
    text = "".join(_event_text(event) for event in result.trace.events)
    return (
        f'<article aria-labelledby="h{number}"><h2 id="h{number}">Run {number}</h2><p class="soft">{escape(about)}</p>'
        f'<dl>{costs}</dl><div class="run" dir="auto">{text}</div>'
        f"{_distribution_table(result)}{_table_of_holes(result)}</article>"
    )


def _event_text(event: Any) -> str:
    """A piece of the text; a hole is coloured by its mean log-probability."""
    shown = escape(visible(event.text))
    if event.depth:
        return f'<span class="nested">{shown}</span>' if event.text else ""
    if event.kind == "text":
        return shown
    if event.kind not in ("hole", "distribution", "nested"):
        return ""
    mean = _mean_logprob(event)
    level = "" if mean is None else f" l{level_of(mean)}"
    return f'<span class="hole{level}">{shown}<sup>{escape(event.name)}</sup></span>'


def _mean_logprob(event: Any) -> float | None:
    if event.kind == "distribution":
        return math.log(max(event.probabilities[event.text], 1e-300))
    return event.logprob / len(event.logprobs) if event.logprobs else None


def _distribution_table(result: Any) -> str:
    if not result.distribution:
        return ""
    ordered = sorted(result.distribution.items(), key=lambda item: -item[1])
    return html_table("Distribution", ("value", "probability"), [(_code(value), _data(p)) for value, p in ordered])


def _table_of_holes(result: Any) -> str:
    rows = [
        (
            str(place), escape(event.name), _code(event.text), f"<code>{escape(visible(event.where))}</code>",
            escape(event.reason) + (" (approximate masks)" if event.approximate else ""), str(len(event.tokens)),
            _data(event.logprob), _data(float(sum(event.log_masses))) if event.log_masses else "",
        )
        for place, event in enumerate((e for e in result.trace.events if e.kind == "hole"), 1)
    ]  # fmt: skip
    caption = "logprob: of the model, in nats; log weight: log-probability of what the conditions allowed"
    heads = ("#", "hole", "text", "where", "ended by", "tokens", "logprob", "log weight")
    return f"<details><summary>Table of the holes</summary>{html_table(caption, heads, rows)}</details>"
