"""What is shipped for the tests of others: the runner with its clock, the calls it records, and `assert_ran`."""

import asyncio
import contextvars
import threading
import time

import pytest

from flowdeco import Context, Run, Sleep, Stage, action, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal
from flowdeco.errors import ActionTimeout, DefinitionError
from flowdeco.middleware import retry
from flowdeco.testing import Call, Clock, FlowRunner, assert_ran


@pytest.fixture
def runner():
    return FlowRunner()


@pytest.fixture(autouse=True)
def _in_no_time():
    """Whatever is waited for here takes hours by the runner's clock, and none by any other."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30


def waiting(seconds):
    """Middleware that waits before the inside."""

    def wait(call):
        yield Sleep(seconds)
        yield

    return wait


# -- the clock


def test_a_retry_with_hours_of_waiting_takes_no_time(runner):
    """The waits are known, and the records have the times of the clock."""
    attempts = []

    @action(use=[retry(on=OSError, attempts=4, wait=600, wait_max=3600, jitter=False)])
    def fetch(url: str) -> str:
        attempts.append(url)
        if len(attempts) < 4:
            raise OSError("offline")
        return "page"

    run = runner.run(fetch, {"url": "u"})
    assert (run["fetch"], runner.slept, runner.clock.now) == ("page", [600, 1200, 2400], 4200)
    assert (run.elapsed, run.stages[0].actions[0].attempts) == (4200, 4)
    assert [(call.inputs, type(call.raised)) for call in runner.calls] == [
        *[({"url": "u"}, OSError)] * 3,
        ({"url": "u"}, type(None)),
    ]


def test_a_coroutine_sleeps_and_times_out_by_the_clock(runner):
    """So does whatever else it does with time in its event loop."""

    @action(timeout=60)
    async def slow() -> int:
        await asyncio.sleep(3600)
        return 1

    @action(timeout=7200)
    async def patient() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(60)
        return asyncio.get_running_loop().time() - began

    assert runner.run(patient)["patient"] == 3630
    run = runner.run(slow, check=False)
    assert (type(run.error), run.elapsed) == (ActionTimeout, 60)


def test_a_sync_action_times_out_when_the_clock_was_advanced(runner):
    """The call itself is not given up: it ends, and is too late."""

    @action(timeout=60)
    def slow(seconds: float) -> int:
        runner.clock.sleep(seconds)
        return 1

    assert runner.run(slow, {"seconds": 60})["slow"] == 1
    run = runner.run(slow, {"seconds": 61}, check=False)
    assert (type(run.error), str(run.error)) == (ActionTimeout, "action 'slow' took longer than its timeout of 60 s")
    assert isinstance(runner.calls[-1].raised, ActionTimeout)
    run = runner.run(parallel(slow, Stage("other")), {"seconds": 61}, check=False)
    assert type(run.error) is ActionTimeout


def test_time_sleep_can_be_replaced_by_the_clock(runner, monkeypatch):
    """By the means of pytest."""
    monkeypatch.setattr(time, "sleep", runner.clock.sleep)

    @action
    def poll() -> None:
        time.sleep(86400)

    assert runner.run(poll).elapsed == 86400


def test_the_clock_does_not_go_back():
    """Nor does it stand for nothing."""
    clock = Clock()
    clock.advance(1.5)
    assert (clock.time(), repr(clock)) == (1.5, "<Clock at 1.5 s>")
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


def test_branches_wait_beside_each_other(runner):
    """The group takes as long as the slowest, and what is over first goes on first."""
    order = []

    def note(name):
        return action(lambda: order.append((name, runner.clock.now)), name=name)

    async def sleeping():
        await asyncio.sleep(20)
        order.append(("asleep", runner.clock.now))

    run = runner.run(
        parallel(
            note("late").with_options(use=[waiting(30)]),
            action(sleeping),
            note("early").with_options(use=[waiting(10)]),
            note("at once"),
        )
    )
    assert order == [("at once", 0), ("early", 10), ("asleep", 20), ("late", 30)]
    assert run.elapsed == 30


def test_a_branch_times_out_while_another_waits(runner):
    """And the group ends then."""

    @action(timeout=5)
    async def slow() -> None:
        await asyncio.sleep(100)

    run = runner.run(parallel(slow, action(lambda: 1, name="one", use=[waiting(50)])), check=False)
    assert (type(run.error), runner.clock.now) == (ActionTimeout, 5)


def test_work_in_threads_takes_the_time_that_it_takes(runner):
    """A timeout does not expire while a thread is at work."""

    @action(timeout=300)
    async def threaded() -> str:
        return await asyncio.to_thread(lambda: time.sleep(0.05) or "done")

    assert (runner.run(threaded)["threaded"], runner.clock.now) == ("done", 0)


def test_background_tasks_of_an_action_go_on_while_middleware_waits(runner):
    """They are in the same event loop."""
    ticks = []

    @action
    async def begin() -> None:
        async def tick():
            while True:
                await asyncio.sleep(10)
                ticks.append(runner.clock.now)

        tasks.append(asyncio.create_task(tick()))

    tasks = []
    runner.run(begin >> action(lambda: None, name="later", use=[waiting(35)]))
    assert ticks == [10, 20, 30]


# -- how it runs


def test_everything_is_called_in_the_calling_thread(runner):
    """One after the other, in branch order."""
    threads = set()

    def note():
        threads.add(threading.get_ident())

    async def anote():
        threads.add(threading.get_ident())

    one, two = action(note, name="one"), action(anote, name="two")
    runner.run(one >> parallel(one, two, one) >> two)
    assert threads == {threading.get_ident()}


def test_it_runs_in_an_async_test():
    """In a thread of its own, since its clock needs an event loop of its own."""

    @action
    async def nap() -> str:
        await asyncio.sleep(3600)
        return "rested"

    @action
    def boom() -> None:
        raise ValueError("no")

    async def test():
        runner = FlowRunner()
        assert runner.run(nap)["nap"] == "rested"
        with pytest.raises(ValueError, match="no"):
            runner.run(boom)

    asyncio.run(test())


def test_a_sync_action_may_run_an_event_loop(runner):
    """None is running where it is called."""

    async def answer():
        return 42

    assert runner.run(action(lambda: asyncio.run(answer()), name="loops")).result == 42


def test_the_options_are_those_of_run(runner):
    """But for those which the runner decides."""
    seen = []
    run = runner.run(
        Stage("a") >> Stage("b"), {"x": 1}, skip=["b"], run_id="one", observers=[seen.append], use=[waiting(5)]
    )
    assert (run.id, run.store["x"], run.stages[1].status, runner.slept) == ("one", 1, "skipped", [5])
    assert type(seen[0]).__name__ == "RunStarted"
    for name in ("executor", "clock"):
        with pytest.raises(DefinitionError, match=f"takes no {name}"):
            runner.run(Stage("a"), **{name: None})
    with pytest.raises(TypeError, match="no option 'skp'. Did you mean 'skip'"):
        runner.run(Stage("a"), skp=[])


def test_a_failure_is_raised_as_ever(runner):
    """With its note; or the run comes back."""

    @action
    def boom() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        runner(boom)
    assert Run.of(caught.value).status == "failed"
    assert runner(boom, check=False).status == "failed"


def test_ctrl_c_is_passed_on(runner):
    """From an action, sync or not, and the run is behind it."""

    @action
    def press() -> None:
        raise KeyboardInterrupt

    @action
    async def apress() -> None:
        await asyncio.sleep(1)
        raise KeyboardInterrupt

    for unit in (press, apress, parallel(press, apress)):
        with pytest.raises(KeyboardInterrupt) as caught:
            runner(unit)
        assert Run.of(caught.value).status == "cancelled"


def test_ctrl_c_reaches_what_is_awaited(runner):
    """Wherever it comes while the event loop waits; what it interrupts can clean up."""
    cleaned = []

    @action
    async def waits() -> None:
        def press():
            raise KeyboardInterrupt

        asyncio.get_running_loop().call_later(60, press)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(5)
            cleaned.append(runner.clock.now)

    for unit in (waits, parallel(waits)):
        with pytest.raises(KeyboardInterrupt) as caught:
            runner(unit)
        assert Run.of(caught.value).status == "cancelled"
    assert cleaned == [65, 130]


def test_a_run_is_resumed(runner):
    """From memory and from a journal."""

    @action
    def gate(ctx: Context) -> int:
        return ctx.wait_for("go")

    run = runner.run(gate)
    assert run.status == "suspended"
    assert runner.resume(gate, run, {"go": 5})["gate"] == 5
    journal = MemoryJournal()
    runner.run(parallel(gate, Stage("x")), journal=journal, run_id="one")
    resumed = runner.resume(parallel(gate, Stage("x")), "one", {"go": 6}, journal=journal)
    assert resumed["gate"] == 6
    assert runner.resume(gate, runner.run(gate, {"go": 1})).status == "completed"


def test_context_variables_and_generators_work_as_ever(runner):
    """What a coroutine sets is seen behind it."""
    variable = contextvars.ContextVar("variable", default=0)

    @action
    async def setting() -> None:
        variable.set(7)

    async def providing(call):
        await asyncio.sleep(1)
        yield {"conn": 3}
        await asyncio.sleep(1)

    @action
    def reading(conn: int) -> int:
        return variable.get() + conn

    async def pages():
        for n in range(2):
            await asyncio.sleep(60)
            yield Stage(f"page[{n}]")

    @action
    def streaming():
        return stream(pages)

    run = runner.run(setting >> Stage("s", [reading], use=[providing]) >> streaming)
    assert (run["reading"], runner.clock.now) == (10, 122)
    assert_ran(run, ["setting", "s", "streaming", "page[*]"])


# -- calls


@stage
def process(kind: str) -> None:
    @action(collect="done")
    def handle(ctx: Context, size: int = 3) -> str:
        return f"{kind}:{size}"


@action
def discover(*, depth: int) -> list[Stage]:
    return [process(kind) for kind in ("a", "b")][:depth]


@action
def report(done: list[str], /) -> str:
    return ", ".join(done)


def test_calls_are_recorded_with_stage_inputs_and_outcome(runner):
    """In the order in which they were made; the context is no input."""
    runner.run(discover >> report, {"depth": 2})
    assert [(c.stage, c.action, c.inputs, c.returned) for c in runner.calls] == [
        ("discover", "discover", {"depth": 2}, [process("a"), process("b")]),
        ("process[a]", "handle", {"size": 3}, "a:3"),
        ("process[b]", "handle", {"size": 3}, "b:3"),
        ("report", "report", {"done": ["a:3", "b:3"]}, "a:3, b:3"),
    ]
    assert runner.calls_of("handle") == runner.calls[1:3]
    assert runner.calls_of("process[b]/handle") == [runner.calls[2]]
    assert repr(runner.calls[1]) == "<process[a]/handle(size=3): 'a:3'>"
    assert runner.calls[1] == Call("process[a]", "handle", {"size": 3})
    assert runner.calls[1] != Call("process[b]", "handle", {"size": 3})
    assert runner.calls[1] != "handle"


def test_calls_in_branches_know_their_stage(runner):
    """Also coroutines, which are called side by side, and second attempts."""
    failed = []

    @action(use=[retry(on=ValueError, attempts=2, wait=5, jitter=False)])
    async def work(ctx: Context) -> str:
        await asyncio.sleep(1)
        if ctx.stage.name not in failed:
            failed.append(ctx.stage.name)
            raise ValueError(ctx.stage.name)
        return ctx.stage.name

    runner.run(parallel(Stage("x", [work.with_options(returns=None)]), Stage("y", [work.with_options(returns=None)])))
    assert [(c.stage, c.returned, str(c.raised or "")) for c in runner.calls] == [
        ("x", None, "x"), ("y", None, "y"), ("x", "x", ""), ("y", "y", ""),
    ]  # fmt: skip
    assert repr(runner.calls[0]) == "<x/work(): raised ValueError('x')>"
    assert sorted(runner.slept) == [5, 5]


def test_what_a_generator_yielded_is_recorded(runner):
    """As a list, and it does what it always does."""

    @action(collect="value")
    def generating():
        yield Stage("a")
        yield Stage("b")
        return 5

    run = runner.run(generating >> parallel(generating))
    assert [c.returned for c in runner.calls] == [[Stage("a"), Stage("b")]] * 2
    assert run["value"] == [5, 5]
    assert_ran(run, ["generating", "a", "b", "generating", "a", "b"])


def test_bound_values_and_methods_are_called_with_what_they_need(runner):
    """Inputs are what the run passes."""

    class Reader:
        @action
        def read(self, path: str) -> str:
            return path.upper()

    runner.run(Reader().read, {"path": "p"})
    runner.run(report.bind(done=["x"]))
    assert [(c.action, c.returned) for c in runner.calls] == [("read", "P"), ("report", "x")]
    assert runner.calls[0].inputs == {"path": "p"}


# -- what ran


def ran(*names, status="completed", **options):
    """A run of stages of these names."""
    return pipeline(*map(Stage, names)).run(**options)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([], []),
        (["discover", "process[a]", "process[b]", "report"], ["discover", "process[*]", "report"]),
        (["p[1]", "p[2]", "p[3]"], ["p[*]", "p[*]"]),
        (["p[1]", "p[2]", "p[3]"], ["p[1]", "*"]),
        (["p[1]", "x", "p[2]"], ["*"]),
        (["p[1]", "x", "p[2]"], ["p[*]", "x", "p[*]"]),
        (["load a to b"], ["load * to *"]),
        (["a*b"], ["a*b"]),
        (["xax", "xbx"], ["x*x"]),
        (["a", "a", "a", "b"], ["*", "a", "b"]),
    ],
)
def test_what_ran_as_expected_passes(names, expected):
    """A `*` stands for any text, and for one or more stages in a row."""
    assert_ran(ran(*names), expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["b", "a"]),
        (["a", "b"], ["a"]),
        (["a"], ["a", "b"]),
        (["discover", "report"], ["discover", "process[*]", "report"]),
        (["process[a]"], ["process[ab]"]),
        (["process[a]"], ["process?a]"]),
        (["processa"], ["process[a]"]),
        (["p[1]"], ["p[*]", "p[*]"]),
        (["ab"], ["ab*b"]),
        (["x"], ["*y*"]),
        ([], ["*"]),
    ],
)
def test_what_did_not_fails(names, expected):
    """Everything but the `*` is literal; and one or more is not none."""
    with pytest.raises(AssertionError):
        assert_ran(ran(*names), expected)


def failure(run, expected):
    with pytest.raises(AssertionError) as caught:
        assert_ran(run, expected)
    return str(caught.value).splitlines()


def test_the_difference_is_shown():
    """What is as expected, what is missing, what is too many; and who inserted that."""
    run = (discover >> report >> Stage("upload")).run({"depth": 2})
    assert failure(run, ["discover", "process[*]", "clean", "report"]) == [
        "other stages ran than expected (- expected, + ran):",
        "    discover",
        "    process[*]  process[a], process[b]",
        "  - clean",
        "    report",
        "  + upload",
        "the run completed",
    ]
    assert failure(run, ["discover", "report", "upload"])[2:4] == [
        "  + process[a]  (inserted by discover/discover)",
        "  + process[b]  (inserted by discover/discover)",
    ]


def test_the_difference_says_why_a_stage_did_not_run():
    """It was skipped, or the run had failed before."""
    assert failure(ran("a", "b", skip=["b"]), ["a", "b"])[2:] == ["  - b  (skipped)", "the run completed"]

    @action
    def boom() -> None:
        raise ValueError("no")

    run = (boom >> Stage("after")).run(check=False, run_id="one")
    assert failure(run, ["boom", "after"]) == [
        "other stages ran than expected (- expected, + ran):",
        "    boom",
        "  - after",
        "the run failed: ValueError: no, in action 'boom' of stage 'boom', pipeline 'pipeline', run 'one'",
    ]
    gate = action(lambda ctx: ctx.wait_for("go"), name="gate")
    assert failure(gate.run(), [])[-1] == "the run suspended: waiting for 'go'"


def test_the_difference_is_the_smallest():
    """A stage that moved is missing once and too many once."""
    assert failure(ran("a", "b", "c", "d"), ["b", "c", "a", "d"])[1:-1] == [
        "  + a", "    b", "    c", "  - a", "    d",
    ]  # fmt: skip


def test_very_many_stages_are_folded():
    """In what matched, and in what is too many."""
    run = ran(*(f"p[{n}]" for n in range(1000)))
    lines = failure(run, ["p[*]", "end"])
    assert lines[1] == "    p[*]  p[0], p[1], p[2], … 996 more, p[999]"
    lines = failure(run, [])
    assert (len(lines), lines[10], lines[11]) == (13, "  + … 990 more", "  + p[999]")


def test_long_runs_are_compared_in_no_time():
    """As long as they agree."""
    names = [f"s{n}" for n in range(3000)]
    assert_ran(ran(*names), names)
    assert len(failure(ran(*names), [*names[:1500], "x", *names[1500:]])) == 11


def test_units_can_be_expected():
    """By their names, as they are."""
    run = (discover >> report).run({"depth": 1})
    assert_ran(run, [discover, process("a"), report])


def test_misuse_is_told():
    """A string is no list, and a number no stage."""
    with pytest.raises(TypeError, match=r"write \['a'\]"):
        assert_ran(ran("a"), "a")
    with pytest.raises(TypeError, match="names of stages, or units, not 3"):
        assert_ran(ran("a"), [3])


# -- what is expected besides names of stages


@stage
def loading(table: str) -> None:
    @action(collect="read")
    def read() -> str:
        return table


def test_pipelines_and_groups_stand_for_the_stages_in_them(runner):
    """Nested ones, too."""
    checks = parallel(loading("a") >> parallel(loading("b"), loading("c")), Stage("d"), name="checks")
    run = runner.run(Stage("first") >> checks)
    assert_ran(run, ["first", checks])
    assert_ran(run, [Stage("first") >> checks])
    with pytest.raises(AssertionError, match=r"- loading\[c\]"):
        assert_ran(run, ["first", loading("a"), loading("c"), "*", "d"])
    for name in ("checks", "parallel"):
        with pytest.raises(AssertionError, match=rf"- {name}  \(a group or pipeline: give its stages, or itself"):
            assert_ran(run, ["first", name])


def test_a_template_is_no_stage(runner):
    """With what to write instead, also where it is given by name; so with the name of an action."""
    run = runner.run(loading("a") >> Stage("b"))
    with pytest.raises(TypeError, match=r"write 'loading\[\*\]' for its stages, or loading\(...\) for one of them"):
        assert_ran(run, [loading, "b"])
    with pytest.raises(AssertionError, match=r"- loading  \(a stage template: write 'loading\[\*\]'\)"):
        assert_ran(run, ["loading", "b"])
    for name in ("read", "loading[a]/read"):
        with pytest.raises(AssertionError, match=r"read  \(an action, and only stages are compared\)"):
            assert_ran(run, ["loading[a]", name, "b"])


def test_much_that_is_as_expected_is_left_out(runner):
    """But for a few lines around what is not."""
    stages = [loading(f"t{n}") for n in range(60)]
    run = runner.run(pipeline(*stages))
    with pytest.raises(AssertionError) as raised:
        assert_ran(run, [*stages[:4], *stages[5:40], *stages[41:]])
    assert str(raised.value).splitlines()[1:-1] == [
        "    loading[t0]", "    loading[t1]", "    loading[t2]", "    loading[t3]", "  + loading[t4]",
        "    loading[t5]", "    loading[t6]", "    loading[t7]",
        "    … 29 as expected",
        "    loading[t37]", "    loading[t38]", "    loading[t39]", "  + loading[t40]",
        "    loading[t41]", "    loading[t42]", "    loading[t43]",
        "    … 16 as expected",
    ]  # fmt: skip


def test_calls_of_what_was_not_called_say_what_was(runner):
    """It is no error that there are none."""
    runner.run(loading("a"))
    none = runner.calls_of("raed")
    assert (none, len(none), none[:1], repr(none)) == ([], 0, [], "<no calls of 'raed'. Did you mean 'read'?>")
    with pytest.raises(IndexError, match="no calls of 'raed'. Did you mean 'read'"):
        none[0]
    with pytest.raises(IndexError, match=r"no calls of 'load/x'. There were calls of: 'loading\[a\]/read'"):
        runner.calls_of("load/x")[0]


def test_things_that_are_no_runs_and_no_units_are_refused_with_what_to_write():
    """By the runner, and by `assert_ran`."""

    @action
    def one():
        return 1

    @stage
    def many(n: int):
        @action
        def f():
            return n

    runner = FlowRunner()
    with pytest.raises(DefinitionError, match="decorate it with @action"):
        runner(lambda: 1)
    with pytest.raises(DefinitionError, match=r"write many\(...\)"):
        runner(many)
    with pytest.raises(DefinitionError, match="not the str 'x'"):
        asyncio.run(runner.arun("x"))
    for wrong in (one, None, runner(one).ran()):
        with pytest.raises(TypeError, match=r"assert_ran takes a run, as flow.run\(\) returns it, not "):
            assert_ran(wrong, ["one"])
    with pytest.raises(TypeError, match=r"assert_ran takes a list of names or units: write \[<Action one>\]"):
        assert_ran(runner(one), one)
    with pytest.raises(TypeError, match="a number of seconds or a timedelta, not '1'"):
        runner.clock.advance("1")
