"""The logger `flowdeco.run`, whose records name their place in a run; loaded when something is logged."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

__all__ = ["RunLogger", "run_logger"]


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds `run`, `stage` and `action` to its records, in addition to the `extra` of a call."""

    # Before Python 3.13, an adapter drops the `extra` of the call.
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge both; the fields of the call take precedence."""
        given = kwargs.get("extra")
        kwargs["extra"] = {**self.extra, **given} if self.extra and given else self.extra
        return msg, kwargs


def run_logger(run_id: str, stage: str | None = None, action: str | None = None) -> RunLogger:
    """Return the logger for a place in a run."""
    return RunLogger(logging.getLogger("flowdeco.run"), {"run": run_id, "stage": stage, "action": action})
