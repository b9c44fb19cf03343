"""What the tests share: makers of definitions, and small readers of a run."""

import os
import re
from contextlib import suppress
from typing import Any

from flowdeco import Action, Parallel, Pipeline, Stage, StageTemplate, action
from flowdeco.model.definitions import Stream

UNITS = (Action, Stage, Pipeline, Parallel, StageTemplate, Stream)


NIGHTLY = bool(os.environ.get("FLOWDECO_NIGHTLY"))
FEW = bool(os.environ.get("FLOWDECO_FEW_EXAMPLES"))  # as in .ci/run, on other versions of Python than the first


def examples(usual, nightly=None):
    """How many examples a law is tried with; it has no need of all of them on each version of Python."""
    return nightly if NIGHTLY and nightly else max(10, usual // 3) if FEW else usual


# -- readers of a run


def names(run):
    """Names of the stage records, in order."""
    return [record.name for record in run.stages]


def completed(run):
    """Names of the stages that ran to their end, in order."""
    return [record.name for record in run.stages if record.status == "completed"]


def actions_run(run):
    """`stage/action` of the actions that ran to their end, in order."""
    return [f"{s.name}/{a.name}" for s in run.stages for a in s.actions if a.status == "completed"]


def statuses(run):
    """Name and status of the stage records, in order."""
    return [(record.name, record.status.value) for record in run.stages]


def stage_record(run, name):
    """The only stage record of that name."""
    (found,) = [record for record in run.stages if record.name == name]
    return found


def action_record(run, stage_name, name):
    """The only action record of that name in that stage."""
    (found,) = [record for record in stage_record(run, stage_name).actions if record.name == name]
    return found


def text_of(error):
    """What a person sees of an exception: its message and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def shown(value):
    """Return what names a parameter of a test: its repr, without an address, which differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


# -- makers


def step(log, name, result=None, **options):
    """An action that writes its name into `log` and returns `result`, or what calling it gives."""

    @action(name=name, **options)
    def body():
        log.append(name)
        return result() if callable(result) and not isinstance(result, UNITS) else result

    return body


def one(log, name, result=None, **options):
    """A stage with one action, both of that name."""
    return Stage(name, [step(log, name, result)], **options)


def failing(log, name, error, **options):
    """An action that writes its name into `log` and raises."""

    @action(name=name, **options)
    def body():
        log.append(name)
        raise error

    return body


def flaky(log, name, failures, result=None, error=ValueError, **options):
    """An action that raises the first `failures` times it is called."""

    @action(name=name, **options)
    def body():
        log.append(name)
        if log.count(name) <= failures:
            raise error(f"{name} failed")
        return result

    return body


def around(log, name):
    """Middleware that writes `+name` and `-name` into `log` (the latter also when the inside fails)."""

    def middleware(call):
        log.append(f"+{name}")
        try:
            yield
        finally:
            log.append(f"-{name}")

    return middleware


def async_around(log, name):
    """The same as an async generator."""

    async def middleware(call):
        log.append(f"+{name}")
        try:
            yield
        finally:
            log.append(f"-{name}")

    return middleware


def again(times):
    """Middleware that runs its inside again after a failure, so many times in all."""

    def middleware(call):
        for _ in range(times - 1):
            try:
                yield
                return
            except Exception:
                pass
        yield

    return middleware


def swallow(call):
    """Middleware that recovers every failure, and says nothing."""
    with suppress(Exception):
        yield


def provide(**values):
    """Middleware that gives these values to what is inside."""

    def middleware(call):
        yield values

    return middleware


def problems(unit, inputs=()):
    """What `validate` reports, in short."""
    return [(p.stage, p.action, p.parameter, p.key, p.certain) for p in unit.validate(inputs)]


def wants(*parameters, name="wants", returns=Any):
    """An action with these parameters, which returns what it is annotated to."""
    namespace = {}
    exec(f"def wants({', '.join(parameters)}): pass", namespace)
    function = namespace["wants"]
    if returns is not Any:
        function.__annotations__["return"] = returns
    return action(name=name)(function)


class Placeholders:
    """A codec that reads inserted units as something else, as where their code is not there."""

    def __init__(self, codec):
        self.encode, self.name, self._decode = codec.encode, codec.name, codec.decode

    def decode(self, payload):
        """Read a payload."""
        parts = self._decode(payload)
        if isinstance(parts, dict) and "inserted" in parts:
            parts["inserted"] = tuple("?" for _ in parts["inserted"])
        return parts
