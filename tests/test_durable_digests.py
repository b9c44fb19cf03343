"""Digests of content: what is the same, what has changed, and what is no change."""

import copy
import gc
import math
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from random import Random
from threading import Lock
from types import SimpleNamespace

import digested
import pytest
import typing_extensions

from flowdeco.durable import digests
from flowdeco.durable.digests import digest, lasting_digest


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


# The same in every process.

TESTS = Path(__file__).parent
HASHABLE = [
    lambda r, make: repr(r.choice([None, True, r.randint(-9, 9), r.getrandbits(70), r.random(), -0.0])),
    lambda r, make: repr("".join(r.choices("aé€\udc80\x91", k=r.randint(0, 4)))),
    lambda r, make: repr(r.randbytes(r.randint(0, 4))),
    lambda r, make: f"date(2024, {r.randint(1, 12)}, 1)",
    lambda r, make: f"datetime(2024, 1, 1, tzinfo=timezone(timedelta(minutes={r.randint(0, 99)})))",
    lambda r, make: f"Fraction({r.randint(-9, 9)}, {r.randint(1, 9)})",
    lambda r, make: f"Decimal('{r.random()}')",
    lambda r, make: f"UUID(int={r.getrandbits(128)})",
    lambda r, make: r.choice(
        ["Colour.RED", "Mode.READ | Mode.WRITE", "PurePosixPath('/a')", "PureWindowsPath('c:/x')"]
    ),
    lambda r, make: f"({''.join(make() + ', ' for _ in range(r.randint(0, 3)))})",
    lambda r, make: f"frozenset([{', '.join(make() for _ in range(r.randint(0, 5)))}])",
    lambda r, make: f"{r.choice(['Pair', 'Point'])}({make()}, {make()})",
]
ANY = [
    lambda r, make: f"[{', '.join(make() for _ in range(r.randint(0, 3)))}]",
    lambda r, make: f"{{*[{', '.join(literal(r, HASHABLE) for _ in range(r.randint(0, 6)))}]}}",
    lambda r, make: f"dict([{', '.join(f'({literal(r, HASHABLE)}, {make()})' for _ in range(r.randint(0, 4)))}])",
    lambda r, make: f"deque([{make()}])",
    lambda r, make: f"OrderedDict(a={make()})",
    lambda r, make: f"defaultdict(list, a={make()})",
    lambda r, make: f"SimpleNamespace(a={make()})",
    lambda r, make: f"Plain(a={make()}, b={{'x', 'y', 'z'}})",
    lambda r, make: f"cyclic({make()})",
    lambda r, make: f"bytearray({r.choice([5, 100_000])})",
]


def literal(random, kinds, depth=3):
    """The text of some value of one of these kinds."""
    kinds = random.choice([kinds, HASHABLE])
    return random.choice(kinds if depth else HASHABLE[:9])(random, lambda: literal(random, kinds, depth - 1))


def digests_in(python, seed, literals, hasher=None):
    """The digests of these values in another process."""
    paths = [
        str(TESTS.parent),
        str(Path(typing_extensions.__file__).parent),
    ]  # these are not all compiled for one version
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths)}
    script = [python, str(TESTS / "digested.py"), hasher or digests.hasher()[0]]
    done = subprocess.run(script, input="\n".join(literals), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("seed", range(3))
def test_equal_values_share_a_digest_across_processes_and_hash_seeds(seed):
    """Whatever they consist of: values of the fuzzer's grammar."""
    random = Random(seed)
    literals = [literal(random, ANY) for _ in range(200)]
    here = [str(lasting_digest(eval(literal, vars(digested)))) for literal in literals]
    for hash_seed in "12":
        there = digests_in(sys.executable, hash_seed, literals)
        assert [one for one, *two in zip(literals, here, there, strict=True) if len(set(two)) > 1] == []


EXAMPLES = [
    "[1, True, 1.0, None, 'a', b'a', 2**100, 1j, ...]",
    "{'b': 1, 'a': {'x', 'y', 'z'}, 'c': frozenset([(1, 'x'), (2, 'y'), None])}",
    "[Colour.RED, Mode.READ, Mode.READ | Mode.WRITE, PurePosixPath('/a'), Fraction(1, 3), Decimal('1.0')]",
    "[date(2024, 1, 2), datetime(2024, 1, 1, tzinfo=timezone.utc), time(1, 2), timedelta(1), UUID(int=5)]",
    "[Pair(1, 2), Point(1, {'x', 'y'}), Plain(a=1), deque([1], 3), Counter('aab'), OrderedDict(a=1), range(3)]",
    "cyclic({'x', 'y'}, [1])",
    "bytearray(100_000)",
]


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_equal_values_share_a_digest_across_versions_of_python(minor):
    """Those of them that this machine has."""
    name = f"python3.{minor}"
    found = [shutil.which(name), *glob(str(Path.home() / f".pyenv/versions/3.{minor}.*/bin/{name}"))]
    pythons = [each for each in found if each and not subprocess.run([each, "-c", ""], capture_output=True).returncode]
    if not pythons:
        pytest.skip(f"there is no Python 3.{minor}")
    there = digests_in(pythons[0], "3", EXAMPLES, "blake2b")  # it may have no xxhash
    assert there == digests_in(sys.executable, "0", EXAMPLES, "blake2b")


def test_the_order_of_a_set_does_not_count_and_that_of_a_dict_does():
    """A dict whose order has changed is iterated in another order."""
    assert digest({"a", "b", (1, "c")}) == digest({(1, "c"), "b", "a"})
    assert digest({"a": 1, "b": 2}).differs(digest({"b": 2, "a": 1}))
    assert digest({frozenset({"a", "b"})}) == digest({frozenset({"b", "a"})})
    assert digest({1, 2}).differs(digest(frozenset({1, 2})))


def test_values_of_other_parts_have_other_digests(monkeypatch):
    """Of the shapes that are hashed part by part, too: values that contain themselves, or parts over and over."""
    monkeypatch.setattr(digests, "_LONGEST", 1 << 16)
    values = [
        "cyclic(1)", "cyclic(2)", "cyclic()", "[cyclic(1)]", "shared(40, [1])", "shared(40, [2])", "shared(41, [1])",
        "{1, 2}", "{1, 3}", "[1, 2]", "(1, 2)", "frozenset([1, 2])", "frozenset([(1, 2), (3, 4)])",
    ]  # fmt: skip
    found = [lasting_digest(eval(value, vars(digested))) for value in values]
    assert len(set(found)) == len(values)


def test_a_value_that_contains_itself_is_hashed_part_by_part():
    """Each of them once, however they refer to each other."""
    people = [digested.Plain(name=name, friends=[]) for name in "abcdefghijklmnopqrst"]
    for each in people:
        each.friends += people
    before = digest(people)
    assert before == digest(copy.deepcopy(people)) is not None
    people[7].name = "x"
    assert before.differs(digest(people))
    for each in people:
        each.friends = {*people, "e"}
    assert digest(people) == digest(people) is not None
    assert lasting_digest(people) is None  # the order of sets whose items lead to each other is that of this process


def test_functions_are_known_by_their_code_and_what_they_enclose():
    """Two lambdas have one name."""

    def made(n):
        return lambda x: x + n

    def counted():
        return lambda: counted

    assert digest(made(1)) == digest(made(1))
    assert digest(made(1)).differs(digest(made(2)))
    assert digest(lambda: 1).differs(digest(lambda: 2))
    assert digest(counted()) == digest(counted())


def test_a_part_without_content_has_no_lasting_digest():
    """It would be the same as that of any other lock."""
    assert lasting_digest([1, Lock()]) is None
    assert lasting_digest(iter([])) is not None
    assert lasting_digest(x for x in ()) is None
    assert digest([1, Lock()]) == digest([1, Lock()])


def test_arrays_with_the_same_items_share_a_digest():
    """Whether their items are next to each other or not, in slices of any size, with gaps in their records or not."""
    np = pytest.importorskip("numpy")
    whole = np.arange(24.0).reshape(4, 6)
    wide = np.zeros((8, 18))
    wide[::2, ::3] = whole
    assert digest(wide[::2, ::3]) == digest(whole)
    assert digest(whole.T) == digest(whole.T.copy("F"))
    aligned = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    filled = np.frombuffer(bytearray(b"\xff" * aligned.nbytes), aligned.dtype).copy()
    filled["a"], filled["b"] = 0, 0
    assert digest(filled) == digest(aligned)
    assert digest(np.float64(1)) == digest(np.float64(1)) != digest(np.float32(1))
    for array in (np.array(5), np.zeros((0, 3)), np.zeros((2, 0)), np.array(["a", "bc"]), np.zeros(2, "M8[ns]")):
        assert digest(array) == digest(array.copy()) is not None
    assert digest(np.zeros((2, 3))).differs(digest(np.zeros((3, 2))))
    assert digest(np.zeros(2, "M8[ns]")).differs(digest(np.zeros(2, "M8[us]")))


def test_the_hash_is_that_of_xxhash_where_it_is_installed(monkeypatch):
    """And a digest that leaves the process says which one it is."""

    class Sum:
        def __init__(self, data=b""):
            self.sum = sum(data)

        def update(self, data):
            self.sum += sum(memoryview(data))

        def digest(self):
            return self.sum.to_bytes(8, "big")

    for installed, name in ((None, "blake2b"), (SimpleNamespace(xxh3_128=Sum), "xxh3")):
        monkeypatch.setitem(sys.modules, "xxhash", installed)
        digests.hasher.cache_clear()
        assert lasting_digest([1]).startswith(f"{name}:")
    monkeypatch.undo()
    digests.hasher.cache_clear()
