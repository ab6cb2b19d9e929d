"""The likeliest next tokens that a server names, by token id, with a bias: what an audit of your own server asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Unpack

from likely.errors import ModelError
from likely.lm.options import ConnectionOptions
from likely.lm.remote.echo import Unusable
from likely.lm.remote.http import Endpoint
from likely.lm.remote.model import RemoteModel
from likely.lm.remote.reply import choices_of, logprobs_of
from likely.tokenizers.protocol import Tokenizer, decode


class RemoteTopLogprobs:
    """Calls of one token at temperature 1 to /completions of a server.

    tokenizer  of the model behind it, since a server names tokens by their text alone
    token_ids  those whose text no other token has: the only ones that can be told;  name: the model's name there
    """

    def __init__(
        self, url: str, tokenizer: Tokenizer, *, model: str | None = None, **connection: Unpack[ConnectionOptions]
    ):
        texts = [decode(tokenizer, [token]) for token in range(tokenizer.vocab_size)]
        counted = Counter(texts)
        self._ids = {
            t: i for i, t in enumerate(texts) if t and counted[t] == 1 and "\N{REPLACEMENT CHARACTER}" not in t
        }
        self.token_ids = sorted(self._ids.values())
        with RemoteModel(url, model=model, **connection) as lm:
            self.name = lm.name
        self._endpoint = Endpoint(url, **connection)

    def close(self) -> None:
        self._endpoint.close()

    def __call__(self, prompt: str, top: int, bias: Mapping[int, float]) -> dict[int, float]:
        """Token id -> log-probability of at most `top` tokens after a prompt; empty where the server gives none."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "logprobs": top}
        if bias:
            body["logit_bias"] = {str(token): by for token, by in bias.items()}
        try:
            [choice, *_] = choices_of(self._endpoint.post("/completions", body))
            held = logprobs_of(choice)
        except Unusable as why:
            raise ModelError(f"the server gave a reply that makes no sense: {why}") from None
        row = held.rows[0] if held is not None and held.rows else []
        return {self._ids[one.text]: one.logprob for one in row[:top] if one.text in self._ids}
