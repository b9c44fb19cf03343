"""Options, checked where they are given."""

import contextlib
import functools
import pickle

import pytest
from defined import double, layer, plain
from support import around, step

from flowdeco import Stage, action, parallel, pipeline
from flowdeco.errors import DefinitionError
from flowdeco.middleware import recover, retry
from flowdeco.model.sentinels import UNSET

# -- names, texts, tags, keys, timeouts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"tags": "slow"}, r"tags=\['slow'\]"),
        ({"tags": [""]}, "tags"),
        ({"tags": 3}, "tags"),
        ({"tags": [3]}, "tags"),
        ({"returns": ""}, "returns"),
        ({"returns": 3}, "returns"),
        ({"returns": ("a", 3)}, "returns"),
        ({"collect": ""}, "collect"),
        ({"collect": 3}, "collect"),
        ({"use": layer}, "use"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"description": 3}, "description is a string, not 3"),
    ],
)
def test_wrong_options_of_an_action_are_refused(options, message):
    """By the decorator, and by `with_options`."""
    with pytest.raises(DefinitionError, match=message):
        action(**options)(plain)
    with pytest.raises(DefinitionError, match=message):
        double.with_options(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(""), "name"),
        (lambda: Stage(None), "name"),
        (lambda: Stage("s", tags="slow"), r"tags=\['slow'\]"),
        (lambda: Stage("s", title=3), "title"),
        (lambda: Stage("s", description=3), "description"),
        (lambda: Stage("s", use=layer), "use"),
        (lambda: Stage("s", use_actions=layer), "use_actions"),
        (lambda: pipeline(name=""), "name"),
        (lambda: pipeline(tags="slow"), "tags"),
        (lambda: pipeline(title=3), "title"),
        (lambda: pipeline(description=3), "description"),
        (lambda: pipeline(use=layer), "use"),
        (lambda: pipeline(use_stages=layer), "use_stages"),
        (lambda: pipeline(use_actions=layer), "use_actions"),
        (lambda: parallel(name=""), "name"),
        (lambda: parallel(tags="slow"), "tags"),
    ],
)
def test_wrong_options_are_refused_where_they_are_given(make, message):
    """Each error names the option."""
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize("wrong", ["", 3, None])
def test_selectors_are_checked(wrong):
    """They are non-empty strings."""
    with pytest.raises(DefinitionError):
        pipeline(Stage("a")).only(wrong)
    with pytest.raises(DefinitionError):
        pipeline(Stage("a")).without(wrong)


def test_the_description_is_the_first_paragraph_of_the_docstring():
    """Cleaned of its indentation; empty without a docstring, or where it is given so."""

    @action
    def described():
        """
        First line,
        second line.

        Second paragraph.
        """

    assert described.description == "First line,\nsecond line."
    assert action(lambda: 1).description == ""
    assert action(description="")(described.__wrapped__).description == ""


def test_an_option_that_was_not_given_has_a_repr_and_is_one_of_its_kind():
    """Also after pickling, as options of actions are."""
    assert repr(UNSET) == "UNSET"
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


# -- middleware


class NotAGenerator:
    def __call__(self, call):
        return None


@pytest.mark.parametrize("wrong", [print, lambda call: None, NotAGenerator(), "retry", 3, None])
@pytest.mark.parametrize(
    "place",
    [
        lambda layers: step([], "a").with_options(use=layers),
        lambda layers: Stage("s", use=layers),
        lambda layers: Stage("s", use_actions=layers),
        lambda layers: pipeline(use=layers),
        lambda layers: pipeline(use_stages=layers),
        lambda layers: pipeline(use_actions=layers),
    ],
    ids=["action", "stage", "stage's actions", "pipeline", "stages", "actions"],
)
def test_what_is_no_generator_function_is_refused_where_it_is_given(place, wrong):
    """Everywhere where middleware can be given."""
    with pytest.raises(DefinitionError, match="middleware"):
        place([wrong])


def test_the_error_says_where_the_function_is():
    """Name, file and line."""

    def forgot_to_yield(call):
        return call

    with pytest.raises(DefinitionError, match=r"forgot_to_yield.*test_options\.py:\d+"):
        Stage("s", use=[forgot_to_yield])


@pytest.mark.parametrize("wrong", [around([], "m"), 3, retry(on=ValueError)])
def test_middleware_is_given_as_a_list(wrong):
    """The error says what to write."""
    with pytest.raises(DefinitionError, match=r"use is a list.*use=\["):
        Stage("s", use=wrong)


class Layer:
    """Middleware can be an object whose call is a generator function."""

    def __init__(self, log):
        self.log = log

    def __call__(self, call):
        self.log.append("+object")
        yield
        self.log.append("-object")

    def method(self, call):
        self.log.append("+method")
        yield
        self.log.append("-method")


def test_objects_methods_and_partials_can_be_middleware(run):
    """What gives a generator when it is called with the call."""
    log = []

    def with_options(call, name):
        log.append(f"+{name}")
        yield
        log.append(f"-{name}")

    layers = [Layer(log), Layer(log).method, functools.partial(with_options, name="partial")]
    run(Stage("s", use=layers))
    assert log == ["+object", "+method", "+partial", "-partial", "-method", "-object"]


@pytest.mark.parametrize("wrong", [retry, recover])
def test_a_maker_of_middleware_must_be_called(wrong):
    """What was given is no middleware, but makes one."""
    with pytest.raises(DefinitionError, match="If it returns one, call it"):
        action(use=[wrong])(lambda: 1)


def passes(call):
    yield


async def passes_async(call):
    yield


@functools.wraps(passes)
def decorated(call):
    return passes(call)


async def coroutine(call):
    pass


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (contextlib.contextmanager(passes), r"Remove @contextmanager$"),
        (contextlib.asynccontextmanager(passes_async), r"Remove @asynccontextmanager$"),
        (decorated, r"A decorator hides its generator function: .*yield itself$"),
        (functools.lru_cache(passes), r"A decorator hides its generator function: .*yield itself$"),
        (coroutine, r"without a `yield` is not one: yield in the function itself$"),
        (3, r"stage runs$"),
    ],
)
def test_a_function_that_is_hardly_middleware_is_explained(wrong, advice):
    """What to change depends on what hides the generator function."""
    with pytest.raises(DefinitionError, match=advice):
        action(use=[wrong])(lambda: 1)


def test_a_middleware_sets_nothing_but_the_outcome_of_its_call():
    """A typo is found in its code when it is given."""

    def typo(call):
        yield
        call.outcom = 3

    class Stores:
        def __call__(self, call):
            call.store = {}
            yield

    for wrong, name in ((typo, "outcom"), (Stores(), "store"), (functools.partial(typo), "outcom")):
        with pytest.raises(DefinitionError, match=rf"\(.*test_options.py:\d+\) sets call.{name}, .*only the outcome"):
            action(use=[wrong])(lambda: 1)


def test_a_middleware_takes_one_argument():
    """Told when it is given, not first when it runs."""

    def nothing():
        yield

    def two(call, other):
        yield

    too_much, misspelt = functools.partial(two, 1, 2, 3), functools.partial(two, ohter=1)
    for wrong in (nothing, two, functools.partial(two, 1, 2), too_much, misspelt):
        with pytest.raises(DefinitionError, match="generator function of one argument"):
            action(use=[wrong])(lambda: 1)


def test_a_middleware_may_be_documented_as_something_that_takes_more(run):
    """What counts is what it takes itself, not what it says that it wraps."""
    log = []

    def connect(host, port):
        """Open a connection."""

    @functools.wraps(connect)
    def layer(call):
        log.append("+")
        yield

    @functools.wraps(min)  # which has no signature at all
    def other(call):
        log.append("+")
        yield

    run(Stage("s", use=[layer, other]))
    assert log == ["+", "+"]


def test_an_option_of_a_pipeline_is_described_by_its_class():
    """As an attribute of the class it is the option itself: with its docstring and its default."""
    assert type(pipeline()).use.__doc__ == "Middleware around the whole run of the pipeline."
    assert type(parallel()).limit.default is None
    assert type(parallel()).DEFAULTS["tolerate"] == 0
