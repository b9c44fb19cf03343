"""What a run in memory leaves behind: tried on a store, without an evaluation."""

from flowdeco import Stage, Store
from flowdeco.engine.memory import Leftovers, Log, Remains, in_memory
from flowdeco.engine.outcome import NOWHERE, ActionRecord, Outcome, StageRecord, Status, branch_id
from flowdeco.errors import Wait
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Local


def did(number, error=None, **more):
    return StageRecord("s", Stage("s"), Status.COMPLETED, 0.0, 0.0, number=number, error=error, **more)


def marked(**values):
    """A store that was written to since a mark."""
    store = Store({"k": 0})
    mark = store.mark()
    store.update(values)
    return store, mark


def resumed(left, store):
    """What a resume finds in the store."""
    return dict(left.all_remains("0", store, None)["0"].revived({}).store)


def test_the_writes_of_layers_after_a_failure_are_undone_by_a_resume():
    """Those before it stay; the failed run keeps all."""
    store, left = Store({"k": 0}), Leftovers(is_kept=True)
    store["before"] = 1
    left.unwind(store)
    store["after"] = 1
    left.end_unwinding(store)
    assert resumed(left, store) == {"k": 0, "before": 1}
    assert dict(store) == {"k": 0, "before": 1, "after": 1}
    store["later"] = 2  # nothing is noted any more
    assert list(left.unwinding) == ["after"]


def test_a_step_that_runs_again_from_its_beginning_leaves_nothing():
    """Its own writes are undone as well, and those of what failed inside it."""
    store, mark = marked(k=1)
    left = Leftovers(is_kept=True)
    left.unwind(store)
    store["inner"] = 1
    left.unwind(store, mark)
    store["outer"] = 1
    assert left.unwinding is mark
    assert resumed(left, store) == {"k": 0}


def test_a_run_that_is_not_kept_notes_nothing():
    """It lets go of the mark that was set."""
    store, mark = marked(k=1)
    outer = Leftovers(is_kept=False)
    outer.unwind(store)
    assert outer.unwinding is None
    outer.unwind(store, mark)
    outer.end_unwinding(store)
    assert outer.unwinding is None
    store["k"] = 2
    assert store.since(mark) == Delta({"k": 2}, [], {})
    store["later"] = 1
    assert "later" not in mark


def test_a_failure_that_was_recovered_leaves_nothing():
    """The writes since then are those of the enclosing mark; results that were local to failed stages are dropped."""
    store, mark = marked()
    store.put(Local("mine"), 1)
    left = Leftovers(is_kept=True)
    left.unwind(store)
    store["k"] = 1
    left.abandoned["mine"] = "s"
    left.unfinished[0] = [], None
    left.remains["b"] = Remains(None, None, None, {})
    left.recover(store)
    store["later"] = 1
    assert "later" in mark
    assert (left.unwinding, left.abandoned, left.unfinished, left.remains) == (None, {}, {}, {})
    assert (store.local_names(), store.ended_locals()) == ([], {"mine": "s"})
    store.undo(mark)
    assert dict(store) == {"k": 0}
    left.recover(store)  # nothing failed


def test_what_steps_have_left_is_forgotten_from_a_number_on():
    """With the branches of all groups."""
    left = Leftovers(is_kept=True)
    left.unfinished = {2: ([], "a"), 3: ([], "b")}
    left.remains["b"] = Remains(None, None, None, {})
    left.cut(3)
    assert (left.unfinished, left.remains) == ({2: ([], "a")}, {})


def test_a_branch_remains_with_the_branches_in_it():
    """Its store depends on no other one."""
    outer = Store({f"k{number}": number for number in range(100)})
    left, store = Leftovers(is_kept=True), outer.fork()
    inner = left.remains["inner"] = Remains(None, None, None, {})
    left.unfinished[1] = [], "before"
    found = left.all_remains("b", store, "result")
    outer["k0"] = "later"
    assert (list(found), found["inner"]) == (["inner", "b"], inner)
    assert found["b"].store is store
    assert (store["k0"], found["b"].unwinding, found["b"].result) == (0, None, "result")
    assert found["b"].unfinished == {1: ([], "before")}


def test_a_branch_that_had_ended_continues_with_its_writes():
    """Over the store as it is then; inputs that are given anew win."""
    ended = Remains(None, None, "result", {}, Delta({"a": 1, "b": 1}, [], {}))
    outer = Store({"c": 1})
    store = ended.revived({"b": 2}).store_over(outer)
    assert (dict(store), dict(outer)) == ({"c": 1, "a": 1}, {"c": 1})
    assert ended.revived({}).result == "result"
    unfinished = Remains(store, None, None, {})
    assert unfinished.store_over(outer) is store


def test_the_marks_of_each_unfinished_scope_come_along():
    """In their order, with the result before the scope."""
    store = Store({"k": 0})
    marks = []
    for number in range(1, 4):
        marks.append(store.mark())
        store["k"] = number
    remains = Remains(store, None, None, {1: (marks[:2], "a"), 5: (marks[2:], "b")})
    revived = remains.revived({})
    assert {number: result for number, (_, result) in revived.unfinished.items()} == {1: "a", 5: "b"}
    copies = [mark for some, _ in revived.unfinished.values() for mark in some]
    assert [mark["k"] for mark in copies] == [0, 1, 2]
    assert [len(some) for some, _ in revived.unfinished.values()] == [2, 1]
    assert store["k"] == 3


def test_what_a_branch_left_behind_is_as_if_its_failure_had_passed_no_layer():
    """In a copy: the run that failed stays as it is; the marks of its layers come along."""
    store = Store({"k": 0})
    store.append("xs", 1)
    layer = store.mark()
    store["k"] = 1
    store.append("xs", 2)
    unwinding = store.mark()
    store["k"] = "passed"
    store.append("xs", 3)
    store["given"] = "passed"
    store.discard(unwinding)
    store.release(layer)
    left = Remains(store, unwinding, "result", {0: ([layer], "before")})
    revived = left.revived({"given": 5})
    assert dict(revived.store) == {"k": 1, "xs": [1, 2], "given": 5}
    assert dict(store) == {"k": "passed", "xs": [1, 2, 3], "given": "passed"}
    (mark,), result = revived.unfinished[0]
    assert (revived.unwinding, revived.result, result) == (None, "result", "before")
    revived.store.undo(mark)
    assert dict(revived.store) == {"k": 0, "xs": [1], "given": 5}
    assert dict(store) == {"k": "passed", "xs": [1, 2, 3], "given": "passed"}


def test_a_run_in_memory_continues_with_what_it_left_behind_or_else_with_its_store():
    """Either is a copy."""
    store, log = Store({"k": 1}), Log()
    log.of()[0] = did(0)
    mine, left = in_memory(store, log, {"given": 2})
    assert (dict(mine), left) == ({"k": 1, "given": 2}, {})
    log.remains = {"0": Remains(Store({"k": 3}), None, None, {}), "inner": Remains(Store({"k": 4}), None, None, {})}
    mine, left = in_memory(store, log, {"given": 2})
    assert dict(mine) == {"k": 3, "given": 2}
    assert mine is left["0"].store
    assert dict(left["inner"].store) == {"k": 4, "given": 2}
    assert dict(store) == {"k": 1}


def test_a_log_has_scopes_and_its_history_has_their_actions_as_well():
    """Those of a scope that was never entered run again from its beginning."""
    log = Log()
    first, second = [ActionRecord("a", None, Status.COMPLETED, 0.0, 0.0, number=number) for number in (1, 2)]
    scopes = log.of()
    scopes[0] = did(0, actions=[first, second])
    scopes[3] = did(3, actions=[first._replace(number=4)], entered=False)
    log.of("0.1", 2)
    assert {branch: list(mine) for branch, mine in log.history().items()} == {"0": [0, 1, 2, 3]}
    assert log.history()["0"][2] is second
    log.forget({"0": 3, "unknown": 0})
    assert list(log.history()["0"]) == [0, 1, 2]


def test_a_log_knows_each_branch_by_its_group_and_index():
    """Whenever it is asked."""
    log = Log()
    assert (log.steps, log.remains, log.waits, log.since) == ({}, {}, {}, 0)
    log.of()[0] = did(0)
    log.of("g")[1] = did(1)
    log.of("g", 1)[2] = did(2)
    assert {branch: list(mine) for branch, mine in log.steps.items()} == {
        "0": [0],
        branch_id("g", 0): [1],
        branch_id("g", 1): [2],
    }
    log.of()[5] = did(5)  # the branch begins anew
    assert list(log.steps["0"]) == [5]


def test_the_errors_of_a_log_can_be_replaced():
    """In a copy, with the remains, and what it was given."""

    def of(thing):
        if isinstance(thing, Outcome):
            return thing.portable(of)
        return KeyError(str(thing)) if isinstance(thing, BaseException) else thing

    log, error = Log(), ValueError("no")
    log.of()[0] = did(0, error)
    log.remains = {"0": Remains(None, None, None, {})}
    log.since, log.waits = 2, {("0", 4): [Wait("sleep", 1.0)]}
    copied = log.portable(of)
    assert isinstance(copied.steps["0"][0].error, KeyError)
    assert copied.remains is log.remains
    assert (copied.since, copied.waits) == (2, log.waits)
    assert log.steps["0"][0].error is error


def test_a_history_has_the_waits_of_steps_that_have_not_run_again():
    """Each with its place; a branch without a step is none."""
    log = Log()
    log.of("g")
    assert log.history() == {}
    action = ActionRecord("a", None, Status.COMPLETED, 0.0, 0.0, number=1)
    log.of()[0] = did(0, actions=[action])
    wait = Wait("sleep", 1.0)
    log.waits = {("0", 4): [wait]}
    found = log.history()
    assert {number: step.name for number, step in found["0"].items()} == {0: "s", 1: "a"}
    assert found[NOWHERE] == {
        0: Outcome("", None, Status.SUSPENDED, 0.0, 0.0, number=0, waits=[wait._replace(at=("0", 4))])
    }


def test_steps_that_another_leg_did_not_come_to_are_kept_with_what_their_branches_left():
    """Those of this leg count before them; a branch may have left nothing."""
    log, left = Log(), Remains(Store({"k": 1}), None, None, {})
    log.of()[0] = did(0)
    log.keep_untaken({"0": {0: did(0, error=KeyError()), 1: did(1)}, "b": {0: did(0)}}, {"0": left}.get)
    assert {branch: sorted(mine) for branch, mine in log.steps.items()} == {"0": [0, 1], "b": [0]}
    assert log.steps["0"][0].error is None
    assert log.remains == {"0": left}
