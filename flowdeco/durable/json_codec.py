"""Values as readable JSON; reading them runs no code that the file chooses.

JSON's own values stand for themselves; any other value is an object of one key, `{"$tag": content}`. Tables have a
row per kind of value: its tag, the values it applies to, how they are written and read back.

Three rules keep a file harmless. Classes, definitions and functions are referred to by `module:qualname`, found among
the modules that are loaded already (see `lookup`), and must be of the kind in their tag: a dataclass, an enum, a template.
Nothing is called but templates, the functions of registered types, and the constructors in the tables. No `__init__` of
a user's class runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self, TypeVar, cast

from flowdeco.durable.blobs import LARGE
from flowdeco.durable.codec import refuse, stand_in
from flowdeco.durable.json_definitions import DEFINITIONS, REFERENCES, referred
from flowdeco.durable.json_values import VALUES
from flowdeco.durable.kinds import STANDARD
from flowdeco.durable.lookup import place
from flowdeco.durable.notation import Notation
from flowdeco.engine.journal import Payload
from flowdeco.errors import JournalError
from flowdeco.model.paths import items

__all__ = ["JsonCodec", "OutlineJsonCodec"]

T = TypeVar("T")


class _Json(Notation):
    exact = (*STANDARD, *REFERENCES)
    tested = (*DEFINITIONS, *VALUES)
    referred = staticmethod(referred)


class JsonCodec:
    """JSON; types round-trip exactly: those of the standard library, dataclasses, enums, named tuples, definitions.

    Other types are registered, with a function that turns a value into one that the codec can write, and one back.
    Functions that a journal may refer to, as sources of streams or reducers of parallel groups, are allowed by
    `allow`; generator functions at module level, other than the standard library's, need not be.
    """

    name = "json"

    def __init__(self) -> None:
        self._notation = _Json()

    def register(self, cls: type[T], write: Callable[[T], Any], read: Callable[[Any], T]) -> Self:
        """Have values of exactly this class written and read by these functions; returns the codec."""
        self._notation.register(cls, write, read)
        return self

    def allow(self, *functions: Callable[..., Any]) -> Self:
        """Let journals refer to these functions; returns the codec."""
        self._notation.allowed.update((place(function), function) for function in functions)
        return self

    def encode(self, value: Any, what: str) -> bytes:
        """Return the value as bytes; raises `SerializationError` naming `what` and the path of the part that cannot."""
        try:
            return _text(self._notation.write(value))
        except Exception as error:
            refuse(value, what, self._dumped, error, parts=_parts)

    def encode_apart(self, value: Any, what: str) -> bytes:
        """Return the value as a `Payload` if there are large parts in it, each as JSON, and otherwise as `encode` does."""
        payload = self.encode(value, what)
        if len(payload) < LARGE:
            return payload
        parts: list[bytes] = []
        rest = _with_places(json.loads(payload.decode("utf-8", "surrogatepass")), parts, _DEEPEST)
        return Payload(_text(rest), parts) if parts else payload

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged, or refers to something absent."""

        def loaded(text: bytes | bytearray) -> Any:
            return json.loads(text.decode("utf-8", "surrogatepass"), parse_constant=_refuse_constant, object_hook=hook)

        def put_back(node: dict[str, Any]) -> Any:
            return loaded(parts[node[_PLACE]]) if _PLACE in node else node

        parts: Sequence[Any] = payload.parts if isinstance(payload, Payload) else ()
        hook = put_back if parts else None
        try:
            return self._notation.read(loaded(payload))
        except Exception as error:
            reason = error if isinstance(error, JournalError) else f"{type(error).__name__}: {error}"
            raise JournalError(f"a value of this run cannot be read back: {reason}") from error

    def _dumped(self, value: Any) -> bytes:
        return _text(self._notation.write(value))


def _text(node: Any) -> bytes:
    text = json.dumps(node, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


_PLACE: Final = "$large"  # {"$large": n} stands for the n-th part
_DEEPEST: Final = 16  # levels that are searched for large parts
_MOST: Final = 1000  # items that are searched


def _with_places(node: Any, parts: list[bytes], depth: int) -> Any:
    """Return JSON in which large nodes, the innermost ones, are parts instead."""
    text = _text(node)
    if len(text) < LARGE:
        return node
    rest: Any = node
    if depth and isinstance(node, (dict, list)) and len(cast("list[Any]", node)) <= _MOST:
        if isinstance(node, list):
            rest = [_with_places(each, parts, depth - 1) for each in cast("list[Any]", node)]
        else:
            each_of = cast("dict[str, Any]", node).items()
            rest = {key: _with_places(each, parts, depth - 1) for key, each in each_of}
        text = _text(rest)
        if len(text) < LARGE:
            return rest
    parts.append(text)
    return {_PLACE: len(parts) - 1}


class OutlineJsonCodec(JsonCodec):
    """Reads what happened in a run without importing its code: values that need it have stand-ins."""

    def decode(self, payload: bytes) -> Any:
        """Return the value; raises `JournalError` if the payload is damaged."""
        try:
            return super().decode(payload)
        except JournalError:
            try:
                return _outlined(json.loads(payload.decode("utf-8", "surrogatepass")))
            except ValueError as error:
                raise JournalError(f"a value of this run cannot be read back: {error}") from error


def _outlined(node: Any) -> Any:
    """Return a node of JSON as a value, with stand-ins for those whose tags are not those of lists and dicts."""
    if isinstance(node, list):
        return [_outlined(each) for each in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    parts = cast("dict[str, Any]", node)
    tag = next(iter(parts), "")
    if not tag.startswith("$"):
        return {key: _outlined(value) for key, value in parts.items()}
    content: Any = parts[tag]
    if tag in ("$tuple", "$set", "$frozenset", "$deque"):
        return tuple(map(_outlined, content))
    name, *args = cast("list[Any]", content) if isinstance(content, list) and content else (tag,)
    module, _, qualname = str(name).rpartition(":")
    listed = cast("list[Any]", args[0]) if args and isinstance(args[0], list) else []
    return stand_in(module, qualname)(*map(_outlined, listed))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that are written separately."""
    yield from items(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)


def _refuse_constant(name: str) -> Any:
    raise JournalError(f"{name} is not valid JSON")
