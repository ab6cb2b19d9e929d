"""Forms of strangers: compiled apart first, within limits, so that none holds up the others."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from helpers_for_serving import ask

from likely.errors import ConstraintError
from likely.serving import ServerLimits
from likely.serving.form_worker import FormDescription, FormTooCostly, FormWorker
from likely.serving.tools import ToolChoice

COMPLETIONS = "/v1/completions"
COSTLY = {
    "repetition": FormDescription("regex", "(a{1000}){1000}"),
    "alternatives": FormDescription("schema", {"pattern": "|".join(f"w{i:05d}" for i in range(14_000))}),
    "properties": FormDescription(
        "schema", {"properties": {f"p{i}": {} for i in range(4900)}, "required": [f"p{i}" for i in range(4900)]}
    ),
    "size": FormDescription("choices", [f"value number {i}" for i in range(20_000)]),
}


@pytest.fixture(scope="module")
def worker(tiny_path):
    import likely

    with likely.load(str(tiny_path), threads=1) as lm:
        made = FormWorker(lm.guide.vocabulary, seconds=0.4, memory_mib=128, size_bytes=2**17)
        yield made
        made.close()
        made.close()


@pytest.mark.parametrize("name", ["repetition", pytest.param("alternatives", marks=pytest.mark.slow), "size"])
def test_what_costs_too_much_is_refused_and_the_next_one_is_served(worker, name):
    for _ in range(2):  # the second time without a trial
        with pytest.raises(FormTooCostly, match=r"more than 0\.4 s or 128 MiB|at most 131072"):
            worker.check(COSTLY[name])
    ready = worker._process
    worker.check(FormDescription("regex", "a+b"))
    if name != "size":  # that one is refused by its length
        assert ready is not None and worker._process is ready  # whoever comes next waits for no start


def test_nothing_is_started_behind_the_end(tiny):
    ended = FormWorker(tiny.guide.vocabulary, seconds=0.4, memory_mib=128, size_bytes=2**17)
    ended.check(FormDescription("regex", "a+b"))  # it runs

    def check():
        with pytest.raises(FormTooCostly):
            ended.check(COSTLY["repetition"])

    checking = threading.Thread(target=check)
    checking.start()
    ended.close()
    checking.join()
    assert ended._process is None


def test_texts_that_are_written_go_before_forms(worker):
    worker.check(FormDescription("regex", "ab"))
    process = worker._process.pid
    assert os.getpriority(os.PRIO_PROCESS, process) == 19
    # niceness counts within a session alone where the system groups processes by them (sched_autogroup)
    assert os.getsid(process) == os.getsid(0) and os.getpgid(process) != os.getpgid(0)


def test_a_wrong_form_is_told_as_where_it_is_compiled(worker, tiny):
    for wrong in (
        FormDescription("regex", "("),
        FormDescription("schema", {"type": 5}),
        FormDescription("schema", {"contains": {}}),
        FormDescription("grammar", "begin: /a/"),
        FormDescription("choices", []),
    ):
        with pytest.raises(ConstraintError) as apart:
            worker.check(wrong)
        with pytest.raises(Exception) as here:
            tiny.guide.constraint(wrong.form)
        assert str(apart.value) == " ".join(str(here.value).split())[:1000]


def test_a_process_that_was_ended_from_outside_is_started_again(worker):
    worker.check(FormDescription("regex", "ab"))
    worker._process.kill()
    worker._process.wait()
    worker.check(FormDescription("regex", "abc"))


def test_a_description_survives_the_way_to_the_process():
    described = FormDescription("tools", [{"name": "a"}], "ignore", ToolChoice("required", "a", False), 7)
    again = FormDescription.of_text(described.text())
    assert again == described and again.form.key == described.form.key


def test_a_form_that_was_accepted_before_waits_for_no_other(tiny):
    asked = {"prompt": "the", "max_tokens": 3, "regex": "[ab]{3}"}

    async def question(client):
        await client.ok(COMPLETIONS, **asked)
        tried = threading.Event()
        client.app.state.answering.prompts._forms.submit(tried.wait)  # a form that takes its time
        try:
            async with asyncio.timeout(60):
                return await client.ok(COMPLETIONS, **asked)
        finally:
            tried.set()

    assert len(ask(tiny, question)["choices"][0]["text"]) == 3


@pytest.mark.slow
def test_others_are_served_while_a_hostile_form_is_tried(tiny):
    limits = ServerLimits(form_s=0.5, form_mib=128)
    ended = []

    async def question(client):
        async def hostile():
            status, reply = await client.post(COMPLETIONS, {"prompt": "a", "regex": "(a{1000}){1000}"})
            ended.append("hostile")
            return status, reply

        async def others():
            for _ in range(5):
                await client.ok(COMPLETIONS, prompt="the", max_tokens=3)
                assert (await client.http.get("/health")).status_code == 200
            ended.append("others")

        (status, reply), _ = await asyncio.gather(hostile(), others())
        good = await client.ok(COMPLETIONS, prompt="the", max_tokens=3, regex="[ab]{3}")
        return status, reply["error"], good["choices"][0]["text"]

    status, error, text = ask(tiny, question, limits=limits)
    assert status == 400 and error["param"] == "regex" and "0.5 s" in error["message"]
    assert ended == ["others", "hostile"] and len(text) == 3 and set(text) <= set("ab")
