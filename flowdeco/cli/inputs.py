"""The inputs of a command: how they are read, and what may be wrong with them although the run has them."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin

from flowdeco.errors import FlowdecoError

if TYPE_CHECKING:
    from flowdeco.engine.runs import ActionRecord, Run
    from flowdeco.model.wiring import Input

__all__ = ["UsageError", "awaited", "doubts", "read_inputs"]


class UsageError(FlowdecoError):
    """What is told to the user in one line, after which nothing is run."""


def read_inputs(options: Namespace) -> dict[str, Any]:
    """Return the inputs of a file, and over them those of `-i`."""
    found: dict[str, Any] = {} if options.inputs is None else _file(options.inputs)
    return found | dict(map(_input, options.input))


def _file(path: str) -> dict[str, Any]:
    what = f"--inputs {path}"
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
    except UnicodeDecodeError:
        raise UsageError(f"{what}: it is no text in UTF-8") from None
    if not text.strip():
        raise UsageError(f"{what}: it is empty, where a JSON object is expected")
    content = _json(text, f"{what}: it is no JSON")
    if not isinstance(content, dict):
        raise UsageError(f"{what}: expected a JSON object, not a {type(content).__name__}")
    return content  # pyright: ignore[reportUnknownVariableType]  # JSON has no other keys than text


def _input(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    as_json = key.endswith(":")
    key = key.removesuffix(":")
    if not equals or not key:
        raise UsageError(f"-i takes KEY=VALUE, or KEY:=VALUE for JSON, not {text!r}")
    shown = value if len(value) < 60 else f"{value[:59]}…"
    return key, _json(value, f"-i {key}:={shown} is no JSON (as text: -i {key}={shown})") if as_json else value


def _json(text: str, wrong: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{wrong}: {error}") from None


# Doubts: what a run cannot refuse, for any code may look into its store.

_NO_TEXT: Final = (int, float, bool, list, dict, tuple, set, frozenset, bytes, NoneType)


def doubts(run: Run, given: Iterable[str], options: Namespace) -> Iterator[str]:
    """Say which inputs nothing took whose names resemble what was missing, and which ones should hardly be text.

    Of a run that failed, only what concerns the action that did.
    """
    from difflib import get_close_matches

    wanted = {parameter.key: (record, parameter) for record, parameter in _parameters(run)}
    failed = run.status == "failed"
    told = {key for key, (record, _) in wanted.items() if not failed or record.error is run.error}
    missing = {key for key in {*told, awaited(run.reason)} if key is not None and key not in run.store}
    for key in given:
        close = [] if key in wanted else get_close_matches(key, missing, n=1)
        if close:
            yield f"nothing took the input {key!r}. Did you mean {close[0]!r}?"
    for text in options.input:
        key, _, value = text.partition("=")
        if key in told and run.store.get(key) == value:
            record, parameter = wanted[key]
            if _is_no_text(parameter.annotation):
                yield (
                    f"the input {key!r} is text, and action {record.name!r} expects {_shown(parameter.annotation)}: "
                    f"-i {key}:=VALUE gives JSON"
                )


def _parameters(run: Run) -> Iterator[tuple[ActionRecord, Input]]:
    """Give what the actions of a run take, each with the record of its action."""
    from flowdeco.model.wiring import step_of

    for stage in run.stages:
        for record in stage.actions:
            yield from ((record, each) for each in step_of(record.action).inputs if not each.context)


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and get_origin(annotation) is None else str(annotation)


def _is_no_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(map(_is_no_text, get_args(annotation)))
    return any((get_origin(annotation) or annotation) is kind for kind in _NO_TEXT)


def awaited(reason: str | None) -> str | None:
    """Return the key that a run waits for, by the reason that `ctx.wait_for` gives."""
    import re

    found = re.fullmatch("waiting for '(.+)'", reason or "")
    return found[1] if found else None
