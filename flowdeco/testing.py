"""Tools for tests of flows: a runner with its own clock, and a comparison of the stages that ran with expected ones.

With pytest, the runner is the fixture `flow_runner`. Nothing here needs pytest.

>>> from flowdeco import Sleep, action
>>> def patient(call):
...     yield Sleep(600)
...     yield
>>> greet = action(lambda name: f"hello {name}", name="greet", use=[patient])
>>> runner = FlowRunner()
>>> run = runner.run(greet, {"name": "Ada"})  # does not take ten minutes
>>> assert_ran(run, ["greet"])
>>> runner.calls[0].inputs, runner.calls[0].returned, runner.slept
({'name': 'Ada'}, 'hello Ada', [600])
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from inspect import isgenerator
from itertools import groupby, product
from operator import itemgetter
from typing import Any, Final, TypeAlias, cast

from flowdeco import running
from flowdeco.drivers import sync
from flowdeco.drivers.in_flight import InFlight
from flowdeco.drivers.interrupts import Interrupts
from flowdeco.drivers.loop_thread import LoopThread
from flowdeco.drivers.start import Evaluated, begin
from flowdeco.drivers.start import resume as continued
from flowdeco.drivers.threads import timed_out
from flowdeco.engine.requests import Await, Gate, Request, Sleep
from flowdeco.engine.runs import Run, StageRecord, Status
from flowdeco.engine.schedule import Task
from flowdeco.errors import DefinitionError, shortened, suggestion, without_addresses
from flowdeco.events import ActionStarted
from flowdeco.executors import serial
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Template, Unit, as_pipeline
from flowdeco.model.options import Duration, in_seconds
from flowdeco.model.runnable import OnChange, run_options
from flowdeco.model.runnable import Options as RunOptions
from flowdeco.model.steps import Step

__all__ = ["Call", "Clock", "FlowRunner", "assert_ran"]


# The clock.


class Clock:
    """A clock that moves only when it is advanced: `now` is in seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.epoch = time.time()  # in POSIX seconds, at its 0
        self.slept: list[float] = []  # how long actions slept, by `ctx.sleep`

    def time(self) -> float:
        """Return the time, as `time.monotonic` does."""
        return self.now

    def advance(self, seconds: Duration) -> None:
        """Let this much time pass at once, in seconds or as a `timedelta`."""
        passed = in_seconds(seconds)
        if passed is None:
            raise TypeError(f"the clock moves by a number of seconds or a timedelta, not {shortened(seconds)}")
        if passed < 0:
            raise ValueError(f"the clock only moves forward: {shortened(seconds)} seconds are not enough")
        self.now += passed

    def sleep(self, seconds: float) -> None:
        """Let this much time pass, in place of `time.sleep`."""
        self.advance(seconds)
        self.slept.append(seconds)

    def sleeping(self, seconds: float) -> Awaitable[None]:
        """Let this much time pass when it is awaited, in the event loop of the runner."""
        self.slept.append(seconds)
        return asyncio.sleep(seconds)

    def __repr__(self) -> str:
        return f"<Clock at {self.now:g} s>"


class _Selector(selectors.DefaultSelector):
    """Where an event loop would wait for its next timer, the clock jumps to it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.elsewhere = 0  # calls in threads, which take real time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        # The loop itself has one file, by which other threads wake it; any other belongs to a real connection.
        patience = timeout if self.elsewhere else 0.05 if len(self.get_map()) > 1 else 0
        events = super().select(min(timeout, patience))
        if not events:
            self.clock.advance(timeout)
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jumping = _Selector(clock)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._clock.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        self._jumping.elsewhere += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: object) -> None:
        self._jumping.elsewhere -= 1


# A driver in one thread: the event loop runs only while there is nothing else to do.


class _LoopHere(LoopThread):
    """The event loop of a run, in the thread of the run."""

    def __init__(self, clock: Clock) -> None:
        self.loop = _Loop(clock)

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.loop.run_until_complete(asyncio.sleep(0))  # lanes end
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            self.loop.close()

    def run_until(self, done: Callable[[], object]) -> None:
        """Run the loop until a condition is true; the code that makes it true stops the loop."""
        while not done():
            self.loop.run_forever()


class _InFlightHere(InFlight):
    """Performs the calls of branches in the calling thread, one after the other."""

    def __init__(self, performer: _Performer, resources: ExitStack, runner: FlowRunner) -> None:
        super().__init__(performer, serial(), resources)
        self._runner = runner

    def _begin(
        self, ticket: int, request: Request, context: contextvars.Context, task: Task
    ) -> Callable[[], object] | None:
        return super()._begin(ticket, self._runner.recorded(request), context, task)


class _Performer(sync.Performer):
    """Performs everything in the calling thread, one after the other, and waits by the clock of the runner."""

    def __init__(self, resources: ExitStack, interrupts: Interrupts, options: RunOptions, runner: FlowRunner) -> None:
        super().__init__(resources, interrupts, options)
        self._runner = runner
        self._clock = runner.clock
        self._calls = _InFlightHere(self, resources, runner)
        self._came: list[Any] = []

    def perform(self, request: Request) -> Any:
        if isinstance(request, Sleep):
            self._runner.slept.append(request.seconds)
        return super().perform(request)

    def sleep(self, seconds: float) -> None:
        self._clock.advance(seconds)

    def awaited(self, request: Await) -> Any:
        loop, came = self.loop(), self._came
        lane = self.run_lane(self._answered)
        lane.ask(request)
        interrupt: BaseException | None = None
        while not came:
            try:
                loop.run_until(lambda: came)
            except (KeyboardInterrupt, SystemExit) as error:
                interrupt = error
                lane.cancel()
        lane.take_over()
        answer = came.pop()
        if interrupt is not None:
            raise interrupt
        return answer

    def _answered(self, answer: Any) -> None:
        self._came.append(answer)
        self.loop().loop.stop()

    def loop(self) -> _LoopHere:
        if self._loop_thread is None:
            self._loop_thread = self.resources.enter_context(_LoopHere(self._clock))
        return cast("_LoopHere", self._loop_thread)

    def in_flight(self) -> InFlight:
        return self._calls

    def look(self) -> None:
        if self.reported:
            return
        loop, left = self.loop(), self.in_flight().left()
        if left is None:
            loop.run_until(lambda: self.reported)
            return
        alarm = loop.loop.call_later(left, loop.loop.stop)
        loop.run_until(lambda: self.reported or alarm.when() <= self._clock.now)
        alarm.cancel()

    def report(self, ticket: int, answer: Any) -> None:
        self.reported.append((ticket, answer))
        if self._loop_thread is not None:
            loop = self.loop().loop
            if loop.is_running():
                loop.stop()

    def later(self, seconds: float, ticket: int, answer: Any) -> None:
        self._runner.slept.append(seconds)
        self.loop().loop.call_later(seconds, self.report, ticket, answer)


# Calls.


@dataclass(slots=True, repr=False)
class Call:
    """A call of an action's function: `inputs` are its arguments by name, without a `ctx`.

    `returned` is its result, for a generator the list of yielded values; `raised` the exception, if it raised one.
    Each attempt of a retry is a call. Equal to another call of the same action with the same inputs.
    """

    stage: str
    action: str
    inputs: Mapping[str, Any]
    returned: Any = field(default=None, compare=False)
    raised: BaseException | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.inputs.items())
        came = f"raised {self.raised!r}" if self.raised is not None else repr(self.returned)
        return without_addresses(f"<{self.stage}/{self.action}({given}): {came}>")


class _NoCalls(list[Call]):
    """No calls of an action: an empty list, whose errors name the actions that were called."""

    def __init__(self, name: str, calls: list[Call]) -> None:
        super().__init__()
        names = {call.action for call in calls}
        if "/" in name:
            names = {f"{call.stage}/{call.action}" for call in calls}
        self._message = f"no calls of {name!r}. {suggestion(name, names, 'There were calls of')}"

    def __getitem__(self, index: Any) -> Any:
        __tracebackhide__ = True
        if isinstance(index, slice):
            return []
        raise IndexError(self._message)

    def __repr__(self) -> str:
        return f"<{self._message}>"


_STAGE: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("flowdeco.testing.stage", default="")


def _note_stage(event: Any) -> None:
    if isinstance(event, ActionStarted):
        _STAGE.set(event.stage)  # in the context of the branch


class FlowRunner:
    """Runs flows in tests: in the calling thread, one call after another, on its own clock.

    A `Sleep` of a middleware, such as the wait of a `retry`, takes no time; nor do `asyncio.sleep` and the timeouts of
    coroutines. A sync action times out if the clock is advanced beyond its `timeout` during the call. The times in the
    records are those of the clock.

    In a durable run, too, the clock jumps over sleeps instead of suspending the run; questions suspend it. Between two runs,
    `clock.advance` lets the time to answer pass.

    `runs` are all runs so far, `calls` the calls of their actions, `slept` the waiting times of middleware and of
    `ctx.sleep`, in seconds.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.runs: list[Run] = []
        self.calls: list[Call] = []
        self.slept = self.clock.slept

    def run(self, flow: Unit, inputs: Mapping[str, Any] | None = None, /, **options: Any) -> Run:
        """Evaluate a unit; the options are those of `flow.run`, except `executor`."""
        __tracebackhide__ = True
        chosen = self._options(options)
        return self._in_a_free_thread(partial(begin, as_pipeline(flow), inputs, chosen), chosen)

    __call__ = run

    async def arun(self, flow: Unit, inputs: Mapping[str, Any] | None = None, /, **options: Any) -> Run:
        """Evaluate a unit in an async test, without blocking its event loop; the actions have their own loop."""
        __tracebackhide__ = True
        return await asyncio.to_thread(self.run, flow, inputs, **options)

    def resume(
        self, flow: Unit, run: Run | str, inputs: Mapping[str, Any] | None = None, /, *, on_change: OnChange = "error",
        from_stage: str | None = None, **options: Any,
    ) -> Run:  # fmt: skip
        """Resume a run; the options are those of `flow.resume`, except `executor`."""
        __tracebackhide__ = True
        chosen = self._options(options, resumes=True)
        start = partial(continued, as_pipeline(flow), run, inputs, chosen, on_change, from_stage)
        return self._in_a_free_thread(start, chosen)

    async def aresume(
        self, flow: Unit, run: Run | str, inputs: Mapping[str, Any] | None = None, /, **options: Any
    ) -> Run:
        """Resume a run in an async test, as `arun` does."""
        __tracebackhide__ = True
        return await asyncio.to_thread(self.resume, flow, run, inputs, **options)

    def calls_of(self, name: str) -> list[Call]:
        """Return the calls of an action, given as `"action"` or `"stage/action"`; if there were none, an empty list."""
        found = [call for call in self.calls if name in (call.action, f"{call.stage}/{call.action}")]
        return found or _NoCalls(name, self.calls)

    def _options(self, options: dict[str, Any], *, resumes: bool = False) -> RunOptions:
        __tracebackhide__ = True
        for name in ("executor", "clock"):
            if name in options:
                raise DefinitionError(
                    f"a FlowRunner takes no {name}: it calls one action after another, by its own clock"
                )
        method = "resume" if resumes else "run"
        chosen = running.watched(run_options(method, options, resumes=resumes)._replace(clock=self.clock))
        return chosen._replace(observers=[_note_stage, *chosen.observers])

    def _in_a_free_thread(self, start: Callable[[Gate], Evaluated | Run], options: RunOptions) -> Run:
        """Perform here, or, where an event loop is running (in an async test), in another thread."""
        __tracebackhide__ = True
        if asyncio._get_running_loop() is None:
            return self._performed(start, options)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, self._performed, start, options).result()

    def _performed(self, start: Callable[[Gate], Evaluated | Run], options: RunOptions) -> Run:
        __tracebackhide__ = True

        def watched(gate: Gate) -> Evaluated | Run:
            __tracebackhide__ = True
            evaluated = start(gate)
            run, evaluation = evaluated if isinstance(evaluated, tuple) else (evaluated, None)
            self.runs.append(run)
            return run if evaluation is None else (run, self._watched(evaluation))

        return sync.perform(
            watched, options, lambda resources, interrupts, given: _Performer(resources, interrupts, given, self)
        )

    def _watched(self, evaluation: Generator[Request, Any, None]) -> Generator[Request, Any, None]:
        answer: Any = None
        with closing(evaluation):
            while True:
                try:
                    request = evaluation.send(answer)
                except StopIteration:
                    return
                answer = yield self.recorded(request)

    def recorded(self, request: Request) -> Request:
        """Return the request with a call that is remembered, and that needs no thread."""
        if type(request) is not tuple or not isinstance(request[0], Step):
            return request
        step, args, kwargs = request[0], request[1], request[2]
        same = copy.copy(step)
        if step.is_async:
            same.function = self._remembering_async(step)
        else:
            same.function = self._remembering(step)
            same.timeout = None
        return same, args, kwargs

    def _call(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        wanted = [each for each in step.inputs if not each.by_keyword]
        given = {each.name: value for each, value in zip(wanted, args, strict=False) if not each.context}
        context = {each.name for each in step.inputs if each.context}
        given.update((name, value) for name, value in kwargs.items() if name not in context)
        call = Call(_STAGE.get(), step.name, dict(given))
        self.calls.append(call)
        return call

    def _remembering(self, step: Step) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            call, began = self._call(step, args, kwargs), self.clock.now
            try:
                value = step.function(*args, **kwargs)
                if step.timeout is not None and self.clock.now - began > step.timeout:
                    raise timed_out(step.name, step.timeout)
            except BaseException as error:
                call.raised = error
                raise
            if isgenerator(value):
                call.returned = items = list[Any]()
                return _tee(cast("Generator[Any, Any, Any]", value), items)
            call.returned = value
            return value

        return function

    def _remembering_async(self, step: Step) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def function(*args: Any, **kwargs: Any) -> Any:
            call = self._call(step, args, kwargs)
            try:
                call.returned = await step.function(*args, **kwargs)
            except BaseException as error:
                call.raised = error
                raise
            return call.returned

        return function


def _tee(generator: Generator[Any, Any, Any], items: list[Any]) -> Generator[Any, Any, Any]:
    while True:
        try:
            item = next(generator)
        except StopIteration as stop:
            return stop.value
        items.append(item)
        yield item


# The comparison of stages.


def assert_ran(run: Run, expected: Iterable[Any]) -> None:
    """Raise an `AssertionError` that shows the difference, unless exactly these stages ran, in this order.

    `expected` are names of stages, or units: pipelines and groups stand for the stages in them. A `*` in a name
    matches any text, and such a name matches one or more consecutive stages: `"process[*]"` all stages of the template
    `process`, `"*"` any stages. Everything else is taken literally, brackets too. A stage that was skipped
    did not run; one that failed did.
    """
    __tracebackhide__ = True
    if not isinstance(cast("object", run), Run):
        raise TypeError(f"assert_ran takes a run, as flow.run() returns it, not {shortened(run)}")
    if isinstance(expected, (str, Action, Stage)) or not isinstance(cast("object", expected), Iterable):
        raise TypeError(f"assert_ran takes a list of names or units: write [{shortened(expected)}]")
    patterns: list[str] = []
    for each in expected:
        patterns += _patterns(each)
    ran = [record for record in run.stages if record.status is not Status.SKIPPED]
    lines = _compared(patterns, ran)
    if any(not line.startswith(" ") for line in lines):
        skipped = {record.name for record in run.stages if record.status is Status.SKIPPED}
        raise AssertionError(_report(run, lines, skipped))


def _patterns(expected: Any) -> Iterator[str]:
    __tracebackhide__ = True
    if isinstance(expected, (Pipeline, Parallel)):
        for unit in expected.units:
            yield from _patterns(unit)
        return
    name = expected if isinstance(expected, str) else getattr(expected, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"assert_ran expects names of stages, or units, not {shortened(expected)}")
    if isinstance(expected, Template):
        raise TypeError(f"{name} is a stage template: write '{name}[*]' for its stages, or {name}(...) for one of them")
    yield name


def _matches(pattern: str, name: str) -> bool:
    """Whether a name is of that form, `*` standing for any text."""
    if "*" not in pattern:
        return name == pattern
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def _compared(patterns: list[str], ran: list[StageRecord]) -> list[str]:
    """Return the lines of the comparison with the fewest differences: "  " as expected, "- " missing, "+ " too many."""
    names = [record.name for record in ran]
    least = min(len(patterns), len(names))
    head = next((at for at in range(least) if not _same(patterns[at], names[at])), least)
    least -= head
    tail = next((at for at in range(least) if not _same(patterns[-1 - at], names[-1 - at])), least)
    middle = _cheapest(patterns[head : len(patterns) - tail], names[head : len(names) - tail])
    return _lines(patterns, ran, [_BEGIN] * head + middle + [_BEGIN] * tail)


def _same(pattern: str, name: str) -> bool:
    return pattern == name and "*" not in pattern


_BEGIN, _CONTINUE, _MISSING, _EXTRA = range(4)


def _cheapest(patterns: list[str], names: list[str]) -> list[int]:
    """Return the steps with the fewest differences: begin a pattern with the next name, continue it, skip either."""
    cheapest: dict[_At, tuple[int, int, _At]] = {}  # the cost of the rest, its first step, and the place after that
    for at in product(range(len(patterns), -1, -1), range(len(names), -1, -1), (0, 1)):
        options = [(cost + cheapest[after][0], step, after) for cost, step, after in _steps(patterns, names, at)]
        cheapest[at] = min(options, default=(0, _EXTRA, at), key=itemgetter(0))
    at = (0, 0, 0)
    steps: list[int] = []
    while at[:2] != (len(patterns), len(names)):
        _, step, at = cheapest[at]
        steps.append(step)
    return steps


# The next pattern, the next name, and whether the last pattern may take more names.
_At: TypeAlias = tuple[int, int, int]


def _steps(patterns: list[str], names: list[str], at: _At) -> Iterator[tuple[int, int, _At]]:
    """Yield the possible steps, each with its cost before it and the place after it, the preferred one first."""
    i, j, within = at
    if j < len(names) and within and i and "*" in patterns[i - 1] and _matches(patterns[i - 1], names[j]):
        yield 0, _CONTINUE, (i, j + 1, 1)
    if i < len(patterns):
        if j < len(names) and _matches(patterns[i], names[j]):
            yield 0, _BEGIN, (i + 1, j + 1, 1)
        yield 1, _MISSING, (i + 1, j, 0)
    if j < len(names):
        yield 1, _EXTRA, (i, j + 1, 0)


def _lines(patterns: list[str], ran: list[StageRecord], steps: list[int]) -> list[str]:
    width = max(map(len, patterns), default=0)
    coming, wanted = iter(ran), iter(patterns)
    lines: list[str] = []
    matched: list[str] = []
    extra: list[str] = []
    pattern = ""

    def close() -> None:
        if matched:
            alone = matched == [pattern]
            lines.append(f"  {pattern}" if alone else f"  {pattern.ljust(width)}  {', '.join(_folded(matched, 4))}")
            matched.clear()
        lines.extend(f"+ {line}" for line in _folded(extra, 10))
        extra.clear()

    for step in steps:
        if step != _CONTINUE and not (step == _EXTRA and extra):
            close()
        if step == _MISSING:
            lines.append(f"- {next(wanted)}")
        elif step == _EXTRA:
            record = next(coming)
            by = f"  (inserted by {record.inserted_by})" if record.inserted_by else ""
            extra.append(f"{record.name}{by}")
        else:
            if step == _BEGIN:
                pattern = next(wanted)
            matched.append(next(coming).name)
    close()
    return lines


def _folded(items: list[str], most: int) -> list[str]:
    """Return the items; if there are very many, the first ones and the last."""
    if len(items) <= most + 1:
        return items
    return [*items[: most - 1], f"… {len(items) - most} more", items[-1]]


def _hint(run: Run, missing: str, skipped: set[str]) -> str:
    """Return a possible reason why an expected name is not among the stages."""
    if any(_matches(missing, name) for name in skipped):
        return "  (skipped)"
    if any(record.name.startswith(f"{missing}[") for record in run.stages):
        return f"  (a stage template: write '{missing}[*]')"
    scopes = [record.scope for record in run.stages]
    while any(scopes):
        if any(scope is not None and scope.name == missing for scope in scopes):
            return "  (a group or pipeline: give its stages, or itself instead of its name)"
        scopes = [scope.outer for scope in scopes if scope is not None]
    actions = ((record.name, action.name) for record in run.stages for action in record.actions)
    if any(missing in (action, f"{stage}/{action}") for stage, action in actions):
        return "  (an action, and only stages are compared)"
    return ""


_CONTEXT: Final = 3


def _near(lines: list[str]) -> Iterator[str]:
    """Yield the differing lines with a few lines around them, and the number of lines left out."""
    differ = [at for at, line in enumerate(lines) if not line.startswith(" ")]
    shown = {at + near for at in differ for near in range(-_CONTEXT, _CONTEXT + 1)}
    for is_shown, run in groupby(range(len(lines)), shown.__contains__):
        found = [lines[at] for at in run]
        yield from found if is_shown or len(found) == 1 else [f"  … {len(found)} as expected"]


def _report(run: Run, lines: list[str], skipped: set[str]) -> str:
    shown = [f"{line}{_hint(run, line[2:], skipped)}" if line.startswith("- ") else line for line in _near(lines)]
    why = f": {run.reason}" if run.reason else ""
    if run.error is not None:
        notes = getattr(run.error, "__notes__", [])
        why = f": {type(run.error).__name__}: {run.error}{f', {notes[0]}' if notes else ''}"
    head = "other stages ran than expected (- expected, + ran):"
    return "\n".join([head, *(f"  {line}" for line in shown), f"the run {run.status}{why}"])
