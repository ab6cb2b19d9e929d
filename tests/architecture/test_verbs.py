"""A verb of the command line parses, calls and prints; what it can do, Python and the server can do."""

from __future__ import annotations

import inspect

import pytest
from source_tree import modules, outside_imports

from likely.cli.verbs.generation.ask import ask
from likely.lm.confidence import AskOptions
from likely.serving.api.schemas import ChatRequest

pytestmark = pytest.mark.xdist_group("architecture")  # every file is parsed once

# which model answers, where the questions and answers lie, and how they are shown
AROUND = {
    "question", "model", "runtime", "dtype", "context", "threads", "kv_dtype", "system", "output", "overwrite", "limit",
    "settings", "attached", "stats", "show", "html", "as_json", "show_prompt",
}  # fmt: skip
SERVED_AS = {  # the server's words for it: OpenAI's and vLLM's
    "schema": "response_format", "regex": "guided_regex", "grammar": "guided_grammar", "choices": "guided_choice",
}  # fmt: skip
OF_THE_OWNER = {"calibrator", "task"}  # of whoever starts the server: they name files on its machine


def test_what_likely_ask_can_do_python_can_do():
    ours = set(inspect.signature(ask).parameters) - AROUND
    assert ours <= set(AskOptions.__annotations__)


def test_what_likely_ask_can_do_the_server_can_do():
    ours = set(inspect.signature(ask).parameters) - AROUND - OF_THE_OWNER
    assert {SERVED_AS.get(name, name) for name in ours} <= set(ChatRequest.model_fields)


def test_verbs_compute_nothing():
    verbs = [module for module in modules() if module.startswith("likely.cli.verbs.")]
    assert len(verbs) > 20
    assert not [module for module in verbs if outside_imports(module) & {"numpy", "scipy", "torch"}]
