"""What closing scopes leaves behind when something goes wrong on the way: layers, records, and a run to resume."""

import pytest

from flowdeco import Stage, action, parallel, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.middleware import atomic, recover

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
