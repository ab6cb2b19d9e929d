"""Forms asked of a server through RemoteModel: from our own, from one that ignores them, from one that refuses."""

from __future__ import annotations

import json

import pytest
from fake_server import Raw, toy_server
from helpers_for_serving import serving
from pydantic import BaseModel, Field
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError, RemoteError
from likely.lm.remote.model import RemoteModel

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Person(BaseModel, extra="forbid"):
    age: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("served") / "tiny.gguf", seed=3, context=1024)
    with (
        likely.load(str(path), threads=1) as lm,
        likely.load(str(path), threads=1) as own,
        serving(lm) as url,
        likely.load(url) as remote,
    ):
        yield remote, own


def test_our_own_server_gives_the_local_values(served):
    remote, own = served
    asked = {"schema": SCHEMA, "seed": 4, "max_tokens": 60}
    theirs, ours = remote.generate("the", **asked), own.generate("the", **asked)
    assert theirs.text == ours.text and theirs.value == ours.value and theirs.complete
    several = remote.generate("the", **asked, n=3)
    assert all(found.value.keys() == {"name", "age"} for found in several)
    assert isinstance(remote.ask("Who?", schema=Person).value, Person)
    stream = remote.stream("the", **asked)
    assert "".join(stream) == ours.text and stream.result.value == ours.value
    for form in ({"choices": ["yes", "no"]}, {"regex": "[ab]{3}"}, {"grammar": 'start: "x" | "y" start'}):
        found = remote.generate("the", **form, max_tokens=40, seed=1)
        assert found.complete and found.value == found.text == own.generate("the", **form, max_tokens=40, seed=1).text


@pytest.mark.slow
def test_extract_by_a_server(served):
    remote, own = served
    found = remote.extract(["Ann is 3.", "Bob is 4."], schema=SCHEMA, max_tokens=60)
    assert [each.value for each in found] == [
        each.value for each in own.extract(["Ann is 3.", "Bob is 4."], schema=SCHEMA, max_tokens=60)
    ]
    assert all(each.error is None and each.result.fields is None for each in found)


def saying(text):
    """A server that ignores what it was asked for and says this."""

    def lie(body, reply):
        for choice in reply["choices"]:
            if "message" in choice:
                choice["message"]["content"] = text
            else:
                choice["text"] = text
            choice["logprobs"] = None
        return reply

    return lie


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"schema": SCHEMA}, '{"age": 3, "name": "Ann"}', '{"age": 3}'),
        ({"schema": SCHEMA}, '{"name":"Ann","age":3}', "Sure! {}"),
        ({"schema": SCHEMA}, '{"name":"","age":0}', '{"name":"An'),
        ({"schema": {"type": "array", "uniqueItems": True}}, "[1, 2]", "[1, 1]"),
        ({"schema": Person}, '{"age": 3}', '{"age": 30}'),
        ({"choices": ["yes", "no"]}, "no", "No"),
        ({"regex": "[ab]{2}"}, "ab", "abc"),
        ({"regex": "[ab]{2}"}, "ba", "a"),
        ({"grammar": 'start: "(" start ")" | "é"'}, "((é))", "((é)"),
    ],
)
def test_an_answer_that_breaks_the_form_is_never_a_value(form, good, bad):
    """Whatever the server promises: the text is read here."""
    with toy_server() as server, RemoteModel(server.url, backoff_s=0.0) as lm:
        server.lie = saying(good)
        for found in (lm.generate("a", **form), lm.ask("a", **form)):
            assert found.complete and found.text == good and found.value is not None and not found.warnings
        server.lie = saying(bad)
        for found in (lm.generate("a", **form), lm.ask("a", **form)):
            assert found.complete is False and found.value is None and found.text == bad
            assert "another form" in found.warnings[0] and "\n" not in found.warnings[0]
        if "schema" in form:
            message = {"choices": [{"message": {"content": bad}, "finish_reason": "stop"}]}
            server.script = [Raw(200, json.dumps(message).encode())]
            extracted = lm.extract("a document", **form)
            assert extracted.value is None and extracted.error and extracted.result.text == bad
        sent = server.requests[-1][1]
        assert ("response_format" in sent) == ("schema" in form) != ("structured_outputs" in sent)


def test_a_server_that_has_no_forms():
    with toy_server() as server, RemoteModel(server.url, backoff_s=0.0) as lm:
        refusal = json.dumps(
            {"error": {"message": "Unrecognized request argument supplied: structured_outputs"}}
        ).encode()
        server.lie = lambda body, reply: Raw(400, refusal) if "structured_outputs" in body else reply
        with pytest.raises(CapabilityError, match="does not hold texts to"):
            lm.generate("a", regex="ab")
        server.lie = lambda body, reply: Raw(400, b'{"error": {"message": "max_tokens is too large"}}')
        with pytest.raises(RemoteError):
            lm.generate("a", regex="ab")
        with pytest.raises(CapabilityError, match="whitespace"):
            lm.generate("a", schema=SCHEMA, whitespace="any")
        with pytest.raises(ValueError, match="exactly one"):
            lm.generate("a", schema=SCHEMA, regex="a")


def test_without_a_form_nothing_is_sent_and_nothing_judged():
    with toy_server() as server, RemoteModel(server.url, backoff_s=0.0) as lm:
        found = lm.generate("a", max_tokens=3)
        assert found.complete is None and found.value is None
        assert not {"response_format", "structured_outputs"} & server.requests[-1][1].keys()
