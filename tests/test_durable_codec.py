"""Codecs: a value comes back as it was, or an error names the part that cannot; a hostile file calls nothing."""

import dataclasses
import enum
import functools
import importlib.util
import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import shown

import flowdeco
from flowdeco import Key, Stage, Status, action, parallel, pipeline, stage, stream
from flowdeco.durable import Codec, JsonCodec, PickleCodec, codec
from flowdeco.durable.codec import OutlineCodec
from flowdeco.durable.json_codec import OutlineJsonCodec
from flowdeco.engine.journal import Payload
from flowdeco.engine.results import Yielded
from flowdeco.errors import JournalError, Problem, RunError, SerializationError
from flowdeco.middleware import atomic, recover, retry
from flowdeco.model.definitions import Stream, bound_of
from flowdeco.model.sentinels import MISSING, UNSET

CALLED = []


class Colour(enum.Enum):
    RED = 1
    SCARLET = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Level(enum.StrEnum):
    LOW = "low"


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Any = None


@dataclasses.dataclass
class Tree:
    name: str
    children: list["Tree"] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        CALLED.append("post_init")

    @functools.cached_property
    def size(self):
        return 1 + len(self.children)


@dataclasses.dataclass
class Celsius:
    degrees: float = 0.0

    def __setattr__(self, name, value):
        CALLED.append("setattr")
        super().__setattr__(name, value)


@dataclasses.dataclass
class Listed(list):
    x: int


class Pair(NamedTuple):
    left: int
    right: Any


class Refused(Exception):
    """Its `__init__` takes other arguments than it hands on."""

    def __init__(self, code, *, url):
        super().__init__(f"{code} from {url}")
        self.code = code
        CALLED.append("init")


class Money:
    def __init__(self, cents):
        CALLED.append("money")
        self.cents = cents

    def __eq__(self, other):
        return type(other) is Money and other.cents == self.cents

    __hash__ = None


class Trap:
    """What must never be made, or looked at, because a file says so."""

    def __init__(self, *args, **kwargs):
        CALLED.append("trap")

    def __new__(cls, *args, **kwargs):
        CALLED.append("new")
        return super().__new__(cls)

    def __getattr__(self, name):
        CALLED.append(name)
        raise AttributeError(name)


trap = object.__new__(Trap)


@dataclasses.dataclass
class TrapData:
    x: int

    def __init__(self, x):
        CALLED.append("dataclass init")

    @property
    def y(self):
        CALLED.append("property")


class TrapError(Exception):
    def __new__(cls, *args):
        CALLED.append("error new")
        return super().__new__(cls, *args)

    def __init__(self, *args):
        CALLED.append("error init")


class TrapTuple(NamedTuple):
    x: int


def plain(*args, **kwargs):
    CALLED.append("plain")


@action
def load(rows=1):
    CALLED.append("load")


@action(name="tuned", tags=["a"], returns=Key("out", int))
def tuned():
    CALLED.append("tuned")


@stage(tags=["s"])
def report():
    @action
    def summary():
        CALLED.append("summary")

    @action
    def send():
        CALLED.append("send")


@stage
def process(kind, *, size=1):
    @action
    def handle(kind=kind):
        CALLED.append("handle")


def pages(count, kind):
    for _ in range(count):
        yield process(kind)


class Worker:
    __hash__ = object.__hash__

    @action
    def work(self):
        CALLED.append("work")


@dataclasses.dataclass
class Bench:
    name: str

    @action
    def work(self):
        CALLED.append("work")


@pytest.fixture(autouse=True)
def nothing_called():
    CALLED.clear()


@pytest.fixture(params=[PickleCodec, JsonCodec], ids=["pickle", "json"])
def either(request):
    """What both codecs can do."""
    return request.param()


def again(codec, value):
    """The value as it comes back from a payload."""
    payload = codec.encode({"puts": {"key": value}}, "action 'load'")
    assert type(payload) is bytes
    return codec.decode(payload)["puts"]["key"]


def same(one, other):
    """Whether two values are equal, and so are the types of all that is in them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, one.items(), other.items()))
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (set, frozenset)):
        return one == other and sorted(map(repr, map(type, one))) == sorted(map(repr, map(type, other)))
    if isinstance(one, (datetime, time)):
        return one == other and one.fold == other.fold and one.tzinfo == other.tzinfo
    if isinstance(one, BaseException):
        return same(one.args, other.args) and same(one.__dict__, other.__dict__)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return one == other


VALUES = [
    *(None, True, False, 0, 1, -(2**63), 2**64, 10**5000, -(16**400), "", "x", "\0", "ä\ud83d\ude00\udcff\u2028"),
    *(0.0, -0.0, 1.5, 5e-324, 1e308, math.nan, math.inf, -math.inf, complex(1, -0.0), complex(math.nan, 1)),
    *(b"", b"\x00\xff", bytearray(b"x"), range(3), range(9, 0, -2), ...),
    *([], [1, "1", 1.0, True], (), (1,), [(1, [2])], set(), {1, "1"}, {True}, frozenset({(1, 2)}), {frozenset({1})}),
    *(
        {},
        {"a": {"b": None}},
        {1: 2, "1": 3, None: 4, 2.5: 5, (1, "x"): 6},
        {True: 1},
        {"$tuple": [1]},
        {"$": 1, "a": 2},
    ),
    *(date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6), datetime(2024, 1, 2, tzinfo=UTC)),
    *(datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), time(23, 59, 59, 999999, fold=1)),
    *(time(1, tzinfo=timezone(timedelta(hours=-3, seconds=7), "odd")), timedelta(-1, 2, 3), UTC, ZoneInfo("UTC")),
    *(Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN12"), Decimal("1E+999999"), Fraction(-1, 3)),
    *(UUID(int=7), Path("a/../b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:/x")),
    *(Colour.RED, Mode.READ, Mode.READ | Mode.RUN, Mode(0), Level.LOW, Status.COMPLETED),
    *(Point(1, (2, [3])), Point(True), Tree("t", [Tree("u")]), Celsius(1.5), Pair(1, {2}), [Pair(None, Pair(1, 2))]),
    *(OrderedDict(b=1, a=(2,)), Counter("aab"), deque([1, (2,)], 5), deque()),
    *(ValueError("no", 7), KeyError("k"), FileNotFoundError(2, "gone", "f"), ExceptionGroup("many", [ValueError(1)])),
    *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), Refused(404, url="x"), RunError("x"), KeyboardInterrupt()),
    *(UNSET, MISSING, Key("a.b"), Key("a", int), Key("a", list[int]), Key("a", dict[str, int | None]), Key("a", None)),
]

DEFINITIONS = [
    *(load, tuned, report, report["send"], process("x"), process(("x", 1), size=Point(1)), process("x")["handle"]),
    *(
        load.bind(rows=(1, 2)),
        load.with_options(name="other", tags={"t"}, timeout=3),
        tuned.bind().with_options(collect="c"),
    ),
    *(process("x").with_options(name="y", data={"a.b": (1,)}), report.with_options(tags=["z"], use=[atomic])),
    *(report["send"].with_options(name="mail"), process("x")["handle"].bind(kind="y").with_options(name="z")),
    *(Stage("made", [load, tuned], tags=["t"], data={"k": Point(1)}, title="T", description="d"), Stage("empty")),
    *(load >> report >> process("x"), pipeline(load, name="p", tags=["q"], use_stages=[atomic], description="d")),
    *(parallel(load, process("x") >> report, limit=2, merge={"n": max}), pipeline(), parallel(name="g")),
    *([process("a"), process("b")], (load, {"unit": report})),
    *(pipeline(report, process("x"), name="p").without("report/send"), (load >> report).only("report/send")),
    *(pipeline(process("x"), load).without("process/handle"), report.with_options(name="r")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(either, value):
    """Equal, and of the same types throughout."""
    assert same(again(either, value), value)
    assert same(again(either, [{"x": (value,)}]), [{"x": (value,)}])


@pytest.mark.parametrize("definition", DEFINITIONS, ids=shown)
def test_a_definition_comes_back_by_reference(either, definition):
    """Equal to what it was, and nothing of it is called."""
    assert again(either, definition) == definition
    assert CALLED == []


def test_an_action_of_an_object_comes_back_with_the_object(either):
    """As `bench.work` of a dataclass."""
    found = again(either, Bench("b").work)
    assert (found.__self__, found.name, found.__func__) == (Bench("b"), "work", Bench.__dict__["work"].__wrapped__)
    assert CALLED == []


def test_middleware_with_arguments_comes_back(either):
    """As of `retry` and `recover`, exception classes included."""
    unit = load.with_options(use=[retry(on=(ValueError, Refused), attempts=2), recover(on=KeyError, outcome=(1,))])
    found = again(either, unit)
    assert found == unit
    assert repr(found._self_options.use) == repr(unit._self_options.use)
    assert list(map(type, found._self_options.use)) == list(map(type, unit._self_options.use))


def test_a_stream_of_a_function_comes_back(either):
    """The function by reference, the arguments by value; an action can be the function, too."""
    found = again(either, stream(pages, 3, ("a",)))
    assert (found.source, found.args) == (pages, (3, ("a",)))
    assert again(either, stream(load)).source == load


def test_no_constructor_of_a_user_runs(either):
    """What dataclasses and exceptions were is put back, not done again."""
    tree = Tree("t")
    assert tree.size == 1
    CALLED.clear()
    found = again(either, [tree, Celsius(1.0)])
    assert found[0].__dict__ == tree.__dict__
    assert CALLED == ["setattr"]  # of the Celsius above
    assert same(again(JsonCodec(), Refused(1, url="u")), Refused(1, url="u"))


def test_notes_and_attributes_of_an_exception_come_back(either):
    """With its class and arguments."""
    error = ValueError("no")
    error.add_note("in action 'load'")
    error.detail = (1,)
    found = again(either, error)
    assert (found.__notes__, found.detail) == (["in action 'load'"], (1,))


def test_what_a_record_says_of_an_error_need_not_be_written_as_it_is(either):
    """An error that cannot be written is told: the run goes on all the same."""
    error = ValueError("no", threading.Lock())
    error.add_note("a note")
    found = either.decode(either.encode({"error": error, "puts": {"x": 1}}, "action 'load'"))
    assert type(found["error"]) is RunError
    assert str(found["error"]).startswith("ValueError: ('no', <unlocked _thread.lock")
    assert found["error"].__notes__ == ["a note"]
    assert found["puts"] == {"x": 1}


def test_a_codec_is_what_the_protocol_says(either):
    """A name, and two functions."""
    checked: Codec = either
    assert checked.name in {"pickle", "json"}


def scalars():
    texts = st.text(st.characters(exclude_categories=()), max_size=5)
    numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.decimals(), st.fractions(), st.complex_numbers())
    moments = st.one_of(st.datetimes(timezones=st.timezones() | st.none()), st.dates(), st.times(), st.timedeltas())
    return st.one_of(
        *(st.none(), texts, texts.map(lambda text: "$" + text), numbers, moments, st.binary(max_size=5), st.uuids()),
        st.sampled_from([*Colour, *Mode, *Level]),
    )


def hashables(inner):
    return st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3), st.builds(Point, st.integers(), inner)
    )


def hashable():
    numbers = scalars().filter(lambda value: not (isinstance(value, Decimal) and value.is_snan()) and value == value)
    return st.recursive(numbers, hashables, max_leaves=5)


def values():
    def collections(inner):
        return st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3) | hashable(), inner, max_size=3),
            st.sets(hashable(), max_size=3),
            st.builds(Pair, st.integers(), inner),
            st.builds(Tree, st.text(max_size=3)),
        )

    return st.recursive(scalars(), collections, max_leaves=10)


WIRE = [
    ('{"$dict":[[1,"a"],["$b",{"$tuple":[]}]]}', {1: "a", "$b": ()}),
    ('{"$enum":["test_durable_codec:Colour","RED"]}', Colour.RED),
    ('{"$flag":["test_durable_codec:Mode",["READ","RUN"]]}', Mode.READ | Mode.RUN),
    ('{"$object":["test_durable_codec:Point",{"x":1,"y":{"$float":"inf"}}]}', Point(1, math.inf)),
    ('{"$named":["test_durable_codec:Pair",[1,[2]]]}', Pair(1, [2])),
    ('{"$key":["a",{"of":"builtins:list","args":["builtins:int"]}]}', Key("a", list[int])),
    ('{"$action":"test_durable_codec:load"}', load),
    ('{"$stage":"test_durable_codec:report"}', report),
    ('{"$member":[{"$stage":"test_durable_codec:report"},1]}', report["send"]),
    ('{"$call":["test_durable_codec:process",["x"],{"size":2}]}', process("x", size=2)),
    ('{"$bound":[{"$action":"test_durable_codec:load"},{"rows":2}]}', load.bind(rows=2)),
    (
        '{"$made":["Parallel",[],{"name":"g","limit":2,"merge":{"$n":"max"},"tags":{"$frozenset":[]}}]}',
        parallel(name="g", limit=2, merge={"$n": max}),
    ),
    (
        (
            '{"$changed":[{"$action":"test_durable_codec:load"},'
            '{"use":[["retry",[],{"on":{"$classes":["builtins:KeyError"]},"attempts":2,"wait":0.1,"wait_max":30.0,'
            '"jitter":true}],["recover",[],{"on":{"$class":"builtins:OSError"},"outcome":null}]]}]}'
        ),
        load.with_options(use=[retry(on=(KeyError,), attempts=2), recover(on=OSError)]),
    ),
]


@pytest.mark.parametrize(("text", "value"), WIRE, ids=[text.split('"')[1] for text, _ in WIRE])
def test_json_is_written_as_it_always_was(text, value):
    """Old journals can be read, and new ones by old versions."""
    assert JsonCodec().encode(value, "x").decode() == text
    assert same(JsonCodec().decode(text.encode()), value)


@given(values())
def test_any_value_comes_back_from_json_as_it_was(value):
    """What the table of types can build, however it is nested."""
    assert same(again(JsonCodec(), value), value)


# What cannot be written.


class Holder:
    def __init__(self, **parts):
        self.__dict__.update(parts)


@dataclasses.dataclass
class Report:
    rows: list


@dataclasses.dataclass(slots=True)
class Slotted:
    inner: Any


def lock():
    return threading.Lock()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            {"puts": {"report": Report([1, 2, 3, Holder(lock=lock())])}},
            "action 'load': store[\"report\"].rows[3].lock: cannot pickle '_thread.lock' object",
        ),
        ({"appends": {"seen": [1, {"by": lock()}]}}, 'action \'load\': store["seen"][1]["by"]: cannot pickle'),
        ({"puts": {"fine": 1, 'a"b': lock()}}, "action 'load': store['a\"b']: cannot pickle"),
        ({"puts": {"x": {(1, 2): Pair(1, lock())}}}, "action 'load': store[\"x\"][(1, 2)].right: cannot pickle"),
        ({"puts": {"x": Slotted(Slotted(lock()))}}, "action 'load': store[\"x\"].inner.inner: cannot pickle"),
        ({"puts": {"x": functools.partial(plain, lock())}}, "action 'load': store[\"x\"].args[0]: cannot pickle"),
        ({"inserted": [process("a"), process(lock())]}, "action 'load': inserted[1].args[0]: cannot pickle"),
        ({"inserted": [load >> load.bind(rows=lock())]}, "action 'load': inserted[0][1][\"rows\"]: cannot pickle"),
        ({"result": ("value", lock())}, "action 'load': result[1]: cannot pickle"),
        ({"puts": {"x": (n for n in [1])}}, "action 'load': store[\"x\"]: cannot pickle 'generator' object"),
    ],
)
def test_pickle_names_the_part_that_cannot_be_written(payload, message):
    """By the key of the store and the path in it, as one would write it."""
    with pytest.raises(SerializationError) as caught:
        PickleCodec().encode(payload, "action 'load'")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            Report([1, Holder()]),
            ".rows[1]: JSON cannot hold a Holder: register it, codec.register(Holder, write, read), or make it a dataclass",
        ),
        ({"a": [Holder]}, '["a"][0]: JSON cannot hold the type Holder: functions and classes are not data'),
        ([plain], "[0]: JSON cannot hold the function plain: functions and classes are not data"),
        (defaultdict(list, a=[1]), ": JSON cannot hold a defaultdict: register it"),
        ({1: {Colour}}, "[1] (the element <enum 'Colour'>): JSON cannot hold the EnumType Colour"),
        (
            stream(plain, 1),
            ": JSON refers to generator functions, and test_durable_codec:plain is not one: codec.allow(plain)",
        ),
        (stream(os.walk, "."), ": no loaded module has a generator function os:walk"),
        (stream(iter([])), ": a stream of <list_iterator"),
        (Stage("s", [plain]), ": action 'plain' cannot be referred to: test_durable_codec:plain is not this action"),
        (parallel(load, merge={"x": plain}), ": JSON refers to generator functions"),
        (
            parallel(load, merge={"x": lambda x, y: x + y}),
            ": test_durable_codec:<lambda> cannot be referred to: define it by `def` at module level",
        ),
        (SimpleNamespace(a=1), ": JSON cannot hold a SimpleNamespace"),
    ],
)
def test_json_names_the_part_that_cannot_be_written(value, message):
    """And what to do about it."""
    with pytest.raises(SerializationError) as caught:
        JsonCodec().encode({"puts": {"key": value}}, "action 'load'")
    assert str(caught.value).startswith(f"action 'load': store[\"key\"]{message}")


def test_what_is_local_cannot_be_referred_to():
    """A class, an action, a stage that no import leads to."""

    @dataclasses.dataclass
    class Local:
        x: int

    @action
    def inner():
        pass

    class Other(enum.Enum):
        A = 1

    codec = JsonCodec()
    for value in (Local(1), inner, Stage("s", [inner]), Other.A, type("E", (Exception,), {})):
        if isinstance(value, type):
            assert type(codec.decode(codec.encode(value("x"), "x"))) is RunError
            continue
        with pytest.raises(SerializationError, match="cannot be referred to"):
            codec.encode(value, "x")
    for value in (inner, Stage("s", [inner])):
        with pytest.raises(SerializationError, match="cannot pickle action 'inner': it is defined inside a function"):
            PickleCodec().encode({"inserted": [value]}, "action 'load'")


def test_a_template_defined_inside_a_function_is_refused_with_the_cure():
    """It is named as the template that it is; to make it one is no advice."""

    @stage
    def local(number):
        @action
        def work(): ...

    with pytest.raises(SerializationError) as caught:
        PickleCodec().encode({"inserted": [local(3)]}, "action 'load'")
    where = "test_a_template_defined_inside_a_function_is_refused_with_the_cure.<locals>.local"
    assert str(caught.value) == (
        "action 'load': inserted[0].template: cannot pickle stage template 'local': it is defined inside a function "
        f"({__name__}:{where}): move it to module level"
    )


class Broken:
    def __getstate__(self):
        return self.connection


@pytest.mark.parametrize("codec", [PickleCodec(), JsonCodec().register(Broken, Broken.__getstate__, Broken)])
def test_the_traceback_of_a_value_that_cannot_be_written_has_user_code_alone(codec):
    """What raised in it is the cause; where flowdeco's own code found out is not shown."""

    def printed(value):
        with pytest.raises(SerializationError) as caught:
            codec.encode({"puts": {"x": value}}, "action 'load'")
        return "".join(traceback.format_exception(caught.value.with_traceback(None)))

    assert printed(lock()).count("Traceback") == 0
    assert printed(Broken()).count("Traceback") == 1
    assert "return self.connection" in printed(Broken())


def test_inputs_are_named_as_inputs():
    """They are no payload of an action."""
    with pytest.raises(SerializationError, match=r'inputs\["puts"\]\["x"\]: cannot pickle'):
        PickleCodec().encode({"puts": {"x": lock()}}, "inputs")


def test_a_value_that_contains_itself_is_refused_by_json_and_kept_by_pickle():
    """JSON has no references; neither fails in another way."""
    loop = []
    loop.append(loop)
    with pytest.raises(SerializationError, match='store\\["loop"\\]: it is nested too deeply, or contains itself'):
        JsonCodec().encode({"puts": {"loop": loop}}, "x")
    found = again(PickleCodec(), loop)
    assert found[0] is found


def test_what_is_nested_too_deeply_is_an_error_at_once(either):
    """Not a crash of the interpreter."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested too deeply"):
        either.encode({"puts": {"deep": deep}}, "x")
    while deep:
        deep = deep[0]


@pytest.mark.parametrize(
    "value",
    [
        *(
            type("Sub", (base,), {"__module__": __name__, "__qualname__": "Sub"})()
            for base in (int, str, list, dict, set, tuple)
        ),
        Listed(1),
    ],
    ids=lambda value: type(value).__mro__[1].__name__,
)
def test_subclasses_of_plain_types_are_not_taken_for_them(value):
    """They would come back as something else."""
    with pytest.raises(SerializationError):
        JsonCodec().encode(value, "x")


# Registered types, allowed functions.


def test_registered_types_come_back_by_their_functions():
    """Exactly of that class; the codec that reads must know them, too."""
    codec = JsonCodec().register(Money, lambda money: {"cents": (money.cents,)}, lambda said: Money(*said["cents"]))
    payload = codec.encode({"puts": {"price": [Money(5)]}}, "x")
    assert codec.decode(payload) == {"puts": {"price": [Money(5)]}}
    with pytest.raises(
        JournalError, match=r"the type test_durable_codec:Money is not registered: codec.register\(Money"
    ):
        JsonCodec().decode(payload)


def test_allowed_functions_can_be_sources_and_reducers():
    """What generator functions are by themselves."""
    codec = JsonCodec().allow(plain)
    assert again(codec, stream(plain, 1)).source is plain
    assert again(codec, parallel(load, merge={"x": plain})).merge == {"x": plain}
    with pytest.raises(JournalError):
        JsonCodec().decode(codec.encode(stream(plain, 1), "x"))


# Reading what is damaged, old, or hostile.


@pytest.mark.parametrize("payload", [b"", b"garbage", b"\x80\x05.", b"\x80\x05\x95\xff", b"\xff\xfe", b"null null"])
def test_damaged_payloads_are_journal_errors(either, payload):
    """Whatever is in them."""
    with pytest.raises(JournalError, match="a value of this run cannot be read back"):
        either.decode(payload)


def test_pickle_says_what_code_is_gone():
    """By its name, and what to do."""
    payload = pickle.dumps(Money(1)).replace(b"Money", b"Honey")
    with pytest.raises(JournalError, match="refers to code that no longer exists: .*Honey.* To resume, put it back"):
        PickleCodec().decode(payload)


OLD_NAMES = {
    **{f"flowdeco.model.{name}": "flowdeco.definitions" for name in ("definitions", "units", "streams", "runnable")},
    "flowdeco.model.options": "flowdeco.options",
    "flowdeco.model.references": "flowdeco.references",
    "flowdeco.model.keys": "flowdeco.store",
    "flowdeco.model.sentinels\nMISSING": "flowdeco.store\nMISSING",
    "flowdeco.model.sentinels\nUNSET": "flowdeco.options\nUNSET",
    "flowdeco.engine.results": "flowdeco.returned",
    "flowdeco.engine.outcome": "flowdeco.runs",
    "flowdeco.errors\nProblem": "flowdeco.wiring\nProblem",
    "flowdeco.middleware\nRe": "flowdeco.middleware\n_Re",
}


@pytest.mark.parametrize(
    "value",
    [
        *DEFINITIONS,
        *(Status.COMPLETED, UNSET, MISSING, Key("a", int), Yielded([1]), Problem("s", "a", "x", "x", True, "no x")),
        load.with_options(use=[retry(on=KeyError), recover(on=OSError)]),
        stream(pages, 3, "a"),
    ],
    ids=shown,
)
def test_pickles_from_before_a_move_can_be_read(value):
    """Modules and classes of flowdeco had other names when older journals were written."""
    payload = pickle.dumps({"puts": {"key": value}}, 0)  # protocol 0 is text
    for new, old in OLD_NAMES.items():
        payload = payload.replace(f"c{new}".encode(), f"c{old}".encode())
    with pytest.raises((ImportError, AttributeError)):
        pickle.loads(payload)
    found = PickleCodec().decode(payload)["puts"]["key"]
    assert repr(found) == repr(value) if isinstance(value, Stream) else found == value
    assert type(found) is type(value)


def test_json_from_before_a_move_can_be_read():
    """As that of pickle."""
    assert JsonCodec().decode(node("$enum", ["flowdeco.runs:Status", "COMPLETED"])) is Status.COMPLETED


def test_pickle_takes_exceptions_whose_init_wants_other_arguments():
    """They are common, and pickle alone would fail when the run is resumed."""
    found = again(PickleCodec(), [Refused(404, url="x"), ValueError("y")])
    assert [type(error) for error in found] == [Refused, ValueError]
    assert (found[0].args, found[0].code) == (("404 from x",), 404)


def node(tag, content):
    return json.dumps({tag: content}).encode()


HOSTILE = {
    "a function of os": node("$call", ["os:system", ["touch pwned"], {}]),
    "a builtin": node("$call", ["builtins:eval", ["1"], {}]),
    "a class instead of a template": node("$call", [f"{__name__}:Trap", [], {}]),
    "a plain function instead of a template": node("$call", [f"{__name__}:plain", [], {}]),
    "an action instead of a template": node("$call", [f"{__name__}:load", [], {}]),
    "a class instead of a dataclass": node("$object", [f"{__name__}:Trap", {}]),
    "an instance instead of a dataclass": node("$object", [f"{__name__}:trap", {}]),
    "a dataclass with other fields": node("$object", [f"{__name__}:TrapData", {"x": 1, "y": 2}]),
    "an attribute of an instance": node("$object", [f"{__name__}:trap.anything", {}]),
    "an attribute of a module through a class": node("$stage", "os:path.join.__globals__"),
    "dunder names": node("$action", f"{__name__}:load.__wrapped__.__globals__"),
    "subclasses of object": node("$call", ["builtins:object.__subclasses__", [], {}]),
    "a module in a module": node("$call", [f"{__name__}:os.system", ["touch pwned"], {}]),
    "a module that is not loaded": node("$object", ["antigravity:fly", {}]),
    "a module by a file name": node("$object", ["../evil:X", {}]),
    "no module": node("$object", ["X", {}]),
    "an empty name": node("$object", [f"{__name__}:", {}]),
    "a list as a name": node("$object", [["os"], {}]),
    "a stream of a function": node("$stream", ["os:system", ["touch pwned"]]),
    "a stream of a generator function of the standard library": node("$stream", ["os:walk", ["/"]]),
    "a stream of an object": node("$stream", [f"{__name__}:trap", []]),
    "an object as a class": node("$exception", [f"{__name__}:trap", [], {}]),
    "an object as an enum": node("$enum", [f"{__name__}:trap", "x"]),
    "an object as a template": node("$call", [f"{__name__}:trap", [], {}]),
    "an object as a type": node("$key", ["x", f"{__name__}:trap"]),
    "a stream of a plain function": node("$stream", [f"{__name__}:plain", []]),
    "a reducer": node("$made", ["Parallel", [], {"merge": {"x": "os:system"}}]),
    "a middleware": node("$made", ["Pipeline", [], {"use": ["os:system"]}]),
    "a middleware with arguments": node("$made", ["Pipeline", [], {"use": [["os:system", ["touch pwned"], {}]]}]),
    "another thing to make": node("$made", ["Action", [], {}]),
    "options that do not exist": node("$made", ["Pipeline", [], {"exec": "x"}]),
    "units that are none": node("$made", ["Pipeline", [1], {}]),
    "an action that is a function": node("$action", f"{__name__}:plain"),
    "an action that is a stage": node("$action", f"{__name__}:report"),
    "a member that is not there": node("$member", [{"$stage": f"{__name__}:report"}, 7]),
    "a member before the first": node("$member", [{"$stage": f"{__name__}:report"}, -1]),
    "a member of an action": node("$member", [{"$action": f"{__name__}:load"}, 0]),
    "a change of a value": node("$changed", [{"$value": ["x", 1]}, {}]),
    "a change of a text": node("$changed", ["format", {"x": 1}]),
    "a bound value that is no parameter": node("$bound", [{"$action": f"{__name__}:load"}, {"__class__": 1}]),
    "a method that is none": node("$method", ["__init__", {"$object": [f"{__name__}:Bench", {"name": "x"}]}]),
    "a method of a stage": node("$method", [{"$stage": f"{__name__}:report"}, "x"]),
    "a part of a stage that is not there": node("$narrowed", [{"$stage": f"{__name__}:report"}, [0, 2]]),
    "an exception that is a class": node("$exception", [f"{__name__}:Trap", [], {}]),
    "an exception that is a function": node("$exception", ["os:system", ["touch pwned"], {}]),
    "an enum that is a class": node("$enum", [f"{__name__}:Trap", "x"]),
    "a member of an enum that is a method": node("$enum", [f"{__name__}:Colour", "__call__"]),
    "flags of an enum": node("$flag", [f"{__name__}:Colour", []]),
    "a flag that is not there": node("$flag", [f"{__name__}:Mode", ["mro"]]),
    "a named tuple that is a class": node("$named", [f"{__name__}:Trap", []]),
    "a named tuple that is a tuple": node("$named", ["builtins:tuple", []]),
    "a named tuple of another length": node("$named", [f"{__name__}:TrapTuple", [1, 2]]),
    "a type that is not registered": node("$value", ["os:system", "touch pwned"]),
    "a type that is no class": node("$key", ["x", "os:system"]),
    "a generic type that is no class": node("$key", ["x", {"of": "os:system", "args": []}]),
    "an unknown tag": node("$reduce", ["os:system", ["touch pwned"]]),
    "a tag of a class": node("$__reduce__", ["os:system", ["touch pwned"]]),
    "a tag among other keys": json.dumps({"$tuple": [1], "x": 1}).encode(),
    "two tags": json.dumps({"$tuple": [1], "$set": [1]}).encode(),
    "a tag with a text": node("$tuple", "abc"),
    "a tag with nothing": node("$object", None),
    "a list that is too short": node("$object", []),
    "pairs that are none": node("$dict", [[1, 2, 3]]),
    "a key that cannot be one": node("$dict", [[[1], 2]]),
    "an element that cannot be one": node("$set", [[1]]),
    "a path of another kind": node("$path", ["__class__", "/"]),
    "a path of another system": node("$path", ["WindowsPath", "c:/"]),
    "a time zone by a path": node("$zone", "../../../etc/passwd"),
    "a fraction by a text": node("$fraction", ["1e999999999"]),
    "a time out of range": node("$timedelta", [10**30, 0, 0]),
    "a number in words": node("$int", "__import__"),
    "a constant": node("$constant", "__builtins__"),
    "constants of JavaScript": b"[NaN, Infinity]",
    "a very long number": b"1" * 10_000,
    "a very deep list": b"[" * 100_000 + b"]" * 100_000,
    "very deep tags": b'{"$tuple":[' * 50_000 + b"]}" * 50_000,
    "a pickle": b"cos\nsystem\n(S'touch pwned'\ntR.",
    "a deque without end": node("$deque", [1, 2]),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_an_error_and_calls_nothing(payload, tmp_path, monkeypatch):
    """No function, no constructor, no import, no attribute of an object; the interpreter survives."""
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    for wrapped in (payload, b'{"puts": {"x": [' + payload + b"]}}"):
        with pytest.raises(JournalError):
            JsonCodec().decode(wrapped)
    assert CALLED == []
    assert set(sys.modules) == loaded
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (node("$object", [f"{__name__}:TrapData", {"x": 1}]), TrapData),
        (node("$exception", [f"{__name__}:TrapError", [1], {"x": 1}]), TrapError),
        (node("$named", [f"{__name__}:TrapTuple", [1]]), TrapTuple),
        (node("$action", f"{__name__}:load"), type(load)),
        (node("$call", [f"{__name__}:process", ["x"], {}]), Stage),
    ],
)
def test_what_is_made_from_a_file_is_made_without_its_constructor(payload, kind):
    """Dataclasses and exceptions are filled in; actions are not called; templates are."""
    assert type(JsonCodec().decode(payload)) is kind
    assert CALLED == []


def test_reading_json_imports_nothing(tmp_path):
    """A module that could be imported, but was not, is not there: in a process that has loaded nothing else."""
    (tmp_path / "evil.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('pwned').touch()\nclass X: pass\n"
    )
    source = """
        import sys
        from flowdeco.durable import JsonCodec
        from flowdeco.errors import JournalError
        before = set(sys.modules)
        for tag, content in (("$object", '["evil:X", {}]'), ("$zone", '"Europe/Berlin"'), ("$call", '["evil:X", [], {}]')):
            try:
                JsonCodec().decode(f'{{"{tag}": {content}}}'.encode())
            except JournalError as error:
                assert "not loaded" in str(error), error
            else:
                raise SystemExit(f"{tag} was read")
        assert set(sys.modules) == before, set(sys.modules) - before
    """
    root = str(Path(flowdeco.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    subprocess.run([sys.executable, "-c", textwrap.dedent(source)], check=True, env=env, timeout=50)
    assert not (tmp_path / "pwned").exists()


# Things of __main__, and cloudpickle.


def run_main(tmp_path, source, *args):
    """Run a script of that source as `__main__`."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    env = {**os.environ, "PYTHONPATH": str(Path(flowdeco.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, str(script), *args], env=env, timeout=50, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_resumed_script_finds_its_own_classes(tmp_path):
    """Classes of `__main__` go by reference, even beside a lambda that goes by value."""
    pytest.importorskip("cloudpickle")
    source = """
        import pathlib, sys
        from flowdeco.durable import PickleCodec
        class Row:
            pass
        file = pathlib.Path(__file__).with_suffix(".payload")
        if sys.argv[1] == "write":
            file.write_bytes(PickleCodec().encode({"puts": {"row": Row(), "double": lambda x: 2 * x}}, "x"))
        else:
            found = PickleCodec().decode(file.read_bytes())["puts"]
            print(type(found["row"]) is Row, found["double"](4))
    """
    run_main(tmp_path, source, "write")
    assert run_main(tmp_path, source, "read") == "True 8"


def test_without_cloudpickle_the_message_says_what_to_install(monkeypatch):
    """Where it would help, and only there."""
    monkeypatch.setattr(codec, "_by_value", lambda: None)
    with pytest.raises(SerializationError, match=r"store\[\"f\"\].*pip install 'flowdeco\[cloudpickle\]'"):
        PickleCodec().encode({"puts": {"f": lambda: 1}}, "x")
    with pytest.raises(SerializationError, match=r"x: inserted\[0\]\[\"rows\"\]: Can't .*pip install"):
        PickleCodec().encode({"inserted": [load.bind(rows=lambda: 1)]}, "x")
    with pytest.raises(
        SerializationError, match=r"inserted\[0\]: cannot pickle action 'load': its option 'use'\[0\]: .*pip"
    ):
        PickleCodec().encode({"inserted": [load.with_options(use=[lambda call: (yield)])]}, "x")
    for value in (lock(), load.bind(rows=lock())):
        with pytest.raises(SerializationError) as caught:
            PickleCodec().encode({"puts": {"f": value}}, "x")
        assert "pip" not in str(caught.value)


def test_values_in_definitions_are_left_to_cloudpickle():
    """As values in the store are."""
    pytest.importorskip("cloudpickle")
    payload = PickleCodec().encode({"inserted": [load.bind(rows=lambda: 7), process(lambda: 8)]}, "x")
    bound, made = PickleCodec().decode(payload)["inserted"]
    assert bound_of(bound)["rows"]() == 7
    assert made.template is process


def test_a_payload_of_cloudpickle_says_if_it_is_missing(monkeypatch):
    """When the run is resumed somewhere else."""
    if importlib.util.find_spec("cloudpickle") is None:
        pytest.skip("cloudpickle is not installed")
    payload = PickleCodec().encode({"puts": {"f": lambda: 1}}, "x")
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.setitem(sys.modules, "cloudpickle.cloudpickle", None)
    with pytest.raises(JournalError, match="cloudpickle"):
        PickleCodec().decode(payload)


# -- outlines


class Account:
    """A value of a class of the user's own."""

    def __init__(self, name):
        self.name = name


class Declined(Exception):
    """An error of a class of the user's own."""


def test_an_outline_imports_no_code(monkeypatch):
    """Values and errors of classes that are not loaded have stand-ins with their names; others are as they were."""
    error = Declined("no")
    error.add_note("a note")
    given = {"error": error, "puts": {"a": Account("x"), "b": [1, (2,)], "c": Decimal(3)}, "inserted": (Stage("s"),)}
    payload = PickleCodec().encode(given, "")
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    read = OutlineCodec().decode(payload)
    assert (type(read["error"]).__name__, str(read["error"]), read["error"].__notes__) == ("Declined", "no", ["a note"])
    assert not isinstance(read["error"], Declined)
    assert (type(read["puts"]["a"]).__name__, type(read["puts"]["a"]).__module__) == ("Account", __name__)
    assert (read["puts"]["b"], read["puts"]["c"]) == ([1, (2,)], Decimal(3))
    assert not isinstance(read["inserted"][0], Stage)
    with pytest.raises(JournalError):
        OutlineCodec().decode(b"?")


def test_an_outline_runs_no_code_of_a_journal(tmp_path):
    """Neither a function, nor a class that a harmless module imports, nor the list of the parts of a large value."""
    victim = tmp_path / "victim"
    victim.write_text("safe")

    def calling(module, name, argument):
        names = b"".join(b"\x8c" + bytes([len(each)]) + each.encode() for each in (module, name))
        text = b"X" + len(argument).to_bytes(4, "little") + argument.encode()
        return b"\x80\x05" + names + b"\x93" + text + b"X\x01\x00\x00\x00w\x86R."

    for module, name in [("pathlib", "io.FileIO"), ("builtins", "open"), ("os", "mkdir"), ("pathlib", "os.mkdir")]:
        payload = calling(module, name, str(victim))
        OutlineCodec().decode(payload)
        assert victim.read_text() == "safe"
        with pytest.raises(JournalError):
            OutlineCodec().decode(Payload(payload, []))
        assert victim.read_text() == "safe"


def test_an_outline_in_json_has_stand_ins_too():
    """For what its codec cannot read without the code."""
    payload = (
        b'{"by":"a/b","error":{"$exception":["gone:Declined",["no"],{}]},"inserted":{"$tuple":[{"$call":["gone:stage",["x"]'
        b',{}]}]},"puts":{"a":{"$value":["Account",{"name":1}]},"b":[1,{"$tuple":[2]}],"c":{"$zone":"UTC"}}}'
    )
    read = OutlineJsonCodec().decode(payload)
    assert (read["by"], type(read["error"]).__name__, str(read["error"])) == ("a/b", "Declined", "no")
    assert [type(unit).__name__ for unit in read["inserted"]] == ["stage"]
    assert (type(read["puts"]["a"]).__name__, read["puts"]["b"]) == ("Account", [1, (2,)])
    assert OutlineJsonCodec().decode(JsonCodec().encode({"a": 1}, "")) == {"a": 1}
    with pytest.raises(JournalError):
        OutlineJsonCodec().decode(b"?")


def test_a_function_that_states_no_module_is_written_by_value():
    """One made by `exec`, say."""
    pytest.importorskip("cloudpickle")
    space = {}
    exec("def answer(): return 42", space)
    space["answer"].__module__ = None
    codec = PickleCodec()
    assert codec.decode(codec.encode({"f": space["answer"]}, "f"))["f"]() == 42
