"""Whether a pipeline fits together: which keys each action needs, and whether something before it supplies them.

`validate` walks a definition in the order of its evaluation and keeps the keys known to be in the store. From the first
unit that may write unknown keys (through `ctx`, an insertion, middleware), a missing key is no longer certain.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast, get_args

from flowdeco.errors import Problem, WiringError, shortened, suggestion
from flowdeco.model.annotations import EMPTY
from flowdeco.model.contents import agree
from flowdeco.model.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    Unit,
    action_selectors,
    as_stage,
    data_of,
    one_action_stage,
    stage_selectors,
    stages_in,
)
from flowdeco.model.keys import accepted_classes, key_name
from flowdeco.model.options import Middleware
from flowdeco.model.sentinels import UNSET
from flowdeco.model.steps import Input, Layout, Step, hidden, missing, step_of, steps_of
from flowdeco.model.store import Store
from flowdeco.model.supplying import Supplies, supplies_of
from flowdeco.model.tuples import NamedTuple
from flowdeco.model.units import Memo, Value, every_unit

__all__ = [
    "Place",
    "Supplier",
    "beside",
    "check_inserted",
    "check_run",
    "hides_gaps",
    "may_write",
    "supplied_keys",
    "unmet",
    "validate",
]


class _Known:
    """The keys known to be in the store at some point, each with the step that declared a class for it."""

    __slots__ = ("beside", "keys", "local", "open")

    def __init__(self, keys: Mapping[str, Step | None], *, open: bool = False) -> None:
        self.keys = dict(keys)
        self.open = open
        self.local: dict[str, str] = {}  # names of results that were local to a stage, each with its name
        self.beside: tuple[tuple[Parallel, int], ...] = ()  # the groups around, innermost first, each with the branch

    def copy(self) -> _Known:
        made = _Known(self.keys, open=self.open)
        made.local = dict(self.local)
        made.beside = self.beside
        return made

    def add(self, other: _Known) -> None:
        """Add all that is known at another point."""
        self.keys.update(other.keys)
        self.local.update(other.local)
        self.open |= other.open


class _Gap(NamedTuple):
    """A parameter that is not known to fit; a `Problem` is made of it on demand."""

    stage: Stage
    step: Step
    wanted: Input
    certain: bool
    producer: Step | None = None
    beside: tuple[tuple[Parallel, int], ...] = ()
    seen: Mapping[str, Step | None] = {}  # keys: the first so many were known before the step
    seen_count: int = 0


class _Around(NamedTuple):
    """Whether enclosing middleware of stages, or of actions, may write to the store."""

    stages: bool = False
    actions: bool = False
    missing: bool = False  # or supply values inside, or recover from missing parameters there
    layers: tuple[Middleware, ...] = ()  # around actions

    def within(self, layers: tuple[Middleware, ...], actions: tuple[Middleware, ...]) -> _Around:
        """Return the same for the inside of a pipeline or stage with these layers, and these around actions."""
        return _Around(
            self.stages or may_write(layers),
            self.actions or may_write(actions),
            self.missing or hides_gaps(layers + actions),
            self.layers + actions,
        )


class Supplier(NamedTuple):
    """A place that supplies a key: an action of a stage, or the data of the stage itself (no step)."""

    stage: Stage
    step: Step | None
    selectors: tuple[str, ...]  # those that skip it, with the ones of the units around it

    def says(self, what: str) -> str:
        """Return that it supplies this, as the beginning of a sentence."""
        if self.step is None:
            return f"stage {self.stage.name!r} supplies {what} by its data"
        return f"action {self.step.name!r} of stage {self.stage.name!r} supplies {what}"


class _Flow(NamedTuple):
    """The units that are checked, in order, with the selectors of those that are skipped.

    Before them come the other `steps` of an open stage.
    """

    units: Iterable[Unit | Stream]
    skip: frozenset[str]
    stage: Stage | None = None
    steps: tuple[Step, ...] = ()

    def hint(self, gap: _Gap, known: _Known) -> str:
        """Return advice about a missing key: why what supplies it does not do so here, or what else may be meant."""
        name = gap.wanted.key
        if name == "context" and gap.wanted.annotation is EMPTY:
            return "If it is to be the context of the action, annotate it: `context: Context`"
        is_local = name in gap.step.local
        if name in known.local and not is_local:
            return f"It is local to stage {known.local[name]!r}: write returns={name!r} there to share it"
        for group, index in () if is_local else gap.beside:
            others = [unit for at, unit in enumerate(group.units) if at != index]
            for supplier in _others(suppliers(others, name, gap.stage), gap.step):
                return _sentence(f"{supplier.says('it')} {beside(group)}")
        skipped = ""
        for supplier in _others(self._visible(gap), gap.step):
            if self.skip.isdisjoint(supplier.selectors):
                return _sentence(f"{supplier.says('it')}, but comes later: let it run first")
            skipped = skipped or _sentence(f"{supplier.says('it')}, but is skipped")
        if skipped:
            return skipped
        if is_local and name in known.keys:
            return hidden(name)
        for stage in stages_in(self.units):
            for step, _ in steps_of(stage):
                why = step.keeps_elsewhere(name)
                if why and self.skip.isdisjoint([*stage_selectors(stage), *action_selectors(stage, step.action)]):
                    return f"Action {step.name!r} of stage {stage.name!r} runs, and {why}"
        return suggestion(name, islice(gap.seen, gap.seen_count), "Known keys")

    def _visible(self, gap: _Gap) -> Iterator[Supplier]:
        """Yield what supplies the key where it can be seen: a name that is local to the stage comes from there alone."""
        name = gap.wanted.key
        if name in gap.step.local:
            own = suppliers((gap.stage,), name, gap.stage)
            yield from (each for each in own if each.step is not None and each.step.supplies_own_name)
            return
        if self.stage is not None:
            yield from _in_stage(self.stage, self.steps, name, gap.stage)
        yield from suppliers(self.units, name, gap.stage)


def _others(found: Iterable[Supplier], step: Step) -> Iterator[Supplier]:
    """Yield those that are not the action itself."""
    return (each for each in found if each.step is None or each.step.function is not step.function)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def beside(group: Parallel) -> str:
    """Return why an action of another branch of a group does not supply a key, after what it supplies."""
    return (
        f"in another branch of the parallel group {group.name!r}, and branches do not see each other: "
        f"let it run before the group"
    )


def suppliers(
    units: Iterable[Unit | Stream], key: str, stage: Stage | None = None, around: tuple[str, ...] = ()
) -> Iterator[Supplier]:
    """Yield what supplies a key to actions of this stage, in order; `around` are the selectors of the units around."""
    for unit in units:
        if isinstance(unit, (Pipeline, Parallel)):
            yield from suppliers(unit.units, key, stage, (*around, *stage_selectors(unit)))
        elif not isinstance(unit, Stream):
            own = as_stage(unit)
            if key in data_of(own):
                yield Supplier(own, None, (*around, *stage_selectors(own)))
            yield from _in_stage(own, (step for step, _ in reversed(steps_of(own))), key, stage, around)


def _in_stage(
    own: Stage, steps: Iterable[Step], key: str, stage: Stage | None, around: tuple[str, ...] = ()
) -> Iterator[Supplier]:
    for step in steps:
        is_hidden = own.local and own is not stage and step.supplies_own_name and step.name == key
        if key in step.supplies and not is_hidden:
            yield Supplier(own, step, (*around, *stage_selectors(own), *action_selectors(own, step.action)))


def validate(unit: Unit, inputs: Iterable[str] | Mapping[str, Any] = ()) -> list[Problem]:
    """Return the problems of a unit, certain or not, in the order of evaluation."""
    if isinstance(inputs, str):
        raise TypeError(f"inputs names keys: write [{shortened(inputs)}]")
    if not isinstance(cast("object", inputs), Iterable):
        raise TypeError(f"inputs names keys: a list of them, or a mapping, not {shortened(inputs)}")
    known, flow = _Known(dict.fromkeys(map(key_name, inputs))), _Flow((unit,), frozenset())
    found = [problem for gap in _check(unit, known, _Around(), flow.skip) for problem in _problems(gap, known, flow)]
    return found + [problem for each in every_unit((unit,)) if isinstance(each, Parallel) for problem in _rivals(each)]


def _rivals(group: Parallel) -> Iterator[Problem]:
    """Yield a problem for each key that several branches of a group write, and that no reducer combines."""
    writers: dict[str, tuple[int, _Writer]] = {}  # the first branch that writes each key
    for index, unit in enumerate(group.units):
        for key, writer in _writers(unit).items():
            first, other = writers.setdefault(key, (index, writer))
            is_same = writer.value is not UNSET and agree(writer.value, other.value)
            if first == index or key in group.merge or is_same:
                continue
            yield Problem(
                writer.unit, writer.action, "", key, False,
                f"{writer} the key {key!r} in branch {index} of the parallel "
                f"group {group.name!r}, and so does an earlier branch: they must agree, or write to different keys, or "
                f"be combined by merge=",
            )  # fmt: skip


class _Writer(NamedTuple):
    """That which writes a key: an action, the data of a stage, or a group that lists failures; the value, if known."""

    unit: str
    action: str = ""
    value: Any = UNSET

    def __str__(self) -> str:
        if self.action:
            return f"action {self.action!r} of stage {self.unit!r} writes"
        if self.value is UNSET:
            return f"the parallel group {self.unit!r} lists its failures under"
        return f"the data of stage {self.unit!r} writes"


def _writers(unit: Unit) -> dict[str, _Writer]:
    """Return the keys to which a unit writes by its definition, each with one thing in it that does: an action, if any."""
    found: dict[str, _Writer] = {}
    data: dict[str, _Writer] = {}
    for stage in stages_in((unit,)):
        for key, value in data_of(stage).items():
            data.setdefault(key, _Writer(stage.name, "", value))  # units come last ones first
        for step, _ in reversed(steps_of(stage)):
            collected = None if step.collects is None else key_name(step.collects)
            own = step.name if stage.local and step.supplies_own_name else None
            for key in step.supplies:
                if key not in (collected, own):
                    found.setdefault(key, _Writer(stage.name, step.name))
    for each in every_unit((unit,)):
        if isinstance(each, Parallel) and each.failures is not None:
            found.setdefault(key_name(each.failures), _Writer(each.name))
    return data | found


def check_run(flow: Pipeline, inputs: Collection[str], skip: frozenset[str], use: tuple[Middleware, ...] = ()) -> None:
    """Raise `WiringError` before a run for parameters that certainly nothing supplies."""
    __tracebackhide__ = True
    if _has_all(inputs, _needs(flow, skip)) or hides_gaps(use):
        return
    known = _Known(dict.fromkeys(inputs))
    _refuse((gap for gap in _check(flow, known, _Around(), skip) if gap.certain), known, _Flow((flow,), skip))


def unmet(units: Iterable[Unit | Stream], store: Store, skip: frozenset[str]) -> bool:
    """Whether units need a key that neither they nor the store have."""
    for unit in units:  # noqa: SIM110 - for each stage that is inserted: without a generator
        if not _has_all(store, _needs(unit, skip)):
            return True
    return False


def _has_all(keys: Collection[str], needed: tuple[str, ...] | None) -> bool:
    if needed:
        return all(key in keys for key in needed)
    return needed is not None


class Place(NamedTuple):
    """The place of an insertion: the open stage, the units after it, and the groups around it, innermost first."""

    stage: Stage | None = None
    later: Iterable[Unit | Stream] = ()
    groups: tuple[tuple[Parallel, int], ...] = ()  # each with the branch


def check_inserted(
    coming: Sequence[tuple[Unit | Stream, bool]], store: Store, skip: frozenset[str], place: Place
) -> None:
    """Raise `WiringError` if inserted units need a key that neither the store nor anything before them supplies.

    `coming` are the units that will run, in order, each with whether it has just been inserted and is to be checked;
    actions run in the open stage, before all else.
    """
    known = _Known(dict.fromkeys(store))
    known.local = store.ended_locals()
    known.beside = place.groups
    inside, stage = known, place.stage
    if stage is not None and stage.local:
        inside = known.copy()
        inside.keys.update(dict.fromkeys(store.local_names()))
        known.local.update(dict.fromkeys(store.local_names(), stage.name))
    gaps: list[_Gap] = []
    steps: list[Step] = []
    for unit, is_new in coming:
        if stage is not None and isinstance(unit, Action):
            steps.append(step_of(cast("Action[..., Any]", unit)))
            found = list(_check_action(stage, steps[-1], known, inside, _Around(), skip))
        else:
            found = list(_check(unit, known, _Around(), skip))
        gaps += [gap for gap in found if is_new and gap.certain]
        known.open |= inside.open
    units = [unit for unit, _ in coming if stage is None or not isinstance(unit, Action)]
    _refuse(gaps, known, _Flow([*units, *place.later] if gaps else (), skip, stage, tuple(steps)))


def _refuse(gaps: Iterable[_Gap], known: _Known, flow: _Flow) -> None:
    __tracebackhide__ = True
    problems = [problem for gap in gaps for problem in _problems(gap, known, flow)]
    if problems:
        if len(problems) == 1:
            raise WiringError(f"the wiring has 1 problem: {problems[0].message}", problems)
        lines = "\n".join(f"  - {problem.message}" for problem in problems)
        raise WiringError(f"the wiring has {len(problems)} problems:\n{lines}", problems)


def _needs(unit: Unit | Stream, skip: frozenset[str]) -> tuple[str, ...] | None:
    """Return the keys that a unit needs to be in the store; None if no store has them: local names hide keys."""
    if type(unit) is Action:
        unit = one_action_stage(unit)
    elif type(unit) is Stream:
        return ()
    memo = Memo() if skip else cast("Value", unit).memo
    needs: Any = UNSET
    try:  # for each stage that is inserted, as in `steps_of`
        needs = memo.needs
    except AttributeError:
        pass
    if needs is UNSET:
        needs = memo.needs = _found_needs(cast("Unit", unit), memo, skip)
    return cast("tuple[str, ...] | None", needs)


def _found_needs(unit: Unit, memo: Memo, skip: frozenset[str]) -> tuple[str, ...] | None:
    needs: tuple[str, ...] | None
    layout: Layout | None = None
    if type(unit) is Stage:
        steps = steps_of(unit)
        if not (skip or unit.use or unit.use_actions):
            layout = getattr(memo, "layout", None)
        if layout is not None and layout.needs is not UNSET:
            needs = layout.needs
            return needs
        if not any(wanted.default is EMPTY and not wanted.context for step, _ in steps for wanted in step.inputs):
            return ()
    gaps = [gap for gap in _check(unit, _Known({}), _Around(), skip) if gap.certain]
    is_hidden = any(gap.wanted.key in gap.step.local for gap in gaps)
    needs = None if is_hidden else tuple(dict.fromkeys(gap.wanted.key for gap in gaps))
    if layout is not None:
        layout.needs = needs
    return needs


def supplied_keys(unit: Unit) -> tuple[set[str], dict[str, str]]:
    """Return the keys that the stages of a unit supply by their definition, and the names local to one, with its name."""
    known = _Known({})
    for _ in _check(unit, known, _Around(), frozenset()):  # the gaps do not matter
        pass
    return set(known.keys), known.local


def may_write(layers: tuple[Middleware, ...]) -> bool:
    """Whether middleware may write to the store, for all that comes after; flowdeco's own middleware declares it."""
    return any(supplies_of(layer) is Supplies.ANYTHING for layer in layers)


def hides_gaps(layers: tuple[Middleware, ...]) -> bool:
    """Whether a parameter that is missing inside middleware may do no harm: it may be supplied there, or recovered."""
    return any(
        supplies_of(layer) in (Supplies.VALUES, Supplies.ANYTHING) or getattr(layer, "recovers_missing_inputs", False)
        for layer in layers
    )


def _may_replace(step: Step, layers: tuple[Middleware, ...]) -> bool:
    """Whether a layer may give an action an outcome with effects that its annotation does not show: units, or data.

    Of an outcome in place of data, only a layer that says so (`recover`) is taken to be units.
    """
    found = [layer for layer in layers if supplies_of(layer) is Supplies.OUTCOME]
    return any(not step.supplies or getattr(layer, "inserts", False) for layer in found)


def _check(unit: Unit | Stream, known: _Known, around: _Around, skip: frozenset[str]) -> Iterator[_Gap]:
    """Yield the gaps of a unit, and add the keys that it supplies to `known`."""
    unit = as_stage(unit)
    if isinstance(unit, Stream):
        known.open = True
        return
    if skip and not skip.isdisjoint(stage_selectors(unit)):
        return
    if isinstance(unit, Pipeline):
        inside = around.within(unit.use + unit.use_stages, unit.use_actions)
        known.open |= may_write(unit.use)
        for part in unit.units:
            yield from _check(part, known, inside, skip)
    elif isinstance(unit, Parallel):
        branches = [known.copy() for _ in unit.units]
        for index, branch in enumerate(branches):
            branch.beside = ((unit, index), *known.beside)
        for part, branch in zip(unit.units, branches, strict=True):
            yield from _check(part, branch, around, skip)
        for branch in branches:
            known.add(branch)
        known.open |= unit.stream is not None
        if unit.failures is not None:
            known.keys[key_name(unit.failures)] = None
    else:
        yield from _check_stage(cast("Stage", unit), known, around, skip)


def _check_stage(stage: Stage, known: _Known, around: _Around, skip: frozenset[str]) -> Iterator[_Gap]:
    known.keys.update(dict.fromkeys(data_of(stage)))
    around = around.within(stage.use, stage.use_actions)
    known.open |= around.stages
    inside = _inside(stage, known) if stage.local else known
    for step, _ in reversed(steps_of(stage)):
        yield from _check_action(stage, step, known, inside, around, skip)
    known.open |= inside.open


def _check_action(
    stage: Stage, step: Step, known: _Known, inside: _Known, around: _Around, skip: frozenset[str]
) -> Iterator[_Gap]:
    """Yield the gaps of an action, which sees the keys `inside` its stage.

    Raises the `DefinitionError` of a layer that does not suit the action (`cached`).
    """
    if skip and not skip.isdisjoint(action_selectors(stage, step.action)):
        return
    around = around.within((), step.use)
    for layer in around.layers:
        if hasattr(layer, "check_action"):
            cast("Any", layer).check_action(step)
    for wanted in step.inputs:
        if wanted.context or wanted.name in step.bound:
            continue
        if wanted.key not in inside.keys:
            if wanted.default is EMPTY:
                is_certain = not (inside.open or around.missing)
                yield _Gap(stage, step, wanted, is_certain, None, inside.beside, inside.keys, len(inside.keys))
        elif (producer := inside.keys[wanted.key]) is not None:
            yield _Gap(stage, step, wanted, False, producer)
    inside.open |= step.wants_context or step.inserts or around.actions or _may_replace(step, around.layers)
    typed = step if len(step.supplies) == 1 and step.collects is None else None
    own = step.name if stage.local and step.supplies_own_name else None
    inside.keys.update(dict.fromkeys(step.supplies, typed))
    known.keys.update({key: typed for key in step.supplies if key != own})


def _inside(stage: Stage, known: _Known) -> _Known:
    """Return the keys that the actions of a stage see: its own names hide those of the store, and nobody else sees them."""
    inside = known.copy()
    for name in [step.name for step, _ in steps_of(stage) if step.supplies_own_name]:
        inside.keys.pop(name, None)
        known.local.setdefault(name, stage.name)
    return inside


def _problems(gap: _Gap, known: _Known, flow: _Flow) -> Iterator[Problem]:
    """Yield the problem of a gap; none if it was only a suspicion about types."""
    stage, step, wanted, certain, producer = gap[:5]
    if producer is None:
        message = missing(step.name, stage.name, wanted, flow.hint(gap, known))
    else:
        if producer.generates or not _disagree(producer.returned, wanted.annotation):
            return
        message = (
            f"action {step.name!r} of stage {stage.name!r} takes {wanted.key!r} as {wanted.annotation.__name__}, "
            f"and action {producer.name!r} returns {producer.returned.__name__}"
        )
    yield Problem(stage.name, step.name, wanted.name, wanted.key, certain, message)


def _is_plain_class(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and not get_args(annotation)
        and annotation not in (object, Any, EMPTY)
        and not inspect.isabstract(annotation)
        and not getattr(annotation, "_is_protocol", False)
    )


def _disagree(produced: Any, wanted: Any) -> bool:
    """Whether two annotations are classes of which neither extends the other."""
    if not (_is_plain_class(produced) and _is_plain_class(wanted)):
        return False
    try:
        return not issubclass(produced, accepted_classes(wanted)) and not issubclass(wanted, produced)
    except TypeError:
        return False
