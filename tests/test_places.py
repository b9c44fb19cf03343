"""Where a run failed, as it stands behind the error in its journal."""

import pytest

from flowdeco import Stage, action, parallel
from flowdeco.engine.location import Place, error_of, places_of


@action
def broken(message: str = "closed") -> None:
    raise ValueError(message)


@pytest.mark.parametrize(
    ("flow", "inputs", "text"),
    [
        (broken, {}, "ValueError: closed\nin action 'broken' of stage 'broken'"),
        (broken, {"message": ""}, "ValueError\nin action 'broken' of stage 'broken'"),
        (Stage("it's\n", [broken]), {}, "ValueError: closed\nin action 'broken' of stage \"it's\\n\""),
        (Stage("s", data={"a": 1}), {}, None),
    ],
)
def test_an_error_is_written_with_its_place(flow, inputs, text):
    """By the names of action and stage; and read again."""
    run = flow.run(inputs, check=False)
    assert error_of(run) == text
    alone, places = places_of(text)
    assert "\n".join([alone, *map(str, places)]) == (text or "")


def test_a_stage_is_to_blame_where_no_action_is():
    """Its middleware, for one."""

    def closing(call):
        yield
        raise OSError("closed")

    run = Stage("s", [broken.bind(message="x")], use=[closing]).run(check=False)
    assert places_of(error_of(run))[1][0].stage == "s"
    run = Stage("s", use=[closing]).run(check=False)
    assert error_of(run) == "OSError: closed\nin stage 's'"


def test_several_branches_are_written_each_with_its_error():
    """In their order."""

    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    error = ExceptionGroup("both", [ValueError("one\ntwo"), Odd()])
    run = parallel(broken, broken).run(check=False)
    record, action_record = run.stages[0], run.stages[0].actions[0]
    run.error = error
    run.stages = [
        record._replace(name=name, error=each, actions=[action_record._replace(error=each, attempts=2)])
        for name, each in zip("ab", error.exceptions, strict=True)
    ]
    text, places = places_of(error_of(run))
    assert text == "ExceptionGroup: both (2 sub-exceptions)"
    assert places == [
        Place("a", "broken", 2, "ValueError: one"),
        Place("b", "broken", 2, "Odd: <its message cannot be had: RuntimeError>"),
    ]


def test_a_message_may_say_anything():
    """What looks like a place in the middle of it is none."""
    assert places_of("in stage 'a'\nmore") == ("in stage 'a'\nmore", [])
    assert places_of("in stage 'a'") == ("in stage 'a'", [])
    assert places_of(None) == ("", [])


def test_no_more_than_fifty_branches_are_written():
    """A journal is for reading."""
    error = ExceptionGroup("many", [ValueError(f"{n}") for n in range(60)])
    run = parallel(broken).run(check=False)
    record = run.stages[0]
    run.error, run.stages = error, [record._replace(error=each) for each in error.exceptions]
    text, places = places_of(error_of(run))
    assert (text, [place.error for place in places]) == (
        "ExceptionGroup: many (60 sub-exceptions)",
        [f"ValueError: {n}" for n in range(10, 60)],
    )
