"""The drivers: they call, await, sleep and wait, and decide nothing."""

from flowdeco.drivers.start import begin, resume
from flowdeco.drivers.sync import perform

__all__ = ["begin", "perform", "resume"]
