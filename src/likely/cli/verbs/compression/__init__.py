"""Verbs about smaller models: make one, and say what that did to its likelihoods."""
