"""Three values to look at: the plan of a unit, what ran of it, and what differs between the two.

Each is read from definitions and records once, and stays as it is; each is shown as text, as a mermaid flowchart and as
HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from flowdeco.engine.runs import Run, Status
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Unit
from flowdeco.show import html
from flowdeco.show.formatting import duration, plural, printable
from flowdeco.show.mermaid import flowchart
from flowdeco.show.parts import Part, compared, error_with_members, planned_parts, ran_parts, walk
from flowdeco.show.text import table

__all__ = ["Change", "Diff", "Plan", "Ran", "plan", "ran"]


class _Shown:
    """What can be shown: as text, as mermaid, as HTML."""

    __slots__ = ()

    def text(self) -> str:
        """Return it as text of a few dozen lines: what is alike is folded."""
        raise NotImplementedError

    def mermaid(self) -> str:
        """Return it as a mermaid flowchart."""
        raise NotImplementedError

    def html(self) -> str:
        """Return it as a piece of HTML that brings its style along, and no scripts."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


@dataclass(frozen=True, slots=True, repr=False)
class Plan(_Shown):
    """What a unit will run, as far as that is known before: a frozen value, equal by content.

    `parts` are its stages, pipelines and groups in their order.
    """

    name: str
    title: str
    description: str
    parts: tuple[Part, ...]

    def diff(self, ran: Ran | Run) -> Diff:
        """Return what a run did differently: what was inserted and by whom, skipped, failed, recovered, not reached."""
        done = _ran(ran) if isinstance(ran, Run) else ran
        return Diff(self, done, compared(self.parts, done.parts))

    def text(self) -> str:
        """Return the plan as text: a line for each stage and action, with the keys that it reads → writes."""
        return _framed(f"{printable(self.name)}: {plural(_stages(self.parts), 'stage')}", table(self.parts, ran=False))

    def mermaid(self) -> str:
        """Return the plan as a mermaid flowchart."""
        return flowchart(self.parts)

    def html(self) -> str:
        """Return the plan as a piece of HTML that brings its style along, and no scripts."""
        return html.plan(self)

    def __repr__(self) -> str:
        return f"<Plan {printable(self.name)}: {plural(_stages(self.parts), 'stage')}>"


@dataclass(frozen=True, slots=True, repr=False)
class Ran(_Shown):
    """What a run did: a frozen value, equal by content.

    `parts` are the stages, pipelines and groups that ran, in their order, those that were inserted with who inserted
    them (`inserted_by`); what was inserted or begun and not reached is `pending`. `forgotten` is how many records
    `history=` has dropped before them.
    """

    run_id: str
    name: str
    status: Status
    started: float
    elapsed: float
    error: str
    notes: tuple[str, ...]
    reason: str
    forgotten: int
    parts: tuple[Part, ...]

    def text(self) -> str:
        """Return what ran as text: a line for each stage, those that were inserted with a "+" and who did it."""
        return _framed(*_headlines(self), table(self.parts, ran=True), *_endlines(self))

    def mermaid(self) -> str:
        """Return what ran as a mermaid flowchart; what was inserted is dashed."""
        return flowchart(self.parts)

    def html(self) -> str:
        """Return what ran as a piece of HTML that brings its style along, and no scripts."""
        return html.ran(self)

    def __repr__(self) -> str:
        return f"<Ran {printable(self.name)} {self.status}: {plural(_stages(self.parts), 'stage')}>"


class Change(NamedTuple):
    """One thing that differs: `what` is "inserted", "skipped", "failed", "recovered", "not reached" and the like.

    `where` is "stage", or "stage/action"; `by` says who inserted it, `why` which error there was.
    """

    where: str
    what: str
    by: str | None = None
    why: str = ""

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return printable(f"{self.where}: {self.what}{by}{f', {self.why}' if self.why else ''}")


@dataclass(frozen=True, slots=True, repr=False)
class Diff(_Shown):
    """What a run did differently from a plan: a frozen value, equal by content; false where nothing differs.

    `parts` are those of the run, with those of the plan that were not reached in their places.
    """

    plan: Plan
    ran: Ran
    parts: tuple[Part, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Everything that differs, in order."""
        return tuple(_changes(self.parts, ""))

    @property
    def inserted(self) -> tuple[Change, ...]:
        """What was inserted, and by whom."""
        return self._only("inserted")

    @property
    def skipped(self) -> tuple[Change, ...]:
        """What was skipped: by a selector, an action, or a middleware."""
        return self._only("skipped")

    @property
    def failed(self) -> tuple[Change, ...]:
        """What failed, and with which error; not what was recovered."""
        return self._only("failed")

    @property
    def recovered(self) -> tuple[Change, ...]:
        """What failed and was recovered, with its error."""
        return self._only("recovered")

    @property
    def retried(self) -> tuple[Change, ...]:
        """What took more than one attempt."""
        return self._only("retried")

    @property
    def not_reached(self) -> tuple[Change, ...]:
        """What was planned, or inserted, and its turn did not come."""
        return self._only("not reached")

    def _only(self, what: str) -> tuple[Change, ...]:
        return tuple(change for change in _changes(self.parts, "") if change.what == what)

    def __bool__(self) -> bool:
        return next(_changes(self.parts, ""), None) is not None

    def counts(self) -> dict[str, int]:
        """Return how many changes there are of each kind."""
        found: dict[str, int] = {}
        for change in _changes(self.parts, ""):
            found[change.what] = found.get(change.what, 0) + 1
        return found

    def text(self) -> str:
        """Return the diff as text: what ran and what did not, each with what differs."""
        summary = ", ".join(f"{number:,} {what}" for what, number in self.counts().items()) or "as planned"
        head = f"{printable(self.plan.name)}, plan and run {printable(self.ran.run_id)} ({self.ran.status}): {summary}"
        return _framed(head, table(self.parts, ran=True, times=False), *_endlines(self.ran))

    def mermaid(self) -> str:
        """Return the diff as a mermaid flowchart, coloured by what differs."""
        return flowchart(self.parts)

    def html(self) -> str:
        """Return the diff as a piece of HTML that brings its style along, and no scripts."""
        return html.diff(self)

    def __repr__(self) -> str:
        summary = ", ".join(f"{number:,} {what}" for what, number in self.counts().items()) or "as planned"
        return f"<Diff {printable(self.plan.name)}: {summary}>"


_SAID: dict[str, str] = {
    Status.SKIPPED: "skipped",
    Status.PENDING: "not reached",
    Status.BAILED: "bailed",
    Status.SUSPENDED: "suspended",
    Status.CANCELLED: "cancelled",
    Status.FAILED: "failed",
    "crashed": "crashed",  # of a journal
}


def _changes(parts: tuple[Part, ...], stage: str) -> Iterator[Change]:
    for part in parts:
        where = f"{stage}/{part.name}" if part.kind == "action" else part.name
        named = part.kind != "branch"
        if part.is_dynamic and (part.kind in ("stage", "action") or part.status is Status.PENDING):
            yield Change(where, "inserted", part.inserted_by)
        if named and part.unplanned:
            yield Change(where, "not in the plan")
        if part.attempts > 1:
            yield Change(where, "retried", why=plural(part.attempts, "attempt"))
        what = _said(part)
        single = part.kind == "action" or (part.kind == "stage" and part.status is Status.SKIPPED)
        whole = single or part.status is Status.PENDING
        inside = any(_said(inner) == what for inner in part.parts)  # an action says it already
        if what is not None and named and (whole or (part.kind == "stage" and not inside)):
            yield Change(where, what, part.inserted_by if what == "not reached" else None, part.error)
        if part.status is not Status.PENDING:
            yield from _changes(part.parts, part.name if part.kind == "stage" else "")


def _said(part: Part) -> str | None:
    if part.status is None:
        return None
    return "recovered" if part.recovered else _SAID.get(part.status)


def plan(unit: Unit) -> Plan:
    """Return the plan of a unit; nothing of it is run."""
    if isinstance(unit, Pipeline):
        return Plan(unit.name, unit.title, unit.description, planned_parts(unit.units))
    title = "" if isinstance(unit, Parallel) else str(getattr(unit, "title", ""))
    return Plan(unit.name, title, str(getattr(unit, "description", "")), planned_parts((unit,)))


def ran(run: Run) -> Ran:
    """Return what a run did."""
    error = run.error
    return Ran(
        run.id,
        run.pipeline.name,
        run.status,
        run.started,
        run.elapsed,
        error_with_members(error),
        tuple(map(str, getattr(error, "__notes__", ()))),
        str(run.reason or ""),
        run.forgotten,
        ran_parts(run),
    )


_ran = ran


def html_of(shown: Unit | Run) -> str:
    """Return what a notebook shows for an action, a stage, a pipeline, a group or a run."""
    if isinstance(shown, Run):
        return html.run(shown, plan(shown.pipeline).diff(ran(shown)))
    if isinstance(shown, Action):
        return html.action(cast("Action[..., Any]", shown))
    return html.stage(shown) if isinstance(shown, Stage) else html.plan(plan(shown))


def _stages(parts: tuple[Part, ...]) -> int:
    return sum(part.kind == "stage" and part.status is not Status.PENDING for _, part in walk(parts))


def _dynamic(parts: tuple[Part, ...]) -> int:
    return sum(
        part.kind == "stage" and part.is_dynamic and part.status is not Status.PENDING for _, part in walk(parts)
    )


def _framed(*blocks: str) -> str:
    return "\n".join(block for block in blocks if block)


def _headlines(ran: Ran) -> Iterator[str]:
    stages, inserted = _stages(ran.parts), _dynamic(ran.parts)
    of_them = f", {inserted:,} of them inserted" if inserted else ""
    yield (
        f"{printable(ran.name)}, run {printable(ran.run_id)}: {ran.status} in {duration(ran.elapsed)}, "
        f"{plural(stages, 'stage')}{of_them}"
    )
    if ran.reason:
        yield f"  {printable(ran.reason)}"
    if ran.forgotten:
        yield f"  … {ran.forgotten:,} before these are forgotten (history=)"


def _endlines(ran: Ran) -> Iterator[str]:
    if ran.error:
        yield "\n".join(["", *map(printable, ran.error.split("\n")), *(f"  {printable(note)}" for note in ran.notes)])
