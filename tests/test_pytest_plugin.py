"""The pytest plugin: its fixture, and that it costs nothing to those who do not use it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]

FLOWS = """
from flowdeco import Stage, action, stage
from flowdeco.middleware import retry

@stage
def process(kind):
    @action(collect="done", use=[retry(on=OSError, attempts=3, wait=600, jitter=False, wait_max=3600)])
    def handle(fail=0):
        global failed
        failed += 1
        if failed <= fail:
            raise OSError("offline")
        return kind

failed = 0

@action
def discover(kinds):
    return [process(kind) for kind in kinds]

@action
def report(done=[]):
    return ", ".join(done)

flow = discover >> report
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A project with flows, whose tests find this tree, and have the plugin whether it is installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(flows=FLOWS)
    return pytester


def run(project, *arguments, where="inprocess"):
    started = getattr(project, f"runpytest_{where}")
    return started("-p", "flowdeco.pytest_plugin", "-p", "no:cacheprovider", *arguments)


def test_the_fixture_runs_flows_by_its_own_clock(project):
    """As one would write it."""
    project.makepyfile(
        test_flow="""
        from flowdeco.testing import assert_ran
        from flows import flow

        def test_the_report_comes_last(flow_runner):
            run = flow_runner(flow, {"kinds": ["a", "b"], "fail": 2})
            assert_ran(run, ["discover", "process[*]", "report"])
            assert flow_runner.slept == [600, 1200]
            assert [call.returned for call in flow_runner.calls_of("handle")] == [None, None, "a", "b"]

        def test_each_test_has_a_runner_of_its_own(flow_runner):
            assert (flow_runner.calls, flow_runner.clock.now) == ([], 0)
        """
    )
    run(project).assert_outcomes(passed=2)


def test_a_failing_comparison_is_readable(project):
    """The lines of the difference, and none of the code that made it."""
    project.makepyfile(
        test_flow="""
        from flowdeco.testing import assert_ran
        from flows import flow

        def test_it(flow_runner):
            assert_ran(flow_runner(flow, {"kinds": ["a", "b"]}), ["discover", "process[a]", "report", "upload"])
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: other stages ran than expected (- expected, + ran):",
            "E*    discover",
            "E*    process[[]a]",
            "E*  + process[[]b]  (inserted by discover/discover)",
            "E*    report",
            "E*  - upload",
            "E*the run completed",
        ]
    )
    result.stdout.no_fnmatch_line("*_compared*")


def test_what_ran_in_a_failed_fixture_is_shown(project):
    """In its setup and in its teardown, whether the run raises or a comparison does."""
    project.makepyfile(
        test_flow="""
        import pytest
        from flows import flow

        @pytest.fixture
        def raises():
            flow.run({"kinds": 5})

        @pytest.fixture
        def compares(flow_runner):
            assert flow_runner(flow, {"kinds": []})["report"] == "no"

        @pytest.fixture
        def late(flow_runner):
            yield
            assert flow_runner(flow, {"kinds": []})["report"] == "no"

        def test_raises(raises): ...
        def test_compares(compares): ...
        def test_late(late): ...
        """
    )
    result = run(project)
    result.assert_outcomes(errors=3, passed=1)
    assert result.stdout.str().count("flowdeco: what ran") == 3


def test_the_fixture_is_listed(project):
    """`pytest --fixtures` explains it."""
    result = run(project, "--fixtures")
    result.stdout.fnmatch_lines(["flow_runner*", "*Runs flows one call after the other, by a fake clock*"])


def test_flowdeco_is_imported_by_who_asks_for_it(project):
    """Not when pytest starts: that would take its time, and be before coverage is measured."""
    project.makepyfile(
        test_first="""
        import sys

        def test_it_is_not_there_yet():
            assert not {"flowdeco.testing", "flowdeco.model.definitions", "flowdeco.drivers"} & set(sys.modules)

        def test_it_is_now(flow_runner):
            assert "flowdeco.testing" in sys.modules
        """
    )
    run(project, where="subprocess").assert_outcomes(passed=2)


def test_coverage_sees_the_lines_of_a_module_that_tests_import(project):
    """Those that run when it is imported as well."""
    pytest.importorskip("coverage")
    project.makepyfile(test_flow="from flows import flow\ndef test_it(flow_runner): flow_runner(flow, {'kinds': []})")
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        "--include=flows.py",
        "-m",
        "pytest",
        "-p",
        "flowdeco.pytest_plugin",
    ]
    subprocess.run([*command, "-q"], check=True, capture_output=True, cwd=project.path)
    told = subprocess.run(
        [sys.executable, "-m", "coverage", "report", "-m"], check=True, capture_output=True, text=True, cwd=project.path
    )
    missing = told.stdout.splitlines()[2].split("%")[1].strip()
    assert "1" not in missing.replace(",", "").split()


def test_it_works_where_warnings_are_errors_and_assertions_are_not_rewritten(project):
    """Nothing in it depends on pytest's magic."""
    project.makepyfile(
        test_flow="from flows import flow\ndef test_it(flow_runner): assert flow_runner(flow, {'kinds': ['a']})['report'] == 'a'"
    )
    run(project, "-W", "error", where="subprocess").assert_outcomes(passed=1)
    run(project, "-W", "error", "--assert=plain", where="subprocess").assert_outcomes(passed=1)


def test_what_is_installed_brings_the_plugin_and_the_command():
    """By their entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"flowdeco": "flowdeco.pytest_plugin"}
    assert project["project"]["scripts"] == {"flowdeco": "flowdeco.cli:main"}


def test_a_failed_test_reports_what_ran(project):
    """The runs of its runner, and the one behind its exception; a test that passes reports nothing."""
    project.makepyfile(
        test_flow="""
        from flows import flow

        def test_by_the_runner(flow_runner):
            flow_runner(flow, {"kinds": ["a"]})
            assert False

        def test_by_an_exception():
            flow.run({"kinds": ["b"], "fail": 9}, skip=["process"])
            flow.run({"kinds": 5})

        def test_in_a_failed_run(flow_runner):
            flow_runner(flow, {"kinds": 7})

        def test_without_any():
            assert False

        def test_that_passes(flow_runner):
            flow_runner(flow, {"kinds": ["passing"]})
        """
    )
    done = run(project)
    done.assert_outcomes(failed=4, passed=1)
    text = done.stdout.str()
    assert text.count("flowdeco: what ran") == 3
    assert "process[a]" in text
    assert "process[passing]" not in text
    assert text.count("TypeError: 'int' object is not iterable\n  in action 'discover'") == 2, "each run once"


def test_a_flow_runs_in_an_async_test(project):
    """By the clock of the runner, while the loop of the test runs on."""
    project.makepyfile(
        test_flow="""
        import asyncio
        import pytest
        from flowdeco import action
        from flows import flow

        @action
        async def patient():
            await asyncio.sleep(3600)
            return "done"

        def test_it(flow_runner):
            async def main():
                run = await flow_runner.arun(flow, {"kinds": ["a"], "fail": 2})
                assert (run.result, flow_runner.slept) == ("a", [600, 1200])
                ran = await asyncio.gather(flow_runner.arun(patient), asyncio.sleep(0, "meanwhile"))
                assert (ran[0].result, ran[1]) == ("done", "meanwhile")
                with pytest.raises(TypeError) as raised:
                    await flow_runner.arun(flow, {"kinds": 3})
                assert flow_runner.runs[-1].error is raised.value
                again = await flow_runner.aresume(flow, flow_runner.runs[-1], {"kinds": ["b"]})
                assert again.result == "b"

            asyncio.run(main())
        """
    )
    run(project).assert_outcomes(passed=1)
