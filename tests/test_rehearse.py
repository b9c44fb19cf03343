"""What a resumed run does to find out whether its past holds: a trial first, and it leaves nothing behind."""

import durable_units as du
import pytest
from durable_units import BROKEN, CALLS, ENTERED
from support import statuses

from flowdeco import Stage, parallel, pipeline
from flowdeco.durable import MemoryJournal
from flowdeco.engine.rehearse import Rehearsal
from flowdeco.errors import CodeChangedError
from flowdeco.middleware import recover
from flowdeco.model.store import Store


@pytest.fixture(autouse=True)
def nothing_noted():
    """Every test begins without calls, and with everything in order."""
    du.clear()
    ENTERED.clear()


@pytest.fixture
def rehearsed(monkeypatch):
    """What has been rehearsed, by the name of the pipeline."""
    names = []
    walk = Rehearsal.walk

    def noted(rehearsal):
        names.append(rehearsal.run.pipeline.name)
        return walk(rehearsal)

    monkeypatch.setattr(Rehearsal, "walk", noted)
    return names


def interrupted(*units, name="p"):
    """A journal with a run of these, which has failed."""
    BROKEN.add("fragile")
    journal = MemoryJournal()
    pipeline(*units, name=name).run(journal=journal, run_id="r", check=False)
    du.clear()
    ENTERED.clear()
    return journal


def test_where_nothing_has_changed_nothing_is_rehearsed(rehearsed):
    """The trial is the run: also in groups, and with what was inserted."""
    units = du.first, du.plan, parallel(du.item, Stage("s", [du.second, du.fragile]), limit=1)
    journal = interrupted(*units)
    assert pipeline(*units, name="p").resume("r", journal=journal).status == "completed"
    assert (CALLS, rehearsed) == (["fragile"], [])


def test_observers_hear_once_what_is_restored():
    """Nothing of a trial that was given up, and all of one that was not."""
    for units in ([du.first, du.fragile], [du.first, du.streams, du.fragile]):
        journal = interrupted(*units)
        events = []
        pipeline(*units, name="p").resume("r", journal=journal, observers=[events.append])
        kinds = [type(event).__name__ for event in events]
        assert kinds.count("RunStarted") == kinds.count("RunFinished") == 1
        assert [event.stage for event in events if getattr(event, "restored", False)].count("first") == 1


def test_middleware_is_not_entered_before_all_of_the_past_is_known():
    """A change in an unfinished stage, or behind the beginning of a pipeline."""

    def made(action):
        return [pipeline(Stage("s", [action, du.fragile], use=[du.watched]), name="q", use=[du.watched])]

    journal = interrupted(*made(du.first))
    with pytest.raises(CodeChangedError, match="s/item comes where the run had s/first"):
        pipeline(*made(du.item), name="p").resume("r", journal=journal)
    assert (CALLS, ENTERED) == ([], [])
    stage = [Stage("s", [du.first, du.fragile], use=[du.watched])]
    journal = interrupted(*stage)
    with pytest.raises(CodeChangedError, match="s/item comes where the run had s/first"):
        pipeline(Stage("s", [du.item, du.fragile], use=[du.watched]), name="p").resume("r", journal=journal)
    assert (CALLS, ENTERED) == ([], [])


def test_reducers_are_not_called_before_all_of_the_past_is_known():
    """They are functions of a user."""
    folded = []

    def fold(one, other):
        folded.append((one, other))
        return one + other

    def made(last):
        group = parallel(du.first, du.first, merge={"first": fold}, limit=1)
        return [group, last, du.fragile]

    journal = interrupted(*made(du.nothing))
    folded.clear()
    with pytest.raises(CodeChangedError, match="stage 'item' comes where the run had stage 'nothing'"):
        pipeline(*made(du.item), name="p").resume("r", journal=journal)
    assert folded == []
    assert pipeline(*made(du.nothing), name="p").resume("r", journal=journal)["first"] == 2
    assert folded == [(1, 1)]


def test_a_failure_that_nobody_recovers_any_more_is_not_the_end_of_the_run():
    """What had failed is called again."""
    group = parallel(du.fragile, du.first, limit=1)
    BROKEN.add("fragile")
    journal = MemoryJournal()
    pipeline(pipeline(group, name="q", use=[recover(on=RuntimeError)]), name="p").run(journal=journal, run_id="r")
    du.clear()
    resumed = pipeline(pipeline(group, name="q"), name="p").resume("r", journal=journal, on_change="ignore")
    assert statuses(resumed) == [("fragile", "completed"), ("first", "completed")]
    assert CALLS == ["fragile", "first"]


@pytest.mark.parametrize("units", [[du.writes, du.fragile], [parallel(du.writes, du.item, limit=1), du.fragile]])
def test_ctrl_c_in_a_trial_leaves_the_run_as_it_was(monkeypatch, units):
    """It can be resumed again."""
    BROKEN.add("fragile")
    journal = MemoryJournal()
    flow = pipeline(*units, name="p")
    flow.run({"given": 1}, journal=journal, run_id="r", check=False)
    du.clear()
    steps = journal.history("r")
    restore = Store._restore

    def interrupt(store, delta):
        monkeypatch.setattr(Store, "_restore", restore)
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_restore", interrupt)
    with pytest.raises(KeyboardInterrupt):
        flow.resume("r", journal=journal)
    assert (CALLS, journal.history("r")) == ([], steps)
    (info,) = journal.runs()
    assert (info.status, info.owner) == ("failed", None)
    assert flow.resume("r", journal=journal)["written"] == {"deep": [1]}
    assert CALLS == ["fragile"]
