"""Dagster: ops of a job, executed in process; its instance is durable storage in SQLite."""

import logging
import tempfile

import dagster
from _steps import STEPS, measure
from dagster import DagsterInstance, DynamicOut, DynamicOutput, Out, job, op

logging.disable(logging.CRITICAL)


@op(out=Out(int))
def increment(n: int) -> int:
    return n + 1


@op
def zero() -> int:
    return 0


@job
def chain_job():
    n = zero()
    for i in range(STEPS):
        n = increment.alias(f"increment_{i}")(n)


@op(out=DynamicOut(int))
def numbers():
    for i in range(STEPS):
        yield DynamicOutput(i, mapping_key=str(i))


@op
def square(n: int) -> int:
    return n * n


@op
def total(squares: list) -> int:
    return sum(squares)


@job
def fan_out_job():
    total(numbers().map(square).collect())


def chain() -> int:
    return chain_job.execute_in_process().output_for_node(f"increment_{STEPS - 1}")


def fan_out() -> int:
    return fan_out_job.execute_in_process().output_for_node("total")


def durable() -> int:
    with tempfile.TemporaryDirectory() as folder, DagsterInstance.local_temp(folder) as instance:
        return chain_job.execute_in_process(instance=instance).output_for_node(f"increment_{STEPS - 1}")


measure(dagster.__version__, chain=chain, fan_out=fan_out, durable=durable)
