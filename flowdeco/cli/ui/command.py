"""The command `ui`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from ipaddress import ip_address

from flowdeco import durable
from flowdeco.cli import report
from flowdeco.cli.exit_codes import FAILED, FINE
from flowdeco.cli.journals import journal_path
from flowdeco.cli.ui.guard import Guard
from flowdeco.cli.ui.server import bound, require_extra, serve
from flowdeco.cli.ui.site import Site

__all__ = ["ui"]


def ui(options: Namespace) -> int:
    """Serve a page with the runs of a journal, until SIGINT or SIGTERM."""
    path = journal_path(options)
    require_extra()
    durable.runs(path)  # a file that is not a journal is reported now
    listening = bound(options.host, options.port)
    with listening:
        port = listening.getsockname()[1]
        guard = Guard(options.host, port)
        if not _is_loopback(options.host):
            report.print_warning(
                f"--host {options.host}: other machines can reach it, by HTTP without encryption. Whoever has the address "
                f"below can answer, cancel and resume runs; safer is the default, with an SSH tunnel to it"
            )
        if options.unpickle:
            report.print_warning("--unpickle: whoever can write the journal can run code in this process")
            sys.path.insert(0, os.getcwd())  # where `flowdeco resume` finds modules, too
        report.say(f"{os.path.basename(path)}: {guard.address(guard.token)}")
        report.say("flowdeco: Ctrl-C ends it; runs that it has resumed continue", out=sys.stderr)
        sys.stdout.flush()
        opens = _has_browser() if options.open is None else options.open
        ended = serve(Site(path, unpickle=options.unpickle), guard, listening, opens=opens)
    return FINE if ended else FAILED


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_browser() -> bool:
    """Whether a browser can be expected to appear in front of whoever has called this."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
