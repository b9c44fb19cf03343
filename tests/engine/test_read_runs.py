"""Runs as their journals have them: record by record what the run itself has, and for what was under way what is known."""

import pytest
from support import Placeholders

from flowdeco import Bail, Context, Pipeline, Stage, Store, Suspend, action, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal, PickleCodec
from flowdeco.engine.outcome import ROOT, Scope, branch_id
from flowdeco.engine.reading import (
    branch_of,
    encoded_inputs,
    failed_steps,
    given_inputs,
    in_branch,
    questions_and_used_keys,
    read_outline,
    read_run,
    stages_by_name,
)
from flowdeco.errors import JournalError, RunError, told
from flowdeco.middleware import recover, retry
from flowdeco.model.definitions import Unit

FAILED = []  # what has failed in this test


@pytest.fixture(autouse=True)
def nothing_has_failed():
    """Each test begins anew."""
    FAILED.clear()


@action
def number() -> int:
    return 1


@action(collect="several")
def another() -> int:
    return 2


@stage
def part(n: int) -> None:
    action(returns=f"part.{n}", name="keep")(lambda: n)


@action
def insert() -> list[Stage]:
    return [part(1), part(2)]


@action
def adds(ctx: Context) -> object:
    ctx.emit("adding")
    return number.with_options(name="added")


@action
def broken() -> None:
    raise ValueError("closed")


@action
def wrong() -> None:
    raise KeyError("other")


@action
def broken_once(ctx: Context) -> int:
    ctx.emit("trying")
    if "once" not in FAILED:
        FAILED.append("once")
        raise ValueError("the first time")
    return 3


@action
def gate(ctx: Context) -> object:
    return ctx.wait_for("go")


@action
def bail() -> int:
    raise Bail("enough")


@action
def suspend() -> None:
    raise Suspend("later")


def inserting(call):
    yield
    call.insert(part(5))


def noting(call):
    call.store[f"began.{call.level}"] = True
    try:
        yield
    finally:
        call.store[f"ended.{call.level}"] = True


@action
def groups() -> object:
    return parallel(part(1), pipeline(part(2), part(3), tags=["t"]), name="new")


@action
def adds_two() -> object:
    return [number.with_options(name="x"), another.with_options(name="y"), part(4)]


@action
def asks(ctx: Context) -> object:
    return ctx.wait_for("go"), ctx.wait_for("on")


@action(returns="number")
def last_number() -> int:
    return 9


def refusing(call):
    raise Suspend("not yet")
    yield


def inserting_an_action(call):
    yield
    call.insert(number.with_options(name="extra"))


def failing(call):
    yield
    raise ValueError("on the way out")


again = retry(on=ValueError, attempts=2, wait=0)
gentle = recover(on=ValueError)

FLOWS = {
    "plain": Stage("a", [number, another], data={"x": 1}) >> insert >> Stage("b", [adds, another]),
    "inserting": pipeline(insert, name="inner", use=[noting, inserting]) >> Stage("b", [number], use=[inserting]),
    "scopes": pipeline(pipeline(insert, name="deep", tags=["t"]), name="outer", use=[noting]) >> number,
    "groups": number >> parallel(insert, pipeline(number, parallel(number, adds, name="in"), tags=["t"]), name="out"),
    "failed": pipeline(Stage("two", [number, broken], use=[noting]), another, name="inner", use=[noting]),
    "failed stage": number >> Stage("two", [number], use=[failing]),
    "failed pipeline": number >> pipeline(number, name="inner", use=[failing]),
    "failed group": number >> parallel(broken, another, wrong, name="group") >> another,
    "all failed": parallel(broken, wrong, name="group"),
    "recovered": pipeline(number, broken, name="inner", use=[gentle]) >> number,
    "recovered stage": Stage("s", [number, broken], use=[gentle]) >> number,
    "recovered action": Stage("s", [number, broken.with_options(use=[gentle])]) >> another,
    "recovered group": pipeline(parallel(broken, number), name="inner", use=[gentle]) >> number,
    "again": pipeline(number, broken_once, name="inner", use=[again]) >> number,
    "stage again": number >> Stage("s", [number, broken_once], use=[again]),
    "action again": Stage("s", [number, broken_once.with_options(use=[again])]) >> number,
    "group again": pipeline(number, parallel(number, broken_once), name="inner", use=[again]),
    "lost": parallel(number, pipeline(another, broken, name="lost", use=[noting]), tolerate=1) >> number,
    "lost again": parallel(number, pipeline(broken, name="lost", use=[again]), insert, tolerate=1),
    "first": parallel(number, another, broken, enough=1) >> another,
    "bail": number >> pipeline(bail, name="inner", use=[noting]) >> another,
    "bail in group": number >> parallel(number, bail, another) >> another,
    "suspended": insert >> gate >> another,
    "two wait": number >> parallel(gate, suspend, insert),
    "recovered and failed": pipeline(number, broken, name="inner", use=[gentle]) >> broken,
    "lost result": parallel(number, pipeline(another, broken), tolerate=1),
    "bail with result": number >> parallel(number, pipeline(another, bail), number) >> another,
    "inserted group": groups >> number,
    "inserted actions": Stage("s", [adds_two, number]) >> Stage("t", [number], use=[inserting_an_action]),
    "bail at once": parallel(pipeline(another, bail), number, limit=1),
    "written twice": Stage("s", [number, last_number, number.with_options(name="n", returns="m")]) >> last_number,
    "nothing": pipeline(),
}
UNKNOWN = {"unit", "elapsed", "end", "entered", "repeats", "fingerprint", "dropped", "started", "value"}


def plain(value):
    """A record in plain values, without what only a journal or only a run has; errors by what they say."""
    if isinstance(value, BaseException):
        return told(value)
    if isinstance(value, Unit):
        return type(value).__name__, value.name
    if hasattr(value, "_fields"):
        known = {name: plain(getattr(value, name)) for name in value._fields if name not in UNKNOWN}
        return {**known, "name": value.name} if "name" in known else known
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def journaled(flow, inputs=None, **options):
    """The run of a flow, and its journal."""
    journal = MemoryJournal()
    return flow.run(inputs, journal=journal, run_id="one", check=False, **options), journal


def read(journal, *units):
    """The run as it is read, with the stages of these units."""
    return read_run(journal.read("one"), journal.codec, stages_by_name(units).get)


def check(found, run):
    """Whether the read run is the run."""
    assert [plain(each) for each in found.stages] == [plain(each) for each in run.stages]
    assert [plain(each) for each in found.pipelines] == [plain(each) for each in run.pipelines]
    assert (dict(found.store), found.result, found.reason) == (dict(run.store), run.result, run.reason)
    assert (found.id, found.status, plain(found.error)) == (run.id, run.status, plain(run.error))
    assert [wait.key for wait in found.waits] == [wait.key for wait in run.waits]
    assert (found.started, found.pipeline.name) == (run.started, run.pipeline.name)
    for one, other in zip(found.stages, run.stages, strict=True):
        assert abs(one.elapsed - other.elapsed) < 0.01
        assert abs(one.started - other.started) < 0.01
        assert [each.action.name for each in one.actions] == [each.action.name for each in other.actions]


@pytest.mark.parametrize("name", FLOWS)
def test_a_run_is_read_record_by_record(name):
    """With its stages, where they are known, and otherwise by their names and actions."""
    run, journal = journaled(FLOWS[name], {"input": [1]})
    found = read(journal, FLOWS[name])
    check(found, run)
    check(read(journal), run)
    assert [each.unit for each in found.stages] == [each.unit for each in run.stages]
    for one, other in zip(found.stages, run.stages, strict=True):
        for mine, its in zip(one.actions, other.actions, strict=True):
            assert mine.unit == its.unit
            assert (mine.error is one.error) == (its.error is other.error)
    assert [(type(each.unit), each.unit.name) for each in found.pipelines] == [
        (Pipeline, each.unit.name) for each in run.pipelines
    ]


def cut(journal, rows, **more):
    """The run with its first rows only, as if its process had been killed then."""
    remembered = journal.read("one")
    return remembered._replace(rows=remembered.rows[:rows], **{"status": "running", "error": None, **more})


def test_an_unfinished_stage_is_made_from_its_actions():
    """With their times; what its middleware has done is not known."""
    _, journal = journaled(insert >> Stage("two", [number, broken]))
    whole = read(journal)
    for rows, name, ran in ((1, "insert", ["insert"]), (3, "part[1]", ["keep"]), (7, "two", ["number"])):
        remembered = cut(journal, rows)
        open_stage, ended = read_run(remembered, journal.codec).stages[-1], whole.stages[rows // 2]
        assert (open_stage.name, open_stage.status, [each.name for each in open_stage.actions]) == (
            name,
            "running",
            ran,
        )
        assert (open_stage.number, open_stage.started) == (ended.number, ended.actions[0].started)
        assert open_stage.elapsed == sum(each.elapsed for each in open_stage.actions) > 0
        assert open_stage.inserted_by == ended.inserted_by
        assert (type(open_stage.unit), open_stage.unit.name) == (Stage, name)
        assert [each.name for each in open_stage.unit] == ran


def test_a_run_at_work_has_what_a_resume_would_begin_with():
    """The writes of layers on the way in, once they are all entered; and on the way out, of what has ended well."""
    for flow, rows, there in [
        (Stage("s", [number], use=[noting, refusing]), 9, []),
        (Stage("s", [number, another], use=[noting]), 1, ["began.stage"]),
        (Stage("s", [number, another], use=[noting]), 2, ["began.stage", "number"]),
        (Stage("s", [number], use=[noting]) >> another, 3, ["began.stage", "ended.stage", "number"]),
        (Stage("s", [number, broken], use=[noting]), 9, ["began.stage", "number"]),
    ]:
        _, journal = journaled(flow)
        assert sorted(read_run(cut(journal, rows), journal.codec).store) == there


def test_what_ended_before_the_last_resume_is_marked():
    """And when each leg began."""
    journal, flow = MemoryJournal(), insert >> Stage("two", [number, gate]) >> another
    flow.run(journal=journal, run_id="one")
    first = read(journal, flow)
    assert (list(first.resumed), [each.restored for each in first.stages]) == ([], [False] * 4)
    run = flow.resume("one", {"go": 3}, journal=journal)
    found = read(journal, flow)
    check(found, run)
    (leg,) = run.resumed
    assert list(found.resumed) == [pytest.approx(leg, abs=0.01)]
    assert [(each.name, each.restored) for each in found.stages] == [
        ("insert", True), ("part[1]", True), ("part[2]", True), ("two", False), ("another", False),
    ]  # fmt: skip
    assert [each.restored for each in found.stages[3].actions] == [True, False]
    assert found.elapsed == journal.read("one").total()


@pytest.mark.parametrize("name", FLOWS)
def test_what_failed_has_one_error(name):
    """The run's, wherever it has passed; one that was recovered is of its step alone."""
    run, journal = journaled(FLOWS[name])
    found = read(journal, FLOWS[name])
    for one, other in zip(found.stages, run.stages, strict=True):
        errors = [
            (one.error, other.error),
            *((x.error, y.error) for x, y in zip(one.actions, other.actions, strict=True)),
        ]
        assert [mine is found.error for mine, _ in errors if mine] == [its is run.error for _, its in errors if its]
    assert [(stage.name, act and act.name) for stage, act in failed_steps(found)] == [
        (stage.name, act and act.name) for stage, act in failed_steps(run)
    ]


def test_the_steps_that_failed_are_those_to_blame():
    """An action, the stage itself, each branch of a group; not what was recovered."""
    for name, blamed in [
        ("failed", [("two", "broken")]),
        ("failed stage", [("two", None)]),
        ("failed pipeline", []),
        ("failed group", [("broken", "broken"), ("wrong", "wrong")]),
        ("recovered", []),
        ("plain", []),
    ]:
        run, _ = journaled(FLOWS[name])
        found = [(stage.name, act and act.name) for stage, act in failed_steps(run)]
        assert found == blamed or (name == "failed group" and found == blamed[: len(found)] != [])


def test_the_error_of_a_run_is_that_of_its_outermost_failed_step_if_the_journal_agrees():
    """Otherwise it is told by its text; a run that did not fail has none."""
    for flow, text, kind, said in [
        (number >> broken, "ValueError: closed", ValueError, "closed"),
        (number >> broken, "closed", ValueError, "closed"),
        (number >> broken, None, ValueError, "closed"),
        (number >> broken, "it was refused", RunError, "it was refused"),
        (pipeline(number, broken, name="in", use=[gentle]) >> number, "late", RunError, "late"),
        (pipeline(number, broken, name="in", use=[gentle]) >> number, "closed", RunError, "closed"),
        (number, "late", RunError, "late"),
        (pipeline(), "late", RunError, "late"),
        (pipeline(), None, type(None), "None"),
    ]:
        FAILED.clear()
        _, journal = journaled(flow)
        for status in ("failed", "cancelled"):
            found = read_run(journal.read("one")._replace(status=status, error=text), journal.codec)
            assert (type(found.error), str(found.error)) == (kind, said)
        running = read_run(journal.read("one")._replace(status="suspended", error=text), journal.codec)
        assert running.error is None


def test_an_outline_has_failures_only():
    """A payload that cannot be read is left out; the whole is read as far as it can be."""
    _, journal = journaled(FLOWS["failed"], {"x": 1})
    remembered, codec = journal.read("one"), journal.codec
    outline = read_outline(remembered, codec)
    whole = read_outline(remembered, codec, whole=True)
    assert [each.name for each in outline.stages] == [each.name for each in whole.stages]
    assert (plain(outline.error), dict(whole.store)["x"]) == (plain(whole.error), 1)
    assert "x" not in outline.store
    assert outline.result is None
    assert whole.result == 1
    damaged = [row._replace(payload=b"?") for row in remembered.rows]
    for more in ({}, {"whole": True}):
        found = read_outline(remembered._replace(rows=damaged, inputs=[]), codec, **more)
        assert [each.name for each in found.stages] == [each.name for each in whole.stages]
        assert type(found.error) is RunError


def test_open_questions_and_used_keys_are_found():
    """As far as payloads can be read."""
    journal, flow = MemoryJournal(), number >> parallel(asks, suspend)
    flow.run({"go": 1}, journal=journal, run_id="one")
    questions, used = questions_and_used_keys(journal.read("one"), journal.codec)
    assert ([each.key for each in questions], used) == (["on"], {"go"})
    assert [wait.key for wait in read(journal).waits] == ["on"]
    damaged = journal.read("one")
    damaged = damaged._replace(rows=[row._replace(payload=b"?") for row in damaged.rows])
    assert questions_and_used_keys(damaged, journal.codec) == ([], set())
    _, other = journaled(number)
    assert questions_and_used_keys(other.read("one"), other.codec) == ([], set())


def test_an_open_stage_that_a_layer_inserted_is_known():
    """By the name of the layer's target; an action that a layer inserts is a stage of its own."""
    for layer, name in ((inserting, "part[5]"), (inserting_an_action, "extra")):
        flow = number >> Stage("b", [number], use=[layer])
        run, journal = journaled(flow)
        remembered = cut(journal, 5)
        last = read_run(remembered, journal.codec).stages[-1]
        assert (last.name, last.status, last.inserted_by) == (name, "running", "b")
        assert last.inserted_by.number == run.stages[1].number
        assert last.unit == run.stages[-1].unit
        unread = read_run(remembered, Placeholders(journal.codec))
        assert (unread.stages[-1].inserted_by, unread.stages[-1].inserted_by.number) == ("b", run.stages[1].number)
        assert [each.inserted for each in unread.stages] == [(), (), ()]


def test_a_stage_whose_inserter_was_not_read_is_found_by_its_name():
    """Also one that is open."""
    flow, known = insert >> number, part(1)
    run, journal = journaled(flow)
    remembered = journal.read("one")
    found = read_run(remembered, Placeholders(journal.codec), {"part[1]": known}.get)
    assert found.stages[1].unit is known
    assert [each.inserted_by for each in found.stages] == [each.inserted_by for each in run.stages]
    last = read_run(cut(journal, 7), journal.codec, stages_by_name([flow]).get).stages[-1]
    assert (last.name, last.status, last.unit) == ("number", "running", run.stages[-1].unit)
    assert last.actions[0].unit == number


class Picky(Exception):
    """An error that is pickled, and cannot be unpickled."""

    def __init__(self, code, *, reason):
        super().__init__(f"{reason} ({code})")


def test_inputs_and_errors_are_written_together_and_read_in_order():
    """An error that would not come back has a stand-in; damaged inputs are an error that names the run."""
    codec, (_, journal) = PickleCodec(), journaled(number)

    def encode(value, what):
        assert what == "inputs"
        return codec.encode(value, what)

    errors = {"go": ValueError("no"), "on": Picky(3, reason="odd")}
    payloads = [encoded_inputs(encode, codec, {"x": 1}), encoded_inputs(encode, codec, {"y": 2}, errors)]
    assert codec.decode(payloads[0]) == {"x": 1}
    remembered = journal.read("one")._replace(inputs=[(0, payloads[0]), (3, payloads[1])])
    first, second = given_inputs(remembered, codec)
    assert (first.rows, dict(first.values), dict(first.errors)) == (0, {"x": 1}, {})
    assert (second.rows, dict(second.values), list(second.errors)) == (3, {"y": 2}, ["go", "on"])
    assert type(second.values) is Store
    assert (told(second.errors["go"]), "odd (3)" in str(second.errors["on"])) == ("ValueError: no", True)
    for damaged in ([1, 2], 3):
        with pytest.raises(JournalError, match="the inputs of run 'one' are not a mapping"):
            given_inputs(remembered._replace(inputs=[(0, codec.encode(damaged, "inputs"))]), codec)


def test_stages_are_found_by_their_names_unless_several_have_one():
    """Those of actions, of nested pipelines and groups; the same stage twice is one."""
    one, two, other = Stage("one"), Stage("two", [number]), Stage("two", [another])
    found = stages_by_name([one, pipeline(number, one), parallel(two)])
    assert sorted(found) == ["number", "one", "two"]
    assert (found["one"], found["two"], [each.name for each in found["number"]]) == (one, two, ["number"])
    assert sorted(stages_by_name([one, two, parallel(other), number])) == ["number", "one"]


def test_a_scope_knows_its_branch():
    """The innermost one; outside of groups it is that of the run."""
    group = Scope("g", "0.4", 1, None, None)
    inside = Scope("p", "0.5", None, None, group)
    alone = Scope("p", "0.5", None, None, None)
    assert [branch_of(scope) for scope in (None, alone, group, inside)] == [ROOT, ROOT, *[branch_id("0.4", 1)] * 2]
    assert [in_branch(scope) for scope in (None, alone, group, inside)] == [False, False, True, True]
