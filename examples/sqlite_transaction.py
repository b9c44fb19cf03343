"""A stage in a database transaction: middleware opens the connection, and commits or rolls back.

`transaction` is a generator with one `yield`: the code before it runs before the stage, the code after it when the stage
has ended. Actions of this stage get the yielded connection as their parameter `conn`. The first run completes and is
committed; the second fails halfway, and leaves the database unchanged.

    python examples/sqlite_transaction.py
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from flowdeco import action, stage
from flowdeco.middleware import Call

SCHEMA = """
    CREATE TABLE account (owner TEXT PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0));
    CREATE TABLE transfer (sender TEXT NOT NULL, receiver TEXT NOT NULL, amount INTEGER NOT NULL);
    INSERT INTO account VALUES ('ada', 100), ('grace', 20);
"""


def transaction(call: Call) -> Iterator[dict[str, sqlite3.Connection]]:
    """Give the actions a connection; commit if they complete, roll back if one of them fails."""
    with closing(sqlite3.connect(call.store["database"])) as conn, conn:
        yield {"conn": conn}


@stage(use=[transaction])
def transfer() -> None:
    """Move an amount from one account to another."""

    @action
    def note(conn: sqlite3.Connection, sender: str, receiver: str, amount: int) -> None:
        conn.execute("INSERT INTO transfer VALUES (?, ?, ?)", (sender, receiver, amount))

    @action
    def pay_in(conn: sqlite3.Connection, receiver: str, amount: int) -> None:
        conn.execute("UPDATE account SET balance = balance + ? WHERE owner = ?", (amount, receiver))

    @action
    def pay_out(conn: sqlite3.Connection, sender: str, amount: int) -> None:
        conn.execute("UPDATE account SET balance = balance - ? WHERE owner = ?", (amount, sender))


def create(database: Path) -> None:
    """Create a database with two accounts."""
    with closing(sqlite3.connect(database)) as conn:
        conn.executescript(SCHEMA)


def contents(database: Path) -> str:
    """Return the contents of the database: the balances, and the number of recorded transfers."""
    with closing(sqlite3.connect(database)) as conn:
        balances = conn.execute("SELECT owner, balance FROM account ORDER BY owner").fetchall()
        (transfers,) = conn.execute("SELECT count(*) FROM transfer").fetchone()
    return ", ".join(f"{owner} {balance}" for owner, balance in balances) + f"; transfers: {transfers}"


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        database = Path(folder, "bank.db")
        create(database)
        print(f"before: {contents(database)}")
        for amount in (30, 1000):
            inputs = {"database": database, "sender": "ada", "receiver": "grace", "amount": amount}
            run = transfer.run(inputs, check=False)
            print(f"\nmoving {amount}: {', '.join(f'{done.name} {done.status}' for done in run.stages[0].actions)}")
            if run.error is not None:
                print(f"{type(run.error).__name__}: {run.error}")
            print(f"{run.status}: {contents(database)}")
