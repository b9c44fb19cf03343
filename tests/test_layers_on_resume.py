"""Middleware that fails, waits or skips as a run is resumed: what had run inside it is neither lost nor called again."""

import pytest

from flowdeco import Run, Sleep, Stage, action, durable, parallel, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.middleware import atomic, retry

CALLS = []


class Now:
    """What the middleware does at present."""

    does = "passes"
    works = False


@pytest.fixture(autouse=True)
def fresh():
    CALLS.clear()
    Now.does, Now.works = "passes", False


@pytest.fixture(params=["in memory", "journal"])
def legs(request):
    """Run and resume a pipeline, in memory or with a journal."""
    journal = MemoryJournal() if request.param == "journal" else None

    def leg(flow, run=None, **options):
        if journal is None:
            return flow.run(check=False, **options) if run is None else flow.resume(run, check=False, **options)
        if run is None:
            return flow.run(journal=journal, check=False, **options)
        return flow.resume(run.id, journal=journal, check=False, **options)

    leg.journal = journal
    return leg


@action
def one():
    CALLS.append("one")
    return 1


@action
def two():
    CALLS.append("two")
    if not Now.works:
        raise ValueError
    return 2


def connection(call):
    if Now.does == "fails":
        raise ConnectionError
    if Now.does == "waits":
        yield Sleep(1000)
    if Now.does != "skips":
        yield


INSIDE = {
    "stage": Stage("in", [one, two], use=[connection]),
    "pipeline": pipeline(one, two, name="in", use=[connection]),
    "use_stages": pipeline(Stage("in", [one, two]), name="in", use_stages=[connection]),
    "in a pipeline": pipeline(pipeline(one, two, name="inner", timeout=60), name="in", use=[connection]),
    "in a branch": parallel(pipeline(one, two, name="in", use=[connection]), name="g"),
    "around a group": pipeline(parallel(pipeline(one, two), name="g"), name="in", use=[connection]),
}


@pytest.mark.parametrize("does", ["fails", "waits"])
@pytest.mark.parametrize("flow", INSIDE.values(), ids=INSIDE)
def test_a_layer_that_does_not_let_a_resume_in_drops_nothing(legs, flow, does):
    """The leg after that continues where the one before had ended."""
    if does == "waits" and legs.journal is None:
        pytest.skip("in memory, it sleeps")
    run = legs(pipeline(flow))
    assert CALLS == ["one", "two"]
    for _ in range(2):
        Now.does = does
        run = legs(pipeline(flow), run, suspend_after=0)
        assert run.status == ("failed" if does == "fails" else "suspended")
        Now.does, Now.works = "passes", False
    assert CALLS == ["one", "two"]
    if does == "waits":
        return  # it is not due
    Now.works = True
    assert legs(pipeline(flow), run).status == "completed"
    assert CALLS == ["one", "two", "two"]


@pytest.mark.parametrize("does", ["fails", "waits"])
def test_nor_does_one_that_is_given_to_the_resume(legs, does):
    """It is around the whole run."""
    if does == "waits" and legs.journal is None:
        pytest.skip("in memory, it sleeps")
    run = legs(one >> two)
    Now.does = does
    run = legs(one >> two, run, use=[connection], suspend_after=0)
    Now.does, Now.works = "passes", True
    assert legs(one >> two, run).status == "completed"
    assert CALLS == ["one", "two", "two"]


def test_a_pipeline_that_is_skipped_as_it_is_resumed_keeps_what_had_run(legs):
    """What had ended is restored; a group has not ended before all of its branches have, and is skipped as a whole."""
    flow = pipeline(INSIDE["pipeline"], parallel(action(lambda: 3, name="three"), name="g"))
    run = legs(flow)
    Now.does = "skips"
    run = legs(flow, run)
    assert [(each.name, each.status) for each in run.stages] == [
        ("one", "completed"), ("two", "skipped"), ("three", "completed"),
    ]  # fmt: skip
    assert run["one"] == 1


@pytest.mark.parametrize("make", [pipeline, lambda *units, **options: Stage("p", units, use=options["use"])])
def test_what_one_attempt_skips_runs_in_the_next(legs, make):
    """A skip holds for its attempt."""
    attempts = []

    def gate(call):
        attempts.append(call)
        if len(attempts) > 1:
            yield

    def flaky(call):
        yield
        if len(attempts) == 1:
            raise OSError

    run: Run = legs(pipeline(make(one, name="p", use=[retry(attempts=2, on=OSError), flaky, gate])))
    assert (run.status, CALLS, run["one"]) == ("completed", ["one"], 1)


@pytest.mark.parametrize("level", ["stage", "pipeline"])
@pytest.mark.parametrize("around", [False, True], ids=["its own", "around it"])
@pytest.mark.parametrize("raises", [False, True], ids=["skips", "raises"])
def test_writes_of_layers_before_one_that_does_not_enter_are_kept(legs, level, around, raises):
    """A journal has them as the run does, whether the layer skips, or raises what another one recovers."""

    def recovers(call):
        try:
            yield
        except OSError:
            pass

    def outer(call):
        call.store["outer"] = 1
        yield

    def inner(call):
        call.store["inner"] = 1
        if raises:
            raise OSError
        return
        yield

    use = [outer, inner] if around else [recovers, outer, inner]
    unit = Stage("in", [one], use=use) if level == "stage" else pipeline(one, name="in", use=use)
    flow = pipeline(pipeline(unit, name="around", use=[recovers]) if around else unit, two)
    run = legs(flow)
    assert dict(run.store) == {"outer": 1, "inner": 1}
    assert legs.journal is None or durable.read(legs.journal, run.id).store == run.store
    Now.works = True
    assert dict(legs(flow, run).store) == {"outer": 1, "inner": 1, "two": 2}


def guard(call):
    call.store.append("log", "entered")
    yield


WITHIN = {
    "stage": lambda *use: Stage("in", [one, two], use=[*use, connection]),
    "pipeline": lambda *use: pipeline(one, two, name="in", use=[*use, connection]),
    "use_stages": lambda *use: pipeline(Stage("in", [one, two], use=[connection]), name="in", use_stages=use),
    "a stage inside": lambda *use: pipeline(Stage("s", [one, two], use=use), name="in", use=[connection]),
    "in a branch": lambda *use: parallel(Stage("in", [one, two], use=[*use, connection]), name="g"),
}


@pytest.mark.parametrize("outer", [(), (guard,), (guard, retry(on=KeyError)), (retry(on=ValueError, wait=0), guard)])
@pytest.mark.parametrize("make", WITHIN.values(), ids=WITHIN)
def test_what_had_been_done_inside_stays_in_the_store(legs, make, outer):
    """The layers around the one that fails were entered, too: what they had written is written once."""
    flow = pipeline(make(*outer))
    run = legs(flow)
    attempts = len(CALLS)
    Now.works = True
    for _ in range(2):
        Now.does = "fails"
        run = legs(flow, run)
        assert run.status == "failed"
    Now.does = "passes"
    run = legs(flow, run)
    assert run.status == "completed"
    assert dict(run.store) == {"one": 1, "two": 2, **({"log": ["entered"]} if guard in outer else {})}
    assert CALLS[attempts:] == ["two"]
    assert [each.status for each in run.stages[-1].actions] == ["completed"] * len(run.stages[-1].actions)


def test_another_attempt_after_that_returns_to_where_the_first_one_had_begun(legs):
    """The marks of the layers are those of the leg that had entered them."""

    @action(collect="items")
    def adds():
        CALLS.append("adds")
        return len(CALLS)

    @action
    def third():
        if Now.works and "third" not in CALLS:
            CALLS.append("third")
            raise KeyError
        return 3

    flow = pipeline(Stage("s", [adds, two, third], use=[retry(on=KeyError, wait=0), connection]))
    run = legs(flow)
    Now.does, Now.works = "fails", True
    run = legs(flow, run)
    Now.does = "passes"
    run = legs(flow, run)
    assert run.status == "completed"
    assert len(run["items"]) == 1


def test_an_atomic_stage_that_cannot_be_entered_again_begins_anew(legs):
    """As any failed one does."""
    flow = pipeline(Stage("s", [one, two], use=[atomic, connection]))
    run = legs(flow)
    Now.does, Now.works = "fails", True
    run = legs(flow, run)
    Now.does = "passes"
    run = legs(flow, run)
    assert (run.status, CALLS) == ("completed", ["one", "two", "one", "two"])
    assert dict(run.store) == {"one": 1, "two": 2}
