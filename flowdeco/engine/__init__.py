"""Evaluation: from a pipeline to a run. It performs nothing itself, so any driver can run it.

Reading order: `outcome`, `requests` and `branch` are the vocabulary; `evaluation`, `scopes`, `actions` and `layers` run a
pipeline; `groups` and `schedule` add branches side by side; `recorder`, `replay` and `resume` add the history of a
resumed run.
"""
