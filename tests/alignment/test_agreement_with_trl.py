"""trl's trainers and our losses on the same tensors: values and gradients."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("trl")

import datasets
import torch
import transformers
from tiny_torch import module_of
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from likely.alignment.methods import cdpo, dpo, dpo_mean, hinge_norm, ipo, ipo_mean, pair_losses, robust_dpo
from likely.alignment.rewards import RewardModel, bradley_terry_loss
from likely.training.logprobs import TokenBatch, sequence_logprobs
from tokenizers import Tokenizer, models, pre_tokenizers

pytestmark = pytest.mark.slow  # importing trl alone takes seconds

WORDS = [f"w{i}" for i in range(196)]
ROWS = {
    "prompt": ["w1 w2", "w3", "w4 w5 w6 w7", "w9 w10"],
    "chosen": [" w8 w9 w10", " w11", " w12 w13 w14 w15 w16", " w100 w2"],
    "rejected": [" w20", " w21 w22 w23 w24", " w25 w26", " w101 w102 w103"],
}
SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "<bos>", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def data():
    return datasets.Dataset.from_dict(ROWS)


def llama(seed):
    return module_of(transformers.LlamaConfig(**SIZES, pad_token_id=0), seed=seed, std=0.2)


def common(folder):
    return {"output_dir": str(folder), "report_to": [], "use_cpu": True, "per_device_train_batch_size": 4,
            "remove_unused_columns": False, "bf16": False, "save_strategy": "no",
            "gradient_checkpointing": False}  # fmt: skip


def gradients(module):
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    scale = max(g.abs().max() for g in theirs.values())
    assert scale > 0
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize(
    "loss_type, method, smoothing",
    [
        ("sigmoid", dpo(beta=0.3), 0.0),
        ("hinge", hinge_norm(gamma=0.3), 0.0),
        ("ipo", ipo_mean(tau=0.3), 0.0),
        ("sigmoid_norm", dpo_mean(beta=0.3), 0.0),
        ("robust", robust_dpo(beta=0.3, epsilon=0.2), 0.2),
    ],
)
def test_pair_losses(tokenizer, data, tmp_path, loss_type, method, smoothing):
    policy, reference = llama(0), llama(1)
    config = DPOConfig(**common(tmp_path), loss_type=[loss_type], beta=0.3, label_smoothing=smoothing, max_length=64)
    trainer = DPOTrainer(policy, reference, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    theirs.backward()
    expected = gradients(policy)
    ids, seen, scored = (batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    with torch.no_grad():
        frozen = sequence_logprobs(reference, ids, seen, scored).sum
    scores = sequence_logprobs(policy, ids, seen, scored)
    ours = pair_losses(method, scores, torch.ones(4), frozen).loss.mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert_same(gradients(policy), expected)
    # negative controls: the paper's IPO is not trl's, label smoothing is not "robust"
    other = {"ipo": ipo(tau=0.3), "robust": cdpo(beta=0.3, epsilon=0.2)}.get(
        loss_type, dataclasses.replace(method, normaliser="logp")
    )
    with torch.no_grad():
        scores = sequence_logprobs(policy, ids, seen, scored)
        assert abs(pair_losses(other, scores, torch.ones(4), frozen).loss.mean().item() - theirs.item()) > 1e-3


@pytest.mark.parametrize("center", [None, 0.01])
def test_reward_losses(tokenizer, data, tmp_path, center):
    config = transformers.LlamaConfig(**SIZES, pad_token_id=0, num_labels=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        classifier = transformers.LlamaForSequenceClassification(config).eval()
    settings = RewardConfig(**common(tmp_path), center_rewards_coefficient=center, max_length=64, disable_dropout=True)
    trainer = RewardTrainer(classifier, args=settings, train_dataset=data, processing_class=tokenizer)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    theirs.backward()
    expected = classifier.score.weight.grad.clone()[0]
    language = llama(0)
    language.model = classifier.model
    model = RewardModel(language, torch.nn.Parameter(classifier.score.weight.detach()[0].clone()))
    values = model.batch_values(TokenBatch(batch["input_ids"], batch["attention_mask"], batch["attention_mask"].bool()))
    first, second = values.chunk(2)
    ours = bradley_terry_loss(first, second, center=center or 0.0).mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    torch.testing.assert_close(model.head.grad, expected, atol=1e-5, rtol=1e-4)
