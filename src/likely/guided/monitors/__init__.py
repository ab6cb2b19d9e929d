"""Monitors of code: which of the tokens that come next a static analysis allows."""
