"""An inventory of Python's documentation with the names that docstrings refer to, so that the docs build offline."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

_CLASSES = {
    "library/stdtypes.html": "int float str bytes list tuple set frozenset dict",
    "library/functions.html": "bool type object",
    "library/asyncio-task.html": "asyncio.Task asyncio.TaskGroup",
    "library/collections.abc.html": "collections.abc.Awaitable collections.abc.Callable collections.abc.Collection "
    "collections.abc.Coroutine collections.abc.Generator collections.abc.Iterable collections.abc.Iterator "
    "collections.abc.Mapping collections.abc.MutableMapping collections.abc.Sequence",
    "library/concurrent.futures.html": "concurrent.futures.Executor concurrent.futures.ThreadPoolExecutor "
    "concurrent.futures.ProcessPoolExecutor",
    "library/datetime.html": "datetime.date datetime.datetime datetime.timedelta",
    "library/logging.html": "logging.Logger logging.LoggerAdapter",
    "library/os.html": "os.PathLike",
    "library/pathlib.html": "pathlib.Path",
}
_EXCEPTIONS = {
    "library/exceptions.html": "BaseException Exception ExceptionGroup ConnectionError KeyError KeyboardInterrupt "
    "LookupError OSError RuntimeError TimeoutError TypeError ValueError",
}
_FUNCTIONS = {
    "library/asyncio-task.html": "asyncio.sleep asyncio.gather",
    "library/contextvars.html": "contextvars.copy_context",
    "library/functions.html": "print repr",
    "library/time.html": "time.monotonic time.sleep time.time",
}
_DATA = {"library/constants.html": "None True False", "library/typing.html": "typing.Any"}


def _lines() -> Iterator[str]:
    tables = {"class": _CLASSES, "exception": _EXCEPTIONS, "function": _FUNCTIONS, "data": _DATA}
    for role, pages in tables.items():
        for page, names in pages.items():
            yield from (f"{name} py:{role} 1 {page}#$ -" for name in names.split())


def write_inventory(path: Path) -> None:
    """Write the inventory in the format of Sphinx, version 2."""
    head = (
        "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress("\n".join([*_lines(), ""]).encode()))
