"""Evaluation: from a pipeline to a run. It performs nothing itself, so any driver can run it.

Reading order: `outcome`, `requests`, `terms`, `open_scopes` and `branch` are the vocabulary; `evaluation`, `noting`,
`actions`, `calling`, `results`, `effects`, `layers`, `layered`, `scopes` and `attempts` run a pipeline, with `streams`,
`deadlines` and `waiting`, where they are met; `insertions` and `missing` say why a unit or a call is refused. `groups`,
`sources`, `verdicts`, `merger` (into an `overlay`) and `schedule` add branches side by side. `recorder` writes outcomes
down as the rows of a `journal`, which `rows` reads; a resume begins in `drivers/start`, and `resume`, `history` and
`restoring` find them again (`memory`, for a run without a journal).
"""
