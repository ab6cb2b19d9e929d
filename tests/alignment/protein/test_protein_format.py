"""How proteins become token ids: round trips, the prefix property, masks of what is learned, what is refused."""

from __future__ import annotations

import json

import pytest
from tiny_gguf import write_tiny_llama

from likely.alignment.protein import ProteinFormat, read_proteins
from likely.alignment.protein.rows import balanced, with_superfamily
from likely.errors import DataError, ModelError
from likely.models.catalog import find_model
from likely.tokenizers.gguf import tokenizer_from_gguf

SEQUENCE = "MKRVLLMAAGSTWYHHHEEND"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_from_gguf(write_tiny_llama(tmp_path_factory.mktemp("format") / "tiny.gguf"))


@pytest.fixture(scope="module")
def smollm2():
    return tokenizer_from_gguf(find_model("smollm2"))


@pytest.fixture(scope="module")
def form(smollm2):
    return ProteinFormat(smollm2)


def test_texts_come_back(form, tokenizer):
    for one in (form, ProteinFormat(tokenizer), ProteinFormat(tokenizer, tokens="bpe")):
        for text in (
            one.sequence_text(SEQUENCE),
            one.generate_prompt("HPr domain-like"),
            f"{one.determine_prompt(SEQUENCE)} {one.superfamily_text('Zinc finger, AN1')}",
            "Seq=<MK",
            "no field at all",
        ):
            assert one.decode(one.encode(text)) == text


def test_ids_of_a_prefix_are_a_prefix_of_the_ids(form):
    whole = form.encode(form.sequence_text(SEQUENCE))
    for n in range(len(SEQUENCE) + 1):
        start = form.encode(f"Seq=<{SEQUENCE[:n]}")
        assert whole[: len(start)] == start and len(start) == len(form.encode("Seq=<")) + n


def test_ids_of_a_prefix_are_others_where_the_tokenizer_joins_residues(smollm2):
    """The negative control: SmolLM2's tokenizer writes MKRVLL... with tokens of several residues."""
    form = ProteinFormat(smollm2, tokens="bpe")
    whole = form.encode(form.sequence_text(SEQUENCE))
    starts = [form.encode(f"Seq=<{SEQUENCE[:n]}") for n in range(1, len(SEQUENCE))]
    assert any(whole[: len(start)] != start for start in starts)
    assert len(whole) < len(ProteinFormat(smollm2).encode(form.sequence_text(SEQUENCE)))


def test_only_the_answer_and_its_end_are_learned(form):
    eos = form.tokenizer.eos_id
    made, named = form.generate_item("Ferritin", SEQUENCE), form.determine_item(SEQUENCE, "Ferritin")
    for item, prompt, answer in (
        (made, "[Generate by superfamily] Superfamily=<Ferritin>", f" Seq=<{SEQUENCE}>"),
        (named, f"[Determine superfamily] Seq=<{SEQUENCE}>", " Superfamily=<Ferritin>"),
    ):
        assert item.tokens[-1] == eos
        assert form.decode(item.tokens[: item.start]) == prompt
        assert form.decode(item.tokens[item.start : -1]) == answer
    document = form.document(SEQUENCE)
    assert document.start == 1 and form.decode(document.tokens[:-1]) == f"Seq=<{SEQUENCE}>"
    assert list(made.tokens[: len(form.started("Ferritin", "MKR"))]) == form.started("Ferritin", "MKR")
    assert list(document.tokens[: len(form.started(None, "MKR"))]) == form.started(None, "MKR")


def test_letters_outside_the_alphabet_are_named_or_replaced(tokenizer):
    form = ProteinFormat(tokenizer)
    with pytest.raises(DataError, match='x:3: residue 3 is "U", allowed are ACDEF'):
        form.checked("MKUV", "x:3: ")
    with pytest.raises(DataError, match='residue 2 is "k"'):
        form.encode("Seq=<Mk>")
    with pytest.raises(DataError, match="the sequence is empty"):
        form.document("")
    mapped = ProteinFormat(tokenizer, replacements={"U": "C"})
    assert mapped.sequence_text("MKUV") == "Seq=<MKCV>"
    other = ProteinFormat(tokenizer, alphabet="ACGT")  # another language of symbols
    assert other.decode(other.encode("Seq=<GATTACA>")) == "Seq=<GATTACA>"
    with pytest.raises(DataError, match='"M"'):
        other.checked("GATM")


@pytest.mark.parametrize("name", ["", " ", "a<b", "a>b"])
def test_names_that_would_break_the_format(tokenizer, name):
    with pytest.raises(DataError, match="without < and >"):
        ProteinFormat(tokenizer).superfamily_text(name)


@pytest.mark.parametrize("settings", [{"tokens": "word"}, {"alphabet": "AA"}, {"alphabet": "A>"}, {"alphabet": ""}])
def test_settings_that_make_no_format(tokenizer, settings):
    with pytest.raises(ValueError, match="must be"):
        ProteinFormat(tokenizer, **settings)
    with pytest.raises(ValueError, match="replacements must map"):
        ProteinFormat(tokenizer, replacements={"U": "X"})


def test_letters_without_a_token(tokenizer):
    with pytest.raises(ModelError, match='writes "é" in 2 tokens'):
        ProteinFormat(tokenizer, alphabet="Aé")
    assert ProteinFormat(tokenizer, alphabet="Aé", tokens="bpe").sequence_text("éA") == "Seq=<éA>"


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "proteins.jsonl"
    rows = [{"sequence": s, "family": f} for s, f in (("MK", "a"), ("MA", "a"), ("MC", "a"), ("MD", "b"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_proteins(str(path))
    assert [(r.sequence, r.superfamily) for r in found] == [(r["sequence"], r["family"]) for r in rows]
    few = balanced(found, 2)
    assert [r.superfamily for r in few] == ["a", "a", "b"] and few == balanced(list(reversed(found)), 2)[::-1]
    path.write_text('{"sequence": "MK", "family": "a"}\n{"family": "a"}')
    with pytest.raises(
        DataError, match=r'proteins.jsonl:2: expected strings in "sequence" and "family" \(found: family'
    ):
        read_proteins(str(path))
    path.write_text('{"sequence": "MK"}')
    with pytest.raises(DataError, match="jsonl:1: this row has no superfamily"):
        with_superfamily(read_proteins(str(path)), lambda name, where: None)


def test_rows_of_the_data_set():
    rows = read_proteins("protein-families:test")
    assert len(rows) == 112 and len({r.superfamily for r in rows}) == 6
