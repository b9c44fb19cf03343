"""A KeyboardInterrupt or SystemExit ends a run whatever raises it: an action, a task, or an exception group; and a task
group or scope of middleware ends as it does without a run."""

import asyncio
import gc
import logging
import threading
import time
from contextlib import asynccontextmanager
from functools import cache

import anyio
import pytest

from flowdeco import Run, Stage, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal, runs
from flowdeco.errors import members_of
from flowdeco.testing import FlowRunner


def by_run(unit, **options):
    return unit.run(**options)


def by_arun(unit, **options):
    return asyncio.run(unit.arun(**options))


def by_runner(unit, **options):
    return FlowRunner().run(unit, **options)


@pytest.fixture(params=[by_run, by_arun], ids=["run", "arun"])
def run(request):
    """Run a unit by `run` and by `arun`."""
    return request.param


@pytest.fixture(autouse=True, scope="module")
def no_reports():
    """Of tasks whose exits nobody retrieved; asyncio logs them as they are collected, which would be in other tests."""
    logger = logging.getLogger("asyncio")
    logger.disabled = True
    yield
    gc.collect()
    logger.disabled = False


@action
async def slow():
    await asyncio.sleep(0.5)


@action
async def quick():
    return 1


@action
def blocks():
    time.sleep(0.03)


# -- task groups and scopes of middleware

ORDERS = {  # when an outer scope is cancelled, too, as a task fails
    "never": lambda cancel: None,
    "before": lambda cancel: cancel(),
    "in the next turn": lambda cancel: asyncio.get_running_loop().call_soon(cancel),
}


def failing(kind, order):
    """A context manager: a task group in a cancel scope, with a task that fails after 10 ms."""

    @asynccontextmanager
    async def failing():
        with anyio.CancelScope() as scope:

            async def fails():
                await anyio.sleep(0.01)
                ORDERS[order](scope.cancel)
                raise ValueError("in the background")

            if kind == "anyio":
                async with anyio.create_task_group() as group:
                    group.start_soon(fails)
                    yield
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails())
                    yield

    return failing


@asynccontextmanager
async def shielded():
    """Clean up in a shielded scope."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.005)


def as_layer(manager):
    """A middleware that is a context manager around its target."""

    async def layer(call):
        async with manager():
            yield

    return layer


@cache
def without_a_run(kind, order):
    """The error with which plain code in the context manager ends."""

    async def main():
        async with failing(kind, order)(), shielded():
            await asyncio.sleep(0.5)

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    return repr(caught.value)


PLACES = {
    "stage": lambda use: Stage("s", [slow], use=use),
    "stage in a group": lambda use: parallel(Stage("s", [slow], use=use), quick),
    "action": lambda use: pipeline(slow.with_options(use=use)),
    "action in a group": lambda use: parallel(slow.with_options(use=use), quick),
    "around a group": lambda use: pipeline(parallel(slow, quick), use=use),
    "around a call": lambda use: parallel(Stage("s", [blocks], use=use), quick),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["asyncio", "anyio"])
def test_a_task_group_of_middleware_ends_as_it_does_without_a_run(run, kind, order, place):
    """Also that of anyio, which cancels in each turn of the loop: no further cancellation reaches its own clean-up."""
    finished = run(PLACES[place]([as_layer(failing(kind, order)), as_layer(shielded)]), check=False)
    assert repr(finished.error) == without_a_run(kind, order)
    assert finished.status == "failed"


# -- KeyboardInterrupt and SystemExit

EXITS = [KeyboardInterrupt, SystemExit]


def raising(error):
    """Async functions that end with this error, each by another way, and whether a task of its own raises it."""

    async def stop(seconds=0.0):
        await asyncio.sleep(seconds)
        raise error

    async def plainly():
        raise error

    async def in_a_task_group():
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            await asyncio.sleep(0.5)

    async def in_anyio():
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.5)
            group.start_soon(stop)

    async def in_anyio_and_a_failure():
        async def fails():
            try:
                await anyio.sleep(0.5)
            finally:
                raise ValueError("beside it")

        async with anyio.create_task_group() as group:
            group.start_soon(fails)
            group.start_soon(stop)

    async def gathered():
        await asyncio.gather(stop(), asyncio.sleep(0.5))

    async def in_a_group():
        raise BaseExceptionGroup("tasks", [error])

    async def in_nested_groups():
        raise BaseExceptionGroup("tasks", [ValueError("no"), BaseExceptionGroup("more", [error])])

    tasks = [in_a_task_group, in_anyio, in_anyio_and_a_failure, gathered]
    return {function.__name__: function for function in (plainly, in_a_group, in_nested_groups, *tasks)}, {
        function.__name__ for function in tasks
    }


AROUND = {
    "alone": pipeline,
    "in a group": lambda unit: parallel(unit, slow),
}
MORE = {
    "in a nested group": lambda unit: parallel(parallel(unit, slow), quick),
    "beside a call": lambda unit: parallel(unit, blocks),
    "in a tolerant group": lambda unit: parallel(unit, slow, tolerate=1),
    "within a timeout": lambda unit: Stage("s", [unit.with_options(timeout=5)], timeout=5),
}


def ended(run, unit, *, check=True):
    """Run a unit; return what was raised, the run, and what its journal has."""
    journal, raised = MemoryJournal(), None
    try:
        finished = run(unit, journal=journal, check=check)
    except BaseException as error:
        raised, finished = error, Run.of(error)
    return raised, finished, runs(journal)[0]


CASES = [
    *[pytest.param(way, around, id=f"{way} {name}") for name, around in AROUND.items() for way in raising(None)[0]],
    *[
        pytest.param(way, around, id=f"{way} {name}")
        for name, around in MORE.items()
        for way in ("in_a_task_group", "in_anyio")
    ],
]


@pytest.mark.parametrize(("way", "around"), CASES)
@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("run", [by_run, by_arun, by_runner])
def test_an_exit_ends_the_run_whatever_raises_it(run, kind, way, around):
    """Ctrl-C cancels the run, and is raised as itself; after a SystemExit it has failed; the lease is released."""
    for check in True, False:
        error = kind()
        ways, of_tasks = raising(error)
        raised, finished, info = ended(run, around(action(name="exits")(ways[way])), check=check)
        if kind is KeyboardInterrupt:
            assert raised is error
            assert finished.error is error
        else:
            assert error in members_of(finished.error)
            # Out of a task, asyncio raises it at once: `check` is not asked.
            expected = error if run is by_arun and way in of_tasks else finished.error if check else None
            assert raised is expected
        assert finished.status == info.status == ("cancelled" if kind is KeyboardInterrupt else "failed")
        assert info.owner is None


def in_middleware(stop):
    async def with_tasks(call):
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            yield

    return parallel(Stage("s", [slow], use=[with_tasks]), slow)


def in_a_stream(stop):
    async def units():
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            yield Stage("s", [slow])

    return parallel(stream(units), limit=1)


def in_an_async_generator(stop):
    @action
    async def yields():
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            yield Stage("s", [slow])

    return parallel(yields, slow)


def in_the_clean_up(stop):
    @action
    async def cleans_up():
        try:
            await asyncio.sleep(5)
        finally:
            async with asyncio.TaskGroup() as group:
                group.create_task(stop())

    return cleans_up


def after_a_failure(stop):
    @action
    async def fails():
        await asyncio.sleep(0.01)
        raise ValueError("first")

    return parallel(in_the_clean_up(stop), fails)


def of_a_loser(stop):
    return parallel(in_the_clean_up(stop), winner, enough=1)


@action
async def winner():
    await asyncio.sleep(0.01)


def late(stop):
    return quick >> parallel(Stage("s", [in_the_clean_up(stop)], timeout=0.2), slow)


def several(stop):
    @action
    async def stops():
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            group.create_task(stop())

    return parallel(stops, stops.with_options(name="again"))


@pytest.mark.parametrize(
    "unit", [in_middleware, in_a_stream, in_an_async_generator, after_a_failure, of_a_loser, late, several]
)
@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("run", [by_run, by_arun, by_runner])
def test_an_exit_of_a_task_is_lost_nowhere(run, kind, unit):
    """Not in clean-up either, in place of the failure or of the time limit that caused that."""
    error = kind()

    async def stop():
        await asyncio.sleep(0.005)
        raise error

    raised, finished, info = ended(run, unit(stop))
    assert raised is error
    assert finished.status == info.status == ("cancelled" if kind is KeyboardInterrupt else "failed")
    assert info.owner is None


@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("run", [by_run, by_runner])  # `asyncio.run` gives up all tasks at the second exit
def test_an_exit_may_pass_several_tasks(run, kind):
    """Each of them raises it out of the event loop."""
    error = kind()

    async def exits(depth=3):
        if depth == 0:
            raise error
        async with asyncio.TaskGroup() as group:
            group.create_task(exits(depth - 1))

    for around in AROUND.values():
        raised, finished, _ = ended(run, around(action(name="exits")(lambda: exits())))
        assert raised is finished.error is error


@pytest.mark.parametrize("kind", EXITS)
@pytest.mark.parametrize("run", [by_run, by_runner])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_an_exit_of_a_task_that_nobody_awaits_interrupts_run(run, kind, around):
    """As it ends `asyncio.run`."""
    error = kind()
    tasks = []

    @action
    async def forgets():
        async def stop():
            raise error

        tasks.append(asyncio.create_task(stop()))
        await asyncio.sleep(0.5)

    raised, finished, _ = ended(run, around(forgets))
    assert raised is finished.error is error
    assert tasks.pop().exception() is error


def test_middleware_may_recover_from_the_exit_of_a_task():
    """The event loop of `run` continues, and so does the run."""
    seen = []

    async def stop():
        raise SystemExit(3)

    async def catches(call):
        try:
            yield
        except SystemExit as error:
            await asyncio.sleep(0)
            seen.append(error.code)

    @action(use=[catches])
    async def exits():
        await asyncio.gather(stop(), asyncio.sleep(0.5))

    finished = (exits >> quick).run()
    assert (finished.status, finished["quick"], seen) == ("completed", 1, [3])


def test_an_action_may_stop_the_loop_of_run():
    """It continues: the loop is not the action's."""

    @action
    async def stops():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "stopped"

    before = threading.active_count()
    assert (stops >> quick).run()["stops"] == "stopped"
    assert threading.active_count() == before


def test_an_observer_may_be_interrupted_in_tasks(run):
    """A KeyboardInterrupt in a group ends the run as Ctrl-C in an observer does; it is not dropped with it."""
    error = KeyboardInterrupt()

    def observer(event):
        raise BaseExceptionGroup("tasks", [error])

    with pytest.raises(KeyboardInterrupt) as caught:
        run(pipeline(quick), observers=[observer])
    assert caught.value is error
    assert Run.of(error).status == "cancelled"


# -- in the methods of values


class Explosive:
    """A value whose content cannot be looked at, once it is armed."""

    raised = None

    def __init__(self):
        self.parts = [1]

    def __reduce__(self):
        if Explosive.raised is not None:
            raise Explosive.raised
        return Explosive, ()


def reads(call):
    """Middleware after which the journal looks whether it has changed the value in place."""
    call.store["value"]
    yield


def reads_again(call):
    """Middleware that asks for attempts until the failure is not that of the action."""
    while True:
        call.store["value"]
        try:
            yield
            return
        except ValueError:
            continue


@pytest.mark.parametrize(
    "error", [SystemExit("no"), GeneratorExit("no"), BaseException("no"), RecursionError("no")], ids=repr
)
@pytest.mark.parametrize("use", [reads, reads_again])
@pytest.mark.parametrize("level", ["action", "stage", "pipeline", "run"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_value_that_cannot_be_looked_at_ends_the_run(error, use, level, fails):
    """Whatever its `__reduce__` raises, every time; and the run does not try forever."""
    count = []

    @action
    def arms(value):
        count.append(1)
        Explosive.raised = error
        if fails and len(count) == 1:
            raise ValueError

    flow = pipeline(Stage("s", [arms.with_options(use=[use]) if level == "action" else arms]), name="p")
    flow = {"stage": pipeline(Stage("s", [arms], use=[use])), "pipeline": flow.with_options(use=[use])}.get(level, flow)
    try:
        ended = flow.run(
            {"value": Explosive()}, journal=MemoryJournal(), use=[use] if level == "run" else [], check=False
        )
    finally:
        Explosive.raised = None
    if not (fails or isinstance(error, Exception)):
        assert ended.error is error
    assert ended.status in ("completed", "failed")
    assert len(count) < 3
