"""Verbs about prompts: prompts select, prompts reask, prompts learn-hints, prompts hint."""
