"""Evaluation: from a pipeline to a run. It performs nothing itself, so any driver can run it.

Reading order: `outcome`, `requests`, `terms`, `open_scopes` and `branch` are the vocabulary; `evaluation`, `actions`,
`layers` and `scopes` run a pipeline; `groups` and `schedule` add branches side by side; `recorder` writes outcomes down,
and `resume`, `history` and `resuming` find them again.
"""
