"""Three values: the plan of a unit, a view of its run, and the difference between the two.

Each is read from definitions and records once, and is frozen; each is shown as text, as a mermaid flowchart and as HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from flowdeco.engine.runs import Run, Status
from flowdeco.errors import DefinitionError, shortened
from flowdeco.model.declare import StageTemplate
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, Unit
from flowdeco.model.store import Store
from flowdeco.show import html
from flowdeco.show.formatting import duration, plural, printable, summary
from flowdeco.show.mermaid import flowchart
from flowdeco.show.parts import Part, PlanContent, RanContent, compared, count_stages, with_ahead
from flowdeco.show.plan_parts import planned_parts
from flowdeco.show.run_parts import error_with_members, ran_parts
from flowdeco.show.text import table

__all__ = ["Change", "Diff", "Plan", "Ran", "plan", "ran"]


class _View:
    """A tree of parts that is shown as text, as mermaid and as HTML."""

    __slots__ = ()
    parts: tuple[Part, ...]

    def text(self) -> str:
        """Return it as text of a few dozen lines: rows of similar parts are collapsed."""
        raise NotImplementedError

    def mermaid(self) -> str:
        """Return it as a mermaid flowchart: inserted nodes are dashed, and colored by their status."""
        return flowchart(self.parts)

    def html(self) -> str:
        """Return it as a fragment of HTML with its style, and without scripts."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}


@dataclass(frozen=True, slots=True, repr=False)
class Plan(PlanContent, _View):
    """The stages that a unit is known to run: a frozen value, equal by content.

    It has a `name`, `title` and `description`; `parts` are its stages, pipelines and groups in their order.
    """

    def diff(self, ran: Ran | Run) -> Diff:
        """Return the differences of a run: inserted (and by whom), skipped, failed, recovered and unreached parts."""
        if not isinstance(ran, (Run, Ran)):
            raise DefinitionError(f"diff takes a run, or the view that its ran() returns, not {shortened(ran)}")
        done = _ran(ran) if isinstance(ran, Run) else ran
        completed = done.status is Status.COMPLETED
        parts = compared(self.parts, done.parts, forgotten=done.forgotten > 0, completed=completed)
        return Diff(self, done, with_ahead(parts, True) if done.status is Status.RUNNING else parts)

    def text(self) -> str:
        """Return the plan as text: a line for each stage and action, with the keys that it reads → writes."""
        return _joined(f"{printable(self.name)}: {_stages(self.parts)}", table(self.parts, ran=False))

    def html(self) -> str:
        """Return the plan as a fragment of HTML with its style, and without scripts."""
        return html.plan(self)

    def __repr__(self) -> str:
        return f"<Plan {printable(self.name)}: {_stages(self.parts)}>"


@dataclass(frozen=True, slots=True, repr=False)
class Ran(RanContent, _View):
    """A view of a run: a frozen value, equal by content.

    `parts` are the stages, pipelines and groups that ran, in their order, inserted ones with who inserted them
    (`inserted_by`); units that were inserted or begun, and not reached, are `pending`. `forgotten` is how many records
    `history=` has dropped before them.
    """

    def text(self) -> str:
        """Return the run as text: a line for each stage, inserted ones with a "+" and who inserted them."""
        return _joined(*_headlines(self), table(self.parts, ran=True), _error_text(self))

    def html(self) -> str:
        """Return the run as a fragment of HTML with its style, and without scripts."""
        return html.ran(self)

    def __repr__(self) -> str:
        return f"<Ran {printable(self.name)} {self.status}: {_stages(self.parts)}>"


class Change(NamedTuple):
    """One difference: `what` is "inserted", "skipped", "failed", "recovered", "not reached" and the like.

    `where` is "stage", or "stage/action"; `by` is the action that inserted it, `why` the error.
    """

    where: str
    what: str
    by: str | None = None
    why: str = ""

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        return printable(f"{self.where}: {self.what}{by}{f', {self.why}' if self.why else ''}")


@dataclass(frozen=True, slots=True, repr=False)
class Diff(_View):
    """The differences between a plan and a run: a frozen value, equal by content; false where nothing differs.

    `parts` are those of the run, with unreached parts of the plan in their places.
    """

    plan: Plan
    ran: Ran
    parts: tuple[Part, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """All differences, in order."""
        return tuple(_changes(self.parts, ""))

    @property
    def inserted(self) -> tuple[Change, ...]:
        """The insertions, and who made them."""
        return self._only("inserted")

    @property
    def skipped(self) -> tuple[Change, ...]:
        """The stages and actions that a selector, an action or a middleware skipped."""
        return self._only("skipped")

    @property
    def failed(self) -> tuple[Change, ...]:
        """The failures that were not recovered, with their errors."""
        return self._only("failed")

    @property
    def recovered(self) -> tuple[Change, ...]:
        """The failures that were recovered, with their errors."""
        return self._only("recovered")

    @property
    def retried(self) -> tuple[Change, ...]:
        """The stages and actions with more than one attempt."""
        return self._only("retried")

    @property
    def not_reached(self) -> tuple[Change, ...]:
        """The units that were planned or inserted, and never reached."""
        return self._only("not reached")

    def _only(self, what: str) -> tuple[Change, ...]:
        return tuple(change for change in _changes(self.parts, "") if change.what == what)

    def __bool__(self) -> bool:
        return next(_changes(self.parts, ""), None) is not None

    def counts(self) -> dict[str, int]:
        """Return how many changes there are of each kind."""
        return dict(Counter(change.what for change in _changes(self.parts, "")))

    def text(self) -> str:
        """Return the diff as text: the stages that ran and those that did not, with their differences."""
        names = f"{printable(self.plan.name)}, plan and run {printable(self.ran.run_id)}"
        head = f"{names} ({self.ran.status}): {summary(self.counts())}"
        return _joined(head, _dropped(self.ran), table(self.parts, ran=True, times=False), _error_text(self.ran))

    def html(self) -> str:
        """Return the diff as a fragment of HTML with its style, and without scripts."""
        return html.diff(self.plan, self.ran, self.parts, self.counts())

    def __repr__(self) -> str:
        return f"<Diff {printable(self.plan.name)}: {summary(self.counts())}>"


_OUTCOMES: dict[str | None, str] = {
    Status.SKIPPED: "skipped",
    Status.PENDING: "not reached",
    Status.BAILED: "bailed",
    Status.SUSPENDED: "suspended",
    Status.CANCELLED: "cancelled",
    Status.FAILED: "failed",
    "crashed": "crashed",  # in a journal
}


def _changes(parts: tuple[Part, ...], stage: str) -> Iterator[Change]:
    for part in parts:
        where = f"{stage}/{part.name}" if part.kind == "action" else part.name
        pending = part.status is Status.PENDING
        if part.is_dynamic and (part.kind in ("stage", "action") or pending):
            yield Change(where, "inserted", part.inserted_by)
        if part.unplanned and part.kind != "branch":
            yield Change(where, "not in the plan")
        if part.attempts > 1:
            yield Change(where, "retried", why=plural(part.attempts, "attempt"))
        what = _outcome(part)
        if what and _is_own_outcome(part):
            yield Change(where, what, part.inserted_by if pending else None, part.error)
        if not pending:
            yield from _changes(part.parts, part.name if part.kind == "stage" else "")


def _outcome(part: Part) -> str:
    """Return how a part differs from a completed one, "" if it does not."""
    return "recovered" if part.recovered else "pending" if part.ahead else _OUTCOMES.get(part.status, "")


def _is_own_outcome(part: Part) -> bool:
    """Whether the outcome of a part is reported for itself, and not for one of its own parts."""
    if part.kind == "branch":
        return False
    if part.kind == "action" or part.status is Status.PENDING:
        return True
    if part.kind != "stage":
        return False
    return part.status is Status.SKIPPED or all(_outcome(inner) != _outcome(part) for inner in part.parts)


def plan(unit: Unit) -> Plan:
    """Return the plan of a unit, without running anything."""
    if isinstance(unit, Pipeline):
        return Plan(unit.name, unit.title, unit.description, planned_parts(unit.units))
    title = "" if isinstance(unit, Parallel) else str(getattr(unit, "title", ""))
    return Plan(unit.name, title, str(getattr(unit, "description", "")), planned_parts((unit,)))


def ran(run: Run) -> Ran:
    """Return the view of a run."""
    error, parts = run.error, ran_parts(run)
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
        with_ahead(parts, True) if run.status is Status.RUNNING else parts,
    )


_ran = ran


def html_of(shown: Any) -> str:
    """Return the HTML of a notebook for an action, a stage, a template, a pipeline, a group, a store or a run."""
    if isinstance(shown, Run):
        diff = plan(shown.pipeline).diff(ran(shown))
        return html.run(shown, diff.ran, diff.parts)
    if isinstance(shown, Store):
        return html.store(shown)
    if isinstance(shown, StageTemplate):
        return html.template(shown)
    if isinstance(shown, Action):
        return html.action(cast("Action[..., Any]", shown))
    return html.stage(shown) if isinstance(shown, Stage) else html.plan(plan(shown))


def _stages(parts: tuple[Part, ...]) -> str:
    return plural(count_stages(parts)[0], "stage")


def _joined(*blocks: str) -> str:
    return "\n".join(block for block in blocks if block)


def _headlines(ran: Ran) -> Iterator[str]:
    stages, inserted = count_stages(ran.parts)
    of_them = f", {inserted:,} of them inserted" if inserted else ""
    yield (
        f"{printable(ran.name)}, run {printable(ran.run_id)}: {ran.status} in {duration(ran.elapsed)}, "
        f"{plural(stages, 'stage')}{of_them}"
    )
    if ran.reason:
        yield f"  {printable(ran.reason)}"
    yield _dropped(ran)


def _dropped(ran: Ran) -> str:
    return f"  … {ran.forgotten:,} before these were dropped (history=)" if ran.forgotten else ""


def _error_text(ran: Ran) -> str:
    if not ran.error:
        return ""
    return "\n".join(["", *map(printable, ran.error.split("\n")), *(f"  {printable(note)}" for note in ran.notes)])
