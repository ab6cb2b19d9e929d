from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "wide.gguf", dim=64, ffn=128)


def test_spectra_of_a_model_and_its_quantised_self(cli, wide, tmp_path):
    cli("compress", wide, "--scheme", "w4g32", "--out", tmp_path / "w4.gguf")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 20)
    shared = ("--data", text, "--texts", 3, "--tokens", 24, "--threads", 1)
    one = cli("audit", "spectral", wide, *shared, "--json").json
    assert len(one["texts"]) == 3 and one["same_length"] and one["texts"][0]["tokens"] == 24 and one["caveats"]
    both = cli("audit", "spectral", wide, tmp_path / "w4.gguf", *shared, "--kl", "--layer", 0, "--layer", -1, "--json")
    first, *_, last = both.json["reports"]
    assert len(both.json["reports"]) == 4 and "kl" not in first and last["kl"] > 0
    table = cli("audit", "spectral", wide, tmp_path / "w4.gguf", *shared, "--kl")
    assert table.code == 0 and "KL (nats)" in table.out and "depends on the basis" in table.out


def test_errors_are_one_line(cli, wide):
    for arguments, message in (
        (("--kl",), "needs a second model"),
        (("--layer", 99, "--data", "python_stdlib", "--texts", 1, "--tokens", 8), "layer must lie between"),
        (("--data", "nosuch.txt"), "does not exist"),
    ):
        done = cli("audit", "spectral", wide, *arguments)
        assert done.code in (1, 2) and message in done.err and len(done.err.splitlines()) == 1, done.err
    assert "named twice" in cli("audit", "spectral", wide, wide).err
