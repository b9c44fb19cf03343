"""The options of a run: declared once, checked by name; the methods that take them."""

import inspect
import pydoc
import re

import pytest

from flowdeco import Stage, action, parallel
from flowdeco.model.runnable import Options, run_options

OPTIONS = set(inspect.signature(Stage.run).parameters) - {"self", "inputs"}


def test_the_value_has_a_field_for_each_option():
    """And two that users do not give."""
    resumed = set(inspect.signature(Stage.resume).parameters) - {"self", "run", "inputs", "on_change", "from_stage"}
    assert set(Options._fields) == OPTIONS | resumed | {"clock", "watcher"}
    assert OPTIONS - resumed == {"run_id", "if_exists"}


def test_options_not_given_have_defaults():
    """Each of them."""
    assert run_options("run", {"history": 3}) == Options(history=3)
    assert run_options("resume", {}, resumes=True) == Options()


@pytest.mark.parametrize("method", ["run", "arun", "resume", "aresume"])
def test_an_unknown_option_is_named_with_a_suggestion(method):
    """As Python names an unexpected argument; those for tests and drivers are unknown too."""
    with pytest.raises(TypeError, match=rf"{method}\(\) has no option 'skp'. Did you mean 'skip'\?"):
        getattr(Stage("a"), method)(*["id"] * ("resume" in method), skp=[])
    for name in ("clock", "watcher"):
        with pytest.raises(TypeError, match=f"no option '{name}'"):
            getattr(Stage("a"), method)(*["id"] * ("resume" in method), **{name: None})


def test_a_resumed_run_keeps_its_id():
    """`resume` has no `run_id`."""
    with pytest.raises(TypeError, match=r"resume\(\) has no option 'run_id'"):
        Stage("a").resume("one", run_id="two")


def test_the_docstring_lists_the_options():
    """For `help`."""
    assert all(f"`{option}=" in Stage.run.__doc__ for option in OPTIONS)


@action
def act():
    pass


@pytest.mark.parametrize("unit", [act, Stage("s"), Stage("s") >> Stage("t"), parallel(act)], ids=lambda unit: unit.name)
def test_the_signature_has_the_options_with_their_defaults(unit):
    """Of every unit, and of all four methods: those that are declared, no others."""
    shared = dict.fromkeys(("executor", "journal", "history", "progress", "limit", "timeout"))
    shared |= {"use": (), "observers": (), "skip": (), "check": True, "suspend_after": 60.0}
    for method, first, own in (
        ("run", ["inputs"], {"run_id": None, "if_exists": "error"}),
        ("resume", ["run", "inputs"], {"on_change": "error", "from_stage": None, "error": None}),
    ):
        for name in (method, f"a{method}"):
            parameters = inspect.signature(getattr(unit, name)).parameters.values()
            assert [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY] == first
            named = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
            assert named == {**shared, **own}
            assert len(parameters) == len(first) + len(named)


def test_help_shows_the_options():
    """In the order of the documentation, with their types."""
    shown = "".join(pydoc.render_doc(Stage("s").run, renderer=pydoc.plaintext).split())  # in one line, or many
    assert "run(inputs:'Mapping[str,Any]|None'=None,/,*,use:'Iterable[Middleware]'=(),observers:" in shown
    assert re.search(r"suspend_after:'Duration'=60\.0,?\)->'Run'", shown)


def test_an_unknown_option_may_be_meant_as_an_input():
    """Inputs are a mapping."""
    with pytest.raises(TypeError, match=r"If it is an input, write run\(\{'n': \.\.\.\}\)"):
        Stage("s").run(n=1)
