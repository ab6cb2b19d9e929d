"""What the loop says of a finished text becomes the public record: sums, names of tokens, value and fields."""

from __future__ import annotations

from typing import Any

from likely.decoding.request import Finished, Request
from likely.guided.fields import read_fields
from likely.guided.json_schema.errors import InvalidText, SchemaUnsatisfied
from likely.guided.token_healing import TokenHealing, without_healing
from likely.scoring.scored import TopLogprob, sums
from likely.tokenizers.protocol import Tokenizer


def record_of(tokenizer: Tokenizer, request: Request, finish: Finished, sample: int, seconds: float) -> dict[str, Any]:
    """The fields of a `Generation`.  SchemaUnsatisfied for a whole text that breaks its schema."""
    healing = None
    if request.healed is not None:
        finish, healing = without_healing(finish, request.healed, tokenizer.token_bytes)
    total, mean = sums(finish.logprobs)
    name = tokenizer.token_text
    tops = [[TopLogprob(i, name(i), lp) for i, lp in row] for row in finish.tops] if request.top_logprobs else None
    return {
        "text": finish.text,
        "token_ids": finish.tokens,
        "token_logprobs": finish.logprobs,
        "sequence_logprob": total,
        "mean_logprob": mean,
        "finish_reason": finish.reason,
        "target_calls": finish.target_calls,
        "seconds": seconds,
        "tokens": [name(t) for t in finish.tokens],
        "prompt_tokens": len(request.prompt),
        "proposed": finish.proposed,
        "accepted": finish.accepted,
        "tokens_per_call": len(finish.tokens) / len(finish.rounds) if finish.rounds else None,
        "sample": sample,
        "seed": request.sampling.seed,
        "top_logprobs": tops,
        "processed_logprobs": finish.processed if request.processed else None,
        "steering": finish.steering,
        "healing_log_weight": healing,
        **_guided_fields(tokenizer, request, finish, total),
    }


def _guided_fields(tokenizer: Tokenizer, request: Request, finish: Finished, total: float) -> dict[str, Any]:
    """What a constraint adds."""
    constraint = request.constraint
    if constraint is None or (isinstance(constraint, TokenHealing) and constraint.then is None):
        return {}
    weight = float(sum(finish.log_masses))
    form, value, shares = request.form, None, None
    if form is not None and finish.complete:
        try:
            value = form.read(finish.text)
        except InvalidText as error:
            raise SchemaUnsatisfied(finish.text, error.errors) from None
        shares = None if request.healed else read_fields(
            finish.text, form, constraint, finish.tokens, tokenizer.token_bytes,
            finish.logprobs, finish.log_masses,
        )  # fmt: skip
    return {
        "token_log_masses": finish.log_masses,
        "log_weight": weight,
        "guided_logprob": total - weight,
        "complete": finish.complete,
        "approximate": finish.approximate,
        "value": value,
        "warnings": form.warnings if form is not None else (),
        "fields": shares[0] if shares else None,
        "structure": shares[1] if shares else None,
    }
