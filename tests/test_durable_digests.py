"""Digests of content: what is the same, what has changed, and what is no change."""

import gc
import math
import time
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import pytest

from flowdeco.durable import digests
from flowdeco.durable.digests import digest


@dataclass
class Row:
    n: int
    tags: list


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n


class Stack(list):
    """A list with an attribute."""

    def __init__(self, items, name):
        super().__init__(items)
        self.name = name


class Lazy:
    def __init__(self):
        self.rows = [1, 2]

    @cached_property
    def total(self):
        return [sum(self.rows)]


class Indexed:
    """An index that is built when it is needed, and is not pickled."""

    def __init__(self, rows):
        self.rows = rows
        self.index = None

    def find(self, row):
        if self.index is None:
            self.index = {row: at for at, row in enumerate(self.rows)}
        return self.index[row]

    def __getstate__(self):
        return {"rows": self.rows, "index": None}


def cyclic():
    found = {"rows": [1]}
    found["me"] = found
    return found


CHANGED = {
    "list": (lambda: [1, 2], lambda it: it.append(3)),
    "order of a list": (lambda: [2, 1], lambda it: it.sort()),
    "type of an item": (lambda: [1], lambda it: it.__setitem__(0, True)),
    "dict": (lambda: {"a": {"b": 1}}, lambda it: it["a"].update(b=2)),
    "set": (lambda: {"a"}, lambda it: it.add("b")),
    "deque": (lambda: deque([1]), lambda it: it.append(2)),
    "order of an OrderedDict": (lambda: OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    "bytearray": (lambda: bytearray(100_000), lambda it: it.__setitem__(9, 9)),
    "dataclass": (lambda: Row(1, []), lambda it: it.tags.append("x")),
    "slots": (lambda: [Slotted(1)], lambda it: setattr(it[0], "n", 2)),
    "attribute of a list": (lambda: Stack([1], "a"), lambda it: setattr(it, "name", "b")),
    "class of an object": (lambda: [Row(1, [])], lambda it: setattr(it[0], "__class__", Lazy)),
    "cyclic": (cyclic, lambda it: it["rows"].append(2)),
    "function": (lambda: {"f": len}, lambda it: it.update(f=sum)),
    "default of a defaultdict": (lambda: defaultdict(int), lambda it: it["missing"]),
}


@pytest.mark.parametrize(("make", "change"), CHANGED.values(), ids=CHANGED)
def test_a_change_is_seen(make, change):
    """And without one, the digest is that of an equal value."""
    value = make()
    before = digest(value)
    assert before == digest(value) == digest(make())
    change(value)
    assert before.differs(digest(value))


def test_a_part_is_the_same_whether_it_is_one_object_or_two():
    """A pickle tells these apart."""
    row = ["a"]
    assert digest([row, row]) == digest([["a"], ["a"]])
    name = "".join(["a", "b"])
    assert digest({"x": "ab", "y": name}) == digest({"x": "ab", "y": "ab"})


def test_a_value_that_caches_when_it_is_read_has_not_changed():
    """Nor one that builds an index; what is cached counts from then on."""
    lazy, indexed = [Lazy()], Indexed(["a", "b"])
    before, built = digest(lazy), digest(indexed)
    assert (lazy[0].total, indexed.find("b")) == ([3], 1)
    read = digest(lazy)
    assert not before.differs(read)
    assert not built.differs(digest(indexed))
    lazy[0].total.append(4)
    assert read.differs(digest(lazy))
    assert not before.differs(digest(lazy))  # it may have been so when it was first read


def test_the_content_of_a_lock_cannot_be_seen():
    """What is beside it can."""
    value = {"lock": Lock(), "rows": [1]}
    before = digest(value)
    assert not before.differs(digest(value))
    value["rows"].append(2)
    assert before.differs(digest(value))
    assert digest([lambda: 1]) == digest([lambda: 1])


def test_a_value_that_cannot_be_hashed_has_no_digest():
    """It is nested too deeply for `pickle`, too."""
    value = []
    for _ in range(100_000):
        value = [value]
    assert digest(value) is None


def test_a_part_that_occurs_very_often_is_hashed_once(monkeypatch):
    """Or else it would take a time that doubles with every level."""
    monkeypatch.setattr(digests, "_LONGEST", 1 << 16)
    value = [1]
    for _ in range(60):
        value = [value, value]
    started = time.perf_counter()
    assert digest(value) == digest(value)
    assert time.perf_counter() - started < 5


def test_nothing_is_copied():
    """Of long strings of bytes, and of arrays."""
    np = pytest.importorskip("numpy")
    size = 8_000_000
    value = {"bytes": bytearray(size), "array": np.zeros(size // 8), "turned": np.zeros((1000, size // 8000)).T}
    digest(value)
    gc.collect()
    tracemalloc.start()
    try:
        digest(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 8


def test_arrays_are_hashed_by_content():
    """Views, objects and records, too."""
    np = pytest.importorskip("numpy")
    for array in (np.zeros((3, 4)), np.zeros((3, 4))[:, ::2], np.array([[1, "a"]], dtype=object)):
        before = digest([array])
        assert before == digest([array])
        array[0, 0] = 7
        assert before.differs(digest([array]))


def test_a_frame_is_hashed_by_its_columns():
    """Reading builds caches, and lays columns out anew: that is no change."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    frame["c"] = [3, 4]
    before = digest(frame)
    assert (frame.index.is_unique, frame.columns.get_loc("c"), len(frame.describe())) == (True, 2, 8)
    assert (frame.to_numpy().shape, len(repr(frame)) > 0) == ((2, 3), True)
    assert frame.groupby("b").sum().loc["x", "a"] == 1.0
    assert before == digest(frame)
    frame.loc[0, "a"] = math.pi
    assert before.differs(digest(frame))
    for change in (
        lambda: setattr(frame, "columns", ["x", "y", "z"]),
        lambda: frame.__setitem__("d", 1),
        lambda: frame.pop("d"),
        lambda: frame.attrs.update(source="here"),
        lambda: setattr(frame.index, "name", "rows"),
    ):
        before = digest(frame)
        change()
        assert before.differs(digest(frame))


def test_a_frame_of_polars_is_hashed_by_content():
    """Numbers, nulls and strings."""
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1.0, 2.0], "b": ["x", None], "c": [None, 3]})
    before = digest(frame)
    assert (frame.sort("a").height, frame["a"].is_sorted(), len(repr(frame)) > 0) == (2, True, True)
    assert before == digest(frame)
    for change in (lambda: frame.__setitem__((0, "a"), 5.0), lambda: frame.insert_column(0, pl.Series("d", [1, 2]))):
        before = digest(frame)
        change()
        assert before.differs(digest(frame))


def test_a_model_of_pydantic_is_hashed_without_its_caches():
    """They are in its state among the fields."""
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        rows: list[int]

        @cached_property
        def total(self):
            return sum(self.rows)

    order = Order(rows=[1])
    before = digest(order)
    assert order.total == 1
    assert not before.differs(digest(order))
    order.rows.append(2)
    assert before.differs(digest(order))
