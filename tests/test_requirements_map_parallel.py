"""Requirements on map and parallel operations of durable workflows, by their ids: 9-1 to 9-20 and 8-1 to 8-22.

`docs/requirements.md` names their source, and the ones that are left out. A map is a group over a stream of units, an
ordered list of results is collected, and a batch result is the store, the records and the list of failures.
"""

import asyncio

import pytest
from support import names, statuses

from flowdeco import Context, Run, Stage, Suspend, action, parallel, stage, stream
from flowdeco.durable import SqliteJournal, read
from flowdeco.errors import DefinitionError

CALLS = []


@pytest.fixture(autouse=True)
def fresh():
    """Nothing has been called yet."""
    CALLS.clear()


@pytest.fixture
def journal(tmp_path):
    return SqliteJournal(tmp_path / "runs.db")


@stage
def each(item, result):
    """One item of a map, or one branch."""

    @action(collect="results")
    def compute():
        CALLS.append(item)
        if isinstance(result, Exception):
            raise result
        return result


def items(*pairs):
    for item, result in pairs:
        yield each(item, result)


def mapped(*pairs, **options):
    """A map: the units of a stream, one at a time unless it is said otherwise."""
    options.setdefault("limit", 1)
    return parallel(stream(items, *pairs), name="map", **options)


def branches(*pairs, **options):
    """The same as a group of fixed branches."""
    options.setdefault("limit", 1)
    return parallel(*items(*pairs), name="parallel", **options)


operation = pytest.mark.parametrize("operation", [mapped, branches], ids=["map", "parallel"])
NO = ValueError("no")


@action
def waits(ctx: Context, due: bool = False) -> None:
    """A durable wait: the run is suspended until it is resumed."""
    if not due:
        raise Suspend("wait")


def counts(run):
    """How many branches there are records of: succeeded, failed, all."""
    outcome = [record.status for record in run.stages]
    return outcome.count("completed"), outcome.count("failed"), len(outcome)


# -- all succeed


@operation
def test_9_1_and_8_1_results_in_the_order_of_the_items(run, journal, operation):
    """Each in a step of its own, one after the other."""
    result = run(operation((0, "Hello, World!"), (1, "Hello, Kiro!")), journal=journal)
    assert (result["results"], CALLS) == (["Hello, World!", "Hello, Kiro!"], [0, 1])
    assert [record.status for record in read(journal, result.id).stages] == ["completed"] * 2


def test_9_2_and_8_2_a_name_is_not_needed(run):
    """A group without one is called `parallel`."""
    group = parallel(each(1, 2), each(2, 4))
    assert (group.name, run(group)["results"]) == ("parallel", [2, 4])


def test_9_3_the_function_gets_item_and_index(run):
    """The generator of the stream numbers them as it likes."""

    def indexed():
        for index, item in enumerate([10, 20, 30]):
            yield each(index, item + index)

    assert run(parallel(stream(indexed)))["results"] == [10, 21, 32]


@operation
def test_9_4_and_8_5_nothing_to_do(run, journal, operation):
    """The group completes, and has no records."""
    result = run(operation(), journal=journal)
    assert (result.status, dict(result.store), result.stages) == ("completed", {}, [])


def test_8_3_and_9_13_branches_have_names(run, journal):
    """Those of their units, in records, in messages and in the journal."""
    result = run(parallel(Stage("first"), Stage("second"), limit=1), journal=journal)
    assert names(read(journal, result.id)) == ["first", "second"]

    def named():
        for item in (1, 2):
            yield each(item, item * 10).with_options(name=f"item-{item}")

    assert names(run(parallel(stream(named)))) == ["item-1", "item-2"]


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_8_4_results_keep_their_types(run, tmp_path, codec):
    """Also when they are read from the journal."""
    journal = SqliteJournal(tmp_path / "types.db", codec=codec)
    result = run(branches((0, "hello"), (1, 42), (2, {"k": "v"})), journal=journal)
    assert read(journal, result.id)["results"] == result["results"] == ["hello", 42, {"k": "v"}]


@operation
def test_9_11_and_8_11_the_order_does_not_depend_on_timing(run, operation):
    """Whoever ends first."""
    delays = iter([0.02, 0.0, 0.01])

    @stage
    def slow(index):
        @action(collect="results")
        async def work():
            await asyncio.sleep(next(delays))
            return f"r{index}"

    units = [slow(index) for index in range(3)]
    group = parallel(stream(units), limit=2) if operation is mapped else parallel(*units, limit=2)
    assert run(group)["results"] == ["r0", "r1", "r2"]


def test_9_12_and_8_12_a_branch_costs_no_row_of_its_own(run, journal):
    """Only its steps have rows: the action and its stage."""
    result = run(branches((0, "fa"), (1, "fb")), journal=journal)
    rows = [row.kind for row in journal.read(result.id).rows]
    assert result["results"] == ["fa", "fb"]
    assert rows.count("action") == rows.count("stage") == 2
    assert set(rows) == {"action", "stage", "group"}


def test_8_21_groups_nest(run):
    """A branch may be a group; the inner results stay in their order."""
    inner = branches((0, "i1"), (1, "i2"))
    assert run(parallel(inner, limit=1))["results"] == ["i1", "i2"]


# -- failures


@operation
def test_9_5_and_8_6_by_default_the_first_failure_stops_the_rest(run, operation):
    """What has not begun does not begin; the run says so as a failure, and its records as counts."""
    result = run(operation((0, "ok"), (1, NO), (2, "never")), check=False)
    assert (result.status, counts(result), CALLS) == ("failed", (1, 1, 2), [0, 1])


@operation
def test_9_6_and_8_7_the_failure_is_raised(run, operation):
    """It is the exception of the branch."""
    with pytest.raises(ValueError, match="no") as caught:
        run(operation((0, NO), (1, "never")))
    assert (CALLS, counts(Run.of(caught.value))) == ([0], (0, 1, 1))


@operation
def test_9_7_and_8_8_enough_branches_complete_the_group(run, operation):
    """The others do not begin."""
    result = run(operation(*((number, number) for number in range(4)), enough=2))
    assert (result["results"], counts(result)) == ([0, 1], (2, 0, 2))


@operation
def test_9_8_and_8_9_and_8_20_tolerated_failures_stop_nothing(run, operation):
    """All run; there is a list of the failed ones, and records count the others."""
    result = run(operation((0, "a"), (1, NO), (2, "b"), tolerate=1, failures="failed"))
    assert (result["results"], counts(result)) == (["a", "b"], (2, 1, 3))
    assert [error for _, error in result["failed"]] == [NO]
    assert [record.recovered for record in result.stages] == [False, True, False]
    assert result.status == "completed"


@operation
def test_9_9_and_8_10_one_failure_too_many_stops_the_rest(run, operation):
    """And all failures are raised."""
    with pytest.raises(ExceptionGroup) as caught:
        run(operation((0, NO), (1, KeyError("k")), (2, "never"), tolerate=1))
    assert (len(caught.value.exceptions), CALLS) == (2, [0, 1])


def test_9_10_and_8_13_a_share_of_failures(run):
    """Of fixed branches it is known at once that there are too many; of a stream, whose length is not known, at its end."""
    pairs = (0, NO), (1, KeyError("k")), (2, "c"), (3, "d")
    assert run(branches(*pairs, tolerate=0.25), check=False).status == "failed"
    assert CALLS == [0, 1]
    CALLS.clear()
    assert run(mapped(*pairs, tolerate=0.25), check=False).status == "failed"
    assert CALLS == [0, 1, 2, 3]


@operation
def test_8_22_a_share_that_is_just_reached_is_tolerated(run, operation):
    """25 % of four are one."""
    result = run(operation((0, NO), (1, "b"), (2, "c"), (3, "d"), tolerate=0.25))
    assert (result["results"], counts(result)) == (["b", "c", "d"], (3, 1, 4))


@operation
def test_8_16_all_may_fail_if_all_are_tolerated(run, operation):
    """The group completes with nothing but a list of failures."""
    result = run(operation((0, NO), (1, NO), (2, NO), tolerate=3, failures="failed"))
    assert (result.status, "results" in result.store, len(result["failed"])) == ("completed", False, 3)


@operation
def test_8_17_too_few_complete(run, operation):
    """Here that is a failure, as soon as it is known; with `tolerate=` all run where that is possible."""
    result = run(operation((0, "a"), (1, NO), (2, "c"), enough=3), check=False)
    assert (result.status, CALLS) == ("failed", [0, 1])
    CALLS.clear()
    result = run(operation((0, "a"), (1, NO), (2, "c"), enough=3, tolerate=1), check=False)
    assert (result.status, type(result.error)) == ("failed", ValueError)
    assert CALLS == ([0, 1, 2] if operation is mapped else [0, 1])


@operation
def test_8_18_too_many_failures_before_enough_have_completed(run, operation):
    """The failures decide."""
    result = run(operation((0, NO), (1, KeyError()), (2, "c"), (3, "d"), enough=2, tolerate=1), check=False)
    assert (result.status, CALLS, len(result.error.exceptions)) == ("failed", [0, 1], 2)


def test_8_19_an_invalid_limit_is_refused_before_anything_runs():
    """When the group is made."""
    with pytest.raises(DefinitionError, match="limit is a positive number of branches"):
        branches((0, "a"), (1, "b"), limit=0)


# -- suspended and resumed


@operation
def test_9_15_and_8_14_a_branch_that_waits_suspends_the_run_and_completed_ones_are_not_run_again(
    run, journal, operation
):
    """What comes after the wait runs when the run is resumed."""
    units = [each(0, "r0"), waits >> each(1, "r1")]
    flow = parallel(stream(list, units), limit=1) if operation is mapped else parallel(*units, limit=1)
    assert run(flow, journal=journal, run_id="r").status == "suspended"
    assert CALLS == [0]
    result = flow.resume("r", {"due": True}, journal=journal)
    assert (result["results"], CALLS) == (["r0", "r1"], [0, 1])


@operation
def test_9_16_large_results(run, journal, operation):
    """They are written like any other, and are there after a resume."""
    flow = operation(*((number, "x" * 70_000) for number in range(4))) >> waits
    run(flow, journal=journal, run_id="r")
    result = flow.resume("r", {"due": True}, journal=journal)
    assert (list(map(len, result["results"])), CALLS) == ([70_000] * 4, [0, 1, 2, 3])


@operation
def test_9_17_a_completed_group_is_not_run_again(run, journal, operation):
    """It is restored as one."""
    flow = operation((0, "A"), (1, "B")) >> waits
    run(flow, journal=journal, run_id="r")
    result = flow.resume("r", {"due": True}, journal=journal)
    assert (result["results"], CALLS, statuses(result)[-1]) == (["A", "B"], [0, 1], ("waits", "completed"))


@operation
def test_9_18_nor_is_one_that_completed_with_a_failure(run, journal, operation):
    """The failed branch is not tried again."""
    flow = operation((0, "A"), (1, NO), tolerate=1, failures="failed") >> waits
    first = run(flow, journal=journal, run_id="r")
    result = flow.resume("r", {"due": True}, journal=journal)
    assert (result["results"], CALLS) == (["A"], [0, 1])
    assert [(name, str(error)) for name, error in result["failed"]] == [(first.stages[1].name, "no")]
    assert counts(result) == (2, 1, 3)


def test_9_14_and_9_19_and_9_20_and_8_15_values_are_written_by_the_codec_of_the_journal(run, tmp_path):
    """One codec for a journal, and registered types in it, instead of one for each operation."""
    journal = SqliteJournal(tmp_path / "json.db", codec="json")
    flow = mapped((0, "X"), (1, "Y")) >> waits
    run(flow, journal=journal, run_id="r")
    assert flow.resume("r", {"due": True}, journal=journal)["results"] == ["X", "Y"]
