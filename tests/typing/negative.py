"""Mistakes that type checkers find: each `type: ignore` stands for an error, and one that is not needed is an error too.

The first comment has what mypy reports, the second what pyright does; each compares its own.
"""
# pyright: strict, reportPrivateUsage=false, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import flowdeco
import flowdeco.durable
from flowdeco import Context, Key, Stage, Store, action, parallel, pipeline, stage
from flowdeco.middleware import Call, retry

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


def no_middleware(call: Call) -> int:
    return call.attempt


@stage
def plain() -> None:
    action(double)


flowdeco.acton  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
flowdeco.durable.JsonCdec  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
double("two")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double(2, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fetch(3)  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportUnusedCoroutine, reportArgumentType]
double.with_options(name="twice")("two")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.nmae  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
double.run([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.run(skp=["x"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
double.run(history="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.resume("one", run_id="two")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
action(double, name="twice")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
action(timeout="1 s")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
action(use=[no_middleware])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]

double.resume("one", on_change="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.run(if_exists="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.run(journal=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.run(use=[no_middleware])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
double.run(observers=[3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
double.with_options(nmae="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
double.with_options(timeout="1 s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
double.with_options(use=retry)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

process()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
process(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
plain()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
Stage("x", tags=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Stage("x").with_options(tag=["x"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Stage("x").with_options(local="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

double >> process  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
process >> double  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
plain >> print  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
print >> plain  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
pipeline(double, process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
pipeline(double, lambda: 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
pipeline(double, use=no_middleware)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
pipeline(double).with_options(limit=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
parallel(double, limit="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
parallel(double).with_options(use=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
parallel(double, merge=[])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def typed_store(store: Store) -> None:
    store[USER_ID] = "three"  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    wrong: str = store[USER_ID]  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    maybe: int = store.get(USER_ID)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    store.append(Key("names", list[str]), 3)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    print(wrong, maybe)


def in_context(ctx: Context) -> None:
    wrong: str = ctx.wait_for(USER_ID)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ctx.insert(process)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(wrong)


retry(attempts=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
