"""Forms inside transformers' generate on the real model: the same greedy text as ours, and it validates."""

from __future__ import annotations

import json

import pytest

from likely.guided.processor import for_transformers

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
PROMPTS = ["Lisbon as JSON: ", "The largest city of Japan, as JSON with its population: "]


def test_transformers_writes_what_we_write(folder, oracle):
    import jsonschema
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    processor = for_transformers(
        tokenizer, schema=SCHEMA, max_new_tokens=48, end_ids=model.generation_config.eos_token_id
    )
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        rows = model.generate(**batch, max_new_tokens=48, do_sample=False, logits_processor=[processor])
    mine = oracle.generate(PROMPTS, temperature=0, max_tokens=48, schema=SCHEMA)
    for row, expected in zip(rows[:, batch["input_ids"].shape[1] :].tolist(), mine, strict=True):
        assert row[: len(expected.token_ids)] == expected.token_ids
        jsonschema.validate(json.loads(expected.text), SCHEMA)
