"""One table of generation options: what is typed, what is accepted, what the server takes and what defaults say."""

from __future__ import annotations

from dataclasses import MISSING, fields
from inspect import signature

import pytest
from helpers_for_serving import toy_model

from likely.calibration.calibrator import binding
from likely.cli.verbs.generation import generate as generate_verb
from likely.decoding import options as decoding
from likely.decoding.options import DecodingOptions, answer_settings
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.guided.conditional_sampling import SamplerSettings
from likely.guided.form import FORM_OPTIONS, FormSettings
from likely.lm.confidence import AskOptions, ConfidenceOptions
from likely.lm.options import FORM_SETTINGS, FORMS, OPTIONS, SAMPLER, GenerateOptions
from likely.lm.remote.reply import ServerSettings
from likely.serving.api.schemas import ChatRequest, CompletionRequest

# fields of the server's requests that say something else than how a text is generated
NO_OPTIONS = {
    "timeout", "priority", "cache_salt", "ignore_eos", "tools", "tool_choice", "parallel_tool_calls",
    "continue_final_message",
    "model", "prompt", "messages", "echo", "logprobs", "stream", "stream_options", "max_completion_tokens",
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "confidence", "at_least", "risk", "delta", "fallback", "prediction", "token_details",
}  # fmt: skip
# OpenAI's length, a fresh seed, a list for a tuple, the budget of whoever started the server
OTHER_DEFAULTS = {"max_tokens", "seed", "stop", "stop_repetition", "draft_budget"}


@pytest.fixture(scope="module")
def lm():
    return toy_model()


def test_what_is_typed_is_what_the_table_holds():
    assert DecodingOptions.__annotations__.keys() == decoding.OPTIONS.keys()
    assert GenerateOptions.__annotations__.keys() == OPTIONS.keys()
    local = {*SAMPLER, "heal"}
    assert set(AskOptions.__annotations__) == (OPTIONS.keys() - local) | set(ConfidenceOptions.__annotations__)
    assert all(option.name == name and option.help for name, option in OPTIONS.items())


def test_a_request_accepts_what_the_table_holds_and_nothing_else(lm):
    for name, option in OPTIONS.items():
        form = {"regex": "a+"} if name in FORM_SETTINGS else {}
        if name in ("particles", "max_tries"):  # of a sampler that is not for single requests
            with pytest.raises(ValueError, match="are for sampler="):
                lm.request([1], {name: option.default})
        else:
            lm.request([1], {name: option.default, **form})
    for word, meant in (("temprature", "temperature"), ("whitespaces", "whitespace"), ("samples", None)):
        hint = f'; did you mean "{meant}"' if meant else ""
        with pytest.raises(TypeError, match=f'^unknown option "{word}"{hint}'):
            lm.request([1], {word: 1})


@pytest.mark.parametrize("settings", [Sampling, Request, FormSettings, SamplerSettings, ServerSettings])
def test_defaults_stand_once(settings):
    alike = {"samples": "n", "processed": "processed_logprobs"}
    checked = 0
    for field in fields(settings):
        name = alike.get(field.name, field.name)
        if name not in OPTIONS or (settings is Request and name == "particles"):
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = () if isinstance(default, frozenset) and not default else default
        assert default == OPTIONS[name].default, name
        checked += 1
    assert checked >= 3 and tuple(FORMS) == FORM_OPTIONS
    if settings in (Sampling, FormSettings, SamplerSettings):
        assert checked == len(fields(settings))


@pytest.mark.parametrize("schema", [ChatRequest, CompletionRequest])
def test_every_generation_field_of_the_server_is_an_option(schema):
    taken = schema.model_fields.keys() - NO_OPTIONS
    assert taken <= OPTIONS.keys(), taken - OPTIONS.keys()
    for name in taken - OTHER_DEFAULTS:
        assert schema.model_fields[name].default == OPTIONS[name].default, name
    assert {name for name, option in decoding.OPTIONS.items() if option.remote} - taken <= {"top_logprobs"}


def test_flags_of_the_command_line_have_the_same_defaults():
    flags = signature(generate_verb.generate).parameters
    shared = [name for name in flags if name in OPTIONS and name not in ("stop", *FORMS)]
    assert len(shared) >= 7
    for name in shared:
        assert flags[name].default == OPTIONS[name].default, name


def test_bounds_are_those_of_the_table():
    with pytest.raises(ValueError, match=r"top_p must lie in \[0, 1\], got 2"):
        Sampling(top_p=2)
    with pytest.raises(ValueError, match="top_p must be > 0, got 0"):
        Sampling(top_p=0)
    with pytest.raises(ValueError, match=r"max_tokens must be a whole number in \[1, 16777216\], got 0"):
        Request((1,), max_tokens=0)
    with pytest.raises(ValueError, match=r"samples must be a whole number in \[1, 4096\], got 5000"):
        Request((1,), samples=5000)


def test_only_what_changes_answers_is_bound():
    free = {"seed": 3, "drafter": "suffix", "draft_budget": 4, "verification": "rejection", "top_logprobs": 3,
            "processed_logprobs": True, "n": 2, "top_p": 1, "top_k": 0, "stop": [], "system": None}  # fmt: skip
    assert answer_settings(free) == {}
    kept = {"temperature": 1.0, "max_tokens": 128, "top_p": 0.9, "stop": ["x"], "regex": "a", "system": "Be brief."}
    assert answer_settings({**free, **kept}) == kept
    one, other = ({"model": "m", "sha256": "0", "settings": s} for s in (kept, {**free, **kept, "top_p": 0.90}))
    assert binding(one) == binding(other)
