"""The table of runtime kinds says what the classes do."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
from factories import FACTORIES

from likely.models.load import _OPEN, available_runtimes
from likely.runtimes.kinds import DTYPES, KINDS, LocalOptions, kinds_with
from likely.runtimes.protocol import Capabilities

ELSEWHERE = {"torch": {"device", "threads"}, "recurrent": {"threads"}}  # chosen before the class is made


def constructor(name):
    if name == "llamacpp":
        from likely.runtimes.llamacpp.runtime import LlamaCppRuntime as Kind
    elif name == "torch":
        from likely.runtimes.torch.runtime import TorchRuntime as Kind
    elif name == "recurrent":
        from likely.runtimes.recurrent.runtime import RecurrentRuntime as Kind
    else:
        from likely.runtimes.native.runtime import NativeRuntime as Kind
    return Kind


@pytest.mark.parametrize("name", KINDS)
def test_capabilities_are_those_of_a_runtime(name, native_library):
    runtime = FACTORIES[name][0]()
    has = {field.name for field in fields(Capabilities) if getattr(runtime.capabilities, field.name)}
    runtime.shutdown()
    assert has == KINDS[name].capabilities


@pytest.mark.parametrize("name", KINDS)
def test_options_are_the_keywords_of_the_class(name):
    others = {"self", "path", "place", "module", "dtype", "rounding", "kv_orders"}
    takes = set(inspect.signature(constructor(name).__init__).parameters) - others
    takes = {"context" if option == "tokens_held" else option for option in takes}
    assert takes | ELSEWHERE.get(name, set()) == KINDS[name].options


def test_every_option_is_typed_and_belongs_to_a_kind():
    assert set(LocalOptions.__annotations__) == set().union(*(kind.options for kind in KINDS.values()))


def test_every_kind_can_be_opened():
    assert list(_OPEN) == list(available_runtimes()) == list(KINDS)


def test_dtypes_are_those_that_the_classes_take():
    from likely.runtimes.native.library import BF16, FP32, INT8
    from likely.runtimes.native.library import DTYPES as NATIVE
    from likely.runtimes.torch.runtime import DTYPES as TORCH

    assert tuple(TORCH) == KINDS["torch"].dtypes and {str(value) for value in TORCH.values()} <= {
        f"torch.{name}" for name in DTYPES
    }
    assert (NATIVE[INT8], NATIVE[BF16], NATIVE[FP32]) == ("int8", "bfloat16", "float32") == KINDS["native"].dtypes[:3]
    assert KINDS["native"].dtypes[3:] == ("file", "int4")


def test_messages_name_every_kind_that_can():
    assert kinds_with() == "llamacpp, torch, native, recurrent"
    assert kinds_with("trees") == kinds_with("fork", "truncate") == "llamacpp, torch, native, recurrent"
    assert kinds_with("hidden") == "torch, native, recurrent"
    assert kinds_with("layers") == "torch, native" and kinds_with("gradients") == "torch"
