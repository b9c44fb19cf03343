"""Prefect: tasks of a flow; results persisted for the durable chain. It starts its own temporary server."""

import asyncio
import logging
import os
import tempfile

os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
os.environ["PREFECT_HOME"] = tempfile.mkdtemp()

import prefect
from _steps import STEPS, measure
from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness

logging.disable(logging.CRITICAL)
asyncio.set_event_loop(asyncio.new_event_loop())


@task
def increment(n: int) -> int:
    return n + 1


@task
def square(n: int) -> int:
    return n * n


@flow
def chain() -> int:
    n = 0
    for _ in range(STEPS):
        n = increment(n)
    return n


@flow
def fan_out() -> int:
    return sum(future.result() for future in square.map(range(STEPS)))


@task(persist_result=True)
def kept_increment(n: int) -> int:
    return n + 1


@flow(persist_result=True)
def durable() -> int:
    n = 0
    for _ in range(STEPS):
        n = kept_increment(n)
    return n


with prefect_test_harness():
    measure(prefect.__version__, chain=chain, fan_out=fan_out, durable=durable)
