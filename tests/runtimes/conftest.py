"""Random models and native runtimes on them, shared by the tests of a module."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def native_cache(native_library, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_CACHE", str(tmp_path_factory.mktemp("native-cache")))
        yield


@pytest.fixture(scope="module")
def made(native_cache):
    """(config name) -> module and its folder, each made once."""
    known = {}

    def get(name):
        if name not in known:
            from native_models import CONFIGS
            from tiny_torch import folder_of, module_of

            module = module_of(CONFIGS[name](), std=0.15, vectors=0.2)
            known[name] = module, folder_of(module)
        return known[name]

    return get


@pytest.fixture(scope="module")
def natives(made):
    """(config name, kind) -> a runtime that is used by one test after another."""
    known = {}

    def get(name, kind, **options):
        from likely.runtimes.native.runtime import NativeRuntime

        key = (name, kind, *sorted(options.items()))
        if key not in known:
            options = {"threads": 1, "tokens_held": 4096, "tokens_per_call": 64, **options}
            known[key] = NativeRuntime(made(name)[1], dtype=kind, **options)
        return known[key]

    yield get
    for runtime in known.values():
        runtime.shutdown()
