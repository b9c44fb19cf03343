"""The shared state of a run: typed keys, the store, and what has changed in it since a mark."""

import copy
import json
import operator
import pickle
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from enum import Enum
from types import NoneType, UnionType
from typing import (
    IO,
    Annotated,
    Any,
    Final,
    ForwardRef,
    Generic,
    Literal,
    Never,
    NewType,
    Optional,
    Protocol,
    TextIO,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import again, examples, flaky, shown, stage_record, step
from typing_extensions import TypeAliasType

from flowdeco import Context, Key, Stage, Store, action, parallel, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.errors import ContextEndedError, DefinitionError, StoreKeyError, StoreTypeError, WriteConflictError
from flowdeco.executors import serial
from flowdeco.middleware import retry
from flowdeco.model.deltas import NOTHING, Delta, Grown, Mark
from flowdeco.model.keys import Local, alias_value, key_name, type_of
from flowdeco.model.sentinels import MISSING
from flowdeco.model.store import View, Watched, _Layer

T = TypeVar("T")
K = TypeVar("K")


class Named(Protocol):
    name: str


@runtime_checkable
class Closeable(Protocol):
    def close(self): ...


class Box(Generic[T]):
    pass


class Opened:
    def close(self):
        pass


class Text(str):
    pass


class Incomparable:
    """As an array: it says neither that it is equal nor that it is not."""

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


# -- keys


def test_a_key_has_a_name_and_a_type():
    """It is a value: equal, hashable, immutable, with a repr, picklable."""
    key = Key("user.id", int)
    assert (key.name, key.type) == ("user.id", int)
    assert key == Key("user.id", int)
    assert hash(key) == hash(Key("user.id", int))
    assert key != Key("user.id", str)
    assert key != Key("user", int)
    assert key != "user.id"
    assert repr(key) == "Key('user.id', int)"
    assert repr(Key("xs", list[int])) == "Key('xs', list[int])"
    assert repr(Key("any")) == "Key('any')"
    assert pickle.loads(pickle.dumps(key)) == copy.deepcopy(key) == key
    with pytest.raises(AttributeError, match="immutable"):
        key.name = "other"


def test_a_frozen_key_is_a_value_as_well():
    """Another one than the key that is not."""
    key = Key("k", int, frozen=True)
    assert (key.frozen, Key("k", int).frozen) == (True, False)
    assert key != Key("k", int)
    assert repr(key) == "Key('k', int, frozen=True)"
    assert pickle.loads(pickle.dumps(key)) == key
    assert hash(Key("a")) != hash(Key("b"))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("", "a key of the store is a non-empty string, not ''"),
        (3, "a key of the store is a non-empty string or a Key, not the int 3"),
    ],
)
def test_the_error_says_what_a_key_is(wrong, why):
    """And what this is."""
    with pytest.raises(StoreTypeError) as caught:
        key_name(wrong)
    assert str(caught.value) == why


@pytest.mark.parametrize("wrong", ["int", ForwardRef("int"), 5], ids=["string", "reference", "value"])
def test_the_type_of_a_key_is_a_type(wrong):
    """The name of one is not, and no value is."""
    with pytest.raises(DefinitionError) as caught:
        Key("k", wrong)
    assert str(caught.value) == (
        "the type of a key, or of an answer, is a type, such as int or list[str], not the "
        f"{type(wrong).__name__} {wrong!r}"
    )


def test_a_key_describes_its_type_where_it_checks_it():
    """As text, and as journals keep it."""
    assert (Key("k", list[int]).described(), Key("k").described()) == ("list[int]", None)
    assert Key("k", int).references() == ("builtins:int",)
    assert Key("k").references() is Key("k", int | Any).references() is None


@pytest.mark.parametrize(
    ("declared", "kept"),
    [
        (TypeAliasType("Pair", dict[K, T], type_params=(K, T))[str, int], dict[str, int]),
        (TypeAliasType("Maybe", T | None, type_params=(T,))[int], int | None),
        (TypeAliasType("Half", dict[K, T], type_params=(K,))[str], dict[str, T]),
        (TypeAliasType("Same", int, type_params=(T,))[str], int),
        (TypeAliasType("Bare", list[T], type_params=(T,)), list[T]),
    ],
    ids=shown,
)
def test_the_arguments_of_an_alias_take_the_places_of_its_parameters(declared, kept):
    """Those that are not given stay."""
    assert alias_value(declared) == kept


@pytest.mark.parametrize("wrong", ["", 3, None, b"k", ("k",)])
def test_keys_are_non_empty_strings(wrong):
    """For `Key`, and for every way to write and read."""
    store = Store({"k": 1})
    for use in (
        lambda: Key(wrong, int),
        lambda: Store({wrong: 1}),
        lambda: store.__setitem__(wrong, 1),
        lambda: store.append(wrong, 1),
        lambda: store.update({wrong: 1}),
        lambda: store[wrong],
        lambda: store.__delitem__(wrong),
        lambda: key_name(wrong),
    ):
        with pytest.raises(StoreTypeError, match="non-empty string"):
            use()
    assert dict(store) == {"k": 1}


@pytest.mark.parametrize(
    ("declared", "right", "wrong"),
    [
        (int, [3, True], ["3", 3.0, None]),
        (float, [3.0, 3], ["3", 3j]),
        (complex, [3j, 3.0, 3], ["3"]),
        (str, ["", "a"], [b"a", 3]),
        (bool, [True], [1]),
        (None, [None], [0]),
        (list[int], [[], ["unchecked"]], [(1,), "ab"]),
        (dict[str, int], [{}], [[]]),
        (int | None, [3, None], ["3"]),
        (Optional[int], [3, None], ["3"]),  # noqa: UP045
        (Union[int, list[str]], [3, []], ["3"]),  # noqa: UP007
        (float | None, [3, None], ["3"]),
        (Annotated[int, "metadata"], [3], ["3"]),
        (Box[int], [Box()], [3]),
        (object, [3, None], []),
        (Any, [3, None, "x"], []),
        (int | Any, [3, "x"], []),
        (Literal["a"], ["a", Text("a")], ["b", b"a", None]),
        (Literal["a"] | None, ["a", None], ["b"]),
        (Literal["a"] | float, ["a", 3], ["b", None]),
        (Literal["a"] | Any, ["a", "b"], []),
        (Literal[1, False, b"x"], [1, False, b"x"], [True, 0, 1.0, b"y"]),
        (TypeAliasType("Mode", Literal["a", "b"] | None), ["a", "b", None], ["c"]),
        (list[Literal["a"]], [["unchecked"]], ["a"]),
        (T, [3], []),
        (Named, ["unchecked"], []),
        (Closeable, [Opened()], [3]),
    ],
    ids=shown,
)
def test_the_type_of_a_key_is_checked_when_it_is_written_and_read(declared, right, wrong):
    """Of a generic type the origin, of a union its members, of a literal the value; what cannot be checked is not."""
    key = Key("k", declared)
    for value in right:
        store = Store()
        store[key] = value
        assert store[key] is value
        assert store.get(key) is value
    for value in wrong:
        with pytest.raises(StoreTypeError, match="'k'"):
            Store()[key] = value
        with pytest.raises(StoreTypeError, match="'k'"):
            Store({"k": value})[key]
        with pytest.raises(StoreTypeError, match="'k'"):
            Store({key: value})


def test_an_untyped_key_is_a_name():
    """Everything is of its type."""
    store = Store({Key("k"): 3})
    assert store[Key("k")] == store["k"] == 3


def test_the_error_names_key_expected_and_found():
    """And shows the value, shortened."""
    with pytest.raises(StoreTypeError, match=r"'user\.id'.*int.*str.*'x+…") as caught:
        Store()[Key("user.id", int)] = "x" * 1000
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, TypeError)


# -- the store is a mapping


def test_a_store_is_a_mutable_mapping():
    """With everything that comes with it."""
    store = Store({"a": 1})
    store["b.c"] = 2
    store.update(d=3)
    assert isinstance(store, MutableMapping)
    assert (dict(store), len(store), list(store), "a" in store, "x" in store) == (
        {"a": 1, "b.c": 2, "d": 3}, 3, ["a", "b.c", "d"], True, False,
    )  # fmt: skip
    assert (store.get("a"), store.get("x"), store.get("x", 5), store.setdefault("a", 9), store.pop("d")) == (
        1,
        None,
        5,
        1,
        3,
    )
    assert store == {"a": 1, "b.c": 2}
    del store["a"]
    assert list(store.items()) == [("b.c", 2)]
    store.clear()
    assert dict(store) == {}
    assert dict(Store()) == dict(Store(None)) == {}
    assert dict(Store(mapping={"a": 1})) == {"a": 1}


def test_typed_keys_are_names_of_the_same_values():
    """In every way to read and write."""
    number = Key("n", int)
    store = Store({number: 1})
    assert (store["n"], store[number], number in store, store.get(number)) == (1, 1, True, 1)
    assert (store.get(Key("x", int)), store.get(Key("x", int), 5)) == (None, 5)
    store[number] = 2
    assert store.pop(number) == 2
    store["n"] = 3
    del store[number]
    assert number not in store


def test_a_missing_key_is_a_key_error_with_close_matches():
    """`StoreKeyError` reads like a sentence."""
    store = Store({"report.title": 1, "other": 2})
    for read in (
        lambda: store["report.titel"],
        lambda: store[Key("report.titel", str)],
        lambda: store.__delitem__("report.titel"),
    ):
        with pytest.raises(StoreKeyError, match=r"'report\.titel'.*'report\.title'") as caught:
            read()
        assert isinstance(caught.value, KeyError)
        assert not str(caught.value).startswith('"')


def test_a_store_has_a_repr():
    """With what is in it."""
    assert repr(Store({"a": 1})) == "Store({'a': 1})"


def test_values_are_taken_by_reference():
    """The mapping they came in is not."""
    value, given = [1], {}
    given["k"] = value
    store = Store(given)
    store["other"] = 2
    assert store["k"] is value
    assert list(given) == ["k"]


# -- append


def test_append_makes_the_list_and_adds_to_it():
    """It is the imperative form of `collect`."""
    store = Store()
    store.append("xs", 1)
    store.append("xs", 2)
    assert store["xs"] == [1, 2]


def test_append_copies_a_list_that_came_from_outside():
    """Once: then it is the store's own."""
    given = [1]
    store = Store({"xs": given})
    store.append("xs", 2)
    own = store["xs"]
    store.append("xs", 3)
    assert (given, store["xs"]) == ([1], [1, 2, 3])
    assert store["xs"] is own
    store["xs"] = given
    store.append("xs", 4)
    assert (given, store["xs"]) == ([1], [1, 4])


@pytest.mark.parametrize("value", ["text", 3, None, (1,), {"k": 1}])
def test_append_to_what_is_no_list_is_an_error(value):
    """It names the key and what it holds."""
    store = Store({"k": value})
    with pytest.raises(StoreTypeError, match=f"'k'.*{type(value).__name__}"):
        store.append("k", 1)
    assert store["k"] == value


def test_append_checks_a_typed_key():
    """Of `list[int]` the list; of what is no list, that."""
    store = Store()
    store.append(Key("xs", list[int]), 1)
    store.append(Key("any"), 1)
    assert dict(store) == {"xs": [1], "any": [1]}
    with pytest.raises(StoreTypeError, match="'n'"):
        store.append(Key("n", int), 1)


def test_append_costs_the_same_however_long_the_list_is():
    """The list is not copied each time."""
    store = Store()
    for number in range(3):
        store.append("xs", number)
    before = store["xs"]
    view = View(store)
    view.append("xs", 3)
    store.apply(view.delta())
    assert store["xs"] is before


# -- marks: what a retry undoes, and what branches and actions contribute


def test_undoing_restores_what_was_there_when_the_mark_was_set():
    """Values, keys, lists; what is appended afterwards starts from there."""
    store = Store({"old": 1, "gone": 2, "xs": [1]})
    store.append("ys", 1)
    before = copy.deepcopy(dict(store))
    mark = store.mark()
    store["old"] = "changed"
    store["old"] = "changed again"
    store["new"] = 1
    del store["gone"]
    store.append("xs", 2)
    store.append("ys", 2)
    store.append("ys", 3)
    store.append("zs", 1)
    store.undo(mark)
    assert dict(store) == before
    store.append("ys", 9)
    store.append("zs", 9)
    assert (store["ys"], store["zs"]) == ([1, 9], [9])


def test_a_mark_may_be_undone_after_it_was_released():
    """It knows what it noted until then."""
    store = Store({"a": 1})
    mark = store.mark()
    store["a"] = 2
    store.release(mark)
    store["b"] = 1
    store.undo(mark)
    assert dict(store) == {"a": 1, "b": 1}


def test_some_keys_may_be_kept_when_a_mark_is_undone():
    """What middleware itself wrote; the enclosing mark still knows what was there before."""
    store = Store({"a": 1})
    outer = store.mark()
    inner = store.mark()
    store.update(a=2, b=2, c=2)
    store.undo(inner, keep={"a", "b"})
    assert dict(store) == {"a": 2, "b": 2}
    assert store.since(outer) == Delta({"a": 2, "b": 2}, [], {})
    store.undo(outer)
    assert dict(store) == {"a": 1}


def test_keys_that_an_outermost_mark_keeps_stay():
    """Nothing encloses it."""
    store = Store({"a": 1})
    mark = store.mark()
    store.update(a=2, b=2)
    store.undo(mark, keep={"b"})
    assert dict(store) == {"a": 1, "b": 2}


def test_marks_nest():
    """What a released one noted becomes part of the enclosing one."""
    store = Store({"a": 0})
    outer = store.mark()
    store["a"] = 1
    inner = store.mark()
    store.update(a=2, b=2)
    store.append("xs", 1)
    store.release(inner)
    store.append("xs", 2)
    assert store.since(outer) == Delta({"a": 2, "b": 2}, [], {"xs": [1, 2]})
    store.undo(outer)
    assert dict(store) == {"a": 0}


def test_undoing_an_inner_mark_leaves_what_the_outer_one_covers():
    """A failed attempt inside of one that continues."""
    store = Store()
    outer = store.mark()
    store.append("xs", 1)
    inner = store.mark()
    store.append("xs", 2)
    store["k"] = 1
    store.undo(inner)
    assert dict(store) == {"xs": [1]}
    assert store.since(outer) == Delta({}, [], {"xs": [1]})


def test_undoing_an_outer_mark_undoes_those_inside_it():
    """They are let go as well."""
    store = Store({"a": 0})
    outer = store.mark()
    store["a"] = 1
    inner = store.mark()
    store.update(a=2, b=2)
    store.undo(outer)
    assert dict(store) == {"a": 0}
    store["a"] = 3
    store.release(inner)
    assert (dict(outer), dict(inner)) == ({"a": 0}, {"a": 1, "b": MISSING})


def test_since_a_mark_includes_what_inner_marks_noted():
    """Also while those are set."""
    store = Store({"a": 0})
    outer = store.mark()
    store["a"] = 1
    store.mark()
    store.update(a=2, b=2)
    assert store.since(outer) == Delta({"a": 2, "b": 2}, [], {})


def test_a_mark_that_is_released_out_of_order_is_the_one_that_is_meant():
    """A layer may let go of its own while another is set inside it."""
    store = Store()
    first = store.mark()
    store["a"] = 1
    second = store.mark()
    store["b"] = 1
    store.release(first)
    store["c"] = 1
    store.release(second)
    assert sorted(first) == ["a"]
    assert sorted(second) == ["b", "c"]


def test_releasing_a_mark_twice_is_the_same_as_once():
    """Though another one has noted the same: a mark is known by its identity."""
    store = Store()
    outer, inner = store.mark(), store.mark()
    store["k"] = 1
    store.release(inner)
    store.release(inner)
    assert dict(outer) == dict(inner)
    assert len({outer, inner}) == 2
    assert store.since(outer).puts == {"k": 1}
    store.undo(outer)
    assert dict(store) == {}


def test_what_a_discarded_mark_noted_can_be_undone_by_that_mark_alone():
    """The enclosing one never hears of it; and discarding it again does nothing."""
    store = Store({"a": 0})
    outer, inner = store.mark(), store.mark()
    store["a"] = 1
    store.discard(inner)
    store.discard(inner)
    store["b"] = 1
    assert store.since(outer) == Delta({"b": 1}, [], {})
    assert store.since(inner) == Delta({"a": 1}, [], {})
    store.undo(inner)
    assert dict(store) == {"a": 0, "b": 1}


def test_taking_back_keeps_the_mark_set():
    """And those inside it: all of them begin anew."""
    store = Store({"a": 0})
    store.append("xs", 1)
    outer = store.mark()
    store["a"] = 1
    inner = store.mark()
    store["a"] = 2
    store.append("xs", 2)
    store.take_back(outer)
    assert dict(store) == {"a": 0, "xs": [1]}
    assert store.since(outer) == store.since(inner) == NOTHING
    store["b"] = 1
    assert store.since(outer) == store.since(inner) == Delta({"b": 1}, [], {})
    store.undo(outer)
    assert dict(store) == {"a": 0, "xs": [1]}


def test_nothing_is_taken_back_to_a_mark_that_is_not_set_any_more():
    """It was released."""
    store = Store()
    mark = store.mark()
    store["a"] = 1
    store.release(mark)
    store.mark()
    store["b"] = 2
    store.take_back(mark)
    assert dict(store) == {"a": 1, "b": 2}


def test_a_delta_is_what_was_put_deleted_and_appended():
    """The last word on each key counts."""
    store = Store({"put": 0, "deleted": 0, "xs": [0], "replaced": [0], "back": 0})
    mark = store.mark()
    store["put"] = 1
    del store["deleted"]
    store.append("xs", 1)
    store.append("replaced", 1)
    store["replaced"] = [9]
    del store["back"]
    store["back"] = 0
    store["made and gone"] = 1
    del store["made and gone"]
    delta = Delta({"put": 1, "replaced": [9], "back": 0}, ["deleted"], {"xs": [1]})
    assert store.since(mark) == delta
    assert delta.keys() == {"put", "replaced", "back", "deleted", "xs"}
    assert delta.without({"put", "deleted", "xs"}) == Delta({"replaced": [9], "back": 0}, [], {})


def test_appending_to_what_was_written_since_a_mark_is_a_write():
    """The list is not the one that was there."""
    store = Store({"xs": [1]})
    mark = store.mark()
    store["xs"] = [2]
    store.append("xs", 3)
    assert store.since(mark) == Delta({"xs": [2, 3]}, [], {})


def test_a_list_that_was_written_back_and_then_grew_is_undone():
    """It is the same list, which the store appends to in place."""
    store = Store()
    store.append("xs", 1)
    mark = store.mark()
    store["xs"] = store["xs"]
    store.append("xs", 2)
    store.undo(mark)
    assert dict(store) == {"xs": [1]}


def test_a_fork_is_a_store_of_its_own():
    """It starts with the same values; what it wrote can be applied elsewhere."""
    store = Store({"a": 1, "xs": [1]})
    store.append("xs", 2)
    fork = store.fork()
    fork["a"] = 2
    fork.append("xs", 3)
    del fork["a"]
    store.append("xs", "later")
    assert dict(fork) == {"xs": [1, 2, 3]}
    assert dict(store) == {"a": 1, "xs": [1, 2, "later"]}
    store.apply(fork.delta())
    assert dict(store) == {"xs": [1, 2, "later", 3]}


def test_applying_the_deletion_of_a_missing_key_is_nothing():
    """It is gone already."""
    store = Store()
    store.apply(Delta({}, ["gone"], {}))
    assert dict(store) == {}


def test_a_twin_shares_nothing_that_the_store_appends_to():
    """Neither sees what the other does from then on."""
    store = Store({"given": [1]})
    store.append("made", 1)
    store.append("replaced", 1)
    store["replaced"] = given = [2]
    twin, marks = store.twin()
    assert (dict(twin), marks) == (dict(store), [])
    assert twin["replaced"] is given
    for each, other in ((store, "of the store"), (twin, "of the twin")):
        each.append("made", other)
        each.append("given", other)
        each[other] = True
    assert dict(store) == {
        "given": [1, "of the store"],
        "made": [1, "of the store"],
        "replaced": [2],
        "of the store": True,
    }
    assert dict(twin) == {"given": [1, "of the twin"], "made": [1, "of the twin"], "replaced": [2], "of the twin": True}


def test_the_twin_of_a_fork_knows_what_was_written_to_it():
    """Its first mark comes along, unless it is among those that are asked for."""
    fork = Store({"a": 1, "xs": [1]}).fork()
    fork["a"] = 2
    fork.append("xs", 2)
    twin, _ = fork.twin()
    twin["b"] = 3
    assert twin.delta() == Delta({"a": 2, "b": 3}, [], {"xs": [2]})
    assert fork.delta() == Delta({"a": 2}, [], {"xs": [2]})


def test_marks_come_along_into_a_twin():
    """There, they undo what they noted here, lists included; here, all stays."""
    store = Store({"a": 1, "given": [1], "replaced": [1]})
    store.append("made", 1)
    mark = store.mark()
    store["a"] = 2
    store["new"] = 1
    store.append("made", 2)
    store.append("given", 2)
    store.append("begun", 2)
    store.append("replaced", 2)
    store["replaced"] = [9]
    store.append("gone", 2)
    del store["gone"]
    now = copy.deepcopy(dict(store))
    twin, (copied,) = store.twin(mark)
    assert dict(twin) == now
    twin.undo(copied)
    assert dict(twin) == {"a": 1, "given": [1], "made": [1], "replaced": [1]}
    twin.append("made", "of the twin")
    assert dict(store) == now
    store.undo(mark)
    assert dict(store) == {"a": 1, "given": [1], "made": [1], "replaced": [1]}


def test_what_is_supplied_was_there_from_the_start():
    """No mark notes it, and none undoes it."""
    store = Store({"a": 1})
    mark = store.mark()
    store.supply({"a": 2, "b": 2})
    store["c"] = 2
    assert store.since(mark) == Delta({"c": 2}, [], {})
    store.undo(mark)
    assert dict(store) == {"a": 2, "b": 2}


def test_what_evaluation_reads_and_puts_is_what_the_store_holds():
    """By names that have been checked; a mark notes it as any other write."""
    store = Store({"a": 1})
    read = store.reader()
    store.put("b", 2)
    mark = store.mark()
    store.put("b", 3)
    assert (read("a"), read("b"), store["b"]) == (1, 3, 3)
    with pytest.raises(KeyError):
        read("c")
    store.undo(mark)
    assert dict(store) == {"a": 1, "b": 2}


# -- marks, for any sequence of writes: compared with copies of a dict

KEYS = st.sampled_from("ab")
WRITES = st.one_of(
    st.tuples(st.just("set"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("set"), KEYS, st.lists(st.integers(0, 9), max_size=2)),
    st.tuples(st.just("put"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("delete"), KEYS, st.none()),
    st.tuples(st.just("append"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("append"), KEYS, st.integers(0, 9)),
)
MARKS = st.one_of(
    st.tuples(st.just("mark"), st.none(), st.none()),
    st.tuples(st.sampled_from(["release", "take back", "since", "twin"]), st.integers(0, 9), st.none()),
    st.tuples(st.just("undo"), st.integers(0, 9), st.sets(KEYS, max_size=1)),
)


class Written:
    """A store and a dict that are written to in the same way."""

    def __init__(self, values):
        self.store, self.dict = Store(copy.deepcopy(values)), copy.deepcopy(values)
        self.marks = []  # each with what the dict was like

    def do(self, what, where, value):
        if what == "mark":
            self.marks.append((self.store.mark(), copy.deepcopy(self.dict)))
        elif where in {"a", "b"}:
            self.write(what, where, value)
        elif self.marks:
            self.go_back(what, where % len(self.marks), value)
        assert dict(self.store) == self.dict

    def write(self, what, key, value):
        store, plain = self.store, self.dict
        if what in ("set", "put"):
            (store.__setitem__ if what == "set" else store.put)(key, copy.copy(value))
            plain[key] = copy.copy(value)
        elif what == "append" and isinstance(plain.get(key, []), list):
            store.append(key, value)
            plain[key] = [*plain.get(key, []), value]
        elif key in plain and what == "put back":
            store[key] = store[key]
        elif key in plain and what == "delete":
            del store[key]
            del plain[key]

    def go_back(self, what, index, keep):
        store, (mark, then) = self.store, self.marks[index]
        if what == "release":
            store.release(mark)
            del self.marks[index]
        elif what == "take back":
            store.take_back(mark)
            self.dict = copy.deepcopy(then)
            self.marks[index:] = [(mark, copy.deepcopy(then)) for mark, _ in self.marks[index:]]
        elif what == "undo":
            store.undo(mark, keep)
            kept = {key: self.dict[key] for key in keep if key in self.dict}
            self.dict = {**{key: value for key, value in then.items() if key not in keep}, **kept}
            for each in self.marks[index + 1 :]:
                if not keep or each is self.marks[-1]:
                    self.check_since(*each)  # though it was removed as well
                if not keep:
                    self.check_way_back(*each)
                store.take_back(each[0])  # it is not set any more
            del self.marks[index:]
        elif what == "since":
            self.check_since(mark, then)
        else:
            twin, copies = store.twin(*(mark for mark, _ in self.marks[index:]))
            assert dict(twin) == self.dict
            for copied in reversed(copies):
                twin.undo(copied)
            assert dict(twin) == then

    def check_way_back(self, mark, then):
        """A mark leads back to what was there when it was set, as does its copy in a twin."""
        twin, (copied,) = self.store.twin(mark)
        twin.undo(copied)
        assert dict(twin) == then

    def check_since(self, mark, then):
        """The changes since a mark, made to what was there then, lead to what is there now."""
        other = Store(copy.deepcopy(then))
        other.apply(self.store.since(mark))
        assert dict(other) == self.dict


VALUES = st.dictionaries(KEYS, st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=2)))


@settings(max_examples=examples(200, 2000), deadline=None)
@given(
    values=VALUES,
    steps=st.lists(st.one_of(WRITES, WRITES, MARKS), max_size=30),
)
@example(
    values={},  # both marks note a list that is cut in place, or only the outer one does
    steps=[*[("append", "a", 0), ("mark", None, None)] * 2, ("append", "a", 2), ("undo", 0, set())],
)
@example(values={}, steps=[*[("append", "a", 0), ("mark", None, None)] * 2, ("undo", 0, set())])
@example(values={}, steps=[*[("mark", None, None)] * 3, ("set", "a", 0), ("undo", 0, set())])  # noted by the last one
def test_marks_do_what_copies_would(values, steps):
    """Written to, marked, released, taken back and undone in any order, the store holds what a dict would hold."""
    written = Written(values)
    for each in steps:
        written.do(*each)
    for mark, then in reversed(written.marks):
        written.store.undo(mark)
        assert dict(written.store) == then


@settings(max_examples=examples(100, 2000), deadline=None)
@given(values=VALUES, writes=st.lists(st.lists(WRITES, max_size=4), min_size=3, max_size=3), inner=st.integers(1, 2))
def test_marks_continue_in_a_resumed_run(values, writes, inner):
    """Undone there, they leave what they would have left here: values, and which keys count as written."""
    here, failed = Written(values), Written(values)
    for each in (here, failed):
        for some in writes:
            each.do("mark", None, None)
            for write in some:
                each.do(*write)
    here.store.undo(here.marks[inner][0])

    for mark, _ in reversed(failed.marks):
        failed.store.release(mark)
    store, copies = failed.store.twin(*(mark for mark, _ in failed.marks))
    marks = []
    for copied in copies:
        marks.append(store.mark())
        marks[-1].continue_from(copied)
    store.undo(marks[inner])

    assert dict(store) == dict(here.store) == here.marks[inner][1]
    for mark, (same, _) in zip(marks[:inner], here.marks, strict=False):
        assert store.since(mark).keys() == here.store.since(same).keys()
    store.undo(marks[0])
    assert dict(store) == values


def test_a_released_mark_and_the_enclosing_one_have_the_same_note():
    """As one object, also of a value that many have; it takes nothing off a list when it is put back."""
    outer, inner = Mark(both=1), Mark(both=2, value=3, items=(grown := Grown([1, 2], 1, [1])))
    outer.share(inner)
    assert outer["items"] is inner["items"] is grown
    assert outer["value"] is inner["value"]
    assert outer["value"] == Grown([], 0, 3)
    assert (outer["both"], inner["both"]) == (1, 2)


def test_a_write_of_the_same_object_outlasts_a_second_attempt_in_a_resumed_run():
    """It is a write of the branch, though the failed attempt wrote that object as well: the branches conflict."""
    attempts = []

    @action
    def zero(ctx: Context) -> None:
        ctx.store["k"] = 0

    @action
    def sometimes_zero(ctx: Context) -> None:
        attempts.append("begun")
        if len(attempts) == 2:  # the last one before the run is resumed
            ctx.store["k"] = 0

    shaky = flaky([], "shaky", 3, "done")
    branch = pipeline(zero, Stage("s", [sometimes_zero, shaky], use=[retry(attempts=2, on=ValueError)]))
    flow = pipeline(parallel(branch, step([], "seven", 7, returns="k"), limit=1))
    broken = flow.run({"k": 0}, check=False)
    assert isinstance(broken.error, ValueError)
    assert isinstance(flow.resume(broken, check=False).error, WriteConflictError)
    assert len(attempts) == 3


# -- what a run was given, and local results


WAYS = {
    "set": lambda store: operator.setitem(store, "xs", [2]),
    "put": lambda store: store.put("xs", [2]),
    "append": lambda store: store.append("xs", 2),
}


@pytest.mark.parametrize("write", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("of", [lambda store: store, Store.fork, View, lambda store: store.twin()[0]])
def test_a_value_is_given_until_it_is_written(write, of):
    """Also in a fork, a view and a twin; it is given again once that is undone, or it is given anew."""
    store = Store({"xs": [1], "other": 1})
    store.give(["xs"])
    store = of(store)
    assert (store.is_given("xs"), store.is_given("other")) == (True, False)
    mark = store.mark()
    store["other"] = 2
    assert store.is_given("xs")
    write(store)
    assert store["xs"] in ([2], [1, 2])
    assert not store.is_given("xs")
    assert not of(store).is_given("xs")
    store.undo(mark)
    assert store.is_given("xs")
    write(store)
    store.give(["xs"])
    assert (store.is_given("xs"), store.is_given("other")) == (True, False)


def test_a_value_that_was_written_before_a_mark_stays_written_when_that_is_undone():
    """The one that is put back is not the one that was given."""
    store = Store()
    store.supply({"k": 1})
    store["k"] = 2
    mark = store.mark()
    store["k"] = 3
    store.undo(mark)
    assert (store["k"], store.is_given("k")) == (2, False)


def test_a_fork_does_not_change_what_its_store_knows_of_given_values():
    """Nor a view, nor a twin."""
    store = Store()
    store.supply({"k": 1})
    for other in (store.fork(), View(store), store.twin()[0]):
        other["k"] = 2
        assert store.is_given("k")


def test_local_results_are_known_to_the_evaluation_alone():
    """They are no keys; marks note them, and a hint tells where they were."""
    store = Store({"shown": 1})
    store.put(Local("mine"), 2)
    store.put(Local("kept"), 3)
    assert (dict(store), len(store), store.local_names()) == ({"shown": 1}, 1, ["mine", "kept"])
    assert store.everything() == [("shown", 1), (Local("mine"), 2), (Local("kept"), 3)]
    assert store.hint("mine") == "It is local to this stage: take it as a parameter, or share it by returns='mine'"
    assert store.reader()(Local("mine")) == 2

    mark = store.mark()
    store.drop_local(["mine", "never returned"], "s")
    assert (store.local_names(), store.ended_locals()) == (["kept"], {"mine": "s", "never returned": "s"})
    assert store.hint("mine") == "It was local to stage 's': write returns='mine' there to share it"
    assert store.since(mark) == Delta({}, [Local("mine")], {})
    store.undo(mark)
    assert store.reader()(Local("mine")) == 2
    store.drop_local(["kept"], "s")
    assert store.local_names() == ["mine"]

    other = Store()
    other.know_local(store.local_names(), store.ended_locals())
    assert (other.everything(), other.ended_locals()) == ([(Local("mine"), None)], store.ended_locals())
    store.ended_locals().clear()
    assert store.ended_locals()


def test_the_hint_about_a_key_names_the_last_thing_that_happened_to_it():
    """It was deleted, or it was local to a stage that has ended; after that, the names of close keys count."""
    store = Store({"price": 1, "prize": 2})
    del store["price"]
    assert [name for name in ("price", "prize") if store.was_deleted(name)] == ["price"]
    assert store.hint("price") == "It was in the store, and was deleted. Did you mean 'prize'?"
    assert store.hint("price", ["pride"]) == "It was in the store, and was deleted. Did you mean 'pride'?"
    store.drop_local(["price"], "s")
    assert store.hint("price").startswith("It was local to stage 's'")
    store["price"] = 3
    del store["price"]
    assert store.hint("price").startswith("It was in the store, and was deleted")
    assert store.ended_locals() == {}


def test_a_store_is_made_from_a_mapping():
    """Or from pairs, as a dict; the error of anything else shows it."""
    assert dict(Store([("a", 1)])) == {"a": 1}
    for wrong in (5, ["ab", "c"]):
        with pytest.raises(StoreTypeError) as refused:
            Store(wrong)
        assert str(refused.value) == (
            f"a Store is made from a mapping of keys to values, not from the {type(wrong).__name__} {wrong!r}"
        )


def test_a_hint_names_close_keys_of_the_store_or_of_those_given():
    """Which a caller may know better."""
    store = Store({"price": 1})
    assert store.hint("prise") == "Did you mean 'price'?"
    assert store.hint("prise", ["prize"]) == "Did you mean 'prize'?"


@pytest.mark.parametrize(
    ("held", "value"), [([1, 2], [3]), ({"a": 1, "b": 2}, {"c": 3}), ({1, 2}, {3})], ids=["list", "dict", "set"]
)
def test_a_container_is_revised_in_place(held, value):
    """Others may hold it; that is not a write."""
    store = Store({"k": held})
    mark = store.mark()
    store.revise("k", value)
    assert (store["k"], value) == (held, type(value)(value))
    assert store["k"] is held
    assert not store.since(mark).keys()
    store.revise("k", held)
    assert store["k"] == value


@pytest.mark.parametrize("kind", [list, dict])
def test_a_container_that_contains_itself_does_so_after_it_is_revised(kind):
    """It is itself that it contains, and not the value that it was revised to."""

    def made(*more):
        value = kind() if kind is list else kind(more)
        if kind is list:
            value += [value, *more]
        else:
            value["self"] = value
        return value

    held, value = made(), made((1, 2))
    store = Store()
    store.put("x", held)
    store.revise("x", value)
    assert store["x"] is held
    assert len(held) == len(value) == 2
    assert [each for each in (held if kind is list else held.values()) if each is held] == [held]
    assert not any(each is value for each in (held if kind is list else held.values()))


@pytest.mark.parametrize(("held", "value"), [(1, 2), ([1], (1,)), ({"a": 1}, [1]), (OrderedDict(a=1), OrderedDict())])
def test_anything_else_is_replaced_when_it_is_revised(held, value):
    """Or added."""
    store = Store({"k": held})
    store.revise("k", value)
    store.revise("new", value)
    assert store["k"] is store["new"] is value
    assert held


def test_the_store_knows_where_it_holds_an_object():
    """That very object, not an equal one; None is one."""
    one, equal = [1], [1]
    store = Store({"a": one, "b": equal, "c": one, "none": None})
    store.put(Local("d"), one)
    assert store.holders(one) == ["a", "c", Local("d")]
    assert [store.holds("a", value) for value in (one, equal)] == [True, False]
    assert (store.holds("none", None), store.holds("gone", None), store.holds(None, MISSING)) == (True, False, True)


def test_writes_are_applied_with_changes_and_local_results():
    """Changes are made first, and are not writes."""
    held = [1]
    store = Store({"held": held})
    mark = store.mark()
    store.apply(Delta({Local("mine"): 1, "put": 2}, [], {"held": [3]}, {"held": [2], "changed": 4}))
    assert store.everything() == [("held", [2, 3]), ("changed", 4), (Local("mine"), 1), ("put", 2)]
    assert held == [2]
    assert store.since(mark).keys() == {Local("mine"), "put", "held"}


def test_some_keys_may_be_taken_out_of_a_delta():
    """Whatever was done to them."""
    delta = Delta({"a": 1, "b": 1}, ["a", "c"], {"a": [1], "d": [1]}, {"a": 1, "e": 1}, 7)
    assert delta.without({"a"}) == Delta({"b": 1}, ["c"], {"d": [1]}, {"e": 1}, 7)
    assert delta.keys() == {"a", "b", "c", "d"}


def test_a_fork_knows_what_was_written_to_it():
    """Under whichever of its marks; without a write, nothing at all."""
    fork = Store({"a": 1}).fork()
    assert fork.delta() is NOTHING
    fork["a"] = 2
    fork.mark()
    fork["b"] = 2
    assert [fork.has_written(name) for name in ("a", "b", "c")] == [True, True, False]


def test_the_twin_has_only_the_first_mark_of_a_store():
    """And not even that if a copy of it is asked for."""
    fork = Store({"a": 1}).fork()
    mark = fork.mark()
    fork["a"] = 2
    twin, _ = fork.twin()
    assert twin.delta() is NOTHING
    fork["b"] = 2
    fork.release(mark)
    assert fork.twin()[0].delta() == Delta({"a": 2, "b": 2}, [], {})
    inner = fork.mark()
    assert fork.twin(inner)[0].delta() == Delta({"a": 2, "b": 2}, [], {})


# -- views (L4)


def test_a_view_reports_what_is_read_before_it_can_be_changed():
    """By its name; not under keys whose values nobody changes. The store that middleware sees does the same."""
    store, read = Store({"a": [1], "b": [2]}), []
    view = View(store)
    view["a"]
    view.on_read = read.append
    for seen in (view, Watched(store, read.append)):
        assert (seen["a"], seen[Key("b", list)], seen[Key("a", frozen=True)]) == ([1], [2], [1])
    assert read == ["a", "b"] * 2
    seen.report(["a", Local("c")])
    assert read[4:] == ["a", Local("c")]
    seen["new"] = 1
    assert store["new"] == 1


def test_a_view_of_an_action_that_has_ended_takes_no_more_writes():
    """However it is written to; the error names the action."""
    view = View(Store({"xs": []}))
    view.ended = "late"
    for write in (WAYS["set"], WAYS["append"], lambda store: operator.delitem(store, "xs")):
        with pytest.raises(ContextEndedError, match="^a write to ctx.store after action 'late' has ended"):
            write(view)
    assert view.delta() is NOTHING


def test_a_view_does_not_copy_a_list_that_it_appends_to():
    """Contributing one result costs the same however many there are."""
    store = Store({"xs": list(range(100_000))})
    view = View(store)
    tracemalloc.start()
    view.append("xs", 1)
    view.append("xs", 2)
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()
    assert view.delta() == Delta({}, [], {"xs": [1, 2]})


def test_a_view_reads_through_and_keeps_its_writes():
    """Until they are applied."""
    store = Store({"a": 1, "b": 2, "xs": [1]})
    view = View(store)
    view["a"] = 9
    view["c"] = 3
    del view["b"]
    view.append("xs", 2)
    assert dict(store) == {"a": 1, "b": 2, "xs": [1]}
    assert dict(view) == {"a": 9, "c": 3, "xs": [1, 2]}
    assert (len(view), "b" in view, "c" in view, "xs" in view, view.get("b")) == (3, False, True, True, None)
    with pytest.raises(StoreKeyError):
        view["b"]
    with pytest.raises(StoreKeyError):
        del view["b"]
    store.apply(view.delta())
    assert dict(store) == {"a": 9, "xs": [1, 2], "c": 3}


def test_a_view_sees_what_it_appended_however_it_looks():
    """By key, membership, iteration, length; then it may write there."""
    for look in (lambda v: v["xs"], lambda v: v.get("xs"), lambda v: dict(v)["xs"], lambda v: (len(v), v["xs"])[1]):
        store = Store({"xs": [1]})
        view = View(store)
        view.append("xs", 2)
        view.append("xs", 3)
        assert look(view) == [1, 2, 3]
        view.append("xs", 4)
        assert look(view) == [1, 2, 3, 4]
        assert store["xs"] == [1]
        assert view.delta().appends == {"xs": [2, 3, 4]}


def test_writing_over_what_a_view_appended_is_a_write():
    """And deleting it a deletion."""
    view = View(Store({"xs": [1], "ys": [1]}))
    view.append("xs", 2)
    view["xs"] = "other"
    view.append("ys", 2)
    del view["ys"]
    view.append("new", 1)
    del view["new"]
    delta = view.delta()
    assert (delta.puts, delta.appends) == ({"xs": "other"}, {})
    assert "ys" in delta.deletes
    store = Store({"xs": [1], "ys": [1]})
    store.apply(delta)
    assert dict(store) == {"xs": "other"}


def test_appending_in_a_view_to_what_it_wrote_there_copies_it():
    """As anywhere."""
    mine = [1]
    view = View(Store())
    view["xs"] = mine
    view.append("xs", 2)
    assert (mine, view["xs"]) == ([1], [1, 2])
    assert view.delta().puts == {"xs": [1, 2]}


def test_appending_in_a_view_to_what_is_no_list_is_an_error():
    """At once."""
    view = View(Store({"k": 3}))
    with pytest.raises(StoreTypeError, match="'k'.*int"):
        view.append("k", 1)
    assert dict(view) == {"k": 3}


def test_typed_keys_are_checked_in_a_view():
    """When it is written, appended to, read, asked."""
    number, numbers = Key("n", int), Key("xs", list[int])
    view = View(Store({"n": "wrong"}))
    with pytest.raises(StoreTypeError):
        view[number]
    with pytest.raises(StoreTypeError):
        view[number] = "wrong"
    view.append(numbers, 1)
    assert numbers in view
    assert view[numbers] == [1]


def test_deleting_and_writing_again_in_a_view_is_a_write():
    """The last word counts; it is where it was in the order."""
    view = View(Store({"a": 1, "b": 2}))
    del view["a"]
    assert list(view) == ["b"]
    view["a"] = 3
    assert dict(view) == {"a": 3, "b": 2}
    assert view.delta() == Delta({"a": 3}, [], {})


# -- types in journals


class Colour(Enum):
    """An enum of this module."""

    RED = 1
    BLUE = "b"


class Film(TypedDict):
    """A dict of this module."""

    year: int


class Unusual(Protocol):
    """A protocol that `isinstance` does not check."""


leaves = st.sampled_from([int, float, str, bool, bytes, list, dict, set, None, Colour, Key]) | st.lists(
    st.sampled_from(["a", "=", 1, True, None, Colour.RED, Colour.BLUE]), min_size=1
).map(lambda values: Literal[tuple(values)])
declared_types = st.recursive(
    leaves,
    lambda inner: (
        inner.map(lambda one: list[one])
        | st.tuples(inner, inner).map(lambda two: dict[two])
        | st.lists(inner, min_size=1, max_size=3).map(lambda several: Union[tuple(several)])  # noqa: UP007
    ),
    max_leaves=8,
)


@given(declared_types)
def test_a_type_comes_from_a_journal_as_it_was_declared(declared):
    """As far as `get_args` tells, in JSON as well; it checks the same classes, and has the same description."""
    key = Key("k", declared)
    references = json.loads(json.dumps(key.references()))
    found = type_of(references)

    def plain(kind):
        if get_origin(kind) is Literal:
            return {(type(value), value) for value in get_args(kind)}
        if get_origin(kind) in (Union, UnionType):
            return set().union(*(plain(each) for each in get_args(kind)))
        return {(get_origin(kind) or kind or NoneType, *(frozenset(plain(each)) for each in get_args(kind)))}

    assert plain(found) == plain(declared)
    copied = Key.of("k", key.described(), references)
    for value in (1, 1.5, "a", True, None, [], {}, b"", Colour.RED, key, object()):
        outcomes = []
        for each in (key, copied):
            try:
                each.check(value)
                outcomes.append(None)
            except StoreTypeError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("declared", "kept"),
    [
        (Annotated[NewType("Port", int), "x"], int),
        (TypeAliasType("Ints", list[int]), list[int]),
        (list[TypeAliasType("Ints", list[int])], list[list[int]]),
        (Film, dict),
        (list[Film], list[dict]),
        (tuple[int, ...], tuple),
        (MutableMapping[str, int], MutableMapping),
        (list[Unusual], list[Any]),
        (dict[str, Any], dict[str, Any]),
        (Literal[b"x", 1], Literal[1] | bytes),
        (Literal["a"] | int, Literal["a"] | int),
        (Unusual, Any),
        (int | Unusual, Any),
        (Any, Any),
    ],
)
def test_a_journal_keeps_of_a_type_what_can_be_found_again(declared, kept):
    """Aliases and annotations are gone; of other generic types than lists and dicts, only the class is kept."""
    assert type_of(Key("k", declared).references()) == kept


def test_an_alias_that_contains_itself_is_kept_to_some_depth():
    """As `type Nested = int | list[Nested]` does."""

    class TypeAliasType:
        __type_params__ = ()

        def __hash__(self):
            return 1

    nested = TypeAliasType()
    TypeAliasType.__value__ = Union[int, list[nested]]  # noqa: UP007
    kept = type_of(Key("k", nested).references())
    for _ in range(9):
        number, items = get_args(kept)
        assert number is int
        [kept] = get_args(items)
    assert kept is Any


def test_a_type_of_an_older_journal_is_a_list_of_classes():
    """In one that knew only these."""
    assert type_of(("builtins:int", "builtins:NoneType")) == int | None


def test_a_class_that_is_not_loaded_is_unknown():
    """Of items, only the list is checked; so it is with names that lead to something else."""
    assert type_of(("nowhere:Colour",)) is Any
    assert type_of(("builtins:int", "nowhere:Colour")) is Any
    assert type_of((("builtins:list", ("nowhere:Colour",)),)) == list[Any]
    assert type_of((f"{__name__}:Colour.GREEN",)) is Any
    assert type_of(("builtins:print",)) is Any
    assert type_of((("builtins:int", ("builtins:int",)),)) is int


@settings(max_examples=examples(40))
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.sampled_from(["=", "builtins:list", "builtins:dict"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    )
)
def test_damaged_references_are_an_unknown_type(references):
    """Or any other, but no error: no checksum covers the list of questions."""
    Key.of("k", "int", references)


# -- in a run


def test_a_run_reads_its_store_by_name_and_by_typed_key(run):
    """`run["key"]`."""
    finished = run(Stage("s", [step([], "n", 3)]))
    assert (finished["n"], finished[Key("n", int)]) == (3, 3)
    with pytest.raises(StoreTypeError):
        finished[Key("n", str)]
    with pytest.raises(StoreKeyError, match="'m'"):
        finished["m"]


def test_many_actions_that_append_by_context_share_one_list(run):
    """In order."""

    def appends(number):
        @action(name=f"a{number}")
        def body(ctx: Context):
            ctx.store.append("xs", number)

        return body

    assert run(Stage("s", [appends(n) for n in range(5)]))["xs"] == [0, 1, 2, 3, 4]


def test_the_mark_for_nothing_has_a_repr_and_is_one_of_its_kind():
    """Also after pickling."""
    assert repr(MISSING) == "MISSING"
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING


# -- in a run that is resumed


@pytest.fixture(params=[lambda: None, MemoryJournal], ids=["in memory", "in a journal"])
def journal(request):
    """Where the run is remembered."""
    return request.param()


def mended(name="fails", **options):
    """An action that fails the first time it is called."""
    return flaky([], name, 1, **options)


@pytest.mark.parametrize(
    ("merge", "expected"),
    [({}, ["xs", "of a"]), ({"xs": operator.add}, ["xs", "of a", "xs", "of a"])],
    ids=["equal", "folded"],
)
def test_lists_that_branches_have_extended_by_writing_them_anew_are_merged_as_they_are(journal, merge, expected):
    """Not as if each had appended to it: the same as in a run that was not interrupted."""

    def extended(xs):
        return [*xs, "of a"]

    a, b = (action(name=name, returns="xs")(extended) for name in "ab")
    flow = pipeline(parallel(a, b, mended(), merge=merge, limit=1))
    broken = flow.run({"xs": ["xs"]}, journal=journal, check=False)
    assert broken.status == "failed"
    assert flow.resume(broken)["xs"] == expected


def test_what_a_layer_writes_only_when_it_is_entered_again_is_no_write_of_its_branch(journal):
    """The first action of its stage is restored, and with it what the store was like then."""
    entered = []

    def layer(call):
        entered.append(call.stage.name)
        if len(entered) > 1:
            call.store["owner"] = "second attempt"
        yield

    branch = Stage("s", [step([], "done"), mended()], use=[layer])
    flow = pipeline(parallel(branch, step([], "other", "other", returns="owner"), limit=1))
    broken = flow.run({"owner": "caller"}, journal=journal, check=False)
    resumed = flow.resume(broken)
    assert (entered, resumed.status, resumed["owner"]) == (["s", "s"], "completed", "other")


def test_a_list_that_is_written_anew_in_a_second_attempt_is_remembered_as_it_is():
    """Also where one cannot tell whether it begins with what was there before."""
    journal = MemoryJournal()

    def appends(call):
        call.store.append("xs", Incomparable())
        yield

    anew = flaky([], "anew", 1, [Incomparable(), Incomparable(), Incomparable()], returns="xs")
    flow = Stage("s", [anew], use=[appends, again(2)]) >> mended()
    broken = flow.run({"xs": [Incomparable()]}, journal=journal, check=False)
    assert len(flow.resume(broken)["xs"]) == 3


def test_a_list_that_is_as_it_was_in_the_end_is_so_on_a_resume():
    """Whatever middleware and its attempts did to it meanwhile."""
    journal = MemoryJournal()
    attempts = []

    def listed(call):
        call.store.append("open", call.stage.name)
        yield
        call.store["open"] = [name for name in call.store["open"] if name != call.stage.name]

    def connects(call):
        attempts.append(call.stage.name)
        if len(attempts) == 1:
            raise OSError("refused")
        yield

    flow = Stage("s", use=[listed, again(2), connects]) >> mended()
    broken = flow.run({"open": ["others"]}, journal=journal, check=False)
    resumed = flow.resume(broken)
    assert (broken["open"], resumed["open"]) == (["others"], ["others"])
    assert (attempts, stage_record(resumed, "s").attempts) == (["s", "s"], 2)


# -- keys of types that `isinstance` does not know


class Movie(TypedDict):
    """A dict with known keys."""

    name: str


class Readable(Protocol):
    """A protocol that is not checked at run time."""

    def read(self) -> str: ...


UserId = NewType("UserId", int)
Recursive = TypeAliasType("Recursive", "dict[str, Recursive] | list[Recursive] | None")


@pytest.mark.parametrize(
    ("declared", "fitting", "other"),
    [
        (Movie, {"name": "x"}, 5),
        (Movie | None, None, 5),
        (list[Movie], [{}], 5),
        (UserId, 5, "x"),
        (NewType("AdminId", UserId), 5, "x"),
        (Literal["r", "w"], "r", 5),
        (TypeAliasType("MaybeId", UserId | None), None, "x"),
        (Callable[[int], str], len, 5),
        (type[int], int, 5),
    ],
)
def test_a_key_checks_what_can_be_checked(declared, fitting, other):
    """Of a TypedDict the dict, of a new type its base, of a literal the value, of an alias its value."""
    # dagster-io/dagster#32728, stanfordnlp/dspy#10214
    store = Store()
    key = Key("key", declared)
    store[key] = fitting
    assert store[key] == fitting
    with pytest.raises(StoreTypeError):
        store[key] = other


@pytest.mark.parametrize(
    "declared",
    [
        Readable,
        TypeVar("T"),
        TextIO,
        IO[str],
        Never,
        Final[int],
        Recursive,
    ],
)
def test_a_key_accepts_anything_where_nothing_can_be_checked(declared):
    """It does not fail."""
    store = Store()
    store[Key("key", declared)] = sys.stdout
    assert "key" in store


class TypeAliasType:
    """Stands in for an alias made by the `type` statement, which is evaluated when its value is asked for."""

    @property
    def __value__(self):
        raise NameError("name 'Frame' is not defined")


def test_an_alias_of_a_name_that_only_the_type_checker_knows_is_not_checked():
    """As annotations with such names are not."""
    Key("x", TypeAliasType()).check("anything")


def test_a_key_that_came_and_went_was_not_written():
    """However it came: nothing is left to conflict with what another branch writes."""
    store = Store({"old": [1]})
    mark = store.mark()
    store["put"] = 1
    store.append("grown", 1)
    store.append("grown", 2)
    store.append("old", 2)
    for key in ("put", "grown", "old"):
        del store[key]
    assert store.since(mark).deletes == ["old"]


def test_a_layer_over_a_mapping_has_the_length_of_both():
    """Without what was deleted; what is there twice counts once."""
    layer = _Layer({"a": 1, "b": 2})
    layer["b"], layer["c"] = 3, 4
    del layer["a"]
    assert (len(layer), dict(layer)) == (2, {"b": 3, "c": 4})


# Forks of a store with many values.


MANY = {f"key{number}": number for number in range(100)}
NAMES = ["key1", "key2", "key3", "new"]
WRITES = st.lists(
    st.tuples(st.sampled_from([*NAMES, "fork"]), st.sampled_from(["put", "delete", "append"])), max_size=12
)


@given(writes=WRITES, more=st.sampled_from([0, 100]))
def test_forks_of_forks_read_and_write_like_copies(writes, more):
    """However many values lie below; a store is unchanged by what is written to its forks."""
    store, model = Store(MANY), dict(MANY)
    stores, models, deltas = [store], [model], []
    for name, how in writes:
        if name == "fork":
            store.update({f"more{number}": number for number in range(more)})
            model.update({f"more{number}": number for number in range(more)})
            store, model = store.fork(), dict(model)
            stores.append(store)
            models.append(model)
            deltas.append({})
        elif how == "put":
            store[name] = model[name] = [how]
        elif how == "delete" and name in model:
            del store[name], model[name]
        elif how == "append" and not isinstance(model.get(name), int):
            store.append(name, how)
            model[name] = [*model.get(name, ()), how]
    for store, model in zip(stores, models, strict=True):
        assert model == dict(store)
        assert [model.get(name) for name in NAMES] == [store.get(name) for name in NAMES]
    for parent, fork in zip(stores, stores[1:], strict=False):
        parent.apply(fork.delta())
        assert dict(fork) == dict(parent)


def test_a_settled_fork_does_not_depend_on_the_store_below():
    """It keeps its values, and what it knows of its writes."""
    store = Store(MANY)
    fork = store.fork()
    fork["new"] = 1
    assert fork.detached() is fork
    store["key1"] = store["other"] = "later"
    assert {**MANY, "new": 1} == dict(fork)
    assert Delta({"new": 1}, [], {}) == fork.delta()
    assert store.detached() is store


def test_a_branch_does_not_copy_a_large_store():
    """Fifty branches over twenty thousand keys: some take a value, none takes the memory of all."""
    inputs = {f"key{number}": number for number in range(20_000)}
    group = parallel(*(action(name=f"a{number}")(lambda key7: key7) for number in range(50)))
    group.run(inputs, executor=serial())
    tracemalloc.start()
    try:
        run = group.run(inputs, executor=serial())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 7 == run["a49"]
    assert peak < 5 * 2**20


def test_a_branch_resumed_in_memory_does_not_see_what_was_written_after_it_failed():
    """Middleware around the group writes on its way out: the branch continues with the values that it had."""
    seen, broken = [], [True]

    def after(call):
        try:
            yield
        finally:
            call.store["key1"] = "later"

    @action
    def read(key1):
        seen.append(key1)

    @action
    def fail(key1):
        if broken:
            raise ValueError(key1)
        seen.append(key1)

    flow = pipeline(pipeline(parallel(Stage("s", [read, fail]), read), name="inner", use=[after]))
    run = flow.run(MANY, check=False, executor=serial())
    broken.clear()
    assert flow.resume(run, executor=serial())["key1"] == "later"
    assert {1} == set(seen)
