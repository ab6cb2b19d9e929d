"""Two stages on a tiny model: what they change, what they refuse, and the tasks' laws."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("peft")

import torch
from tiny_gguf import write_tiny_llama

from likely.alignment.protein import ProteinFormat, ProteinModel, ProteinRow, stage1, stage2
from likely.alignment.protein.format import RESIDUES
from likely.alignment.protein.recipe import StageSettings, whole_matrices
from likely.errors import DataError, ModelError
from likely.models.load import load_local
from likely.scoring.likelihood import score_items
from likely.training import LoraSettings

torch.set_num_threads(1)
SMALL = LoraSettings(rank=4, alpha=8, dropout=0.0)
WHOLE = LoraSettings(rank=4, alpha=8, dropout=0.0, fully_trained=("embed_tokens", "lm_head"))
FEW = StageSettings(epochs=2, batch=4, lr=1e-3)
FAMILIES = {"A": "MKKL", "B": "GGSW"}
ROWS = [ProteinRow(seed * n, name) for name, seed in FAMILIES.items() for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("protein") / "tiny.gguf", tied=True, dim=64)


@pytest.fixture
def lm(path):
    return load_local(path, runtime="torch")


@pytest.fixture(scope="module")
def model(path):
    lm = load_local(path, runtime="torch")
    return ProteinModel(lm.runtime, lm.tokenizer, ProteinFormat(lm.tokenizer), {})


@pytest.fixture(scope="module")
def trained(path):
    """Both stages, long enough to know the two families."""
    settings = StageSettings(epochs=30, batch=6, lr=3e-3)
    first = stage1(load_local(path, runtime="torch"), [r.sequence for r in ROWS], WHOLE, settings)
    return first, stage2(first, ROWS, LoraSettings(rank=8, alpha=16, dropout=0.0), replace(settings, epochs=60))


def logits(module, ids=((40, 41, 42, 43),)):
    with torch.no_grad():
        return module(input_ids=torch.tensor(ids)).logits


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_stage_lowers_its_loss_and_notes_what_it_did(trained):
    first, second = trained
    for stage in (first.record, second.record):
        assert np.mean(stage["losses"][-5:]) < 0.5 * np.mean(stage["losses"][:5])
        assert stage["base"] != stage["weights"] and 0 < stage["trained_share"] < 1
    assert (first.record["stage"], second.record["stage"]) == (1, 2)
    assert second.record["base"] == first.record["weights"] and second.record["before"] == first.record
    assert second.record["superfamilies"] == ["A", "B"]


def test_tied_embeddings_stay_one_matrix_and_change_only_where_they_are_trained(lm):
    module = lm.runtime.module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert len(whole_matrices(module, ("embed_tokens", "lm_head"))) == 1
    before = module.model.embed_tokens.weight.detach().clone()
    first = stage1(lm, ["MKKLG"] * 4, SMALL, FEW)
    assert torch.equal(before, module.model.embed_tokens.weight)
    stage1(lm, ["MKKLG"] * 4, WHOLE, FEW)
    assert not torch.equal(before, module.model.embed_tokens.weight)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert first.record["trained_share"] < 0.5
    with pytest.raises(ModelError, match='no module "wte"'):
        whole_matrices(module, ("wte",))


def test_merging_keeps_the_logits_of_the_adapter(lm, monkeypatch):
    """What the wrapped model computed at the end of training is what the plain one computes after it."""
    from likely.alignment.protein import recipe

    seen = {}
    original = recipe.learned_factors

    def kept(wrapped):
        wrapped.eval()
        seen["on"] = logits(wrapped)
        with wrapped.disable_adapter():
            seen["off"] = logits(wrapped)
        return original(wrapped)

    monkeypatch.setattr(recipe, "learned_factors", kept)
    before = logits(lm.runtime.module)
    first = stage1(lm, ["MKKLGG"] * 4, SMALL, FEW)
    after = logits(first.runtime.module)
    assert torch.equal(seen["off"], before)  # bit for bit
    assert float((after - seen["on"]).abs().max()) < 1e-4 < float((after - before).abs().max())


def test_stage_two_begins_with_what_stage_one_wrote(lm, path):
    bare = ProteinModel(lm.runtime, lm.tokenizer, ProteinFormat(lm.tokenizer), {})
    with pytest.raises(ModelError, match="no record of it"):
        stage2(bare, ROWS, SMALL, FEW)
    first = stage1(lm, ["MKKL"] * 4, SMALL, FEW)
    with torch.no_grad():
        first.runtime.module.model.norm.weight[0] += 0.5
    first.runtime.refresh()
    with pytest.raises(ModelError, match="stage 2 begins with the weights that stage 1 wrote"):
        stage2(first, ROWS, SMALL, FEW)
    assert stage2(first, ROWS, SMALL, FEW, any_base=True, tasks=("determine",)).record["rows"] == 6


def test_long_rows_are_left_out_and_never_cut(lm):
    short = StageSettings(epochs=1, batch=4, lr=1e-4, longest=20)
    assert stage1(lm, ["MK", "MK" * 40], SMALL, short).record["left_out"] == 1
    with pytest.raises(DataError, match="none of the 1 rows has at most 20 tokens"):
        stage1(lm, ["MK" * 40], SMALL, short)


def test_documents_are_joined_into_blocks(lm, monkeypatch):
    from likely.alignment.protein import recipe

    blocks: list = []
    original = recipe.fit

    def kept(policy, texts, *more, **settings):
        blocks.extend(texts)
        return original(policy, texts, *more, **settings)

    monkeypatch.setattr(recipe, "fit", kept)
    first = stage1(lm, ["MKKL", "GGSW"], SMALL, StageSettings(epochs=1, batch=8, block=10))
    documents = [t for s in ("MKKL", "GGSW") for t in first.format.document(s).tokens]
    assert sorted(t for b in blocks for t in b.tokens) == sorted(documents)
    assert max(len(b.tokens) for b in blocks) == 10


def test_a_stage_that_was_stopped_goes_on_as_if_it_was_not(path, tmp_path):
    def run(folder, stop=None):
        def progress(step, loss):
            if step == stop:
                raise KeyboardInterrupt

        lm = load_local(path, runtime="torch")
        settings = StageSettings(epochs=6, batch=1, lr=1e-3)
        return stage1(lm, ["MKKL", "GGSW"] * 2, WHOLE, settings, checkpoints=folder, progress=progress).record["losses"]

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=21)
    assert run(tmp_path / "cut") == whole


def test_training_all_weights_and_training_twice_give_the_same(path):
    found = []
    for _ in range(2):
        lm = load_local(path, runtime="torch")
        first = stage1(lm, ["MKKL", "GGSW"] * 3, None, FEW)
        found.append((first.record["weights"], first.record["trained_share"]))
    assert found[0] == found[1] and found[0][1] == 1


def test_a_saved_model_is_the_same(trained, tmp_path):
    _, second = trained
    second.save(tmp_path / "model")
    again = ProteinModel.load(tmp_path / "model", runtime="torch")
    assert again.record == second.record and again.format.letter_ids == second.format.letter_ids
    np.testing.assert_allclose(again.sequence_logprobs(["MKKL"])[0], second.sequence_logprobs(["MKKL"])[0], atol=1e-5)
    with pytest.raises(DataError, match="this is no model of proteins"):
        ProteinModel.load(tmp_path)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_probabilities_of_superfamilies_add_up_and_do_not_depend_on_their_order(model):
    names = ["Ferritin", "Zinc finger, AN1", "HPr"]
    table = model.determine(["MKKL", "GGSWW"], names)
    np.testing.assert_allclose(np.exp(table).sum(1), 1, atol=1e-12)
    for order in itertools.permutations(range(3)):
        again = model.determine(["MKKL", "GGSWW"], [names[i] for i in order])
        np.testing.assert_allclose(again, table[:, order], atol=1e-5)
    with pytest.raises(ValueError, match="each named once"):
        model.determine(["MKKL"], ["A", "A"])


def test_both_tasks_are_learned(trained):
    _, second = trained
    sequences, names = [r.sequence for r in ROWS], list(FAMILIES)
    right = [names.index(r.superfamily) for r in ROWS]
    assert second.determine(sequences, names).argmax(1).tolist() == right
    assert second.name_superfamily(sequences, names) == [r.superfamily for r in ROWS]
    for name, seed in FAMILIES.items():
        written = second.generate(name, n=4, temperature=1.0, seed=1, max_residues=12)
        assert sum(p.sequence.startswith(seed[:2]) for p in written) >= 3
    assert any(second.generate("A", prefix="MK", n=2)[i].sequence.startswith("MK") for i in range(2))


def test_constrained_sequences_hold_residues_alone_and_close(model):
    written = model.generate(n=6, temperature=2.0, top_k=0, top_p=1.0, max_residues=15, seed=3)
    assert all(set(p.sequence) <= set(RESIDUES) and len(p.sequence) <= 15 and p.finished for p in written)
    assert len({p.sequence for p in written}) > 1
    again = model.generate(n=6, temperature=2.0, top_k=0, top_p=1.0, max_residues=15, seed=3)
    assert [p.sequence for p in again] == [p.sequence for p in written]
    free = model.generate(n=6, temperature=2.0, top_k=0, top_p=1.0, max_residues=15, seed=3, constrained=False)
    assert any(not set(p.sequence) <= set(RESIDUES) for p in free)  # the negative control: a random model


def test_bpe_sequences_are_constrained_too(lm):
    model = ProteinModel(lm.runtime, lm.tokenizer, ProteinFormat(lm.tokenizer, tokens="bpe"), {})
    for protein in model.generate(n=3, temperature=2.0, top_k=0, top_p=1.0, max_residues=8):
        assert set(protein.sequence) <= set(RESIDUES) and protein.finished


def test_fitness_is_a_difference_of_likelihoods(model):
    wild, mutants = "MKRVLL", ["MKRVLL", "MKRALL", "WKRVL"]
    found = model.fitness(wild, mutants)
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert model.fitness(mutants[1], [wild])[0] == pytest.approx(-found[1], abs=1e-4)
    form = model.format
    for superfamily in (None, "Ferritin"):
        sums = []
        for sequence in (wild, mutants[2]):
            item = form.document(sequence) if superfamily is None else form.generate_item(superfamily, sequence)
            (scored,) = score_items(model.runtime, [item])
            sums.append(sum(scored.logprobs[-len(sequence) - 2 : -1]))  # residues and ">", not the end token
        by_hand = sums[1] - sums[0]
        assert model.fitness(wild, [mutants[2]], superfamily=superfamily)[0] == pytest.approx(by_hand, abs=1e-4)
    rows = model.sequence_logprobs([wild, mutants[2]])
    assert [len(row) for row in rows] == [len(wild) + 1, len(mutants[2]) + 1]
    mean = model.fitness(wild, [mutants[2]], reduction="mean")[0]
    assert mean == pytest.approx(rows[1].mean() - rows[0].mean(), abs=1e-5)
    with pytest.raises(ValueError, match='reduction must be "sum" or "mean"'):
        model.fitness(wild, mutants, reduction="median")


def test_what_generation_refuses(trained, model):
    with pytest.raises(DataError, match='has not learned a superfamily "C"'):
        trained[1].generate("C")
    with pytest.raises(DataError, match='residue 1 is "X"'):
        model.generate(prefix="X")
    with pytest.warns(UserWarning, match="repeats that proteins really have"):
        model.generate(repetition_penalty=1.2, max_residues=4)
    with pytest.raises(ValueError, match="tasks must be"):
        stage2(trained[0], ROWS, SMALL, FEW, tasks=("fold",), any_base=True)
