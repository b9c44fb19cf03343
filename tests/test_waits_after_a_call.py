"""Middleware that suspends a run after a call of its action: the resumed run does not repeat the call."""

import asyncio
import pickle

import pytest

from flowdeco import Context, Sleep, Stage, Suspend, action, parallel, stage
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.middleware import atomic, recover, retry

CALLS = []
SEEN = []


@pytest.fixture(autouse=True)
def no_calls():
    """Each test has its own."""
    CALLS.clear()
    SEEN.clear()


@pytest.fixture(params=["sync pickle", "async pickle", "sync json", "async memory", "sync pickled run"])
def way(request, tmp_path):
    """A function that runs a unit, and resumes it until it has ended: `way(flow, inputs)` returns all of its runs."""
    how, _, where = request.param.partition(" ")
    options = {}
    if where in ("pickle", "json"):
        options["journal"] = SqliteJournal(tmp_path / "r.db", codec=where)

    def did(flow, method, *args, **more):
        if how == "sync":
            return getattr(flow, method)(*args, **options, **more)
        return asyncio.run(getattr(flow, f"a{method}")(*args, **options, **more))

    def way(flow, inputs=None, **more):
        runs = [did(flow, "run", inputs, suspend_after=0, **more)]
        while runs[-1].status == "suspended":
            last = pickle.loads(pickle.dumps(runs[-1])) if where == "pickled run" else runs[-1]
            runs.append(did(flow, "resume", last, suspend_after=0 if len(runs) < 2 else 60, **more))
        return runs

    way.sleeps = "journal" in options
    return way


def naps(call):
    """Suspends after the call: once by a sleep in a journal, otherwise as long as `SEEN` has fewer than two items."""
    outcome = yield
    SEEN.append(outcome)
    yield Sleep(0.05)
    if len(SEEN) < 2:
        raise Suspend("not yet")


async def naps_too(call):
    """The same, asynchronously."""
    outcome = yield
    SEEN.append(outcome)
    yield Sleep(0.05)
    if len(SEEN) < 2:
        raise Suspend("not yet")


@action(use=[naps])
def value():
    """Returns data."""
    CALLS.append("value")
    return {"n": 1}


@stage
def inserted(name: str):
    """A stage to insert."""

    @action(collect="inserted")
    def it() -> str:
        return name


@action(use=[naps])
def units():
    """Returns units."""
    CALLS.append("units")
    return [inserted("a"), inserted("b")]


@action(use=[naps_too], returns="end")
async def yields():
    """Yields units, and returns nothing."""
    CALLS.append("yields")
    yield inserted("a")


@action(use=[naps], returns="end")
def returns_too():
    """Yields units, and returns data."""
    CALLS.append("returns too")
    yield inserted("a")
    return 7


@action(use=[naps], collect="items", returns="last")
def effects(ctx: Context):
    """Does everything by its context."""
    CALLS.append("effects")
    ctx.store["written"] = CALLS.count("effects")
    del ctx.store["gone"]
    ctx.store.append("items", 0)
    ctx.insert(inserted("c"))
    ctx.disable("other")
    return 1


@action(use=[naps], timeout=20, returns=("x", "y"))
def with_timeout():
    """Is called in a thread."""
    CALLS.append("with timeout")
    return (1, 2)


@action
def other():
    """Is disabled by `effects`."""
    return "ran"


@pytest.mark.parametrize(
    ("flow", "store", "seen"),
    [
        (value, {"value": {"n": 1}}, {"n": 1}),
        (units, {"inserted": ["a", "b"]}, [inserted("a"), inserted("b")]),
        (yields, {"inserted": ["a"]}, [inserted("a")]),
        (returns_too, {"inserted": ["a"], "end": 7}, [inserted("a")]),
        (with_timeout, {"x": 1, "y": 2}, (1, 2)),
        (Stage("s", [effects]) >> other, {"written": 1, "items": [0, 1], "last": 1, "inserted": ["c"]}, 1),
    ],
    ids=["data", "units", "an async generator", "a generator with data", "a timeout", "a context"],
)
def test_a_call_is_not_repeated_after_a_wait_of_its_middleware(way, flow, store, seen):
    """Its value and its effects are those of the first call; middleware is entered again, and its `yield` has the value."""
    runs = way(flow, {"gone": 1})
    expected = store if "written" in store else {**store, "gone": 1}
    assert (len(runs) > 1, runs[-1].status, dict(runs[-1].store), len(CALLS)) == (True, "completed", expected, 1)
    assert SEEN == [seen] * len(SEEN)
    assert len(SEEN) > 1
    record = runs[-1].stages[0].actions[0]
    assert (record.status, record.attempts) == ("completed", 1)


@pytest.mark.parametrize(
    "flow",
    [parallel(value, other), Stage("s", [value.with_options(use=())], use_actions=[naps]), parallel(parallel(value))],
    ids=["a group", "use_actions", "nested groups"],
)
def test_wherever_the_action_is(way, flow):
    """In a branch, in layers of its stage."""
    assert way(flow)[-1]["value"] == {"n": 1}
    assert CALLS == ["value"]


def test_an_outcome_that_middleware_replaces_is_replaced_again(way):
    """The call has the effect that it has without the wait."""

    def doubled(call):
        call.outcome = (yield)["n"] * 2

    runs = way(value.with_options(use=[naps, doubled]))
    assert (runs[-1]["value"], CALLS) == (2, ["value"])


def test_another_attempt_calls_again(way):
    """After the wait, its middleware fails; the next attempt is a new call."""

    def fails_once(call):
        yield
        if len(SEEN) > 1 and call.attempt == 1:
            raise OSError

    runs = way(value.with_options(use=[retry(on=OSError, wait=0), fails_once, naps]))
    assert (runs[-1].status, CALLS, runs[-1].stages[0].actions[0].attempts) == ("completed", ["value"] * 2, 2)


def test_a_failed_call_is_repeated(way):
    """Nothing has succeeded that could be kept."""

    def fails():
        CALLS.append("fails")
        raise OSError

    runs = way(action(name="a", use=[naps, recover(on=OSError)])(fails))
    assert (runs[-1].status, len(CALLS)) == ("completed", len(SEEN))


def test_an_atomic_stage_begins_anew():
    """With all of its calls."""
    journal = MemoryJournal()
    flow = Stage("s", [other, value], use=[atomic])
    run = flow.run(journal=journal, suspend_after=0)
    flow.resume(run.id, journal=journal)
    assert CALLS == ["value"] * 2


def test_a_call_that_changed_a_value_in_place_is_repeated():
    """The journal does not have that change yet."""
    journal = MemoryJournal()

    @action(use=[naps])
    def grows(items: list):
        items.append(1)

    run = grows.run({"items": []}, journal=journal, suspend_after=0)
    assert grows.resume(run.id, journal=journal)["items"] == [1]


def test_a_call_is_kept_over_a_crash_after_the_resume(tmp_path):
    """Until the action is recorded; then it is restored as any other."""
    journal = SqliteJournal(tmp_path / "r.db")
    fails = [True]

    @action
    def last():
        if fails:
            raise OSError

    flow = value >> last
    run = flow.run(journal=journal, suspend_after=0)
    failed = flow.resume(run.id, journal=journal, check=False)
    assert failed.status == "failed"
    fails.clear()
    done = flow.resume(run.id, journal=journal)
    assert (dict(done.store), CALLS, done.stages[0].actions[0].restored) == ({"value": {"n": 1}}, ["value"], True)


class Odd(list):
    """A list that cannot be pickled; its items can."""

    def __reduce__(self):
        raise TypeError("not this")


@action(use=[naps])
def odd():
    """Returns units in such a list."""
    CALLS.append("odd")
    return Odd([inserted("a")])


def test_a_call_that_cannot_be_written_is_repeated(tmp_path):
    """The wait is kept all the same; nor does a run in memory lose more than the call when it is pickled."""
    options = {"journal": tmp_path / "r.db"}
    run = odd.run(suspend_after=0, **options)
    run = odd.resume(run.id, **options)
    assert (run.status, run["inserted"], len(CALLS)) == ("completed", ["a"], 2)
    SEEN.clear()
    run = odd.resume(pickle.loads(pickle.dumps(odd.run())))
    assert (run.status, run["inserted"], len(CALLS)) == ("completed", ["a"], 4)
