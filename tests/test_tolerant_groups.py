"""Groups that may lose a branch: `tolerate`, `failures`, and `enough`."""

import asyncio
import threading

import pytest
from support import names, statuses

from flowdeco import Bail, Context, Key, Run, Stage, Status, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal, read
from flowdeco.errors import DefinitionError, RunError, StoreTypeError, WriteConflictError
from flowdeco.executors import serial
from flowdeco.middleware import recover

LOG = []  # the numbers of branches whose actions were called
FAIL = {}  # what the branches with these numbers raise
PATIENCE = 10


@pytest.fixture(autouse=True)
def fresh():
    """Nothing has been called yet."""
    LOG.clear()
    FAIL.clear()


@pytest.fixture(params=[False, True], ids=["resume", "aresume"])
def resume(request):
    """Continue a run, once by `resume` and once by `aresume`."""

    def continued(flow, *args, **options):
        return asyncio.run(flow.aresume(*args, **options)) if request.param else flow.resume(*args, **options)

    return continued


@pytest.fixture(params=["memory", "pickle", "json"])
def journal(request, tmp_path):
    """A journal, with each codec."""
    return MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "r.db", codec=request.param)


@stage
def square(number: int) -> None:
    @action(collect="squares")
    def compute() -> int:
        LOG.append(number)
        if number in FAIL:
            raise FAIL[number]
        return number * number


def squares(*numbers):
    yield from map(square, numbers)


def fail(*numbers):
    """Have branches fail."""
    FAIL.update((number, ValueError(f"no {number}")) for number in numbers)


def group(streamed, *numbers, **options):
    """The same group, of fixed branches and of those of a stream."""
    options.setdefault("limit", 2)
    if streamed:
        return parallel(stream(squares, *numbers), **options)
    return parallel(*squares(*numbers), **options)


both = pytest.mark.parametrize("streamed", [False, True], ids=["fixed", "streamed"])


def shown(failures):
    """Names of branches and their errors as text."""
    return [(name, type(error).__name__, str(error)) for name, error in failures]


@action
def asks(approval: str = "") -> None:
    if not approval:
        raise Suspend("wait for approval")


# -- tolerate


@both
def test_a_lost_branch_merges_nothing_and_is_listed(run, streamed):
    """Its stage is failed and recovered; the group completes."""
    fail(1, 3)
    result = run(group(streamed, 0, 1, 2, 3, 4, tolerate=2, failures="lost") >> square(9))
    assert result["squares"] == [0, 4, 16, 81]
    assert shown(result["lost"]) == [("square[1]", "ValueError", "no 1"), ("square[3]", "ValueError", "no 3")]
    assert result["lost"][0][1] is FAIL[1]
    assert [(record.name, record.status, record.recovered) for record in result.stages[1:3]] == [
        ("square[1]", "failed", True),
        ("square[2]", "completed", False),
    ]
    assert result.status == "completed"


@both
def test_nothing_lost_is_an_empty_list(run, streamed):
    """A new one for each run."""
    flow = group(streamed, 1, 2, tolerate=1, failures=Key("lost", list))
    first, second = run(flow), run(flow)
    assert first["lost"] == second["lost"] == []
    assert first["lost"] is not second["lost"]


@both
@pytest.mark.parametrize("tolerate", [1, 0.2])
def test_if_more_fail_than_are_tolerated_all_failures_are_raised(run, streamed, tolerate):
    """In branch order, tolerated ones included; nothing is merged, and their records are plain failures."""
    fail(0, 3)
    with pytest.raises(ExceptionGroup, match="2 branches of the parallel group 'parallel' failed") as caught:
        run(group(streamed, *range(5), tolerate=tolerate, limit=1))
    assert list(caught.value.exceptions) == [FAIL[0], FAIL[3]]
    failed = Run.of(caught.value)
    assert [record.recovered for record in failed.stages] == [False] * len(failed.stages)
    assert "squares" not in failed.store
    begun = 5 if streamed and tolerate == 0.2 else 4  # a share of a stream is judged at its end
    assert len(failed.stages) == begun


def test_one_failure_too_many_is_raised_as_itself(run):
    """As usual."""
    fail(1)
    with pytest.raises(ValueError, match="no 1"):
        run(group(False, 0, 1, 2, tolerate=0))
    with pytest.raises(ValueError, match="no 1"):
        run(group(True, 0, 1, 2, tolerate=0.3))


@both
@pytest.mark.parametrize(("share", "count", "lost"), [(0.29, 100, 29), (0.5, 3, 1), (0.1, 9, 0), (0.0, 3, 0)])
def test_a_share_is_that_of_all_branches_exactly(streamed, share, count, lost):
    """29 % of a hundred are 29, whatever 0.29 is in binary."""
    flow = group(streamed, *range(count), tolerate=share, limit=count)
    fail(*range(lost))
    assert len(flow.run(executor=serial())["squares"]) == count - lost
    fail(*range(lost + 1))
    assert flow.run(executor=serial(), check=False).status == "failed"


@both
def test_interrupts_bails_and_exits_are_not_tolerated(run, streamed):
    """Only exceptions are."""
    FAIL[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(group(streamed, 0, 1, tolerate=2), executor=serial())
    FAIL[1] = SystemExit(3)
    with pytest.raises(SystemExit):
        run(group(streamed, 0, 1, tolerate=2), executor=serial())
    FAIL[1] = Bail("enough")
    assert run(group(streamed, 0, 1, 2, tolerate=2), executor=serial()).status == "bailed"


def test_a_failing_stream_is_not_a_failing_branch(run):
    """It is the group's failure; what was lost before is recorded as lost."""

    def breaks():
        yield square(0)
        yield square(1)
        raise KeyError("gone")

    fail(0)
    with pytest.raises(KeyError) as caught:
        run(parallel(stream(breaks), limit=1, tolerate=5))
    assert [record.recovered for record in Run.of(caught.value).stages] == [True, False]


@both
def test_a_failed_pipeline_in_a_lost_branch_counts_as_recovered_too(run, streamed):
    """And what completed in it stays completed."""
    fail(1)
    inner = pipeline(square(0), square(1), square(2), name="inner", use=[watched])
    flow = parallel(stream(iter, [inner]), tolerate=1) if streamed else parallel(inner, tolerate=1)
    result = run(flow)
    assert [(record.status, record.recovered) for record in result.stages] == [("completed", False), ("failed", True)]
    assert [(record.status, record.recovered) for record in result.pipelines] == [("failed", True)]
    assert "squares" not in result.store


def watched(call):
    yield


@both
def test_groups_nest_and_each_tolerates_its_own(run, streamed):
    """A group that fails is a branch that fails."""
    fail(1, 2)
    inner = group(streamed, 1, 2, tolerate=1, name="inner")
    result = run(parallel(inner, square(3), tolerate=1, failures="lost"))
    assert result["squares"] == [9]
    ((name, error),) = result["lost"]
    assert (name, type(error)) == ("inner", ExceptionGroup)
    assert all(record.recovered for record in result.stages[:2])


@both
def test_a_branch_that_writes_the_key_of_the_failures(run, streamed):
    """It is a conflict, which names the branch."""
    writes = action(name="writes", returns="lost")(lambda: 1)
    flow = parallel(stream(iter, [writes]), failures="lost") if streamed else parallel(writes, failures="lost")
    with pytest.raises(WriteConflictError, match=r"the branch 0 \('writes'\) of the parallel group"):
        run(flow)


def test_the_key_of_the_failures_may_be_typed(run):
    """A wrong type is an error."""
    with pytest.raises(StoreTypeError):
        run(parallel(square(1), failures=Key("lost", dict)))


def test_validate_knows_the_key_of_the_failures():
    """A later action may take it."""

    @action
    def report(lost: list[object]) -> int:
        return len(lost)

    flow = parallel(square(1), square(2), tolerate=1, failures="lost") >> report
    assert flow.validate() == []
    assert flow.run()["report"] == 0


def test_validate_warns_of_branches_that_write_one_key():
    """Unless a reducer combines the values; what is collected, or local to a stage, is no problem."""
    one, two = action(name="one", returns="k")(lambda: 1), action(name="two", returns="k")(lambda: 2)
    (problem,) = parallel(one, two).validate()
    assert (problem.action, problem.key, problem.certain) == ("two", "k", False)
    assert "branch 1" in problem.message
    assert parallel(one, two, merge={"k": max}).validate() == []
    assert parallel(square(1), square(2)).validate() == []
    assert parallel(one >> two, square(1)).validate() == []


# -- enough


@both
def test_enough_branches_complete_the_group(run, streamed):
    """The others do not begin, and have no record."""
    result = run(group(streamed, *range(50), enough=3, limit=1) >> square(9))
    assert result["squares"] == [0, 1, 4, 81]
    assert names(result) == ["square[0]", "square[1]", "square[2]", "square[9]"]


@both
def test_losers_are_cancelled(run, streamed):
    """A coroutine is cancelled; a sync call is awaited, and what it returns counts no more."""
    release = threading.Event()

    @action(collect="all")
    async def waits() -> int:
        await asyncio.sleep(PATIENCE)
        return 1

    @action(collect="all")
    def blocks() -> int:
        assert release.wait(PATIENCE)
        return 2

    @action(collect="all")
    def wins() -> int:
        threading.Timer(0.05, release.set).start()
        return 3

    units = [waits, blocks, wins]
    flow = parallel(stream(iter, units), enough=1) if streamed else parallel(*units, enough=1)
    result = run(flow)
    assert result["all"] == [3]
    assert statuses(result) == [("waits", "cancelled"), ("blocks", "cancelled"), ("wins", "completed")]
    assert result.status == "completed"


@both
def test_branches_that_finish_together_count_in_branch_order(run, streamed):
    """With calls that are made one after the other, all are there at once."""
    result = run(group(streamed, 5, 6, 7, 8, enough=2, limit=4), executor=serial())
    assert result["squares"] == [25, 36]
    losers = [] if streamed else ["cancelled"] * 2  # the next ones are pulled when these have ended
    assert [status for _, status in statuses(result)] == ["completed"] * 2 + losers
    empty = [Stage(name, data={"who": name}) for name in "abc"]
    assert run(parallel(*empty, enough=1))["who"] == "a"


@both
def test_the_effects_of_those_that_count_are_merged_in_branch_order(run, streamed):
    """Whatever the order of their ends."""
    first = threading.Event()
    slow = action(name="slow", collect="all")(lambda: first.wait(PATIENCE) and "slow")
    quick = action(name="quick", collect="all")(lambda: first.set() or "quick")
    units = [slow, quick]
    flow = parallel(stream(iter, units), enough=2) if streamed else parallel(*units, enough=2)
    assert run(flow)["all"] == ["slow", "quick"]


def test_more_than_there_are_is_an_error(run):
    """Of the definition where that is known; otherwise of the run."""
    with pytest.raises(DefinitionError, match="enough=3 is more than the 1 branch of the parallel group"):
        group(False, 0, enough=3)
    with pytest.raises(DefinitionError, match="enough=3 is more than the 2 branches"):
        group(False, 0, 1, enough=3)
    with pytest.raises(RunError, match="completes when 3 branches have, and its stream yielded 2"):
        run(group(True, 0, 1, enough=3))


@both
def test_too_many_lost_for_enough_to_complete(run, streamed):
    """All failures are raised: the group cannot complete any more."""
    fail(0, 1)
    with pytest.raises(ExceptionGroup):
        run(group(streamed, 0, 1, 2, enough=2, tolerate=3, limit=1))


@both
def test_lost_branches_do_not_count_for_enough(run, streamed):
    """They are tolerated, and listed."""
    fail(0)
    result = run(group(streamed, 0, 1, 2, 3, enough=2, tolerate=1, failures="lost", limit=1))
    assert result["squares"] == [1, 4]
    assert shown(result["lost"]) == [("square[0]", "ValueError", "no 0")]


def test_a_loser_that_waits_for_a_person_is_cancelled(run):
    """The group is complete without it."""
    result = run(parallel(asks, square(1), square(2), enough=1, limit=1))
    assert statuses(result) == [("asks", "cancelled"), ("square[1]", "completed")]
    assert result.status == "completed"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_skipped_branch_is_not_one_of_those_that_are_enough(run, wrapped):
    """Unless there are no others: then the group completes without."""
    branches = [action(name=name)(lambda: 1) for name in "abc"]
    if wrapped:
        branches = [pipeline(each, name=f"around {each.name}", tags=[each.name]) for each in branches]
    skips = [f"tag:{name}" if wrapped else name for name in "abc"]
    group, journal = parallel(*branches, enough=1, limit=1), MemoryJournal()
    result = run(group, skip=skips[:1], journal=journal, run_id="r")
    for found in (result, read(journal, "r")):
        assert statuses(found)[-1] == ("b", "completed")
        assert found.store == {"b": 1}
        assert "c" not in names(found)
    result = run(group, skip=skips)
    assert (result.status, dict(result.store)) == ("completed", {})


def test_all_that_waits_in_a_loser_is_cancelled(run):
    """In a nested group and a pipeline with options, too: stages with their actions, as they are read as well."""

    @action
    def quick() -> int:
        return 1

    journal = MemoryJournal()
    inner = parallel(asks, quick, pipeline(asks.with_options(name="more"), tags=["waits"]))
    result = run(parallel(inner, square(1), enough=1, limit=1), journal=journal, run_id="r")
    for found in (result, read(journal, "r")):
        assert found.status == "completed"
        assert [(each.name, each.status) for each in found.stages if each.name in ("asks", "more")] == [
            ("asks", "cancelled"),
            ("more", "cancelled"),
        ]
        assert {each.status for stage in found.stages if stage.status == "cancelled" for each in stage.actions} <= {
            "cancelled",
            "completed",
        }


def test_nested_groups_of_losers_are_cancelled(run):
    """However deep."""

    @action
    async def waits() -> None:
        await asyncio.sleep(PATIENCE)

    @action
    async def quick() -> int:
        await asyncio.sleep(0.01)
        return 1

    result = run(parallel(parallel(waits, parallel(waits)), quick, enough=1))
    assert [status for _, status in statuses(result)] == ["cancelled", "cancelled", "completed"]


def test_a_share_is_not_judged_once_enough_have_completed(run):
    """It is one of all branches of a stream, most of which have not been pulled."""

    def units():
        yield action(name="bad")(failing)
        yield from [action(name="good", collect="good")(lambda: 1)] * 50

    done = run(parallel(stream(units), limit=1, tolerate=0.1, enough=2, failures="failed"))
    assert (done.status, done["good"], [name for name, _ in done["failed"]]) == ("completed", [1, 1], ["bad"])
    assert [(stage.name, stage.recovered) for stage in done.stages[:1]] == [("bad", True)]


def failing():
    raise ValueError("bad")


def test_a_streamed_group_that_has_enough_closes_its_stream(run):
    """It is not pulled any more."""
    closed = []

    def endless():
        try:
            number = 0
            while True:
                yield square(number)
                number += 1
        finally:
            closed.append(True)

    assert run(parallel(stream(endless), enough=3, limit=1))["squares"] == [0, 1, 4]
    assert closed == [True]


# -- definitions


@pytest.mark.parametrize(
    "options",
    [
        {"tolerate": 1.0}, {"tolerate": 1.5}, {"tolerate": True}, {"tolerate": -1}, {"tolerate": -0.1},
        {"tolerate": float("nan")}, {"tolerate": "1"}, {"tolerate": None}, {"enough": 0}, {"enough": True},
        {"enough": 1.0}, {"enough": 4}, {"failures": ""}, {"failures": 1}, {"failures": ["k"]},
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused_at_once(options):
    """When the group is made."""
    with pytest.raises(DefinitionError):
        group(False, 1, 2, 3, **options)


def test_options_are_part_of_the_value():
    """Equal, picklable, changed by `with_options`."""
    import pickle

    one = group(False, 1, 2, tolerate=0.5, failures="lost", enough=1)
    assert (
        one
        == pickle.loads(pickle.dumps(one))
        == group(False, 1, 2).with_options(tolerate=0.5, failures="lost", enough=1)
    )
    assert (one.tolerate, one.failures, one.enough) == (0.5, "lost", 1)
    assert one != group(False, 1, 2)


# -- durable


@both
def test_a_lost_branch_of_an_unfinished_group_is_not_run_again(run, resume, journal, streamed):
    """A resume restores its record, and lists it."""
    fail(0)
    units = [square(0), asks, square(2)]
    flow = _of(units, streamed, tolerate=1, failures="lost", limit=1)
    assert run(flow, journal=journal, run_id="r").status == "suspended"
    assert [record.recovered for record in read(journal, "r").stages][:1] == [True]
    called = list(LOG)
    FAIL.clear()
    result = resume(flow, "r", {"approval": "yes"}, journal=journal)
    assert LOG == called + ([2] if 2 not in called else [])
    assert (result["squares"], shown(result["lost"])[0][0]) == ([4], "square[0]")
    assert "no 0" in shown(result["lost"])[0][2]
    assert [(record.name, record.status, record.recovered) for record in result.stages] == [
        ("square[0]", "failed", True), ("asks", "completed", False), ("square[2]", "completed", False),
    ]  # fmt: skip
    again = resume(flow, "r", journal=journal)
    assert shown(again["lost"]) == shown(read(journal, "r")["lost"])
    assert statuses(again) == statuses(result)


def _of(units, streamed, **options):
    return parallel(stream(_same, *units), **options) if streamed else parallel(*units, **options)


def _same(*units):
    yield from units


@both
def test_a_lost_branch_is_not_run_again_in_memory(run, resume, streamed):
    """Also not when the run is resumed twice."""
    fail(0)
    flow = _of([square(0), asks, square(2)], streamed, tolerate=1, failures="lost", limit=1)
    suspended = run(flow)
    FAIL.clear()
    for _ in range(2):
        result = resume(flow, suspended, {"approval": "yes"})
        assert (LOG.count(0), result["squares"], shown(result["lost"])) == (
            1, [4], [("square[0]", "ValueError", "no 0")],
        )  # fmt: skip


@both
def test_a_lost_branch_is_not_run_again_after_a_crash(journal, streamed):
    """Its loss was written with its last step."""
    fail(0)
    flow = _of([square(0), square(1), square(2)], streamed, tolerate=1, failures="lost", limit=1)
    FAIL[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        flow.run(journal=journal, run_id="r", executor=serial())
    FAIL.clear()
    LOG.clear()
    result = flow.resume("r", journal=journal)
    assert (LOG, result["squares"], len(result["lost"])) == ([1, 2], [1, 4], 1)


@both
@pytest.mark.parametrize("in_memory", [True, False])
def test_after_too_many_failures_all_failed_branches_run_again(run, resume, streamed, in_memory):
    """They were raised as usual, and are resumed as usual; those that completed are not run again."""
    journal = None if in_memory else MemoryJournal()
    flow = group(streamed, *range(5), tolerate=1, failures="lost", limit=1)
    fail(1, 3)
    failed = run(flow, journal=journal, check=False)
    FAIL.clear()
    LOG.clear()
    result = resume(flow, failed)
    assert (sorted(LOG), result["squares"], result["lost"]) == ([1, 3, 4], [0, 1, 4, 9, 16], [])


@both
def test_which_branches_counted_is_recorded(run, resume, journal, streamed):
    """A resume keeps to it, and calls nothing again."""
    flow = _of([blocking, square(1), square(2)], streamed, enough=2) >> asks
    first = run(flow, journal=journal, run_id="r")
    assert (first.status, first["squares"]) == ("suspended", [1, 4])
    assert statuses(first)[:3] == [("blocking", "cancelled"), ("square[1]", "completed"), ("square[2]", "completed")]
    LOG.clear()
    result = resume(flow, "r", {"approval": "yes"}, journal=journal)
    assert (LOG, result["squares"]) == ([], [1, 4])
    assert statuses(result)[:3] == statuses(first)[:3]
    assert statuses(read(journal, "r"))[:3] == statuses(first)[:3]


@action(collect="squares")
async def blocking() -> int:
    await asyncio.sleep(PATIENCE)
    return -1


@both
def test_losers_that_never_began_have_no_record_after_a_resume(run, resume, journal, streamed):
    """Nor are they run."""
    flow = group(streamed, *range(6), enough=2, limit=1) >> asks
    run(flow, journal=journal, run_id="r")
    LOG.clear()
    result = resume(flow, "r", {"approval": "yes"}, journal=journal)
    assert (LOG, names(result)) == ([], ["square[0]", "square[1]", "asks"])
    assert names(resume(flow, "r", journal=journal)) == names(result)
    assert names(read(journal, "r")) == names(result)
    assert result["squares"] == [0, 1]


@both
def test_branches_of_which_the_journal_has_nothing(resume, streamed):
    """One that had not begun begins, in its place; a lost one stays lost."""
    fail(0)
    flow = group(streamed, *range(4), tolerate=1, failures="lost", limit=1)
    whole = MemoryJournal()
    flow.run(journal=whole, run_id="r")
    rows = whole.history("r")
    branches = list(dict.fromkeys(row.branch for row in rows if row.branch != "0"))
    running = [row for row in rows if row.branch == "0" and row.status == "running"]
    assert (len(branches), len(running)) == (4, 2 + streamed)  # as it began, lost a branch, had more than expected
    left = [row for row in rows if row in running or row.branch == branches[3]]
    journal = MemoryJournal()
    journal.create("r", "pipeline", journal.codec.encode({}, "inputs"), ())
    journal.write("r", left)
    journal.close("r", "running", None, None)
    FAIL.clear()
    LOG.clear()
    result = resume(flow, "r", journal=journal)
    assert (LOG, result["squares"], names(result)) == ([1, 2], [1, 4, 9], ["square[1]", "square[2]", "square[3]"])
    assert shown(result["lost"]) == [("square[0]", "ValueError", "no 0")]


def test_an_error_that_cannot_be_written_is_listed_by_its_text(run, journal):
    """After a resume; the run has the exception itself."""

    class Local(Exception):
        def __reduce__(self):
            raise TypeError("never")

    FAIL[0] = Local("no")
    flow = group(False, 0, 1, tolerate=1, failures="lost")
    result = run(flow, journal=journal, run_id="r")
    assert result["lost"][0][1] is FAIL[0]
    ((name, error),) = read(journal, "r")["lost"]
    assert (name, str(error)) == ("square[0]", "Local: no")


def test_the_result_of_a_run_is_that_of_branches_that_count(run, journal):
    """Also when it is read."""

    @action
    def fails() -> int:
        raise ValueError

    one, two = action(name="one")(lambda: 1), action(name="two")(lambda: 2)
    result = run(parallel(one, two >> fails, tolerate=1), journal=journal, run_id="r")
    assert result.result == 1
    assert read(journal, "r").result == 1


def test_a_recovered_group_of_lost_branches(run, resume, journal):
    """Restored as it was."""
    flow = pipeline(group(False, 0, 1, 2, tolerate=1, limit=1), use=[recover(on=Exception)]) >> asks
    fail(0, 1)
    first = run(flow, journal=journal, run_id="r")
    LOG.clear()
    result = resume(flow, "r", {"approval": "yes"}, journal=journal)
    assert (LOG, statuses(result)[:2]) == ([], statuses(first)[:2])
    assert result.status is Status.COMPLETED


def test_a_branch_may_use_its_context(run):
    """What a lost one wrote, inserted and switched is dropped."""

    @action
    def writes(ctx: Context) -> None:
        ctx.store["written"] = 1
        ctx.disable("square[5]")

    fail(1)
    result = run(parallel(writes >> square(1), square(2), tolerate=1) >> square(5))
    assert ("written" in result.store, result["squares"]) == (False, [4, 25])
