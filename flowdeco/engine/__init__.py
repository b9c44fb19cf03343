"""Evaluation: from a pipeline to a run. It performs nothing itself, so any driver can run it.

Reading order: `outcome`, `requests`, `terms`, `open_scopes` and `branch` are the vocabulary; `evaluation`, `noting`,
`actions`, `calling`, `results`, `effects`, `layers`, `layered`, `scopes` and `attempts` run a pipeline; `groups`, `sources`,
`verdicts`, `merger` and `schedule` add branches side by side. `recorder` writes outcomes down as the rows of a `journal`,
which `rows` reads; a resume begins in `drivers/start`, and `resume`, `history` and `restoring` find them again
(`memory`, for a run without a journal).
"""
