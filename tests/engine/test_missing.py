"""Why a value is missing: what became of the units that supply it, for a parameter and for a refused insertion."""

import asyncio

import pytest
from support import text_of

from flowdeco import Context, Stage, Store, action, parallel, pipeline, stage
from flowdeco.durable import SqliteJournal
from flowdeco.engine.outcome import Outcome, Selection, StageRecord, Status
from flowdeco.engine.records import Records
from flowdeco.middleware import recover, retry

LOG = []


@action(name="val")
def val():
    LOG.append("val")
    return 1


@action
def need(val):
    return val


@action
def bad():
    raise OSError("gone")


@action
async def waits():
    await asyncio.sleep(60)


@action
async def after_val():
    while not LOG:
        await asyncio.sleep(0.001)


@action
def remove(ctx):
    del ctx.store["val"]


@action(name="val")
def inserts():
    return Stage("u")


def skips(call):
    return
    yield


def runs_later(call):
    if call.attempt > 1:
        yield


def disables(selector):
    @action
    def disable(ctx: Context) -> None:
        ctx.disable(selector)

    return disable


DATA = Stage("d", data={"val": 1})

REASONS = {
    "deleted": (lambda: val >> remove, ["action 'val' has run, and 'val' was deleted from the store"]),
    "inserted": (lambda: inserts, ["action 'val' has run, and inserted 'u': it returned no data for 'val'"]),
    "pipeline skipped": (
        lambda: pipeline(val, name="N", use=[skips]),
        ["action 'val' of stage 'val' supplies 'val', and did not run: pipeline 'N' was skipped by its middleware"],
    ),
    "data of a skipped pipeline": (
        lambda: pipeline(DATA, name="N", use=[skips]),
        ["stage 'd' supplies 'val' by its data, and did not run: pipeline 'N' was skipped by its middleware"],
    ),
    "data disabled": (
        lambda: disables("d") >> DATA,
        ["stage 'd' supplies 'val' by its data, and was disabled (ctx.disable('d'))"],
    ),
    "branch failed before": (
        lambda: parallel(bad >> val, need.bind(val=1), name="g", tolerate=1),
        ["action 'val' of stage 'val' supplies 'val', and did not run: branch 0 of the parallel group 'g' failed, and was tolerated"],
    ),
    "branch failed after": (
        lambda: parallel(val >> bad, name="g", tolerate=1),
        ["action 'val' has run, and branch 0 of the parallel group 'g' failed, and was tolerated: 'val' was dropped, or never returned"],
    ),
    "branch not begun": (
        lambda: parallel(need.bind(val=1), val, name="g", enough=1, limit=1),
        ["action 'val' of stage 'val' supplies 'val', and did not run: the parallel group 'g' was complete without its branch 1"],
    ),
    "branch left out": (
        lambda: parallel(val >> waits, after_val, name="g", enough=1),
        [
            "action 'val' has run, and the parallel group 'g' was complete without its branch 0: 'val' was dropped, or never returned"
        ],
    ),
    "in a nested group": (
        lambda: pipeline(parallel(parallel(bad >> val, name="inner", tolerate=1), name="outer"), name="N", use=[recover(on=OSError)]),
        ["action 'val' of stage 'val' supplies 'val', and did not run: branch 0 of the parallel group 'inner' failed, and was tolerated"],
    ),
    "skipped in a dropped attempt": (
        lambda: pipeline(pipeline(val, name="N", use=[runs_later]), bad, name="P", use=[recover(on=OSError), retry(on=OSError, attempts=2)]),
        [
            "action 'val' of stage 'val' supplies 'val', and did not run: pipeline 'N' was skipped by its middleware",
            "action 'val' of stage 'val' supplies 'val', and did not run: pipeline 'P' failed before it, and was recovered",
        ],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh():
    """Nothing has run yet."""
    LOG.clear()


def notes(error):
    """The reasons, without the place of the failure."""
    return [note for note in error.__notes__ if not note.startswith("in ")]


@pytest.mark.parametrize(("first", "reasons"), REASONS.values(), ids=REASONS)
def test_a_missing_parameter_says_what_became_of_its_suppliers(run, first, reasons):
    """Each by what is recorded of it, or of the pipeline or group around it."""
    assert notes(run(first() >> need, check=False).error) == reasons


def test_the_reason_is_known_after_a_resume(run, tmp_path):
    """In memory, and by a journal: the outcome of a group has the branches that it lost."""
    flow = parallel(bad >> val, name="g", tolerate=1) >> need
    for journal in (None, SqliteJournal(tmp_path / "runs.db")):
        failed = run(flow, check=False, journal=journal)
        where = {"journal": journal} if journal else {}
        again = flow.resume(failed.id if journal else failed, check=False, **where)
        for each in (failed, again):
            assert "branch 0 of the parallel group 'g' failed, and was tolerated" in text_of(each.error)


def test_a_deleted_key_says_so_wherever_it_is_read(run):
    """Also where nothing of the pipeline has supplied it."""
    text = text_of(run(remove >> need, {"val": 1, "vall": 2}, check=False).error)
    assert "It was in the store, and was deleted. Did you mean 'vall'?" in text
    with pytest.raises(KeyError, match="It was in the store, and was deleted"):
        run(val >> remove)["val"]


def test_a_key_that_a_local_result_hides_is_not_suggested(run):
    """It is the same name: the message says why it is not seen."""

    @stage
    def hides(k):
        action(name="val", use=[recover(on=OSError)])(bad.__wrapped__)
        action(need)

    text = text_of(run(hides("x"), {"val": 1}, check=False).error)
    assert "The store has 'val', but action 'val' of this stage hides it" in text
    assert "Did you mean" not in text
    assert "recovered without an outcome (OSError: gone)" in text


@pytest.mark.parametrize("unit", [need, Stage("n", [need])], ids=["action", "stage"])
def test_a_refused_insertion_says_why_earlier_actions_supplied_nothing(run, unit):
    """As a missing parameter does."""
    nothing, plan = action(name="val")(lambda: None), action(name="plan")(lambda: unit)
    error = run(nothing >> plan, check=False).error
    assert len(notes(error)) == 1
    assert notes(error)[0].startswith("action 'val' has run, and returned nothing for 'val'")


def test_a_refused_insertion_says_nothing_of_local_results(run):
    """They were supplied, and are not for it: the message says how to share them."""

    @stage
    def local(k):
        action(name="val")(lambda: 1)
        action(name="plan")(lambda: Stage("n", [need]))

    later = stage(lambda k: action(name="val")(lambda: 1) and None, name="later")("x")
    for flow in (local("x"), later >> action(name="plan")(lambda: Stage("n", [need]))):
        error = run(flow, check=False).error
        assert "It is local to stage" in str(error)
        assert notes(error) == []


def test_reasons_are_not_kept_where_old_records_are_forgotten():
    """A loop of groups that lose branches costs no memory."""
    records, group = Records(2), parallel(bad, val, tolerate=1)
    for number in range(20):
        records.add_scope(Outcome("g", group, Status.COMPLETED, 0.0, 0.0, selection=Selection({0: OSError()})))
        records.add(StageRecord(f"s{number}", DATA, Status.COMPLETED, 0.0, 0.0))
    assert len(records.scopes) <= 4
    assert records.last_pipelines() == []


def test_so_many_deleted_keys_are_remembered_and_no_more(monkeypatch):
    """A loop that deletes the keys it has written costs no memory."""
    monkeypatch.setattr("flowdeco.model.store._MOST_DELETED", 2)
    store = Store({"a": 1, "b": 1, "c": 1})
    for key in "abc":
        del store[key]
    assert [key for key in "abc" if store.was_deleted(key)] == ["a", "b"]
