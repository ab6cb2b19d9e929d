"""Small data sets as folders with a README, in the forms that READMEs take."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

RECORDS = b'{"a": 1}\n\n{"a": "\xc3\xbc"}\n'
FILES = {
    "set.train.jsonl.gz": gzip.compress(RECORDS, mtime=0),
    "set.test.jsonl": b'{"a": 3}\n',
    "quoted.csv": b'x,y\n1,"a,b"\n2,"c ""d"""\n',
    "plain.tsv.gz": gzip.compress(b'text\tlabel\nsay "hi\tno\n', mtime=0),
    "lines.txt": "one\n\nthree\u2028still three".encode(),
}


def write_set(root: Path, name: str, files: dict[str, bytes], *, form: str = "table") -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    head = f"# {name}: a set\n\n- Source: somewhere (commit 1)\n- Licence: CC BY 4.0 (them)\n\n"
    if form == "table":
        rows = [f"| `{file}` | {len(files[file]):,} | {sums[file]} |" for file in files]
        body = "\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])
    elif form == "sums":
        body = "sha256:\n```\n" + "\n".join(f"{digest}  {file}" for file, digest in sums.items()) + "\n```"
    else:
        [file] = files
        body = f"| | |\n|---|---|\n| File | `{file}` ({len(files[file]):,} bytes; much) |\n| sha256 | `{sums[file]}` |"
    (folder / "README.md").write_text(f"{head}{body}\n")
    return folder
