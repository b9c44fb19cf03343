"""Why a value is missing: what became of the units that supply it, for a parameter and for a refused insertion."""

import asyncio
import contextlib

import pytest
from support import again, failing, flaky, text_of

from flowdeco import Context, Stage, Store, action, parallel, pipeline, stage
from flowdeco.durable import SqliteJournal
from flowdeco.engine.outcome import Outcome, Selection, StageRecord, Status
from flowdeco.engine.records import Records
from flowdeco.middleware import atomic, recover, retry

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


@action(name="val")
async def slow():
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


def disables(*selectors):
    @action
    def disable(ctx: Context) -> None:
        ctx.disable(*selectors)

    return disable


def opens(call):
    """A layer that may write anything: so nothing is certain before the run."""
    yield
    call.store["opened"] = 1


def undeterred(call):
    with contextlib.suppress(KeyboardInterrupt):
        yield


def fails_at_once(call):
    raise OSError("at once")
    yield


def nothing(name="val", **options):
    """An action that returns nothing."""
    return action(name=name, **options)(lambda: None)


@stage
def template(kind):
    nothing()


@stage
def inserting(kind):
    nothing()
    action(name="plan")(lambda: nothing("other"))


DATA = Stage("d", data={"val": 1})
RECOVER = recover(on=OSError)
SUPPLIED = "action 'val' supplies 'val', and "
NOTHING = "has run, and returned nothing for 'val': None, and a generator that yields nothing, are not stored. Give the parameter a default, or have the action store None by its annotation: `-> T | None`"
OTHER = Stage("val", [nothing("other")])  # a stage of the same name, elsewhere

REASONS = {
    "None": (lambda: nothing(), [f"action 'val' {NOTHING}"]),
    "None, behind other actions": (lambda: Stage("s", [nothing("other"), nothing(), nothing("last")]), [f"action 'val' {NOTHING}"]),
    "None of an inserted action": (
        lambda: Stage("s", [action(name="plan")(lambda: nothing())]), [f"action 'val' {NOTHING}"],
    ),
    "None, several times": (
        lambda: pipeline(*(nothing(name, returns="val") for name in "abcd")),
        [f"action {name!r} {NOTHING}" for name in "dcb"],
    ),
    "None in a local stage": (lambda: template("x"), []),
    "None in a local stage that inserts": (lambda: inserting("x"), []),
    "recovered": (lambda: failing([], "val", OSError("gone"), use=[RECOVER]), [f"{SUPPLIED}failed: it was recovered without an outcome (OSError: gone)"]),
    "stage recovered": (
        lambda: Stage("s", [failing([], "val", OSError("gone"))], use=[RECOVER]),
        [f"{SUPPLIED}failed: that was recovered around it (OSError: gone)"],
    ),
    "stage recovered after it": (
        lambda: Stage("s", [val, bad], use=[RECOVER, atomic]),
        ["action 'val' has run, and stage 's' failed and was recovered: 'val' was dropped, or never returned"],
    ),
    "stage recovered before it": (
        lambda: Stage("s", [bad, val, nothing("other")], data={"other": 1}, use=[RECOVER]),
        [f"{SUPPLIED}did not run: its stage 's' failed before it, and was recovered"],
    ),
    "stage that was not entered": (
        lambda: Stage("s", [val], use=[RECOVER, fails_at_once]),
        [f"{SUPPLIED}did not run: its stage 's' failed before it, and was recovered"],
    ),
    "pipeline recovered before it": (
        lambda: pipeline(bad, val, name="p", use=[RECOVER]),
        ["action 'val' of stage 'val' supplies 'val', and did not run: pipeline 'p' failed before it, and was recovered"],
    ),
    "pipeline recovered after it": (lambda: pipeline(nothing(), bad, name="p", use=[RECOVER]), [f"action 'val' {NOTHING}"]),
    "pipeline tried again": (lambda: pipeline(flaky([], "once", 1), nothing(), name="p", use=[again(2)]), [f"action 'val' {NOTHING}"]),
    "interrupted": (
        lambda: pipeline(failing([], "val", KeyboardInterrupt()), use=[undeterred]),
        [f"{SUPPLIED}was cancelled: something around it failed and was recovered"],
    ),
    "interrupted before it": (
        lambda: pipeline(Stage("s", [failing([], "other", KeyboardInterrupt()), val]), use=[undeterred]),
        [f"{SUPPLIED}did not run: its stage 's' was cancelled before it"],
    ),
    "group recovered after it": (
        lambda: pipeline(OTHER, parallel(pipeline(val, name="q"), pipeline(bad, name="deep", use=[opens]), name="g", limit=1), use=[RECOVER]),
        ["action 'val' has run, and parallel group 'g' failed and was recovered: 'val' was dropped, or never returned"],
    ),
    "group with a pipeline tried again": (
        lambda: parallel(nothing(), pipeline(Stage("s", [bad], use=[RECOVER]), flaky([], "once", 1), name="q", use=[again(2)]), name="g"),
        [f"action 'val' {NOTHING}"],
    ),
    "cancelled in a group": (
        lambda: pipeline(parallel(slow, bad, name="g"), use=[RECOVER]),
        [f"{SUPPLIED}was cancelled: parallel group 'g' failed and was recovered"],
    ),
    "cancelled before it in a group": (
        lambda: pipeline(parallel(Stage("s", [waits, val]), bad, name="g"), use=[RECOVER]),
        [f"{SUPPLIED}did not run: its stage 's' was cancelled before it"],
    ),
    "group beside a recovered failure": (
        lambda: pipeline(bad, name="elsewhere", use=[RECOVER]) >> parallel(nothing(), need.bind(val=1), name="g"),
        [f"action 'val' {NOTHING}"],
    ),
    "group with a recovered stage": (
        lambda: parallel(nothing(), Stage("s", [bad], use=[RECOVER]), name="g"), [f"action 'val' {NOTHING}"],
    ),
    "skipped by middleware": (lambda: val.with_options(use=[skips]), [f"{SUPPLIED}was skipped"]),
    "stage skipped by middleware": (lambda: Stage("s", [val], use=[skips]), [f"{SUPPLIED}its stage 's' was skipped"]),
    "disabled": (
        lambda: disables("val", "zzz") >> val, [f"{SUPPLIED}its stage 'val' was disabled (ctx.disable('val'))"],
    ),
    "an action disabled": (
        lambda: disables("s/val") >> Stage("s", [nothing("other"), val]), [f"{SUPPLIED}was disabled (ctx.disable('s/val'))"],
    ),
    "None in a pipeline, and another one that is skipped": (
        lambda: pipeline(nothing(), name="q") >> pipeline(need.bind(val=1), name="M", use=[skips]),
        [f"action 'val' {NOTHING}"],
    ),
    "skipped pipeline, and another stage of that name": (
        lambda: pipeline(OTHER, name="M") >> pipeline(val, name="N", use=[skips]),
        ["action 'val' of stage 'val' supplies 'val', and did not run: pipeline 'N' was skipped by its middleware"],
    ),
    "inserted two": (lambda: action(name="val")(lambda: [Stage("u"), Stage("v")]), ["action 'val' has run, and inserted 'u', 'v': it returned no data for 'val'"]),
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
    assert notes(run(first() >> need, check=False, use=[opens]).error) == reasons


LATER = "action 'val' of stage 'val' supplies 'val', but comes later: let it run first"
BESIDE = "action 'val' of stage 'val' supplies 'val' in another branch of the parallel group {!r}, and branches do not see each other: let it run before the group"


@stage
def local(kind):
    action(need)
    action(val)


@stage
def reads_its_own(kind):
    action(name="val")(need.__wrapped__)


SMOOTH = action(name="val")(need.__wrapped__)

FLOWS = {
    "later": (lambda: need >> val >> DATA, [LATER]),
    "later, as data": (lambda: need >> DATA, ["stage 'd' supplies 'val' by its data, but comes later: let it run first"]),
    "later in the stage": (
        lambda: Stage("s", [need, nothing("other"), val]) >> val,
        ["action 'val' supplies 'val', but comes later, in the same stage: let it run first"],
    ),
    "later in a local stage": (
        lambda: local("x") >> val, ["action 'val' supplies 'val', but comes later, in the same stage: let it run first"],
    ),
    "only where a local result hides it": (lambda: reads_its_own("x") >> val, []),
    "only by itself": (lambda: SMOOTH >> SMOOTH, []),
    "by itself, and later": (lambda: SMOOTH >> SMOOTH >> val, [LATER]),
    "before a branch": (lambda: nothing() >> parallel(need, bad, limit=1), [f"action 'val' {NOTHING}"]),
    "in another branch": (lambda: parallel(need, val, name="g", limit=1), [BESIDE.format("g")]),
    "in a branch of the outer group": (
        lambda: parallel(parallel(need, bad, name="inner", limit=1), val, name="outer", limit=1), [BESIDE.format("outer")],
    ),
    "behind a recovered local result": (
        lambda: nothing() >> hides("x"), ["action 'val' supplies 'val', and failed: it was recovered without an outcome (OSError: gone)"],
    ),
    "nowhere": (lambda: need >> nothing("other"), []),
}  # fmt: skip


@stage
def hides(kind):
    action(name="val", use=[recover(on=OSError)])(bad.__wrapped__)
    action(need)


@pytest.mark.parametrize(("flow", "reasons"), FLOWS.values(), ids=FLOWS)
def test_a_missing_parameter_says_where_it_is_supplied(run, flow, reasons):
    """Later, or beside it: one place, and only if nothing before it should have supplied it."""
    assert notes(run(flow(), check=False, use=[opens]).error) == reasons


def test_a_missing_parameter_that_was_skipped_by_the_caller_says_so(run):
    """By all the selectors that skip it."""
    for skip, how in (
        (["val"], "its stage 'val' was skipped (skip=['val'])"),
        (["val/val", "tag:t"], "was skipped (skip=['tag:t', 'val/val'])"),
    ):
        flow = Stage("val", [val.with_options(tags=["t"])]) >> need
        assert notes(run(flow, check=False, skip=skip, use=[opens]).error) == [f"{SUPPLIED}{how}"]


def test_only_parameters_that_are_missing_are_explained(run):
    """Not those with a default, a bound value, or a value in the store, nor the context."""

    @action
    def reads(ctx: Context, bound, stored, val, default=1): ...

    flow = pipeline(*map(nothing, ("ctx", "bound", "stored", "default", "val")), reads.bind(bound=1))
    assert notes(run(flow, {"stored": 1}, check=False, use=[opens]).error) == [f"action 'val' {NOTHING}"]


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


def test_a_refused_insertion_names_no_more_than_three_reasons(run):
    """The latest ones."""
    plan = action(name="plan")(lambda: need)
    error = run(pipeline(*(nothing(name, returns="val") for name in "abcd"), plan), check=False).error
    assert notes(error) == [f"action {name!r} {NOTHING}" for name in "dcb"]


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
