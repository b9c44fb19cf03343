"""`cached`: the outcome of an action is taken from a folder if its code and its arguments were seen before."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Bail, Context, Stage, Status, Suspend, action, parallel, pipeline, stage, stream
from flowdeco.durable import SqliteJournal, read
from flowdeco.errors import DefinitionError
from flowdeco.events import ActionFinished
from flowdeco.middleware import cached, recover, retry


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def driver(run):
    return SimpleNamespace(run=run)


CALLS = []


@pytest.fixture
def calls():
    return CALLS


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def called(*what):
    """Note a call, in a way that the code of the action does not depend on."""
    CALLS.append(what)


def records(run):
    return [(each.name, str(each.status), each.cached) for stage in run.stages for each in stage.actions]


def test_an_action_is_called_once_for_each_of_its_arguments(folder, calls, driver):
    """The record is completed and cached; its code and its arguments count, and so do defaults and bound values."""

    @action(use=[cached(folder)])
    def double(n, by=2):
        called(n, by)
        return {"n": n * by}

    for n, expected in ((2, False), (2, True), (3, False), (3, True), (2, True)):
        run = driver.run(double, {"n": n})
        assert (run["double"], records(run)) == ({"n": n * 2}, [("double", "completed", expected)])
    assert driver.run(double.bind(by=3), {"n": 2})["double"] == {"n": 6}
    assert driver.run(double, {"n": 2, "by": 3}).stages[0].actions[0].cached
    assert calls == [(2, 2), (3, 2), (2, 3)]


def test_changed_code_is_called_again(folder, calls):
    """Another constant will do; another name, or another place, does not."""
    for source, expected in (
        ("return n + 1", False),
        ("return n + 1", True),
        ("return n + 2", False),
        ("return n + 1", True),
    ):
        space = {}
        exec(f"def work(n): {source}", space)
        for name in ("one", "two"):
            run = action(space["work"], name=name, use=[cached(folder)]).run({"n": 1})
            assert run.stages[0].actions[0].cached is (expected or name == "two")


def test_what_a_function_encloses_counts(folder, calls):
    """As the arguments of a template do, which its actions enclose."""

    @stage(use_actions=[cached(folder)])
    def process(kind: str):
        @action(collect="done")
        def handle():
            called(kind)
            return kind.upper()

    flow = process("a") >> process("b")
    for _ in range(2):
        run = flow.run()
        assert run["done"] == ["A", "B"]
    assert calls == [("a",), ("b",)]


class Counter:
    def __init__(self, n):
        self.n = n

    def count(self, by):
        called(self.n)
        return self.n + by

    def __call__(self, by):
        called(self.n)
        return self.n - by


def test_the_object_of_a_method_counts(folder, calls):
    """And an object that is called, and the arguments of a partial."""
    from functools import partial

    made = [
        (Counter(1).count, 3), (Counter(1).count, 3), (Counter(2).count, 4), (Counter(1), -1), (Counter(2), 0),
        (partial(Counter.count, Counter(5)), 7), (partial(Counter.count, Counter(6)), 8),
    ]  # fmt: skip
    for function, expected in made:
        assert action(function, name="f", use=[cached(folder)]).run({"by": 2})["f"] == expected
    assert [n for (n,) in calls] == [1, 2, 1, 2, 5, 6]


@stage
def made(kind: str):
    @action(collect="kinds")
    def note():
        called(kind)
        return kind


def gather():
    yield made("a")
    yield made("b")
    return "both"


@action
def later():
    called("later")


KINDS = {
    "data": (lambda: [1, {"a": (2,)}], {"f": [1, {"a": (2,)}]}),
    "nothing": (lambda: None, {}),
    "a generator": (gather, {"f": "both", "kinds": ["a", "b"]}),
    "stages": (lambda: [made("c"), made("d")], {"kinds": ["c", "d"]}),
    "an action": (lambda: later, {}),
    "a stream": (lambda: stream(gather), {"kinds": ["a", "b"]}),
    "bytes": (lambda: b"x" * 200_000, {"f": b"x" * 200_000}),
}


async def coroutine():
    called("f")
    return 7


async def generator():
    called("f")
    yield made("a")


@pytest.mark.parametrize("kind", KINDS)
def test_the_outcome_of_every_kind_is_taken_over(folder, kind, driver):
    """Data, insertions and collected items; nothing is a result, too."""
    function, expected = KINDS[kind]
    for is_cached in (False, True):
        run = driver.run(action(function, name="f", use=[cached(folder)]))
        assert dict(run.store) == expected
        assert run.stages[0].actions[0].cached is is_cached
        assert run.stages[0].actions[0].status is Status.COMPLETED


@pytest.mark.parametrize("function", [coroutine, generator])
def test_coroutines_and_asynchronous_generators_are_cached(folder, calls, function, driver):
    """By what they return and yield."""
    stores = [dict(driver.run(action(function, name="f", use=[cached(folder)])).store) for _ in range(2)]
    assert stores[0] == stores[1]
    assert calls.count(("f",)) == 1


def test_none_that_is_data_is_stored(folder):
    """As the annotation says."""

    def find() -> int | None:
        called()

    for _ in range(2):
        assert dict(action(find, use=[cached(folder)]).run().store) == {"find": None}
    assert len(CALLS) == 1


def test_results_go_where_the_options_say(folder, calls):
    """Those of the action at hand: they are not a part of the outcome."""

    def pair():
        called()
        return 1, 2

    for options, expected in (({"returns": ("a", "b")}, {"a": 1, "b": 2}), ({"collect": "c"}, {"c": [(1, 2)]})):
        assert dict(action(pair, use=[cached(folder)], **options).run().store) == expected
    assert len(calls) == 1


@pytest.mark.parametrize("error", [ValueError("no"), Bail("enough"), Suspend("later")])
def test_failures_and_signals_are_not_cached(folder, calls, error):
    """Nor a failure that a layer inside recovered."""

    def fail():
        called()
        raise error

    for use in ([cached(folder)], [cached(folder)], [cached(folder), recover(on=ValueError, outcome=5)]):
        run = action(fail, use=use).run(check=False)
        assert not run.stages[0].actions[0].cached
    assert len(calls) == 3


def test_attempts_of_a_retry_inside_or_outside(folder, calls):
    """The last one is kept."""

    @action
    def flaky(n):
        called()
        if len(CALLS) < 3:
            raise ValueError
        return n

    for use in ([retry(on=ValueError, wait=0), cached(folder)], [cached(folder), retry(on=ValueError, wait=0)]):
        run = flaky.with_options(use=use).run({"n": 1})
        assert run["flaky"] == 1
    assert (len(calls), records(run)) == (3, [("flaky", "completed", True)])


def test_an_outcome_that_cannot_be_pickled_is_not_cached(folder, calls, caplog):
    """With a warning that says so."""

    def make(n):
        called()
        return [Lock() if n == 1 else iter([1])]

    for n in (1, 1, 2):
        action(make, use=[cached(folder)]).run({"n": n})
    assert len(calls) == 3
    assert (
        "the outcome of action 'make' is not cached: outcome[0][0]: cannot pickle '_thread.lock' object" in caplog.text
    )


NOT = {
    "no content": (lambda x: len(calls_of(x)), Lock(), (), "the argument 'x' has no content that can be compared"),
    "changed": (
        lambda x: len(calls_of(x.append(1))),
        [],
        (),
        "it changes an argument, which the outcome would not do again",
    ),
    "an iterator": (lambda x: iter(calls_of([x])), 1, (), "it is an iterator, which can be read only once"),
}


def calls_of(x):
    called()
    return [x]


@pytest.mark.parametrize("what", NOT)
def test_calls_that_arguments_do_not_stand_for_are_not_cached(folder, calls, caplog, what):
    """With a warning that says why."""
    function, value, use, why = NOT[what]
    for _ in range(2):
        action(function, name="f", use=[cached(folder), *use]).run({"x": value})
    assert len(calls) == 2
    assert f"the outcome of action 'f' is not cached: {why}" in caplog.text


def test_values_of_middleware_count_unless_it_is_inside(folder, calls, caplog):
    """Outside, they are arguments like any other; inside, they come too late."""

    def connect(n):
        def supply(call):
            yield {"connection": n}

        return supply

    def query(connection):
        called(connection)
        return connection

    for n in (1, 2, 1):
        assert action(query, use=[connect(n), cached(folder)]).run()["query"] == n
    assert calls == [(1,), (2,)]
    calls.clear()
    for n in (3, 4, 3):
        inside = action(query, use=[cached(folder), connect(n)])
        assert inside.run()["query"] == n
        assert inside.run({"connection": 9})["query"] in (n, 9)
    assert (3,) in calls
    assert "'connection' is supplied inside of cached(...): put that middleware before it" in caplog.text


def test_units_that_middleware_inside_inserts_are_part_of_the_outcome(folder, calls):
    """The others are inserted anew."""

    def inserting(kind):
        def layer(call):
            call.insert(made(kind))
            yield

        return layer

    flow = action(lambda: 1, name="f", use=[inserting("out"), cached(folder), inserting("in")])
    for _ in range(2):
        run = flow.run()
        assert run["kinds"] == ["out", "in"]
    assert run.stages[0].actions[0].cached


def with_context(ctx: Context):
    called()


def with_context_as_text(ctx: "Context"):
    called()


def with_context_by_name(ctx):
    called()


@pytest.mark.parametrize("function", [with_context, with_context_as_text, with_context_by_name])
def test_an_action_that_takes_a_context_cannot_be_cached(folder, function):
    """That is an error where it is defined, whichever option says that it is to be cached."""
    f, layers = action(function, name="f"), [cached(folder)]
    inside = pipeline(later, parallel(later, Stage("s", [f]) >> later))

    @stage(use_actions=layers)
    def template(kind: str):
        action(function, name="f")

    for define in (
        lambda: action(function, name="f", use=layers),
        lambda: f.with_options(use=layers),
        lambda: Stage("s", [later, f], use_actions=layers),
        lambda: Stage("s", [f]).with_options(use_actions=layers),
        lambda: pipeline(f, use_actions=layers),
        lambda: inside.with_options(use_actions=layers),
        lambda: template("a").run(),
    ):
        with pytest.raises(DefinitionError, match="action 'f' takes a Context and cannot be cached: what it does by"):
            define()
    assert f.bind(ctx=1).with_options(use=layers).run().stages[0].actions[0].cached is False
    assert CALLS == [()]


def test_an_inserted_action_that_takes_a_context_cannot_be_cached(folder):
    """That is an error before it is called."""
    flow = pipeline(action(lambda: action(with_context, name="f"), name="insert"), use_actions=[cached(folder)])
    with pytest.raises(DefinitionError, match="action 'f' takes a Context and cannot be cached"):
        flow.run()
    assert CALLS == []


def test_only_actions_can_be_cached(folder):
    """Around a stage or a pipeline, it is refused, and the error says what to write."""
    for flow, level in (
        (Stage("s", use=[cached(folder)]), "the stage 's'"),
        (pipeline(later, use=[cached(folder)]), "the pipeline 'pipeline'"),
        (pipeline(later, use_stages=[cached(folder)]), "the stage 'later'"),
    ):
        with pytest.raises(DefinitionError, match=f"goes around actions, not around {level}: write use_actions="):
            flow.run()
    with pytest.raises(DefinitionError, match="path is a folder, and .* is a file"):
        cached(__file__)
    assert cached("a") == cached("a") != cached("b")
    assert repr(cached("/a/b")) == "cached('/a/b')"


def test_an_outcome_is_new_each_time(folder):
    """No run gets what another one has changed, nor what it changed itself after it was cached."""

    @action(returns="rows", use=[cached(folder)])
    def load():
        called()
        return [1]

    @action
    def change(rows):
        rows.append(2)
        return list(rows)

    for _ in range(3):
        assert (load >> change).run()["change"] == [1, 2]
    assert len(CALLS) == 1


def test_what_was_cached_is_journaled_and_restored(folder, tmp_path, calls):
    """As any other outcome, with the mark that it was cached."""
    events = []
    flow = action(lambda: [1] * 30_000, name="f", use=[cached(folder)]) >> action(lambda go: go, name="g")
    for codec in ("pickle", "json"):
        journal = SqliteJournal(tmp_path / f"{codec}.db", codec=codec)
        flow.run({"go": 1}, observers=[events.append])
        run = flow.run({"go": 1}, journal=journal, run_id="r", observers=[events.append])
        assert records(run)[0] == ("f", "completed", True)
        assert records(read(journal, "r"))[0] == ("f", "completed", True)
        assert records(flow.resume("r", journal=journal))[0] == ("f", "completed", True)
    finished = [event.cached for event in events if isinstance(event, ActionFinished) and event.action == "f"]
    assert finished == [False, True, True, True]


def test_views_show_what_was_cached(folder, tmp_path):
    """The tree, its HTML, and the page."""
    flow = Stage("s", [action(lambda: 1, name="f"), action(lambda: 2, name="g")], use_actions=[cached(folder)]) >> later
    flow.run()
    run = flow.run()
    assert str(run.ran()).count("cached") == 2
    assert run.ran()._repr_html_().count("cached") == 2
    assert "cached" in Path(run.to_html(tmp_path / "run.html")).read_text()


def test_a_damaged_outcome_is_replaced_with_a_warning(folder, calls, caplog):
    """Whatever is wrong with it, or with the whole file; also if the folder cannot be written."""

    def f(n):
        called()
        return b"x" * 100_000

    flow = action(f, use=[cached(folder)])
    flow.run({"n": 1})
    file = folder / "outcomes.db"
    for change in ("UPDATE outcomes SET payload = x'00'", "UPDATE chunks SET data = x'00'", "DELETE FROM blobs"):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute(change)
            connection.commit()
        calls.clear()
        caplog.clear()
        assert [flow.run({"n": 1})["f"][:1] for _ in range(2)] == [b"x", b"x"]
        assert len(calls) == 1
        assert "action 'f' runs, its cached outcome cannot be read" in caplog.text
    for name in os.listdir(folder):
        (folder / name).unlink()
    file.write_text("no database at all, " * 100)
    assert flow.run({"n": 1})["f"][:1] == b"x"
    assert "is not cached" in caplog.text
    file.unlink()
    folder.rmdir()
    folder.write_text("")
    assert flow.run({"n": 1})["f"][:1] == b"x"


def test_large_outcomes_are_stored_once(folder):
    """However many calls return them."""

    def f(n):
        return {"n": n, "big": b"x" * 100_000}

    for n in (1, 2, 3, 1):
        assert action(f, use=[cached(folder)]).run({"n": n})["f"] == {"n": n, "big": b"x" * 100_000}
    with contextlib.closing(sqlite3.connect(folder / "outcomes.db")) as connection:
        assert connection.execute("SELECT size FROM blobs").fetchall() == [(100_000,)]


def test_a_folder_is_shared_by_threads_and_branches(folder):
    """Nothing is lost, and nothing mixed up."""
    flow = action(lambda n: {"n": [n] * 10}, name="f", use=[cached(folder)])
    failures = []

    def work(seed):
        for n in range(10):
            found = flow.run({"n": (n * seed) % 5})["f"]
            if found != {"n": [(n * seed) % 5] * 10}:
                failures.append(found)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    branches = [flow.with_options(name=f"f{n}").bind(n=n % 3) for n in range(9)]
    run = parallel(*branches).run()
    assert [run[f"f{n}"] for n in range(9)] == [{"n": [n % 3] * 10} for n in range(9)]


PROGRAM = """
import sys, json
from flowdeco import action
from flowdeco.middleware import cached

@action(use=[cached(sys.argv[1])])
def words(text, stop):
    return sorted(set(text.split()) - stop)

run = words.run({"text": "b a c a", "stop": {"c", "x", "y", "z"}})
print(json.dumps([run["words"], run.stages[0].actions[0].cached]))
"""


def test_a_folder_is_shared_by_processes_with_other_hash_seeds(folder, tmp_path):
    """A set has the same content in each of them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    found = []
    for seed in "123":
        paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, str(program), str(folder)], env=environment, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout or repr(done.stderr)))
    assert found == [[["a", "b"], False], [["a", "b"], True], [["a", "b"], True]]


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([1.0, "a", "b", b"a"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner), st.tuples(inner)
    ),
    max_leaves=4,
)


def typed(value):
    """The text of a value: what tells `1` from `True` and `1.0`."""
    return repr(value)


@settings(max_examples=examples(15), deadline=None)
@given(values=st.lists(VALUES, max_size=8))
def test_it_is_a_dict_of_calls(tmp_path_factory, values):
    """The model: a memo by the text of the arguments."""
    folder, memo = tmp_path_factory.mktemp("cache"), {}
    flow = action(lambda value: [value], name="f", use=[cached(folder)])
    for value in values:
        run = flow.run({"value": value})
        assert run.stages[0].actions[0].cached is (typed(value) in memo)
        memo[typed(value)] = [value]
        assert typed(run["f"]) == typed([value])


def test_a_journal_in_json_does_not_choose_a_folder(folder, tmp_path):
    """A definition that it could not refer to is refused when it is written: the folder is as trusted as code."""
    insert = action(lambda: later.with_options(use=[cached(folder)]), name="insert")
    with pytest.raises(TypeError, match="JSON does not refer to cached"):
        insert.run(journal=SqliteJournal(tmp_path / "runs.db", codec="json"))


def test_middleware_sees_the_arguments_of_an_action(tmp_path, driver):
    """Those known so far: inputs, defaults, bound values, and values of middleware outside of it; none around a stage."""
    seen = []

    def supply(call):
        yield {"c": 3}

    def look(call):
        seen.append(call.arguments)
        yield

    @action(use=[look])
    def f(a, b=2, *, c, d, ctx: Context):
        return a

    @stage(use=[look])
    def local(kind: str):
        action(lambda: 5, name="a")
        action(f)

    for options in ({}, {"journal": tmp_path / "runs.db"}):
        driver.run(Stage("s", [f.bind(d=4)], use=[supply]), {"a": 1}, **options)
    assert seen == [{"a": 1, "b": 2, "c": 3, "d": 4}] * 2
    seen.clear()
    driver.run(pipeline(local("x"), use_stages=[supply]), {"a": 1, "d": 6})
    assert seen == [{}, {"a": 5, "b": 2, "c": 3, "d": 6}]
