"""The workflow of a command: named by its entry point or found through the journal, and narrowed by selectors."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flowdeco.cli.entry_point import Entry, EntryError, load
from flowdeco.cli.inputs import UsageError
from flowdeco.errors import close_selectors, selector_suggestion
from flowdeco.model.definitions import Pipeline, Template, Unit, as_pipeline
from flowdeco.model.units import selectors_in

if TYPE_CHECKING:
    from flowdeco.durable import RunInfo

__all__ = ["Workflow", "load_recorded_workflow", "load_workflow", "recorded_flow", "stand_in_for_main"]


class Workflow(NamedTuple):
    """A unit with its entry point; `name` is how messages call it."""

    entry: Entry
    name: str

    def only(self, selectors: Sequence[str]) -> Pipeline:
        """Return the pipeline with only the selected stages and actions."""
        flow = as_pipeline(self.entry.unit)
        if not selectors:
            return flow
        self._check_planned("--only", selectors, flow)
        return flow.only(*selectors)

    def without(self, selectors: Sequence[str], flow: Pipeline) -> Pipeline:
        """Return a pipeline of this workflow without the selected stages and actions."""
        self._check_planned("--skip", selectors, flow)
        return flow.without(*selectors)

    def to_run(self, options: Namespace) -> Pipeline:
        """Return the pipeline that `--only` leaves; `--skip`, which is applied as it runs, is checked for misspellings."""
        flow = self.only(options.only)
        if not options.allow_unknown:
            self._check_skip(options.skip, flow)
        return flow

    def reference(self, only: Iterable[str]) -> str:
        """Return the entry for the journal, from which the workflow is loaded again: its entry point and `--only`."""
        return shlex.join([self.entry.reference, *(f"--only={selector}" for selector in only)])

    def _check_planned(self, option: str, selectors: Sequence[str], flow: Pipeline) -> None:
        """Refuse selectors that match nothing in a pipeline before it is run."""
        known = selectors_in(flow.units)
        for selector in selectors:
            if selector in known:
                continue
            problem = f"{option} {shlex.quote(selector)}: {self.name} has no such stage, action or tag"
            if _matches(selector, self._insertable_selectors() - known):
                raise UsageError(f"{problem} before it runs, and later insertions cannot be selected by it")
            raise UsageError(f"{problem}. {selector_suggestion((selector,), known)}")

    def _check_skip(self, selectors: Sequence[str], flow: Pipeline) -> None:
        """Refuse probable misspellings: the stage that was meant would run."""
        known = selectors_in(flow.units) | self._insertable_selectors()
        for selector in selectors:
            if not _matches(selector, known) and close_selectors(selector, known):
                raise UsageError(
                    f"--skip {shlex.quote(selector)}: {self.name} has no such stage, action or tag. "
                    f"{selector_suggestion((selector,), known)} (If it is inserted later: --allow-unknown)"
                )

    def _insertable_selectors(self) -> set[str]:
        """Return the selectors of everything that the module of the workflow defines, and may insert."""
        known: set[str] = set()
        for value in vars(self.entry.module).values():
            if isinstance(value, Template):
                known |= {value.name, *(f"tag:{tag}" for tag in cast("Any", value).tags)}
            elif isinstance(value, Unit):
                known |= selectors_in((value,))
        return known


def _matches(selector: str, known: set[str]) -> bool:
    """Whether a selector is one of these, or names a stage of a template that is."""
    return not known.isdisjoint((selector, selector.partition("/")[0].partition("[")[0]))


def load_workflow(options: Namespace) -> Workflow:
    """Import the workflow that the options name."""
    return Workflow(load(options.entry), options.entry)


def load_recorded_workflow(options: Namespace, path: str) -> tuple[Workflow, RunInfo]:
    """Return a run of a journal, and its workflow: the one that is named, or the one that the journal knows.

    Where the journal knows it, `--only` defaults to the selectors with which the run was started.
    """
    from flowdeco.cli.journals import find_run  # `run` without a journal needs no database

    *named, wanted = options.run
    if len(named) > 1:
        raise UsageError(f"expected [FILE.py:FLOW] RUN, not {' '.join(options.run)}")
    if wanted.endswith(".py") or ".py:" in wanted:
        run = named[0] if named else "RUN"
        raise UsageError(f"the run comes last: flowdeco {options.command} {shlex.quote(wanted)} {run}")
    try:
        info = find_run(path, wanted)
    except UsageError as error:
        if named and "=" in wanted and hasattr(options, "input"):
            raise UsageError(f"{error} If this is an input or an answer: -i {shlex.quote(wanted)}") from None
        raise
    if named:
        entry = load(named[0])
    elif info.entry is None:
        raise UsageError(
            f"the journal does not know where the workflow of run {info.id!r} is, because the run was started by a script: "
            f"{_how_to_name_it(options, wanted, path)}"
        )
    else:
        reference, only = _read_reference(info.entry)
        options.only = options.only or only
        try:
            entry = load(reference)
        except EntryError as error:
            raise UsageError(f"{error} ({_how_to_name_it(options, wanted, path)})") from error
    return Workflow(entry, entry.reference), info


def recorded_flow(entry: str) -> Pipeline:
    """Return the pipeline of an entry that a journal has noted; its module stands in for that of a script."""
    reference, only = _read_reference(entry)
    workflow = Workflow(load(reference), reference)
    stand_in_for_main(workflow.entry)
    return workflow.only(only)


def _read_reference(entry: str) -> tuple[str, list[str]]:
    """Return the entry point and the selectors of an entry of a journal, as `Workflow.reference` has written them."""
    reference, *only = shlex.split(entry)
    return reference, [selector.removeprefix("--only=") for selector in only]


def _how_to_name_it(options: Namespace, run: str, path: str) -> str:
    """Return how to continue with a run whose workflow cannot be imported from where the journal has it."""
    journal = f" --journal {shlex.quote(options.journal)}" if options.journal else ""
    script = f"have the script call flow.resume({run!r}, journal={path!r}), or " if options.command == "resume" else ""
    return f"{script}name it, as in flowdeco {options.command} file.py:flow {shlex.quote(run)}{journal}"


def stand_in_for_main(entry: Entry) -> None:
    """Let pickles of a script, written while it was the main module, find its definitions."""
    if entry.in_file:
        sys.modules["__main__"] = entry.module
