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
from typing import Any, Final, NamedTuple

from flowdeco import durable
from flowdeco.cli.exit_codes import FINE, SUSPENDED
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
        command = [sys.executable, "-c", f"from {__name__} import reply; reply()"]
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=PATIENCE, check=False
        )
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


class _Child:
    """A process that resumes a run, and outlives this one."""

    def __init__(self, path: str, run_id: str) -> None:
        self.began = time.time()
        self._output = TemporaryFile()  # noqa: SIM115  # for as long as the process
        self._error = ""
        command = [sys.executable, "-m", "flowdeco", "resume", "--journal", path, "--", run_id]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, start_new_session=True
        )

    def error(self) -> str | None:
        """Return the error that it ended with, "" for none, None while it works."""
        code = self._process.poll()
        if code is None:
            return None
        if not self._output.closed:
            with self._output as output:
                output.seek(0)
                lines = output.read().decode("utf-8", "replace").splitlines()
            errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
            self._error = "" if code in (FINE, SUSPENDED) else (errors or lines or [f"exit code {code}"])[-1]
        return self._error

    def wait(self) -> None:
        """Wait for its end, which is near."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self.error()


class Resumer:
    """Resumes runs in processes of their own, and knows why one was refused."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._children: dict[str, _Child] = {}
        self._lock = Lock()

    def start(self, info: RunInfo) -> None:
        """Resume a run, unless it is being resumed: as `info` was before it was answered."""
        with self._lock:
            child = self._children.get(info.id)
            if child is not None and child.error() is None:
                if info.owner is not None or info.updated < child.began:
                    return
                child.wait()  # it has suspended the run again, and is about to end
            self._children[info.id] = _Child(self._path, info.id)

    def note(self, info: RunInfo) -> tuple[bool, str]:
        """Return whether a run is about to be resumed, and the error of the last attempt if that did not reach it."""
        with self._lock:
            child = self._children.get(info.id)
            error = "" if child is None else child.error()
            if error is None:
                return info.owner is None, ""
            return False, "" if child is None or info.updated >= child.began else error


_ERROR: Final = "flowdeco: error: "
