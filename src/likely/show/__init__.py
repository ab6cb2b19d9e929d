"""Likelihoods for the eye: tokens coloured in the terminal or on a self-contained page, and pictures of results."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.show.audits import audit_page as audit_page
    from likely.show.colours import BREAKPOINTS as BREAKPOINTS
    from likely.show.colours import level_of as level_of
    from likely.show.forecasts import draw_forecast as draw_forecast
    from likely.show.forecasts import forecast_page as forecast_page
    from likely.show.html import page as page
    from likely.show.html import query_page as query_page
    from likely.show.plot import draw_budgets as draw_budgets
    from likely.show.plot import draw_histograms as draw_histograms
    from likely.show.plot import draw_ratios as draw_ratios
    from likely.show.plot import read_series as read_series
    from likely.show.plot import render as render
    from likely.show.terminal import print_fields as print_fields
    from likely.show.terminal import print_shown as print_shown
    from likely.show.tokens import Shown as Shown
    from likely.show.tokens import shown as shown
    from likely.show.tokens import visible as visible

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
