"""likely serve as a stranger starts, asks and ends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys

import httpx
import pytest


@pytest.fixture
def server(tiny):
    """A process on a free port: (process, its first three lines: address, page, a command to try)."""
    started: list[subprocess.Popen] = []

    def start(*arguments, **environment):
        command = [sys.executable, "-c", "import likely.cli; likely.cli.main()", "serve", "-m", str(tiny)]
        process = subprocess.Popen(
            [*command, "--port", "0", "--threads", "1", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        return process, [process.stdout.readline() for _ in range(3)]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_serves_what_it_prints_until_interrupted(server):
    process, (first, page, second) = server()
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", first)[0]
    assert "<title>likely</title>" in httpx.get(page.removeprefix("page: ").strip()).text
    # the line to try, word for word
    command = shlex.split(second.removeprefix("try: "))
    assert command[0] == "curl" and command[1] == f"{url}/completions"
    header, data = command[command.index("-H") + 1], command[command.index("-d") + 1]
    reply = httpx.post(command[1], content=data, headers=dict([header.split(": ")]))
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] >= 1
    with httpx.stream("POST", f"{url}/completions", json={"prompt": "a", "stream": True, "max_tokens": 200}) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        assert list(lines)[-2:] == ["data: [DONE]", ""]  # what is on its way is finished
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and err == "stopped\n", err


def test_a_key_from_the_environment_and_a_warning_for_other_addresses(server):
    process, (first, _, second) = server(
        "--host", "0.0.0.0", "--api-key-env", "LIKELY_TEST_KEY", LIKELY_TEST_KEY="sesame"
    )
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", first)[0]
    assert '-H "Authorization: Bearer $LIKELY_TEST_KEY"' in second and "sesame" not in second
    assert httpx.get(f"{url}/models").status_code == 401
    assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer sesame"}).status_code == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.startswith("Warning: listening on 0.0.0.0") and "sesame" not in err


def refused(done, code, *words):
    assert done.code == code and done.out == "" and done.err.startswith("Error: ") and done.err.count("\n") == 1, done
    for word in words:
        assert word in done.err, done.err


def test_wrong_usage_is_one_line(cli, tiny, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(cli("serve", "-m", tiny, "--port", taken.getsockname()[1]), 1, "cannot listen", "--port")
    refused(cli("serve", "-m", tiny, "--port", "70000"), 2, "port")
    refused(cli("serve", "-m", tiny, "--port", "0", "--host", "256.1.1.1"), 1, "256.1.1.1", "--host an address")
    refused(cli("serve", "-m", tiny, "--port", "0", "--host", "192.0.2.1"), 1, "192.0.2.1", "--host an address")
    refused(cli("serve", "-m", tiny, "--port", "0", "--api-key-env", "LIKELY_NOT_SET"), 2, "LIKELY_NOT_SET")
    refused(cli("serve", "-m", tmp_path / "missing.gguf", "--port", "0"), 1, "does not exist")
    refused(cli("serve", "-m", "http://127.0.0.1:9/v1", "--port", "0"), 1, "on this machine")
    refused(cli("serve", "-m", tiny, "--max-running", "0"), 2, "max-running")
    refused(cli("serve", "-m", tiny, "--tls-cert", tmp_path / "a.pem"), 2, "both")
    refused(cli("serve", "-m", tiny, "--tls-cert", tmp_path / "a", "--tls-key", tmp_path / "b"), 2, "certificate")
    refused(cli("serve", "-m", tiny, "--prot", "1"), 2, "--prot")


def test_at_sigterm_what_cannot_be_finished_is_told_so(server):
    process, (first, *_) = server("--drain", "0")
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", first)[0]
    body = {"prompt": "a", "stream": True, "max_tokens": 200, "ignore_eos": True, "n": 8}
    with httpx.stream("POST", f"{url}/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and err == "stopped\n", err
    assert '"code":"shutting_down"' in last or last == "data: [DONE]"


def test_a_batch_from_the_command_line(cli, tiny, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    body = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}
    good = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    source.write_text(json.dumps(good) + "\n")
    done = cli("batch", "run", source, "-o", target, "-m", tiny, "--threads", "1")
    assert done.code == 0 and done.out == "" and done.err == "", done
    [reply] = map(json.loads, target.read_text().splitlines())
    assert reply["custom_id"] == "a" and reply["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    source.write_text(json.dumps(good) + "\n" + json.dumps({**good, "custom_id": "b", "body": {"messages": []}}) + "\n")
    refused(cli("batch", "run", source, "-o", target, "-m", tiny, "--threads", "1"), 1, "1 of 2 requests failed")
    refused(cli("batch", "run", source, "-o", source, "-m", tiny), 2, "replace the input")
    refused(cli("batch", "run", tmp_path / "none.jsonl", "-o", target, "-m", tiny), 1, "none.jsonl")
