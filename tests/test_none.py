"""None as a result: stored where the annotation has it (`-> T | None`), in every way in which an action is run."""

from collections.abc import AsyncIterator, Awaitable, Generator, Iterator

import pytest

from flowdeco import Context, Key, Stage, action, parallel, pipeline, stage
from flowdeco.durable import JsonCodec, MemoryJournal, PickleCodec
from flowdeco.errors import MissingInputError, StoreTypeError
from flowdeco.executors import serial
from flowdeco.middleware import recover


@action
def five() -> int:
    """Return data, which stays the result of the run."""
    return 5


@action
def maybe() -> int | None:
    """Return None as data."""
    return None


def around(call):
    """Middleware that does nothing."""
    yield


def supplying_none(call):
    """Middleware that supplies None instead of the action."""
    call.outcome = None
    return
    yield


def skipping(call):
    """Middleware that supplies nothing."""
    return
    yield


def replacing(call):
    """Middleware that replaces a result by None."""
    yield
    call.outcome = None


def swallowing(call):
    """Middleware that recovers, and supplies nothing."""
    try:
        yield
    except ValueError:
        pass


@action(returns="asked")
def asking(ctx: Context) -> str | None:
    """Take the long way."""
    ctx.store["written"] = 1


@action
async def awaited() -> int | None:
    """Return None from a coroutine."""
    return None


@action
def awaiting() -> Awaitable[int | None]:
    """Return a coroutine."""
    return awaited()


@action
def generated() -> Generator[Stage, None, int | None]:
    """Return None at the end of a generator."""
    yield Stage("inserted")


@action(returns=Key("typed", int | None))
def typed() -> int | None:
    """Store under a typed key."""
    return None


@action(collect="many")
def collected() -> int | None:
    """Append None."""
    return None


@action(collect="many", returns="last")
def both() -> int | None:
    """Append and store."""
    return None


def returning_three() -> int | None:
    """Return data, for middleware to replace."""
    return 3


def failing() -> int | None:
    """Fail, for middleware to recover."""
    raise ValueError


@stage
def local(kind: str) -> None:
    """A template with a local result."""

    @action
    def found() -> int | None:
        return None

    @action(returns=f"found.{kind}")
    def shared(found: int | None) -> list[int | None]:
        return [found]


STORED = [
    (maybe, {"maybe": None}),
    (asking, {"asked": None, "written": 1}),
    (awaited, {"awaited": None}),
    (awaiting, {"awaiting": None}),
    (generated, {"generated": None}),
    (typed, {"typed": None}),
    (collected >> collected, {"many": [None, None]}),
    (both, {"many": [None], "last": None}),
    (maybe.with_options(use=[around]), {"maybe": None}),
    (Stage("s", [maybe], use_actions=[around, around]), {"maybe": None}),
    (action(use=[supplying_none])(returning_three), {"returning_three": None}),
    (action(use=[replacing])(returning_three), {"returning_three": None}),
    (action(use=[recover(on=ValueError)])(failing), {"failing": None}),
    (parallel(maybe, five >> maybe), {"maybe": None, "five": 5}),
    (parallel(collected, collected, five), {"many": [None, None], "five": 5}),
]


@action
def silent():
    """Return None without an annotation."""


@action
def nothing() -> None:
    """Return nothing."""


@action
def no_units() -> Stage | None:
    """Insert nothing."""
    return None


@action(returns=("low", "high"))
def unpacked() -> tuple[int, int] | None:
    """Return nothing to unpack."""
    return None


@action(returns=None)
def discarded() -> int | None:
    """Return None to be discarded."""
    return None


@action
def generated_nothing() -> Iterator[Stage]:
    """Yield nothing."""
    return
    yield


@action
async def generated_nothing_async() -> AsyncIterator[Stage]:
    """Yield nothing."""
    return
    yield


NOT_STORED = [
    (silent, {}),
    (nothing, {}),
    (no_units, {}),
    (unpacked, {}),
    (discarded, {}),
    (generated_nothing, {}),
    (generated_nothing_async, {}),
    (unpacked.with_options(collect="many"), {"many": [None]}),
    (no_units.with_options(collect="many"), {}),
    (action(use=[skipping])(returning_three), {}),
    (action(use=[swallowing])(failing), {}),
    (silent.with_options(use=[around]), {}),
]

UNITS = pytest.mark.parametrize(("unit", "expected"), STORED + NOT_STORED)


@UNITS
def test_none_is_stored_where_the_annotation_has_it(run, unit, expected):
    """Otherwise it is nothing; either way, it is not the result of the run."""
    finished = run(five >> unit)
    assert dict(finished.store) == {"five": 5, **expected}
    assert finished.result == 5


@UNITS
@pytest.mark.parametrize("codec", [PickleCodec(), JsonCodec()], ids=["pickle", "json"])
def test_a_resume_restores_it(run, unit, expected, codec):
    """With every codec; the result of the run is restored as it was."""
    failures = [RuntimeError()]

    @action
    def fail_once() -> None:
        if failures:
            raise failures.pop()

    flow, journal = pipeline(five, unit, fail_once), MemoryJournal(codec)
    before = run(flow, journal=journal, check=False)
    finished = flow.resume(before.id, journal=journal)
    assert dict(finished.store) == {"five": 5, **expected}
    assert finished.result == 5
    assert all(record.restored for record in finished.stages if record.name != "fail_once")


def test_it_comes_back_from_an_executor(run):
    """As from the calling thread."""
    with serial() as executor:
        finished = run(parallel(maybe, collected, five), executor=executor)
    assert dict(finished.store) == {"maybe": None, "many": [None], "five": 5}


def test_a_local_result_may_be_none(run):
    """A later action of the stage reads it."""
    assert dict(run(local("x")).store) == {"found.x": [None]}


def test_collected_results_line_up_with_what_they_are_of(run):
    """A None stands in its place."""
    # apache/airflow#40321, apache/airflow#49737

    @stage
    def lookup(name: str) -> None:
        @action(collect="found")
        def find() -> int | None:
            return {"ada": 1, "eve": 3}.get(name)

    assert run(lookup("ada") >> lookup("bob") >> lookup("eve"))["found"] == [1, None, 3]
    assert run(parallel(*map(lookup, ("ada", "bob", "eve"))))["found"] == [1, None, 3]


def test_paging_ends_with_the_token(run):
    """A loop whose action returns None the last time ends."""
    pages = {None: "one", "one": "two", "two": None}
    turns = []

    @action(returns="token")
    def fetch(token: str | None = None) -> str | None:
        turns.append(token)
        return pages[token]

    @action
    def again(token: str | None) -> Stage | None:
        return paging if token and len(turns) < 9 else None

    paging = Stage("paging", [fetch, again])
    run(paging)
    assert turns == [None, "one", "two"]


def test_a_typed_key_that_has_no_none_refuses_it(run):
    """The key and the annotation contradict each other."""

    @action(returns=Key("count", int))
    def count() -> int | None:
        return None

    with pytest.raises(StoreTypeError, match="'count' is declared as int"):
        run(count)


def test_a_missing_input_names_the_annotation_that_would_have_stored_none(run):
    """In its note on the action that returned None."""

    @action
    def count() -> int:
        return None

    @action
    def read(count: int) -> int:
        return count

    with pytest.raises(MissingInputError) as raised:
        run(count >> read)
    assert "`-> T | None`" in "".join(raised.value.__notes__)
