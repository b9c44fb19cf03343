"""References: an importable definition is pickled as one, and loaded from it again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from flowdeco.errors import UnreferencedError


class Imported(NamedTuple):
    """The object at `module:qualname`."""

    module: str
    qualname: str

    def load(self) -> Any:
        """Import the object."""
        __import__(self.module)
        found: Any = sys.modules[self.module]
        for part in self.qualname.split("."):
            found = getattr(found, part)
        return found


class Called(NamedTuple):
    """The stage that a template makes for these arguments."""

    template: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def load(self) -> Any:
        """Call the template."""
        return self.template(*self.args, **self.kwargs)


class Member(NamedTuple):
    """An action by its place in the stage that declared it."""

    stage: Imported | Called
    position: int

    def load(self) -> Any:
        """Get the stage, and the action from it."""
        return self.stage.load().actions[self.position]


class Changed(NamedTuple):
    """Another definition with some options changed."""

    base: Any
    changes: dict[str, Any]

    def load(self) -> Any:
        """Change the base."""
        return self.base.with_options(**self.changes)


class Method(NamedTuple):
    """An action of a class, bound to an object."""

    base: Any
    instance: Any

    def load(self) -> Any:
        """Bind it to the object."""
        return self.base.__get__(self.instance, type(self.instance))


class Narrowed(NamedTuple):
    """A stage with only some of its actions, given by their places."""

    base: Any
    places: tuple[int, ...]

    def load(self) -> Any:
        """Narrow the base."""
        return self.base.narrowed(self.places)


class Bound(NamedTuple):
    """An action with some values fixed."""

    base: Any
    values: dict[str, Any]

    def load(self) -> Any:
        """Bind the base."""
        return self.base.bind(**self.values)


Origin: TypeAlias = Imported | Called | Member | Method | Changed | Narrowed | Bound


def load(origin: Origin) -> Any:
    """Return the definition that a pickled reference stands for."""
    return origin.load()


def require_importable(origin: Imported | Called, what: str, accept: Callable[[Any], bool]) -> None:
    """Raise `UnreferencedError` if an import does not lead back to the definition."""
    if isinstance(origin, Called):
        return  # the template is checked when it is pickled itself
    where = f"{origin.module}:{origin.qualname}"
    if "<lambda>" in origin.qualname:
        reason = "it is a lambda: define it with `def`"
    elif "<locals>" in origin.qualname:
        reason = (
            f"it is defined inside a function ({where}): move it to module level, or make it a stage template there"
        )
    else:
        try:
            found = origin.load()
        except (ImportError, AttributeError, KeyError) as error:
            reason = f"{where} cannot be imported ({error})"
        else:
            if accept(found):
                return
            reason = f"{where} is a different object now: give the two different names there"
    raise UnreferencedError(f"cannot pickle {what}: {reason}")
