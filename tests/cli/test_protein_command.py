"""likely align protein: from a file of proteins to a folder, and what the folder says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("peft")

from tiny_gguf import write_tiny_llama

from likely.alignment.protein import ProteinRun, train_proteins
from likely.alignment.protein.format import RESIDUES
from likely.cli.app import run
from likely.errors import DataError
from likely.models.load import load_local

FAMILIES = {"Alpha": "MKKL", "Beta": "GGSW"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    write_tiny_llama(folder / "tiny.gguf", tied=True)
    rows = [{"sequence": s * n, "family": f} for f, s in FAMILIES.items() for n in (1, 2)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    arguments = ["-m", str(place / "tiny.gguf"), "--rank", "4", "--epochs", "2", "4", "--lr", "3e-3"]
    rows = str(place / "rows.jsonl")
    assert run(["align", "protein", "train", rows, "--test", rows, *arguments, "-o", str(place / "model")]) == 0
    return place / "model"


def printed(capsys, *arguments):
    assert run(["align", "protein", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_folder_is_written_and_not_replaced(trained, place, capsys):
    assert {p.name for p in trained.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "protein.json"}
    assert not (trained / "unfinished").exists()
    assert run(["align", "protein", "train", str(place / "rows.jsonl"), "-o", str(trained)]) == 1
    assert "exists" in capsys.readouterr().err
    load_local(str(trained), runtime="torch")  # as any other model


def test_sequences_come_as_fasta_and_as_json(trained, capsys):
    text = printed(capsys, "generate", trained, "--superfamily", "Alpha", "-n", 2, "--max-residues", 9)
    lines = text.splitlines()
    assert len(lines) == 4 and lines[0].startswith(">1 Alpha logprob=-") and set(lines[1]) <= set(RESIDUES)
    found = json.loads(printed(capsys, "generate", trained, "--prefix", "MK", "--max-residues", 9, "--json"))
    assert found[0]["sequence"].startswith("MK") and found[0]["superfamily"] is None
    assert run(["align", "protein", "generate", str(trained), "--superfamily", "Alpa"]) == 1
    assert 'did you mean "Alpha"?' in capsys.readouterr().err


def test_superfamilies_have_probabilities(trained, capsys):
    found = json.loads(printed(capsys, "determine", trained, "MKKL", "GGSW", "--json"))
    assert [sum(row["probabilities"].values()) for row in found] == [pytest.approx(1)] * 2
    assert set(found[0]["probabilities"]) == set(FAMILIES)
    chosen = printed(capsys, "determine", trained, "MKKL", "--superfamily", "Gamma", "--superfamily", "Delta")
    assert "Gamma" in chosen and "Alpha" not in chosen


def test_mutations_are_judged(trained, capsys):
    rows = json.loads(printed(capsys, "fitness", trained, "MKKL", "K2K", "K2R", "K2R:L4V", "--json"))
    assert rows[0] == {"mutation": "K2K", "fitness": pytest.approx(0, abs=1e-5)} and len(rows) == 3
    assert "K2R" in printed(capsys, "fitness", trained, "MKKL", "K2R", "--superfamily", "Alpha")
    for wrong, message in (("A2R", 'has "K" at place 2'), ("K9R", "it ends at 4"), ("2R", "no substitution")):
        assert run(["align", "protein", "fitness", str(trained), "MKKL", wrong]) == 1
        assert message in capsys.readouterr().err


def test_what_is_refused_before_anything_is_trained(place, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"sequence": "MKK", "family": "Alpha"}\n{"sequence": "MKU", "family": "Alpha"}')
    tiny = str(place / "tiny.gguf")
    assert run(["align", "protein", "train", str(bad), "-m", tiny, "-o", str(tmp_path / "x")]) == 1
    assert 'bad.jsonl:2: residue 3 is "U"' in capsys.readouterr().err
    assert run(["align", "protein", "determine", str(tmp_path), "MKK"]) == 1
    assert "no protein.json" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(place, tmp_path, capsys):
    """Stopped in stage 2: stage 1 is not trained again, and the result is the same."""
    settings = ProteinRun(str(place / "rows.jsonl"), rank=2, epochs=(1, 2), batch=2)

    def train(out, stop=None):
        said, steps = [], []

        def progress(step, loss):
            steps.append(step)
            if len(steps) == stop:
                raise KeyboardInterrupt

        return train_proteins(place / "tiny.gguf", out, settings, say=said.append, progress=progress), said

    whole, _ = train(tmp_path / "whole")
    assert "shards" not in capsys.readouterr().err  # transformers' own bars
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=4)
    other = replace(settings, lr=1e-3)  # what stage 1 learned belongs to the run that was stopped
    with pytest.raises(DataError, match=r"an unfinished run with another lr \(0.0002, now 0.001\)"):
        train_proteins(place / "tiny.gguf", tmp_path / "cut", other)
    again, said = train(tmp_path / "cut")
    assert len(said) == 1 and said[0].startswith("stage 2")
    assert again["stage2"]["record"]["last_loss"] == pytest.approx(whole["stage2"]["record"]["last_loss"], abs=1e-6)
    with pytest.raises(DataError, match="exists"):
        train(tmp_path / "whole")
