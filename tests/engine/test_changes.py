"""Changes in place: values are looked at when they are read, and compared when the step has ended."""

from flowdeco import Store
from flowdeco.durable.digests import digest
from flowdeco.engine.changes import Looks
from flowdeco.model.keys import Local


class Counting:
    """A digest that notes of what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, value):
        self.asked.append(value)
        return digest(value)


def watched(store, digest=digest):
    """A watch over a store, what it notes, and a mark for the writes of a step."""
    changed = set()
    return Looks(digest).watch(store, changed.update), changed, store.mark()


def test_values_that_were_read_are_compared():
    """Not those that were written as a whole, or are gone; atoms are not looked at."""
    names = ["read", "later", "written", "gone", "same", "unread"]
    store = Store({"number": 1, **{name: [1] for name in names}})
    watch, changed, mark = watched(store)
    watch.look(["missing", "read", "number", "written"])
    watch.look(["read", "gone"])
    for name in ("later", "read", "same", "missing"):
        watch.look_at(name)
    for name in names:
        store[name].append(2)
    store["same"].pop()
    store["written"] = [3]
    del store["gone"]
    written = watch.with_changes(store.since(mark))
    assert (written.puts, written.deletes, written.appends) == ({"written": [3]}, ["gone"], {})
    assert written.changes == {"read": [1, 2], "later": [1, 2]}
    assert changed == {"read", "later"}


def test_a_list_that_was_appended_to_is_compared_without_these_items():
    """If the change was made before they were: the store appends to a copy, which is written as a whole once it differs."""
    for late in (False, True):
        store = Store({"xs": [1]})
        watch, _, mark = watched(store)
        watch.look(["xs"])
        if not late:
            store["xs"][0] = 2
        store.append("xs", 3)
        if late:
            store["xs"][0] = 2
        written = watch.with_changes(store.since(mark))
        if late:
            assert (written.puts, written.appends, written.changes) == ({"xs": [2, 3]}, {}, {})
        else:
            assert (written.puts, written.appends, written.changes) == ({}, {"xs": [3]}, {"xs": [2]})


def test_appending_alone_is_no_change():
    """Even if the list was read after it had grown."""
    store = Store({"xs": [1]})
    watch, _, mark = watched(store)
    store.append("xs", 2)
    watch.look(["xs"])
    store.append("xs", 3)
    written = watch.with_changes(store.since(mark))
    assert (written.appends, written.changes) == ({"xs": [2, 3]}, {})


def test_another_key_that_holds_a_list_that_has_grown_has_all_of_it():
    """The list was changed in place as well."""
    store = Store()
    store.append("xs", 1)  # from now on it is the list of the store
    store["ys"] = store["xs"]
    watch, changed, mark = watched(store)
    watch.look(["xs"])
    store["xs"][0] = 2
    store.append("xs", 3)
    written = watch.with_changes(store.since(mark))
    assert (written.appends, written.changes, changed) == ({"xs": [3]}, {"xs": [2], "ys": [2, 3]}, {"xs", "ys"})


def test_every_key_that_holds_the_value_has_changed():
    """Local ones, too; the one that was written anew has its own value."""
    one = [1]
    store = Store({"a": one, "b": one, "c": [1]})
    store.put(Local("d"), one)
    watch, changed, mark = watched(store)
    watch.look(["a"])
    one.append(2)
    store["a"] = [3]
    written = watch.with_changes(store.since(mark))
    assert written.changes == {"b": [1, 2], Local("d"): [1, 2]}
    assert changed == {"b", Local("d")}


def test_a_value_that_is_read_again_is_hashed_once_for_each_step():
    """Until it is written: another value may have its id."""
    counting = Counting()
    looks, store = Looks(counting), Store({"xs": [1]})
    for expected in (2, 3, 4):  # before and after, then after only
        watch = looks.watch(store, set().update)
        watch.look(["xs"])
        watch.with_changes(store.since(store.mark()))
        assert len(counting.asked) == expected
    looks.forget(["other", "xs"])
    looks.watch(store, set().update).look(["xs"])
    assert len(counting.asked) == 5


def test_a_change_between_steps_is_reported_by_the_next_one_that_reads():
    """The journal has the value as it was: whoever changed it."""
    looks, store = Looks(digest), Store({"xs": [1]})
    for changes in ({}, {"xs": [1, 2]}, {}):
        watch = looks.watch(store, set().update)
        watch.look(["xs"])
        assert watch.with_changes(store.since(store.mark())).changes == changes
        if not changes:
            store["xs"].append(2)


def test_a_value_whose_content_cannot_be_seen_has_not_changed():
    """Nothing could be written of it."""
    store = Store({"xs": [1]})
    watch, _, mark = watched(store, lambda value: None)
    watch.look(["xs"])
    store["xs"].append(2)
    assert watch.with_changes(store.since(mark)).changes == {}


def test_a_resting_watch_holds_no_value():
    """When it resumes, it looks at the values that are there by then."""
    store = Store({"xs": [1]})
    watch, _, mark = watched(store)
    watch.look(["xs"])
    watch.rest()
    store["xs"] = [5]
    assert watch.with_changes(store.since(mark)).changes == {}
    watch.resume()
    store["xs"].append(6)
    assert watch.with_changes(store.since(store.mark())).changes == {"xs": [5, 6]}


def test_middleware_sees_the_same_store():
    """Its reads are noted, in all ways to read; its writes are those of the store."""
    store = Store({"a": [1], "b": [1], "c": [1], "d": [1]})
    watch, _, mark = watched(store)
    view = watch.watched()
    view["a"].append(2)
    view.get("b").append(2)
    view.setdefault("c", []).append(2)
    dict(view.items())["d"].append(2)
    view["e"] = 1
    written = watch.with_changes(store.since(mark))
    assert written.changes == dict.fromkeys("abcd", [1, 2])
    assert (written.puts, store["e"]) == ({"e": 1}, 1)


def test_values_of_frozen_keys_are_never_looked_at():
    """Nor local results of that name; the others are."""
    looks, store = Looks(digest), Store({"frozen": [1], "xs": [1]})
    store.put(Local("frozen"), [1])
    assert not looks.is_frozen("frozen")
    looks.frozen.add("frozen")
    assert [looks.is_frozen(key) for key in ("frozen", Local("frozen"), "xs", Local("xs"))] == [
        True,
        True,
        False,
        False,
    ]
    watch, mark = looks.watch(store, set().update), store.mark()
    watch.look(["frozen", Local("frozen"), "xs"])
    for _, value in store.everything():
        value.append(2)
    assert watch.with_changes(store.since(mark)).changes == {"xs": [1, 2]}


def test_a_step_in_another_one_does_not_hash_again_what_that_has_read():
    """As an action in a stage, whose layers have read it; of a value that it writes as a whole, nothing is compared."""
    counting = Counting()
    looks, store = Looks(counting), Store({"xs": [1], "ys": [1]})
    watch = looks.watch(store, set().update)
    watch.look(["xs", "ys"])
    looks.watch(store, set().update).look(["xs", "ys"])
    assert len(counting.asked) == 2
    mark = store.mark()
    store["xs"] = store["xs"]
    assert watch.with_changes(store.since(mark)).changes == {}
    assert len(counting.asked) == 3  # "ys" once more


def test_all_digests_are_forgotten_with_an_attempt():
    """The journal loses the changes with its rows."""
    looks, store = Looks(digest), Store({"xs": [1]})
    looks.watch(store, set().update).look(["xs"])
    store["xs"].append(2)
    looks.forget()
    watch = looks.watch(store, set().update)
    watch.look(["xs"])
    assert watch.with_changes(store.since(store.mark())).changes == {}


def test_what_was_changed_until_a_watch_is_renewed_is_not_reported_again():
    """As by layers, one after the other; there may have been nothing to look at."""
    store = Store({"xs": [1]})
    watch, _, mark = watched(store)
    watch.resume()
    watch.renew()
    watch.look(["xs"])
    for number in (2, 3):
        assert watch.with_changes(store.since(mark)).changes == {}
        store["xs"].append(number)
        assert watch.with_changes(store.since(mark)).changes == {"xs": [*range(1, number + 1)]}
        watch.renew()


# -- values that have a part in common


class Odd:
    """A value without a length."""


def test_values_that_share_a_part_with_a_changed_one_have_changed():
    """Read or not, also if the changed one was written as a whole; those of frozen keys are left alone."""
    for returns in (False, True):
        part, looks = [0], Looks(digest)
        store = Store({"n": 1, "frozen": [part], "a": {"k": part}, "b": (part,), "other": [Odd()], "c": [[part]]})
        looks.frozen.add("frozen")
        changed, mark = set(), store.mark()
        watch = looks.watch(store, changed.update)
        watch.look(["a"])
        part.append(1)
        if returns:
            store["a"] = store["a"]
        written = watch.with_changes(store.since(mark))
        assert written.changes == {"b": ([0, 1],), "c": [[[0, 1]]], **({} if returns else {"a": {"k": [0, 1]}})}
        assert changed == written.changes.keys()
        again = looks.watch(store, set().update)
        again.look(["b", "c"])
        assert again.with_changes(store.since(store.mark())).changes == {}


def test_several_changed_values_may_share_parts_with_others():
    """With different ones each. A value that was only read, or replaced, has changed nothing."""
    one, two, read, replaced = [1], [2], [3], [4]
    store = Store({"a": [one], "b": [two], "c": [one], "d": [two]})
    store.update({"read": [read], "e": [read], "replaced": [replaced], "f": [replaced]})
    watch, _, mark = watched(store)
    watch.look(["a", "b", "read", "replaced"])
    for part in (one, two):
        part.append(5)
    store["replaced"] = 6
    assert watch.with_changes(store.since(mark)).changes.keys() == {"a", "b", "c", "d"}


def test_parts_of_a_value_are_found_again_after_it_has_changed():
    """A change may have put one into it, a write another value under its key. Of the rest, they are known."""
    part, looks = [0], Looks(digest)
    store = Store({"a": [], "b": [part], "x": [], "y": []})

    def changes(*keys, change):
        watch, mark = looks.watch(store, set().update), store.mark()
        watch.look(keys)
        change()
        written = watch.with_changes(store.since(mark))
        looks.forget(written.keys())  # as the journal does when it gets them
        return written.changes.keys()

    assert changes("x", change=lambda: store["x"].append(1)) == {"x"}  # now the parts of all the others are known
    assert changes("a", change=lambda: store["a"].append(part)) == {"a", "b"}
    assert changes("b", change=lambda: part.append(1)) == {"a", "b"}
    assert changes(change=lambda: store.update(y=[part])) == set()
    assert changes("b", change=lambda: part.append(2)) == {"a", "b", "y"}


def test_parts_are_looked_for_once_while_a_value_is_the_same(monkeypatch):
    """That takes long, and nothing has changed in it. The journal notes what was written: an id may be used again."""
    asked = []
    monkeypatch.setattr("flowdeco.engine.changes.mutable_parts", lambda value: asked.append(value) or frozenset())
    looks, store = Looks(digest), Store({"x": [], "n": 1, "a": ["a"], "b": ["b"]})
    for expected in ([["a"], ["b"]], [], [["a"]]):
        watch = looks.watch(store, set().update)
        watch.look(["x"])
        store["x"].append(1)
        watch.with_changes(store.since(store.mark()))
        assert [value for value in asked if value is not store["x"]] == expected
        asked.clear()
        if not expected:
            looks.forget(["a"])  # it was written
