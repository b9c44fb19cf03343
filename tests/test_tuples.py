"""Named tuples of our own: what `typing` makes of the same class, but for how long that takes."""

import copy
import inspect
import pickle
import typing

import pytest

from flowdeco.model import tuples


class Theirs(typing.NamedTuple):
    """A place."""

    x: int
    y: "int | None" = None
    names: "tuple[str, ...]" = ()

    def moved(self):
        """The next place."""
        return self._replace(x=self.x + 1)

    @property
    def is_first(self):
        return self.x == 0


class Ours(tuples.NamedTuple):
    """A place."""

    x: int
    y: "int | None" = None
    names: "tuple[str, ...]" = ()

    def moved(self):
        """The next place."""
        return self._replace(x=self.x + 1)

    @property
    def is_first(self):
        return self.x == 0


def facts(cls):
    """All that there is to see of a class, and of its values."""
    one = cls(0, names=("a",))
    return {
        "values": (tuple(one), one._asdict(), tuple(one.moved()), one.is_first, one.moved().is_first, hash(one)),
        "class": (cls.__doc__, cls.__bases__, cls.__module__, cls.__slots__, cls._fields, cls._field_defaults),
        "signature": [
            (name, each.kind, each.default, getattr(each.annotation, "__forward_arg__", each.annotation))
            for name, each in inspect.signature(cls).parameters.items()
        ],
        "matching": cls.__match_args__,
        "hints": typing.get_type_hints(cls),
        "names": set(vars(cls)) - {"__orig_bases__"},
        "repr": repr(one).replace(cls.__name__, ""),
    }


def test_it_is_the_class_that_typing_makes():
    """In everything that one can see of it."""
    assert facts(Ours) == facts(Theirs)


def test_its_values_can_be_pickled_and_copied():
    """By the name of the class, nested in another one or not."""
    one = Ours(1, 2)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert type(pickle.loads(pickle.dumps(one))) is Ours
    assert Ours.__qualname__ == "Ours"


def test_a_missing_value_and_one_too_many_are_refused():
    """As for a function."""
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Ours()
    with pytest.raises(TypeError, match="takes from 2 to 4 positional arguments but 5 were given"):
        Ours(1, 2, 3, 4)


@pytest.mark.parametrize("cls", [Ours, Theirs])
def test_wrong_fields_are_refused(cls):
    """When one is made of an iterable, and when fields are replaced."""
    assert cls._make([1, 2, 3]) == (1, 2, 3)
    with pytest.raises(TypeError, match="Expected 3 arguments, got 2"):
        cls._make([1, 2])
    with pytest.raises((ValueError, TypeError), match=r"Got unexpected field names: \['z'\]"):
        cls(1)._replace(y=2, z=3)


def test_fields_are_not_those_of_another_class_with_as_many():
    """Whose constructor has the same code."""

    class Other(tuples.NamedTuple):
        a: int
        b: int = 2
        c: int = 3

    assert Other(a=1)._asdict() == {"a": 1, "b": 2, "c": 3}
    assert repr(Other(1)) == "Other(a=1, b=2, c=3)"
    assert Ours(1)._asdict() == {"x": 1, "y": None, "names": ()}
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        Other(x=1)
