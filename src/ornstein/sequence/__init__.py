"""Time series: forecasting and imputation by diffusion (TimeGrad, SSSD, CSDI), with honest baselines beside them."""

from ornstein.sequence.data import Series, describe, series
from ornstein.sequence.forecast import Forecast
from ornstein.sequence.predict import forecast, impute
from ornstein.sequence.reading import read_series

__all__ = ["Forecast", "Series", "describe", "forecast", "impute", "read_series", "series"]
