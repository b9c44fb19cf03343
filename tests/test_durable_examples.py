"""The examples of durable runs, each command in a process of its own, as their readers run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import flowdeco

EXAMPLE = Path(__file__).parents[1] / "examples" / "order_approval.py"
IMPORT_PATH = os.pathsep.join(filter(None, [str(Path(flowdeco.__file__).parents[1]), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Perform a command of the example in a process of its own; return its exit code, output, and complaints."""

    def perform(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLE, *arguments],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": IMPORT_PATH},
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    return perform


def test_an_order_waits_and_is_carried_out_by_another_process(shop: Callable[..., tuple[int, str, str]]) -> None:
    """Each step happens once, in the process whose turn it was, and the third one is told what came of it."""
    assert shop("order", "42") == (0, "reserved 2 x desk, 1 x lamp\norder-42 suspended: waiting for 'approved'\n", "")
    code, output, complaints = shop("approve", "order-42")
    assert (code, complaints) == (0, "")
    assert re.fullmatch(
        r"charged 737\.90 EUR, idempotency key [0-9a-f]{20}\n"
        r"packed 2 x desk\npacked 1 x lamp\norder-42 completed: 2 parcels on their way\n",
        output,
    )
    assert shop("approve", "order-42") == (0, "order-42 completed: 2 parcels on their way\n", "")


def test_an_order_is_refused(shop: Callable[..., tuple[int, str, str]]) -> None:
    """Other stages run then, and the reason is told."""
    shop("order", "43")
    assert shop("refuse", "order-43", "too expensive") == (
        0,
        "released 6 x chair\norder-43 completed: refused: too expensive\n",
        "",
    )


def test_a_small_order_waits_for_nobody(shop: Callable[..., tuple[int, str, str]]) -> None:
    """One process does it all."""
    code, output, complaints = shop("order", "7")
    assert (code, complaints) == (0, "")
    assert output.startswith("reserved 2 x lamp\ncharged 79.80 EUR")
    assert output.endswith("packed 2 x lamp\norder-7 completed: 1 parcels on their way\n")


def test_what_waits_is_listed(shop: Callable[..., tuple[int, str, str]]) -> None:
    """By the journal alone, whoever began it."""
    shop("order", "42")
    shop("order", "43")
    code, output, complaints = shop("waiting")
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert (code, complaints) == (0, "")
    assert re.fullmatch(
        rf"order-43   6 x chair for 777\.00 EUR   until {when}\n"
        rf"order-42   2 x desk, 1 x lamp for 737\.90 EUR   until {when}\n",
        output,
    )
    shop("approve", "order-43")
    shop("refuse", "order-42")
    assert shop("waiting") == (0, "nothing waits\n", "")


def test_an_order_that_nobody_approves_is_refused_after_a_reminder(
    shop: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time when it is due, and by whoever looks then."""
    shop("order", "43")
    assert shop("remind") == (0, "nothing is due\n", "")
    monkeypatch.setenv("PATIENCE", "0.01")
    shop("order", "42")
    assert shop("remind") == (
        0,
        "reminder: 2 x desk, 1 x lamp still needs an approval\norder-42 suspended: waiting for 'approved'\n",
        "",
    )
    code, output, complaints = shop("remind")
    assert (code, complaints) == (0, "")
    assert output == "released 2 x desk, 1 x lamp\norder-42 completed: refused: nobody approved it in time\n"


def test_a_service_is_waited_for(tmp_path: Path) -> None:
    """The run looks, sleeps in the journal, and looks again; when the service is down for long, it asks a person."""

    def watched(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLE.with_name("wait_for_service.py"), *arguments],
            capture_output=True, check=False, cwd=tmp_path, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": IMPORT_PATH, "PAUSE": "0.01"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert watched("start") == "look 1: the service is down\nsuspended: sleeping\n"
    assert watched("wake") == "look 2: the service is down\nsuspended: sleeping\n"
    assert watched("wake") == "look 3: the service is down\nsuspended: waiting for 'keep waiting'\n"
    assert watched("wake") == "nothing is due\n"
    assert watched("answer", "yes") == "recorded\n"
    (tmp_path / "service.up").write_text("report")
    assert watched("wake") == "look 4: the service is up\ncompleted: got report\n"


def test_mistakes_are_told_in_one_line(shop: Callable[..., tuple[int, str, str]]) -> None:
    """An order that is there already, a run that is not, a command that is none."""
    shop("order", "42")
    code, output, complaints = shop("order", "42")
    assert (code, output) == (1, "")
    assert re.fullmatch(r"RunExistsError: .* has a run 'order-42' already, suspended: resume it.*\n", complaints)
    code, output, complaints = shop("approve", "order-41")
    assert (code, output) == (1, "")
    assert re.fullmatch(r"RunNotFoundError: .* has no run 'order-41'\. Did you mean 'order-42'\?\n", complaints)
    assert shop("ordr", "42")[:2] == (2, "")
