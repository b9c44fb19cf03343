"""A run is continued: rehearsed, compared, brought up to date in its journal, and evaluated; request by request."""

import durable_units as du
import pytest
from scripted import evaluation, performed, terms_of
from support import around

from flowdeco import Run, Stage, Status, Store, Suspend, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal
from flowdeco.durable.digests import digest
from flowdeco.engine.adoption import Archive
from flowdeco.engine.generations import Generation
from flowdeco.engine.memory import Remains
from flowdeco.engine.outcome import ROOT
from flowdeco.engine.recorder import Recorder
from flowdeco.engine.requests import Raised, Save
from flowdeco.engine.resume import Earlier, Journaled, check_fork, continue_run
from flowdeco.engine.rows import outcomes
from flowdeco.engine.waits import Given
from flowdeco.errors import (
    Cancelled,
    CodeChangedError,
    DefinitionError,
    JournalError,
    RunBusyError,
    Wait,
)
from flowdeco.middleware import recover

CALLS = du.CALLS
LOG = []  # of the stream, called and closed
RAISED = []  # what it raises behind its first unit


def units():
    LOG.append("called")
    try:
        yield Stage("x", [du.item])
        if RAISED:
            raise RAISED[0]
        yield Stage("y", [du.item])
    finally:
        LOG.append("closed")


@action
def streams():
    return stream(units)


CODE = {}  # the fingerprints of functions that differ from their names


@pytest.fixture(autouse=True)
def nothing_noted():
    """Every test begins without calls."""
    du.clear()
    for noted in (CODE, LOG, RAISED):
        noted.clear()


def code(function):
    return CODE.get(function.__name__, function.__name__)


def recorder_of(journal, run_id="run-1"):
    return Recorder(journal, run_id, code, digest)


class Journal(MemoryJournal):
    """One that knows where the pipeline of a run is found; `changes` come when another process has opened it."""

    entry = began = None
    changes = ()

    def create(self, run_id, pipeline, inputs, skip, entry=None):
        self.began = super().create(run_id, pipeline, inputs, skip)
        self.entry = entry
        return self.began

    def open(self, run_id, *, finished=False):
        return super().open(run_id, finished=finished)._replace(**dict(self.changes))


def journaled(*units, broken=("fragile",), name="p"):
    """A journal with a run of these units, as its process has left it."""
    journal = Journal()
    flow = pipeline(*units, name=name)
    du.BROKEN.update(broken)
    journal.create("run-1", name, journal.codec.encode({"given": 1}, "inputs"), ())
    run, walk = evaluation(flow, {"given": 1}, recorder=recorder_of(journal))
    followed(walk)
    if run.status == "completed":
        journal.close("run-1", "completed", None, None)
    else:
        journal.release("run-1")
    du.clear()
    return journal


def followed(walk, refuses=None, error=None):
    """What a walk returns, and its requests; those to `refuses` of a journal are answered with an error."""
    requests, answer = [], None
    while True:
        try:
            request = walk.send(answer)
        except StopIteration as end:
            return end.value, requests
        requests.append(request)
        if isinstance(request, Save) and refuses is not None and refuses(request):
            answer = Raised(error)
        else:
            answer = performed(request)


class Resumed:
    """A run that is continued with these units."""

    def __init__(self, journal, *units, on_change="error", finished=False, name="p", refuses=None, use=(), **more):
        self.journal, self.flow = journal, pipeline(*units, name=name)
        if not finished:
            journal.open("run-1")
        remembered = journal.read("run-1")
        self.heard = []
        run_id = "run-2" if more.get("from_stage") else "run-1"
        known = Journaled(
            journal, remembered, remembered, more.pop("more", None), ["tag:skipped"],
            listen=lambda: self.heard.append("listens"), entry=more.pop("entry", "entry"), from_stage=more.pop("from_stage", None),
        )  # fmt: skip
        steps = outcomes(remembered.rows, journal.codec)
        earlier = Earlier(steps, code, on_change, finished, journaled=known, **more)
        self.terms = terms_of(recorder=recorder_of(journal, run_id))
        self.run = Run(run_id, self.flow, Store({"given": 1}))
        self.run.resumed = (1.0,)
        self.error = OSError("disk full")
        walk = continue_run(self.run, self.terms, use, earlier)
        self.continued, self.requests = followed(walk, refuses, self.error)
        self.saves = [request for request in self.requests if isinstance(request, Save)]

    def rows(self, run_id="run-1"):
        return [(row.branch, row.number, row.action or row.stage, row.status) for row in self.journal.history(run_id)]


# -- of the same pipeline


def test_what_had_completed_is_not_called_again():
    """The journal hears that the run proceeds before anything is called."""
    journal = journaled(du.first, du.fragile)
    resumed = Resumed(journal, du.first, du.fragile, more=b"more")
    assert resumed.continued is True
    assert (CALLS, resumed.run.status) == (["fragile"], "completed")
    assert dict(resumed.run.store) == {"given": 1, "first": 1, "fragile": "mended"}
    assert resumed.saves[0].args[:1] == ("run-1",)
    assert (resumed.heard, journal.read("run-1").inputs[-1][1]) == (["listens"], b"more")
    assert resumed.run.resumed[0] == 1.0
    assert len(resumed.run.resumed) == 2
    assert 1000.0 < resumed.run.resumed[1] < 1000.0 + resumed.terms.clock.seconds
    assert isinstance(resumed.requests[0], Save)
    assert all(save.write != resumed.terms.recorder.drop for save in resumed.saves)
    assert resumed.terms.past.is_in_memory is False
    assert resumed.terms.past.archive is None


def test_a_change_forbids_to_continue():
    """Run and journal are as they were; streams of the rehearsal are closed."""
    journal = journaled(du.first, streams, du.second, du.fragile)
    LOG.clear()
    rows = journal.history("run-1")
    resumed = Resumed(journal, du.first, streams, du.third, du.fragile)
    assert resumed.continued is False
    assert isinstance(resumed.run.error, CodeChangedError)
    assert resumed.run.error.changes == ("stage 'third' comes where the run had stage 'second'",)
    assert "'run-1'" in str(resumed.run.error)
    assert (resumed.run.status, CALLS, resumed.saves, LOG) == ("pending", [], [], ["called", "closed"])
    assert journal.history("run-1") == rows


def test_the_pipeline_must_have_the_same_name():
    """Or one that was written with escapes."""
    journal = journaled(du.first, du.fragile)
    resumed = Resumed(journal, du.first, du.fragile, name="q")
    assert resumed.run.error.changes == ("the run is one of pipeline 'p', and this is 'q'",)
    journal.release("run-1")
    resumed = Resumed(journaled(du.first, du.fragile, name="\\udc80"), du.first, du.fragile, name="\udc80")
    assert resumed.continued


@pytest.mark.parametrize(
    ("error", "status"),
    [(Cancelled("ended"), "cancelled"), (KeyboardInterrupt(), "cancelled"), (DefinitionError("no"), "pending")],
)
def test_an_interrupt_of_the_rehearsal_ends_it(error, status):
    """And a definition that cannot be; any other failure there is one of the run itself, and comes again."""
    journal = journaled(streams, du.fragile)
    RAISED.append(error)
    resumed = Resumed(journal, streams, du.fragile)
    assert (resumed.continued, resumed.run.error, resumed.run.status) == (False, error, status)
    assert resumed.saves == []
    journal.release("run-1")
    RAISED[:] = [LookupError("no")]
    resumed = Resumed(journal, streams, du.fragile)
    assert (resumed.continued, resumed.run.error, resumed.run.status) == (True, RAISED[0], "failed")


def test_a_finished_run_is_continued_only_if_something_differs():
    """Then it takes the lease first."""
    journal = journaled(du.first, du.second)
    resumed = Resumed(journal, du.first, du.second, finished=True)
    assert (resumed.continued, resumed.run.error, resumed.requests) == (False, None, [])
    resumed = Resumed(journal, du.first, du.second, du.nothing, finished=True)
    assert "stage 'nothing' is new" in resumed.run.error.changes[0]
    CODE["second"] = "changed"
    resumed = Resumed(journal, du.first, du.second, finished=True, on_change="rerun")
    assert (resumed.continued, CALLS, resumed.run.status) == (True, ["second"], "completed")
    with pytest.raises(RunBusyError):
        journal.open("run-1")


def test_another_process_may_have_run_a_finished_run_again_meanwhile():
    """Then it is left to that."""
    journal = journaled(du.first, du.second)
    CODE["second"] = "changed"

    journal.changes = {"status": "elsewhere"}
    resumed = Resumed(journal, du.first, du.second, finished=True, on_change="rerun")
    assert isinstance(resumed.run.error, RunBusyError)
    assert str(resumed.run.error) == "run 'run-1' was run again by another process meanwhile"
    assert (resumed.continued, CALLS, resumed.run.status) == (False, [], "pending")
    journal.open("run-1", finished=True)  # it was released


def test_layers_of_the_caller_are_entered_once():
    """Not in the rehearsal."""
    log = []
    resumed = Resumed(journaled(du.first, du.fragile), du.first, du.fragile, use=(around(log, "m"),))
    assert (resumed.continued, log) == (True, ["+m", "-m"])


def test_streams_of_the_rehearsal_are_taken_over():
    """They are called once."""
    journal = journaled(streams, du.fragile)
    LOG.clear()
    resumed = Resumed(journal, streams, du.fragile)
    assert (resumed.continued, LOG) == (True, ["called", "closed"])


# -- of a pipeline that has changed


def test_with_rerun_the_journal_forgets_what_does_not_hold():
    """And scopes that had ended around that are open again."""
    unit = [Stage("s", [du.first, du.second]), du.fragile]
    journal = journaled(*unit)
    CODE["second"] = "changed"
    resumed = Resumed(journal, *unit, on_change="rerun")
    proceed, drop, write, *_ = resumed.saves
    assert (drop.write, drop.args) == (resumed.terms.recorder.drop, ({ROOT: 2},))
    assert [(row.branch, row.number, row.status) for row in write.args[0]] == [(ROOT, 0, "running")]
    assert (CALLS, resumed.run.status, resumed.continued) == (["second", "fragile"], "completed", True)
    assert [row for row in resumed.rows() if row[1] in (0, 2)][-2:] == [
        (ROOT, 2, "second", "completed"), (ROOT, 0, "s", "completed")
    ]  # fmt: skip
    assert resumed.terms.past.archive is None


@pytest.mark.parametrize("refused", ["proceed", "drop", "write"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_journal_that_cannot_be_brought_up_to_date_ends_the_resume(refused, finished):
    """That is its failure; nothing was called, and the lease of a finished run is given back."""
    unit = [Stage("s", [du.first, du.second]), du.third, *([] if finished else [du.fragile])]
    journal = journaled(*unit)
    CODE["second"] = "changed"

    def refuses(save):
        name = getattr(save.write, "__name__", "")
        return name == {"proceed": "_proceed"}.get(refused, refused)

    resumed = Resumed(journal, *unit, on_change="rerun", finished=finished, refuses=refuses)
    assert (resumed.continued, resumed.run.error, CALLS) == (False, resumed.error, [])
    assert resumed.run.status == "failed"
    releases = [save for save in resumed.saves if getattr(save.write, "__name__", "") == "release"]
    assert [save.args for save in releases] == [("run-1",)] * (finished and refused != "proceed")
    count = {"proceed": 1, "drop": 2, "write": 3}[refused]
    assert len(resumed.saves) == count + len(releases)


def test_with_ignore_the_run_begins_again_and_adopts_what_it_finds():
    """In a new generation, of which the rows are apart; its streams are called again."""
    journal = journaled(du.first, du.second, du.fragile)
    resumed = Resumed(journal, du.second, du.first, du.fragile, on_change="ignore")
    assert (resumed.continued, CALLS) == (True, ["fragile"])
    assert resumed.terms.recorder.generation == Generation("~1", frozenset({"0"}))
    assert {branch for branch, *_ in resumed.rows()} == {"0", "0~1"}
    assert isinstance(resumed.terms.past.archive, Archive)
    assert resumed.saves[0].write.__name__ == "_proceed"
    journal = journaled(du.first, du.fragile)
    CODE["first"] = "changed"
    resumed = Resumed(journal, du.first, du.fragile, on_change="ignore")
    assert (resumed.continued, CALLS, resumed.terms.recorder.generation) == (True, ["fragile"], Generation())


def test_a_finished_run_may_begin_again_as_well():
    """It takes the lease first."""
    resumed = Resumed(journaled(du.first, du.nothing), du.first, du.item, du.nothing, on_change="ignore", finished=True)
    assert (resumed.continued, CALLS) == (True, ["item 0"])


def test_a_journal_that_cannot_proceed_ends_the_adoption():
    """Nothing has changed in it."""
    journal = journaled(du.first, du.second, du.fragile)
    resumed = Resumed(journal, du.second, du.fragile, on_change="ignore", refuses=lambda save: True)
    assert (resumed.continued, resumed.run.error, CALLS) == (False, resumed.error, [])
    assert len(resumed.saves) == 1


def test_streams_of_a_rehearsal_are_closed_before_the_run_begins_again():
    """They are called again, as everything is."""
    journal = journaled(streams, du.nothing, du.fragile)
    LOG.clear()
    resumed = Resumed(journal, streams, du.fragile, on_change="ignore")
    assert resumed.continued
    assert LOG == ["called", "closed", "called", "closed"]


def test_earlier_generations_are_searched_in_later_resumes_too():
    """Unless what changed is to run again: then only the present steps count."""
    older = outcomes(journaled(du.nothing, broken=()).history("run-1"), MemoryJournal().codec)
    for on_change, calls in (("error", ["fragile"]), ("rerun", ["fragile", "nothing"])):
        du.clear()
        journal = journaled(du.first, du.second, du.fragile)
        resumed = Resumed(journal, du.first, du.second, du.fragile, du.nothing, on_change=on_change, older=(older,))
        assert (resumed.continued, CALLS) == (True, calls)
        assert (resumed.terms.past.archive is None) == (on_change == "rerun")
    du.clear()
    journal = journaled(du.first, du.nothing, du.fragile)  # it has adopted that
    resumed = Resumed(journal, du.first, du.nothing, du.fragile, du.nothing, older=(older,))
    assert (resumed.continued, CALLS) == (True, ["fragile", "nothing"])


def test_a_run_in_memory_cannot_undo_what_came_since_a_change():
    """The error says what has changed."""
    journal = journaled(du.first, du.second, du.fragile)
    remembered = journal.read("run-1")
    steps = outcomes(remembered.rows, journal.codec)
    flow = pipeline(du.first, du.third, du.fragile, name="p")
    for on_change in ("rerun", "ignore"):
        run, terms = Run("run-1", flow, Store({"given": 1})), terms_of()
        continued, _ = followed(continue_run(run, terms, (), Earlier(steps, code, on_change, remains={})))
        assert (continued, type(run.error)) == (False, DefinitionError)
        assert str(run.error) == (
            f"run 'run-1' is in memory only, where the steps since a change cannot be undone, as on_change={on_change!r} "
            "needs it: run it with journal=... next time. "
            "What has changed: stage 'third' comes where the run had stage 'second'"
        )
        CODE["first"] = "changed"  # which is not a change if that is ignored
    CODE.clear()
    flow = pipeline(du.first, du.second, du.fragile, name="q")
    run, terms = Run("run-1", flow, Store({"given": 1})), terms_of()
    continued, requests = followed(continue_run(run, terms, (), Earlier(steps, code, "error", remains={})))
    assert (continued, CALLS, run.status) == (True, ["fragile"], "completed")
    assert terms.past.is_in_memory
    left = Remains(None, None, "left", {})
    run, terms = Run("run-1", flow, Store({"given": 1})), terms_of()
    followed(continue_run(run, terms, (), Earlier(steps, code, "error", remains={"b": left})))
    assert terms.past.remains_of("b") is left


@action
def inserts():
    return Stage("inner", [du.first, du.fragile])


def test_in_memory_inserted_actions_are_compared_by_the_code_that_they_have_now(monkeypatch):
    """As those of the pipeline itself are: in a notebook, a cell was run again."""
    du.BROKEN.add("fragile")
    run = pipeline(inserts).run(check=False)
    du.clear()

    @action(name="first")
    def changed():
        return 5

    monkeypatch.setattr(du, "first", changed)
    with pytest.raises(CodeChangedError) as refused:
        run.pipeline.resume(run)
    assert refused.value.changes == ("action inner/first has completed, with different code",)
    assert CALLS == []


# -- answers


@action
def asks(ctx):
    return ctx.wait_for("go")


def test_answers_are_delivered_to_the_steps_that_had_asked():
    """As they run again."""
    journal = journaled(du.first, asks)
    journal.open("run-1")
    remembered = journal.read("run-1")
    steps = outcomes(remembered.rows, journal.codec)
    ask = Wait("question", key="go", state="answered", value=2, given=1)
    number = max(steps[ROOT])
    steps[ROOT][number] = steps[ROOT][number]._replace(waits=[ask])
    flow = pipeline(du.first, asks, name="p")
    known = Journaled(journal, remembered, remembered, None, [])
    run, terms = Run("run-1", flow, Store()), terms_of(recorder=recorder_of(journal))
    followed(continue_run(run, terms, (), Earlier(steps, code, "error", journaled=known)))
    assert (run.status, run.store["asks"]) == ("completed", 2)


def test_answers_come_back_with_their_questions():
    """If the step that had asked does not hold; the last value that was given under their key."""
    ask = Wait("question", key="go", state="answered", value=2, given=1)
    journal = journaled(du.first, du.second, du.fragile)
    steps = outcomes(journal.history("run-1"), journal.codec)
    CODE["second"] = "changed"
    for given, expected in (
        ([Given(0, {}), Given(3, {"go": 2})], 2),
        ([Given(0, {"go": 0}), Given(3, {"go": 2}), Given(3, {"go": 5})], None),
        ([Given(0, {"go": 0}), Given(3, {})], None),
    ):
        steps[ROOT][3] = steps[ROOT][3]._replace(waits=[ask])
        flow = pipeline(du.first, du.second, du.third, name="p")
        journal = journaled(du.first, du.second, du.fragile)
        journal.open("run-1")
        remembered = journal.read("run-1")
        known = Journaled(journal, remembered, remembered, None, [])
        earlier = Earlier(steps, code, "rerun", journaled=known, given=tuple(given))
        run, terms = Run("run-1", flow, Store()), terms_of(recorder=recorder_of(journal))
        continued, _ = followed(continue_run(run, terms, (), earlier))
        assert (continued, run.store.get("go")) == (True, expected)


# -- forks


def test_a_fork_is_a_new_run_with_the_rows_up_to_a_stage():
    """And with all inputs, those of this resume last."""
    journal = journaled(du.first, Stage("s", [du.second, du.nothing]), du.fragile)
    journal.open("run-1")
    journal.add_inputs("run-1", b"given later")
    journal.release("run-1")
    before = journal.history("run-1")
    resumed = Resumed(
        journal, du.first, Stage("s", [du.second, du.nothing]), du.fragile, finished=True, from_stage="s", more=b"more"
    )
    assert (resumed.continued, CALLS) == (True, ["second", "nothing", "fragile"])
    assert journal.history("run-1") == before
    assert resumed.rows("run-2")[:2] == [("0", 1, "first", "completed"), ("0", 0, "first", "completed")]
    found = journal.read("run-2")
    assert (found.pipeline, found.skip) == ("p", ("tag:skipped",))
    first, later, more = found.inputs
    assert first == (0, journal.codec.encode({"given": 1}, "inputs"))
    assert (later, more) == ((2, b"given later"), (2, b"more"))
    assert (resumed.heard, journal.entry) == (["listens"], "entry")
    assert resumed.run.started == resumed.journal.began


def test_a_fork_reopens_the_scopes_around_its_stage():
    """Of which not all steps hold."""
    units = [pipeline(du.first, du.second, name="q", use=[recover(on=KeyError)]), du.fragile]
    journal = journaled(*units)
    resumed = Resumed(journal, *units, finished=True, from_stage="second")
    assert (resumed.continued, CALLS) == (True, ["second", "fragile"])
    assert [row for row in resumed.rows("run-2") if row[2] == "q"][-1] == (ROOT, 0, "q", "completed")
    write = next(save for save in resumed.saves if save.write == resumed.terms.recorder.write)
    assert [(row.number, row.status) for row in write.args[0]] == [(0, "running")]


def test_a_fork_may_leave_branches_of_groups_behind():
    """And its journal need not know where a pipeline is found."""
    units = [du.first, parallel(du.nothing, du.item, limit=1), du.fragile]
    journal = journaled(*units)
    journal.__class__ = MemoryJournal
    resumed = Resumed(journal, *units, finished=True, from_stage="first", entry=None)
    assert (resumed.continued, CALLS) == (True, ["first", "nothing", "item 0", "fragile"])


def test_a_stage_that_the_run_does_not_come_to_is_no_place_for_a_fork():
    """Names of the pipeline are known as well, and those of templates."""
    journal = journaled(du.first, du.fragile)
    resumed = Resumed(journal, du.first, du.fragile, finished=True, from_stage="frist")
    assert isinstance(resumed.run.error, JournalError)
    assert str(resumed.run.error) == ("there is no stage 'frist' to continue from in this run. Did you mean 'first'?")
    units = [pipeline(du.first, name="qqqq", use=[recover(on=KeyError)]), du.fragile]
    resumed = Resumed(journaled(*units), *units, finished=True, from_stage="qqqz")
    assert "there is no stage 'qqqz'" in str(resumed.run.error)
    assert "qqqq" not in str(resumed.run.error)
    units = [du.visit("ro[me]"), Stage("empty"), pipeline(du.first, name="q", use=[recover(on=KeyError)])]
    remembered = journaled(*units).read("run-1")
    inserted = remembered.rows[0]._replace(kind="action", stage="only", action="a")  # of a stage that has not ended
    remembered = remembered._replace(rows=[*remembered.rows, inserted])
    flow = pipeline(du.second)
    for name in ("visit[ro[me]]", "visit", "first", "second", "empty", "only"):
        check_fork(name, remembered, flow)
    for name in ("q", "visits"):
        with pytest.raises(JournalError, match=f"there is no stage {name!r} to continue from"):
            check_fork(name, remembered, flow)


def test_a_group_is_continued_in_its_branches():
    """As far as each had come."""
    group = parallel(du.first, pipeline(du.nothing, du.fragile), name="g", limit=1)
    resumed = Resumed(journaled(group), group)
    assert (resumed.continued, CALLS, resumed.run.status) == (True, ["fragile"], Status.COMPLETED)
    assert not isinstance(resumed.run.error, Suspend)
