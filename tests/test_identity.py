"""Identity: names, fingerprints, references and ids of steps depend on nothing accidental.

That is: addresses, the order of hashes, pickles, what a call did to a default, or a source file that is edited.
"""

import enum
import functools
import os
import subprocess
import sys
import textwrap
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path, PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

import flowdeco
from flowdeco import Context, Stage, StageTemplate, action, durable, parallel, pipeline, stage, stream
from flowdeco.durable import MemoryJournal, SqliteJournal, fingerprint
from flowdeco.errors import CodeChangedError, DefinitionError, RunBusyError, SerializationError
from flowdeco.middleware import atomic, recover, retry
from flowdeco.model.identity import content_of, text_of

CALLS: list[Any] = []
DOWN: set[str] = set()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Nothing was called, nothing is down, and the working directory is empty."""
    CALLS.clear()
    DOWN.clear()
    monkeypatch.chdir(tmp_path)


def call(name):
    """Note a call; fail if that is down."""
    CALLS.append(name)
    if name in DOWN:
        raise ConnectionError(f"{name} is down")
    return name


def noting(name, **options):
    """An action that notes its call and returns its name."""
    return action(name=name, **options)(lambda: call(name))


@action
def finish():
    return call("finish")


def script(source, *arguments, **environment):
    """The lines that a script prints in a process of its own."""
    Path("script.py").write_text(textwrap.dedent(source))
    root = os.path.dirname(os.path.dirname(flowdeco.__file__))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py", *arguments],
        env={**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# -- names


class Plain:
    """Without a `repr`."""

    def __init__(self, value=None):
        self.value = value

    def method(self):
        """Do nothing."""

    def __call__(self):
        """Do nothing."""


class Slotted:
    __slots__ = ("value",)


class Wrapper:
    """With a `repr` that shows a part."""

    def __init__(self, part):
        self.part = part

    def __repr__(self):
        return f"Wrapper({self.part!r})"


class Unwilling:
    def __repr__(self):
        raise ValueError


@dataclass
class Config:
    tags: Any = field(default_factory=lambda: {"alpha", "beta", "gamma"})
    secret: str = field(default="x", repr=False)


class Pair(NamedTuple):
    left: Any
    right: Any


class Color(enum.Enum):
    RED = object()


class Mode(enum.StrEnum):
    FAST = "fast"


class Flags(enum.Flag):
    A = 1
    B = 2


def function(x):
    return x


@stage
def load(*args, **kwargs):
    @action(collect="done")
    def go():
        return call("go")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("databases", "databases"),
        (3, "3"),
        (Plain(), "Plain"),
        ([Plain()], "[Plain]"),
        (Plain, "Plain"),
        (function, "function"),
        (Plain.method, "Plain.method"),
        (Plain().method, "Plain.method"),
        (len, "len"),
        (lambda: 1, "<lambda>"),
        (functools.partial(function, Plain(), k={"b", "a"}), "partial(function, Plain, k={'a', 'b'})"),
        ({"orders", "items"}, "{'items', 'orders'}"),
        ({10, 9, 100}, "{9, 10, 100}"),
        (frozenset({"b", "a"}), "frozenset({'a', 'b'})"),
        ({frozenset({"d", "c"}), frozenset({"b", "a"})}, "{frozenset({'a', 'b'}), frozenset({'c', …"),
        ({1, "a", None}, "{'a', 1, None}"),
        (set(), "set()"),
        ({"b": {2, 1}, "a": 1}, "{'b': {1, 2}, 'a': 1}"),
        (({"b", "a"},), "({'a', 'b'},)"),
        (Config({"b", "a"}), "Config(tags={'a', 'b'})"),
        (Pair({"b", "a"}, Plain()), "Pair(left={'a', 'b'}, right=Plain)"),
        (SimpleNamespace(a={2, 1}), "SimpleNamespace(a={1, 2})"),
        (MappingProxyType({1: {2, 1}}), "mappingproxy({1: {1, 2}})"),
        (defaultdict(list, {1: {2, 1}}), "defaultdict({1: {1, 2}})"),
        (OrderedDict(a={2, 1}), "OrderedDict({'a': {1, 2}})"),
        (Counter("aab"), "Counter({'a': 2, 'b': 1})"),
        (deque([{2, 1}]), "deque([{1, 2}])"),
        (Color.RED, "Color.RED"),
        (Mode.FAST, "Mode.FAST"),
        (Flags.A | Flags.B, "Flags.A|B"),
        (Flags(0), "Flags(0)"),
        (PurePosixPath("data/orders.csv"), "data/orders.csv"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 12, 30), "2024-02-29 12:30:00"),
        (time(12, 30), "12:30:00"),
        ([date(2024, 2, 29)], "[2024-02-29]"),
        (ValueError({"b", "a"}), "ValueError({'a', 'b'})"),
        (Unwilling(), "Unwilling"),
        (sys, "sys"),
        (Wrapper({1}), "Wrapper({1})"),
    ],
)
def test_a_stage_is_named_after_its_arguments(value, name):
    """Functions and classes by their qualified names, sets in order, objects without a `repr` by their types."""
    # PrefectHQ/prefect#7010, joblib/joblib#235, nipype/pydra#622
    head, cut, _ = name.partition("…")
    found = load(value).name
    assert found.startswith(f"load[{head[: 13 if cut else None]}")
    assert cut or found == f"load[{name}]"


def test_a_name_has_no_address():
    """Nor has the text of an object that shows a part without a `repr`."""
    items = (each for each in ())
    for value in (
        Plain(),
        Wrapper(Plain()),
        [Wrapper(Plain())],
        items,
        iter([]),
        {1: Plain()}.items(),
        {Plain(): Plain},
    ):
        assert "0x" not in load(value).name
        assert load(value).name == load(value).name
    assert load(Wrapper(Plain())).name == load(Wrapper(Plain())).name


def test_a_value_that_contains_itself_has_a_name():
    """The inner one is cut off."""
    looped: list[Any] = [1]
    looped.append(looped)
    assert load(looped).name == "load[[1, …]]"


def test_a_long_path_is_named_by_its_last_parts():
    """Of paths with the same last parts the checksums differ."""
    paths = [PurePosixPath(f"/home/{user}/projects/sales/2024/regions/a.csv") for user in ("ada", "bob")]
    one, other = (load(path).name for path in paths)
    assert one != other
    assert one.startswith("load[…/sales/2024/regions/a.csv~")
    assert len(load(PurePosixPath("/" + "x" * 100)).name) <= 46


NAMES = """
    import dataclasses, functools, flowdeco
    from flowdeco import action, stage

    class Plain: ...

    @dataclasses.dataclass
    class Config:
        tags: object

    @stage
    def load(what):
        @action
        def go(): ...

    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    for value in (
        set(words), [set(words)], {"k": frozenset(words)}, Config(set(words)), Plain(), [Plain()], load, Plain.__init__,
        functools.partial(print, set(words)), {frozenset(words[:n]) for n in range(9)}, (Plain(), lambda: 1),
    ):
        print(load(value).name)
"""


def test_a_name_is_the_same_in_every_process():
    """Its checksum, too."""
    # flyteorg/flyte#5383, snakemake/snakemake#1694
    one, other = (script(NAMES, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one == other
    assert len(one) == 11


# -- options that use the parameters of a template


def test_options_of_a_template_may_name_its_parameters():
    """A name is then the name of the stage, without the arguments behind it."""

    @stage(
        name="process-{kind}",
        tags=["{kind}", "all", "n{n:03d}"],
        title="Process {kind!r}",
        description="{{x}} of {kind}",
    )
    def process(kind: str, n: int = 7) -> None:
        """Braces {here} are text."""

        @action
        def handle():
            return kind

    made = process("db")
    assert (made.name, made.title, made.description) == ("process-db", "Process 'db'", "{x} of db")
    assert made.tags == {"db", "all", "n007"}
    assert (process.name, process.tags) == ("process", {"all"})
    assert process("db") == process("db") != process("db", 8)
    assert process(kind={"b", "a"}).name == "process-{'a', 'b'}"
    assert len(process("x" * 1000).name) < 60
    assert process("x" * 50).tags == {"x" * 50, "all", "n007"}


def test_stages_with_names_of_their_own_are_selected_by_the_template():
    """By its function's name, and by the tags that a stage has."""

    @stage(name="{kind} step", tags=["{kind}"])
    def process(kind):
        @action
        def handle():
            return call(kind)

    flow = process("a") >> process("b")
    assert [str(record.status) for record in flow.run(skip=["tag:a"]).stages] == ["skipped", "completed"]
    assert [str(record.status) for record in flow.run(skip=["process"]).stages] == ["skipped", "skipped"]
    assert [record.name for record in flow.run().stages] == ["a step", "b step"]


class Unreadable:
    """An object without a text."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Unspeakable(Unreadable):
    """An object without a string either."""

    def __str__(self):
        raise RuntimeError("no str")


class Placed:
    """An object that shows its address."""

    def __str__(self):
        return f"placed at {id(self):#x}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (object(), ["object"] * 3),
        ({"b", "a", "é"}, ["{'a', 'b', 'é'}"] * 2 + [r"{'a', 'b', '\xe9'}"]),
        ([{"b", "a"}, len], ["[{'a', 'b'}, len]"] * 3),
        (len, ["len"] * 3),
        ("é", ["é", "'é'", r"'\xe9'"]),
        (1.5, ["1.5"] * 3),
        (date(2024, 1, 2), ["2024-01-02"] * 3),
        (PurePosixPath("a/b"), ["a/b", "'a/b'", "'a/b'"]),
        (Unreadable(), ["Unreadable"] * 3),
        (Unspeakable(), ["Unspeakable"] * 3),
        (Placed(), ["placed", "Placed", "Placed"]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_converted_values_in_names_are_the_same_in_every_process(value, shown):
    """By `!s`, `!r` and `!a`."""
    for conversion, text in zip("sra", shown, strict=True):

        @stage(name=f"load-{{o!{conversion}}}", tags=[f"{{o!{conversion}}}"])
        def load(o):
            action(name="a")(lambda: 1)

        made = load(value)
        assert (made.name, made.tags) == (f"load-{text}", {text})


def test_an_option_that_cannot_be_filled_in_names_an_object_without_a_text():
    """By its type."""
    for name in ("load-{o:>9}", "load-{o!x}"):

        @stage(name=name)
        def load(o):
            action(name="a")(lambda: 1)

        with pytest.raises(DefinitionError, match="cannot be filled in with o=a Unreadable"):
            load(Unreadable())


def test_doubled_braces_are_braces():
    """In a template; a stage without parameters has its options as they are written."""

    def body():
        noting("a")

    def template(kind):
        noting("a")

    assert stage(name="{{x}}")(template)(1).name == "{x}[1]"
    assert stage(name="{{x}}")(template).name == "{x}"
    assert stage(name="{x}")(body).name == "{x}"
    assert isinstance(stage(name="{kind}")(template), StageTemplate)


@pytest.mark.parametrize("wrong", ["{knd}", "{}", "{0}", "{kind:{width}}", "{kind", "}"])
@pytest.mark.parametrize("option", ["name", "title", "description", "tags"])
def test_a_misspelt_parameter_is_an_error_at_declaration(option, wrong):
    """The message names it."""

    def template(kind):
        noting("a")

    with pytest.raises(DefinitionError, match="kind|braces"):
        stage(**{option: [wrong] if option == "tags" else wrong})(template)


# -- equality


@dataclass
class Table:
    rows: Any


def test_stages_of_equal_arrays_are_equal():
    """Also where `==` of the arguments is not a bool: in lists, dicts, objects, bound values and data."""
    np = pytest.importorskip("numpy")

    def bound(rows):
        return action(name="a")(function).bind(x=rows)

    @stage
    def nested(rows):
        @action
        def go():
            return len(rows)

    for made in (
        nested, lambda rows: nested([rows]), lambda rows: nested({"k": rows}), lambda rows: nested(Table(rows)),
        bound, lambda rows: Stage("s", data={"rows": rows}), lambda rows: nested(rows) >> nested(1),
        lambda rows: nested(rows).with_options(tags=["t"]), lambda rows: nested(rows)["go"],
    ):  # fmt: skip
        assert made(np.arange(3)) == made(np.arange(3))
        assert made(np.arange(3)) != made(np.arange(3.0))
        assert made(np.arange(3)) != made(np.arange(4))
        assert made(np.arange(3)) != made(None)
    assert nested(np.array([1.0, np.nan])) == nested(np.array([1.0, np.nan]))
    assert nested(np.array(["a", {1}], dtype=object)) == nested(np.array(["a", {1}], dtype=object))


def test_stages_of_equal_frames_are_equal():
    """By content."""
    pd = pytest.importorskip("pandas")
    assert load(pd.DataFrame({"a": [1, None]})) == load(pd.DataFrame({"a": [1, None]}))
    assert load(pd.DataFrame({"a": [1]})) != load(pd.DataFrame({"a": [2]}))
    assert load(pd.DataFrame({"a": [1]})) != load(pd.DataFrame({"b": [1]}))


# -- fingerprints


TWO_PROCESSES = """
    import sys
    from dataclasses import dataclass, field
    from flowdeco import Stage, action, stage

    class Plain: ...

    def function(x): ...

    @dataclass
    class Config:
        tags: set = field(default_factory=lambda: {"alpha", "beta", "gamma", "delta"})

    SEEN = {}

    @stage
    def load(tables: object) -> None:
        @action(collect="done")
        def go() -> str:
            return type(tables).__name__

    @stage
    def shared(n):
        @action(collect="done")
        def go(seen=SEEN):
            return seen.setdefault(n, len(seen))

    def decorated(inner):
        import functools
        @functools.wraps(inner)
        def outer(*args, **kwargs):
            return inner(*args, **kwargs)
        return outer

    class Called:
        def __call__(self, _seen=[]):
            _seen.append(1)

    class Service:
        @action
        def method(self, *, _seen={}):
            _seen[1] = {"a", "b"}

    @action
    def insert() -> list[Stage]:
        return [load({"orders", "items", "users", "sales"})]

    @action
    def memo(x: int, _seen: dict = {}) -> int:
        return _seen.setdefault(x, x * x)

    @action
    def configured(config: Config = Config(), plain=Plain(), f=function, g=lambda: 1, s=frozenset("abcdef")) -> int:
        return len(config.tags)

    @action
    def constants(x):
        def inner(y=[1]):
            return y
        return x in {"a", "b", "c", "d"} or (lambda: inner)() is None

    @action
    @decorated
    def wrapped(_seen=[]):
        _seen.append(1)

    @action
    def finish() -> None:
        if sys.argv[1] == "run":
            raise SystemExit

    UNITS = {
        "set": lambda: load({"orders", "items", "users", "sales"}),
        "object": lambda: load(Plain()),
        "function": lambda: load(function),
        "inserted set": lambda: insert,
        "default that is filled": lambda: memo,
        "default with a set": lambda: configured,
        "default shared by stages": lambda: shared(1) >> shared(2) >> shared(3),
        "constants": lambda: constants,
        "behind a decorator": lambda: wrapped,
        "of an object": lambda: action(name="called")(Called()),
        "of a method": lambda: Service().method,
    }
    flow = UNITS[sys.argv[2]]() >> finish
    if sys.argv[1] == "run":
        try:
            flow.run({"x": 3}, journal="runs.db", run_id="x")
        except SystemExit:
            print("ended")
    else:
        print(flow.resume("x", journal="runs.db").status, [s.name for s in flow][0])
"""


@pytest.mark.parametrize(
    "what",
    [
        "set", "object", "function", "inserted set", "default that is filled", "default with a set",
        "default shared by stages", "constants", "behind a decorator", "of an object", "of a method",
    ],
)  # fmt: skip
def test_unchanged_code_is_resumed_in_another_process(what):
    """Arguments and defaults with an order or an address of its own, or filled by a call, are no change of code."""
    # PrefectHQ/prefect#7010, joblib/joblib#235, joblib/joblib#1311, insitro/redun#99
    assert script(TWO_PROCESSES, "run", what, PYTHONHASHSEED="1") == ["ended"]
    (line,) = script(TWO_PROCESSES, "resume", what, PYTHONHASHSEED="2")
    assert line.startswith("completed")


def test_a_call_does_not_change_the_fingerprint_of_a_default():
    """Nor of one that several functions of a factory share; another value in the code does."""
    seen: dict[Any, Any] = {}

    def made(default):
        @action
        def memo(cache=default):
            cache[len(cache)] = 1

        return memo

    first = made(seen)
    before = fingerprint(first)
    first()
    assert fingerprint(first) == fingerprint(made(seen)) == before
    assert fingerprint(made({1: 2})) != before
    assert fingerprint(made({})) == before


STEPS = '''
from flowdeco import action
import os

@action
def one():
    """Give one."""
    return 1

@action
def end(one):
    if os.environ.get("END") == "down":
        raise ConnectionError
    return "done"

flow = one >> end
'''
MEANWHILE = {
    "docstring edited": "open('steps.py', 'w').write(before.replace('Give one', 'Give the number one'))",
    "code edited": "open('steps.py', 'w').write(before.replace('return 1', 'return 2'))",
    "file away": "os.rename('steps.py', 'away.py')",
    "file broken": "open('steps.py', 'w').write('def')",
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_touching_the_source_while_a_run_is_at_work_changes_nothing(meanwhile):
    """It counts as the code that is loaded."""
    # decocms/studio#4143, czpython/druks#632
    Path("steps.py").write_text(STEPS)
    begin = "import os, steps\nbefore = open('steps.py').read()\n{}\n"
    begin += "steps.flow.run(journal='runs.db', run_id='r', check=False)"
    script(begin.format(MEANWHILE[meanwhile]), END="down")
    Path("steps.py").write_text(STEPS)
    assert script("import steps\nprint(steps.flow.resume('r', journal='runs.db').status)") == ["completed"]


def test_a_run_of_another_version_of_python_is_not_refused():
    """Its instructions cannot be compared with those of this one; nor can fingerprints of older journals."""
    DOWN.add("finish")
    for before in ("310:0123456789abcdef", "0123456789abcdef"):
        journal = MemoryJournal()
        (noting("a") >> finish).run(journal=journal, run_id="r", check=False)
        rows = journal._runs["r"].rows
        rows.update({at: row._replace(fingerprint=before) for at, row in rows.items() if row.fingerprint})
        assert (noting("a") >> noting("b")).resume("r", journal=journal)["b"] == "b"


# -- the id of a step


def charge_with(make):
    """A pipeline that finds two orders, fails with the second one, and then finds that one only."""
    found = iter([["a", "b"], ["b"]])

    @action
    def orders():
        return [make(order) for order in next(found)]

    return pipeline(orders, use=[retry(on=TimeoutError, attempts=2, wait=0)])


def charged(order, ctx):
    CALLS.append((order, ctx.step_id))
    if order == "b" and "paid" not in DOWN:
        DOWN.add("paid")
        raise TimeoutError
    return order


class Order:
    """Without a `repr`."""

    def __init__(self, name):
        self.name = name


@stage
def charge(order):
    @action(collect="charged")
    def pay(ctx: Context):
        return charged(getattr(order, "name", order), ctx)


@action(collect="charged")
def pay(ctx: Context, order):
    return charged(getattr(order, "name", order), ctx)


@pytest.mark.parametrize(
    "make",
    [
        charge,
        lambda order: charge(Order(order)),
        lambda order: charge(order).with_options(name="charge"),
        lambda order: pay.bind(order=order),
        lambda order: pay.bind(order=Order(order)),
        lambda order: Stage("charge", [pay.bind(order=order)]),
        lambda order: Stage("charge", [pay], data={"order": order}),
    ],
    ids=["template", "object", "renamed", "bound", "bound object", "bound in a stage", "data"],
)
def test_steps_of_different_stages_have_different_ids(make):
    """Another attempt finds other orders in the same places: the first one is not taken for one of these."""
    # MoonLadderStudios/MoonMind#2178, unkeyed/unkey#4979
    charge_with(make).run()
    ids = {order: {id for name, id in CALLS if name == order} for order in "ab"}
    assert [name for name, _ in CALLS] == ["a", "b", "b"]
    assert ids["a"].isdisjoint(ids["b"])


def test_the_id_of_a_step_is_the_same_over_retries_and_resumes():
    """Also if the action changes its bound value before it fails."""
    items = {"left": ["x", "y"]}

    @action(use=[retry(on=TimeoutError, attempts=3, wait=0)])
    def take(ctx: Context, items):
        items["left"] = items["left"][1:]
        CALLS.append(ctx.step_id)
        if len(CALLS) < 3:
            raise TimeoutError

    flow = take.bind(items=items) >> finish
    DOWN.add("finish")
    run = flow.run(journal="runs.db", check=False)
    assert len(set(CALLS[:3])) == 1

    @action
    def again(ctx: Context):
        CALLS.append(ctx.step_id)
        call("again")

    DOWN.add("again")
    run = again.run(journal="runs.db", check=False)
    first = CALLS[-2]
    DOWN.clear()
    again.resume(run.id, journal="runs.db")
    assert CALLS[-2] == first


def test_the_content_of_an_object_does_not_depend_on_what_was_looked_up():
    """A cached property is not part of it."""

    class Rows:
        def __init__(self):
            self.rows = [1, 2]

        @functools.cached_property
        def total(self):
            return sum(self.rows)

    rows, slotted = Rows(), Slotted()
    before = content_of(rows)
    assert rows.total == 3
    assert content_of(rows) == before
    slotted.value = {2, 1}
    assert (content_of(slotted), text_of(slotted)) == ("Slotted(value={1, 2})", "Slotted")


# -- references


def made_by_a_factory(name):
    return noting(name, collect="made")


def template_of_a_factory(name):
    @stage(name=name)
    def made(n):
        @action(collect="made")
        def go():
            return call(f"{name} {n}")

    return made


def stage_of_a_factory(name):
    @stage(name=name)
    def made():
        noting(name, collect="made")

    return made


SINGLE = made_by_a_factory("single")
LAMBDA = action(name="lambda", collect="made")(lambda: call("lambda"))
IN_A_STAGE = Stage("stage", [made_by_a_factory("in a stage")])
IN_A_PIPELINE = pipeline(made_by_a_factory("first"), Stage("q", [made_by_a_factory("second")]), name="p")
IN_A_GROUP = parallel(made_by_a_factory("left"), made_by_a_factory("right"))
IN_A_DICT = {"a": made_by_a_factory("in a dict"), "t": template_of_a_factory("of a dict")}
IN_A_LIST = [made_by_a_factory("in a list")]
RENAMED = made_by_a_factory("original").with_options(name="renamed")
TEMPLATE = template_of_a_factory("template")
STAGE = stage_of_a_factory("of a stage")
CHANGED = stage_of_a_factory("changed").with_options(name="with options")


class Flows:
    load = made_by_a_factory("of a class")


@action
def inserts_all():
    return [
        SINGLE, LAMBDA, IN_A_STAGE, IN_A_PIPELINE, IN_A_GROUP, IN_A_DICT["a"], IN_A_LIST[0], RENAMED, STAGE, STAGE["of a stage"],
        CHANGED, Flows.load, TEMPLATE(1), IN_A_DICT["t"](2), TEMPLATE(3).with_options(name="z"), IN_A_PIPELINE["q"],
        SINGLE.with_options(tags=["t"]), IN_A_GROUP[0].bind(),
    ]  # fmt: skip


@pytest.mark.parametrize("codec", ["pickle", "json"])
def test_what_a_function_made_is_found_under_its_name_in_a_module(codec):
    """An action, stage or template in a module, in a class, a definition, a list or a dict there."""
    journal = SqliteJournal("runs.db", codec=codec)
    plain = (inserts_all >> finish).run()
    DOWN.add("finish")
    run = (inserts_all >> finish).run(journal=journal, check=False)
    assert isinstance(run.error, ConnectionError)
    DOWN.clear()
    CALLS.clear()
    again = (inserts_all >> finish).resume(run.id, journal=journal)
    assert dict(again.store) == dict(plain.store)
    assert CALLS == ["finish"]


def test_what_no_module_has_is_refused():
    """With the reason, and the correction."""
    run = action(name="insert")(lambda: made_by_a_factory("nowhere")).run(journal="runs.db", check=False)
    assert isinstance(run.error, SerializationError)
    assert "defined inside a function" in str(run.error) or "lambda" in str(run.error)


class FromTwo(tuple):
    """Pickles, and cannot be loaded again: `__new__` takes other arguments."""

    __slots__ = ()

    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))


class Misled:
    def __reduce__(self):
        return int, ("x",)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Color.RED, 'store["found"]'),
        ({"rows": [1, Color.RED]}, 'store["found"]["rows"][1]'),
        (FromTwo(1, 2), 'store["found"]'),
        (Config(Misled()), 'store["found"].tags'),
    ],
    ids=["enum", "nested enum", "arguments", "reduce"],
)
def test_what_could_not_be_read_again_is_not_written(value, path):
    """The action that wrote it has failed; the message names the key, and the part."""
    look = action(name="look", returns="found")(lambda: value)
    run = (look >> finish).run(journal="runs.db", check=False)
    assert isinstance(run.error, SerializationError)
    assert f"{path}: a value of this run cannot be read back" in str(run.error)
    assert CALLS == []
    with pytest.raises(SerializationError, match="inputs"):
        finish.run({"x": value}, journal="runs.db")


def test_a_template_may_be_called_with_any_object():
    """One without a `repr` is named by its type, so that the stage is known again."""
    # PrefectHQ/prefect#16185
    start = action(name="start")(lambda: [load(Plain(1), Plain(2))])
    DOWN.add("finish")
    run = (start >> finish).run(journal="runs.db", check=False)
    DOWN.clear()
    assert (start >> finish).resume(run.id, journal="runs.db")["done"] == ["go"]
    assert CALLS == ["go", "finish", "finish"]


# -- what a change keeps


A, B, C, D, E = (noting(name) for name in "ABCDE")


def layer(call):
    call.store.append("layers", call.name)
    yield


@stage
def copy(table):
    @action(collect="copied")
    def transfer():
        return call(f"copy {table}")


@stage
def copy_more(table):
    @action(collect="copied")
    def transfer():
        return call(f"copy {table}")

    @action(collect="copied")
    def verify():
        return call(f"verify {table}")


def tables(*names):
    for name in names:
        yield copy(name)


@action
def plan():
    call("plan")
    return list(tables("x", "y"))


@action
def pulls():
    call("pulls")
    return stream(tables, "x", "y")


def within(*actions, name="s", **options):
    return Stage(name, actions, **options)


failing = action(name="failing", use=[recover(on=ConnectionError, outcome="recovered")])(lambda: call("failing"))
inserts_actions = action(name="inserts_actions")(lambda: (call("inserts"), [SINGLE, LAMBDA])[1])

CHANGES: dict[str, tuple[Any, Any, list[str]]] = {
    "stage renamed": (A >> B >> C, A >> B.with_options(name="B2") >> C, ["B"]),
    "stage added in front": (A >> B, D >> A >> B, ["D"]),
    "stage added between": (A >> B, A >> D >> B, ["D"]),
    "stage gone": (A >> B >> C, A >> C, []),
    "stages swapped": (A >> B >> C, C >> B >> A, []),
    "action renamed": (pipeline(within(A, B, C)), pipeline(within(A, B.with_options(name="B2"), C)), ["B"]),
    "action added": (pipeline(within(A, B)), pipeline(within(D, A, E, B)), ["D", "E"]),
    "action gone": (pipeline(within(A, B, C)), pipeline(within(A, C)), []),
    "into a pipeline": (A >> B, pipeline(A, D, name="p", use=[layer]) >> B, ["D"]),
    "out of a pipeline": (pipeline(A, B, name="p", use=[layer]) >> C, A >> D >> B >> C, ["D"]),
    "in a pipeline": (pipeline(A, B, name="p", use=[layer]), D >> pipeline(A, B, name="p", use=[layer]), ["D"]),
    "into a group": (A >> B, parallel(A, D) >> B, ["D"]),
    "a group": (parallel(A >> B, C), D >> parallel(A >> B, C), ["D"]),
    "a branch": (parallel(A >> B, C), parallel(A >> D >> B, C), ["D"]),
    "a branch added": (parallel(A, B), parallel(D, A, B), ["D"]),
    "stage with middleware": (within(A, use=[layer]) >> B, D >> within(A, use=[layer]) >> B, ["D"]),
    "stage with data": (within(A, data={"k": 1}) >> B, D >> within(A, data={"k": 1}) >> B, ["D"]),
    "recovered": (failing >> B, D >> failing >> B, ["D"]),
    "inserted": (plan >> A, D >> plan >> A, ["D"]),
    "inserted actions": (within(inserts_actions, A) >> B, D >> within(inserts_actions, A, E) >> B, ["D", "E"]),
    "streamed": (pulls >> A, D >> pulls >> A, ["D"]),
    "stages of one name": (within(A) >> within(B, C), within(B, C) >> D >> within(A), ["D"]),
    "a loop": (plan >> plan >> A, D >> plan >> plan >> A, ["D"]),
    "templates": (copy("x") >> copy("y"), copy("y") >> copy("z") >> copy("x"), ["copy z"]),
}


@pytest.mark.parametrize("codec", ["pickle", "json"])
@pytest.mark.parametrize("change", CHANGES)
def test_ignoring_a_change_calls_nothing_again(change, codec):
    """Completed steps that still exist are kept, wherever they are; the result is that of a run of the new flow."""
    # TauricResearch/TradingAgents#1089
    before, after, new = CHANGES[change]
    DOWN.add("failing")
    plain = (after >> finish).run()
    DOWN.add("finish")
    journal = SqliteJournal("runs.db", codec=codec)
    run = (before >> finish).run(journal=journal, check=False)
    assert run.status == "failed"
    DOWN.discard("finish")
    CALLS.clear()
    again = (after >> finish).resume(run.id, journal=journal, on_change="ignore")
    assert sorted(CALLS) == sorted([*new, "finish"])
    assert dict(again.store) == dict(plain.store)
    assert names(again) == names(plain) == names(durable.read(journal, run.id))
    assert dict(durable.read(journal, run.id).store) == dict(plain.store)
    CALLS.clear()
    assert names((after >> finish).resume(run.id, journal=journal)) == names(plain)
    assert CALLS == []


def names(run):
    return [(record.name, [each.name for each in record.actions]) for record in run.stages]


@pytest.mark.parametrize("on_change", ["error", "ignore"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_kept_is_kept_by_the_next_resume(change, on_change):
    """Whatever it says of changes: by then the flow is the same, and some steps have not been reached."""
    before, after, _ = CHANGES[change]
    DOWN.add("failing")
    plain = (after >> finish >> E.with_options(name="last")).run()
    DOWN.add("finish")
    run = (before >> E.with_options(name="last") >> finish).run(journal="runs.db", check=False)
    flow = after >> finish >> E.with_options(name="last")
    assert flow.resume(run.id, journal="runs.db", on_change="ignore", check=False).status == "failed"
    DOWN.discard("finish")
    CALLS.clear()
    again = flow.resume(run.id, journal="runs.db", on_change=on_change)
    assert CALLS == ["finish"]
    assert dict(again.store) == dict(plain.store)
    assert names(again) == names(plain)


def test_a_run_that_ignored_a_change_forgets_the_rest_when_it_has_completed():
    """Until then all rows are there."""
    DOWN.add("finish")
    run = (A >> B >> C >> finish).run(journal="runs.db", check=False)
    (D >> A >> finish).resume(run.id, journal="runs.db", on_change="ignore", check=False)
    [info] = durable.runs("runs.db")
    assert info.steps == 14
    shown = [row.action for row in durable.history("runs.db", run.id) if row.kind == "action"]
    assert shown == ["D", "A", "finish"]
    DOWN.clear()
    (D >> A >> finish).resume(run.id, journal="runs.db")
    [info] = durable.runs("runs.db")
    assert info.steps == 8  # two are those of the attempt that failed


def test_a_change_can_be_ignored_again():
    """Steps are kept that the first change had dropped."""
    DOWN.add("finish")
    run = (A >> B >> C >> finish).run(journal="runs.db", check=False)
    (D >> A >> finish).resume(run.id, journal="runs.db", on_change="ignore", check=False)
    CALLS.clear()
    DOWN.clear()
    again = (C >> E >> D >> B >> A >> finish).resume(run.id, journal="runs.db", on_change="ignore")
    assert CALLS == ["E", "finish"]
    assert list(again.store) == ["C", "E", "D", "B", "A", "finish"]


def test_rerun_after_an_ignored_change_keeps_nothing_behind_the_difference():
    """Nor anything that had been kept for later."""
    DOWN.add("finish")
    run = (A >> B >> C >> finish).run(journal="runs.db", check=False)
    (D >> A >> finish >> C).resume(run.id, journal="runs.db", on_change="ignore", check=False)
    CALLS.clear()
    DOWN.clear()
    again = (D >> B >> C >> finish).resume(run.id, journal="runs.db", on_change="rerun")
    assert CALLS == ["B", "C", "finish"]
    assert list(again.store) == ["D", "B", "C", "finish"]


def test_a_retry_after_an_ignored_change_calls_all_of_its_pipeline():
    """The attempt that failed is dropped, with the steps that it had kept."""
    DOWN.add("E")
    flow = pipeline(A, E, name="p", use=[retry(on=ConnectionError, attempts=2, wait=0)])
    run = flow.run(journal="runs.db", check=False)
    CALLS.clear()
    changed = D >> pipeline(A, E, name="p", use=[retry(on=ConnectionError, attempts=2, wait=0)])
    again = changed.resume(run.id, journal="runs.db", on_change="ignore", check=False)
    assert again.status == "failed"
    assert CALLS == ["D", "E", "A", "E"]


def test_new_inputs_win_over_kept_steps():
    """As over any that were written before."""
    DOWN.add("finish")
    run = (A >> B >> finish).run(journal="runs.db", check=False)
    DOWN.clear()
    again = (D >> A >> B >> finish).resume(run.id, {"A": "given"}, journal="runs.db", on_change="ignore")
    assert again["A"] == "given"
    assert durable.read("runs.db", run.id)["A"] == "given"


def test_a_fork_of_a_run_that_ignored_a_change():
    """It has the steps of the present flow."""
    DOWN.add("finish")
    run = (A >> B >> finish).run(journal="runs.db", check=False)
    flow = D >> A >> B >> finish
    flow.resume(run.id, journal="runs.db", on_change="ignore", check=False)
    CALLS.clear()
    DOWN.clear()
    fork = flow.resume(run.id, journal="runs.db", from_stage="B")
    assert CALLS == ["B", "finish"]
    assert list(fork.store) == ["D", "A", "B", "finish"]


# -- finished runs


@pytest.mark.parametrize("on_change", ["error", "ignore"])
@pytest.mark.parametrize(
    "now",
    [
        D >> B.with_options(name="A"),
        A.with_options(name="other") >> B,
        pipeline(A, B, name="renamed"),
        A >> B >> C,
        pipeline(A),
        A >> action(name="B")(lambda: 3),
        pipeline(Stage("s", [action(name="wants")(function)])),
    ],
    ids=["others", "renamed", "pipeline renamed", "longer", "shorter", "other code", "missing input"],
)
def test_a_finished_run_is_returned_whatever_changed(now, on_change):
    """Nothing continues, so nothing can disagree."""
    run = (A >> B).run(journal="runs.db")
    CALLS.clear()
    again = now.resume(run.id, journal="runs.db", on_change=on_change)
    assert (again.status, dict(again.store), again.result) == ("completed", {"A": "A", "B": "B"}, "B")
    assert names(again) == [("A", ["A"]), ("B", ["B"])]
    assert all(record.restored for record in again.stages)
    assert CALLS == []
    assert durable.runs("runs.db")[0].status == "completed"


def test_a_finished_run_is_run_again_on_request():
    """From the first difference, if there is one."""
    run = (A >> B).run(journal="runs.db")
    CALLS.clear()
    assert (A >> B).resume(run.id, journal="runs.db", on_change="rerun").status == "completed"
    assert CALLS == []
    assert list((A >> C).resume(run.id, journal="runs.db", on_change="rerun").store) == ["A", "C"]
    assert CALLS == ["C"]


def test_a_change_is_still_an_error_where_the_run_continues():
    """Unless it is ignored."""
    DOWN.add("finish")
    run = (A >> finish).run(journal="runs.db", check=False)
    with pytest.raises(CodeChangedError, match="D"):
        (D >> finish).resume(run.id, journal="runs.db")


# -- what a change keeps of runs that were recovered, skipped, interrupted, or partly kept


def adopted(before, after, journal=None, **options):
    """The run of `before` up to `finish`, which is down, as it continues with `after`; `CALLS` has what that called."""
    journal = journal or SqliteJournal("runs.db")
    DOWN.add("finish")
    run = (before >> finish).run(journal=journal, check=False, **options)
    assert run.status == "failed"
    DOWN.discard("finish")
    CALLS.clear()
    return (after >> finish).resume(run.id, journal=journal, on_change="ignore")


def test_a_pipeline_of_which_a_part_was_kept_elsewhere_is_not_kept_as_a_whole():
    """Each step is kept once: the first `A` has the one that there was, the `A` in the pipeline is called."""
    wrapped = pipeline(A, B, name="p", use=[layer])
    again = adopted(wrapped, A >> wrapped)
    assert CALLS == ["A", "finish"]
    assert names(again) == [(name, [name]) for name in ["A", "A", "B", "finish"]]


@pytest.mark.parametrize("inside", [(), (atomic,)], ids=["plain", "atomic"])
def test_a_stage_that_recovered_itself_is_kept_as_it_ended(inside):
    """With the actions that it had not reached, and also if its writes were undone."""
    DOWN.add("B")
    risky = within(A, B, C, use=[recover(on=ConnectionError, outcome="recovered"), *inside])
    again = adopted(pipeline(risky), D >> risky)
    assert CALLS == ["D", "finish"]
    assert ("A" in again.store) is not bool(inside)
    assert next(record for record in again.stages if record.name == "s").recovered


def test_a_pipeline_that_recovered_from_an_atomic_stage_is_kept_without_the_steps_of_that():
    """They were undone: the journal has nothing of them."""
    DOWN.add("B")
    risky = pipeline(C, within(A, B, use=[atomic]), E, name="p", use=[recover(on=ConnectionError, outcome="recovered")])
    again = adopted(risky, D >> risky)
    assert CALLS == ["D", "finish"]
    assert list(again.store) == ["D", "C", "finish"]
    assert [(record.name, record.status) for record in again.stages] == [
        ("D", "completed"), ("C", "completed"), ("s", "failed"), ("finish", "completed"),
    ]  # fmt: skip


def test_a_stage_that_was_skipped_is_kept_as_skipped():
    """Also in a pipeline that is kept as a whole."""
    wrapped = pipeline(A, B, C, name="p", use=[layer])
    again = adopted(wrapped, D >> wrapped, skip=["B"])
    assert CALLS == ["D", "finish"]
    assert [record.name for record in again.stages if record.status == "skipped"] == ["B"]
    assert "B" not in again.store


def test_a_pipeline_that_inserted_a_stream_is_opened_anew():
    """Whether it is the same is known only when the stream is pulled; what was called is kept."""
    wrapped = pipeline(pulls, name="p", use=[layer])
    again = adopted(wrapped, D >> wrapped)
    assert CALLS == ["D", "finish"]
    assert names(again) == names((D >> wrapped >> finish).run())


def test_a_group_that_recovered_is_kept_with_the_branches_that_had_not_begun():
    """They are still not called."""
    DOWN.add("A")
    wrapped = pipeline(parallel(A, B, limit=1), name="p", use=[recover(on=ConnectionError, outcome="recovered")])
    again = adopted(wrapped, D >> wrapped)
    assert CALLS == ["D", "finish"]
    assert "B" not in again.store


class Breaking(MemoryJournal):
    """A journal that can be written so many times, and then no more; or from which no more can be dropped."""

    def __init__(self, left=10**6, *, drops=True):
        super().__init__()
        self.left = left
        self.drops = drops

    def write(self, run_id, rows):
        if self.left == 0:
            raise OSError("the disk is full")
        self.left -= 1
        super().write(run_id, rows)

    def drop(self, run_id, cuts):
        if not self.drops:
            raise OSError("the disk is full")
        super().drop(run_id, cuts)


def test_the_actions_of_a_stage_that_had_not_ended_are_kept():
    """As the process died in it, the journal has no row of the stage."""
    journal = Breaking(1)
    run = pipeline(within(A, B, C)).run(journal=journal, check=False)
    assert isinstance(run.error, OSError)
    assert [row.action for row in durable.history(journal, run.id)] == ["A"]
    journal.left = 10**6
    CALLS.clear()
    again = pipeline(within(D, A, B, C)).resume(run.id, journal=journal, on_change="ignore")
    assert CALLS == ["D", "B", "C"]
    assert list(again.store) == ["D", "A", "B", "C"]


def test_a_finished_run_is_let_go_if_its_journal_cannot_forget_what_changed():
    """The error is that of the journal; afterwards the run can be run again."""
    journal = Breaking()
    run = (A >> B).run(journal=journal)
    journal.drops = False
    again = (A >> C).resume(run.id, journal=journal, on_change="rerun", check=False)
    assert isinstance(again.error, OSError)
    journal.drops = True
    assert list((A >> C).resume(run.id, journal=journal, on_change="rerun").store) == ["A", "C"]


def test_a_finished_run_that_another_process_has_run_again_meanwhile_is_busy():
    """Between the look at it and the lease on it; what the other one did is kept, and the run is not held."""

    class Raced(SqliteJournal):
        def open(self, run_id, *, finished=False):
            if finished and not meanwhile:
                meanwhile.append((A >> D).resume(run_id, journal="runs.db", on_change="rerun"))
            return super().open(run_id, finished=finished)

    meanwhile = []
    run = (A >> B).run(journal="runs.db")
    with pytest.raises(RunBusyError, match="run again by another process"):
        (A >> C).resume(run.id, journal=Raced("runs.db"), on_change="rerun", check=False)
    assert list(durable.read("runs.db", run.id).store) == ["A", "D"]
    assert list((A >> C).resume(run.id, journal="runs.db", on_change="rerun").store) == ["A", "C"]
