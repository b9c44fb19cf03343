"""Options that are not what they should be: an error where they are given, which says what to write."""

import functools
import re
from decimal import Decimal
from fractions import Fraction

import pytest

from flowdeco import Action, Context, Key, Parallel, Pipeline, Stage, Store, action, durable, parallel, pipeline, stage
from flowdeco.durable import SqliteJournal
from flowdeco.errors import DefinitionError, JournalError, ReturnValueError, StoreTypeError
from flowdeco.middleware import cached

HUGE = 10**400


@action
def one():
    return 1


@action
def sleep(ctx: Context, seconds):
    ctx.sleep(seconds)


@action
def sleep_until(ctx: Context, when):
    ctx.sleep_until(when)


class Half:
    """No codec: it has no `decode`."""

    name = "half"

    def encode(self, value, what):
        return b""


REFUSED = {
    "a folder that is no path": (lambda: cached(5), DefinitionError, "the folder of cached(...) is a path, such as"),
    "a file that is no path": (lambda: SqliteJournal(5), JournalError, "the file of a journal is a path, such as"),
    "an entry that is no string": (
        lambda: SqliteJournal("q.db", entry=5),
        JournalError,
        "entry is the entry point of a pipeline, such as 'module:flow', not 5",
    ),
    "a codec that is a number": (
        lambda: SqliteJournal("q.db", codec=5),
        JournalError,
        "codec is 'pickle', 'json' or a Codec, not 5",
    ),
    "a codec that cannot decode": (
        lambda: SqliteJournal("q.db", codec=Half()),
        JournalError,
        "codec is 'pickle', 'json' or a Codec, not <",
    ),
    "a diff with a number": (
        lambda: one.plan().diff(5),
        DefinitionError,
        "diff takes a run, or the view that its ran() returns, not 5",
    ),
    "the history of a number": (
        lambda: durable.history("q.db", 5),
        DefinitionError,
        "a run is named by its id, a string, not by the int 5",
    ),
    "a time that is a string": (
        lambda: durable.due("q.db", now="x"),
        DefinitionError,
        "now is a time in POSIX seconds, as that of time.time(), not 'x'",
    ),
    "an empty id": (
        lambda: one.run(run_id=""),
        DefinitionError,
        "run_id is a non-empty string, or None for a new one, not ''",
    ),
    "an endless sleep": (
        lambda: sleep.run({"seconds": HUGE}),
        DefinitionError,
        "the argument of ctx.sleep is a number of seconds, and 1000",
    ),
    "an unprintable sleep": (
        lambda: sleep.run({"seconds": 1 << 20000}),
        DefinitionError,
        "the argument of ctx.sleep is a number of seconds, and 0x1000",
    ),
    "an infinite sleep": (
        lambda: sleep.run({"seconds": float("inf")}),
        DefinitionError,
        "the argument of ctx.sleep is a number of seconds, and inf of them would end after the year 9999",
    ),
    "no sleep at all": (
        lambda: sleep.run({"seconds": float("nan")}),
        DefinitionError,
        "the argument of ctx.sleep is a number of seconds that is not negative, or a timedelta, not nan",
    ),
    "a time that never comes": (
        lambda: sleep_until.run({"when": HUGE}),
        DefinitionError,
        "ctx.sleep_until takes POSIX",
    ),
    "a time that never was": (
        lambda: sleep_until.run({"when": -HUGE}),
        DefinitionError,
        "ctx.sleep_until takes an aware datetime or POSIX seconds, not -1000",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_where_it_is_given(tmp_path, monkeypatch, what):
    """With the class of error of its neighbours, and without a trace in the folder."""
    monkeypatch.chdir(tmp_path)
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_repr_is_one_line_whatever_the_names():
    """Control characters are escaped, as in every view."""
    f = action(lambda: 1, name="f\x1b[31m\n")
    stage = Stage("s\a\u202e", [f])
    run = stage.run(run_id="r\n")
    things = [
        f,
        stage,
        pipeline(f, stage),
        pipeline(f, name="p\n"),
        parallel(f, stage),
        run,
        run.stages,
        run.stages[0].actions,
    ]
    assert [repr(each) for each in things if not repr(each).isprintable()] == []
    assert repr(f) == "<Action f\\x1b[31m\\n>"
    assert repr(run.stages[0]).startswith("<StageRecord s\\x07\\u202e completed in ")


def test_likely_mistakes_are_answered_with_what_to_write():
    """Inputs by name, None for a list, lists for values, generators for units."""

    @action
    def one(ctx: Context):
        ctx.disable(["x"])

    flow = one >> one.with_options(name="two")
    wrong = {
        r"takes the inputs without a name: write run\(\{...\}\)": lambda: one.run(inputs={"n": 1}),
        r"takes the inputs without a name: write resume\(run_id, \{...\}\)": lambda: one.resume("r", inputs={}),
        "use is a list of middleware: not None": lambda: one.run(use=None),
        "observers is a list of callables: not None": lambda: one.run(observers=None),
        r"only takes selectors one by one, not in a collection: write only\('one'\)": lambda: flow.only(["one"]),
        r"not in a collection: write disable\('x'\)": one.run,
        r"`>>` takes one unit, not a list: write ... >> pipeline\(\*units\)": lambda: one >> [one],
        r"not in a generator: write parallel\(\*units\)": lambda: parallel(one for _ in range(3)),
        r"not the int 5: if a call of an action returned it, write the action, and do not call it": lambda: 5 >> one,
        "returns names no key: write returns=None": lambda: one.with_options(returns=()),
        "returns names the key 'a' twice": lambda: one.with_options(returns=("a", "b", Key("a"))),
        "frozen= of the key 'k' is True or False, not 'yes'": lambda: Key("k", frozen="yes"),
        "data= of stage 's': a key .* not the int 1": lambda: Stage("s", data={1: 2}),
        "data= of stage 's': a key .* not ''": lambda: Stage("s", data={"": 2}),
        "not from the type int: write a function that makes an object of it": lambda: action(int),
        "not from the partialmethod .*: write a method that calls": lambda: action(functools.partialmethod(one)),
        "inputs names keys: a list of them, or a mapping, not None": lambda: one.validate(None),
        "<Stage s: one> is looked up by the name of an action, not by 0": lambda: Stage("s", [one])[0],
        "is looked up by the name of a unit, not by 1.5": lambda: flow[1.5],
    }
    for message, use in wrong.items():
        with pytest.raises((DefinitionError, TypeError), match=message):
            use()


@pytest.mark.parametrize("returns", ["k", Key("k"), ("j", "k"), [Key("k", int)]], ids=str)
def test_a_result_does_not_replace_the_list_that_it_is_collected_in(returns):
    """Not by the options together, nor by one after the other."""
    collects = one.with_options(collect="k")
    for use in (
        lambda: action(name="x", returns=returns, collect=Key("k"))(len),
        lambda: collects.with_options(returns=returns),
        lambda: one.with_options(returns=returns).with_options(collect="k"),
    ):
        with pytest.raises(DefinitionError, match=r"under 'k' by returns=, and appends it .* choose one"):
            use()
    assert collects.with_options(returns=None).run()["k"] == [1]
    run = collects.with_options(returns="j").run()
    assert (run["k"], run["j"]) == ([1], 1)


def test_what_has_no_order_is_not_taken_for_a_list():
    """It would be another one in the next process."""

    def layer(call):
        yield

    one = action(name="one")(lambda: 1)
    for kind in (set, frozenset):
        units = kind([one])
        for use in (
            lambda: Stage("s", units),  # noqa: B023
            lambda: pipeline(units),  # noqa: B023
            lambda: parallel(units),  # noqa: B023
            lambda: Pipeline(units),  # noqa: B023
            lambda: Parallel(units),  # noqa: B023
            lambda: one >> units,  # noqa: B023
            lambda: pipeline(one, use=kind([layer])),  # noqa: B023
        ):
            with pytest.raises(DefinitionError, match="a set has no order"):
                use()
    assert len(Stage("s", {"one": one}.values())) == 1


@pytest.mark.parametrize("base", [Action, Stage, Parallel])
def test_a_class_cannot_extend_a_unit(base):
    """A run would not know it; a pipeline may be extended, and its class is another one."""
    with pytest.raises(DefinitionError, match=f"Own cannot extend {base.__name__}: .* a function that returns one"):

        class Own(base):
            pass

    class Flow(Pipeline):
        pass

    assert Flow([one]).run()["one"] == 1


def test_a_parameter_may_be_called_self():
    """Of an action, and of a template: it is passed by name, too."""

    @action
    def act(self, other=1):
        return self

    @stage
    def template(self):
        action(returns="made", name="a")(lambda: self)

    assert act(self=2) == act.bind(self=2)() == act.run({"self": 2}).result == 2
    assert template(self=2).name == "template[self=2]"
    assert template(self=2).run()["made"] == 2


def test_progress_is_a_number():
    """With a total or without."""
    for amounts in (("a",), ("a", "b"), (1, "b"), (None,)):
        with pytest.raises(DefinitionError, match=r"ctx.progress takes numbers, as in ctx.progress\(3, 10\), not the"):
            action(lambda ctx: ctx.progress(*amounts), name="a").run()  # noqa: B023
    for amounts in ((1,), (Fraction(1, 2), Decimal(3)), (0.5, 1)):
        assert action(lambda ctx: ctx.progress(*amounts), name="a").run().status == "completed"  # noqa: B023


def test_an_insertion_of_something_else_is_answered_with_what_to_write():
    """By an action, and by middleware."""

    def inserting(call, what):
        yield
        call.insert(what)

    wrong = {
        r"inserted the list .*, so write {}.insert\(\*units\)": [one],
        r"inserted the generator .*, so write {}.insert\(\*units\)": (one for _ in range(2)),
        r"inserted the builtin_function_or_method .*: decorate it with @action": len,
        r"inserted the int 5, which is not an action, stage": 5,
    }
    for message, what in wrong.items():
        with pytest.raises(ReturnValueError, match="action 'a' " + message.format("ctx")):
            action(lambda ctx: ctx.insert(what), name="a").run()  # noqa: B023
        with pytest.raises(ReturnValueError, match="a middleware of stage 's' " + message.format("call")):
            Stage("s", use=[functools.partial(inserting, what=what)]).run()


def test_a_stage_without_a_name_is_answered_with_what_to_write():
    with pytest.raises(DefinitionError, match=r"not \[<Action one>\]: write Stage\('name', \[\.\.\.\]\)$"):
        Stage([one])


def test_a_unit_in_place_of_a_collection_of_units_is_refused():
    """Also a stage, whose actions would become the units."""
    for wrong in (one, Stage("s", [one]), one >> one, parallel(one)):
        for kind in (Pipeline, Parallel):
            what = f"^{kind.__name__} takes a collection of units, not the {type(wrong).__name__} .*; {kind.__name__.lower()}\\("
            with pytest.raises(DefinitionError, match=what):
                kind(wrong)
    with pytest.raises(DefinitionError, match="^Pipeline takes a collection of units, not the int 3"):
        Pipeline(3)
    assert Pipeline(unit for unit in (one, one)) == Pipeline([one, one]) == one >> one


def test_a_place_that_is_not_in_a_pipeline_or_group_is_named():
    """With the number of units, and still as an `IndexError`."""
    two = one >> one.with_options(name="two")
    for wrong in (lambda: two[7], lambda: two[-3], lambda: parallel(one, one)[2]):
        with pytest.raises(IndexError, match=r"^no unit -?\d in <P.*>: it has 2, counted from 0$"):
            wrong()
    with pytest.raises(IndexError, match=r"^no unit 0 in <Pipeline empty>: it has 0$"):
        pipeline()[0]


def test_options_that_a_group_lacks_are_answered_with_where_they_are():
    """Middleware and timeouts around a group are those of a pipeline, the executor is the run's."""
    group = parallel(one)
    for use in (lambda: parallel(one, use=[]), lambda: group.with_options(use=[])):
        with pytest.raises(DefinitionError, match=r"has no option 'use'. Write pipeline\(parallel\(...\), use=...\)$"):
            use()
    with pytest.raises(DefinitionError, match=r"Parallel has no option 'executor'. Write flow.run\(executor=...\)$"):
        parallel(one, executor=None)
    with pytest.raises(DefinitionError, match="Parallel has no option 'limits'. Did you mean 'limit'"):
        parallel(one, limits=3)


def test_a_store_is_made_from_a_mapping():
    """Or from pairs, as a dict is."""
    for wrong in (3, "text", [1]):
        with pytest.raises(
            StoreTypeError, match=f"a Store is made from a mapping.*, not from the {type(wrong).__name__} "
        ):
            Store(wrong)
    assert Store([("a", 1)]) == Store({"a": 1})
