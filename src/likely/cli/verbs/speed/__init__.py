"""Verbs about speed: bench, draft, replay."""
