"""Plans, what ran, and diffs: as values, as text, as mermaid."""

import pickle
import re
import runpy
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from shown import EVIL, GROUP, broken, discover, evil, failing, flaky, full, many, ok, process, report, saved, tidy

from flowdeco import (
    Bail,
    Context,
    Run,
    Stage,
    Status,
    Store,
    Suspend,
    action,
    durable,
    parallel,
    pipeline,
    stage,
    stream,
)  # fmt: skip
from flowdeco.durable import SqliteJournal
from flowdeco.middleware import recover, retry
from flowdeco.show.formatting import duration, plural, printable
from flowdeco.show.parts import DEEPEST, walk
from flowdeco.show.run_parts import error_with_members
from flowdeco.show.tree import Collapsed, collapsed, grown

MANY = 1000


def lines(text):
    """The lines, without the space at their ends."""
    return [line.rstrip() for line in str(text).splitlines()]


def where(changes):
    return [change.where for change in changes]


# -- plan


@pytest.mark.parametrize(
    "unit", [discover, report, discover >> report, GROUP], ids=["action", "stage", "pipeline", "group"]
)
def test_every_unit_has_a_plan(unit):
    """Action, stage, pipeline, parallel group."""
    plan = unit.plan()
    assert plan.name == unit.name
    assert str(plan) == plan.text()
    assert plan.mermaid().startswith("flowchart TD\n")
    assert plan.html() == plan._repr_html_()
    assert set(plan._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_a_plan_is_a_value():
    """Equal by content, hashable, picklable, with a repr in one line, and frozen."""
    plan = (discover >> report).plan()
    assert plan == (discover >> report).plan() != (report >> discover).plan()
    assert len({plan, (discover >> report).plan()}) == 1
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert repr(plan) == "<Plan pipeline: 2 stages>"
    with pytest.raises(AttributeError):
        plan.name = "other"


def test_a_plan_as_text():
    """Indented, with what is read → written, tags, and what inserts."""
    assert lines(full().plan()) == [
        "full: 10 stages",
        "discover              inserts units",
        "fetch (parallel)      3 branches, 2 at a time  #net",
        "  ╷ a",
        "  │   a1              writes a1",
        "  │   a2              writes a2",
        "  │ b",
        "  │   b1              writes b1",
        "  │   b2              writes b2",
        "  ╷ discover          inserts units",
        "  ╷ inner (pipeline)",
        "  │   c",
        "  │     c1            writes c1",
        "  │     c2            writes c2",
        "  │   saved           writes saved",
        "report                #reporting",
        "  summary             processed, title? → summary  #words",
        "  mail                reads summary",
        "flaky                 writes flaky",
        "saved                 writes saved",
        "tidy",
        "  sweep               writes sweep",
    ]


def test_nothing_of_the_user_is_run_to_draw_a_plan():
    """No function, no middleware, and no method of a value in stage data or in a bound parameter."""

    class Touchy:
        def __init__(self):
            pass

        def __getattribute__(self, name):
            if name in ("__class__", "__reduce_ex__", "__dict__") or sys_is_copying:
                return object.__getattribute__(self, name)
            raise AssertionError(f"{name} was asked for")

        def __repr__(self):
            raise AssertionError("its repr was asked for")

        __eq__ = __str__ = __len__ = __iter__ = __repr__
        __hash__ = None

    sys_is_copying = True

    def body(x, y=None):
        raise AssertionError("it was called")

    def layer(call):
        raise AssertionError("it was called")
        yield

    unit = Stage("s", [action(body, use=[layer]).bind(x=Touchy())], data={"touchy": Touchy()}, use=[layer])
    flow = pipeline(unit, parallel(unit), use=[layer], use_stages=[layer], use_actions=[layer])
    sys_is_copying = False
    plan = flow.plan()
    assert "body" in plan.text()
    assert "touchy: Touchy" in plan.html() + unit._repr_html_()
    assert plan.mermaid()


def test_ten_thousand_static_stages_are_folded():
    """The first ones are shown, and how many there are."""
    text = pipeline(*[Stage(f"s{number}") for number in range(10_000)]).plan().text()
    assert len(lines(text)) < 80
    assert lines(text)[0] == "pipeline: 10,000 stages"
    assert lines(text)[-1] == "… 9,975 more"


# -- ran


def test_what_ran_as_text(run):
    """In the order of the run, with marks for the status, what was inserted and by whom, errors and attempts."""
    ran = run(full(), skip=["tidy"]).ran()
    shown = [line.replace("full, run", "").split() for line in lines(ran)]
    assert "completed" in shown[0]
    text = str(ran)
    assert "✓ + ├─ process[databases]" in text
    assert "inserted by discover/discover" in text
    assert "3 attempts" in text
    assert "recovered from ValueError: gone" in text
    assert "⊘   tidy" in text
    assert "│ b" in text
    assert "╷ discover" in text


def test_branches_are_those_of_the_run(run):
    """What ran in a branch stands in it, inserted stages and nested pipelines included."""
    ran = run(full()).ran()
    (group,) = [part for part in ran.parts if part.kind == "parallel"]
    assert [[inner.name for inner in branch.parts] for branch in group.parts] == [
        ["a", "b"],
        ["discover", "process[databases]", "process[caches]", "process[servers]"],
        ["inner"],
    ]
    assert [inner.name for inner in group.parts[2].parts[0].parts] == ["c", "saved"]
    assert group.started is not None
    assert group.elapsed > 0


def test_two_runs_of_one_pipeline_in_a_row_are_told_apart():
    """A pipeline that is inserted twice is two pipelines."""
    inner = pipeline(ok("a"), name="inner")

    @action
    def twice():
        return [inner, inner]

    ran = twice.run().ran()
    assert [(part.kind, part.name, len(part.parts)) for part in ran.parts] == [
        ("stage", "twice", 1),
        ("pipeline", "inner", 1),
        ("pipeline", "inner", 1),
    ]
    assert [part.inserted_by for part in ran.parts] == [None, "twice/twice", "twice/twice"]


def test_a_thousand_dynamic_stages_are_folded():
    """Three, and 997 more."""
    ran = (many(MANY) >> report).run().ran()
    assert "… 997 more, process[…]" in ran.text()
    assert "997 more, process[…]" in ran.mermaid()
    assert "997 more, process[…]" in ran.html()
    assert len(lines(ran)) < 20


def test_a_failed_stage_is_never_collapsed():
    """It stands among the thousand, by itself; also a stage that inserted it."""

    @stage
    def deep(number):
        @action(name="work")
        def work() -> None:
            if number == 500:
                raise ValueError("this one")

    @stage
    def outer(number):
        @action(name="insert")
        def insert() -> Stage:
            return deep(number)

    @action
    def burst() -> list[Stage]:
        return [outer(number) for number in range(1000)]

    text = burst.run(check=False).ran().text()
    assert "✓ + ├─ outer[500]" in text
    assert "✗ + │  └─ deep[500]" in text
    assert "… 497 more, outer[…], with 497 below them" in text
    assert "ValueError: this one" in text
    assert "outer[999]" not in text


@stage
def attempt(number):
    """The seventeenth fails at first, and then for good."""

    @action
    def work(ctx: Context):
        if number == 17 and not (ctx.attempt == 2 and ctx.store["again"]):
            raise ValueError("seventeen")

    @action
    def done() -> None: ...


TRIED = [attempt(number) for number in range(40)]
SAVED = [pipeline(unit, use=[recover(on=ValueError)]) for unit in TRIED]


@stage
def outer(number):
    @action
    def insert():
        return [SAVED[number]] if number == 17 else None


def tried_units():
    return iter(TRIED)


@pytest.mark.parametrize(
    ("flow", "again"),
    [
        (parallel(*TRIED, tolerate=1), False),
        (parallel(stream(tried_units), tolerate=1), False),
        (parallel(*SAVED), False),
        (parallel(*(pipeline(parallel(unit, tolerate=1), name="inner") for unit in TRIED)), False),
        (pipeline(*(outer(number) for number in range(40))), False),
        (pipeline(*TRIED, use_actions=[retry(on=ValueError, wait=0)]), True),
    ],
    ids=["tolerated", "streamed", "recovered", "nested", "inserted", "retried"],
)
def test_one_that_was_recovered_or_retried_is_not_collapsed(flow, again):
    """Wherever the failure was: in the row, in a part of it, or in a part that it inserted."""
    ran = flow.run({"again": again}, check=False).ran()
    diff = flow.plan().diff(ran)
    assert ["attempt[17]" in shown for shown in (ran.text(), diff.text(), ran.mermaid(), diff.mermaid())] == [True] * 4
    assert "attempt[39]" not in ran.text()


def test_a_retried_one_is_among_the_first_of_hundreds():
    """Also where no two rows are alike."""
    odd = attempt(17).with_options(name="s170")
    units = [odd if number == 170 else Stage(f"s{number}") for number in range(300)]
    ran = pipeline(*units, use_actions=[retry(on=ValueError, wait=0)]).run({"again": True}).ran()
    assert "s170" in ran.text()
    assert "s171" not in ran.text()


def test_skipped_ones_are_folded_as_well():
    """A thousand of them."""
    text = (many(MANY) >> tidy).run(skip=["process"]).ran().text()
    assert "997 more, process[…]" in text
    assert "skipped" in text


def test_rows_of_which_none_is_like_the_next_are_bounded():
    """Statuses that alternate do not fill the screen."""

    @action
    def insert():
        return [tidy if number % 2 else ok("x") for number in range(1000)]

    ran = insert.run(skip=["tidy"]).ran()
    assert len(lines(ran)) < 400
    assert "more" in ran.text()


def test_a_loop_is_flat():
    """A stage that returns itself ten thousand times is one row of folded stages, not a tower."""
    count = []

    @action
    def again(ctx: Context):
        count.append(1)
        if len(count) < 10_000:
            ctx.insert(loop)

    loop = Stage("loop", [again])
    ran = loop.run().ran()
    assert len(ran.parts) == 10_000
    assert "… 9,997 more, loop" in ran.text()


def test_pipelines_that_are_nested_very_deep_are_cut():
    """A pipeline that inserts itself inside of itself does not become a tower either."""
    count = []

    @action
    def again(ctx: Context):
        count.append(1)
        if len(count) < 200:
            ctx.insert(inner)

    def layer(call):
        yield

    inner = pipeline(Stage("s", [again]), name="inner", use=[layer])
    ran = inner.run().ran()
    assert sum(part.kind == "stage" for part in walk(ran.parts)) == 200
    assert depth_of(ran.parts) <= DEEPEST + 2
    assert ran.text()
    assert ran.mermaid()
    assert ran.html()


def depth_of(parts):
    """How deep parts are nested."""
    return max((1 + depth_of(part.parts) for part in parts), default=0)


def test_a_failing_run_says_what_was_inserted_and_never_reached(run):
    """Units and actions, each with who inserted it."""

    @action
    def more(ctx: Context):
        ctx.insert(process("x"), GROUP)
        ctx.insert(action(name="later")(lambda: None), broken)

    ran = run(Stage("first", [more, saved]), check=False).ran()
    (first, *rest) = ran.parts
    assert [(part.name, part.status.value, part.inserted_by) for part in first.parts] == [
        ("more", "completed", None),
        ("later", "completed", "first/more"),
        ("broken", "failed", "first/more"),
        ("saved", "pending", None),
    ]
    assert [(part.kind, part.name, part.status.value, part.inserted_by) for part in rest] == [
        ("stage", "process[x]", "pending", "first/more"),
        ("parallel", "fetch", "pending", "first/more"),
    ]


def test_what_was_inserted_and_has_come_is_not_said_to_be_missing(run):
    """Of three inserted stages the second fails: the third is missing."""

    @action
    def insert():
        return [process("a"), pipeline(broken, name="p"), process("b")]

    ran = run(insert, check=False).ran()
    assert [(part.name, part.status.value) for part in ran.parts] == [
        ("insert", "completed"),
        ("process[a]", "completed"),
        ("p", "failed"),
        ("process[b]", "pending"),
    ]


def test_history_says_how_many_are_forgotten(run):
    """Those before the ones that are kept; in branches, too."""
    finished = run(many(100) >> parallel(ok("a") >> ok("b"), ok("c")), history=2)
    assert finished.forgotten == 102
    assert "102 before these were dropped" in finished.ran().text()
    assert run(ok("a")).forgotten == 0


def test_stages_whose_records_were_dropped_are_not_said_to_be_missing(run):
    """The diff says that they were dropped; those after the last record were not reached."""
    flow = tidy >> pipeline(ok("a"), ok("b"), name="p", use=[around]) >> ok("c")
    for units, history in ((flow, 1), (flow, 2)):
        diff = units.plan().diff(run(units, history=history))
        assert diff.counts() == {}
        assert f"{4 - history} before these were dropped (history=)" in diff.text()
    diff = (flow >> broken >> report).plan().diff(run(flow >> broken >> report, history=2, check=False))
    assert where(diff.not_reached) == ["report"]
    loop = (many(20) >> report).plan().diff(run(many(20) >> report, history=3))
    assert loop.not_reached == ()
    failing = pipeline(tidy, breaks(20), report)
    assert where(failing.plan().diff(run(failing, history=3, check=False)).not_reached) == ["report"]
    assert many(20).plan().diff(run(many(20), history=3)).not_reached == ()


def around(call):
    yield


def breaks(count):
    @action(name="breaks")
    def insert():
        return [*(process(str(number)) for number in range(count)), broken]

    return insert


def test_units_of_a_running_run_are_pending_and_not_unreached():
    """As those of a run that has ended are."""
    run = Run("one", saved >> tidy, Store())
    run.status = Status.RUNNING
    diff = run.pipeline.plan().diff(run)
    assert diff.counts() == {"pending": 2}
    assert "not reached" not in diff.text() + diff.html()
    run.status = Status.FAILED
    assert run.pipeline.plan().diff(run).counts() == {"not reached": 2}


def test_a_very_long_message_is_cut_and_an_ordinary_one_is_whole():
    """In the row, and below the table."""

    @action
    def fails(text):
        raise ValueError(text)

    assert len(fails.run({"text": "x" * 100_000}, check=False).ran().text()) < 6_000
    assert "(96,012 more characters)" in fails.run({"text": "x" * 100_000}, check=False).ran().text()
    assert "more characters" not in fails.run({"text": "x" * 500 + "\ny"}, check=False).ran().text()


def test_what_ran_is_a_value():
    """Equal by content, hashable, picklable, with a repr in one line."""
    finished = failing().run(check=False)
    ran = finished.ran()
    assert ran == finished.ran()
    assert hash(ran) == hash(finished.ran())
    assert pickle.loads(pickle.dumps(ran)) == ran
    assert repr(ran) == "<Ran failing failed: 7 stages>"


def test_a_run_that_has_not_begun_can_be_shown():
    """There is nothing to see."""
    ran = Run("r1", pipeline(), Store()).ran()
    assert lines(ran) == ["pipeline, run r1: pending in 0 µs, 0 stages"]
    assert ran.html()
    assert ran.mermaid() == "flowchart TD\n"


@pytest.mark.parametrize(("signal", "status"), [(Bail, "bailed"), (Suspend, "suspended")])
def test_the_reason_is_shown(run, signal, status):
    """Of a run that bailed or was suspended."""

    @action
    def stop():
        raise signal("enough for today")

    ran = run(stop >> tidy).ran()
    assert (ran.status, ran.reason) == (status, "enough for today")
    assert "enough for today" in ran.text()
    assert "enough for today" in ran.html()


# -- diff


def test_the_diff_says_what_differs(run):
    """Inserted and by whom, skipped, failed, recovered, retried, not reached."""
    flow = pipeline(discover, flaky(), saved, tidy, broken, report, name="flow")
    diff = flow.plan().diff(run(flow, skip=["tidy"], check=False).ran())
    assert [(c.where, c.by) for c in diff.inserted] == [
        (f"process[{kind}]", "discover/discover") for kind in ("databases", "caches", "servers")
    ]
    assert where(diff.skipped) == ["tidy"]
    assert [(c.where, c.why) for c in diff.failed] == [("broken/broken", "RuntimeError: login failed with local")]
    assert [(c.where, c.why) for c in diff.recovered] == [("saved/saved", "ValueError: gone")]
    assert [(c.where, c.why) for c in diff.retried] == [("flaky/flaky", "3 attempts")]
    assert where(diff.not_reached) == ["report"]
    assert diff.counts() == {"inserted": 3, "retried": 1, "recovered": 1, "skipped": 1, "failed": 1, "not reached": 1}
    assert repr(diff) == "<Diff flow: 3 inserted, 1 retried, 1 recovered, 1 skipped, 1 failed, 1 not reached>"
    assert str(diff.inserted[0]) == "process[databases]: inserted by discover/discover"


def test_a_diff_as_text(run):
    """What ran and what did not, in their places."""
    flow = discover >> tidy >> broken >> report
    finished = run(flow, skip=["tidy/sweep"], check=False, run_id="r1")
    assert lines(flow.plan().diff(finished)) == [
        "pipeline, plan and run r1 (failed): 3 inserted, 1 skipped, 1 failed, 1 not reached",
        "✓   discover",
        "✓ + ├─ process[databases]  inserted by discover/discover",
        "✓   │    handle",
        "✓ + ├─ process[caches]     inserted by discover/discover",
        "✓   │    handle",
        "✓ + └─ process[servers]    inserted by discover/discover",
        "✓        handle",
        "✓   tidy",
        "⊘     sweep                skipped",
        "✗   broken                 RuntimeError: login failed with local",
        "·   report                 not reached",
        "",
        "RuntimeError: login failed with local",
        "  in action 'broken' of stage 'broken', pipeline 'pipeline', run 'r1'",
    ]


def test_a_diff_of_a_run_as_planned_is_false(run):
    """And says so."""
    flow = ok("a") >> parallel(ok("b"), ok("c"))
    diff = flow.plan().diff(run(flow))
    assert not diff
    assert diff.changes == ()
    assert "as planned" in diff.text()
    assert "as planned" in diff.html()
    assert flow.plan().diff(run(flow, skip=["a"]))


def test_the_diff_takes_a_run_as_well():
    """`plan.diff(run)` is `plan.diff(run.ran())`."""
    flow = discover >> report
    finished = flow.run()
    assert flow.plan().diff(finished) == flow.plan().diff(finished.ran())


def test_in_a_group_each_branch_is_compared_with_its_own(run):
    """Also when branches have the same name, and one of them fails."""
    flow = parallel(ok("a") >> tidy, ok("a") >> broken >> report, name="g")
    diff = flow.plan().diff(run(flow, check=False))
    assert where(diff.failed) == ["broken/broken"]
    assert "report" in where(diff.not_reached)
    assert len(diff.parts) == 1


def test_actions_that_were_inserted_skipped_and_not_reached_are_in_the_diff(run):
    """By `stage/action`."""

    @action
    def more():
        return action(name="extra")(lambda: None)

    unit = Stage("s", [more, saved, broken, tidy["sweep"]])
    diff = unit.plan().diff(run(unit, check=False))
    assert [(c.where, c.by) for c in diff.inserted] == [("s/extra", "s/more")]
    assert where(diff.recovered) == ["s/saved"]
    assert where(diff.failed) == ["s/broken"]
    assert where(diff.not_reached) == ["s/sweep"]


def test_a_run_of_something_else_is_not_in_the_plan():
    """What nobody inserted and nobody planned."""
    diff = (ok("a") >> ok("b")).plan().diff((ok("a") >> ok("x")).run())
    assert [(c.where, c.what) for c in diff.changes] == [("x", "not in the plan"), ("b", "not reached")]


def test_skipped_groups_and_pipelines_are_in_their_places(run):
    """A skipped group is in the diff as what it is."""
    flow = ok("x") >> GROUP >> tidy
    finished = run(flow, skip=["fetch"])
    diff = flow.plan().diff(finished)
    assert [part.name for part in diff.parts] == ["x", "fetch", "tidy"]
    assert where(diff.skipped) == ["a", "b", "discover", "c", "saved"]


def test_a_pipeline_skipped_by_its_middleware_was_reached(run, tmp_path):
    """In the diff it is skipped, as if by a selector, also for a run that is read from its journal."""

    def skips(call):
        return
        yield

    flow = ok("x") >> pipeline(ok("a"), parallel(ok("b"), ok("c")), name="p", use=[skips]) >> tidy
    finished = run(flow, journal=tmp_path / "runs.db")
    for each in (finished, durable.read(tmp_path / "runs.db", finished.id)):
        diff = flow.plan().diff(each)
        assert (where(diff.skipped), diff.counts()) == (["a", "b", "c"], {"skipped": 3})
        assert [(part.name, part.status) for part in diff.parts if part.kind == "pipeline"] == [("p", "skipped")]


def test_streams_are_no_gap(run):
    """What comes from a stream was inserted by who returned it."""

    @action
    def pull():
        return stream(process(str(number)) for number in range(3))

    diff = pull.plan().diff(run(pull))
    assert [(c.where, c.by) for c in diff.inserted] == [(f"process[{n}]", "pull/pull") for n in range(3)]


@pytest.mark.parametrize("where_from", ["memory", "journal"])
def test_a_resumed_run_is_whole(run, tmp_path, where_from):
    """What was restored stands in its branch, beside what ran now."""
    journal = tmp_path / "runs.db" if where_from == "journal" else None
    ready = []

    @action
    def fails() -> None:
        if not ready:
            raise ValueError("not ready")

    flow = pipeline(ok("a") >> parallel(ok("b"), fails, name="g", limit=1) >> ok("d"))
    failed = run(flow, check=False, journal=journal)
    assert where(flow.plan().diff(failed).not_reached) == ["d"]
    ready.append(True)
    ran = flow.resume(failed, journal=journal).ran()
    assert [part.name for part in ran.parts] == ["a", "g", "d"]
    assert [[inner.name for inner in branch.parts] for branch in ran.parts[1].parts] == [["b"], ["fails"]]
    assert not flow.plan().diff(ran)


def test_groups_of_exceptions_that_are_nested_very_deep_are_cut(tmp_path):
    """In text, in HTML, on the page and in the line of the command line."""
    from flowdeco.cli.report import describe_error

    error = ValueError("deep")
    for _ in range(2000):
        error = ExceptionGroup("g", [error])

    @action
    def fails():
        raise error

    run = fails.run(check=False)
    assert lines(run.ran())[-2].endswith("… members nested deeper are not shown")
    assert all("ExceptionGroup" in shown for shown in (run.ran().html(), run._repr_html_()))
    assert "nested deeper" in run.to_html(tmp_path / "page.html").read_text()
    assert describe_error(error) == f"{8 * 'g: '}ExceptionGroup: g (1 sub-exception)"


def test_the_members_of_an_exception_group_are_told():
    """Each with its notes, those of a group inside a group as well; not more than one can read."""

    def fails(error, text):
        @action(name="fails")
        def body():
            barrier.wait(10)
            raise error(text)

        return body

    barrier = threading.Barrier(2)
    run = parallel(fails(ValueError, "one"), fails(KeyError, "two"), name="g").run(check=False, run_id="r")
    assert lines(run.ran())[-7:] == [
        "",
        "ExceptionGroup: 2 branches of the parallel group 'g' failed (2 sub-exceptions)",
        "  1. ValueError: one",
        "     in action 'fails' of stage 'fails', pipeline 'pipeline', branch 0 ('fails') of parallel group 'g', run 'r'",
        "  2. KeyError: 'two'",
        "     in action 'fails' of stage 'fails', pipeline 'pipeline', branch 1 ('fails') of parallel group 'g', run 'r'",
        "  in parallel group 'g', pipeline 'pipeline', run 'r'",
    ]
    assert "2. KeyError" in run.ran().html()
    deep = ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError("a\nb")]), *[KeyError(n) for n in range(30)]])
    told = error_with_members(deep).split("\n")
    assert told[:4] == ["ExceptionGroup: outer (31 sub-exceptions)", "  1. ExceptionGroup: inner (1 sub-exception)",
                        "       1. ValueError: a", "          b"]  # fmt: skip
    assert told[-1] == "  … 11 more"


def test_an_unnamed_group_is_not_called_parallel_twice():
    """Its kind says it."""
    assert [line.split("  ")[0] for line in lines(parallel(tidy, saved).plan())[1:2]] == ["parallel"]
    assert "parallel (parallel)" not in parallel(tidy, saved).run().ran().text()
    assert "fetch (parallel)" in GROUP.plan().text()


# -- mermaid


def test_a_plan_as_mermaid():
    """Stages are boxes with their actions, a group and a nested pipeline are subgraphs."""
    assert (
        (discover >> parallel(ok("a") >> ok("b"), ok("c"), name="g")).plan().mermaid()
        == """\
flowchart TD
  n1["discover → units"]
  subgraph n2["g"]
    direction TB  # so that branches, which no arrow joins, stand beside each other
    subgraph n3["branch 0"]
      direction TB
      n4["a<br/>a1<br/>a2"]
      n5["b<br/>b1<br/>b2"]
      n4 --> n5
    end
    n6["c<br/>c1<br/>c2"]
  end
  n1 --> n2
""".replace("  # so that branches, which no arrow joins, stand beside each other", "")
    )


def test_dynamic_stages_are_dashed_in_mermaid():
    """An arrow leads to each from its inserter."""
    drawn = (discover >> broken >> tidy).run(check=False).ran().mermaid()
    assert [f"n1 -.-> n{child}" in drawn for child in (2, 3, 4)] == [True] * 3
    assert "n1 --> n5" in drawn
    assert "class n2,n3,n4 dynamic" in drawn
    assert "class n5 failed" in drawn


@action
def fix() -> None: ...


@action
def check():
    return fix


@action
def checks():
    return [check, fix]


def test_inserted_actions_are_drawn_below_their_inserter():
    """In a stage of which an action was inserted, the actions are nodes, as the stages of a pipeline are."""
    flow = Stage("s", [checks, broken]) >> Stage("t", [fix])
    run = flow.run(check=False)
    drawn, diff = run.ran().mermaid(), flow.plan().diff(run).mermaid()
    expected = """flowchart TD
  subgraph n1["✗ s"]
    direction TB
    n2["✓ checks"]
    n3["✓ check"]
    n4["✓ fix"]
    n3 -.-> n4
    n2 -.-> n3
    n5["✓ fix"]
    n2 -.-> n5
    n6["✗ broken"]
    n2 --> n6
  end
"""
    assert drawn.startswith(expected)
    assert diff.startswith(expected)
    assert "class n3,n4,n5 dynamic" in drawn
    assert "class n1,n6 failed" in drawn


def test_very_many_inserted_actions_are_collapsed_in_mermaid():
    """It draws no more than 500 arrows."""

    @action
    def burst():
        return [fix] * 300

    assert "297 more, fix" in Stage("s", [burst]).run().ran().mermaid()


def test_no_name_means_anything_to_mermaid():
    """Quotes, brackets of other shapes, markup, entities, lists and statements are text."""
    drawn = Stage('1. "x" <b> #35; {y} |z| `w`', [action(name="- end\n--> n1")(lambda: None)]).plan().mermaid()
    assert '"1#46; #34;x#34; #60;b#62; #35;35#59; #123;y#125; #124;z#124; #96;w#96;' in drawn
    assert "#45; end#92;n--#62; n1" in drawn
    assert drawn.count("\n") == 2


# -- names


def test_names_cannot_break_a_line_or_steer_a_terminal():
    """Control characters and those that turn text round are escaped; emoji stay."""
    assert printable("a\nb\x1b[31m\u202e\ud800") == "a\\nb\\x1b[31m\\u202e\\ud800"
    assert printable("👩‍🔬 naïve") == "👩‍🔬 naïve"
    text = Stage("two\nlines\x1b[2J").run().ran().text()
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 µs"),
        (0.0000123, "12 µs"),
        (0.00123, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.123, "123 ms"),
        (0.99999, "1.00 s"),
        (12.34, "12.3 s"),
        (59.99, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3 * 3600 + 1200, "3 h 20 min"),
        (90000, "1 d 1 h"),
        (None, ""),
    ],
)
def test_durations_have_three_digits(seconds, expected):
    """In the unit that fits."""
    assert duration(seconds) == expected


def test_plural_knows_endings():
    """Of stages and branches."""
    assert [plural(1, "stage"), plural(1000, "stage"), plural(2, "branch")] == [
        "1 stage",
        "1,000 stages",
        "2 branches",
    ]


def test_a_message_that_cannot_be_had_is_no_second_failure():
    """An exception whose `__str__` raises is shown all the same."""

    class Odd(Exception):
        def __str__(self):
            raise TypeError

    @action
    def fails():
        raise Odd

    assert "Odd: <its message cannot be read: TypeError>" in fails.run(check=False).ran().text()


def test_middleware_that_skips_or_inserts_is_shown(run):
    """By its own name where it inserts, as skipped where it does not run the inside."""

    def skips(call):
        return
        yield

    def inserts(call):
        call.insert(tidy)
        yield

    flow = Stage("no", [saved], use=[skips]) >> Stage("yes", use=[inserts])
    ran = run(flow).ran()
    assert [(part.name, part.status.value, part.inserted_by) for part in ran.parts] == [
        ("no", "skipped", None),
        ("yes", "completed", None),
        ("tidy", "completed", "yes"),
    ]


def test_collapsing_keeps_the_order_and_loses_nothing():
    """Shown and collapsed nodes are all nodes."""
    nodes = grown((many(50) >> GROUP >> many(20)).run().ran().parts)[0].inserted
    back = []
    for each in collapsed(nodes, 30):
        back.extend(each.nodes if isinstance(each, Collapsed) else (each,))
    assert back == nodes
    assert len(collapsed(nodes, 30)) == 4
    assert collapsed(nodes, 51) == nodes


# -- the insertion tree


@stage
def host(name):
    """It inserts stages by two of its actions."""

    @action
    def tables() -> list[Stage]:
        return [Stage(f"{name}.{number}") for number in range(2)]

    @action
    def checks() -> Stage:
        return Stage(f"check {name}")


@action
def hosts() -> list[Stage]:
    return [host("db"), host("web")]


def test_a_tree_has_each_stage_below_its_inserter(run):
    """On three levels; where a stage has several actions, the one that inserted is named."""
    ran = run(hosts >> tidy).ran()
    assert [re.sub(r" +[\d.]+ [µm]s *", "  ", line).rstrip() for line in lines(ran)[1:]] == [
        "✓   hosts",
        "✓ + ├─ host[db]  inserted by hosts/hosts",
        "✓   │  │ tables",
        "✓   │  │ checks",
        "✓ + │  ├─ db.0  inserted by host[db]/tables",
        "✓ + │  ├─ db.1  inserted by host[db]/tables",
        "✓ + │  └─ check db  inserted by host[db]/checks",
        "✓ + └─ host[web]  inserted by hosts/hosts",
        "✓      │ tables",
        "✓      │ checks",
        "✓ +    ├─ web.0  inserted by host[web]/tables",
        "✓ +    ├─ web.1  inserted by host[web]/tables",
        "✓ +    └─ check web  inserted by host[web]/checks",
        "✓   tidy",
        "✓     sweep",
    ]
    drawn = ran.mermaid()
    assert 'n2 -. "by tables" .-> n3' in drawn
    assert 'n2 -. "by checks" .-> n5' in drawn
    assert "n1 -.-> n6" in drawn
    card = ran.html()
    assert card.count('<div class="fd-tree">') == 3
    assert "+ by checks" in card
    assert "+ by hosts" not in card


def test_thirteen_inserted_stages_are_all_shown():
    """Only thirty of one template are too many; others are collapsed where there are hundreds."""
    assert "more" not in many(29).run().ran().text()
    assert "… 27 more, process[…]" in many(30).run().ran().text()
    assert "more" not in pipeline(*[Stage(f"s{number}") for number in range(200)]).run().ran().text()


def test_templates_that_alternate_are_collapsed_together():
    """Their order stays, and how many there are of each."""

    @action
    def pairs() -> list[Stage]:
        return [made for number in range(50) for made in (process(str(number)), host(str(number)))]

    assert "… 94 more: 47 process[…], 47 host[…], with 141 below them" in pairs.run().ran().text()


def test_mermaid_collapses_from_sixty_nodes_on():
    """Below that, all of them are drawn."""
    assert "more" not in many(57).run().ran().mermaid()
    assert "56 more, process[…]" in many(59).run().ran().mermaid()


def test_two_stages_of_one_name_have_their_own_children():
    """The most recent one is not always the inserter."""
    turns = []

    @action
    def again(ctx: Context):
        turns.append(1)
        return [ctx.stage, Stage("x")] if len(turns) == 1 else []

    (root,) = grown(Stage("s", [again]).run().ran().parts)
    assert [node.part.name for node in root.inserted] == ["s", "x"]


def test_a_loop_with_other_insertions_is_flat(run):
    """A turn has what it inserted below it, and the next turn beside it."""
    turns = []

    @action
    def again(ctx: Context):
        turns.append(1)
        return [Stage(f"x{len(turns)}"), *([ctx.stage] if len(turns) % 3 else [])]

    nodes = grown(run(Stage("s", [again])).ran().parts)
    assert [(node.part.name, [each.part.name for each in node.inserted]) for node in nodes] == [
        ("s", ["x1"]), ("s", ["x2"]), ("s", ["x3"]),
    ]  # fmt: skip
    assert [node.via for node in nodes] == [None, "s/again", "s/again"]


def test_insertions_that_are_nested_a_thousand_deep_are_indented_as_far_as_one_can_read():
    """Each is below the one before, until there is no room."""

    @stage
    def step(number):
        @action(name="go")
        def go() -> Stage | None:
            return step(number + 1) if number < 1000 else None

    ran = step(0).run().ran()
    assert max(len(line) for line in lines(ran)) < 120
    assert "… 982 more, step[…]" in ran.text()
    assert ran.html()
    assert ran.mermaid()


def test_a_forgotten_inserter_is_named(run):
    """Its stages stand at the left, with its name."""
    ran = run(hosts, history=2).ran()
    assert [(node.part.name, node.via) for node in grown(ran.parts)] == [
        ("web.1", "host[web]/tables"), ("check web", "host[web]/checks"),
    ]  # fmt: skip
    assert "inserted by host[web]/tables" in ran.text()


def test_a_group_and_a_pipeline_that_were_inserted_are_below_their_inserter(run):
    """What is in them was inserted with them, as they say once; what that inserts is below it."""

    def layer(call):
        yield

    @action
    def insert():
        return [parallel(hosts, tidy, name="g"), pipeline(hosts, name="p", use=[layer])]

    (root, last) = grown(run(insert >> tidy).ran().parts)
    group, inner = root.inserted
    assert (group.part.name, inner.part.name, last.part.name) == ("g", "p", "tidy")
    (first, second) = grown(group.part.parts, group.part.inserted_by)
    assert [node.via for node in grown(first.part.parts, group.part.inserted_by)] == [None]
    for part in (first.part, inner.part):
        (top,) = grown(part.parts, group.part.inserted_by)
        assert [node.part.name for node in top.inserted] == ["host[db]", "host[web]"]


def test_inserted_actions_are_below_the_action_that_inserted_them(run):
    """Also those that were never reached."""

    @action
    def more():
        return [broken, action(name="later")(lambda: None)]

    (part,) = run(Stage("s", [more, saved]), check=False).ran().parts
    (first, last) = grown(part.parts)
    assert [(node.part.name, str(node.part.status)) for node in first.inserted] == [
        ("broken", "failed"), ("later", "pending"),
    ]  # fmt: skip
    assert (last.part.name, str(last.part.status)) == ("saved", "pending")


def test_a_stream_has_its_stages_below_the_stage_that_returned_it(run):
    """However long it takes."""

    @action
    def pull():
        return stream(host(str(number)) for number in range(2))

    (root,) = grown(run(pull).ran().parts)
    assert [(node.part.name, len(node.inserted)) for node in root.inserted] == [("host[0]", 3), ("host[1]", 3)]


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_a_run_of_a_journal_has_the_same_tree(run, tmp_path, codec):
    """Read without its pipeline, and resumed; restored steps are marked."""
    journal = SqliteJournal(tmp_path / "runs.db", codec=codec)
    flow = hosts_at_home >> parallel(hosts_at_home, Stage("alone"), name="g") >> Stage("wait", [ask])
    run(flow, journal=journal, run_id="one")
    read = durable.read(journal, "one").ran().parts
    assert shape(read) == shape(run(flow).ran().parts)
    resumed = flow.resume("one", {"answer": 1}, journal=journal).ran()
    assert shape(resumed.parts) == shape(read)
    assert [node.part.restored for node in grown(resumed.parts)] == [True, False, False]
    assert "restored" in resumed.text()
    assert "restored" in resumed.html()


def shape(parts, above=None):
    """Names, nested as the tree is."""
    return [
        (node.part.name, shape(node.part.parts, node.part.inserted_by), shape_of(node.inserted))
        for node in grown(parts, above)
    ]


def shape_of(nodes):
    return [(node.part.name, shape_of(node.inserted)) for node in nodes]


@action
def hosts_at_home() -> list[Stage]:
    return [home("db"), home("web")]


@stage
def home(name):
    @action
    def rooms() -> list[Stage]:
        return [room(name, "kitchen"), room(name, "hall")]


@stage
def room(house, name):
    @action
    def clean() -> None: ...


@action
def ask(ctx: Context) -> None:
    ctx.wait_for("answer")


def test_evil_names_are_shown_everywhere():
    """As text, as mermaid, as HTML, without an error."""
    flow = evil()
    diff = flow.plan().diff(flow.run(check=False))
    for shown in (flow.plan(), diff, diff.ran):
        assert EVIL[:9] in shown.text()
        assert "<script>" not in shown.mermaid()
        assert "<script>" not in shown.html()


def test_the_picture_of_the_tree_is_of_a_run(tmp_path):
    """`docs/draw_tree.py` draws it again, and nothing is loaded by it."""
    root = Path(__file__).parents[1]
    drawn = runpy.run_path(str(root / "docs" / "draw_tree.py"))["draw"](tmp_path / "tree.svg")
    assert drawn == (tmp_path / "tree.svg").read_text(encoding="utf-8")
    assert drawn == (root / "docs" / "_static" / "tree.svg").read_text(encoding="utf-8")
    tree = ElementTree.fromstring(drawn)
    names = [each.text for each in tree.iter("{http://www.w3.org/2000/svg}text") if each.text != "✓"]
    assert names[2:] == [
        "discover", "region[eu]", "server[eu-1]", "server[eu-2]", "repair[eu-2]", "region[us]", "server[us-1]", "report",
    ]  # fmt: skip
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}path"))) == 8 + 6
    assert not re.search(r"url\(|href|@import", drawn)
    assert "prefers-reduced-motion" in drawn


def test_a_group_that_was_complete_without_some_branches_is_complete():
    """Those it did not need are cancelled."""
    ended = threading.Event()
    units = [action(name="quick")(ended.set), action(name="slow")(lambda: ended.wait(10) and time.sleep(0.05))]
    run = parallel(*units, enough=1, name="group").run()
    (group,) = run.ran().parts
    assert (run.status, group.status) == ("completed", "completed")
    assert sorted(branch.status for branch in group.parts) == ["cancelled", "completed"]
