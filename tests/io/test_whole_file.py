"""Whole files: what stands there afterwards, and who may read it."""

from __future__ import annotations

import os
import stat

import pytest

from likely.io.whole_file import partial_beside, write_whole_file


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_as_readable_as_any_other(tmp_path, umask):
    write_whole_file(tmp_path / "deep" / "new", b"one")
    (tmp_path / "plain").write_bytes(b"one")
    assert mode(tmp_path / "deep" / "new") == mode(tmp_path / "plain") == 0o666 & ~umask
    assert os.umask(umask) == umask  # as it was


def test_an_existing_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o604)
    write_whole_file(path, b"new")
    assert mode(path) == 0o604 and path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_whole_file(path, "no bytes")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_goes_and_what_others_still_write_stays(tmp_path):
    target, long_ago = tmp_path / "file", (0, 0)
    for name in (".file.0123abcd.partial", ".other.0123abcd.partial"):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, long_ago)
    folder = tmp_path / ".file.abcd0123.partial"
    folder.mkdir()
    (folder / "part").touch()
    os.utime(folder, long_ago)
    fresh = tmp_path / ".file.00000000.partial"
    fresh.touch()  # by a process that has no lock on it yet
    with partial_beside(target, folder=True) as mine:
        os.utime(mine, long_ago)
        write_whole_file(target, b"whole")
        assert set(tmp_path.iterdir()) == {mine, fresh, target, tmp_path / ".other.0123abcd.partial"}
    assert not mine.exists()
