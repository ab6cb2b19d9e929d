"""The kinds of runtime: what each reads, computes in and can do. Loading, help texts and error messages read this."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

SourceKind = Literal["gguf", "folder", "hub"]
_COMMON = {"context", "sequences", "threads"}


@dataclass(frozen=True)
class RuntimeKind:
    """One way to run a model.

    reads         where its models come from: a GGUF file, a transformers folder, a hub id
    dtypes        what it computes in; none: the types of its file
    packages      what must be installed, which the extra of likely brings
    capabilities  fields of `Capabilities` that its models have (torch: if their keys and values can be cached)
    options       keywords of `likely.load` that it takes, see `LocalOptions`
    model_types   of the config.json of folders and hub ids that it opens, and by default; empty: it finds out itself
    """

    name: str
    reads: frozenset[SourceKind]
    dtypes: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    capabilities: frozenset[str]
    options: frozenset[str]
    compiles: bool = False  # needs a C++ compiler on first use
    model_types: frozenset[str] = frozenset()

    @property
    def pip(self) -> str:
        """What to run where it is missing."""
        return f"pip install 'likely[{self.extra}]'" + (", and a C++ compiler" if self.compiles else "")

    def takes(self, options: Iterable[str]) -> bool:
        """Whether it has all of these settings; `progress` every kind takes, and most have nothing to tell."""
        return self.options.issuperset(name for name in options if name != "progress")


KINDS = {
    kind.name: kind
    for kind in (
        RuntimeKind(
            "llamacpp",
            reads=frozenset({"gguf"}),
            dtypes=(),
            packages=("llama_cpp",),
            extra="local",
            capabilities=frozenset({"trees", "fork", "truncate"}),
            options=frozenset(_COMMON | {"invariant", "kv_dtype"}),
        ),
        RuntimeKind(
            "torch",
            reads=frozenset({"gguf", "folder", "hub"}),
            dtypes=("float32", "bfloat16", "float16"),
            packages=("torch", "transformers"),
            extra="torch",
            capabilities=frozenset(
                {"trees", "fork", "truncate", "hidden", "full_attention", "gradients", "layers", "parallel_layers"}
            ),
            options=frozenset(
                _COMMON | {"device", "revision", "tokens_per_call", "kv_dtype", "group_prefixes", "attention_threads"}
            ),
        ),
        RuntimeKind(
            "native",
            reads=frozenset({"gguf", "folder", "hub"}),
            dtypes=("int8", "bfloat16", "float32", "file", "int4"),
            packages=("gguf",),
            extra="native",
            capabilities=frozenset(
                {"trees", "fork", "truncate", "hidden", "full_attention", "layers", "invariant_logits"}
            ),
            options=frozenset(_COMMON | {"progress", "tokens_per_call", "kv_dtype", "group_prefixes"}),
            compiles=True,
        ),
        RuntimeKind(
            "recurrent",
            reads=frozenset({"folder", "hub"}),
            dtypes=("float32",),
            packages=("torch", "transformers"),
            extra="torch",
            capabilities=frozenset({"trees", "fork", "truncate", "hidden"}),
            options=frozenset(_COMMON | {"revision", "tokens_per_call", "checkpoint_every"}),
            model_types=frozenset({"likely_sequence", "mamba", "mamba2", "falcon_h1", "mamba_ssm"}),
        ),
    )
}
DTYPES = tuple(dict.fromkeys(dtype for kind in KINDS.values() for dtype in kind.dtypes))


class LocalOptions(TypedDict, total=False):
    """Settings of runtimes; None is the default of each.

    context    tokens held in all                    sequences        how many, tree leaves included
    threads    of the processor                      tokens_per_call  larger calls are cut
    invariant  llamacpp: logits the same, bit for bit, however tokens are batched
    kv_dtype   of cached keys and values: llamacpp: f16, f32, bf16, q8_0; torch: f32, bf16, f16, bfp12, bfp16, and for
               keys and values apart, as in bfp12/bfp16; native: all of these
    device     torch: "cpu", "cuda" ...              revision         torch, recurrent: a name for these weights
    checkpoint_every  recurrent: tokens between states that a sequence can go back to
    group_prefixes  torch, native: attend once to what the sequences of a call hold together; the default on a CPU
    attention_threads  torch: how many attentions of layers side by side run at a time
    progress   native: (bytes, bytes in all) while the weights are packed, which happens once per model and dtype
    """

    context: int | None
    sequences: int | None
    threads: int | None
    tokens_per_call: int | None
    invariant: bool | None
    kv_dtype: str | None
    device: str | None
    revision: str | None
    group_prefixes: bool | None
    attention_threads: int | None
    checkpoint_every: int | None
    progress: Callable[[int, int], None] | None


def kinds_with(*capabilities: str) -> str:
    """The names of the kinds that have all of these capabilities, for an error message: "torch, native"."""
    return ", ".join(name for name, kind in KINDS.items() if kind.capabilities >= set(capabilities))
