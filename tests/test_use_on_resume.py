"""A resume may come with other middleware of the caller than the run, or without: its steps are still the same."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Context, Sleep, Stage, Suspend, action, durable, parallel, pipeline, stage
from flowdeco.durable import MemoryJournal
from flowdeco.errors import CodeChangedError
from flowdeco.middleware import atomic, retry

CALLS = []


class Clock:
    """A wall clock that a test sets."""

    now = 2_000_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Each test has its own calls and its own time."""
    CALLS.clear()
    Clock.now = 2_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


def plain(call):
    yield


def other(call):
    yield {"unused": 1}


def writing(call):
    call.store["begun"] = "by the layer"
    yield


@action
def pre() -> int:
    CALLS.append("pre")
    return 1


@action
def ask(ctx: Context) -> str:
    return ctx.wait_for("go", timeout=1000, default="late")


@action
def nap(ctx: Context) -> str:
    ctx.sleep(1000)
    return "slept"


@stage
def review(name: str):
    @action(collect="verdicts")
    def verdict(ctx: Context):
        return ctx.wait_for(name)


FLOWS = {
    "the first step asks": pipeline(ask),
    "a later step asks": pre >> ask,
    "a pipeline with options asks": pipeline(pipeline(pre, ask, name="inner", use=[plain])),
    "own layers": pipeline(pre, ask, name="own", use=[other], timeout=10**6),
    "one step": pipeline(pipeline(pre, ask, name="inner", use=[atomic])),
}
CHANGES = [
    ([plain], []),
    ([], [plain]),
    ([plain], [other, plain]),
    ([plain, other], [other]),
    ([writing], []),
    ([plain], [writing]),
]


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize(("first", "then"), CHANGES)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "given"])
def test_an_answer_is_delivered_whatever_the_resume_uses(flow, first, then, recorded):
    """Also the answer that `flowdeco wake` delivers, which resumes without any."""
    journal = MemoryJournal()
    flow.run(journal=journal, run_id="r", use=first)
    if recorded:
        durable.answer(journal, "r", {"go": "yes"})
    run = flow.resume("r", None if recorded else {"go": "yes"}, journal=journal, use=then)
    assert (run.status, run["ask"]) == ("completed", "yes")
    assert CALLS.count("pre") == ("pre" in run.store) + (flow is FLOWS["one step"])


@pytest.mark.parametrize("first", [[plain], [], [plain, other]])
def test_questions_of_branches_are_answered_whatever_the_resume_uses(first):
    """The ids of branches follow from the number of their group."""
    flow, journal = parallel(review("a"), review("b")), MemoryJournal()
    flow.run(journal=journal, run_id="r", use=first)
    assert flow.resume("r", {"b": 2}, journal=journal, use=[other]).reason == "waiting for 'a'"
    assert flow.resume("r", {"a": 1}, journal=journal)["verdicts"] == [1, 2]


@pytest.mark.parametrize("waits", [nap, ask], ids=["sleep", "deadline"])
@pytest.mark.parametrize(("first", "then"), CHANGES)
def test_due_times_stay(waits, first, then):
    """Nothing begins anew."""
    journal = MemoryJournal()
    waits.run(journal=journal, run_id="r", use=first)
    [before] = durable.runs(journal)
    assert waits.resume("r", journal=journal, use=then).status == "suspended"
    [after] = durable.runs(journal)
    assert after.due == before.due is not None


def test_the_layers_of_the_pipeline_keep_what_they_counted(clock):
    """Their sleeps, attempts and time: layers are matched from the inside."""

    def sleeping(call):
        yield Sleep(1000)
        yield

    @action
    def fails():
        CALLS.append("fails")
        raise OSError

    slept = pipeline(pre, name="slept", use=[sleeping])
    again = retry(on=OSError, attempts=2, wait=500, wait_max=500, jitter=False)
    tried = pipeline(fails, name="tried", use=[again, plain])
    journal = MemoryJournal()
    due = slept.run(journal=journal, run_id="s", use=[plain]).due
    tried.run(journal=journal, run_id="t", use=[plain])
    assert slept.resume("s", journal=journal).due == due
    clock.now += 1001
    assert slept.resume("s", journal=journal, use=[plain, plain]).status == "completed"
    assert tried.resume("t", journal=journal, check=False).status == "failed"
    assert CALLS == ["fails", "pre", "fails"]


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "in a journal"])
def test_writes_on_entry_stay_and_those_of_new_layers_are_added(memory):
    """A layer that is gone, or replaced, has done what it did; one more writes as at a start, and the journal notes it."""

    def also(call):
        call.store["also"] = 1
        yield

    kept = {} if memory else {"journal": MemoryJournal()}
    flow = pre >> ask
    run = flow.run(use=[writing], run_id="r", **kept)
    run = flow.resume(run, use=[also, plain], **kept)
    run = flow.resume(run, {"go": "yes"}, use=[], **kept)
    assert dict(run.store) == {"begun": "by the layer", "also": 1, "pre": 1, "ask": "yes"}
    if not memory:
        assert dict(durable.read(kept["journal"], "r").store) == dict(run.store)


def test_in_memory_a_resume_keeps_the_middleware_unless_it_brings_other():
    """An empty list is other middleware; leaving `use` out keeps that of the run."""
    seen = []

    def named(name):
        def layer(call):
            seen.append(name)
            yield

        return layer

    run = ask.run(use=[named("first")])
    run = ask.resume(run)
    run = ask.resume(run, use=[named("second")])
    run = ask.resume(run, use=[])
    assert ask.resume(run, {"go": 1})["ask"] == 1
    assert seen == ["first", "first", "second"]


# The law.


def layer(name, writes):
    def wraps(call):
        if writes:
            call.store[f"by.{name}"] = name
        yield {f"value.{name}": name}

    return wraps


LAYERS = st.lists(st.builds(layer, st.sampled_from("abc"), st.booleans()), max_size=3)


@action
def counted(name: str, ctx: Context):
    CALLS.append(name)
    ctx.store.append("log", name)


@action
def asking(name: str, ctx: Context):
    ctx.store.append("log", ctx.wait_for(name))


def units(depth):
    """Draw parts of flows; each of their actions appends its name, or its answer, to one list."""
    names = st.integers(0, 10**9).map(str)
    parts = names.flatmap(
        lambda name: st.sampled_from([counted, asking]).map(
            lambda part: part.bind(name=name).with_options(name=f"a{name}")
        )
    )
    if depth == 0:
        return parts
    inner = st.lists(units(depth - 1), min_size=1, max_size=3, unique_by=lambda unit: unit.name)
    return parts | st.builds(lambda of, use, name: pipeline(*of, use=use, name=f"p{name}"), inner, LAYERS, names)


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(units(2), min_size=1, max_size=4, unique_by=lambda unit: unit.name), st.lists(LAYERS, min_size=1))
def test_steps_do_not_depend_on_the_middleware_of_the_caller(parts, uses):
    """The model is the order of the actions: each is called once, and each answer is given once."""
    CALLS.clear()
    flow, journal, legs = pipeline(*parts), MemoryJournal(), 1
    run = flow.run(journal=journal, run_id="r", use=uses[0])
    while run.status == "suspended":
        key = run.waits[0].key
        durable.answer(journal, "r", {key: key})
        run = flow.resume("r", journal=journal, use=uses[legs % len(uses)])
        legs += 1
    names = [each.name for each in run.stages]
    assert [f"a{name}" for name in run["log"]] == names
    assert legs == 1 + len(names) - len(CALLS)


# Another pipeline.


@action
def stops():
    raise Suspend("stopped")


WAITING = [
    (
        ask,
        pre,
        "this looks like a different pipeline: the run began with stage 'ask', this one begins with stage 'pre'",
    ),
    (nap, pre, "this looks like a different pipeline"),
    (stops, pre, "this looks like a different pipeline"),
    (ask, pre >> ask, "stage 'pre' comes where the run had stage 'ask'"),
    (pre >> ask, pre, "the run ends where it had stage 'ask'"),
    (ask, pipeline(), "the run ends where it had stage 'ask'"),
    (ask, pipeline(pipeline(ask, name="inner", use=[plain])), "pipeline 'inner' comes where the run had stage 'ask'"),
    (Stage("s", [pre, ask]), Stage("s", [pre]), "the run ends where it had action"),
    (Stage("s", [ask]), Stage("s", [pre, ask]), "action s/pre comes where the run had s/ask"),
    (
        parallel(review("a"), review("b")),
        parallel(review("a")),
        "parallel group 'parallel' has another number of branches",
    ),
]


@pytest.mark.parametrize(
    ("was", "now", "message", "memory"),
    [(*each, memory) for each in WAITING for memory in (True, False) if not (memory and each[0] is nap)],
)
def test_a_waiting_step_is_not_dropped_for_another_one(was, now, message, memory):
    """Somebody may have been asked: the resume is refused, and the run still waits."""
    kept = {} if memory else {"journal": MemoryJournal()}
    run = pipeline(was, name="p").run(run_id="r", **kept)
    with pytest.raises(CodeChangedError, match=message):
        pipeline(now, name="p").resume(run, {"go": "yes"}, **kept)
    if not memory:
        assert durable.read(kept["journal"], "r").reason == run.reason
        assert pipeline(now, name="p").resume("r", {"go": 1, "a": 1}, on_change="ignore", **kept).error is None


def writing_too(call):
    call.store["begun too"] = "by the layer"
    yield


@pytest.mark.parametrize("use", [[], [writing], [writing_too], [plain, writing_too], [writing, writing_too]])
def test_the_writes_of_layers_that_a_run_has_lost_stay(use):
    """Whichever of them are left: later steps may have read them."""
    journal = MemoryJournal()
    flow = pipeline(pre, ask)
    flow.run(journal=journal, run_id="r", use=[writing, writing_too])
    run = flow.resume("r", {"go": "yes"}, journal=journal, use=use)
    assert (run["begun"], run["begun too"], run["ask"]) == ("by the layer", "by the layer", "yes")
