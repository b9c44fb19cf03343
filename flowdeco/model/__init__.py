"""Definitions, and the values that they are about: actions, stages, pipelines, their wiring, and the store."""
