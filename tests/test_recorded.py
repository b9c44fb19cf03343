"""A run as its journal has it: compared with the run itself, which has the same records."""

import pytest

from flowdeco import Context, Stage, action, durable, parallel, pipeline, stage, stream
from flowdeco.durable import PickleCodec, SqliteJournal
from flowdeco.errors import JournalError
from flowdeco.middleware import recover, retry
from flowdeco.recorded import recorded

GATE = {"open": False}


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
        return ran, recorded(str(path), info, pipeline(flow))

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
    assert (again.id, again.status, again.error, dict(again.store)) == (run.id, "completed", None, {})


def test_branches_are_told_in_the_order_in_which_their_stages_were_over(told):
    """The records of a run have them in branch order."""
    run, again = told(parallel(insert, Stage("b"), pipeline(extra, Stage("c"))) >> Stage("end"))
    assert sorted(seen(again.stages)) == sorted(seen(run.stages))
    assert again.stages[-1].name == "end"


def test_what_was_skipped_is_told(told):
    """With its status."""
    run, again = told(insert >> extra, skip=["part[2]", "extra"])
    assert seen(again.stages) == seen(run.stages)


@pytest.mark.parametrize("flow", [insert >> broken >> extra, Stage("two", [extra, broken]) >> extra, insert >> gate])
def test_where_a_run_stopped_is_told(told, flow):
    """By the order of what was to come, if no action of the stage is over."""
    run, again = told(flow)
    assert [(r[0], r[1], r[2]) for r in seen(again.stages)] == [(r[0], r[1], r[2]) for r in seen(run.stages)]
    assert again.stages[-1].status == run.status
    if run.error is not None:
        assert (type(again.error).__name__, str(again.error)) == ("ValueError", "closed")
        assert again.stages[-1].error is again.error


def test_where_a_run_stopped_among_branches_is_not_guessed(told):
    """Several were under way."""
    run, again = told(parallel(broken, Stage("other")))
    assert run.status == "failed"
    assert "broken" not in [record.name for record in again.stages]


def test_a_run_that_stopped_in_a_stream_is_not_guessed(told):
    """What the stream would have given next is not known."""
    _, again = told(streaming >> gate)
    assert [record.name for record in again.stages] == ["streaming", "part[0]", "part[1]", "part[2]"]


def test_stages_that_the_pipeline_no_longer_has_are_told(tmp_path):
    """By their names."""
    path = tmp_path / "runs.db"
    (Stage("gone", [extra]) >> part(3)).run(journal=path)
    again = recorded(str(path), durable.runs(path)[0], pipeline(Stage("part[3]")))
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
    again = recorded(str(path), durable.runs(path)[0], pipeline())
    assert (type(again.error).__name__, str(again.error), list(again.stages)) == ("RunError", "it went wrong", [])


def test_a_codec_of_somebody_is_refused(tmp_path):
    """Only their program knows it."""

    class Mine(PickleCodec):
        name = "mine"

    path = tmp_path / "runs.db"
    Stage("a").run(journal=SqliteJournal(path, codec=Mine()))
    with pytest.raises(JournalError, match="codec 'mine', which only your program knows"):
        recorded(str(path), durable.runs(path)[0], pipeline(Stage("a")))
