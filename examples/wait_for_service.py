"""Wait for a service that is down: check, sleep in the journal, check again; after three checks, ask whether to continue.

    python wait_for_service.py start         # checks for the first time; no process stays behind
    python wait_for_service.py wake          # for cron: checks again if it is time, or if there is an answer
    python wait_for_service.py answer yes    # the answer to "keep waiting?"

The service is up when there is a file `service.up`. Each check is an iteration of a loop: a stage that inserts itself. The
state is in `service.db` in the current folder.
"""

import os
import sys
from pathlib import Path

from flowdeco import Bail, Context, Run, Stage, action, pipeline, stage
from flowdeco.durable import SqliteJournal, answer, due

PAUSE = float(os.environ.get("PAUSE", "600"))  # seconds between two checks
PATIENCE = 3  # checks until a person is asked


@stage
def look(turn: int) -> None:
    """Check whether the service is up; if it is not, wait, and check again."""

    @action
    def at_service() -> bool:
        is_up = Path("service.up").exists()
        print(f"look {turn}: the service is {'up' if is_up else 'down'}")
        return is_up

    @action
    def later(at_service: bool, ctx: Context) -> Stage | None:
        if at_service:
            return None
        if turn % PATIENCE == 0:
            # Each time it is a new question: the wait consumes its answer.
            if not ctx.wait_for("keep waiting", about=f"the service was down {turn} times", type=bool):
                raise Bail("nobody wants to wait any longer")
        else:
            ctx.sleep(PAUSE)  # longer than `suspend_after`: the run is suspended, and its process ends
        return look(turn + 1)


@action
def fetch() -> str:
    return Path("service.up").read_text()


flow = pipeline(look(1), fetch, name="service")
JOURNAL = SqliteJournal("service.db", codec="json")


def told(run: Run) -> str:
    """Describe the state of a run."""
    reason = (run.reason or "").partition(" until")[0]
    return f"{run.status}: {reason or 'got ' + run['fetch']}"


def main(command: str = "", *words: str) -> int:
    after = min(60.0, PAUSE / 2)
    if command == "start":
        print(told(flow.run(journal=JOURNAL, run_id="watch", suspend_after=after)))
    elif command == "wake":
        woken = [flow.resume(run.id, journal=JOURNAL, suspend_after=after) for run in due(JOURNAL)]
        print("\n".join(map(told, woken)) or "nothing is due")
    elif command == "answer":
        answer(JOURNAL, "watch", {"keep waiting": words == ("yes",)})
        print("recorded")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
