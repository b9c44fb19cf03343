"""Messages show the value that is wrong: cut short, in one line, and whatever its `repr` does."""

import inspect

import pytest

from flowdeco import (
    Context,
    Key,
    Pipeline,
    Stage,
    Store,
    action,
    durable,
    middleware,
    parallel,
    pipeline,
    stage,
    stream,
)
from flowdeco.durable import MemoryJournal, SqliteJournal
from flowdeco.errors import FlowdecoError
from flowdeco.model.runnable import TO_RUN

LONGEST = 600


class Endless:
    """As a data frame or a large model shows itself."""

    def __repr__(self):
        return "column\n" * 5_000


class Unprintable:
    """As an object whose connection is closed."""

    def __repr__(self):
        raise ConnectionError("the repr has failed")


class Incomparable:
    """As an array of more than one element."""

    __hash__ = None

    def __bool__(self, other=None):
        raise ValueError("the truth value is ambiguous")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__


VALUES = [
    Endless(),
    Unprintable(),
    Incomparable(),
    [Endless()],
    [Unprintable()],
    list(range(5_000)),
    {"key": Endless()},
    {Unprintable(): 1},
    "text " * 1_000,
]


@action
def one():
    return 1


@action
def asks(ctx: Context, call):
    call(ctx)


@action
def returns(value):
    return value


def layer(value):
    def yielding(call):
        yield value

    return yielding


def each_option(where, names, call):
    """Calls with one option each: those of a signature that have names, or these."""
    if callable(names):
        kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [name for name, each in inspect.signature(names).parameters.items() if each.kind in kinds]
    return {f"{where}({name}=)": lambda value, name=name: call(**{name: value}) for name in names}


CALLS = {
    **each_option("action", action, lambda **given: action(one, **given)),
    **each_option(
        "action in a stage", action, lambda **given: stage(lambda: None if action(**given)(lambda: 1) else None)
    ),
    **each_option("Stage", Stage, lambda **given: Stage(**{"name": "s", **given})),
    **each_option("stage", stage, lambda **given: stage(**given)(lambda: None if action(one) else None)),
    **each_option("pipeline", pipeline, lambda **given: pipeline(one, **given)),
    **each_option("parallel", parallel, lambda **given: parallel(one, **given)),
    **each_option("run", TO_RUN, lambda **given: one.run(**given)),
    **each_option("retry", middleware.retry, lambda **given: middleware.retry(**{"on": OSError, **given})),
    **each_option("recover", middleware.recover, lambda **given: middleware.recover(**{"on": OSError, **given})),
    **each_option("SqliteJournal", SqliteJournal, lambda **given: SqliteJournal(**{"path": "runs.db", **given})),
    "@action": action,
    "@stage": stage,
    "pipeline": pipeline,
    "Pipeline": Pipeline,
    "parallel": parallel,
    "stream": stream,
    ">>": lambda value: one >> value,
    "Key type": lambda value: Key("key", value),
    "Key frozen": lambda value: Key("key", int, frozen=value),
    "Store": Store,
    "a key": lambda value: Store({value: 1} if isinstance(value, str) else [(value, 1)]),
    "a typed key": lambda value: Store().__setitem__(Key("key", int), value),
    "inputs": lambda value: one.run(value),
    "resume": lambda value: one.resume(value),
    "resume, with a journal": lambda value: one.resume(value, journal=MemoryJournal()),
    "from_stage": lambda value: one.resume("run", journal=MemoryJournal(), from_stage=value),
    "durable.due": lambda value: durable.due(MemoryJournal(), now=value),
    "durable.purge": lambda value: durable.purge(MemoryJournal(), value),
    "durable.purge(status=)": lambda value: durable.purge(MemoryJournal(), 0, status=value),
    "on_change": lambda value: one.resume("run", journal=MemoryJournal(), on_change=value),
    "ctx.sleep": lambda value: asks.run({"call": lambda ctx: ctx.sleep(value)}),
    "ctx.sleep_until": lambda value: asks.run({"call": lambda ctx: ctx.sleep_until(value)}),
    "ctx.insert": lambda value: asks.run({"call": lambda ctx: ctx.insert(value)}),
    "ctx.disable": lambda value: asks.run({"call": lambda ctx: ctx.disable(value)}),
    "a returned value": lambda value: returns.run({"value": (one, value)}),
    "a yielded value": lambda value: pipeline(one, use=[layer(value)]).run(),
    "a yielded branch": lambda value: parallel(stream(lambda: [value], name="branches")).run(),
    "a conflict": lambda value: parallel(
        *(returns.with_options(name=str(at), returns="key").bind(value=each) for at, each in enumerate((value, 1)))
    ).run(),
}


@pytest.mark.parametrize("value", VALUES, ids=[f"{type(each).__name__} {at}" for at, each in enumerate(VALUES)])
@pytest.mark.parametrize("where", CALLS)
def test_a_value_that_is_wrong_is_shown_in_one_short_line(where, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        CALLS[where](value)
    except FlowdecoError as error:
        message = str(error)
        assert "the repr has failed" not in message
        assert len(message.replace(value if type(value) is str else "\0", "")) < LONGEST
        assert "column\ncolumn" not in message
