from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from likely.errors import ModelError
from likely.io.hashes import cache_dir, file_sha256, folder_sha256


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights" * 1000)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_hash_is_that_of_the_bytes_with_and_without_cache(old_file: Path) -> None:
    expected = hashlib.sha256(old_file.read_bytes()).hexdigest()
    assert [file_sha256(old_file) for _ in range(3)] == [expected] * 3
    assert str(old_file.resolve()) in json.loads((cache_dir() / "hashes.json").read_text())


def test_cached_hash_is_used_while_size_and_time_are_the_same(old_file: Path) -> None:
    file_sha256(old_file)
    cache = cache_dir() / "hashes.json"
    entries = json.loads(cache.read_text())
    entries[str(old_file.resolve())][2] = "0" * 64
    cache.write_text(json.dumps(entries))
    assert file_sha256(old_file) == "0" * 64
    os.utime(old_file, ns=(10**18 + 1, 10**18 + 1))
    assert file_sha256(old_file) == hashlib.sha256(old_file.read_bytes()).hexdigest()


def test_changed_bytes_give_another_hash(old_file: Path) -> None:
    first = file_sha256(old_file)
    old_file.write_bytes(b"Weights" * 1000)
    assert file_sha256(old_file) == hashlib.sha256(b"Weights" * 1000).hexdigest() != first


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"x": 1}', b"\xff\xfe", b'{"x": [1, 2, "short"]}', b"[" * 100_000]
)
def test_broken_cache_is_ignored_and_replaced(old_file: Path, content: bytes) -> None:
    cache_dir().mkdir()
    (cache_dir() / "hashes.json").write_bytes(content)
    assert file_sha256(old_file) == hashlib.sha256(old_file.read_bytes()).hexdigest()
    assert str(old_file.resolve()) in json.loads((cache_dir() / "hashes.json").read_text())


def test_unwritable_cache_is_ignored(old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain file").write_text("")
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "plain file" / "below"))
    assert file_sha256(old_file) == hashlib.sha256(old_file.read_bytes()).hexdigest()


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.gguf: cannot be read"):
        file_sha256(tmp_path / "nothing.gguf")


def test_folder_hash_depends_on_names_and_contents_but_not_on_the_readme(old_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ModelError, match="no model files"):
        folder_sha256(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"abc")
    first = folder_sha256(folder)
    (folder / "README.md").write_text("hello")
    assert folder_sha256(folder) == first
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert folder_sha256(folder) != first
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").write_text("{ }")
    assert folder_sha256(folder) != first


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKELY_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("LIKELY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/likely")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("~/.cache/likely").expanduser()
