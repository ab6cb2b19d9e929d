"""Contrast on the real model: lazy decides as eager does, and cfg as transformers does."""

from __future__ import annotations

import numpy as np
import pytest

from likely.guided.contrast import Contrast
from likely.runtimes.rows import log_softmax

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

PROMPT = 'def is_even(n):\n    """Whether n is even.\n    >>> is_even(2)\n    True\n    """\n'
LAME = 'def is_even(n):\n    """Whether n is even.\n    """\n'


def test_lazy_decides_as_eager_on_200_steps(packaged):
    options = {"max_tokens": 200, "min_tokens": 200, "temperature": 0}
    eager, lazy = (packaged.generate(PROMPT, contrast=Contrast(LAME, eager=e), **options) for e in (True, False))
    assert len(eager.token_ids) == 200 and lazy.token_ids == eager.token_ids
    assert [s.gated for s in lazy.steering] == [s.gated for s in eager.steering]
    assert 0 < sum(s.gated for s in lazy.steering) < 200


@pytest.mark.parametrize("mode", ["uscd", "cfg"])
def test_drafted_is_undrafted(packaged, mode):
    options = {"max_tokens": 40, "temperature": 0, "contrast": Contrast(LAME, mode)}
    plain = packaged.generate(PROMPT, drafter=None, **options)
    drafted = packaged.generate(PROMPT, drafter="lookup", draft_budget=6, **options)
    assert drafted.token_ids == plain.token_ids and drafted.proposed > 0


def test_cfg_is_what_transformers_computes(oracle):
    import torch
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

    module = oracle.runtime.module
    prompt, negative = oracle.encode_prompt(PROMPT), oracle.encode_prompt(LAME)
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, module, torch.tensor([negative]))
    ours = Contrast(negative, "cfg", weight=0.5).begin(oracle.runtime, prompt)
    text = list(prompt)
    for token in oracle.tokenizer.encode("    return n % 2 == 0\n"):
        with torch.no_grad():
            logits = module(torch.tensor([text])).logits[:, -1]
            expected = torch.log_softmax(theirs(torch.tensor([text]), logits), -1)[0].numpy()
        np.testing.assert_allclose(log_softmax(ours.apply((), logits[0].numpy())), expected, atol=1e-4)
        ours.advance([token], [])
        text.append(token)
    ours.drop()
