"""An order that waits for a person: the process ends, and another one continues where it stopped.

    python order_approval.py order 42            # reserves, and stops: this order needs an approval
    python order_approval.py waiting             # the open questions, and their deadlines
    python order_approval.py approve order-42    # continues, in another process, on another day
    python order_approval.py refuse order-42 "too expensive"
    python order_approval.py remind              # for cron: reminds, and refuses orders that nobody approves in time

After two days without an answer a reminder is sent; after two more the order is refused. The state of each order is in
`orders.db` in the current folder, a journal. It is written as JSON, so that opening it runs no code from it.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from flowdeco import Context, Run, Stage, action, pipeline, stage
from flowdeco.durable import SqliteJournal, due, runs
from flowdeco.errors import JournalError

PRICES = {"desk": Decimal("349.00"), "chair": Decimal("129.50"), "lamp": Decimal("39.90")}
ORDERS = {7: {"lamp": 2}, 42: {"desk": 2, "lamp": 1}, 43: {"chair": 6}}
SMALL = Decimal(100)  # what costs less needs no approval
PATIENCE = float(os.environ.get("PATIENCE", "172800"))  # seconds until the reminder, and from then until the refusal


@dataclass(frozen=True)
class Order:
    """The items of an order, and their price."""

    number: int
    items: dict[str, int]
    total: Decimal

    def __str__(self) -> str:
        return ", ".join(f"{count} x {item}" for item, count in self.items.items())


@action(returns="order")
def look_up(number: int) -> Order:
    items = ORDERS[number]
    return Order(number, items, sum((PRICES[item] * count for item, count in items.items()), Decimal(0)))


@action
def reserve(order: Order) -> None:
    print(f"reserved {order}")


@action
def first_answer(order: Order, ctx: Context) -> bool | None:
    """Return the decision, None if there is none before the reminder."""
    if order.total <= SMALL:
        return True
    about = f"{order} for {order.total} EUR"
    answer: bool | None = ctx.wait_for("approved", about=about, type=bool, timeout=PATIENCE, default=None)
    return answer


@action
def remind(order: Order, first_answer: bool | None) -> None:
    if first_answer is None:
        print(f"reminder: {order} still needs an approval")


@action
def decide(order: Order, first_answer: bool | None, ctx: Context) -> list[Stage]:
    answer = first_answer
    if answer is None:
        about = f"reminder: {order} for {order.total} EUR"
        answer = ctx.wait_for("approved", about=about, type=bool, timeout=PATIENCE, default=False)
    return [pay, *(ship(item, count) for item, count in order.items.items())] if answer else [cancel]


@stage
def pay() -> None:
    @action
    def charge(order: Order, ctx: Context) -> str:
        # The key is the same whenever this step is repeated: a payment service charges once.
        print(f"charged {order.total} EUR, idempotency key {ctx.step_id}")
        return ctx.step_id


@stage
def ship(item: str, count: int) -> None:
    @action(collect="parcels")
    def pack() -> str:
        print(f"packed {count} x {item}")
        return item


@stage
def cancel() -> None:
    @action
    def release(order: Order) -> None:
        print(f"released {order}")


@action
def conclude(parcels: Sequence[str] = (), reason: str = "nobody approved it in time") -> str:
    return f"{len(parcels)} parcels on their way" if parcels else f"refused: {reason}"


flow = pipeline(look_up, reserve, first_answer, remind, decide, conclude, name="order")


def told(run: Run) -> str:
    """Describe the state of a run."""
    return f"{run.id} {run.status}: {run.reason or run['conclude']}"


def order(journal: SqliteJournal, number: str) -> str:
    return told(flow.run({"number": int(number)}, journal=journal, run_id=f"order-{number}"))


def approve(journal: SqliteJournal, run_id: str) -> str:
    return told(flow.resume(run_id, {"approved": True}, journal=journal))


def refuse(journal: SqliteJournal, run_id: str, reason: str = "no reason given") -> str:
    return told(flow.resume(run_id, {"approved": False, "reason": reason}, journal=journal))


def remind_all(journal: SqliteJournal) -> str:
    return "\n".join(told(flow.resume(run.id, journal=journal)) for run in due(journal)) or "nothing is due"


def waiting(journal: SqliteJournal) -> str:
    lines = [
        f"{run.id}   {question.about}   until {datetime.fromtimestamp(question.deadline or 0):%Y-%m-%d %H:%M}"
        for run in runs(journal)
        for question in run.questions
    ]
    return "\n".join(lines) or "nothing waits"


COMMANDS: dict[str, Callable[..., str]] = {
    "order": order, "approve": approve, "refuse": refuse, "waiting": waiting, "remind": remind_all,
}  # fmt: skip


def main(command: str = "", *arguments: str) -> int:
    if command not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(COMMANDS[command](SqliteJournal("orders.db", codec="json"), *arguments))
    except JournalError as error:  # no such run, in use by another process, ...
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
