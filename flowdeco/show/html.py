"""Plans, runs and diffs as fragments of HTML for notebooks, with their style and without scripts.

Every name that a user chose is escaped by `text` or `name`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from itertools import islice
from typing import Any, Final

from flowdeco.engine.runs import Run, StageRecord, Status
from flowdeco.model.declare import StageTemplate
from flowdeco.model.definitions import Action, Stage
from flowdeco.model.steps import step_of
from flowdeco.model.store import Store
from flowdeco.show.formatting import (
    MARKS,
    branch_counts,
    data_flow,
    duration,
    plural,
    printable,
    rest_label,
    state,
    summary,
    unusual_status,
    was_cached,
)
from flowdeco.show.parts import Part, PlanContent, RanContent, count_stages, walk
from flowdeco.show.plan_parts import planned_action, planned_stage
from flowdeco.show.store_summary import summarize
from flowdeco.show.timeline import Scale
from flowdeco.show.tree import Collapsed, Node, collapsed, grown

__all__ = ["action", "asset", "diff", "filled", "name", "plan", "ran", "run", "stage", "store", "template", "text"]

MANY: Final = 30  # rows of one template are collapsed
MOST: Final = 100  # rows of other kinds
MOST_BEHIND: Final = 100  # rows behind a collapsed one
MOST_KEYS: Final = 100
MOST_BARS: Final = 100
OPENED: Final = 24  # the number of stages up to which all of them are open


def text(value: str, *, lines: bool = False) -> str:
    """Return text escaped for HTML; with `lines`, line breaks and tabs stay."""
    if lines:
        return "\n".join(escape(printable(line)) for line in value.replace("\t", "    ").split("\n"))
    return escape(printable(value))


_BREAKS: Final = re.compile(r"[^_\[\](){}<>/.,:;=\s-]{0,15}[_\[\](){}<>/.,:;=\s-]+|.{1,16}")


def name(value: str, short: int = 12) -> str:
    """Return a name escaped for HTML, with line breaks allowed after `_`, `.`, `/` and brackets, and not in a word."""
    shown = printable(value)
    pieces = _BREAKS.findall(shown) if len(shown) > short else [shown]
    return "<wbr>".join(map(escape, pieces))


def _named(value: str, css: str = "") -> str:
    title = f' title="{text(value)}"' if "<wbr>" in name(value) else ""
    return f'<span class="fd-name{css}"{title}>{name(value)}</span>'


@cache
def asset(name: str, package: str = "flowdeco.show") -> str:
    """Return the content of a file of a package: a style sheet, a script, a template."""
    from importlib.resources import files  # text and diagrams do not need it

    return files(package).joinpath(name).read_text(encoding="utf-8")


def filled(template: str, **content: str) -> str:
    """Fill a template in one pass: the content of a placeholder, such as `@@TITLE@@`, is never searched for others."""
    return re.sub(r"@@([A-Z_]+)@@", lambda found: content[found[1]], template)


def _card(*content: str) -> str:
    return f'<div class="flowdeco"><style>{asset("notebook.css")}</style><div class="fd-card">{"".join(content)}</div></div>'


def _head(title: str, pill: str, *meta: str) -> str:
    status = f'<span class="fd-pill fd-{pill}">{MARKS[pill]} {pill}</span>' if pill else ""
    rest = f'<span class="fd-soft">{" · ".join(filter(None, meta))}</span>'
    return f'<div class="fd-head"><span class="fd-title">{text(title)}</span>{status}{rest}</div>'


def plan(plan: PlanContent) -> str:
    """Return the plan as HTML."""
    stages = sum(part.kind == "stage" for part in walk(plan.parts))
    title = plan.name if plan.title in ("", plan.name) else f"{plan.title} ({plan.name})"
    described = f'<div class="fd-text">{text(plan.description)}</div>' if plan.description else ""
    return _card(_head(title, "", "plan", plural(stages, "stage")), described, _list(plan.parts))


def action(action: Action[..., Any]) -> str:
    """Return an action as HTML: its function, the keys that it reads and writes."""
    part = planned_action(action)
    function: Any = action.__wrapped__
    location = f"{getattr(function, '__module__', None) or ''}:{getattr(function, '__qualname__', '')}".strip(":")
    bound = ", ".join(step_of(action).bound)
    return _definition(
        part, ("function", location), ("bound", bound), ("flow", data_flow(part)), parts=(), meta=("action",)
    )


def template(template: StageTemplate[...]) -> str:
    """Return a stage template as HTML: its parameters; its stages are known once it is called."""
    function: Any = template.__wrapped__
    part = Part("stage", template.name, description=template.description, tags=tuple(sorted(template.tags)))
    location = f"{function.__module__}:{function.__qualname__}"
    called = f"{template.name}{_signature(function)}"
    return _definition(part, ("function", location), ("called as", called), parts=(), meta=("stage template",))


def _signature(function: Any) -> str:
    """Return the parameters of a function, without annotations."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([each.replace(annotation=each.empty) for each in parameters]))


def stage(stage: Stage) -> str:
    """Return a stage as HTML: its actions, with the keys that they read and write."""
    part = planned_stage(stage)
    data = ("data", ", ".join(part.data))
    return _definition(part, data, parts=part.parts, meta=("stage", plural(len(stage), "action")))


def _definition(part: Part, *facts: tuple[str, str], parts: Sequence[Part], meta: Sequence[str]) -> str:
    described = f'<div class="fd-text">{text(part.description)}</div>' if part.description else ""
    tags = "".join(_tag(tag) for tag in part.tags)
    listed = "".join(
        f'<div class="fd-text">{kind}: <span class="fd-name">{text(value)}</span></div>'
        for kind, value in (*facts, ("middleware", ", ".join(part.middleware)))
        if value
    )
    head = _head(part.name, "", *meta).removesuffix("</div>")
    return _card(f"{head}{tags}</div>", described, listed, _list(parts))


def ran(ran: RanContent) -> str:
    """Return the view of a run as HTML."""
    return _card(_ran_head(ran), _error(ran), _forgotten(ran), _list(ran.parts))


def diff(plan: PlanContent, ran: RanContent, parts: Sequence[Part], counts: Mapping[str, int]) -> str:
    """Return a diff as HTML: the run, with unreached parts of the plan in their places, and the number of changes."""
    head = _head(plan.name, str(ran.status), "plan and run", text(ran.run_id), text(summary(counts)))
    return _card(head, _error(ran), _forgotten(ran), _list(parts))


def run(run: Run, ran: RanContent, parts: Sequence[Part]) -> str:
    """Return a run as HTML: its status, its error with the notes, its stages, reached or not, the keys of its store."""
    keys = _foot(f"store: {plural(len(run.store), 'key')}", _keys(run.store))
    return _card(_ran_head(ran), _error(ran), _forgotten(ran), _list(parts), _timeline(run), keys)


def _timeline(run: Run) -> str:
    """Return a bar for each stage that took time, the longest of very many."""
    timed = [record for record in run.stages if record.elapsed > 0 and record.status is not Status.SKIPPED]
    if len(timed) < 2:
        return ""  # there is nothing to compare
    scale = Scale((record.started, record.started + record.elapsed) for record in timed)
    least = sorted((record.elapsed for record in timed), reverse=True)[:MOST_BARS][-1]
    longest = [record for record in timed if record.elapsed >= least][:MOST_BARS]
    count = plural(len(timed), "stage")
    which = f"the longest {MOST_BARS} of {count}" if len(timed) > MOST_BARS else count
    bars = "".join(_bar(each, scale) for each in longest)
    return _foot(f"timeline: {which}, {duration(run.elapsed)}", f'<div class="fd-times">{bars}</div>')


def _foot(label: str, content: str) -> str:
    """Return content that is closed at first."""
    head = f'<summary class="fd-row fd-soft"><span class="fd-turn">{label}</span></summary>'
    return f'<details class="fd-foot">{head}{content}</details>'


def _bar(record: StageRecord, scale: Scale) -> str:
    left, width = scale.place(record.started, record.elapsed)
    status = "recovered" if record.recovered else str(record.status)
    label = f"{text(record.name)}: {status}, {duration(record.elapsed)}"
    return (
        f'{_named(record.name)}<span class="fd-track" role="img" aria-label="{label}" title="{label}">'
        f'<span class="fd-bar fd-{status}" style="left:{left:.3%};width:{width:.3%}"></span></span>'
        f'<span class="fd-soft">{duration(record.elapsed)}</span>'
    )


def _ran_head(ran: RanContent) -> str:
    stages, inserted = count_stages(ran.parts)
    return _head(
        ran.name,
        str(ran.status),
        f"run {text(ran.run_id)}",
        plural(stages, "stage"),
        f"{inserted:,} inserted" if inserted else "",
        duration(ran.elapsed),
    )


def _error(ran: RanContent) -> str:
    if ran.error:
        notes = f'<pre class="fd-soft">{text(chr(10).join(ran.notes), lines=True)}</pre>' if ran.notes else ""
        return f'<div class="fd-error"><pre>{text(ran.error, lines=True)}</pre>{notes}</div>'
    return f'<div class="fd-text fd-warn">{text(ran.reason)}</div>' if ran.reason else ""


def _forgotten(ran: RanContent) -> str:
    if not ran.forgotten:
        return ""
    return f'<div class="fd-text">{plural(ran.forgotten, "stage")} before these were dropped (history=)</div>'


def store(store: Store) -> str:
    """Return a store as HTML: its keys with the types and sizes of their values, and no value."""
    return _card(_head("store", "", plural(len(store), "key")), _keys(store))


def _keys(store: Store) -> str:
    keys = "".join(
        f'{_named(one.key)}<span class="fd-soft">{text(one.type)}{", " if one.size else ""}{one.size}</span>'
        for one in islice(summarize(store), MOST_KEYS)
    )
    more = f"<span>… {len(store) - MOST_KEYS:,} more</span>" if len(store) > MOST_KEYS else ""
    return f'<div class="fd-keys">{keys}{more}</div>'


# The list of parts.


def _list(parts: Sequence[Part]) -> str:
    few = sum(1 for _ in islice((part for part in walk(parts) if part.kind == "stage"), OPENED + 1)) <= OPENED
    return f'<div class="fd-list">{"".join(_nodes(grown(parts), few))}</div>'


def _nodes(nodes: Sequence[Node], opened: bool) -> Iterator[str]:
    for node in collapsed(nodes, MANY, MOST):
        if isinstance(node, Collapsed):
            yield _rest(node)
            continue
        part = node.part
        if part.kind in ("parallel", "pipeline"):
            yield _group(node, opened)
        elif part.kind == "stage" and part.parts and not part.is_bare and part.status is not Status.PENDING:
            notable = any(inner.status not in (None, Status.COMPLETED) or inner.attempts > 1 for inner in part.parts)
            css = ' class="fd-new"' if part.is_dynamic else ""
            yield (
                f"<details{css}{' open' if opened or notable else ''}><summary>{_row(node, turn=True)}"
                f'</summary><div class="fd-in">{"".join(_nodes(grown(part.parts), opened))}</div></details>'
            )
        else:
            yield _row(node)
        if node.inserted:
            yield f'<div class="fd-tree">{"".join(_nodes(node.inserted, opened))}</div>'


def _group(node: Node, opened: bool) -> str:
    part = node.part
    inside = grown(part.parts, part.inserted_by)
    tags = "".join(map(_tag, part.tags))
    if part.kind == "pipeline":
        columns = f'<div class="fd-col fd-all">{"".join(_nodes(inside, opened))}</div>'
        kind, notes = "pipeline", _notes(part, part) if part.recovered or part.attempts > 1 else ""
    else:
        columns = ""
        for column in collapsed(inside, MANY, MOST):  # a frame less for each level of nested groups than an expression
            columns += f'<div class="fd-col{_wide(column)}">{_column(column, opened, part.inserted_by)}</div>'
        kind, notes = f"parallel, {text(branch_counts(part))}", ""
    css = " fd-new" if part.is_dynamic else ""
    return (
        f'<div class="fd-group{css}"><div class="fd-cap">{_named(part.name) if part.name != part.kind else ""}'
        f'<span class="fd-note">{kind}</span>{tags}{_by(node)}{notes}'
        f'<span class="fd-time">{duration(part.elapsed)}</span></div>'
        f'<div class="fd-cols">{columns}</div></div>'
    )


def _wide(column: Node | Collapsed) -> str:
    parts = () if isinstance(column, Collapsed) else column.part.parts
    return " fd-wide" if any(part.kind in ("parallel", "pipeline") for part in parts) else ""


def _column(column: Node | Collapsed, opened: bool, above: str | None) -> str:
    if isinstance(column, Collapsed):
        return _rest(column)
    return "".join(_nodes(grown(column.part.parts, above), opened)) or _row(column)


def _row(node: Node, turn: bool = False) -> str:
    part = node.part
    action = part.parts[0] if part.is_bare else part
    status = state(action if action.recovered else part)
    css = " fd-new" if part.is_dynamic and not turn else ""
    tags = "".join(map(_tag, sorted({*part.tags, *action.tags})))
    return (
        f'<div class="fd-row fd-{part.kind} fd-{status or "planned"}{css}">'
        f'<span class="fd-mark">{MARKS[status].strip() or "•"}</span>'
        f'<span class="fd-what">{_named(part.label, " fd-turn" if turn else "")}'
        f"{tags}{_by(node)}{_notes(part, action)}</span>"
        f'<span class="fd-time">{duration(part.elapsed) if part.elapsed else ""}</span></div>'
    )


def _by(node: Node) -> str:
    return "" if node.via is None else f'<span class="fd-by">+ by {name(node.via)}</span>'


def _notes(part: Part, action: Part) -> str:
    notes: list[str] = []
    css = "fd-note"
    if action.status is None and data_flow(action):
        notes.append(name(data_flow(action), 40))
    if part.restored:
        notes.append("restored")
    if part.unplanned:
        notes.append("not in the plan")
    attempts = max(part.attempts, action.attempts)
    if attempts > 1:
        notes.append(f'<span class="fd-warn">{plural(attempts, "attempt")}</span>')
    error = text(action.error or part.error)
    if action.recovered or part.recovered:
        notes.append(f'<span class="fd-warn">recovered{f" from {error}" if error else ""}</span>')
    elif error and part.status is Status.FAILED:
        notes.append(f"<b>{error}</b>")
        css = "fd-note fd-why"
    elif unusual_status(part):
        notes.append(unusual_status(part))
    elif was_cached(part):
        notes.append("cached")
    return f'<span class="{css}">{", ".join(notes)}</span>' if notes else ""


def _tag(tag: str) -> str:
    return f'<span class="fd-tag">#{text(tag)}</span>'


def _rest(rest: Collapsed) -> str:
    css = " fd-fresh" if rest.parts[0].is_dynamic else ""
    rows = "".join(_row(node) for node in rest.nodes[:MOST_BEHIND])
    hidden = len(rest.nodes) - MOST_BEHIND
    if hidden > 0:
        rows += f'<div class="fd-rest">… and {hidden:,} more: run.to_html(path) has them all</div>'
    return f'<details class="fd-more{css}"><summary class="fd-turn">{text(rest_label(rest))}</summary>{rows}</details>'
