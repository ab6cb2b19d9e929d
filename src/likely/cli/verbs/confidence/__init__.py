"""Verbs about how sure a model is: grade, calibrate, uncertainty, choices, risk."""
