"""Definitions, and the values they consist of: actions, stages, pipelines, their wiring, and the store."""
