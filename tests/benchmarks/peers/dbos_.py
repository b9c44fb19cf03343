"""DBOS: steps of a durable workflow, each recorded in its database, here SQLite."""

import logging
import tempfile
from importlib.metadata import version

from _steps import STEPS, measure
from dbos import DBOS, DBOSConfig

logging.disable(logging.CRITICAL)
folder = tempfile.mkdtemp()
config: DBOSConfig = {
    "name": "peers",
    "system_database_url": f"sqlite:///{folder}/dbos.sqlite",
    "run_admin_server": False,
    "log_level": "CRITICAL",
}
DBOS(config=config)


@DBOS.step()
def increment(n: int) -> int:
    return n + 1


@DBOS.workflow()
def durable() -> int:
    n = 0
    for _ in range(STEPS):
        n = increment(n)
    return n


DBOS.launch()
measure(version("dbos"), durable=durable)
DBOS.destroy()
