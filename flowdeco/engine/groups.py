"""Parallel groups: branches over forks of the store, and the merge of their outcomes into one (L9).

Branches are merged in their order, in whatever order they ended. One failure is raised as itself, several as
an `ExceptionGroup`; a cancellation that the group itself asked for is not a failure. A `Bail` ends the run, and only its
branch counts; a `Suspend` waits for the others, and names everything that they wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import reduce
from typing import Any

from flowdeco.engine.branch import Branch, OpenScope
from flowdeco.engine.outcome import Outcome, Status, branch_id
from flowdeco.engine.replay import History
from flowdeco.engine.requests import Ended, Failure, Fork, Raised, Request, Walk
from flowdeco.errors import Bail, Cancelled, Suspend, WriteConflictError, all_of, suggestion
from flowdeco.model.contents import agree
from flowdeco.model.declare import name_in_group
from flowdeco.model.definitions import Parallel, Stream, Unit
from flowdeco.model.store import NOTHING, Delta
from flowdeco.model.wiring import supplied_keys

__all__ = ["failure_of", "merged", "run_group"]


def run_group(branch: Branch, group: Parallel, scope: OpenScope, earlier: Outcome | None) -> Walk:
    """Run the branches of a group, and apply their merged outcome; return the failure."""
    past = branch.terms.past
    if past is not None and earlier is not None and branch.restores(earlier):
        return (yield from _restore_group(branch, past, scope, earlier))
    error = (yield from branch.catch_up()) if earlier is None else None
    error = error or (yield from _announce(branch, group, scope))
    if error is not None:
        return error
    forks = [_fork(branch, scope, index, unit) for index, unit in enumerate(group.units)]
    ended = yield from _side_by_side(branch, scope, forks, forks)
    if past is not None and past.rehearses:
        failed = (error for error in ended.failures if error is not None and not isinstance(error, Suspend))
        return next(failed, ended.interrupt or past.stop)
    return (yield from _merge_branches(branch, group, scope, forks, ended))


def _restore_group(branch: Branch, past: History, scope: OpenScope, earlier: Outcome) -> Walk:
    """Restore a group that had ended: first the contents of its branches, then its outcome."""
    group: Parallel = scope.unit
    branch.sealed += 1
    forks = [_fork(branch, scope, index, unit) for index, unit in enumerate(group.units)]
    alive = forks
    if earlier.error is not None:
        alive = [fork for fork in forks if past.has_more(fork.id)]  # the others had not begun
    for fork in forks:
        fork.ended_early |= earlier.error is not None
    ended = yield from _side_by_side(branch, scope, forks, alive)
    branch.sealed -= 1
    for error in (ended.interrupt, *ended.failures):
        if not past.is_known(error):
            return error
    past.confirm(branch.id, earlier, group, scope.number + 1)
    bailed = [fork for fork, failure in zip(alive, ended.failures, strict=True) if isinstance(failure, Bail)]
    _adopt(branch, alive if earlier.error is None else bailed[:1] if isinstance(earlier.error, Bail) else [])
    branch.restore(earlier, group, scope.by, (), scope.place)
    return earlier.error


def _side_by_side(
    branch: Branch, scope: OpenScope, forks: list[Branch], alive: list[Branch]
) -> Generator[Request, Any, Ended]:
    """Have the live branches evaluated; take over from all of them the parts that count however the group ends.

    These are the records, the rows that are held back, and the ids.
    """
    ended: Any = yield Fork(alive, scope.unit.limit)
    for fork in forks:
        fork.end_unwinding()
        branch.records.adopt(fork.records)
        branch.rows += fork.rows
        branch.held_waits += fork.held_waits
        branch.consumed |= fork.consumed
        branch.answered += [(scope.number, place, waits) for _, place, waits in fork.answered]
    ids = [id for fork in forks for id in (fork.id, *(id for _, ids in fork.forks for id in ids))]
    branch.remember_branches(scope.number, ids)
    return Ended([], None, ended.error) if type(ended) is Raised else ended


def _announce(branch: Branch, group: Parallel, scope: OpenScope) -> Walk:
    """Have the journal note that a group begins, and everything before it."""
    if branch.terms.recorder is None:
        return None
    began = Outcome(
        group.name, group, Status.RUNNING, scope.started + branch.terms.epoch, 0.0, scope.by, scope.number,
        scope=scope.place, branches=len(group.units),
    )  # fmt: skip
    branch.rows.append(branch.terms.recorder.row(branch.id, None, began))
    return (yield from branch.save())


def _fork(branch: Branch, scope: OpenScope, index: int, unit: Unit | Stream) -> Branch:
    """Return the evaluation of a branch of a group."""
    id = branch_id(f"{branch.id}.{scope.number}", index)
    past = branch.terms.past
    remains = None if past is None or branch.sealed else past.remains_of(id)
    around = branch.scope
    base = OpenScope(around, None, scope.by, scope.started)
    base.place = scope.place and scope.place.of(index)
    fork = Branch(branch.terms, branch.store.fork() if remains is None else remains.store, base, branch, id)
    fork.group, fork.unit = scope.unit, unit
    fork.result = None if remains is None else remains.result
    fork.agenda.append((unit, scope.by))
    return fork


def _merge_branches(branch: Branch, group: Parallel, scope: OpenScope, forks: list[Branch], ended: Ended) -> Walk:
    """Merge the outcomes of the branches: of all, or after a `Bail` of that one alone; return the failure."""
    terms = branch.terms
    error = failure_of(group, ended, terms.is_cancellation)
    taking = forks if error is None else []
    if isinstance(error, Bail):
        taking = [fork for fork, failure in zip(forks, ended.failures, strict=True) if failure is error]
    writes: Delta | None = None
    try:
        terms.gate.open = bool(group.merge)  # a reducer is user code
        writes = merged(group, _written(taking))
        terms.gate.open = False
    except BaseException as failure:  # a conflict, a reducer that raises, Ctrl-C in one
        terms.gate.open = False
        error, taking = failure, []
    status, shown, *_ = branch.ended_as(error, None)
    _, refused = branch.note(Outcome(
        group.name, group, status, scope.started + terms.epoch, terms.clock() - scope.started, scope.by,
        scope.number, scope=scope.place, error=shown, writes=_with_changes(branch, forks, writes),
        end=scope.number + 1, branches=len(forks),
    ))  # fmt: skip
    if refused is not None:
        error, taking = refused, []
    if taking and writes is not None:
        branch.store.apply(writes)
        if group.merge and error is None:
            _warn_of_merge(terms.run_id, group, writes)
    _adopt(branch, taking)
    if error is not None and not isinstance(error, Bail):
        branch.unwind()
        for fork in forks:
            branch.remains.update(fork.all_remains())
    return error or (yield from branch.save())


def _written(forks: list[Branch]) -> list[Delta]:
    """Return the writes of branches; an answer that one consumes is no conflict with what another one writes."""
    deltas = [fork.store.delta() for fork in forks]
    if not any(fork.consumed for fork in forks):
        return deltas
    kept = {key for delta in deltas for key in (*delta.puts, *delta.appends)}
    return [
        delta._replace(deletes=[key for key in delta.deletes if key not in fork.consumed & kept])
        for fork, delta in zip(forks, deltas, strict=True)
    ]


def _with_changes(branch: Branch, forks: list[Branch], writes: Delta | None) -> Delta | None:
    """Return the merged writes, with the values of the enclosing store that branches changed in place.

    They are for the journal: the store has them already, and changing a value is not a write that could conflict.
    """
    changed = {key for fork in forks for key in fork.changed if key in branch.store}
    branch.changed |= changed
    if writes is None or not changed:
        return writes
    kept = changed - writes.puts.keys() - set(writes.deletes)
    return writes._replace(changes={key: branch.store[key] for key in sorted(kept)})


def _adopt(branch: Branch, forks: list[Branch]) -> None:
    """Adopt the switches and the results of branches."""
    for fork in forks:
        for selector, on in fork.switched.items():
            branch.switch(selector, on)
        if fork.result is not None:
            branch.result = fork.result


# The failure of a group.


def failure_of(group: Parallel, ended: Ended, is_cancellation: Callable[[BaseException], bool]) -> Failure:
    """Return how the group ended: None, a failure (or a group of several), or a signal."""
    interrupt = ended.interrupt
    if interrupt is not None and not isinstance(interrupt, Cancelled):
        return interrupt
    failed = [
        error
        for index, error in enumerate(ended.failures)
        if error is not None
        and not isinstance(error, (Bail, Suspend))
        and (index == ended.ended_by or not is_cancellation(error))  # a cancellation we asked for is not a failure
    ]
    failed = list({id(error): error for error in failed}.values())  # several may end with one error, the journal's
    if len(failed) > 1:
        return BaseExceptionGroup(f"{len(failed)} branches of the parallel group {group.name!r} failed", failed)
    if failed:
        return failed[0]
    if interrupt is not None:
        return interrupt
    bail = next((error for error in ended.failures if isinstance(error, Bail)), None)
    return bail or all_of([error for error in ended.failures if isinstance(error, Suspend)])


def merged(group: Parallel, deltas: list[Delta]) -> Delta:
    """Return the writes of all branches as one delta; raises `WriteConflictError` where they disagree."""
    writers: dict[str, list[int]] = {}
    for number, delta in enumerate(deltas):
        for part in (delta.puts, delta.deletes, delta.appends) if delta is not NOTHING else ():
            for key in part:
                writers.setdefault(key, []).append(number)
    whole = Delta({}, [], {})
    for key, numbers in writers.items():
        written = [deltas[number] for number in numbers]
        if all(key in delta.appends for delta in written):
            whole.appends[key] = [item for delta in written for item in delta.appends[key]]
        elif all(key in delta.deletes for delta in written):
            whole.deletes.append(key)
        elif all(key in delta.puts for delta in written) and _agree(group, key, written):
            values = [delta.puts[key] for delta in written]
            whole.puts[key] = reduce(group.merge[key], values) if key in group.merge else values[0]
        else:
            raise _conflict(group, key, numbers)
    return whole


def _agree(group: Parallel, key: str, written: list[Delta]) -> bool:
    return key in group.merge or all(agree(written[0].puts[key], delta.puts[key]) for delta in written[1:])


def _warn_of_merge(run_id: str, group: Parallel, writes: Delta) -> None:
    """Log the keys of `merge` whose functions are for nothing: misspelt ones, and those of collected items."""
    unused = [key for key in group.merge if key not in writes.puts and key not in writes.deletes]
    if not unused:
        return
    from flowdeco.engine.logs import run_logger

    written = writes.keys()
    declared, local = supplied_keys(group)
    for key in unused:
        if key in writes.appends:
            why = "to which its branches collect: items are concatenated, and the function is not called"
        elif key in declared:
            continue  # a branch writes it on another day
        elif key in local:
            why = f"which is local to stage {local[key]!r}: write returns={key!r} there to share it"
        else:
            why = f"which no branch wrote. {suggestion(key, declared | written, 'They wrote')}"
        run_logger(run_id).warning(
            "run %s: merge of the parallel group %r has the key %r, %s", run_id, group.name, key, why
        )


def _conflict(group: Parallel, key: str, numbers: list[int]) -> WriteConflictError:
    branches = " and ".join(f"{number} ({name_in_group(group.units[number])!r})" for number in numbers)
    return WriteConflictError(
        f"the branches {branches} of the parallel group {group.name!r} wrote different values to the key {key!r}. "
        f"Write to different keys, contribute results with collect=, or combine them: "
        f"parallel(..., merge={{{key!r}: function}})"
    )
