"""A unit runs and shows itself: the methods that every definition has, and the options of a run, declared once.

The model knows neither drivers nor views. The methods reach them through `flowdeco.running`, the one module that is
imported from below: late, when a method is called, and for the types that the methods return.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypedDict, cast

from typing_extensions import Unpack

from flowdeco.errors import Problem, suggestion
from flowdeco.events import Watcher
from flowdeco.model.options import Duration, Middleware, Shown
from flowdeco.model.tuples import NamedTuple

if TYPE_CHECKING:
    import os
    from concurrent.futures import Executor

    from flowdeco.running import Journal, Plan, Run

    class _SharedOptions(TypedDict, total=False):
        """The keyword options that `run` and `resume` share."""

        use: Iterable[Middleware]
        observers: Iterable[Callable[[Any], object]]
        skip: Iterable[str]
        executor: Executor | None
        journal: Journal | str | os.PathLike[str] | None
        check: bool
        history: int | None
        progress: Shown
        limit: int | None
        timeout: Duration | None
        suspend_after: Duration

    class ResumeOptions(_SharedOptions, total=False):
        """The keyword options of `resume` and `aresume`."""

        error: BaseException | Mapping[str, BaseException] | None

    class RunOptions(_SharedOptions, total=False):
        """The keyword options of `run` and `arun`."""

        run_id: str | None
        if_exists: Literal["error", "resume"]


__all__ = [
    "TO_RESUME",
    "TO_RUN",
    "ClockLike",
    "OnChange",
    "Options",
    "ResumeOptions",
    "RunOptions",
    "Runnable",
    "Shows",
    "run_options",
]


OnChange: TypeAlias = Literal["error", "ignore", "rerun"]


class ClockLike(Protocol):
    """A clock of tests: its time in seconds, in POSIX seconds when that was 0, and its ways to sleep."""

    epoch: float

    def time(self) -> float:
        """Return the time."""
        ...

    def sleep(self, seconds: float, /) -> object:
        """Let this much time pass."""

    def sleeping(self, seconds: float, /) -> Awaitable[object]:
        """Let this much time pass while it is awaited."""
        ...


class Options(NamedTuple):
    """The options of one run, with defaults for those not given.

    Two are not for users: `clock` replaces the clock of the run, for tests; `watcher` makes the observer that shows the
    progress, which `running` knows and the drivers do not.
    """

    use: Iterable[Middleware] = ()
    observers: Iterable[Callable[[Any], object]] = ()
    skip: Iterable[str] = ()
    executor: Executor | None = None
    journal: Journal | str | os.PathLike[str] | None = None
    run_id: str | None = None
    if_exists: Literal["error", "resume"] = "error"
    check: bool = True
    history: int | None = None
    progress: Shown = None
    limit: int | None = None
    timeout: Duration | None = None
    suspend_after: Duration = 60.0
    error: BaseException | Mapping[str, BaseException] | None = None
    clock: ClockLike | None = None
    watcher: Callable[[], Watcher | None] | None = None


TO_RUN: Final = tuple(name for name in Options._fields if name not in ("error", "clock", "watcher"))
TO_RESUME: Final = tuple(name for name in Options._fields if name not in ("run_id", "if_exists", "clock", "watcher"))


def run_options(method: str, given: Mapping[str, Any], *, resumes: bool = False) -> Options:
    """Return the options given to a method; a `TypeError` for a name that is not one of the options."""
    __tracebackhide__ = True
    known = TO_RESUME if resumes else TO_RUN
    for name in given:
        if name not in known:
            inputs = f" If it is an input, write {method}({{{name!r}: ...}})"
            if name == "inputs":
                first = "run_id, " if resumes else ""
                raise TypeError(f"{method}() takes the inputs without a name: write {method}({first}{{...}})")
            raise TypeError(f"{method}() has no option {name!r}. {suggestion(name, known)}{inputs}")
    return Options(**given)


class Shows:
    """Things that a notebook renders as cards."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return cast("str", _running().html_of(self))


class Runnable(Shows):
    """The methods by which a unit runs, resumes, checks, and shows itself."""

    __slots__ = ()

    def run(self, inputs: Mapping[str, Any] | None = None, /, **options: Unpack[RunOptions]) -> Run:
        """Evaluate the unit and return the `Run`.

        `inputs` are merged into the store first. A failure raises the user's original exception, with a note that
        names the place. Raises `WiringError` before the run if nothing can supply some parameter. The options:

        - `use=[...]`: middleware around the whole run.
        - `observers=[...]`: callables that receive each event.
        - `skip=[...]`: selectors of the parts not to run: `"stage"`, `"stage/action"`, `"tag:slow"`.
        - `executor=None`: a `concurrent.futures.Executor` for the calls of parallel groups.
        - `journal=None`: a journal, or the path of one; the run can then be resumed after a crash.
        - `run_id=None`: the id of the run; by default a new one.
        - `if_exists="error"`: with "resume", a run that already has this `run_id` in the journal is continued, or returned
          if it has finished; otherwise it is a `RunExistsError`.
        - `check=True`: with False, a failed run is returned with its `error` instead of raising it; an error before the
          first step, such as a `WiringError` or a refused resume, is raised all the same.
        - `history=None`: the number of stage records to keep, the latest ones.
        - `progress=None`: show the progress: True, a progress bar, or a function of `(done, known, current)`.
        - `limit=None`: the number of action calls that may run at once, in all parallel groups together.
        - `timeout=None`: seconds, or a `timedelta`, until the run fails with a `TimeoutError`; pass it again on resume.
        - `suspend_after=60.0`: in a durable run, a longer sleep (`Sleep`, `ctx.sleep`) suspends the run
          until it is due.
        """
        __tracebackhide__ = True
        return cast("Run", _running().run(self, inputs, run_options("run", options)))

    def arun(
        self, inputs: Mapping[str, Any] | None = None, /, **options: Unpack[RunOptions]
    ) -> Coroutine[Any, Any, Run]:
        """Evaluate the unit in the running event loop; the same as `run` in every other way (L8)."""
        __tracebackhide__ = True
        return cast("Coroutine[Any, Any, Run]", _running().arun(self, inputs, run_options("arun", options)))

    def resume(
        self,
        run: Run | str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        on_change: OnChange = "error",
        from_stage: str | None = None,
        **options: Unpack[ResumeOptions],
    ) -> Run:
        """Continue a run that failed, was suspended, cancelled or killed; completed actions are not called again.

        The run is an id in a journal, or a `Run` in memory. `inputs` are added to those it has. `on_change` applies
        if completed actions have different code now, or stages no longer match: "error" reports them, "ignore"
        continues all the same, "rerun" runs again from the first of them. `from_stage` forks a new run that continues
        at that stage. `error` answers the open question (`ctx.wait_for`) with an exception, several of them as
        `{key: exception}`. The other options are those of `run`, except `run_id` and `if_exists`. Raises
        `RunNotFoundError`, `RunBusyError`, `CodeChangedError`, and `StoreTypeError` for an answer of a wrong type.
        """
        __tracebackhide__ = True
        chosen = run_options("resume", options, resumes=True)
        return cast("Run", _running().resume(self, run, inputs, chosen, on_change, from_stage))

    def aresume(
        self,
        run: Run | str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        on_change: OnChange = "error",
        from_stage: str | None = None,
        **options: Unpack[ResumeOptions],
    ) -> Coroutine[Any, Any, Run]:
        """Continue a run in the running event loop; the same as `resume` in every other way (L8)."""
        __tracebackhide__ = True
        chosen = run_options("aresume", options, resumes=True)
        resumed = _running().aresume(self, run, inputs, chosen, on_change, from_stage)
        return cast("Coroutine[Any, Any, Run]", resumed)

    def validate(self, inputs: Iterable[str] | Mapping[str, Any] = ()) -> list[Problem]:
        """Return the wiring problems that can be seen without running anything; `inputs` names the keys of the inputs."""
        return cast("list[Problem]", _running().validate(self, inputs))

    def plan(self) -> Plan:
        """Return the stages and actions that will run, as far as they are known without running anything.

        It prints as text, renders in notebooks, and has `mermaid()` and `html()`; `plan.diff(run.ran())` lists
        the differences of a run.
        """
        return cast("Plan", _running().plan(self))


def _show_options() -> None:
    """Have each method show its options by name, with their defaults, in `help` and editors."""
    named = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for (name, default), annotation in zip(
            Options._field_defaults.items(), Options.__new__.__annotations__.values(), strict=True
        )
    }
    methods: list[Any] = [Runnable.run, Runnable.arun, Runnable.resume, Runnable.aresume]
    for method, options in zip(methods, (TO_RUN, TO_RUN, TO_RESUME, TO_RESUME), strict=True):
        signature = inspect.signature(method)
        own = list(signature.parameters.values())[:-1]
        method.__signature__ = signature.replace(parameters=[*own, *map(named.__getitem__, options)])


_show_options()


def _running() -> types.ModuleType:
    # The import that points upwards: drivers and views are loaded when a definition is run or shown.
    from flowdeco import running

    return running
