"""SmolLM2 behind the server: another program's scores, and our own client's, are the local model's."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from helpers_for_serving import serving

import likely
from likely.models.convert import convert

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]


@pytest.fixture(scope="module")
def lm(smollm2_path):
    with likely.load("smollm2", threads=1, context=1024) as lm:
        yield lm


@pytest.fixture(scope="module")
def items(data_dir):
    with gzip.open(data_dir / "arc-easy" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:20]
    return [(f"Question: {r['question']}\nAnswer:", f" {choice}") for r in records for choice in r["choices"]]


@pytest.fixture(scope="module")
def local(lm, items):
    """Before the server owns the model."""
    return lm.score_pairs(items)


@pytest.fixture(scope="module")
def url(lm, local):
    with serving(lm) as url:
        yield url


@pytest.mark.slow
def test_lm_eval_over_http_equals_ours(url, items, local, tmp_path_factory, smollm2_path):
    pytest.importorskip("tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    folder = tmp_path_factory.mktemp("tokenizer") / "smollm2"
    convert(smollm2_path, folder, to="safetensors", verify=False)
    ours = [s.sequence_logprob for s in local]
    for as_tokens in (True, False):  # the harness's own default sends token ids
        harness = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model="smollm2",
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            tokenized_requests=as_tokens,
            num_concurrent=4,
            max_length=1024,
        )
        found = harness.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(items)])
        np.testing.assert_allclose([value for value, _ in found], ours, rtol=0, atol=1e-3)
    # negative control: the same numbers in another order are far away
    assert np.abs(np.array(ours) - np.roll(ours, 1)).max() > 1


@pytest.mark.slow
def test_our_own_client_equals_ours(url, items, local):
    with likely.load(url) as remote:
        assert remote.capabilities.score, remote.capabilities.why_not
        found = remote.score_pairs(items[:12])
    for mine, theirs in zip(local, found, strict=False):
        np.testing.assert_allclose(theirs.token_logprobs, mine.token_logprobs, rtol=0, atol=1e-4)
        assert theirs.tokens == mine.tokens and theirs.context_tokens == mine.context_tokens
