"""Records to look at: small, with every trap in them."""

from __future__ import annotations

import math

from likely.lm.results import Generation
from likely.scoring.scored import Scored, TopLogprob, sums

HOSTILE = [
    "<script>alert(1)</script>", "\"><img src=http://x.test/a onerror=alert(1)>", "'", "&amp;", "</style>", "]]>",
    "\u202eevil\u202c", "\u2066", "\u200b", "\ufeff", "\x00", "\x1b[31mred\x1b[0m", "\x07", "\x9b31m", "\n", "\r", "\t",
    "\u2028", "\ud800", "\u0301", "日本", "😀", "", " ", "<!--", "--><b>", "javascript:alert(1)", "{{7*7}}", "\u00a0",
    "\U000e0041",
]  # fmt: skip


def scored(tokens, logprobs=None, *, tops=True, entropies=True, straddles=False):
    """A Scored whose numbers have no short decimal form."""
    logprobs = [-math.sqrt(2) * (i % 7) / 3 - 0.01 for i in range(len(tokens))] if logprobs is None else logprobs
    rows = [
        [TopLogprob(1000 + i, token, logprob), TopLogprob(5000 + i, "<i>other", logprob - math.pi)]
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
    ]
    total, mean = sums(logprobs)
    return Scored(
        text="".join(tokens), token_ids=[1000 + i for i in range(len(tokens))], token_logprobs=logprobs,
        sequence_logprob=total, mean_logprob=mean, tokens=tokens, context_tokens=1, straddles=straddles,
        entropies=[math.e / (i + 1) for i in range(len(tokens))] if entropies else None,
        top_logprobs=rows if tops else None,
    )  # fmt: skip


def generation(tokens, logprobs):
    total, mean = sums(logprobs)
    return Generation(
        text="".join(tokens), token_ids=list(range(len(tokens))), token_logprobs=logprobs, sequence_logprob=total,
        mean_logprob=mean, finish_reason="length", target_calls=1, seconds=0.0, tokens=tokens,
    )  # fmt: skip
