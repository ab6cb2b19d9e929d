"""--show, --html and likely plot, as a stranger would use them."""

from __future__ import annotations

import json
import re

import pytest
from test_commands import one_line


def values(path):
    return [float(v) for v in re.findall(r'<data value="([^"]+)"', path.read_text())]


def test_score_shows_its_own_numbers(cli, tiny, tmp_path):
    call = ("score", "--prompt", "ab", "--answer", "cd e", "--answer", "f", "-m", tiny)
    answers = cli(*call, "--json").json["answers"]
    done = cli(*call, "--show", "--html", tmp_path / "a.html")
    assert done.code == 0 and "wrote" in done.err and "\x1b" not in done.out
    for answer in answers:
        assert f"sum {answer['sequence_logprob']:.4f}" in done.out
    page = (tmp_path / "a.html").read_text()
    assert page.count("<article") == 2 and "entropy" in page and "rank" in page and "native" in page
    assert values(tmp_path / "a.html")[0] == pytest.approx(answers[0]["sequence_logprob"], abs=1e-4)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".partial"] == []


def test_html_beside_json_holds_exactly_the_records_numbers(cli, tiny, tmp_path):
    record = cli("score", "--prompt", "ab", "--answer", "cd", "-m", tiny, "--json", "--html", tmp_path / "a.html").json
    answer = record["answers"][0]
    pairs = [x for p in zip(answer["token_logprobs"], answer["entropies"], strict=True) for x in p]
    expected = [answer["sequence_logprob"], answer["mean_logprob"], *pairs, *pairs]
    assert values(tmp_path / "a.html") == expected and len(answer["top_logprobs"][0]) == 5


@pytest.mark.parametrize("verb", ["ask", "generate"])
def test_generated_tokens_are_shown_and_the_text_stays_the_same(cli, tiny, tmp_path, verb):
    call = (verb, "Hello?", "-m", tiny, "--max-tokens", 8, "--seed", 3)
    plain = cli(*call)
    streamed = cli(*call, "--html", tmp_path / "a.html")
    assert streamed.out == plain.out and streamed.err == f"{plain.err}wrote {tmp_path / 'a.html'}\n"
    record = cli(*call, "--json", "--html", tmp_path / "b.html").json
    twice = [record["sequence_logprob"], record["mean_logprob"], *record["token_logprobs"], *record["token_logprobs"]]
    assert values(tmp_path / "b.html") == twice and len(record["top_logprobs"][0]) == 5
    shown = cli(*call, "--show", "-s", "top_logprobs=2")
    assert f"sum {record['sequence_logprob']:.4f}" in shown.out and shown.err == ""


def test_samples_stand_side_by_side(cli, tiny, tmp_path):
    done = cli("generate", "ab", "-m", tiny, "--max-tokens", 4, "-n", 3, "--html", tmp_path / "a.html", "--show")
    assert done.out.count(" sum ") == 3 and (tmp_path / "a.html").read_text().count("<article") == 3


def test_show_usage(cli, tiny, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answers": ["b"]}\n')
    one_line(cli("score", tmp_path / "q.jsonl", "-m", tiny, "--show"), 2, "--prompt and --answer")
    one_line(cli("ask", "x", "-m", tiny, "--show", "--json"), 2, "--show", "--json")
    one_line(cli("ask", "x", "-m", tiny, "--html", tmp_path / "a.png"), 2, ".html")
    one_line(cli("generate", "x", "-m", tiny, "--html", tmp_path / "no" / "a.html"), 1, "does not exist")


def test_plot_of_a_scored_file(cli, tiny, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'likely[plots]'")
    lines = [{"prompt": f"ab {i}", "answers": ["c", "de"], "label": i % 2} for i in range(6)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("score", tmp_path / "q.jsonl", "-m", tiny, "--output", tmp_path / "s.jsonl").code == 0
    done = cli("plot", tmp_path / "s.jsonl", "-o", tmp_path / "s.png")
    assert done.code == 0 and done.err.startswith("wrote") and done.out == ""
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert cli("plot", "-", "-o", tmp_path / "p.png", stdin=(tmp_path / "s.jsonl").read_bytes()).code == 0
    one_line(cli("plot", tmp_path / "q.jsonl", "-o", tmp_path / "x.png"), 1, "q.jsonl:1", "answers")
    one_line(cli("plot", tmp_path / "none.jsonl", "-o", tmp_path / "x.png"), 1, "cannot read")
    one_line(cli("plot", tmp_path / "s.jsonl", "-o", tmp_path / "s.jsonl"), 2, ".png")
    one_line(cli("plot", tmp_path / "s.jsonl", tmp_path / "s.jsonl", "-o", tmp_path / "x.png"), 2, "twice")
    one_line(cli("plot", tmp_path / "s.jsonl"), 2, "--output")
    one_line(cli("plot"), 2, "RESULTS")
    assert not (tmp_path / "x.png").exists()
    text = cli("plot", "--help").out
    assert text.index("Examples:") < text.index("Options:")


def test_labels_and_tokenizers_that_do_not_fit_are_said(cli, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'likely[plots]'")
    for name in "ab":
        record = {"tokenizer": name, "label": 9, "answers": [{"text": "x", "token_logprobs": [-1.0]}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    done = cli("plot", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "-o", tmp_path / "x.png")
    assert done.code == 0 and "different tokenizers" in done.err and "a.jsonl: 1 labels" in done.err
