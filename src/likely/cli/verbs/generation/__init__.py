"""Verbs that write or score text: ask, chat, generate, extract, score, complete, query."""
