"""What plans, runs and diffs are made of: a tree of parts, read from definitions and records.

Nothing here calls what a user wrote: a plan is drawn from names, options and signatures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from flowdeco.engine.runs import ActionRecord, Run, Scope, StageRecord, Status
from flowdeco.errors import told
from flowdeco.model.annotations import EMPTY, return_annotation
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Stream, Unit, one_action_stage
from flowdeco.model.wiring import Step, step_of

__all__ = ["Fold", "Part", "folded", "planned_parts", "ran_parts", "walk"]

MOST_MEMBERS = 20  # of an exception group
DEEPEST = 32  # what is nested deeper is shown at this level


class Part(NamedTuple):
    """An action, a stage, a pipeline, a parallel group or a branch of one, planned or run.

    `kind` is "action", "stage", "pipeline", "parallel" or "branch". Of a plan are `reads` and `writes` (keys of the
    store), and `inserts`: its annotation says that it returns units. Of a run are the others: `status` is `pending` for
    what was inserted or begun, and never reached; `record` is the place of its record in `run.stages`, or among the
    actions of its stage. `unplanned` is what a run has and the plan has not, although nobody inserted it.
    """

    kind: str
    name: str
    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    stem: str = ""
    limit: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    inserts: bool = False
    middleware: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    status: Status | None = None
    started: float | None = None
    elapsed: float | None = None
    inserted_by: str | None = None
    attempts: int = 1
    recovered: bool = False
    error: str = ""
    record: int | None = None
    unplanned: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether something inserted it while the run was under way."""
        return self.inserted_by is not None

    @property
    def is_bare(self) -> bool:
        """Whether it is a stage that only stands for its one action, of the same name."""
        return self.kind == "stage" and len(self.parts) == 1 and self.parts[0].name == self.name


def walk(parts: Iterable[Part], depth: int = 0) -> Iterator[tuple[int, Part]]:
    """Yield all parts with their depth, each before what is in it."""
    for part in parts:
        yield depth, part
        yield from walk(part.parts, depth + 1)


# From definitions.


def planned_parts(units: Iterable[Unit | Stream], depth: int = 0) -> tuple[Part, ...]:
    """Return the parts of these units; plain pipelines are dissolved, as `>>` does it."""
    found: list[Part] = []
    for unit in units:
        if isinstance(unit, Pipeline) and (unit.plain or depth >= DEEPEST):
            found.extend(planned_parts(unit.units, depth))
        else:
            found.append(_planned(unit, depth))
    return tuple(found)


def _planned(unit: Unit | Stream, depth: int) -> Part:
    if isinstance(unit, Action):
        return planned_stage(one_action_stage(cast("Action[..., Any]", unit)))
    if isinstance(unit, Stage):
        return planned_stage(unit)
    if isinstance(unit, Pipeline):
        return Part(
            "pipeline",
            unit.name,
            _given(unit._options["title"]),
            _given(unit.description),
            tuple(sorted(unit.tags)),
            planned_parts(unit.units, depth + 1),
            middleware=layers_of(unit.use, unit.use_stages, unit.use_actions),
        )
    if isinstance(unit, Parallel):
        branches = tuple(
            Part("branch", branch.name, parts=planned_parts((branch,), depth + 2), stem=_stem(branch), record=index)
            for index, branch in enumerate(unit.units)
        )
        return Part("parallel", unit.name, tags=tuple(sorted(unit.tags)), parts=branches, limit=unit.limit)
    return Part("stage", unit.name)


def _stem(unit: Any) -> str:
    template = getattr(unit, "template", None)
    return template.name if template is not None else ""


def _given(text: object) -> str:
    return text if isinstance(text, str) else ""


def planned_stage(stage: Stage) -> Part:
    """Return the part of a stage, with its actions."""
    return _stage_part(stage, tuple(map(planned_action, stage)))


def _stage_part(stage: Stage, actions: tuple[Part, ...]) -> Part:
    return Part(
        "stage",
        stage.name,
        _given(stage._title),
        _given(stage.description),
        tuple(sorted(stage.tags)) if stage.tags else (),
        actions,
        _stem(stage),
        middleware=layers_of(stage.use, stage.use_actions),
        data=tuple(f"{key}: {type(value).__name__}" for key, value in stage._data.items()) if stage._data else (),
    )


def planned_action(action: Action[..., Any]) -> Part:
    """Return the part of an action: what it reads and writes is read from its signature and options."""
    step = step_of(action)
    reads = tuple(
        wanted.key + "?" * (wanted.default is not EMPTY)
        for wanted in step.inputs
        if not (wanted.context or wanted.name in step.bound)
    )
    return Part(
        "action",
        action.name,
        "",
        _given(action.description),
        tuple(sorted(action.tags)) if action.tags else (),
        reads=reads,
        writes=() if step.names_units else step.supplies,
        inserts=_says_units(step),
        middleware=layers_of(step.use),
    )


def _says_units(step: Step) -> bool:
    if step.names_units or not step.inserts:
        return step.names_units
    return step.generates or return_annotation(step.function) not in (EMPTY, Any, object)


def layers_of(*several: Iterable[Any]) -> tuple[str, ...]:
    """Return the names of middleware."""
    return tuple(
        str(getattr(layer, "__name__", None) or type(layer).__name__) for layers in several for layer in layers
    )


# From records.


class _Node:
    """A pipeline, group or branch that is being put together from the records in it."""

    def __init__(
        self, kind: str, name: str, depth: int, inserted_by: str | None = None, branch: int | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.depth = depth
        self.inserted_by = inserted_by
        self.branch = branch
        self.children: list[_Node | Part] = []
        self.waiting: dict[str, deque[Any]] = {}  # what was inserted and has not come yet, by who inserted it

    def part(self) -> Part:
        parts = tuple(child.part() if isinstance(child, _Node) else child for child in self.children)
        parts += tuple(
            part
            for who, units in self.waiting.items()
            for part in pending(
                planned_parts((unit for unit in units if not isinstance(unit, Stream)), self.depth), who
            )
        )
        begun = [part for part in parts if part.started is not None]
        started = min((part.started or 0.0 for part in begun), default=None)
        ended = max(((part.started or 0.0) + (part.elapsed or 0.0) for part in begun), default=0.0)
        named = parts[0] if self.kind == "branch" and parts else None
        return Part(
            self.kind,
            named.name if named else self.name,
            stem=named.stem if named else "",
            parts=parts,
            status=_status_of(parts),
            started=started,
            elapsed=None if started is None else ended - started,
            inserted_by=self.inserted_by,
            record=self.branch,
        )


# The first of these that one of the parts has is the status of the whole.
_GRAVITY = (
    Status.FAILED, Status.CANCELLED, Status.SUSPENDED, Status.BAILED, Status.COMPLETED, Status.SKIPPED, Status.PENDING,
)  # fmt: skip


def _status_of(parts: Iterable[Part]) -> Status | None:
    found = {Status.COMPLETED if part.recovered else part.status for part in parts}
    return next((status for status in _GRAVITY if status in found), None)


def pending(parts: Iterable[Part], who: str | None) -> Iterator[Part]:
    """Yield planned parts as never reached, inserted by somebody."""
    for part in parts:
        inside = tuple(pending(part.parts, None))
        yield part._replace(status=Status.PENDING, inserted_by=who, parts=inside)


def ran_parts(run: Run) -> tuple[Part, ...]:
    """Return the parts of what ran, in the order of the records; with what was inserted and never reached."""
    root = _Node("", "", 0)
    nodes: dict[object, _Node] = {None: root}
    unfinished = run.status is not Status.COMPLETED
    for number, record in enumerate(run.stages):
        node = _node_of(record.scope, nodes)
        if unfinished:
            _arrived(node, record)
        node.children.append(_ran_stage(number, record, unfinished))
    return root.part().parts


def _node_of(scope: Scope | None, nodes: dict[object, _Node]) -> _Node:
    """Return the node for what ran in this scope, with all nodes around it made."""
    missing: list[Scope] = []
    while scope is not None and (scope.id, scope.branch) not in nodes:
        missing.append(scope)
        scope = scope.outer
    node = nodes[None if scope is None else (scope.id, scope.branch)]
    for inner in reversed(missing):
        if node.depth >= DEEPEST:
            nodes[inner.id, inner.branch] = node
            continue
        if inner.branch is None:
            node = _child(node, _Node("pipeline", inner.name, node.depth + 1, inner.inserted_by), inner)
        else:
            group = nodes.get(inner.id)
            if group is None:
                group = _child(node, _Node("parallel", inner.name, node.depth + 1, inner.inserted_by), inner)
                nodes[inner.id] = group
            node = _Node("branch", inner.name, group.depth + 1, None, inner.branch)
            group.children.append(node)
        nodes[inner.id, inner.branch] = node
    return node


def _child(node: _Node, made: _Node, scope: Scope) -> _Node:
    node.children.append(made)
    _take(node, scope.inserted_by, made.kind, made.name)
    return made


_KINDS: dict[object, str] = {Stage: "stage", Action: "stage", Pipeline: "pipeline", Parallel: "parallel"}


def _take(node: _Node, who: str | None, kind: str, name: str) -> None:
    """Note that something inserted has come."""
    units = node.waiting.get(who) if who is not None else None
    if units:
        for index, unit in enumerate(units):
            if _KINDS.get(cast("object", type(unit))) == kind and unit.name == name:
                del units[index]
                return


def _arrived(node: _Node, record: StageRecord) -> None:
    _take(node, record.inserted_by, "stage", record.name)
    inserted = [(f"{record.name}/{action.name}", action.inserted) for action in record.actions]
    for who, units in (*inserted, (record.name, record.inserted)):
        coming = [unit for unit in units if type(unit) is not Action]
        if coming:
            node.waiting.setdefault(who, deque()).extendleft(reversed(coming))


def _ran_stage(number: int, record: StageRecord, unfinished: bool) -> Part:
    actions = [_ran_action(place, action) for place, action in enumerate(record.actions)]
    if record.status is not Status.COMPLETED and record.status is not Status.SKIPPED:
        actions.extend(_unreached(record))
    return _stage_part(record.stage, tuple(actions))._replace(
        name=record.name,
        status=record.status,
        started=record.started,
        elapsed=record.elapsed,
        inserted_by=record.inserted_by,
        attempts=record.attempts,
        recovered=record.recovered,
        error=brief(record.error),
        record=number,
    )


def _unreached(record: StageRecord) -> Iterator[Part]:
    """Yield the actions of a stage whose turn did not come."""
    static = sum(action.inserted_by is None for action in record.actions)
    here: dict[str, deque[Any]] = {}
    for action in record.actions:
        units = here.get(action.inserted_by or "")
        if units:
            units.popleft()
        added = [unit for unit in action.inserted if type(unit) is Action]
        if added:
            here.setdefault(f"{record.name}/{action.name}", deque()).extendleft(reversed(added))
    for who, units in here.items():
        yield from pending(map(planned_action, units), who)
    yield from pending(map(planned_action, record.stage._actions[static:]), None)


def _ran_action(place: int, record: ActionRecord) -> Part:
    action: Any = record.action  # None for one that failed before the run was resumed
    return Part(
        "action",
        record.name,
        "",
        "" if action is None else _given(action.description),
        tuple(sorted(action.tags)) if action is not None and action.tags else (),
        status=record.status,
        started=record.started,
        elapsed=record.elapsed,
        inserted_by=record.inserted_by,
        attempts=record.attempts,
        recovered=record.recovered,
        error=brief(record.error),
        record=place,
    )


def brief(error: BaseException | None) -> str:
    """Return type and message of an exception in one line."""
    first, broken, _ = told(error).strip().partition("\n")
    return f"{first.rstrip()} …" if broken else first


def error_with_members(error: BaseException | None, indent: str = "") -> str:
    """Return type and message of an exception and, of a group, of all that are in it: each in lines of its own."""
    if not isinstance(cast("object", error), BaseExceptionGroup):
        return told(error).replace("\n", f"\n{indent}")
    members: tuple[BaseException, ...] = cast("Any", error).exceptions
    lines = [told(error).replace("\n", f"\n{indent}")]
    inner = f"{indent}     "
    for number, member in enumerate(members[:MOST_MEMBERS], 1):
        lines.append(f"{indent}  {number}. {error_with_members(member, inner)}")
        lines.extend(f"{inner}{note}" for note in map(str, getattr(member, "__notes__", ())))
    if len(members) > MOST_MEMBERS:
        lines.append(f"{indent}  … {len(members) - MOST_MEMBERS:,} more")
    return "\n".join(lines)


# Both, one beside the other.

Name: TypeAlias = "tuple[str, str | int | None]"


def compared(planned: Sequence[Part], ran: Sequence[Part]) -> tuple[Part, ...]:
    """Return what was planned and what ran as one: in the order of the run, what was not reached in its place."""
    places: dict[Name, list[int]] = {}
    for index, part in enumerate(planned):
        places.setdefault(_name(part), []).append(index)
    merged: list[Part] = []
    at = 0
    for part in ran:
        if part.is_dynamic:
            merged.append(part)
            continue
        known = places.get(_name(part), [])
        found = bisect_left(known, at)
        if found == len(known):
            merged.append(part._replace(unplanned=True))
            continue
        merged.extend(pending(planned[at : known[found]], None))
        at = known[found] + 1
        merged.append(_both(planned[at - 1], part))
    merged.extend(pending(planned[at:], None))
    return tuple(merged)


def _name(part: Part) -> Name:
    return part.kind, part.record if part.kind == "branch" else part.name


def _both(plan: Part, ran: Part) -> Part:
    if ran.kind == "stage" and ran.status is Status.SKIPPED and not ran.parts:
        return ran  # as a whole
    return ran._replace(
        name=plan.name,
        title=plan.title,
        description=plan.description,
        tags=plan.tags,
        limit=plan.limit,
        stem=plan.stem or ran.stem,
        reads=plan.reads,
        writes=plan.writes,
        inserts=plan.inserts,
        middleware=plan.middleware,
        data=plan.data,
        parts=compared(plan.parts, ran.parts),
    )


# Folding: what is alike is shown once.


class Fold(NamedTuple):
    """Parts in a row that are alike, and not shown one by one."""

    parts: tuple[Part, ...]

    @property
    def elapsed(self) -> float | None:
        """The sum of theirs, in seconds; None if none of them has begun."""
        known = [part.elapsed for part in self.parts if part.elapsed is not None]
        return sum(known) if known else None

    @property
    def label(self) -> str:
        """How many, and of which template."""
        count = f"{len(self.parts):,} more"
        stems: dict[str, int] = {}
        for part in self.parts:
            stem = part.stem or part.name.partition("[")[0]
            stems[stem] = stems.get(stem, 0) + 1
        if len(stems) == 1:
            (stem,) = stems
            return f"{count}, {stem}[…]" if any(part.stem for part in self.parts) else count
        if len(stems) <= 3:
            return f"{count}: {', '.join(f'{number:,} {stem}' for stem, number in stems.items())}"
        return count


class Folding(NamedTuple):
    """How many parts that are alike stand in a row before they are folded, and how many of them are shown."""

    dynamic: tuple[int, int] = (7, 3)
    branches: tuple[int, int] = (12, 5)
    others: tuple[int, int] = (60, 25)
    most: int = 150


def folded(parts: Sequence[Part], folding: Folding | None = None) -> list[Part | Fold]:
    """Return the parts with rows of those that are alike folded; what failed is always shown."""
    how = folding or Folding()
    shown: list[Part | Fold] = []
    start = 0
    kinds = [_alike(part) for part in parts]
    for index in range(1, len(parts) + 1):
        if index < len(parts) and kinds[index] == kinds[start]:
            continue
        row = parts[start:index]
        limit, keep = how.branches if row[0].kind == "branch" else how.dynamic if row[0].is_dynamic else how.others
        if len(row) > limit:
            shown.extend(row[:keep])
            shown.append(Fold(tuple(row[keep:])))
        else:
            shown.extend(row)
        start = index
    return shown if len(shown) <= how.most else _cut(shown, how.most)


def _alike(part: Part) -> tuple[Any, ...]:
    """Return what parts that are folded together have in common."""
    inside = {
        (inner.status, inner.recovered) for _, inner in walk(part.parts) if inner.status not in (None, Status.COMPLETED)
    }
    failed = part.status in (Status.FAILED, Status.CANCELLED) or any(status is Status.FAILED for status, _ in inside)
    unique = object() if failed and not part.recovered else None
    return (part.kind == "branch", part.is_dynamic, part.status, part.attempts > 1, part.recovered, inside, unique)


def _cut(shown: list[Part | Fold], most: int) -> list[Part | Fold]:
    """Bound what is left when nothing is alike: the first ones, and of the others those that failed."""
    cut = shown[: most // 2]
    left = most - len(cut)
    hidden: list[Part] = []
    for one in shown[most // 2 :]:
        if isinstance(one, Part) and one.status is Status.FAILED and not one.recovered and left > 0:
            left -= 1
            if hidden:
                cut.append(Fold(tuple(hidden)))
                hidden = []
            cut.append(one)
        else:
            hidden.extend(one.parts if isinstance(one, Fold) else (one,))
    return [*cut, Fold(tuple(hidden))] if hidden else cut
