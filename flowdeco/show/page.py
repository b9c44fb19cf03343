"""The page of a run: one HTML file with everything in it, which loads nothing and runs no script but its own.

What stands in the page twice (for readers, and as data for its script) is escaped for each place: text of HTML by
`html.text`, data as JSON in which nothing can end the script element. A content security policy forbids the rest.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final

from flowdeco.engine.runs import Run, Status
from flowdeco.errors import members_of
from flowdeco.show.failures import Failure, failure_of
from flowdeco.show.formatting import MARKS, duration, plural, printable, state
from flowdeco.show.html import name, text
from flowdeco.show.parts import Fold, Folding, Part, folded, walk
from flowdeco.show.plan import Change, Diff
from flowdeco.show.redaction import Redact, known_of, redactor
from flowdeco.show.store_summary import summarize

__all__ = ["page"]

FOLDING: Final = Folding(dynamic=(30, 5), branches=(40, 10), others=(600, 100), most=10**9)
MOST_TAGS: Final = 10
MOST_CHANGES: Final = 100
MOST_KEYS: Final = 500
MOST_NAMES: Final = 20
MOST_CULPRITS: Final = 10
SHORT_KEY: Final = 28


def page(run: Run, diff: Diff, *, values: bool = False) -> str:
    """Return the page; what is in the store stands in it by type and size, with `values` by value."""
    failures = {id(error): failure_of(error) for error in _errors(run)}
    redact = _as_it_is if values else _redact_of(run, diff, failures.values())
    table = _Table(run, redact, {number: failure.redacted(redact) for number, failure in failures.items()})
    table.add(diff.parts, -1, 0)
    return _filled(
        _asset("page.html"),
        {
            "TITLE": text(run.pipeline.title),
            "STATUS": str(run.status),
            "MARK": MARKS[run.status],
            "ABOUT": f'<p class="about">{text(run.pipeline.description)}</p>' if run.pipeline.description else "",
            "FACTS": "".join(_facts(run, diff)),
            "ALARM": _alarm(run, redact),
            "LANES": f"{table.lanes} side by side" if table.lanes > 1 else "",
            "LEGEND": "".join(table.legend()),
            "DIFF": _differences(diff, redact),
            "STORE": _store(run, values),
            "TEXT": text(redact(diff.ran.text()), lines=True),
            "FOOT": _foot(),
            "DATA": json_in_html(table.data()),
            "STYLE": _asset("page.css"),
            "STYLE_HASH": _hash(_asset("page.css")),
            "SCRIPT": _asset("page.js"),
            "SCRIPT_HASH": _hash(_asset("page.js")),
        },
    )


@cache
def _asset(name: str) -> str:
    from importlib.resources import files

    return files("flowdeco.show").joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return b64encode(sha256(source.encode()).digest()).decode()


def _filled(template: str, pieces: dict[str, str]) -> str:
    """Fill the template in one pass: what comes in by one piece is never taken for a place of another."""
    return re.sub(r"@@([A-Z_]+)@@", lambda found: pieces[found[1]], template)


_UNSAFE: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def json_in_html(data: Any) -> str:
    """Return data as JSON that can stand in a script element: no `</script>`, no `<!--`; ASCII only."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=True).translate(_UNSAFE)


def _redact_of(run: Run, diff: Diff, failures: Iterable[Failure]) -> Redact:
    known = known_of(run, _errors(run))
    names = {word for _, part in walk(diff.parts) for word in (part.name, *part.tags)}
    texts = (text for failure in failures for text in failure.texts())
    return redactor(known.values, {run.pipeline.name, *run.store, *names, *known.public}, (str(run.reason), *texts))


def _as_it_is(words: str) -> str:
    return words


def _errors(run: Run) -> Iterator[BaseException]:
    if run.error is not None:
        yield run.error
    for record in run.stages:
        errors = (record.error, *(action.error for action in record.actions))
        yield from (error for error in errors if error is not None)


# The head of the page.


def _facts(run: Run, diff: Diff) -> Iterator[str]:
    stages = [part for _, part in walk(diff.ran.parts) if part.kind == "stage" and part.status is not Status.PENDING]
    inserted = sum(part.is_dynamic for part in stages)
    some = f" <small>{inserted:,} inserted</small>" if inserted else ""
    yield _fact("Stages", f"{len(stages):,}{some}")
    yield _fact("Took", duration(run.elapsed))
    if run.started:
        yield _fact("Started", _moment(run.started))
    yield _fact("Run", f'<span class="mono">{text(run.id)}</span>')
    if run.forgotten:
        yield _fact("Forgotten", f"{run.forgotten:,} <small>earlier stages, as history= says</small>")


def _fact(what: str, value: str) -> str:
    return f"<div><dt>{what}</dt><dd>{value}</dd></div>"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z").strip()


def _foot() -> str:
    import flowdeco  # its version stands in the front door, which is open by now

    return f"Made by flowdeco {text(flowdeco.__version__)}. The page is complete in itself: it loads nothing."


def _alarm(run: Run, redact: Redact) -> str:
    if run.error is not None:
        words = text(redact(f"{type(run.error).__name__}"))
        return (
            f'<section class="alarm" id="alarm" aria-labelledby="h-alarm"><h2 id="h-alarm">The run {run.status}</h2>'
            f"<noscript><p>{words}</p></noscript></section>"
        )
    return f'<p class="reason">{text(redact(str(run.reason)))}</p>' if run.reason else ""


# The differences between plan and run, and the store.


def _differences(diff: Diff, redact: Redact) -> str:
    kinds: dict[str, list[Change]] = {}
    for change in diff.changes:
        kinds.setdefault(change.what, []).append(change)
    title = '<h2 id="h-diff">Plan and run<small>what was not as planned</small></h2>'
    head = f'<section id="diff" aria-labelledby="h-diff">{title}'
    if not kinds:
        return f'{head}<p class="changes">Everything ran as planned.</p></section>'
    counts = "".join(f"<span><b>{len(changes):,}</b> {what}</span>" for what, changes in kinds.items())
    lists = "".join(_changes_of(what, changes, redact) for what, changes in kinds.items())
    return f'{head}<div class="counts">{counts}</div><div class="changes">{lists}</div></section>'


def _changes_of(what: str, changes: list[Change], redact: Redact) -> str:
    items: list[str] = []
    for change in changes[:MOST_CHANGES]:
        by = f'<span class="by">by {text(change.by)}</span>' if change.by else ""
        why = f'<span class="note">{text(redact(change.why))}</span>' if change.why else ""
        items.append(f'<li><span class="mono">{text(change.where)}</span>{by}{why}</li>')
    if len(changes) > MOST_CHANGES:
        items.append(f"<li>… {len(changes) - MOST_CHANGES:,} more: filter the stages above</li>")
    opened = " open" if len(changes) <= 5 else ""
    return (
        f"<details{opened}><summary>{what[:1].upper()}{what[1:]} <small>{len(changes):,}</small></summary>"
        f"<ul>{''.join(items)}</ul></details>"
    )


def _store(run: Run, values: bool) -> str:
    hint = "" if values else "<small>types and sizes; values on request</small>"
    head = f'<section id="store" aria-labelledby="h-store"><h2 id="h-store">Store{hint}</h2><div class="wide">'
    if not len(run.store):
        return f"{head}<p>It is empty.</p></div></section>"
    rows: list[str] = []
    for one in summarize(run.store, values=values):
        if len(rows) == MOST_KEYS:
            rows.append(f"<tr><td>… {len(run.store) - MOST_KEYS:,} more</td></tr>")
            break
        value = f"<td><pre>{text(one.value, lines=True)}</pre></td>" if one.value is not None else ""
        rows.append(f'<tr>{_cell(one.key)}{_cell(one.type)}<td class="whole">{one.size}</td>{value}</tr>')
    column = '<th scope="col">Value</th>' if values else ""
    return (
        f'{head}<table><thead><tr><th scope="col">Key</th><th scope="col">Type</th><th scope="col">Size</th>{column}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _cell(word: str) -> str:
    """Return a name that stays in one line, or breaks where names do."""
    return f'<td class="whole">{text(word)}</td>' if len(word) <= SHORT_KEY else f"<td>{name(word)}</td>"


# The data of the stages.


class _Table:
    """The rows of the page, and what they refer to."""

    def __init__(self, run: Run, redact: Redact, failures: dict[int, Failure]) -> None:
        self.run = run
        self.redact = redact
        self.rows: list[dict[str, Any]] = []
        self.failures = list(failures.values())
        self._failed = {number: index for index, number in enumerate(failures)}  # by the id of the exception
        self._folds = 0
        self.scale = Scale(_spans(run))
        self.lanes = 1
        self._lanes: dict[int, int] = {}  # by the place of a stage's record

    def add(self, parts: Sequence[Part], parent: int, depth: int, fold: int | None = None) -> None:
        """Add the rows of these parts, those that are folded as well."""
        if parent == -1:
            self.lanes = max(1, self._lay(parts, 0))
        for part in folded(parts, FOLDING):
            if isinstance(part, Fold):
                self._folds += 1
                first = part.parts[0]
                said = "" if first.status in (None, Status.COMPLETED) else f", {state(first)}"
                self._row(k="fold", n=f"… {printable(part.label)}{said}", s="", d=depth, p=parent, f=self._folds)
                if first.is_dynamic:
                    self.rows[-1]["fresh"] = 1
                for one in part.parts:
                    self._add_one(one, parent, depth, self._folds)
            else:
                self._add_one(part, parent, depth, fold)

    def _row(self, **row: Any) -> None:
        self.rows.append(
            {key: value for key, value in row.items() if value not in (None, "", (), [])} | {"s": row["s"]}
        )

    def _add_one(self, part: Part, parent: int, depth: int, fold: int | None) -> None:
        if part.kind == "branch" and len(part.parts) == 1:  # needs no row of its own
            return self._add_one(part.parts[0], parent, depth, fold)
        row = self._common(part)
        row.update(k=part.kind, d=depth, p=parent, h=fold)
        around = parent
        if around >= 0 and self.rows[around]["k"] == "branch":
            around = self.rows[around]["p"]
        said = row["by"] is not None and around >= 0 and self.rows[around].get("by") == row["by"]
        row["same"] = 1 if said else None
        if part.kind == "stage":
            row.update(self._stage(part))
        else:
            row["kind"] = self._kind(part)
            if part.kind == "branch":
                row["n"] = f"branch {part.record}"
                row["kind"] = printable(part.name)
        self._row(**row)
        if part.kind != "stage":
            self.add(part.parts, len(self.rows) - 1, depth + 1)
        return None

    def _kind(self, part: Part) -> str:
        if part.kind == "parallel":
            at_once = f", {part.limit} at a time" if part.limit else ""
            kind = "" if part.name == part.kind else "parallel, "
            return f"{kind}{plural(len(part.parts), 'branch')}{at_once}"
        if part.name == part.kind:
            return ""
        return part.kind

    def _common(self, part: Part) -> dict[str, Any]:
        row: dict[str, Any] = {
            "n": printable(part.name),
            "s": state(part),
            "tags": [printable(tag) for tag in part.tags],
            "by": None if part.inserted_by is None else printable(part.inserted_by),
            "a": part.attempts if part.attempts > 1 else None,
            "note": self._note(part),
        }
        if part.started is not None and (part.status is not Status.SKIPPED or part.elapsed):
            row["t"] = duration(part.elapsed)
            row["x"], row["w"] = self.scale.place(part.started, part.elapsed or 0.0)
        return row

    def _note(self, part: Part) -> str:
        if part.error and (part.recovered or part.status is Status.FAILED):
            said = self.redact(printable(part.error))
            return f"recovered from {said}" if part.recovered else said
        if part.unplanned:
            return "not in the plan"
        if part.status in (Status.COMPLETED, Status.FAILED, None):
            return ""
        return "not reached" if part.status is Status.PENDING else str(part.status)

    def _stage(self, part: Part) -> dict[str, Any]:
        acts = [self._action(part, action) for action in part.parts]
        row: dict[str, Any] = {
            "ti": printable(part.title),
            "de": printable(part.description),
            "use": printable(", ".join(part.middleware)),
            "data": printable(", ".join(part.data)),
        }
        inside = next((inner for inner in part.parts if inner.recovered or inner.attempts > 1), None)
        if inside is not None and not part.is_bare:
            row["again"] = f"{printable(inside.name)}: " + (
                plural(inside.attempts, "attempt") if inside.attempts > 1 else self._note(inside)
            )
        if part.is_bare:
            action = part.parts[0]
            row["tags"] = [printable(tag) for tag in sorted({*part.tags, *action.tags})]
            row["a"] = max(part.attempts, action.attempts) if max(part.attempts, action.attempts) > 1 else None
            if action.recovered and not part.recovered:
                row["s"], row["note"] = "recovered", self._note(action)
            row["reads"] = printable(", ".join(action.reads))
        if part.record is not None:
            record = self.run.stages[part.record]
            row["fail"] = self._failure(record.error)
            row["at"] = _clock(record.started, self.scale.zero)
            row["ins"] = _names([*(unit for one in record.actions for unit in one.inserted), *record.inserted])
            row["lane"] = self._lanes.get(part.record) or None
        dull = part.is_bare and all(act.get("fail") in (None, row.get("fail")) for act in acts)
        row["acts"] = None if dull else acts
        return row

    def _action(self, stage: Part, part: Part) -> dict[str, Any]:
        row = self._common(part)
        if part.record is not None and stage.record is not None:
            row["fail"] = self._failure(self.run.stages[stage.record].actions[part.record].error)
        return {key: value for key, value in row.items() if value not in (None, "", [])} | {"s": row["s"]}

    def _failure(self, error: BaseException | None) -> int | None:
        return None if error is None else self._failed.get(id(error))

    def _lay(self, parts: Sequence[Part], lane: int) -> int:
        """Give stages their lanes, and return how many they need: branches that overlap in time, one for each."""
        high = 1
        for part in parts:
            if part.kind == "parallel":
                high = max(high, self._lay_branches(part.parts, lane))
            elif part.kind == "stage":
                if part.record is not None:
                    self._lanes[part.record] = lane
            else:
                high = max(high, self._lay(part.parts, lane))
        return high

    def _lay_branches(self, branches: Sequence[Part], lane: int) -> int:
        free: list[float] = []  # for each lane, until when it is taken
        for branch in sorted((b for b in branches if b.started is not None), key=lambda b: b.started or 0.0):
            began = branch.started or 0.0
            ends = began + (branch.elapsed or 0.0)
            at = next((number for number, until in enumerate(free) if until <= began), len(free))
            high = self._lay(branch.parts, lane + at)
            while high > 1 and any(until > began for until in free[at : at + high]):
                at += 1
                self._lay(branch.parts, lane + at)
            free.extend([0.0] * (at + high - len(free)))
            free[at : at + high] = [ends] * high
        return max(1, len(free))

    def legend(self) -> Iterator[str]:
        """Yield what the colours of the timeline mean, as far as they are there."""
        bars = [row for row in self.rows if row["k"] == "stage" and "x" in row and row["s"] != "skipped"]
        colours = set(map(_colour, bars))
        cancelled = any(row["s"] == "cancelled" for row in bars)
        failed = any(row["s"] == "failed" for row in bars)
        bad = "failed or cancelled" if failed and cancelled else "cancelled" if cancelled else "failed"
        kinds = {"": "in the plan", "l-new": "inserted", "l-warn": "retried or recovered", "l-bad": bad}
        for colour, what in kinds.items():
            if colour in colours:
                yield f'<span><i class="{colour}"></i>{what}</span>'

    def _tags(self, row: dict[str, Any]) -> set[str]:
        """Return the tags of a stage, of its actions, and of what it is in."""
        found = {tag for one in (row, *row.get("acts", ())) for tag in one.get("tags", ())}
        around: int = row["p"]
        while around >= 0:
            found.update(self.rows[around].get("tags", ()))
            around = self.rows[around]["p"]
        return found

    def _counts(self, stages: Sequence[dict[str, Any]]) -> Iterator[str]:
        idle = sum(row["s"] in ("pending", "skipped") for row in stages)
        yield f"{len(stages) - idle:,} in the order in which they ran"
        if idle:
            yield f"{idle:,} did not run"

    def data(self) -> dict[str, Any]:
        """Return what the script of the page shows."""
        stages = [row for row in self.rows if row["k"] == "stage"]
        states: dict[str, int] = {}
        tags: dict[str, int] = {}
        for row in stages:
            fresh, again = ["inserted"] if "by" in row else [], ["retried"] if "a" in row or "again" in row else []
            for what in (row["s"], *fresh, *again):
                states[what] = states.get(what, 0) + 1
            for tag in self._tags(row):
                tags[tag] = tags.get(tag, 0) + 1
        failed = self._failure(self.run.error)
        fatal = {self._failure(error) for error in members_of(self.run.error)} - {None}
        culprits = [index for index, row in enumerate(self.rows) if row["k"] == "stage" and row["s"] == "failed"]
        theirs = [index for index in culprits if self.rows[index].get("fail") in fatal] or culprits[-1:]
        return {
            "rows": self.rows,
            "stages": len(stages),
            "said": ", ".join(self._counts(stages)),
            "states": sorted(states.items(), key=lambda one: -one[1]) if len(states) > 1 else [],
            "tags": sorted(tags.items(), key=lambda one: (-one[1], one[0]))[:MOST_TAGS],
            "failures": [_told(failure) for failure in self.failures],
            **({"fail": failed} if failed is not None else {}),
            "culprits": theirs[:MOST_CULPRITS],
            "more": max(0, len(theirs) - MOST_CULPRITS),
            "lanes": self.lanes,
            "ticks": self.scale.ticks(),
            "marks": MARKS,
        }


def _colour(row: dict[str, Any]) -> str:
    """Return how the bar of a stage is painted, as the script does it."""
    if row["s"] in ("failed", "cancelled"):
        return "l-bad"
    if "a" in row or "again" in row or row["s"] == "recovered":
        return "l-warn"
    return "l-new" if "by" in row else ""


def _told(failure: Failure) -> dict[str, Any]:
    return {
        **failure._asdict(),
        "cause": None if failure.cause is None else _told(failure.cause),
        "parts": [_told(part) for part in failure.parts],
    }


def _names(units: Iterable[Any]) -> str:
    names = [printable(unit.name) for unit in units]
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _clock(started: float, zero: float) -> str:
    since = duration(max(0.0, started - zero))
    return f"{datetime.fromtimestamp(started):%H:%M:%S}, {since} after the first"


# From moments to places on the page.


def _spans(run: Run) -> list[tuple[float, float]]:
    return [(record.started, record.started + record.elapsed) for record in run.stages]


class Scale:
    """Where moments stand between 0 and 1; long times in which nothing ran, as before a resume, are cut short."""

    CUT: Final = 0.04  # the width of such a gap

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        busy: list[list[float]] = []
        for start, end in sorted(spans):
            if busy and start <= busy[-1][1]:
                busy[-1][1] = max(busy[-1][1], end)
            else:
                busy.append([start, end])
        worked = sum(end - start for start, end in busy)
        blocks: list[list[float]] = []
        for start, end in busy:
            if blocks and start - blocks[-1][1] <= max(worked, 1.0):
                blocks[-1][1] = end
            else:
                blocks.append([start, end])
        del blocks[20:-1]
        self.blocks = blocks
        self.zero = blocks[0][0] if blocks else 0.0
        self.total = sum(end - start for start, end in blocks) or 1e-9
        self.cut = self.CUT if len(blocks) > 1 else 0.0
        self.unit = (1.0 - self.cut * (len(blocks) - 1)) / self.total

    def at(self, moment: float) -> float:
        """Return the place of a moment."""
        place = 0.0
        for number, (start, end) in enumerate(self.blocks):
            if number and moment < start:
                return place - self.cut / 2
            if moment <= end:
                return place + (moment - start) * self.unit
            place += (end - start) * self.unit + self.cut
        return min(1.0, place)

    def place(self, started: float, elapsed: float) -> tuple[float, float]:
        """Return where a bar begins, and how long it is."""
        left = min(1.0, max(0.0, self.at(started)))
        return round(left, 5), round(max(0.0, min(1.0, self.at(started + elapsed)) - left), 5)

    def ticks(self) -> list[tuple[float, str, int]]:
        """Return lines with their labels; where time was cut, with 1 and how long that was."""
        if not self.blocks:
            return []
        step = _round_step(self.total / 6)
        found: list[tuple[float, str, int]] = [(0.0, "0", 0)]
        if len(self.blocks) == 1:
            found += [
                (round(number * step * self.unit, 5), duration(number * step), 0)
                for number in range(1, int(self.total / step) + 1)
            ]
        for before, after in pairwise(self.blocks):
            found.append((round(self.at(after[0]), 5), f"{duration(after[0] - before[1])} later", 1))
        return found


def _round_step(least: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50 …; above a minute of 1, 2, 5, 10, 15, 30 minutes, 1, 2, 6, 12, 24 hours."""
    if least > 50:
        minutes = (1, 2, 5, 10, 15, 30, 60, 120, 360, 720)
        return next((60.0 * one for one in minutes if 60 * one >= least), 86400.0 * max(1, round(least / 86400)))
    power = 1e-7
    while power * 10 <= least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
