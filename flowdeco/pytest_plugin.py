"""The pytest plugin by its name in this package, for `pytest -p flowdeco.pytest_plugin`.

Where flowdeco is installed, pytest finds the plugin by itself, in `pytest_flowdeco`.
"""

from pytest_flowdeco import flow_runner

__all__ = ["flow_runner"]
