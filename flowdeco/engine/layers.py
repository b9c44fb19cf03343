"""Middleware: a generator function of one argument, the `Call`, around its target: a pipeline, a stage, an action (L7).

    def timed(call):
        started = perf_counter()
        yield                                   # run the target
        call.store["seconds"] = perf_counter() - started

A layer is at one of three points and makes one of three moves; `FOLLOWS` gives the consequence. It yields None, or a
mapping of values that are parameters in its target only; if it yields a `Sleep`, that is waited for, and then it
continues from there. A layer that returns before yielding skips its target, and may set the outcome of an action by
`call.outcome`.

`enter` opens layers from the outside in, `leave` resumes them from the inside out; between the two, the evaluation runs
the target. If there is nothing to wait for, as usual, they return at once; otherwise they return generators of requests.
"""

from __future__ import annotations

import types
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from flowdeco.engine.call import Call
from flowdeco.engine.outcome import NOTHING_DROPPED, Dropped, Outcome, Status
from flowdeco.engine.requests import Await, Deferred, Gate, Raised, Request, Sleep
from flowdeco.errors import Bail, MiddlewareError, StoreTypeError, Suspend, meant_by, shortened
from flowdeco.model.definitions import Action, Pipeline, Stage
from flowdeco.model.deltas import Delta, Mark
from flowdeco.model.keys import AnyKey, Key
from flowdeco.model.options import Middleware, placed
from flowdeco.model.sentinels import UNSET
from flowdeco.model.store import Store

if TYPE_CHECKING:
    from flowdeco.engine.changes import Watch
    from flowdeco.engine.messages import Messages
    from flowdeco.engine.waits import Waits

__all__ = ["FOLLOWS", "Layers", "enter", "leave", "merging"]

# The point that a layer is at
BEFORE: Final = "before its target"
SUCCESS: Final = "after a success of its target"
FAILURE: Final = "after a failure of its target"
# Its move
YIELDS: Final = "yields"
RETURNS: Final = "returns"
RAISES: Final = "raises"
# The consequence
RUNS: Final = "the target runs"
SKIP: Final = "the target is skipped"
PASS: Final = "the layers around it are resumed with the success"
FAIL: Final = "the layers around it are resumed with what it raised"
RECOVER: Final = "the failure is recovered"
AGAIN: Final = "the target runs again; all that the failed attempt wrote and inserted is dropped"
MISUSE: Final = "the layer gets an exception at its yield, which names the mistake"

FOLLOWS: Final = {
    (BEFORE, YIELDS): RUNS,
    (BEFORE, RETURNS): SKIP,
    (BEFORE, RAISES): FAIL,
    (SUCCESS, YIELDS): MISUSE,
    (SUCCESS, RETURNS): PASS,
    (SUCCESS, RAISES): FAIL,
    (FAILURE, YIELDS): AGAIN,
    (FAILURE, RETURNS): RECOVER,
    (FAILURE, RAISES): FAIL,
}

Layer: TypeAlias = "Generator[Any, Any, None] | AsyncGenerator[Any, Any]"
Move: TypeAlias = "tuple[str, Any]"  # the move of a layer, and the item it yields or raises
Decision: TypeAlias = "tuple[bool, BaseException | None]"  # whether the target is to run (again), and the failure left
Passage: TypeAlias = "Decision | Generator[Request, Any, Decision]"


# A layer that has yielded, and the state that another attempt restores: store, number of insertions, values.
Opened: TypeAlias = "tuple[Middleware, Any, Mark | None, int, Mapping[str, Any]]"


class Layers(Call):
    """The layers around one target, those that are open, and their decisions; the layers see it as their `Call`."""

    __slots__ = ("entered", "gate", "layers", "opened", "values")

    # Most layers need nothing more: to set all of these costs an action in a layer a tenth.
    failure: BaseException | None = None  # the last one
    failures: tuple[BaseException, ...] = ()  # of earlier attempts
    recovered = False
    repeats: tuple[int, ...] = ()  # of each layer, how often it has asked for another attempt
    dropped: Dropped = NOTHING_DROPPED  # errors of steps inside, in earlier attempts
    messages: Messages | None = None  # of an action, in all its attempts so far
    supplied: tuple[str, ...] = ()  # the names of values in the order in which they were yielded
    # Around a scope, so that it can be resumed: a mark from before its layers, the writes of each as it is entered,
    # and the functions that repeat the writes of each before the run was resumed, which replace those it makes now.
    mark: Mark | None = None
    entry_writes: list[Delta] | None = None
    replays: Iterator[Callable[[], object] | None] | None = None
    # In a durable run.
    watch: Watch | None = None  # over the values that they, and an action in them, may change in place
    waits: Callable[[], Waits] | None = None
    pause: BaseException | None = None  # the signal of a pause before the next attempt
    inside: Collection[tuple[str, int]] = ()  # the steps in it that had waited, and run again
    has_new_layers = False  # it is that of a resumed run, which had fewer
    base = 0  # the number of the outermost layer; around a run, they are counted from the inside, down from -2

    def __init__(
        self,
        run_id: str,
        store: Store,
        pipeline: Pipeline,
        stage: Stage | None,
        action: Action[..., Any] | None,
        layers: tuple[Middleware, ...],
        gate: Gate,
    ) -> None:
        self.run_id = run_id
        self.store = store
        self.pipeline = pipeline
        self.stage = stage
        self.action = action
        self.attempt = 1
        self.given = UNSET
        self.inserted = ()
        self.layers = layers
        self.gate = gate
        self.opened: list[Opened] = []
        self.entered = False  # the target has begun
        self.values: Mapping[str, Any] = {}  # given to the target by these layers and enclosing ones

    @property
    def repeats_before(self) -> int:
        """How often the layer that is being entered had asked for another attempt before the run was interrupted."""
        return sum(self.repeats[len(self.opened) : len(self.opened) + 1])

    @property
    def time_used(self) -> float:
        """How much of its timeout the layer that is being entered had used before the run was interrupted."""
        return 0.0 if self.waits is None else self.waits().time_used(self.who)

    def use_time(self, seconds: float) -> None:
        """Note how much of its timeout the layer has used, for when the run is resumed."""
        if self.waits is not None:
            self.waits().use_time(self.who, seconds)

    @property
    def who(self) -> int:
        """The number of the layer that is being entered or left."""
        return self.base + len(self.opened)

    @property
    def asked_again(self) -> int:
        """The number of the layer that has just asked for another attempt."""
        return self.who - 1

    def count_from_inside(self) -> None:
        """Number the layers so that those of the pipeline keep their numbers, however many the caller of a run gives."""
        self.base = -1 - len(self.layers)

    def stood_by(self) -> bool:
        """Whether the layers did nothing but surround a single attempt."""
        return self.entered and not (self.recovered or self.inserted or self.attempt > 1)

    def continue_from(self, earlier: Outcome) -> None:
        """Count on from the attempts before the run was interrupted; a resumed failure begins anew."""
        if earlier.status is not Status.FAILED:
            self.attempt, self.repeats, self.failures = earlier.attempts, earlier.repeats, tuple(earlier.failures)
            self.dropped = earlier.dropped
            if self.base:
                self.repeats = (*[0] * len(self.layers), *self.repeats)[-len(self.layers) :]

    def failed(self, error: BaseException) -> None:
        """Note the failure of the target, or of a layer."""
        self.failure, self.recovered, self.given = error, False, UNSET

    def go_back(self, opened: Opened, inserted: int) -> None:
        """Forget a failed attempt, except for units that the layer itself has inserted since."""
        self.inserted = self.inserted[: opened[3]] + self.inserted[inserted:]
        self.failures += (cast("BaseException", self.failure),)  # only a failure is followed by another attempt
        self.failure, self.recovered, self.given, self.entered, self.cached = None, False, UNSET, False, False
        self.attempt += 1
        place, count = len(self.opened), len(self.layers)
        repeats = [*self.repeats, *[0] * count]
        self.repeats = (*repeats[:place], repeats[place] + 1, *[0] * (count - place - 1))  # those inside it begin anew

    def open(self, layer: Middleware, generator: Any, values: Mapping[str, Any] | None) -> None:
        """Note that a layer has yielded."""
        opened = self.opened
        if self.mark is not None:
            self.note_entry_writes()
        # Around an action, only a further layer can write to the store before the action has ended.
        unwritten = self.action is not None and len(opened) + 1 == len(self.layers)
        mark = None if unwritten else self.store.mark()
        opened.append((layer, generator, mark, len(self.inserted), self.values))
        if values:
            self.values = {**self.values, **values}
            self.supplied += tuple(values)

    def note_entry_writes(self) -> None:
        """Note the writes of the layer that was entered, has skipped the target or raised, around a scope with a `mark`."""
        before = self.opened[-1][2] if self.opened else None
        since = cast("Mark", self.mark if before is None else before)
        reapply = None if self.replays is None else next(self.replays, None)
        if reapply is not None:
            self.store.take_back(since)
            reapply()
        watch, noted = self.watch, self.entry_writes
        if watch is not None and noted is not None:
            noted[len(self.opened) :] = [watch.with_changes(self.store.since(since))]  # another attempt replaces them
            watch.renew()

    def marks(self) -> list[Mark]:
        """Return the marks that its open layers have set in the store, the outermost first."""
        return [mark for _, _, mark, _, _ in self.opened if mark is not None]


Layers.__name__ = Layers.__qualname__ = "Call"  # the name that users know, for Python's own messages

_GENERATOR: Final[Any] = types.GeneratorType
_END: Final[Any] = object()
_DONE: Final[Decision] = (False, None)
_GO: Final[Decision] = (True, None)


def enter(layers: Layers) -> Passage:
    """Open the layers that are not open yet; return whether the target is to run, and the failure of a layer."""
    gate, opened, store = layers.gate, layers.opened, layers.store
    try:
        for layer in layers.layers[len(opened) :] if opened else layers.layers:
            generator: Any = None
            try:
                gate.open = True
                generator = layer(layers)
                if type(generator) is not _GENERATOR:
                    gate.open = False
                    return _enter(layers, layer, generator, _resumed(layers, generator, None, None))
                item = next(generator, _END)
                gate.open = False
            except BaseException as error:
                gate.open = False
                return False, _failed_to_open(layers, layer, generator, error)
            if item is _END:
                return _DONE
            if item is not None:
                return _enter(layers, layer, generator, (YIELDS, item))
            if layers.mark is not None:
                layers.open(layer, generator, None)
                continue
            # As `open`, which costs more.
            unwritten = layers.action is not None and len(opened) + 1 == len(layers.layers)
            mark = None if unwritten else store.mark()
            opened.append((layer, generator, mark, len(layers.inserted), layers.values))
    except KeyboardInterrupt as late:  # as the exception of a layer was being caught
        return False, late
    layers.entered = True
    return _GO


def _failed_to_open(layers: Layers, layer: Middleware, generator: Any, error: BaseException) -> BaseException:
    """Return the failure; if it came just as the layer had yielded, the layer is open, and will receive it."""
    if type(generator) is _GENERATOR and generator.gi_suspended:
        layers.open(layer, generator, None)
    return meant_by(error)


def _enter(layers: Layers, layer: Middleware, generator: Layer, move: Move) -> Generator[Request, Any, Decision]:
    did, item = yield from _resolved(layers, layer, generator, move, None)
    if FOLLOWS[BEFORE, did] is not RUNS:
        return False, item
    layers.open(layer, generator, item)
    entered = enter(layers)
    return entered if isinstance(entered, tuple) else (yield from entered)


def leave(layers: Layers, error: BaseException | None) -> Passage:
    """Resume the open layers; return whether the target is to run again, and the remaining failure.

    This is the short path: nothing failed, and every layer simply ends. `_leave` follows the table.
    """
    opened, gate, store = layers.opened, layers.gate, layers.store
    if error is not None:
        if isinstance(error, Bail):
            return _leave_after(layers, error)
        layers.failed(error)
        if opened:
            return _leave(layers, error)
        layers.has_ended = True
        return False, error
    while opened:
        _, generator, mark, _, values = opened[-1]
        if type(generator) is not _GENERATOR:
            return _leave(layers, None)
        if mark is not None:
            store.release(mark)
        outcome = layers.given
        try:
            try:
                gate.open = True
                # Most layers simply end, which costs less if no `StopIteration` is raised.
                item = next(generator, _END) if outcome is None or outcome is UNSET else generator.send(outcome)
                gate.open = False
            except StopIteration:
                gate.open = False
                item = _END
            except BaseException as raised:
                gate.open = False
                return _left_by(layers, generator, raised)
        except KeyboardInterrupt as late:
            return _left_by(layers, generator, late)
        if item is not _END:
            return _leave(layers, None, (YIELDS, item))
        opened.pop()
        layers.values = values
    layers.has_ended = True
    return _DONE


def _leave_after(layers: Layers, bail: Bail) -> Generator[Request, Any, Decision]:
    """Leave the layers after a `Bail`: to them, it is a success."""
    left = leave(layers, None)
    again, error = left if isinstance(left, tuple) else (yield from left)
    return again, error if again or error is not None else bail


def _left_by(layers: Layers, generator: Any, raised: BaseException) -> Generator[Request, Any, Decision]:
    """Leave the layers after an exception: of the innermost, or an interrupt just before that was resumed."""
    if not generator.gi_suspended:
        return _leave(layers, None, (RAISES, meant_by(raised)))
    layers.failed(raised)
    return _leave(layers, raised)


def _leave(layers: Layers, error: BaseException | None, move: Move | None = None) -> Generator[Request, Any, Decision]:
    store, bail = layers.store, None
    while layers.opened:
        opened = layers.opened.pop()
        layer, generator, mark, _, layers.values = opened
        inserted = len(layers.inserted)
        own: Mark | None = None
        if move is None:
            own = store.mark()  # the layer's own writes from here on stay; it knows their keys after its release, too
            move = _resumed(layers, generator, layers.outcome, error)
        did, item = yield from _resolved(layers, layer, generator, move, error)
        move = None
        if own is not None:
            store.release(own)
        follows = FOLLOWS[SUCCESS if error is None else FAILURE, did]
        is_pause = item is not None and item is layers.pause and error is not item  # not in a layer around it
        if follows is AGAIN or is_pause:
            if mark is not None:
                store.undo(mark, keep=own or ())
            layers.go_back(opened, inserted)
        if follows is AGAIN:
            layers.open(layer, generator, item)
            return _GO
        if mark is not None:
            store.release(mark)  # in a pause, it is undone already
        if follows is FAIL and isinstance(item, Bail):  # to the layers around it, a success
            bail, follows = item, RECOVER if error is not None else PASS
        if follows is RECOVER:
            layers.recovered, error = True, None
        elif follows is FAIL:
            error = cast("BaseException", item)
            layers.failed(error)
        elif follows is MISUSE:
            error = _misused(layer, "yielded again after a success: its target runs again only after a failure")
            error = yield from _reproached(layers, generator, error)
            layers.failed(error)
    layers.has_ended = True
    return False, bail if error is None else error


def _resumed(layers: Layers, generator: Layer, outcome: Any, error: BaseException | None) -> Move:
    """Resume a layer once; for an asynchronous one, return the request that resumes it."""
    if not isinstance(generator, types.GeneratorType):
        layer = cast("AsyncGenerator[Any, Any]", generator)
        return _WAITS, Await(Deferred(layer.asend, outcome) if error is None else Deferred(layer.athrow, error))
    gate, traceback = layers.gate, error and error.__traceback__
    try:
        try:
            gate.open = True
            item = generator.send(outcome) if error is None else generator.throw(error)
            gate.open = False
            return YIELDS, item
        except StopIteration:
            gate.open = False
            return RETURNS, None
        except BaseException as raised:
            gate.open = False
            if generator.gi_suspended:  # an interrupt, just as the layer had yielded: it is raised there
                return _resumed(layers, generator, None, raised)
            return RAISES, _same(raised, error, traceback)
    except KeyboardInterrupt as late:
        return RAISES, late


_WAITS: Final = "waits"


def _resolved(
    layers: Layers, layer: Middleware, generator: Layer, move: Move, error: BaseException | None
) -> Generator[Request, Any, Move]:
    """Continue with a layer until it yields something other than a `Sleep`, returns or raises."""
    did, item = move
    has_failed = error is not None
    while True:
        if did is _WAITS:
            traceback = error and error.__traceback__
            answer = yield item
            if type(answer) is Raised and _is_open(generator):  # an interrupt: it is raised at the layer's `yield`
                error = answer.error
                did, item = _resumed(layers, generator, None, error)
            else:
                did, item = _awaited(answer, error, traceback)
        elif did is not YIELDS or item is None:
            return did, item
        elif isinstance(item, Sleep):
            asked = item if layers.waits is None else _slept(layers, layers.waits(), item, has_failed)
            answer = (yield asked) if type(asked) is Sleep else asked
            error = answer.error if type(answer) is Raised else None
            did, item = _resumed(layers, generator, None, error)
        else:
            values = _by_name(layer, item)
            if not isinstance(values, Exception):
                return did, values
            return RAISES, (yield from _reproached(layers, generator, values))


def _by_name(layer: Middleware, item: Any) -> Mapping[str, Any] | Exception:
    """Return the values that a layer yields by their names, or the error of anything else."""
    if not isinstance(item, Mapping) or not all(isinstance(key, (str, Key)) for key in cast("Mapping[Any, Any]", item)):
        return _misused(
            layer,
            f"yielded {shortened(cast('object', item))}: it may yield nothing, a mapping of values, or Sleep(seconds)",
        )
    values: dict[str, Any] = {}
    try:
        for key, value in cast("Mapping[AnyKey, Any]", item).items():
            if isinstance(key, Key):
                key.check(value)
            values[key.name if isinstance(key, Key) else key] = value
    except StoreTypeError as error:
        return error
    return values


def _slept(layers: Layers, waits: Waits, sleep: Sleep, has_failed: bool) -> Sleep | Raised:
    """Return the sleep that is left for this leg of a durable run, or the signal that suspends it."""
    who = layers.who
    try:
        return Sleep(waits.pausing(who, sleep.seconds) if has_failed else waits.sleep(who, sleep.seconds))
    except Suspend as signal:
        if has_failed:
            waits.another_attempt(who)
            layers.pause = signal
        return Raised(signal)


def _is_open(generator: Any) -> bool:
    """Whether an asynchronous layer is still to be resumed, although its request has been answered."""
    return getattr(generator, "ag_frame", None) is not None and not generator.ag_running


def _awaited(answer: Any, error: BaseException | None, traceback: Any) -> Move:
    if type(answer) is not Raised:
        return YIELDS, answer
    raised = answer.error
    if isinstance(raised, StopAsyncIteration) and raised is not error:
        return RETURNS, None
    return RAISES, _same(raised, error, traceback)


def _reproached(layers: Layers, generator: Layer, misuse: BaseException) -> Generator[Request, Any, BaseException]:
    """Raise the misuse at the layer's own `yield`, so that it can clean up, and the traceback points there.

    Return it, or an interrupt that came meanwhile.
    """
    did, item = _resumed(layers, generator, None, misuse)
    if did is _WAITS:
        answer = yield item
        if type(answer) is Raised and _is_open(generator):
            return (yield from _reproached(layers, generator, answer.error))
        did, item = _awaited(answer, misuse, None)
    return item if did is RAISES and not isinstance(item, Exception) else misuse


def _same(raised: BaseException, error: BaseException | None, traceback: Any) -> BaseException:
    """Return the exception that was raised, or the error itself, with its traceback, if it only passed through a layer."""
    raised = meant_by(raised)
    if raised is error:
        return raised if traceback is None else raised.with_traceback(traceback)
    # A StopIteration that passes through a generator comes out as the cause of a RuntimeError (PEP 479).
    stopped = isinstance(error, (StopIteration, StopAsyncIteration)) and raised.__cause__ is error
    return error if error is not None and stopped and isinstance(raised, RuntimeError) else raised


def _misused(layer: Middleware, how: str) -> MiddlewareError:
    return MiddlewareError(f"the middleware {placed(layer)} {how}")


def merging(stage: Stage) -> Middleware:
    """Return the layer that merges the stage's data: inside `use_stages`, outside the stage's own middleware."""

    def merge(call: Call) -> Generator[None, None, None]:
        call.store.update(stage.data)
        yield

    merge.supplies = False  # type: ignore[attr-defined]  # nothing that an insertion could count on is missing before  # pyright: ignore[reportFunctionMemberAccess]
    return merge
