"""Review queues over HTTP: the terminal's file and rules, blind, with bounded and hostile requests."""

from __future__ import annotations

import asyncio
import json

import pytest
from helpers_for_serving import ask, toy_model

from likely.audit.review import Criterion, ReviewItem, ReviewQueue
from likely.errors import DataError
from likely.serving.api.endpoints.reviews import review_files

CRITERIA = (Criterion("relevance", "Same meaning?"), Criterion("diversity", "Other words?"))
NEXT, VOTE = "/v1/reviews/next", "/v1/reviews/vote"
GOOD = {"relevance": 3, "diversity": 2}


@pytest.fixture
def path(tmp_path):
    items = [ReviewItem(f"i{n}", {"probe": f"text {n}"}, {"writer": "secret"}) for n in range(3)]
    return ReviewQueue.create(tmp_path / "queue.jsonl", CRITERIA, items).path


def asked(path, question, **options):
    return ask(toy_model(), question, reviews=review_files(path), **options)


async def judge(client, annotator, ratings=GOOD):
    state = await client.ok(NEXT, queue="queue", annotator=annotator)
    while state["item"]:
        assert state["agreement"] is None
        state = await client.ok(
            VOTE, queue="queue", annotator=annotator, item=state["item"]["id"], ratings=ratings, reason="é"
        )
    return state


def test_two_people_judge_blind_and_agreement_comes_last(path):
    async def question(client):
        first = await client.ok(NEXT, queue="queue", annotator="anna")
        assert first["item"]["id"] == ReviewQueue.open(path).pending("anna")[0].id
        assert "secret" not in json.dumps(first) and (first["judged"], first["items"]) == (0, 3)
        assert [c["scale"] for c in first["criteria"]] == [[1, 2, 3]] * 2
        alone = await judge(client, "anna")
        assert alone["agreement"] is None and alone["judged"] == 3
        other = await client.ok(NEXT, queue="queue", annotator="bert")
        assert "anna" not in json.dumps(other) and other["judged"] == 0
        return await judge(client, "bert", {"relevance": 3, "diversity": 1})

    done = asked(path, question)
    assert [(a["criterion"], a["raters"], a["items"]) for a in done["agreement"]] == [
        ("relevance", 2, 3), ("diversity", 2, 3)
    ]  # fmt: skip
    queue = ReviewQueue.open(path)
    assert len(queue.votes) == 6 and queue.votes[0].reason == "é"


def test_page_and_terminal_write_the_same_bytes_and_go_on_from_each_other(path, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())

    async def question(client):
        state = await client.ok(NEXT, queue="queue", annotator="anna")
        await client.ok(VOTE, queue="queue", annotator="anna", item=state["item"]["id"], ratings=GOOD)
        terminal = ReviewQueue.open(path)
        terminal.vote("anna", terminal.pending("anna")[0].id, GOOD)
        return await client.ok(NEXT, queue="queue", annotator="anna")

    assert asked(path, question)["judged"] == 2
    alone = ReviewQueue.open(copy)
    for item in alone.pending("anna")[:2]:
        alone.vote("anna", item.id, GOOD)
    assert copy.read_bytes() == path.read_bytes()


def test_votes_at_once_are_all_kept_and_a_cut_line_is_no_vote(path):
    with path.open("ab") as file:
        file.write(b'{"kind": "vote", "annot')

    async def question(client):
        names = [f"n{i}" for i in range(12)]
        return await asyncio.gather(*(
            client.ok(VOTE, queue="queue", annotator=name, item="i0", ratings=GOOD) for name in names
        ))  # fmt: skip

    assert len(asked(path, question)) == 12
    assert sorted(v.annotator for v in ReviewQueue.open(path).votes) == sorted(f"n{i}" for i in range(12))


def test_a_frozen_queue_takes_no_votes(path):
    ReviewQueue.open(path).freeze()

    async def question(client):
        assert (await client.http.get("/v1/reviews")).json()["data"] == [{"id": "queue", "items": 3, "frozen": True}]
        return await client.post(VOTE, {"queue": "queue", "annotator": "anna", "item": "i0", "ratings": GOOD})

    status, reply = asked(path, question)
    assert status == 400 and "frozen" in reply["error"]["message"] and "/" not in reply["error"]["message"]


WHO = {"queue": "queue", "annotator": "anna"}


@pytest.mark.parametrize(
    ("where", "body", "status", "said"),
    [
        (NEXT, {"queue": "queue"}, 400, '"annotator" is missing'),
        (NEXT, {"queue": "../queue.jsonl", "annotator": "a"}, 404, "no review queue"),
        (NEXT, {"queue": "/etc/passwd", "annotator": "a"}, 404, "no review queue"),
        (NEXT, {"queue": "queue", "annotator": " "}, 400, "printable"),
        (NEXT, {"queue": "queue", "annotator": "a\nb"}, 400, "printable"),
        (NEXT, {"queue": "queue", "annotator": "a" * 101}, 400, "at most 100"),
        (NEXT, {"queue": "queue", "annotator": 7}, 400, "string"),
        (VOTE, {**WHO, "item": "i9", "ratings": GOOD}, 400, "no item"),
        (VOTE, {**WHO, "item": "i0", "ratings": {"relevance": 3}}, 400, "rates relevance, diversity"),
        (VOTE, {**WHO, "item": "i0", "ratings": {"relevance": 9, "diversity": 1}}, 400, "must be one of 1, 2, 3"),
        (VOTE, {**WHO, "item": "i0", "ratings": {"relevance": True, "diversity": 1}}, 400, "integer"),
        (VOTE, {**WHO, "item": "i0", "ratings": {f"c{i}": 1 for i in range(40)}}, 400, "at most 32"),
        (VOTE, {**WHO, "item": "i0", "ratings": GOOD, "reason": "x" * 2001}, 400, "at most 2000"),
        (VOTE, b'{"queue": "queue", "annotator": "\\ud800"}', 400, "JSON"),
        (VOTE, b'{"reason": "' + b"x" * 2**21 + b'"}', 413, "at most"),
        (VOTE, b"[]", 400, "object"),
    ],
)  # fmt: skip
def test_hostile_requests_change_nothing(path, where, body, status, said):
    before = path.read_bytes()
    found, reply = asked(path, lambda client: client.post(where, body))
    assert found == status and said in reply["error"]["message"], reply
    assert str(path.parent) not in reply["error"]["message"] and path.read_bytes() == before


def test_the_key_is_asked_for_and_a_server_without_queues_has_none(path):
    async def with_key(client):
        assert (await client.http.get("/v1/reviews")).status_code == 401
        body = {**WHO, "item": "i0", "ratings": GOOD}
        assert (await client.post(VOTE, body))[0] == 401 and not ReviewQueue.open(path).votes
        return await client.post(VOTE, body, Authorization="Bearer secret")

    assert asked(path, with_key, api_key="secret")[0] == 200

    async def without(client):
        assert (await client.http.get("/v1/reviews")).json()["data"] == []
        return await client.post(NEXT, WHO)

    assert ask(toy_model(), without)[0] == 404


def test_which_files_are_queues_is_said_at_the_start(path, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"kind": "something"}\n')
    assert review_files(tmp_path) == {"queue": path} == review_files(path)
    with pytest.raises(DataError, match="no review queue"):
        review_files(tmp_path / "other.jsonl")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds 0 review queues"):
        review_files(empty)
