"""Flows of `test_executors_tried.py`, at module level, where a worker can import them; and one to interrupt."""

import asyncio
import sys
import time
from concurrent.futures import wait
from pathlib import Path

from flowdeco import Context, action, parallel, pipeline, stage


class Refused(Exception):
    """An exception with arguments that its message does not show."""

    def __init__(self, shop, code):
        super().__init__(shop, code)
        self.code = code

    def __str__(self):
        return f"{self.args[0]} refused"


@stage
def shop(name: str, size: int):
    """Numbers of a shop: with a local result, a write by `ctx`, and an insertion."""

    @action
    def stock(n: int) -> list[int]:
        return [n * number for number in range(size)]

    @action(collect="sums")
    def counted(stock: list[int], ctx: Context) -> tuple[str, int]:
        ctx.store[f"largest of {name}"] = max(stock, default=0)
        ctx.store.append("visited", name)
        ctx.emit("counted", shop=name)
        return name, sum(stock)

    @action
    def audited(ctx: Context):
        if size > 2:
            ctx.insert(audit(name))


@stage
def audit(name: str):
    @action(collect="audited")
    def note(visited: list[str]) -> str:
        return f"{name} after {visited}"


@action
def split(sizes: dict[str, int]):
    return parallel(*(shop(name, size) for name, size in sizes.items()), name="shops")


@action
def total(sums: list[tuple[str, int]]) -> int:
    return sum(number for _, number in sums)


shops = pipeline(split, total, name="shops")
SIZES = {"n": 3, "sizes": {"corner": 4, "market": 0, "kiosk": 7, "mall": 2}}


@stage
def leaf(path: str):
    @action(collect="leaves")
    def where() -> str:
        return path


def tree(path: str, depth: int):
    """Groups in groups, more than there are workers."""
    if depth == 0:
        return leaf(path)
    return parallel(*(tree(f"{path}{side}", depth - 1) for side in "abc"), name=path or "root") >> leaf(f"after {path}")


@stage
def refuses(name: str):
    @action
    def refuse() -> None:
        raise Refused(name, 7)


@stage
def refuses_once(name: str, folder: str):
    @action(collect="served")
    def serve() -> str:
        marker = Path(folder, name)
        if not marker.exists():
            marker.touch()
            raise Refused(name, 1)
        return name


@action(timeout=0.2)
def dawdle() -> None:
    time.sleep(1.5)


@action(collect="served")
def counts_calls(path: str) -> str:
    with Path(path).open("a", encoding="utf-8") as calls:
        calls.write("x")
    time.sleep(0.05)
    return "served"


@stage
def mixed(name: str):
    """A coroutine, which stays with the run, and a function, which travels."""

    @action
    async def asked() -> str:
        await asyncio.sleep(0)
        return f"asked {name}"

    @action(collect="answers")
    def answered(asked: str) -> str:
        return f"{asked}, answered"


# -- Ctrl-C, in a process of its own: `python tried.py KIND FILE`


@action
def begins_and_works(path: str) -> None:
    Path(path).touch()
    time.sleep(1)


def meet(path: str, name: str) -> None:
    """Wait for the other one."""
    Path(f"{path}.{name}").touch()
    while not all(Path(f"{path}.{each}").exists() for each in "ab"):
        time.sleep(0.01)


def main(kind: str, path: str) -> None:
    """Run until somebody interrupts it, and say how it ended."""
    import tried  # the workers do not know this `__main__`
    from pools import opened

    from flowdeco import Run

    def middleware(call):
        try:
            yield
        finally:
            print("unwound", flush=True)

    flow = parallel(*[tried.begins_and_works] * 60)
    with opened(kind) as executor:
        # Both workers have started: Ctrl-C in one that is still importing leaves a pool of the standard library hanging.
        wait([executor.submit(tried.meet, path, name) for name in "ab"])
        try:
            flow.run({"path": path}, executor=executor, use=[middleware])
        except KeyboardInterrupt as error:
            print(Run.of(error).status.value, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
