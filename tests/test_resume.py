"""Resuming, step by step: whatever a run had written when it ended, it goes on from there, or says why it cannot."""

import asyncio
import threading

import durable_units as du
import pytest
from durable_units import BROKEN, CALLS, ENTERED
from scripted import evaluation, perform
from support import names, statuses
from test_durable import FLOWS, outcome

from flowdeco import Bail, Context, Stage, Suspend, action, durable, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal
from flowdeco.engine.history import History
from flowdeco.engine.rows import outcomes
from flowdeco.errors import CodeChangedError, DefinitionError, JournalError, SerializationError
from flowdeco.middleware import atomic, recover, retry


@pytest.fixture(autouse=True)
def nothing_noted():
    """Every test begins without calls, and with everything in order."""
    du.clear()
    ENTERED.clear()


# -- killed after any write


class Writes(MemoryJournal):
    """A journal that remembers in which portions it was written, and that can be cut back to the first of them."""

    def __init__(self):
        super().__init__()
        self.portions = []

    def write(self, run_id, rows):
        super().write(run_id, rows)
        self.portions.append(rows)

    def drop(self, run_id, cuts):
        super().drop(run_id, cuts)
        left = [[row for row in rows if row.number < cuts.get(row.branch, 1 << 60)] for rows in self.portions]
        self.portions = [rows for rows in left if rows]

    def killed_after(self, count):
        """The journal of a process that was killed after so many writes."""
        return self.killed(self.portions[:count])

    def killed(self, portions):
        """The journal of a process that was killed when it had written these."""
        inputs = self.read("r").inputs[0][1]
        killed = MemoryJournal()
        killed.create("r", self.read("r").pipeline, inputs, self.read("r").skip)
        for rows in portions:
            killed.write("r", rows)
        killed.close("r", "running", None, None)
        return killed


@action(name="bails")
def bails():
    du.call("bails")
    raise Bail("enough")


def fails_after(call):
    """Fail when the inside is over."""
    yield
    du.call("fragile")


ENDINGS = {
    **FLOWS,
    "a bail": (pipeline(du.first, Stage("s", [du.item, bails, du.second]), name="p", use=[du.noting]), {}),
    "a bail in a group": (
        du.first >> parallel(du.item, Stage("s", [du.item, bails]), du.second, limit=1) >> du.third,
        {},
    ),
    "a recovered stage": (
        Stage("s", [du.item, du.fragile, du.first], use=[recover(on=RuntimeError), du.noting]) >> du.nothing,
        {},
    ),
    "a recovered pipeline": (
        pipeline(du.item, Stage("s", [du.first, du.fragile]), du.second, name="p", use=[recover(on=RuntimeError)])
        >> pipeline(du.nothing, name="q", use=[du.noting]),
        {},
    ),
    "a recovered group": (
        pipeline(
            du.first,
            parallel(du.item, Stage("s", [du.second, du.fragile], use=[du.noting]), du.plan, limit=1),
            name="p",
            use=[recover(on=RuntimeError), du.noting],
        )
        >> pipeline(parallel(du.item, limit=1), name="q", use=[du.noting]),
        {},
    ),
    "a pipeline that its middleware fails": (
        pipeline(
            du.first,
            pipeline(du.item, name="inner", use=[fails_after]),
            pipeline(du.second, name="not reached", use=[du.noting]),
            name="p",
            use=[recover(on=RuntimeError)],
        )
        >> pipeline(du.nothing, name="q", use=[du.noting]),
        {},
    ),
    "a retried group": (
        pipeline(
            parallel(du.item, du.plan >> du.first, limit=1),
            du.fragile,
            name="p",
            use=[recover(on=RuntimeError), retry(on=RuntimeError, wait=0, attempts=2)],
        )
        >> du.nothing,
        {},
    ),
}


@pytest.mark.parametrize("title", ENDINGS)
def test_a_run_that_was_killed_after_any_write_comes_to_the_same(title):
    """Whatever the write was of: an action, a stage, a pipeline, the beginning of a group."""
    flow, inputs = ENDINGS[title]
    BROKEN.add("fragile")
    journal = Writes()
    whole = flow.run(inputs, journal=journal, run_id="r", check=False)
    calls = CALLS.copy()
    for count in range(len(journal.portions) + 1):
        CALLS.clear()
        killed = journal.killed_after(count)
        written = sum(row.kind == "action" and row.status == "completed" for row in killed.history("r"))
        resumed = flow.resume("r", journal=killed, check=False)
        assert outcome(resumed) == outcome(whole), count
        assert len(CALLS) <= len(calls) - min(written, len(calls))
        CALLS.clear()
        again = flow.resume("r", journal=killed, check=False)
        assert outcome(again) == outcome(whole), count
        assert CALLS == []


def test_a_branch_that_was_under_way_when_another_one_bailed_is_not_gone_on_with():
    """The run ends with the `Bail` as it would have ended; what the branch had done is on record."""
    flow = pipeline(parallel(du.first >> du.second, bails, limit=1), du.third)
    journal = Writes()
    flow.run(journal=journal, run_id="r")
    killed = journal.killed([row for row in rows if row.stage != "second"] for rows in journal.portions)
    CALLS.clear()
    for _ in range(2):
        resumed = flow.resume("r", journal=killed)
        assert (resumed.status, resumed.reason, CALLS) == ("bailed", "enough", [])
        assert statuses(resumed) == [("first", "completed"), ("bails", "bailed")]


# -- what has changed


def completed(*units):
    """A journal with a completed run of these, and a stage behind them that fails."""
    BROKEN.add("fragile")
    journal = MemoryJournal()
    pipeline(*units, du.fragile).run(journal=journal, run_id="r", check=False)
    du.clear()
    ENTERED.clear()
    return journal


def changes(journal, *units, **options):
    """What speaks against resuming these units."""
    with pytest.raises(CodeChangedError) as refused:
        pipeline(*units, du.fragile).resume("r", journal=journal, **options)
    assert (CALLS, ENTERED) == ([], [])
    return refused.value.changes


def test_a_stage_that_is_gone_from_a_completed_pipeline_is_a_change():
    """Also where nothing else comes after it."""
    journal = completed(pipeline(du.first, du.item, name="p", use=[du.watched]))
    (change,) = changes(journal, pipeline(du.first, name="p", use=[du.watched]))
    assert change == "pipeline 'p' has completed, and ends elsewhere"
    rerun = pipeline(pipeline(du.first, name="p", use=[du.watched]), du.fragile)
    resumed = rerun.resume("r", journal=journal, on_change="rerun")
    assert (CALLS, ENTERED) == (["fragile"], ["+pipeline p", "-pipeline p"])
    assert "items" not in resumed.store


def test_a_stage_that_is_new_in_a_completed_pipeline_is_a_change():
    """It would never run."""
    journal = completed(pipeline(du.first, name="p", use=[du.watched]))
    (change,) = changes(journal, pipeline(du.first, du.item, name="p", use=[du.watched]))
    assert change == "stage 'item' is new, and the unit around it has completed"


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_of_another_pipeline_is_told_as_such(kept):
    """Both have the name that pipelines have where none is given; nothing that ran is in the one that is to go on."""
    BROKEN.add("fragile")
    journal = MemoryJournal() if kept else None
    run = pipeline(du.first, du.item, du.fragile).run(journal=journal, check=False)
    other = (
        "this looks like a different pipeline: the run began with stage 'first', this one begins with stage 'nothing'"
    )
    with pytest.raises(CodeChangedError, match=other):
        (du.nothing >> du.line[1:]).resume(run, {"first": 1})
    with pytest.raises(CodeChangedError, match="stage 'nothing' comes where the run had stage 'first'"):
        pipeline(du.nothing, du.item).resume(run)


def test_a_stage_that_is_new_in_a_branch_of_a_completed_group_is_a_change():
    """So is one that is gone from it."""
    journal = completed(parallel(du.first, du.item, limit=1), du.nothing)
    (change,) = changes(journal, parallel(du.first >> du.second, du.item, limit=1), du.nothing)
    assert change == "stage 'second' is new, and the unit around it has completed"
    (change,) = changes(journal, parallel(du.first, pipeline(), limit=1), du.nothing)
    assert change == "a branch ends where it had stage 'item'"


def test_another_number_of_branches_is_a_change():
    """The branches are told apart by their places."""
    journal = completed(parallel(du.first, du.item, limit=1), du.nothing)
    (change,) = changes(journal, parallel(du.first, limit=1), du.nothing)
    assert change.startswith("parallel group 'parallel' has another number of branches: 1 in place of 2")


def test_a_stage_that_is_new_behind_a_completed_run_runs_on_request():
    """A completed run is returned as it is; to go on with it, say so."""
    journal = MemoryJournal()
    du.line.run(journal=journal, run_id="r")
    CALLS.clear()
    assert names((du.line >> du.item).resume("r", journal=journal)) == ["first", "second", "third"]
    assert CALLS == []
    resumed = (du.line >> du.item).resume("r", journal=journal, on_change="rerun")
    assert (names(resumed), CALLS) == (["first", "second", "third", "item"], ["item 0"])


def test_a_change_in_a_stage_that_is_unfinished_is_reported():
    """Of the actions that had completed."""
    BROKEN.add("fragile")
    journal = MemoryJournal()
    Stage("s", [du.first, du.item, du.fragile]).run(journal=journal, run_id="r", check=False)
    du.clear()
    with pytest.raises(CodeChangedError, match="s/nothing comes where the run had s/item"):
        Stage("s", [du.first, du.nothing, du.fragile]).resume("r", journal=journal)
    resumed = Stage("s", [du.first, du.nothing, du.fragile]).resume("r", journal=journal, on_change="rerun")
    assert CALLS == ["nothing", "fragile"]
    assert "items" not in resumed.store


def passes(call):
    yield


@pytest.mark.parametrize("use", [[], [passes]], ids=["alone", "in middleware"])
def test_in_memory_an_action_whose_value_was_refused_runs_again_in_the_store_as_it_was(use):
    """What the middleware of its stage wrote as the failure passed it is undone."""
    fixed = []

    def counts(call):
        try:
            yield
        finally:
            call.store["left"] = call.store.get("left", 0) + 1

    @action(use=use)
    def mixed():
        return 1 if fixed else [1, Stage("never runs")]

    @action
    def sees(left=0):
        return left

    flow = Stage("s", [mixed, sees], use=[counts])
    run = flow.run(check=False)
    assert (run.status, dict(run.store)) == ("failed", {"left": 1})
    fixed.append(True)
    assert dict(flow.resume(run).store) == {"mixed": 1, "sees": 0, "left": 1}


@pytest.mark.parametrize("on_change", ["ignore", "rerun"])
def test_in_memory_nothing_is_undone_for_a_changed_pipeline(on_change):
    """The resume is refused, and says what it would take; the run stays as it was."""
    BROKEN.add("fragile")
    run = (du.first >> du.pair >> du.fragile).run(check=False)
    before, stages = dict(run.store), statuses(run)
    with pytest.raises(
        DefinitionError, match=rf"on_change='{on_change}' needs it: run it with journal=.* stage 'pair' comes"
    ):
        (du.pair >> du.first >> du.fragile).resume(run, on_change=on_change)
    assert (run.status, dict(run.store), statuses(run)) == ("failed", before, stages)
    BROKEN.clear()
    assert (du.first >> du.pair >> du.fragile).resume(run).status == "completed"


def test_a_recovered_failure_is_none_any_more_if_what_recovered_it_is_run_again():
    """Another branch has changed: the pipeline around both goes on, and what had failed in it is called again."""

    def made(version):
        changed = {1: action(name="changed")(lambda: 1), 2: action(name="changed")(lambda: 2)}[version]
        group = parallel(du.first >> changed, Stage("s", [du.item, du.fragile]), limit=1)
        return pipeline(pipeline(group, name="p", use=[recover(on=RuntimeError), du.noting]), du.nothing)

    BROKEN.add("fragile")
    journal = MemoryJournal()
    made(1).run(journal=journal, run_id="r")
    assert CALLS == ["first", "item 0", "fragile", "nothing"]
    CALLS.clear()
    assert made(1).resume("r", journal=journal)["notes"] == ["+pipeline p"]
    assert CALLS == []
    du.clear()
    resumed = made(2).resume("r", journal=journal, on_change="rerun")
    assert CALLS == ["fragile", "nothing"]
    assert (resumed["changed"], resumed["items"]) == (2, [0])
    assert {status for _, status in statuses(resumed)} == {"completed"}


def test_what_is_skipped_now_is_not_gone_on_with():
    """A stage that had begun: what it had done is dropped."""
    BROKEN.add("fragile")
    flow = pipeline(du.first, Stage("s", [du.item, du.fragile]), du.nothing)
    journal = MemoryJournal()
    flow.run(journal=journal, run_id="r", check=False)
    du.clear()
    resumed = flow.resume("r", journal=journal, skip=["s"])
    assert statuses(resumed) == [("first", "completed"), ("s", "skipped"), ("nothing", "completed")]
    assert "items" not in resumed.store
    assert outcome(flow.resume("r", journal=journal)) == outcome(resumed)


def test_what_has_completed_is_not_skipped_any_more():
    """The selector has matched, all the same: there is no warning."""
    journal = completed(du.first, du.item)
    resumed = pipeline(du.first, du.item, du.fragile).resume("r", journal=journal, skip=["item"])
    assert statuses(resumed)[1] == ("item", "completed")


@pytest.mark.parametrize("journal", [None, MemoryJournal()], ids=["in memory", "in a journal"])
def test_of_a_pipeline_that_is_skipped_now_the_rest_is_skipped(journal):
    """What has completed in it stays."""
    flow = pipeline(du.first, pipeline(du.item, du.fragile, du.nothing, name="p"), du.second)
    BROKEN.add("fragile")
    broken = flow.run(journal=journal, check=False)
    du.clear()
    resumed = flow.resume(broken, skip=["p"])
    assert statuses(resumed) == [
        ("first", "completed"), ("item", "completed"), ("fragile", "skipped"), ("nothing", "skipped"), ("second", "completed"),
    ]  # fmt: skip
    assert (CALLS, dict(resumed.store)) == (["second"], {"first": 1, "items": [0], "second": 2})


def test_a_history_that_does_not_match_is_an_error_without_a_rehearsal_as_well():
    """Whatever the reason may be: nothing continues as if it did."""
    journal = completed(du.first)
    steps = outcomes(journal.history("r"), journal.codec)
    run, walk = evaluation(pipeline(du.item, du.first), past=History(steps))
    perform(walk)
    assert isinstance(run.error, CodeChangedError)
    assert "stage 'item' comes where the run had stage 'first'" in str(run.error)
    assert CALLS == []


# -- what is in the way


def broken_once(error):
    """A middleware that raises when it is entered, as often as there are errors in the list."""

    def layer(call):
        if error:
            raise error.pop()
        yield

    return layer


def test_a_retry_around_what_cannot_be_entered_again_leaves_nothing_of_the_attempt():
    """What the resumed run had not come by yet is dropped as well, groups in groups included."""
    errors = []
    inner = pipeline(
        parallel(du.item, parallel(du.first, du.plan, limit=1), limit=1),
        du.fragile,
        name="inner",
        use=[broken_once(errors)],
    )
    flow = pipeline(du.nothing, inner, name="outer", use=[retry(on=ValueError, wait=0), du.noting])
    BROKEN.add("fragile")
    journal = MemoryJournal()
    flow.run(journal=journal, run_id="r", check=False)
    whole = CALLS.copy()
    du.clear()
    errors.append(ValueError("cannot be entered"))
    resumed = flow.resume("r", journal=journal)
    assert CALLS == whole
    du.clear()
    assert outcome(flow.resume("r", journal=journal)) == outcome(resumed) == outcome(flow.run())


class Refusing(MemoryJournal):
    """A journal that cannot take anything back."""

    def drop(self, run_id, cuts):
        raise JournalError("nothing is forgotten")


def test_a_journal_that_cannot_take_back_an_attempt_fails_the_run():
    """The next attempt would be mixed up with it."""
    BROKEN.add("fragile")
    for unit in (
        Stage("s", [du.item, du.fragile], use=[retry(on=RuntimeError, wait=0)]),
        pipeline(du.item, du.fragile, name="p", use=[retry(on=RuntimeError, wait=0)]),
    ):
        run = unit.run(journal=Refusing(), check=False)
        assert isinstance(run.error, JournalError)
    journal = Refusing()
    (du.first >> du.fragile).run(journal=journal, run_id="r", check=False)
    run = (du.second.with_options(name="new") >> du.fragile).resume(
        "r", {"first": 1}, journal=journal, on_change="rerun", check=False
    )
    assert isinstance(run.error, JournalError)
    assert journal.runs()[0].status == "failed"


def unwritable(call):
    """Write what no journal can keep, before or after."""
    call.store["bad before"] = threading.Lock()
    yield


def unwritable_after(call):
    yield
    call.store["bad after"] = threading.Lock()


def test_what_cannot_be_written_is_refused_wherever_it_is_noticed():
    """With an action that is skipped, a stage that is skipped, at the end of a pipeline."""
    cases = [
        (Stage("s", [du.item, du.first], use=[unwritable]), ["s/item"], "bad before"),
        (pipeline(Stage("s", [du.item]), du.first, name="p", use=[unwritable]), ["s"], "bad before"),
        (pipeline(pipeline(du.item, name="q"), du.first, name="p", use=[unwritable]), ["q"], "bad before"),
        (pipeline(du.item, name="p", use=[unwritable_after]), [], "bad after"),
    ]
    for unit, skip, key in cases:
        run = unit.run(journal=MemoryJournal(), skip=skip, check=False)
        assert isinstance(run.error, SerializationError)
        assert key in str(run.error)
        assert "first" not in CALLS


# -- in memory


def test_an_atomic_pipeline_that_failed_begins_anew_in_memory():
    """What was in it was undone, groups included; what came before was not."""
    flow = pipeline(
        du.first,
        pipeline(du.item, parallel(du.second, du.plan, limit=1), du.fragile, name="p", use=[atomic, du.noting]),
        du.item.bind(value=2),
    )
    BROKEN.add("fragile")
    broken = flow.run(check=False)
    assert dict(broken.store) == {"first": 1}
    for _ in range(2):
        du.clear()
        resumed = flow.resume(broken)
        assert CALLS[:3] == ["item 0", "second", "plan"]
        assert outcome(resumed) == outcome(flow.run())


def test_a_failure_in_an_atomic_pipeline_that_was_recovered_is_over_in_memory():
    """It is not run again."""
    flow = pipeline(
        pipeline(pipeline(du.item, du.fragile, name="q", use=[atomic]), name="p", use=[recover(on=RuntimeError)]),
        du.nothing,
        du.first,
    )
    BROKEN.update(["fragile", "first"])
    broken = flow.run(check=False)
    du.clear()
    resumed = flow.resume(broken)
    assert CALLS == ["first"]
    assert dict(resumed.store) == {"first": 1}


def broken_at_once():
    """What a stream can be made of: it raises when it is called."""
    du.call("source")
    return [du.item]


def broken_later():
    """What a stream can be made of: it raises when it is asked for a unit."""
    du.call("source")
    yield du.item


@pytest.mark.parametrize("source", [broken_at_once, broken_later])
def test_a_stream_that_cannot_be_called_again_fails_as_before(source):
    """In the rehearsal already; the run fails with its error, and not with another one."""
    flow = pipeline(action(name="streams")(lambda: stream(source)), du.fragile)
    BROKEN.update(["fragile"])
    broken = flow.run(check=False)
    BROKEN.update(["source"])
    with pytest.raises(RuntimeError, match="source is broken"):
        flow.resume(broken)
    du.clear()
    assert flow.resume(broken)["items"] == [0]


@pytest.mark.parametrize("source", [broken_at_once, broken_later])
@pytest.mark.parametrize("journal", [None, MemoryJournal()], ids=["in memory", "in a journal"])
def test_a_stream_whose_failure_was_recovered_gives_nothing_now(source, journal):
    """Although it would: the pipeline around it has ended there."""
    streams = action(name="streams")(lambda: stream(source))
    flow = pipeline(pipeline(streams, name="p", use=[recover(on=RuntimeError)]), du.fragile)
    BROKEN.update(["source", "fragile"])
    broken = flow.run(journal=journal, check=False)
    du.clear()
    resumed = flow.resume(broken)
    assert statuses(resumed) == [("streams", "completed"), ("fragile", "completed")]
    assert "items" not in resumed.store


# -- what is skipped on a resume as a whole


def skipped_now(flow, name, journal):
    """Run until the fragile stage fails, and resume without the unit of that name."""
    BROKEN.add("fragile")
    broken = flow.run(journal=journal, check=False)
    BROKEN.clear()
    return flow.resume(broken, skip=[name])


JOURNALS = pytest.mark.parametrize("journal", [lambda: None, MemoryJournal], ids=["in memory", "in a journal"])


@JOURNALS
def test_what_is_left_of_a_plain_pipeline_is_skipped(journal):
    """Its stages that are over stay as they are."""
    run = skipped_now(pipeline(du.first, pipeline(du.item, du.fragile, name="p"), du.second), "p", journal())
    assert statuses(run)[1:3] == [("item", "completed"), ("fragile", "skipped")]


@JOURNALS
def test_what_was_skipped_from_the_start_stays_so(journal):
    """Also where a later pipeline with middleware is over."""
    inner, other = (pipeline(du.item, name=name, use=[du.noting]) for name in ("p", "q"))
    flow = pipeline(du.first, inner, other, du.fragile)
    BROKEN.add("fragile")
    broken = flow.run(journal=journal(), check=False, skip=["p"])
    BROKEN.clear()
    again = flow.resume(broken, skip=["p"])
    assert (again.status, again["notes"]) == ("completed", ["+pipeline q", "-pipeline q"])


@JOURNALS
def test_a_pipeline_that_its_middleware_has_skipped_stays_so(journal):
    """Its middleware is not asked again, and its stages keep their records."""
    asked = []

    def skips(call):
        asked.append(call.name)
        return
        yield

    flow = pipeline(du.first, pipeline(du.item, parallel(du.second, name="g"), name="p", use=[skips]), du.fragile)
    BROKEN.add("fragile")
    broken = flow.run(journal=journal(), check=False)
    BROKEN.clear()
    again = flow.resume(broken)
    assert (again.status, asked) == ("completed", ["p"])
    records = [[(r.name, r.status, r.number) for r in each.stages[:3]] for each in (broken, again)]
    assert records[0] == records[1] == [("first", "completed", 0), ("item", "skipped", 3), ("second", "skipped", 5)]
    assert again.stages[1].restored


@JOURNALS
@pytest.mark.parametrize("options", [{"use": ["outer", "skips"]}, {"use_stages": ["outer", "skips"]}], ids=str)
def test_the_writes_of_middleware_that_skipped_its_target_are_restored(journal, options):
    """Those before it skipped, and those of the layers around it."""

    def outer(call):
        call.store["before"] = 1
        yield
        call.store["after"] = call.store.pop("before") + 1

    def skips(call):
        call.store.append("log", call.store["before"])
        return
        yield

    layers = {"outer": outer, "skips": skips}
    use = {name: [layers[each] for each in names] for name, names in options.items()}
    flow = pipeline(pipeline(du.item, name="p", **use), du.fragile)
    BROKEN.add("fragile")
    journal = journal()
    broken = flow.run(journal=journal, check=False)
    BROKEN.clear()
    if journal is not None:
        assert dict(durable.read(journal, broken.id).store) == {"log": [1], "after": 2}
    again = flow.resume(broken)
    assert dict(again.store)["log"] == [1]
    assert ("before" in again.store, again["after"]) == (False, 2)


@JOURNALS
@pytest.mark.parametrize("skips_again", [False, True])
def test_middleware_that_skipped_in_a_failed_pipeline_decides_anew(journal, skips_again):
    """The pipeline failed around it, and so begins again; nothing is left of the records of what was skipped."""
    runs_now = []

    def fails_once(call):
        yield
        if not runs_now:
            raise OSError("offline")

    def may_skip(call):
        if runs_now and not skips_again:
            yield

    inside = parallel(du.item, du.second, name="g")
    flow = pipeline(du.first, pipeline(inside, name="p", use=[fails_once, may_skip]), du.nothing)
    broken = flow.run(journal=journal(), check=False)
    assert statuses(broken)[1:] == [("item", "skipped"), ("second", "skipped")]
    runs_now.append(True)
    again = flow.resume(broken)
    status = "skipped" if skips_again else "completed"
    expected = [("first", "completed"), ("item", status), ("second", status), ("nothing", "completed")]
    assert (again.status, statuses(again), statuses(flow.resume(again))) == ("completed", expected, expected)


@pytest.mark.parametrize("kind", ["collected", "made and collected", "written", "deleted"])
def test_an_attempt_dropped_after_a_resume_in_memory_leaves_no_write_in_its_branch(run, kind):
    """It was interrupted, resumed, and failed: the other branch is in no conflict with what it had done."""
    failures = [KeyError("interrupted"), ValueError("tried again")]

    @action
    def waits(ctx: Context):
        if "go" not in ctx.store:
            raise Suspend("x")
        if kind == "collected":
            ctx.store.append("k", 1)
        else:
            ctx.store["k"] = [1]

    @action
    def first(ctx: Context):
        if len(failures) < 2 and kind != "collected":
            return
        if kind == "deleted":
            del ctx.store["k"]
        elif kind == "written":
            ctx.store["k"] = [2]
        else:
            ctx.store.append("k", 2)

    @action
    def second():
        if failures:
            raise failures.pop(0)

    given = {} if kind == "made and collected" else {"k": [0]}
    flow = parallel(Stage("a", [waits]), Stage("b", [first, second], use=[retry(on=ValueError, wait=0)]))
    kept = run(flow, given, check=False)
    assert (kept.status, type(kept.error)) == ("failed", KeyError)
    resume = flow.resume if run.__name__ == "run_sync" else lambda *args: asyncio.run(flow.aresume(*args))
    kept = resume(kept)
    assert kept.status == "suspended"
    kept = resume(kept, {"go": True})
    assert kept["k"] == ([0, 1, 2] if kind == "collected" else [1])
