"""Plans, runs and diffs as a piece of HTML for notebooks: its style comes along, and there are no scripts.

Everything that has a name somebody chose goes through `text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from flowdeco.engine.runs import Run, Status
from flowdeco.model.definitions import Action, Stage
from flowdeco.show.formatting import MARKS, data_flow, duration, plural, printable, state
from flowdeco.show.parts import Fold, Folding, Part, folded, planned_action, planned_stage, walk
from flowdeco.show.store_summary import summarize

if TYPE_CHECKING:
    from flowdeco.show.plan import Diff, Plan, Ran

__all__ = ["action", "diff", "name", "plan", "ran", "run", "stage", "text"]

FOLDING: Final = Folding(dynamic=(7, 3), branches=(8, 6), others=(60, 25), most=120)
MOST_BEHIND_A_FOLD: Final = 100
MOST_KEYS: Final = 100
OPENED: Final = 24  # so many stages, and no more, show their actions at once


def text(value: str, *, lines: bool = False) -> str:
    """Return what somebody named as text of HTML; with `lines`, line breaks and tabs stay."""
    if lines:
        return "\n".join(escape(printable(line).replace("\\t", "    ")) for line in value.split("\n"))
    return escape(printable(value))


_BREAKS: Final = re.compile(r"[^_\[\](){}<>/.,:;=\s-]{0,15}[_\[\](){}<>/.,:;=\s-]+|.{1,16}")


def name(value: str, short: int = 12) -> str:
    """Return a name as text of HTML that breaks, where it must, behind `_`, `.`, `/` and brackets, and not in a word."""
    told = printable(value)
    pieces = _BREAKS.findall(told) if len(told) > short else [told]
    return "<wbr>".join(map(escape, pieces))


def _named(value: str, more: str = "") -> str:
    title = f' title="{text(value)}"' if "<wbr>" in name(value) else ""
    return f'<span class="fd-name{more}"{title}>{name(value)}</span>'


@cache
def style() -> str:
    """Return the style sheet."""
    from importlib.resources import files  # not loaded for text

    return files("flowdeco.show").joinpath("notebook.css").read_text(encoding="utf-8")


def _card(*pieces: str) -> str:
    return f'<div class="flowdeco"><style>{style()}</style><div class="fd-card">{"".join(pieces)}</div></div>'


def _head(title: str, pill: str, *meta: str) -> str:
    status = f'<span class="fd-pill fd-{pill}">{MARKS[pill]} {pill}</span>' if pill else ""
    rest = f'<span class="fd-soft">{" · ".join(filter(None, meta))}</span>'
    return f'<div class="fd-head"><span class="fd-title">{text(title)}</span>{status}{rest}</div>'


def plan(plan: Plan) -> str:
    """Return the plan as HTML."""
    stages = sum(part.kind == "stage" for _, part in walk(plan.parts))
    title = plan.name if plan.title in ("", plan.name) else f"{plan.title} ({plan.name})"
    described = f'<div class="fd-text">{text(plan.description)}</div>' if plan.description else ""
    return _card(_head(title, "", "plan", plural(stages, "stage")), described, _list(plan.parts))


def action(action: Action[..., Any]) -> str:
    """Return an action as HTML: which function it is, what it reads and writes."""
    part = planned_action(action)
    function: Any = action.__wrapped__
    place = f"{getattr(function, '__module__', None) or ''}:{getattr(function, '__qualname__', '')}".strip(":")
    bound = ", ".join(action._self_bound)
    return _definition(
        part, ("function", place), ("bound", bound), ("flow", data_flow(part)), parts=(), what=("action",)
    )


def stage(stage: Stage) -> str:
    """Return a stage as HTML: its actions, with what they read and write."""
    part = planned_stage(stage)
    data = ("data", ", ".join(part.data))
    return _definition(part, data, parts=part.parts, what=("stage", plural(len(stage), "action")))


def _definition(part: Part, *facts: tuple[str, str], parts: Sequence[Part], what: Sequence[str]) -> str:
    described = f'<div class="fd-text">{text(part.description)}</div>' if part.description else ""
    tags = "".join(_tag(tag) for tag in part.tags)
    listed = "".join(
        f'<div class="fd-text">{kind}: <span class="fd-name">{text(those)}</span></div>'
        for kind, those in (*facts, ("middleware", ", ".join(part.middleware)))
        if those
    )
    head = _head(part.name, "", *what).removesuffix("</div>")
    return _card(f"{head}{tags}</div>", described, listed, _list(parts) if parts else '<div class="fd-list"></div>')


def ran(ran: Ran) -> str:
    """Return what ran as HTML."""
    return _card(_ran_head(ran), _error(ran), _forgotten(ran), _list(ran.parts))


def diff(diff: Diff) -> str:
    """Return a diff as HTML: what ran, with what was not reached in its place, and how many of each."""
    summary = ", ".join(f"{number:,} {what}" for what, number in diff.counts().items()) or "as planned"
    head = _head(diff.plan.name, str(diff.ran.status), "plan and run", text(diff.ran.run_id), text(summary))
    return _card(head, _error(diff.ran), _forgotten(diff.ran), _list(diff.parts))


def run(run: Run, diff: Diff) -> str:
    """Return a run as HTML: its status, its error with the notes, what ran and what did not, the keys of its store."""
    return _card(_ran_head(diff.ran), _error(diff.ran), _forgotten(diff.ran), _list(diff.parts), _store(run))


def _ran_head(ran: Ran) -> str:
    stages = [part for _, part in walk(ran.parts) if part.kind == "stage" and part.status is not Status.PENDING]
    inserted = sum(part.is_dynamic for part in stages)
    return _head(
        ran.name,
        str(ran.status),
        f"run {text(ran.run_id)}",
        plural(len(stages), "stage"),
        f"{inserted:,} inserted" if inserted else "",
        duration(ran.elapsed),
    )


def _error(ran: Ran) -> str:
    if ran.error:
        notes = f'<pre class="fd-soft">{text(chr(10).join(ran.notes), lines=True)}</pre>' if ran.notes else ""
        return f'<div class="fd-error"><pre>{text(ran.error, lines=True)}</pre>{notes}</div>'
    return f'<div class="fd-text fd-warn">{text(ran.reason)}</div>' if ran.reason else ""


def _forgotten(ran: Ran) -> str:
    if not ran.forgotten:
        return ""
    return f'<div class="fd-text">{plural(ran.forgotten, "stage")} before these: forgotten, as history= says</div>'


def _store(run: Run) -> str:
    keys = "".join(
        f'{_named(one.key)}<span class="fd-soft">{text(one.type)}{", " if one.size else ""}{one.size}</span>'
        for one in islice(summarize(run.store), MOST_KEYS)
    )
    more = f"<span>… {len(run.store) - MOST_KEYS:,} more</span>" if len(run.store) > MOST_KEYS else ""
    count = plural(len(run.store), "key")
    return (
        f'<details class="fd-foot"><summary class="fd-row fd-soft"><span class="fd-turn">store: {count}</span></summary>'
        f'<div class="fd-keys">{keys}{more}</div></details>'
    )


# The list of parts.


def _list(parts: Sequence[Part]) -> str:
    few = sum(1 for _ in islice((part for _, part in walk(parts) if part.kind == "stage"), OPENED + 1)) <= OPENED
    return f'<div class="fd-list">{"".join(_parts(parts, few))}</div>'


def _parts(parts: Iterable[Part], opened: bool, around: str | None = None) -> Iterator[str]:
    for part in folded(tuple(parts), FOLDING):
        if isinstance(part, Fold):
            yield _fold(part)
        elif part.kind in ("parallel", "pipeline"):
            yield _group(part, opened, around)
        elif part.kind == "stage" and part.parts and not part.is_bare and part.status is not Status.PENDING:
            loud = any(inner.status not in (None, Status.COMPLETED) or inner.attempts > 1 for inner in part.parts)
            fresh = ' class="fd-new"' if part.is_dynamic else ""
            yield (
                f"<details{fresh}{' open' if opened or loud else ''}><summary>{_row(part, around, turn=True)}"
                f'</summary><div class="fd-in">{"".join(_parts(part.parts, opened))}</div></details>'
            )
        else:
            yield _row(part, around)


def _group(part: Part, opened: bool, around: str | None) -> str:
    by = _by(part, around)
    tags = "".join(map(_tag, part.tags))
    if part.kind == "pipeline":
        inside = f'<div class="fd-col fd-all">{"".join(_parts(part.parts, opened, part.inserted_by))}</div>'
        what = "pipeline"
    else:
        columns = folded(part.parts, FOLDING)
        inside = "".join(
            f'<div class="fd-col{_wide(column)}">{_column(column, opened, part.inserted_by)}</div>'
            for column in columns
        )
        at_once = f", {part.limit} at a time" if part.limit else ""
        what = f"parallel, {plural(len(part.parts), 'branch')}{at_once}"
    return (
        f'<div class="fd-group"><div class="fd-cap">{_named(part.name) if part.name != part.kind else ""}'
        f'<span class="fd-note">{what}</span>{tags}{by}<span class="fd-time">{duration(part.elapsed)}</span></div>'
        f'<div class="fd-cols">{inside}</div></div>'
    )


def _wide(column: Part | Fold) -> str:
    inside = column.parts if isinstance(column, Part) else ()
    return " fd-wide" if any(part.kind in ("parallel", "pipeline") for part in inside) else ""


def _column(column: Part | Fold, opened: bool, around: str | None) -> str:
    if isinstance(column, Fold):
        return _fold(column)
    return "".join(_parts(column.parts, opened, around)) or _row(column)


def _row(part: Part, around: str | None = None, turn: bool = False) -> str:
    about = part.parts[0] if part.is_bare else part
    kind = state(about if about.recovered else part)
    fresh = " fd-new" if part.is_dynamic and not turn else ""
    return (
        f'<div class="fd-row fd-{part.kind} fd-{kind or "planned"}{fresh}">'
        f'<span class="fd-mark">{MARKS[kind].strip() or "•"}</span>'
        f'<span class="fd-what">{_named(part.name, " fd-turn" if turn else "")}'
        f"{''.join(map(_tag, sorted({*part.tags, *about.tags})))}{_by(part, around)}{_notes(part, about)}</span>"
        f'<span class="fd-time">{duration(part.elapsed) if part.elapsed else ""}</span></div>'
    )


def _by(part: Part, around: str | None) -> str:
    if part.inserted_by is None or part.inserted_by == around:
        return ""
    return f'<span class="fd-by">+ by {name(part.inserted_by)}</span>'


def _notes(part: Part, about: Part) -> str:
    notes: list[str] = []
    kind = "fd-note"
    if about.status is None and data_flow(about):
        notes.append(name(data_flow(about), 40))
    if part.unplanned:
        notes.append("not in the plan")
    if max(part.attempts, about.attempts) > 1:
        notes.append(f'<span class="fd-warn">{plural(max(part.attempts, about.attempts), "attempt")}</span>')
    error = text(about.error or part.error)
    if about.recovered or part.recovered:
        notes.append(f'<span class="fd-warn">recovered from {error}</span>')
    elif error and part.status is Status.FAILED:
        notes.append(f"<b>{error}</b>")
        kind = "fd-note fd-why"
    elif part.status not in (None, Status.COMPLETED, Status.FAILED):
        notes.append("not reached" if part.status is Status.PENDING else str(part.status))
    return f'<span class="{kind}">{", ".join(notes)}</span>' if notes else ""


def _tag(tag: str) -> str:
    return f'<span class="fd-tag">#{text(tag)}</span>'


def _fold(fold: Fold) -> str:
    first = fold.parts[0]
    fresh = " fd-fresh" if first.is_dynamic else ""
    said = "" if first.status in (None, Status.COMPLETED) else f", {state(first)}"
    rows = "".join(_row(part) for part in fold.parts[:MOST_BEHIND_A_FOLD])
    left = len(fold.parts) - MOST_BEHIND_A_FOLD
    if left > 0:
        rows += f'<div class="fd-rest">… and {left:,} that are not shown here: run.to_html(path) has them all</div>'
    return (
        f'<details class="fd-more{fresh}"><summary class="fd-turn">… {text(fold.label)}{said}</summary>{rows}</details>'
    )
