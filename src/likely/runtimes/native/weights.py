"""Weights in the form that the C++ library reads, made once per model and dtype and kept in the cache folder.

The file is a safetensors file: panels of bytes (see cpp/linear.h and cpp/codes.h), norms and biases as fp32, each on a
cache line.
"""

from __future__ import annotations

import mmap
import sys
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from likely.errors import ModelError
from likely.formats.safetensors_file import read_entries, read_metadata
from likely.formats.weights import Weight
from likely.formats.writing import write_safetensors_header
from likely.io.hashes import cache_dir, fingerprint
from likely.io.whole_file import replacing
from likely.runtimes.machine import check_weights_fit
from likely.runtimes.native.architecture import Architecture
from likely.runtimes.native.codes import ROWS, PackedTensor, Rounding, merged_codes, own_codes, rounded_codes
from likely.runtimes.native.library import DTYPES, GROUP, PANEL, Library, aligned, packed_bytes, padded
from likely.runtimes.native.source import ModelSource
from likely.runtimes.protocol import FloatArray

VERSION = 2  # of the form: a change makes files of old forms unused
AHEAD_BYTES = 256 * 2**20  # of packed tensors that are made before they are written
_LINE = 64
_BLOCK = 8 * 2**20  # bytes written at a time: what is written in small pieces the system keeps in small pages
_AT_ONCE = 256 * 2**20  # bytes of a file that are read at a time
_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, which mmap names from Python 3.14 on

Progress = Callable[[int, int], None]  # bytes packed, bytes in all


def packed_path(sha256: str, dtype: str, rounding: Rounding | None = None) -> Path:
    own = f"-{fingerprint(rounding.fingerprint)}" if rounding else ""
    return cache_dir() / "native" / f"{sha256[:32]}-{dtype}{own}-v{VERSION}.safetensors"


def load_weights(
    source: ModelSource,
    shape: Architecture,
    dtype: str,
    library: Library,
    progress: Progress | None = None,
    rounding: Rounding | None = None,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Name -> bytes (panels) or fp32 vector, on cache lines; made first where the cache does not have them.

    They are mapped from the cache, or in memory where it cannot be written.

    progress  bytes written and bytes in all, while they are made
    rounding  of dtype "int4": a quantiser's codes in place of the nearest ones; it is asked by one thread
    threads   that make them, or check what the cache has
    """
    makers = 1 if rounding else threads
    parts = _Parts(source, shape, dtype, library, rounding).all()
    path = packed_path(source.sha256, dtype, rounding)
    if (found := _read(path, parts, threads)) is not None:
        return found
    try:
        with replacing(path) as file:
            _write(file, parts, progress, makers)
    except OSError as error:
        warnings.warn(
            f"the packed weights cannot be kept in {path.parent} ({error.strerror or error}), so they are packed again "
            f"each time: set LIKELY_CACHE to a folder that can be written",
            stacklevel=2,
        )
        return _in_memory(parts, progress, makers)
    if (found := _read(path, parts, threads)) is None:
        raise ModelError(f"{path}: cannot be read back")
    return found


def _write(file: BinaryIO, parts: list[PackedTensor], progress: Progress | None, threads: int) -> None:
    """Header and tensors; the checksums come into the header when all is written."""
    tensors, sums = [(part.name, _dims(part), part.dtype) for part in parts], [0] * len(parts)

    def header() -> bytes:
        held = BytesIO()
        write_safetensors_header(held, tensors, align=_LINE, metadata=_checksums(parts, sums))
        return held.getvalue()

    held = bytearray(header())
    for i, piece in _pieces(parts, progress, threads):
        sums[i] = zlib.crc32(piece, sums[i])
        rest = memoryview(piece)
        while len(held) + len(rest) >= _BLOCK:
            missing = _BLOCK - len(held)
            file.write(held + rest[:missing])
            held, rest = bytearray(), rest[missing:]
        held += rest
    file.write(held)
    file.seek(0)
    file.write(header())


def _in_memory(parts: list[PackedTensor], progress: Progress | None, threads: int) -> dict[str, np.ndarray]:
    size = sum(part.nbytes for part in parts)
    check_weights_fit("the model", size, "a dtype of fewer bits, or a cache folder that can be written")
    memory, at = aligned(size), 0
    for _, piece in _pieces(parts, progress, threads):
        memory[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return _views(memory, parts)


def _pieces(parts: list[PackedTensor], progress: Progress | None, threads: int) -> Iterator[tuple[int, bytes]]:
    """(number of the tensor, some of its bytes), front to back."""
    total, done = sum(part.nbytes for part in parts), 0
    for i, (part, pieces) in enumerate(zip(parts, _made_ahead(parts, threads), strict=True)):
        end = done + part.nbytes
        for piece in pieces:
            yield i, piece
            done += len(piece)
            if progress:
                progress(done, total)
        assert done == end, part.name


def _made_ahead(parts: list[PackedTensor], threads: int) -> Iterator[Iterable[bytes]]:
    """The pieces of each tensor, in order; others are made meanwhile, as many as AHEAD_BYTES hold.

    A larger tensor comes piece by piece, made by whoever reads it.
    """
    if threads == 1:
        yield from (part.write() for part in parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[bytes]] | None] = deque()
        held = at = 0
        try:
            for part in parts:
                while at < len(parts) and (not ahead or held + parts[at].nbytes <= AHEAD_BYTES):
                    small = parts[at].nbytes <= AHEAD_BYTES
                    ahead.append(pool.submit(_all_pieces, parts[at]) if small else None)
                    held += parts[at].nbytes
                    at += 1
                made = ahead.popleft()
                yield part.write() if made is None else made.result()
                held -= part.nbytes
        finally:
            for made in filter(None, ahead):
                made.cancel()


def _all_pieces(part: PackedTensor) -> list[bytes]:
    return list(part.write())


def _read(path: Path, parts: list[PackedTensor], threads: int) -> dict[str, np.ndarray] | None:
    """Mapped, so that processes share them; None where the file is not there or is not what these parts make."""
    try:
        memory = _mapped(path)  # before anything else reads it, and has the system keep it in small pages
        entries = read_entries(path)
        if [(n, e.dtype, e.end - e.start) for n, e in entries.items()] != [(p.name, p.dtype, p.nbytes) for p in parts]:
            return None
    except (ModelError, OSError, ValueError):
        return None
    memory = memory[min(entry.start for entry in entries.values()) :]
    if len(memory) != sum(part.nbytes for part in parts):
        return None
    views = _views(memory, parts)
    with ThreadPoolExecutor(threads) as pool:
        sums = _checksums(parts, list(pool.map(lambda view: zlib.crc32(view.data), views.values())))
    return views if read_metadata(path).items() >= sums.items() else None


def _mapped(path: Path) -> np.ndarray:
    """A file's bytes, shared with other processes; in pages of 2 MiB where the system has files in such pages.

    Every call reads the weights from end to end, and the next are fetched while some are multiplied: with pages of
    4 KiB the search for their addresses takes longer than they do.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if sys.platform == "linux":
        with suppress(OSError):  # an older kernel
            data.madvise(mmap.MADV_HUGEPAGE)
            for start in range(0, len(data), _AT_ONCE):  # in parts, so that Ctrl-C need not wait for all
                data.madvise(_POPULATE_READ, start, min(_AT_ONCE, len(data) - start))
    return np.frombuffer(data, np.uint8)


def _views(memory: np.ndarray, parts: list[PackedTensor]) -> dict[str, np.ndarray]:
    ends = np.cumsum([part.nbytes for part in parts]).tolist()
    found = {part.name: memory[end - part.nbytes : end] for part, end in zip(parts, ends, strict=True)}
    return {p.name: found[p.name].view(np.float32) if p.dtype == "F32" else found[p.name] for p in parts}


def _checksums(parts: list[PackedTensor], sums: list[int]) -> dict[str, str]:
    return {f"crc32 {part.name}": f"{value:08x}" for part, value in zip(parts, sums, strict=True)}


def _dims(part: PackedTensor) -> tuple[int, ...]:
    return (part.nbytes // (4 if part.dtype == "F32" else 1),)


class _Parts:
    """What the packed file holds, in its order; every tensor of the source is used or refused."""

    def __init__(self, source: ModelSource, s: Architecture, dtype: str, library: Library, rounding: Rounding | None):
        self._source, self._shape, self._dtype, self._library, self._rounding = source, s, dtype, library, rounding
        self._used: set[str] = set()

    def all(self) -> list[PackedTensor]:
        s = self._shape
        parts = [part for i in range(s.layers) for part in self._layer(f"model.layers.{i}.", f"layers.{i}.")]
        parts.append(self._vector("final_norm", [self._take("model.norm.weight", s.hidden)], s.norm_offset))
        embedding = self._take("model.embed_tokens.weight", s.vocab_size, s.hidden)
        if s.tied:
            self._used.add("lm_head.weight")  # some files hold it twice
            parts.append(self._table("head", embedding))
        else:
            head = self._take("lm_head.weight", s.vocab_size, s.hidden)
            parts += [self._table("embedding", embedding), self._table("head", head)]
        if unknown := sorted(set(self._source.weights) - self._used):
            raise ModelError(f"the native runtime has no place for the tensor \"{unknown[0]}\": use runtime='torch'")
        return parts

    def _take(self, name: str, *shape: int) -> Weight:
        self._used.add(name)
        return self._source.take(name, shape)

    def _layer(self, at: str, to: str) -> list[PackedTensor]:
        s = self._shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        heads = {f"self_attn.{n}_proj": width for n, width in (("q", q), ("k", kv), ("v", kv))}
        sizes = {**{name: (width, s.hidden) for name, width in heads.items()}, "self_attn.o_proj": (s.hidden, q),
                 "mlp.gate_proj": (s.mlp, s.hidden), "mlp.up_proj": (s.mlp, s.hidden),
                 "mlp.down_proj": (s.hidden, s.mlp)}  # fmt: skip
        norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        if s.norms_after:
            norms |= {
                "attention_after": "post_attention_layernorm",
                "mlp_norm": "pre_feedforward_layernorm",
                "mlp_after": "post_feedforward_layernorm",
            }
        if s.merged is not None:
            parts = self._merged(at, to, sizes, norms)
        else:
            weights = {name: self._take(f"{at}{name}.weight", *size) for name, size in sizes.items()}
            parts = self._together(to, weights) if self._dtype in DTYPES else self._apart(at, to, weights)
        for ours, name in norms.items():
            parts.append(self._vector(to + ours, [self._take(f"{at}{name}.weight", s.hidden)], s.norm_offset))
        if s.query_key_norms:
            for ours, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
                own = self._take(f"{at}self_attn.{name}.weight", s.head_dim)
                parts.append(self._vector(to + ours, [own], s.norm_offset))
        if s.qkv_bias:
            biases = [self._take(f"{at}{name}.bias", width) for name, width in heads.items()]
            size = padded(q + 2 * kv) + (0 if self._dtype in DTYPES else PANEL)
            parts.append(self._vector(to + "qkv_bias", biases, size=size))
        return parts

    def _together(self, to: str, weights: dict[str, Weight]) -> list[PackedTensor]:
        """A layer's matrices in panels of one kind."""
        s, rows = self._shape, -(-self._shape.mlp // GROUP) * GROUP
        *qkv, out, gate, up, down = weights.values()
        return [
            self._matrix(to + "qkv", sum(w.stored.shape[0] for w in qkv), s.hidden, partial(_whole, qkv)),
            self._matrix(to + "out", s.hidden, s.heads * s.head_dim, partial(_whole, [out])),
            self._matrix(to + "gate_up", 2 * rows, s.hidden, partial(_interleaved, gate, up, rows)),
            self._matrix(to + "down", s.hidden, s.mlp, partial(_whole, [down])),
        ]

    def _apart(self, at: str, to: str, weights: dict[str, Weight]) -> list[PackedTensor]:
        """A layer's matrices, each in codes of its own; gate and up in pairs of panels."""
        rows, parts = -(-self._shape.mlp // GROUP) * GROUP, []
        for name, weight in weights.items():
            ours = name.partition(".")[2].removesuffix("_proj")
            outputs = rows if ours in ("gate", "up") else None
            parts.append(self._coded(to + ours, f"{at}{name}.weight", weight, outputs))
        return parts

    def _merged(self, at: str, to: str, sizes: dict[str, tuple[int, int]], norms: dict[str, str]) -> list[PackedTensor]:
        """A layer's matrices in MergeQuant's codes, and which channels of their inputs stand in further columns."""
        merged, parts, more = self._shape.merged, [], {}
        assert merged is not None
        for norm in ("attention_norm", "mlp_norm"):
            name = f"{at}{norms[norm]}.extra_columns"
            channels = self._channels(name) if name in self._source.weights else np.zeros(0, np.int32)
            more[norm] = len(channels)
            if len(channels):
                padded_to = np.pad(channels, (0, -len(channels) % 16), constant_values=-1).tobytes()
                own = to + norm.replace("norm", "extra")
                parts.append(PackedTensor(own, "U8", len(padded_to), partial(iter, [padded_to])))
        for name, (outputs, inputs) in sizes.items():
            ours = name.partition(".")[2].removesuffix("_proj")
            reads = {"o": "", "down": "", "gate": "mlp_norm", "up": "mlp_norm"}.get(ours, "attention_norm")
            width = -(-(inputs + more.get(reads, 0)) // GROUP) * GROUP
            weight = self._take(f"{at}{name}.weight_packed", outputs, 4 + width * int(merged.type_name[2]) // 8)
            rows = -(-outputs // GROUP) * GROUP if reads == "mlp_norm" else None
            parts.append(merged_codes(to + ours, merged.type_name, weight, self._library, width, rows))
        return parts

    def _channels(self, name: str) -> np.ndarray:
        self._used.add(name)
        weight, hidden = self._source.weights[name], self._shape.hidden
        if weight.stored.type != "I32" or len(weight.stored.shape) != 1:
            raise ModelError(f'tensor "{name}" has type {weight.stored.type} {weight.stored.shape}, expected I32 (n,)')
        found = np.concatenate(list(weight.coded_rows(ROWS))).view("<i4").reshape(-1)
        if not ((found >= 0) & (found < hidden)).all():
            raise ModelError(f'tensor "{name}" names a channel outside 0..{hidden - 1}')
        return found

    def _coded(self, name: str, source: str, weight: Weight, outputs: int | None = None, bits: int = 4) -> PackedTensor:
        if self._dtype == "int4" or self._shape.merged:
            return rounded_codes(
                name, source, weight, self._library, bits=bits, rounding=self._rounding, outputs=outputs
            )
        return own_codes(name, weight, self._library, outputs)

    def _table(self, name: str, weight: Weight) -> PackedTensor:
        """Rows of tokens; in a model of 4 bits, and in one of MergeQuant's, they have 8."""
        if self._dtype in DTYPES:
            outputs, inputs = weight.stored.shape
            return self._matrix(name, outputs, inputs, partial(weight.row_blocks, ROWS))
        return self._coded(name, name, weight, bits=8)

    def _matrix(self, name: str, outputs: int, inputs: int, blocks: Callable[[], Iterator[FloatArray]]) -> PackedTensor:
        kind = DTYPES.index(self._dtype)

        def write() -> Iterator[bytes]:
            for block in blocks():
                yield self._library.pack(kind, block).tobytes()

        return PackedTensor(name, "U8", packed_bytes(kind, outputs, inputs), write)

    def _vector(self, name: str, weights: list[Weight], offset: float = 0.0, size: int | None = None) -> PackedTensor:
        size = size or sum(w.stored.shape[0] for w in weights)
        size = -(-size // 16) * 16

        def write() -> Iterator[bytes]:
            values = np.concatenate([w.whole() for w in weights]) + np.float32(offset)
            yield np.pad(values, (0, size - len(values))).astype(np.float32).tobytes()

        return PackedTensor(name, "F32", 4 * size, write)


def _whole(weights: list[Weight]) -> Iterator[FloatArray]:
    yield np.concatenate([w.whole() for w in weights])


def _interleaved(gate: Weight, up: Weight, rows: int) -> Iterator[FloatArray]:
    """Sixteen rows of the one, sixteen of the other, and so on, so that a panel holds both; zeros up to `rows`."""
    both = [np.pad(w.whole(), ((0, rows - w.stored.shape[0]), (0, 0))).reshape(rows // 16, 16, -1) for w in (gate, up)]
    yield np.concatenate(both, axis=1).reshape(2 * rows, -1)
