"""ATTS: nobody waits for a chain, the rate is what was asked for, failures and cancelling stay where they belong."""

from __future__ import annotations

import asyncio
import math
import string
from collections import Counter

import numpy as np
import pytest
from fake_server import toy_server
from scaling_clients import ScriptedClient, normal_rate, written
from scripts import script

from likely.errors import CapabilityError, DataError, LikelyError, RemoteError
from likely.lm.model import Model
from likely.lm.remote.model import RemoteModel
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime
from likely.serving.scaling import ATTS, RejectionGate, ScalingRun, client_of, round_rates
from likely.serving.scaling.gate import leave_one_out

virtual = script("virtual_clock").run_on_virtual_clock


def atts(draft=None, target=None, **settings) -> ATTS:
    settings = {"samples": 4, "rounds": 3, "gate": None, **settings}
    if settings["gate"] is None and settings.get("coverage") != "conditional":
        settings["gate"] = RejectionGate(settings.get("reject_rate", 0.4))
        settings["gate"].add(np.random.default_rng(0).normal(size=99))
    return ATTS(draft or ScriptedClient(rate=normal_rate), target or ScriptedClient("t", rate=normal_rate), **settings)


def toy(alphabet: str, *, seed: int) -> Model:
    tokenizer = CharTokenizer(alphabet)
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=seed)
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float64", "0", "chars", template=False))


# --- no barrier -------------------------------------------------------------------------------------------------------


def finishing_times(slow: float) -> list[float]:
    """Chains of three rounds of a second each, the first of which takes `slow` times as long."""
    numbers: dict[str, int] = {}

    def takes(prompt: str) -> float:
        return slow if prompt.endswith("chain 0") or " c0" in prompt else 1.0

    def write(prompt: str, seed: int):
        if prompt.endswith(":"):  # a first draft says which chain it is
            return written(f" c{numbers.setdefault(str(seed), len(numbers))}")
        return written(" more")

    found, _ = virtual(
        atts(
            ScriptedClient(write=write, takes=takes), ScriptedClient("t", rate=lambda p, t: 9.0), samples=5,
            draft_concurrency=5, target_concurrency=5,
        ).solve("q")
    )  # fmt: skip
    return [chain.finished_s for chain in sorted(found.chains, key=lambda chain: chain.text)]


def test_a_slow_chain_delays_no_other():
    assert finishing_times(1.0) == [3.0] * 5
    assert finishing_times(50.0) == [101.0, 3.0, 3.0, 3.0, 3.0]


def test_the_limits_hold():
    draft, target = (ScriptedClient(n, takes=lambda p: 1.0, rate=normal_rate) for n in "dt")
    system = atts(draft, target, samples=12, draft_concurrency=5, target_concurrency=2)
    virtual(system.solve("q"))
    assert (draft.most_running, target.most_running) == (5, 2)


def test_the_virtual_clock_says_when_nothing_can_come():
    async def stuck():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="never comes"):
        virtual(stuck())


# --- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("coverage", ["marginal", "conditional"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_the_realised_rate_is_the_budget(coverage, rate):
    questions = [f"q{i}" for i in range(40)]

    async def run():
        system = ATTS(
            ScriptedClient(), ScriptedClient("t", rate=normal_rate), samples=10, rounds=1, reject_rate=rate,
            coverage=coverage,
        )  # fmt: skip
        if coverage == "marginal":
            await system.calibrate([f"c{i}" for i in range(60)])
        return [chains async for chains in system.solve_each(questions)]

    found, _ = virtual(run())
    decisions = [d for chains in found for d in chains.decisions()]
    rejected = sum(r for _, r in decisions)
    assert len(decisions) == 400
    sd = math.sqrt(rate * (1 - rate) * (1 / 400 + (1 / 600 if coverage == "marginal" else 1 / 400)))
    assert abs(rejected / 400 - rate) <= 3 * sd
    assert all(turn.rejected == (turn.pvalue > 1 - rate) for c in found for chain in c.chains for turn in chain.turns)
    [first] = round_rates(decisions, rate, None)
    assert (first.drafts, first.rejected, first.rounds) == (400, rejected, "1")


def test_scores_that_drift_need_calibration_of_each_round():
    """The second round's drafts are all likelier: held against the first round's scores hardly any is rejected."""

    def rate(prompt, text):
        return normal_rate(prompt, text) + 3 * prompt.endswith("!")

    async def run(calibration):
        system = ATTS(
            ScriptedClient(write=lambda p, s: written(f" {s}!")),
            ScriptedClient("t", rate=rate, write=lambda p, s: written("!")), samples=10, rounds=2, reject_rate=0.5,
            calibration=calibration,
        )  # fmt: skip
        gate = await system.calibrate([f"c{i}" for i in range(20)])
        assert gate.scores.groups == ([1] if calibration == "first" else [1, 2])
        chains = [c async for c in system.solve_each([f"q{i}" for i in range(20)])]
        decisions = [d for c in chains for d in c.decisions()]
        return [r.rate for r in round_rates(decisions, 0.5, gate.count())]

    (first, drifted), _ = virtual(run("first"))
    (same, held), _ = virtual(run("each"))
    assert first == same and abs(first - 0.5) < 0.15 and drifted < 0.1
    assert abs(held - 0.5) < 0.15


def test_calibration_chains_are_held_against_each_other():
    rng = np.random.default_rng(0)
    assert leave_one_out([1.0], 0.6, rng) == [False]
    counts = Counter()
    for _ in range(200):
        counts.update(leave_one_out(rng.normal(size=10).tolist(), 0.6, rng))
    assert abs(counts[True] / 2000 - 0.4) < 0.05


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_reject", "history"), [("continue", " draft target"), ("replace", " target")])
def test_a_rejected_draft_is_continued_or_replaced(on_reject, history):
    draft = ScriptedClient(write=lambda p, s: written(" draft"))
    target = ScriptedClient("t", rate=lambda p, t: -99.0, write=lambda p, s: written(" target"))
    found, _ = virtual(atts(draft, target, samples=1, rounds=2, on_reject=on_reject).solve("q"))
    [chain] = found.chains
    assert chain.text == 2 * history and chain.finish == "rounds" and all(t.rejected for t in chain.turns)
    before = "<t>q:" + ("" if on_reject == "replace" else " draft")
    assert [p for what, p in target.asked if what == "sample"] == [before, before.replace("q:", "q:" + history)]
    assert [p for what, p in target.asked if what == "score"][1] == f"<t>q:{history} draft"
    expected = (-99 - 99 - 2) / 4 if on_reject == "continue" else -1.0
    assert chain.mean_logprob == pytest.approx(expected)
    assert found.target_tokens == 2 and found.draft_tokens == 2


def test_kept_drafts_stay_and_an_answer_ends_the_chain():
    texts = iter([" thinking", " #### 42\n", " never"])
    draft = ScriptedClient(write=lambda p, s: written(next(texts)))
    found, _ = virtual(atts(draft, ScriptedClient("t", rate=lambda p, t: 99.0), samples=1, rounds=9).solve("q"))
    [chain] = found.chains
    assert (chain.text, chain.answer, chain.finish) == (" thinking #### 42\n", "42", "answer")
    assert found.answer == "42" and found.share == 1 and found.target_tokens == 0
    assert (
        found.to_dict()["rejected"] == 0
        and [t["writer"] for t in found.to_dict()["chains"][0]["turns"]] == ["draft"] * 2
    )


def test_an_empty_draft_and_a_writer_that_ends_end_the_chain():
    for ends, turns in ((written(""), 0), (written(" so 7", ended=True), 1)):
        found, _ = virtual(atts(ScriptedClient(write=lambda p, s, e=ends: e), samples=1).solve("q"))
        assert found.chains[0].finish == "ended" and len(found.chains[0].turns) == turns


def test_the_same_chains_whatever_runs_beside_them():
    questions = [f"q{i}" for i in range(6)]

    def run(at_once, concurrency):
        system = atts(draft_concurrency=concurrency, target_concurrency=concurrency, samples=3)
        with ScalingRun(system) as scaling:
            return [c.to_dict() for c in scaling.solve_each(questions, at_once=at_once)]

    assert run(1, 1) == run(6, 16)
    with ScalingRun(atts(seed=1, samples=3)) as other:
        assert run(1, 1)[0] != other.solve(questions[0]).to_dict()


def test_a_window_of_newest_scores_follows_a_drift():
    gate = RejectionGate(0.5, window=20)
    gate.add(np.random.default_rng(0).normal(size=20))
    rng, found = np.random.default_rng(1), []
    for score in rng.normal(loc=5, size=200):
        found.append(gate.decide(float(score), 1, rng)[1])
    assert not any(found[:5]) and abs(np.mean(found[50:]) - 0.5) < 0.15 and gate.count() == 20


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_chain_that_fails_ends_alone():
    calls = iter(range(100))

    def write(prompt, seed):
        if next(calls) == 1:
            raise RemoteError("the server answered 500")
        return written(" so 7", ended=True)

    found, _ = virtual(atts(ScriptedClient(write=write)).solve("q"))
    assert Counter(c.finish for c in found.chains) == {"ended": 3, "error": 1}
    [failed] = [c for c in found.chains if c.error]
    assert failed.error == "the server answered 500" and failed.answer is None and found.answer == "7"
    assert found.to_dict()["failed"] == 1


def test_if_all_chains_fail_the_first_error_is_raised():
    def write(prompt, seed):
        raise RemoteError("the server is gone")

    with pytest.raises(RemoteError, match="the server is gone"):
        virtual(atts(ScriptedClient(write=write)).solve("q"))
    with pytest.raises(RemoteError, match="the server is gone"):
        virtual(atts(ScriptedClient(write=write), coverage="conditional").solve("q"))


def test_calibration_goes_on_without_chains_that_fail():
    calls = iter(range(100))

    def write(prompt, seed):
        if next(calls) % 3 == 0:
            raise RemoteError("busy")
        return written(" x")

    gate, _ = virtual(atts(ScriptedClient(write=write), coverage="conditional", samples=9).calibrate(["q"]))
    assert gate.count() == 6


def test_cancelling_ends_every_call():
    draft = ScriptedClient(takes=lambda p: 100.0)
    system = atts(draft, samples=6, draft_concurrency=4)

    async def run():
        task = asyncio.create_task(system.solve("q"))
        await asyncio.sleep(1)
        assert draft.running == 4
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    virtual(run())
    assert (draft.running, draft.cancelled) == (0, 4)


def test_stopping_early_ends_the_questions_on_their_way_and_closes_the_clients():
    draft = ScriptedClient(takes=lambda p: 0.001)
    with ScalingRun(atts(draft)) as scaling:
        each = scaling.solve_each([f"q{i}" for i in range(50)], at_once=3)
        assert next(each).question == "q0"
        each.close()
    assert draft.running == 0 and draft.asked[-1] == ("close", "") and len(draft.asked) < 50


def test_wrong_settings_are_refused():
    for settings, said in (
        ({"reject_rate": 0.0}, "reject_rate must lie between 0 and 1, got 0.0"),
        ({"reject_rate": 1.0}, "reject_rate"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"coverage": "both"}, "coverage"),
        ({"answers": "poem"}, "answers"),
        ({"coverage": "conditional", "gate": RejectionGate(0.4)}, "drop gate="),
        ({"gate": RejectionGate(0.3)}, "give reject_rate=0.3"),
    ):
        with pytest.raises(ValueError, match=said):
            ATTS(ScriptedClient(), ScriptedClient(), **settings)
    with pytest.raises(LikelyError, match="needs a calibration"):
        virtual(ATTS(ScriptedClient(), ScriptedClient()).solve("q"))
    empty = ScriptedClient(write=lambda p, s: written(""))
    with pytest.raises(LikelyError, match="every draft was empty"):
        virtual(ATTS(empty, ScriptedClient()).calibrate(["q"]))
    with pytest.raises(ValueError, match="row 1 is not a number"):
        RejectionGate(0.4).add([1.0, math.nan])
    with pytest.raises(DataError, match="no saved calibration"):
        RejectionGate.from_dict({"reject_rate": 0.4})
    gate = RejectionGate(0.4, by_round=True)
    gate.add([1, 2, 3], 1)
    gate.add([4, 5], 3)
    assert [gate.group(n) for n in (1, 2, 3, 9)] == [1, 1, 3, 3]
    again = RejectionGate.from_dict(gate.to_dict())
    assert again.fingerprint == gate.fingerprint and again.count(4) == 2


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_with_other_tokenizers_meet_at_the_text():
    """The target's score is its own teacher-forced mean log-probability of the draft's characters."""
    small, large = toy("abc .:Qquestion\nAnswer", seed=1), toy(string.ascii_letters + " .:\n", seed=2)
    small.tokenizer.special_tokens.clear()

    async def run():
        draft, target = client_of(small), client_of(large)
        system = ATTS(draft, target, samples=3, rounds=2, draft_tokens=5, target_tokens=4, coverage="conditional")
        try:
            return await system.solve("no or so")
        finally:
            await system.close()

    found = asyncio.run(run())
    prompt = "Question: no or so\nAnswer:"
    assert any(chain.turns for chain in found.chains)
    for chain in found.chains:
        before = prompt
        for turn in chain.turns:
            [scored] = large.score(before, [turn.draft])
            assert turn.mean_logprob == pytest.approx(scored.mean_logprob, abs=1e-5)
            before += turn.text("continue")


def test_cancelling_frees_what_the_models_hold():
    model = toy(string.ascii_letters + " .:\n", seed=3)

    async def run():
        client = client_of(model)
        task = asyncio.create_task(client.sample("so", max_tokens=10**6, temperature=1.0, seed=1))
        other = asyncio.create_task(client.sample("no", max_tokens=3, temperature=1.0, seed=1))
        await other
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not client.engine._loop.idle:
            await asyncio.sleep(0)
        live = client.engine.waiting
        await client.close()
        return live

    assert asyncio.run(run()) == 0
    assert model.runtime.free_tokens() == model.runtime.limits.tokens_held


def test_a_server_writes_and_scores():
    with toy_server() as server, RemoteModel(server.url) as remote:

        async def run():
            client = client_of(remote, template="Q: {question} A:", concurrency=2, scores=True)
            made = await client.sample(client.prompt("x, y"), max_tokens=4, temperature=0.8, seed=2**40)
            scored = await client.score(client.prompt("x, y"), "so")
            await client.close()
            return made, scored

        made, scored = asyncio.run(run())
        assert made.tokens == len(made.text) == 4 and not made.ended and made.logprob < 0
        assert scored.mean_logprob == pytest.approx(remote.score("Q: x, y A:", ["so"])[0].mean_logprob)


def test_a_server_that_cannot_score_is_no_target():
    def silent(body, reply):
        for choice in reply["choices"]:
            choice["logprobs"] = None
        return reply

    refused = pytest.raises(CapabilityError, match="target has to score drafts")
    with toy_server(lie=silent) as server, RemoteModel(server.url) as remote, refused:
        client_of(remote, scores=True)


def test_prompts_of_clients():
    assert client_of(toy("ab", seed=1), template="<{question}>{x}").prompt("{q}") == "<{q}>{x}"
    with pytest.raises(DataError, match=r"no \{question\} in it"):
        client_of(toy("ab", seed=1), template="{q}")
