"""What must not stand in a report: values that a run had, where a message repeats one.

Nobody notes what passes through a run. Known all the same are the store as the run left it, and those of branches that
were not merged; the data of stages, the arguments of templates, bound values and defaults; and what a failed action was
called with, as long as its traceback has the frame. `docs/see.md` says what that leaves out.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from json import dumps
from pathlib import PurePath
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote, quote_plus

from flowdeco.engine.runs import Run
from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import Action, Stage
from flowdeco.model.references import Called, Changed, Narrowed
from flowdeco.model.wiring import step_of
from flowdeco.show.formatting import printable

__all__ = ["Known", "Redact", "known_of", "redactor"]

SHORTEST: Final = 4  # a value of fewer characters says nothing, and is part of too many words
LINE: Final = 8  # nor does a short line of a longer text
LONG: Final = 12  # characters from which on a value is no part of another word by chance
MOST_LEAVES: Final = 20_000
MOST_STEPS: Final = 100_000  # through one value
DEEPEST: Final = 8

Redact = Callable[[str], str]


class Known(NamedTuple):
    """Values with the keys or parameters that they are called by, and words that names show anyway."""

    values: list[tuple[str, Any]]
    public: set[str]


def known_of(run: Run, errors: Iterable[BaseException]) -> Known:
    """Return what a run is known to have had in its store, and given to its actions."""
    known = Known(list(run.store.items()), set())
    known.values.extend(_of_branches(run._trace))
    actions: dict[int, Action[..., Any]] = {}
    stages: dict[int, Stage] = {}
    for record in run.stages:
        stages[id(record.stage)] = record.stage
        found: list[Any] = [one.action for one in record.actions]  # None for one that failed before the run was resumed
        actions.update((id(action), action) for action in found if action is not None)
    for stage in stages.values():
        known.values.extend((stage._data or {}).items())
        for name, value in _arguments(stage):
            known.public.update({value} if isinstance(value, str) and value in stage.name else ())
            known.values.append((name, value))
        actions.update((id(action), action) for action in stage)
    codes: set[Any] = set()
    defaults: set[int] = set()
    for action in actions.values():
        codes.update(_codes(action.__wrapped__))
        known.values.extend(action._self_bound.items())
        given = [one for one in step_of(action).inputs if one.default is not EMPTY]
        known.values.extend((one.name, _Doubtful(one.default)) for one in given)
        defaults.update(id(one.default) for one in given)
    for error in errors:
        known.values.extend((name, value) for name, value in _of_frames(error, codes) if id(value) not in defaults)
    return known


class _Doubtful(NamedTuple):
    """What may be a secret, or a word of the program: a default, a key of a dict."""

    value: Any


def _of_branches(trace: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in the stores of branches that were not merged."""
    for group in getattr(trace, "groups", ()):
        for _, left in group.branches:
            yield from (left.store or {}).items()
            yield from _of_branches(left)


def _arguments(stage: Stage) -> Iterator[tuple[str, Any]]:
    """Yield what a template was called with to give this stage."""
    origin: Any = stage._origin
    while isinstance(origin, (Changed, Narrowed)):
        origin = origin.base._origin
    if isinstance(origin, Called):
        name = str(getattr(origin.template, "name", "argument"))
        names = [*inspect.signature(origin.template).parameters]
        names.extend([name] * len(origin.args))  # what `*args` takes
        yield from zip(names, origin.args, strict=False)
        yield from origin.kwargs.items()


def _codes(function: Any) -> Iterator[Any]:
    """Yield the code of a function, and of those that it wraps."""
    for _ in range(DEEPEST):
        if function is None:
            return
        yield getattr(function, "__code__", None)
        function = next(
            filter(None, (getattr(function, name, None) for name in ("__wrapped__", "__func__", "func"))), None
        )


def _of_frames(error: BaseException, codes: set[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what the actions were called with whose frames are in a traceback, and what they enclose."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        waiting.extend((at.__cause__, at.__context__))
        if isinstance(at, BaseExceptionGroup):
            waiting.extend(cast("BaseExceptionGroup[BaseException]", at).exceptions)
        entry = at.__traceback__
        while entry is not None:
            frame, entry = entry.tb_frame, entry.tb_next
            code = frame.f_code
            if code in codes:
                given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + _STARS[code.co_flags & 12]]
                names = (*given, *code.co_freevars)
                yield from ((name, value) for name, value in frame.f_locals.items() if name in names)


_STARS: Final = {0: 0, 4: 1, 8: 1, 12: 2}  # CO_VARARGS, CO_VARKEYWORDS


def redactor(values: Iterable[tuple[str, Any]], public: Iterable[str], texts: Iterable[str]) -> Redact:
    """Return a function that replaces values in these texts by what they are called; but for words that are public."""
    different: dict[int, tuple[str, Any]] = {}
    for key, value in values:  # most were in the store, and in several frames
        different.setdefault(id(value), (key, value))
    known = {word.lower() for word in public}
    whole = "\n".join(texts).lower()  # most values are in none of the texts
    whole = f"{whole}\n{printable(whole)}"
    keys: dict[str, str] = {}
    for number, (key, text) in enumerate(_leaves(different.values())):
        if number >= MOST_LEAVES:
            break
        if SHORTEST <= len(text) <= len(whole) and text.lower() not in known:
            for written in _forms(text):
                if written.lower() in whole:
                    keys.setdefault(written.lower(), key)
    if not keys:
        return _declared_values
    longest_first = sorted(keys, key=len, reverse=True)
    pattern = re.compile("|".join(map(_pattern, longest_first)), re.IGNORECASE)
    return lambda text: pattern.sub(lambda found: f"‹{keys.get(found[0].lower(), '…')}›", _declared_values(text))


_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~-]+")


def _forms(text: str) -> set[str]:
    """Return how a text is written: by itself, in the repr of what contains it, as JSON, in an address."""
    if _PLAIN.fullmatch(text):
        return {text}
    safe = text.encode("utf-8", "replace").decode()
    forms = {text, repr(text)[1:-1], printable(text), dumps(text)[1:-1], dumps(text, ensure_ascii=False)[1:-1]}
    return forms | {quote(safe), quote(safe, safe=""), quote_plus(safe)}


def _pattern(text: str) -> str:
    """Return what finds a text, but not inside of a longer word."""
    if len(text) >= LONG and not text.isalpha():
        return re.escape(text)
    before = r"(?:(?<!\w)|(?<=%[0-9a-f][0-9a-f])|(?<=\\[nrt]))" if _in_a_word(text[0]) else ""
    return before + re.escape(text) + (r"(?!\w)" if _in_a_word(text[-1]) else "")


def _in_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"


# Our own messages about a value that never came into the store end with it.
_MIXED: Final = re.compile(r"(a mix of units and data: the \w+) .*(?= is no unit)", re.DOTALL)
_TYPED: Final = re.compile(r"(but its value is a \w+): .*", re.DOTALL)


def _declared_values(text: str) -> str:
    return _TYPED.sub(r"\1", _MIXED.sub(r"\1", text))


# What is in a value.


def _leaves(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the texts and long numbers in these values; of each in turn, that a large one does not hide the others."""
    waiting = deque((key, _texts(value)) for key, value in values)
    while waiting:
        key, texts = waiting.popleft()
        text = next(texts, None)
        if text is not None:
            yield key, text
            waiting.append((key, texts))


_WORD: Final = re.compile(r"[a-z_-]*")


def _texts(root: Any) -> Iterator[str]:
    waiting: deque[tuple[Any, int, bool]] = deque([(root, 0, False)])
    seen: set[int] = set()
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        value, depth, doubtful = waiting.popleft()
        if type(value) is _Doubtful:
            value, doubtful = value.value, True
        try:
            text = _text(value)
        except Exception:  # of a class that is odd
            continue
        if text is not None:
            if not (doubtful and _WORD.fullmatch(text)):
                yield text
                if "\n" in text:
                    yield from (line for line in text.split("\n") if len(line) >= LINE)
        elif depth < DEEPEST and id(value) not in seen:
            seen.add(id(value))
            waiting.extend((inner, depth + 1, False) for inner in islice(_inside(value), MOST_STEPS))


_TOLD_BY_STR: Final = frozenset({"uuid", "decimal", "fractions", "datetime", "ipaddress"})  # of the standard library


def _text(value: Any) -> str | None:
    """Return what a single value is as text; None for what has others in it, "" for what says nothing."""
    if isinstance(value, str):
        return str.__str__(value)  # not that of a class which hides it
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if type(value) in (int, float):
        return str(value) if abs(value) >= 10**SHORTEST else ""
    if isinstance(value, PurePath) or type(value).__module__ in _TOLD_BY_STR:
        return str(value)
    return None


def _inside(value: Any) -> Iterator[Any]:
    """Yield what is in a container, or in an object; the keys of a dict, too."""
    kind = cast("type[Any]", type(value))
    try:
        if inspect.ismodule(value) or isinstance(value, type) or kind.__module__.partition(".")[0] == "flowdeco":
            return
        if isinstance(value, Mapping):
            for key, inner in cast("Mapping[Any, Any]", value).items():
                yield inner
                yield _Doubtful(key)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            yield from cast("Iterable[Any]", value)
        else:
            fields: dict[str, Any] = dict.fromkeys(getattr(value, "__dataclass_fields__", ()))
            fields.update(dict.fromkeys(getattr(value, "__dict__", ())))
            for name in (*fields, *_slots(kind)):
                yield getattr(value, name, None)
    except Exception:  # of a class that is odd
        return


def _slots(kind: type[Any]) -> Iterator[str]:
    for one in kind.__mro__:
        slots: Any = one.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            yield f"_{one.__name__.lstrip('_')}{name}" if private else name
