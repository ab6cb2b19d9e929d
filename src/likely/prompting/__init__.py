"""Choosing and writing prompts by probability; ensembles; risk scores on tables; n-best lists."""
