"""Definitions that can be imported: a pickle of one refers to this module, and finds it here again."""

import functools
import threading
from typing import Generic, NewType, TypeVar

from flowdeco import Key, action, parallel, stage

T = TypeVar("T")
N = Key("the.number", int)
UserId = NewType("UserId", int)


class Unknown:
    pass


class Box(Generic[T]):
    pass


@action
def double(n: int) -> int:
    """Twice the number.

    >>> double(2)
    4
    """
    return 2 * n


@action(name="total", tags=["slow"], returns="sum", timeout=5, description="Add them.")
def add(x, y=0):
    return x + y


def plain(n):
    """A function that is no action."""
    return n


ALIAS = action(name="alias")(plain)


BOUND = add.bind(y=5)


CHANGED = double.with_options(name="changed", returns="other")


BOTH = add.with_options(name="both").bind(x=1).with_options(tags=["t"]).bind(y=2)


PARTIAL = action(name="partial")(functools.partial(plain, 3))


BUILTIN = action(len)


@functools.lru_cache
def _cached(n):
    return n


CACHED = action(name="cached")(_cached)


class Shelf:
    """It has an action of an object, which has a lock."""

    @action(name="locked")
    @functools.partial
    def locked(n=threading.Lock()):
        return n

    held = action(name="held")(functools.partial(plain, threading.Lock()))


@stage(tags=["static"])
def counting():
    """Count to two."""

    @action
    def first() -> int:
        return 1

    @action
    def second(first: int) -> int:
        return first + 1


@stage
def greet(name, *, loud=False):
    @action(collect="greetings")
    def hello():
        return f"hello {name}{'!' * loud}"


FLOW = counting >> double.bind(n=1) >> greet("you") >> parallel(add, greet("me", loud=True), name="group")


def layer(call):
    yield


class Shop:
    """A class with actions for methods."""

    def __init__(self, price):
        self.price = price

    def __eq__(self, other):
        return isinstance(other, Shop) and self.price == other.price

    def __hash__(self):
        return hash(self.price)

    @action
    def total(self, n: int) -> int:
        """Price of n pieces."""
        return self.price * n

    cheap = total.with_options(name="cheap")

    @action
    @classmethod
    def brand(cls) -> str:
        """The name of the class."""
        return cls.__name__

    @action
    @staticmethod
    def motto() -> str:
        """What it says."""
        return "cheap"

    @action
    async def later(self) -> int:
        return self.price


class Callable:
    """An object that can be called."""

    def __call__(self, n):
        return n + 1


OBJECT = action(name="object")(Callable())
