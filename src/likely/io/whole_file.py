"""Files that are there whole or not at all: written to a temporary name beside the target, then renamed."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from likely.errors import DataError


@contextmanager
def partial_beside(target: Path, *, folder: bool = False, private: bool = False) -> Iterator[Path]:
    """An empty file or folder beside `target` to make it in; what still has its name at the end is removed.

    So is what killed processes left there before: whoever works on such a file or folder holds a lock on it.
    """
    name = f".{target.name[:100]}."
    _remove_left(target.parent, name)
    made = target.with_name(f"{name}{secrets.token_hex(4)}.partial")
    if folder:
        made.mkdir(0o700 if private else 0o777)
    else:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
    lock = _lock(made)
    try:
        yield made
    finally:
        if lock is not None:
            os.close(lock)
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink(missing_ok=True)


def _remove_left(folder: Path, name: str) -> None:
    for left in folder.glob(f"{glob.escape(name)}????????.partial"):
        with suppress(OSError):
            just_made = time.time() - left.stat().st_mtime < 60  # and perhaps not locked yet
            if just_made or (lock := _lock(left)) is None:
                continue
            try:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(lock)


def _lock(path: Path) -> int | None:
    """What holds it until it is closed or the process ends; None where others hold it or locks cannot be had."""
    if os.name == "nt":
        return None
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; when the block ends without an error it takes the place of `path`, else nothing changes.

    The folder is made if need be, a link is followed.  Permissions are an existing file's, or those that any new file
    gets (0666 less the umask).
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with partial_beside(target, private=True) as made:
        with made.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        made.chmod(_permissions(target))
        made.replace(target)


def write_whole_file(path: Path, data: bytes) -> None:
    """Write `data`; an error (OSError) or an interruption leaves the old file as it was."""
    with replacing(path) as out:
        out.write(data)


def write_for_user(path: Path, data: bytes) -> None:
    """The same for a file that the user named: DataError, in one line, where it cannot be written."""
    try:
        write_whole_file(path, data)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from None


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a file; DataError, in one line, for one that cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def check_target(path: Path, suffixes: Sequence[str] = ()) -> None:
    """DataError, or ValueError for a wrong ending, if `path` cannot be written."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"the file must end in {', '.join(suffixes)}, got {str(path)!r}")
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise DataError(f"cannot write {path}: it is {'a folder' if target.is_dir() else 'not a regular file'}")
    if not target.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"cannot write {path}: the folder {target.parent} is read-only")


def _permissions(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        umask = os.umask(0o022)  # it can only be read by setting it
        os.umask(umask)
        return 0o666 & ~umask
