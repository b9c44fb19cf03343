"""Runs that are killed: a harness in which any function is called in a process of its own, which may die at any moment.

`Parent` is a process that has imported everything and does nothing but fork, so that a child costs milliseconds and is
forked from a single thread. A child is the leader of a process group; when it is over, whatever is left of the group is
killed. What a child is to die of is a `Kill`: it counts the points that it passes, and at one of them it sends itself,
and the workers that it began, a SIGKILL: at once, or a moment later, in the middle of whatever comes next.
"""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import durable_flows

import flowdeco
from flowdeco.durable import SqliteJournal

HERE = Path(__file__).parent


class Kill(NamedTuple):
    """Die at the point of this number, so many seconds later; the number 0 is never reached."""

    at: int = 0
    delay: float = 0.0


class Job(NamedTuple):
    """What a child does with a flow of the model."""

    folder: str
    flow: object
    how: str  # run, resume, arun, aresume
    skip: tuple = ()
    executor: str = "none"
    limit: int | None = 1
    kill: Kill = Kill()


class Outcome(NamedTuple):
    """What became of a child: the signal that killed it, or what its function returned, or the text of its exception."""

    signal: int
    value: object = None
    error: str = ""


# -- in the child


class Doomed(durable_flows.World):
    """A world that is kept in files: how often an action was called, and how many points were passed, by all processes."""

    def __init__(self, folder, kill):
        super().__init__()
        self.folder, self.kill = Path(folder), kill
        self.group = os.getpgrp()
        self.files = {}
        calls = self.folder / "calls"
        self.before = Counter(calls.read_text().split()) if calls.exists() else Counter()

    def append(self, name, text):
        """Append to a file; return its length then."""
        where = os.getpid(), name
        if where not in self.files:
            self.files[where] = os.open(self.folder / name, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(self.files[where], text)
        return os.lseek(self.files[where], 0, os.SEEK_CUR)

    def point(self):
        """Pass a point; die if it is the one."""
        if self.append("points", b".") == self.kill.at:
            if self.kill.delay:
                threading.Thread(target=self.die_soon, daemon=True).start()
            else:
                self.die()

    def die_soon(self):
        """Die when the time has come, whatever is going on then."""
        until = time.perf_counter() + self.kill.delay
        while time.perf_counter() < until:
            time.sleep(0)
        self.die()

    def die(self):
        """Take the workers along."""
        os.killpg(self.group, signal.SIGKILL)

    def called(self, name):
        """Note a call, and return how many there were."""
        self.point()
        self.append("calls", f"{name}\n".encode())
        self.point()
        return (self.folder / "calls").read_text().split().count(name)

    def ends(self, name):
        """The action has done its work, and nobody knows yet."""
        self.point()


class DoomedJournal:
    """A journal around whose operations one may die."""

    def __init__(self, inner, world):
        self.inner, self.world, self.codec = inner, world, inner.codec

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def deadly(*args):
            self.world.point()
            value = method(*args)
            self.world.point()
            return value

        return deadly


def executor_of(name):
    """Return the executor of that name, to be entered."""
    if name == "processes":
        return ProcessPoolExecutor(2, mp_context=get_context("fork"))
    return ThreadPoolExecutor(3) if name == "threads" else nullcontext()


def work(job):
    """Do a job, and tell what the run came to."""
    durable_flows.enter(world := Doomed(job.folder, job.kill))
    durable_flows.LIMIT = job.limit
    flow = durable_flows.unit(job.flow)
    journal = DoomedJournal(SqliteJournal(Path(job.folder) / "runs.db"), world)
    with executor_of(job.executor) as executor:
        options = {"journal": journal, "check": False, "executor": executor}
        if job.how.endswith("run"):
            done = getattr(flow, job.how)(skip=job.skip, run_id="r", **options)
        else:
            done = getattr(flow, job.how)("r", **options)
        run = asyncio.run(done) if job.how.startswith("a") else done
    return durable_flows.came_to(run)


# -- the process between


def serve():
    """Start children and wait for them, as told on the standard input."""
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    files = {}
    while True:
        try:
            order, *details = pickle.load(orders)
        except EOFError:
            return
        answer = start(*details, files) if order == "start" else wait(*details, files)
        pickle.dump(answer, answers)
        answers.flush()


def start(result, function, args, files):
    """Fork a child that calls the function; what comes of it goes to the file."""
    pid = os.fork()
    if not pid:
        os.setsid()
        try:
            outcome = Outcome(0, function(*args))
        except BaseException as error:
            outcome = Outcome(0, None, f"{type(error).__name__}: {error}")
        Path(f"{result}.new").write_bytes(pickle.dumps(outcome))
        os.rename(f"{result}.new", result)
        os._exit(0)
    files[pid] = result
    return pid


def wait(pid, files):
    """Wait for a child, and see to it that nothing is left of its group."""
    status = os.waitpid(pid, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    result = Path(files.pop(pid))
    if result.exists():
        return pickle.loads(result.read_bytes())
    return Outcome(os.WTERMSIG(status))


# -- in the test


class Parent:
    """The process between, as the tests see it."""

    def __init__(self):
        paths = [str(HERE), str(Path(flowdeco.__file__).parents[1])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import crash; crash.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.started = 0

    def ask(self, *order):
        pickle.dump(order, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def start(self, folder, function, *args):
        """Start a child that calls this function of a module; return its pid, which is that of its group, too."""
        self.started += 1
        return self.ask("start", f"{folder}/result {self.started}", function, args)

    def wait(self, pid):
        """Wait for a child."""
        return self.ask("wait", pid)

    def call(self, folder, function, *args):
        """Start a child, and wait for it."""
        return self.wait(self.start(folder, function, *args))

    def close(self):
        """End it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)


# -- other things to do in a child


def hold(folder, name):
    """Run until a file says go on."""
    from durable_units import held

    run = held.run({"folder": folder}, journal=f"{folder}/runs.db", run_id=name, check=False)
    return str(run.status)


def resume_held(folder, name):
    """Resume such a run."""
    from durable_units import held

    return dict(held.resume(name, {"folder": folder}, journal=f"{folder}/runs.db").store)


def hold_many(folder):
    """Run many small steps, and then wait."""
    from durable_units import long_held

    long_held.run({"folder": folder, "n": 30, "run": "r"}, journal=f"{folder}/runs.db", run_id="r")


def many(folder, first, count, how):
    """Run so many runs at the same time, in one journal."""
    from durable_units import numbers

    journal = SqliteJournal(f"{folder}/runs.db")
    names = [f"run {number}" for number in range(first, first + count)]

    async def together():
        return await asyncio.gather(
            *(numbers.arun({"n": 5, "run": name}, journal=journal, run_id=name) for name in names)
        )

    if how == "arun":
        runs = asyncio.run(together())
    else:
        with ThreadPoolExecutor(count) as executor:
            runs = list(
                executor.map(lambda name: numbers.run({"n": 5, "run": name}, journal=journal, run_id=name), names)
            )
    return [dict(run.store) for run in runs]
