"""Mistakes that type checkers find: each `type: ignore` stands for an error, and one that is not needed is an error too.

mypy compares the code of the error, pyright that there is one.
"""
# pyright: strict, reportPrivateUsage=false, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import flowdeco
import flowdeco.durable
from flowdeco import Context, Key, Stage, Store, action, pipeline, stage
from flowdeco.middleware import retry

USER_ID = Key("user.id", int)


@action
def double(n: int) -> int:
    return 2 * n


@action(tags=["x"])
async def fetch(url: str) -> bytes:
    return url.encode()


@stage
def process(kind: str) -> None:
    action(double)


@stage
def plain() -> None:
    action(double)


flowdeco.acton  # type: ignore[attr-defined]
flowdeco.durable.JsonCdec  # type: ignore[attr-defined]
double("two")  # type: ignore[arg-type]
double(2, 3)  # type: ignore[call-arg]
fetch(3)  # type: ignore[arg-type, unused-coroutine]
double.with_options(name="twice")("two")  # type: ignore[arg-type]
double.nmae  # type: ignore[attr-defined]
double.run([1])  # type: ignore[arg-type]
double.run(skp=["x"])  # type: ignore[call-arg]
double.run(history="all")  # type: ignore[arg-type]
double.resume("one", run_id="two")  # type: ignore[call-arg]
action(double, name="twice")  # type: ignore[call-overload]
action(timeout="1 s")  # type: ignore[call-overload]

process()  # type: ignore[call-arg]
process(3)  # type: ignore[arg-type]
plain()  # type: ignore[operator]
Stage("x", tags=3)  # type: ignore[arg-type]

double >> process  # type: ignore[operator]
process >> double  # type: ignore[operator]
plain >> print  # type: ignore[operator]
print >> plain  # type: ignore[operator]
pipeline(double, process)  # type: ignore[arg-type]
pipeline(double, lambda: 3)  # type: ignore[arg-type]


def typed_store(store: Store) -> None:
    store[USER_ID] = "three"  # type: ignore[misc]
    wrong: str = store[USER_ID]  # type: ignore[assignment]
    maybe: int = store.get(USER_ID)  # type: ignore[assignment]
    store.append(Key("names", list[str]), 3)  # type: ignore[misc]
    print(wrong, maybe)


def in_context(ctx: Context) -> None:
    wrong: str = ctx.wait_for(USER_ID)  # type: ignore[assignment]
    ctx.insert(process)  # type: ignore[arg-type]
    print(wrong)


retry(attempts=3)  # type: ignore[call-arg]
