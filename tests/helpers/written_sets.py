"""Small data sets as folders, described by the manifest of the folder that holds them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

RECORDS = b'{"a": 1}\n\n{"a": "\xc3\xbc"}\n'
FILES = {
    "set.train.jsonl.gz": gzip.compress(RECORDS, mtime=0),
    "set.test.jsonl": b'{"a": 3}\n',
    "quoted.csv": b'x,y\n1,"a,b"\n2,"c ""d"""\n',
    "plain.tsv.gz": gzip.compress(b'text\tlabel\nsay "hi\tno\n', mtime=0),
    "lines.txt": "one\n\nthree\u2028still three".encode(),
}


def write_set(root: Path, name: str, files: dict[str, bytes]) -> Path:
    """The set's files and its entry in root/manifest.toml."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for file, data in files.items():
        (folder / file).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(f'{{ name = {json.dumps(file)}, bytes = {len(data)}, sha256 = "{digest}" }}')
    entry = f"""[{name}]
title = "a set"
source = "somewhere (commit 1)"
licence = "CC BY 4.0 (them)"
files = [{", ".join(rows)}]
"""
    with (root / "manifest.toml").open("a", encoding="utf-8") as manifest:
        manifest.write(entry)
    return folder
