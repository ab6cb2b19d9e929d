"""Token healing on natural text: prompts cut at word boundaries, where a token often does not end."""

from __future__ import annotations

import gzip
import re

import numpy as np
import pytest

import likely

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

CUTS = 100


@pytest.fixture(scope="module")
def lm(smollm2_path):
    with likely.load("smollm2", runtime="llamacpp") as model:
        yield model


@pytest.fixture(scope="module")
def cuts(data_dir) -> list[tuple[str, str]]:
    """(text before a random word boundary, what follows up to the end of the next word)"""
    with gzip.open(data_dir / "wikitext2" / "wiki.valid.raw.gz", "rt", encoding="utf-8") as lines:
        prose = [line.strip() for line in lines if len(line) > 400]
    rng = np.random.default_rng(0)
    found = []
    while len(found) < CUTS:
        text = prose[int(rng.integers(len(prose)))]
        boundaries = [m.start() for m in re.finditer(r"\b", text) if 120 < m.start() < len(text) - 40]
        at = int(rng.choice(boundaries))
        following = re.match(r"\W*\w+", text[at:])
        if following:
            found.append((text[max(0, at - 100) : at], following[0]))
    return found


def hits(lm, cuts, **options) -> list[bool]:
    prompts = [prompt for prompt, _ in cuts]
    texts = lm.generate(prompts, temperature=0.0, max_tokens=5, **options)
    return [g.text.startswith(follows) for g, (_, follows) in zip(texts, cuts, strict=True)]


def test_healing_reproduces_the_text_at_least_as_often(lm, cuts):
    healed, plain = hits(lm, cuts, heal=True), hits(lm, cuts)
    print(f"next word reproduced: {sum(healed)} healed, {sum(plain)} without, of {CUTS}")
    assert sum(healed) >= sum(plain) > 0


def test_at_an_unambiguous_boundary_nothing_changes(lm):
    from likely.guided.token_healing import heal

    vocabulary = lm.guide.vocabulary
    texts = [t.decode("utf-8", "ignore") for t in vocabulary.sorted_texts]
    rng = np.random.default_rng(1)
    prompts = []
    while len(prompts) < 12:  # endings that no token continues
        prompt = "In the year 1999 they said" + texts[int(rng.integers(len(texts)))]
        ids = lm.encode_prompt(prompt)
        if heal(vocabulary, ids) == (ids, b""):
            prompts.append(prompt)
    healed, plain = (lm.generate(prompts, temperature=0.0, max_tokens=6, heal=h) for h in (True, False))
    assert [g.token_ids for g in healed] == [g.token_ids for g in plain]
    assert [g.healing_log_weight for g in healed] == [0.0] * len(prompts)
