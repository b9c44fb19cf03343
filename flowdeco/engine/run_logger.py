"""The logger `flowdeco.run`, whose records name their place in a run; loaded when something is logged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias, cast

from flowdeco.errors import told

__all__ = ["RunLogger", "run_logger"]


Keep: TypeAlias = "Callable[[str, str], object]"  # is given the name of a level, and a text


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds `run`, `stage` and `action` to its records, in addition to the `extra` of a call.

    That of an action also has the run keep what it logs at INFO and above, whatever the logging system does with it.
    """

    def __init__(self, logger: logging.Logger, extra: dict[str, Any], keep: Keep | None = None) -> None:
        super().__init__(logger, extra)
        self._keep = keep

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message."""
        if self._keep is not None and level >= logging.INFO:
            self._keep(logging.getLevelName(level), _text(msg, args, kwargs.get("exc_info")))
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # this method is not the one that logs
        super().log(level, msg, *args, **kwargs)

    # Before Python 3.13, an adapter drops the `extra` of the call.
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge both; the fields of the call take precedence."""
        given = kwargs.get("extra")
        kwargs["extra"] = {**self.extra, **given} if self.extra and given else self.extra
        return msg, kwargs


def _text(msg: object, args: tuple[Any, ...], exc_info: Any) -> str:
    """Return the text of a record, with the exception that it is about."""
    record = logging.LogRecord("", 0, "", 0, msg, args, None)
    try:
        text = record.getMessage()
    except Exception:  # which the logging system reports
        text = f"{msg} {args}"
    if exc_info and not isinstance(exc_info, (BaseException, tuple)):
        exc_info = sys.exc_info()
    error: object = cast("tuple[object, ...]", exc_info)[1] if isinstance(exc_info, tuple) else exc_info
    return f"{text}\n{told(error)}" if isinstance(error, BaseException) else text


def run_logger(run_id: str, stage: str | None = None, action: str | None = None, keep: Keep | None = None) -> RunLogger:
    """Return the logger for a place in a run; `keep` is given what is logged there."""
    return RunLogger(logging.getLogger("flowdeco.run"), {"run": run_id, "stage": stage, "action": action}, keep)
