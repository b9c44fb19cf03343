"""joblib: a map in threads, and a chain of calls that are cached on disk, which is its way to resume."""

import itertools
import tempfile

import joblib
from _steps import STEPS, measure


def square(n: int) -> int:
    return n * n


def increment(n: int, run: int) -> int:
    return n + 1


runs = itertools.count()


def fan_out() -> int:
    return sum(joblib.Parallel(n_jobs=2, prefer="threads")(joblib.delayed(square)(i) for i in range(STEPS)))


def durable() -> int:
    with tempfile.TemporaryDirectory() as folder:
        kept = joblib.Memory(folder, verbose=0).cache(increment)
        n, run = 0, next(runs)
        for _ in range(STEPS):
            n = kept(n, run)
    return n


measure(joblib.__version__, fan_out=fan_out, durable=durable)
