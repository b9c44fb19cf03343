"""A run read from its journal, without its pipeline: compared with the run itself."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support import Placeholders

from flowdeco import Bail, Context, Stage, action, durable, parallel, pipeline, stage
from flowdeco.cli.steps_table import steps
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.engine.reading import read_outline
from flowdeco.errors import RunError, RunNotFoundError
from flowdeco.middleware import recover, retry

ROOT = Path(__file__).parent.parent


@action
def number() -> int:
    return 1


@action(collect="several")
def another() -> int:
    return 2


@stage
def part(n: int) -> None:
    @action
    def extend() -> object:
        return number

    @action(returns=f"part.{n}")
    def keep() -> int:
        return n


@action
def insert() -> list[Stage]:
    return [part(1), part(2)]


@action
def broken(fails: bool = True) -> None:
    if fails:
        raise ValueError("closed")


@action
def gate(ctx: Context) -> object:
    return ctx.wait_for("go")


@action
def bail() -> None:
    raise Bail("enough")


def noting(call):
    call.store[f"began.{call.level}"] = True
    try:
        yield
    finally:
        call.store[f"ended.{call.level}"] = True


def inserting(call):
    yield
    call.insert(part(5))


def seen(run):
    """What is the same, whether one has the run or reads it."""
    return [
        (r.name, r.status, r.inserted_by, r.scope, r.recovered, r.attempts, r.restored, r.number, str(r.error),
         [(a.name, a.status, a.inserted_by, a.attempts, str(a.error)) for a in r.actions])
        for r in run.stages
    ]  # fmt: skip


def branches(*last):
    return parallel(insert, pipeline(number, part(3), name="inner", title="Inner"), *last, name="group")


FLOWS = [
    Stage("a", data={"x": 1}) >> insert >> another >> another,
    pipeline(pipeline(insert, Stage("c"), name="deep", use_stages=[noting]), name="outer", tags=["t"]) >> number,
    pipeline(insert, Stage("c"), name="inner", use=[noting, inserting]) >> Stage("b", [number], use=[inserting]),
    number >> branches(another) >> Stage("end", [another]),
    pipeline(branches(parallel(number, another, name="within")), name="around", title="Around"),
    Stage("risky", [number, broken], use=[recover(on=ValueError), noting]) >> another,
    pipeline(broken, name="inner", use=[recover(on=ValueError)]) >> number,
    insert >> bail >> another,
    parallel(bail, Stage("b")) >> another,
    insert >> Stage("two", [number, broken], use=[noting]) >> another,
    pipeline(insert, broken, name="inner", use=[noting]),
    number >> Stage("s", [broken.with_options(use=[noting, retry(on=ValueError, attempts=2, wait=0)])]),
    number >> parallel(broken, number, name="group") >> another,
    insert >> gate >> another,
    number >> parallel(gate, insert, name="group"),
    pipeline(),
]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_run_is_read_as_it_was_returned(tmp_path, flow, codec):
    """Whatever became of it."""
    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)
    run = flow.run({"input": [1]}, journal=journal, check=False)
    again = durable.read(journal, run.id)
    assert seen(again) == seen(run)
    assert (again.id, again.status, again.reason, again.result) == (run.id, run.status, run.reason, run.result)
    assert again.store == run.store
    assert str(again.error) == str(run.error) or str(again.error) == f"{type(run.error).__name__}: {run.error}"
    assert again.pipeline.name == run.pipeline.name
    assert again.ran().parts or not run.stages
    assert abs(again.elapsed - run.elapsed) < 0.1


def test_what_failed_has_one_error(tmp_path):
    """The run, the stage and the action; with the notes that say where it was."""
    run = (number >> broken).run(journal=tmp_path / "runs.db", check=False)
    again = durable.read(tmp_path / "runs.db", run.id)
    assert type(again.error) is ValueError
    assert again.error is again.stages[-1].error is again.stages[-1].actions[-1].error
    assert again.error.__notes__ == [f"in action 'broken' of stage 'broken', pipeline 'pipeline', run {run.id!r}"]


def test_a_resumed_run_is_read_as_it_was_returned():
    """With the inputs of all its legs."""
    journal, flow = MemoryJournal(), insert >> Stage("two", [gate, number], data={"x": 1}) >> another
    flow.run(journal=journal, run_id="one")
    run = flow.resume("one", {"go": 3, "x": 4}, journal=journal)
    again = durable.read(journal, "one")
    assert (again.store, again.result, again.status) == (run.store, run.result, "completed")
    assert [r[:3] for r in seen(again)] == [r[:3] for r in seen(run)]


def killed(flow, rows, inputs=None):
    """Return a journal of a run that came to so many rows."""
    whole, journal = MemoryJournal(), MemoryJournal()
    flow.run(inputs, journal=whole, run_id="one", check=False)
    remembered = whole.read("one")
    journal.create("one", flow.name, remembered.inputs[0][1], remembered.skip)
    journal.write("one", remembered.rows[:rows])
    return journal


def statuses(run):
    return [(r.name, str(r.status), [(a.name, str(a.status)) for a in r.actions]) for r in run.stages]


def test_an_unfinished_stage_of_a_killed_run_is_running():
    """Its actions are what is known of it; what they wrote is in the store."""
    again = durable.read(killed(insert >> another, 3), "one")
    assert statuses(again) == [
        ("insert", "completed", [("insert", "completed")]),
        ("part[1]", "running", [("extend", "completed")]),
    ]
    assert (again.status, again.stages[1].inserted_by, again.error) == ("running", "insert/insert", None)
    assert durable.read(killed(number >> another, 1), "one").store == {"number": 1}


def test_a_group_of_a_killed_run_has_merged_nothing():
    """What its branches have done is known."""
    again = durable.read(killed(parallel(number, another, limit=1), 2), "one")
    assert [name for name, *_ in statuses(again)] == ["number"]
    assert (dict(again.store), again.result) == ({}, None)


def test_a_failed_stage_that_a_killed_resume_had_opened_again_is_running():
    """Its row is older than those of its actions."""
    journal = killed(Stage("two", [number, broken, another, number]), 3)
    journal.close("one", "failed", None, "ValueError: closed")
    assert statuses(durable.read(journal, "one"))[0][:2] == ("two", "failed")
    other = killed(Stage("two", [number, broken, another, number]), 9, {"fails": False})
    journal.open("one")
    journal.write("one", other.history("one")[1:3])
    actions = [("number", "completed"), ("broken", "completed"), ("another", "completed")]
    again = durable.read(journal, "one")
    assert statuses(again) == [("two", "running", actions)]
    assert again.stages[0].error is None
    assert (again.status, again.error, dict(again.store)) == ("running", None, {"number": 1, "several": [2]})
    (step,) = steps(durable.history(journal, "one"), "pickle").values()
    assert (step.name, step.row, [row.action for row in step.actions]) == ("two", None, ["number", "broken", "another"])


def test_a_loop_of_stages_of_one_name_is_told_apart_from_a_stage_that_is_open():
    """Each has a number of its own."""
    flow = Stage("s", [number]) >> Stage("s", [number]) >> Stage("s", [number, number])
    assert [row[:2] for row in statuses(durable.read(killed(flow, 5), "one"))] == [
        ("s", "completed"), ("s", "completed"), ("s", "running"),
    ]  # fmt: skip


def test_a_run_is_read_while_it_is_at_work(tmp_path):
    """Without its lease; the end of a stage is written with the step after it."""
    found = []

    @action
    def look(ctx: Context) -> None:
        found.append(durable.read(tmp_path / "runs.db", ctx.run_id))

    (number >> look).run(journal=tmp_path / "runs.db")
    assert (found[0].status, found[0].result, statuses(found[0])) == (
        "running", 1, [("number", "running", [("number", "completed")])],
    )  # fmt: skip


def test_a_run_is_read_in_another_process(tmp_path):
    """That has not imported its pipeline; it is resumed from what was read."""
    run = (number >> gate).run(journal=tmp_path / "runs.db")
    script = (
        "import sys; from flowdeco import durable\n"
        f"run = durable.read({str(tmp_path / 'runs.db')!r}, {run.id!r})\n"
        "print(run.status, dict(run.store), [stage.name for stage in run.stages], 'test_reading' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "suspended {'number': 1} ['number', 'gate'] False\n"
    assert (number >> gate).resume(durable.read(tmp_path / "runs.db", run.id), {"go": 1}).status == "completed"


@pytest.mark.parametrize("flow", [number >> another, number >> broken], ids=["nothing failed", "something did"])
def test_an_error_that_no_row_has_is_told_by_the_journal(flow):
    """As if the journal could not be written, or a later resume was refused."""
    journal = killed(flow, 9)
    journal.close("one", "failed", None, "it went wrong")
    again = durable.read(journal, "one")
    assert (type(again.error), str(again.error)) == (RunError, "it went wrong")


def test_a_run_that_there_is_not_is_refused(tmp_path):
    """As by the other functions."""
    with pytest.raises(RunNotFoundError):
        durable.read(MemoryJournal(), "one")
    with pytest.raises(RunNotFoundError):
        durable.read(tmp_path / "runs.db", "one")


def test_an_outline_decodes_failures_alone():
    """So it is had where values cannot be loaded."""
    journal = MemoryJournal()
    (number >> broken).run(journal=journal, run_id="one", check=False)
    remembered = journal.read("one")
    rows = [row._replace(payload=b"?") if row.status == "completed" else row for row in remembered.rows]
    outline = read_outline(remembered._replace(rows=rows), journal.codec)
    assert statuses(outline) == statuses(durable.read(journal, "one"))
    assert outline.error is outline.stages[-1].error
    rows = [row._replace(payload=b"?") for row in rows]
    assert str(read_outline(remembered._replace(rows=rows), journal.codec).error) == "ValueError: closed"


def test_a_run_that_was_read_is_pickled():
    """Its stand-ins are, too."""
    again = durable.read(killed(number >> broken, 9), "one")
    assert statuses(pickle.loads(pickle.dumps(again.stages)) and again) == statuses(again)


def test_a_whole_outline_has_who_inserted_whom_without_the_units():
    """A stage that was under way has no row: it is the next of those that were inserted last."""
    journal = MemoryJournal()
    run = (insert >> number).run(journal=journal, run_id="one")
    codec, remembered = Placeholders(journal.codec), journal.read("one")
    whole = read_outline(remembered, codec, whole=True)
    assert [(each.name, each.inserted_by) for each in whole.stages] == [(s.name, s.inserted_by) for s in run.stages]
    assert {each.inserted for record in whole.stages for each in record.actions} == {()}
    for name, by in (("part[1]", "insert/insert"), ("part[2]", "insert/insert"), ("number", "None")):
        ended = [record.number for record in run.stages if record.name == name][0]
        rows = [row for row in remembered.rows if row.number <= ended + 1 and (row.kind, row.stage) != ("stage", name)]
        last = read_outline(remembered._replace(rows=rows, status="running"), codec, whole=True).stages[-1]
        assert (last.name, last.status, str(last.inserted_by)) == (name, "running", by)
