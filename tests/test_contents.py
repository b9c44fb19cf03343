"""The content of values: which of them agree, and which parts they have."""

import copy
import math
import pickle
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import PurePosixPath
from threading import Lock
from typing import NamedTuple

import pytest

from flowdeco.model import identity
from flowdeco.model.contents import agree, mutable_parts, taken_apart
from flowdeco.model.functions import as_written
from flowdeco.model.identity import defaults_of, keep_defaults, text_of


def nan():
    """A NaN of its own."""
    return float("nan")


class Pair(NamedTuple):
    one: object
    other: object


@dataclass
class Point:
    x: object
    note: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Slotted:
    x: object


@dataclass
class Named:
    """A dataclass with an `__eq__` of its own."""

    name: str

    def __eq__(self, other):
        return self.name.lower() == other.name.lower()


class Plain:
    """A value without `__eq__`."""

    def __init__(self, x):
        self.x = x


class Undecided(Plain):
    """As an array: its `__eq__` raises."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")


class Empty:
    """The same, and there is nothing in it that could be compared."""

    __hash__ = None
    __eq__ = Undecided.__eq__


class Expression(Plain):
    """As a column of a query: its `__eq__` gives something that is neither True nor False."""

    __hash__ = None

    def __eq__(self, other):
        return ("==", self, other)


class Lazy(Plain):
    @cached_property
    def twice(self):
        return [self.x, self.x]


def looked_at():
    lazy = Lazy(1)
    assert lazy.twice
    return lazy


def endless():
    """A list that contains itself."""
    found = [1]
    found.append(found)
    return found


def endless_object():
    found = Plain(1)
    found.me = {"again": found}
    return found


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


SAME = {
    "NaN": nan,
    "complex NaN": lambda: complex(1, math.nan),
    "NaN in a list": lambda: [nan(), 1],
    "NaN in a tuple": lambda: (nan(), 1),
    "NaN in a dict": lambda: {"a": {"b": nan()}},
    "NaN as a key": lambda: {nan(): nan(), 1: 2},
    "NaN in a set": lambda: {nan(), 1, (2, nan())},
    "NaN in a frozenset": lambda: frozenset([nan(), 1]),
    "NaN in a deque": lambda: deque([nan()], 3),
    "NaN in a defaultdict": lambda: defaultdict(list, a=[nan()]),
    "NaN in an OrderedDict": lambda: OrderedDict(a=nan()),
    "NaN in an array": lambda: array("d", [nan()]),
    "NaN in a dataclass": lambda: Point([nan()]),
    "NaN in a frozen dataclass": lambda: Slotted(nan()),
    "NaN in a namedtuple": lambda: Pair(nan(), [nan()]),
    "NaN in an object": lambda: Plain(nan()),
    "Decimal NaN": lambda: Decimal("nan"),
    "Counter": lambda: Counter("aab"),
    "date": lambda: datetime(2024, 1, 1, tzinfo=UTC),
    "exception": lambda: ValueError("no"),
    "bytes": lambda: [b"a", bytearray(b"b")],
    "object": object,
    "an __eq__ that raises": lambda: Undecided([1]),
    "an __eq__ that returns no bool": lambda: Expression({"a": nan()}),
    "cyclic list": endless,
    "cyclic object": endless_object,
    "very deep": lambda: nested(50_000),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_equal_values_of_one_type_agree(make):
    """Whether they are made twice, or one is the copy of the other that another process sends back."""
    one = make()
    assert agree(one, one)
    assert agree(one, make())


@pytest.mark.parametrize("name", [name for name in SAME if name != "very deep"])
def test_a_value_agrees_with_its_copies(name):
    """So threads and processes decide alike (Netflix/metaflow#394)."""
    one = SAME[name]()
    assert agree(one, copy.deepcopy(one))
    assert agree(one, pickle.loads(pickle.dumps(one)))


DIFFERENT = {
    "True and 1": (True, 1),
    "1 and 1.0": (1, 1.0),
    "nested types": ({"a": [1]}, {"a": [True]}),
    "types of keys": ({1: "a"}, {True: "a"}),
    "types in a set": ({1}, {1.0}),
    "types in a dataclass": (Point(1), Point(True)),
    "types in a namedtuple": (Pair(1, 2), Pair(1.0, 2)),
    "a tuple and a list": ((1,), [1]),
    "a tuple and a namedtuple": ((1, 2), Pair(1, 2)),
    "shapes": ([[1]], [1]),
    "lengths": ([1], [1, 1]),
    "items": ([1, 2], [2, 1]),
    "keys": ({"a": None}, {"b": None}),
    "sets": ({1, math.nan}, {2, math.nan}),
    "sizes of sets": ({1}, {1, 2}),
    "numbers of NaN": ({nan(), 1, 2}, {nan(), nan(), 1}),
    "complex NaN": (complex(1, math.nan), complex(2, math.nan)),
    "NaN and a number": (math.nan, 1.0),
    "objects": (Plain(1), Plain(2)),
    "undecided objects": (Undecided(1), Undecided(2)),
    "expressions": (Expression(1), Expression(2)),
    "cyclic lists": ([endless(), 1], [endless(), 2]),
    "orders of an OrderedDict": (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    "bounds of a deque": (deque([1], 1), deque([1])),
    "type codes of an array": (array("i", [1]), array("l", [1])),
    "undecided objects without content": (Empty(), Empty()),
    "functions": (lambda: 1, lambda: 1),
    "locks": (Lock(), Lock()),
    "objects that hold locks": (Plain(Lock()), Plain(Lock())),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_values_and_other_types_do_not_agree(one, other):
    """In either order."""
    assert not agree(one, other)
    assert not agree(other, one)


def test_dicts_and_sets_agree_in_any_order():
    """As they are equal in any order."""
    assert agree({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert agree({"a", "b", "c"}, {"c", "b", "a"})


def test_an_own_eq_that_says_true_is_trusted():
    """It knows what counts; fields that are not compared do not count either."""
    assert agree(Named("Ada"), Named("ADA"))
    assert not agree(Named("Ada"), Named("Bob"))
    assert agree(Point(1, note="left"), Point(1, note="right"))


def test_a_cache_is_no_content():
    """A value that was looked at agrees with one that was not."""
    assert agree(Lazy(1), looked_at())
    assert taken_apart(looked_at()).state == {"x": 1}
    assert taken_apart(looked_at(), with_caches=True).state == {"x": 1, "twice": [1, 1]}


# -- arrays and frames

ARRAYS = {
    "numbers": lambda np: np.array([1, 2]),
    "NaN": lambda np: np.array([1.0, math.nan]),
    "no items": lambda np: np.zeros((0, 3)),
    "no dimensions": lambda np: np.array(1.5),
    "a scalar": lambda np: np.float64("nan"),
    "objects": lambda np: np.array(["a", None, nan()], dtype=object),
    "complex": lambda np: np.array([1, complex(math.nan, 1)]),
    "dates": lambda np: np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
    "records": lambda np: np.array([(1, math.nan)], dtype=[("a", int), ("b", float)]),
    "a view": lambda np: np.arange(12.0).reshape(3, 4)[:, ::2],
    "masked": lambda np: np.ma.masked_array([1, math.nan], [True, False], fill_value=0),
    "in an object": lambda np: Plain({"a": np.array([math.nan])}),
    "in a dataclass": lambda np: Point(np.array([1, 2])),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_arrays_agree_by_content(make):
    """`==` of them gives an array, or raises (PrefectHQ/prefect#2441)."""
    np = pytest.importorskip("numpy")
    assert agree(make(np), make(np))
    assert agree(make(np), pickle.loads(pickle.dumps(make(np))))


OTHER_ARRAYS = {
    "items": lambda np: (np.array([1, 2]), np.array([1, 3])),
    "shapes": lambda np: (np.array([[1]]), np.array([1])),
    "types": lambda np: (np.array([1]), np.array([1.0])),
    "sizes of a type": lambda np: (np.array([1.0]), np.array([1.0], dtype="float32")),
    "orders of bytes": lambda np: (np.array([1], dtype="<i4"), np.array([1], dtype=">i4")),
    "records beside a NaN": lambda np: tuple(
        np.array([(n, math.nan)], dtype=[("a", int), ("b", float)]) for n in range(2)
    ),
    "complex NaN": lambda np: (np.array([complex(math.nan, 1)]), np.array([complex(math.nan, 2)])),
    "an array and a list": lambda np: (np.array([1]), [1]),
    "a scalar and a number": lambda np: (np.float64(1), 1.0),
    "masks": lambda np: (np.ma.masked_array([1, 2], [True, False]), np.ma.masked_array([1, 2], [False, True])),
}


@pytest.mark.parametrize("make", OTHER_ARRAYS.values(), ids=OTHER_ARRAYS)
def test_arrays_of_other_content_type_or_shape_do_not_agree(make):
    """Whatever `==` makes of them."""
    one, other = make(pytest.importorskip("numpy"))
    assert not agree(one, other)
    assert not agree(other, one)


FRAMES = {
    "pandas": {
        "frame": lambda pd: pd.DataFrame({"a": [1, None], "b": ["x", None], "c": [True, False]}),
        "empty frame": lambda pd: pd.DataFrame(),
        "series": lambda pd: pd.Series([1, math.nan], name="x"),
        "index": lambda pd: pd.Index([1, math.nan]),
        "multi-index": lambda pd: pd.MultiIndex.from_product([[1, 2], ["a", "b"]]),
        "dates": lambda pd: pd.date_range("2024", periods=3, tz="UTC"),
        "categories": lambda pd: pd.Series(["a", "b", None], dtype="category"),
        "nullable": lambda pd: pd.Series([1, None], dtype="Int64"),
    },
    "polars": {
        "frame": lambda pl: pl.DataFrame({"a": [1, None], "b": [math.nan, 1.0], "c": ["x", None]}),
        "empty frame": lambda pl: pl.DataFrame(),
        "series": lambda pl: pl.Series("x", [1.0, math.nan]),
    },
}
OTHER_FRAMES = {
    "pandas": {
        "values": lambda pd: (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
        "types": lambda pd: (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1.0]})),
        "columns": lambda pd: (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
        "indexes": lambda pd: (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}, index=[1])),
        "names": lambda pd: (pd.Series([1], name="a"), pd.Series([1], name="b")),
        "a frame and a series": lambda pd: (pd.DataFrame({"a": [1]}), pd.Series([1], name="a")),
    },
    "polars": {
        "values": lambda pl: (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})),
        "types": lambda pl: (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [1.0]})),
        "columns": lambda pl: (pl.DataFrame({"a": [1]}), pl.DataFrame({"b": [1]})),
        "names": lambda pl: (pl.Series("a", [1]), pl.Series("b", [1])),
    },
}


def of_each(frames):
    """The cases of every library."""
    return [
        pytest.param(library, make, id=f"{library}: {name}")
        for library in frames
        for name, make in frames[library].items()
    ]


@pytest.mark.parametrize(("library", "make"), of_each(FRAMES))
def test_frames_agree_by_content(library, make):
    """`==` of them gives a frame (PrefectHQ/prefect#2441)."""
    loaded = pytest.importorskip(library)
    assert agree(make(loaded), make(loaded))
    assert agree([make(loaded)], [pickle.loads(pickle.dumps(make(loaded)))])


@pytest.mark.parametrize(("library", "make"), of_each(OTHER_FRAMES))
def test_frames_of_other_content_do_not_agree(library, make):
    """Types of data, names and indexes included."""
    one, other = make(pytest.importorskip(library))
    assert not agree(one, other)
    assert not agree(other, one)


class Modelled(Lazy):
    """As a model of pydantic: its state has the attributes under a name of their own."""

    def __getstate__(self):
        return {"__dict__": dict(vars(self)), "__pydantic_private__": None}


def test_a_cache_in_the_state_of_a_model_is_no_content():
    """Neither is it where the state has attributes inside another dict."""
    looked = Modelled(1)
    assert looked.twice
    assert agree(Modelled(1), looked)
    assert not agree(Modelled(2), looked)
    assert taken_apart(looked).state["__dict__"] == {"x": 1}
    assert taken_apart(looked).cached == 1


def test_buffers_agree_by_their_bytes():
    """They are what some arrays consist of; the buffers themselves have no `__eq__`."""
    assert agree(pickle.PickleBuffer(b"a"), pickle.PickleBuffer(bytearray(b"a")))
    assert not agree(pickle.PickleBuffer(b"a"), pickle.PickleBuffer(b"b"))


def test_what_is_global_is_taken_apart_into_its_name():
    """As `pickle` does with a value whose `__reduce__` returns a name."""
    assert taken_apart(Ellipsis).maker == "Ellipsis"
    assert agree([Ellipsis], [Ellipsis])


def test_frames_of_polars_are_taken_apart_by_columns():
    """Numbers without gaps are arrays of numpy, however they are laid out in chunks."""
    pl, np = pytest.importorskip("polars"), pytest.importorskip("numpy")
    whole = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    schema, (numbers, texts) = taken_apart(whole).args
    assert schema == [("a", "Int64"), ("b", "String")]
    assert isinstance(numbers, np.ndarray)
    assert agree((schema, [numbers, texts]), taken_apart(whole.clone()).args)
    assert not agree(taken_apart(whole).args, taken_apart(whole[:1]).args)
    chunked = pl.concat([whole["a"][:1], whole["a"][1:]], rechunk=False)
    assert chunked.n_chunks() == 2
    assert agree(taken_apart(whole["a"]).args, taken_apart(chunked).args)


# -- values as text


def test_a_path_is_shown_by_its_text():
    """Whatever its class: it differs by operating system."""
    assert text_of(PurePosixPath("a/b")) == "'a/b'"
    assert text_of([PurePosixPath("a")]) == "['a']"


def test_the_fields_that_other_libraries_show_are_shown():
    """attrs and pydantic generate a `repr`: objects in the fields go without their addresses."""
    scope = {}
    exec(compile("def __repr__(self): return 'Made(...)'", "<attrs generated repr>", "exec"), scope)
    fields = [type("Attribute", (), {"name": name, "repr": name != "hidden"}) for name in ("x", "hidden")]
    made = type("Made", (Plain,), {"__repr__": scope["__repr__"], "__attrs_attrs__": fields, "hidden": 1})
    assert text_of(made({"b", "a"})) == "Made(x={'a', 'b'})"

    def shows(self):
        return "Model(...)"

    shows.__module__ = "pydantic._internal._repr"
    model = type("Model", (Plain,), {"__repr__": shows, "__repr_args__": lambda self: [("x", self.x)]})
    assert text_of(model({"b", "a"})) == "Model(x={'a', 'b'})"


def test_an_object_with_every_attribute_ends_the_search_for_its_function():
    """A mock has a `__wrapped__` that has a `__wrapped__`, and so on."""

    class Every:
        def __getattr__(self, name):
            return self

    every = Every()
    assert as_written(every) is every


def test_defaults_are_remembered_however_many_functions_there_are(monkeypatch):
    """The memory for calls of one function around others is bounded; what is known of a function is not forgotten."""
    monkeypatch.setattr(identity, "_MOST", 1)

    def first(items=[]):  # noqa: B006
        items.append(1)

    def second(items=[2]): ...  # noqa: B006

    for function in (first, second):
        keep_defaults(function)
    first()
    assert defaults_of(first) == "(([],), None)"
    assert defaults_of(second) == "(([2],), None)"
    assert len(identity._latest) == 1


# -- the parts that may be changed in place


class InSlots:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class Holder:
    def __init__(self, held):
        self.held = held


LIST = [1]


def kind(value):
    return type(value).__name__


@pytest.mark.parametrize(
    "value",
    [
        LIST, [LIST], (LIST,), {"key": LIST}, {"key": ({1: LIST},)}, Holder(LIST), InSlots(LIST), deque([LIST]),
        OrderedDict(key=LIST), defaultdict(list, key=LIST), [[], Holder([InSlots(LIST)])],
    ],
    ids=kind,
)  # fmt: skip
def test_a_list_is_found_wherever_it_is_in_a_value(value):
    """In containers, in attributes, and as it is."""
    assert id(LIST) in mutable_parts(value)
    assert id(value) in mutable_parts(value) or type(value) is tuple


def test_a_value_in_itself_has_parts():
    """Each of them once."""
    loop = [LIST]
    loop.append(loop)
    assert mutable_parts(loop) == {id(loop), id(LIST)}


@pytest.mark.parametrize(
    "value",
    [1, "text", (1, (2,)), frozenset([1]), Decimal(1), datetime.now(UTC), PurePosixPath("a"), len, int, Lock()],
    ids=kind,
)
def test_a_value_that_cannot_be_changed_has_no_parts_that_can(value):
    """Or that nobody can see into."""
    assert mutable_parts(value) == frozenset()


@pytest.mark.parametrize("value", [bytearray(b"a"), array("d", [1.0]), {1}, deque()], ids=kind)
def test_buffers_and_sets_may_be_changed(value):
    assert mutable_parts((value,)) == {id(value)}
