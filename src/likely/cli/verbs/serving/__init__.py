"""Verbs about servers: launch files."""
