"""The engines of the guided benchmark, ours and others, in one shape: compile a schema, then run prompts greedily."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import likely
from likely.runtimes.machine import cores

Compiled = Any
CONTEXT = 2048


@dataclass(frozen=True)
class Engine:
    """One way to write a text in a form.

    plain    the engine whose unguided runs it stands against: the same weights in the same loop; None: it is one
    compile  schema -> what `run` takes; None for plain engines
    run      (prompt ids, most tokens, compiled or None) -> tokens, end token included
    """

    name: str
    plain: str | None
    compile: Callable[[dict[str, Any]], Compiled] | None
    run: Callable[[list[int], int, Compiled], list[int]]


class Unforced:
    """A constraint that does not say which tokens it forces: each then takes a call of the model."""

    def __init__(self, inner: Any):
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def forced(self) -> list[int]:
        return []

    def fork(self) -> Unforced:
        return Unforced(self._inner.fork())


# --- ours -------------------------------------------------------------------------------------------------------------


def of_likely(lm: likely.Model, name: str) -> list[Engine]:
    from likely.decoding.request import Request
    from likely.decoding.sampling import Sampling
    from likely.guided.form import make_form
    from likely.guided.settings import FormSettings

    def run(ids: list[int], count: int, constraint: Any) -> list[int]:
        loop = lm.loop()
        held = constraint.fork() if constraint is not None else None
        loop.add(Request(tuple(ids), Sampling(temperature=0), max_tokens=count, constraint=held))
        found: list[int] = []
        while not loop.idle:
            for event in loop.step():
                if event.error:
                    raise event.error
                found += event.tokens
        return found

    def compiler(**settings: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda schema: lm.guide.constraint(make_form(schema=schema, settings=FormSettings(**settings)))

    return [
        Engine(f"{name}, plain", None, None, run),
        Engine(name, f"{name}, plain", compiler(), run),
        Engine(f"{name}, not closing", f"{name}, plain", compiler(close_on_budget=False), run),
        Engine(f"{name}, nothing drafted", f"{name}, plain", lambda schema: Unforced(compiler()(schema)), run),
    ]


# --- llama.cpp's file -------------------------------------------------------------------------------------------------


def of_llama_cpp_python(path: Path, end_ids: frozenset[int], missing: list[str]) -> list[Engine]:
    """llama-cpp-python with its own grammars, and under outlines and lm-format-enforcer."""
    from llama_cpp import Llama, LogitsProcessorList
    from llama_cpp.llama_grammar import LlamaGrammar

    llama = Llama(str(path), n_ctx=CONTEXT, n_threads=cores(), n_threads_batch=cores(), verbose=False)

    def generate(ids: list[int], count: int, processor: Any = None, **options: Any) -> list[int]:
        llama.reset()
        found: list[int] = []
        failed: list[Exception] = []

        def guarded(so_far: Any, logits: Any) -> Any:  # what is raised below llama.cpp would only be printed
            try:
                return logits if failed else processor(so_far, logits)
            except Exception as error:
                failed.append(error)
                return logits

        if processor is not None:
            options["logits_processor"] = LogitsProcessorList([guarded])
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True, **options):
            found.append(token)
            if failed:
                raise failed[0]
            if len(found) == count or token in end_ids:
                break
        return found

    name = "llama-cpp-python"
    engines = [
        Engine(f"{name}, plain", None, None, lambda ids, count, _: generate(ids, count)),
        Engine(
            f"{name}, its grammars", f"{name}, plain",
            lambda schema: LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False),
            lambda ids, count, grammar: generate(ids, count, grammar=grammar),
        ),
    ]  # fmt: skip
    try:
        import outlines
        import outlines_core.kernels.numpy  # noqa: F401  (needs numba)
        from outlines.backends.outlines_core import OutlinesCoreBackend

        backend = OutlinesCoreBackend(outlines.from_llamacpp(llama, chat_mode=False))
    except ImportError as error:
        missing.append(f"outlines on llama-cpp-python: {error}")
    else:
        engines.append(
            Engine(
                f"{name}, outlines", f"{name}, plain",
                lambda schema: backend.get_json_schema_logits_processor(json.dumps(schema)),
                lambda ids, count, made: generate(ids, count, _fresh(made)),
            )
        )  # fmt: skip
    try:
        from lmformatenforcer import JsonSchemaParser, TokenEnforcer
        from lmformatenforcer.integrations.llamacpp import (
            LlamaCppLogitsProcessor,
            build_token_enforcer_tokenizer_data,
        )

        data = build_token_enforcer_tokenizer_data(llama)
    except ImportError as error:
        missing.append(f"lm-format-enforcer on llama-cpp-python: {error}")
    else:

        def enforced(ids: list[int], count: int, schema: dict[str, Any]) -> list[int]:
            enforcer = TokenEnforcer(data, JsonSchemaParser(schema))
            return generate(ids, count, LlamaCppLogitsProcessor(enforcer, False))

        engines.append(Engine(f"{name}, lm-format-enforcer", f"{name}, plain", lambda schema: schema, enforced))
    return engines


def _fresh(processor: Any) -> Any:
    processor.reset()
    return processor


# --- transformers -----------------------------------------------------------------------------------------------------


def of_transformers(folder: Path, end_ids: frozenset[int], missing: list[str]) -> list[Engine]:
    """transformers' generate in fp32, and under xgrammar and outlines."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = sorted(end_ids)

    def generate(ids: list[int], count: int, processors: list[Any]) -> list[int]:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=ends, pad_token_id=ends[0],
                logits_processor=processors,
            )  # fmt: skip
        return out[0, len(ids) :].tolist()

    engines = [Engine("transformers, plain", None, None, lambda ids, count, _: generate(ids, count, []))]
    try:
        import xgrammar
        from xgrammar.contrib.hf import LogitsProcessor

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=model.config.vocab_size, stop_token_ids=ends
        )
        compiler = xgrammar.GrammarCompiler(info, max_threads=cores())
    except ImportError as error:
        missing.append(f"xgrammar on transformers: {error}")
    else:
        engines.append(
            Engine(
                "transformers, xgrammar", "transformers, plain",
                lambda schema: compiler.compile_json_schema(json.dumps(schema), any_whitespace=False),
                lambda ids, count, compiled: generate(ids, count, [LogitsProcessor(compiled)]),
            )
        )  # fmt: skip
    try:
        import outlines
        from outlines.backends.outlines_core import OutlinesCoreBackend

        backend = OutlinesCoreBackend(outlines.from_transformers(model, tokenizer))
    except ImportError as error:
        missing.append(f"outlines on transformers: {error}")
    else:
        engines.append(
            Engine(
                "transformers, outlines", "transformers, plain",
                lambda schema: backend.get_json_schema_logits_processor(json.dumps(schema)),
                lambda ids, count, made: generate(ids, count, [_fresh(made)]),
            )
        )  # fmt: skip
    return engines
