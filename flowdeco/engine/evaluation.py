"""The run loop: it decides which unit runs next, and performs nothing.

1. There is one *agenda*: a stack of the work left to do, the next item on top. On it are units, the steps of the open
   stage, and, below their contents, the *scopes* (pipelines, stages) still to be closed.
2. Insertions go on top: stages when the open stage closes, actions at once. So order is depth first (L6); putting n units
   there costs n, whatever else is waiting; and since the agenda keeps no finished units, a stage that returns itself
   is a loop in constant memory.
3. A failure closes scopes from the inside out, until the layers of one recover it or ask for another attempt (L7).
4. A step ends in an `Outcome`, which takes effect all at once or not at all (L4). When a step begins, the evaluation
   looks up its outcome from before the run was resumed: if it had ended, that takes effect again, and nothing is
   performed. From then on it makes no difference whether an outcome is new or remembered (L10). A scope that had ended is
   gone through again: its contents are restored one by one, and then its own outcome. Without an outcome it is a scope
   that begins, even if all in it is restored.
5. Each branch of a parallel group is an evaluation of its own, over a fork of the store (L9). A group is one request,
   `Fork`; the writes of branches that end are merged in their order, and reach the store as the group's outcome.

Nothing here performs anything. Every call of a user's function, every wait, is a request that is yielded to a driver,
and answered with its result (`requests`). A user's exception is always passed on as a value, never raised through
these generators, for which a `StopIteration` or a `GeneratorExit` would mean something else. An interrupt is an answer,
too: it never arrives while an outcome takes effect.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from inspect import CO_GENERATOR
from types import GeneratorType
from typing import Any, Final, cast

from flowdeco.engine.actions import begin_action, finish_simple
from flowdeco.engine.branch import Branch
from flowdeco.engine.calling import simple_arguments
from flowdeco.engine.deadlines import Deadline
from flowdeco.engine.groups import run_group
from flowdeco.engine.layers import merging
from flowdeco.engine.noting import note, note_place
from flowdeco.engine.open_scopes import UNNUMBERED, OpenScope, OpenStream
from flowdeco.engine.outcome import RUN, Outcome, Scope, Status, record_kind, stage_count, status_of
from flowdeco.engine.requests import Failure, Request, Walk
from flowdeco.engine.restoring import note_adopted, recall
from flowdeco.engine.runs import Run
from flowdeco.engine.scopes import end_scope, fill_scope, leave_scope, limited, open_scope
from flowdeco.engine.streams import close_stream, close_streams, open_stream, pull
from flowdeco.engine.terms import Terms
from flowdeco.errors import Bail, Suspend
from flowdeco.events import ActionStarted, RunFinished, RunStarted
from flowdeco.model.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    action_selectors,
    one_action_stage,
)
from flowdeco.model.options import Middleware
from flowdeco.model.reload import reloaded
from flowdeco.model.steps import Step

__all__ = ["evaluate", "evaluate_run"]


def evaluate_run(run: Run, terms: Terms, use: tuple[Middleware, ...]) -> Generator[Request, Any, Branch]:
    """Evaluate the pipeline of a run, and note the outcome in the run."""
    started = terms.clock()
    run.started = run.started or started + terms.epoch
    run.status = Status.RUNNING
    past = terms.past
    branch = Branch(terms, run.store, OpenScope(None, run.pipeline, None, started))
    if past is not None:
        branch.sealed = int(past.finished)
        remains = past.remains_of(branch.id)
        branch.result = None if remains is None else remains.result
    if terms.notify is not None:
        terms.notify(RunStarted(run.id, run.pipeline.name, stage_count(run.pipeline.units)))
    opening = partial(_begin_pipeline, pipeline=run.pipeline, by=None, use=use, is_run=True)
    branch.agenda.append((opening, None))
    deadline = None
    if terms.timeout is not None:
        deadline = Deadline(f"run {run.id!r} of pipeline {run.pipeline.name!r}", terms.timeout, branch)
    error = yield from evaluate(branch)
    error = error if deadline is None else deadline.close(error)
    if past is not None and not terms.rehearses:
        yield from close_streams(past)
    if terms.recorder is not None:
        unsaved = yield from branch.save()
        error = unsaved if unsaved is not None and (error is None or isinstance(error, (Bail, Suspend))) else error
    branch.end_unwinding()
    run.elapsed += terms.clock() - started
    _note_end(run, branch, error)
    return branch


def _note_end(run: Run, branch: Branch, error: Failure) -> None:
    """Note in the run what came of it."""
    terms, log = branch.terms, branch.terms.log
    run.stages, run.pipelines = branch.records.last(), branch.records.last_pipelines()
    run.forgotten = len(branch.records) - len(run.stages)
    run.result = branch.result
    terms.idle = {each: by for each, by in terms.idle.items() if each in branch.switches and each not in terms.used}
    run.status = status_of(error, terms.is_cancellation)
    if log is not None and error is not None:
        log.remains, log.waits = branch.remains(), terms.waits
        if terms.past is not None:
            log.keep_untaken(terms.past.steps, terms.past.remains_of)
    if isinstance(error, (Bail, Suspend)):
        run.reason = error.reason
        run.waits = error.waits if isinstance(error, Suspend) else ()
    elif error is not None:
        run.error = error
        note_place(branch, error, f"pipeline {run.pipeline.name!r}")
    if terms.notify is not None:
        terms.notify(RunFinished(run.id, run.pipeline.name, run.status, run.error, run.elapsed))


def evaluate(branch: Branch) -> Walk:
    """Work through the agenda of a run, or of one branch; return the failure or signal that nothing has recovered.

    The function that takes an entry returns the failure, or None, at once; or a walk, if there are requests to make.
    """
    agenda, terms, clock = branch.agenda, branch.terms, branch.terms.clock
    error: Failure = None
    while agenda or (error is not None and branch.scope is not branch.base):
        try:
            if error is not None:
                rest: Any = _fail(branch, error)
            else:
                unit, by = agenda.pop()
                is_bare = type(unit) is Step and branch.scope.is_bare and not unit.use
                args = simple_arguments(branch, unit) if is_bare else None
                if args is None:
                    take = TAKE[type(unit)] if not branch.guarded else _take_guarded
                    rest = take(branch, unit, by)
                else:
                    if terms.notify is not None:
                        terms.notify(ActionStarted(terms.run_id, branch.scope.unit.name, unit.name, by))
                    started = clock()
                    value = yield unit, args, None
                    rest = finish_simple(branch, unit, by, started, value)
            walk: Walk = rest
            error = (yield from walk) if rest.__class__ is GeneratorType else rest
        except BaseException as stray:  # of a user's `__eq__` or `__deepcopy__`, or the end of a rehearsal
            if isinstance(stray, GeneratorExit) and _is_closing(stray):
                raise
            error = stray
    if error is None and terms.past is not None:
        error = terms.past.missing_at_end(branch.id)
    has_news = branch.parent is not None and (error is not None or branch.rows)
    return (yield from _end_branch(branch, error)) if has_news else error


def _end_branch(branch: Branch, error: Failure) -> Walk:
    """Have the journal note how the branch ended, at once: the other branches of its group may take long.

    Before its last rows are written it is decided whether the group tolerates a failure; the conductor's `ended` decides
    the rest.
    """
    if error is not None:
        branch.conductor.decide_loss(branch, error)
    return (yield from branch.save()) or error


def _is_closing(raised: GeneratorExit) -> bool:
    """Whether this evaluation is being closed: then it was raised at the `yield` of a generator, and not in a call."""
    at = raised.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and bool(at.tb_frame.f_code.co_flags & CO_GENERATOR)


def _take_guarded(branch: Branch, unit: Any, by: str | None) -> Walk | Failure:
    """Take an entry, unless its branch was stopped, or its time is up."""
    refused: Failure = None
    if type(unit) is OpenScope:
        deadline = branch.deadline
        if deadline is not None and deadline.scope is unit and not deadline.expired:
            refused = branch.refusal()  # the layers in it are told, even if nothing was left to do
    elif not (branch.is_catching_up or branch.sealed):
        refused = branch.refusal()
        if refused is not None and type(unit) is OpenStream:
            branch.agenda.append((unit, by))  # it is still to be closed
    return TAKE[type(unit)](branch, unit, by) if refused is None else refused


def _fail(branch: Branch, error: BaseException) -> Walk:
    """Drop the rest of the innermost scope from the agenda, and close it."""
    scope, agenda = branch.scope, branch.agenda
    is_base = scope is branch.base
    while len(agenda) > (0 if is_base else scope.depth + 1):
        unit, _ = agenda.pop()
        if isinstance(unit, OpenStream):
            interrupt = yield from close_stream(branch, unit)
            if interrupt is not None and branch.parent is None:  # a branch is interrupted by its group
                error = interrupt
    if is_base:
        return error
    if len(agenda) > scope.depth:  # unless it was being closed: then it is off the agenda
        agenda.pop()
    return (yield from leave_scope(branch, scope, error))


# Beginning pipelines, stages and groups.


def _begin_pipeline(
    branch: Branch, pipeline: Pipeline, by: str | None, use: tuple[Middleware, ...] = (), is_run: bool = False
) -> Walk | Failure:
    is_plain = not (use or pipeline.use or pipeline.timeout)
    scope = _scope_of(branch, pipeline, by, is_plain)
    if not (pipeline.plain or is_run):
        scope.place = Scope(pipeline.name, f"{branch.id}.{branch.next_place()}", None, by, scope.place)
    earlier = None
    if is_run and not (pipeline.use or pipeline.timeout):  # otherwise one scope is for its layers and the caller's
        earlier = _recall_callers_layers(branch, scope, is_plain)
    elif not is_plain:
        scope.number = branch.next_number()
        earlier = recall(branch, scope.number, pipeline)
    if not is_run and branch.skips(pipeline, earlier):
        return _skip(branch, scope, earlier)
    layers = () if is_plain else (*use, *limited(branch, scope, "pipeline"), *pipeline.use)
    return open_scope(branch, scope, layers, earlier)


def _scope_of(branch: Branch, pipeline: Pipeline, by: str | None, is_plain: bool) -> OpenScope:
    """Return the scope of a pipeline, in the place of a plain one around it that has nothing left to do.

    So a pipeline that returns itself is a loop in constant memory: each turn takes the place of the one before.
    """
    around, agenda, is_next_turn = branch.scope, branch.agenda, False
    if is_plain and agenda and agenda[-1][0] is around and _is_transparent(around):
        agenda.pop()
        branch.scope, is_next_turn = around.outer, around.unit == pipeline
    scope = OpenScope(branch.scope, pipeline, by, branch.terms.clock())
    scope.use_stages, scope.use_actions = around.use_stages, around.use_actions
    if is_next_turn:
        scope.place = around.place and around.place.outer
    else:
        scope.use_stages += pipeline.use_stages
        scope.use_actions += pipeline.use_actions
        if isinstance(around.unit, Pipeline) and around.unit.units[-1:] == (pipeline,):
            scope.place = around.place  # it is its last unit, and not inserted after it
    return scope


def _recall_callers_layers(branch: Branch, scope: OpenScope, is_plain: bool) -> Outcome | None:
    """Number the scope of the caller's layers, apart from the steps of the run: a resume may come without them."""
    past = branch.terms.past
    if past is None or not past.has(branch.id, RUN):
        scope.number = UNNUMBERED if is_plain else RUN
        return None
    scope.number = RUN
    return recall(branch, RUN, scope.unit)


def _is_transparent(scope: OpenScope) -> bool:
    return isinstance(scope.unit, Pipeline) and scope.number == UNNUMBERED and not scope.is_skipped


def _begin_bare_action(branch: Branch, action: Action[..., Any], by: str | None) -> Walk | Failure:
    return _begin_stage(branch, one_action_stage(action), by)


def _begin_stage(branch: Branch, stage: Stage, by: str | None) -> Walk | Failure:
    terms, around, number, earlier = branch.terms, branch.scope, branch.number, None
    branch.number = number + 1
    skips_nothing = terms.looks_nothing_up and not (branch.switches or around.is_skipped)
    if terms.past is not None:
        earlier = recall(branch, number, stage)
        if by is not None and terms.past.is_in_memory and not branch.restores(earlier):
            stage = reloaded(stage)
    scope = OpenScope(around, stage, by, terms.clock(), number)
    if not skips_nothing and branch.skips(stage, earlier):
        return _skip(branch, scope, earlier)
    scope.use_actions = around.use_actions + stage.use_actions
    if around.use_stages or stage.use or stage.timeout is not None:
        merge = (merging(stage),) if stage.has_data else ()
        layers = (*around.use_stages, *limited(branch, scope, "stage"), *merge, *stage.use)
        return open_scope(branch, scope, layers, earlier)
    if not skips_nothing or stage.has_data or terms.notify is not None:
        return open_scope(branch, scope, earlier=earlier)
    scope.depth = len(branch.agenda)  # most stages need no more
    branch.agenda.append((scope, None))
    branch.scope = scope
    fill_scope(branch, scope)
    return None


def _begin_group(branch: Branch, group: Parallel, by: str | None) -> Walk | Failure:
    """Run a group: it has no layers of its own, and its scope, which says where its branches are, is never on the agenda."""
    scope = OpenScope(branch.scope, group, by, branch.terms.clock(), branch.next_number())
    scope.place = Scope(group.name, f"{branch.id}.{scope.number}", None, by, branch.scope.place)
    branch.terms.has_group = True
    earlier = recall(branch, scope.number, group)
    if branch.skips(group, earlier):
        return _skip(branch, scope, earlier)
    return run_group(branch, group, scope, earlier)


# Skipped units.


def _skip(branch: Branch, scope: OpenScope, earlier: Outcome | None) -> Walk | Failure:
    """Record a unit, and those of its contents that have not run before, as skipped."""
    unit = scope.unit
    past = branch.terms.past
    if earlier is not None and past is not None and branch.restores(earlier):
        note_adopted(branch, earlier, unit, scope.by, scope.place)
        did = earlier.as_restored(unit, scope.by, (), scope.place)
        past.confirm(branch.id, earlier, unit, scope.number + 1)
    else:
        did = record_kind(unit)(
            unit.name, unit, Status.SKIPPED, branch.now(), 0.0, scope.by, scope.number, scope=scope.place,
            end=scope.number + 1,
        )  # fmt: skip
        if past is not None and not isinstance(unit, Pipeline):
            past.drop_from(branch.id, scope.number + 1)  # it had begun, and is no longer wanted
    refused = None if scope.number == UNNUMBERED else note(branch, did)[1]
    if isinstance(unit, Stage):
        for action in unit:
            branch.is_off(partial(action_selectors, unit, action))  # they have selected it
        branch.records.add(did.kept())
        return refused
    scope.is_skipped, scope.number = True, UNNUMBERED
    if isinstance(unit, Pipeline):
        return refused or open_scope(branch, scope)
    for index, part in reversed(list(enumerate(cast("Parallel", unit).units))):
        within = OpenScope(scope.outer, Pipeline((part,)), scope.by and str(scope.by), scope.started)  # as in a branch
        within.place, within.is_skipped = scope.place and scope.place.of(index), True
        branch.agenda.append((partial(open_scope, scope=within), None))
    return refused


def _begin_by_call(branch: Branch, begin: Callable[[Branch], Walk | Failure], by: str | None) -> Walk | Failure:
    return begin(branch)


# What taking an entry from the agenda comes to, for each kind: units and steps begin, an open scope ends. The pipeline of
# the run itself and the branches of skipped groups, which begin in ways of their own, are partial functions of the branch.
TAKE: Final[dict[type, Callable[..., Walk | Failure]]] = {
    Step: begin_action,
    Stage: _begin_stage,
    Action: _begin_bare_action,
    OpenScope: end_scope,
    Pipeline: _begin_pipeline,
    Parallel: _begin_group,
    Stream: open_stream,
    OpenStream: pull,
    partial: _begin_by_call,
}
