"""A run as its journal has it: compared with the run itself, which has the same records."""

import threading

import pytest

from flowdeco import Context, Stage, action, durable, parallel, pipeline, stage, stream
from flowdeco.cli.history import recorded
from flowdeco.cli.inputs import UsageError
from flowdeco.cli.journals import journal_of
from flowdeco.durable import MemoryJournal, PickleCodec, SqliteJournal
from flowdeco.middleware import recover, retry

GATE = {"open": False}


def latest(path):
    """The journal of the latest run, and its id."""
    info = durable.runs(path)[0]
    return journal_of(str(path), info), info.id


@stage
def part(n: int, deeper: bool = False) -> None:
    @action
    def first() -> object:
        return extra if n == 1 else None

    @action
    def second() -> object:
        return part(n + 10) if deeper else None


@action
def extra() -> None:
    pass


@action
def insert() -> list[Stage]:
    return [part(1, deeper=True), part(2)]


@action
def broken() -> None:
    if not GATE["open"]:
        raise ValueError("closed")


BOTH = threading.Barrier(2, timeout=10)


def gate_to_failure(name):
    """An action that fails when another one is about to fail as well."""

    @action(name=name)
    def failing() -> None:
        BOTH.wait()
        raise ValueError(name)

    return failing


def pages():
    for n in range(3):
        yield part(n)


@action
def streaming() -> object:
    return stream(pages)


@action
def gate(ctx: Context) -> None:
    ctx.wait_for("go")


def inserting(call):
    yield
    call.insert(part(5))


def recovered_stage():
    return Stage("risky", [broken], use=[recover(on=ValueError)])


def attempts(call):
    GATE["open"] = call.attempt > 1
    yield


def seen(records):
    """What is the same, whoever tells it."""
    return [
        (r.name, str(r.status), r.inserted_by, r.recovered, r.attempts,
         [(a.name, str(a.status), a.inserted_by) for a in r.actions])
        for r in records
    ]  # fmt: skip


@pytest.fixture
def told(tmp_path):
    """Run with a journal, and return the run, and what the journal has of it."""
    GATE["open"] = False
    path = tmp_path / "runs.db"

    def run(flow, **options):
        ran = flow.run(journal=path, check=False, **options)
        info = durable.runs(path)[0]
        return ran, recorded(journal_of(str(path), info), info.id, pipeline(flow))

    return run


@pytest.mark.parametrize(
    "flow",
    [
        Stage("a") >> Stage("b"),
        insert >> extra,
        streaming >> Stage("end"),
        pipeline(Stage("a"), name="inner", use=[inserting]) >> Stage("b"),
        Stage("s", [extra], use=[inserting]) >> Stage("b"),
        recovered_stage() >> Stage("b"),
        Stage("retried", [broken], use=[retry(on=ValueError, attempts=2, wait=0), attempts]),
    ],
    ids=lambda flow: flow.name,
)
def test_the_journal_of_a_completed_run_tells_what_the_run_tells(told, flow):
    """Order, statuses, who inserted what; whatever was inserted by whom."""
    run, again = told(flow)
    assert run.status == "completed"
    assert seen(again.stages) == seen(run.stages)
    assert (again.id, again.status, again.error, again.store) == (run.id, "completed", None, run.store)


def test_what_was_skipped_is_told(told):
    """With its status."""
    run, again = told(insert >> extra, skip=["part[2]", "extra"])
    assert seen(again.stages) == seen(run.stages)


@pytest.mark.parametrize(
    "flow",
    [insert >> broken >> extra, Stage("two", [extra, broken]) >> extra, insert >> gate, streaming >> gate],
)
def test_where_a_run_stopped_is_told(told, flow):
    """With the action, whatever inserted it."""
    run, again = told(flow)
    assert seen(again.stages) == seen(run.stages)
    assert again.stages[-1].status == run.status
    if run.error is not None:
        assert (type(again.error).__name__, str(again.error)) == ("ValueError", "closed")
        assert again.stages[-1].error is again.error


@pytest.mark.parametrize("flow", [parallel(broken, part(3)), parallel(gate_to_failure("a"), gate_to_failure("b"))])
def test_the_branches_that_failed_are_told(told, flow):
    """With their own errors, and what was cancelled with them."""
    run, again = told(flow)
    assert run.status == "failed"
    assert seen(again.stages) == seen(run.stages)
    assert flow.plan().diff(again).failed == flow.plan().diff(run).failed


@pytest.fixture
def killed(tmp_path):
    """Run with a journal, and return what that has of the run if it was killed after so many rows."""

    def run(flow, rows, **options):
        source = MemoryJournal()
        flow.run(journal=source, run_id="one", **options)
        remembered = source.read("one")
        journal = SqliteJournal(tmp_path / "runs.db")
        journal.create("one", flow.name, remembered.inputs[0][1], remembered.skip)
        journal.write("one", remembered.rows[:rows])
        return recorded(journal, journal.runs()[0].id, pipeline(flow))

    return run


def test_where_a_run_was_killed_among_branches_that_take_turns_is_not_guessed(killed):
    """Nobody knows whose turn it was."""
    again = killed(parallel(extra, part(3), limit=1) >> extra, rows=1)
    assert list(again.stages) == []


def test_where_a_run_was_killed_among_branches_is_told(killed):
    """All of them were under way."""
    again = killed(parallel(extra, part(3)) >> extra, rows=1)
    assert [(r.name, str(r.status)) for r in again.stages] == [("extra", "running"), ("part[3]", "running")]


def test_a_stage_whose_end_was_not_written_before_a_kill_is_over(killed):
    """Its actions are, and it has no middleware: the next one was under way."""
    again = killed(part(3) >> Stage("two", [extra, extra]), rows=2)
    assert [(r.name, str(r.status)) for r in again.stages] == [("part[3]", "completed"), ("two", "running")]
    assert again.stages[0].elapsed == sum(action.elapsed for action in again.stages[0].actions)


def test_the_next_action_of_a_killed_run_was_under_way(killed):
    """Behind those that were over."""
    again = killed(Stage("two", [insert, extra]) >> extra, rows=1)
    assert [(a.name, str(a.status)) for a in again.stages[0].actions] == [("insert", "completed"), ("extra", "running")]


def test_a_killed_run_is_told_with_the_pipelines_around_its_last_stage(killed):
    """Which have no row, as that stage has none."""
    again = killed(pipeline(Stage("two", [extra, extra]), name="inner", title="Inner"), rows=1)
    assert again.stages[0].scope.name == "inner"


def test_where_a_run_was_killed_in_a_stream_is_not_guessed(killed):
    """Nothing is called to find out what it would have given next."""
    again = killed(streaming >> extra, rows=4)
    assert [(r.name, str(r.status)) for r in again.stages] == [("streaming", "completed"), ("part[0]", "running")]


def test_where_a_run_was_killed_is_not_guessed_from_another_pipeline(killed, tmp_path):
    """What the rows have is told."""
    killed(part(3) >> extra, rows=2)
    again = recorded(*latest(tmp_path / "runs.db"), pipeline(part(4) >> extra))
    assert [(r.name, str(r.status)) for r in again.stages] == [("part[3]", "running")]


def test_stages_that_the_pipeline_no_longer_has_are_told(tmp_path):
    """By their names."""
    path = tmp_path / "runs.db"
    (Stage("gone", [extra]) >> part(3)).run(journal=path)
    again = recorded(*latest(path), pipeline(Stage("part[3]")))
    assert [(r.name, [a.name for a in r.actions]) for r in again.stages] == [
        ("gone", ["extra"]),
        ("part[3]", ["first", "second"]),
    ]


def test_an_error_without_a_type_is_told_as_it_is(tmp_path):
    """As somebody else's journal may have it."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    journal.create("one", "flow", journal.codec.encode({}, "inputs"), ())
    journal.close("one", "failed", None, "it went wrong")
    again = recorded(*latest(path), pipeline())
    assert (type(again.error).__name__, str(again.error), list(again.stages)) == ("RunError", "it went wrong", [])


def test_a_codec_of_somebody_is_refused(tmp_path):
    """Only their program knows it."""

    class Mine(PickleCodec):
        name = "mine"

    path = tmp_path / "runs.db"
    Stage("a").run(journal=SqliteJournal(path, codec=Mine()))
    with pytest.raises(UsageError, match="codec 'mine', which only your program knows"):
        recorded(*latest(path), pipeline(Stage("a")))


@action
def grouping() -> object:
    return parallel(part(3), pipeline(part(4), part(5), name="inner", use_stages=[wide]), name="group")


def wide(call):
    yield


@pytest.mark.parametrize(
    ("flow", "options"),
    [
        (extra >> parallel(insert, Stage("b"), pipeline(extra, Stage("c")), name="group") >> Stage("end"), {}),
        (parallel(parallel(part(3), part(4)) >> part(5, deeper=True), Stage("b"), name="outer") >> Stage("end"), {}),
        (pipeline(part(3), part(4), name="inner", use_stages=[wide]) >> Stage("end"), {}),
        (pipeline(insert, Stage("c"), name="inner", use=[inserting]) >> Stage("b"), {}),
        (extra >> parallel(part(3), part(4), name="group") >> Stage("end"), {"skip": ["group"]}),
        (extra >> parallel(part(3), part(4), name="group") >> Stage("end"), {"skip": ["part[3]"]}),
        (pipeline(extra, broken, Stage("c"), name="inner", use=[recover(on=ValueError)]) >> Stage("c"), {}),
        (grouping >> Stage("end"), {}),
        (parallel(streaming, Stage("b"), name="group") >> Stage("end"), {}),
        (pipeline(parallel(extra, part(3), limit=1, name="group"), name="inner", use=[wide]) >> broken, {}),
        (insert >> parallel(broken, name="group") >> extra, {}),
        (Stage("two", [extra, broken]) >> extra, {}),
        (Stage("two", [extra, broken.with_options(use=[retry(on=ValueError, attempts=3, wait=0)])]), {}),
        (parallel(gate, part(3), name="group") >> extra, {}),
    ],
)  # fmt: skip
def test_a_journal_differs_from_the_plan_in_what_the_run_differs_in(told, flow, options):
    """In groups and pipelines, too; with the action that failed, and its attempts."""
    run, again = told(flow, **options)
    assert flow.plan().diff(again).changes == flow.plan().diff(run).changes
    assert seen(again.stages) == seen(run.stages)
    assert [record.scope for record in again.stages] == [record.scope for record in run.stages]


def test_records_of_branches_are_told_in_their_order(told):
    """As those of the run."""
    run, again = told(parallel(insert, Stage("b"), pipeline(extra, Stage("c"))) >> Stage("end"))
    assert seen(again.stages) == seen(run.stages)


def test_a_resumed_run_with_a_group_differs_in_nothing_else(told, tmp_path):
    """The group began in the second process."""
    flow = insert >> gate >> parallel(part(3), part(4), name="checks") >> extra
    run, _ = told(flow)
    done = flow.resume(run.id, {"go": True}, journal=tmp_path / "runs.db")
    again = recorded(*latest(tmp_path / "runs.db"), flow)
    assert flow.plan().diff(again).counts() == flow.plan().diff(done).counts() == {"inserted": 4}
