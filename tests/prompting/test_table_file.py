"""Rows of CSV, TSV and JSONL files: the same rows, and errors that name file and line."""

from __future__ import annotations

import gzip

import pytest

from likely.errors import DataError
from likely.prompting.risk.file import read_table

CSV = 'a,b\n1,"x, y"\n\n2,z\n'
ROWS = [{"a": "1", "b": "x, y"}, {"a": "2", "b": "z"}]


def test_formats_give_the_same_rows(tmp_path):
    files = {"t.csv": CSV.encode(), "t.tsv": b"a\tb\n1\tx, y\n2\tz\n", "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
             "crlf.csv": CSV.replace("\n", "\r\n").encode(), "t.csv.gz": gzip.compress(CSV.encode()),
             "t.jsonl": b'{"a": "1", "b": "x, y"}\n{"a": "2", "b": "z"}\n'}  # fmt: skip
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        lines = read_table(str(tmp_path / name))
        assert [line.record for line in lines] == ROWS and [line.number for line in lines] == [1, 2], name
        assert len({line.digest for line in lines}) == 2
    assert [line.record for line in read_table(str(tmp_path / "t.csv"), limit=1)] == ROWS[:1]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"), (b"a,b\n", "holds no rows"), (b"a,b\n1,2,3\n", ":2: 3 cells, the header has 2"),
        (b"a,a\n1,2\n", 'names the column "a" twice'), (b"a,b\n1,\xff\n", "not UTF-8"),
        (b'a,b\n1,"x\n', "not CSV"), (b"a,b\n1,x\x00\n", None),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_clear_error(tmp_path, raw, message):
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    if message is None:
        assert read_table(str(path))
        return
    with pytest.raises(DataError, match=message) as caught:
        read_table(str(path))
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*no.csv"):
        read_table(str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match="cannot read"):
        read_table(str(tmp_path))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(CSV.encode() * 99)[:-9])
    with pytest.raises(DataError, match="cannot read"):
        read_table(str(tmp_path / "t.csv.gz"))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(CSV.encode())[:10] + b"\x07" * 20)
    with pytest.raises(DataError, match="cannot read"):
        read_table(str(tmp_path / "d.csv.gz"))
