"""Scores, confidence, map, decision: the same numbers whether the steps are chained or taken one by one, and the same
answers, abstentions and fallbacks whoever asks: Python, command line or server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from answer_calibrators import calibrator_of, unsure
from fake_server import toy_server
from helpers_for_serving import ask as asking
from tiny_gguf import write_tiny_llama

import likely
from likely.calibration.calibrator import Calibrator, fit_calibrator, folds_of
from likely.calibration.conformal.classification import ConformalSets
from likely.calibration.labelled import read_labelled
from likely.calibration.recalibrators.table import make
from likely.calibration.selective import certified_threshold
from likely.calibration.store import keep
from likely.calibration.threshold import abstention_rule
from likely.errors import CapabilityError, DataError
from likely.lm.confidence import ConfidencePolicy
from likely.lm.questions import QuestionLine
from likely.lm.remote.model import RemoteModel
from likely.metrics.checks import softmax, top_label
from likely.metrics.proper import nll
from likely.metrics.summary import report
from likely.prompting.selection.answer_bias import CBM, pmi
from likely.uncertainty.types import OptionScores


@pytest.fixture
def options(tmp_path):
    """400 questions with four options, whose scores are twice as sure as they should be."""
    rng = np.random.default_rng(5)
    logits = 2 * rng.normal(0, 2, (400, 4))
    labels = [int(rng.choice(4, p=p)) for p in softmax(logits / 2)]
    path = tmp_path / "options.jsonl"
    lines = [{"logits": row, "label": k} for row, k in zip(logits.tolist(), labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path, logits, np.array(labels)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_one_file_of_scores_feeds_map_sets_and_threshold(cli, options, tmp_path, method):
    path, logits, labels = options
    target = tmp_path / "cal.json"
    told = cli("calibrate", "fit", path, "--method", method, "-o", target, "--json").json
    chained = cli("calibrate", "eval", path, "--calibrator", target, "--json").json

    fold = folds_of(labels, 10, 0)
    probs = make(method).fit(logits, labels).predict_proba(logits)
    judged = np.empty_like(probs)
    for k in range(10):
        other = make(method).fit(logits[fold != k], labels[fold != k])
        judged[fold == k] = other.predict_proba(logits[fold == k])
    assert json.loads(json.dumps(told["after"])) == json.loads(json.dumps(report(judged, labels)))
    for name, value in report(probs, labels).items():
        if isinstance(value, float):
            assert chained[name] == pytest.approx(value, abs=1e-12), name
    assert chained["ece"] < cli("calibrate", "eval", path, "--json").json["ece"]

    calibrator = Calibrator.load(target)
    assert np.array_equal(calibrator.predict(read_labelled(path)), probs)
    decided = certified_threshold(*top_label(judged, labels), risk=0.3)
    assert decided is not None and abstention_rule(calibrator, risk=0.3).threshold == decided.threshold
    sets = ConformalSets(alpha=0.2).fit(judged[:200], labels[:200])
    assert sets.predict(calibrator.predict(read_labelled(path))).any()


def test_options_by_pmi_are_prompt_selections_pmi():
    rng = np.random.default_rng(1)
    logprobs, free = -rng.gamma(2, 4, (30, 3)), -rng.gamma(2, 4, 3)
    ones = np.ones((30, 3), np.int64)
    scores = OptionScores(logprobs, ones, ones, ones.astype(bool), np.tile(free, (30, 1)))
    assert scores.probs("pmi") == pytest.approx(pmi(logprobs, free), abs=1e-12)


def test_marginalisation_mends_a_liking_for_letters_as_both_orders_do_at_half_the_cost():
    """Balanced labels; the letter A is liked by 3 nats.  Averaging both orders asks the model twice."""
    rng = np.random.default_rng(2)
    labels = rng.integers(2, size=1000)
    signal = np.stack([labels == 0, labels == 1], axis=1) + rng.normal(0, 0.8, (1000, 2))
    liked = np.array([3.0, 0.0])
    first, second = softmax(signal + liked), softmax(signal + liked[::-1])
    as_it_is, both = nll(first, labels), nll((first + second) / 2, labels)
    mended = nll(CBM().fit(first).predict_proba(first), labels)
    assert both < as_it_is - 0.5
    assert mended < as_it_is - 0.8 * (as_it_is - both)


def test_auto_is_no_worse_than_nothing_on_scores_that_hold(tmp_path):
    """Negative control: calibrated scores stay what they are."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (600, 3))
    labels = [int(rng.choice(3, p=p)) for p in softmax(logits)]
    path = tmp_path / "fine.jsonl"
    rows = zip(logits.tolist(), labels, strict=True)
    path.write_text("".join(json.dumps({"logits": row, "label": k}) + "\n" for row, k in rows))
    calibrator = fit_calibrator(read_labelled(path))
    assert calibrator.after["nll"] < calibrator.before["nll"] + 0.02
    assert calibrator.after["accuracy"] == pytest.approx(calibrator.before["accuracy"], abs=0.03)


# --- one question, asked everywhere -----------------------------------------------------------------------------------

QUESTION = "Is 3 odd?"
MESSAGES = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 6}
CHAT = "/v1/chat/completions"


@pytest.fixture
def lm(tiny):
    with likely.load(str(tiny), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def other_path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("other") / "other.gguf", seed=9)


@pytest.fixture
def kept(lm, tmp_path, monkeypatch):
    """A calibrator for greedy answers of the tiny model, kept for it."""
    monkeypatch.setenv("LIKELY_CALIBRATORS", str(tmp_path / "store"))
    answers = [lm.ask(f"Is {i} odd?", max_tokens=6) for i in range(40)]
    return keep(calibrator_of(lm, {"temperature": 0.0, "max_tokens": 6}, answers))


def decision(found, *text):
    """What matters, of an answer, of a line of JSON or of a choice of the server."""
    fields = found if isinstance(found, dict) else found.to_dict()
    by = fields.get("answered_by")
    return {
        "text": text[0] if text else fields["text"],
        "confidence": fields["confidence"],
        "abstained": fields["abstained"],
        "by": by and by.rpartition("/")[2].removesuffix(".gguf"),
        "why": fields.get("why"),
        "first": (fields.get("first") or {}).get("confidence"),
    }


def in_python(lm, policy):
    yield lm.ask(QUESTION, max_tokens=6, **policy)
    yield lm.chat(MESSAGES, **GREEDY, **policy)
    stream = lm.stream_ask(QUESTION, max_tokens=6, **policy)
    assert "".join(stream)  # of the first model: pieces cannot be taken back
    yield stream.result
    yield from lm.ask_each([QUESTION], max_tokens=6, **policy)
    bound = lm.with_confidence(**policy)
    yield bound.ask(QUESTION, max_tokens=6)
    yield bound.stream_chat(MESSAGES, **GREEDY).finish()
    lm.with_confidence()


def on_the_command_line(cli, tiny, tmp_path, policy):
    flags = [part for name, value in policy.items() for part in (f"--{name.replace('_', '-')}", value)]
    yield cli("ask", QUESTION, "-m", tiny, "--max-tokens", 6, "--json", *flags).json
    chat = ("chat", "-m", tiny, "--max-tokens", 6, "--temperature", 0, "--set", "top_p=1.0", "--json", *flags)
    yield cli(*chat, stdin=f"{QUESTION}\n").json
    if "at_least" in policy:  # without, lines do not say who answered
        path = tmp_path / "questions.jsonl"
        path.write_text(json.dumps({"question": QUESTION}) + "\n")
        yield cli("ask", path, "-m", tiny, "--max-tokens", 6, *flags).lines[1]


def by_the_server(lm, other, policy):
    body = {"messages": MESSAGES, "confidence": True, **GREEDY, **policy}
    if "fallback" in policy:
        body["fallback"] = "other"

    async def questions(client):
        whole = (await client.ok(CHAT, **body))["choices"][0]
        pieces = [choice for event in await client.events(CHAT, **body) for choice in event["choices"]]
        return whole, pieces

    whole, pieces = asking(lm, questions, fallback=other)
    if "at_least" not in policy:
        return
    message = whole["message"]
    assert (message["content"] is None) == whole["abstained"] == (message["refusal"] is not None)
    yield whole, message["content"]
    text = "".join(piece["delta"].get("content", "") for piece in pieces)
    refused = [piece["delta"]["refusal"] for piece in pieces if "refusal" in piece["delta"]]
    assert refused == ([message["refusal"]] if whole["abstained"] else [])
    assert text == (message["content"] or "")  # nothing of a text that did not reach the threshold was sent
    yield pieces[-1], text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", ["given", "passes", "abstains", "falls back"])
def test_one_question_has_one_answer_whoever_asks(case, lm, kept, cli, tiny, other_path, tmp_path):
    plain = lm.ask(QUESTION, max_tokens=6)
    sure = plain.confidence
    assert 0 < sure < 0.99 and plain.answered_by == str(tiny) and not plain.abstained
    assert lm.ask(QUESTION, max_tokens=6, calibrator=None).confidence is None
    assert lm.opener.keywords["threads"] == 1  # a fallback runs as the first model does
    policy = {
        "given": {}, "passes": {"at_least": sure - 1e-6}, "abstains": {"at_least": 0.995},
        "falls back": {"at_least": 0.995, "fallback": str(other_path)},
    }[case]  # fmt: skip
    with likely.load(str(other_path), threads=1) as other:
        theirs = other.ask(QUESTION, max_tokens=6)
        found = [decision(answer) for answer in in_python(lm, policy)]
        assert len(found) == 6
        found += [decision(line) for line in on_the_command_line(cli, tiny, tmp_path, policy)]
        served = [decision(choice, text) for choice, text in by_the_server(lm, other, policy)]
    expected = {"text": plain.text, "confidence": pytest.approx(sure, abs=1e-6), "abstained": False, "by": "tiny",
                "why": None, "first": None}  # fmt: skip
    if case == "abstains":
        expected |= {"abstained": True, "by": None, "why": found[0]["why"]}
        assert "is below" in found[0]["why"]
    if case == "falls back":
        expected |= {"text": theirs.text, "confidence": None, "by": "other", "why": found[0]["why"],
                     "first": pytest.approx(sure, abs=1e-6)}  # fmt: skip
        assert theirs.text != plain.text
    assert found == [expected] * len(found)
    if case == "abstains":  # a text that is no answer is not sent
        expected |= {"text": None}
        served = [{**each, "text": each["text"] or None} for each in served]
    assert served == [expected] * len(served)


@pytest.mark.slow
def test_a_fallback_has_a_calibrator_of_its_own_or_none(lm, kept, other_path):
    asked = {"max_tokens": 6, "at_least": 0.995}
    with likely.load(str(other_path), threads=1) as other:
        before = kept.read_bytes()
        assert lm.ask(QUESTION, fallback=other, **asked).confidence is None
        named = lm.ask(QUESTION, fallback=other, calibrator=kept, **asked)
        assert named.confidence is None and named.first.confidence is not None
        answers = [other.ask(f"Is {i} odd?", max_tokens=6) for i in range(40)]
        own = calibrator_of(other, {"temperature": 0.0, "max_tokens": 6}, answers)
        keep(own)
        found = lm.ask(QUESTION, fallback=other, **asked)
        assert found.confidence == pytest.approx(own.of_answer(found.token_logprobs))
        assert found.answered_by == str(other_path) and found.first.answered_by == lm.info.name
        assert kept.read_bytes() == before


def test_a_question_of_its_own_kind_has_no_confidence(lm, kept):
    questions = [QuestionLine(QUESTION), QuestionLine(QUESTION, system="Be brief.")]
    common, own = lm.ask_each(questions, max_tokens=6, at_least=0.001)
    assert not common.abstained and own.abstained and "system message of its own" in own.why


@pytest.mark.slow
def test_a_server_that_gives_logprobs_is_held_to_a_threshold():
    with toy_server() as server, RemoteModel(server.url, backoff_s=0.0) as lm:
        spelt = [{"role": "user", "content": "Is it?"}]
        found = lm.ask("Is it?", max_tokens=4, calibrator=unsure(), at_least=0.99)
        assert found.abstained and 0 < found.confidence < 0.99
        assert lm.chat(spelt, max_tokens=4, calibrator=unsure(), at_least=0.01).answered_by == lm.info.name
        [each] = lm.ask_each(["Is it?"], max_tokens=4, calibrator=unsure(), at_least=0.99)
        assert each.abstained and each.confidence == found.confidence
        server.lie = lambda body, reply: reply["choices"][0].update(logprobs=None) or reply
        with pytest.raises(CapabilityError, match="gave no log-probabilities, so there is no confidence"):
            lm.ask("Is it?", max_tokens=4, calibrator=unsure(), at_least=0.99)
        assert lm.ask("Is it?", max_tokens=4).confidence is None


def test_a_bound_policy_is_overridden_by_a_call(lm, kept):
    lm.with_confidence(at_least=0.995)
    assert lm.ask(QUESTION, max_tokens=6).abstained
    assert not lm.ask(QUESTION, max_tokens=6, at_least=0.001).abstained
    sure = max((f"Is {i} odd?" for i in range(40)), key=lambda q: lm.ask(q, max_tokens=6, at_least=0.001).confidence)
    assert not lm.ask(sure, max_tokens=6, risk=0.9, delta=0.5).abstained
    free = lm.ask(QUESTION, max_tokens=6, calibrator=None)
    assert free.confidence is None and not free.abstained


@pytest.mark.slow
def test_what_contradicts_itself_is_refused_by_name(lm, kept):
    for options, error, words in (
        ({"at_least": 0.5, "risk": 0.1}, ValueError, "give one of at_least and risk"),
        ({"fallback": "gemma3"}, ValueError, "fallback needs at_least or risk"),
        ({"task": "../x"}, ValueError, "a task's name is"),
        ({"at_least": 90}, ValueError, "at_least must lie between 0 and 1, got 90"),
        ({"at_least": 0.5, "task": "elsewhere"}, DataError, 'no calibrator was fitted .*task "elsewhere"'),
        ({"at_least": 0.5, "temperature": 0.5}, DataError, "no calibrator was fitted"),
        ({"calibrator": kept, "temperature": 0.5}, DataError, "fitted for another settings"),
    ):
        with pytest.raises(error, match=words):
            lm.ask(QUESTION, **{"max_tokens": 6, **options})
    bound = calibrator_of(
        lm, {"max_tokens": 6, "logit_bias": {3: 1.0}}, [lm.ask(f"{i}?", max_tokens=3) for i in range(40)]
    )
    with pytest.raises(CapabilityError, match="logit_bias= speaks of one model's tokens"):
        lm.ask(QUESTION, max_tokens=6, logit_bias={3: 1.0}, calibrator=bound, at_least=0.5, fallback="gemma3")
    with pytest.raises(ValueError, match="one of"):
        ConfidencePolicy(at_least=0.5, risk=0.5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"at_least": 0.995, "fallback": "gemma3"}, "fallback", 'may not ask "gemma3" (allowed: "other")'),
        ({"at_least": 0.995, "fallback": "other", "n": 2}, "fallback", "drop n"),
        ({"fallback": "other"}, "fallback", "fallback needs at_least or risk"),
        ({"at_least": 0.5, "risk": 0.5}, "at_least", "give one of at_least and risk"),
        ({"at_least": 2}, "at_least", "less than 1"),
        ({"at_least": 0.5, "temperature": 0.7}, "at_least", "likely calibrate fit"),
    ],
)
def test_the_server_refuses_by_field(body, param, words, lm, kept, other_path):
    with likely.load(str(other_path), threads=1) as other:

        async def question(client):
            return await client.post(CHAT, {"messages": MESSAGES, **GREEDY, **body})

        status, reply = asking(lm, question, fallback=other)
    assert status == 400 and reply["error"]["param"] == param and words in reply["error"]["message"]


@pytest.mark.slow
def test_a_server_may_hold_every_chat_to_a_threshold(lm, kept, other_path):
    with likely.load(str(other_path), threads=1) as other:
        theirs = other.ask(QUESTION, max_tokens=6).text

        async def question(client):
            return (await client.ok(CHAT, messages=MESSAGES, **GREEDY))["choices"][0]

        assert asking(lm, question, at_least=0.995)["abstained"]
        held = asking(lm, question, at_least=0.995, fallback=other)
        assert held["message"]["content"] == theirs and held["answered_by"] == "other"
        assert "confidence" not in asking(lm, question, fallback=other)
