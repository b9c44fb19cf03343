"""The schedule of branches, driven by script: what may begin, what is cancelled, and when a group has ended."""

import contextvars
from itertools import count

import pytest

from flowdeco import Bail, Suspend
from flowdeco.engine.requests import CAUGHT_UP, Await, Begin, Chore, Ended, Fork, Raised, Save, Sleep
from flowdeco.engine.schedule import Schedule
from flowdeco.errors import Cancelled, OutOfTime

NO = ValueError("no")


def call(name):
    """The request to call an action."""
    return name, (), None


def walk(log, *requests, failure=None):
    """A branch that asks for these, notes the answers, and ends with the first of them that is a failure."""
    for request in requests:
        answer = yield request
        log.append(answer)
        if type(answer) is Raised:
            return answer.error
    return failure


class Branch:
    """All that a schedule knows of a branch."""

    def __init__(self, walk, begun):
        self.walk, self.begun, self.stopped = walk, begun, False
        self.deadline = None

    def stop(self):
        self.stopped = True


class Conductor:
    """Hands out branches in their order, those that had begun first; any failure but a Suspend is decisive."""

    def __init__(self, walks, limit, begun, pulls=(), sealed=False):
        self.branches = [Branch(*each) for each in zip(walks, begun or [False] * len(walks), strict=True)]
        self.limit = limit or len(walks)
        self.pulls = dict(pulls)  # requests before a branch is handed out, by its number
        self.is_restoring = begun is not None
        self.must_catch_up = self.is_restoring and not sealed
        self.has_room = self.is_open = True
        self.is_enough = False
        self.enough = None  # so many complete it
        self.failures = [None] * len(walks)
        self.ended_by = self.supply_failure = None
        self.begins = []  # the numbers of branches handed out
        self.wanted = []  # the answers to the supply

    def supply(self):
        for number, branch in sorted(enumerate(self.branches), key=lambda each: not each[1].begun):
            if self.is_restoring and not branch.begun:
                self.is_restoring = False
                if self.must_catch_up and (yield CAUGHT_UP) is False:
                    return None
            if number in self.pulls:
                answer = yield self.pulls[number]
                if type(answer) is Raised:
                    return answer.error
            self.begins.append(number)
            self.wanted.append((yield Begin(branch)))
            if not self.wanted[-1]:
                return None
        if self.is_restoring:
            self.is_restoring = False
            if self.must_catch_up:
                yield CAUGHT_UP
        return None

    def ended(self, branch, failure):
        if branch is None:
            self.supply_failure = failure
            return True
        number = self.branches.index(branch)
        self.failures[number] = failure
        if failure is None and self.enough is not None:
            self.enough -= 1
            self.is_enough = not self.enough
            return self.is_enough
        decisive = failure is not None and not isinstance(failure, Suspend)
        if decisive and self.ended_by is None:
            self.ended_by = number
        return decisive


def fork(*walks, limit=None, begun=None, **more):
    """The request to run these side by side."""
    return Fork(Conductor(walks, limit, begun, **more))


def stopped(fork):
    """The numbers of the branches that are to begin nothing more."""
    return [number for number, branch in enumerate(fork.conductor.branches) if branch.stopped]


def outcome(fork):
    """What became of the branches, and which one ended the others."""
    return fork.conductor.failures, fork.conductor.ended_by


class Scripted:
    """A schedule, and the tickets of what is under way, by what was asked for."""

    def __init__(self, *walks, most=None, **more):
        self.fork = fork(*walks, **more)
        self.conductor = self.fork.conductor
        self.schedule = Schedule(self.fork, count(1), lambda branch: branch.walk, most)
        self.tickets = {}

    def begun(self):
        """Begin what is to begin; return its names."""
        begun, self.schedule.begin = self.schedule.begin, []
        for each in begun:
            self.tickets[name_of(each.request)] = each.ticket
        return [name_of(each.request) for each in begun]

    def cancelled(self):
        """Cancel what is to be cancelled; return its names."""
        cancelled, self.schedule.cancel = self.schedule.cancel, []
        names = {ticket: name for name, ticket in self.tickets.items()}
        return [names[ticket] for ticket in cancelled]

    def answer(self, name, answer=None):
        """Deliver an answer, or what was raised; return what begins now."""
        if isinstance(answer, BaseException):
            answer = Raised(answer)
        self.schedule.deliver(self.tickets.pop(name), answer)
        return self.begun()

    @property
    def ended(self):
        return self.schedule.ended

    @property
    def failures(self):
        return self.conductor.failures

    @property
    def ended_by(self):
        return self.conductor.ended_by


def name_of(request):
    """What a request is called here: a call by its name."""
    return request[0] if isinstance(request, tuple) else request


def kinds(failures):
    """What branches ended with, by type."""
    return [type(failure) for failure in failures]


NONE = type(None)


# -- side by side


def test_all_branches_begin_in_their_order_and_the_group_ends_with_the_last():
    """Whatever the order of the answers."""
    log = []
    scripted = Scripted(walk(log, call("a"), call("a2")), walk(log, call("b")), walk(log, call("c")))
    assert scripted.begun() == ["a", "b", "c"]
    assert scripted.answer("c", 3) == []
    assert scripted.answer("a", 1) == ["a2"]
    assert scripted.answer("a2", 2) == []
    assert scripted.ended is None
    assert scripted.answer("b", 4) == []
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [None, None, None], None)
    assert log == [3, 1, 2, 4]


def test_branches_that_ask_for_nothing_end_at_once():
    """The group, too."""
    assert Scripted(walk([]), walk([])).ended == Ended(None)


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (2, 2), (3, 3), (4, 3), (None, 3)])
def test_no_more_branches_than_the_limit_are_at_work(limit, at_once):
    """The next one begins when one has ended, not when it has asked for something else."""
    names = ["a", "b", "c"]
    scripted = Scripted(*(walk([], call(name), call(f"{name}2")) for name in names), limit=limit)
    assert scripted.begun() == names[:at_once]
    assert scripted.answer("a") == ["a2"]
    assert scripted.answer("a2") == names[at_once : at_once + 1]


def test_tickets_are_never_used_twice():
    """A driver tells late answers by them."""
    scripted = Scripted(walk([], *(call(f"a{n}") for n in range(3))), walk([], *(call(f"b{n}") for n in range(3))))
    seen = []
    begun = scripted.begun()
    while begun:
        seen += scripted.tickets.values()
        begun = [name for each in list(scripted.tickets) for name in scripted.answer(each)]
    assert len(set(seen)) == len(seen) == 6


def test_each_branch_has_context_variables_of_its_own():
    """Its requests are performed in them, and it runs in them itself."""
    variable = contextvars.ContextVar("variable", default="outside")
    seen = []

    def sets(name):
        seen.append(variable.get())
        variable.set(name)
        yield call(name)
        seen.append(variable.get())

    scripted = Scripted(sets("a"), sets("b"))
    contexts = [each.context for each in scripted.schedule.begin]
    assert [context[variable] for context in contexts] == ["a", "b"]
    contexts[1].run(variable.set, "changed")
    scripted.begun()
    scripted.answer("a")
    scripted.answer("b")
    assert seen == ["outside", "outside", "a", "changed"]
    assert variable.get() == "outside"


# -- stopped


@pytest.mark.parametrize("failure", [NO, Bail("done"), KeyboardInterrupt()], ids=["failure", "bail", "interrupt"])
def test_a_branch_that_ends_with_a_failure_or_a_bail_stops_the_others(failure):
    """What is under way is cancelled; what has not begun does not begin; the group waits for what is cancelled."""
    log = []
    branches = walk(log, call("a"), call("a2")), walk(log, call("b")), walk(log, call("c"))
    scripted = Scripted(*branches, limit=2)
    assert scripted.begun() == ["a", "b"]
    assert scripted.answer("b", failure) == []
    assert scripted.cancelled() == ["a"]
    assert (stopped(scripted.fork), scripted.conductor.begins) == ([0], [0, 1])
    assert scripted.ended is None
    assert scripted.answer("a", Cancelled("cancelled")) == []
    assert scripted.failures[1] is failure
    assert kinds(scripted.failures) == [Cancelled, type(failure), NONE]
    assert (scripted.ended_by, scripted.ended.interrupt) == (1, None)


def test_a_suspended_branch_stops_nothing():
    """The others run to their end."""
    suspended = Suspend("waits")
    scripted = Scripted(walk([], call("a"), call("a2")), walk([], call("b")), walk([], call("c")), limit=2)
    scripted.begun()
    assert scripted.answer("b", suspended) == ["c"]
    assert scripted.answer("a") == ["a2"]
    scripted.answer("a2")
    scripted.answer("c")
    assert scripted.cancelled() == []
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [None, suspended, None], None)


def test_an_action_that_the_driver_has_not_begun_yet_is_withdrawn():
    """It has never been called; what else has not begun is left to the driver."""
    log, save = [], Save(print)
    scripted = Scripted(walk(log, call("a")), walk(log, save), walk([], failure=NO), limit=3)
    assert [each.request for each in scripted.schedule.begin] == [save]
    assert kinds(each.error for each in log) == [Cancelled]
    assert scripted.begun() == [save]
    assert scripted.cancelled() == [save]
    scripted.answer(save)
    assert kinds(scripted.failures) == [Cancelled, NONE, ValueError]
    assert scripted.ended_by == 2


def test_nothing_else_of_a_stopped_branch_begins():
    """An answer that arrives late is delivered, and the next action refused; each refusal is an error of its own."""
    log = []

    def stubborn():
        log.append((yield call("a")))
        log.append((yield call("a2")))
        log.append((yield call("a3")))
        log.append((yield Save(print)))
        return log[1].error

    scripted = Scripted(stubborn(), walk([], call("b")))
    scripted.begun()
    scripted.answer("b", NO)
    assert scripted.cancelled() == ["a"]
    (save,) = scripted.answer("a", "late")
    assert isinstance(save, Save)
    assert log[0] == "late"
    assert kinds(each.error for each in log[1:]) == [Cancelled, Cancelled]
    assert log[1].error is not log[2].error
    scripted.answer(save)
    assert scripted.failures == [log[1].error, NO]


def test_of_two_failures_the_first_one_has_ended_the_group():
    """Both are known."""
    other = KeyError("other")
    scripted = Scripted(walk([], call("a")), walk([], call("b")))
    scripted.begun()
    scripted.answer("b", NO)
    scripted.answer("a", other)
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [other, NO], 1)


# -- interrupted


def test_an_interrupt_ends_all_of_it():
    """What has begun is cancelled, what has not is withdrawn, and the first interrupt is the answer."""
    first, second = KeyboardInterrupt(), KeyboardInterrupt()
    log = []
    scripted = Scripted(walk(log, call("a"), call("a2")), walk(log, call("b")), walk(log, call("c")), limit=2)
    scripted.begun()
    scripted.answer("a")
    assert scripted.schedule.interrupt(first) is True
    assert scripted.cancelled() == ["a2", "b"]
    assert scripted.schedule.interrupt(second) is False
    assert scripted.answer("b", Cancelled("cancelled")) == []
    assert scripted.answer("a2", "late") == []
    assert scripted.ended.interrupt is first
    assert (kinds(scripted.failures), scripted.conductor.begins) == ([NONE, Cancelled, NONE], [0, 1])


def test_an_interrupt_after_a_failure_is_the_answer_as_well():
    """What was stopped is not stopped again."""
    interrupt = KeyboardInterrupt()
    scripted = Scripted(walk([], call("a")), walk([], call("b")))
    scripted.begun()
    scripted.answer("b", NO)
    scripted.schedule.interrupt(interrupt)
    assert (scripted.cancelled(), stopped(scripted.fork)) == (["a"], [0])
    scripted.answer("a", Cancelled("cancelled"))
    assert (scripted.ended.interrupt, scripted.ended_by) == (interrupt, 1)


def test_an_interrupt_before_anything_has_begun_begins_nothing():
    """Nothing is left to wait for."""
    scripted = Scripted(walk([], call("a")), walk([], call("b")), limit=1)
    scripted.schedule.interrupt(KeyboardInterrupt())
    assert (scripted.begun(), scripted.cancelled()) == ([], [])
    assert kinds(scripted.failures) == [Cancelled, NONE]


def test_an_interrupt_reaches_the_groups_inside():
    """They are ended by it, and so is the branch that waits for them."""
    interrupt, log = KeyboardInterrupt(), []
    inner = fork(walk([], call("a")), walk([], call("b")), limit=1)
    scripted = Scripted(waiting(inner, log))
    scripted.begun()
    scripted.schedule.interrupt(interrupt)
    assert scripted.cancelled() == ["a"]
    scripted.answer("a", Cancelled("cancelled"))
    (ended,) = log
    assert (kinds(inner.conductor.failures), type(ended.interrupt)) == ([Cancelled, NONE], Cancelled)
    assert (scripted.failures, scripted.ended.interrupt) == ([ended.interrupt], interrupt)


# -- groups in groups


def waiting(inner, log, *rest, before=()):
    """A branch that waits for a group of its own, and fails with what it was interrupted or ended by."""
    yield from before
    ended = yield inner
    log.append(ended)
    failure = ended.interrupt or next(filter(None, inner.conductor.failures), None)
    if failure is not None:
        return failure
    return (yield from walk(log, *rest))


def test_groups_nest():
    """Their branches are at work side by side; a branch continues when its group has ended."""
    log = []
    scripted = Scripted(
        waiting(fork(walk([], call("a")), walk([], call("b"))), log, call("after")), walk([], call("c"))
    )
    assert scripted.begun() == ["a", "b", "c"]
    assert scripted.answer("b") == []
    assert scripted.answer("a") == ["after"]
    assert log == [Ended(None)]
    scripted.answer("c")
    scripted.answer("after")
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [None, None], None)


def test_the_limit_of_a_group_is_its_own():
    """A branch that waits for its group is at work."""
    inner = fork(walk([], call("a")), walk([], call("b")), walk([], call("c")), limit=2)
    scripted = Scripted(waiting(inner, []), walk([], call("d")), limit=1)
    assert scripted.begun() == ["a", "b"]
    assert scripted.answer("a") == ["c"]
    assert scripted.answer("b") == []
    assert scripted.answer("c") == ["d"]


def test_a_failure_inside_stops_the_group_inside_only():
    """What becomes of the outer one depends on the branch that waited for it."""
    log = []

    inner = fork(walk([], call("a")), walk([], call("b")))

    def recovers():
        log.append((yield inner))
        return (yield from walk(log, call("after")))

    scripted = Scripted(recovers(), walk([], call("c")))
    scripted.begun()
    assert scripted.answer("a", NO) == []
    assert scripted.cancelled() == ["b"]
    assert scripted.answer("b", Cancelled("cancelled")) == ["after"]
    assert (inner.conductor.failures[0], inner.conductor.ended_by) == (NO, 0)
    scripted.answer("after")
    scripted.answer("c")
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [None, None], None)


def test_a_failure_outside_stops_the_groups_inside_however_deep():
    """Each is told that it was ended by another branch."""
    log = []
    innermost = fork(walk([], call("a")), walk([], call("b")), limit=1)
    scripted = Scripted(waiting(fork(waiting(innermost, log)), log), walk([], call("c")))
    assert scripted.begun() == ["a", "c"]
    scripted.answer("c", NO)
    assert scripted.cancelled() == ["a"]
    assert stopped(innermost) == stopped(scripted.fork) == [0]
    scripted.answer("a", Cancelled("cancelled"))
    assert [type(ended.interrupt) for ended in log] == [Cancelled, Cancelled]
    assert log[0].interrupt is not log[1].interrupt
    assert (scripted.failures[1], scripted.ended_by) == (NO, 1)


def test_a_group_in_a_stopped_branch_begins_nothing():
    """It is answered at once: ended by another branch."""
    log = []
    inner = fork(walk([], call("a")))
    scripted = Scripted(waiting(inner, log, before=[Save(print)]), walk([], call("c")))
    (save, _) = scripted.begun()
    scripted.answer("c", NO)
    assert scripted.cancelled() == [save]
    assert scripted.answer(save) == []
    (ended,) = log
    assert (inner.conductor.begins, type(ended.interrupt)) == ([], Cancelled)
    assert scripted.failures == [ended.interrupt, NO]


def test_a_group_in_a_branch_begins_in_the_context_variables_of_that_branch():
    """What was set there is seen in there, too."""
    variable = contextvars.ContextVar("variable", default="outside")

    def sets():
        variable.set("in the branch")
        yield fork(walk([], call("a")))

    scripted = Scripted(sets(), walk([], call("b")))
    contexts = {name_of(each.request): each.context for each in scripted.schedule.begin}
    assert contexts["a"].run(variable.get) == "in the branch"
    assert contexts["b"].run(variable.get) == "outside"


# -- catching up, in a run that is resumed


def resumed(log, name, *requests):
    """A branch that has restored something, says so, and continues."""
    log.append(f"{name} restored")
    yield CAUGHT_UP
    return (yield from walk([], *requests))


def test_nothing_continues_before_all_that_had_begun_is_restored():
    """Also a branch that waits for something meanwhile, as for the stream that it pulls again."""
    log = []

    def pulls():
        yield Chore(next, "stream"), (), None
        log.append("b restored")
        yield CAUGHT_UP
        return (yield from walk([], call("b")))

    scripted = Scripted(resumed(log, "a", call("a")), pulls(), walk([], call("c")), begun=[True, True, False])
    (chore,) = scripted.begun()
    assert log == ["a restored"]
    assert scripted.answer(chore) == ["a", "b", "c"]
    assert log == ["a restored", "b restored"]


def test_branches_that_had_begun_come_before_others():
    """They need not be the first ones: the limit may have been another one."""
    log = []
    branches = walk([], call("a")), resumed(log, "b", call("b")), walk([], call("c")), resumed(log, "d", call("d"))
    scripted = Scripted(*branches, limit=1, begun=[False, True, False, True])
    assert log == ["b restored", "d restored"]
    assert scripted.begun() == ["b"]
    assert scripted.answer("b") == ["d"]
    assert scripted.answer("d") == ["a"]
    assert scripted.answer("a") == ["c"]


def test_a_branch_that_had_ended_is_no_longer_waited_for():
    """It restores what it had done, and that is all."""
    scripted = Scripted(walk([]), resumed([], "b", call("b")), walk([], call("c")), begun=[True, True, False], limit=1)
    assert scripted.begun() == ["b"]
    assert scripted.answer("b") == ["c"]
    scripted.answer("c")
    assert (scripted.ended, scripted.failures, scripted.ended_by) == (Ended(None), [None, None, None], None)


def test_a_group_all_of_whose_branches_had_ended_ends():
    """Nothing is performed."""
    assert Scripted(walk([]), walk([]), begun=[True, True]).ended == Ended(None)


def test_a_group_all_of_whose_branches_had_begun_ends_with_the_last():
    """No more of them at once than its limit allows."""
    scripted = Scripted(resumed([], "a", call("a")), resumed([], "b", call("b")), begun=[True, True], limit=1)
    assert scripted.begun() == ["a"]
    assert scripted.answer("a") == ["b"]
    assert scripted.ended is None
    scripted.answer("b")
    assert scripted.ended == Ended(None)


def test_branches_that_had_begun_continue_although_no_more_are_wanted():
    """As after a Suspend, before the resume: the supply has ended by then."""
    log = []
    inner = fork(resumed([], "a", call("a")), resumed([], "b", call("b")), begun=[True, True], limit=1)
    inner.conductor.is_open = False
    scripted = Scripted(waiting(inner, log))
    assert scripted.begun() == ["a"]
    assert scripted.answer("a") == ["b"]
    assert log == []
    scripted.answer("b")
    assert (log, scripted.ended) == ([Ended(None)], Ended(None))


def test_what_restores_a_failure_stops_the_group():
    """Those that had begun hear of it as they continue; the others do not begin."""
    log = []

    def restored():
        yield CAUGHT_UP
        log.append((yield call("a")))
        return log[0].error

    scripted = Scripted(restored(), walk([], failure=NO), walk([], call("c")), begun=[True, True, False])
    assert scripted.begun() == []
    assert kinds(each.error for each in log) == [Cancelled]
    assert (scripted.failures[1], scripted.ended_by) == (NO, 1)


def test_an_interrupt_while_branches_are_catching_up_lets_them_end():
    """None of them performs anything."""
    interrupt, log = KeyboardInterrupt(), []

    def pulls():
        answer = yield Chore(next, "stream"), (), None
        return answer.error

    scripted = Scripted(resumed(log, "a", call("a")), pulls(), walk([], call("c")), begun=[True, True, False])
    (chore,) = scripted.begun()
    scripted.schedule.interrupt(interrupt)
    assert scripted.cancelled() == [chore]
    assert scripted.answer(chore, Cancelled("cancelled")) == []
    assert kinds(scripted.failures) == [Cancelled, Cancelled, NONE]
    assert scripted.ended.interrupt is interrupt


@pytest.mark.parametrize("last", ["b", "d"])
def test_groups_inside_catch_up_with_those_around_them(last):
    """Nothing in them continues before the others outside have caught up, and the other way round."""
    log = []

    def pulls(name):
        yield Chore(next, name), (), None
        yield from resumed(log, name, call(name))

    inner = fork(resumed(log, "a", call("a")), pulls("b"), walk([], call("c")), begun=[True, True, False], limit=2)
    scripted = Scripted(waiting(inner, []), pulls("d"), walk([], call("e")), begun=[True, True, False])
    first, second = sorted(scripted.begun(), key=lambda chore: chore.name == last)
    assert (first.name, second.name) == ("d" if last == "b" else "b", last)
    assert scripted.answer(first) == []
    assert sorted(scripted.answer(second)) == ["a", "b", "d", "e"]
    assert sorted(log) == ["a restored", "b restored", "d restored"]
    assert scripted.answer("a") == ["c"]


def test_a_group_inside_that_had_not_begun_waits_for_those_that_catch_up():
    """Its branch had come that far."""
    inner = fork(walk([], call("a")), walk([], call("b")), limit=1, begun=[False, False])
    scripted = Scripted(waiting(inner, []), resumed([], "c", call("c")), begun=[True, True])
    assert sorted(scripted.begun()) == ["a", "c"]
    assert scripted.answer("a") == ["b"]


def test_a_group_inside_continues_before_the_branches_behind_it():
    """As it began."""
    inner = fork(resumed([], "b", call("b")), walk([], call("c")), begun=[True, False])
    outer = resumed([], "a", call("a")), waiting(inner, []), resumed([], "d", call("d"))
    assert Scripted(*outer, begun=[True, True, True]).begun() == ["a", "b", "c", "d"]


def test_a_group_inside_that_had_ended_is_followed_by_what_its_branch_restores_next():
    """It is not yet caught up."""
    log = []

    def branch():
        log.append((yield fork(walk([]), walk([]), begun=[True, True], sealed=True)))
        yield from resumed(log, "after", call("a"))

    def pulls():
        yield Chore(next, "stream"), (), None
        yield from resumed(log, "b", call("b"))

    scripted = Scripted(branch(), pulls(), begun=[True, True])
    assert log == [Ended(None), "after restored"]
    (chore,) = scripted.begun()
    assert scripted.answer(chore) == ["a", "b"]


def test_a_branch_that_says_so_too_late_simply_continues():
    """All others have caught up; a group of a later step may be the first to have nothing left to restore."""
    scripted = Scripted(resumed([], "a", call("a")), walk([], call("b")))
    assert scripted.begun() == ["a", "b"]


def test_pauses_and_chores_go_to_the_driver_like_calls():
    """With a ticket each."""
    pause, chore = Sleep(1), (Chore(next, "stream"), (), None)
    scripted = Scripted(walk([], pause), walk([], chore))
    assert [each.request for each in scripted.schedule.begin] == [pause, chore]


# -- the supply


PULL = (Chore(next, "stream"), (), None)


def test_a_branch_is_supplied_when_the_one_before_it_has_begun_and_there_is_room():
    """Not while the conductor has none; the supply waits, and is told that another one is wanted."""
    scripted = Scripted(*(walk([], call(name)) for name in "abcd"), limit=3)
    conductor = scripted.conductor
    assert (scripted.begun(), conductor.begins, conductor.wanted) == (["a", "b", "c"], [0, 1, 2], [True, True])
    conductor.has_room = False
    assert scripted.answer("a") == []
    conductor.has_room = True
    assert scripted.answer("b") == ["d"]
    assert conductor.wanted == [True, True, True, True]


def test_requests_of_the_supply_are_performed_like_those_of_branches():
    """While others are at work."""
    scripted = Scripted(walk([], call("a")), walk([], call("b")), pulls={1: PULL})
    assert scripted.begun() == ["a", PULL[0]]
    assert scripted.answer("a") == []
    assert scripted.ended is None
    assert scripted.answer(PULL[0]) == ["b"]
    scripted.answer("b")
    assert scripted.ended == Ended(None)


def test_a_supply_that_fails_ends_the_group():
    """As a branch would."""
    scripted = Scripted(walk([], call("a")), walk([], call("b")), pulls={1: PULL})
    scripted.begun()
    scripted.answer(PULL[0], NO)
    assert scripted.cancelled() == ["a"]
    scripted.answer("a", Cancelled("cancelled"))
    assert (scripted.ended, scripted.conductor.supply_failure, scripted.conductor.begins) == (Ended(None), NO, [0])


def test_a_branch_that_is_supplied_to_a_stopped_group_does_not_begin():
    """It was being pulled when another one failed; the supply is told that no more is wanted."""
    log = []
    scripted = Scripted(walk([], call("a")), walk(log, call("b")), pulls={1: PULL})
    scripted.begun()
    scripted.answer("a", NO)
    assert scripted.cancelled() == [PULL[0]]
    assert scripted.ended is None
    assert scripted.answer(PULL[0], "late") == []
    assert (scripted.ended, scripted.conductor.wanted, stopped(scripted.fork)) == (Ended(None), [True, False], [1])
    assert log == []


def test_a_conductor_that_is_not_open_is_asked_for_no_more():
    """Branches that have begun end first."""
    scripted = Scripted(walk([], call("a"), call("a2")), walk([], call("b")), limit=1)
    scripted.conductor.is_open = False
    scripted.begun()
    assert scripted.answer("a") == ["a2"]
    assert scripted.answer("a2") == []
    assert (scripted.ended, scripted.conductor.begins) == (Ended(None), [0])


def test_an_interrupt_reaches_a_supply_that_waits():
    """What it pulls is cancelled."""
    scripted = Scripted(walk([], call("a")), pulls={0: PULL})
    scripted.begun()
    scripted.schedule.interrupt(KeyboardInterrupt())
    assert scripted.cancelled() == [PULL[0]]
    scripted.answer(PULL[0], Cancelled("cancelled"))
    assert type(scripted.ended.interrupt) is KeyboardInterrupt


def test_the_supply_of_a_group_in_a_branch_awaits_where_the_branch_does():
    """And sees its context variables."""
    variable = contextvars.ContextVar("variable", default="outside")
    inner = fork(walk([], call("a")), pulls={0: PULL})

    def sets():
        variable.set("in the branch")
        yield inner

    scripted = Scripted(sets(), walk([], call("b")))
    begun = {name_of(each.request): each for each in scripted.schedule.begin}
    pull = begun[PULL[0]]
    assert pull.server.branch is scripted.conductor.branches[0]
    assert scripted.schedule.task(pull.ticket) is pull.server
    assert pull.context.run(variable.get) == "in the branch"


def test_the_lane_of_a_supply_ends_with_it():
    """As that of a branch does."""
    scripted = Scripted(pulls={})
    assert scripted.ended == Ended(None)
    scripted = Scripted(walk([]), pulls={0: PULL})
    (begun,) = scripted.schedule.begin
    scripted.schedule.task(begun.ticket).lane = "lane"
    scripted.begun()
    scripted.answer(PULL[0])
    assert scripted.schedule.left == ["lane"]


def test_a_supply_that_fails_while_branches_catch_up_ends_the_group():
    """Those that have caught up end, without performing anything."""
    log = []

    def restored():
        yield CAUGHT_UP
        log.append((yield call("a")))
        return log[0].error

    scripted = Scripted(restored(), walk([], call("b")), begun=[True, True], pulls={1: PULL})
    assert scripted.begun() == [PULL[0]]
    scripted.answer(PULL[0], NO)
    assert (scripted.ended, scripted.conductor.supply_failure, kinds(each.error for each in log)) == (
        Ended(None), NO, [Cancelled],
    )  # fmt: skip


def test_a_group_that_had_ended_is_restored_even_in_a_branch_that_is_stopped():
    """Its branches perform nothing."""
    log = []
    inner = fork(*(resumed(log, name, call(name)) for name in "xy"), begun=[True, True], sealed=True)
    scripted = Scripted(waiting(inner, [], before=[Save(print)]), walk([], call("c")))
    (save, _) = scripted.begun()
    scripted.answer("c", NO)
    scripted.cancelled()
    scripted.answer(save)
    assert (inner.conductor.begins, stopped(inner)) == ([0, 1], [0, 1])
    assert (log, kinds(inner.conductor.failures)) == (["x restored", "y restored"], [Cancelled, Cancelled])


# -- enough


def enough(count, *walks, **more):
    """A group that is complete when so many branches are."""
    given = fork(*walks, **more)
    given.conductor.enough = count
    return given


def test_nothing_that_the_calls_of_losers_return_counts_any_more():
    """They are cancelled; what is not a call is answered as usual."""
    log = []
    given = enough(1, walk([], call("a")), walk(log, call("b"), call("b2")), walk(log, PULL), walk(log, call("d")))
    scripted = Scripted(waiting(given, []))
    scripted.begun()
    scripted.answer("a")
    assert scripted.cancelled() == ["b", PULL[0], "d"]
    scripted.answer("b", "late")
    scripted.answer(PULL[0], "pulled")
    scripted.answer("d", KeyboardInterrupt())
    assert (type(log[0].error), log[1], type(log[2].error)) == (Cancelled, "pulled", KeyboardInterrupt)


def test_what_does_not_count_any_more_does_not_count_again():
    """Whatever else ends the losers, or those around them, later."""
    log = []
    given = enough(1, walk([], call("a")), walk(log, call("b")))
    scripted = Scripted(waiting(given, []), walk([], call("c")))
    scripted.begun()
    scripted.answer("a")
    scripted.answer("c", NO)
    scripted.answer("b", "late")
    assert kinds(each.error for each in log) == [Cancelled]


# -- a limit to calls


def test_no_more_calls_than_the_limit_are_under_way():
    """In all groups together; what is not a call does not count."""
    inner = fork(walk([], call("a")), walk([], call("b")), walk([], PULL))
    scripted = Scripted(waiting(inner, []), walk([], call("c"), call("c2")), most=2)
    assert scripted.begun() == ["a", "b", PULL[0]]
    assert scripted.answer(PULL[0]) == []
    assert scripted.answer("b") == ["c"]
    assert scripted.answer("c") == ["c2"]
    scripted.answer("a")
    scripted.answer("c2")
    assert scripted.ended == Ended(None)


def test_a_call_that_has_ended_makes_room_for_one():
    """Also if no other one has waited for its turn."""
    inner = fork(walk([], call("b")), walk([], call("c")))
    scripted = Scripted(walk([], call("a"), PULL, call("a2")), waiting(inner, [], before=[Save(print)]), most=1)
    _, save = scripted.begun()
    assert scripted.answer("a") == [PULL[0]]
    assert scripted.answer(save) == ["b"]
    assert scripted.answer(PULL[0]) == []
    assert [scripted.answer("b"), scripted.answer("c"), scripted.answer("a2")] == [["c"], ["a2"], []]
    assert scripted.ended == Ended(None)


def test_a_call_that_is_withdrawn_while_it_waits_makes_no_room():
    """It had none."""
    log = []

    def recovers():
        yield fork(walk([], PULL), walk(log, call("b")))

    scripted = Scripted(walk([], call("a")), recovers(), walk([], call("c")), most=1)
    assert scripted.begun() == ["a", PULL[0]]
    assert scripted.answer(PULL[0], Bail("done")) == []
    assert kinds(each.error for each in log) == [Cancelled]
    assert scripted.answer("a") == ["c"]


class Closed:
    """An awaitable that notes that it was closed."""

    closed = False

    def close(self):
        self.closed = True


def test_calls_that_wait_for_their_turn_are_withdrawn():
    """Also an awaitable that an action has returned: it is closed. Those not begun make room for others."""
    later, log = Closed(), []
    waits = Await(later, None, "waits")
    inner = fork(walk(log, call("b")), walk(log, waits))
    scripted = Scripted(walk([], call("a")), waiting(inner, []), walk(log, call("c")), most=1)
    scripted.begun()
    scripted.answer("a", NO)
    assert later.closed
    assert kinds(each.error for each in log) == [Cancelled] * 3
    assert scripted.ended == Ended(None)


def test_a_call_that_is_withdrawn_before_it_begins_makes_room():
    """For one of a group that goes on."""
    log = []
    inner = fork(walk(log, call("b")), walk([], failure=NO))

    def recovers():
        yield inner

    scripted = Scripted(recovers(), walk(log, call("c")), most=1)
    assert scripted.begun() == ["c"]
    assert kinds(each.error for each in log) == [Cancelled]


# -- deadlines


LATE = OutOfTime("late")


def limited(*walks, **more):
    """A schedule whose branches have a deadline, and its tasks."""
    made = Scripted(*walks, **more)
    return made, [made.schedule.task(each.ticket) for each in made.schedule.begin]


def test_a_task_that_waits_while_a_deadline_counts_is_reported():
    """With each of its requests, and its forks; not those without one."""
    inner, other = fork(walk([], call("inner"))), fork(walk([], call("other")))
    requests = fork(walk([], call("a"), call("b")), walk([], inner), walk([], call("c")), walk([], other))
    for branch in requests.conductor.branches[:2]:
        branch.deadline = object()
    schedule = Schedule(requests, count(1), lambda branch: branch.walk)
    assert [task.branch for task in schedule.limited] == requests.conductor.branches[:2]
    schedule.limited.clear()
    schedule.deliver(schedule.begin[0].ticket, None)
    assert [task.branch for task in schedule.limited] == requests.conductor.branches[:1]


def test_a_request_whose_time_is_up_is_cancelled_and_ends_with_that_error():
    """Whatever kind of cancellation its answer is."""
    for answer in ended_by(KeyboardInterrupt), ended_by(ValueError), ended_by(Bail), Raised(GeneratorExit()), "value":
        log, end = [], GeneratorExit()

        def cleans_up(log=log):
            log.append((yield Sleep(5)))
            log.append((yield Sleep(1)))

        made, (task, _) = limited(cleans_up(), walk([], call("other")))
        made.begun()
        made.schedule.expire(LATE, task)
        assert len(made.schedule.cancel) == 1
        made.schedule.deliver(task.ticket, answer)
        made.schedule.deliver(task.ticket, Raised(end))
        came, later = log
        assert later.error is end
        is_cancelled = type(answer) is Raised and type(answer.error) is GeneratorExit
        assert (came.error is LATE) if is_cancelled else (came is answer)


def ended_by(kind):
    return Raised(kind())


def test_a_call_that_has_not_begun_is_answered_when_its_time_is_up():
    """It never begins."""
    log = []

    def recovering():
        log.append((yield call("a")))
        log.append((yield call("a2")))

    made, (task, _) = limited(recovering(), walk([], call("b")))
    made.schedule.expire(LATE, task)
    assert log[0].error is LATE
    assert made.begun() == ["b", "a2"]
    made.answer("a2", GeneratorExit())
    assert type(log[1].error) is GeneratorExit


def test_the_group_that_a_task_waits_for_is_interrupted_when_its_time_is_up():
    """And that of the run, if no task is named."""
    log = []
    inner = fork(walk([], call("inner")))
    made, (one, _) = limited(walk(log, inner), walk([], call("other")))
    made.schedule.expire(LATE, one.group.parent)
    assert log == [Ended(LATE)]
    made.schedule.expire(LATE, None)
    assert made.schedule.ended == Ended(LATE)


def test_a_task_that_waits_for_nothing_is_left_alone_when_its_time_is_up():
    """It has been answered, and waits for others to catch up."""
    made = Scripted(walk([], PULL, CAUGHT_UP, call("a")), walk([], call("b")), begun=[True, True])
    made.begun()
    made.answer(PULL[0])
    (waiting,) = [task for task in made.schedule._root.tasks if task.ticket is None]
    made.schedule.expire(LATE, waiting)
    assert made.schedule.cancel == []
