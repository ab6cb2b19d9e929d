"""A calibration run from nothing: 1,000 multiple-choice questions scored by their option texts, a map fitted, a report.

What `likely choices FILE -o`, `likely calibrate fit` and `likely calibrate eval` do, on ARC-Easy with SmolLM2; the
questions are timed in ten parts, and the interval of their time is a bootstrap over the parts.
"""

from __future__ import annotations

import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import protocol

import likely
from likely.calibration.calibrator import fit_calibrator
from likely.calibration.labelled import read_labelled
from likely.data import load_records
from likely.metrics.summary import report
from likely.runtimes.machine import cores
from likely.scoring.choices import score_choices

TARGET_S = 300.0
PARTS = 10


def measure(lm: Any, records: list[dict[str, Any]], parts: int = PARTS) -> dict[str, Any]:
    """Seconds of scoring (with its interval), of fitting, of the report; and what was found."""
    score_choices(lm, records[:1])  # whatever the first call alone has to do
    seconds, lines = [], []
    for part in np.array_split(np.arange(len(records)), parts):
        started = time.perf_counter()
        found = score_choices(lm, [records[i] for i in part])
        seconds.append(time.perf_counter() - started)
        lines += [{"logits": list(r.values), "label": r.label} for r in found.results]
    rng = np.random.default_rng(0)
    sums = rng.choice(seconds, (2000, parts)).sum(axis=1)
    by_count: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        by_count.setdefault(len(line["logits"]), []).append(line)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scored.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in max(by_count.values(), key=len)))
        started = time.perf_counter()
        calibrator = fit_calibrator(read_labelled(path))
        fit_s = time.perf_counter() - started
        started = time.perf_counter()
        labelled = read_labelled(path)
        report(calibrator.predict(labelled), labelled.labels)
        report_s = time.perf_counter() - started
    total = sum(seconds) + fit_s + report_s
    return {
        "questions": len(records),
        "scoring_s": {"value": sum(seconds), "low": float(np.quantile(sums, 0.025)),
                      "high": float(np.quantile(sums, 0.975))},
        "fit_s": fit_s,
        "report_s": report_s,
        "total_s": total,
        "target_s": TARGET_S,
        "reached": bool(total + float(np.quantile(sums, 0.975)) - sum(seconds) <= TARGET_S),
        "method": calibrator.recalibrator.name,
        "ece_before": calibrator.before["ece"],
        "ece_after": calibrator.after["ece"],
    }  # fmt: skip


def main() -> None:
    options = protocol.arguments(__doc__.splitlines()[0])
    records = list(islice(load_records("arc-easy", "test"), 60 if options.quick else 1000))
    with likely.load("smollm2", runtime="llamacpp", threads=cores()) as lm:
        record = {"model": lm.info.name, "sha256": lm.info.sha256, "runtime": "llamacpp", "threads": cores()}
        record |= measure(lm, records)
    protocol.write("calibration_run", record, quick=options.quick)


if __name__ == "__main__":
    main()
