"""The inputs of a command: how they are read, and which are doubtful although the run accepts them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin

from flowdeco.errors import QUESTION, FlowdecoError, a_type

if TYPE_CHECKING:
    from flowdeco.engine.runs import ActionRecord, Run, StageRecord
    from flowdeco.model.steps import Input

__all__ = [
    "UsageError",
    "check_output",
    "check_page",
    "input_warnings",
    "parse_inputs",
    "read_errors",
    "read_inputs",
    "text_keys",
]


class UsageError(FlowdecoError):
    """A wrong use of the command line: it is reported in one line, and nothing is run."""


def read_inputs(options: Namespace) -> dict[str, Any]:
    """Return the inputs of the file of `--inputs`, updated by those of `-i`."""
    inputs: dict[str, Any] = {} if options.inputs is None else _read_file(options.inputs)
    return inputs | parse_inputs(options.input, "-i ")


def parse_inputs(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Return the values of texts such as KEY=VALUE or KEY:=JSON; `option` comes before each."""
    return dict(_parse_input(text, option) for text in texts)


def read_errors(options: Namespace, answers: Collection[str]) -> dict[str, Exception]:
    """Return the exceptions of `--error`, by key; refuses those of keys that have an answer as well."""
    found: dict[str, Exception] = {}
    for text in options.error:
        key, equals, said = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--error takes KEY=TEXT, not {text!r}")
        if key in answers:
            raise UsageError(f"{key!r} has an answer, and an --error: give one of them")
        found[key] = RuntimeError(said)
    return found


def text_keys(options: Namespace) -> frozenset[str]:
    """Return the keys of the inputs that are given as text, not as JSON."""
    given = {key.removesuffix(":"): not key.endswith(":") for key in (text.partition("=")[0] for text in options.input)}
    return frozenset(key for key, is_text in given.items() if is_text)


def _read_file(path: str) -> dict[str, Any]:
    option = f"--inputs {path}"
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
    except UnicodeDecodeError:
        raise UsageError(f"{option}: it is not text in UTF-8") from None
    if not text.strip():
        raise UsageError(f"{option}: it is empty, where a JSON object is expected")
    content = _parse_json(text, f"{option}: it is not valid JSON")
    if not isinstance(content, dict):
        raise UsageError(f"{option}: expected a JSON object, not {a_type(content)}")
    return content  # pyright: ignore[reportUnknownVariableType]  # the keys of a JSON object are strings


def _parse_input(text: str, option: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    as_json = key.endswith(":")
    key = key.removesuffix(":")
    if not equals or not key:
        expected = f"{option}takes" if option else "an answer is"
        raise UsageError(f"{expected} KEY=VALUE, or KEY:=VALUE for JSON, not {text!r}")
    if not as_json:
        return key, value
    shown = value if len(value) < 60 else f"{value[:59]}…"
    return key, _parse_json(value, f"{option}{key}:={shown} is not valid JSON (as text: {option}{key}={shown})")


def _parse_json(text: str, problem: str) -> Any:
    import json  # most commands read none

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{problem}: {error}") from None


# Warnings: a run cannot refuse these inputs, because any code may read its store.

_NOT_TEXT: Final = (int, float, bool, list, dict, tuple, set, frozenset, bytes, NoneType)


def input_warnings(
    run: Run, inputs: Iterable[str], options: Namespace, warned: Collection[str],
    is_convertible: Callable[[str, Any], bool],
) -> Iterator[str]:  # fmt: skip
    """Yield warnings about inputs that resemble a missing key and were not taken, and about text that should be JSON.

    For a failed run, only those about the action that failed; none about keys that are `warned` of already.
    """
    from difflib import get_close_matches

    from flowdeco.model.keys import type_name

    wanted = {parameter.key: (stage, record, parameter) for stage, record, parameter in _parameters(run)}
    failed = run.status == "failed"
    relevant = {key for key, (_, record, _) in wanted.items() if not failed or record.error is run.error}
    asked = {wait.key for wait in run.waits if wait.kind == QUESTION}
    missing = {key for key in relevant | asked if key not in run.store}
    for key in inputs:
        close = [] if key in wanted or key not in run.store else get_close_matches(key, missing, n=1)
        if close:
            yield f"nothing took the input {key!r}. Did you mean {close[0]!r}?"
    for text in options.input:
        key, _, value = text.partition("=")
        found = run.store.get(key)
        if key in relevant and key not in warned and type(found) is str and found == value:
            stage, record, parameter = wanted[key]
            if _excludes_text(parameter.annotation):
                yield (
                    f"the input {key!r} is text, and action {record.name!r} expects {type_name(parameter.annotation)}: "
                    f"-i {key}:=VALUE gives JSON"
                )
            elif stage.inserted_by and is_convertible(value, parameter.annotation):
                yield (
                    f"the input {key!r} stays text: action {record.name!r} of stage {stage.name!r}, which takes it as "
                    f"{type_name(parameter.annotation)}, was inserted, and inputs are converted only for what is planned. "
                    f"Let an action of the workflow take it, too, or convert it in {record.name!r}"
                )


def _parameters(run: Run) -> Iterator[tuple[StageRecord, ActionRecord, Input]]:
    """Yield the parameters of the actions of a run, each with the records of its stage and its action."""
    from flowdeco.model.steps import step_of

    for stage in run.stages:
        for record in stage.actions:
            step = step_of(record.action)
            taken = (each for each in step.inputs if not (each.context or each.name in step.bound))
            yield from ((stage, record, each) for each in taken)


def _excludes_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(map(_excludes_text, get_args(annotation)))
    return any((get_origin(annotation) or annotation) is kind for kind in _NOT_TEXT)


def check_page(path: str | None, *, values: bool, journal: str | None = None) -> None:
    """Refuse a page that cannot be written, or would replace the journal, before the run; and `--values` without a page."""
    if path == "-":
        raise UsageError("--html -: a page is written to a file: give its name")
    if path and journal and os.path.realpath(path) == os.path.realpath(journal):
        raise UsageError(f"--html {path}: it is the journal of the run: give another name")
    if path:
        check_output("--html", path)
    elif values:
        raise UsageError("--values shows the values on the page: give --html, too")


def check_output(option: str, path: str) -> None:
    """Refuse a file that cannot be written, before anything is done."""
    if path.endswith(".py"):
        raise UsageError(
            f"{option} {path}: it is the name of a Python file, which would be overwritten: give another name"
        )
    if _is_database(path):
        raise UsageError(f"{option} {path}: it is an SQLite database, which would be overwritten: give another name")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: there is no such directory")
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: it is a directory, where a file is expected")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{option} {path}: it cannot be written")


def _is_database(path: str) -> bool:
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return False
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
