"""The data of a page for its script: a row for each part, failures, and counts for the filters.

The script (`page.js`) knows the short names of the columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from flowdeco.engine.runs import ActionRecord, Run, StageRecord, Status
from flowdeco.errors import members_of
from flowdeco.show.failures import Failure
from flowdeco.show.formatting import (
    MARKS,
    branch_counts,
    duration,
    plural,
    printable,
    rest_label,
    state,
    unusual_status,
    was_cached,
)
from flowdeco.show.messages import PageMessages
from flowdeco.show.parts import Part
from flowdeco.show.redaction import Redact
from flowdeco.show.timeline import Lanes, Scale
from flowdeco.show.tree import Collapsed, Node, collapsed, grown

__all__ = ["PageData"]

MANY: Final = 30  # rows of one template are collapsed
ZOOMS: Final = (6, 24, 96)  # so many lines of the timeline, as it is enlarged
BAD: Final = ("failed", "cancelled", "crashed")
MOST_TAGS: Final = 10
MOST_NAMES: Final = 20
MOST_CULPRITS: Final = 10

Row = dict[str, Any]


class PageData:
    """The rows of a page with their timeline; `failures` are redacted, and given by the id of their exception."""

    def __init__(self, run: Run, parts: Sequence[Part], redact: Redact, failures: Mapping[int, Failure]) -> None:
        self._run = run
        self._redact = redact
        self._failures = list(failures.values())
        self._failure_indexes = {exception: index for index, exception in enumerate(failures)}
        self._messages = PageMessages(redact)
        self._scale = Scale((record.started, record.started + record.elapsed) for record in run.stages)
        self._lanes = Lanes(parts)
        self._rows: list[Row] = []
        self._folds = 0
        begun = sorted((record.started, index) for index, record in enumerate(run.stages))
        self._turns = {index: turn for turn, (_, index) in enumerate(begun)}
        self._add(grown(parts), -1, 0, None)

    @property
    def lanes(self) -> int:
        """How many lanes the timeline has."""
        return self._lanes.count

    def legend(self) -> Iterator[str]:
        """Yield the meanings of the colours that the timeline has."""
        bars = [row for row in self._rows if row["k"] == "stage" and "x" in row and row["s"] != "skipped"]
        colours = set(map(_colour, bars))
        bad = [status for status in BAD if any(row["s"] == status for row in bars)]
        meanings = {
            "": "in the plan", "l-new": "inserted", "l-warn": "retried or recovered", "l-bad": " or ".join(bad),
        }  # fmt: skip
        for colour, meaning in meanings.items():
            if colour in colours:
                yield f'<span><i class="{colour}"></i>{meaning}</span>'
        if any("re" in row for row in bars):
            yield '<span><i class="l-old"></i>restored</span>'

    def as_json(self) -> dict[str, Any]:
        """Return everything that the script of the page shows."""
        stages = [row for row in self._rows if row["k"] == "stage"]
        states = Counter(each for row in stages for each in _filters(row))
        tags = Counter(tag for row in stages for tag in self._tags(row))
        failure = self._failure(self._run.error)
        culprits, is_running = self._culprits(), self._run.status is Status.RUNNING
        return {
            "rows": self._rows,
            "stages": len(stages),
            "said": ", ".join(_counts(stages, is_running=is_running)),
            "unreached": "pending" if is_running else "not reached",
            "states": sorted(states.items(), key=lambda one: -one[1]) if len(states) > 1 else [],
            "tags": sorted(tags.items(), key=lambda one: (-one[1], one[0]))[:MOST_TAGS],
            "failures": [_failure_as_json(failure) for failure in self._failures],
            **({"fail": failure} if failure is not None else {}),
            "culprits": culprits[:MOST_CULPRITS],
            "more": max(0, len(culprits) - MOST_CULPRITS),
            "lanes": self.lanes,
            "turns": len(self._turns),
            "ticks": [self._scale.ticks(count) for count in ZOOMS],
            "marks": MARKS,
        }

    # Rows.

    def _add(self, nodes: Sequence[Node], parent: int, depth: int, above: str | None) -> None:
        """Add the rows of these nodes; those that are collapsed come after the row that stands for them.

        `above` is who inserted the pipeline or group that they are in.
        """
        for node in collapsed(nodes, MANY):
            if not isinstance(node, Collapsed):
                self._add_node(node, parent, depth, None, above)
                continue
            self._folds += 1
            fold = self._folds
            row: Row = {"k": "fold", "n": rest_label(node), "s": "", "d": depth, "p": parent, "f": fold}
            self._add_row({**row, "fresh": 1 if node.parts[0].is_dynamic else None})
            for one in node.nodes:
                self._add_node(one, parent, depth, fold, above)

    def _add_row(self, row: Row) -> None:
        self._rows.append(_without_empty(row))

    def _add_node(self, node: Node, parent: int, depth: int, fold: int | None, above: str | None) -> None:
        part = node.part
        by = above if part.kind == "branch" else part.inserted_by
        inside = grown(part.parts, by) if part.kind != "stage" else []
        if part.kind == "branch" and len(inside) == 1:  # needs no row of its own
            self._add_node(inside[0], parent, depth, fold, above)
            return
        row = self._common(part)
        row.update(k=part.kind, d=depth, p=parent, h=fold, via=node.via and printable(node.via))
        if part.kind == "stage":
            row.update(self._stage(part))
        elif part.kind == "branch":
            row.update(n=f"branch {part.record}", kind=printable(part.name))
        else:
            row["kind"] = _kind(part)
        self._add_row(row)
        index = len(self._rows) - 1
        self._add(inside or node.inserted, index, depth + 1, by)
        if node.inserted:
            self._rows[index]["kids"] = sum(row["k"] == "stage" for row in self._rows[index + 1 :])

    def _common(self, part: Part) -> Row:
        row: Row = {
            "n": printable(part.name) if part.label == part.name else self._redact(printable(part.label)),
            "s": state(part),
            "tags": [printable(tag) for tag in part.tags],
            "by": None if part.inserted_by is None else printable(part.inserted_by),
            "a": part.attempts if part.attempts > 1 else None,
            "note": self._note(part),
            "re": 1 if part.restored else None,
        }
        if part.started is not None and (part.status is not Status.SKIPPED or part.elapsed):
            row["t"] = duration(part.elapsed)
            row["x"], row["w"] = self._scale.place(part.started, part.elapsed or 0.0)
        return row

    def _note(self, part: Part) -> str:
        if part.error and (part.recovered or part.status is Status.FAILED):
            error = self._redact(printable(part.error))
            return f"recovered from {error}" if part.recovered else error
        if part.unplanned:
            return "not in the plan"
        if part.status is Status.RUNNING:  # the end of a stage is written with the step after it
            return "running here or later"
        return unusual_status(part) or ("cached" if was_cached(part) else "")

    def _stage(self, part: Part) -> Row:
        row: Row = {
            "ti": printable(part.title),
            "de": printable(part.description),
            "use": printable(", ".join(part.middleware)),
            "data": printable(", ".join(part.data)),
        }
        if part.is_bare:
            row.update(self._bare_stage(part, part.parts[0]))
        else:
            retried = next((action for action in part.parts if action.recovered or action.attempts > 1), None)
            if retried is not None:
                attempts = plural(retried.attempts, "attempt") if retried.attempts > 1 else self._note(retried)
                row["again"] = f"{printable(retried.name)}: {attempts}"
        actions = [self._action(part, action) for action in part.parts]
        if part.record is not None:
            record = self._run.stages[part.record]
            row.update(id=part.record, r=self._turns[part.record], e=round(record.elapsed, 6))
            row["fail"] = self._failure(record.error)
            row["tries"] = self._attempts(record)
            row["at"] = _clock(record.started, self._scale.zero)
            row["ins"] = _names([*(unit for one in record.actions for unit in one.inserted), *record.inserted])
            row["lane"] = self._lanes.of.get(part.record) or None
        shown_by_stage = part.is_bare and all(action.get("fail") in (None, row.get("fail")) for action in actions)
        if shown_by_stage:
            row.update(self._attempts_of_both(row.get("tries", []), actions))
        row["acts"] = None if shown_by_stage else actions
        return row

    def _attempts_of_both(self, tries: list[int], actions: Sequence[Row]) -> Row:
        """Return errors and messages of the attempts at a stage and its only action; the error of both is shown once."""
        inner: list[int] = [each for action in actions for each in action.get("tries", ())]
        known = [self._failures[each] for each in inner]
        outer = [each for each in tries if self._failures[each] not in known]
        messages: list[Row] = [each for action in actions for each in action.get("log", ())]
        return {"tries": outer + inner, "log": [{**each, "a": each["a"] + len(outer)} for each in messages]}

    def _bare_stage(self, part: Part, action: Part) -> Row:
        """Return the columns in which a stage shows its only action."""
        attempts = max(part.attempts, action.attempts)
        row: Row = {
            "tags": [printable(tag) for tag in sorted({*part.tags, *action.tags})],
            "a": attempts if attempts > 1 else None,
            "reads": printable(", ".join(action.reads)),
            "re": 1 if part.restored or action.restored else None,
        }
        if action.recovered and not part.recovered:
            row.update(s="recovered", note=self._note(action))
        return row

    def _action(self, stage: Part, part: Part) -> Row:
        row = self._common(part)
        if part.record is not None and stage.record is not None:
            record = self._run.stages[stage.record].actions[part.record]
            row["fail"], row["tries"] = self._failure(record.error), self._attempts(record)
            row["log"] = self._messages.of(record)
        return _without_empty(row)

    # Failures and counts.

    def _failure(self, error: BaseException | None) -> int | None:
        return None if error is None else self._failure_indexes.get(id(error))

    def _attempts(self, record: StageRecord | ActionRecord) -> list[int]:
        """Return the failures of the attempts before the last one."""
        return [self._failure_indexes[id(error)] for error in record.failures]

    def _culprits(self) -> list[int]:
        """Return the failed stages with the error of the run; if there are none, the one that failed last."""
        fatal = {self._failure(error) for error in members_of(self._run.error)} - {None}
        failed = [index for index, row in enumerate(self._rows) if row["k"] == "stage" and row["s"] == "failed"]
        return [index for index in failed if self._rows[index].get("fail") in fatal] or failed[-1:]

    def _tags(self, row: Row) -> set[str]:
        """Return the tags of a stage, of its actions, and of the pipelines and groups around it."""
        tags = {tag for one in (row, *row.get("acts", ())) for tag in one.get("tags", ())}
        parent: int = row["p"]
        while parent >= 0:
            if self._rows[parent]["k"] != "stage":
                tags.update(self._rows[parent].get("tags", ()))
            parent = self._rows[parent]["p"]
        return tags


def _without_empty(row: Row) -> Row:
    return {key: value for key, value in row.items() if value not in (None, "", (), [])} | {"s": row["s"]}


def _kind(part: Part) -> str:
    if part.kind == "parallel":
        return f"{'' if part.name == part.kind else 'parallel, '}{branch_counts(part)}"
    return "" if part.name == part.kind else part.kind


def _filters(stage: Row) -> Iterator[str]:
    """Yield the filters of the page that match a stage."""
    yield stage["s"]
    if "by" in stage:
        yield "inserted"
    if "a" in stage or "again" in stage:
        yield "retried"


def _counts(stages: Sequence[Row], *, is_running: bool) -> Iterator[str]:
    states = Counter(row["s"] for row in stages)
    skipped, pending = states["skipped"], states["pending"]
    yield f"{len(stages) - skipped - pending:,} in the order in which they ran"
    if pending and is_running:
        yield f"{pending:,} still to come"
        pending = 0
    if skipped or pending:
        yield f"{skipped + pending:,} did not run"


def _colour(row: Row) -> str:
    """Return the class of the bar of a stage, as the script chooses it."""
    if row["s"] in BAD:
        return "l-bad"
    if "a" in row or "again" in row or row["s"] == "recovered":
        return "l-warn"
    return "l-new" if "by" in row else ""


def _failure_as_json(failure: Failure) -> dict[str, Any]:
    return {
        **failure._asdict(),
        "cause": None if failure.cause is None else _failure_as_json(failure.cause),
        "parts": [_failure_as_json(part) for part in failure.parts],
    }


def _names(units: Iterable[Any]) -> str:
    names = [printable(unit.name) for unit in units]
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _clock(started: float, zero: float) -> str:
    since = duration(max(0.0, started - zero))
    return f"{datetime.fromtimestamp(started, UTC):%H:%M:%S} UTC, {since} after the first"
