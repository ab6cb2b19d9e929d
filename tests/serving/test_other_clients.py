"""Clients of OpenAI's API that others wrote: chat, streams, log-probabilities, calls of tools, structured answers.

Each is skipped where it is not installed: pip install litellm mcp langchain-openai instructor llm (litellm needs mcp)
"""

from __future__ import annotations

import json

import openai
import pytest
from helpers_for_serving import serving
from pydantic import BaseModel, Field
from tiny_gguf import write_tiny_llama

import likely

pytestmark = pytest.mark.slow
USER = [{"role": "user", "content": "the cat"}]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    people: int = Field(ge=0, le=9)


def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}},
                       "required": ["city"], "additionalProperties": False},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("clients") / "tiny.gguf", seed=3, context=4096)
    with likely.load(str(path), threads=1) as lm, serving(lm) as address:
        yield f"{address}/v1"


def test_litellm(url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it asks the network for prices otherwise
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    asked = {"model": "openai/tiny", "api_base": url, "api_key": "none", "messages": USER, "max_tokens": 12, "seed": 3}
    whole = litellm.completion(**asked, logprobs=True, top_logprobs=2).choices[0]
    assert len(whole.logprobs["content"][0]["top_logprobs"]) == 2
    pieces = litellm.completion(**asked, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.message.content
    asked["max_tokens"] = 120
    called = litellm.completion(**asked, tools=[TOOL], tool_choice="required").choices[0]
    assert called.finish_reason == "tool_calls" and "city" in json.loads(
        called.message.tool_calls[0].function.arguments
    )
    City.model_validate_json(litellm.completion(**asked, response_format=City).choices[0].message.content)


def test_langchain(url):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(model="tiny", base_url=url, api_key="none", max_tokens=12, seed=3, max_retries=0)
    whole = chat.bind(logprobs=True, top_logprobs=2).invoke("the cat")
    assert len(whole.response_metadata["logprobs"]["content"]) == whole.usage_metadata["output_tokens"]
    assert "".join(piece.content for piece in chat.stream("the cat")) == whole.content
    longer = chat.model_copy(update={"max_tokens": 120})
    (call,) = (
        longer.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke("the cat").tool_calls
    )
    assert call["name"] == "get_weather" and set(call["args"]) == {"city"}
    for method in ("json_schema", "function_calling"):
        assert isinstance(longer.with_structured_output(City, method=method).invoke("the cat"), City)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(url, mode):
    instructor = pytest.importorskip("instructor", reason="instructor is not installed")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked = instructor.from_openai(client, mode=getattr(instructor.Mode, mode)).chat.completions
    found = asked.create(model="tiny", messages=USER, response_model=City, max_retries=1, max_tokens=120)
    assert isinstance(found, City)


def test_llm(url, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    llm = pytest.importorskip("llm", reason="llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: tiny\n  api_base: {url}\n  supports_tools: true\n  supports_schema: true\n"
    )
    model = llm.get_model("local")
    whole = model.prompt("the cat", key="none", stream=False, max_tokens=12, seed=3).text()
    assert "".join(model.prompt("the cat", key="none", max_tokens=12, seed=3)) == whole
    City.model_validate_json(model.prompt("the cat", schema=City, key="none", max_tokens=120).text())
    offered = model.prompt("the cat", tools=[get_weather], key="none", stream=False, max_tokens=12)
    assert offered.text() or offered.tool_calls()  # whether it calls is the model's choice
