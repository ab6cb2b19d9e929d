"""likely forecast: what comes after a column of a table, with intervals and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags, options
from likely.cli.printing import percent, print_json, print_table
from likely.io.whole_file import check_target, write_for_user

PICTURES = (".png", ".svg", ".pdf", ".html")


def forecast(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .tsv table (also .gz) with a date column.")],
    column: Annotated[list[str], typer.Option("--column", "-c", help="What is forecast (repeatable).")],
    horizon: Annotated[int, typer.Option("--horizon", "-H", min=1, help="Rows to forecast.")] = 96,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            callback=flags.one_of("forecasters", "auto"),
            help="auto (the best naive or linear one), {forecasters}.",
        ),
    ] = "auto",
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it: .png, .svg, .pdf, or a page, .html.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Keep the fitted forecaster (.safetensors).")] = None,
    date: Annotated[
        str | None, typer.Option("--date", help="Column of the time stamps.  [default: date, time ...]")
    ] = None,
    lookback: Annotated[
        int | None, typer.Option("--lookback", min=1, help="Rows to look at.  [default: 336, or what fits]")
    ] = None,
    season: Annotated[
        int | None, typer.Option("--season", min=1, help="Rows of a season.  [default: a day, a week, a year]")
    ] = None,
    level: Annotated[float, typer.Option("--level", min=0.01, max=0.999, help="How often intervals shall hold.")] = 0.9,
    split: Annotated[
        str, typer.Option("--split", help="Rows to train on, choose by and test on: 60/20/20, 70/10/20, etth, ettm.")
    ] = "60/20/20",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Of small-lm.  [default: smollm2]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="A setting of the method, e.g. -s layers=6 -s prompt=stats."
        ),
    ] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Forecast columns of a table: naive and linear methods compete, the best on unseen rows makes the forecast.

    Examples:

      likely forecast load.csv --column zone1 --horizon 96 --plot zone1.png

      likely forecast load.csv -c zone1 -c zone2 --horizon 48 --json

      likely forecast load.csv -c zone1 --method small-lm -s layers=4 -s likelihood=student_t
    """
    from likely.forecasting.selection import TRAINED, forecast_series
    from likely.forecasting.series import read_time_series
    from likely.show.forecasts import HEADS, comparison_rows

    for target, suffixes in ((plot, PICTURES), (save, (".safetensors",))):
        if target is not None:
            check_target(target, suffixes)
            options.refuse_same_file(str(file), target)
    given = options.parse_settings(settings)
    if (given or model is not None) and method not in TRAINED:
        raise typer.BadParameter(f"settings and models belong to {' and '.join(TRAINED)}", param_hint="--method")
    if model is not None:
        given["model"] = model
    series = read_time_series(file, column, date=date)
    if len(odd := series.odd_steps):
        typer.echo(
            f"Note: {len(odd)} of {len(series) - 1} steps are not the usual one of {series.step_s:g} s, first before "
            f"row {odd[0] + 1} ({series.times[odd[0]]}): rows are taken as equally far apart",
            err=True,
        )
    report = forecast_series(
        series, horizon, method=method, lookback=lookback, season=season, level=level, split=split, settings=given,
        progress=percent("forecasting"),
    )  # fmt: skip
    if save is not None:
        report.forecaster.save(save)
        typer.echo(f"wrote {save}", err=True)
    if plot is not None:
        from likely.show.forecasts import draw_forecast, forecast_page
        from likely.show.plot import render

        name = f"{', '.join(column)}: the next {horizon} rows of {file.name}"
        page = forecast_page(report, title=name).encode() if plot.suffix.lower() == ".html" else None
        write_for_user(plot, page if page is not None else render(draw_forecast(report), plot.suffix))
        typer.echo(f"wrote {plot}", err=True)
    best = report.methods[0]
    if best.method != report.chosen:
        typer.echo(f"Note: {best.method} has a lower error on the rows to choose by: {best.validation:.4f}", err=True)
    if as_json:
        print_json({"file": str(file), **report.to_dict()})
        return
    print_table(HEADS, comparison_rows(report))
    typer.echo(
        f"* makes the forecast.  Errors in units of the training rows' standard deviation; {report.rows[0]} rows to "
        f"train on, {report.rows[1]} to choose by, {report.rows[2]} to test on; coverage: of {level:.0%} promised\n"
    )
    print_table(("time", "column", "expected", "low", "high"), report.lines(), left=2)
