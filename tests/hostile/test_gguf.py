"""A GGUF file is read or refused with one ModelError line; never another exception, never much memory."""

from __future__ import annotations

import random
import signal
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import write_tiny_gemma3, write_tiny_llama

from likely.errors import ModelError
from likely.formats.gguf import TENSOR_TYPES, ArrayRef, GgufHeader, read_header


def u32(x: int) -> bytes:
    return struct.pack("<I", x)


def u64(x: int) -> bytes:
    return struct.pack("<Q", x)


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw)) + raw


def kv_text(key: str, value: str) -> bytes:
    return text(key) + u32(8) + text(value)


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


ARCH = kv_text("general.architecture", "llama")


def file_of(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    keys, tensors = [ARCH] if keys is None else keys, tensors or []
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = b"GGUF" + u32(version) + u64(n_tensors) + u64(n_keys) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


GOOD = file_of(
    [
        ARCH,
        text("words") + u32(9) + u32(8) + u64(3) + text("a") + text("") + text("日本"),
        text("numbers") + u32(9) + u32(6) + u64(2) + struct.pack("<ff", 1.5, -2),
        text("flags") + u32(9) + u32(7) + u64(2) + b"\0\1",
        text("nested") + u32(9) + u32(9) + u64(2) + (u32(4) + u64(1) + u32(7)) + (u32(8) + u64(1) + text("x")),
        text("general.alignment") + u32(4) + u32(32),
    ],
    [tensor("a", [32, 2], 8, 0), tensor("b", [4], 0, 96), tensor("c", [32], 2, 128)],
    b"\1" * 160,
)
HUGE = (1 << 64) - 1
BAD: dict[str, bytes] = {
    "empty": b"",
    "four bytes": b"GGUF",
    "text": b"this is not a model\n" * 10,
    "html": b"<!DOCTYPE html><html>404</html>" * 4,
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b" + bytes(60),
    "safetensors": u64(16) + b'{"a": {"dtype":1',
    "ggml": b"tjgg" + bytes(60),
    "version 1": file_of(version=1),
    "version 4": file_of(version=4),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + bytes(40),
    "big endian magic": b"FUGG" + struct.pack(">IQQ", 3, 0, 1) + bytes(40),
    "no architecture": file_of([kv_text("general.name", "x")]),
    "architecture is a number": file_of([text("general.architecture") + u32(4) + u32(1)]),
    "architecture is empty": file_of([kv_text("general.architecture", "")]),
    "absurd key count": file_of(counts=(0, HUGE)),
    "many keys": file_of(counts=(0, 60_000)),
    "absurd tensor count": file_of(counts=(HUGE, 1)),
    "many tensors": file_of(counts=(100_000, 1)),
    "absurd key length": file_of([u64(HUGE) + b"x"]),
    "long key": file_of([text("k" * 70_000) + u32(4) + u32(1)]),
    "absurd string length": file_of([text("general.architecture") + u32(8) + u64(1 << 40) + b"llama"]),
    "absurd array of bytes": file_of([ARCH, text("a") + u32(9) + u32(0) + u64(HUGE)]),
    "absurd array of strings": file_of([ARCH, text("a") + u32(9) + u32(8) + u64(1 << 61)]),
    "array of strings past the end": file_of([ARCH, text("a") + u32(9) + u32(8) + u64(2) + text("x") + u64(999)]),
    "absurd array of arrays": file_of([ARCH, text("a") + u32(9) + u32(9) + u64(HUGE)]),
    "deep arrays": file_of([ARCH, text("a") + u32(9) + (u32(9) + u64(1)) * 5 + u32(0) + u64(0)]),
    "very deep arrays": file_of([ARCH, text("a") + u32(9) + (u32(9) + u64(1)) * 100_000]),
    "many arrays in arrays": file_of([ARCH, text("a") + u32(9) + u32(9) + u64(70_000) + (u32(0) + u64(0)) * 70_000]),
    "unknown value type": file_of([ARCH, text("a") + u32(13) + u64(0)]),
    "unknown item type": file_of([ARCH, text("a") + u32(9) + u32(77) + u64(1) + u64(0)]),
    "boolean of 2": file_of([ARCH, text("a") + u32(7) + b"\2"]),
    "booleans of 2": file_of([ARCH, text("a") + u32(9) + u32(7) + u64(2) + b"\1\2"]),
    "empty key": file_of([ARCH, text("") + u32(4) + u32(1)]),
    "key not UTF-8": file_of([ARCH, text(b"\xff\xfe") + u32(4) + u32(1)]),
    "duplicate key": file_of([ARCH, kv_text("a", "1"), kv_text("a", "2")]),
    "duplicate tensor": file_of(tensors=[tensor("a", [8], 0, 0), tensor("a", [8], 0, 32)], data=bytes(64)),
    "overlapping tensors": file_of(tensors=[tensor("a", [16], 0, 0), tensor("b", [8], 0, 32)], data=bytes(64)),
    "same offset": file_of(tensors=[tensor("a", [8], 0, 0), tensor("b", [8], 0, 0)], data=bytes(64)),
    "tensor past the end": file_of(tensors=[tensor("a", [16], 0, 0)], data=bytes(60)),
    "offset past the end": file_of(tensors=[tensor("a", [8], 0, 1 << 40)], data=bytes(64)),
    "absurd offset": file_of(tensors=[tensor("a", [8], 0, HUGE - 31)], data=bytes(64)),
    "unaligned offset": file_of(tensors=[tensor("a", [8], 0, 4)], data=bytes(64)),
    "zero dimension": file_of(tensors=[tensor("a", [8, 0], 0, 0)], data=bytes(64)),
    "no dimensions": file_of(tensors=[tensor("a", [], 0, 0)], data=bytes(64)),
    "nine dimensions": file_of(tensors=[tensor("a", [1] * 9, 0, 0)], data=bytes(64)),
    "absurd dimension count": file_of(tensors=[text("a") + u32(2**32 - 1) + bytes(64)], data=bytes(64)),
    "product overflows": file_of(tensors=[tensor("a", [1 << 32, 1 << 32], 0, 0)], data=bytes(64)),
    "product wraps to a small number": file_of(tensors=[tensor("a", [1 << 33, (1 << 31) + 1], 0, 0)], data=bytes(64)),
    "half a block": file_of(tensors=[tensor("a", [16], 8, 0)], data=bytes(64)),
    "unknown tensor type": file_of(tensors=[tensor("a", [8], 5, 0)], data=bytes(64)),
    "absurd tensor type": file_of(tensors=[tensor("a", [8], 2**31, 0)], data=bytes(64)),
    "tensor without a name": file_of(tensors=[tensor("", [8], 0, 0)], data=bytes(64)),
    "long tensor name": file_of(tensors=[tensor("n" * 65, [8], 0, 0)], data=bytes(64)),
    "alignment 0": file_of([ARCH, text("general.alignment") + u32(4) + u32(0)]),
    "alignment 33": file_of([ARCH, text("general.alignment") + u32(4) + u32(33)]),
    "alignment 2^31": file_of([ARCH, text("general.alignment") + u32(4) + u32(1 << 31)]),
    "alignment is text": file_of([ARCH, kv_text("general.alignment", "32")]),
    "alignment is true": file_of([ARCH, text("general.alignment") + u32(7) + b"\1"]),
}
# 43 bytes: a sound start, then a count that sends a trusting reader into a loop of 2^60 steps
for n_tensors, n_keys in ((HUGE, 0), (0, HUGE), (1 << 60, 1 << 60), (0, 1)):
    BAD[f"43 bytes, {n_tensors} tensors, {n_keys} keys"] = (
        b"GGUF" + u32(3) + u64(n_tensors) + u64(n_keys) + text("abc") + u32(9) + u32(8)
    )[:43]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A reader that loops over an absurd count ends in a failure, not in a stuck run; processor time counts."""
    if not hasattr(signal, "SIGPROF"):
        yield
        return

    def stop(*_: object) -> None:
        raise AssertionError("the reader hangs")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 60)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def peak_of_reading(path: Path) -> tuple[GgufHeader | ModelError, int]:
    """The header or the refusal, and the largest number of bytes Python held meanwhile."""
    tracemalloc.start()
    try:
        return read_header(path), tracemalloc.get_traced_memory()[1]
    except ModelError as error:
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_in_one_line_with_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[name])
    result, peak = peak_of_reading(path)
    assert isinstance(result, ModelError), f"accepted: {result}"
    assert str(result).startswith(f"{path}: ") and "\n" not in str(result) and len(str(result)) < 400
    assert peak < 1_000_000 + 4 * len(BAD[name])


@pytest.mark.parametrize("version", [2, 3])
def test_sound_file_is_read(tmp_path: Path, version: int) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD[:4] + u32(version) + GOOD[8:])
    header = read_header(path)
    assert header.version == version and header.architecture == "llama"
    assert header.metadata["words"].strings() == ["a", "", "日本"]
    assert header.metadata["numbers"].tolist() == [1.5, -2.0] and header.metadata["flags"].tolist() == [False, True]
    assert [list(inner) for inner in header.metadata["nested"].tolist()] == [[7], ["x"]]
    assert [(t.name, t.shape, t.type, t.offset, t.nbytes) for t in header.tensors] == [
        ("a", (2, 32), "Q8_0", 0, 68),
        ("b", (4,), "F32", 96, 16),
        ("c", (32,), "Q4_0", 128, 18),
    ]
    for key, (start, end) in header.spans.items():
        assert GOOD[start:end].startswith(text(key))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    last = len(GOOD) - 160 + 128 + 18  # the last tensor ends here; padding after it may be missing
    for length in range(last):
        path.write_bytes(GOOD[:length])
        with pytest.raises(ModelError):
            read_header(path)
    path.write_bytes(GOOD[:last])
    read_header(path)


@pytest.mark.slow
def test_random_mutations_are_read_or_refused(tmp_path: Path) -> None:
    rng, path, refused = random.Random(1), tmp_path / "mutant.gguf", 0
    lengths = [i for i in range(8, len(GOOD) - 168) if int.from_bytes(GOOD[i : i + 8], "little") < 64]
    for _ in range(10_000):
        raw = bytearray(GOOD)
        for _ in range(rng.choice([1, 1, 2, 8])):
            match rng.randrange(4):
                case 0:
                    at = rng.randrange(len(raw))
                    raw[at] ^= 1 << rng.randrange(8)
                case 1:
                    del raw[rng.randrange(len(raw)) :]
                case 2:
                    at = rng.choice(lengths)
                    raw[at : at + 8] = u64(rng.choice([0, 1, 2, 255, 1 << 16, 1 << 31, 1 << 32, 1 << 62, HUGE]))
                case 3:
                    at = rng.randrange(len(raw))
                    raw[at:at] = rng.randbytes(rng.randrange(9))
            raw = raw or bytearray(b"G")
        path.write_bytes(raw)
        result, peak = peak_of_reading(path)
        assert peak < 1_000_000
        refused += isinstance(result, ModelError)
        if isinstance(result, GgufHeader):
            check_sound(result, len(raw))
    assert 2500 < refused < 10_000


def check_sound(header: GgufHeader, size: int) -> None:
    end = 0
    for item in sorted(header.tensors, key=lambda t: t.offset):
        assert end <= item.offset and item.size > 0 and item.nbytes > 0
        end = item.offset + item.nbytes
        assert header.data_offset + end <= size
    for value in header.metadata.values():
        if isinstance(value, ArrayRef):
            try:
                assert len(value.tolist()) == len(value)
            except ModelError as error:
                assert "UTF-8" in str(error)


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a file"):
        read_header(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        read_header(tmp_path / "x.gguf")


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_gemma3])
@pytest.mark.parametrize("dtype", ["F32", "Q8_0", "BF16"])
def test_header_agrees_with_the_public_reader(write, dtype: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", dtype=dtype)
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, list(t.shape[::-1]), t.type, t.nbytes, t.offset + ours.data_offset) for t in ours.tensors] == [
        (t.name, t.shape.tolist(), t.tensor_type.name, t.n_bytes, t.data_offset) for t in theirs.tensors
    ]
    fields = {key: value for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, value in ours.metadata.items():
        expected = fields[key].contents()
        assert (value.tolist() if isinstance(value, ArrayRef) else value) == expected


def test_tensor_types_agree_with_the_public_table() -> None:
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: known[number] for number in TENSOR_TYPES if number in known} == {
        number: entry for number, entry in TENSOR_TYPES.items() if number in known
    }


def test_numbers_asked_of_strings_are_an_error() -> None:
    words = ArrayRef(8, 1, text("a"))
    with pytest.raises(ModelError, match="numbers"):
        words.numpy()
    with pytest.raises(ModelError, match="strings"):
        ArrayRef(4, 1, u32(1)).raw_strings()
    with pytest.raises(ModelError, match="string 0 of the array is not UTF-8"):
        ArrayRef(8, 1, text(b"\xff")).strings()
    assert ArrayRef(4, 2, u32(1) + u32(2)).numpy().dtype == np.uint32
