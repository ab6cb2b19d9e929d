"""The router: which tokens count, which threshold a policy takes, whose answer it is, and what is never silent."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit
from tiny_gguf import write_tiny_llama

import likely
from likely.calibration.calibrator import Calibrator
from likely.calibration.recalibrators.table import make
from likely.errors import DataError, RemoteError
from likely.guided.form import make_form
from likely.lm.results import Answer
from likely.serving.routing import (
    AnswerEvidence,
    Budget,
    CostOptimal,
    RiskControlled,
    Router,
    RoutingTask,
    evidence_of,
    fit_confidence,
    fit_router,
    load_router,
    parse_policy,
)
from likely.serving.tools import Prices, Toolbox, ToolChoice, tool


def answer(text, logprobs, **more):
    return Answer(
        text, list(range(len(logprobs))), list(logprobs), sum(logprobs), None, "stop", 1, 0.0, prompt_tokens=2, **more
    )


class Fake:
    """Answers a question by a table: (text, log-probabilities of its tokens)."""

    def __init__(self, says, error=None):
        self.says, self.error, self.asked = says, error, []
        self.info = SimpleNamespace(name="fake", sha256="f" * 64)

    def ask(self, question, **options):
        assert options["calibrator"] is None  # nobody else decides about it
        self.asked.append(question)
        if self.error:
            raise self.error
        text, logprobs = self.says(question)
        return answer(text, logprobs)


def calibrator_of(confidence, correct, slope=1.0):
    """One whose held-out part is given; of an answer it says σ(slope · sequence_logprob + 1)."""
    made = make("answer").restore(
        {"mean_": [0.0] * 4, "scale_": [1.0] * 4, "weights_": [slope, 0, 0, 0], "intercept_": 1.0}
    )
    return Calibrator(made, "answer", np.asarray(confidence, float), np.asarray(correct, int))


def draws(n, seed, quality=3.0):
    """Confidences that are calibrated, and labels."""
    rng = np.random.default_rng(seed)
    confidence = expit(rng.normal(0.5, quality, n))
    return confidence, (rng.random(n) < confidence).astype(int)


# --- evidence ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("routing") / "tiny.gguf", seed=3, context=1024)
    with likely.load(str(path), threads=1) as model:
        yield model


def test_an_answer_that_its_form_determines_is_no_information(lm):
    schema = {"type": "object", "properties": {"kind": {"const": "the cat"}}, "required": ["kind"],
              "additionalProperties": False}  # fmt: skip
    made = lm.ask("a", schema=schema, max_tokens=60)
    form = make_form(schema=schema)
    found = evidence_of(lm, made, form)
    assert not found.informative and found.logprobs == () and found.features() == {} and found.log_mass < -1
    calibrator = calibrator_of([0.9], [1])
    assert found.confidence(calibrator) is None
    counted_in = evidence_of(lm, made, form, with_forced=True)
    assert len(counted_in.logprobs) == found.tokens > 5 and counted_in.confidence(calibrator) is not None
    with likely.load(lm.info.source, threads=1) as other:
        response = Router(lm, other, confidence=calibrator, policy=RiskControlled(0.01)).ask(
            "a", schema=schema, max_tokens=60
        )  # the large model could not say anything else
    assert (response.route, response.p_correct, response.answer.text) == ("small", None, made.text)


def test_only_free_tokens_count(lm):
    schema = {"type": "object", "properties": {"kind": {"enum": ["the", "cat"]}}, "required": ["kind"],
              "additionalProperties": False}  # fmt: skip
    made = lm.ask("a", schema=schema, max_tokens=60)
    found = evidence_of(lm, made, make_form(schema=schema))
    field = next(f for f in made.fields if f.pointer == "/kind")
    assert len(found.logprobs) == field.n_free_tokens + made.structure.n_free_tokens == 1
    assert sum(found.logprobs) == pytest.approx(field.guided_logprob + made.structure.guided_logprob, abs=1e-9)
    assert found.log_mass == pytest.approx(made.log_weight)
    plain = evidence_of(lm, lm.ask("a", max_tokens=5), None)
    assert len(plain.logprobs) == plain.tokens and plain.log_mass == 0
    with pytest.raises(DataError, match="no log-probabilities"):
        evidence_of(lm, Answer("x", None, None, None, None, "stop", None, 0.0), None)


def test_confidence_is_fitted_on_what_says_something():
    rng = np.random.default_rng(0)
    right = rng.random(80) < 0.5
    evidence = [AnswerEvidence((-(0.2 if r else 2.0) * rng.random() - 0.01,), 3) for r in right]
    silent = [AnswerEvidence((), 3), AnswerEvidence((-0.1,), 3, valid=False)]
    calibrator = fit_confidence([*evidence, *silent], [*right, False, True], method="platt")
    assert len(calibrator.confidence) == 80
    assert (
        AnswerEvidence((-0.05,), 3).confidence(calibrator)
        > 0.6
        > 0.4
        > AnswerEvidence((-1.9,), 3).confidence(calibrator)
    )
    assert silent[0].confidence(calibrator) is None and silent[1].confidence(calibrator) == 0.0
    with pytest.raises(DataError, match="nothing to choose"):
        fit_confidence(silent, [True, False])


# --- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_optimal_threshold_is_that_of_brute_force(seed):
    confidence, correct = draws(200, seed)
    policy = CostOptimal(value=30, large_cost=9, large_accuracy=0.8)
    threshold = policy.rule(calibrator_of(confidence, correct)).threshold

    def cost(t):
        lost = np.where(confidence >= t, 30 * (1 - correct), 9 + 30 * (1 - 0.8))
        return lost.mean()

    tried = [cost(t) for t in [*confidence, np.inf]]
    assert cost(threshold) == pytest.approx(min(tried))
    many, labels = draws(40000, seed)
    assert policy.rule(calibrator_of(many, labels)).threshold == pytest.approx(
        0.8 - 9 / 30, abs=0.06
    )  # τ* in closed form


@pytest.mark.slow
def test_the_risk_is_kept_on_as_many_labelled_sets_as_promised():
    risk, delta, broken, promised = 0.2, 0.1, 0, 0
    far, labels = draws(50_000, 999)
    for seed in range(200):
        threshold = RiskControlled(risk, delta).rule(calibrator_of(*draws(150, seed))).threshold
        if np.isfinite(threshold):
            promised += 1
            given = far >= threshold
            broken += given.any() and 1 - labels[given].mean() > risk
    assert promised > 100
    assert broken <= 200 * delta + 3 * np.sqrt(200 * delta * (1 - delta))


def test_no_threshold_satisfies():
    rule = RiskControlled(0.01).rule(calibrator_of(*draws(40, 0)))
    assert not rule.answers(1.0) and "no threshold" in rule.guarantee


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_budget_is_kept_also_with_ties(share):
    for confidence in (draws(100, 1)[0], np.repeat([0.2, 0.5, 0.9], [30, 40, 30]), np.full(10, 0.5)):
        rule = Budget(share).rule(calibrator_of(confidence, np.ones(len(confidence))))
        below = np.mean([not rule.answers(c) for c in confidence])
        if share == 1:
            assert below == 1
        else:
            assert below <= share
            above = confidence[confidence > rule.threshold]  # one step further would be too much
            assert not len(above) or (confidence < above.min()).mean() > share


def test_policies_in_one_word():
    for text in ("risk:0.05", "risk:0.05,0.2", "budget:0.2", "cost:30,9,0.8"):
        assert parse_policy(text).text() == text
    assert parse_policy("cost:30,9").large_accuracy == 1.0
    for wrong in ("", "risk", "risk:", "risk:x", "cost:1", "budget:0.1,2", "luck:1", "budget:2", "risk:nan"):
        with pytest.raises(ValueError, match=r"0\.\.1|a policy is"):
            parse_policy(wrong)


# --- the router -------------------------------------------------------------------------------------------------------

SURE = calibrator_of(np.linspace(0.01, 0.99, 99), np.ones(99), slope=1.0)


def make_router(large, **options):
    small = Fake(lambda q: ("small", [-0.1] if "easy" in q else [-5.0]))
    return Router(small, large, confidence=SURE, policy=Budget(0.5), **options), small


def test_the_large_model_is_asked_where_the_confidence_is_low():
    large = Fake(lambda q: ("large", [-0.1, -0.1]))
    router, small = make_router(
        large, small_prices=Prices(call=1, token=1, prompt_token=0.5), large_prices=Prices(call=20)
    )
    easy, hard = router.ask("easy"), router.ask("hard")
    assert (easy.route, easy.answer.text, easy.cost, easy.why) == ("small", "small", 3.0, "")
    assert (hard.route, hard.answer.text, hard.cost) == ("large", "large", 23.0) and "below" in hard.why
    assert easy.p_correct == pytest.approx(expit(0.9)) and hard.features["sequence_logprob"] == -5.0
    assert small.asked == ["easy", "hard"] and large.asked == ["hard"]
    assert hard.to_dict()["route"] == "large"


def test_a_large_model_that_cannot_be_reached_is_never_silent():
    down = Fake(lambda q: ("", []), RemoteError("no connection"))
    router, _ = make_router(down)
    with pytest.raises(RemoteError):
        router.ask("hard")
    flagged, _ = make_router(down, if_unavailable="answer")
    response = flagged.ask("hard")
    assert response.route == "small, large unavailable" and "no connection" in response.why
    assert response.answer.text == "small" and flagged.ask("easy").route == "small"
    with pytest.raises(ValueError, match="if_unavailable"):
        make_router(down, if_unavailable="hope")


def test_a_router_is_kept_and_bound_to_its_small_model(tmp_path):
    large = Fake(lambda q: ("large", [-0.1]))
    router, small = make_router(large, if_unavailable="answer")
    router.save(tmp_path / "router.json")
    again = load_router(tmp_path / "router.json", small, large)
    assert again.rule == router.rule and again.if_unavailable == "answer" and again.small_prices == router.small_prices
    small.info = SimpleNamespace(name="other", sha256="0" * 64)
    with pytest.raises(DataError, match="other weights"):
        load_router(tmp_path / "router.json", small, large)
    SURE.save(tmp_path / "plain.json")
    with pytest.raises(DataError, match="not a router"):
        load_router(tmp_path / "plain.json", small, large)


def test_fitting_sets_tasks_aside_and_refuses_to_report_on_its_own():
    small = Fake(lambda q: ("right", [-0.1]) if int(q) % 2 else ("wrong", [-3.0]))
    large = Fake(lambda q: ("right", [-0.1]))
    tasks = [RoutingTask(f"t{i}", str(i)) for i in range(80)]
    fitted = fit_router(
        tasks, small, large, lambda task, given: given.text == "right", policy=CostOptimal(100, 20),
        method="platt",
    )  # fmt: skip
    assert len(fitted.calibrated) == 40 == len(fitted.evaluation) and len(small.asked) == 40 and large.asked == []
    assert not fitted.calibrated & {task.id for task in fitted.evaluation}
    report = fitted.report()
    assert report["success"]["value"] == 1.0 and report["small_answers"]["wrong"] == 0
    wrong = sum(int(task.id[1:]) % 2 == 0 for task in fitted.evaluation)
    assert report["fallback"]["value"] == wrong / 40
    assert report["cost_per_success"]["value"] == pytest.approx(1 + 20 * wrong / 40)
    with pytest.raises(DataError, match="fitted the router"):
        fitted.report(tasks)
    with pytest.raises(DataError, match="too few"):
        fit_router(tasks[:30], small, large, lambda t, g: True, policy=Budget(0.5))
    with pytest.raises(DataError, match="are right"):
        fit_router(tasks, small, large, lambda t, g: True, policy=Budget(0.5))


def test_calls_are_checked_before_the_route_and_executed_after_it(lm):
    ran = []

    @tool(effect="write", preconditions=[lambda given: None if allowed else "not today"])
    def send(word: str = "x") -> str:
        """Send."""
        ran.append(word)
        return "sent"

    @tool(effect="pure")
    def now() -> str:
        """Now."""
        return "noon"

    router = Router(lm, lm, confidence=SURE, policy=Budget(0.0))  # all that is valid is answered by the small model
    said, required = [{"role": "user", "content": "a"}], ToolChoice("required", parallel=False)
    first = router.chat(said, tools=Toolbox([now]), choice=required, max_tokens=60)
    assert first.calls == (("now", "{}"),) and first.route == "small" and first.p_correct is None
    allowed = False
    refused = router.chat(
        said, tools=Toolbox([send]), choice=required, max_repairs=1, max_tokens=60, stop_repetition=False
    )
    assert refused.route == "large" and "refused" in refused.why and refused.calls == () and ran == []
    assert len(refused.refused) == 2 and not refused.evidence.valid and refused.evidence.repairs == 1
    assert router.chat(said, max_tokens=4).calls == ()
