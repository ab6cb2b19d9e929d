"""Verbs for time series."""
