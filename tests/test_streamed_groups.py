"""Groups whose branches are pulled from a stream: any number of them, in the memory of a few."""

import asyncio
import threading
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import pytest
from support import names, statuses, text_of

from flowdeco import Bail, Context, Run, Status, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, read
from flowdeco.errors import (
    CodeChangedError,
    DefinitionError,
    ReturnValueError,
    WiringError,
    WriteConflictError,
)
from flowdeco.events import BranchesHeld
from flowdeco.executors import serial
from flowdeco.middleware import recover, retry

LOG = []  # the numbers of branches whose actions were called
PULLED = []  # the numbers of branches that were yielded
CLOSED = []  # the names of streams that were closed
FAIL = set()  # the numbers of branches that fail
PATIENCE = 10


@pytest.fixture(params=[False, True], ids=["resume", "aresume"])
def resume(request):
    """Continue a run, once by `resume` and once by `aresume`."""

    def continued(flow, *args, **options):
        return asyncio.run(flow.aresume(*args, **options)) if request.param else flow.resume(*args, **options)

    return continued


@pytest.fixture(autouse=True)
def fresh():
    """Nothing has been called yet."""
    for each in (LOG, PULLED, CLOSED):
        each.clear()
    FAIL.clear()


@stage
def square(number: int) -> None:
    @action(collect="squares")
    def compute() -> int:
        LOG.append(number)
        if number in FAIL:
            raise ValueError(f"no {number}")
        return number * number


def squares(count):
    """As many branches."""
    try:
        for number in range(count):
            PULLED.append(number)
            yield square(number)
    finally:
        CLOSED.append("squares")


async def async_squares(count):
    """The same, asynchronously."""
    for number in range(count):
        await asyncio.sleep(0)
        yield square(number)


async def awaited_squares(count):
    """A coroutine function that returns an iterable."""
    return list(squares(count))


def of(numbers):
    return [number * number for number in numbers]


# -- where they are declared, and how they run


@pytest.mark.parametrize("source", [squares, async_squares, awaited_squares])
@pytest.mark.parametrize("executor", [None, serial])
def test_the_effects_of_branches_are_merged_in_branch_order(run, source, executor):
    """Whatever the stream is, and wherever the calls are made."""
    flow = parallel(stream(source, 20), limit=3)
    result = run(flow, executor=executor and executor())
    assert result["squares"] == of(range(20))
    assert names(result) == [f"square[{number}]" for number in range(20)]
    assert [record.scope.branch for record in result.stages] == list(range(20))


def test_in_processes(run):
    """Only the calls of actions go there."""
    with ProcessPoolExecutor(2) as executor:
        assert run(parallel(stream(squares, 6), limit=2), executor=executor)["squares"] == of(range(6))


def test_a_bare_iterable_and_an_iterator(run):
    """Each can be pulled, the second one once."""
    units = [square(1), square(2)]
    assert run(parallel(stream(units)))["squares"] == [1, 4]
    assert run(parallel(stream(iter(units))))["squares"] == [1, 4]


def test_an_empty_stream_is_a_group_without_branches(run):
    """It completes."""
    result = run(parallel(stream(squares, 0)))
    assert (result.status, dict(result.store), result.stages) == ("completed", {}, [])


def test_returned_inserted_chained_and_nested(run):
    """Wherever a group may be."""

    @action
    def returns():
        return parallel(stream(squares, 2))

    @action
    def inserts(ctx: Context) -> int:
        ctx.insert(parallel(stream(squares, 3)))
        return 1

    def groups():
        for _ in range(2):
            yield parallel(stream(squares, 2), limit=1)

    assert run(returns >> inserts)["squares"] == of([0, 1, 0, 1, 2])
    nested = parallel(parallel(stream(groups)), square(7))
    assert run(nested)["squares"] == of([0, 1, 0, 1, 7])
    assert run(pipeline(square(9), parallel(stream(squares, 2)), name="p"))["squares"] == of([9, 0, 1])


def test_branches_may_be_actions_pipelines_and_groups(run):
    """One yielded pipeline is one branch."""

    @action
    def one() -> int:
        return 1

    @action
    def two(one: int) -> int:
        return one + 1

    def units():
        yield one >> two
        yield action(name="three")(lambda: 3)
        yield parallel(square(4), square(5))

    result = run(parallel(stream(units)))
    assert dict(result.store) == {"one": 1, "two": 2, "three": 3, "squares": [16, 25]}
    assert [record.scope.branch for record in result.stages[:3]] == [0, 0, 1]


def test_every_branch_sees_the_store_as_it_was_before_the_group(run):
    """Also those that are pulled when others have been merged."""

    @action(collect="seen")
    def look(squares: list[int] = []) -> int:  # noqa: B006
        return len(squares)

    def units():
        for number in range(6):
            yield pipeline(look, square(number))

    result = run(square(1) >> parallel(stream(units), limit=1))
    assert result["seen"] == [1] * 6
    assert result["squares"] == of([1, *range(6)])


# -- definitions


def test_a_stream_stands_alone_in_its_group():
    """Units beside it are refused, and what to write instead is said."""
    for units in ([square(1), stream(squares, 2)], [stream(squares, 2), stream(squares, 2)]):
        with pytest.raises(DefinitionError, match="stands alone in its parallel group"):
            parallel(*units)


def test_a_streamed_group_is_a_value():
    """Equal by its stream and its options, hashable, picklable; with a name and options of its own."""
    import pickle

    group = parallel(stream(squares, 2), limit=4, name="g")
    same, other = parallel(stream(squares, 2), limit=4, name="g"), parallel(stream(squares, 3), limit=4, name="g")
    assert (group == same, group == other, hash(group) == hash(same)) == (True, False, True)
    assert group != parallel(square(1), limit=4, name="g")
    assert pickle.loads(pickle.dumps(group)) == group
    assert repr(group) == "<Parallel g: stream of squares>"
    assert group.with_options(name="h").stream == group.stream
    assert (group.units, group.limit) == ((), 4)
    listed = [square(1)]
    assert stream(listed) == stream(listed) != stream([square(1)])
    assert stream(squares, 1) != 1


def test_selectors_act_on_what_the_definition_contains():
    """The units of a stream are not known, and `skip` may name them."""
    flow = square(1) >> parallel(stream(squares, 3), name="g", tags=["big"])
    assert [unit.name for unit in flow.without("tag:big")] == ["square[1]"]
    assert [unit.name for unit in flow.only("g")] == ["g"]
    assert [unit.name for unit in flow.only("square[1]")] == ["square[1]"]
    assert [unit.name for unit in flow.without("square[1]")] == ["g"]
    result = flow.run(skip=["square[2]"])
    assert (result["squares"], statuses(result)[-1]) == (of([1, 0, 1]), ("square[2]", "skipped"))
    assert flow.run(skip=["g"])["squares"] == [1]


def test_its_branches_may_supply_any_key():
    """So a later action that needs one is not certainly wrong."""

    @action
    def needs(anything: int) -> None: ...

    (problem,) = (parallel(stream(squares, 1)) >> needs).validate()
    assert not problem.certain


def test_a_stream_that_yields_something_else_fails_the_group(run):
    """The error says which stream of which group."""
    for wrong in (1, square, stream(squares, 1)):
        with pytest.raises((ReturnValueError, TypeError)) as caught:
            run(parallel(stream(lambda wrong=wrong: iter([wrong])), name="g"))
        assert "of the parallel group 'g'" in str(caught.value)
    with pytest.raises(ReturnValueError, match="returned a int, not an iterable"):
        run(parallel(stream(lambda: 1)))


def test_a_unit_that_certainly_lacks_a_value_is_refused_as_it_is_pulled(run):
    """As inserted units are."""

    @action
    def lacks(nothing_supplies_this: int) -> None: ...

    with pytest.raises(WiringError, match="nothing_supplies_this"):
        run(parallel(stream(lambda: iter([lacks]))))


# -- the window


class Slow:
    """Branches of which the first one waits until it is released."""

    def __init__(self, limit):
        self.release = threading.Event()
        self.alive = self.most = 0
        self.lock = threading.Lock()
        self.pulled = []
        self.group = parallel(stream(self.units, 100), limit=limit)

    def units(self, count):
        for number in range(count):
            self.pulled.append(number)
            yield action(name=f"b{number}", collect="all")(lambda number=number: self.work(number))

    def work(self, number):
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        if not number:
            assert self.release.wait(PATIENCE)
        with self.lock:
            self.alive -= 1
        return number


def test_a_slow_first_branch_holds_up_a_bounded_number():
    """At most `limit` are alive, and at most twice as many wait; observers hear of it, and of its end."""
    slow, held = Slow(4), []

    def observe(event):
        if isinstance(event, BranchesHeld):
            held.append(event)
            if event.held == 8:
                held.append(len(slow.pulled))
                slow.release.set()

    result = slow.group.run(observers=[observe])
    assert result["all"] == list(range(100))
    at = held.index(9)  # so many were pulled when eight of them waited
    full = held[at - 1]
    assert (full.held, full.first, full.group) == (8, 0, "parallel")
    assert held[-1].held == 0
    assert slow.most <= 4


@pytest.mark.parametrize(("limit", "most"), [(None, 32), (3, 3), (1, 1)])
def test_no_more_than_the_limit_are_alive(limit, most):
    """Without one, 32."""
    slow = Slow(limit)
    slow.release.set()
    slow.group.run()
    assert slow.most <= most
    waits = threading.Barrier(most)

    def units():
        for number in range(most):
            yield action(name=f"b{number}")(lambda: waits.wait(PATIENCE) and None)

    parallel(stream(units), limit=limit).run()  # so many are


def test_branches_are_pulled_when_a_slot_is_free(run):
    """Not before."""
    seen = []

    def units():
        for number in range(4):
            seen.append(f"pull {number}")
            yield action(name=f"a{number}")(lambda number=number: seen.append(f"call {number}"))

    run(parallel(stream(units), limit=1))
    assert seen == [f"{what} {number}" for number in range(4) for what in ("pull", "call")]


def test_a_slow_stream_delays_no_branch():
    """Branches end while the next one is pulled, and a failure ends the wait."""
    pulls = threading.Event()

    async def units():
        yield action(name="first")(lambda: pulls.wait(PATIENCE) and None)
        pulls.set()
        yield action(name="fails")(fails)
        await asyncio.sleep(PATIENCE)

    def fails():
        raise ValueError("no")

    started = time.monotonic()
    with pytest.raises(ValueError):
        parallel(stream(units), limit=3).run()
    assert time.monotonic() - started < PATIENCE / 2


def test_memory_does_not_grow_with_the_number_of_branches():
    """With `history=`."""

    noop = action(name="noop")(lambda: None)

    def many(count):
        for _ in range(count):
            yield noop

    def peak(count):
        tracemalloc.start()
        run = parallel(stream(many, count), limit=16).run(executor=serial(), history=10)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert run.forgotten == count - 10
        return most

    peak(100)
    assert peak(5000) - peak(200) < 300_000


# -- failure, signals, interruption


def test_a_failing_branch_fails_the_group_and_nothing_is_merged(run):
    """Not even what was merged into the group's own overlay; no more is pulled, and the stream is closed."""
    FAIL.add(5)
    with pytest.raises(ValueError, match="no 5") as caught:
        run(square(100) >> parallel(stream(squares, 1000), limit=2), executor=serial())
    assert "branch 5 ('square[5]') of parallel group 'parallel'" in text_of(caught.value)
    result = run(square(100) >> parallel(stream(squares, 1000), limit=2), executor=serial(), check=False)
    assert (result["squares"], result.status) == ([10000], "failed")
    assert len(PULLED) <= 2 * 8
    assert CLOSED == ["squares"] * 2


def test_a_failing_stream_fails_the_group(run):
    """The error says which one it was; branches under way end first, and nothing is merged."""

    def units():
        yield square(1)
        raise KeyError("gone")

    with pytest.raises(KeyError) as caught:
        run(parallel(stream(units), name="g"))
    assert "in the stream of" in text_of(caught.value)
    assert "of the parallel group 'g'" in text_of(caught.value)


def test_after_a_bail_only_the_bailing_branch_counts(run):
    """Effects merged so far are dropped."""

    @action(collect="squares")
    def bails(ctx: Context):
        ctx.store["why"] = "enough"
        raise Bail("enough")

    def units():
        yield square(1)
        yield square(2)
        yield bails
        yield from squares(100)

    result = run(parallel(stream(units), limit=1) >> square(9))
    assert (result.status, result.reason, dict(result.store)) == ("bailed", "enough", {"why": "enough"})
    assert PULLED == []


def test_a_stream_may_bail_or_suspend_as_well(run):
    """No branch counts then."""

    def ends(signal):
        yield square(1)
        raise signal

    bailed = run(parallel(stream(ends, Bail("enough")), limit=1))
    assert (bailed.status, bailed.reason, dict(bailed.store)) == ("bailed", "enough", {})
    suspended = run(parallel(stream(ends, Suspend("later")), limit=1))
    assert (suspended.status, dict(suspended.store)) == ("suspended", {})


@pytest.mark.parametrize("first", ["append", "put", "delete"])
@pytest.mark.parametrize("second", ["append", "put", "delete"])
def test_branches_that_do_different_things_to_a_key_disagree(run, first, second):
    """Only the same is no conflict."""

    def does(ctx, what):
        if what == "append":
            ctx.store.append("k", 1)
        elif what == "put":
            ctx.store["k"] = [0, 1]
        else:
            del ctx.store["k"]

    def units():
        for name, what in (("one", first), ("two", second)):
            yield action(name=name)(lambda ctx, what=what: does(ctx, what)).bind(what=what)

    flow = parallel(stream(units))
    if first == second:
        assert run(flow, {"k": [0]}).store.get("k") == {"append": [0, 1, 1], "put": [0, 1], "delete": None}[first]
    else:
        with pytest.raises(WriteConflictError, match=r"the branches 0 \('one.*'\) and 1 \('two.*'\)"):
            run(flow, {"k": [0]})


def test_after_a_suspend_no_more_branches_are_pulled(run):
    """Those that began finish."""
    result = run(parallel(stream(suspending, 50), limit=2), executor=serial())
    assert result.status == "suspended"
    assert len(LOG) <= 5
    assert sorted(LOG) == [0, 1, 3][: len(LOG)]
    assert "squares" not in result.store


def suspending(count):
    for number in range(count):
        if number == 2:
            yield asks
        else:
            yield square(number)


@action
def asks(approval: str = "") -> None:
    if not approval:
        raise Suspend("wait for approval")


def test_two_branches_that_disagree(run):
    """The error names both, though the first one was merged long ago; no more are pulled."""

    def units():
        yield action(name="first", returns="k")(lambda: 1)
        for number in range(1000):
            yield square(number)
            if number == 10:
                yield action(name="second", returns="k")(lambda: 2)

    with pytest.raises(WriteConflictError, match=r"the branches 0 \('first'\) and 12 \('second'\)"):
        run(parallel(stream(units), limit=1))
    assert len(LOG) < 20


def test_reducers_combine_in_branch_order(run):
    """Two at a time."""

    def units():
        for letter in "abcdef":
            yield action(name=letter, returns="text")(lambda letter=letter: letter)

    assert run(parallel(stream(units), limit=2, merge={"text": lambda one, other: one + other}))["text"] == "abcdef"


def test_the_stream_is_closed_when_the_run_ends_early(run):
    """Async ones as well."""

    async def units():
        try:
            yield square(0)
            yield square(1)
            yield square(2)
        finally:
            await asyncio.sleep(0)
            CLOSED.append("async")

    FAIL.add(1)
    with pytest.raises(ValueError):
        run(parallel(stream(units), limit=1))
    assert CLOSED == ["async"]


def test_a_retry_around_the_group_calls_the_function_again(run):
    """And nothing of the first attempt is left."""
    FAIL.add(3)

    def heals(attempt):
        FAIL.clear()
        return 0.0

    flow = pipeline(parallel(stream(squares, 5), limit=2), use=[retry(on=ValueError, wait=heals)])
    result = run(flow)
    assert result["squares"] == of(range(5))
    assert names(result) == [f"square[{number}]" for number in range(5)]


# -- durable


def durable(count=6, limit=2):
    return square(100) >> parallel(stream(squares, count), limit=limit, name="g") >> square(200)


@pytest.mark.parametrize("broken", [0, 3, 5])
@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_resume_calls_the_function_again_and_completed_branches_are_not_run_again(
    run, resume, tmp_path, broken, codec
):
    """The result is that of an uninterrupted run."""
    from flowdeco.durable import SqliteJournal

    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)
    FAIL.add(broken)
    failed = run(durable(), journal=journal, check=False, run_id="r")
    assert failed.status == "failed"
    called = list(LOG)
    FAIL.clear()
    result = resume(durable(), "r", journal=journal)
    assert result["squares"] == of([100, *range(6), 200])
    assert names(result) == ["square[100]", *(f"square[{n}]" for n in range(6)), "square[200]"]
    assert all(LOG.count(number) == 1 + (number == broken) for number in called if number <= broken)
    again = read(journal, "r")
    assert (names(again), again["squares"]) == (names(result), result["squares"])
    LOG.clear()
    assert resume(durable(), "r", journal=journal)["squares"] == result["squares"]
    assert LOG == []


def test_a_suspended_group_is_resumed(run, resume):
    """From memory, and from a journal."""
    flow = parallel(stream(suspending, 40), limit=2)
    numbers = [number for number in range(40) if number != 2]
    for journal in (None, MemoryJournal()):
        LOG.clear()
        first = run(flow, journal=journal, executor=serial())
        assert first.status == "suspended"
        done = list(LOG)
        result = resume(flow, first, {"approval": "yes"}, executor=serial())
        assert result["squares"] == of(numbers)
        assert names(result) == ["square[0]", "square[1]", "asks", *(f"square[{n}]" for n in numbers[2:])]
        assert sorted(LOG) == numbers
        assert len(done) < len(numbers)


def test_a_failed_group_is_resumed_from_memory(run, resume):
    """Branches that were merged into the group's overlay are not run again, and count in their order."""
    FAIL.add(3)
    failed = run(durable(), check=False, executor=serial())
    FAIL.clear()
    for _ in range(2):  # and the failed run is as it was
        result = resume(durable(), failed, executor=serial())
        assert result["squares"] == of([100, *range(6), 200])
    assert (LOG.count(0), LOG.count(2), LOG.count(3)) == (1, 1, 3)


def test_a_group_of_more_branches_than_its_journal_expects_at_first(run, resume):
    """Its row says how many may have begun; that is raised as they come."""
    journal = MemoryJournal()
    FAIL.add(40)
    run(durable(60, limit=2), journal=journal, check=False, run_id="r", executor=serial())
    FAIL.clear()
    assert 42 <= len(names(read(journal, "r"))) < 60  # those beside it may go on until its failure is written
    result = resume(durable(60, limit=2), "r", journal=journal, executor=serial())
    assert result["squares"] == of([100, *range(60), 200])
    assert LOG.count(39) == 1


@pytest.mark.parametrize("where", ["declared", "returned", "nested"])
def test_a_bare_iterable_in_a_durable_run_fails_at_once(run, where):
    """It could not be called again."""
    group = parallel(stream([square(1)]))

    @action
    def returns():
        return group if where == "returned" else parallel(group, square(2))

    with pytest.raises(DefinitionError, match=r"cannot be called again on resume"):
        run(group if where == "declared" else returns, journal=MemoryJournal())
    assert LOG == []


def test_a_stream_that_has_fewer_branches_than_before_is_reported(run, resume):
    """It must be repeatable."""
    journal = MemoryJournal()
    FAIL.add(3)
    run(durable(), journal=journal, check=False, run_id="r", executor=serial())
    FAIL.clear()
    with pytest.raises(CodeChangedError, match="had more than 2 branches"):
        resume(durable(2), "r", journal=journal)
    assert resume(durable(2), "r", journal=journal, on_change="ignore")["squares"] == of([100, 0, 1, 200])


def test_steps_of_a_changed_flow_are_kept_with_on_change_ignore(run, resume):
    """Branch by branch, by their names."""
    journal = MemoryJournal()
    FAIL.add(200)
    run(durable(), journal=journal, check=False, run_id="r", executor=serial())
    FAIL.clear()
    LOG.clear()
    flow = square(50) >> durable()
    result = resume(flow, "r", journal=journal, on_change="ignore", executor=serial())
    assert result["squares"] == of([50, 100, *range(6), 200])
    assert LOG == [50, 200]


def test_a_new_run_from_a_stage_after_the_group(run, resume):
    """Its branches are restored."""
    journal = MemoryJournal()
    first = run(durable(), journal=journal, executor=serial())
    LOG.clear()
    forked = resume(durable(), first.id, journal=journal, from_stage="square[200]", executor=serial())
    assert (forked["squares"], LOG) == (first["squares"], [200])
    assert names(forked) == names(first)


def test_a_recovered_group_is_restored_as_it_was(run, resume):
    """With the branches that it had when it failed."""
    flow = pipeline(parallel(stream(squares, 6), limit=2), use=[recover(on=ValueError)]) >> asks
    journal = MemoryJournal()
    FAIL.add(3)
    first = run(flow, journal=journal, executor=serial(), run_id="r")
    assert first.status == "suspended"
    LOG.clear()
    result = resume(flow, "r", {"approval": "yes"}, journal=journal, executor=serial())
    assert (result.status, LOG) == ("completed", [])
    assert names(result) == names(first)


def test_streamed_groups_in_branches_catch_up_before_anything_new_runs(run, resume):
    """Rule 3 of the schedule, however groups nest."""
    inner = parallel(stream(squares, 4), limit=1, name="inner")
    flow = parallel(inner, pipeline(square(50), square(60)), name="outer", limit=2)
    journal = MemoryJournal()
    FAIL.update([2, 60])
    run(flow, journal=journal, check=False, run_id="r", executor=serial())
    done = set(LOG) - FAIL
    FAIL.clear()
    LOG.clear()
    result = resume(flow, "r", journal=journal, executor=serial())
    assert result["squares"] == of([0, 1, 2, 3, 50, 60])
    assert done.isdisjoint(LOG)


# -- views


def test_plans_and_pages_show_the_stream(tmp_path):
    """And how many may run at once."""
    flow = square(1) >> parallel(stream(squares, 3), limit=4, name="g")
    assert "stream of squares" in str(flow.plan())
    result = flow.run()
    assert "square[2]" in str(result.ran())
    assert flow.plan().diff(result.ran()) is not None
    assert "square[2]" in result.to_html(tmp_path / "run.html").read_text(encoding="utf-8")
    assert result.status is Status.COMPLETED


# -- iterators, which can be gone through once


async def later():
    """Yield a unit, asynchronously."""
    yield square(1)


@pytest.mark.parametrize("source", [lambda: (square(n) for n in range(3)), lambda: iter([square(1)]), later])
def test_a_used_up_iterator_is_an_error_of_the_second_run(run, source):
    """It would silently do nothing; also where the first run left some of it."""
    flow = parallel(stream(source()), limit=1)
    assert run(flow).status == "completed"
    again = run(flow, check=False)
    assert isinstance(again.error, DefinitionError)
    assert "is used up: an iterator can be gone through once. Write stream(function, *args)" in str(again.error)


def test_a_list_and_a_function_can_be_streamed_again(run):
    """Each run goes through them anew."""
    for source in ([square(1), square(2)], lambda: [square(1), square(2)]):
        flow = parallel(stream(source))
        assert run(flow)["squares"] == run(flow)["squares"] == of([1, 2])


def test_a_retry_of_a_group_does_not_lose_the_branches_of_an_iterator(run):
    """The second attempt would have had none, and would have succeeded."""
    FAIL.add(1)
    flow = pipeline(parallel(stream(iter([square(1)]))), use=[retry(on=ValueError, attempts=2, wait=0)])
    failed = run(flow, check=False)
    assert failed.status == "failed"


@stage(data={"k": 1})
def named(kind):
    action(name="x", collect="out")(lambda: kind)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (
            lambda: stream(named, "a"),
            r"the stage template 'named' is not: put it in a list, as in stream\(\[named\(...\)\]\)",
        ),
        (lambda: stream(named("a")), r"the Stage 'named\[a\]' is not: put it in a list"),
        (lambda: stream(pipeline(square(1), name="p")), "the Pipeline 'p' is not"),
        (lambda: stream(parallel(square(1), name="g")), "the Parallel 'g' is not"),
    ],
    ids=["template", "stage", "pipeline", "group"],
)
def test_a_single_unit_is_not_streamed(make, what):
    """Its parts would run without it: name, data and middleware would be lost."""
    with pytest.raises(DefinitionError, match=what):
        make()


def test_a_function_that_returns_a_single_unit_is_not_streamed(run):
    """It may also be the call of a template; in a list, all of the unit is there."""
    insert = action(name="insert")
    for make in (lambda: named("a"), lambda: pipeline(square(1), name="p")):
        for unit in (parallel(stream(make)), insert(lambda make=make: stream(make))):
            error = run(unit, check=False).error
            assert "returned a single unit" in str(error)
            assert "put it in a list" in str(error)
    finished = run(insert(lambda: stream([named("a")])))
    assert (names(finished), dict(finished.store)) == (["insert", "named[a]"], {"k": 1, "out": ["a"]})


def test_the_stream_of_a_generator_is_named_without_its_address(run):
    """In the error of the second run, and in its note."""
    flow = parallel(stream(square(n) for n in range(2)))
    run(flow)
    error = run(flow, check=False).error
    assert "stream of <generator object test_the_stream_of" in str(error)
    assert " at 0x" not in str(error) + "".join(error.__notes__)


@stage
def slow_page(number: int) -> None:
    @action(collect="pages")
    async def fetch() -> int:
        await asyncio.sleep(0.002)
        return number


def slow_pages(count):
    yield from map(slow_page, range(count))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("journal", [False, True])
def test_a_resume_is_cancelled_whatever_it_is_at(nested, journal):
    """While it is rehearsed and restored, too; to whoever cancels it, that is a cancellation."""
    group = parallel(stream(slow_pages, 6), limit=2)
    flow = parallel(group, name="outer") if nested else group

    async def cancelled(walk, turns=0, after=0.0):
        task = asyncio.create_task(walk)
        await asyncio.sleep(after)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return Run.of(caught.value)

    async def main():
        for turns in range(1, 16):
            options = {"journal": MemoryJournal()} if journal else {}
            run = await cancelled(flow.arun(**options), after=0.006)
            await cancelled(flow.aresume(run.id if journal else run, **options), turns)

    asyncio.run(main())
