"""The parts of a run, read from its records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from flowdeco.engine.outcome import Outcome
from flowdeco.engine.reading import in_branch
from flowdeco.engine.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.errors import cut
from flowdeco.errors import told as error_text
from flowdeco.model.declare import bound_arguments
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream
from flowdeco.show.inserters import Inserters
from flowdeco.show.parts import DEEPEST, Part, pending
from flowdeco.show.plan_parts import planned_action, planned_parts, stage_part

__all__ = ["error_with_members", "ran_parts"]

MOST_MEMBERS = 20  # of an exception group


@dataclass(eq=False, slots=True)
class _Node:
    """A pipeline, group or branch that is being put together from its records."""

    kind: str
    name: str
    depth: int
    inserted_by: str | None = None
    branch: int | None = None
    children: list[_Node | Part] = field(default_factory=list[Any])
    parent: int | None = None
    waiting: dict[int, list[tuple[str, Any]]] = field(default_factory=dict[int, Any])  # not run yet, by inserter
    outcome: Outcome | None = None  # of a pipeline that did not simply complete

    def part(self, recovered: bool, completed: bool) -> Part:
        """Return the part; `recovered` tells whether failures that left it were recovered around it.

        In a run that has `completed`, branches were cancelled only because others were enough.
        """
        inside = recovered or (self.outcome is not None and self.outcome.recovered)
        parts = tuple(child.part(inside, completed) if isinstance(child, _Node) else child for child in self.children)
        for parent, units in self.waiting.items():
            for inserted_by, unit in units:
                parts += tuple(pending(planned_parts((unit,), self.depth), inserted_by, parent))
        spans = [(part.started, part.started + (part.elapsed or 0.0)) for part in parts if part.started is not None]
        started = min((start for start, _ in spans), default=None)
        ended = max((end for _, end in spans), default=0.0)
        first = parts[0] if self.kind == "branch" and parts else None  # a branch is named after its unit
        status = _status_of(parts, inside, _COMPLETED_FIRST if completed and self.kind == "parallel" else _GRAVITY)
        part = Part(
            self.kind,
            first.name if first else self.name,
            stem=first.stem if first else "",
            parts=parts,
            status=status,
            recovered=inside and status is Status.FAILED,
            started=started,
            elapsed=None if started is None else ended - started,
            inserted_by=self.inserted_by,
            record=self.branch,
            parent=self.parent,
        )
        return part if self.outcome is None else _with_outcome(part, self.outcome, None)


# The first of these that one of the parts has is the status of the whole.
_GRAVITY = (
    Status.FAILED, Status.CANCELLED, Status.SUSPENDED, Status.BAILED, Status.RUNNING, Status.COMPLETED, Status.SKIPPED,
    Status.PENDING,
)  # fmt: skip


_COMPLETED_FIRST = (Status.FAILED, Status.COMPLETED, *_GRAVITY)


def _status_of(parts: Iterable[Part], recovered: bool, gravity: Sequence[Status]) -> Status | None:
    found = {Status.COMPLETED if part.recovered and not recovered else part.status for part in parts}
    return next((status for status in gravity if status in found), None)


def ran_parts(run: Run) -> tuple[Part, ...]:
    """Return the parts of a run in the order of its records, with the inserted units that were never reached."""
    root = _Node("", "", 0)
    nodes: dict[object, _Node] = {None: root}
    pipelines = {did.scope.id: did for did in run.pipelines if did.scope is not None}
    unfinished = run.status is not Status.COMPLETED
    inserters = Inserters(run.stages)
    for index, record in enumerate(run.stages):
        node = _node_of(record, nodes, pipelines, inserters)
        parent = inserters.find(record.inserted_by, record.scope)
        if unfinished:
            _remove_waiting(node, parent, "stage", record.name)
            units = list(_units_after(record))
            if units:
                node.waiting[index] = units
        node.children.append(_ran_stage(index, record)._replace(parent=parent))
    is_recovered = any(did.recovered for did in run.pipelines if did.scope is None)
    return root.part(is_recovered, run.status is Status.COMPLETED).parts


def _node_of(
    record: StageRecord, nodes: dict[object, _Node], pipelines: Mapping[str, Outcome], inserters: Inserters
) -> _Node:
    """Return the node of the scope of a stage; it and the nodes around it are made if they are missing."""
    missing: list[Scope] = []
    scope = record.scope
    while scope is not None and (scope.id, scope.branch) not in nodes:
        missing.append(scope)
        scope = scope.outer
    node = nodes[None if scope is None else (scope.id, scope.branch)]
    for inner in reversed(missing):
        if node.depth >= DEEPEST:
            nodes[inner.id, inner.branch] = node
            continue
        if inner.branch is None:
            node = _add_child(node, "pipeline", inner, _inserter_of(inner, record, inserters))
            node.outcome = pipelines.get(inner.id)
        else:
            group = nodes.get(inner.id)
            if group is None:
                group = nodes[inner.id] = _add_child(node, "parallel", inner, _inserter_of(inner, record, inserters))
            node = _Node("branch", inner.name, group.depth + 1, None, inner.branch)
            group.children.append(node)
        nodes[inner.id, inner.branch] = node
    return node


def _inserter_of(scope: Scope, first: StageRecord, inserters: Inserters) -> int | None:
    """Return who inserted a pipeline or group: it is who inserted its first stage, if a journal does not have the number."""
    if hasattr(scope.inserted_by, "number"):
        return inserters.find(scope.inserted_by, scope.outer)
    return inserters.find(first.inserted_by, first.scope)


def _add_child(node: _Node, kind: str, scope: Scope, parent: int | None) -> _Node:
    child = _Node(kind, scope.name, node.depth + 1, scope.inserted_by, parent=parent)
    node.children.append(child)
    _remove_waiting(node, parent, kind, scope.name)
    return child


_KINDS: dict[object, str] = {Stage: "stage", Action: "stage", Pipeline: "pipeline", Parallel: "parallel"}


def _remove_waiting(node: _Node, parent: int | None, kind: str, name: str) -> None:
    """Remove an inserted unit that has run from those that have not."""
    units = node.waiting.get(parent, []) if parent is not None else []
    for index, (_, unit) in enumerate(units):
        if _KINDS.get(cast("object", type(unit))) == kind and unit.name == name:
            del units[index]
            return


def _units_after(record: StageRecord) -> Iterator[tuple[str, Any]]:
    """Yield the units that a stage inserted, and that run after it, with who inserted them."""
    inserted = [(f"{record.name}/{action.name}", action.inserted) for action in record.actions]
    for who, units in (*inserted, (record.name, record.inserted)):
        yield from ((who, unit) for unit in units if not isinstance(unit, (Action, Stream)))


def _ran_stage(index: int, record: StageRecord) -> Part:
    inside = in_branch(record.scope)
    parents = _parents(record)
    actions = [
        _ran_action(place, action, inside)._replace(parent=parents[place])
        for place, action in enumerate(record.actions)
    ]
    if record.status is not Status.COMPLETED and record.status is not Status.SKIPPED:
        actions.extend(_unreached_actions(record))
    return _with_outcome(stage_part(record.stage, tuple(actions)), record, index)


def _ran_action(index: int, record: ActionRecord, in_branch: bool) -> Part:
    action = record.action
    bound = bound_arguments(action) if in_branch else ""
    part = Part("action", record.name, description=action.description, tags=tuple(sorted(action.tags)), bound=bound)
    return _with_outcome(part, record, index)


def _with_outcome(part: Part, record: Outcome, index: int | None) -> Part:
    known: dict[str, Any] = {name: getattr(record, name) for name in _OF_THE_RECORD}
    return part._replace(**known, error=_first_line(record.error), record=index)


_OF_THE_RECORD: Final = (
    "name", "status", "started", "elapsed", "inserted_by", "attempts", "recovered", "cached", "restored",
)  # fmt: skip


def _unreached_actions(record: StageRecord) -> Iterator[Part]:
    """Yield the actions of a stage that were never reached."""
    static = sum(action.inserted_by is None for action in record.actions)
    waiting: list[list[Any]] = []
    for did, parent in zip(record.actions, _parents(record), strict=True):
        if parent is not None and waiting[parent]:
            del waiting[parent][0]
        waiting.append([unit for unit in did.inserted if type(unit) is Action])
    for place, units in enumerate(waiting):
        yield from pending(map(planned_action, units), f"{record.name}/{record.actions[place].name}", place)
    yield from pending(map(planned_action, list(record.stage)[static:]), None)


def _parents(record: StageRecord) -> list[int | None]:
    """Return, for each action of a stage, the place of the action that inserted it."""
    places = {each.number: place for place, each in enumerate(record.actions)}
    return [places.get(getattr(each.inserted_by, "number", -2)) for each in record.actions]


def _first_line(error: BaseException | None) -> str:
    """Return type and message of an exception in one line."""
    first, more, _ = error_text(error).strip().partition("\n")
    return f"{cut(first.rstrip(), 1_000)} …" if more else cut(first, 1_000)


def error_with_members(error: BaseException | None, indent: str = "", depth: int = DEEPEST) -> str:
    """Return type and message of an exception and, of a group, of its members: each in lines of its own."""
    lines = [cut(error_text(error)).replace("\n", f"\n{indent}")]
    if isinstance(error, BaseExceptionGroup) and not depth:
        lines.append(f"{indent}  … members nested deeper are not shown")
    elif isinstance(error, BaseExceptionGroup):
        members: tuple[BaseException, ...] = cast("Any", error).exceptions
        inner = f"{indent}     "
        for number, member in enumerate(members[:MOST_MEMBERS], 1):
            lines.append(f"{indent}  {number}. {error_with_members(member, inner, depth - 1)}")
            lines.extend(f"{inner}{note}" for note in map(str, getattr(member, "__notes__", ())))
        if len(members) > MOST_MEMBERS:
            lines.append(f"{indent}  … {len(members) - MOST_MEMBERS:,} more")
    return "\n".join(lines)
