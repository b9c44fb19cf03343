"""OpenTelemetry: a span for each run, stage and action, with the right parents, seen by the SDK's exporter in memory."""

import asyncio
import logging
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import again, failing, flaky, one, step, swallow
from traced import own_span, tells, whose_child

from flowdeco import Bail, Context, Stage, action, parallel, pipeline, stage
from flowdeco.errors import DefinitionError
from flowdeco.executors import COMPANIONS
from flowdeco.observers import otel


def test_each_failed_attempt_is_an_event(traces):
    """Of the span of its step, numbered from 1, before the failure that remains."""
    broken = Stage("s", [failing([], "f", ValueError("no"), use=[again(3)])])
    broken.run(observers=[spans(traces)], check=False)
    failed = traces.named("action f").events
    assert [event.name for event in failed] == ["exception"] * 3
    assert [event.attributes.get("flowdeco.attempt") for event in failed] == [1, 2, None]


class Measured:
    """Where the durations of a test go."""

    def __init__(self):
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self):
        """How many of what was measured, by name and attributes."""
        (resource,) = self.reader.get_metrics_data().resource_metrics
        return {
            (metric.name, metric.unit, *sorted(point.attributes.values())): point.count
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }


def test_durations_are_measured():
    """Of runs, stages and actions that have begun; the stages of a template count together."""

    @stage
    def copy(table):
        @action
        def rows():
            return table

    @action
    def discover():
        return [copy("a"), copy("b")]

    measured = Measured()
    (discover >> Stage("late", [action(lambda: 1, name="a")])).run(
        observers=[otel.metrics(measured.provider)], skip=["late"]
    )
    assert measured.points() == {
        ("flowdeco.run.duration", "s", "completed", "pipeline"): 1,
        ("flowdeco.stage.duration", "s", "completed", "discover"): 1,
        ("flowdeco.stage.duration", "s", "completed", "copy"): 2,
        ("flowdeco.action.duration", "s", "completed", "discover", "discover"): 1,
        ("flowdeco.action.duration", "s", "completed", "copy", "rows"): 2,
    }


def test_restored_stages_are_not_measured_again():
    """They took their time before the run was resumed."""
    measured = Measured()
    flow = Stage("first", [action(lambda: 1, name="a")]) >> Stage("s", [failing([], "f", ValueError("no"))])
    run = flow.run(check=False)
    flow.resume(run, observers=[otel.metrics(measured.provider)], check=False)
    assert [key[0] for key in measured.points() if "first" in key] == []


def test_metrics_take_a_meter_provider():
    """A message for anything else."""
    with pytest.raises(DefinitionError, match="takes a meter provider"):
        otel.metrics(3)


class Traces:
    """Where the spans of a test go."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def finished(self):
        return self.exporter.get_finished_spans()

    def named(self, name):
        """The only span of that name."""
        (found,) = [span for span in self.finished if span.name == name]
        return found

    def tree(self):
        """Name of every span, with the names of those around it, in the order of their beginning."""
        by_id = {span.context.span_id: span for span in self.finished}

        def path(span):
            around = by_id.get(span.parent.span_id) if span.parent is not None else None
            return ([] if around is None else path(around)) + [span.name]

        return [" > ".join(path(span)) for span in sorted(self.finished, key=lambda span: span.start_time)]


@pytest.fixture
def traces():
    return Traces()


def spans(traces):
    return otel.spans(traces.provider)


def test_a_run_its_stages_and_actions_have_spans_one_inside_the_other(run, traces):
    """The dynamic ones, too."""
    flow = pipeline(one([], "a", lambda: [one([], "D")]), Stage("s", [step([], "x"), step([], "y")]), name="p")
    run(flow, observers=[spans(traces)])
    assert traces.tree() == [
        "run p",
        "run p > stage a",
        "run p > stage a > action a",
        "run p > stage D",
        "run p > stage D > action D",
        "run p > stage s",
        "run p > stage s > action x",
        "run p > stage s > action y",
    ]


def test_spans_say_what_they_are_of(run, traces):
    """Attributes: run, pipeline, stage, action, status, who inserted it."""
    run(pipeline(one([], "a", lambda: [one([], "D")]), name="p"), observers=[spans(traces)], run_id="r-1")
    assert dict(traces.named("run p").attributes) == {
        "flowdeco.run": "r-1",
        "flowdeco.pipeline": "p",
        "flowdeco.status": "completed",
    }
    assert dict(traces.named("stage D").attributes) == {
        "flowdeco.run": "r-1",
        "flowdeco.stage": "D",
        "flowdeco.inserted_by": "a/a",
        "flowdeco.status": "completed",
    }
    assert dict(traces.named("action D").attributes) == {
        "flowdeco.run": "r-1",
        "flowdeco.stage": "D",
        "flowdeco.action": "D",
        "flowdeco.status": "completed",
    }
    assert traces.named("run p").instrumentation_scope.name == "flowdeco"


def test_a_failure_is_recorded_on_every_span_that_it_passes(run, traces):
    """With its type and message; what is not passed is not failed."""
    flow = pipeline(one([], "fine"), failing([], "f", ValueError("no")), name="p")
    run(flow, observers=[spans(traces)], check=False)
    for name in ("action f", "stage f", "run p"):
        span = traces.named(name)
        assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "ValueError: no")
        (event,) = [event for event in span.events if event.name == "exception"]
        assert (event.attributes["exception.type"], event.attributes["exception.message"]) == ("ValueError", "no")
        assert span.attributes["flowdeco.status"] == "failed"
    assert traces.named("stage fine").status.status_code is trace.StatusCode.UNSET


def test_a_recovered_failure_is_one_of_its_action_only(run, traces):
    """And says that it was recovered."""
    run(Stage("s", [failing([], "f", ValueError("no"), use=[swallow])]), observers=[spans(traces)])
    span = traces.named("action f")
    assert (span.status.status_code, span.attributes["flowdeco.recovered"]) == (trace.StatusCode.ERROR, True)
    assert traces.named("stage s").status.status_code is trace.StatusCode.UNSET


def test_several_attempts_are_one_span(run, traces):
    """Which says how many they were."""
    run(Stage("s", [flaky([], "f", 2)], use=[again(3)]), observers=[spans(traces)])
    assert traces.named("stage s").attributes["flowdeco.attempts"] == 3
    run(flaky([], "g", 1, use=[again(3)]), observers=[spans(traces)])
    assert traces.named("action g").attributes["flowdeco.attempts"] == 2


def test_signals_are_no_errors(run, traces):
    """A run that bails is as it should be."""
    run(failing([], "b", Bail("enough")), observers=[spans(traces)])
    assert {span.status.status_code for span in traces.finished} == {trace.StatusCode.UNSET}
    assert traces.named("action b").attributes["flowdeco.status"] == "bailed"


def test_the_callers_span_is_the_parent(traces):
    """That of `run`, and of `arun`."""
    with traces.tracer.start_as_current_span("mine"):
        one([], "a").run(observers=[spans(traces)])
    assert traces.tree()[:2] == ["mine", "mine > run pipeline"]

    async def main():
        with traces.tracer.start_as_current_span("async mine"):
            await one([], "a").arun(observers=[spans(traces)])

    asyncio.run(main())
    assert "async mine > run pipeline > stage a > action a" in traces.tree()


def test_what_an_action_opens_is_a_child_of_its_span(run, traces):
    """In a plain function, in a coroutine, with a timeout, in a generator."""

    def opens():
        with traces.tracer.start_as_current_span("inner"):
            return 1

    async def opens_later():
        await asyncio.sleep(0)
        with traces.tracer.start_as_current_span("inner"):
            await asyncio.sleep(0)

    def yields():
        with traces.tracer.start_as_current_span("inner"):
            yield Stage("D")

    async def yields_later():
        with traces.tracer.start_as_current_span("inner"):
            yield Stage("E")

    kinds = [
        action(opens, name="plain"),
        action(opens, name="timed", timeout=10),
        action(opens_later, name="async"),
        action(opens_later, name="async timed", timeout=10),
        action(yields, name="generator"),
        action(yields_later, name="async generator"),
    ]
    run(Stage("s", kinds), observers=[spans(traces)])
    assert [path for path in traces.tree() if path.endswith("inner")] == [
        f"run pipeline > stage s > action {each.name} > inner" for each in kinds
    ]


@pytest.mark.parametrize("make", [lambda: None, lambda: ThreadPoolExecutor(2)], ids=["own threads", "a pool"])
def test_parents_are_right_across_threads(run, traces, make):
    """Branches of the same name, at the same time: each has what it opened itself."""

    @action
    def who(ctx: Context):
        with traces.tracer.start_as_current_span("inner") as span:
            span.set_attribute("from", ctx.stage.data["branch"])

    branches = [Stage("same", [who, step([], "then")], data={"branch": number}) for number in range(8)]
    executor = make()
    run(parallel(*branches, name="g", merge={"branch": min}), observers=[spans(traces)], executor=executor)
    if executor is not None:
        executor.shutdown()
    by_id = {span.context.span_id: span for span in traces.finished}
    found = []
    for span in traces.finished:
        if span.name == "inner":
            of_action = by_id[span.parent.span_id]
            of_stage = by_id[of_action.parent.span_id]
            assert (of_action.name, of_stage.name) == ("action who", "stage same")
            found.append((span.attributes["from"], of_stage.attributes["flowdeco.branch"]))
    assert sorted(found) == [(number, f"g[{number}]") for number in range(8)]
    stages = [span for span in traces.finished if span.name == "stage same"]
    assert len({span.context.span_id for span in stages}) == 8
    for span in stages:
        inside = [s.name for s in traces.finished if s.parent and s.parent.span_id == span.context.span_id]
        assert sorted(inside) == ["action then", "action who"]
    assert {by_id[span.parent.span_id].name for span in stages} == {"run pipeline"}


def test_coroutines_in_branches_have_their_own_parents(run, traces):
    """They take turns in one event loop."""

    @action
    async def opens(ctx: Context):
        with traces.tracer.start_as_current_span("inner"):
            for _ in range(3):
                await asyncio.sleep(0)

    run(parallel(*(Stage(f"s{n}", [opens]) for n in range(4))), observers=[spans(traces)])
    assert sorted(path for path in traces.tree() if path.endswith("inner")) == [
        f"run pipeline > stage s{n} > action opens > inner" for n in range(4)
    ]


def test_the_trace_goes_along_into_other_processes(traces):
    """What an action opens there is a child of its span here; without a provider there is a parent, at least."""
    fork = multiprocessing.get_context("forkserver")
    flow = pipeline(parallel(whose_child, own_span, whose_child), name="p")
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        run = flow.run(observers=[spans(traces)], executor=executor)
    trace_id = traces.named("run p").context.trace_id
    mine = [s.context.span_id for s in traces.finished if s.name == "action whose_child"]
    assert sorted(run["parents"]) == sorted((trace_id, span_id, True) for span_id in mine)
    assert run["spans"] == [(trace_id, traces.named("action own_span").context.span_id)]


def test_what_an_action_tells_is_an_event_of_its_span_wherever_it_runs(traces):
    """From another process it comes when the call is over."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as executor:
        parallel(tells).run(observers=[spans(traces)], executor=executor)
    (event,) = traces.named("action tells").events
    assert (event.name, dict(event.attributes)) == ("told", {"pages": 3})


def test_what_happens_to_units_is_an_event_of_the_span_in_which_it_happens(run, traces):
    """Inserted, skipped."""
    flow = pipeline(one([], "a", lambda: [one([], "D"), one([], "E")]), Stage("s", [step([], "x")]), name="p")
    run(flow, observers=[spans(traces)], skip=["D", "s/x"])
    (inserted,) = traces.named("action a").events
    assert (inserted.name, inserted.attributes["flowdeco.units"]) == ("units inserted", ("D", "E"))
    (skipped,) = traces.named("run p").events
    assert (skipped.name, dict(skipped.attributes)) == ("stage skipped", {"flowdeco.stage": "D"})
    (skipped,) = traces.named("stage s").events
    assert (skipped.name, dict(skipped.attributes)) == ("action skipped", {"flowdeco.action": "x"})
    assert "stage D" not in [span.name for span in traces.finished]


def test_a_message_may_hold_anything(run, traces):
    """What OpenTelemetry does not take is described."""

    @action
    def emits(ctx: Context):
        ctx.emit("told", rows=[1, 2], fine=True)

    run(emits, observers=[spans(traces)])
    (event,) = traces.named("action emits").events
    assert dict(event.attributes) == {"rows": "[1, 2]", "fine": True}


def test_a_middleware_that_opens_a_span_gets_it_in_between(run, traces):
    """Around a stage: between the stage and its actions. Around an action: between that and what it opens."""

    def opens(call):
        with traces.tracer.start_as_current_span(f"layer of {call.level}"):
            yield

    def body():
        traces.tracer.start_span("inner").end()

    run(Stage("s", [action(body, name="x", use=[opens])], use=[opens]), observers=[spans(traces)], use=[opens])
    parents = "run pipeline > layer of pipeline > stage s > layer of stage > action x > layer of action"
    assert traces.tree()[-1] == f"{parents} > inner"


def test_a_run_inside_an_action_is_a_child_of_it(run, traces):
    """With the same observer."""
    observer = spans(traces)

    @action
    def outer():
        pipeline(one([], "a"), name="inner").run(observers=[observer])

    run(outer, observers=[observer])
    assert traces.tree()[-1] == "run pipeline > stage outer > action outer > run inner > stage a > action a"


def test_afterwards_everything_is_as_it_was(run, traces):
    """Also after a failure, and after Ctrl-C: no span of ours is the current one."""
    before = otel_context.get_current()
    observer = spans(traces)
    for error in (None, ValueError("no"), KeyboardInterrupt()):
        flow = Stage("s", [failing([], "f", error) if error else step([], "f")])
        try:
            flow.run(observers=[observer])
        except (ValueError, KeyboardInterrupt):
            pass
        assert otel_context.get_current() == before
        assert COMPANIONS.get() == ()
    assert len([span for span in traces.finished if span.end_time is None]) == 0
    assert len(traces.finished) == 9
    assert [s.attributes["flowdeco.status"] for s in traces.finished[-3:]] == ["cancelled"] * 3
    run(one([], "a"), observers=[observer])
    assert traces.tree()[-3:] == ["run pipeline", "run pipeline > stage a", "run pipeline > stage a > action a"]


def test_a_cancelled_run_ends_its_spans(traces):
    """From outside, in the middle of an action."""

    @action
    async def waits():
        await asyncio.sleep(10)

    async def main():
        task = asyncio.create_task(waits.arun(observers=[spans(traces)]))
        await asyncio.sleep(0.02)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert [(s.name, s.attributes["flowdeco.status"]) for s in traces.finished] == [
        ("action waits", "cancelled"),
        ("stage waits", "cancelled"),
        ("run pipeline", "cancelled"),
    ]


def test_two_observers_do_not_disturb_each_other(run):
    """Each has its own provider."""
    first, second = Traces(), Traces()
    run(Stage("s", [step([], "x"), step([], "y")]), observers=[spans(first), spans(second)])
    for each in (first, second):
        assert sorted(span.name for span in each.finished) == ["action x", "action y", "run pipeline", "stage s"]
    assert otel_context.get_current() == {}


def test_concurrent_runs_have_one_trace_each(traces):
    """With one observer for all."""
    observer = spans(traces)

    @action
    async def waits(n: int):
        await asyncio.sleep(0.005)

    async def main():
        await asyncio.gather(*(waits.arun({"n": n}, observers=[observer], run_id=f"r{n}") for n in range(5)))

    asyncio.run(main())
    by_trace = {}
    for span in traces.finished:
        by_trace.setdefault(span.context.trace_id, set()).add(span.attributes["flowdeco.run"])
    assert sorted(by_trace.values(), key=min) == [{f"r{n}"} for n in range(5)]


def test_what_is_restored_has_no_span(traces):
    """It was not done now."""
    fails = [True]

    @action
    def fragile():
        if fails:
            fails.clear()
            raise ValueError("no")

    flow = one([], "a") >> Stage("s", [step([], "x"), fragile]) >> one([], "b")
    broken = flow.run(check=False)
    flow.resume(broken, observers=[spans(traces)])
    assert traces.tree() == [
        "run pipeline",
        "run pipeline > stage s",
        "run pipeline > stage s > action fragile",
        "run pipeline > stage b",
        "run pipeline > stage b > action b",
    ]


def test_nothing_goes_wrong_where_opentelemetry_does_nothing(run, caplog):
    """Without an SDK, the API makes spans that record nothing."""
    with caplog.at_level(logging.WARNING):
        run(one([], "a"), observers=[otel.spans()])
    assert caplog.records == []


def test_without_opentelemetry_the_extra_is_named(monkeypatch):
    """At once, where the observer is made."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(DefinitionError, match=r"pip install 'flowdeco\[opentelemetry\]'"):
        otel.spans()


def test_importing_the_module_does_not_import_opentelemetry():
    """Only using it does."""
    script = "import sys, flowdeco.observers.otel; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_a_worker_without_opentelemetry_does_the_call_all_the_same(monkeypatch):
    """There is just no trace there."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with otel.remote_parent({"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}):
        pass


def test_what_is_no_tracer_provider_is_refused(caplog):
    """So is an event: the call was forgotten, and each event is given to `spans` itself."""
    with pytest.raises(DefinitionError, match=r"not the str 'x': write observers=\[otel.spans\(\)\]"):
        otel.spans("x")
    step([], "a").run(observers=[otel.spans])
    assert "spans() takes a tracer provider, or nothing, not the RunStarted" in caplog.text
    assert "write observers=[otel.spans()]" in caplog.text
