"""Fingerprints: another one when the code says something else, the same one when it only stands elsewhere."""

import functools
import importlib
import operator
import subprocess
import sys
import textwrap
import timeit

import pytest

from flowdeco import action, stage
from flowdeco.durable import fingerprint

module = sys.modules["flowdeco.durable.fingerprint"]

SOURCE = '''
import random
LIMIT = 3

def load(kind: str, /, rows: int = 2, *rest, wait: float = 1.5, **more) -> list[int]:
    """Load rows."""
    found = [random.randint(0, row) for row in range(rows) if row not in {1, 2, 3}]
    def double(row):
        "Twice the row."
        return 2 * row
    try:
        found.sort(key=lambda row: -row)
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"{error!r:>{rows}} of {kind=}") from error
    return list(map(double, found))
'''


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Import a source as a module, each time another one of the same name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(source, name="load"):
        (tmp_path / "made.py").write_text(textwrap.dedent(source))
        sys.modules.pop("made", None)
        importlib.invalidate_caches()
        return getattr(importlib.import_module("made"), name)

    yield load
    sys.modules.pop("made", None)


def test_it_is_a_short_text_that_begins_with_the_version_of_python(imported):
    """The same each time: it is written to files. Another version has other instructions."""
    found = fingerprint(imported(SOURCE))
    assert fingerprint(imported(SOURCE)) == found
    version, _, digest = found.partition(":")
    assert sys.implementation.cache_tag.endswith(version.rstrip("O"))
    assert len(digest) == 16


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import random", "import random\n# a comment\n\nimport os\ndef other():\n    pass\n"),
        ('"""Load rows."""', '"""Load all the rows."""'),
        ('    """Load rows."""\n', ""),
        ('        "Twice the row."\n', ""),
        ("    found = [", "    # the rows\n\n    found = [  # so far\n        "),
        ("return 2 * row", "return (2 * row)"),
        ("def load", "@staticmethod\ndef load"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("kind: str", "kind: 'Annotated[str, Key(...)]'"),
        ("list[int]:", "list[float]:"),
        ("def load(", "def read("),
    ],
)
def test_it_stays_where_the_code_says_the_same(imported, before, after):
    """Moved, commented, documented, decorated, annotated or named differently, its globals changed."""
    assert before in SOURCE
    name = "read" if "read" in after else "load"
    assert fingerprint(imported(SOURCE.replace(before, after), name)) == fingerprint(imported(SOURCE))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("return 2 * row", "return 2 + row"),
        ("return 2 * row", "return 3 * row"),
        ("return 2 * row", "return row * 2"),
        ("{1, 2, 3}", "{1, 2, 4}"),
        ("-row", "+row"),
        ("random.randint", "random.randrange"),
        ("not in", "in"),
        ("TypeError, ValueError", "TypeError, KeyError"),
        ("rows: int = 2", "rows: int = 3"),
        ("wait: float = 1.5", "wait: float = 2.5"),
        (" of {kind=}", " of {kind!r}"),
        ("    return list(", "    return tuple("),
        ("        found.sort(", "        found = sorted(found, "),
        ("*rest, ", "*, "),
    ],
)
def test_it_changes_with_what_the_code_says(imported, before, after):
    """Operators, constants, names, parameters, defaults, in nested functions as well."""
    assert before in SOURCE
    assert fingerprint(imported(SOURCE.replace(before, after))) != fingerprint(imported(SOURCE))


CLASSES = """
def load(x):
    class Row:
        '''A row.'''
        number = 3
        def half(self):
            return self.number / 2
    return Row
"""


def test_classes_in_a_function_count_and_their_places_do_not(imported):
    """Their bodies, that is; not their docstrings, nor what they say about where they are."""
    before = fingerprint(imported(CLASSES))
    for old, new, same in [
        ("number = 3", "number = 4", False),
        ("A row.", "The row.", True),
        ("def load", "\n\ndef load", True),
        ("        '''A row.'''\n", "", True),
    ]:
        assert old in CLASSES
        assert (fingerprint(imported(CLASSES.replace(old, new))) == before) is same


def test_a_source_that_is_edited_or_away_changes_nothing(imported, tmp_path):
    """Only the code that is loaded counts."""
    # decocms/studio#4143, czpython/druks#632
    function = imported(SOURCE)
    before = fingerprint(function)
    module._known.clear()
    module._code_described.cache_clear()
    (tmp_path / "made.py").write_text(SOURCE.replace("2 * row", "2 + row"))
    assert fingerprint(function) == before
    module._code_described.cache_clear()
    (tmp_path / "made.py").unlink()
    assert fingerprint(function) == before


def test_a_function_that_is_loaded_anew_is_looked_up_anew(imported):
    """After a change of something else in the file, and a reload: the same function, at another line."""
    first = imported(SOURCE + "\ndef other():\n    return 1\n")
    before = fingerprint(first)
    again = imported("\n\n" + SOURCE + "\ndef other():\n    return 2\n")
    assert fingerprint(again) == before


def test_of_functions_with_one_name_each_has_its_own(imported):
    """Two definitions under an `if`, two lambdas in a line."""
    source = """
        def made(flag):
            if flag:
                def inner(): return 1
            else:
                def inner(): return 2
            return inner
        one, two = (lambda: 1), (lambda: 2)
        three, four = (lambda x: x), (lambda x: x)
    """
    made = imported(source, "made")
    assert fingerprint(made(True)) != fingerprint(made(False))
    assert fingerprint(imported(source, "one")) != fingerprint(imported(source, "two"))
    assert fingerprint(imported(source, "three")) == fingerprint(imported(source, "four"))


def test_closures_and_bound_values_do_not_count():
    """They are data, and the stage's arguments say them."""

    @stage
    def process(kind):
        @action
        def handle():
            return kind

    assert fingerprint(process("a")["handle"]) == fingerprint(process("b")["handle"])

    @action
    def load(rows):
        return rows

    assert fingerprint(load.bind(rows=1)) == fingerprint(load.bind(rows=2)) == fingerprint(load)
    assert fingerprint(functools.partial(max, 1)) == fingerprint(functools.partial(max, 2))


def test_defaults_count_by_their_values():
    """Also those that are computed, wherever they are in memory and in whatever order sets come."""

    def made(value):
        def function(x=value, *, y=value):
            return x

        return function

    class Plain:
        pass

    values = [1, 1.0, True, "1", b"1", None, (1,), [1], {1}, {"a": 1}, {"a": 2}, Plain, max, min, Plain()]
    prints = [fingerprint(made(value)) for value in values]
    assert len(set(prints)) == len(values)
    assert [fingerprint(made(value)) for value in values] == prints
    assert fingerprint(made(Plain())) == prints[-1]
    assert fingerprint(made({"x", "y", "z"})) == fingerprint(made({"z", "y", "x"}))


def test_whatever_is_callable_has_one():
    """The function behind a decorator, an action, a method; the class of an object; the name of a builtin."""

    class Plain:
        def method(self):
            return 1

        @staticmethod
        def static():
            return 2

        @classmethod
        def cls(cls):
            return 3

    class Called:
        def __call__(self):
            return 4

    class Unwilling:
        def __repr__(self):
            raise ValueError

        __call__ = max

    def inner(x):
        return x

    @functools.wraps(inner)
    def outer(*args):
        return inner(*args)

    assert fingerprint(Plain.method) == fingerprint(Plain().method) == fingerprint(action(Plain.method))
    assert fingerprint(Plain.static) == fingerprint(Plain.__dict__["static"])
    assert fingerprint(Plain.cls) == fingerprint(Plain.__dict__["cls"])
    assert fingerprint(outer) == fingerprint(inner) == fingerprint(action(inner).with_options(name="other"))
    assert fingerprint(Called()) == fingerprint(Called())
    others = [Plain.method, Plain.static, Plain.cls, Called(), inner, len, str.upper, operator.itemgetter(1), Plain]
    others += [functools.partial(inner), functools.partial(max, 1), Unwilling(), Unwilling]
    assert len(set(map(fingerprint, others))) == len(others)


def test_it_is_the_same_in_another_process(tmp_path):
    """Where sets of texts come in another order."""
    (tmp_path / "made.py").write_text("def load(x='y', *, z={'a', 'b', 'c'}):\n    return x in {'p', 'q', 'r', 's'}\n")
    source = "import made; from flowdeco.durable import fingerprint; print(fingerprint(made.load))"
    root = module.__file__.rpartition("flowdeco")[0]
    found = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={"PYTHONPATH": f"{root}:{tmp_path}", "PYTHONHASHSEED": str(seed), "PATH": ""},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(found) == 1


def test_it_is_remembered_and_what_is_remembered_is_bounded():
    """Asking again takes microseconds; a program that makes functions forever does not fill the memory."""

    def function(x=1):
        return x

    fingerprint(function)
    assert min(timeit.repeat(lambda: fingerprint(function), number=1000, repeat=20)) < 0.02
    for number in range(module._KEPT + 10):
        fingerprint(lambda x=(number,): x)
    assert len(module._known) <= module._KEPT
