"""Trackers through accelerate's own interface: started, told of every step, finished."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

pytest.importorskip("accelerate")

from accelerate import tracking

from likely.errors import CapabilityError
from likely.training.metrics_log import MetricsLog, open_trackers


@pytest.fixture
def recorder(monkeypatch):
    """A class as a user registers it with accelerate; `events` holds what its trackers were told."""
    events = []

    class Recorder(tracking.GeneralTracker):
        name = "recorder"
        requires_logging_directory = True

        def __init__(self, run_name, logging_dir):
            super().__init__()
            self.place = (run_name, logging_dir)

        @property
        def tracker(self):
            return events

        def start(self):
            events.append(("start", *self.place))

        def log(self, values, step=None, **more):
            events.append(("log", step, values))

        def finish(self):
            events.append(("finish",))

    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    tracking.register_tracker_class(Recorder)
    return events


def test_a_tracker_is_started_told_and_finished(recorder, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", open_trackers(["recorder"], tmp_path))
    log.begin(0)
    log.write(0, {"loss": 2.0})
    log.write(1, {"loss": 1.5, "accuracy": 0.5})
    log.close()
    assert recorder[0] == ("start", "likely", str(tmp_path)) and recorder[-1] == ("finish",)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for _, step, values in recorder[1:-1]] == lines


def trained(folder, tracker):
    """The folder of a short run with this tracker, and the lines of its log."""
    pytest.importorskip("peft")
    from tiny_gguf import write_tiny_llama

    from likely.cli.app import run

    model = write_tiny_llama(folder / "tiny.gguf", dim=32)
    rows = [{"prompt": f"the cat {i}", "completion": " sat on"} for i in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    given = ["align", "sft", str(folder / "rows.jsonl"), "-m", str(model), "-o", str(out), "--epochs", "0"]
    given += ["--steps", "2", "--batch", "2", "--held-out", "0.25", "--rank", "4", "--tracker", tracker]
    assert run(given) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    return out, lines


@pytest.mark.slow
def test_the_verb_tells_its_tracker_what_stands_in_its_log(recorder, tmp_path):
    _, lines = trained(tmp_path, "recorder")
    assert [{"step": step, **values} for kind, step, values in recorder[1:-1] if kind == "log"] == lines
    assert recorder[0][0] == "start" and recorder[-1] == ("finish",)


def test_one_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'unknown tracker "nothing" .*tensorboard'):
        open_trackers(["nothing"], tmp_path)
    absent = next(name for name in ("dvclive", "clearml", "aim") if find_spec(name) is None)
    with pytest.raises(CapabilityError, match=f"{absent} is not installed. Run: pip install {absent}"):
        open_trackers([absent], tmp_path)


def test_tensorboard_reads_what_stands_in_the_log(tmp_path):
    """Each number of metrics.jsonl, by TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, lines = trained(tmp_path, "tensorboard")
    found = EventAccumulator(str(out / "likely")).Reload()
    assert set(found.Tags()["scalars"]) == {name for line in lines for name in line} - {"step"}
    for name in found.Tags()["scalars"]:
        read = {event.step: event.value for event in found.Scalars(name)}
        assert read == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-6), name
