"""Help names what the tables hold, without a list of its own; small refusals that a newcomer meets."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from test_commands import one_line

from likely.bench import timing
from likely.calibration.recalibrators.table import RECALIBRATORS
from likely.cli.app import command
from likely.cli.help import LIST, TABLES, filled
from likely.cli.help import names as names_of
from likely.errors import missing_optional
from likely.runtimes.kinds import KINDS
from likely.uncertainty.table import ESTIMATORS


@pytest.mark.parametrize(
    ("verb", "names"),
    [(("calibrate", "fit"), RECALIBRATORS), (("uncertainty",), ESTIMATORS), (("ask",), KINDS), (("score",), KINDS)],
)
def test_help_lists_the_names_of_its_table(cli, verb, names):
    words = re.findall(r"\w+", cli(*verb, "--help").out)
    assert set(names) <= set(words)


def test_every_table_has_names():
    for name in TABLES:
        assert names_of(name) and filled(f"<{{{name}}}>") == f"<{', '.join(names_of(name))}>"
    assert filled('JSONL of {"prompt"}') == 'JSONL of {"prompt"}'


def test_small_refusals(cli, tiny, tmp_path, monkeypatch):
    one_line(cli("generate", "a", "-m", tiny, "--seed", 2**64), 2, "64 bits")
    one_line(cli("uncertainty", "a", "-m", tiny, "--seed", -(2**63) - 1), 2, "64 bits")
    long = cli("generate", "a", "-m", tiny, "-s", f"seed={'9' * 5000}")
    one_line(long, 2, "seed must", "999...999")
    assert len(long.err) < 300
    missing = tmp_path / "none.gguf"  # settings are read before a model is opened
    one_line(cli("ask", "a", "-m", missing, "-s", "tempreture=1"), 2, 'did you mean "temperature"?')
    one_line(cli("generate", "a", "-m", missing, "-s", "top_p=7"), 2, "top_p must")
    one_line(cli("generate", "a", "-m", tiny, "-s", "stop=1"), 2, "stop must be a string")
    one_line(cli("generate", "a", "-m", tiny, "--runtime", "lamacpp"), 2, 'did you mean "llamacpp"?')
    one_line(cli("ask", "a", "-m", tiny, "--dtype", "int9"), 2, 'did you mean "int8"?')
    one_line(cli("grade", "a.jsonl", "--by", "numbr"), 2, "Invalid value for '--by': 'numbr' is not one of 'exact'")
    one_line(cli("convert", tiny, tmp_path / "out.bin"), 2, "folder", ".gguf")
    monkeypatch.setattr(timing, "busy_share", lambda: 0.5)
    one_line(cli("bench", "-m", tiny, "--quick"), 1, "50%", "--even-if-busy")


def test_every_list_with_commas_is_refused_in_parts():
    def commands(command):
        below = getattr(command, "commands", {}).values()
        return [found for sub in below for found in commands(sub)] or [command]

    options = [p for c in commands(command()) for p in c.params if "commas" in (getattr(p, "help", None) or "")]
    assert len(options) >= 10 and {p.metavar for p in options} == {LIST}


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from likely.cli import main; main()"


@pytest.mark.parametrize(
    "verb", [("compress", "--help"), ("study", "calibration", "--help"), ("align", "train", "--help")]
)
def test_help_needs_no_torch(verb):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *verb], capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: likely" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "verb", [("compress", "tiny", "--out", "x.gguf"), ("stats", "tiny"), ("study", "calibration", "tiny", "--json")]
)
def test_a_verb_that_needs_torch_names_the_extra_that_brings_it(verb, tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *verb], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.strip() == "Error: torch is not installed. Run: pip install 'likely[torch]'"


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "torch"), ("peft.tuners", "train"), ("prometheus_client", "serve")]
)
def test_the_smallest_extra_that_brings_a_missing_package_is_named(module, extra):
    assert f"likely[{extra}]" in str(missing_optional(ModuleNotFoundError(name=module)))


def test_a_package_of_no_extra_is_an_accident():
    assert missing_optional(ModuleNotFoundError(name="no_such_package")) is None
    assert missing_optional(ModuleNotFoundError("without a name")) is None


def test_help_hides_no_table_that_is_broken(monkeypatch):
    monkeypatch.setitem(TABLES, "compressions", ("likely.no_such_module", "METHODS"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        filled("{compressions}")
