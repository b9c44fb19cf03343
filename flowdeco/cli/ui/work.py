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
    asked = {"path": path, "run": info.id, "values": dict(values), "texts": list(texts)}
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
        problem = _answer(asked["path"], asked["run"], asked["values"], frozenset(asked["texts"]))
    json.dump(problem, sys.stdout)


def _answer(path: str, run_id: str, values: Mapping[str, Any], texts: frozenset[str]) -> Problem | None:
    from flowdeco.cli.answers import record
    from flowdeco.cli.conversion import InputError
    from flowdeco.cli.report import error_message

    try:
        record(path, durable.SqliteJournal(path).runs(run_id=run_id)[0], values, texts)
    except FlowdecoError as error:
        return Problem(error_message(error), error.key if isinstance(error, InputError) else None)
    return None


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
