"""The commands that compare and draw, and run nothing: `validate`, `plan` and `diff`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from html import escape
from typing import TYPE_CHECKING, Any, Final

from flowdeco.cli import report
from flowdeco.cli.exit_codes import FAILED, FINE
from flowdeco.cli.inputs import check_output, read_inputs
from flowdeco.cli.json_output import plan_as_data, print_json
from flowdeco.cli.workflow import load_recorded_workflow, load_workflow, stand_in_for_main
from flowdeco.errors import printable
from flowdeco.model.definitions import as_pipeline

if TYPE_CHECKING:
    from flowdeco.show import Diff
    from flowdeco.show.parts import Part
    from flowdeco.show.tree import Node

__all__ = ["diff", "plan", "validate"]


def validate(options: Namespace) -> int:
    """Print the parameters that nothing supplies."""
    options.input = [text if "=" in text else f"{text}=" for text in options.input]
    problems = load_workflow(options).entry.unit.validate(read_inputs(options))
    errors = [problem for problem in problems if problem.certain or options.strict]
    if options.json:
        print_json([problem._asdict() for problem in problems])
        return FAILED if errors else FINE
    explained: set[tuple[str, str]] = set()
    for problem in problems:
        label = "error" if problem in errors else "possible"
        needs, nothing, _ = problem.message.partition(", and no input")
        again = nothing and (problem.key, label) in explained  # the reason is printed once for each key
        explained.add((problem.key, label))
        report.say(report.Coloured(label), ": ", f"{needs}, too" if again else problem.message)
    counts = f"{report.plural(len(errors), 'error')}, {len(problems) - len(errors)} possible"
    report.say(f"{options.entry}: {counts if problems else 'no problems'}")
    return FAILED if errors else FINE


def plan(options: Namespace) -> int:
    """Draw the plan of a workflow."""
    _check_output(options)
    workflow = load_workflow(options)
    flow: Any = workflow.only(options.only) if options.only else workflow.entry.unit
    if options.skip:
        flow = workflow.without(options.skip, as_pipeline(flow))
    plan = flow.plan()
    texts = {"text": lambda: report.say(plan.text().rstrip("\n")), "json": lambda: print_json(plan_as_data(plan))}
    _draw(plan, f"plan of {options.entry}", options, texts)
    return FINE


def diff(options: Namespace) -> int:
    """Draw the differences between a run of a journal and the plan of its workflow."""
    from flowdeco.cli.history import crashed, recorded
    from flowdeco.cli.journals import journal_of, journal_path, state_of

    _check_output(options)
    path = journal_path(options)
    workflow, info = load_recorded_workflow(options, path)
    flow = workflow.only(options.only)
    stand_in_for_main(workflow.entry)
    ran = recorded(journal_of(path, info), info.id, flow).ran()
    diff = flow.plan().diff(crashed(ran) if state_of(info) == "crashed" else ran)

    def print_data() -> None:
        changes = [change._asdict() for change in diff.changes]
        print_json({"id": info.id, "status": state_of(info), "counts": diff.counts(), "changes": changes})

    _draw(diff, f"plan and run {info.id}", options, {"text": lambda: _print_diff(diff), "json": print_data})
    return FINE


def _print_diff(diff: Diff) -> None:
    """Print a diff as the table of a run, with how each step differs from the plan."""
    from flowdeco.show.formatting import summary

    ran = diff.ran
    report.say(f"{printable(diff.plan.name)}, plan and run {ran.run_id} ({ran.status}): {summary(diff.counts())}")
    report.print_steps(list(_rows(diff.parts, 0)), "DIFFERENCE")
    if ran.error:
        report.say("\n".join(["", ran.error, *(f"  {note}" for note in ran.notes)]))


def _rows(parts: Sequence[Part], depth: int, above: str | None = None) -> Iterator[report.StepRow]:
    from flowdeco.show.tree import grown

    for node in grown(parts, above):
        yield from _rows_of(node, depth)


def _rows_of(node: Node, depth: int) -> Iterator[report.StepRow]:
    """Yield the row of a part, and those of its own parts and of the parts that it inserted, below it."""
    part = node.part
    if part.kind != "branch":
        yield _row(node, depth)
        depth += 1
    if not (part.is_bare or part.status == "pending"):
        yield from _rows(part.parts, depth, part.inserted_by)
    for inserted in node.inserted:
        yield from _rows_of(inserted, depth)


def _row(node: Node, depth: int) -> report.StepRow:
    from flowdeco.show.formatting import notes_of, state, unusual_status
    from flowdeco.show.text import subject

    part = subject(node.part)
    kind = f" ({part.kind})" if part.kind in ("parallel", "pipeline") else ""
    status = unusual_status(part) or state(part)
    attempts = f", {part.attempts} attempts" if part.attempts > 1 else ""
    known = {status, f"{part.attempts} attempts"}
    notes = [note for note in notes_of(part, node.by) if note not in known]
    time = report.duration(node.part.elapsed) if node.part.status not in ("skipped", "pending") else ""
    return report.StepRow(depth, f"{node.part.label}{kind}", f"{status}{attempts}", time, ", ".join(notes))


_FORMATS: Final = {".html": "html", ".htm": "html", ".mmd": "mermaid", ".mermaid": "mermaid", ".md": "markdown"}


def _check_output(options: Namespace) -> None:
    if options.output == "-":
        options.output = None
    if options.output:
        check_output("-o", options.output)


def _draw(view: Any, title: str, options: Namespace, texts: Mapping[str, Callable[[], None]]) -> None:
    """Print a view, or write it to a file, in the format of the options; `texts` print it as text and as JSON."""
    ending = os.path.splitext(options.output or "")[1].lower()
    form = "json" if options.json else options.format or _FORMATS.get(ending, "text")
    with ExitStack() as stack:
        if options.output:
            stack.enter_context(redirect_stdout(stack.enter_context(open(options.output, "w", encoding="utf-8"))))
        if form in texts:
            texts[form]()
        elif form == "html":
            print(_page(title, view.html()))
        else:
            text = view.mermaid().rstrip("\n")
            report.say(f"```mermaid\n{text}\n```" if form == "markdown" else text)


def _page(title: str, fragment: str) -> str:
    """Return a fragment of HTML as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n{fragment}\n</html>'
    )
