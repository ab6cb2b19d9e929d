"""Small models as agents: what a schema, repairs and a router gain in function calling, on BFCL's cases.

(1) Calls as prompted JSON, written freely, held to the schema, and written freely with at most two repairs: how many
answers are valid calls, how many calls can be executed, how many are right (BFCL's AST check).  (2) A router from the
confidence of answers that are held to the schema: the small model's own answer, or that of a large model, which is
SCRIPTED: right with a fixed probability, and twenty times the cost.  Confidence is fitted on one half of the cases, the
other half is judged.  (3) The same confidence with the tokens counted in that the schema forces.

  python reproductions/slm_agents.py             some ten minutes of processor time; goes on where it was stopped
  python reproductions/slm_agents.py --full      280 cases, every one in every mode
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study import arguments, conclude, data_sources, figure_with, model_source, report, run_script, run_study

import likely
from likely.audit.function_calling import FunctionCase, as_functions, function_cases
from likely.calibration.calibrator import Calibrator, fit_calibrator, folds_of
from likely.calibration.labelled import Labelled
from likely.calibration.recalibrators.answer import features
from likely.calibration.selective import upper_bound
from likely.evidence import Check, Evidence, Figure, Source
from likely.guided.form import FormSettings, make_form
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, Results, read_lines
from likely.metrics.bootstrap import bootstrap_ratio, interval, mean_interval
from likely.metrics.intervals import wilson
from likely.metrics.ranking import aurc, auroc
from likely.serving.routing.evidence import evidence_of
from likely.serving.routing.policy import Budget, CostOptimal, RiskControlled
from likely.serving.tools.evaluation import CallingMode, CaseResult, EvaluationSettings, evaluate_case
from likely.serving.tools.prompted import call_schema
from likely.serving.tools.report import cost_per_success

CATEGORIES = ("simple_python", "live_simple", "multiple")
SMOLLM2, GEMMA = "smollm2", "gemma3"
TOKENS = 128
LARGE_COST, LARGE_ACCURACY = 20.0, 0.9  # of the scripted model; a call of the small one costs 1
VALUE = 60.0  # of a solved task, in calls of the small model
OTHER_VALUES = (30.0, 120.0)  # for which the gain of routing is told, too
RISK, DELTA = 0.5, 0.1
BUDGET = 0.5
SPLITS = 20  # halves of the cases, since one would be noise


@dataclass(frozen=True)
class Plan:
    """How many cases of each category: held to the schema, and in all modes; by Gemma in all modes."""

    constrained: int
    modes: int
    gemma: int


QUICK, FULL = Plan(30, 10, 6), Plan(93, 93, 40)


@dataclass(frozen=True)
class Answered:
    """One case in one mode; free, all_tokens: log-probabilities within the schema of the tokens that it left free, and
    of all (held to the schema only)."""

    model: str
    mode: CallingMode
    result: CaseResult
    free: list[float]
    all_tokens: list[float]


# --- measuring --------------------------------------------------------------------------------------------------------


def cells(plan: Plan) -> Iterator[tuple[str, CallingMode, str, int]]:
    """(model, mode, category, number of the case), a row of the file each."""
    for model, most, in_all in ((SMOLLM2, plan.constrained, plan.modes), (GEMMA, plan.gemma, plan.gemma)):
        for number in range(most):
            for category in CATEGORIES:
                yield model, "constrained", category, number
                if number < in_all:
                    yield model, "unconstrained", category, number
                    yield model, "repaired", category, number


def measure_cell(
    lm: likely.Model, case: FunctionCase, mode: CallingMode, *, max_tokens: int = TOKENS
) -> dict[str, Any]:
    """The record of one cell."""
    settings = EvaluationSettings(mode=mode, max_tokens=max_tokens)
    result = evaluate_case(lm, case, settings)
    record: dict[str, Any] = {"mode": mode, **result.to_dict(), "free": [], "all_tokens": []}
    if mode == "constrained" and result.answer is not None:
        functions, _ = as_functions(case.functions)
        held = FormSettings(on_unsupported="ignore", max_string=settings.max_string)
        form = make_form(schema=call_schema(functions), settings=held)
        for name, with_forced in (("free", False), ("all_tokens", True)):
            found = evidence_of(lm, result.answer, form, with_forced=with_forced)
            record[name] = [round(p, 6) for p in found.logprobs]
    for name in ("seconds", "joules"):  # nothing is timed here
        record[name] = 0.0
    return record


def measure_all(
    rows: Path, plan: Plan, load: Callable[[str], likely.Model], cases: Mapping[str, Sequence[FunctionCase]]
) -> list[Answered]:
    """Every cell that has no row yet, one model after the other; gives all of the plan."""
    wanted = list(cells(plan))
    lines = {cell: Line(i + 1, {}, fingerprint(list(cell))) for i, cell in enumerate(cells(FULL))}
    lines |= {
        cell: Line(1_000_000 + i, {}, fingerprint(list(cell))) for i, cell in enumerate(wanted) if cell not in lines
    }
    header = {"kind": "slm-agents", "likely": likely.__version__, "tokens": TOKENS}
    with Results(rows, header) as kept:
        for model in (SMOLLM2, GEMMA):
            todo = [c for c in wanted if c[0] == model and not kept.is_done(lines[c], str(rows))]
            if not todo:
                continue
            with load(model) as lm:
                for done, cell in enumerate(todo):
                    _, mode, category, number = cell
                    record = measure_cell(lm, cases[category][number], mode)
                    kept.write([{"line": lines[cell].number, "input": lines[cell].digest, "model": model, **record}])
                    if done % 20 == 19:
                        report(f"{model}: {done + 1} of {len(todo)} cells")
    numbers = {lines[cell].number for cell in wanted}
    return [
        Answered(r["model"], r["mode"], CaseResult.of_dict(r), r["free"], r["all_tokens"])
        for r in (line.record for line in read_lines(rows))
        if r.get("line") in numbers
    ]


# --- (1) validity, executable calls, accuracy -------------------------------------------------------------------------


def calling(found: Sequence[Answered]) -> tuple[list[Figure], list[Check], str]:
    """Per model and mode, on the cases that the model answered in every mode."""
    figures: list[Figure] = []
    checks: list[Check] = []
    said = []
    for model in (SMOLLM2, GEMMA):
        by_mode = {
            mode: {a.result.id: a.result for a in found if a.model == model and a.mode == mode}
            for mode in ("unconstrained", "constrained", "repaired")
        }
        common = sorted(set.intersection(*(set(part) for part in by_mode.values())))
        shares: dict[tuple[str, str], list[float]] = {}
        for mode, results in by_mode.items():
            records = [results[name].record for name in common]
            shares[mode, "valid"] = [float(r.valid) for r in records]
            shares[mode, "right"] = [float(r.solved) for r in records]
            shares[mode, "right tool"] = [float(bool(r.selected)) for r in records]
            for quantity in ("valid", "right tool", "right"):
                values = shares[mode, quantity]
                figures.append(
                    figure_with(
                        f"{model}, {mode}",
                        quantity,
                        float(np.mean(values)),
                        wilson(int(sum(values)), len(values)),
                        unit="share of cases",
                        n=len(values),
                        of="cases",
                    )
                )
            made, executed = [float(r.calls_made) for r in records], [float(r.calls_executed) for r in records]
            if sum(made):
                figures.append(
                    figure_with(
                        f"{model}, {mode}",
                        "executable",
                        sum(executed) / sum(made),
                        bootstrap_ratio(executed, made),
                        unit="share of calls",
                        n=int(sum(made)),
                        of="calls",
                    )
                )
            repairs = [float(r.repairs) for r in records]
            if mode == "repaired":
                figures.append(
                    figure_with(
                        f"{model}, {mode}",
                        "repairs",
                        float(np.mean(repairs)),
                        mean_interval(repairs),
                        unit="repairs per case",
                        n=len(repairs),
                        of="cases",
                    )
                )
        gain = np.array(shares["constrained", "right"]) - np.array(shares["unconstrained", "right"])
        low, high = mean_interval(gain.tolist())
        valid = {mode: float(np.mean(shares[mode, "valid"])) for mode in by_mode}
        checks += [
            Check(
                statement=f"{model}: invalid answers held to the schema",
                value=1 - valid["constrained"],
                bound=0.02,
                unit="share of cases",
            ),
            Check(
                statement=f"{model}: invalid answers after at most two repairs",
                value=1 - valid["repaired"],
                bound=0.02,
                unit="share of cases",
            ),
            Check(
                statement=f"{model}: valid answers written freely",
                value=valid["unconstrained"],
                bound=0.3,
                unit="share of cases",
            ),
            Check(
                statement=f"{model}: held to the schema more calls are right than written freely (upper end of the "
                f"interval of what is lost)",
                value=-low,
                bound=-1e-4,
                unit="share of cases",
            ),
        ]
        said.append(
            f"{model}: valid {valid['unconstrained']:.0%} freely, {valid['constrained']:.0%} held to the schema, "
            f"{valid['repaired']:.0%} repaired; right {np.mean(shares['unconstrained', 'right']):.0%}, "
            f"{np.mean(shares['constrained', 'right']):.0%}, {np.mean(shares['repaired', 'right']):.0%} "
            f"(gain of the schema {gain.mean():+.0%} [{low:+.0%}, {high:+.0%}], {len(common)} cases)"
        )
    return figures, checks, "; ".join(said)


# --- (2) routing ------------------------------------------------------------------------------------------------------


def fitted(answers: Sequence[Answered], *, with_forced: bool) -> Calibrator:
    """The confidence of answers held to the schema, from their free tokens or from all."""
    x = np.array([features(a.all_tokens if with_forced else a.free) for a in answers])
    right = np.array([a.result.record.solved for a in answers], np.int64)
    return fit_calibrator(Labelled("answer", x, right), method="answer", file="slm_agents", reports=False)


def confidences(calibrator: Calibrator, answers: Sequence[Answered], *, with_forced: bool) -> np.ndarray:
    tokens = [a.all_tokens if with_forced else a.free for a in answers]
    found = [calibrator.of_answer(each) for each in tokens]
    return np.array([0.0 if each is None else each for each in found])


def large_is_right(case: str) -> bool:
    """The scripted model: right on a fixed share of cases, the same ones in every run."""
    return int(fingerprint(f"large {case}", 8), 16) / 2**32 < LARGE_ACCURACY


def routed(given: np.ndarray, right: np.ndarray, large: np.ndarray, value: float = VALUE) -> tuple[float, float, float]:
    """(CPS, net value per task, success) where `given` says whose small answers are given; large ones cost both."""
    solved = np.where(given, right, large)
    costs = np.where(given, 1.0, 1.0 + LARGE_COST)
    return (
        cost_per_success(costs.tolist(), solved.tolist()),
        float((value * solved - costs).mean()),
        float(solved.mean()),
    )


def routing(answers: Sequence[Answered]) -> tuple[list[Figure], list[Check], str]:
    """Over halves of the cases: fit on one, judge on the other; figures are means over the halves."""
    usable = [a for a in answers if a.free and a.result.record.valid]
    right = np.array([a.result.record.solved for a in usable])
    large = np.array([large_is_right(a.result.id) for a in usable])
    kept: dict[str, list[float]] = {}
    lost = {name: np.zeros(len(usable)) for name in ("small", "large", "random")}  # by auto, summed over halves
    times = np.zeros(len(usable))
    broken = promised = 0

    def note(**values: float) -> None:
        for name, value in values.items():
            kept.setdefault(name, []).append(value)

    for seed in range(SPLITS):
        half = folds_of(right.astype(np.int64), 2, seed)
        fit, judge = np.flatnonzero(half == 0), np.flatnonzero(half == 1)
        calibrator = fitted([usable[i] for i in fit], with_forced=False)
        judged = [usable[i] for i in judge]
        c, r, other = confidences(calibrator, judged, with_forced=False), right[judge], large[judge]
        forced = confidences(fitted([usable[i] for i in fit], with_forced=True), judged, with_forced=True)
        note(auroc=auroc(c, r), auroc_forced=auroc(forced, r), aurc=aurc(c, r), aurc_random=float(1 - r.mean()))
        rule = CostOptimal(VALUE, LARGE_COST, LARGE_ACCURACY).rule(calibrator)
        auto = c >= rule.threshold
        share = float(auto.mean())
        cps, net, success = routed(auto, r, other)
        note(auto_cps=cps, auto_net=net, auto_success=success, auto_fallback=1 - share)
        random_net = share * (VALUE * r.mean() - 1) + (1 - share) * (VALUE * other.mean() - 1 - LARGE_COST)
        note(random_net=float(random_net))
        mine = VALUE * np.where(auto, r, other) - np.where(auto, 1.0, 1 + LARGE_COST)
        small, bigger = VALUE * r - 1.0, VALUE * other - LARGE_COST
        times[judge] += 1
        lost["small"][judge] += small - mine
        lost["large"][judge] += bigger - mine
        lost["random"][judge] += share * small + (1 - share) * (bigger - 1) - mine
        everything = np.ones(len(r), bool)
        note(small_cps=routed(everything, r, other)[0], small_net=routed(everything, r, other)[1])
        note(large_cps=LARGE_COST / other.mean(), large_net=VALUE * other.mean() - LARGE_COST)
        for value in OTHER_VALUES:
            given = c >= CostOptimal(value, LARGE_COST, LARGE_ACCURACY).rule(calibrator).threshold
            best = max(value * r.mean() - 1, value * other.mean() - LARGE_COST)
            note(**{f"gain_{value:g}": routed(given, r, other, value)[1] - float(best)})
        note(**{f"gain_{VALUE:g}": net - max(kept["small_net"][-1], kept["large_net"][-1])})
        held = RiskControlled(RISK, DELTA).rule(calibrator)
        kept_back = c >= held.threshold
        if np.isfinite(held.threshold):
            promised += 1
            wrong, count = int((~r[kept_back]).sum()), int(kept_back.sum())
            # broken beyond doubt only where the judged half alone speaks against it
            broken += count > 0 and 1 - upper_bound(count - wrong, count, 0.05) > RISK
            note(risk_error=wrong / count if count else 0.0, risk_coverage=float(kept_back.mean()))
        budget = Budget(BUDGET).rule(calibrator)
        note(budget_fallback=float((c < budget.threshold).mean()))
    mean = {name: float(np.mean(values)) for name, values in kept.items()}
    seen = times > 0
    losses = {name: (total[seen] / times[seen]).tolist() for name, total in lost.items()}  # per case, over its halves
    whole = fitted(usable, with_forced=False)
    gap = interval(auroc, whole.confidence, right)
    n, note_text = len(usable), f"mean over {SPLITS} halves of the same cases: no interval of its own"

    def figure(subject: str, quantity: str, name: str, unit: str) -> Figure:
        return Figure(subject=subject, quantity=quantity, value=mean[name], unit=unit, n=n, of="cases", note=note_text)

    figures = [
        figure("confidence", "AUROC", "auroc", "AUROC"),
        figure("confidence", "AURC", "aurc", "share wrong"),
        figure("random order", "AURC", "aurc_random", "share wrong"),
        figure_with(
            "confidence", "AUROC, cross-fitted", auroc(whole.confidence, right), gap, unit="AUROC", n=n, of="cases"
        ),
        figure("forced tokens counted in", "AUROC", "auroc_forced", "AUROC"),
    ]
    for subject, prefix in (
        ("auto, cost-optimal", "auto"),
        ("always small", "small"),
        ("always large (scripted)", "large"),
    ):
        figures.append(figure(subject, "cost per success", f"{prefix}_cps", "calls of the small model"))
        figures.append(figure(subject, "net value per task", f"{prefix}_net", "calls of the small model"))
    figures += [
        figure("random, as many fallbacks", "net value per task", "random_net", "calls of the small model"),
        figure("auto, cost-optimal", "falls back", "auto_fallback", "share of cases"),
        figure("auto, cost-optimal", "success", "auto_success", "share of cases"),
        figure(f"auto, budget {BUDGET:g}", "falls back", "budget_fallback", "share of cases"),
    ]
    for name, words in (("small", "always small"), ("large", "always large"), ("random", "random, as many fallbacks")):
        low, high = mean_interval([-each for each in losses[name]])
        figures.append(
            figure_with(
                f"auto less {words}", "net value per task", -float(np.mean(losses[name])), (low, high),
                unit="calls of the small model", n=len(losses[name]), of="cases",
            )
        )  # fmt: skip
    for value in (VALUE, *OTHER_VALUES):
        name = f"value {value:g} of a solved task"
        figures.append(
            figure(name, "gain of auto over the better model", f"gain_{value:g}", "calls of the small model")
        )
    if promised:
        figures += [
            figure(f"auto, risk {RISK:g}", "wrong among given", "risk_error", "share of given answers"),
            figure(f"auto, risk {RISK:g}", "coverage", "risk_coverage", "share of cases"),
        ]
    allowed = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / SPLITS)
    checks = [
        Check(
            statement="routing: AUROC of the confidence below 0.65 by",
            value=0.65 - mean["auroc"],
            bound=0.0,
            unit="AUROC",
        ),
        Check(
            statement="routing: cost per success of auto less that of the cheaper of always small and always large",
            value=mean["auto_cps"] - min(mean["small_cps"], mean["large_cps"]),
            bound=0.0,
            unit="calls of the small model",
        ),
        *(
            Check(
                statement=f"routing: what auto loses in net value per task against {words} (upper end of the interval)",
                value=max(mean_interval(losses[name])[1], float(np.mean(losses[name]))),
                bound=0.0,
                unit="calls of the small model",
            )
            for name, words in (
                ("small", "always small"),
                ("large", "always large"),
                ("random", "random, as many fallbacks"),
            )
        ),
        Check(
            statement=f"routing: halves on which a promise of at most {RISK:g} wrong is broken beyond doubt",
            value=broken / SPLITS,
            bound=float(allowed),
            unit="share of halves",
        ),
        Check(
            statement="forced tokens: what excluding them loses in AUROC",
            value=mean["auroc_forced"] - mean["auroc"],
            bound=0.0,
            unit="AUROC",
        ),
    ]
    said = (
        f"routing over {SPLITS} halves of {n} cases ({right.mean():.0%} right): AUROC {mean['auroc']:.2f} "
        f"({mean['auroc_forced']:.2f} with forced tokens), AURC {mean['aurc']:.2f} (random {mean['aurc_random']:.2f}); "
        f"net value per task auto {mean['auto_net']:.1f}, small {mean['small_net']:.1f}, "
        f"large {mean['large_net']:.1f}; cost per success {mean['auto_cps']:.1f}, {mean['small_cps']:.1f}, "
        f"{mean['large_cps']:.1f}; "
        + (f"risk {RISK:g} promised on {promised} halves" if promised else f"no threshold satisfies risk {RISK:g}")
    )
    return figures, checks, said


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    found: Sequence[Answered], *, full: bool, seconds: float, models: Sequence[Source], data: Sequence[Source]
) -> Evidence:
    """Figures, checks and the record."""
    figures, checks, said = calling(found)
    more_figures, more_checks, more_said = routing([a for a in found if a.model == SMOLLM2 and a.mode == "constrained"])
    counts = {model: len({a.result.id for a in found if a.model == model}) for model in (SMOLLM2, GEMMA)}
    return conclude(
        "slm_agents",
        title="Small language models for agentic systems: guided calls, validators first, and a router",
        claim="Held to a schema and checked before they run, the calls of a small model are valid; with a calibrated "
        "confidence a router gets more out of it than either model alone.",
        paper_figure="Models of 1 to 12 billion parameters match or pass larger ones on tool use at 10 to 100 times "
        "lower token cost (statements of a survey, not one experiment)",
        ours=f"{said}; {more_said}",
        figures=[*figures, *more_figures],
        checks=[*checks, *more_checks],
        samples=f"{counts[SMOLLM2]} cases of simple_python, live_simple and multiple by SmolLM2-135M, {counts[GEMMA]} "
        f"by Gemma 3 270M (a base model); the first of each file, the prompt was chosen on others",
        intervals="95 %: Wilson for shares of cases, bootstrap over cases for others (of each case's mean over halves "
        "where policies are compared); none for other means over halves of the same cases",
        not_shown=[
            "Parity with larger models: none of this size is near it, and the large model of (2) is scripted: right on "
            f"{LARGE_ACCURACY:.0%} of the cases at {LARGE_COST:g} times the cost, whatever the case.",
            "Execution: BFCL describes functions and does not hold them, so that a call that every check accepts "
            "counts as executed.",
            "Seconds and joules: nothing is timed here; likely tools eval reports both.",
            f"What a solved task is worth: {VALUE:g} calls of the small model is our choice; the table varies it.",
            "The adaptation of a small model by training, and retrieval.",
            "The processor time of the whole study, some eight minutes: what is told is that of the run which measured "
            "the last cells and went on from earlier rows.",
        ],
        full=full,
        seconds=seconds,
        models=models,
        data=data,
    )


def main() -> Evidence | None:
    parser = arguments(
        full="280 cases, every one in every mode", threads="threads of the models",
        kept="reproductions/slm_agents.jsonl",
    )  # fmt: skip

    def measure(options: argparse.Namespace) -> Evidence:
        plan = FULL if options.full else QUICK
        options.kept.parent.mkdir(parents=True, exist_ok=True)
        cases = {name: function_cases(name) for name in CATEGORIES}
        before = time.process_time()
        found = measure_all(
            options.kept, plan, lambda name: likely.load(name, runtime="native", threads=options.threads), cases
        )  # type: ignore[arg-type, return-value]
        return study(
            found,
            full=options.full,
            seconds=time.process_time() - before,
            models=[model_source(SMOLLM2), model_source(GEMMA)],
            data=data_sources([("bfcl", f"{name}.jsonl.gz") for name in CATEGORIES]),
        )

    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
