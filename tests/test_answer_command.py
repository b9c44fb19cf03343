"""Answers without a resume: the command `answer`, `--error`, and `durable.answer` with a failure or a misspelt key."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from flowdeco import Context, action, cli, durable, parallel
from flowdeco.errors import DefinitionError, JournalError, StoreTypeError

FLOWS = """
from datetime import date
from enum import Enum
from flowdeco import Context, Stage, action, parallel

class Colour(Enum):
    RED = 1
    BLUE = 2

@action(returns="decision")
def decide(ctx: Context):
    try:
        return ctx.wait_for("approval", about="May we?", type=bool)
    except RuntimeError as error:
        return f"nobody: {error}"

@action
def paint(ctx: Context):
    return ctx.wait_for("colour", type=Colour).name

@action
def plain(ctx: Context):
    return [ctx.wait_for("when"), ctx.wait_for("note")]

@action
def uses(when: date = date.min) -> None: ...

both = parallel(decide, paint)
dated = plain >> uses

@action
def sleeps(ctx: Context):
    ctx.sleep(3600)

@action
def fails():
    raise OSError("offline")
"""


@pytest.fixture(autouse=True)
def flows(tmp_path, monkeypatch):
    """A file with workflows, and a journal of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWDECO_JOURNAL", "runs.db")
    for name in ("flows", "__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "__main__", sys)
    Path("flows.py").write_text(FLOWS)
    yield
    sys.modules.pop("flows", None)


@pytest.fixture
def flowdeco(capsys):
    """Run the command in this process; return exit code, output, and errors."""

    def run(*arguments):
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def waits(flowdeco):
    """Begin a run that waits, of one of the workflows."""

    def begin(name, *more):
        assert flowdeco("run", f"flows.py:{name}", "--run-id", "one", *more)[0] in (1, 3)

    return begin


def store(flowdeco, *more):
    """What the run has in the end."""
    code, out, err = flowdeco("resume", "one", "--json", *more)
    assert code == 0, err
    return json.loads(out)["store"]


# -- the command


def test_an_answer_is_recorded_and_the_run_resumed_later(flowdeco, waits):
    """Converted by the type of its question; the run is then due for `wake`, and listed as answered."""
    waits("decide")
    assert flowdeco("answer", "one", "approval=yes") == (
        0,
        "run one has its answer to 'approval' at its next resume\n",
        "flowdeco: to resume: flowdeco resume one\n",
    )
    (info,) = durable.runs("runs.db")
    assert (info.status, info.answered) == ("suspended", True)
    assert "answered; waiting for 'approval' (bool): May we?" in flowdeco("runs")[1]
    assert [each.id for each in durable.due("runs.db")] == ["one"]
    assert store(flowdeco)["decision"] is True


def test_the_last_answer_counts(flowdeco, waits):
    """As with `durable.answer`; the run is named by the beginning of its id."""
    waits("decide")
    for answer in ("yes", "no"):
        assert flowdeco("answer", "on", f"approval={answer}")[0] == 0
    assert store(flowdeco)["decision"] is False


def test_several_answers_one_of_them_of_a_class_of_the_workflow(flowdeco, waits):
    """All or none are recorded; options may stand between them."""
    waits("both")
    code, _, err = flowdeco("answer", "one", "approval=yes", "colour=green")
    assert (code, "the run asks for it as Colour, and 'green' is not one of RED, BLUE" in err) == (2, True), err
    assert durable.runs("runs.db")[0].answered is False
    code, out, err = flowdeco("answer", "one", "approval=yes", "--journal", "runs.db", "colour=BLUE")
    assert (code, out) == (0, "run one has its answer to 'approval', 'colour' at its next resume\n")
    assert store(flowdeco) == {"decision": True, "paint": "BLUE"}


def test_what_is_still_asked_is_said(flowdeco, waits):
    """And is in the data of `--json`."""
    waits("both")
    _, _, err = flowdeco("answer", "one", "colour=RED")
    assert err == "flowdeco: to resume: flowdeco resume one -i approval=VALUE\n"
    _, out, _ = flowdeco("answer", "one", "colour=RED", "--json")
    assert json.loads(out) == {"id": "one", "answered": ["colour"], "asks": ["approval"]}


def test_an_answer_without_a_type_is_taken_as_the_workflow_takes_it(flowdeco, waits):
    """As `resume -i` does: text by the annotation of the parameter of its name, `:=` is JSON."""
    waits("dated")
    assert flowdeco("answer", "one", "when=2025-01-31")[0] == 0
    assert flowdeco("resume", "one")[0] == 3
    assert flowdeco("answer", "one", "when=2025-02-01")[0] == 2  # it was used
    assert flowdeco("answer", "one", "note:=[1, 2]")[0] == 0
    assert store(flowdeco)["plain"] == ["2025-01-31", [1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aproval=yes"], "run 'one' does not ask for 'aproval'. Did you mean 'approval'?"),
        (["xyz=yes"], "run 'one' does not ask for 'xyz'. It asks for: 'approval'."),
        (["--error", "aproval=no"], "run 'one' does not ask for 'aproval'. Did you mean 'approval'?"),
        (["approval=maybe"], "the input 'approval': the run asks for it as bool, and 'maybe' is not one"),
        (["approval"], "an answer is KEY=VALUE, or KEY:=VALUE for JSON, not 'approval'"),
        (["approval:=yes"], "approval:=yes is not valid JSON (as text: approval=yes): Expecting value"),
        (["--error", "approval"], "--error takes KEY=TEXT, not 'approval'"),
        (["approval=yes", "--error", "approval=no"], "'approval' has an answer, and an --error: give one of them"),
        ([], "give an answer: flowdeco answer one approval=VALUE"),
    ],
)
def test_a_wrong_answer_is_refused(flowdeco, waits, arguments, message):
    """With exit code 2; nothing is recorded."""
    waits("decide")
    code, out, err = flowdeco("answer", "one", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"flowdeco: error: {message}"), err
    assert durable.runs("runs.db")[0].answered is False


def test_a_run_that_asks_nothing_takes_no_answer(flowdeco, waits):
    """Neither one that sleeps, has failed or was cancelled, nor one that has finished."""

    def refused():
        code, _, err = flowdeco("answer", "one", "approval=yes")
        assert code == 2
        return err.removeprefix("flowdeco: error: ").rstrip()

    inputs = ". To give it inputs: flowdeco resume one -i KEY=VALUE"
    waits("sleeps")
    assert refused().startswith("run 'one' asks nothing now: it is sleeping until ")
    durable.delete("runs.db", "one")
    waits("fails")
    assert refused() == f"run 'one' asks nothing now: it is failed{inputs}"
    durable.delete("runs.db", "one")
    waits("decide")
    durable.cancel("runs.db", "one")
    assert refused() == f"run 'one' asks nothing now: it is cancelled{inputs}"
    assert flowdeco("resume", "one", "-i", "approval=yes")[0] == 0
    assert refused() == "run 'one' has completed and no longer asks anything: an answer would have no effect"
    assert flowdeco("answer", "two", "approval=yes")[2].startswith("flowdeco: error: runs.db has no run 'two'")


def test_types_that_cannot_be_imported_are_refused(flowdeco, waits):
    """A text would be taken for the answer; others are converted all the same."""
    waits("both")
    Path("flows.py").unlink()
    sys.modules.pop("flows", None)
    assert flowdeco("answer", "one", "approval=yes")[0] == 0
    code, _, err = flowdeco("answer", "one", "colour=RED")
    assert (code, "which the workflow defines: there is no file" in err) == (2, True), err


# -- failures


def test_a_failure_is_an_answer(flowdeco, waits):
    """It is raised at the wait, as a RuntimeError with this text: later, or with a resume at once."""
    waits("decide")
    assert flowdeco("answer", "one", "--error", "approval=on holiday")[:2] == (
        0,
        "run one has its answer to 'approval' at its next resume\n",
    )
    assert store(flowdeco)["decision"] == "nobody: on holiday"
    durable.delete("runs.db", "one")
    waits("both")
    assert store(flowdeco, "--error", "approval=a=b", "-i", "colour=RED")["decision"] == "nobody: a=b"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--error", "aproval=no"], "error: run 'one' does not wait for 'aproval'. Did you mean 'approval'?"),
        (["--error", "approval"], "--error takes KEY=TEXT, not 'approval'"),
        (["--error", "approval=no", "-i", "approval=yes"], "'approval' has an answer, and an --error"),
    ],
)
def test_a_wrong_failure_is_refused_by_resume(flowdeco, waits, more, message):
    """With exit code 2; the run stays as it was."""
    waits("decide")
    code, _, err = flowdeco("resume", "one", *more)
    assert (code, message in err) == (2, True), err
    assert durable.runs("runs.db")[0].status == "suspended"
    assert store(flowdeco, "-i", "approval=no")["decision"] is False
    code, _, err = flowdeco("resume", "one", "--error", "approval=no")
    assert (code, "no longer asks anything" in err) == (2, True)


# -- durable.answer


@action
def asks(ctx: Context):
    try:
        return ctx.wait_for("approval", type=bool)
    except OSError as error:
        return str(error)


@action
def asks_more(ctx: Context):
    return ctx.wait_for("reason")


@pytest.fixture(params=["memory", "pickle", "json"])
def journal(request):
    """Journals of all kinds."""
    return durable.MemoryJournal() if request.param == "memory" else durable.SqliteJournal("a.db", codec=request.param)


def test_a_program_answers_with_a_failure(journal):
    """`error=` is that of `resume`: an exception, or one for each key, also in addition to answers."""
    flow = parallel(asks, asks_more)
    flow.run(journal=journal, run_id="r")
    with pytest.raises(DefinitionError, match="write error={key: exception}"):
        durable.answer(journal, "r", error=OSError("no"))
    with pytest.raises(DefinitionError, match="does not wait for 'aproval'. Did you mean 'approval'"):
        durable.answer(journal, "r", {"reason": 1}, error={"aproval": OSError("no")})
    with pytest.raises(DefinitionError, match="error= is an exception"):
        durable.answer(journal, "r", error={"approval": "no"})
    durable.answer(journal, "r", {"reason": 1}, error={"approval": OSError("no")})
    run = flow.resume("r", journal=journal)
    assert dict(run.store) == {"asks": "no", "asks_more": 1}
    with pytest.raises(JournalError, match="has completed and no longer asks anything"):
        durable.answer(journal, "r", error=OSError("no"))


def test_nothing_is_not_an_answer(journal):
    """Neither no answers nor an empty mapping."""
    asks.run(journal=journal, run_id="r")
    for nothing in ([], [{}], [None]):
        with pytest.raises(DefinitionError, match="answers are a mapping of keys to values"):
            durable.answer(journal, "r", *nothing)


def warnings(caplog):
    """The warnings of runs since the last time."""
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_misspelt_key_is_warned_of(journal, caplog, cancelled):
    """It is recorded as an input, for it may be one; a cancelled run has the question that it waited for."""
    asks.run(journal=journal, run_id="r")
    if cancelled:
        durable.cancel(journal, "r")
    told = "run r does not ask for %r, which is now an input of its next resume. %s"
    durable.answer(journal, "r", {"aproval": True})
    assert warnings(caplog) == [told % ("aproval", "Did you mean 'approval'?")]
    durable.answer(journal, "r", {"remark": "x"})
    assert warnings(caplog) == [told % ("remark", "It asks for 'approval'.")]
    durable.answer(journal, "r", {"remark": "x", "approval": True})
    assert warnings(caplog) == []
    run = asks.resume("r", journal=journal)
    assert dict(run.store) == {"asks": True, "aproval": True, "remark": "x"}


def test_answers_to_a_cancelled_run_are_checked_as_well(journal):
    """By the type of the question that it asks again when it is resumed; one that was used is refused."""
    flow = asks_more >> asks
    flow.run({"reason": 1}, journal=journal, run_id="r")
    durable.cancel(journal, "r")
    with pytest.raises(StoreTypeError, match="'approval' is declared as bool"):
        durable.answer(journal, "r", {"approval": "yes"})
    with pytest.raises(JournalError, match="has used an answer to 'reason' already, and waits for 'approval' now"):
        durable.answer(journal, "r", {"reason": 2})
    durable.answer(journal, "r", {"approval": True})
    assert flow.resume("r", journal=journal)["asks"] is True


def test_a_run_that_sleeps_or_waits_plainly_takes_any_key(journal, caplog):
    """Nothing is asked that could have been meant."""

    @action
    def sleeps(ctx: Context):
        ctx.sleep(3600)

    sleeps.run(journal=journal, run_id="r")
    durable.answer(journal, "r", {"x": 1})
    assert warnings(caplog) == []
