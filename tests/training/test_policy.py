"""Adapters and references: which weights are trained, which are compared with, and what files hold of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")

import torch
from tiny_torch import tiny_module

from likely.alignment.labellers import PreferencePair
from likely.alignment.methods import dpo, pair_batch_loss
from likely.alignment.scores import Completion, ReferenceSums, completion_scores
from likely.errors import CapabilityError, DataError, ModelError
from likely.runtimes.torch.runtime import TorchRuntime
from likely.training.fit import TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.policy import LoraSettings, Policy

TEXTS = [Completion((1, 2, 3), (4, 5)), Completion((7,), (8, 9, 10, 11, 12)), Completion((5, 6), (9, 2, 2))]
PAIRS = [
    PreferencePair(Completion((i, i + 1), (i + 2, 3)), Completion((i, i + 1), (50 - i, 7, 1)), row=i + 1)
    for i in range(1, 11)
]


class Words:
    fingerprint = "words"
    end_ids = frozenset({0})


class Held:
    tokenizer = Words()

    def __init__(self, seed=0):
        self.runtime = TorchRuntime(tiny_module("llama", seed=seed), tokens_held=512, sequences=16)


def sft(module):
    def loss(texts):
        scores = completion_scores(module, texts)
        return LossOutput(-scores.sum.sum(), {"tokens": (float(scores.length.sum()), 1)})

    return loss


def train(policy, steps=3, lr=0.02, **settings):
    settings = TrainingSettings(steps=steps, batch=3, lr=lr, **settings)
    return fit(policy, TEXTS, sft(policy.module), settings, weight=lambda t: len(t.tokens), length=len)


def logits(module):
    return module(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits.detach()


def test_the_reference_is_the_untouched_model_bit_for_bit():
    lm = Held()
    before = logits(lm.runtime.module)
    with Policy(lm, LoraSettings(rank=4, alpha=8)) as policy:
        train(policy)
        with policy.reference() as module:
            assert torch.equal(logits(module), before)
        assert not torch.allclose(logits(policy.module), before, atol=1e-2)
        assert not torch.allclose(
            logits(policy.module.get_base_model()), before, atol=1e-2
        )  # no reference: see trl 2781
    assert torch.equal(logits(lm.runtime.module), before) and not hasattr(lm.runtime.module, "peft_config")


def test_an_adapter_goes_on_and_is_its_own_reference(tmp_path):
    lm = Held()
    with Policy(lm, LoraSettings(rank=4, alpha=8)) as policy:
        train(policy)
        learned = completion_scores(policy.module, TEXTS).sum.detach()
        policy.save_adapter(tmp_path, {"model": "tiny"})
    base = completion_scores(lm.runtime.module, TEXTS).sum.detach()
    with Policy(lm, None, adapter=tmp_path) as policy:
        with policy.reference() as module:
            reference = completion_scores(module, TEXTS).sum
        assert torch.equal(completion_scores(policy.module, TEXTS).sum, reference)  # log-ratios are 0 at the start
        torch.testing.assert_close(reference, learned, atol=1e-5, rtol=0)
        assert not torch.allclose(reference, base, atol=0.1)
        train(policy)
        with policy.reference() as module:
            assert torch.equal(completion_scores(module, TEXTS).sum, reference)
        assert not torch.allclose(completion_scores(policy.module, TEXTS).sum, reference, atol=1e-2)
        names = {n for n, p in policy.module.named_parameters() if p.requires_grad}
        assert names and all(".default." in name for name in names)
    with pytest.raises(ModelError, match="trained on other weights"):
        Policy(Held(seed=1), None, adapter=tmp_path)
    with pytest.raises(DataError, match="no adapter that was trained here"):
        Policy(lm, None, adapter=tmp_path / "nowhere")


def test_reference_sums_are_kept_for_these_weights_only(tmp_path):
    path, counted = tmp_path / "reference.jsonl", []
    with Policy(Held(), LoraSettings(rank=2, alpha=4)) as policy:
        sums = ReferenceSums(policy, path)
        found = sums(TEXTS)
        torch.testing.assert_close(found, completion_scores(policy.module, TEXTS).sum.detach())
        train(policy)
        assert torch.equal(ReferenceSums(policy, path)(TEXTS), found)
    with Policy(Held(seed=1), LoraSettings(rank=2, alpha=4)) as other:
        ReferenceSums(other, path).prepare(TEXTS, counted.append)
        assert counted == [3] and not torch.allclose(ReferenceSums(other, path)(TEXTS), found)


def test_all_weights_and_their_frozen_copy():
    lm = Held()
    before = logits(lm.runtime.module)
    with Policy(lm, None) as policy:
        with policy.reference() as module:
            assert torch.equal(logits(module), before)
        train(policy)
        with policy.reference() as module:
            assert torch.equal(logits(module), before)
        assert not torch.allclose(logits(policy.module), before, atol=1e-3)
        with pytest.raises(CapabilityError, match="save the merged model"):
            policy.save_adapter("nowhere")
    with Policy(Held(), None) as policy:
        train(policy)
        with pytest.raises(ModelError, match="were trained already"), policy.reference():
            pass


def test_merging_keeps_the_logits():
    lm = Held()
    with Policy(lm, LoraSettings(rank=4, alpha=8)) as policy:
        train(policy)
        with policy.merged() as module:
            torch.testing.assert_close(logits(module), logits(policy.module), atol=1e-4, rtol=0)
            assert not any("lora" in name for name, _ in module.named_parameters())
        assert torch.is_tensor(logits(policy.module)) and policy.adapts


def test_pieces_of_a_batch_are_the_batch():
    losses, found = [], []
    for piece in (1, 3):
        with Policy(Held(), LoraSettings(rank=4, alpha=8)) as policy:
            losses.append(train(policy, piece=piece))
            found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_the_mean_of_means_is_another_number():
    """The negative control of the test above: texts of 2, 5 and 3 tokens weigh by their tokens."""
    module = tiny_module("llama")
    scores = completion_scores(module, TEXTS)
    right = -(scores.sum.sum() / scores.length.sum()).item()
    assert abs(right + scores.mean.mean().item()) > 1e-2
    with Policy(Held(), LoraSettings(rank=4, alpha=8)) as policy:
        assert train(policy, steps=1)[0] == pytest.approx(right, abs=1e-5)


def test_samples_are_the_policys_of_this_step():
    revisions = []
    with Policy(Held(), LoraSettings(rank=2, alpha=4)) as policy:

        def expand(step, items):
            revisions.append((step, policy.lm.runtime.revision))
            return [*items, *items]

        settings = TrainingSettings(steps=2, batch=2, lr=0.01)
        fit(policy, TEXTS, sft(policy.module), settings, weight=lambda t: len(t.tokens), expand=expand)
    assert [step for step, _ in revisions] == [0, 1] and len(set(revisions)) == 2


class Stopped(Exception):
    pass


def pair_run(out, *, lora=LoraSettings(rank=4, alpha=8), shard=False, folder=None, stop_after=None):  # noqa: B008
    """Three steps of DPO, alone or as one of two processes; rank 0 writes losses and parameters."""
    from likely.training.processes import Processes

    def stop(step, loss):
        if step == stop_after:
            raise Stopped

    processes = Processes.from_environment(cpu=True)
    with Policy(Held(), lora) as policy:
        with policy.reference() as module:
            texts = [p.first for p in PAIRS] + [p.second for p in PAIRS]
            sums = dict(zip(texts, completion_scores(module, texts).sum, strict=True))

        def loss(pairs):
            reference = torch.stack([sums[p.first] for p in pairs] + [sums[p.second] for p in pairs])
            return pair_batch_loss(dpo(beta=0.5), policy.module, pairs, reference)

        lr = 0.02 if lora else 0.001  # Adam turns the rounding of gradients near 0 into steps of lr
        settings = TrainingSettings(steps=3, batch=5, lr=lr, checkpoint_every=2)
        pairs = PAIRS[:6]  # the second batch is of one pair: one of two processes has nothing to do
        losses = fit(policy, pairs, loss, settings, processes=processes, shard=shard, folder=folder, progress=stop)
        if processes.first:
            found = {"losses": torch.tensor(losses)}
            found["parameters"] = torch.cat([p.detach().flatten() for p in policy.parameters()])
            found["logits"] = logits(policy.module)
            from safetensors.torch import save_file

            save_file(found, out)
        processes.wait()


def in_two_processes(code):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "helpers"), *sys.path])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no-python",
               sys.executable, "-c", f"from test_policy import *; {code}"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def stopped_run(out, **settings):
    with pytest.raises(Stopped):
        pair_run(out, **settings, stop_after=2)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Whole in both, or each with its share of the weights (FSDP2); and one process goes on where two were stopped."""
    from safetensors.torch import load_file

    pair_run(tmp_path / "one")
    pair_run(tmp_path / "one_full", lora=None)
    place = repr(str(tmp_path))
    in_two_processes(
        f"t = Path({place}); pair_run(t / 'two'); pair_run(t / 'shares', shard=True); "
        "pair_run(t / 'shares_full', lora=None, shard=True); "
        "stopped_run(t / 'stopped', lora=None, shard=True, folder=t / 'checkpoint')"
    )
    pair_run(tmp_path / "resumed", lora=None, folder=tmp_path / "checkpoint")
    for name, other in (("two", "one"), ("shares", "one"), ("shares_full", "one_full"), ("resumed", "one_full")):
        found, expected = load_file(tmp_path / name), load_file(tmp_path / other)
        torch.testing.assert_close(found["losses"], expected["losses"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["parameters"], expected["parameters"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-4, rtol=0)
    assert not torch.allclose(load_file(tmp_path / "one")["logits"], load_file(tmp_path / "one_full")["logits"])


@pytest.mark.parametrize(
    "beside", [{"expand": lambda step, items: items}, {"extra_parameters": [torch.nn.Parameter(torch.zeros(1))]}]
)
def test_a_sharded_model_neither_draws_samples_nor_has_parameters_beside_it(beside):
    from likely.training.processes import Processes

    with (
        Policy(Held(), LoraSettings(rank=2, alpha=4)) as policy,
        pytest.raises(CapabilityError, match="leave out shard"),
    ):
        fit(policy, TEXTS, sft(policy.module), TrainingSettings(steps=1), processes=Processes(0, 2), shard=True,
            **beside)  # fmt: skip


def test_a_matrix_that_two_modules_share_is_not_trained_as_a_copy():
    tied, untied = Held(), Held()
    tied.runtime = TorchRuntime(tiny_module("llama"), tokens_held=64, sequences=2)
    tied.runtime.module.lm_head.weight = tied.runtime.module.model.embed_tokens.weight
    with pytest.raises(ModelError, match="embed_tokens and lm_head are one matrix"):
        Policy(tied, LoraSettings(rank=2, alpha=4, fully_trained=("embed_tokens",)))
    untied.runtime.module.lm_head.weight = torch.nn.Parameter(untied.runtime.module.lm_head.weight.clone())
    with Policy(untied, LoraSettings(rank=2, alpha=4, fully_trained=("lm_head",))) as policy:
        assert sum("modules_to_save" in n for n, p in policy.module.named_parameters() if p.requires_grad) == 1


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_embedding_are_trained_and_merged(tied):
    lm = Held()
    module = lm.runtime.module
    module.config.tie_word_embeddings = tied
    head = module.model.embed_tokens.weight if tied else torch.nn.Parameter(module.lm_head.weight.clone())
    module.lm_head.weight = head
    with Policy(lm, LoraSettings(rank=2, alpha=4, trained_tokens=(9,))) as policy:
        tables = module.get_input_embeddings(), module.get_output_embeddings()
        before = [table.weight.detach().clone() for table in tables]
        train(policy, lr=0.05)
        assert not policy.saves_adapter
        with policy.merged() as merged:
            after = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
            torch.testing.assert_close(logits(merged), logits(policy.module), atol=1e-4, rtol=0)
            for old, new in zip(before, after, strict=True):
                assert (new != old).any(dim=1).nonzero().flatten().tolist() == [9]
            assert (after[0] is after[1]) == tied
        with pytest.raises(CapabilityError, match="save the merged model"):
            policy.save_adapter("nowhere")


def test_adapters_on_a_state_space_model_are_refused_and_full_training_is_named():
    from tiny_states import state_module

    from likely.sequence.convert import from_transformers

    held = Held()
    held.runtime = TorchRuntime(from_transformers(state_module("mamba2")), tokens_held=512, sequences=16)
    with pytest.raises(CapabilityError, match="SequenceLM is trained in all its weights: --full"):
        Policy(held, LoraSettings())
    with Policy(held, None) as policy:
        assert len(policy.parameters()) == len(list(policy.base.parameters()))
