"""`progress=`: what is counted, what is told to functions and bars, what is drawn, and what is left behind."""

import asyncio
import io
import logging
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import nbformat
import pyte
import pytest
from browser import Sheet, started
from nbclient import NotebookClient
from support import again, failing, flaky, one, step, swallow
from tqdm import tqdm

import flowdeco.show.live
from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stream
from flowdeco.errors import DefinitionError, WiringError
from flowdeco.events import (
    ActionStarted,
    BranchesHeld,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    UnitsInserted,
)
from flowdeco.show.formatting import MARKS
from flowdeco.show.live import FINE, PLAIN, frame, html
from flowdeco.show.progress import Lines, watcher
from flowdeco.show.tally import Tally

ROOT = Path(__file__).parents[1]


class Told:
    """A function that keeps what it is told."""

    def __init__(self):
        self.calls = []

    def __call__(self, done, known, current):
        self.calls.append((done, known, current))

    @property
    def last(self):
        return self.calls[-1]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def counted(run, flow, **options):
    """The tally of a run, and `(done, known)` at the beginning and the end of its stages."""
    tally, seen = Tally(), []

    def look(event):
        tally(event)
        if isinstance(event, (StageStarted, StageFinished)):
            seen.append((tally.done, tally.known))

    run(flow, observers=[look], **options)
    return tally, seen


# -- what is counted


def test_stages_are_counted_in_pipelines_and_groups(run):
    """An action of a pipeline is a stage; a pipeline and a group are none."""
    flow = step([], "a") >> pipeline(one([], "b"), one([], "c"), name="p") >> parallel(one([], "d"), one([], "e"))
    tally, seen = counted(run, flow)
    assert {known for _, known in seen} == {5}
    assert (tally.done, tally.known, tally.status) == (5, 5, "completed")


def test_what_is_inserted_is_known_at_once(run):
    """Stages, what is in pipelines, and what those insert; a dynamic action is no stage."""

    @action
    def a(ctx):
        ctx.insert(step([], "x"))
        return units

    units = [one([], "D", lambda: [one([], "E")]), pipeline(one([], "F"), one([], "G"), name="p")]
    flow = a >> one([], "b")
    _, seen = counted(run, flow)
    assert seen == [(0, 2), (1, 5), (1, 5), (2, 6), (2, 6), (3, 6), (3, 6), (4, 6), (4, 6), (5, 6), (5, 6), (6, 6)]


def test_what_a_middleware_inserts_is_known(run):
    """Around an action, a stage, a pipeline."""

    def inserts(call):
        yield
        call.insert(Stage(f"by {call.level}"))

    flow = pipeline(Stage("s", [action(lambda: None, name="x", use=[inserts])], use=[inserts]), use=[inserts])
    tally, seen = counted(run, flow)
    assert seen == [(0, 1), (1, 3), (1, 3), (2, 3), (2, 3), (3, 4), (3, 4), (4, 4)] or seen[-1] == (4, 4)
    assert tally.known == 4


def test_what_a_stream_gives_is_known_when_it_begins(run):
    """Nobody can know of it before."""
    flow = one([], "a", lambda: stream(one([], f"s{n}") for n in range(3)))
    _, seen = counted(run, flow)
    assert seen == [(0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)]


def test_done_never_exceeds_known(run):
    """With streams, skipped stages and further attempts all together."""
    units = [stream([pipeline(one([], "t"), one([], "u"), name="p")]), one([], "v")]
    flow = pipeline(
        one([], "a", lambda: units),
        pipeline(one([], "b"), flaky([], "f", 2), name="again", use=[again(3)]),
        one([], "z"),
    )
    tally, seen = counted(run, flow, skip=["u", "z"])
    assert all(done <= known for done, known in seen)
    assert tally.done == tally.known == 11


def test_what_a_failed_attempt_inserted_is_not_known_any_more(run):
    """A stage that is run again inserts again."""
    flow = Stage("s", [step([], "a", lambda: [one([], "D"), one([], "E")]), flaky([], "f", 2)], use=[again(3)])
    _, seen = counted(run, flow >> one([], "b"))
    assert seen == [(0, 2), (1, 4), (1, 4), (2, 4), (2, 4), (3, 4), (3, 4), (4, 4)]


def test_an_action_that_returns_itself_keeps_what_it_inserted(run):
    """Its turns are no attempts: each adds to what is known."""
    log = []

    @action(name="page")
    def page(ctx: Context):
        log.append(1)
        ctx.insert(Stage(f"D{len(log)}"))
        return page if len(log) < 4 else None

    _, seen = counted(run, Stage("s", [page]))
    assert seen[1] == (1, 5)


def test_a_loop_counts_its_turns(run):
    """A stage that returns itself: one more is known each time."""
    log = []
    loop = one(log, "s", lambda: loop if len(log) < 50 else None)
    tally, _ = counted(run, loop)
    assert (tally.done, tally.known) == (50, 50)
    assert len(tally._announced) == 0


def test_stages_of_one_name_in_branches_are_told_apart(run):
    """By the context in which they run: each has the action that is its own."""
    barrier = threading.Barrier(2)
    seen = []

    @action
    def both(ctx: Context, me: int = 0):
        ctx.progress(ctx.stage.data["me"], 10)
        barrier.wait(10)
        seen.append(sorted((row.name, row.branch, row.action, row.done) for row in list(tally.running)))
        barrier.wait(10)

    tally = Tally()
    branches = [Stage("same", [both], data={"me": number}) for number in (1, 2)]
    run(parallel(*branches, name="g", merge={"me": min}), observers=[tally])
    assert seen[0] == [("same", "g[0]", "both", 1), ("same", "g[1]", "both", 2)]
    assert (tally.done, len(tally.running)) == (2, 0)


def test_a_run_inside_a_run_has_its_own_count(run):
    """Neither counts what is the other's."""
    inner, outer = Tally(), Tally()

    @action
    def nests():
        run(pipeline(Stage("x"), Stage("y")), observers=[inner]) if run.__name__ == "run_sync" else None

    run(nests >> Stage("b"), observers=[outer])
    assert outer.done == 2
    assert inner.done in (0, 2)
    assert [row.name for row in outer.recent] == ["nests", "b"]


def test_what_was_restored_is_done(run):
    """A resumed run begins where it was."""
    fails = [True]

    @action
    def fragile():
        if fails:
            fails.clear()
            raise ValueError("no")

    flow = one([], "a", lambda: [one([], "D")]) >> fragile >> one([], "b")
    broken = flow.run(check=False)
    told = Told()
    flow.resume(broken, progress=told)
    assert told.last == (4, 4, "")
    tally = Tally()
    fails.append(True)
    flow.resume(flow.run(check=False), observers=[tally])
    assert [row.restored for row in tally.recent] == [True, True, False, False]


def test_a_run_that_fails_says_what_it_did_not_reach(run):
    """Known, and not done."""
    tally, _ = counted(run, one([], "a") >> failing([], "f", ValueError("no")) >> one([], "b"), check=False)
    assert (tally.done, tally.known, tally.status, tally.error) == (2, 3, "failed", "ValueError: no")
    assert [row.error for row in tally.failed] == ["ValueError: no"]


# -- functions and bars


def test_a_function_is_told_at_every_change(run):
    """What is done, what is known, and the stage that runs."""
    told = Told()
    run(one([], "a", lambda: [one([], "D")]) >> one([], "b"), progress=told)
    assert told.calls == [
        (0, 2, ""),
        (0, 2, "a"),
        (0, 3, "a"),
        (1, 3, ""),
        (1, 3, "D"),
        (2, 3, ""),
        (2, 3, "b"),
        (3, 3, ""),
        (3, 3, ""),
    ]


def test_progress_is_there_for_resume_and_aresume():
    """As for `run` and `arun`."""
    told = Told()
    run = failing([], "f", Bail("enough")).run()
    assert failing([], "f", Bail("enough")).resume(run, progress=told) is run
    fails = [True, True]

    @action
    def fragile():
        if fails:
            fails.pop()
            raise ValueError("no")

    broken = fragile.run(check=False)
    broken = fragile.resume(broken, check=False, progress=told)
    assert told.last == (1, 1, "")
    told.calls.clear()
    asyncio.run(fragile.aresume(broken, progress=told))
    assert told.last == (1, 1, "")


def test_a_function_that_raises_is_logged_and_the_run_goes_on(run, caplog):
    """Like every observer."""

    def broken(done, known, current):
        raise ValueError("my mistake")

    assert run(one([], "a"), progress=broken).status == "completed"
    (record,) = caplog.records
    assert "broken" in record.getMessage()


class Bar:
    """A bar as tqdm has them, that keeps what it is told."""

    def __init__(self):
        self.total = None
        self.log = []

    def update(self, n):
        self.log.append((n, self.total))

    def close(self):
        self.log.append("closed")


def test_a_bar_is_told_how_many_more_are_done(run):
    """Its total grows with what is known, and it is closed in the end."""
    bar = Bar()
    run(one([], "a", lambda: [one([], "D")]), progress=bar)
    assert [each for each in bar.log if each[0] != 0] == [(1, 2), (1, 2), "closed"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_bar_is_closed_whatever_happens(run, error):
    """When the run fails, or is interrupted."""
    bar = Bar()
    with pytest.raises(type(error)):
        run(failing([], "f", error), progress=bar)
    assert bar.log[-1] == "closed"


def test_a_bar_is_closed_when_the_run_is_cancelled():
    """From outside."""
    bar = Bar()

    @action
    async def waits():
        await asyncio.sleep(10)

    async def main():
        task = asyncio.create_task(waits.arun(progress=bar))
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert bar.log[-1] == "closed"


def test_a_bar_that_cannot_be_closed_is_logged(run, caplog):
    """The run has its result all the same."""

    class Stuck(Bar):
        def close(self):
            raise ValueError("stuck")

    assert run(one([], "a"), progress=Stuck()).status == "completed"
    assert "could not be closed" in caplog.text


def test_tqdm_works_as_it_is(run):
    """Its bar is taken as `progress`; one without a total has no truth value."""
    out = io.StringIO()
    run(one([], "a", lambda: [one([], "D"), one([], "E")]), progress=tqdm(unit="stage", file=out, mininterval=0))
    assert "3/3" in out.getvalue()
    assert "stage/s" in out.getvalue()
    assert "E" in out.getvalue()


@pytest.mark.parametrize("nothing", [None, False])
def test_no_progress_is_none(run, nothing):
    """And no thread, no output."""
    with redirect_stderr(io.StringIO()) as errors:
        run(one([], "a"), progress=nothing)
    assert errors.getvalue() == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, r"progress is True, a function of \(done, known, current\), or a bar .*, not 3"),
        ("yes", "not 'yes'"),
        (tqdm, r"write progress=tqdm\(\)"),
        (Bar, r"write progress=Bar\(\)"),
    ],
)
def test_what_cannot_show_progress_is_refused(run, wrong, message):
    """Before anything runs."""
    log = []
    with pytest.raises(DefinitionError, match=message):
        run(one(log, "a"), progress=wrong)
    assert log == []


def test_without_rich_the_extra_is_named_at_once(run, monkeypatch):
    """Before anything runs."""
    monkeypatch.setitem(sys.modules, "rich.live", None)
    log = []
    with pytest.raises(DefinitionError, match=r"pip install 'flowdeco\[rich\]'"):
        run(one(log, "a"), progress=True)
    assert log == []
    run(one(log, "a"), progress=Told())
    assert log == ["a"]


# -- lines


def test_where_there_is_no_terminal_lines_are_printed(run, capsys):
    """One for each stage, on stderr."""
    inserts = one([], "a", lambda: [one([], "D"), one([], "E")])
    run(pipeline(inserts, failing([], "f", ValueError("no"), use=[swallow]), name="p"), progress=True, skip=["E"])
    out, err = capsys.readouterr()
    assert out == ""
    assert re.sub(r"\d+(\.\d+)? (ms|µs)", "N ms", err).splitlines() == [
        "p: 2 stages",
        "[1/4] a completed in N ms, inserted 2",
        "[2/4] D completed in N ms",
        "[3/4] E skipped",
        "[4/4] f completed in N ms",
        "p completed: 4 stages in N ms",
    ]


def test_a_failure_is_the_last_line(run, capsys):
    """With its message, and how far the run came."""
    with pytest.raises(ValueError):
        run(failing([], "f", ValueError("no\nmore")) >> one([], "b"), progress=True)
    assert re.sub(r"\d+(\.\d+)? (ms|µs)", "N ms", capsys.readouterr().err).splitlines() == [
        "pipeline: 2 stages",
        "[1/2] f failed in N ms: ValueError: no",
        "pipeline failed: 0 of 2 stages in N ms; ValueError: no",
    ]


def lines_of(many, clock, seconds=0.0):
    """What is printed for so many stages."""
    out = io.StringIO()
    tally = Tally(clock)
    view = Lines(tally, out, clock)

    def tell(event):
        tally(event)
        view.handle(event)

    tell(RunStarted("r", "p", many))
    for number in range(many):
        tell(StageStarted("r", f"s{number}", None))
        clock.now += seconds
        status = "failed" if number == many - 2 else "completed"
        tell(StageFinished("r", f"s{number}", status, ValueError("no") if status == "failed" else None, seconds))
    tell(RunFinished("r", "p", "completed", None, clock.now))
    return out.getvalue().splitlines()


def test_of_many_stages_not_all_have_a_line():
    """The first ones have, then about one in a second; failures always."""
    lines = lines_of(1000, Clock(), 0.01)
    assert len(lines) < 70
    assert lines[1] == "[1/1000] s0 completed in 10.0 ms"
    assert lines[51] == "[150/1000] s149 completed in 10.0 ms, after 99 more"
    assert (
        re.sub(r"after \d+", "after N", lines[-2]) == "[999/1000] s998 failed in 10.0 ms, after N more: ValueError: no"
    )
    assert lines[-1] == "p completed: 1000 stages in 10.0 s"


def test_what_takes_long_is_mentioned():
    """More and more seldom."""
    clock, out = Clock(), io.StringIO()
    tally = Tally(clock)
    view = Lines(tally, out, clock)
    for event in (RunStarted("r", "p", 2), StageStarted("r", "s", None), ActionStarted("r", "s", "x", None)):
        tally(event)
        view.handle(event)
    tally(Progress("r", "s", "x", 3, 10))
    for _ in range(100):
        clock.now += 1
        view.refresh()
    view.end()
    assert out.getvalue().splitlines() == [
        "p: 2 stages",
        "[0/2] s/x 3/10 … 10.0 s",
        "[0/2] s/x 3/10 … 30.0 s",
        "[0/2] s/x 3/10 … 1 min 10 s",
    ]


def test_how_many_branches_a_slow_one_holds_up_is_mentioned():
    """As long as they wait, in lines and in frames."""
    clock, out = Clock(), io.StringIO()
    tally = Tally(clock)
    view = Lines(tally, out, clock)
    for event in (RunStarted("r", "p", 1), StageStarted("r", "s", None), BranchesHeld("r", "g", 8, 3)):
        tally(event)
    clock.now += 10
    view.refresh()
    assert out.getvalue().splitlines() == ["[0/1] s … 10.0 s; g: 8 finished branches wait for branch 3"]
    assert "g: 8 finished branches wait for branch 3" in frame(tally).plain
    tally(BranchesHeld("r", "g", 0, 4))
    assert "wait" not in frame(tally).plain


# -- frames


def drawn(*events, clock=None, **options):
    """The frame after these events, as lines of text."""
    clock = clock or Clock()
    tally = Tally(clock)
    for event in events:
        if isinstance(event, float):
            clock.now += event
        else:
            tally(event)
    return [line.rstrip() for line in frame(tally, **options).plain.split("\n")]


def over(name, status="completed", seconds=0.0, error=None, by=None, branch=None):
    """The events of a stage that is over."""
    return StageStarted("r", name, by, branch), StageFinished("r", name, status, error, seconds)


def test_a_frame_shows_what_is_over_what_runs_and_how_far_the_run_is():
    """Inserted stages are marked; an action that tells how far it is has a bar."""
    assert drawn(
        RunStarted("r", "daily", 3),
        StageStarted("r", "discover", None),
        UnitsInserted("r", "discover", "discover", ("a", "b"), 2),
        StageFinished("r", "discover", "completed", None, 0.25),
        *over("a", seconds=1.5, by="discover/discover"),
        StageStarted("r", "b", "discover/discover"),
        ActionStarted("r", "b", "load", None),
        Progress("r", "b", "load", 3, 12),
        65.0,
    ) == [
        " ✓ discover                        250 ms  inserted 2",
        " ✓ ↳ a                             1.50 s",
        " ⠋ ↳ b › load 3/12              1 min 5 s  ━━━─────────",
        "daily ━━━━━━━━━━━───────────────── 2/5 stages  1 min 5 s, about 1 min 19 s left",
    ]


def test_branches_keep_their_order():
    """Whatever began last in them; more than nine of them, too."""
    lines = drawn(
        RunStarted("r", "p", 3),
        *(StageStarted("r", f"s{number}", None, f"g[{number}]") for number in (10, 2, 1)),
    )
    assert [line.split()[1] for line in lines[:-1]] == ["s1", "s2", "s10"]
    assert lines[0].endswith("g[1]")


def test_a_thousand_stages_are_folded():
    """The last ones are shown, and how many more there are; failures stay in sight."""
    events = [RunStarted("r", "p", 1000), *over("bad", "failed", error=ValueError("no"))]
    for number in range(998):
        events.extend(over(f"s{number}"))
    lines = drawn(*events, StageStarted("r", "last", None))
    assert lines[0] == " … 991 more"
    assert lines[1].split()[:2] == ["✗", "bad"]
    assert lines[1].endswith("ValueError: no")
    assert [line.split()[1] for line in lines[2:9]] == [f"s{number}" for number in range(991, 998)]
    assert len(lines) == 11


def test_a_thousand_branches_are_folded():
    """As many as there is room for."""
    events = [StageStarted("r", f"s{number}", None, f"g[{number}]") for number in range(1000)]
    lines = drawn(RunStarted("r", "p", 1000), *events, height=12)
    assert len(lines) <= 12
    assert lines[-2].strip().endswith("more running")


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8])
def test_a_frame_fits_into_a_small_terminal(height):
    """But for the bar and what is running."""
    events = [event for number in range(30) for event in over(f"s{number}")]
    assert len(drawn(RunStarted("r", "p", 60), *events, StageStarted("r", "x", None), height=height)) <= max(height, 3)


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        ("completed", None, "✓ p completed: 1 stage in 2.00 s"),
        ("failed", ValueError("no"), "✗ p failed: 0 of 1 stage in 2.00 s"),
        ("bailed", None, "⏏ p bailed: 1 stage in 2.00 s"),
        ("suspended", None, "‖ p suspended: 0 of 1 stage in 2.00 s"),
        ("cancelled", KeyboardInterrupt(), "■ p cancelled: 0 of 1 stage in 2.00 s"),
    ],
)
def test_the_last_frame_says_how_it_ended(status, error, expected):
    """With how much was done, and how long it took."""
    lines = drawn(RunStarted("r", "p", 1), *over("s", status, 1.0, error), RunFinished("r", "p", status, error, 2.0))
    assert lines[-1] == expected


def test_long_and_wide_names_are_cut_to_the_columns_they_take():
    """A wide character takes two."""
    from rich.cells import cell_len

    lines = drawn(RunStarted("r", "p", 2), *over("漢字" * 30), *over("x" * 100), width=60)
    assert [cell_len(line[: line.index("0 µs")]) for line in lines[:2]] == [cell_len(" ✓ ") + 30 + 6] * 2
    assert "…" in lines[0]


def test_long_names_are_cut_in_the_middle():
    """Their beginnings and ends tell them apart."""
    lines = drawn(RunStarted("r", "p", 2), *over("copy[a-very-long-name-of-a-table-2024]"), width=40)
    assert lines[0].split()[1] == "copy[a-ver…ble-2024]"


def test_the_time_that_is_left_is_estimated():
    """By the stages that ran: not by those that were restored or skipped; from one second on, and not at the end."""
    clock = Clock()
    tally = Tally(clock)

    def left(*events):
        for event in events:
            tally(event)
        return tally.left

    assert left(RunStarted("r", "p", 10)) is None
    clock.now = 0.5
    assert left(*over("a")) is None, "too early to tell"
    clock.now = 10
    assert left() == 90
    assert left(*over("b", "skipped")) == 80
    assert left(StageFinished("r", "c", "completed", None, 5.0, restored=True)) == 70
    assert left(StageStarted("r", "d", None), ActionStarted("r", "d", "d", None), Progress("r", "d", "d", 1, 1)) == 30
    assert left(StageFinished("r", "d", "completed", None, 5.0)) == 30
    assert left(*(event for name in "efghij" for event in over(name))) is None
    assert left(RunFinished("r", "p", "completed", None, 10.0)) is None


def test_what_does_not_fit_ends_with_dots():
    """A line of an error as well as the last one; what fits exactly is whole."""
    from rich.cells import cell_len

    failed = over("s", "failed", error=ValueError("漢字" * 30))
    lines = drawn(RunStarted("r", "p" * 90, 1), *failed, RunFinished("r", "p" * 90, "failed", None, 2.0), width=60)
    assert all(line.endswith("…") and 58 < cell_len(line) <= 60 for line in lines)
    whole = drawn(*over("s", "failed", error=ValueError("no")), width=80)[0]
    assert drawn(*over("s", "failed", error=ValueError("no")), width=len(whole))[0] == whole
    for width in range(1, 60):
        for glyphs, dots in ((FINE, "…"), (PLAIN, "...")):
            lines = drawn(*over("s", "failed", error=ValueError("n" * 60)), width=width, glyphs=glyphs)
            assert max(map(cell_len, lines)) <= width
            assert width < 3 or lines[0].endswith(dots[0])


def test_signs_are_those_of_what_ran():
    """A stage that was skipped, cancelled, suspended."""
    for status in ("skipped", "cancelled", "suspended", "bailed", "failed", "completed"):
        assert drawn(RunStarted("r", "p", 1), *over("s", status))[0].split()[0] == MARKS[status]


@pytest.mark.parametrize(("scheme", "around"), [("light", ""), ("dark", ""), ("light", "data-jp-theme-light=false")])
def test_a_frame_as_html_can_be_read(tmp_path, scheme, around):
    """In the light and in the dark, each letter as wide as the next."""
    tally = Tally()
    inserts = UnitsInserted("r", "a", "a", ("b",), 1)
    begun = StageStarted("r", "b", None, "g[1]"), Progress("r", "b", "x", 1, 2)
    skipped, failed = over("s", "skipped"), over("f", "failed", error=ValueError("no"))
    for event in (
        RunStarted("r", "p", 5),
        StageStarted("r", "a", None),
        inserts,
        *skipped,
        *failed,
        *over("c"),
        *begun,
    ):
        tally(event)
    page = tmp_path / "progress.html"
    page.write_text(f'<meta charset="utf-8"><body {around} style="font-family:sans-serif">{html(frame(tally))}')
    with started() as browser, Sheet(browser, page, scheme=scheme) as sheet:
        assert sheet.pale() == []
        family = sheet.page.evaluate("getComputedStyle(document.querySelector('pre span')).fontFamily")
        assert family.endswith("monospace")
        assert "g[1]" in sheet.page.locator("pre").inner_text()


def test_a_frame_can_be_drawn_in_plain_letters():
    """For terminals that know no others."""
    events = [RunStarted("r", "p", 2), *over("a"), StageStarted("r", "b", "a/a")]
    assert all(line.isascii() for line in drawn(*events, glyphs=PLAIN))


def test_a_frame_as_html_is_escaped():
    """A stage named like a tag is text."""
    tally = Tally()
    for event in (RunStarted("r", "p", 1), *over("<script>alert(1)</script>")):
        tally(event)
    assert "<script>" not in html(frame(tally))
    assert "&lt;script&gt;" in html(frame(tally))


# -- the terminal


class Screen:
    """A terminal of 90 by 24, by pyte, that shows what is written to a pseudo-terminal."""

    def __init__(self, master):
        self.screen = pyte.Screen(90, 24)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master = master

    def read(self):
        """Take what has been written; False when the other end is closed."""
        try:
            data = os.read(self.master, 65536)
        except OSError:
            return False
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    @property
    def lines(self):
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def is_clean(self):
        """The cursor can be seen, and stands at the beginning of a line."""
        return not self.screen.cursor.hidden and self.screen.cursor.x == 0


@contextmanager
def terminal(monkeypatch):
    """stdout and stderr are a terminal; gives what it shows in the end."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("LINES", "24")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    master, slave = pty.openpty()
    screen = Screen(master)

    def read():
        while screen.read():
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, redirect_stdout(stream), redirect_stderr(stream):
        yield screen
    reader.join(10)
    os.close(master)


def threads():
    """The names of ours that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name == "flowdeco-progress"]


def test_in_a_terminal_the_display_is_live_and_leaves_it_clean(run, monkeypatch):
    """What is printed stands above it; streams, cursor and threads are as they were."""
    seen = []

    @action
    def prints():
        print("said by an action")
        deadline = time.monotonic() + 10
        while b"prints" not in screen.raw and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(threads())

    with terminal(monkeypatch) as screen:
        before = sys.stdout, sys.stderr
        run(pipeline(one([], "a", lambda: [one([], "D")]), prints, name="p"), progress=True)
        assert (sys.stdout, sys.stderr) == before
        print("afterwards")
    assert seen == [["flowdeco-progress"]]
    assert threads() == []
    assert b"\x1b[?25l" in screen.raw
    assert screen.is_clean
    assert screen.lines[0] == "said by an action"
    assert [line.split()[:2] for line in screen.lines[1:4]] == [["✓", "a"], ["✓", "↳"], ["✓", "prints"]]
    assert screen.lines[4].startswith("✓ p completed: 3 stages in ")
    assert screen.lines[5:] == ["afterwards"]


def test_what_is_logged_stands_above_the_display(run, monkeypatch):
    """Also by handlers that held the stream before; they hold it again afterwards, and so do those made meanwhile."""
    logger, later, made = logging.getLogger("test_progress"), logging.getLogger("later"), []

    @action
    def logs(ctx):
        for number in range(3):
            logger.warning("line %d", number)
            print("printed", number)
            deadline, drawn = time.monotonic() + 10, screen.raw.count(b"logs")
            while screen.raw.count(b"logs") == drawn and time.monotonic() < deadline:
                time.sleep(0.01)
        made.append(logging.StreamHandler())
        later.addHandler(made[0])
        ctx.logger.warning("of the run")
        later.warning("later")

    with terminal(monkeypatch) as screen:
        handler = logging.StreamHandler()
        loggers = logger, logging.getLogger("flowdeco.run")
        for each in loggers:
            each.addHandler(handler)
        try:
            run(pipeline(logs, name="p"), progress=True)
            assert [each.stream for each in (handler, *made)] == [sys.stderr, sys.stderr]
            logger.warning("afterwards")
        finally:
            for each in loggers:
                each.removeHandler(handler)
            later.removeHandler(made[0])
    lines = [f"{how} {number}" for number in range(3) for how in ("line", "printed")]
    assert screen.lines[:8] == [*lines, "of the run", "later"]
    assert [line.split()[:2] for line in screen.lines[8:]] == [["✓", "logs"], ["✓", "p"], ["afterwards"]]


@pytest.mark.parametrize("error", [ValueError("the disk is full"), KeyboardInterrupt()])
def test_errors_leave_the_terminal_clean(run, monkeypatch, error):
    """The last frame says what failed."""
    with terminal(monkeypatch) as screen, pytest.raises(type(error)):
        run(pipeline(one([], "a"), failing([], "f", error), one([], "b"), name="p"), progress=True)
    assert screen.is_clean
    assert threads() == []
    sign, status = ("✗", "failed") if isinstance(error, ValueError) else ("■", "cancelled")
    assert screen.lines[-1].startswith(f"{sign} p {status}: 1 of 3 stages in ")
    assert ("the disk is full" in screen.lines[-2]) == (status == "failed")


def test_a_thousand_stages_scroll_nothing_away(run, monkeypatch):
    """The display stays where it is: nothing of it is left in the lines above."""

    @action
    def many():
        return [one([], f"s{number}") for number in range(1000)]

    with terminal(monkeypatch) as screen:
        print("before")
        run(pipeline(many, name="p"), progress=True)
    assert screen.lines[0] == "before"
    assert screen.lines[1] == " … 993 more"
    assert screen.lines[-1].startswith("✓ p completed: 1001 stages in ")
    assert len(screen.lines) == 11


def test_of_two_runs_at_once_one_has_the_screen(monkeypatch):
    """The other one prints lines, above the display."""

    @action
    def nests():
        pipeline(one([], "a"), name="inner").run(progress=True)

    with terminal(monkeypatch) as screen:
        pipeline(nests, name="outer").run(progress=True)
        pipeline(Stage("x"), name="later").run(progress=True)
    assert screen.lines[0] == "inner: 1 stage"
    assert [line.split()[0] for line in screen.lines] == ["inner:", "[1/1]", "inner", "✓", "✓", "✓", "✓"]
    assert screen.is_clean


def test_output_that_goes_to_a_file_stays_there(run, monkeypatch):
    """Only what goes to the terminal is shown above the display."""
    out = io.StringIO()
    with terminal(monkeypatch) as screen, redirect_stdout(out):
        run(action(lambda: print("data"), name="x"), progress=True)
    assert out.getvalue() == "data\n"
    assert "data" not in "\n".join(screen.lines)


def test_a_last_line_without_an_end_is_not_lost(run, monkeypatch):
    """It is printed when the display ends."""
    with terminal(monkeypatch) as screen:
        run(action(lambda: print("no end", end=""), name="x"), progress=True)
    assert screen.lines[0] == "no end"


def test_what_cannot_be_drawn_is_logged_and_the_run_goes_on(run, monkeypatch, caplog):
    """The display is over, not the run."""
    monkeypatch.setattr(flowdeco.show.live.Terminal, "pause", 0.001)
    failed = threading.Event()

    def broken(live):
        failed.set()
        raise ValueError("cannot draw")

    with terminal(monkeypatch) as screen:
        monkeypatch.setattr(flowdeco.show.live.Terminal, "refresh", broken)
        assert run(action(lambda: failed.wait(10), name="x"), progress=True).status == "completed"
    assert screen.is_clean
    assert "the display of its progress has failed" in caplog.text


def test_a_run_that_is_refused_shows_nothing(run, monkeypatch):
    """Nothing has begun."""

    @action
    def needs(what):
        return what

    with terminal(monkeypatch) as screen, pytest.raises(WiringError):
        run(needs, progress=True)
    assert screen.raw == b""
    assert threads() == []


INTERRUPTED = """
import time
from flowdeco import action, pipeline, Stage

@action
def waits():
    time.sleep(30)

pipeline(Stage("a"), waits, Stage("b"), name="p").run(progress=True)
"""


def test_ctrl_c_leaves_the_terminal_clean():
    """In a process of its own, by a real signal; the traceback stands below the display."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", "LINES": "24", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(slave)
    screen = Screen(master)
    while b"waits" not in screen.raw:  # it has been drawn while the action runs
        assert screen.read(), screen.lines
    process.send_signal(signal.SIGINT)
    while screen.read():
        pass
    os.close(master)
    assert process.wait(10) == -signal.SIGINT
    assert screen.is_clean
    (summary,) = [number for number, line in enumerate(screen.lines) if line.startswith("■ p cancelled: 1 of 3")]
    assert screen.lines[summary + 1] == "Traceback (most recent call last):"
    assert "KeyboardInterrupt" in "\n".join(screen.lines[summary + 1 :])


# -- the notebook


def test_in_a_notebook_the_display_stands_in_the_output(tmp_path):
    """As HTML, which is there when the run is over."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from flowdeco import Stage, pipeline\n"
                "_ = pipeline(Stage('a'), Stage('<b>'), name='p').run(progress=True)"
            )
        ]
    )
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    shown = re.sub(r"<[^>]*>", "", output.data["text/html"])
    assert "p completed: 2 stages in" in shown
    assert "&lt;b&gt;" in shown


def test_a_watcher_that_is_closed_twice_does_nothing():
    """Nor one that never began."""
    watching = watcher(True)
    watching.close()
    with redirect_stderr(io.StringIO()) as errors:
        watching(RunStarted("r", "p", 0))
        watching.close()
        watching.close()
    assert errors.getvalue() == "p: 0 stages\n"


def test_progress_is_not_logged(run, caplog, capsys):
    """It is shown, and nothing else."""
    with caplog.at_level(logging.DEBUG, "flowdeco"):
        run(one([], "a"), progress=True)
    assert caplog.records == []


def test_the_picture_in_the_docs_can_be_drawn_again(tmp_path):
    """By its script; it asks for nothing from elsewhere."""
    script = runpy.run_path(str(ROOT / "docs" / "draw_progress.py"))
    drawn = script["draw"](tmp_path / "progress.svg")
    assert "fetch[mirror-2]" in drawn
    assert "3/8" in drawn
    assert "url(" not in drawn.replace("url(#", "")
