"""What is logged says where in a run it comes from: `run`, `stage` and `action`, for the standard library and structlog."""

import io
import json
import logging

import pytest
import structlog
from support import failing, flaky, one

from flowdeco import Context, Stage, action
from flowdeco.middleware import recover, retry


@action
def tells(ctx: Context) -> None:
    ctx.logger.info("removed %d files", 3, extra={"files": 3})


def fields(record):
    """What a record says about its place."""
    return record.run, record.stage, record.action


def test_an_action_logs_with_its_place(run, caplog):
    """As attributes of the record, beside those of the call."""
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        run(Stage("s", [tells]), run_id="r-1")
    (record,) = caplog.records
    assert fields(record) == ("r-1", "s", "tells")
    assert (record.name, record.getMessage(), record.files) == ("flowdeco.run", "removed 3 files", 3)


def test_a_field_of_the_call_wins(run, caplog):
    """As it does in an adapter of Python 3.13."""

    @action
    def tells(ctx: Context) -> None:
        ctx.logger.warning("here", extra={"stage": "mine"})

    run(Stage("s", [tells]), run_id="r-1")
    assert fields(caplog.records[0]) == ("r-1", "mine", "tells")


@pytest.mark.parametrize(
    ("level", "expected"),
    [("pipeline", ("r-1", None, None)), ("stage", ("r-1", "s", None)), ("action", ("r-1", "s", "x"))],
)
def test_a_middleware_logs_with_its_place(run, caplog, level, expected):
    """As far as it has one."""

    def logs(call):
        if call.level == level:
            call.logger.warning("here")
        yield

    run(Stage("s", [action(lambda: None, name="x", use=[logs])], use=[logs]), use=[logs], run_id="r-1")
    assert [fields(record) for record in caplog.records] == [expected]


def test_what_is_shipped_logs_with_its_place(run, caplog):
    """Another attempt, a recovered failure."""
    with caplog.at_level(logging.INFO, "flowdeco.run"):
        run(flaky([], "f", 1, use=[retry(on=ValueError, wait=0)]), run_id="r-1")
        run(failing([], "g", ValueError("no"), use=[recover(on=ValueError)]), run_id="r-2")
    assert [fields(record) for record in caplog.records] == [("r-1", "f", "f"), ("r-2", "g", "g")]


def test_what_a_run_says_itself_has_the_fields_as_well(run, caplog):
    """A handler that formats them must not fail: a selector that matched nothing, an observer that raises."""

    def broken(event):
        raise ValueError

    run(one([], "a"), skip=["nothing"], run_id="r-1")
    run(one([], "a"), observers=[broken], run_id="r-2")
    assert [fields(record) for record in caplog.records] == [("r-1", None, None), ("r-2", None, None)]


def test_the_fields_can_be_formatted_by_the_standard_library(run):
    """With a format that names them."""
    handler = logging.StreamHandler(out := io.StringIO())
    handler.setFormatter(logging.Formatter("%(run)s %(stage)s/%(action)s %(message)s"))
    logger = logging.getLogger("flowdeco.run")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run(Stage("s", [tells]) >> one([], "a"), skip=["nothing"], run_id="r-1")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    first, second = out.getvalue().splitlines()
    assert first == "r-1 s/tells removed 3 files"
    assert second.startswith("r-1 None/None run r-1: skip=['nothing'] matched nothing")


def test_the_fields_become_those_of_structlog(run):
    """By its formatter for records of the standard library."""
    handler = logging.StreamHandler(out := io.StringIO())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    logger = logging.getLogger("flowdeco.run")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        run(Stage("s", [tells]), run_id="r-1")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert json.loads(out.getvalue()) == {
        "event": "removed 3 files",
        "level": "info",
        "run": "r-1",
        "stage": "s",
        "action": "tells",
        "files": 3,
    }


def test_structlog_can_wrap_the_logger_itself(run):
    """For those who log by structlog in their actions: what they bind, and the place in the run."""
    captured = []

    def capture(logger, method, event):
        captured.append(event)
        raise structlog.DropEvent

    @action
    def wraps(ctx: Context) -> None:
        log = structlog.wrap_logger(ctx.logger, processors=[capture], **ctx.logger.extra)
        log.info("removed", files=3)

    run(Stage("s", [wraps]), run_id="r-1")
    assert captured == [{"event": "removed", "run": "r-1", "stage": "s", "action": "wraps", "files": 3}]
