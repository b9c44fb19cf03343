"""A walk through an evaluation in this thread, branch after branch: a driver for readers of journals, which run little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from flowdeco.engine.branch import Branch
from flowdeco.engine.evaluation import evaluate
from flowdeco.engine.requests import Begin, Conductor, Ended, Fork
from flowdeco.model.deep import Deep, evaluated

__all__ = ["walk"]


def walk(
    evaluation: Any,
    answer: Callable[[Any], Any],
    enters: Callable[[Branch], bool] = lambda branch: True,
    conductor: Conductor | None = None,
) -> Any:
    """Walk an evaluation to its end; `answer` answers its requests, also whether a group is to supply another branch.

    `enters` tells into which branches to walk. With a `conductor`, the evaluation is the supply of its branches.
    """
    return evaluated(_walk(evaluation, answer, enters, conductor))


def _walk(
    evaluation: Any, answer: Callable[[Any], Any], enters: Callable[[Branch], bool], conductor: Conductor | None
) -> Deep[Any]:
    came: Any = None
    while True:
        try:
            request = evaluation.send(came)
        except StopIteration as stop:
            return stop.value
        if isinstance(request, Fork):
            group = request.conductor
            group.ended(None, (yield _walk(group.supply(), answer, enters, group)))
            came = Ended(None)
            continue
        if isinstance(request, Begin):
            branch = cast("Branch", request.branch)
            if conductor is not None and enters(branch):
                conductor.ended(branch, (yield _walk(evaluate(branch), answer, enters, None)))
        came = answer(request)
