"""Verbs about models, servers and evidence: serve, models, convert, datasets, papers, reproduce, plot, eval-code."""
