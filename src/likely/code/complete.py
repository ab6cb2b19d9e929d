"""Code at a cursor, held by monitors: `Model.complete_code`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np

from likely.code.analysis.members import Analyses, MemberProvider
from likely.code.buffer import CodeBuffer
from likely.code.ends import LineEnd, MethodEnd, NoEnd
from likely.code.exact_choice import NameScorer
from likely.code.monitors.arity import ArityMonitor
from likely.code.monitors.monitor import AcrossTrigger, Choose, Monitor, MonitorConstraint, MonitorQuestion
from likely.code.monitors.penalty import MonitorPenalty
from likely.code.monitors.triggers import DereferenceMonitor, EnumCaseMonitor, InstantiationMonitor
from likely.code.name_masks import masks_for
from likely.decoding.options import SamplingOptions
from likely.decoding.request import Finished, longest_text
from likely.decoding.run import events
from likely.errors import CapabilityError, nearest
from likely.tokenizers.protocol import begin

if TYPE_CHECKING:
    from likely.decoding.drafting.protocol import DraftSource

ENDS = {"line": LineEnd, "method": MethodEnd, "none": NoEnd}
MONITORS = {
    "dereference": DereferenceMonitor, "arity": ArityMonitor, "enum_case": EnumCaseMonitor,
    "instantiation": InstantiationMonitor,
}  # fmt: skip


class CodeOptions(SamplingOptions, total=False):
    """Of `Model.generate`: how the code is sampled (temperature: here 0), and what drafts it."""

    min_tokens: int
    stop_tokens: Sequence[int]
    drafter: str | DraftSource | None
    draft_budget: int | Literal["auto", "off"]
    verification: Literal["keyed", "rejection"]
    top_logprobs: int
    processed_logprobs: bool


@dataclass(frozen=True)
class TriggerEvent:
    """One place where a monitor asked for legal names.

    position  character offset in the completed file at which the name begins
    n_legal   how many names were legal; None: no constraint (status says why)
    seconds   that the analysis took;  status: "answered", "unknown", "timed out", "failed"
    chosen    the name that was written
    """

    position: int
    n_legal: int | None
    seconds: float
    chosen: str
    monitor: str = "dereference"
    status: str = "answered"


@dataclass(frozen=True)
class CodeCompletion:
    """Code that was written at the cursor.

    logprob      log p(text) of the model itself, nats, over the tokens that hold some of it
    log_weight   sum over these tokens of the log of the model's probability of what was legal: log p = log q +
                 log_weight, q the distribution that was sampled (temperature 1).  None with policy="soft"
    approximate  some token was judged only when it was chosen, so that log_weight is an upper bound
    finish_reason  "line", "method", or as in `Generation`
    analyses     how many questions ended with each status
    """

    text: str
    logprob: float
    log_weight: float | None
    triggers: list[TriggerEvent]
    token_ids: list[int]
    finish_reason: str
    seconds: float
    approximate: bool = False
    analyses: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def complete_code(
    model: Any,
    buffer: CodeBuffer,
    *,
    monitors: Sequence[str | Monitor] = ("dereference",),
    provider: MemberProvider | Analyses | None = None,
    max_tokens: int = 128,
    stop: Literal["line", "method", "none"] = "line",
    choose: Literal["greedy", "exact"] = "greedy",
    policy: Literal["hard", "soft"] = "hard",
    penalty: float = 6.0,
    across_trigger: AcrossTrigger = "check",
    unknown: Literal["free", "strict"] = "free",
    prompt_tokens: int | None = None,
    limit_s: float = 2.0,
    **options: Unpack[CodeOptions],
) -> CodeCompletion:
    """Write code at the cursor; what a static analysis calls illegal is not written.

    monitors       names (dereference, arity, enum_case, instantiation) or objects, in order of priority; () for none
    provider       the analyser; None: jedi in a process of its own for this call.  An `Analyses` is kept open and
                   remembers its answers
    stop           "line": at the end of the line; "method": where the function ends; "none": by the model
    choose         "exact": among the legal names the one that is likeliest as a whole (with temperature > 0 sampled
                   by its probability), "greedy": token by token
    policy         "soft": `penalty` nats less for illegal tokens instead of none of them
    prompt_tokens  the last so many tokens before the cursor are the prompt; None: what fits the context
    limit_s        seconds that one question to jedi may take; then there is no constraint at that place
    options        see `CodeOptions`

    ValueError for unknown names and values; CapabilityError where the runtime cannot do it.
    """
    for setting, value, known in (
        ("stop", stop, tuple(ENDS)), ("choose", choose, ("greedy", "exact")), ("policy", policy, ("hard", "soft")),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{setting} must be one of {', '.join(known)}, got {value!r}")
    if policy == "soft" and choose == "exact":
        raise ValueError('choose="exact" picks among legal names only: use policy="hard"')
    for name in monitors:
        if isinstance(name, str) and name not in MONITORS:
            raise ValueError(f'no monitor is called "{name}"{nearest(name, MONITORS)} (known: {", ".join(MONITORS)})')
    for name in ("n", "beams", "constraint", "logits_processors", "contrast", "sampler"):
        if options.get(name):
            raise CapabilityError(f"complete_code writes one text under its own monitors: drop {name}=")
    started = time.perf_counter()
    tokens = prompt_of(model, buffer.prefix, max_tokens, prompt_tokens)
    analyses = provider if isinstance(provider, Analyses) else _analyses(provider, buffer, monitors, limit_s)
    before = dict(analyses.counts) if analyses else {}
    scorer = NameScorer(model.runtime, masks_for(model.guide.vocabulary)) if choose == "exact" else None
    try:
        made = [_make(m, analyses, across_trigger, unknown) if isinstance(m, str) else m for m in monitors]
        picked = _exact(scorer, tokens, options.get("temperature", 0.0), options.get("seed") or 0) if scorer else None
        guard = MonitorConstraint(made, model.guide.vocabulary, buffer, picked) if made else None
        given: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, **options}
        if guard is not None:
            given |= (
                {"constraint": guard} if policy == "hard" else {"logits_processors": (MonitorPenalty(guard, penalty),)}
            )
        finish, end = _run(model, model.request(tokens, given), ENDS[stop](buffer.prefix))
        text = finish.text if end is None else finish.text[:end]
        kept = _tokens_of(model, finish.tokens, text) if end is not None else len(finish.tokens)
        triggers = _events(guard.questions(text.encode()), buffer, text) if guard is not None else []
        counts = {k: n - before.get(k, 0) for k, n in analyses.counts.items()} if analyses else {}
    finally:
        if scorer is not None:
            scorer.close()
        if analyses is not None and analyses is not provider:
            analyses.close()
    return CodeCompletion(
        text,
        float(sum(finish.logprobs[:kept])),
        None if guard is not None and policy == "soft" else float(sum(finish.log_masses[:kept])),
        triggers,
        finish.tokens[:kept],
        finish.reason if end is None else stop,
        time.perf_counter() - started,
        finish.approximate,
        {k: n for k, n in counts.items() if n},
    )


def prompt_of(model: Any, prefix: str, max_tokens: int, prompt_tokens: int | None = None) -> list[int]:
    """The last tokens before the cursor, with the beginning-of-sequence token where the model wants one."""
    room = longest_text(model.runtime) - max_tokens - 1
    if prompt_tokens is not None:
        if not prompt_tokens >= 1:
            raise ValueError(f"prompt_tokens must be >= 1, got {prompt_tokens}")
        room = min(room, prompt_tokens)
    if room < 1:
        context = longest_text(model.runtime)
        raise ValueError(
            f"max_tokens must be < {context - 1} (the context of {context} less a prompt), got {max_tokens}"
        )
    tokenizer = model.tokenizer
    tokens = begin(tokenizer, tokenizer.encode(prefix)[-room:])
    return tokens or model.encode_prompt("")


def _analyses(
    provider: MemberProvider | None, buffer: CodeBuffer, monitors: Sequence[str | Monitor], limit_s: float
) -> Analyses | None:
    if not any(isinstance(name, str) for name in monitors):
        return None
    if provider is None:
        from likely.code.analysis.jedi_provider import JediProvider

        provider = JediProvider(buffer.project_root, limit_s=limit_s)
    return Analyses(provider)


def _make(name: str, analyses: Analyses | None, across: AcrossTrigger, unknown: Literal["free", "strict"]) -> Monitor:
    assert analyses is not None
    kind = MONITORS[name]
    if kind is DereferenceMonitor:
        return DereferenceMonitor(analyses, across, unknown)
    return kind(analyses) if kind is ArityMonitor else kind(analyses, across)


def _exact(scorer: NameScorer, prompt: list[int], temperature: float, seed: int) -> Choose:
    """Picks by the probability of whole names."""

    def choose(tokens: Sequence[int], names: Sequence[bytes]) -> bytes:
        values = scorer.logprobs([*prompt, *tokens], names)
        if temperature > 0:
            noise = np.random.default_rng([seed, len(tokens)]).gumbel(size=len(values))
            values = values / temperature + noise
        return names[int(np.argmax(values))]

    return choose


def _run(model: Any, request: Any, ends: NoEnd) -> tuple[Finished, int | None]:
    """(the finished sample, where its text ends before the sample did, None if it did not)"""
    loop = model.loop()
    end: int | None = None
    finish: Finished | None = None
    try:
        number = loop.add(request)
        for event in events(loop):
            if end is None and (end := ends.push(event.text)) is not None and event.finish is None:
                loop.cancel(number)
            finish = event.finish or finish
    finally:
        loop.close()
    assert finish is not None
    return finish, end


def _tokens_of(model: Any, tokens: Sequence[int], text: str) -> int:
    """How many tokens hold some of the text."""
    left = len(text.encode())
    for number, token in enumerate(tokens):
        if left <= 0:
            return number
        left -= len(model.tokenizer.token_bytes(token))
    return len(tokens)


def _events(questions: Sequence[MonitorQuestion], buffer: CodeBuffer, text: str) -> list[TriggerEvent]:
    whole = buffer.prefix + text
    events = []
    for question in questions:
        answer = question.answer()
        choices = question.settled().choices()
        at = question.buffer.cursor or 0
        at += len(whole[at:]) - len(whole[at:].lstrip())
        pattern = r"[\w.]*" if question.monitor_name == "enum_case" else r"\w*"
        found = re.match(pattern, whole[at:])
        chosen, legal = found[0] if found else "", len(choices) or None
        events.append(TriggerEvent(at, legal, answer.seconds, chosen, question.monitor_name, answer.status))
    return events
