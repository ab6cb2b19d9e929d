"""Results files become pictures that show what is in them."""

from __future__ import annotations

import json
import struct
import sys
import zlib

import numpy as np
import pytest

from likely.errors import CapabilityError, DataError
from likely.show.plot import bins_for, draw_histograms, read_series, rename_apart, render

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'likely[plots]'")

HEADER = {"kind": "score", "model": "toy", "tokenizer": "t1"}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def answer(*logprobs, text="a", **more):
    return {"text": text, "token_logprobs": list(logprobs), **more}


@pytest.fixture
def labelled(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for i in range(40):
        right, wrong = (-rng.exponential(s, 5) for s in (1.0, 3.0))
        records.append(
            {"line": i + 1, "input": "x", "label": 1, "answers": [answer(*wrong.tolist()), answer(*right.tolist())]}
        )
    return write(tmp_path / "labelled.jsonl", HEADER, *records), records


def test_scored_answers_are_parted_by_their_label(labelled):
    path, records = labelled
    series = read_series(path)
    assert series.tokens["correct"] == [lp for r in records for lp in r["answers"][1]["token_logprobs"]]
    assert series.tokens["wrong"] == [lp for r in records for lp in r["answers"][0]["token_logprobs"]]
    assert np.allclose(series.means["wrong"], [np.mean(r["answers"][0]["token_logprobs"]) for r in records])
    assert series.tokenizer == "t1" and series.odd_labels == 0


@pytest.mark.parametrize(
    ("record", "groups"),
    [
        ({"line": 1, "token_logprobs": [-1.0]}, {""}),
        ({"line": 1, "token_logprobs": [-1.0], "correct": True}, {"correct"}),
        ({"line": 1, "token_logprobs": [-1.0], "correct": 0}, {"wrong"}),
        ({"line": 1, "answers": [answer(-1.0), answer(-2.0)]}, {""}),
        ({"line": 1, "answers": [answer(-1.0, text=" b"), answer(-2.0)], "label": "b"}, {"correct", "wrong"}),
        ({"line": 1, "answers": [answer(-1.0), answer(-2.0)], "label": 7}, {""}),
        ({"line": 1, "answers": [answer(-1.0, correct=False), answer(-2.0, correct=True)]}, {"correct", "wrong"}),
        ({"line": 1, "token_logprobs": [[-1.0], [-2.0]], "label": 0, "correct": 0}, {"correct", "wrong"}),
        ({"prompt": "p", "text": "x", "token_logprobs": [-1.0, -2.0], "kind": "no header"}, {""}),
    ],
)
def test_forms_of_results(tmp_path, record, groups):
    series = read_series(write(tmp_path / "r.jsonl", HEADER, record))
    assert set(series.tokens) == groups
    assert series.odd_labels == (record.get("label") == 7)


def test_the_right_choice_is_the_labelled_one_not_the_predicted(tmp_path):
    record = {"line": 1, "token_logprobs": [[-1.0], [-2.0, -3.0]], "label": 1, "prediction": 0, "correct": 0}
    series = read_series(write(tmp_path / "r.jsonl", HEADER, record))
    assert series.tokens == {"correct": [-2.0, -3.0], "wrong": [-1.0]}


def test_graded_answers_are_read_with_the_header_of_their_answers(tmp_path):
    header = {"kind": "grade", "graded_by": "exact", "answers": {**HEADER, "kind": "ask"}}
    path = write(tmp_path / "g.jsonl", header, {"line": 2, **answer(-1.0), "correct": 1, "reference": "x"})
    series = read_series(path)
    assert series.tokens == {"correct": [-1.0]} and series.tokenizer == "t1"


def test_json_lines_without_a_header_are_read_too(tmp_path):
    path = write(tmp_path / "r.jsonl", {"model": "m", "tokenizer": "t", "prompt": "p", **answer(-1.0)})
    assert read_series(path).means == {"": [-1.0]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"holds no tokens"),
        ('{"kind": "score"}\n', "holds no tokens"),
        ('{"kind": "score"}\n{"line": 1, "answers": [{"text": "", "token_logprobs": []}]}\n', "holds no tokens"),
        ('{"prompt": "a", "answer": "b"}\n', r':1: field "answers" or "token_logprobs" is missing \(found: "prompt"'),
        ('{"kind": "score"}\n{"kind": "score"}\n', ":2: .*missing"),
        ('{"prompt": "a", "answers": ["b"]}\n', ":1: .*as likely score writes them"),
        ('{"token_logprobs": null}\n', ":1: .*found nothing"),
        ('{"token_logprobs": ["a"]}\n', ":1: .*finite numbers, found a"),
        ('{"token_logprobs": [true]}\n', ":1: .*finite numbers"),
        ('{"token_logprobs": [1e999]}\n', ":1: .*finite numbers|:1: not JSON"),
        ('{"token_logprobs": [NaN]}\n', ":1: not JSON"),
        ("not json\n", ":1: not JSON"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, text, words):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_series(tmp_path / "bad.jsonl")
    assert "bad.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def areas(axes):
    """(area, outline) of each drawn histogram."""
    for patch in axes.patches:
        corners = patch.get_xy()
        x, y = corners[:, 0], corners[:, 1]
        yield abs(np.sum(np.diff(x) * y[:-1])), corners


def test_each_group_is_drawn_with_area_one_and_the_heights_of_its_histogram(labelled):
    series = read_series(labelled[0])
    figure = draw_histograms([series])
    for axes, groups in zip(figure.axes, (series.tokens, series.means), strict=True):
        drawn = list(areas(axes))
        assert len(drawn) == 2
        everything = np.concatenate(list(groups.values()))
        edges = np.histogram_bin_edges(everything, bins=bins_for(min(map(len, groups.values()))))
        for (area, corners), group in zip(drawn, sorted(groups), strict=True):
            heights, _ = np.histogram(groups[group], bins=edges, density=True)
            assert np.isclose(area, 1.0)
            assert np.isclose(corners[:, 1].max(), heights.max())
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label.split(", ")[1].split(" ")[0] for label in labels] == ["correct", "wrong"]
        assert "nats" in axes.get_xlabel()


def test_several_files_share_bins_and_have_their_own_colour(labelled, tmp_path):
    other = write(tmp_path / "_$other$.jsonl", HEADER, *[{"line": i, **answer(-0.1 * i, -1.0)} for i in range(1, 9)])
    figure = draw_histograms([read_series(labelled[0]), read_series(other)])
    for axes in figure.axes:
        colours = [patch.get_edgecolor() for patch in axes.patches]
        assert colours[0] == colours[1] != colours[2]
        assert axes.patches[0].get_linestyle() != axes.patches[1].get_linestyle()
        assert len(axes.get_legend().get_texts()) == 3
    assert len(render(figure, ".png")) > 10_000


def pixels(data):
    """Width and height, and the decompressed pixel bytes, of a PNG."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, size = 8, b"", (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        size = struct.unpack(">II", chunk[:8]) if kind == b"IHDR" else size
        body += chunk if kind == b"IDAT" else b""
        at += 12 + length
    return size, zlib.decompress(body)


@pytest.mark.slow
def test_the_png_is_one_of_sane_size_and_depends_on_the_data(labelled, tmp_path):
    size, drawn = pixels(render(draw_histograms([read_series(labelled[0])]), ".PNG"))
    assert 800 <= size[0] <= 2000 and 400 <= size[1] <= 1000
    _, other = pixels(
        render(draw_histograms([read_series(write(tmp_path / "labelled2.jsonl", answer(-1.0, -2.0)))]), ".png")
    )
    assert drawn != other
    assert b"<svg" in render(draw_histograms([read_series(labelled[0])]), ".svg")
    assert render(draw_histograms([read_series(labelled[0])]), ".pdf").startswith(b"%PDF")


def test_one_value_is_enough(tmp_path):
    figure = draw_histograms([read_series(write(tmp_path / "one.jsonl", answer(0.0)))])
    assert all(np.isclose(area, 1.0) for axes in figure.axes for area, _ in areas(axes))


def test_files_of_the_same_name_are_told_apart(tmp_path):
    paths = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        paths.append(str(write(tmp_path / folder / "s.jsonl", answer(-1.0))))
    series = [read_series(path) for path in paths]
    rename_apart(series, paths)
    assert [one.name for one in series] == paths


def test_without_matplotlib_one_line_names_the_extra(monkeypatch, labelled):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CapabilityError, match=r"pip install 'likely\[plots\]'"):
        draw_histograms([read_series(labelled[0])])
