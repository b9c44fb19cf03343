"""Runs at work as the command line shows them: a cancel that is pending, stages that were inserted, the steps so far."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout

import pytest

from flowdeco import Context, Stage, action, cli, durable, parallel, pipeline, stage, stream
from flowdeco.cli.steps_table import steps

SEEN: list[str] = []


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory, and a journal of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWDECO_JOURNAL", "runs.db")
    SEEN.clear()


def said(*arguments):
    """The output of a command, without times."""
    with redirect_stdout(io.StringIO()) as out:
        assert cli.main(arguments) == 0
    return re.sub(r"\b\d+(\.\d+)? (µs|ms|s)\b", "T", out.getvalue())


def stages(*arguments):
    """The table of steps, indented, with one space between its columns."""
    table = said("show", *arguments).partition("STAGE ")[2].splitlines()[1:]
    return [re.sub(r"(?<=\S) +", " ", line) for line in table]


@action
def nothing() -> None: ...


@action
def other() -> None: ...


# -- a cancel that is pending


@action
def looks(ctx: Context) -> None:
    SEEN.append(said("runs"))
    durable.cancel("runs.db", ctx.run_id)
    SEEN.extend([said("runs"), said("show"), said("runs", "--json")])


def test_a_cancel_is_pending_until_the_owner_has_stopped():
    """`runs`, `show` and `--json` have it, and the info of the run; nobody has to wonder whether it was heard."""
    flow = looks >> nothing
    assert flow.run(journal="runs.db", check=False).status == "cancelled"
    before, runs, show, data = SEEN
    assert "cancel pending" not in before
    assert re.search(r"running .* cancel pending, by process \d+ on host", runs)
    assert re.search(r"status +running \(cancel pending, by process \d+ on host", show)
    assert json.loads(data)[0]["cancelling"] is True
    assert "cancel pending" not in said("runs") + said("show")
    assert durable.runs("runs.db")[0].cancelling is False


@pytest.mark.parametrize("make", [durable.MemoryJournal, lambda: durable.SqliteJournal("other.db")])
def test_the_info_of_a_run_knows_it(make):
    """In any journal."""
    journal = make()

    @action
    def cancels(ctx: Context) -> None:
        for _ in range(2):
            SEEN.append([(info.status, info.cancelling) for info in durable.runs(journal)])
            durable.cancel(journal, ctx.run_id)

    (cancels >> nothing).run(journal=journal, check=False)
    assert SEEN == [[("running", False)], [("running", True)]]
    assert [(info.status, info.cancelling) for info in durable.runs(journal)] == [("cancelled", False)]


# -- the table of steps


@action
def shows() -> None:
    SEEN.append(stages())


inner = Stage("inner", [nothing, shows])


@stage
def fetch(n: int) -> None:
    @action
    def get():
        return inner if n == 1 else None


@action
def group():
    return parallel(fetch(0), fetch(1), name="fetches", limit=1)


def test_a_stage_at_work_stands_below_the_one_that_inserted_it():
    """Also in a group at work; when the run has ended, they are where they were."""
    (Stage("outer", [group]) >> other).run(journal="runs.db")
    expected = [
        "outer completed T", "  group completed T", "  fetches (parallel)", "    fetch[0] completed T outer/group",
        "      get completed T", "    fetch[1] completed T outer/group", "      get completed T",
    ]  # fmt: skip
    (at_work,) = SEEN
    assert at_work == [*expected, "      inner running here or later fetch[1]/get", "        nothing completed T"]
    assert stages() == [
        *expected, "      inner completed T fetch[1]/get", "        nothing completed T", "        shows completed T",
        "other completed T",
    ]  # fmt: skip


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_stage_at_work_that_has_data_has_one_row(codec):
    """Its data is recorded as it begins, in a row of its own."""
    Stage("inner", [nothing, shows], data={"n": 1}).run(journal=durable.SqliteJournal("runs.db", codec=codec))
    assert SEEN == [["inner running here or later", "  nothing completed T"]]


leaf = Stage("leaf", [nothing])


@stage
def makes(n: int) -> None:
    @action
    def first() -> None: ...

    @action
    def second():
        return [Stage("inserted", [nothing, other]), leaf] if n else None


def three():
    yield from map(makes, range(3))


@action
def work():
    return [parallel(makes(0), makes(1), parallel(leaf, makes(1)), name="fetches"), leaf, pipeline(leaf, makes(1))]


@action
def insert(ctx: Context) -> None:
    ctx.insert(other)  # an action of this stage
    ctx.insert(leaf)


@action
def repeats(ctx: Context, turn: int = 0):
    ctx.store["turn"] = turn + 1
    return looping if turn < 3 else None


looping = Stage("looping", [nothing, repeats])
outer = Stage("outer", [work, nothing])


@action
def everything():
    return [outer, parallel(stream(three), limit=2, name="streamed")]


FLOW = everything >> Stage("inserting", [insert, nothing]) >> looping >> nothing


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_at_any_moment_steps_are_where_they_are_in_the_end(codec):
    """Whenever the process is killed, or the run is looked at: depth and inserter are those of the finished run."""
    journal = durable.SqliteJournal("runs.db", codec=codec)
    run = FLOW.run(journal=journal, run_id="r")
    rows = journal.history("r")
    final = {place: step.depth for place, step in steps(latest(rows), codec).items()}
    ended = {(record.name, record.inserted_by) for record in run.stages}
    for count in range(len(rows)):
        found = steps(latest(rows[:count]), codec)
        assert {place: step.depth for place, step in found.items()}.items() <= final.items(), count
        stages = [step for step in found.values() if step.row is None or step.row.kind == "stage"]
        assert ended.issuperset((step.name, step.by or None) for step in stages), count


def latest(rows):
    """The rows of these with which each step ended."""
    return list({(row.branch, row.number): row for row in rows}.values())


# -- the steps so far


@action
def waits(ctx: Context) -> str:
    return ctx.wait_for("answer")


@action
def fails_once() -> None:
    SEEN.append("called")
    if len(SEEN) == 1:
        raise OSError("offline")


def counted(run_id="r"):
    """The column STEPS of a run, and what `--json` has."""
    (column,) = re.findall(rf"^{run_id} .*:\d\d UTC +(\d+)", said("runs"), re.MULTILINE)
    found = {each["id"]: each["steps"] for each in json.loads(said("runs", "--json"))}
    assert found[run_id] == json.loads(said("show", run_id, "--json"))["steps"] == int(column)
    return int(column)


def test_steps_are_the_actions_that_have_ended():
    """Not the rows of stages, groups and pipelines; what waits has not ended, and what ran again counts once."""
    flow = pipeline(parallel(leaf, leaf), Stage("s", [nothing, waits]), Stage("t", [fails_once]), nothing)
    flow.run(journal="runs.db", run_id="r", skip=["nothing"])
    assert counted() == 3
    flow.resume("r", {"answer": "yes"}, journal="runs.db", check=False)
    assert counted() == 5
    flow.resume("r", journal="runs.db")
    assert counted() == 5
    (info,) = durable.runs("runs.db")
    assert info.steps > 10


def test_steps_of_a_changed_pipeline_are_those_of_the_latest_generation():
    """An ignored change numbers them again."""
    flow = nothing >> Stage("s", [waits])
    flow.run(journal="runs.db", run_id="r")
    assert counted() == 1
    (leaf >> nothing >> Stage("s", [waits])).resume("r", journal="runs.db", on_change="ignore")
    assert counted() == 2


def test_a_damaged_step_does_not_prevent_the_list():
    """It is not counted."""
    leaf.run(journal="runs.db", run_id="r")
    journal = durable.SqliteJournal("runs.db")
    with journal._asked("it") as connection:
        connection.execute("UPDATE log SET what = '[' WHERE what LIKE '%action%'")
    assert journal.ended_actions("r") == journal.ended_actions("none") == 0
    assert said("runs").splitlines()[1].split()[-1] == "0"


def test_a_group_with_a_branch_at_work_is_at_work():
    """Whatever else in it has completed; and so is the group around it."""

    @action
    def look(ctx: Context) -> None:
        SEEN.append(durable.read("runs.db", ctx.run_id).ran())

    inner = parallel(Stage("before", [nothing]), Stage("now", [nothing, look]), name="inner", limit=1)
    run = parallel(inner, other, name="outer", limit=1).run(journal="runs.db")
    assert re.findall(r"(.) .*(outer|inner|before|now) .*?(running|)$", SEEN[0].text(), re.M) == [
        ("▸", "outer", "running"), ("▸", "inner", "running"), ("✓", "before", ""), ("▸", "now", "running"),
    ]  # fmt: skip
    assert run.ran().parts[0].status == "completed"
