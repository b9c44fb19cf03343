"""The ends of branches are merged in their order: forks of a branch that end one by one, and what the group gets of them."""

from types import SimpleNamespace

import pytest
from scripted import terms_of

from flowdeco import Bail, Key, Stage, Status, Store, parallel
from flowdeco.engine.branch import Branch
from flowdeco.engine.memory import Log
from flowdeco.engine.merger import Merger
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.engine.outcome import ROOT, Outcome, Scope, Selection, StageRecord, branch_id
from flowdeco.engine.verdicts import Verdicts
from flowdeco.errors import StoreTypeError, Wait, WriteConflictError
from flowdeco.model.deltas import NOTHING, Delta

UNITS = [Stage(f"s{index}") for index in range(4)]
NO = ValueError("no")


def record(index, status=Status.COMPLETED, **more):
    return StageRecord(f"s{index}", UNITS[index], status, 0.0, 0.0, **more)


class Merging:
    """A group of four branches, numbered 3 in its branch; each `ends` with these changes of its branch."""

    def __init__(self, earlier=None, is_live=True, inputs=None, revocable=0, terms=(), **options):
        self.group = parallel(*UNITS, name="g", **options)
        self.branch = Branch(terms_of(**dict(terms)), Store(inputs), OpenScope(None, None, None, 0.0))
        self.branch.revocable = revocable
        self.branch.records.add(record(0))
        self.scope = OpenScope(self.branch.base, self.group, None, 0.0, 3)
        self.scope.place = Scope("g", "0.3", None, None, None)
        self.verdicts = Verdicts(self.group, lambda error: False, earlier, is_live=is_live)
        self.merger = Merger(self.branch, self.group, self.scope, self.verdicts)

    def ends(self, index, error=None, *, puts=(), result=None, switches=(), rows=(), **more):
        base = OpenScope(self.scope, None, None, 0.0)
        base.place = self.scope.place.of(index)
        fork = Branch(self.branch.terms, self.branch.store.fork(), base, self.branch, SimpleNamespace(id="0.3"), index)
        fork.unit = UNITS[index]
        fork.store.update(dict(puts))
        fork.result, fork.rows = result, list(rows)
        for selector, on in switches:
            fork.switch(selector, on)
        status = Status.COMPLETED if error is None else Status.FAILED
        fork.records.add(record(index, status, scope=base.place))
        for name, value in more.items():
            setattr(fork, name, value)
        if error is not None:
            self.verdicts.loses(index, error)
        self.merger.unmerged[index] = fork
        self.verdicts.ended(index, error)
        return fork

    def names(self):
        return [each.name for each in self.branch.records.kept[1:]]

    def writes(self, error=None, lost=()):
        return self.merger.writes(error, list(lost))


# -- in their order


def test_a_branch_is_merged_as_soon_as_all_before_it_are():
    """Whatever the order of their ends."""
    merging = Merging()
    merging.ends(1, puts={"b": 1}, rows=["row 1"])
    merging.merger.merge_ready()
    assert (merging.merger.turn, merging.names(), list(merging.merger.unmerged)) == (0, [], [1])
    merging.ends(0, puts={"a": 0}, rows=["row 0"])
    merging.ends(3, puts={"d": 3}, rows=["row 3"])
    merging.merger.merge_ready()
    assert (merging.merger.turn, merging.names(), list(merging.merger.unmerged)) == (2, ["s0", "s1"], [3])
    assert merging.branch.rows == ["row 0", "row 1"]
    assert merging.writes() == Delta({"a": 0, "b": 1}, [], {})
    merging.merger.merge_all(4)  # the third one has never begun
    assert (merging.merger.turn, merging.names(), merging.merger.unmerged) == (4, ["s0", "s1", "s3"], {})
    assert merging.writes() == Delta({"a": 0, "b": 1, "d": 3}, [], {})


def test_a_branch_that_never_began_is_passed_over():
    """The next one is not kept waiting."""
    merging = Merging()
    merging.merger.unmerged[0] = None
    merging.ends(1, puts={"b": 1})
    merging.merger.merge_ready()
    assert (merging.merger.turn, merging.names(), merging.merger.error) == (2, ["s1"], None)


def test_before_the_end_of_the_group_a_failed_branch_is_not_merged():
    """Unless it is lost: it counts as little as one that has never begun."""
    for tolerate, turn in ((0, 1), (1, 3)):
        merging = Merging(tolerate=tolerate)
        for index in range(3):
            merging.ends(index, NO if index == 1 else None, puts={f"k{index}": index}, result=index)
        merging.merger.merge_ready()
        assert merging.merger.turn == turn
        merging.merger.merge_all(4)
        assert (merging.merger.turn, merging.names()) == (4, ["s0", "s1", "s2"])
        assert merging.writes().puts == {"k0": 0, "k2": 2}
        assert merging.merger.result == 2


def test_branches_that_the_group_did_not_need_are_cancelled():
    """Those that count have completed before."""
    merging = Merging(enough=1)
    merging.ends(1, puts={"k": 1})
    merging.ends(0, puts={"k": 0})
    merging.ends(2, NO)
    merging.merger.unmerged[3] = None
    merging.merger.merge_all(4)
    assert [each.status for each in merging.branch.records.kept[1:]] == ["cancelled", "completed", "failed"]
    assert merging.writes().puts == {"k": 1}


@pytest.mark.parametrize("error", [LookupError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_of_merging_ends_it(error):
    """A reducer's, or an interrupt in it; the rest is taken without its effect."""

    def reducer(one, other):
        raise error

    merging = Merging(merge={"k": reducer})
    for index in range(3):
        merging.ends(index, puts={"k": index}, result=index, rows=[index])
    merging.merger.merge_ready()
    assert merging.merger.error is error
    assert (merging.merger.turn, merging.names(), merging.branch.terms.gate.open) == (2, ["s0", "s1"], False)
    merging.merger.take_the_rest()
    assert (merging.names(), merging.branch.rows, merging.merger.unmerged) == (["s0", "s1", "s2"], [0, 1, 2], {})
    assert merging.merger.result == 1
    assert merging.writes(error) == Delta({}, [], {})


def test_the_gate_is_open_while_a_reducer_runs():
    """Only then may an interrupt come."""
    seen = []
    for merge in ({"k": lambda one, other: seen.append(merging.branch.terms.gate.open) or 7}, None):
        merging = Merging(merge=merge)
        for index in range(2):
            merging.ends(index, puts={"k": 1} if merge else {f"k{index}": 1})
        merging.merger.merge_ready()
        assert (merging.merger.error, merging.branch.terms.gate.open) == (None, False)
    assert seen == [True]


def test_branches_that_disagree_are_a_conflict():
    """In the words of the overlay."""
    merging = Merging()
    merging.ends(0, puts={"k": 0})
    merging.ends(1, puts={"k": 1})
    merging.merger.merge_ready()
    assert isinstance(merging.merger.error, WriteConflictError)
    assert "the branches 0 ('s0') and 1 ('s1') of the parallel group 'g'" in str(merging.merger.error)


# -- what counts however a branch ends


@pytest.mark.parametrize("error", [None, NO], ids=repr)
def test_rows_records_and_changes_are_taken_over(error):
    """And waits, under the number of the group; the ids of branches, if another attempt may have to forget them."""
    wait, answers = Wait("question", key="k"), [Wait("question", key="k", value=1)]
    merging = Merging(inputs={"x": [1], "y": [2]}, revocable=1, terms={"log": Log()})
    fork = merging.ends(
        0, error, rows=["row"], changed={"x", "gone"}, held_waits=(wait,), consumed=frozenset({"k"}),
        answered=((5, ("inner", 5), answers),), inner_branches=[(2, ["i1", "i2"]), (4, ["i3"])],
    )  # fmt: skip
    merging.merger.merge_all(1)
    merging.merger.take_the_rest()
    branch = merging.branch
    assert (branch.rows, merging.names()) == (["row"], ["s0"])
    assert (branch.held_waits, branch.consumed) == ((wait,), {"k"})
    assert branch.answered == ((3, ("inner", 5), answers),)
    assert branch.inner_branches == [(3, [fork.id, "i1", "i2", "i3"])]
    writes = merging.merger.with_changes(Delta({"y": 3}, [], {}))
    assert (writes, branch.changed) == (Delta({"y": 3}, [], {}, {"x": [1]}), {"x"})
    for untouched in (Delta({"x": 3}, [], {}), Delta({}, ["x"], {})):
        assert merging.merger.with_changes(untouched) == untouched._replace(changes={})
    for terms in ({}, {"recorder": SimpleNamespace()}):
        for revocable in (0, 1):
            merging = Merging(terms=terms, revocable=revocable)
            merging.ends(0, error)
            merging.merger.merge_all(1)
            merging.merger.take_the_rest()
            ids = [branch_id("0.3", 0)] * bool(terms)
            assert merging.branch.inner_branches == [(3, ids)] * revocable


def test_those_of_several_branches_come_together():
    """Whatever each has of them, and after those of the enclosing branch."""
    before, waits, answers = Wait("sleep", 1.0), (Wait("sleep", 2.0), Wait("sleep", 3.0)), [Wait("question", key="k")]
    merging = Merging(inputs={"x": [1], "y": [2], "k": 0, "j": 0})
    branch = merging.branch
    branch.held_waits, branch.consumed, branch.changed = (before,), frozenset({"before"}), {"z"}
    branch.answered = ((1, (ROOT, 1), answers),)
    one = merging.ends(0, changed={"x"}, held_waits=waits[:1], consumed=frozenset("k"))
    other = merging.ends(1, changed={"y"}, held_waits=waits[1:], consumed=frozenset("j"))
    del one.store["k"], other.store["j"]
    merging.ends(2, answered=((5, ("inner", 5), answers),))
    merging.ends(3, consumed=frozenset("l"))
    merging.merger.merge_all(4)
    assert (branch.held_waits, branch.consumed) == ((before, *waits), {"before", "k", "j", "l"})
    assert branch.answered == ((1, (ROOT, 1), answers), (3, ("inner", 5), answers))
    writes = merging.merger.with_changes(merging.writes())
    assert writes == Delta({}, ["j", "k"], {}, {"x": [1], "y": [2]})
    assert branch.changed == {"x", "y", "z"}
    branch.result = "before"
    merging.merger.adopt(None)
    assert branch.result == "before"


def test_without_changes_in_place_the_writes_are_the_same():
    """Nothing is copied."""
    merging, writes = Merging(inputs={"x": 1}), Delta({"y": 3}, [], {})
    merging.ends(0, changed={"gone"})
    merging.merger.merge_all(1)
    assert merging.merger.with_changes(writes) is writes
    assert merging.branch.changed == set()


def test_the_writes_of_layers_after_a_failure_are_noted_no_more():
    """Only as far as the branch goes."""
    merging = Merging(terms={"log": Log()})
    fork = merging.ends(0)
    fork.left_behind().unwind(fork.store)
    merging.merger.merge_all(1)
    fork.store["late"] = 1
    assert "late" not in fork.left_behind().unwinding


# -- the outcome


def test_results_and_switches_are_those_of_the_last_branch_that_has_any():
    """In the order of the branches; the latest switch comes last."""
    merging = Merging()
    merging.ends(0, result="first", switches=[("a", False), ("b", False)])
    merging.ends(1, switches=[("a", True)])
    merging.ends(2, result=0, switches=[])
    merging.ends(3)
    merging.merger.merge_all(4)
    assert (merging.merger.result, list(merging.merger.switched.items())) == (0, [("b", False), ("a", True)])
    merging.branch.result = "before"
    merging.branch.switch("c", False)
    merging.merger.adopt(None)
    assert merging.branch.result == 0
    assert list(merging.branch.switches.items()) == [("c", False), ("b", False), ("a", True)]


def test_after_a_bail_only_its_branch_counts():
    """The first one in their order; of any other failure, nothing does."""
    bail = Bail("done")
    for error in (bail, NO):
        merging = Merging()
        merging.ends(0, puts={"a": 0}, result="first", switches=[("a", False)])
        merging.ends(1, error, puts={"b": 1}, result="bailed", switches=[("b", False)])
        merging.ends(2, Bail("too"), puts={"c": 2}, result="too")
        merging.merger.merge_all(3)
        merging.merger.take_the_rest()
        merging.branch.result = "before"
        assert merging.writes(error).puts == ({"b": 1} if error is bail else {})
        merging.merger.adopt(error)
        assert merging.branch.result == ("bailed" if error is bail else "before")
        assert merging.branch.switches == ({"b": False} if error is bail else {})
    merging = Merging()
    merging.ends(0, puts={"a": 0}, result="first")
    merging.merger.merge_all(1)
    assert merging.writes(bail).puts == {}  # of a branch that no longer exists
    merging.merger.adopt(bail)
    assert merging.branch.result is None


def test_answers_that_branches_consumed_are_deleted_once():
    """No branch conflicts with another one by that; one that writes to the key afterwards does."""
    merging = Merging(inputs={"k": "answer", "other": 1, "j": "answer"})
    for index in range(2):
        fork = merging.ends(index, consumed={"k", "j"} if index == 0 else {"k"})
        del fork.store["k"]
        if index == 0:
            del fork.store["other"]
        else:
            fork.store["new"] = 1
    merging.merger.merge_all(2)
    assert merging.merger.error is None
    assert merging.writes() == Delta({"new": 1}, ["other", "k"], {})


def test_lost_branches_are_listed_under_their_key():
    """Which no branch may write; the list must be of its type."""
    merging = Merging(tolerate=1, failures="lost")
    merging.ends(0, puts={"k": 1})
    merging.merger.merge_all(1)
    assert merging.writes(lost=[("s1", NO)]).puts == {"k": 1, "lost": [("s1", NO)]}
    merging = Merging(tolerate=1)
    assert merging.writes(lost=[("s1", NO)]).puts == {}
    merging = Merging(tolerate=1, failures=Key("lost", dict))
    with pytest.raises(StoreTypeError):
        merging.writes()
    assert merging.writes(NO).puts == {}
    merging = Merging(tolerate=1, failures="lost")
    merging.ends(0, puts={"lost": 1})
    merging.merger.merge_all(1)
    with pytest.raises(WriteConflictError):
        merging.writes()


def test_records_of_lost_branches_have_recovered_failures():
    """Also those of scopes inside them, but none before the group, nor of other branches; not if too many were lost."""
    for exceeded in (False, True):
        merging = Merging(tolerate=2)
        merging.branch.records.kept[0] = record(0, Status.FAILED, scope=merging.scope.place.of(1))
        fork = merging.ends(1, NO)
        inside = Scope("p", "p1", None, None, merging.scope.place.of(1))
        fork.records.add(record(2, Status.FAILED, scope=inside))
        fork.records.add(record(2, Status.FAILED, scope=None))
        fork.records.add(record(2, Status.FAILED, scope=merging.scope.place.of(0)))
        merging.merger.unmerged[0] = None
        merging.merger.merge_all(2)
        merging.verdicts.is_exceeded = exceeded
        merging.merger.adopt(None)
        recovered = [each.recovered for each in merging.branch.records.kept]
        assert recovered == ([False] * 5 if exceeded else [False, True, True, False, False])


def test_what_is_restored_has_the_effect_of_its_group():
    """Not that of its branches: but their results and switches."""
    earlier = Outcome("g", None, Status.COMPLETED, 0.0, 0.0, selection=Selection({2: NO}, frozenset([0])), branches=3)
    merging = Merging(earlier, is_live=False, enough=1, tolerate=1)
    merging.ends(0, puts={"k": 0}, result="first")
    merging.ends(1, puts={"k": 1}, result="second")
    merging.ends(2, NO)
    merging.merger.merge_all(3)
    assert merging.writes() == Delta({}, [], {})
    assert (merging.merger.result, merging.merger.error) == ("first", None)
    assert [each.status for each in merging.branch.records.kept[1:]] == ["completed", "cancelled", "failed"]


# -- in memory


def test_a_group_that_failed_leaves_its_branches_to_a_resume():
    """Of those that were merged their writes and results, of the others their stores."""
    log = Log()
    merging = Merging(inputs={"x": 1}, terms={"log": log})
    merging.ends(0, puts={"k": 0}, result="first")
    merging.ends(1)
    fork = merging.ends(2, NO, puts={"l": 2}, result="third")
    fork.left_behind().unfinished = {4: ([], "before")}
    merging.merger.merge_all(3)
    merging.merger.take_the_rest()
    merging.merger.leave_remains()
    left = merging.branch.leftovers
    ids = [branch_id("0.3", index) for index in range(3)]
    assert set(left.remains) == set(ids)
    first, second, third = (left.remains[id] for id in ids)
    assert (first.store, first.writes, first.result, first.unfinished) == (None, Delta({"k": 0}, [], {}), "first", {})
    assert (second.store, second.writes, second.result, second.unwinding) == (None, NOTHING, None, None)
    assert (dict(third.store), third.result, third.unfinished) == ({"x": 1, "l": 2}, "third", {4: ([], "before")})
    merging.branch.store["later"] = 1
    merging.branch.store.undo(left.unwinding)
    assert "later" not in merging.branch.store
    merging = Merging()
    merging.ends(0, NO)
    merging.ends(1)
    merging.merger.merge_all(2)
    merging.merger.leave_remains()
    assert merging.branch.left_behind().remains == {}
