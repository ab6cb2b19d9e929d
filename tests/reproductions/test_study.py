"""What every script in reproductions/ shares: arguments with one meaning, figures that hold their value, one record."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sample_evidence import CHECK, FIGURE, evidence
from scripts import ROOT, script

from likely.errors import DataError
from likely.evidence import Check, Figure, read_result
from likely.metrics.bootstrap import bootstrap_ratio
from likely.metrics.intervals import wilson

study = script("study")
arguments, conclude, run_script, run_study = study.arguments, study.conclude, study.run_script, study.run_study
data_sources, figure_table, figure_with = study.data_sources, study.figure_table, study.figure_with
ratio_figure, share_figure = study.ratio_figure, study.share_figure

ABOUT = {
    "title": "A trial", "claim": "It is small.", "paper_figure": None, "ours": "0.5 nats", "samples": "10 tokens",
    "intervals": "95 %", "not_shown": ["large models"],
}  # fmt: skip


def test_the_verdict_and_the_command_follow_from_the_study():
    found = conclude(
        "trial", **ABOUT, figures=[Figure(**FIGURE)], checks=[Check(**CHECK)], full=True, seconds=1.26,
        versions={"other": "1.0"},
    )  # fmt: skip
    assert (found.id, found.verdict, found.mode, found.seconds) == ("trial", "reproduced", "full", 1.3)
    assert found.command == "python reproductions/trial.py --full" and found.threads == 1
    assert found.versions["other"] == "1.0" and "numpy" in found.versions
    failed = conclude(
        "trial", **ABOUT, figures=[Figure(**FIGURE)], checks=[Check(**{**CHECK, "bound": 0.1})], full=False, seconds=1
    )
    assert (failed.verdict, failed.mode, failed.command) == ("not reproduced", "quick", "python reproductions/trial.py")


def run(monkeypatch, *words, measure=lambda options: evidence(), **texts):
    monkeypatch.setattr(sys, "argv", ["trial.py", *words])
    return run_study(arguments(**texts), measure)


def test_a_study_is_printed_and_written(monkeypatch, tmp_path, capsys):
    found = run(monkeypatch, "--out", str(tmp_path))
    assert found == read_result(tmp_path / "trial.json") == evidence()
    out = capsys.readouterr().out
    assert "engine  p50" in out and "[0.4, 0.6]  n=10" in out and "holds: small enough: 0.5 <= 1" in out
    assert f"reproduced; 1.0 s; {tmp_path / 'trial.json'}" in out


def test_a_smoke_run_writes_nothing(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--quick", "--out", str(tmp_path), quick="a few")
    assert "not written" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_nothing_to_conclude_is_no_result(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--out", str(tmp_path), measure=lambda options: None) is None
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "texts", "said"),
    [
        (["--full", "--quick"], {"full": "all", "quick": "few"}, "not allowed with"),
        (["--threads", "0"], {"threads": "of it"}, "must be a whole number >= 1, got 0"),
        (["--full"], {}, "unrecognized arguments: --full"),
    ],
)
def test_wrong_arguments_are_refused(monkeypatch, capsys, words, texts, said):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *words, **texts)
    assert caught.value.code == 2 and said in capsys.readouterr().err


def test_an_error_that_a_user_can_mend_is_one_line():
    def main():
        raise DataError("no such set")

    with pytest.raises(SystemExit, match=r"^Error: no such set$"):
        run_script(main)


def test_figures_hold_their_value():
    assert figure_with("s", "q", 2.0, (0.5, 1.0), unit="u", n=3, of="rows").high == 2.0
    share = share_figure("s", "q", 3, 4, unit="share", of="rows")
    assert (share.value, share.low, share.high, share.n) == (0.75, *wilson(3, 4), 4)
    top, bottom = [1.0, 2.0, 6.0], [1.0, 1.0, 2.0]
    ratio = ratio_figure("s", "q", top, bottom, unit="u", of="rows")
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (2.25, *bootstrap_ratio(top, bottom), 3)
    assert ratio_figure("s", "q", top, unit="u", of="rows").value == 3.0


def test_a_table_says_why_an_interval_is_missing():
    one = Figure(subject="s", quantity="q", value=1e-7, unit="u", n=1, of="rows", note="a size")
    assert figure_table([one]) == "s  q      1e-07  a size  n=1" and figure_table([]) == ""


def test_data_sources_are_found_by_file_or_split(data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    whole, split, only = data_sources([("trec", "test.jsonl.gz"), ("trec", "test"), ("gsm8k", None)])
    assert whole == split and whole.name == "trec/test.jsonl.gz" and only.name.startswith("gsm8k/")


@pytest.mark.parametrize("script", ["copyspec", "mgd", "runtime_parity"])
def test_scripts_explain_themselves(script):
    done = subprocess.run(
        [sys.executable, ROOT / "reproductions" / f"{script}.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--full" in done.stdout and "--out" in done.stdout, done.stderr
