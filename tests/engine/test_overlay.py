"""The writes of branches, merged in their order: against what becomes of each key on its own."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from flowdeco import Key, Stage, action, parallel, stage
from flowdeco.engine.overlay import Overlay, warn_of_merge
from flowdeco.errors import StoreTypeError, WriteConflictError
from flowdeco.model.deltas import Delta

BRANCHES = [Stage(f"s{number}") for number in range(4)]


def group_of(**options):
    return parallel(*BRANCHES, name="g", **options)


def merged(group, *written):
    """The overlay of branches that wrote this."""
    overlay = Overlay(group)
    for index, delta in enumerate(written):
        overlay.add(index, group.units[index], delta)
    return overlay


def put(**values):
    return Delta(values, [], {})


def deleted(*keys):
    return Delta({}, list(keys), {})


def appended(**items):
    return Delta({}, [], items)


ONE_KEY = st.one_of(  # what a branch may do to a key
    st.tuples(st.just("puts"), st.integers(0, 1)),
    st.tuples(st.just("appends"), st.lists(st.integers(0, 9), min_size=1, max_size=2)),
    st.tuples(st.just("deletes"), st.none()),
)


def delta_of(done):
    """The writes of a branch, from what it did to each key."""
    kinds = {kind: {key: value for key, (how, value) in done.items() if how == kind} for kind in Delta._fields[:3]}
    return Delta(kinds["puts"], list(kinds["deletes"]), kinds["appends"])


def came_to(key, done):
    """What branches made of one key, in their order; None for a conflict."""
    kinds, values = {kind for kind, _ in done}, [value for _, value in done]
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    if kind == "puts" and key != "summed":
        return (kind, values[0]) if len(set(values)) == 1 else None
    return kind, None if kind == "deletes" else sum(values[1:], values[0])


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "summed"]), ONE_KEY), max_size=4))
def test_each_key_is_merged_on_its_own(branches):
    """Items are joined, deletions and equal values happen once, a reducer combines, and everything else conflicts."""
    keys = {key for done in branches for key in done}
    expected = {key: came_to(key, [done[key] for done in branches if key in done]) for key in keys}
    group = group_of(merge={"summed": lambda one, other: one + other})
    if None in expected.values():
        with pytest.raises(WriteConflictError):
            merged(group, *map(delta_of, branches))
    else:
        assert merged(group, *map(delta_of, branches)).delta == delta_of(
            {key: expected[key] for done in branches for key in done}
        )


def test_branches_keep_their_items():
    """Those of later branches are added to a list of the group's own."""
    first = appended(xs=[1])
    overlay = merged(group_of(), first, appended(xs=[2]))
    assert (overlay.delta.appends, first.appends) == ({"xs": [1, 2]}, {"xs": [1]})


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        (put(k=1), put(k="2"), "1 and '2'"),
        (put(k=1), appended(k=[1]), "one of them collects or deletes"),
        (appended(k=[1]), put(k=1), "one of them collects or deletes"),
        (put(k=1), deleted("k"), "one of them collects or deletes"),
        (appended(k=[1]), deleted("k"), "one of them collects or deletes"),
        (deleted("k"), appended(k=[1]), "one of them collects or deletes"),
    ],
)
def test_a_conflict_names_both_branches_the_key_and_the_remedies(first, second, how):
    """The first branch that wrote it, and the one that disagrees."""
    with pytest.raises(WriteConflictError) as conflict:
        merged(group_of(), put(other=1), first, put(other=1), second)
    assert str(conflict.value) == (
        "the branches 1 ('s1') and 3 ('s3') of the parallel group 'g' wrote different values to the key 'k': "
        f"{how}. Write to different keys, contribute results with collect=, or combine them: "
        "parallel(..., merge={'k': function})"
    )


def test_a_reducer_that_raises_names_the_branches_in_a_note():
    """The exception is the reducer's own."""

    def no(one, other):
        raise error

    error = ZeroDivisionError("no")
    with pytest.raises(ZeroDivisionError):
        merged(group_of(merge={"k": no}), put(k=1), put(k=2))
    assert error.__notes__ == [
        "in merge= of the key 'k', for the branches 0 ('s0') and 1 ('s1') of the parallel group 'g'"
    ]


def test_a_reducer_may_raise_what_takes_no_notes():
    """It arrives all the same."""

    class Silent(Exception):
        def add_note(self, note):
            raise AttributeError(note)

    def no(one, other):
        raise Silent

    with pytest.raises(Silent):
        merged(group_of(merge={"k": no}), put(k=1), put(k=2))


def test_answers_that_branches_used_up_are_deleted():
    """In the order of their names, and not those under which a branch wrote something."""
    overlay = merged(group_of(), put(a=1))
    overlay.use_up({"c", "a", "b"})
    assert overlay.delta == Delta({"a": 1}, ["b", "c"], {})


def test_failures_are_put_under_a_key_of_their_own():
    """A typed key checks them; a branch that wrote there is named."""
    failures = [("s0", ValueError("no"))]
    overlay = merged(group_of())
    overlay.put_failures(Key("failed", list), failures)
    assert overlay.delta.puts == {"failed": failures}
    with pytest.raises(StoreTypeError, match="'failed'.*int"):
        overlay.put_failures(Key("failed", int), failures)
    with pytest.raises(WriteConflictError) as conflict:
        merged(group_of(), put(a=1), put(failed=1)).put_failures("failed", failures)
    assert str(conflict.value) == (
        "the branch 1 ('s1') of the parallel group 'g' wrote to the key 'failed', which is that of its failures: "
        "write to another key"
    )


@action(returns="declared")
def declares() -> int:
    return 1


@stage
def s(number: int) -> None:
    @action
    def local() -> int:
        return 1


def test_functions_of_merge_that_were_for_nothing_are_logged(caplog):
    """Not those of a key that was written, or deleted, or may be on another day."""
    keys = ["written", "gone", "declared", "items", "local", "writen"]
    group = parallel(declares, s(1), name="g", merge=dict.fromkeys(keys, max))
    with caplog.at_level(logging.WARNING, "flowdeco.run"):
        warn_of_merge("r1", group, Delta({"written": 1}, ["gone"], {"items": [1]}))
    assert [record.getMessage() for record in caplog.records] == [
        f"run r1: merge of the parallel group 'g' has the key {key!r}, {why}"
        for key, why in [
            ("items", "to which its branches collect: items are concatenated, and the function is not called"),
            ("local", "which is local to stage 's[1]': write returns='local' there to share it"),
            ("writen", "which no branch wrote. Did you mean 'written'?"),
        ]
    ]
    assert caplog.records[0].run == "r1"


def test_the_keys_that_were_written_are_listed_where_none_is_similar(caplog):
    """For a merge= that is for something else altogether."""
    with caplog.at_level(logging.WARNING, "flowdeco.run"):
        warn_of_merge("r1", group_of(merge={"k": max}), put(other=1))
    assert caplog.records[0].getMessage().endswith("which no branch wrote. They wrote: 'other'.")


def test_nothing_is_logged_where_every_function_is_for_something(caplog):
    """It was called, or could have been."""
    with caplog.at_level(logging.WARNING, "flowdeco.run"):
        warn_of_merge("r1", group_of(merge={"k": max}), put(k=1))
    assert caplog.records == []
