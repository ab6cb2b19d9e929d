"""Requests of a file: the shape of lines, order by prefix, runs that go on, servers that are busy."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from helpers_for_serving import serving, toy_model

from likely.errors import DataError
from likely.serving.batch import BatchOutput, client_of_model, client_of_server, read_batch, run_batch

URL = "/v1/completions"


def line(number, prompt, **body):
    body = {"prompt": prompt, "max_tokens": 3, "min_tokens": 3, "seed": 1, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": URL, "body": body}


def written(path, lines):
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def run(requests, output, client, **options):
    async def work():
        async with client as asked:
            return await run_batch(requests, asked, output, **options)

    return asyncio.run(work())


@pytest.fixture
def paths(tmp_path):
    prompts = ["the cat sat on it", "a dog", "the cat sat on us", "a dog ran"]
    return written(tmp_path / "in.jsonl", [line(i, p) for i, p in enumerate(prompts)]), tmp_path / "out.jsonl"


def replies(path):
    return [json.loads(each) for each in path.read_text().splitlines()]


def test_every_line_has_its_reply_and_like_prompts_follow_each_other(paths):
    source, target = paths
    requests = read_batch(source)
    with BatchOutput(target, requests) as output:
        counts = run(requests, output, client_of_model(toy_model(), concurrency=1), concurrency=1)
    found = replies(target)
    assert (counts.good, counts.failed, counts.before) == (4, 0, 0)
    assert [each["custom_id"] for each in found] == ["r3", "r1", "r0", "r2"]
    for each in found:
        assert each["error"] is None and each["response"]["status_code"] == 200 and each["response"]["request_id"]
        assert each["response"]["body"]["usage"]["completion_tokens"] == 3
    assert found[3]["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"] == len("the cat sat on ")


def test_responses_run_too_and_those_that_begin_alike_follow_each_other(tiny, tmp_path):
    bodies = [("be brief", "the cat"), ("be kind", "a dog"), ("be brief", "a dog")]
    lines = [
        {"custom_id": f"r{i}", "url": "/v1/responses", "body": {"instructions": how, "input": what,
                                                                "max_output_tokens": 16}}
        for i, (how, what) in enumerate(bodies)
    ]  # fmt: skip
    requests = read_batch(written(tmp_path / "in.jsonl", lines))
    with BatchOutput(tmp_path / "out.jsonl", requests) as output:
        counts = run(requests, output, client_of_model(tiny, concurrency=1), concurrency=1)
    found = replies(tmp_path / "out.jsonl")
    assert counts.good == 3 and [each["custom_id"] for each in found] == ["r2", "r0", "r1"]
    assert all(each["response"]["body"]["object"] == "response" for each in found)


def test_a_run_that_was_stopped_goes_on(paths):
    source, target = paths
    requests = read_batch(source)
    with BatchOutput(target, requests) as output:
        run(requests, output, client_of_model(toy_model(), concurrency=2), concurrency=2)
    whole = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(whole[:2]) + whole[2][:20])  # killed while it wrote
    with BatchOutput(target, requests) as output:
        assert output.done == {json.loads(each)["custom_id"] for each in whole[:2]}
        counts = run(requests, output, client_of_model(toy_model(), concurrency=2))
    assert (counts.good, counts.before) == (2, 2) and len(replies(target)) == 4
    texts = {r["custom_id"]: r["response"]["body"]["choices"] for r in replies(target)}
    assert texts == {r["custom_id"]: r["response"]["body"]["choices"] for r in map(json.loads, whole)}
    changed = read_batch(written(source, [line(0, "other")]))
    with pytest.raises(DataError, match='"r0" has changed'):
        BatchOutput(target, changed)
    with BatchOutput(target, changed, overwrite=True) as output:
        assert not output.done


def test_a_request_that_is_refused_is_a_line_and_one_that_failed_is_asked_again(paths):
    source, target = paths
    requests = read_batch(written(source, [line(0, "a"), line(1, "b", n=1000), line(2, "c")]))
    busy = {"c": 9}

    def answer(request):
        prompt = json.loads(request.content)["prompt"]
        if busy.get(prompt, 0) > 0:
            busy[prompt] -= 1
            return httpx.Response(429, json={"error": {}}, headers={"Retry-After": "0"})
        return httpx.Response(400 if prompt == "b" else 200, json={})

    def client():
        return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x")

    with BatchOutput(target, requests) as output:
        counts = run(requests, output, client(), concurrency=3)
    assert (counts.good, counts.failed) == (1, 2)
    assert {r["custom_id"]: r["response"]["status_code"] for r in replies(target)} == {"r0": 200, "r1": 400, "r2": 429}
    with BatchOutput(target, requests) as output:
        assert output.done == {"r0", "r1"}  # what was refused once will be again
        counts = run(requests, output, client())
    assert (counts.good, counts.failed, counts.before) == (1, 0, 2) and len(replies(target)) == 3


def test_requests_of_many_prompts_fit_at_any_concurrency(paths):
    source, target = paths
    requests = read_batch(written(source, [line(i, ["a"] * 64) for i in range(2)]))
    with BatchOutput(target, requests) as output:
        counts = run(requests, output, client_of_model(toy_model(), concurrency=2), concurrency=2)
    assert counts.good == 2 and all(len(each["response"]["body"]["choices"]) == 64 for each in replies(target))


def test_a_reply_that_cannot_be_had_ends_no_other(paths):
    source, target = paths
    requests, model = read_batch(source), toy_model()
    encode = model.tokenizer.encode
    model.tokenizer.encode = lambda text, **more: 1 / 0 if text == "a dog" else encode(text, **more)
    with BatchOutput(target, requests) as output:
        counts = run(requests, output, client_of_model(model, concurrency=1), concurrency=1)
    assert (counts.good, counts.failed) == (3, 1)
    assert {each["custom_id"]: each["response"]["status_code"] for each in replies(target)}["r1"] == 500


@pytest.mark.parametrize("wrong", [{"custom_id": ["a"]}, {"response": "a"}, {"response": [1]}])
def test_an_output_of_another_kind_is_named(paths, wrong):
    source, target = paths
    written(target, [{"custom_id": "a", "response": {"status_code": 200}, "error": None, **wrong}])
    with pytest.raises(DataError, match=r"out\.jsonl:1 is no line of a batch's output"):
        BatchOutput(target, read_batch(source))


def test_a_server_over_a_socket_gives_the_same(paths):
    source, target = paths
    requests = read_batch(source)
    texts = {}
    with serving(toy_model()) as url:
        for name, client in (("here", client_of_model(toy_model(), concurrency=4)), ("there", client_of_server(url))):
            path = target.with_name(name)
            with BatchOutput(path, requests) as output:
                run(requests, output, client)
            texts[name] = {r["custom_id"]: r["response"]["body"]["choices"] for r in replies(path)}
    assert texts["here"] == texts["there"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"custom_id": ""}, "custom_id"), ({"method": "GET"}, "POST"), ({"url": "/v1/embeddings"}, "/v1/score"),
        ({"body": []}, "body"), ({"body": {"stream": True}}, "stream"), ({"bodi": {}}, 'did you mean "body"'),
        ({}, "was there before"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(tmp_path, wrong, word):
    with pytest.raises(DataError, match=word) as refused:
        read_batch(written(tmp_path / "in.jsonl", [line(0, "a"), {**line(0 if not wrong else 1, "b"), **wrong}]))
    assert "in.jsonl:2" in str(refused.value)


def test_another_file_is_not_written_into(paths):
    source, _ = paths
    with pytest.raises(DataError, match="no line of a batch"):
        BatchOutput(source, read_batch(source))


def test_two_runs_do_not_share_an_output(paths):
    source, target = paths
    requests = read_batch(source)
    with BatchOutput(target, requests), pytest.raises(DataError, match="another process"):
        BatchOutput(target, requests)
