"""Data sets: found by name, checked against the manifest, read record by record; broken ones are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from written_sets import FILES, write_set

from likely.data import data_root, datasets, find_path, find_set, list_sets, load_arrays, load_records
from likely.data.manifest import PACKAGED, read_entries
from likely.errors import DataError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "data"
    write_set(root, "mixed", FILES)
    monkeypatch.setenv("LIKELY_DATA", str(root))
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    return root


def test_every_format_gives_its_records(home):
    assert list(load_records("mixed", "train")) == [{"a": 1}, {"a": "ü"}]
    assert list(load_records("mixed", "set.test.jsonl")) == [{"a": 3}]
    assert list(load_records("mixed", "quoted")) == [{"x": "1", "y": "a,b"}, {"x": "2", "y": 'c "d"'}]
    assert list(load_records("mixed", "plain")) == [{"text": 'say "hi', "label": "no"}]
    assert [r["text"] for r in load_records("mixed", "lines")] == ["one", "", "three\u2028still three"]


def test_the_manifest_says_what_a_set_is(home):
    folder = write_set(home, "other", {"x.jsonl": b'{"q": 1}\n'})
    found = find_set("other")
    assert (found.title, found.source, found.licence) == ("a set", "somewhere (commit 1)", "CC BY 4.0 (them)")
    assert found.described and found.files[0].size_bytes == 9
    assert find_path("other") == folder and list(load_records("other")) == [{"q": 1}]


@pytest.mark.parametrize("readme", [True, False])
def test_a_set_that_no_manifest_names_is_read_and_said_to_be_unverified(home, readme):
    folder = home / "own"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"q": 1}\n')
    (folder / ".hidden").write_text("no")
    if readme:
        (folder / "README.md").write_text("# own: notes\n")
    found = find_set("own")
    assert not found.described and [file.name for file in found.files] == ["train.jsonl"]
    assert found.licence == ("see its README" if readme else "not stated") and "own" in list_sets()
    with pytest.warns(UserWarning, match=r"train.jsonl is in no manifest: read unverified"):
        assert list(load_records("own")) == [{"q": 1}]


def test_arrays_without_pickle(home):
    folder = home / "numbers"
    folder.mkdir()
    np.savez(folder / "good.npz", a=np.arange(3), b=np.ones((2, 2)))
    np.savez(folder / "bad.npz", a=np.array([{"code": 1}], dtype=object))
    write_set(home, "numbers", {name: (folder / name).read_bytes() for name in ("good.npz", "bad.npz")})
    assert load_arrays("numbers", "good")["b"].shape == (2, 2)
    assert [record["name"] for record in load_records("numbers", "good")] == ["a", "b"]
    with pytest.raises(DataError, match="plain arrays"):
        load_arrays("numbers", "bad")


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"X", lambda d: d + b" "], ids=["byte", "length"])
def test_a_changed_file_is_refused_before_it_is_read(home, change):
    list(load_records("mixed", "test"))
    file = home / "mixed" / "set.test.jsonl"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=r"the manifest says .*Source: somewhere"):
        load_records("mixed", "test")
    with pytest.raises(DataError, match="the manifest says"):
        find_path("mixed")
    assert find_path("mixed", "test", verify=False) == file


def test_a_missing_file_names_its_source(home):
    (home / "mixed" / "lines.txt").unlink()
    with pytest.raises(DataError, match=r"lines.txt is missing. Source: somewhere"):
        load_records("mixed", "lines")


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("x.csv", b"a,b\n1,2\n3\n", r"x.csv:3: 1 columns, the header has 2"),
        ("x.csv", b"", "empty"),
        ("x.csv", b'a,b\n1,"2\n', "x.csv:2"),
        ("x.jsonl", b'{"a": 1}\n{"a": NaN}\n', r"x.jsonl:2: not JSON"),
        ("x.txt", b"ok\n\xff\xfe\n", "not UTF-8"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-6], "broken gzip"),
        ("x.jsonl.gz", b"not gzip at all", "broken gzip"),
    ],
)
def test_broken_content_is_one_clear_line(home, file, data, words):
    write_set(home, "broken", {file: data})
    with pytest.raises(DataError, match=words) as caught:
        list(load_records("broken"))
    assert "\n" not in str(caught.value)


def test_names_that_do_not_exist_suggest_the_nearest(home):
    with pytest.raises(DataError, match='did you mean "mixed"'):
        find_set("mixd")
    with pytest.raises(DataError, match=r'has no file "lines.text"; did you mean "lines.txt"'):
        load_records("mixed", "lines.text")
    with pytest.raises(DataError, match="name one of"):
        load_records("mixed")
    write_set(home, "two", {"a_test.jsonl": b"", "b_test.jsonl": b""})
    with pytest.raises(DataError, match="give a full name"):
        load_records("two", "test")
    write_set(home, "odd", {"x.sto": b"#"})
    with pytest.raises(DataError, match=r"likely.data.find_path\(\"odd\", \"x.sto\"\)"):
        load_records("odd")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"x.txt"', '"../../secret.txt"', "not the name of a file"),
        ("licence", "license", '"licence" is missing'),
        ("files", "file", "lists no files"),
        ("sha256", "sha", "needs name, bytes and sha256"),
        ("bytes = 1", "bytes = 'many'", "needs name, bytes and sha256"),
        ("[odd]", "[odd", "cannot read"),
    ],
)
def test_a_wrong_manifest_is_one_clear_line(tmp_path, old, new, words):
    write_set(tmp_path, "odd", {"x.txt": b"1"})
    manifest = tmp_path / "manifest.toml"
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(DataError, match=words) as caught:
        find_set("odd", data_dir=tmp_path)
    assert "\n" not in str(caught.value) and str(manifest) in str(caught.value)


def test_a_known_set_that_is_not_here_names_its_source(home):
    with pytest.raises(DataError, match=r"trec is not in .*Source: awasthiabhijeet"):
        find_set("trec")


def test_without_data_one_line_says_how_to_set_it(monkeypatch, tmp_path):
    monkeypatch.delenv("LIKELY_DATA", raising=False)
    monkeypatch.setattr(datasets, "find_checkout", lambda: None)
    with pytest.raises(DataError, match="set LIKELY_DATA"):
        list_sets()
    monkeypatch.setenv("LIKELY_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"LIKELY_DATA .*nowhere is not a folder"):
        list_sets()
    assert data_root(tmp_path) == tmp_path  # the argument comes first


def test_every_shared_set_is_described_whole_and_unchanged(data_dir):
    names = list_sets(data_dir)
    assert len(names) >= 38 and set(names) == set(read_entries(PACKAGED))
    for name in names:
        card = find_set(name, data_dir=data_dir)
        assert card.described, name
        on_disk = {p.name for p in card.folder.iterdir()} - {"README.md"}
        assert {f.name for f in card.files} == on_disk, name
        find_path(name, data_dir=data_dir)
    assert find_set("c4_sample", data_dir=data_dir).licence.endswith("ODC-BY 1.0")
    counts = {("wikitext2", "test"): 4358, ("clinc150", "train"): 9000, ("seqlens_wikipedia", None): 200_000}
    for (name, split), count in counts.items():
        assert sum(1 for _ in load_records(name, split, data_dir=data_dir)) == count
