"""Function calling by scripted models on BFCL's cases: what is counted, what is repaired, what the files hold."""

from __future__ import annotations

import json

import pytest
from tiny_gguf import write_tiny_llama

from likely.audit.function_calling import as_functions, first_acceptable, function_cases
from likely.cli.app import run
from likely.errors import DataError, ModelError
from likely.lm.results import Answer
from likely.serving.tools import EvaluationSettings, Prices, evaluate_cases, evaluation_report
from likely.serving.tools.evaluation import CaseResult
from likely.serving.tools.grammar import head_of
from likely.serving.tools.prompted import call_prompt, call_schema, placeholder_of, read_calls


@pytest.fixture(scope="module")
def cases():
    try:
        return {
            name: function_cases(name, limit=12)
            for name in ("simple_python", "multiple", "parallel", "irrelevance", "live_relevance")
        }
    except DataError as error:
        pytest.skip(str(error))


def written(case, style):
    """The right answer, as a model would write it."""
    _, names = as_functions(case.functions)
    offered = {own: name for name, own in names.items()}
    calls = [(offered[c.name], c.arguments) for c in first_acceptable(case)]
    if style == "native":
        blocks = [f"<tool_call>{head_of(n)}{json.dumps(a)}}}\n</tool_call>" for n, a in calls]
        return "\n".join(blocks)
    listed = [{"name": n, "arguments": a} for n, a in calls]
    return json.dumps(listed if case.kind == "several" else listed[0])


class Scripted:
    """Answers by a function of (text asked, whether a form holds the answer); notes both."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def ask(self, question, **options):
        held = bool(options.get("schema") or options.get("grammar"))
        self.asked.append((question, held))
        return Answer(self.says(question, held), [1, 2], [-0.1, -0.1], -0.2, -0.1, "stop", 1, 0.0, prompt_tokens=5)

    def chat(self, messages, **options):
        return self.ask("\n".join(m["content"] or "" for m in messages), **options)


@pytest.mark.parametrize("style", ["prompted", "native"])
@pytest.mark.parametrize("mode", ["unconstrained", "constrained", "repaired"])
def test_right_answers_are_right_in_every_mode(cases, style, mode):
    for name in ("simple_python", "multiple", "parallel"):
        settings = EvaluationSettings(mode=mode, style=style, prices=Prices(token=1.0))
        for case in cases[name]:
            lm = Scripted(lambda question, held, case=case: written(case, style))
            [result] = evaluate_cases(lm, [case], settings)
            assert result.record.solved and result.record.valid_first and result.record.selected, result
            assert len(lm.asked) == 1 and result.record.cost == 2 and result.record.repairs == 0
            assert lm.asked[0][1] == (mode == "constrained")
            assert result.record.calls_executed == result.record.calls_made == len(case.expected)


def test_refused_answers_are_repaired_at_most_twice(cases):
    case = cases["simple_python"][0]
    wrong = json.dumps({"name": as_functions(case.functions)[0][0]["name"], "arguments": {"base": "ten"}})
    lm = Scripted(lambda question, held: written(case, "prompted") if "was refused" in question else wrong)
    [result] = evaluate_cases(lm, [case], EvaluationSettings(mode="repaired"))
    assert (result.record.valid_first, result.record.valid, result.record.solved, result.record.repairs) == (
        False, True, True, 1,
    )  # fmt: skip
    assert [held for _, held in lm.asked] == [False, True] and "/base" in lm.asked[1][0]
    stubborn = Scripted(lambda question, held: "I cannot.")
    [result] = evaluate_cases(stubborn, [case], EvaluationSettings(mode="repaired"))
    assert (len(stubborn.asked), result.record.valid, result.problem, result.record.cost) == (3, False, "count", 3)
    native = Scripted(lambda question, held: "I cannot.")
    assert not next(evaluate_cases(native, [case], EvaluationSettings(mode="repaired", style="native"))).record.valid
    assert [held for _, held in native.asked] == [False, True, True]


def test_no_call_is_right_where_none_is(cases):
    silent, settings = Scripted(lambda question, held: "None of these."), EvaluationSettings(style="native")
    for name, right in (("irrelevance", True), ("live_relevance", False)):
        for result in evaluate_cases(silent, cases[name][:3], settings):
            assert result.record.solved is right and result.record.selected is None
    with pytest.raises(ValueError, match="always calls"):
        next(evaluate_cases(silent, cases["irrelevance"][:1]))


def test_a_case_that_cannot_be_asked_is_a_failed_case(cases):
    class Short(Scripted):
        def ask(self, question, **options):
            raise ModelError("the prompt has 9000 tokens")

    [result] = evaluate_cases(Short(None), cases["simple_python"][:1])
    assert not result.record.solved and not result.record.valid and "9000" in result.why and result.record.cost == 0


def test_a_report_survives_the_file(cases):
    lm = Scripted(lambda question, held: written(cases["simple_python"][0], "prompted"))
    found = list(evaluate_cases(lm, [*cases["simple_python"][:3], *cases["multiple"][:2]]))
    again = [CaseResult.of_dict(json.loads(json.dumps(result.to_dict()))) for result in found]
    assert again == found and evaluation_report(again) == evaluation_report(found)
    report = evaluation_report(found)
    assert report["all"]["tasks"] == 5 and report["categories"]["simple_python"]["success"]["value"] == pytest.approx(
        1 / 3
    )
    assert report["all"]["executable_calls"]["value"] < 1  # names that another case does not offer
    with pytest.raises(ValueError, match="unknown mode"):
        EvaluationSettings(mode="guided")


def test_one_schema_gives_prompt_and_form():
    function = {
        "name": "find", "description": "Find.",
        "parameters": {
            "type": "object", "required": ["city", "tags"],
            "properties": {"city": {"type": "string", "description": "Where."}, "n": {"type": "integer"},
                           "tags": {"type": "array", "items": {"type": "number"}}, "unit": {"enum": ["km", "mi"]}},
        },
    }  # fmt: skip
    prompt = call_prompt("Where?", [function])
    assert "- city (string): Where." in prompt and '- unit (one of "km", "mi", optional)' in prompt
    assert prompt.endswith('{"name": "find", "arguments": {"city": "<string>", "tags": [<number>]}}')
    assert call_prompt("Now?", [{"name": "now"}], several=True).endswith('[{"name": "now", "arguments": {}}]')
    assert call_schema([function])["properties"]["name"] == {"const": "find"}
    assert call_schema([function, function], several=True)["items"]["anyOf"][1]["required"] == ["name", "arguments"]
    assert placeholder_of({"const": 1}) == "1"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [("f", '{"a": 1}')]),
        ('```json\n[{"name": "f", "arguments": {}}, {"name": "g"}]\n```', [("f", "{}"), ("g", "{}")]),
        ('Sure: {"x": 1} and {"name": "f", "arguments": [1]}', [("f", "[1]")]),
        ('{"name": "f", "arguments": {"a": 1}', None), ("nothing", None), ("[]", None), ("[" * 5000, None),
    ],
)  # fmt: skip
def test_calls_are_read_from_what_stands_around_them(text, calls):
    assert read_calls(text) == calls


def test_a_run_that_was_stopped_goes_on(cases, tmp_path, capsys):
    path = write_tiny_llama(tmp_path / "tiny.gguf", seed=3, context=8192)
    out = tmp_path / "calls.jsonl"
    few = ["--categories", "simple_python", "--limit", "2", "--mode", "unconstrained", "--max-tokens", "4"]
    command = ["tools", "eval", "bfcl", "-m", str(path), "--threads", "1", *few, "-o", str(out), "--json"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    whole = out.read_text()
    assert first["all"]["tasks"] == 2 and first["all"]["valid"]["value"] == 0 and first["mode"] == "unconstrained"
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:2]) + lines[2][:20])  # cut by a kill
    assert run(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["all"]["success"] == first["all"]["success"]
    assert len(out.read_text().splitlines()) == 3
    assert out.read_text().startswith("".join(lines[:2]))
    assert run([*command[:-1], "--max-repairs", "1"]) == 1
    assert "another max_repairs" in capsys.readouterr().err


def test_the_verb_refuses_what_cannot_be_before_a_model_is_loaded(capsys):
    assert run(["tools", "eval", "bfcl", "--categories", "simpel_python"]) == 2
    assert 'did you mean "simple_python"' in capsys.readouterr().err
    assert run(["tools", "eval", "bfcl", "--categories", "irrelevance"]) == 2
    assert "always calls" in capsys.readouterr().err
    assert run(["tools", "eval", "--help"]) == 0
    assert "likely tools eval bfcl" in capsys.readouterr().out
