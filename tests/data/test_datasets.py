"""Data sets: found by name, checked against their README, read record by record; broken ones are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from written_sets import FILES, write_set

from likely.data import datasets
from likely.errors import DataError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "data"
    write_set(root, "mixed", FILES)
    monkeypatch.setenv("LIKELY_DATA", str(root))
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    return root


def test_every_format_gives_its_records(home):
    assert list(datasets.load("mixed", "train")) == [{"a": 1}, {"a": "ü"}]
    assert list(datasets.load("mixed", "set.test.jsonl")) == [{"a": 3}]
    assert list(datasets.load("mixed", "quoted")) == [{"x": "1", "y": "a,b"}, {"x": "2", "y": 'c "d"'}]
    assert list(datasets.load("mixed", "plain")) == [{"text": 'say "hi', "label": "no"}]
    assert [r["text"] for r in datasets.load("mixed", "lines")] == ["one", "", "three\u2028still three"]


@pytest.mark.parametrize("form", ["table", "sums", "pair"])
def test_all_forms_of_a_readme_are_read(home, form):
    folder = write_set(home, "other", {"x.jsonl": b'{"q": 1}\n'}, form=form)
    card = datasets.info("other")
    assert (card.title, card.source, card.licence) == ("a set", "somewhere (commit 1)", "CC BY 4.0 (them)")
    assert card.files[0].size_bytes == (None if form == "sums" else 9)
    assert datasets.path("other") == folder and list(datasets.load("other")) == [{"q": 1}]


def test_arrays_without_pickle(home):
    folder = home / "numbers"
    folder.mkdir()
    np.savez(folder / "good.npz", a=np.arange(3), b=np.ones((2, 2)))
    np.savez(folder / "bad.npz", a=np.array([{"code": 1}], dtype=object))
    write_set(home, "numbers", {name: (folder / name).read_bytes() for name in ("good.npz", "bad.npz")})
    assert datasets.arrays("numbers", "good")["b"].shape == (2, 2)
    assert [record["name"] for record in datasets.load("numbers", "good")] == ["a", "b"]
    with pytest.raises(DataError, match="plain arrays"):
        datasets.arrays("numbers", "bad")


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"X", lambda d: d + b" "], ids=["byte", "length"])
def test_a_changed_file_is_refused_before_it_is_read(home, change):
    list(datasets.load("mixed", "test"))
    file = home / "mixed" / "set.test.jsonl"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=r"its README says .*Source: somewhere"):
        datasets.load("mixed", "test")
    with pytest.raises(DataError, match="README says"):
        datasets.path("mixed")
    assert datasets.path("mixed", "test", verify=False) == file


def test_a_missing_file_names_its_source(home):
    (home / "mixed" / "lines.txt").unlink()
    with pytest.raises(DataError, match=r"lines.txt is missing. Source: somewhere"):
        datasets.load("mixed", "lines")


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
        list(datasets.load("broken"))
    assert "\n" not in str(caught.value)


def test_it_is_an_attribute_of_the_package():
    import likely

    assert likely.data.datasets is datasets and "datasets" in dir(likely)


def test_names_that_do_not_exist_suggest_the_nearest(home):
    with pytest.raises(DataError, match='did you mean "mixed"'):
        datasets.info("mixd")
    with pytest.raises(DataError, match=r'has no file "lines.text"; did you mean "lines.txt"'):
        datasets.load("mixed", "lines.text")
    with pytest.raises(DataError, match="name one of"):
        datasets.load("mixed")
    write_set(home, "two", {"a_test.jsonl": b"", "b_test.jsonl": b""})
    with pytest.raises(DataError, match="give a full name"):
        datasets.load("two", "test")
    write_set(home, "odd", {"x.sto": b"#"})
    with pytest.raises(DataError, match=r"likely.data.datasets.path\(\"odd\", \"x.sto\"\)"):
        datasets.load("odd")


def test_a_readme_cannot_point_out_of_its_folder(home):
    write_set(home, "odd", {"x.txt": b"1"}, form="sums")
    readme = home / "odd" / "README.md"
    readme.write_text(readme.read_text().replace("x.txt", "../../secret.txt"))
    with pytest.raises(DataError, match="not the name of a file"):
        datasets.info("odd")


def test_without_data_one_line_says_how_to_set_it(monkeypatch, tmp_path):
    monkeypatch.delenv("LIKELY_DATA", raising=False)
    monkeypatch.setattr(datasets, "find_checkout", lambda: None)
    with pytest.raises(DataError, match="set LIKELY_DATA"):
        datasets.available()
    monkeypatch.setenv("LIKELY_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"LIKELY_DATA .*nowhere is not a folder"):
        datasets.available()
    assert datasets.root(tmp_path) == tmp_path  # the argument comes first


def test_every_shared_set_is_described_whole_and_unchanged(data_dir):
    names = datasets.available(data_dir)
    assert len(names) >= 38
    for name in names:
        card = datasets.info(name, data_dir=data_dir)
        on_disk = {p.name for p in card.folder.iterdir()} - {"README.md"}
        assert {f.name for f in card.files} == on_disk, name
        datasets.path(name, data_dir=data_dir)
    assert datasets.info("c4_sample", data_dir=data_dir).licence.endswith("ODC-BY 1.0")
    counts = {("wikitext2", "test"): 4358, ("clinc150", "train"): 9000, ("seqlens_wikipedia", None): 200_000}
    for (name, split), count in counts.items():
        assert sum(1 for _ in datasets.load(name, split, data_dir=data_dir)) == count
