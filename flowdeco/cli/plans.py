"""The commands that compare and draw, and run nothing: `validate`, `plan` and `diff`."""

from __future__ import annotations

import os
from argparse import Namespace
from html import escape
from typing import Any, Final

from flowdeco.cli import report
from flowdeco.cli.exit_codes import FAILED, FINE
from flowdeco.cli.inputs import read_inputs
from flowdeco.cli.json_output import plan_as_data, print_json
from flowdeco.cli.workflow import load_recorded_workflow, load_workflow, stand_in_for_main
from flowdeco.model.definitions import as_pipeline

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
    workflow = load_workflow(options)
    flow: Any = workflow.only(options.only) if options.only else workflow.entry.unit
    if options.skip:
        flow = workflow.without(options.skip, as_pipeline(flow))
    plan = flow.plan()
    if options.json:
        print_json(plan_as_data(plan))
    else:
        _draw(plan, f"plan of {options.entry}", options)
    return FINE


def diff(options: Namespace) -> int:
    """Draw the differences between a run of a journal and the plan of its workflow."""
    from flowdeco.cli.history import crashed, recorded
    from flowdeco.cli.journals import journal_path, state_of

    path = journal_path(options)
    workflow, info = load_recorded_workflow(options, path)
    flow = workflow.only(options.only)
    stand_in_for_main(workflow.entry)
    ran = recorded(path, info, flow).ran()
    diff = flow.plan().diff(crashed(ran) if state_of(info) == "crashed" else ran)
    if options.json:
        changes = [change._asdict() for change in diff.changes]
        print_json({"id": info.id, "status": state_of(info), "counts": diff.counts(), "changes": changes})
    else:
        _draw(diff, f"plan and run {info.id}", options)
    return FINE


_FORMATS: Final = {".html": "html", ".htm": "html", ".mmd": "mermaid", ".mermaid": "mermaid", ".md": "markdown"}


def _draw(view: Any, title: str, options: Namespace) -> None:
    """Print a view, or write it to a file, in the format of the options."""
    form = options.format or _FORMATS.get(os.path.splitext(options.output or "")[1].lower(), "text")
    text = _page(title, view.html()) if form == "html" else view.text() if form == "text" else view.mermaid()
    if form == "markdown":
        text = f"```mermaid\n{text.rstrip()}\n```\n"
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else f"{text}\n")
    elif form == "html":
        print(text.rstrip("\n"))
    else:
        report.say(text.rstrip("\n"))


def _page(title: str, fragment: str) -> str:
    """Return a fragment of HTML as a page of its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n{fragment}\n</html>'
    )
