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
    return Looks(digest).watch(store, changed), changed, store.mark()


def test_values_that_were_read_are_compared():
    """Not those that were written as a whole, or are gone; atoms are not looked at."""
    names = ["read", "later", "written", "gone", "same", "unread"]
    store = Store({"number": 1, **{name: [1] for name in names}})
    watch, changed, mark = watched(store)
    watch.look(["read", "number", "written", "gone", "missing"])
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
    """Whether the change was made before or after they were appended."""
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
        assert (written.appends, written.changes) == ({"xs": [3]}, {"xs": [2]})


def test_appending_alone_is_no_change():
    """Even if the list was read after it had grown."""
    store = Store({"xs": [1]})
    watch, _, mark = watched(store)
    store.append("xs", 2)
    watch.look(["xs"])
    store.append("xs", 3)
    written = watch.with_changes(store.since(mark))
    assert (written.appends, written.changes) == ({"xs": [2, 3]}, {})


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
    assert changed == {"b"}


def test_a_value_that_is_read_again_is_hashed_once_for_each_step():
    """Until it is written: another value may have its id."""
    counting = Counting()
    looks, store = Looks(counting), Store({"xs": [1]})
    for expected in (2, 3, 4):  # before and after, then after only
        watch = looks.watch(store, set())
        watch.look(["xs"])
        watch.with_changes(store.since(store.mark()))
        assert len(counting.asked) == expected
    looks.forget(["other", "xs"])
    looks.watch(store, set()).look(["xs"])
    assert len(counting.asked) == 5


def test_a_change_between_steps_is_reported_by_the_next_one_that_reads():
    """The journal has the value as it was: whoever changed it."""
    looks, store = Looks(digest), Store({"xs": [1]})
    for changes in ({}, {"xs": [1, 2]}, {}):
        watch = looks.watch(store, set())
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
