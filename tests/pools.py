"""The executors of docs/scale.md, opened by name, with two workers each; used by `test_executors_tried.py`."""

import importlib.util
import logging
import multiprocessing
import os
import sys
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path

import flowdeco

# What each needs beside the standard library. `mpi4py` also needs an MPI that can start processes by itself.
NEEDS = {
    "threads": None,
    "processes": None,
    "interpreters": None,
    "loky": "loky",
    "dask": "distributed",
    "mpi4py": "mpi4py",
    "executorlib": "executorlib",
    "ray": "ray",
}
PATHS = os.pathsep.join(
    filter(None, [str(Path(flowdeco.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)


def interpreter_pool():
    """`InterpreterPoolExecutor` of Python 3.14, or for 3.13 what PyPI has; None where there is neither."""
    found = getattr(futures, "InterpreterPoolExecutor", None)
    with suppress(ImportError):
        return found or import_module("interpreters_backport.concurrent.futures.interpreter").InterpreterPoolExecutor
    return None


def missing(kind):
    """Return why this executor cannot be opened here, or ""."""
    package = NEEDS[kind]
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    if kind == "interpreters" and interpreter_pool() is None:
        return "this Python has no InterpreterPoolExecutor"
    return ""


@contextmanager
def opened(kind):
    """Open one; the processes that it starts find flowdeco and the tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = PATHS
    try:
        with ExitStack() as stack:
            yield globals()[f"_{kind}"](stack)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _threads(stack):
    return stack.enter_context(futures.ThreadPoolExecutor(2))


def _processes(stack):
    spawn = multiprocessing.get_context("spawn")
    return stack.enter_context(futures.ProcessPoolExecutor(2, mp_context=spawn))


def _interpreters(stack):
    # They begin with the path of the process, and not with that of pytest.
    path = f"import sys; sys.path[:] = {sys.path!r}"
    return stack.enter_context(interpreter_pool()(2, initializer=exec, initargs=(path,)))


def _loky(stack):
    import loky

    return stack.enter_context(loky.ProcessPoolExecutor(2))


def _dask(stack):
    """A local cluster on loopback, quiet and without dashboard; a call whose worker dies is not tried elsewhere."""
    import dask
    from distributed import Client, LocalCluster

    quiet = {
        "distributed.scheduler.allowed-failures": 0,
        "distributed.admin.log-format": "",
        "logging.distributed": "critical",
    }
    stack.enter_context(dask.config.set(quiet))
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", silence_logs=logging.CRITICAL,
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # its HTTP server: any free port
    )  # fmt: skip
    return stack.enter_context(Client(stack.enter_context(cluster))).get_executor()


def _mpi4py(stack):
    from mpi4py.futures import MPIPoolExecutor

    return stack.enter_context(MPIPoolExecutor(2))


def _executorlib(stack):
    from executorlib import SingleNodeExecutor

    return stack.enter_context(SingleNodeExecutor(max_workers=2, block_allocation=True, disable_dependencies=True))


def _ray(stack):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    stack.callback(ray.shutdown)

    @ray.remote(max_retries=0)
    def call(function, args, kwargs):
        return function(*args, **kwargs)

    class RayExecutor(futures.Executor):
        """As docs/scale.md shows it."""

        def __init__(self, calls):
            self._threads = futures.ThreadPoolExecutor(calls)

        def submit(self, fn, /, *args, **kwargs):
            return self._threads.submit(lambda: ray.get(call.remote(fn, args, kwargs)))

        def shutdown(self, wait=True, *, cancel_futures=False):
            self._threads.shutdown(wait, cancel_futures=cancel_futures)

    return stack.enter_context(RayExecutor(2))
