"""`cached` and the values that a function encloses: those that its calls change are state, all others are inputs."""

import copy
import gc
import itertools
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdeco import action, parallel, stage
from flowdeco.durable import enclosed
from flowdeco.durable.outcomes import CachedOutcomes
from flowdeco.middleware import cached, retry


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def hits(*runs):
    """Whether each action of each run was cached."""
    return [each.cached for run in runs for stage in run.stages for each in stage.actions]


def a_list():
    calls = []

    def f(x):
        calls.append(x)
        return x * 2

    return f, lambda: len(calls)


def a_variable():
    count = 0

    def f(x):
        nonlocal count
        count += 1
        return x * 2

    return f, lambda: count


def a_variable_that_is_replaced():
    calls = []

    def f(x):
        nonlocal calls
        calls = [*calls, x]
        return x * 2

    return f, lambda: len(calls)


def a_dict():
    seen = {"n": 0}

    def f(x):
        seen["n"] += 1
        return x * 2

    return f, lambda: seen["n"]


def a_dict_that_grows():
    seen = {}

    def f(x):
        seen[str(len(seen))] = x
        return x * 2

    return f, lambda: len(seen)


def a_set_of_threads():
    seen = []

    def f(x):
        seen.append(threading.current_thread())
        return x * 2

    return f, lambda: len(seen)


def a_lock():
    lock, calls = threading.Lock(), itertools.count()

    def f(x):
        with lock:
            next(calls)
        return x * 2

    return f, lambda: next(calls)


def a_logger():
    logger, calls = logging.getLogger("test_enclosed"), Mock()

    def f(x):
        logger.info("called with %s", x)
        calls.get(f"/{x}")
        return x * 2

    return f, lambda: calls.get.call_count


class Client:
    """It cannot be pickled, nor copied."""

    def __init__(self, url):
        self.url, self.lock, self.asked = url, threading.Lock(), 0

    def __reduce__(self):
        raise TypeError("a client cannot be pickled")

    def ask(self, x):
        self.asked += 1
        self.latest = x
        return x * len(self.url)


def a_client():
    client = Client("ab")
    return lambda x: client.ask(x), lambda: client.asked


def a_method():
    client = Client("ab")
    return client.ask, lambda: client.asked


def a_helper():
    f, count = a_list()

    def helper(x):
        return f(x)

    return lambda x: helper(x), count


STATES = [
    a_list, a_variable, a_variable_that_is_replaced, a_dict, a_dict_that_grows, a_set_of_threads, a_lock, a_logger,
    a_client, a_method, a_helper,
]  # fmt: skip


@pytest.mark.parametrize("make", STATES)
def test_a_value_that_the_call_changes_is_no_input(folder, caplog, make):
    """It is called once for each argument, in whatever order, without a warning; nor is it when it is made anew."""
    function, count = make()
    f = action(function, name="f", use=[cached(folder)])
    runs = [f.run({"x": x}) for x in (2, 2, 3, 2, 3, 3)]
    assert hits(*runs) == [False, True, False, True, True, True]
    assert [run["f"] for run in runs] == [4, 4, 6, 4, 6, 6]
    assert count() == 2
    function, count = make()
    again = [action(function, name="f", use=[cached(folder)]).run({"x": x}) for x in (3, 2)]
    assert hits(*again) == [True, True]
    assert count() == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


PROGRAM = """
import json, sys
from flowdeco import action, stage
from flowdeco.middleware import cached

def main():
    calls, count = [], 0

    @stage(use_actions=[cached(sys.argv[1])])
    def template(k):
        def note(x):
            nonlocal count
            count += 1
            calls.append((k, x, count))

        @action
        def first():
            note(1)
            return k

        @action(collect="found")
        def second(first):
            note(2)
            return first * 2

    flow = template("a") >> template("b") >> template("a")
    print(json.dumps([flow.run()["found"], flow.run()["found"], template("b").run()["found"], calls]))

main()
"""


def test_a_template_that_is_called_again_and_another_process_find_the_outcomes(folder, tmp_path):
    """Although what its actions enclose has been changed by then, and they are other functions."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(program), str(folder)], env=environment, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout or repr(done.stderr)))
    items = ["aa", "bb", "aa"]
    assert found == [
        [items, items, ["bb"], [["a", 1, 1], ["a", 2, 2], ["b", 1, 3], ["b", 2, 4]]],
        [items, items, ["bb"], []],
    ]


@dataclass(frozen=True)
class Settings:
    rate: int


def of_a_number(k):
    return lambda x: [k, x]


def of_an_attribute(k):
    settings = Settings(k)
    return lambda x: [settings.rate, x]


def of_a_list(k):
    rows = [k]
    return lambda x: [rows[0], x]


def of_a_list_that_it_changes(k):
    rows = [k]

    def f(x):
        rows.append(0)
        return [rows[0], x]

    return f


def of_random_numbers(k):
    """The seed is nowhere but in the state."""
    numbers = random.Random(k)
    return lambda x: [numbers.random(), x]


def of_a_client(k):
    client = Client("a" * k)
    return lambda x: [client.ask(x), x]


def of_a_method(k):
    return Client("a" * k).ask


def of_a_builtin_method(k):
    value_of = {1: k}.get
    return lambda x: [value_of(1), x]


def of_a_helper(k):
    helper = of_a_list_that_it_changes(k)
    return lambda x: helper(x)


def of_an_action(k):
    inner = action(lambda k, x: [k, x], name="inner").bind(k=k)
    return lambda x: inner(x=x)


INPUTS = [
    of_a_number, of_an_attribute, of_a_list, of_a_list_that_it_changes, of_random_numbers, of_a_client, of_a_method,
    of_a_builtin_method, of_a_helper, of_an_action,
]  # fmt: skip


@pytest.mark.parametrize("make", INPUTS)
def test_the_parameter_of_a_factory_counts(folder, make):
    """Also where the call changes a value that was made from it."""
    runs, expected = [], {}
    for k in (2, 3, 2, 3, 4):
        expected.setdefault(k, make(k)(7))
        runs.append(action(make(k), name="f", use=[cached(folder)]).run({"x": 7}))
        assert runs[-1]["f"] == expected[k]
    assert hits(*runs) == [False, False, True, True, False]


def test_an_input_counts_next_to_state_in_one_value(folder):
    """Keys of a dict, attributes of an object: only those that the call changes are state."""
    settings, client = {"rate": 2, "n": 0}, Client("ab")

    @action(use=[cached(folder)])
    def f(x):
        settings["n"] += 1
        return client.ask(x) * settings["rate"]

    def changed():
        yield f.run({"x": 1})["f"]
        settings["rate"] = 3
        yield f.run({"x": 1})["f"]
        client.url = "abc"
        yield f.run({"x": 1})["f"]
        settings["rate"] = 2
        client.url = "ab"
        yield f.run({"x": 1})["f"]

    assert list(changed()) == [4, 6, 9, 4]
    assert (settings["n"], client.asked) == (3, 3)


def test_state_of_one_action_is_an_input_of_another(folder):
    """An action that reads what another one changes is called again."""
    rows = []

    @action(use=[cached(folder)])
    def add(x):
        rows.append(x)

    @action(use=[cached(folder)])
    def total():
        return sum(rows)

    totals = []
    for x in (1, 1, 2, 2):
        add.run({"x": x})
        totals.append(total.run())
    assert [run["total"] for run in totals] == [1, 1, 3, 3]
    assert hits(*totals) == [False, True, False, True]


def test_another_object_in_the_same_variable_is_another_input(folder):
    """State is recognised as an object where it is changed in place."""
    numbers = random.Random(1)

    @action(use=[cached(folder)])
    def draw():
        return numbers.random()

    found = []
    for seed in (1, 2, 1):
        numbers = random.Random(seed)
        found.append([draw.run()["draw"], draw.run()["draw"]])
    assert found == [[random.Random(seed).random()] * 2 for seed in (1, 2, 1)]


def test_a_value_that_only_some_calls_change(folder):
    """Calls before and after the first change have one key."""
    odd = []

    @action(use=[cached(folder)])
    def f(x):
        if x % 2:
            odd.append(x)
        return x

    assert (
        hits(*[f.run({"x": x}) for x in (2, 1, 2, 1, 3, 4, 3, 4)])
        == [False, False, True, True] + [False] * 2 + [True] * 2
    )
    assert odd == [1, 3]


def test_failed_calls_change_state_too(folder):
    """So a call that succeeds at the third attempt is found, here and where everything begins anew."""

    def make():
        calls = []

        def flaky(x):
            calls.append(x)
            if len(calls) < 3:
                raise ValueError(x)
            return x

        return action(flaky, use=[retry(on=ValueError, wait=0), cached(folder)]), calls

    flow, calls = make()
    assert hits(flow.run({"x": 1}), flow.run({"x": 1})) == [False, True]
    assert calls == [1, 1, 1]
    flow, calls = make()
    assert hits(flow.run({"x": 1})) == [True]
    assert calls == []


def test_calls_that_overlap_count_from_the_same_state(folder):
    """In branches: each begins while another one has changed the list, and none has ended."""

    def make():
        calls, together = [], threading.Barrier(3, timeout=10)

        @action(use=[cached(folder)])
        def f(x):
            calls.append(x)
            together.wait()
            return x

        return parallel(*[f.with_options(name=f"f{x}").bind(x=x) for x in range(3)]), calls

    for expected in (False, True):
        flow, calls = make()
        runs = flow.run(), flow.run()
        assert hits(*runs) == [expected] * 3 + [True] * 3
        assert sorted(calls) == ([] if expected else [0, 1, 2])


def test_modules_and_recursive_functions_are_enclosed(folder):
    """A module counts by its name; a function that names itself is read once."""
    import math

    @action(use=[cached(folder)])
    def factorial(n):
        return math.prod([n, factorial(n=n - 1)]) if n else 1

    runs = [factorial.run({"n": n}) for n in (5, 5, 4)]
    assert [run["factorial"] for run in runs] == [120, 120, 24]
    assert hits(*runs) == [False, True, False]


def test_large_and_deep_values_count_as_wholes(folder):
    """As inputs and as state."""
    many, deep = {str(n): n for n in range(200)}, {}
    for _ in range(30):
        deep = {"inside": deep, "n": [0]}

    @action(use=[cached(folder)])
    def f(x):
        many["0"] += 1
        return [x, many["1"], deep["n"][0]]

    assert hits(*[f.run({"x": x}) for x in (1, 1, 2, 2)]) == [False, True, False, True]
    deep["n"][0] = 5
    assert f.run({"x": 1})["f"] == [1, 1, 5]


def test_an_enclosed_value_that_cannot_be_read_is_not_cached(folder, caplog):
    """With a warning: here, because it changes whenever it is read."""

    class Restless(dict):
        def __reduce__(self):
            return dict, (), None, None, iter(self.pairs())

        def pairs(self):
            raise RuntimeError("dictionary changed size during iteration")
            yield

    restless = Restless()
    f = action(lambda: len(restless), name="f", use=[cached(folder)])
    assert hits(f.run(), f.run()) == [False, False]
    assert "not cached: a value that its function encloses has no content that can be compared" in caplog.text


def test_what_is_remembered_of_state_is_bounded(folder, monkeypatch):
    """The oldest is forgotten; lists and variables are kept no longer than that."""
    monkeypatch.setattr(enclosed, "_MOST", 3)
    layer = cached(folder)
    for x in range(10):
        function, _ = a_variable()
        action(function, name="f", use=[layer]).run({"x": x})
    assert len(CachedOutcomes(str(folder)).inputs(len, {}).enclosed._firsts) == 3


def test_state_is_known_to_all_that_are_cached_in_one_folder(folder):
    """Such as the actions of a template, which each call makes anew."""
    calls = []

    @stage
    def template(k):
        @action(use=[cached(folder)])
        def note():
            calls.append(k)
            return k

    runs = [template(k).run() for k in "aabab"]
    assert (hits(*runs), calls) == ([False, True, False, True, True], ["a", "b"])


def test_what_is_known_of_state_goes_with_the_last_that_is_cached_in_its_folder(folder):
    """It is no registry of the process; an equal one, such as a copy, finds the same outcomes."""
    layer = cached(folder)
    function, _ = a_list()
    run = action(function, name="f", use=[layer]).run({"x": 1})
    known = weakref.ref(CachedOutcomes(str(folder)).inputs(len, {}).enclosed._firsts)
    assert pickle.loads(pickle.dumps(layer)) == layer == copy.deepcopy(layer) != cached(folder / "other")
    assert len({layer, cached(folder)}) == 1
    assert known() is not None
    del layer, run
    gc.collect()
    assert known() is None


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["call", "input", "reset", "make"]), st.integers(0, 2)), min_size=1, max_size=12)
)
def test_it_is_a_dict_of_inputs(tmp_path_factory, moves):
    """The model: a memo by the argument and by the value that nothing but the program changes."""
    folder, memo = tmp_path_factory.mktemp("cache"), set()

    def make():
        values, calls, count = {"input": 0, "n": 0}, [], 0

        @action(use=[cached(folder)])
        def f(x):
            nonlocal count
            count += 1
            calls.append(x)
            values["n"] += 1
            return [x, values["input"]]

        return f, values, calls

    f, values, calls = make()
    for move, n in moves:
        if move == "make":
            f, values, calls = make()
        elif move == "reset":
            calls.clear()
        elif move == "input":
            values["input"] = n
        else:
            run = f.run({"x": n})
            assert (run["f"], hits(run)) == ([n, values["input"]], [(n, values["input"]) in memo])
            memo.add((n, values["input"]))
