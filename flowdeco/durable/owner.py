"""The owner of a run: identified by host, process and start time, so that a dead owner is recognised.

A process is looked up by its id only where ids mean the same, on the same boot of the same machine and in the same
process namespace; elsewhere the lease has to expire.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["NOBODY", "OWNER", "Owner", "is_dead", "this_process"]

OWNER: Final = "owner, host, pid, place, born"  # the columns of `runs` that have an `Owner`
NOBODY: Final = "owner = NULL, host = NULL, pid = NULL, place = NULL, born = NULL, lease = NULL"


class Owner(NamedTuple):
    """A process at work on a run: `place` is where its `pid` is valid, `born` when it was started, `token` its own."""

    token: str
    host: str
    pid: int
    place: str
    born: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def this_process(token: str) -> Owner:
    """Return the owner that this process is."""
    pid = os.getpid()
    return Owner(token, socket.gethostname(), pid, _place(), _born(pid) or "")


def is_dead(owner: Owner) -> bool | None:
    """Whether the process has ended; None where that cannot be known from here, or not for certain."""
    if not owner.place or owner.place != _place():
        return None
    if not owner.born:
        return None if _exists(owner.pid) else True
    return _born(owner.pid) != owner.born


def _place() -> str:
    """Return an identifier that is equal wherever process ids mean the same."""
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot} {os.readlink('/proc/self/ns/pid')}"
        except OSError:
            return ""
    return "" if sys.platform == "win32" else socket.gethostname()


def _born(pid: int) -> str | None:
    """Return when a process was started, in ticks since the boot; None if it has ended, "" where that is unknown."""
    if sys.platform != "linux":
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else fields[18]  # field 22, counted from 1; a zombie does no work


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
