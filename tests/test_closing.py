"""What closing scopes leaves behind when something goes wrong on the way: layers, records, and a run to resume."""

import asyncio

import pytest

from flowdeco import Context, Stage, action, parallel, pipeline, stream
from flowdeco.durable import MemoryJournal
from flowdeco.engine.reading import read_run
from flowdeco.errors import DefinitionError, WiringError
from flowdeco.middleware import atomic, recover, retry

FAILS = {"now": True}


@action(name="fragile")
def fragile():
    if FAILS["now"]:
        raise RuntimeError("fragile")


@pytest.fixture(autouse=True)
def failing():
    """It fails until a test says otherwise."""
    FAILS["now"] = True


def resumed(flow, *, durable):
    """The run of a flow that has failed, and has been resumed."""
    journal = MemoryJournal() if durable else None
    failed = flow.run(check=False, journal=journal)
    assert failed.status == "failed"
    FAILS["now"] = False
    return flow.resume(failed.id, journal=journal) if durable else flow.resume(failed)


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_groups_in_an_atomic_scope_run_again(durable, nested):
    """What they had written was undone with it."""

    @action(name="a", returns="a")
    def a():
        return 1

    @action(name="b", returns="b")
    def b():
        return 2

    @action(name="total", returns="total")
    def total(a, b):
        return a + b

    flow = pipeline(parallel(a, b), fragile, total, use=[atomic], name="inner")
    run = resumed(pipeline(flow, name="outer") if nested else flow, durable=durable)
    assert dict(run.store) == {"a": 1, "b": 2, "total": 3}


@pytest.mark.parametrize("durable", [False, True])
def test_a_stage_that_is_skipped_at_another_attempt_is_skipped_on_resume(durable):
    """It is not said to have completed at the first one."""
    attempts = []

    def again(call):
        try:
            yield
        except ValueError:
            yield

    def once(call):
        attempts.append(call.attempt)
        if call.attempt == 1:
            yield

    @action(name="boom")
    def boom():
        raise ValueError

    run = resumed(Stage("s", [boom], use=[again, once]) >> fragile, durable=durable)
    assert [(record.name, record.status) for record in run.stages] == [("s", "skipped"), ("fragile", "completed")]
    assert attempts == [1, 2]


@pytest.mark.parametrize("durable", [False, True])
def test_writes_that_were_undone_do_not_come_back(durable):
    """Neither new keys nor new items of lists, whichever layer has written them."""

    def around(call):
        call.store.append("items", 2)
        try:
            yield
        finally:
            call.store.append("items", 4)

    @action(name="first", returns="first")
    def first():
        return 1

    @action(name="item", collect="items")
    def item():
        return 3

    @action(name="bad")
    def bad():
        raise OSError

    flow = Stage("s", [item]) >> Stage("t", [first, item, bad], use=[recover(on=OSError), atomic, around]) >> fragile
    run = resumed(flow, durable=durable)
    assert dict(run.store) == {"items": [3]}


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("around", [[], [atomic]])
def test_an_atomic_stage_may_fail_inside_a_pipeline_that_recovers(durable, around):
    """Its steps have no rows: that is no gap in the journal."""

    @action(name="first", returns="first")
    def first():
        return 1

    @action(name="bad")
    def bad():
        raise OSError

    inner = pipeline(
        Stage("t", [first], use=[atomic]), Stage("u", [first, bad], use=[atomic]), use=[recover(on=OSError), *around]
    )
    run = resumed(inner >> fragile, durable=durable)
    assert dict(run.store) == ({} if around else {"first": 1})
    assert [(record.name, record.status) for record in run.stages] == [
        ("t", "completed"),
        ("u", "failed"),
        ("fragile", "completed"),
    ]


class Unprintable:
    """Cannot be shown in an error."""

    def __repr__(self):
        raise ZeroDivisionError


def yields_at_once(call):
    yield Unprintable()


def yields_after_a_failure(call):
    try:
        yield
    except RuntimeError:
        yield Unprintable()


def yields_after_a_success(call):
    yield
    yield Unprintable()


@pytest.mark.parametrize("layer", [yields_at_once, yields_after_a_failure, yields_after_a_success])
def test_all_layers_are_closed_even_if_closing_one_goes_wrong(layer):
    """In the order in which they were opened, backwards."""
    log = []

    def around(name):
        def layer(call):
            log.append(f"+{name}")
            try:
                yield
            finally:
                log.append(f"-{name}")

        return layer

    FAILS["now"] = layer is yields_after_a_failure
    flow = pipeline(pipeline(Stage("s", [fragile], use=[layer]), use=[around("inner")]), use=[around("outer")])
    run = flow.run(check=False, use=[around("run")])
    assert run.status == "failed"
    assert log == ["+run", "+outer", "+inner", "-inner", "-outer", "-run"]


class Guarded(ValueError):
    """An exception whose attributes cannot be read."""

    def __getattribute__(self, name):
        if name == "__notes__":
            raise ZeroDivisionError
        return super().__getattribute__(name)


def test_an_exception_that_cannot_be_read_is_the_failure_all_the_same():
    """And the action has its record."""

    @action(name="raises")
    def raises():
        raise Guarded

    run = raises.run(check=False)
    assert isinstance(run.error, Guarded)
    assert [record.status for record in run.stages[0].actions] == ["failed"]


# A resume calls streams again: whatever comes of that is not what had been.


WORLD = {}  # seen by the functions of streams: they are called again as they are found by their names


@pytest.fixture(autouse=True)
def world():
    """It is empty when a test begins."""
    WORLD.clear()


async def slow():
    yield Stage("first")
    await asyncio.sleep(WORLD.get("pause", 0))
    yield Stage("second")


def source():
    yield Stage("first")
    if "error" in WORLD:
        raise WORLD["error"]
    yield Stage("second")


def test_cancelling_a_resume_in_a_stream_of_a_completed_group_cancels_it():
    called = []

    @action
    def insert():
        return stream(slow)

    @action
    async def wait(ctx: Context):
        ctx.wait_for("go")
        called.append("wait")

    async def main():
        journal = MemoryJournal()
        flow = parallel(insert, Stage("other")) >> wait
        assert (await flow.arun(journal=journal, run_id="r")).status == "suspended"
        WORLD["pause"] = 5
        task = asyncio.create_task(flow.aresume("r", {"go": 1}, journal=journal))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        WORLD["pause"] = 0
        again = await flow.aresume("r", {"go": 1}, journal=journal)
        assert [record.name for record in again.stages] == ["insert", "first", "second", "other", "wait"]

    asyncio.run(main())
    assert called == ["wait"]


@pytest.mark.parametrize("place", ["group", "pipeline", "pipeline with middleware", "stage with middleware"])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_an_error_of_a_stream_that_is_called_again_ends_the_resume(place, error):
    def passing(call):
        yield

    @action
    def insert():
        return stream(source)

    @action
    def wait(ctx: Context):
        ctx.wait_for("go")

    inside = {
        "group": parallel(insert, Stage("other")),
        "pipeline": pipeline(insert, name="p"),
        "pipeline with middleware": pipeline(insert, name="p", use=[passing]),
        "stage with middleware": pipeline(Stage("s", [insert], use=[passing]), name="p", use=[passing]),
    }[place]
    journal, flow = MemoryJournal(), pipeline(inside, wait, name="o")
    flow.run(journal=journal, run_id="r")
    WORLD["error"] = error
    with pytest.raises(type(error)) as raised:
        flow.resume("r", {"go": 1}, journal=journal)
    assert raised.value is error
    del WORLD["error"]
    assert "second" in [record.name for record in flow.resume("r", {"go": 1}, journal=journal).stages]


def test_a_pipeline_that_was_tried_again_has_one_place():
    tries = []

    @action
    def shaky():
        tries.append(1)
        if len(tries) == 1:
            raise OSError

    @action
    def wait(ctx: Context):
        ctx.wait_for("go")

    inner = pipeline(Stage("a"), shaky, wait, name="inner", tags=["t"])
    flow = pipeline(inner, name="outer", use=[retry(on=OSError, wait=0)])
    journal = MemoryJournal()
    flow.run(journal=journal, run_id="r")
    run = flow.resume("r", {"go": 1}, journal=journal)
    assert len({record.scope.id for record in run.stages}) == 1
    assert len({record.scope.id for record in read_run(journal.read("r"), journal.codec).stages}) == 1


def _skips(call):
    return
    yield


def _catches(call):
    try:
        yield
    except ValueError:
        pass


@pytest.mark.parametrize("layer", [_skips, _catches])
@pytest.mark.parametrize("returns", [Stage, list[Stage], int])
def test_a_layer_need_not_supply_an_outcome(layer, returns):
    def fails():
        raise ValueError

    fails.__annotations__["return"] = returns
    run = action(fails, use=[layer]).run()
    assert (run.status, dict(run.store)) == ("completed", {})


@pytest.mark.parametrize("target", ["action", "stage", "pipeline"])
def test_insertions_of_every_layer_are_checked(target):
    @action
    def noop():
        pass

    def flow(units):
        def inserts(call):
            yield
            call.insert(units)

        use = {target: [inserts]}
        stage = Stage("s", [noop.with_options(use=use.get("action", ()))], use=use.get("stage", ()))
        return pipeline(stage, name="p", use=use.get("pipeline", ()))

    with pytest.raises(DefinitionError, match="cannot be called again on resume"):
        flow(stream([Stage("d")])).run(journal=MemoryJournal())
    needy = Stage("needy", [action(name="needs")(lambda nowhere: None)])
    with pytest.raises(WiringError, match="nowhere"):
        flow(needy).run()


def test_a_pipeline_that_returns_itself_is_not_nested_in_itself():
    turns, entered = iter(range(4)), []

    def counts(call):
        entered.append(call.name)
        yield

    @action
    def again():
        return flow if next(turns, None) is not None else None

    flow = pipeline(Stage("s", [again]), name="p", use_actions=[counts], use_stages=[counts])
    assert flow.run().status == "completed"
    assert entered == ["s", "again"] * 5
