"""Processes that import workflows, so that the server never does: one converts answers, others resume runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, Any, Final, NamedTuple

from flowdeco import durable
from flowdeco.durable import RunInfo
from flowdeco.errors import FlowdecoError

__all__ = ["Problem", "Resumer", "answer"]

PATIENCE: Final = 60.0  # seconds that the import of a workflow may take


class Problem(NamedTuple):
    """Why an answer was refused; `key` is that of the question, if it is the fault of one."""

    text: str
    key: str | None = None


# Answers.


def answer(path: str, info: RunInfo, values: Mapping[str, Any], texts: frozenset[str]) -> Problem | None:
    """Record answers, converted as those of `flowdeco resume -i`; returns the problem, if there is one.

    `texts` are the keys whose values are text, not JSON.
    """
    asked = {"path": path, "run": info.id, "values": dict(values), "texts": list(texts), "entry": info.entry}
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import reply; reply()"], input=json.dumps(asked).encode(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return Problem(f"the process that converts the answers ended without a reply ({type(error).__name__})")
    return None if found is None else Problem(*found)


def reply() -> None:
    """Answer the run of the request on the standard input, and print the problem as JSON."""
    from flowdeco.cli.process import reserved_stdout

    asked = json.loads(sys.stdin.buffer.read())
    with reserved_stdout(True):
        problem = _answer(asked["path"], asked["run"], asked["values"], frozenset(asked["texts"]), asked["entry"])
    json.dump(problem, sys.stdout)


def _answer(
    path: str, run_id: str, values: Mapping[str, Any], texts: frozenset[str], entry: str | None
) -> Problem | None:
    from flowdeco.cli.conversion import answers, converted, takers
    from flowdeco.cli.journals import open_journal, require_known_codec
    from flowdeco.cli.report import error_message

    missing, taken = "the journal does not know where that is", {}
    try:
        taken = takers(_flow(entry)) if entry else {}
    except FlowdecoError as error:  # the answer may be one of a known type
        missing = error_message(error)
    try:
        info = durable.SqliteJournal(path).runs(run_id=run_id)[0]
        typed = {question.key: question.type for question in info.questions if question.classes}
        made: dict[str, Any] = {}
        for key, value in values.items():
            try:
                one, known = answers({key: value}, texts, info.questions)
                made |= converted(one, texts, {} if known else {key: taken.get(key, [])})[0]
            except FlowdecoError as error:
                return Problem(error_message(error), key)
            if key in typed and not known:
                return Problem(f"it is to be a {typed[key]}, which the workflow defines: {missing}", key)
        durable.answer(open_journal(path, require_known_codec(info), ""), run_id, made)
    except FlowdecoError as error:
        return Problem(error_message(error))
    return None


def _flow(entry: str) -> Any:
    """Return the workflow of a run; its classes are loaded then."""
    import shlex

    from flowdeco.cli.entry_point import load
    from flowdeco.cli.workflow import Workflow, stand_in_for_main

    reference, *only = shlex.split(entry)
    workflow = Workflow(load(reference), reference)
    stand_in_for_main(workflow.entry)
    return workflow.only([selector.removeprefix("--only=") for selector in only])


# Runs that are resumed.


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began: float


class Resumer:
    """Starts `flowdeco resume` in processes that outlive this one, and knows why one refused its run."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._children: dict[str, _Child] = {}
        self._lock = Lock()

    def start(self, run_id: str) -> None:
        """Resume a run, unless it is being resumed."""
        with self._lock:
            child = self._children.get(run_id)
            if child is not None:
                if child.process.poll() is None:
                    return
                child.output.close()
            output = TemporaryFile()  # noqa: SIM115  # for as long as the child
            command = [sys.executable, "-m", "flowdeco", "resume", "--journal", self._path, "--", run_id]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
            self._children[run_id] = _Child(process, output, time.time())

    def note(self, info: RunInfo) -> tuple[bool, str]:
        """Whether a run is about to be resumed, and the error of the last attempt that did not reach it."""
        with self._lock:
            child = self._children.get(info.id)
            if child is None:
                return False, ""
            if child.process.poll() is None:
                return info.owner is None, ""
            if info.updated >= child.began or child.process.returncode in (0, 3):
                return False, ""
            child.output.seek(0)
            lines = child.output.read().decode("utf-8", "replace").splitlines()
            errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
            return False, (errors or lines or [f"exit code {child.process.returncode}"])[-1]

    def close(self) -> None:
        """Forget the processes; they continue."""
        with self._lock:
            for child in self._children.values():
                child.output.close()
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(0)
                child.process.returncode = child.process.returncode or 0  # no warning that it is still running
            self._children.clear()


_ERROR: Final = "flowdeco: error: "
