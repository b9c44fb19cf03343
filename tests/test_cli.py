"""The command line: what it prints, where, and the exit code."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from flowdeco import action, cli, durable, pipeline
from flowdeco.cli.commands import COMMANDS
from flowdeco.cli.entry_point import EntryError, load

ROOT = Path(__file__).parents[1]

FLOWS = """
from typing import Annotated
from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stage

@stage(tags=["dynamic"])
def process(kind: str) -> None:
    @action(collect="processed")
    def handle() -> str:
        return f"processed {kind}"

@action
def discover(kinds: int) -> list[Stage]:
    print("discovering")
    return [process(str(n)) for n in range(kinds)]

@action(tags=["slow"])
def check(fail: bool = False, stop: bool = False) -> None:
    if fail:
        raise ConnectionError("the server\\nis offline")
    if stop:
        raise Bail("nothing to do")

@action
def approve(ctx: Context) -> None:
    ctx.wait_for("approval")

@stage(tags=["reporting"], data={"title": "Resources"})
def report() -> None:
    @action
    def summary(title: str, processed: list[str] = []) -> str:
        return f"{title}: {len(processed)} processed"

flow = discover >> check >> report
gated = discover >> approve >> report
both = parallel(check, discover) >> report
_private = check >> report
number = 5
"""


@pytest.fixture(autouse=True)
def _workdir(tmp_path, monkeypatch):
    """A directory with `flows.py`; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for name in ("FLOWDECO_JOURNAL", "_ARGCOMPLETE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("flows.py").write_text(FLOWS)
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def flowdeco(capsys):
    """Run the command in this process; return exit code, output, and what it complained."""

    def run(*arguments):
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def in_process(*arguments, environment=(), **options):
    """Run the command in a process of its own."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "flowdeco", *arguments],
        capture_output=True, text=True, env={**os.environ, **dict(environment), "PYTHONPATH": path}, **options,
    )  # fmt: skip


def bare(text):
    """The text without what differs from run to run: durations, ids, widths of columns."""
    text = re.sub(r"\b\d+(\.\d+)? (µs|ms|s)\b", "T", text)
    text = re.sub(r"\b[0-9a-f]{16}\b", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "WHEN", text)
    return re.sub(r"[ ]+", " ", text)


def lines(text):
    return [line.strip() for line in bare(text).splitlines() if line.strip()]


# -- run


def test_a_run_shows_its_stages_and_its_result(flowdeco):
    """One line for each stage, with who inserted it; then what came of it."""
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=2")
    assert (code, err) == (0, "")
    assert lines(out) == [
        "discovering",
        "STAGE STATUS TIME INSERTED BY",
        "discover completed T",
        "process[0] completed T discover/discover",
        "process[1] completed T discover/discover",
        "check completed T",
        "report completed T",
        "completed (5 stages, T, run ID)",
        "result: 'Resources: 2 processed'",
    ]


def test_the_columns_of_a_table_are_aligned(flowdeco):
    """Text to the left, numbers to the right."""
    _, out, _ = flowdeco("run", "flows.py:flow", "-i", "kinds:=1")
    table = [line for line in out.splitlines() if line.startswith(("STAGE", "discover ", "process", "report"))]
    status, time_ends = {line.find("STATUS") if "STATUS" in line else line.find("completed") for line in table}, set()
    for line in table:
        time_ends.add(line.find("TIME") + 4 if "TIME" in line else re.search(r"(ms|µs)\b", line).end())
    assert (len(status), len(time_ends)) == (1, 1)


def test_very_many_stages_are_collapsed(flowdeco, journal):
    """Siblings of one template, from 30 on, in each table of a run: the first ones, and how many more there are."""
    for kinds, rows in ((29, 29), (30, 3), (100, 3)):
        _, out, _ = flowdeco("run", "flows.py:flow", "-i", f"kinds:={kinds}")
        for table in (out, flowdeco("show")[1], flowdeco("diff", "latest")[1]):
            assert len(re.findall(r"^  process\[\d", table, re.MULTILINE)) == rows
            assert (f"\n  … {kinds - 3} more, process[…]\n" in table) == (rows == 3)
    assert "completed (103 stages" in out


def test_failures_among_very_many_stages_are_shown():
    """Rows of different names are listed up to 200 of them."""
    from flowdeco.cli import report

    rows = [report.StepRow(0, f"copy[{i}]", "failed, 2 attempts" if i == 35 else "completed") for i in range(40)]
    out = io.StringIO()
    with redirect_stdout(out):
        report.print_steps([report.StepRow(0, "all"), *(row._replace(depth=1) for row in rows)])
        report.print_steps([report.StepRow(0, f"stage{i}", "completed") for i in range(300)])
    assert lines(out.getvalue())[:9] == [
        "STAGE STATUS TIME", "all", *(f"copy[{i}] completed" for i in range(3)), "… 32 more, copy[…]",
        "copy[35] failed, 2 attempts", "… 4 more, copy[…]", "STAGE STATUS TIME",
    ]  # fmt: skip
    assert out.getvalue().splitlines()[-1] == "… 100 more"


def test_one_among_many_in_which_something_was_recovered_or_retried_is_shown():
    """And not only those that did not complete themselves."""
    from flowdeco.cli import report

    out = io.StringIO()
    with redirect_stdout(out):
        for status in ("recovered", "completed, 2 attempts"):
            below = [report.StepRow(1, "work", status if i == 17 else "completed") for i in range(40)]
            report.print_steps([row for i in range(40) for row in (report.StepRow(0, f"p[{i}]"), below[i])])
    assert lines(out.getvalue())[7:11] == ["… 14 more, p[…]", "p[17]", "work recovered", "… 22 more, p[…]"]
    assert "work completed, 2 attempts" in lines(out.getvalue())


def test_a_failure_is_one_line_and_exit_code_1(flowdeco):
    """Where, what, and on the standard error."""
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "-i", "fail:=true")
    assert code == 1
    assert err == ("flowdeco: error: action 'check' of stage 'check' failed: ConnectionError: the server is offline\n")
    assert "check     failed" in out
    assert "result" not in out


def test_the_notes_of_a_failure_are_told_with_it(flowdeco):
    """Why a value is missing, and the user's own; not where it failed, which is told already."""
    Path("notes.py").write_text(
        "from flowdeco import action, parallel\n"
        "@action(collect='pages')\ndef get():\n    raise OSError('offline')\n"
        "@action\ndef report(pages: list): ...\n"
        "@action\ndef fails():\n"
        "    error = OSError('offline')\n    error.add_note('host 7')\n    error.add_note('two\\nlines')\n    raise error\n"
        "flow = parallel(get, tolerate=1) >> report\n"
    )
    err = flowdeco("run", "notes.py:flow")[2]
    why = "(action 'get' supplies 'pages', and failed: that was recovered around it (OSError: offline))"
    assert (len(err.splitlines()), err.endswith(f" {why}\n")) == (1, True)
    assert flowdeco("run", "notes.py:fails")[2].endswith("failed: OSError: offline (host 7)\n")


def test_the_traceback_is_shown_on_request(flowdeco):
    """That of the user's code, and the line still comes last."""
    _, _, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "-i", "fail:=true", "--traceback")
    assert "Traceback (most recent call last)" in err
    assert 'raise ConnectionError("the server' in err
    assert err.splitlines()[-1].startswith("flowdeco: error: action 'check'")


def test_the_failures_of_a_group_are_told_together(flowdeco):
    """In one line."""
    code, _, err = flowdeco("run", "flows.py:both", "-i", "fail:=true", "-i", "kinds:=1")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "ConnectionError: the server is offline" in err


DOZING = """
import asyncio
from flowdeco import Stage, action

@action
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "awake"

flow = slow >> Stage("after")
"""


def test_a_run_that_times_out_has_failed(flowdeco, journal):
    """Exit code 1; a resume has its own time."""
    Path("dozing.py").write_text(DOZING)
    code, out, err = flowdeco("run", "dozing.py:flow", "-i", "seconds=30", "--run-id", "one", "--timeout", "0.05")
    assert (code, "after" in out) == (1, False)
    first, hint = err.splitlines()
    assert first.startswith("flowdeco: error: ")
    assert "took longer than its timeout of 0.05 s" in first
    assert hint.startswith("flowdeco: to resume: flowdeco resume one")
    assert flowdeco("resume", "one", "-i", "seconds=30", "--timeout", "0.05")[0] == 1
    assert flowdeco("resume", "one", "-i", "seconds=0", "--timeout", "inf")[0] == 0


@pytest.mark.parametrize("wrong", ["0", "-1", "soon", "nan", ""])
def test_a_timeout_is_a_positive_number(flowdeco, wrong):
    """Anything else is wrong usage."""
    for command in ("run", "resume"):
        code, out, err = flowdeco(command, "flows.py:flow", f"--timeout={wrong}")
        assert (code, out) == (2, "")
        assert f"--timeout: expected a positive number of seconds, not {wrong!r}" in err


def test_a_bailed_run_is_fine(flowdeco):
    """Exit code 0, with the reason."""
    code, out, _ = flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "-i", "stop:=true")
    assert code == 0
    assert "bailed: nothing to do (2 stages" in out


def test_a_suspended_run_is_exit_code_3_and_says_how_to_go_on(flowdeco):
    """With the key that it waits for."""
    code, out, err = flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--journal", "runs.db", "--run-id", "one")
    assert code == 3
    assert "suspended: waiting for 'approval' (2 stages" in out
    assert err == "flowdeco: to resume: flowdeco resume one --journal runs.db -i approval=VALUE\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-i", "x=3"], {"x": "3"}),
        (["-i", "x:=3"], {"x": 3}),
        (["--input", "x=a=b:=c"], {"x": "a=b:=c"}),
        (["-i", 'x:={"a": [1, null]}'], {"x": {"a": [1, None]}}),
        (["-i", "a.b=1", "-i", "c="], {"a.b": "1", "c": ""}),
        (["--inputs", "inputs.json"], {"x": 1, "y": 2}),
        (["--inputs", "inputs.json", "-i", "x:=5"], {"x": 5, "y": 2}),
        (["--inputs", "marked.json"], {"x": 1}),
    ],
)
def test_inputs_are_text_or_json(flowdeco, given, expected):
    """`-i` comes over what is in the file."""
    Path("inputs.json").write_text('{"x": 1, "y": 2}')
    Path("marked.json").write_text('{"x": 1}', encoding="utf-8-sig")  # as some editors write it
    Path("plain.py").write_text("from flowdeco import Stage\nflow = Stage('nothing')")
    code, out, _ = flowdeco("run", "plain.py:flow", *given, "--json")
    assert (code, json.loads(out)["store"]) == (0, expected)


def test_inputs_come_from_standard_input():
    """`--inputs -`."""
    done = in_process("run", "flows.py:flow", "--inputs", "-", "--json", input='{"kinds": 1}')
    assert json.loads(done.stdout)["result"] == "Resources: 1 processed"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["-i", "x"], "-i takes KEY=VALUE, or KEY:=VALUE for JSON, not 'x'"),
        (["-i", "=3"], "-i takes KEY=VALUE"),
        (["-i", "x:=3]"], "-i x:=3] is not valid JSON (as text: -i x=3]): Extra data"),
        (["--inputs", "list.json"], "--inputs list.json: expected a JSON object, not a list"),
        (["--inputs", "flows.py"], "--inputs flows.py: "),
        (["--inputs", "nowhere.json"], "nowhere.json: No such file or directory"),
        (["--inputs", "empty.json"], "--inputs empty.json: it is empty, where a JSON object is expected"),
        (["--inputs", "latin.json"], "--inputs latin.json: it is not text in UTF-8"),
    ],
)
def test_wrong_inputs_are_refused(flowdeco, given, complaint):
    """Before anything runs, in one line."""
    Path("list.json").write_text("[1]")
    Path("empty.json").touch()
    Path("latin.json").write_bytes(b'{"x": "\xfc"}')
    code, out, err = flowdeco("run", "flows.py:flow", *given)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert complaint in err


def test_a_wrong_definition_is_reported_with_its_own_line(flowdeco):
    """And not with that of flowdeco which found it wrong."""
    Path("bad.py").write_text("from flowdeco import stage\n\n@stage(tagz=[])\ndef report(): ...\n")
    code, out, err = flowdeco("run", "bad.py:report")
    assert (code, out) == (2, "")
    assert err.rstrip().endswith("bad.py:3)")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "flows.py:flow", "--html", ""], "an empty string is not the path of a file: write --html page.html"),
        (
            ["run", "flows.py:flow", "--journal", "x.db", "--html", "./x.db"],
            "--html ./x.db: it is the journal of the run",
        ),
        (["show", "one", "--html", ""], "an empty string is not the path of a file: write --html page.html"),
        (["plan", "flows.py:flow", "-o", ""], "an empty string is not the path of a file: write -o plan.html"),
        (["plan", "flows.py:flow", "-o", "flows.py"], "-o flows.py: it is the name of a Python file"),
        (["run", "flows.py:flow", "--html", "flows.py"], "--html flows.py: it is the name of a Python file"),
        (["run", "flows.py:flow", "--html", "-"], "--html -: a page is written to a file: give its name"),
        (
            ["show", "one", "--journal", "runs.db", "--html", "-"],
            "--html -: a page is written to a file: give its name",
        ),
        (
            ["run", "flows.py:flow", "--html", "kept.db"],
            "--html kept.db: it is an SQLite database, which would be overwritten",
        ),
        (
            ["show", "one", "--journal", "runs.db", "--html", "kept.db", "--force"],
            "--html kept.db: it is an SQLite database",
        ),
        (["plan", "flows.py:flow", "-o", "kept.db"], "-o kept.db: it is an SQLite database"),
        (["run", "flows.py:flow", "--no-journal", "--journal", "x.db"], "--journal x.db keeps one: give one of them"),
        (["nope"], "'validate', 'wake' (see: flowdeco --help)"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(capsys, arguments, complaint):
    """Before anything is run or written."""
    pipeline().run(journal="runs.db", run_id="one")
    shutil.copy("runs.db", "kept.db")
    before = Path("flows.py").read_text(), Path("kept.db").read_bytes()
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert complaint in capsys.readouterr().err
    assert (Path("flows.py").read_text(), Path("kept.db").read_bytes()) == before


def test_a_plan_is_written_to_stdout_by_a_dash(flowdeco):
    """As inputs are read from stdin by one."""
    assert flowdeco("plan", "flows.py:flow", "-o", "-") == flowdeco("plan", "flows.py:flow")
    assert not Path("-").exists()


STRANGE = """
from flowdeco import Stage, Suspend, action

@action
def double(n: int) -> int:
    return n * 2

bound = double.bind(n=3)

@action(name="two\\nlines")
def lines(): ...

@action
def long():
    raise ValueError("x" * 100_000)

@action
def ordinary():
    raise ValueError("y" * 500 + "\\n" + "z" * 500)

@action
def rest():
    raise Suspend("weekend")

strange = Stage("a\\nb", [lines, double])
"""


CHAINED = """
from flowdeco import action, parallel

def read():
    raise OSError("gone")

@action
def load():
    try:
        read()
    except OSError as error:
        raise ValueError("no rows") from error

@action(timeout=5)
def slow():
    load.__wrapped__()

both = parallel(load, slow, tolerate=0)
"""


@pytest.mark.parametrize("flow", ["load", "slow", "both"])
def test_a_traceback_of_an_action_has_no_frames_of_flowdeco(flowdeco, flow):
    """Nor have those of its causes, and of the members of a group."""
    Path("chained.py").write_text(CHAINED)
    code, _, err = flowdeco("run", f"chained.py:{flow}", "--traceback")
    assert code == 1
    assert err.count("in read\n") == err.count("OSError: gone") >= 1
    assert str(ROOT / "flowdeco") not in err


def test_a_bound_parameter_takes_no_input(flowdeco):
    """So there is no doubt about its type."""
    Path("strange.py").write_text(STRANGE)
    assert flowdeco("run", "strange.py:bound", "-i", "n=5")[2] == ""


def test_a_newline_in_a_name_is_printed_escaped(flowdeco, journal):
    """In its place in the tree."""
    Path("strange.py").write_text(STRANGE)
    flowdeco("run", "strange.py:strange", "-i", "n=5", "--run-id", "one")
    for command in (["show"], ["diff", "strange.py:strange", "one"]):
        out = flowdeco(*command)[1]
        assert re.search(r"^a\\nb +completed", out, re.MULTILINE)
        assert re.search(r"^  two\\nlines +completed", out, re.MULTILINE)


def test_a_very_long_message_is_cut(flowdeco, journal):
    """And says so; one of ordinary length is whole."""
    Path("strange.py").write_text(STRANGE)
    for command in (["run", "strange.py:long", "--run-id", "one"], ["show"], ["diff", "strange.py:long", "one"]):
        _, out, err = flowdeco(*command)
        assert len(out + err) < 12_000
        assert "more characters)" in out + err
    _, _, err = flowdeco("run", "strange.py:ordinary", "--run-id", "two")
    assert f"{'y' * 500} {'z' * 500}" in err
    assert f"{'y' * 500} {'z' * 500}" in flowdeco("show", "two")[1]


def test_a_run_that_asks_nothing_is_resumed_without_inputs(flowdeco, journal):
    """As its hint says."""
    Path("strange.py").write_text(STRANGE)
    err = flowdeco("run", "strange.py:rest", "--run-id", "one")[2]
    assert err == "flowdeco: to resume: flowdeco resume one\n"
    assert flowdeco("show", "one", "--html", "page.html")[0] == 0
    assert "-i KEY" not in Path("page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("annotation", "text", "cure"),
    [("bool", "on", "write true or false, yes or no, 1 or 0"), ("date", "1.5.2025", "write YYYY-MM-DD"),
     ("datetime", "noon", "write YYYY-MM-DDTHH:MM:SS"), ("int", "x", "'x' is not one")],
)  # fmt: skip
def test_a_value_that_does_not_fit_says_how_to_write_it(flowdeco, annotation, text, cure):
    """Where the type does not say it."""
    source = (
        f"from datetime import date, datetime\nfrom flowdeco import action\n@action\ndef take(x: {annotation}): ..."
    )
    Path("takes.py").write_text(source)
    code, _, err = flowdeco("run", "takes.py:take", "-i", f"x={text}")
    assert (code, err.rstrip().endswith(cure)) == (2, True)


DOUBTFUL = """
from flowdeco import action

@action
def double(n: int, times: list[int] | None = None, label: str = "", pair: tuple[int, ...] = ()) -> int:
    return n * 2
"""


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        (["n:=3"], ""),
        (["n:=3", "label=x", "other=1"], ""),
        (["n:=3", "lable=x"], "nothing took the input 'lable'. Did you mean 'label'?"),
        (["n=3", "times=null"], ""),
        (
            ["n=3", "pair=ab"],
            "the input 'pair' is text, and action 'double' expects tuple[int, ...]: -i pair:=VALUE gives",
        ),
    ],
)
def test_inputs_that_are_hardly_meant_are_told(flowdeco, given, doubt):
    """A name that resembles one that was missing, a text where there should be none; the run is as it was asked for."""
    Path("doubtful.py").write_text(DOUBTFUL)
    code, out, err = flowdeco("run", "doubtful.py", *[word for text in given for word in ("-i", text)])
    assert (code, "completed (1 stage" in out) == (0, True)
    assert err.startswith(f"flowdeco: warning: {doubt}" if doubt else "")
    assert len(err.splitlines()) == bool(doubt)


CHOICES = """
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, NewType, Optional
from flowdeco import action

Size = Enum("Size", {"SMALL": "s", "LARGE": "l"})
Account = NewType("Account", str)

@action
def mail(
    size: Size, mode: Literal["fast", "slow"], sizes: Optional[dict[str, Size]] = None, least: Size = Size.SMALL,
    out: Path = Path("."), price: Decimal = Decimal(1), account: Account | None = None, to: Annotated[str, "who"] = "x",
    pairs: tuple[int, ...] = (), only: Literal[Size.LARGE, 1] = 1,
) -> None: ...
"""


def test_help_lists_types_as_they_are_written(flowdeco):
    """With the choices of an enumeration, and defaults as they are given."""
    Path("choices.py").write_text(CHOICES)
    code, out, _ = flowdeco("run", "choices.py", "--help")
    assert code == 0
    assert out.partition("inputs of choices.py:\n")[2].splitlines() == [
        "  size: Size, one of SMALL, LARGE",
        "  mode: Literal['fast', 'slow']",
        "  sizes: dict[str, Size] | None (default: None)",
        "  least: Size, one of SMALL, LARGE (default: SMALL)",
        "  out: Path (default: .)",
        "  price: Decimal (default: 1)",
        "  account: Account | None (default: None)",
        "  who: str (default: 'x')",
        "  pairs: tuple[int, ...] (default: ())",
        "  only: Literal[Size.LARGE, 1] (default: 1)",
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("size=medium", "takes it as Size, and 'medium' is not one of SMALL, LARGE"),
        ("mode=medium", "takes it as Literal['fast', 'slow'], and 'medium' is not one of these"),
    ],
)
def test_an_input_that_does_not_fit_is_told_with_the_choices(flowdeco, given, why):
    """Of an enumeration by their names."""
    Path("choices.py").write_text(CHOICES)
    code, _, err = flowdeco("run", "choices.py", "-i", given)
    assert (code, why in err) == (2, True), err


LATER = """
from datetime import date
from flowdeco import Stage, action, pipeline, stage

@stage
def work(n: int) -> None:
    @action
    def go(day: date, label: str = "") -> str:
        return f"{day!r} {label}"

@action
def plan() -> list[Stage]:
    return [work(1)]

@action
def direct(day: date) -> str:
    return repr(day)

@action
def plain(x: int) -> int:
    return x

only = pipeline(plan, name="only")
both = plan >> direct
"""


def test_an_input_of_an_inserted_stage_that_stays_text_is_told(flowdeco):
    """Unless an action of the plan takes it, too, or it is to be text."""
    Path("later.py").write_text(LATER)
    code, _, err = flowdeco("run", "later.py:only", "-i", "day=2026-11-30", "-i", "label=x")
    assert code == 0
    assert err == (
        "flowdeco: warning: the input 'day' stays text: action 'go' of stage 'work[1]', which takes it as date, was "
        "inserted, and inputs are converted only for what is planned. "
        "Let an action of the workflow take it, too, or convert it in 'go'\n"
    )
    assert flowdeco("run", "later.py:both", "-i", "day=2026-11-30")[2] == ""


@pytest.mark.parametrize(
    ("flow", "last"),
    [
        ("only", ["", "later.py:only takes no inputs; inserted stages may take more"]),
        (
            "both",
            ["  day: date (unless the run supplies it)", "  (inserted stages may take more, which are not converted)"],
        ),
        ("plain", ["inputs of later.py:plain:", "  x: int"]),
    ],
)
def test_help_says_where_inserted_stages_may_take_more_inputs(flowdeco, flow, last):
    """Where something can be inserted."""
    Path("later.py").write_text(LATER)
    assert flowdeco("run", f"later.py:{flow}", "--help")[1].splitlines()[-2:] == last


def test_what_may_be_the_reason_of_a_failure_is_told_with_it(flowdeco):
    """In the same line, if the action that failed takes it."""
    Path("doubtful.py").write_text(DOUBTFUL.replace("n * 2", "sum(pair) + 2"))
    assert flowdeco("run", "doubtful.py", "-i", "n=3", "-i", "pair=ab")[2] == (
        "flowdeco: error: action 'double' of stage 'double' failed: "
        "TypeError: unsupported operand type(s) for +: 'int' and 'str' "
        "(the input 'pair' is text, and action 'double' expects tuple[int, ...]: -i pair:=VALUE gives JSON)\n"
    )
    _, _, err = flowdeco("run", "flows.py:both", "-i", "fail:=true", "-i", "kinds=3", "-i", "stpo=1")
    assert "is text" not in err
    assert "nothing took the input 'stpo'. Did you mean 'stop'?" in err


def test_a_misspelt_name_of_what_a_run_waits_for_is_told(flowdeco, journal):
    """It waits on."""
    flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--run-id", "a run")
    code, _, err = flowdeco("resume", "latest", "-i", "aproval:=true")
    assert code == 3
    assert err.splitlines() == [
        "flowdeco: warning: nothing took the input 'aproval'. Did you mean 'approval'?",
        "flowdeco: to resume: flowdeco resume 'a run' -i approval=VALUE",
    ]


def test_where_it_failed_is_told_once(flowdeco):
    """Some errors say it themselves."""
    _, _, err = flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--only", "report")
    assert err == ""
    Path("needs.py").write_text(FLOWS.replace("processed: list[str] = []", "processed: list[str]"))
    code, _, err = flowdeco("run", "needs.py:flow", "-i", "kinds:=0")
    assert (code, err.count("of stage 'report'")) == (1, 1)
    assert err.startswith("flowdeco: error: action 'summary' of stage 'report' needs 'processed', and no input")


def test_a_suspended_run_without_a_journal_is_over(flowdeco):
    """Which is told, with the code of a suspended run."""
    code, _, err = flowdeco("run", "flows.py:gated", "-i", "kinds:=0")
    assert (code, err) == (3, "flowdeco: to resume such a run, give it a --journal: this one cannot be resumed\n")


def test_what_nothing_supplies_is_asked_for(flowdeco):
    """With the option that gives it."""
    code, out, err = flowdeco("run", "flows.py:flow")
    assert (code, out) == (2, "")
    assert err.startswith("flowdeco: error: action 'discover' of stage 'discover' needs 'kinds'")
    assert err.endswith("If it is an input: -i kinds=VALUE\n")


def test_of_several_wiring_problems_the_first_is_told(flowdeco):
    """And how many more there are."""
    Path("two.py").write_text("from flowdeco import action\n@action\ndef f(a, b): ...\n")
    _, _, err = flowdeco("run", "two.py:f")
    assert len(err.splitlines()) == 1
    assert "(1 more: see flowdeco validate)" in err


def test_json_has_the_attributes_of_a_run(flowdeco):
    """What the workflow prints goes elsewhere."""
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--run-id", "one", "--json")
    run = json.loads(out)
    assert (code, err) == (0, "discovering\n")
    assert (run["id"], run["status"], run["result"]) == ("one", "completed", "Resources: 1 processed")
    assert run["store"]["processed"] == ["processed 0"]
    assert [(stage["name"], stage["inserted_by"]) for stage in run["stages"]] == [
        ("discover", None),
        ("process[0]", "discover/discover"),
        ("check", None),
        ("report", None),
    ]
    assert run["stages"][1]["actions"][0]["name"] == "handle"
    assert run["elapsed"] >= run["stages"][0]["elapsed"] > 0


def test_json_tells_a_failure_too(flowdeco):
    """With exit code 1."""
    code, out, _ = flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "-i", "fail:=true", "--json")
    run = json.loads(out)
    assert (code, run["status"]) == (1, "failed")
    assert run["error"].startswith("ConnectionError: the server")
    assert run["stages"][-1]["actions"][-1]["error"] == run["error"]


def test_json_stays_json_when_a_subprocess_prints():
    """The standard output itself is turned away, not only Python's."""
    Path("loud.py").write_text(
        "import os\nfrom flowdeco import action\n@action\ndef flow():\n    os.system('echo loud')\n"
    )
    done = in_process("run", "loud.py:flow", "--json")
    assert json.loads(done.stdout)["status"] == "completed"
    assert done.stderr == "loud\n"


def test_json_has_something_for_every_value(flowdeco):
    """What it has no form for is shown as Python shows it."""
    Path("odd.py").write_text(
        textwrap.dedent("""
            import dataclasses, datetime, enum, math, pathlib
            from flowdeco import Stage

            @dataclasses.dataclass
            class Point:
                x: int

            class Colour(enum.Enum):
                RED = 1

            class Word(enum.StrEnum):
                A = "a"

            class Bad:
                def __repr__(self):
                    raise ValueError("no")
                def __deepcopy__(self, memo):
                    return self

            loop = []
            loop.append(loop)
            flow = Stage("data", data={
                "set": {1}, "tuple": (1, 2), "keys": {1: 2}, "nan": math.nan, "bytes": b"x", "point": Point(3),
                "day": datetime.date(2024, 5, 1), "path": pathlib.PurePosixPath("a/b"), "colour": Colour.RED,
                "word": Word.A, "truth": True, "loop": loop, "bad": Bad(), "class": Point,
            })
        """)
    )
    _, out, _ = flowdeco("run", "odd.py:flow", "--json")
    store = json.loads(out)["store"]
    assert store == {
        "set": [1], "tuple": [1, 2], "keys": {"1": 2}, "nan": "nan", "bytes": "b'x'", "point": {"x": 3},
        "day": "2024-05-01", "path": "a/b", "colour": "<Colour.RED: 1>", "word": "a", "truth": True,
        "loop": ["..."], "bad": "<Bad whose repr raises ValueError>", "class": "<class 'odd.Point'>",
    }  # fmt: skip


def test_log_messages_are_shown_on_request():
    """Warnings always."""
    Path("logs.py").write_text(
        "from flowdeco import action, Context\n@action\ndef flow(ctx: Context):\n    ctx.logger.info('at work')\n"
    )
    assert "at work" not in in_process("run", "logs.py:flow").stderr
    assert "INFO flowdeco.run: at work" in in_process("run", "logs.py:flow", "-v").stderr


# -- selectors


def test_skip_leaves_out_static_and_dynamic_stages(flowdeco):
    """By name, by tag, by template."""
    _, out, _ = flowdeco(
        "run", "flows.py:flow", "-i", "kinds:=2", "--skip", "process[1]", "--skip", "tag:slow", "--json"
    )
    statuses = {stage["name"]: stage["status"] for stage in json.loads(out)["stages"]}
    assert statuses == {
        "discover": "completed",
        "process[0]": "completed",
        "process[1]": "skipped",
        "check": "skipped",
        "report": "completed",
    }
    code, _, _ = flowdeco("run", "flows.py:flow", "-i", "kinds:=2", "--skip", "process")
    assert code == 0


def test_only_runs_nothing_else(flowdeco):
    """The rest is not even there."""
    _, out, _ = flowdeco("run", "flows.py:flow", "--only", "tag:reporting", "--json")
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["report"]


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("--only", "reprt", "report"),
        ("--only", "tag:reportin", "tag:reporting"),
        ("--only", "report/sumary", "report/summary"),
        ("--skip", "chekc", "check"),
        ("--skip", "proces", "process"),
        ("--skip", "tag:slwo", "tag:slow"),
    ],
)
def test_a_misspelt_selector_is_refused(flowdeco, option, wrong, right):
    """What was meant to be skipped would run."""
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=0", option, wrong)
    assert (code, out) == (2, "")
    assert f"{option} {wrong}: flows.py:flow has no such stage, action or tag. Did you mean '{right}'" in err


def test_a_name_that_may_come_is_accepted_on_request(flowdeco):
    """And what matched nothing in the end is warned of by the run."""
    given = ("run", "flows.py:flow", "-i", "kinds:=0", "--skip", "reports")
    assert flowdeco(*given)[0] == 2
    assert flowdeco(*given, "--allow-unknown")[0] == 0
    assert flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--skip", "zzz")[0] == 0


# -- entry points


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("flws.py:flow", "there is no file 'flws.py'. Did you mean 'flows.py'?"),
        ("flows.py:flwo", "flows.py has no 'flwo'. Did you mean 'flow'?"),
        ("flows:flwo", "flows has no 'flwo'. Did you mean 'flow'?"),
        (
            "flows.py:process",
            "gives a stage when you call it: write one = process(...) in flows.py, and name that: flows.py:one",
        ),
        ("flows.py:process('a')", "write one = process(...) in flows.py, and name that: flows.py:one"),
        ("flows.py:process[a:b]", "flows.py:process[a:b]: an entry point is a name, not a call"),
        ("flows.py::flow", "an entry point has one colon: write flows.py:flow, not flows.py::flow"),
        ("jsom.py:flow", "there is no file 'jsom.py'. Did you mean 'json.py'?\n"),
        (
            "flows.py:number",
            "flows.py:number is not an action, stage, pipeline or group, but an int: name one of flow, gated",
        ),
        (
            "json:dumps",
            "json:dumps is not an action, stage, pipeline or group, but a function: decorate it with @action",
        ),
        ("flows.py:", "an entry point is module:flow or file.py:flow, not 'flows.py:'"),
        (":flow", "an entry point is module:flow or file.py:flow, not ':flow'"),
        ("no_such_module:flow", "there is no module 'no_such_module'."),
        ("flow:flow", "there is no module 'flow'. Did you mean 'flows.py'?"),
        ("a-b:flow", "'a-b' is neither a module nor a file"),
        ("broken.py:flow", "broken.py cannot be imported: ZeroDivisionError: division by zero"),
        ("syntax.py:flow", "syntax.py cannot be imported: "),
        ("exits.py:flow", "exits.py cannot be imported: it exits; put what it does under"),
        ("needs.py:flow", "needs.py cannot be imported: ModuleNotFoundError: No module named 'no_such'"),
        ("json.py:flow", "'json.py' cannot be imported: 'json' is "),
        ("flows.txt/x:flow", "there is no file"),
        ("flows.py", "flows.py has 2 pipelines: name one of flows.py:flow, flows.py:gated"),
        ("empty.py", "empty.py has no action, stage, pipeline or group at its top level"),
        (".", "'.' is a directory: name a file in it, as in ./file.py:flow"),
        ("folder", "'folder' is a directory: name a file in it, as in folder/file.py:flow"),
        ("folder/", "'folder/' is a directory: name a file in it, as in folder/file.py:flow"),
        ("notes.txt", "'notes.txt' is not a Python file"),
        ("actions.py", "actions.py has 2 units: name one of actions.py:a, actions.py:b"),
    ],
)
def test_a_wrong_entry_point_says_what_is_there(flowdeco, entry, complaint):
    """In one line, before anything runs."""
    Path("broken.py").write_text("x = 1\ny = 1 / 0\n")
    Path("syntax.py").write_text("def f(:\n")
    Path("exits.py").write_text("import sys\nsys.exit(3)\n")
    Path("needs.py").write_text("import no_such\n")
    Path("json.py").write_text("")
    Path("empty.py").write_text("")
    Path("notes.txt").write_text("")
    Path("folder").mkdir()
    Path("actions.py").write_text("from flowdeco import Stage\na = Stage('a')\nb = Stage('b')\nc = a\n")
    Path("flows.py").write_text(FLOWS.replace("both = ", "_both = "))
    code, out, err = flowdeco("run", entry)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert complaint in err


def test_where_an_import_fails_is_told(flowdeco):
    """File and line."""
    Path("broken.py").write_text("x = 1\ny = 1 / 0\n")
    assert re.search(r"division by zero \(.*broken\.py:2\)$", flowdeco("run", "broken.py:flow")[2].strip())


@pytest.mark.parametrize("entry", ["lone.py", "lone", "lone.py:flow", "lone:flow", "./lone.py", "lone:holder.flow"])
def test_the_only_unit_needs_no_name(flowdeco, entry):
    """A file, a module; with a name, a dotted one too."""
    Path("lone.py").write_text("from flowdeco import Stage\nflow = Stage('s')\nclass holder:\n    flow = Stage('t')\n")
    assert flowdeco("run", entry)[0] == 0


def test_the_only_pipeline_is_meant_where_there_are_actions_beside_it(flowdeco):
    """As in most files."""
    Path("usual.py").write_text("from flowdeco import Stage\na = Stage('a')\nb = Stage('b')\nflow = a >> b\n")
    _, out, _ = flowdeco("run", "usual.py", "--json")
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["a", "b"]


def test_a_file_in_a_package_is_imported_as_part_of_it():
    """So its relative imports work, and its definitions pickle."""
    Path("pkg/inner").mkdir(parents=True)
    for directory in ("pkg", "pkg/inner"):
        Path(directory, "__init__.py").write_text("")
    Path("pkg/parts.py").write_text("from flowdeco import Stage\npart = Stage('part')\n")
    Path("pkg/inner/flows.py").write_text("from ..parts import part\nflow = part >> part\n")
    entry = load("pkg/inner/flows.py:flow")
    assert entry.module.__name__ == "pkg.inner.flows"
    assert entry.reference == f"{Path.cwd()}/pkg/inner/flows.py:flow"
    assert load("pkg.inner.flows:flow").unit is entry.unit


def test_an_entry_point_is_no_unit_without_a_module():
    """An error of its own kind, for those who call it from Python."""
    with pytest.raises(EntryError):
        load("")


# -- usage


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["rum"], "there is no command 'rum'. Did you mean 'run' or 'resume'? (see: flowdeco --help)"),
        (
            ["nonsense"],
            "there is no command 'nonsense'. There are: 'answer', 'cancel', 'diff', 'plan', 'purge', 'replay', ",
        ),
        (["--verion"], "unrecognized arguments: --verion. Did you mean '--version'?"),
        (["--traceback", "run", "flows.py:flow"], "--traceback comes after the command (see: flowdeco --help)"),
        (
            ["plan", "flows.py:flow", "--format", "htm"],
            "argument --format: invalid choice: 'htm'. Did you mean 'html'?",
        ),
        (["run", "flows.py:flow", "--jurnal=x"], "unrecognized arguments: --jurnal=x. Did you mean '--journal'"),
        (["run", "flows.py:flow", "--run-id", ""], "argument --run-id: expected a name, not an empty string"),
        (["runs", "--limit", "-1"], "argument --limit: expected a number of at least 1, not '-1'"),
        (["runs", "--limit", "all"], "argument --limit: expected a number of at least 1, not 'all'"),
        (["plan", "flows.py:flow", "-o", "nowhere/x"], "error: -o nowhere/x: there is no such directory"),
        (
            ["diff", "latest", "--journal", "x.db", "-o", "."],
            "error: -o .: it is a directory, where a file is expected",
        ),
        (["run"], "the following arguments are required: FILE.py:FLOW (see: flowdeco run --help)"),
        (["run", "flows.py:flow", "--jurnal", "x"], "unrecognized arguments: --jurnal x. Did you mean '--journal'"),
        (["run", "flows.py:flow", "--codec", "xml"], "invalid choice: 'xml'"),
        (["run", "flows.py:flow", "more"], "unrecognized arguments: more"),
        (["run", "flows.py:flow", "n=1"], "unrecognized arguments: n=1. Did you mean -i n=1? (see"),
        (["plan", "flows.py:flow", "n=1"], "unrecognized arguments: n=1 (see"),
        (["run", "flows.py:flow", "--tineout", "3"], "unrecognized arguments: --tineout 3. Did you mean '--timeout'"),
        (
            ["run", "flows.py:flow", "--only", "tag:dynamic"],
            "flows.py:flow has no such stage, action or tag before it runs, and later insertions cannot be",
        ),
        (["plan", "flows.py:flow", "--skip", "chek"], "--skip chek: flows.py:flow has no such stage, action or tag."),
        (["runs"], "name the journal: --journal runs.db, or FLOWDECO_JOURNAL=runs.db in the environment"),
        (["runs", "--journal", "nowhere.db"], "there is no journal nowhere.db"),
        (["runs", "--journal", "flows.py"], "flows.py is not a journal, or is damaged"),
        (["purge", "--journal", "flows.py"], "say which runs: their ids, or --older-than 30d"),
        (["purge", "a", "--older-than", "3d", "--journal", "flows.py"], "or --older-than 30d, but not both"),
        (["resume", "one", "flows.py:flow", "--journal", "x.db"], "comes last: flowdeco resume flows.py:flow one"),
        (["diff", "flows.py", "--journal", "x.db"], "the run comes last: flowdeco diff flows.py RUN"),
        (["resume", "a", "b", "c", "--journal", "flows.py"], "expected [FILE.py:FLOW] RUN, not a b c"),
    ],
)
def test_wrong_usage_is_exit_code_2(flowdeco, given, complaint):
    """One line on the standard error, nothing on the other."""
    Path("x.db").touch()
    code, out, err = flowdeco(*given)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert complaint in err


def test_help_and_version(flowdeco, capsys):
    """On the standard output; help is what one gets who asks for nothing."""
    code, out, err = flowdeco()
    assert (code, err) == (0, "")
    assert all(
        f"\n    {command} " in out for command in ["run", "validate", "plan", "runs", "show", "resume", "diff", "purge"]
    )
    assert flowdeco("--help") == (0, out, "")
    assert re.fullmatch(r"flowdeco \d+\.\d+\.\d+.*\n", flowdeco("--version")[1])
    for command in ["run", "validate", "plan", "runs", "show", "resume", "diff", "purge"]:
        assert flowdeco(command, "--help")[0] == 0
    for command in ["resume", "diff"]:
        assert "[FILE.py:FLOW] RUN\n\n" in flowdeco(command, "--help")[1]


def test_it_runs_as_a_module():
    """`python -m flowdeco`, with the exit code of the run."""
    done = in_process("run", "flows.py:flow", "-i", "kinds:=0", "-i", "fail:=true")
    assert done.returncode == 1
    assert done.stdout.startswith("discovering\nSTAGE")


def test_a_reader_that_goes_away_is_no_error():
    """`flowdeco ... | head -1`."""
    command = f"{sys.executable} -m flowdeco run flows.py:flow -i kinds:=2000 --json | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("{\n", "discovering\n")


def test_what_an_encoding_lacks_is_escaped(flowdeco, journal):
    """On the standard output, as Python does it on the other; JSON stays JSON."""
    Path("plain.py").write_text("from flowdeco import Stage\nflow = Stage('gr\u00fcn') >> Stage('rot')")
    run = ["run", "plain.py", "-i", "x=\u00fc", "--run-id", "one"]
    for encoding in ("ascii", "latin-1"):
        done = in_process(*run, "--json", "--no-journal", environment={"PYTHONIOENCODING": encoding})
        assert (done.returncode, json.loads(done.stdout)["store"]) == (0, {"x": "\u00fc"})
    assert in_process(*run, environment={"PYTHONIOENCODING": "ascii"}).stdout.splitlines()[1].startswith("gr\\xfcn")
    done = in_process("diff", "one", environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xfcn  " in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk")
def test_an_output_that_takes_no_more_is_one_line():
    """A full disk; a closed output is none at all."""
    command = f"{sys.executable} -m flowdeco run flows.py:flow -i kinds:=0"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(f"{command} >/dev/full", shell=True, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (1, "flowdeco: error: No space left on device\n")
    done = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_that_nobody_thought_of_is_one_line(flowdeco, monkeypatch):
    """With the way to its traceback."""
    monkeypatch.setattr(durable.SqliteJournal, "runs", lambda journal: 1 / 0)
    code, _, err = flowdeco("runs", "--journal", "flows.py")
    assert (code, err) == (1, "flowdeco: error: ZeroDivisionError: division by zero (--traceback shows where)\n")
    assert "lambda journal: 1 / 0" in flowdeco("runs", "--journal", "flows.py", "--traceback")[2]


def test_statuses_have_colours_in_a_terminal(monkeypatch):
    """And nowhere else, nor where nobody wants them."""
    import io

    from flowdeco.cli.report import coloured

    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR")
    assert coloured("failed   ", terminal) == "\x1b[31mfailed   \x1b[0m"
    assert coloured("discover", terminal) == "discover"
    assert coloured("failed", io.StringIO()) == "failed"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("failed", terminal) == "failed"


# -- validate and plan


def test_validate_tells_what_is_missing(flowdeco):
    """Exit code 1 for what is certain; what may be missing is told."""
    code, out, _ = flowdeco("validate", "flows.py:flow")
    assert code == 1
    assert out.startswith("error: action 'discover' of stage 'discover' needs 'kinds'")
    assert out.endswith("flows.py:flow: 1 error, 0 possible\n")


def test_validate_takes_names_of_inputs(flowdeco):
    """Values are not needed."""
    Path("given.json").write_text('{"kinds": 1}')
    assert flowdeco("validate", "flows.py:flow", "-i", "kinds") == (0, "flows.py:flow: no problems\n", "")
    assert flowdeco("validate", "flows.py:flow", "--inputs", "given.json")[0] == 0
    assert flowdeco("validate", "flows.py:flow", "-i", "kinds:=3")[0] == 0


def test_strict_validation_fails_on_what_may_be_missing(flowdeco):
    """Which only an insertion could supply."""
    Path("flows.py").write_text(FLOWS.replace("processed: list[str] = []", "processed: list[str]"))
    code, out, _ = flowdeco("validate", "flows.py:flow", "-i", "kinds")
    assert (code, out.splitlines()[-1]) == (0, "flows.py:flow: 0 errors, 1 possible")
    code, out, _ = flowdeco("validate", "flows.py:flow", "-i", "kinds", "--strict")
    assert (code, out.splitlines()[-1]) == (1, "flows.py:flow: 1 error, 0 possible")
    assert out.startswith("error: action 'summary'")


def test_an_input_may_become_a_table(flowdeco):
    """Under the key of the input; its comparison is a table, too (apache/airflow#48511, PrefectHQ/prefect#5741)."""
    pytest.importorskip("pandas")
    Path("table.py").write_text(
        "import pandas as pd\nfrom flowdeco import action\n"
        "@action(returns='data')\ndef load(data: str) -> pd.DataFrame:\n    return pd.DataFrame({'a': [1, 2]})\n"
        "@action\ndef size(data: pd.DataFrame) -> int:\n    return len(data)\n"
        "flow = load >> size"
    )
    code, out, err = flowdeco("run", "table.py:flow", "-i", "data=x.csv", "--html", "page.html")
    assert (code, err) == (0, "")
    assert out.endswith("result: 2\n")
    assert Path("page.html").exists()


def test_validate_as_json(flowdeco):
    """A list of problems."""
    (problem,) = json.loads(flowdeco("validate", "flows.py:flow", "--json")[1])
    assert (problem["stage"], problem["key"], problem["certain"]) == ("discover", "kinds", True)


def test_a_plan_is_drawn_without_running_anything(flowdeco):
    """As text and as mermaid, to the output or a file."""
    code, out, err = flowdeco("plan", "flows.py:flow")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("discover", "check", "report"))
    assert "discovering" not in out
    assert flowdeco("plan", "flows.py:flow", "--format", "mermaid")[1].startswith("flowchart")
    assert flowdeco("plan", "flows.py:flow", "--format", "mermaid", "-o", "plan.mmd") == (0, "", "")
    assert Path("plan.mmd").read_text().startswith("flowchart")
    assert "discover" not in flowdeco("plan", "flows.py:flow", "--only", "report")[1]
    page = flowdeco("plan", "flows.py:flow", "--format", "html")[1]
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">')
    assert "<title>plan of flows.py:flow</title>" in page


# -- journals


@pytest.fixture
def journal(monkeypatch):
    """The journal of the environment."""
    monkeypatch.setenv("FLOWDECO_JOURNAL", "runs.db")
    return "runs.db"


def test_the_journal_of_the_environment_is_used(flowdeco, journal):
    """Unless a command has its own, or wants none."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "one")
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "two", "--journal", "other.db")
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "three", "--no-journal")
    assert [run.id for run in durable.runs("runs.db")] == ["one"]
    assert [run.id for run in durable.runs("other.db")] == ["two"]


def test_runs_are_listed(flowdeco, journal):
    """The latest first, with what became of them."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=2", "--run-id", "one")
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "-i", "fail:=true", "--run-id", "two")
    flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--run-id", "three")
    code, out, _ = flowdeco("runs")
    assert code == 0
    assert lines(out) == [
        "RUN WORKFLOW STATUS STARTED STEPS WHY",
        "three flows.py:gated suspended WHEN 1 waiting for 'approval'",
        "two flows.py:flow failed WHEN 2 ConnectionError: the server is offline",
        "one flows.py:flow completed WHEN 5",
    ]
    assert [line.split()[0] for line in lines(flowdeco("runs", "--limit", "1")[1])[1:]] == ["three"]
    found = json.loads(flowdeco("runs", "--status", "failed", "--status", "completed", "--json")[1])
    assert [(run["id"], run["status"], run["entry"]) for run in found] == [
        ("two", "failed", f"{Path.cwd()}/flows.py:flow"),
        ("one", "completed", f"{Path.cwd()}/flows.py:flow"),
    ]
    assert flowdeco("runs", "--status", "bailed")[1] == "runs.db has no bailed runs\n"
    assert flowdeco("runs", "--status", "damaged")[1] == "runs.db has no damaged runs\n"
    assert flowdeco("runs", "--status", "skipped")[0] == 2
    assert "Did you mean 'failed'" in flowdeco("runs", "--status", "faled")[2]


def test_a_crashed_run_is_called_so(flowdeco, journal):
    """A run that nobody works on, and that did not end."""
    done = in_process("run", "dies.py:flow", "--run-id", "dead", "--journal", "runs.db")
    assert done.returncode == 2
    Path("dies.py").write_text("import os\nfrom flowdeco import action, Stage\n@action\ndef flow():\n    os._exit(9)\n")
    assert in_process("run", "dies.py:flow", "--run-id", "dead", "--journal", "runs.db").returncode == 9
    assert lines(flowdeco("runs")[1])[1].startswith("dead dies.py:flow crashed")
    assert len(lines(flowdeco("runs", "--status", "crashed")[1])) == 2
    assert "status    crashed" in flowdeco("show", "dead")[1]


def test_a_crashed_run_is_told_as_far_as_it_came(flowdeco, journal):
    """It was at work until its last step, and with what comes after that."""
    Path("dies.py").write_text(
        "import os, time\nfrom flowdeco import Stage, action\n"
        "@action\ndef wait():\n    time.sleep(0.05)\n@action\ndef die():\n    os._exit(9)\n"
        "flow = Stage('a', [wait]) >> die >> wait"
    )
    assert in_process("run", "dies.py:flow", "--run-id", "dead", "--journal", "runs.db").returncode == 9
    shown = flowdeco("show", "dead")[1]
    assert float(re.search(r", ([\d.]+) ms later", shown)[1]) >= 50
    assert lines(shown)[-2:] == ["a crashed here or later", "wait completed T"]
    assert lines(flowdeco("diff", "dead")[1]) == [
        "pipeline, plan and run dead (crashed): 1 crashed, 1 not reached",
        "STAGE STATUS TIME", "a completed T", "wait completed T", "die crashed T", "wait not reached",
    ]  # fmt: skip
    assert "fd-crashed" in flowdeco("diff", "dead", "--format", "html")[1]
    Path("dies.py").write_text(Path("dies.py").read_text().replace("os._exit(9)", "pass"))
    resumed = in_process("resume", "dead", "--journal", "runs.db", "--on-change", "ignore")
    for table in (resumed.stdout, flowdeco("show", "dead")[1]):
        assert float(re.search(r"^a +completed +([\d.]+) ms", table, re.MULTILINE)[1]) >= 50


def test_the_groups_of_a_run_are_seen(flowdeco):
    """What ran in one stands under its name."""
    Path("groups.py").write_text(
        "from flowdeco import *\na, b, c, d = map(Stage, 'abcd')\n"
        "flow = a >> parallel(b >> parallel(c, d, name='in'), d, name='out') >> parallel(a, b, name='out')"
    )
    out = bare(flowdeco("run", "groups.py:flow")[1]).splitlines()
    assert out[1:-2] == [
        "a completed T", "out (parallel)", " b completed T", " in (parallel)", " c completed T", " d completed T",
        " d completed T", "out (parallel)", " a completed T", " b completed T",
    ]  # fmt: skip


def test_a_run_is_shown_with_its_steps(flowdeco, journal):
    """By default the latest; actions only where they say more than the stage."""
    flowdeco("run", "flows.py:gated", "-i", "kinds:=1", "--run-id", "one")
    code, out, err = flowdeco("show")
    assert (code, err) == (0, "flowdeco: to resume: flowdeco resume one -i approval=VALUE\n")
    assert lines(out) == [
        "run one",
        "pipeline pipeline",
        f"workflow {Path.cwd()}/flows.py:gated",
        "status suspended: waiting for 'approval'",
        "started WHEN",
        "updated WHEN, T later",
        "asks 'approval'",
        "STAGE STATUS TIME INSERTED BY",
        "discover completed T",
        "process[0] completed T discover/discover",
        "handle completed T",
        "approve suspended T",
    ]
    shown = json.loads(flowdeco("show", "one", "--json")[1])
    assert (shown["id"], shown["status"], shown["entry"]) == ("one", "suspended", f"{Path.cwd()}/flows.py:gated")
    assert [(step["kind"], step["stage"], step["action"]) for step in shown["history"]] == [
        ("action", "discover", "discover"),
        ("stage", "discover", None),
        ("action", "process[0]", "handle"),
        ("stage", "process[0]", None),
        ("action", "approve", "approve"),
        ("stage", "approve", None),
    ]


INSERTING = """
from flowdeco import Context, Stage, action, parallel

@action
def fix(): ...

@action
def check():
    return fix

@action
def again(ctx: Context):
    ctx.store["turn"] = ctx.store.get("turn", 0) + 1
    return again if ctx.store["turn"] < 3 else check

flow = parallel(Stage("s", [check, fix]), name="g") >> Stage("loop", [again])
"""


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_inserted_actions_are_shown_below_their_inserter(flowdeco, journal, codec):
    """With who inserted them, as stages are; turns of a loop are side by side."""
    Path("inserting.py").write_text(INSERTING)
    load("inserting.py:flow").unit.run(journal=durable.SqliteJournal("runs.db", codec=codec), run_id="one")
    rows = [line.rstrip() for line in bare(flowdeco("show")[1]).splitlines()[7:]]
    assert rows == [
        "STAGE STATUS TIME INSERTED BY",
        "g (parallel)",
        " s completed T",
        " check completed T",
        " fix completed T s/check",
        " fix completed T",
        "loop completed T",
        " again completed T",
        " again completed T loop/again",
        " again completed T loop/again",
        " check completed T loop/again",
        " fix completed T loop/check",
    ]
    out = flowdeco("show")[1]
    assert re.search(r"^    check .*\n      fix .*\n    fix ", out, re.MULTILINE)
    assert re.search(r"^  again .*\n  again .*\n  again .*\n    check .*\n      fix ", out, re.MULTILINE)


NESTED = """
import os
from flowdeco import Context, Stage, action, stage
from flowdeco.middleware import retry

class Offline(Exception): ...
class Account:
    password = "hunter2"

calls = []

@stage
def table(name):
    @action(use=[retry(on=Offline, attempts=2, wait=0)])
    def count(end=""):
        calls.append(name)
        if name == "orders" and end == "crash":
            os._exit(9)
        if name == "users" and len(calls) == 1:
            raise Offline("no route")

@stage
def host(name):
    @action(returns="account")
    def login():
        return Account() if os.environ.get("CODEC") != "json" else [1]

    @action
    def tables() -> list[Stage]:
        return [table("users"), table("orders")]

@action
def hosts() -> list[Stage]:
    return [host("db")]

@action
def approve(ctx: Context):
    return ctx.wait_for("approval")

flow = hosts >> approve
"""


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_page_is_made_of_any_run(flowdeco, journal, monkeypatch, codec):
    """Without its workflow; with the tree, the errors of attempts, and the command that resumes it."""
    monkeypatch.setenv("CODEC", codec)
    Path("nested.py").write_text(NESTED)
    crash = ("-i", "end=crash", "--run-id", "dead", "--journal", "runs.db", "--codec", codec)
    assert in_process("run", "nested.py:flow", *crash).returncode == 9
    assert in_process("run", "nested.py:flow", *("--run-id", "waits"), *crash[4:]).returncode == 3
    Path("nested.py").unlink()
    assert flowdeco("show", "dead", "--html") == (0, "written: dead.html\n", "")
    page = Path("dead.html").read_text(encoding="utf-8")
    assert "crashed</span>" in page
    assert "Its process ended while it was running." in page
    assert "flowdeco resume dead --journal runs.db</code>" in page
    assert 'id="diff"' not in page
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [(row["n"], row["s"], row["d"]) for row in rows["rows"]] == [
        ("hosts", "completed", 0), ("host[db]", "completed", 1), ("table[users]", "crashed", 2),
    ]  # fmt: skip
    assert [failure["type"] for failure in rows["failures"]] == ["Offline"]
    assert ("nested.Account" if codec == "pickle" else "1 item") in page
    assert flowdeco("show", "waits", "--html", "page.html")[0] == 0
    assert "flowdeco resume waits --journal runs.db -i approval=VALUE</code>" in Path("page.html").read_text("utf-8")


REGIONS = """
from flowdeco import Context, Stage, action, stage

@stage
def index(name: str) -> None:
    @action
    def fetch(ctx: Context, token: str) -> None:
        ctx.show(f"the rows of {name}, with {token}")

@action
def flow(regions: list[str], token: str) -> list[Stage]:
    return [index(name) for name in regions] + [index(name="to hammerfest")]
"""


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_page_of_a_journal_redacts_what_the_page_of_the_run_does(flowdeco, journal, codec):
    """Arguments that are in the name of a stage are shown, and other values are not, unless it is asked for them."""
    Path("regions.py").write_text(REGIONS)
    given = ("-i", 'regions:=["Lofoten", "to hammerfest"]', "-i", "token=s3cret-9d2f")
    code, _, err = flowdeco("run", "regions.py", *given, "--codec", codec, "--html", "run.html")
    assert code == 0, err
    assert flowdeco("show", "--html", "show.html")[0] == 0
    for page in ("run.html", "show.html"):
        data = Path(page).read_text("utf-8")
        assert "the rows of Lofoten, with \\u2039token\\u203a" in data, page
        assert "the rows of to hammerfest, with \\u2039token\\u203a" in data, page
        assert "s3cret" not in data, page
    assert flowdeco("run", "regions.py", *given, "--codec", codec, "--html", "run.html", "--values")[0] == 0
    assert flowdeco("show", "--html", "show.html", "--values", "--force")[0] == 0
    for page in ("run.html", "show.html"):
        assert "the rows of Lofoten, with s3cret-9d2f" in Path(page).read_text("utf-8"), page
    code, _, err = flowdeco("show", "--values")
    assert (code, "--values shows the values on the page: give --html, too" in err) == (2, True)


GROUPED = """
from flowdeco import action, parallel, stage
from flowdeco.middleware import recover, retry

tried = []

@stage
def repair(what: str) -> None:
    @action(use=[retry(on=OSError, attempts=3, wait=0)])
    def fix() -> None:
        tried.append(what)
        if what == "b" and tried.count("b") < 3:
            raise OSError(what)

@action
def sides() -> object:
    return parallel(*map(repair, "ab"), name="sides")

@action(use=[recover(on=ValueError)])
def flaky() -> int:
    raise ValueError("not important")

@action
def last() -> None: ...

flow = sides >> parallel(flaky, last, name="end")
"""


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_show_agrees_with_run(flowdeco, journal, codec):
    """On groups and their places, the number of attempts, and what was recovered."""
    Path("grouped.py").write_text(GROUPED)

    def shown(out):
        return [(len(line) - len(line.lstrip()), *bare(line).split(" T")[:1]) for line in out.splitlines()]

    code, out, err = flowdeco("run", "grouped.py:flow", "--codec", codec)
    assert code == 0, err
    ran = [
        (0, "STAGE STATUS"), (0, "sides completed"), (2, " sides (parallel)"),
        (4, " repair[a] completed"), (4, " repair[b] completed, 3 attempts"), (0, "end (parallel)"),
        (2, " flaky recovered"), (2, " last completed"),
    ]  # fmt: skip
    assert shown(out)[:8] == ran
    code, out, _ = flowdeco("show")
    assert shown(out)[7:] == [
        *ran[:4], (6, " fix completed"), (4, " repair[b] completed"),
        (6, " fix completed, 3 attempts"), *ran[5:],
    ]  # fmt: skip


ASKS = """
from decimal import Decimal
from flowdeco import Context, action

@action
def price(ctx: Context, given: tuple[int, ...] = (1, 2), rate: Decimal = Decimal(1)) -> tuple[Decimal, str]:
    return rate * 2, "EUR"

@action
def approve(ctx: Context) -> bool:
    return ctx.wait_for("approved", about="Publish the new index?", type=bool)

flow = price >> approve
"""


def test_a_question_is_listed_once_and_replayed_values_are_as_in_the_source(flowdeco, journal):
    """With its key, its type, and what it is about; a tuple is no list."""
    Path("asks.py").write_text(ASKS)
    assert flowdeco("run", "asks.py:flow")[0] == 3
    assert lines(flowdeco("runs")[1])[1].endswith(" waiting for 'approved' (bool): Publish the new index?")
    code, out, _ = flowdeco("replay", "latest", "price")
    told = lines(out)
    assert (code, told[3:5]) == (0, ["given (1, 2)", "rate Decimal('1')"]), out
    assert told[7].endswith("(Decimal('2'), 'EUR')")


TALKS = """
from flowdeco import Context, action
from flowdeco.middleware import retry


@action(use=[retry(on=ValueError, wait=0)])
def talks(ctx: Context):
    ctx.emit("rows", count=3)
    ctx.logger.info("two\\nlines")
    ctx.show("*shown*")
    if ctx.attempt == 1:
        raise ValueError("first")


@action
def quiet():
    pass


flow = talks >> quiet
"""


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_the_messages_of_a_run_are_shown_on_request(flowdeco, journal, codec):
    """With the errors of failed attempts between them; as JSON always; without the workflow."""
    Path("talking.py").write_text(TALKS)
    flowdeco("run", "talking.py:flow", "--run-id", "one", "--codec", codec)
    Path("talking.py").unlink()
    assert "rows" not in flowdeco("show", "one")[1]
    out = re.sub(r"(?m)^  [0-9:]{8} ", "  TIME ", flowdeco("show", "one", "--messages")[1])
    one = ["  TIME  rows, count=3", "  TIME  INFO two", "            lines", "  TIME  showed text/markdown, 7 bytes"]
    assert out.splitlines()[-10:] == ["talks/talks", *one, "  failed    ValueError: first", *one]
    (talks, _) = json.loads(flowdeco("show", "one", "--json")[1])["stages"]
    assert [(each["kind"], each["failures"]) for each in talks["actions"][0]["messages"]] == [
        ("emit", 0), ("log", 0), ("show", 0), ("emit", 1), ("log", 1), ("show", 1)
    ]  # fmt: skip
    assert flowdeco("show", "one", "--html")[0] == 0
    assert "two\\nlines" in Path("one.html").read_text(encoding="utf-8")


def test_a_page_is_never_overwritten_unless_that_is_wanted(flowdeco, journal):
    """Nor is one written where it cannot be."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "a/b")
    assert flowdeco("show", "--html")[1] == "written: a_b.html\n"
    Path("a_b.html").write_text("mine")
    code, out, err = flowdeco("show", "a/b", "--html")
    assert (code, out, err) == (
        2, "", "flowdeco: error: a_b.html exists: give another file, or --force to overwrite it\n"
    )  # fmt: skip
    assert Path("a_b.html").read_text() == "mine"
    assert json.loads(flowdeco("show", "a/b", "--html", "--force", "--json")[1]) == {"id": "a/b", "html": "a_b.html"}
    assert Path("a_b.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "there is no such directory" in flowdeco("show", "a/b", "--html", "no/a.html")[2]


def test_stages_stand_below_their_inserters(flowdeco, journal):
    """In the tables of a run and of its steps; as JSON, by the place of their parent."""
    Path("nested.py").write_text(NESTED)
    _, out, _ = flowdeco("run", "nested.py:flow", "--run-id", "one")
    names = ["hosts", "  host[db]", "    table[users]", "    table[orders]", "approve"]
    assert [re.split(r"  +(?=[a-z]+ed)", line)[0] for line in out.splitlines()[1:6]] == names
    shown = flowdeco("show", "one")[1].splitlines()
    assert [line for line in (re.split(r"  +(?=[a-z]+ed)", line)[0] for line in shown) if line in names] == names
    _, out, _ = flowdeco("run", "nested.py:flow", "--json", "--no-journal")
    assert [stage["parent"] for stage in json.loads(out)["stages"]] == [None, 0, 1, 1, None]


FAILS = """
from flowdeco import action, parallel, stage
from flowdeco.middleware import retry

@stage
def publish() -> None:
    @action
    def text() -> None: ...

    @action(use=[retry(on=OSError, attempts=3, wait=0)])
    def upload(why: str = "offline") -> None:
        if why == "stop":
            raise KeyboardInterrupt
        raise OSError(why)

@action
def first() -> None: ...

@action
def tidy() -> None: ...

flow = first >> parallel(first, tidy, name="checks") >> publish >> tidy
alone = first >> publish["upload"]
"""


def test_what_failed_is_shown(flowdeco, journal):
    """With its attempts."""
    Path("fails.py").write_text(FAILS)
    flowdeco("run", "fails.py:flow", "--run-id", "one")
    shown = lines(flowdeco("show", "one")[1])
    assert "status failed: OSError: offline" in shown
    assert shown[-3:] == ["publish failed T", "text completed T", "upload failed, 3 attempts T"]
    assert json.loads(flowdeco("show", "one", "--json")[1])["failed"] == [
        {"stage": "publish", "action": "upload", "attempts": 3, "error": "OSError: offline"}
    ]
    assert lines(flowdeco("diff", "one")[1])[0].endswith("(failed): 1 retried, 1 failed, 1 not reached")
    assert "upload failed, 3 attempts T OSError: offline" in lines(flowdeco("diff", "one")[1])
    flowdeco("run", "fails.py:alone", "--run-id", "two")
    assert lines(flowdeco("show", "two")[1])[-2:] == ["first completed T", "upload failed, 3 attempts T"]


def test_where_a_run_failed_is_known_without_its_code(flowdeco, journal):
    """Its exceptions may be of a module that cannot be imported."""
    Path("fails.py").write_text(FAILS.replace("@stage\n", "class Offline(OSError): ...\n@stage\n", 1))
    Path("fails.py").write_text(Path("fails.py").read_text().replace("raise OSError(why)", "raise Offline(why)"))
    flowdeco("run", "fails.py:flow", "--run-id", "one")
    Path("fails.py").unlink()
    sys.modules.pop("fails", None)
    assert lines(flowdeco("show", "one")[1])[-1] == "upload failed, 3 attempts T"
    assert json.loads(flowdeco("runs", "--json")[1])[0]["failed"] == [
        {"stage": "publish", "action": "upload", "attempts": 3, "error": "Offline: offline"}
    ]


def test_a_run_that_exists_is_answered_in_the_words_of_the_command_line(flowdeco, journal):
    """With the command that resumes it, if it can be."""
    flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--run-id", "one")
    code, _, err = flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--run-id", "one")
    advice = "give another --run-id, or resume it: flowdeco resume one -i approval=VALUE"
    assert (code, err) == (2, f"flowdeco: error: {journal} has a run 'one' already, suspended: {advice}\n")
    flowdeco("resume", "one", "-i", "approval=yes")
    code, _, err = flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--run-id", "one")
    assert (code, err.endswith("already, completed: give another --run-id\n")) == (2, True)


def test_the_advice_to_resume_names_the_workflow_if_the_journal_does_not_know_it(flowdeco, journal):
    """As that of the other commands does."""
    fails = action(name="fails")(lambda: 1 / 0)
    fails.run(journal=str(journal), run_id="one", check=False)
    _, _, err = flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--run-id", "one")
    assert err.endswith("or resume it: flowdeco resume FILE.py:FLOW one\n")


def test_times_are_in_utc(flowdeco, journal):
    """Wherever a run is shown, whatever the zone of the machine."""
    Path("asks.py").write_text(
        "from flowdeco import action\n@action\ndef ask(ctx):\n"
        "    ctx.emit('asking')\n    ctx.wait_for('k', timeout=3600)\n"
    )
    flowdeco("run", "asks.py:ask", "--run-id", "one")
    (info,) = durable.runs(journal)
    (message,) = durable.read(journal, "one").stages[0].actions[0].messages
    started, due, said = (
        time.strftime("%Y-%m-%d %H:", time.gmtime(at)) for at in (info.started, info.due, message.time)
    )
    there = {"TZ": "EST5"}
    shown = in_process("show", "one", "--messages", environment=there).stdout
    assert re.search(rf"\nstarted +{started}[\d:]* UTC\nupdated .* UTC, .*\nasks .*until {due}[\d:]* UTC\n", shown)
    assert re.search(rf"\ndue +{due}[\d:]* UTC\n", shown)
    assert f"\n  {said[-3:]}" in shown
    assert re.search(rf"  {started}[\d:]* UTC  ", in_process("runs", environment=there).stdout)
    in_process("show", "one", "--html", "page.html", environment=there)
    assert re.search(rf"<dd>{started}[\d:]* UTC</dd>", Path("page.html").read_text(encoding="utf-8"))


def test_attempts_are_told_in_the_table_of_a_run(flowdeco):
    """Those of the actions, too."""
    Path("fails.py").write_text(FAILS)
    assert "publish failed, 3 attempts T" in lines(flowdeco("run", "fails.py:flow")[1])


def test_a_run_that_is_over_is_not_told_as_if_it_had_run(flowdeco, journal):
    """Its result is."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--run-id", "one")
    assert flowdeco("resume", "one") == (
        0, "run one was completed already: nothing to do\nresult: 'Resources: 1 processed'\n", ""
    )  # fmt: skip
    assert lines(flowdeco("resume", "one", "--on-change", "rerun")[1])[0] == "STAGE STATUS TIME INSERTED BY"
    assert json.loads(flowdeco("resume", "one", "--json")[1])["status"] == "completed"


def test_plans_and_diffs_are_printed_as_json(flowdeco, journal):
    """What a plan has, and what differs."""
    printed = flowdeco("plan", "flows.py:both", "--skip", "tag:slow", "--json")[1]
    assert flowdeco("plan", "flows.py:both", "--skip", "tag:slow", "--json", "-o", "plan.json") == (0, "", "")
    assert Path("plan.json").read_text() == printed
    plan = json.loads(printed)
    assert [part["name"] for part in plan["parts"]] == ["parallel", "report"]
    assert plan["parts"][1]["parts"] == [
        {"kind": "action", "name": "summary", "reads": ["title", "processed?"], "writes": ["summary"]}
    ]
    flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--run-id", "one")
    assert json.loads(flowdeco("diff", "one", "--json")[1]) == {
        "id": "one", "status": "completed", "counts": {"inserted": 1},
        "changes": [{"where": "process[0]", "what": "inserted", "by": "discover/discover", "why": ""}],
    }  # fmt: skip


def test_what_several_actions_lack_is_explained_once(flowdeco):
    """The others need it, too."""
    Path("lacks.py").write_text(
        "from flowdeco import action\n@action\ndef a(n) -> None: ...\n@action\ndef b(n, m) -> None: ...\nflow = a >> b"
    )
    told = lines(flowdeco("validate", "lacks.py:flow")[1])
    assert told[0].startswith("error: action 'a' of stage 'a' needs 'n', and no input")
    assert told[1] == "error: action 'b' of stage 'b' needs 'n', too"
    assert told[2].startswith("error: action 'b' of stage 'b' needs 'm', and no input")
    assert told[3] == "lacks.py:flow: 3 errors, 0 possible"


def test_an_error_without_a_message_has_no_colon(flowdeco, journal):
    """Ctrl-C, for one."""
    Path("fails.py").write_text(FAILS)
    flowdeco("run", "fails.py:alone", "-i", "why=stop", "--run-id", "one")
    assert lines(flowdeco("runs")[1])[1].endswith("cancelled WHEN 2 KeyboardInterrupt")
    assert "status cancelled: KeyboardInterrupt" in lines(flowdeco("show")[1])


@pytest.mark.parametrize("wanted", ["run-one", "run-o", "latest"])
def test_a_run_is_resumed_by_its_id_alone(flowdeco, journal, wanted):
    """Or the beginning of it; the journal knows where the pipeline is, from any directory."""
    flowdeco("run", "flows.py:gated", "-i", "kinds:=1", "--run-id", "run-one")
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    code, out, _ = flowdeco("resume", wanted, "-i", "approval:=true", "--journal", "../runs.db")
    assert code == 0
    assert "discovering" not in out
    assert lines(out)[-2:] == ["completed (4 stages, T, run run-one)", "result: 'Resources: 1 processed'"]


def test_a_run_is_resumed_with_its_entry_point(flowdeco, journal):
    """Where the journal does not know it; it does from then on."""
    pipeline(*load("flows.py:gated").unit).run({"kinds": 0}, journal="runs.db", run_id="one")  # no module has it
    code, _, err = flowdeco("resume", "one", "-i", "approval:=true")
    assert code == 2
    assert "the journal does not know where the workflow of run 'one' is" in err
    assert flowdeco("show")[2] == "flowdeco: to resume: flowdeco resume FILE.py:FLOW one -i approval=VALUE\n"
    assert err.endswith("flowdeco resume file.py:flow one\n")
    assert flowdeco("resume", "flows.py:gated", "--on-change", "ignore", "one")[0] == 3
    assert flowdeco("resume", "one", "-i", "approval:=true")[0] == 0


def test_what_a_script_wrote_is_resumed_from_its_file(flowdeco, journal):
    """It was the main module when it wrote references to what it defines."""
    Path("script.py").write_text(
        FLOWS + "\nif __name__ == '__main__':\n    gated.run({'kinds': 1}, journal='runs.db', run_id='one')\n"
    )
    subprocess.run([sys.executable, "script.py"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    code, out, err = flowdeco("resume", "script.py:gated", "one", "-i", "approval:=true")
    assert (code, err) == (0, "")
    assert "process[0]  completed" in out
    assert flowdeco("diff", "one")[0] == 0


def test_what_was_selected_is_selected_again(flowdeco, journal):
    """`--only` is part of where the pipeline is found, `--skip` is remembered by the run."""
    flowdeco("run", "flows.py:gated", "--only", "approve", "--only", "report", "--skip", "report/summary")
    assert lines(flowdeco("runs")[1])[1].startswith("ID flows.py:gated --only=approve --only=report suspended")
    code, out, _ = flowdeco("resume", "latest", "-i", "approval:=1", "--json")
    assert code == 0
    assert [stage["name"] for stage in json.loads(out)["stages"]] == ["approve", "report"]
    assert "summary" not in json.loads(out)["store"]


def test_changed_code_is_refused_in_one_line(flowdeco, journal):
    """With what to write instead."""
    flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--run-id", "one")
    del sys.modules["flows"]
    Path("flows.py").write_text(FLOWS.replace('print("discovering")', 'print("looking")'))
    os.utime("flows.py", (time.time() + 5,) * 2)
    code, _, err = flowdeco("resume", "one", "-i", "approval:=1")
    assert (code, len(err.splitlines())) == (2, 1)  # nothing was run
    assert "action discover/discover has completed, with different code. Give --on-change ignore to resume" in err
    assert flowdeco("resume", "one", "-i", "approval:=1", "--json")[:2] == (2, "")
    assert flowdeco("show", "one", "--json")[1].count('"suspended"')
    assert flowdeco("resume", "one", "-i", "approval:=1", "--on-change", "ignore")[0] == 0


REVIEWS = """
from flowdeco import Context, action, parallel, stage

@stage
def review(who: str):
    @action(collect="verdicts")
    def verdict(ctx: Context):
        return ctx.wait_for(f"verdict.{who}", type=str)

flow = parallel(review("legal1"), review("legal2"))

@action
def nums(): return 3

@action
def first(): return 1

@action
def second(): return 1

@action
def asks(ctx: Context): return ctx.wait_for("n")

steps = first >> second >> asks
"""


def test_an_answer_that_was_taken_is_not_warned_of(flowdeco, journal):
    """Although a question with a similar key is still open."""
    Path("reviews.py").write_text(REVIEWS)
    flowdeco("run", "reviews.py:flow", "--run-id", "one")
    code, _, err = flowdeco("resume", "one", "-i", "verdict.legal1=yes")
    assert (code, "warning" in err) == (3, False)
    assert "Did you mean 'verdict.legal2'?" in flowdeco("resume", "one", "-i", "verdict.legal3=yes")[2]


EARLY = """
from datetime import date
from flowdeco import Context, action, parallel

@action
def count(ctx: Context): return ctx.wait_for("n", type=int) + 1

@action
def when(ctx: Context): return ctx.wait_for("day", type=list[date])

@action
def again(ctx: Context): return ctx.wait_for("n", type=int)

flow = count >> parallel(when, count.with_options(name="other"), limit=1) >> again
"""


@pytest.mark.parametrize("options", [(), ("--journal", "x.db"), ("--journal", "x.db", "--codec", "json")])
def test_an_answer_that_is_given_early_is_converted_as_a_late_one(flowdeco, options):
    """By the type of its question, once that is asked; one that does not fit leaves the run suspended."""
    Path("early.py").write_text(EARLY)
    code, out, _ = flowdeco("run", "early.py:count", "-i", "n=41", *options)
    assert (code, lines(out)[-1]) == (0, "result: 42")
    code, out, _ = flowdeco("run", "early.py:when", "-i", 'day:=["2025-01-31"]', *options)
    assert (code, lines(out)[-1]) == (0, "result: ['2025-01-31']")
    code, out, err = flowdeco("run", "early.py:count", "-i", "n=x", *options)
    assert (code, "the answer given for 'n' before the question was asked is refused" in out) == (3, True)
    assert "warning: the input 'n': the run asks for it as int, and 'x' is not one" in err


def test_an_early_answer_is_for_one_question(flowdeco, journal):
    """The next one of its key is open; a resume takes such answers as well."""
    Path("early.py").write_text(EARLY)
    code, out, _ = flowdeco("run", "early.py:flow", "--run-id", "one", "-i", "n=1", "-i", "day=x")
    assert (code, "suspended: waiting for 'day'" in out, "'n'" in out) == (3, True, True)
    code, out, _ = flowdeco("resume", "one", "-i", "n=2", "-i", 'day=["2025-01-31"]')
    assert (code, lines(out)[-2:]) == (3, ["again suspended T", "suspended: waiting for 'n' (4 stages, T, run one)"])
    assert [(each.name, each.status) for each in durable.read(journal, "one").stages][:3] == [
        ("count", "completed"), ("when", "completed"), ("other", "completed"),
    ]  # fmt: skip


def test_a_waiting_run_is_not_resumed_by_another_pipeline(flowdeco, journal):
    """It still waits, for its own."""
    Path("reviews.py").write_text(REVIEWS)
    flowdeco("run", "reviews.py:flow", "--run-id", "one")
    code, out, err = flowdeco("resume", "reviews.py:nums", "one")
    assert (code, out) == (2, "")
    assert "this looks like a different pipeline" in err
    assert flowdeco("resume", "one", "-i", "verdict.legal1=y", "-i", "verdict.legal2=y")[0] == 0


def test_a_sleeping_run_is_resumed_without_an_input(flowdeco, journal):
    """It is not asked for one; when it is due is in its status."""
    Path("naps.py").write_text("from flowdeco import action\n@action\ndef nap(ctx):\n    ctx.sleep(1000)\n")
    code, out, err = flowdeco("run", "naps.py:nap", "--run-id", "one")
    assert (code, "sleeping until" in out, "resume one" in err, "-i" in err) == (3, True, True, False)


def test_an_answer_without_its_option_is_told(flowdeco, journal):
    """As `flowdeco run` tells it of an input."""
    flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--run-id", "one")
    code, _, err = flowdeco("resume", "one", "approval=yes")
    assert (code, err.endswith("There are: 'one'. If this is an input or an answer: -i approval=yes\n")) == (2, True)


def test_all_changes_are_listed(flowdeco, journal):
    """In one line."""
    Path("reviews.py").write_text(REVIEWS)
    flowdeco("run", "reviews.py:steps", "--run-id", "one")
    del sys.modules["reviews"]
    Path("reviews.py").write_text(REVIEWS.replace("return 1", "return 2"))
    os.utime("reviews.py", (time.time() + 5,) * 2)
    code, _, err = flowdeco("resume", "one")
    assert (code, len(err.splitlines())) == (2, 1)
    assert (
        "first/first has completed, with different code; action second/second has completed, with different code" in err
    )


def test_a_fork_goes_on_from_a_stage(flowdeco, journal):
    """In a run of its own."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--run-id", "one")
    code, out, _ = flowdeco("resume", "one", "--from-stage", "report")
    assert (code, len(durable.runs("runs.db"))) == (0, 2)
    assert lines(out)[-1] == "result: 'Resources: 1 processed'"
    code, _, err = flowdeco("resume", "one", "--from-stage", "reprt")
    assert (code, "Did you mean 'report'?" in err) == (2, True)


def test_a_json_journal_is_resumed_in_its_codec(flowdeco, journal):
    """Which the journal knows."""
    flowdeco("run", "flows.py:gated", "-i", "kinds:=1", "--codec", "json", "--run-id", "one")
    assert durable.runs("runs.db")[0].codec == "json"
    assert flowdeco("diff", "one")[0] == 0
    assert flowdeco("resume", "one", "-i", "approval:=1")[0] == 0


@pytest.mark.parametrize("command", ["show", "resume", "diff", "purge"])
def test_a_wrong_run_id_says_which_there_are(flowdeco, journal, command):
    """Close ones, or several that begin so."""
    for run in ("nightly-1", "nightly-2"):
        flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", run)
    code, _, err = flowdeco(command, "nihgtly-1")
    assert (code, "runs.db has no run 'nihgtly-1'. Did you mean 'nightly-1' or 'nightly-2'?" in err) == (2, True)
    assert "2 runs of runs.db begin with 'night': nightly-2, nightly-1" in flowdeco(command, "night")[2]


def test_a_diff_tells_what_was_inserted_and_where_it_stopped(flowdeco, journal):
    """Without running anything."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "-i", "fail:=true", "--run-id", "one")
    code, out, err = flowdeco("diff", "one")
    assert (code, err) == (0, "")
    assert "discovering" not in out
    assert "(failed): 1 inserted, 1 failed, 1 not reached" in out
    told = "\n".join(lines(out))
    assert "STAGE STATUS TIME DIFFERENCE" in told
    assert "process[0] completed T inserted by discover/discover" in told
    assert "check failed T ConnectionError: the server" in told
    assert "report not reached" in told
    assert flowdeco("diff", "one", "--format", "mermaid")[1].startswith("flowchart")
    assert durable.runs("runs.db")[0].status == "failed"


def test_runs_are_purged(flowdeco, journal):
    """By age and status, or by name; a dry run deletes nothing."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "one")
    flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--run-id", "two")
    assert flowdeco("purge", "--older-than", "1h") == (0, "deleted 0 runs\n", "")
    assert lines(flowdeco("purge", "--older-than", "0s", "--dry-run")[1])[-1] == "would delete 2 runs"
    assert flowdeco("purge", "--older-than", "0s", "--status", "completed")[1] == "deleted 1 run\n"
    assert flowdeco("purge", "--older-than", "0", "--dry-run", "--json")[0] == 0
    assert flowdeco("purge", "latest", "--dry-run")[1].endswith("would delete 1 run: two\n")
    code, _, err = flowdeco("purge", "t")
    assert (code, "runs to delete are named in full, and 't' is not a run of runs.db: 'two' is" in err) == (2, True)
    assert json.loads(flowdeco("purge", "two", "--json")[1]) == {"deleted": ["two"], "dry_run": False}
    assert flowdeco("runs")[1] == "runs.db has no runs\n"
    assert "runs.db has no runs" in flowdeco("purge", "two")[2]
    assert "--older-than takes a number and a unit" in flowdeco("purge", "--older-than", "30")[2]


def test_the_progress_is_shown_on_request():
    """Beside what is printed for programs."""
    pytest.importorskip("rich")
    pytest.importorskip("flowdeco.show.progress")
    done = in_process("run", "flows.py:flow", "-i", "kinds:=2", "--progress", "--json")
    assert json.loads(done.stdout)["status"] == "completed"
    assert "process[1]" in done.stderr


# -- Ctrl-C and SIGTERM


SLOW = """
import time
from flowdeco import Stage, action, stage, stream

def closing(call):
    try:
        yield
    finally:
        print("cleaning", flush=True)
        time.sleep(call.store.get("cleaning", 0))
        print("clean", flush=True)

@stage
def step(n: int) -> None:
    @action(collect="steps")
    def do() -> int:
        if n == 3:
            print("ready", flush=True)
        return n

def steps(count):
    return (step(n) for n in range(count))

@action
def many(count: int):
    return stream(steps, count)

@action
def wait(seconds: float = 0) -> None:
    time.sleep(seconds)

@action
def total(steps: list[int]) -> int:
    return sum(steps)

flow = many >> Stage("waiting", [wait], use=[closing]) >> total
"""


def interrupted(*inputs, pause=0.0, times=1, gap=0.1, by=signal.SIGINT):
    """Run the slow flow in a process, and interrupt it once it is at work."""
    Path("slow.py").write_text(SLOW)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "flowdeco", "run", "slow.py:flow", "--journal", "runs.db", "--run-id", "one", *inputs],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line == "ready\n":
            break
    time.sleep(pause)
    for turn in range(times):
        if turn:
            time.sleep(gap)
        process.send_signal(by)
    out, err = process.communicate(timeout=50)
    # Python gives up its handlers when it ends: what comes then ends it as a signal, which shells call 130 as well.
    code = 128 + by if process.returncode == -by else process.returncode
    return code, "".join(seen) + out, err


@pytest.mark.parametrize(("by", "name", "expected"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_cancels_the_run_and_cleans_up(flowdeco, by, name, expected):
    """The exit code is that of the signal; the run is cancelled, its middleware unwound, and it can be resumed."""
    code, out, err = interrupted("-i", "count:=5", "-i", "seconds:=60", pause=0.5, by=by)
    assert code == expected
    assert "cleaning\nclean\n" in out
    assert "cancelled (7 stages" in out
    assert f"flowdeco: cancelling... ({name} again ends it at once, without clean-up)" in err
    assert "flowdeco: to resume: flowdeco resume one --journal runs.db" in err
    assert "Traceback" not in err
    assert durable.runs("runs.db")[0].status == "cancelled"
    code, out, _ = flowdeco("resume", "one", "--journal", "runs.db", "-i", "seconds:=0")
    assert (code, "result: 10" in out, "ready" in out) == (0, True, False)


def test_the_second_ctrl_c_ends_it_at_once(flowdeco):
    """However long the clean-up would take; what was written is there."""
    before = time.monotonic()
    code, out, _ = interrupted("-i", "count:=5", "-i", "seconds:=60", "-i", "cleaning:=60", pause=0.5, times=2, gap=0.5)
    assert code == 130
    assert time.monotonic() - before < 40
    assert "clean\n" not in out.replace("cleaning\n", "")
    code, out, _ = flowdeco("resume", "one", "--journal", "runs.db", "-i", "seconds:=0", "-i", "cleaning:=0")
    assert (code, "result: 10" in out, "ready" in out) == (0, True, False)


@pytest.mark.parametrize(("pause", "gap"), [(0.0, 0.0), (0.01, 0.001), (0.03, 0.0), (0.05, 0.01)])
def test_ctrl_c_twice_never_corrupts_a_journal(flowdeco, pause, gap):
    """At any moment of a run that writes all the time: it is read, and goes on to the same result."""
    code, _, err = interrupted("-i", "count:=1000", "-i", "seconds:=60", pause=pause, times=2, gap=gap)
    assert (code, "Traceback" in err) == (130, False), err
    steps = len(durable.history("runs.db", "one"))
    code, out, _ = flowdeco("resume", "one", "--journal", "runs.db", "-i", "seconds:=0", "--json")
    assert (code, json.loads(out)["result"]) == (0, sum(range(1000)))
    assert len(durable.history("runs.db", "one")) > steps > 3


def test_sigterm_twice_ends_it_at_once(flowdeco):
    """As the second Ctrl-C does, with its own exit code."""
    slow = ("-i", "count:=5", "-i", "seconds:=60", "-i", "cleaning:=60")
    code, out, _ = interrupted(*slow, pause=0.5, times=2, gap=0.5, by=signal.SIGTERM)
    assert (code, "clean\n" in out.replace("cleaning\n", "")) == (143, False)


FORKING = """
import os, signal, time
from flowdeco import action, parallel

@action
def stopped() -> int:
    pid = os.fork()
    if pid == 0:
        print("child", flush=True)
        time.sleep(60)
        os._exit(1)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@action
def other() -> None: pass

flow = parallel(stopped, other) >> stopped
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_workers_that_a_workflow_forks_end_on_sigterm():
    """As before: those who stop them, such as pools, wait for their end. From a thread, and from the main one."""
    Path("forking.py").write_text(FORKING)
    command = [sys.executable, "-W", "ignore", "-m", "flowdeco", "run", "forking.py:flow", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, -signal.SIGTERM)
    assert done.stderr == "child\nchild\n"


def test_a_page_shows_the_run(flowdeco):
    """Whatever became of it; where it cannot be written is told before the run, if that can be known."""
    assert flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "-i", "fail:=true", "--html", "run.html")[0] == 1
    page = Path("run.html").read_text()
    assert "process[0]" in page
    assert "the server" in page
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--html", "nowhere/run.html")
    assert (code, out) == (2, "")
    assert err == "flowdeco: error: --html nowhere/run.html: there is no such directory\n"
    code, out, err = flowdeco("run", "flows.py:flow", "-i", "kinds:=1", "--html", ".")
    assert (code, out) == (2, "")
    assert err == "flowdeco: error: --html .: it is a directory, where a file is expected\n"


# -- completion


def completions(line, **environment):
    """What argcomplete proposes for the last word of a line."""
    pytest.importorskip("argcomplete")
    script = "import os, sys; from flowdeco.cli import main; sys.argv[0] = 'flowdeco'; os.dup2(1, 8); main([])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
             "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": "", **environment},
    )  # fmt: skip
    assert done.stderr == ""
    return sorted(word.strip() for word in done.stdout.split("\n") if word.strip())


def test_commands_and_options_are_completed():
    """By argcomplete, where it is installed."""
    assert completions("flowdeco r") == ["replay", "resume", "run", "runs"]
    assert "--journal" in completions("flowdeco run flows.py:flow --j")


def test_entry_points_are_completed_without_running_them():
    """Files, then what is defined in them."""
    Path("flows.py").write_text(FLOWS + "\nprint('imported')\n")
    assert completions("flowdeco run flo") == ["flows.py:"]
    assert completions("flowdeco run flows.py:f") == ["flows.py:flow"]
    assert completions("flowdeco run flows.py:flow --skip re") == ["report"]
    assert completions("flowdeco run flows.py:flow --skip tag") == ["tag:dynamic", "tag:reporting", "tag:slow"]
    assert completions("flowdeco run flows.py:flow --skip pro") == ["process"]
    assert completions("flowdeco run flows.py:pro") == []


def test_runs_are_completed(flowdeco, journal):
    """From the journal of the environment; their statuses from a list."""
    assert completions("flowdeco runs --status c") == ["cancelled", "completed", "crashed"]
    for run in ("nightly-1", "nightly-2", "daily"):
        flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", run)
    assert completions("flowdeco show nig", FLOWDECO_JOURNAL="runs.db") == ["nightly-1", "nightly-2"]
    steps = ["check/check", "discover/discover", "report/summary"]
    proposed = completions("flowdeco replay nightly-1 ", FLOWDECO_JOURNAL="runs.db")
    assert [each for each in proposed if not each.startswith("-")] == steps
    assert completions("flowdeco replay flows.py:flow latest re", FLOWDECO_JOURNAL="runs.db") == steps[2:]
    assert completions("flowdeco replay flows.py:flow nightly", FLOWDECO_JOURNAL="runs.db") == [
        "nightly-1",
        "nightly-2",
    ]
    for command in ("resume flows.py:flow", "cancel"):
        assert completions(f"flowdeco {command} da", FLOWDECO_JOURNAL="runs.db") == ["daily"]
    assert completions("flowdeco resume latest --from-stage ", FLOWDECO_JOURNAL="runs.db") == [
        "check",
        "discover",
        "report",
    ]
    assert completions("flowdeco resume flows.py:flow nightly-1 --from-stage re", FLOWDECO_JOURNAL="runs.db") == [
        "report"
    ]


def test_questions_are_completed(flowdeco, journal):
    """Runs that ask something, then the keys that these ask for."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "done")
    flowdeco("run", "flows.py:gated", "-i", "kinds:=0", "--run-id", "asking")
    for line, proposed in [
        ("answer ", ["asking"]), ("answer asking ", ["approval="]), ("resume latest --error a", ["approval="]),
        ("answer done ", []),
    ]:  # fmt: skip
        found = completions(f"flowdeco {line}", FLOWDECO_JOURNAL="runs.db")
        assert [each for each in found if not each.startswith("-")] == proposed, line


@pytest.mark.parametrize("journal", [None, "none.db", "flows.py"])
def test_nothing_is_completed_without_a_journal(journal):
    """Nor is there an error, which a shell would print over the line."""
    lines = ["resume r --from-stage ", "answer r ", "cancel "]
    environment = {"FLOWDECO_JOURNAL": journal} if journal else {}
    for line in lines[: 3 if journal is None else 1]:
        assert [each for each in completions(f"flowdeco {line}", **environment) if not each.startswith("-")] == []


# -- starting


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--help"], "flowdeco.durable flowdeco.cli.report json sqlite3"),
        (["--version"], "flowdeco.durable flowdeco.cli.report json sqlite3"),
        (["run", "--help"], "flowdeco.durable flowdeco.cli.report json sqlite3"),
        (["rum"], "flowdeco.durable flowdeco.cli.report json sqlite3"),
        (["runs", "--journal", "runs.db", "--status", "completed"], "flowdeco.cli.history"),
        (["show", "--journal", "runs.db"], "flowdeco.cli.history"),
        (["purge", "one", "--journal", "runs.db"], "flowdeco.cli.history"),
    ],
)
def test_it_starts_with_little(flowdeco, arguments, unneeded):
    """The modules that run workflows are imported with a workflow, those that keep journals for a journal."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--run-id", "one", "--journal", "runs.db")
    script = f"""
import sys
from flowdeco.cli import main
main({arguments})
heavy = "wrapt asyncio concurrent.futures logging flowdeco.model.definitions flowdeco.drivers flowdeco.show {unneeded}"
print(sorted(set(heavy.split()) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["argparse", "flowdeco.cli.commands", "flowdeco.cli.report", "sqlite3"])
def test_ctrl_c_while_it_starts_has_the_same_exit_code(flowdeco, module):
    """And no traceback, whatever is being imported."""
    flowdeco("run", "flows.py:flow", "-i", "kinds:=0", "--journal", "runs.db")
    assert interrupted_at(module, ["runs", "--journal", "runs.db"]) == (130, "", "")


def test_ctrl_c_while_a_workflow_is_imported_has_the_same_exit_code():
    """Nothing has run."""
    assert interrupted_at("wrapt", ["run", "flows.py:flow", "-i", "kinds:=0"]) == (130, "", "")
    Path("slow.py").write_text("import colorsys\n" + FLOWS)
    assert interrupted_at("colorsys", ["run", "slow.py:flow", "-i", "kinds:=0"]) == (130, "", "")


def interrupted_at(module, arguments):
    """What comes of Ctrl-C when a module is about to be imported."""
    script = f"""
import signal, sys
class Interrupting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
from flowdeco.cli import main
sys.exit(main({arguments}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    return done.returncode, done.stdout, done.stderr


# -- the documentation


def commands_of(page):
    """Each command of the console blocks of a page, with the output that is shown for it."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.M | re.S)
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.M)
    assert len(found) > 10
    return found


def test_the_commands_of_the_documentation_print_what_it_shows(flowdeco, monkeypatch):
    """One after the other, as a reader types them; but for times and random ids."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    Path("flows.py").write_text(re.search(r"^```python\n(.*?)^```", page, re.M | re.S)[1])
    code = 0
    for command, shown in commands_of(page):
        words = shlex.split(command)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("="))
        elif words[0] == "echo":
            assert (command, f"{code}\n") == (command, shown)
        elif "|" in words:
            _, out, _ = flowdeco(*words[1 : words.index("|")])
            run = json.loads(out)
            assert shown.splitlines() == [run["status"], run["result"], run["store"]["copied"][0]]
        else:
            assert words[0] == "flowdeco"
            code, out, err = flowdeco(*words[1:])
            assert (command, lines(out + err)) == (command, lines(shown))


# -- help, formats, colours, completion of inputs


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_examples_exit_codes_and_variables(flowdeco, command):
    """Of the whole, and of each command, which has its own exit codes; in 80 columns."""
    code, out, _ = flowdeco(*filter(None, [command]), "--help")
    assert code == 0
    for heading in ("examples:", "exit codes:", "environment variables:"):
        assert f"\n{heading}\n" in out
    assert f"  flowdeco {command or 'run'} " in out.partition("examples:")[2]
    for word in ("FLOWDECO_JOURNAL", "NO_COLOR", "FORCE_COLOR"):
        assert word in out
    of_run = command in (None, "run", "resume")
    assert ("  3    the run is suspended" in out, "completed, or bailed" in out) == (of_run, of_run)
    assert max(map(len, out.partition("examples:")[2].splitlines())) <= 82


def test_the_examples_of_help_are_valid():
    """Each parses."""
    from flowdeco.cli.arguments import help_texts, parsed

    examples = [text for command, text in help_texts().items() if command in ("flowdeco", *COMMANDS)]
    assert len(examples) == 1 + len(COMMANDS)
    for line in "\n".join(examples).splitlines():
        if "--help" not in line:
            parsed(shlex.split(line)[1:])


@pytest.mark.parametrize(
    ("file", "beginning"),
    [
        ("plan.html", "<!DOCTYPE html>"), ("plan.HTML", "<!DOCTYPE html>"), ("plan.mmd", "flowchart TD"),
        ("plan.md", "```mermaid\nflowchart TD"), ("plan.txt", "pipeline: 3 stages"), ("plan", "pipeline: 3 stages"),
    ],
)  # fmt: skip
def test_the_suffix_of_a_file_chooses_the_format(flowdeco, journal, file, beginning):
    """For `plan` and for `diff`, unless an option does."""
    assert flowdeco("plan", "flows.py:flow", "-o", file)[:2] == (0, "")
    assert Path(file).read_text().startswith(beginning)
    flowdeco("run", "flows.py:flow", "-i", "kinds=1", "--journal", "runs.db", "--run-id", "one")
    flowdeco("diff", "one", "-o", file)
    assert Path(file).read_text().startswith(beginning.partition(":")[0])
    flowdeco("plan", "flows.py:flow", "-o", file, "--format", "text")
    assert Path(file).read_text().startswith("pipeline: 3 stages")


@pytest.mark.parametrize(
    ("no_color", "force_color", "terminal", "coloured"),
    [
        (None, None, True, True), (None, None, False, False), ("1", None, True, False), ("", None, True, True),
        (None, "1", False, True), (None, "", False, False), ("1", "1", True, False), ("", "1", False, True),
        ("0", "1", False, False),
    ],
)  # fmt: skip
def test_colours_follow_the_conventions(monkeypatch, no_color, force_color, terminal, coloured):
    """A variable that is set and not empty counts, whatever its value; NO_COLOR wins."""
    from flowdeco.cli import report

    monkeypatch.setenv("TERM", "xterm")
    for name, value in (("NO_COLOR", no_color), ("FORCE_COLOR", force_color)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: terminal
    assert report.coloured("failed", out) == ("\x1b[31mfailed\x1b[0m" if coloured else "failed")


def test_a_table_is_cut_to_a_narrow_terminal(monkeypatch, capsys):
    """Names in the middle, texts at their ends, and times and statuses not at all."""
    from flowdeco.cli import report

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    report.print_steps(
        [report.StepRow(0, "copy[a-long-name-of-a-table]", "completed", "12.3 ms", "list_tables/list_tables")]
    )
    report.print_table(["RUN", "WHY"], [["2f5e6a7b8c9d0e1f", "the server is offline, and so is the other one"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50
    assert lines[1].split("  ") == ["copy[a-l…-table]", "completed", "12.3 ms", "list_t…ables"]
    assert lines[3] == "2f5e6a7b8c9d0e1f  the server is offline, and so i…"


def test_the_inputs_of_a_workflow_are_completed(flowdeco, journal):
    """Read from the source: the parameters that no action of the file supplies; of a run, the keys that it waits for."""
    assert completions("flowdeco run flows.py:flow -i ") == ["fail=", "kinds=", "stop=", "title="]
    assert completions("flowdeco run flows.py:flow -i ki") == ["kinds="]
    assert completions("flowdeco validate flows.py:flow -i ki") == ["kinds"]
    flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--journal", "runs.db", "--run-id", "one")
    assert "approval=" in completions("flowdeco resume one --journal runs.db -i ")
    assert completions("flowdeco run nothing.py:flow -i ") == []


def test_all_attributes_are_in_the_json(flowdeco, journal):
    """Of the run, of its stages and of their actions; `show` has those of a recorded run."""
    Path("retried.py").write_text(
        "from flowdeco import *\nfrom flowdeco.middleware import retry\ntries = []\n"
        "@action(use=[retry(on=OSError, wait=0)])\ndef a():\n    tries.append(1)\n"
        "    if len(tries) < 3: raise OSError('offline')\n    return [Stage('b')]\n"
        "flow = parallel(a, name='both') >> pipeline(Stage('c'), name='inner', title='x')\n"
    )
    code, out, _ = flowdeco("run", "retried.py:flow", "--json", "--journal", "runs.db", "--run-id", "one")
    data = json.loads(out)
    assert code == 0
    first, second, third = data["stages"]
    assert first["scope"] == [{"name": "both", "branch": 0, "inserted_by": None}]
    assert first["actions"][0]["failures"] == ["OSError: offline"] * 2
    assert (first["actions"][0]["inserted"], second["inserted_by"], second["parent"]) == (["b"], "a/a", 0)
    assert [scope["name"] for scope in third["scope"]] == ["inner"]
    assert (data["pipelines"], data["forgotten"]) == ([], 0)
    shown = json.loads(flowdeco("show", "one", "--json")[1])
    assert [stage["name"] for stage in shown["stages"]] == ["a", "b", "c"]
    assert shown["stages"][0]["actions"][0]["failures"] == ["OSError: offline"] * 2


def test_a_workflow_that_has_moved_is_named(flowdeco, journal):
    """The error says how, and how a script resumes its run itself."""
    flowdeco("run", "flows.py:gated", "-i", "kinds=0", "--journal", "runs.db", "--run-id", "one")
    Path("flows.py").rename("moved.py")
    del sys.modules["flows"]
    code, _, err = flowdeco("resume", "one", "-i", "approval=yes")
    assert code == 2
    assert "have the script call flow.resume('one', journal='runs.db')" in err
    assert "name it, as in flowdeco resume file.py:flow one)" in err
    assert flowdeco("resume", "moved.py:gated", "one", "-i", "approval=yes")[0] == 0
