"""Perform a run in the calling thread.

Coroutines go to a private event loop in a helper thread, so that it works where a loop is running already; a call with
a timeout goes to a worker thread, and is given up when the time is over.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flowdeco.drivers.common import begin, end
from flowdeco.requests import Await, Raised, Request, Sleep

if TYPE_CHECKING:
    from flowdeco.definitions import Pipeline, RunOptions
    from flowdeco.runs import Run

__all__ = ["run"]


def run(flow: Pipeline, inputs: Mapping[str, Any] | None, options: RunOptions) -> Run:
    """Evaluate a pipeline."""
    run, evaluation = begin(flow, inputs, options)
    with ExitStack() as resources:
        _drive(evaluation, _Performer(resources))
    return end(run, options.check)


def _drive(evaluation: Generator[Request, Any, None], performer: _Performer) -> None:
    answer: Any = None
    send = evaluation.send
    while True:
        try:
            request = send(answer)
        except StopIteration:
            return
        try:
            if type(request) is tuple and request[0].timeout is None:
                step, args, kwargs = request
                answer = step.function(*args, **kwargs) if kwargs else step.function(*args)
            else:
                answer = performer.perform(request)
        except BaseException as error:
            answer = Raised(error)


class _Performer:
    """What a sync run needs beside plain calls, made when it is needed."""

    def __init__(self, resources: ExitStack) -> None:
        self._resources = resources
        self._loop: Any = None

    def perform(self, request: Request) -> Any:
        if isinstance(request, Sleep):
            return time.sleep(request.seconds)
        if isinstance(request, Await):
            if self._loop is None:
                from flowdeco.drivers.async_ import LoopThread

                self._loop = self._resources.enter_context(LoopThread())
            return self._loop.result_of(request)
        from flowdeco.drivers.threads import call_with_timeout

        return call_with_timeout(*request)
