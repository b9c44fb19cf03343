"""Values that a step of a durable run changed in place: its writes do not show that, and the journal must have it.

A value is looked at before user code gets it, and again when the step has ended: if its content differs, it goes to the
journal under every key that holds it. A look keeps a digest of the content, never a copy.

1. Only values that were read are looked at; immutable ones are not, nor those of frozen keys.
2. The digest of a value is remembered as long as the journal has the value in that state. So a value that is read many
   times is hashed once for each of them; and if anything else changed it in between, the next step that reads it
   reports the change.
3. Another value may have a part in common with one that was changed. The journal gets it as well, read or not: both have
   the change after a resume, in copies of that part.
4. A change is not a write: it never conflicts, no mark notes it, and nothing undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from flowdeco.model.contents import ATOMS, Digest, mutable_parts
from flowdeco.model.deltas import Delta
from flowdeco.model.keys import Local, Name
from flowdeco.model.store import Store, Watched
from flowdeco.model.tuples import NamedTuple

__all__ = ["Looks", "Watch"]


class _Look(NamedTuple):
    """A value before user code got it: its digest, None if its content cannot be seen, and the length of a list."""

    value: Any
    digest: Digest | None
    length: int

    def differs(self, digest: Digest | None) -> bool:
        return self.digest is not None and digest is not None and self.digest.differs(digest)


class Looks:
    """The digests of the values of a run, as its journal has them; `digest` returns that of a value."""

    def __init__(self, digest: Callable[[Any], Digest | None]) -> None:
        self.digest = digest
        self.known: dict[Name, tuple[int, Digest]] = {}  # by key: the id of the value, and its digest
        self.parts: dict[Name, tuple[int, frozenset[int]]] = {}  # and the ids of its parts, once something was changed
        self.frozen: set[str] = set()  # keys whose values are not looked at

    def watch(self, store: Store, note: Callable[[Iterable[Name]], None]) -> Watch:
        """Return the watch over a store during one step; `note` receives the keys of values that it changed."""
        return Watch(self, store, note)

    def of(self, key: Name, value: Any) -> _Look:
        """Return the look of the value under this key."""
        id_, digest = self.known.get(key, (0, None))
        if id_ != id(value):
            digest = self.digest(value)
            self.note(key, value, digest)
        return _Look(value, digest, len(cast("list[Any]", value)) if isinstance(value, list) else 0)

    def is_frozen(self, key: Name) -> bool:
        """Whether the value under this key is never changed in place, by the promise of a `Key`."""
        return bool(self.frozen) and (key.name if isinstance(key, Local) else key) in self.frozen

    def note(self, key: Name, value: Any, digest: Digest | None) -> None:
        """Remember the digest of a value that the journal has, or is about to get, in this state."""
        if digest is not None:
            self.known[key] = id(value), digest

    def forget(self, keys: Iterable[Name] | None = None) -> None:
        """Forget the digests under these keys, which were written (ids are used again); or all of them."""
        if keys is None:
            self.known.clear()
            self.parts.clear()
        else:
            for key in keys:
                self.known.pop(key, None)
                self.parts.pop(key, None)

    def sharing(self, changes: dict[Name, Any], store: Store) -> dict[Name, Any]:
        """Return the other values that have a part in common with one of those that were changed."""
        changed: set[int] = set()
        for key, value in changes.items():
            self.parts.pop(key, None)
            changed |= mutable_parts(value)
        found: dict[Name, Any] = {}
        for key, value in store.everything():
            if key in changes or type(value) in ATOMS or self.is_frozen(key):
                continue
            id_, parts = self.parts.get(key, (0, frozenset()))
            if id_ != id(value):
                self.parts[key] = id(value), (parts := mutable_parts(value))
            if not parts.isdisjoint(changed):
                found[key] = value
        self.forget(found)
        return found


class Watch:
    """The values that the user code of a step has read, and may have changed in place."""

    __slots__ = ("_looks", "_note", "_resting", "_seen", "_store")

    def __init__(self, looks: Looks, store: Store, note: Callable[[Iterable[Name]], None]) -> None:
        self._looks = looks
        self._store = store
        self._note = note
        self._seen: dict[Name, _Look] = {}
        self._resting: tuple[Name, ...] = ()

    def look(self, keys: Iterable[Name]) -> None:
        """Look at these values, unless they were read before."""
        read, seen = self._store.reader(), self._seen
        for key in keys:
            if key in seen or self._looks.is_frozen(key):
                continue
            try:
                value = read(key)
            except KeyError:
                continue
            if type(value) not in ATOMS:
                seen[key] = self._looks.of(key, value)

    def look_at(self, name: Name) -> None:
        """Look at one value, which is about to be read."""
        self.look((name,))

    def watched(self) -> Watched:
        """Return the store as it is given to middleware: every value that is read is looked at."""
        return Watched(self._store, self.look_at)

    def rest(self) -> None:
        """Let go of the values: no user code of the step runs before `resume`."""
        self._resting = tuple(self._seen)
        self._seen.clear()

    def resume(self) -> None:
        """Look at everything again that was read before: user code may have kept it."""
        self.look(self._resting)

    def renew(self) -> None:
        """Look once more at everything that was read: what was changed until now is known."""
        self.rest()
        self.resume()

    def with_changes(self, written: Delta) -> Delta:
        """Return the writes of the step, together with the values that it changed in place."""
        changes: dict[Name, Any] = {}
        for key, look in self._seen.items():
            if key in written.appends:
                changes.update(self._grown(key, look, written.appends[cast("str", key)]))
            changes.update(self._changed_under(key, look, written))
        others = written.keys()
        returned: dict[Name, Any] = {
            key: look.value for key, look in self._seen.items() if key in others and self._store.holds(key, look.value)
        }
        if changes or returned:
            shared = self._looks.sharing({**changes, **returned}, self._store)
            changes.update((key, value) for key, value in shared.items() if key not in others)
        if not changes:
            return written
        self._note(changes)
        return written._replace(changes=changes)

    def _changed_under(self, key: Name, look: _Look, written: Delta) -> dict[Name, Any]:
        """Return the value of a look under all keys that hold it, if it was changed in place."""
        value, others = look.value, written.keys()
        is_kept = key not in others and self._store.holds(key, value)
        if not is_kept and others.issuperset(self._store.holders(value)):  # the journal gets it as it is now
            return {}
        digest = self._looks.digest(value)
        if is_kept:
            self._looks.note(key, value, digest)
        if not look.differs(digest):
            return {}
        return dict.fromkeys((name for name in self._store.holders(value) if name not in others), value)

    def _grown(self, key: Name, look: _Look, appended: list[Any]) -> dict[Name, Any]:
        """Return a list that was appended to, without these items, if it was changed in place as well."""
        value: list[Any] = self._store.reader()(key)
        length = len(value) - len(appended)
        if not look.differs(self._looks.digest(value[: max(look.length, length)])):  # it was read later
            return {}
        return {key: value[:length]}
