"""Evaluation: a generator that performs nothing, its middleware, its records, and what it asks of a journal."""
