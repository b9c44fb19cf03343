"""The changes in a store: the notes of a mark, from which they can be undone, and writes as a value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from operator import is_
from typing import Any, ClassVar, Final, cast

from flowdeco.model.tuples import NamedTuple

__all__ = ["NOTHING", "Delta", "Grown", "Mark"]


class Grown(NamedTuple):
    """The note of a mark about a list that the store has appended to in place.

    With an empty list of its own, it notes any value as one object, which tells notes of the same value apart.
    """

    items: list[Any]
    length: int
    before: Any

    def is_prefix_kept(self) -> bool:
        """Whether the list still begins as before it grew; True if it was not a copy, so that nothing can be compared."""
        before = self.before
        if not isinstance(before, list) or before is self.items:
            return True
        start = islice(cast("list[Any]", before), self.length)
        return len(self.items) >= self.length and all(map(is_, start, self.items))


class Mark(dict[Any, Any]):
    """A point in the life of a store: for each key that has changed since, the value before its first change.

    Compared by identity: two marks with the same notes are different marks. One of a resumed run has the notes of an earlier
    mark, which enclosing marks have as well.
    """

    __slots__ = ()
    is_continued: ClassVar = False
    __hash__ = object.__hash__  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def adopt(self, later: Mapping[str, Any]) -> None:
        """Add the notes of a later mark: for a key that both have noted, the earlier note counts."""
        for name, before in later.items():
            self.setdefault(name, before)

    def share(self, later: Mark) -> None:
        """Add the notes of a later mark, so that both have the same object for a key that only that one had noted."""
        for name, before in later.items():
            if name not in self:
                self[name] = later[name] = before if isinstance(before, Grown) else Grown([], 0, before)

    def continue_from(self, earlier: Mapping[str, Any]) -> None:
        """Take the notes of an earlier mark, whose place this one takes in a resumed run."""
        self.update(earlier)
        self.__class__ = _Continued  # pyright: ignore[reportAttributeAccessIssue]

    def drop(self, undone: Mapping[str, Any]) -> None:
        """Drop the notes that were those of a mark that was undone: nothing has changed since."""
        for name, before in undone.items():
            if isinstance(before, Grown) and self.get(name) is before:
                del self[name]


class _Continued(Mark):
    """A mark that has taken the notes of an earlier one: a class of its own, so that no other mark pays for an attribute."""

    __slots__ = ()
    is_continued = True


_UNCHANGED: Final[Mapping[Any, Any]] = {}


class Delta(NamedTuple):
    """The writes to a store: whole values, removed keys, and the items appended to lists.

    `changes` are not writes, and there for the journal: values that were changed in place, as they were before anything was
    appended to them. `order` is their place among the rows of a run.
    """

    puts: dict[Any, Any]  # by `Name`
    deletes: list[str]
    appends: dict[str, list[Any]]
    changes: Mapping[Any, Any] = _UNCHANGED
    order: int = 0

    def keys(self) -> set[str]:
        """Return the keys that were written."""
        return {*self.puts, *self.deletes, *self.appends}

    def without(self, keys: Collection[str]) -> Delta:
        """Return the writes to all other keys."""
        return Delta(
            {name: value for name, value in self.puts.items() if name not in keys},
            [name for name in self.deletes if name not in keys],
            {name: items for name, items in self.appends.items() if name not in keys},
            {name: value for name, value in self.changes.items() if name not in keys},
            self.order,
        )


NOTHING: Final = Delta({}, [], {})
