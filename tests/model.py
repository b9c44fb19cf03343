"""What a run does, written so plainly that it is right: by recursion, one thing after the other, on copies.

A flow is described by values (`Act`, `Stg`, `Pipe`, `Par`), which `test_laws` makes real definitions of. `predict` says
what a run of it must come to: its trace, records, store, status.
"""

from collections import Counter
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Act:
    """An action: what it does each time it is called, and how often it fails first."""

    name: str = ""
    value: int | None = None
    collects: bool = False
    writes: bool = False
    inserted: tuple = ()  # by ctx.insert
    returned: tuple = ()
    how: str = "list"  # … generator, generator function, stream
    loops: int = 0  # so many times, its own stage is returned as well
    disables: str | None = None
    fails: int = 0
    bails: bool = False
    use: tuple = ()
    tag: bool = False
    asynchronous: bool = False


@dataclass(frozen=True)
class Stg:
    """A stage."""

    name: str = ""
    actions: tuple = ()
    data: int | None = None
    use: tuple = ()
    use_actions: tuple = ()
    tag: bool = False


@dataclass(frozen=True)
class Pipe:
    """A pipeline; without a name it has no options."""

    name: str = ""
    units: tuple = ()
    use: tuple = ()
    use_stages: tuple = ()
    use_actions: tuple = ()


@dataclass(frozen=True)
class Par:
    """A parallel group, whose branches run one at a time."""

    name: str = ""
    units: tuple = ()
    streamed: bool = False
    tolerate: int = 0
    enough: int = 0
    lists: bool = False  # the failures, under a key of its own


def named(part, numbers):
    """The same, with names: of stages, actions, pipelines, groups, layers."""
    number = next(numbers)
    changes = {
        field: tuple(named(child, numbers) for child in getattr(part, field))
        for field in ("units", "actions", "inserted", "returned")
        if hasattr(part, field)
    }
    for field in ("use", "use_stages", "use_actions"):
        if hasattr(part, field):
            changes[field] = tuple(
                (kind, f"{field}{number}.{index}") for index, kind in enumerate(getattr(part, field))
            )
    if isinstance(part, Pipe) and not part.name:
        changes.update(use=(), use_stages=(), use_actions=())  # it has no options
    else:
        changes["name"] = f"{type(part).__name__[0].lower()}{number}".replace(
            "p", "g" if isinstance(part, Par) else "p"
        )
    if isinstance(part, Par) and not part.streamed:
        changes["enough"] = min(part.enough, len(part.units))
    if isinstance(part, Act):
        changes["value"] = None if part.returned and part.how != "generator function" else part.value
        changes["loops"] = 0 if part.how == "stream" else part.loops
    return replace(part, **changes)


class Failed(Exception):
    """An action raised."""


class Bailed(Exception):
    """An action ended the run."""


class By(str):
    """Who inserted a unit, and the place of its stage in the records."""

    def __new__(cls, name, place):
        made = super().__new__(cls, name)
        made.place = place
        return made


class Call:
    """One thing in its layers."""

    def __init__(self):
        self.attempt = 1
        self.recovered = False
        self.left = False


def recovered(record):
    """Return the record of a stage with the failures in it as recovered."""
    name, status, by, attempts, was_recovered, actions = record
    actions = [(*action[:4], action[4] or action[1] == "failed") for action in actions]
    return name, status, by, attempts, was_recovered or status == "failed", actions


class Model:
    """The state of a run."""

    def __init__(self, skip):
        self.skip = skip
        self.trace, self.calls = [], Counter()
        self.store, self.written, self.collected, self.records, self.off, self.result = {}, set(), [], [], set(), None

    def snapshot(self):
        return dict(self.store), set(self.written), list(self.collected), set(self.off), self.result

    def restore(self, before):
        store, written, collected, off, self.result = before
        self.store, self.written, self.collected, self.off = dict(store), set(written), list(collected), set(off)

    def put(self, key, value):
        self.store[key] = value
        self.written.add(key)

    def is_off(self, *selectors):
        return any(selector in self.skip | self.off for selector in selectors)

    def layered(self, layers, inside, call):
        """Run the inside in its layers, the first of them outermost."""
        if not layers:
            return inside()
        (kind, name), *rest = layers
        if kind == "merge":
            self.put("k", name)
            return self.layered(rest, inside, call)
        self.trace.append(f"+{name}")
        before = self.snapshot()
        try:
            if kind == "leave":
                call.left = True
                return None
            return self.layered(rest, inside, call)
        except Failed:
            if kind == "retry":
                self.restore(before)
                call.attempt, call.recovered = call.attempt + 1, False
                return self.layered(rest, inside, call)
            if kind == "swallow":
                call.recovered = True
                return None
            raise
        finally:
            self.trace.append(f"-{name}")

    def units(self, units, by, around):
        for unit in units:
            getattr(self, type(unit).__name__.lower())(unit, by, around)

    def act(self, act, by, around):
        self.stg(Stg(act.name, (act,), tag=act.tag), by, around)

    def stg(self, stage, by, around):
        if self.is_off(stage.name, *["tag:t"] * stage.tag):
            self.records.append((stage.name, "skipped", by, 1, False, []))
            return
        use_stages, use_actions = around
        call, actions, behind = Call(), [], []

        def inside():
            actions.clear()
            behind.clear()
            queue = [(act, None) for act in stage.actions]
            while queue:
                act, act_by = queue.pop(0)
                now, later = self.action(act, act_by, stage, (*use_actions, *stage.use_actions), actions)
                queue[:0] = [(unit, f"{stage.name}/{act.name}") for unit in now]
                behind.extend((unit, f"{stage.name}/{act.name}") for unit in later)

        merge = [("merge", stage.data)] if stage.data is not None else []
        status = "failed"
        try:
            self.layered([*use_stages, *merge, *stage.use], inside, call)
            status = "failed" if call.recovered else "completed"
        except Bailed:
            status = "bailed"
            raise
        finally:
            self.records.append((stage.name, status, by, call.attempt, call.recovered, actions))
            if call.recovered:
                self.records[-1:] = map(recovered, self.records[-1:])
        place = len(self.records) - 1
        for unit, unit_by in behind:
            self.units([unit], By(unit_by, place), around)

    def action(self, act, by, stage, layers, records):
        """Run an action; return what it inserts right now, and what behind its stage."""
        if self.is_off(f"{stage.name}/{act.name}", *["tag:t"] * act.tag):
            records.append((act.name, "skipped", by, 1, False))
            return [], []
        call = Call()

        def inside():
            self.calls[act.name] += 1
            self.trace.append(act.name)
            if self.calls[act.name] <= act.fails:
                raise Failed
            if act.bails:
                raise Bailed

        status = "failed"
        try:
            self.layered([*layers, *act.use], inside, call)
            status = "failed" if call.recovered else "completed"
        except Bailed:
            status = "bailed"
            self.take_effect(act)
            raise
        finally:
            records.append((act.name, status, by, call.attempt, call.recovered))
        if call.recovered:
            return [], []
        self.take_effect(act)
        if act.disables:
            self.off.add(act.disables)
        if act.value is not None:
            self.result = act.value
            if act.collects:
                self.collected.append(act.value)
            else:
                self.put(act.name, act.value)
        now, later = [], []
        looped = [stage] if self.calls[act.name] <= act.loops else []
        is_stream = act.how == "stream" and act.value is None
        for units, joins in ((act.inserted, True), ([*act.returned, *looped], not is_stream)):
            joins = joins and all(isinstance(unit, Act) for unit in units)  # a list of actions alone joins the stage
            (now if joins else later).extend(units)
        return now, later

    def take_effect(self, act):
        if act.writes:
            self.put(f"{act.name} wrote", self.calls[act.name])

    def pipe(self, pipe, by, around):
        if self.is_off(pipe.name):
            self.skip_all(pipe.units, by)
            return
        use_stages, use_actions = around
        inner = (*use_stages, *pipe.use_stages), (*use_actions, *pipe.use_actions)
        begun_at = len(self.records)

        def inside():
            if call.attempt > 1:
                del self.records[begun_at:]
            self.units(pipe.units, by, inner)

        call = Call()
        self.layered(pipe.use, inside, call)
        if call.left:
            self.skip_all(pipe.units, by)
        if call.recovered:
            self.records[begun_at:] = map(recovered, self.records[begun_at:])

    def skip_all(self, units, by):
        for unit in units:
            if isinstance(unit, (Pipe, Par)):
                self.skip_all(() if getattr(unit, "streamed", False) else unit.units, by)
            else:
                self.records.append((unit.name, "skipped", by, 1, False, []))

    def par(self, group, by, around):
        if self.is_off(group.name):
            self.skip_all([group], by)
            return
        before, overlays, lost, count, completed = self.snapshot(), [], [], len(group.units), 0
        allowed = min(group.tolerate, count - group.enough) if group.enough and not group.streamed else group.tolerate
        for unit in group.units:
            self.restore(before)
            self.written, self.collected, self.result = set(), [], None
            begun_at = len(self.records)
            try:
                self.units([unit], by, around)
            except Failed:
                if len(lost) < allowed:
                    lost.append((unit, begun_at, len(self.records)))
                    continue
                self.restore(before)
                raise
            except Bailed:
                self.recover(lost)
                self.merge(before, [self.snapshot()])
                raise
            overlays.append(self.snapshot())
            if group.streamed and not group.enough:  # merged as it ends, so that after a conflict no more are pulled
                self.merge(before, overlays)
            made = self.records[begun_at:]
            completed += not made or any(status != "skipped" for _, status, *_ in made)
            if group.enough and completed == group.enough:
                break
        if completed < group.enough and (lost or count < group.enough):  # with neither, the others were skipped
            self.restore(before)
            if count < group.enough:
                self.recover(lost)
            raise Failed
        self.recover(lost)
        self.merge(before, overlays)
        if group.lists:
            self.put(f"{group.name} lost", tuple(unit.name or "pipeline" for unit, *_ in lost))

    def recover(self, lost):
        """What failed in lost branches is recovered."""
        for _, begin, end in lost:
            self.records[begin:end] = map(recovered, self.records[begin:end])

    def merge(self, before, overlays):
        self.restore(before)
        writes = {}
        for store, written, collected, off, result in overlays:
            for key in written:
                writes.setdefault(key, set()).add(store[key])
        if any(len(values) > 1 for values in writes.values()):
            raise Failed
        for store, written, collected, off, result in overlays:
            for key in written:
                self.put(key, store[key])
            self.collected += collected
            self.off |= off
            self.result = self.result if result is None else result


def parents(records):
    """Return, for each stage, the place of the stage that inserted it."""
    return [getattr(by, "place", None) for _, _, by, *_ in records]


def predict(flow, skip):
    """Return status, trace, records, store and result of a run."""
    model = Model(skip)
    try:
        model.pipe(flow, None, ((), ()))
        status = "completed"
    except Failed:
        status = "failed"
    except Bailed:
        status = "bailed"
    store = model.store | ({"collected": model.collected} if model.collected else {})
    return status, model.trace, model.records, store, model.result
