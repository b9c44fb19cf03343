"""Luigi: tasks with targets, here in memory, run by its local scheduler."""

import itertools
import logging
from importlib.metadata import version

import luigi
from _steps import STEPS, measure
from luigi.mock import MockTarget

logging.disable(logging.CRITICAL)
runs = itertools.count()


class Increment(luigi.Task):
    run_id = luigi.IntParameter()
    number = luigi.IntParameter()

    def requires(self):
        return [Increment(self.run_id, self.number - 1)] if self.number > 1 else []

    def output(self):
        return MockTarget(f"{self.run_id}-{self.number}")

    def run(self):
        before = int(self.input()[0].open().read()) if self.number > 1 else 0
        with self.output().open("w") as file:
            file.write(str(before + 1))


class Square(luigi.Task):
    run_id = luigi.IntParameter()
    number = luigi.IntParameter()

    def output(self):
        return MockTarget(f"{self.run_id}-square-{self.number}")

    def run(self):
        with self.output().open("w") as file:
            file.write(str(self.number**2))


def chain() -> int:
    last = Increment(next(runs), STEPS)
    luigi.build([last], local_scheduler=True, log_level="CRITICAL")
    return int(last.output().open().read())


def fan_out() -> int:
    run_id = next(runs)
    tasks = [Square(run_id, i) for i in range(STEPS)]
    luigi.build(tasks, local_scheduler=True, log_level="CRITICAL")
    return sum(int(task.output().open().read()) for task in tasks)


measure(version("luigi"), chain=chain, fan_out=fan_out)
