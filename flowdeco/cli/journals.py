"""The commands that need a journal, and no workflow: `runs`, `show`, `cancel` and `purge`."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from flowdeco import durable
from flowdeco.cli import report
from flowdeco.cli.arguments import JOURNAL, LATEST
from flowdeco.cli.exit_codes import FINE
from flowdeco.cli.inputs import UsageError, check_page
from flowdeco.cli.json_output import print_json, run_as_data
from flowdeco.cli.steps_table import step_rows
from flowdeco.durable import RunInfo
from flowdeco.durable.codec import OutlineCodec
from flowdeco.durable.info import STATUSES, as_text, resume_command
from flowdeco.errors import WAITING, JournalError, RunBusyError, RunNotFoundError, cut, printable, suggestion, told, utc

if TYPE_CHECKING:
    from flowdeco.engine.outcome import StageRecord
    from flowdeco.engine.runs import Run
    from flowdeco.show.page import Served

__all__ = [
    "cancel",
    "command_to_resume",
    "find_run",
    "journal_of",
    "journal_path",
    "purge",
    "run_page",
    "runs",
    "show",
    "state_of",
    "workflow_name",
]

_ROW_COLUMNS: Final = ("branch", "number", "kind", "stage", "action", "status", "started", "elapsed")
_STATES: Final = [*STATUSES, "crashed"]
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def journal_path(options: Namespace) -> str:
    """Return the path of the journal that the options or the environment name."""
    path = options.journal or os.environ.get(JOURNAL)
    if not path:
        raise UsageError(f"name the journal: --journal runs.db, or {JOURNAL}=runs.db in the environment")
    if not os.path.exists(path):
        raise UsageError(f"there is no journal {path}")
    return cast("str", path)


def journal_of(path: str, info: RunInfo, reference: str = "") -> durable.SqliteJournal:
    """Return the journal of a run; `reference` is the entry that it notes when it is resumed.

    Raises `UsageError` for a codec that only the program of the user knows.
    """
    if info.codec not in ("pickle", "json"):
        raise UsageError(f"run {info.id!r} is written in the codec {info.codec!r}, which only your program knows")
    return durable.SqliteJournal(path, codec=cast("Any", info.codec), entry=reference)


def find_run(path: str, wanted: str) -> RunInfo:
    """Return the run with this id, or the only one whose id begins with it."""
    return _find_run(path, durable.runs(path), wanted)


def _find_run(path: str, infos: list[RunInfo], wanted: str, *, exact: bool = False) -> RunInfo:
    if not infos:
        raise UsageError(f"{path} has no runs")
    by_id = {info.id: info for info in infos}
    if wanted in by_id:
        return by_id[wanted]
    if wanted == LATEST:
        return infos[0]
    matching = [info for info in infos if wanted and info.id.startswith(wanted)]
    if len(matching) > 1:
        ids = ", ".join(info.id for info in matching[:5])
        more = ", …" if len(matching) > 5 else ""
        raise UsageError(f"{len(matching)} runs of {path} begin with {wanted!r}: {ids}{more}")
    if not matching:
        raise UsageError(f"{path} has no run {wanted!r}. {suggestion(wanted, [info.id for info in infos[:100]])}")
    if exact:
        raise UsageError(
            f"runs to delete are named in full, and {wanted!r} is not a run of {path}: {matching[0].id!r} is"
        )
    return matching[0]


def state_of(info: RunInfo) -> str:
    """Return the status of a run, "crashed" for one whose process ended while it was running."""
    return "crashed" if info.status == "running" and info.owner is None else info.status


# Listing, cancelling and deleting.


def runs(options: Namespace) -> int:
    """List the runs of a journal."""
    path = journal_path(options)
    journal = durable.SqliteJournal(path)
    _check_statuses(options.status)
    infos = _with_status(journal.runs(), options.status)[: options.limit]
    if options.json:
        print_json([_info_as_data(journal, info) for info in infos])
    elif infos:
        _print_runs(journal, infos)
    else:
        report.say(f"{path} has no {' or '.join(options.status)} runs".replace("  ", " "))
    return FINE


def cancel(options: Namespace) -> int:
    """Cancel a run."""
    path = journal_path(options)
    info = find_run(path, options.run)
    durable.cancel(path, info.id)
    now = find_run(path, info.id)
    if options.json:
        print_json({"id": now.id, "status": now.status, "owner": now.owner})
    elif now.owner is not None:
        report.say(f"run {now.id} stops at its next step: {now.owner} is working on it")
    else:
        report.say(f"run {now.id} is cancelled; to resume: {command_to_resume(options.journal, now)}")
    return FINE


def purge(options: Namespace) -> int:
    """Delete runs from a journal."""
    path = journal_path(options)
    journal = durable.SqliteJournal(path)  # one connection for all of them
    deleted: list[RunInfo] = []
    for info in _runs_to_delete(options, path, journal):
        try:
            if not options.dry_run:
                journal.delete(info.id)
        except (RunBusyError, RunNotFoundError):  # another process resumed or deleted it meanwhile
            if options.run:
                raise
        else:
            deleted.append(info)
    if not options.dry_run:
        journal.drop_unused()
    if options.json:
        print_json({"deleted": [info.id for info in deleted], "dry_run": options.dry_run})
        return FINE
    if options.dry_run and deleted:
        _print_runs(journal, deleted)
    verb = "would delete" if options.dry_run else "deleted"
    named = f": {', '.join(info.id for info in deleted)}" if options.run and deleted else ""
    report.say(f"{verb} {report.plural(len(deleted), 'run')}{named}")
    return FINE


def _runs_to_delete(options: Namespace, path: str, journal: durable.SqliteJournal) -> list[RunInfo]:
    """Return the runs to delete; one that a process works on only where it was named."""
    _check_statuses(options.status)
    if bool(options.run) == (options.older_than is not None):
        raise UsageError(f"say which runs: their ids, or --older-than 30d{', but not both' if options.run else ''}")
    if options.run:
        known = journal.runs()
        infos = [_find_run(path, known, wanted, exact=True) for wanted in options.run]
    else:
        before = time.time() - _seconds(options.older_than)
        infos = [info for info in journal.runs() if info.updated <= before and info.owner is None]
    return _with_status(infos, options.status)


def _seconds(age: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", "0s" if age == "0" else age)
    if found is None:
        raise UsageError(f"--older-than takes a number and a unit, as 90s, 45m, 12h, 30d or 2w, not {age!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _check_statuses(wanted: Iterable[str]) -> None:
    for status in wanted:
        if status not in _STATES:
            raise UsageError(f"--status {status}: there is no such status. {suggestion(status, _STATES)}")


def _with_status(infos: Iterable[RunInfo], wanted: list[str]) -> list[RunInfo]:
    return [info for info in infos if not wanted or state_of(info) in wanted]


def _print_runs(journal: durable.SqliteJournal, infos: Iterable[RunInfo]) -> None:
    rows: list[tuple[str, ...]] = []
    for info in infos:
        steps = str(journal.ended_actions(info.id))
        rows.append((info.id, workflow_name(info), state_of(info), utc(info.started), steps, _why(info)))
    report.print_table(["RUN", "WORKFLOW", "STATUS", "STARTED", "STEPS", "WHY"], rows, right=["STEPS"])


def workflow_name(info: RunInfo) -> str:
    """Return the file of a workflow, if that is known and the pipeline has no name of its own."""
    if info.entry is None or info.pipeline != "pipeline":
        return info.pipeline
    return os.path.basename(info.entry)


def _why(info: RunInfo) -> str:
    asked = [as_text(each) for each in info.questions if each.about is not None or each.deadline is not None]
    reason = info.reason
    keys = ", ".join(repr(each.key) for each in info.questions)
    if asked and len(asked) == len(info.questions) and reason == f"{WAITING}{keys}":
        reason, asked[0] = None, f"{WAITING}{asked[0]}"  # the questions have the keys
    waits = "; ".join(filter(None, ("answered" if info.answered else "", reason, *asked)))
    why = info.error or waits or _owner(info)
    return report.shortened(report.one_line(why), 80)


def _owner(info: RunInfo) -> str:
    """Return who works on a run, "" for nobody, and whether it is to stop."""
    return f"{'cancel pending, ' if info.cancelling else ''}by {info.owner}" if info.owner else ""


def _info_as_data(journal: durable.SqliteJournal, info: RunInfo) -> dict[str, Any]:
    return {
        **info._asdict(),
        "questions": [question._asdict() for question in info.questions],
        "status": state_of(info),
        "steps": journal.ended_actions(info.id),
        "failed": _failures(journal, info),
    }


def _failures(journal: durable.SqliteJournal, info: RunInfo) -> list[dict[str, Any]]:
    """Return where a run failed; nothing of one whose rows cannot be read."""
    from flowdeco.engine.reading import failed_steps

    if info.error is None:
        return []
    try:
        run = _outline(info, durable.history(journal, info.id))
    except (JournalError, RunNotFoundError):
        return []
    return [
        {
            "stage": stage.name,
            "action": action and action.name,
            "attempts": (action or stage).attempts,
            "error": (info.error if stage.error is run.error else told(stage.error)).partition("\n")[0],
        }
        for stage, action in failed_steps(run)
    ]


def _outline(info: RunInfo, rows: list[durable.Row]) -> Run:
    from flowdeco.engine.reading import read_outline

    head = info.id, info.pipeline, info.status, info.reason, info.started
    return read_outline(durable.Remembered(*head, (), [], rows, info.error), _codec(info))


def _codec(info: RunInfo) -> durable.Codec:
    if info.codec != "json":
        return OutlineCodec()
    from flowdeco.durable.json_codec import OutlineJsonCodec

    return OutlineJsonCodec()


# One run.


def show(options: Namespace) -> int:
    """Show the steps of a run, or write its page."""
    path = journal_path(options)
    info = find_run(path, options.run or LATEST)
    if options.html is not None:
        return _write_page(path, info, options)
    check_page(None, values=options.values)
    rows = durable.history(path, info.id)
    if options.json:
        history = [{name: getattr(row, name) for name in _ROW_COLUMNS} | {"bytes": len(row.payload)} for row in rows]
        data = {**_info_as_data(durable.SqliteJournal(path), info), "history": history}
        with suppress(JournalError, UsageError):  # of a run that cannot be read as a whole, that is all
            data["stages"] = run_as_data(_read_whole(path, info))["stages"]
        print_json(data)
        return FINE
    latest = max((row.started + row.elapsed for row in rows), default=0.0)  # `updated` is not written at every step
    _print_facts(info._replace(updated=max(info.updated, latest)))
    state = state_of(info)
    table = list(step_rows(rows, state, info.codec))
    if table:
        report.say()
        report.print_steps(table)
    if options.messages:
        _print_messages(_read_whole(path, info))
    report.print_resume_hint(command_to_resume(options.journal, info))
    return FINE


def _print_messages(run: Run) -> None:
    """Print the messages of each action, with the errors of its failed attempts between them."""
    from flowdeco.engine.messages import MessageRecord, interleaved
    from flowdeco.show.messages import message_line

    for record in run.stages:
        for action in record.actions:
            told = interleaved(action.messages, action.failures)
            for number, each in enumerate(told):
                if not number:
                    report.say(f"\n{printable(f'{record.name}/{action.name}')}")
                if isinstance(each, MessageRecord):
                    when = time.strftime("%H:%M:%S", time.gmtime(each.time))
                    text = message_line(each).replace("\n", f"\n{' ' * 12}")
                    report.say(f"  {when}  {text}")
                else:
                    report.say(f"  failed    {report.describe_error(each)}")


def _read_whole(path: str, info: RunInfo, *, values: bool = False) -> Run:
    """Return a run as its journal has it, without importing its workflow.

    Values of its classes have stand-ins; with `values` those that can be are loaded, which runs code that the journal names.
    """
    from flowdeco.engine.reading import read_outline

    journal = journal_of(path, info)
    codecs = [journal.codec, _codec(info)] if values else [_codec(info)]
    run = read_outline(journal.read(info.id), *codecs, whole=True)
    run.stages = [_as_it_is(record, state_of(info)) for record in run.stages]
    return run


def _as_it_is(record: StageRecord, state: str) -> StageRecord:
    """Return a stage as the state of its run leaves it: the rows are those of the steps that ended.

    The end of a stage is written with the step after it. One that stands for its action has ended when that has.
    """
    if state == "running" and record.status == "running":
        alone = [(each.name, str(each.status)) for each in record.actions] == [(record.name, "completed")]
        return record._replace(status=record.actions[0].status) if alone else record
    if state == "cancelled":  # while it waited
        record = _called_off(record._replace(actions=list(map(_called_off, record.actions))))
    return record


def _called_off(record: Any) -> Any:
    from flowdeco.engine.runs import Status

    return record._replace(status=Status.CANCELLED) if record.status == "suspended" else record


def _write_page(path: str, info: RunInfo, options: Namespace) -> int:
    """Write the page of a run; one without a file gets `RUN.html`."""
    target = re.sub(r"[^-.=@+,\w]", "_", info.id) + ".html" if options.html is True else options.html
    check_page(target, values=options.values)
    if os.path.exists(target) and not options.force:
        raise UsageError(f"{target} exists: give another file, or --force to overwrite it")
    page = run_page(path, info, values=options.values)
    with open(target, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(page)
    if options.json:
        print_json({"id": info.id, "html": target})
    else:
        report.say(f"written: {target}")
    return FINE


def run_page(
    path: str, info: RunInfo, *, values: bool = False, unpickle: bool = False, served: Served | None = None
) -> str:
    """Return the page of a run of a journal; with `unpickle`, values that can be loaded are loaded."""
    from flowdeco.cli.history import crashed
    from flowdeco.show import ran
    from flowdeco.show.page import page

    run = _read_whole(path, info, values=unpickle)
    shown = crashed(ran(run)) if state_of(info) == "crashed" else ran(run)
    return page(run, shown, None, values=values, resume=command_to_resume(path, info), served=served)


def command_to_resume(path: str | None, info: RunInfo) -> str:
    """Return the command that resumes a run of this journal, "" if it cannot be resumed."""
    keys = [question.key for question in info.questions]
    return resume_command(info.id, state_of(info), keys, path, known=bool(info.entry))


def _print_facts(info: RunInfo) -> None:
    why = info.error or info.reason
    owner = f" ({_owner(info)})" if info.owner else ""
    facts: list[tuple[str, str]] = [
        ("run", info.id),
        ("pipeline", printable(info.pipeline)),
        ("workflow", info.entry or "not known to the journal"),
        ("status", f"{f': {report.one_line(cut(why))}' if why else ''}{owner}"),
        ("started", utc(info.started)),
        ("updated", f"{utc(info.updated)}, {report.duration(max(0.0, info.updated - info.started))} later"),
    ]
    facts += [("asks", as_text(question)) for question in info.questions]
    facts += [] if info.due is None else [("due", utc(info.due, up=True))]
    report.print_facts(facts, report.Coloured(state_of(info)))
