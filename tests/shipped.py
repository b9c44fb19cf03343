"""Definitions for executors in other processes: at module level, where a worker can import them."""

import os
import sys
import threading
import time
from pathlib import Path

from flowdeco import Bail, Context, Key, Stage, Suspend, action, stage, stream

TOTAL = Key("total", int)


class Vault:
    """A value that can be used but not pickled."""

    def __init__(self):
        self.lock = threading.Lock()


class Picky(Exception):
    """An exception that cannot be pickled: it is made from other arguments than those it keeps."""

    def __init__(self, code, *, reason):
        super().__init__(f"{reason} ({code})")


class Holder(Exception):
    """An exception that carries what cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class Treacherous:
    """A value that is pickled without complaint, and cannot be unpickled."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    """Refuse to be unpickled."""
    raise ValueError("not in this process")


@action
def square(n: int) -> int:
    """The square of a number."""
    return n * n


@action
def cube(n: int) -> int:
    return n**3


@action(collect="pids")
def pid():
    return os.getpid()


@action(collect="pids")
async def async_pid():
    return os.getpid()


@action(collect="pids")
async def async_pids():
    yield os.getpid()


@action(collect="seen")
def length(text):
    return len(text)


@action
def names_itself(ctx: Context):
    return [ctx.run_id, ctx.pipeline.name, ctx.stage.name, ctx.action.name, sorted(ctx.stage.tags), ctx.step_id]


@action
def adds_up(ctx: Context, n: int):
    """Read, write, append, remove: all in its own view."""
    store = ctx.store
    assert "old" in store
    store["sum"] = n + store["old"]
    store[TOTAL] = store["sum"] + 1
    store.append("visits", "first")
    store.append("visits", len(store["visits"]))
    del store["old"]
    return store["sum"] * 10


@action
def sees(ctx: Context):
    return dict(ctx.store)


@stage
def greet(name: str):
    """A template: its stages can be referenced."""

    @action(collect="greetings")
    def hello():
        return f"hello {name}"

    @action(collect="greetings")
    def goodbye(ctx: Context):
        return f"goodbye {name} from {ctx.stage.name}"


@action
def inserts():
    return [greet("ann"), greet("bob")]


@action
def inserts_both(ctx: Context):
    ctx.insert(greet("ann"))
    return square.bind(n=7)


@action
def generates():
    yield greet("ann")
    yield square.bind(n=7)
    return "generated"


@action(collect="seen")
def yields_data():
    yield from range(3)


@action
def streams():
    return stream(greetings, "ann", "bob")


def greetings(*names):
    """Yield stages."""
    for name in names:
        yield greet(name)


@action
def talks(ctx: Context):
    ctx.emit("hello", name="ann")
    ctx.progress(1, 2)
    ctx.logger.info("said hello")
    return "talked"


@action
def shows(ctx: Context):
    ctx.show({1})


@action
def talks_and_fails(ctx: Context):
    ctx.emit("hello")
    ctx.store["left"] = 1
    raise ValueError("said too much")


@action
def switches_off(ctx: Context):
    ctx.disable("greet")
    ctx.enable("square")


@action(collect="pending")
def looks_ahead(ctx: Context):
    return [(unit.name, sorted(unit.tags)) for unit in ctx.pending]


@action
def waits(ctx: Context):
    ctx.store["dropped"] = 1
    return ctx.wait_for("approval")


@action
def suspends():
    raise Suspend("not yet")


@action
def enough(ctx: Context):
    ctx.store["kept"] = 1
    raise Bail("enough")


@action
def bails():
    raise Bail("at once")


@action
def fails(n: int):
    raise ValueError(f"no luck with {n}")


@action
def fails_with_cause():
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


@action
def exits():
    sys.exit(3)


@action
def fails_pickily():
    raise Picky(3, reason="too picky")


@action
def fails_holding():
    raise Holder("holding a lock")


@action
def fails_and_leaves_a_lock(ctx: Context):
    ctx.store["vault"] = Vault()
    raise ValueError("the real reason")


@action
def returns_lock():
    return {"parts": [1, threading.Lock()]}


@action
def writes_lock(ctx: Context):
    ctx.store["vault"] = Vault()


@action
def appends_lock(ctx: Context):
    ctx.store.append("vaults", Vault())


@action
def inserts_local():
    def local():
        """Cannot be referenced."""

    return Stage("local", [action(local)])


@action
def emits_lock(ctx: Context):
    ctx.emit("lock", vault=Vault())


@action
def returns_treachery():
    return Treacherous()


@action
def dies():
    os._exit(1)


@action
def dies_once(path):
    """Kill the worker that calls it, the first time."""
    marker = Path(path)
    if not marker.exists():
        marker.write_text("died", encoding="utf-8")
        os._exit(1)
    return "survived"


@action
def fails_once(path):
    """Fail the first time; count the calls in a file."""
    marker = Path(path)
    with marker.open("a", encoding="utf-8") as calls:
        calls.write("x")
    if marker.stat().st_size < 2:
        raise ValueError("the first time")
    return "at last"


@action
def notes_call(path):
    with Path(path).open("a", encoding="utf-8") as calls:
        calls.write("x")


@action
def notes_call_slowly(path):
    with Path(path).open("a", encoding="utf-8") as calls:
        calls.write("x")
    time.sleep(0.05)


@action(collect="pids")
def meets(folder):
    """Wait for another process that does the same."""
    Path(folder, str(os.getpid())).touch()
    until = time.monotonic() + 20
    while len(list(Path(folder).iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    return os.getpid()


@action
def says_pid_and_sleeps(path, seconds):
    """Write the number of the process into a file, then take some time."""
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(seconds)


@action(timeout=0.2)
def sleeps_too_long():
    time.sleep(1.5)


class Shop:
    """Actions for methods."""

    def __init__(self, price):
        self.price = price

    @action
    def total(self, n: int) -> int:
        return self.price * n

    @action
    @classmethod
    def brand(cls) -> str:
        return cls.__name__

    @action
    @staticmethod
    def motto() -> str:
        return "cheap"


SHOP = Shop(5)
total_of_shop = SHOP.total


class Score:
    """A value without an `__eq__`."""

    def __init__(self, value):
        self.value = value


@action(returns="score")
def left_score():
    return [float("nan"), Score(1)]


@action(returns="score")
def right_score():
    return [float("nan"), Score(1)]
