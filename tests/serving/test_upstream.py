"""Servers behind this one: who gets a request (a pure policy), and requests passed on over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import httpx
import openai
import pytest
from helpers_for_serving import ask, client_of, serving, toy_model
from tiny_gguf import write_tiny_llama

import likely
from likely.serving import ServerLimits
from likely.serving.upstream import Balancer, Hedging, Upstream, UpstreamProxy
from likely.serving.upstream.proxy import text_of, tokens_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def balancer(n, **options):
    clock = Clock()
    servers = [Upstream(f"http://host{i}/v1", frozenset({"big"})) for i in range(n)]
    return Balancer(servers, clock=clock, **options), servers, clock


# --- the policy -----------------------------------------------------------------------------------------------------


def test_a_prefix_has_one_home_and_only_its_own_move_when_a_server_goes():
    policy, servers, _ = balancer(5)
    prefixes = [f"text {i}".encode() for i in range(400)]
    homes = {prefix: policy.choose("big", prefix, 1) for prefix in prefixes}
    assert homes == {prefix: policy.choose("big", prefix, 1) for prefix in prefixes}
    counts = Counter(home.url for home in homes.values())
    assert len(counts) == 5 and max(counts.values()) < 2 * min(counts.values())
    gone = servers[2]
    left = Balancer([each for each in servers if each is not gone])
    for prefix, home in homes.items():
        if home is not gone:
            assert left.choose("big", prefix, 1) is home


@pytest.mark.parametrize("bound", [1.0, 1.25, 2.0])
def test_load_stays_bounded_when_all_prefixes_are_one(bound):
    policy, servers, _ = balancer(4, bound=bound)
    choose = random.Random(1)
    for _ in range(300):
        size = choose.randint(1, 50)
        policy.begin(policy.choose("big", b"same", size), size)
    loads = [each.outstanding for each in servers]
    assert max(loads) <= bound * sum(loads) / 4 + 2 * 50
    assert sum(loads) > 0 and min(loads) > 0


def test_a_server_that_fails_is_left_alone_and_tried_by_one_request():
    policy, [bad, good], clock = balancer(2)
    bad.models, good.models = frozenset({"big"}), frozenset({"other"})
    for _ in range(3):
        assert policy.choose("big", b"", 1) is bad
        policy.begin(bad, 1)
        policy.end(bad, 1, worked=False)
    assert policy.choose("big", b"", 1) is None and policy.opens_in("big") == pytest.approx(5.0)
    clock.now += 5.1
    assert policy.choose("big", b"", 1) is bad
    policy.begin(bad, 1)
    assert policy.choose("big", b"", 1) is None  # one trial at a time
    policy.end(bad, 1, worked=False)
    assert policy.opens_in("big") == pytest.approx(10.0)  # twice as long
    clock.now += 10.1
    policy.begin(bad, 1)
    policy.end(bad, 1, worked=True)
    assert policy.choose("big", b"", 1) is bad and bad.failures == 0 and bad.outstanding == 0


def test_a_client_that_leaves_says_nothing_about_the_server():
    policy, [server], _ = balancer(1)
    for _ in range(9):
        policy.begin(server, 7)
        policy.end(server, 7, worked=None)
    assert policy.choose("big", b"", 1) is server and server.outstanding == 0


def test_pauses_grow_no_longer_than_their_bound():
    policy, [server], _ = balancer(1)
    for _ in range(200):
        policy.begin(server, 1)
        policy.end(server, 1, worked=False)
    assert policy.opens_in("big") == pytest.approx(60.0)


def test_two_of_one_address_are_refused():
    with pytest.raises(ValueError, match="two upstreams"):
        Balancer([Upstream("http://a/v1"), Upstream("http://a/v1")])


# --- passed on ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """(path of a model called "big", the same opened here)"""
    path = write_tiny_llama(tmp_path_factory.mktemp("big") / "big.gguf", seed=8)
    with likely.load(str(path), threads=1) as lm:
        yield str(path), lm


def test_requests_for_its_models_reach_an_upstream_whole_and_streamed(big):
    path, own = big
    with (
        likely.load(path, threads=1) as lm,
        serving(lm, api_key="secret") as behind,
        serving(toy_model(), upstreams=UpstreamProxy([behind], api_key="secret")) as url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert sorted(model.id for model in client.models.list()) == ["big", "toy"]
        asked = {"model": "big", "prompt": "the cat", "max_tokens": 6, "seed": 3}
        expected = own.generate("the cat", max_tokens=6, seed=3)
        raw = client.completions.with_raw_response.create(**asked, logprobs=0)
        assert raw.headers["x-likely-upstream"] == "0" and raw.parse().choices[0].text == expected.text
        assert raw.parse().choices[0].logprobs.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-6)
        pieces = client.completions.create(**asked, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == expected.text
        with pytest.raises(openai.BadRequestError, match="max_tokens"):  # its refusals are passed on, too
            client.completions.create(**{**asked, "max_tokens": 10**6})
        with pytest.raises(openai.NotFoundError, match='no model "nosuch"'):
            client.completions.create(model="nosuch", prompt="a")
        assert client.completions.create(model="toy", prompt="ab", max_tokens=2).model == "toy"


class Scripted(httpx.AsyncBaseTransport):
    """Hosts that answer from a list: a status, bytes of a stream, or an exception."""

    def __init__(self, **hosts):
        self.hosts, self.asked = hosts, []

    async def handle_async_request(self, request):
        host = request.url.host
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "big"}]})
        self.asked.append(host)
        answer = self.hosts[host]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer, json={"error": {"message": f"from {host}"}})

        async def pieces():
            for piece in answer:
                if isinstance(piece, Exception):
                    raise piece
                yield piece

        return httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})


def through(transport, *, requests=1, **body):
    """[(status, text)] of requests to two hosts, whichever is asked first."""
    proxy = UpstreamProxy(["http://a", "http://b"], transport=transport)

    async def run():
        async with client_of(toy_model(), upstreams=proxy) as client:
            replies = []
            for i in range(requests):
                asked = {"model": "big", "prompt": f"{i}", **body}
                replies.append(await client.http.post(COMPLETIONS, json=asked))
            assert all(each.outstanding == 0 for each in proxy.balancer.upstreams)
            return [(reply.status_code, reply.text) for reply in replies]

    return asyncio.run(run())


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), 500, 503, 429])
def test_before_the_first_byte_another_server_is_asked(fault):
    transport = Scripted(a=fault, b=[b"data: 1\n\n", b"data: [DONE]\n\n"])
    found = through(transport, requests=12)
    assert all(status == 200 and "[DONE]" in text for status, text in found)
    asked = Counter(transport.asked)
    assert asked["b"] == 12 and asked["a"] >= 1
    if fault != 429:
        assert asked["a"] <= 3  # then it is left alone


@pytest.mark.slow
def test_after_the_first_byte_nothing_is_sent_again():
    transport = Scripted(a=[b"data: 1\n\n", httpx.ReadError("gone")], b=[b"data: 1\n\n", httpx.ReadError("gone")])
    [(status, text)] = through(transport)
    assert status == 200 and len(transport.asked) == 1
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert "broke off" in last["error"]["message"]


def test_a_client_that_leaves_while_a_refusal_is_read_closes_no_server():
    reading = asyncio.Event()

    async def pieces():
        yield b"{"
        reading.set()
        await asyncio.Event().wait()

    class Slow(Scripted):
        async def handle_async_request(self, request):
            if request.url.path.endswith("/models"):
                return await super().handle_async_request(request)
            return httpx.Response(500, content=pieces())

    async def run():
        proxy = UpstreamProxy(["http://a"], transport=Slow())
        await proxy.refresh()
        [server] = proxy.balancer.upstreams
        server.failures = proxy.balancer.failures  # this request is a trial
        asked = asyncio.create_task(proxy.forward("/completions", {"model": "big", "prompt": "x"}))
        await reading.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await proxy.close()
        assert server.outstanding == 0 and not server.trying

    asyncio.run(run())


class Trickling(httpx.AsyncBaseTransport):
    """A host whose every piece comes within the deadline, and the last one never."""

    def __init__(self, pieces, kind="text/event-stream"):
        self.pieces, self.kind = pieces, kind

    async def handle_async_request(self, request):
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "big"}]})

        async def trickle():
            for _ in range(self.pieces):
                yield b"data: 1\n\n"
                await asyncio.sleep(0.02)
            await asyncio.Event().wait()

        return httpx.Response(200, content=trickle(), headers={"content-type": self.kind})


@pytest.mark.parametrize(("deadline", "own"), [(0.3, None), (60.0, 0.3)])
@pytest.mark.parametrize("pieces", [0, 10**6])
def test_the_deadline_bounds_a_whole_forwarded_reply(deadline, own, pieces):
    limits = ServerLimits(deadline_s=deadline)
    proxy = UpstreamProxy(["http://a"], transport=Trickling(pieces), limits=limits)

    async def run():
        async with client_of(toy_model(), upstreams=proxy, limits=limits) as client:
            asked = {"model": "big", "prompt": "x", "stream": True, "timeout": own}
            async with asyncio.timeout(30):
                return await client.http.post(COMPLETIONS, json=asked)

    reply = asyncio.run(run())
    [server] = proxy.balancer.upstreams
    last = json.loads(reply.text.strip().splitlines()[-1].removeprefix("data: "))
    assert reply.status_code == (200 if pieces else 408)
    assert last["error"]["code"] == "deadline" and "within 0.3 seconds" in last["error"]["message"]
    assert server.outstanding == 0 and server.failures == (1 if not pieces and own is None else 0)


def test_where_nobody_answers_the_last_reason_is_told():
    found = through(Scripted(a=httpx.ConnectError("refused"), b=httpx.ConnectError("refused")), requests=5)
    assert [status for status, _ in found] == [502, 502, 502, 503, 503]
    assert "ConnectError" in found[0][1] and "is in order now" in found[-1][1]
    [(status, text)] = through(Scripted(a=503, b=503))
    assert status == 503 and "from " in text


def test_a_client_that_leaves_ends_the_request_behind(big):
    """The load that it was counted with goes, and so does its place in the server behind."""
    path, _ = big
    with likely.load(path, threads=1) as lm, serving(lm) as behind:
        proxy = UpstreamProxy([behind])
        with serving(toy_model(), upstreams=proxy) as url:
            body = {"model": "big", "prompt": "the", "max_tokens": 200, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", f"{url}{COMPLETIONS}", json=body) as reply:
                next(reply.iter_bytes())
            while httpx.get(f"{behind}/health").json()["requests"] or proxy.balancer.upstreams[0].outstanding:
                pass


# --- asked twice ------------------------------------------------------------------------------------------------------


class Slow(Scripted):
    """Hosts that answer when they are told to (`None`: at once), or with what `Scripted` has."""

    def __init__(self, waits, **hosts):
        super().__init__(**hosts)
        self.waits, self.left, self.headers = waits, [], []

    async def handle_async_request(self, request):
        host = request.url.host
        if not request.url.path.endswith("/models"):
            self.headers.append((host, request.headers.get("x-request-id")))
            if (event := self.waits.get(host)) is not None:
                try:
                    await event.wait()
                except asyncio.CancelledError:
                    self.left.append(host)
                    raise
        return await super().handle_async_request(request)


DONE = [b"data: 1\n\n", b"data: [DONE]\n\n"]


def home_of(balancer, prefix):
    return balancer.choose("big", prefix, 10).url.removesuffix("/v1").removeprefix("http://")


def hedged(question, *, fewest=0, share=1.0, **hosts):
    """Run `question(client, transport, proxy, home, other)`; requests about "x" go first to `home`, which is silent."""

    async def main():
        transport = Slow({}, **hosts)
        hedging = Hedging(share=share, fewest=fewest)
        hedging.seconds.extend([0.001] * 5)
        proxy = UpstreamProxy(["http://a", "http://b"], transport=transport, hedging=hedging)
        async with client_of(toy_model(), upstreams=proxy) as client:
            await proxy.refresh()
            home = home_of(proxy.balancer, b"x")
            other = {"a": "b", "b": "a"}[home]
            transport.waits[home] = asyncio.Event()
            found = await question(client, transport, proxy, home, other)
        assert all(each.outstanding == 0 for each in proxy.balancer.upstreams)
        return found

    return asyncio.run(main())


ASKED = {"model": "big", "prompt": "x"}


def test_a_silent_server_is_left_for_one_that_answers():
    async def question(client, transport, proxy, home, other):
        reply = await client.http.post(COMPLETIONS, json=ASKED, headers={"X-Request-ID": "mine"})
        assert reply.status_code == 200 and "[DONE]" in reply.text
        number = [each.url for each in proxy.balancer.upstreams].index(f"http://{other}/v1")
        assert reply.headers["x-likely-upstream"] == str(number)
        assert transport.left == [home] and [host for host, _ in transport.headers] == [home, other]
        assert {number for _, number in transport.headers} == {"mine"} == {reply.headers["x-request-id"]}
        assert all(each.failures == 0 for each in proxy.balancer.upstreams)  # being slower is no fault

    hedged(question, a=DONE, b=DONE)


@pytest.mark.parametrize("more", [{"share": 0.0}, {"fewest": 6}])
def test_few_are_asked_twice_and_none_before_it_is_known_what_is_slow(more):
    async def question(client, transport, proxy, home, other):
        asking = asyncio.create_task(client.http.post(COMPLETIONS, json=ASKED))
        while not transport.headers:
            await asyncio.sleep(0)
        transport.waits[home].set()
        assert (await asking).status_code == 200 and len(transport.headers) == 1

    hedged(question, a=DONE, b=DONE, **more)


@pytest.mark.parametrize(("answer", "counted"), [(httpx.ConnectError("refused"), 1), (429, 0), (503, 0)])
def test_a_second_server_that_fails_does_not_end_the_wait_for_the_first(answer, counted):
    async def question(client, transport, proxy, home, other):
        transport.hosts[other] = answer
        asking = asyncio.create_task(client.http.post(COMPLETIONS, json=ASKED))
        while len(transport.headers) < 2:
            await asyncio.sleep(0)
        transport.waits[home].set()
        assert (await asking).status_code == 200
        failures = {each.url: each.failures for each in proxy.balancer.upstreams}
        assert failures == {f"http://{home}/v1": 0, f"http://{other}/v1": counted}

    hedged(question, a=DONE, b=DONE)


def test_the_percentile_and_the_share():
    hedging = Hedging(fewest=20, share=0.25)
    assert hedging.after_s() is None
    hedging.seconds.extend(range(1, 101))
    assert [hedging.after_s() for _ in range(2)] == [None, None]  # one of four at the most
    assert hedging.after_s() == pytest.approx(95.05)
    hedging.hedged += 1
    assert hedging.after_s() is None


def test_sizes_are_estimated_from_whatever_names_them():
    def size(**body):
        return tokens_of(body, text_of(body))

    assert size(prompt="x" * 400, max_tokens=50) == 151
    assert size(messages=[], max_completion_tokens=7) == 8
    assert size(input="", max_output_tokens="many") == 257


def test_a_wrong_address_is_refused_and_a_silent_one_is_no_model():
    with pytest.raises(likely.errors.ModelError, match="address of a server"):
        UpstreamProxy(["ftp://x"])

    async def question(client):
        return await client.post(CHAT, {"model": "big", "messages": [{"role": "user", "content": "a"}]})

    silent = UpstreamProxy(["http://127.0.0.1:9"])
    status, reply = ask(toy_model(), question, upstreams=silent)
    assert status == 404 and "big" in reply["error"]["message"]
