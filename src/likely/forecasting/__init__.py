"""Forecasts of time series with intervals: a frozen small language model, and the simple methods it has to beat."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.forecasting.backbone import LMBackbone as LMBackbone
    from likely.forecasting.baselines import LastValue as LastValue
    from likely.forecasting.baselines import RidgeForecaster as RidgeForecaster
    from likely.forecasting.baselines import SeasonalNaive as SeasonalNaive
    from likely.forecasting.forecaster import Forecast as Forecast
    from likely.forecasting.forecaster import Forecaster as Forecaster
    from likely.forecasting.network import balance_loss as balance_loss
    from likely.forecasting.patch_transformer import PatchTransformerForecaster as PatchTransformerForecaster
    from likely.forecasting.selection import ForecastReport as ForecastReport
    from likely.forecasting.selection import compare_forecasters as compare_forecasters
    from likely.forecasting.selection import forecast_series as forecast_series
    from likely.forecasting.selection import load_forecaster as load_forecaster
    from likely.forecasting.series import TimeSeries as TimeSeries
    from likely.forecasting.series import read_time_series as read_time_series
    from likely.forecasting.series import split_series as split_series
    from likely.forecasting.small_lm import SmallLMForecaster as SmallLMForecaster
    from likely.forecasting.windows import windows_of as windows_of

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
