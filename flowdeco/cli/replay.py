"""The command `replay`: one recorded step is called again, with its arguments and today's code, and compared.

The journal is read, and never written: the requests to write are not performed (`_Performer`).
"""

from __future__ import annotations

import inspect
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple, cast

from flowdeco import durable
from flowdeco.cli import report
from flowdeco.cli.exit_codes import FAILED, FINE
from flowdeco.cli.inputs import UsageError
from flowdeco.cli.journals import journal_of, journal_path
from flowdeco.cli.json_output import plain, print_json, repr_of
from flowdeco.cli.process import Cancelling, reserved_stdout
from flowdeco.cli.walk import walk
from flowdeco.cli.workflow import load_recorded_workflow, stand_in_for_main
from flowdeco.drivers.interrupts import Interrupts, is_cancellation
from flowdeco.drivers.sync import Performer
from flowdeco.engine.branch import Branch
from flowdeco.engine.context import Context
from flowdeco.engine.evaluation import evaluate_run
from flowdeco.engine.generations import generations
from flowdeco.engine.journal import Codec, Remembered, Row
from flowdeco.engine.one_step import OneStep, Place, Witness, differences
from flowdeco.engine.outcome import Outcome, Outcomes, Status
from flowdeco.engine.reading import given_inputs
from flowdeco.engine.requests import CAUGHT_UP, Begin, Raised, Request, Save, Sleep
from flowdeco.engine.rows import outcomes
from flowdeco.engine.runs import Run
from flowdeco.engine.terms import Terms
from flowdeco.engine.waits import starting_point
from flowdeco.errors import cut, suggestion, told
from flowdeco.model.definitions import Pipeline
from flowdeco.model.runnable import Options
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Step
from flowdeco.model.store import Store

__all__ = ["replay"]


def replay(options: Namespace) -> int:
    """Call a recorded step again, and compare the outcome."""
    if len(options.run) < 2:
        raise UsageError(f"name the step as well: flowdeco replay {options.run[0]} STAGE/ACTION")
    *options.run, wanted = options.run
    path = journal_path(options)
    workflow, info = load_recorded_workflow(options, path)
    journal = journal_of(path, info)
    flow = workflow.only(options.only)
    stand_in_for_main(workflow.entry)
    found = _find(journal.read(info.id), journal.codec, wanted, options.nth, info.id)
    call, cancelling = _Call(options.pdb), Cancelling()
    with cancelling, reserved_stdout(options.json):
        run, now = _performed(found, flow, journal, call)
    if is_cancellation(cast("Any", run.error)):
        return cancelling.code
    if call.is_quit:
        report.say("you quit the debugger: nothing was compared")
        return FAILED
    if now is None:
        raise run.error if run.error is not None else UsageError(f"the pipeline does not lead to {found.name} any more")
    differs = list(differences(found.before, now, durable.digest))
    if options.traceback and now.error is not None and call.raised is not None:
        report.print_traceback(call.raised, of_user=True)
    _print(found, call, now, differs, options)
    return FAILED if differs else FINE


# Finding the step.


class _Found(NamedTuple):
    """A recorded step: `place` is its own, `steps` and `store` what the run had when it was recorded."""

    name: str
    which: int  # of so many
    of: int
    place: Place
    steps: Outcomes
    store: Store
    remembered: Remembered

    @property
    def before(self) -> Outcome:
        """Its outcome as it was recorded."""
        return self.steps[self.place.branch][self.place.number]


def _find(whole: Remembered, codec: Codec, wanted: str, nth: int | None, run_id: str) -> _Found:
    stage, slash, action = wanted.rpartition("/")
    stage = stage if slash else wanted
    known: dict[str, None] = {}
    for remembered in reversed(generations(whole)):
        ended = _ended(remembered.rows)
        known.update(dict.fromkeys(f"{row.stage}/{row.action}" for _, row in ended.values()))
        alike = {place: row.stage for place, (_, row) in ended.items() if row.action == action}
        named = [place for place, name in alike.items() if name == stage]
        of_template = [place for place, name in alike.items() if name.partition("[")[0] == stage]
        if places := named or of_template:
            return _chosen(remembered, codec, ended, places, nth)
    raise UsageError(f"run {run_id!r} has no finished step {wanted!r}. {suggestion(wanted, known)}")


def _ended(rows: Sequence[Row]) -> dict[Place, tuple[int, Row]]:
    """Return the last row of each action that was called and has ended, in the order of writing."""
    ended: dict[Place, tuple[int, Row]] = {}
    for at, row in enumerate(rows):
        if row.kind == "action":
            place = Place(row.branch, row.number)
            ended.pop(place, None)
            if row.status not in (Status.RUNNING, Status.SKIPPED):
                ended[place] = at, row
    return ended


def _chosen(
    remembered: Remembered, codec: Codec, ended: Mapping[Place, tuple[int, Row]], places: list[Place], nth: int | None
) -> _Found:
    which = len(places) if nth is None else nth
    if which > len(places):
        raise UsageError(f"--nth {nth}: the run has {report.plural(len(places), 'such step')}")
    place = places[which - 1]
    at, row = ended[place]
    steps, store = starting_point(outcomes(remembered.rows, codec), given_inputs(remembered, codec), rows=at)
    return _Found(f"{row.stage}/{row.action}", which, len(places), place, steps, store, remembered)


# Calling it.


def _performed(
    found: _Found, flow: Pipeline, journal: durable.SqliteJournal, call: _Call
) -> tuple[Run, Outcome | None]:
    """Restore the run up to the step, and perform that; return its outcome, None if it was not reached."""
    run_id, past = found.remembered.run_id, OneStep(found.steps, found.place)
    witness = Witness(journal, run_id, durable.fingerprint, durable.digest, past)
    run = Run(run_id, flow, found.store)
    with Interrupts() as interrupts, ExitStack() as resources:
        terms = Terms(
            run_id, time.perf_counter, time.time() - time.perf_counter(), is_cancellation, interrupts.gate,
            skip=frozenset(found.remembered.skip), most_records=0, recorder=witness, past=past,
            waits={found.place: found.before.waits},  # it gets the answers that it had
        )  # fmt: skip
        performer = _Performer(past, Performer(resources, interrupts, Options()), call)
        walk(evaluate_run(run, terms, ()), performer.answer, performer.enters)
    if witness.seen is None:
        return run, None
    return run, outcomes([witness.seen], journal.codec)[found.place.branch][found.place.number]


class _Performer:
    """Performs the requests of an evaluation; nothing is written, and nobody waits."""

    def __init__(self, past: OneStep, performer: Performer, call: _Call) -> None:
        self._past = past
        self._performer = performer
        self._call = call

    def enters(self, branch: Branch) -> bool:
        """Whether a branch is restored, or leads to the step."""
        return bool(branch.sealed) or branch.id in self._past.way

    def answer(self, request: Request | Begin) -> Any:
        if request is CAUGHT_UP or isinstance(request, Begin):
            return self._past.called is None
        if isinstance(request, (Save, Sleep)):
            return None
        gate = self._performer.gate
        try:
            gate.open = True
            if type(request) is tuple and type(request[0]) is Step:
                request = self._call.of(request[0], request[1], request[2] or {})
            if type(request) is tuple and request[0].timeout is None:
                function, args, kwargs = request[0].function, request[1], request[2]
                return function(*args, **(kwargs or {}))
            return self._performer.perform(request)
        except BaseException as error:
            self._call.raised = error
            return Raised(error)
        finally:
            gate.open = False


class _Call:
    """The call of the step: its arguments as they were before it, and the debugger."""

    def __init__(self, debugs: bool) -> None:
        self.arguments: dict[str, Any] = {}
        self.shown: dict[str, str] = {}  # an action may change its arguments
        self.is_quit = False
        self.raised: BaseException | None = None  # by the call, or by what was performed after it
        self._debugs = debugs

    def of(self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the request of the call."""
        try:
            bound: Mapping[str, Any] = inspect.signature(step.function).bind(*args, **kwargs).arguments
        except (TypeError, ValueError):
            bound = dict(enumerate(args)) | dict(kwargs)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        given = {str(name): value for name, value in bound.items() if not isinstance(value, Context)}
        self.arguments = {name: plain(value) for name, value in given.items()}
        self.shown = {name: _in_one_line(value) for name, value in given.items()}
        if not self._debugs:
            return step, args, kwargs
        import copy

        same: Any = copy.copy(step)
        same.function, same.timeout = self._debugged(step.function), None
        return same, args, kwargs

    def _debugged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that stops at its first line, and where it raises."""
        import bdb
        import pdb

        debugger, before = pdb.Pdb(skip=["contextlib", __name__]), sys.gettrace()  # it does not stop in here

        @contextmanager
        def debugging() -> Generator[None, None, None]:
            """Trace the calls of the block, and show what is raised where it was raised."""
            try:
                debugger.reset()
                sys.settrace(debugger.trace_dispatch)
                yield
            except bdb.BdbQuit:
                self.is_quit = True
                raise
            except Exception as error:
                sys.settrace(before)
                report.say(f"{told(error)}: the debugger has stopped where it was raised")
                pdb.post_mortem(error.__traceback__)
                raise
            finally:
                sys.settrace(before)  # of the debugger, or of a tool that measures coverage

        def called(*args: Any, **kwargs: Any) -> Any:
            with debugging():
                result = function(*args, **kwargs)
            return iterated(result) if inspect.isgenerator(result) else result

        def iterated(result: Any) -> Any:
            with debugging():
                yield from result

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with debugging():
                return await function(*args, **kwargs)

        return awaited if inspect.iscoroutinefunction(function) else called


# The report.


def _in_one_line(value: Any) -> str:
    return report.shortened(report.one_line(repr_of(value)), 300)


def _print(found: _Found, call: _Call, now: Outcome, differs: list[str], options: Namespace) -> None:
    if options.json:
        print_json({
            "id": found.remembered.run_id, "step": found.name, "nth": found.which, "of": found.of,
            "arguments": call.arguments, "recorded": _as_data(found.before), "now": _as_data(now),
            "same": not differs, "differences": differs,
        })  # fmt: skip
        return
    which = f", {found.which} of {found.of}" if found.of > 1 else ""
    report.print_facts([("step", f"{found.name}{which}"), ("run", found.remembered.run_id)])
    if call.shown:
        report.say()
        report.print_table(["ARGUMENT", "VALUE"], list(call.shown.items()))
    report.say()
    rows = [("recorded", *_as_row(found.before)), ("now", *_as_row(now))]
    report.print_table(["", "STATUS", "TIME", "RESULT"], rows, right=["TIME"])
    same = _SAME.get(now.status, f"the same: {now.status}")
    report.say("\n", f"different: {', '.join(differs)}" if differs else same)


_SAME: Final = {Status.COMPLETED: "the same result", Status.FAILED: "the same failure"}


def _as_row(did: Outcome) -> tuple[str, str, str]:
    inserts = f"inserts {', '.join(unit.name for unit in did.inserted)}" if did.inserted and did.result is UNSET else ""
    text = report.one_line(cut(told(did.error))) or inserts or _in_one_line(_result(did))
    return str(did.status), report.duration(did.elapsed), text


def _as_data(did: Outcome) -> dict[str, Any]:
    error = None if did.error is None else told(did.error)
    return {"status": str(did.status), "elapsed": did.elapsed, "result": plain(_result(did)), "error": error}


def _result(did: Outcome) -> Any:
    """Return the data that an action returned, or else the names of the units that it inserted."""
    if did.result is UNSET:
        return [unit.name for unit in did.inserted] or None
    return did.result
