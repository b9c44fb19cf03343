"""What the public API is to type checkers: mypy and pyright read this file, both strict; nobody runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, assert_type

from flowdeco import (
    Action,
    Context,
    Key,
    Parallel,
    Pipeline,
    Run,
    Sleep,
    Stage,
    StageTemplate,
    Status,
    Store,
    action,
    parallel,
    pipeline,
    stage,
    stream,
)
from flowdeco.engine.runs import ActionRecord, StageRecord
from flowdeco.errors import Problem
from flowdeco.middleware import Call, atomic, recover, retry
from flowdeco.observers.otel import spans
from flowdeco.show import Change, Diff, Plan, Ran

USER_ID = Key("user.id", int)
NAMES = Key("names", list[str])
MAYBE = Key("maybe", int | None)
ANYTHING = Key("anything")

assert_type(USER_ID, Key[int])
assert_type(NAMES, Key[list[str]])
assert_type(MAYBE, Key[int | None])
assert_type(ANYTHING, Key[Any])


# A decorated function keeps its signature: with and without options, sync and async, generators too.


@action
def double(n: int, *, times: int = 2) -> int:
    return n * times


@action(name="renamed", tags=["x"], returns=(USER_ID, "other"), use=[atomic], timeout=1.5)
def with_options(n: int, *, times: int = 2) -> int:
    return n * times


@action
async def fetch(url: str) -> bytes:
    return url.encode()


@action(collect="pages")
async def fetch_with_options(url: str) -> bytes:
    return url.encode()


@action
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@action
async def pages(n: int) -> AsyncIterator[str]:
    yield str(n)


@action
def keyed(title: Annotated[str, "report.title"], user: Annotated[int, USER_ID]) -> str:
    return f"{title} {user}"


assert_type(double(2, times=3), int)
assert_type(with_options(n=2), int)
assert_type(numbers(3), Iterator[int])
assert_type(pages(3), AsyncIterator[str])
assert_type(keyed("title", 1), str)
assert_type(double.name, str)
assert_type(double.tags, frozenset[str])
assert_type(double.description, str)
as_function: Callable[[int], int] = double
as_coroutine_function: Callable[[str], Awaitable[bytes]] = fetch
any_action: Action = double
precise: Action[[str], Awaitable[bytes]] = fetch_with_options


async def awaited() -> None:
    assert_type(await fetch("url"), bytes)
    assert_type(await fetch_with_options(url="url"), bytes)


class Service:
    @action
    def method(self, n: int) -> int:
        return n

    @action(tags=["x"])
    async def coroutine(self, n: int) -> int:
        return n

    @action
    @classmethod
    def of_class(cls, n: int) -> int:
        return n

    @action
    @staticmethod
    def static(n: int) -> int:
        return n


assert_type(Service().method(1), int)
assert_type(Service.method(Service(), 1), int)
assert_type(Service().of_class(1), int)
assert_type(Service.of_class(1), int)
assert_type(Service().static(1), int)
assert_type(Service.static(1), int)
bound_method: Action[..., int] = Service().method

existing = action(double)
assert_type(existing(1), int)
assert_type(double.bind(n=3), Action[..., int])
assert_type(double.bind(n=3)(), int)
assert_type(double.with_options(name="twice", returns=None)(2, times=3), int)
assert_type(action(len)([]), int)


# Without parameters `stage` gives a Stage, with parameters a StageTemplate.


@stage
def plain() -> None:
    @action
    def inner() -> None: ...


@stage(name="named", title="Named", tags=["x"], data={"a": 1}, use=[atomic], use_actions=[retry(on=OSError)])
def plain_with_options() -> None:
    action(double)


@stage
def process(kind: str, n: int = 0, *, fast: bool = False) -> None:
    @action(collect="processed")
    def handle() -> str:
        return kind * n


@stage(tags=["dynamic"])
def process_with_options(kind: str, n: int = 0, *, fast: bool = False) -> None:
    action(double)


assert_type(plain, Stage)
assert_type(plain_with_options, Stage)
assert_type(process("x", fast=True), Stage)
assert_type(process_with_options("x", n=2), Stage)
assert_type(process("x").with_options(name="other"), Stage)
assert_type(process.name, str)
any_template: StageTemplate = process
as_stage_function: Callable[[str], Stage] = process_with_options

assert_type(Stage("by hand", [double, print, Service().method], data={"n": 1}), Stage)
assert_type(plain["inner"], Action[..., Any])
assert_type(list(plain), list[Action[..., Any]])
assert_type(plain.data, dict[str, Any])


# Everything chains to a Pipeline, and runs to a Run.

assert_type(double >> fetch, Pipeline)
assert_type(plain >> double, Pipeline)
assert_type(double >> plain >> process("x") >> parallel(double, plain), Pipeline)
assert_type((plain >> plain) >> (plain >> double), Pipeline)
assert_type(
    pipeline(double, plain, parallel(plain), name="all", use=[atomic], use_stages=[recover(on=OSError)]), Pipeline
)
assert_type(parallel(double, plain >> fetch, limit=2, merge={"n": max}), Parallel)

flow = double >> plain
assert_type(flow["clean":], Pipeline)
assert_type(flow[:1], Pipeline)
assert_type(flow.only("tag:etl").without("cleanup", "tag:slow"), Pipeline)
assert_type(flow.with_options(name="other"), Pipeline)
assert_type(flow.validate(["n"]), list[Problem])
assert_type(plain.validate({"n": 1}), list[Problem])

assert_type(flow.run(), Run)
assert_type(double.run({"n": 1}, skip=["tag:slow"], observers=[print], check=False, history=10), Run)
assert_type(plain.run(use=[atomic]), Run)
assert_type(plain.run({"n": 1}, journal="runs.db", run_id="one", progress=True, executor=None), Run)
assert_type(plain.run(journal="runs.db", run_id="one", if_exists="resume"), Run)
assert_type(plain.resume("one", {"n": 1}, journal="runs.db", on_change="ignore", from_stage="plain", check=False), Run)
assert_type(parallel(plain).run(), Run)
assert_type(flow.plan(), Plan)
assert_type(double.plan().text(), str)
assert_type(flow.run().ran(), Ran)
assert_type(flow.plan().diff(flow.run().ran()), Diff)
assert_type(flow.plan().diff(flow.run()).inserted, tuple[Change, ...])
assert_type(flow.run().to_html("run.html", values=True), Path)


async def run_in_the_loop() -> None:
    assert_type(await flow.arun({"n": 1}), Run)
    assert_type(await double.arun(), Run)
    assert_type(await process("x").arun(check=False), Run)
    assert_type(await flow.aresume("one", journal="runs.db", skip=["tag:slow"]), Run)


def read(run: Run) -> None:
    assert_type(run[USER_ID], int)
    assert_type(run["anything"], Any)
    assert_type(run.status, Status)
    assert_type(run.store, Store)
    assert_type(run.error, BaseException | None)
    assert_type(run.stages[0], StageRecord)
    assert_type(run.stages[0].actions[0], ActionRecord)
    assert_type(run.stages[0].inserted_by, str | None)
    assert_type(Run.of(ValueError()), Run)


# What actions return, and what they are given.


@action
def discover() -> list[Stage]:
    return [process("a"), process("b")]


@action
def decide(n: int) -> Stage | Action | None:
    return process("big") if n > 10 else double.bind(n=n) if n else None


@action
def many() -> Any:
    return stream(process(str(n)) for n in range(1_000_000))


def stages_of(kinds: list[str], n: int) -> Iterator[Stage]:
    yield from (process(kind, n) for kind in kinds)


async def async_stages() -> AsyncIterator[Stage]:
    yield process("x")


streams = [stream(stages_of, ["a"], 2), stream(async_stages), stream(async_stages()), stream([double, plain])]


@action
def in_context(ctx: Context) -> None:
    assert_type(ctx.store[USER_ID], int)
    assert_type(ctx.wait_for(USER_ID), int)
    assert_type(ctx.wait_for("approval"), Any)
    assert_type(ctx.wait_for("approval", about={"total": 120}, type=bool), bool)
    assert_type(ctx.wait_for("approval", type=bool, timeout=60, default=None), bool | None)
    assert_type(ctx.wait_for(USER_ID, timeout=60, default="nobody"), int | str)
    assert_type(ctx.wait_for("approval", type=bool, timeout=timedelta(hours=1), default=None), bool | None)
    ctx.sleep(3)
    ctx.sleep(timedelta(hours=1))
    assert_type(ctx.run_id, str)
    assert_type(ctx.stage, Stage)
    assert_type(ctx.action, Action[..., Any])
    ctx.insert(double, process("x"), flow, stream([double]))
    ctx.disable("tag:slow", "stage/action")
    ctx.progress(1, 3)
    ctx.emit("found", number=3)


class Bar:
    total: float | None = None

    def update(self, n: float | None = 1) -> bool | None:
        return None

    def close(self) -> None: ...


def watched() -> None:
    assert_type(flow.run(progress=True), Run)
    flow.run(progress=None)
    flow.run(progress=lambda done, known, current: print(done + known, current.upper()))
    flow.run(progress=Bar())
    flow.run(observers=[spans()])


def typed_store(store: Store) -> None:
    assert_type(store[USER_ID], int)
    assert_type(store["anything"], Any)
    assert_type(store.get(USER_ID), int | None)
    assert_type(store.get(USER_ID, "none"), int | str)
    assert_type(store.get("anything"), Any)
    assert_type(store.get("anything", 3), Any)
    store[USER_ID] = 3
    store["anything"] = object()
    store.append(NAMES, "name")
    store.append("anything", object())
    store.update({"a": 1}, b=2)
    assert_type(list(store), list[str])


# Middleware is a generator function of one argument.


def timed(call: Call) -> Generator[None, Any, None]:
    assert_type(call.attempt, int)
    assert_type(call.stage, Stage | None)
    yield
    call.store["seconds"] = 0.0


def connected(call: Call) -> Generator[dict[str, Any] | Sleep, Any, None]:
    yield Sleep(0.1)
    yield {"connection": object()}


async def asynchronous(call: Call) -> AsyncIterator[None]:
    yield


layered = double.with_options(use=[timed, connected, asynchronous, retry(on=(OSError, ValueError), attempts=2)])
