"""The merge of a parallel group: the writes of its branches, in the order of the branches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from flowdeco.errors import WriteConflictError, shortened, suggestion
from flowdeco.model.contents import agree
from flowdeco.model.declare import name_in_group
from flowdeco.model.definitions import Parallel, Unit
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Key, key_name
from flowdeco.model.wiring import supplied_keys

__all__ = ["Overlay", "warn_of_merge"]


class Overlay:
    """The writes of branches, merged one after the other."""

    def __init__(self, group: Parallel) -> None:
        self.delta = Delta({}, [], {})
        self._group = group
        self._merge = group.merge
        self._writers: dict[Any, tuple[int, Unit]] = {}  # of each key, the first one

    def add(self, index: int, unit: Unit, delta: Delta) -> None:
        """Merge the writes of a branch; raises `WriteConflictError` where it disagrees with an earlier one."""
        whole, writers, merge = self.delta, self._writers, self._merge
        for key, items in delta.appends.items():
            if key not in writers:
                writers[key] = index, unit
                whole.appends[key] = list(items)
            elif key in whole.appends:
                whole.appends[key] += items
            else:
                raise self._conflict(key, index, unit, "one of them collects or deletes")
        for key in delta.deletes:
            if key not in writers:
                writers[key] = index, unit
                whole.deletes.append(key)
            elif key in whole.puts or key in whole.appends:
                raise self._conflict(key, index, unit, "one of them collects or deletes")
        for key, value in delta.puts.items():
            if key not in writers:
                writers[key] = index, unit
                whole.puts[key] = value
            elif key not in whole.puts:
                raise self._conflict(key, index, unit, "one of them collects or deletes")
            elif key in merge:
                whole.puts[key] = self._combined(key, index, unit, merge[key], value)
            elif not agree(whole.puts[key], value):
                raise self._conflict(key, index, unit, f"{shortened(whole.puts[key])} and {shortened(value)}")

    def use_up(self, answers: set[str]) -> None:
        """Delete the answers that branches consumed, unless one wrote to the key."""
        self.delta.deletes.extend(sorted(answers - self.delta.keys()))

    def put_failures(self, key: Any, failures: list[tuple[str, BaseException]]) -> None:
        """Write the list of failed branches."""
        name = key_name(key)
        if name in self._writers:
            index, unit = self._writers[name]
            raise WriteConflictError(
                f"the branch {index} ({name_in_group(unit)!r}) of the parallel group {self._group.name!r} wrote to the key "
                f"{name!r}, which is that of its failures: write to another key"
            )
        if isinstance(key, Key):
            cast("Key[Any]", key).check(failures)
        self.delta.puts[name] = failures

    def _combined(self, key: str, index: int, unit: Unit, merge: Callable[[Any, Any], Any], value: Any) -> Any:
        try:
            return merge(self.delta.puts[key], value)
        except BaseException as error:
            with suppress(Exception):  # the exception may not allow it
                error.add_note(f"in merge= of the key {key!r}, for {self._branches(key, index, unit)}")
            raise

    def _branches(self, key: str, index: int, unit: Unit) -> str:
        first, writer = self._writers[key]
        return (
            f"the branches {first} ({name_in_group(writer)!r}) and {index} ({name_in_group(unit)!r}) of the parallel group "
            f"{self._group.name!r}"
        )

    def _conflict(self, key: str, index: int, unit: Unit, how: str) -> WriteConflictError:
        instead = (
            "merge= combines written values only: write to the key in both, or collect in both"
            if key in self._merge
            else f"Write to different keys, contribute results with collect=, or combine them: "
            f"parallel(..., merge={{{key!r}: function}})"
        )
        return WriteConflictError(
            f"{self._branches(key, index, unit)} wrote different values to the key {key!r}: {how}. {instead}"
        )


def warn_of_merge(run_id: str, group: Parallel, writes: Delta) -> None:
    """Log the keys of `merge` whose functions are for nothing: misspelt ones, and those of collected items."""
    unused = [key for key in group.merge if key not in writes.puts and key not in writes.deletes]
    if not unused:
        return
    from flowdeco.engine.run_logger import run_logger

    written = writes.keys()
    declared, local = supplied_keys(group)
    for key in unused:
        if key in writes.appends:
            why = "to which its branches collect: items are concatenated, and the function is not called"
        elif key in declared:
            continue  # a branch writes it on another day
        elif key in local:
            why = f"which is local to stage {local[key]!r}: write returns={key!r} there to share it"
        else:
            why = f"which no branch wrote. {suggestion(key, declared | written, 'They wrote')}"
        run_logger(run_id).warning(
            "run %s: merge of the parallel group %r has the key %r, %s", run_id, group.name, key, why
        )
