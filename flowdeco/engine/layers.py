"""Middleware: a generator function of one argument, the `Call`, around a pipeline, a stage or an action (L7).

    def timed(call):
        started = perf_counter()
        yield                                   # run what is inside
        call.store["seconds"] = perf_counter() - started

What it may do at its `yield`, and what comes of it:

    yields None                  the inside runs; the `yield` evaluates to its outcome, or raises its exception
    yields a mapping             the same, with these values as parameters, in that scope only
    yields Sleep(seconds)        waits, then goes on
    yields again after a failure the inside runs again; what the failed attempt wrote and inserted is dropped
    yields again after a success misuse, as is anything else it yields
    returns before yielding      the inside is skipped; `call.outcome = value` stands for an action's outcome
    returns after a failure      the failure is recovered
    raises                       the exception goes on outwards

`enter` opens layers from the outside in, `leave` resumes them from the inside out; between the two, the evaluator runs
the inside. Both are generators of requests, since a layer may wait or be asynchronous.
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from flowdeco.engine.requests import Await, Raised, Request, Sleep
from flowdeco.errors import MiddlewareError
from flowdeco.model.definitions import Action, Pipeline, Stage, Stream, Unit, insertable
from flowdeco.model.options import UNSET, Middleware, placed
from flowdeco.model.store import Log, Store

if TYPE_CHECKING:
    from flowdeco.engine.logs import RunLogger

__all__ = ["Call", "enter", "leave", "merging"]

Level: TypeAlias = Literal["pipeline", "stage", "action"]
Layer: TypeAlias = "Generator[Any, Any, None] | AsyncGenerator[Any, Any]"


class Call:
    """What a middleware is told, and can do.

    `level` is "pipeline" (also for the run's own `use`), "stage" or "action"; `pipeline`, `stage` and `action` are None
    where they do not apply. `store` is that of the enclosing scope: what a middleware writes there stays. `outcome` is
    the action's outcome, and can be replaced; `attempt` counts from 1.
    """

    # What is the same in most calls is a default of the class: a call is made for every wrapped action.
    attempt = 1
    _outcome: Any = UNSET
    _ran = False  # the inside was begun
    _failure: BaseException | None = None  # the last one
    _recovered = False  # by a layer
    _undone = False  # what failed wrote, and it was rolled back
    _inserted: tuple[Unit | Stream, ...] = ()

    def __init__(
        self,
        run_id: str,
        store: Store,
        layers: tuple[Middleware, ...],
        values: Mapping[str, Any],
        pipeline: Pipeline,
        stage: Stage | None = None,
        action: Action[..., Any] | None = None,
    ) -> None:
        self.run_id = run_id
        self.store = store
        self.pipeline = pipeline
        self.stage = stage
        self.action = action
        # The layers, those of them that are open, and the values that they give to what is inside.
        self._layers = layers
        self._values = values
        self._opened: list[_Opened] = []

    @property
    def level(self) -> Level:
        """What the middleware stands around: "pipeline", "stage" or "action"."""
        if self.action is not None:
            return "action"
        return "pipeline" if self.stage is None else "stage"

    @property
    def outcome(self) -> Any:
        """The action's outcome, None as long as there is none; what is set here counts as returned."""
        return None if self._outcome is UNSET else self._outcome

    @outcome.setter
    def outcome(self, value: Any) -> None:
        self._outcome = value

    def insert(self, *units: Unit | Stream) -> None:
        """Run these right after what the middleware stands around, as if an action had returned them."""
        self._inserted += insertable(units, f"a middleware of {self.level} {self.subject!r}", "inserted")

    @property
    def subject(self) -> str:
        """The name of what the middleware stands around."""
        innermost = self.action if self.action is not None else self.stage
        return self.pipeline.name if innermost is None else innermost.name

    @property
    def logger(self) -> RunLogger:
        """The logger `flowdeco.run`, with run, stage and action as `extra`."""
        from flowdeco.engine.logs import run_logger

        stage, action = self.stage, self.action
        return run_logger(self.run_id, None if stage is None else stage.name, None if action is None else action.name)

    def __repr__(self) -> str:
        return f"<Call of {self.level} {self.subject!r}, attempt {self.attempt}>"


_Opened: TypeAlias = "tuple[Middleware, Any, Log | None, int, Mapping[str, Any]]"
_Verdict: TypeAlias = "tuple[bool, BaseException | None]"
Passage: TypeAlias = "_Verdict | Generator[Request, Any, _Verdict]"

_GENERATOR: Final[Any] = types.GeneratorType
_DONE: Final[_Verdict] = (False, None)
_GO: Final[_Verdict] = (True, None)
_END: Final[Any] = object()


def enter(call: Call) -> Passage:
    """Open the layers that are not open yet; give whether the inside is to run, and the error of a layer.

    Where nothing has to be waited for, as mostly, the answer is there at once; else it is a generator of requests.
    """
    layers, opened = call._layers, call._opened
    for layer in layers[len(opened) :] if opened else layers:
        try:
            generator = layer(call)
            if type(generator) is not _GENERATOR:
                return _enter(call, layer, generator, *_resumed(generator, None, None))
            item = next(generator, _END)
        except BaseException as error:
            return False, error
        if item is _END:
            return _DONE
        if item is not None:
            return _enter(call, layer, generator, _YIELDED, item)
        # As `_open`, without a further call.
        log = call.store._begin() if call.action is None or len(opened) + 1 < len(layers) else None
        opened.append((layer, generator, log, len(call._inserted), call._values))
    call._ran = True
    return _GO


def _enter(call: Call, layer: Middleware, generator: Layer, end: str, item: Any) -> Generator[Request, Any, _Verdict]:
    end, item = yield from _settled(layer, generator, end, item, None)
    if end is not _YIELDED:
        return False, item
    _open(call, layer, generator, item)
    entered = enter(call)
    return entered if isinstance(entered, tuple) else (yield from entered)


def leave(call: Call, error: BaseException | None) -> Passage:
    """Resume the open layers; give whether the inside is to run again, and the error that is left.

    Like `enter`, it answers at once where it can: when nothing failed, and every layer simply ends.
    """
    opened = call._opened
    if error is not None:
        call._failure, call._outcome = error, UNSET
        return _leave(call, error) if opened else (False, error)
    while opened:
        _, generator, log, _, values = opened[-1]
        if type(generator) is not _GENERATOR:
            return _leave(call, None)
        if log is not None:
            call.store._end(log)
        outcome = call._outcome
        try:
            # Most layers simply end, which costs less where no `StopIteration` has to be raised.
            item = next(generator, _END) if outcome is None or outcome is UNSET else generator.send(outcome)
        except StopIteration:
            item = _END
        except BaseException as raised:
            return _leave(call, None, _RAISED, raised)
        if item is not _END:
            return _leave(call, None, _YIELDED, item)
        opened.pop()
        call._values = values
    return _DONE


def _leave(
    call: Call, error: BaseException | None, end: str | None = None, item: Any = None
) -> Generator[Request, Any, _Verdict]:
    store = call.store
    while call._opened:
        layer, generator, log, inserted_before, call._values = call._opened.pop()
        inserted = len(call._inserted)
        own: Log | None = None
        if end is None:
            if log is not None:
                store._end(log)
            own = store._begin()
            end, item = _resumed(generator, call.outcome, error)
        end, item = yield from _settled(layer, generator, end, item, error)
        if own is not None:
            store._end(own)
        if end is _RETURNED:
            call._recovered |= error is not None
            error = None
        elif end is _RAISED:
            call._failure, call._recovered, call._outcome = item, False, UNSET
            error = item
        elif error is not None:
            if log is not None:
                store._rollback(log, keep=own or (), forget=True)
            call._inserted = call._inserted[:inserted_before] + call._inserted[inserted:]
            call._failure, call._recovered, call._outcome = None, False, UNSET
            call.attempt += 1
            _open(call, layer, generator, item)
            return _GO
        else:
            error = _misused(layer, "yielded again after a success: its inside runs again only after a failure")
            call._failure, call._outcome = error, UNSET
            yield from _reproached(generator, error)
        end = None
    return False, error


def _open(call: Call, layer: Middleware, generator: Layer, values: Mapping[str, Any] | None) -> None:
    opened = call._opened
    # Around an action, nothing but a further layer can write to the store before the action is over.
    unwritten = call.action is not None and len(opened) + 1 == len(call._layers)
    opened.append((layer, generator, None if unwritten else call.store._begin(), len(call._inserted), call._values))
    if values:
        call._values = {**call._values, **values}


_YIELDED: Final = "yielded"
_RETURNED: Final = "returned"
_RAISED: Final = "raised"
_WAITS: Final = "waits"
_End: TypeAlias = "tuple[str, Any]"


def _resumed(generator: Layer, outcome: Any, error: BaseException | None) -> _End:
    """Resume a layer once; an asynchronous one gives the request by which it is resumed."""
    if not isinstance(generator, types.GeneratorType):
        layer = cast("AsyncGenerator[Any, Any]", generator)
        return _WAITS, Await(layer.asend(outcome) if error is None else layer.athrow(error))
    traceback = error and error.__traceback__
    try:
        return _YIELDED, generator.send(outcome) if error is None else generator.throw(error)
    except StopIteration as stop:
        return (_RAISED, stop) if stop is error else (_RETURNED, None)
    except BaseException as raised:
        return _RAISED, _same(raised, error, traceback)


def _settled(
    layer: Middleware, generator: Layer, end: str, item: Any, error: BaseException | None
) -> Generator[Request, Any, _End]:
    """Go on with a layer until it yields what is not a `Sleep`, returns or raises."""
    while True:
        if end is _WAITS:
            end, item = _awaited((yield item), error)
        elif end is not _YIELDED or item is None:
            return end, item
        elif isinstance(item, Sleep):
            answer = yield item
            error = answer.error if type(answer) is Raised else None
            end, item = _resumed(generator, None, error)
        elif isinstance(item, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", item)):
            return end, cast("Any", item)
        else:
            misuse = _misused(layer, f"yielded {item!r}: it may yield nothing, a mapping of values, or Sleep(seconds)")
            yield from _reproached(generator, misuse)
            return _RAISED, misuse


def _awaited(answer: Any, error: BaseException | None) -> _End:
    if type(answer) is not Raised:
        return _YIELDED, answer
    raised = answer.error
    if isinstance(raised, StopAsyncIteration) and raised is not error:
        return _RETURNED, None
    return _RAISED, _same(raised, error, error and error.__traceback__)


def _reproached(generator: Layer, misuse: MiddlewareError) -> Generator[Request, Any, None]:
    """Raise its misuse at the layer's own `yield`, so that it can clean up, and the traceback points there."""
    end, item = _resumed(generator, None, misuse)
    if end is _WAITS:
        yield item


def _same(raised: BaseException, error: BaseException | None, traceback: Any) -> BaseException:
    """Return what was raised, or the error itself if it only passed through a layer."""
    if raised is error:
        return raised.with_traceback(traceback)
    # A StopIteration that passes through a generator comes out as the cause of a RuntimeError (PEP 479).
    stopped = isinstance(error, (StopIteration, StopAsyncIteration)) and raised.__cause__ is error
    return error if error is not None and stopped and isinstance(raised, RuntimeError) else raised


def _misused(layer: Middleware, what: str) -> MiddlewareError:
    return MiddlewareError(f"the middleware {placed(layer)} {what}")


def merging(stage: Stage) -> Middleware:
    """Return the layer that merges the stage's data: inside `use_stages`, outside the stage's own middleware."""

    def merge(call: Call) -> Generator[None, None, None]:
        call.store.update(stage.data)
        yield

    return merge
