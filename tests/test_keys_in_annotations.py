"""Keys and names in annotations that are strings, as `from __future__ import annotations` makes all of this module."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import linecache
import sys
import textwrap
import weakref
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
import typing_extensions

from flowdeco import Key, Stage, action, stage
from flowdeco.errors import DefinitionError
from flowdeco.model.steps import step_of

if TYPE_CHECKING:
    import nowhere  # noqa: F401
    from nowhere import UNHEARD, Model, described  # noqa: F401

    from flowdeco import Context as TheContext
    from flowdeco import Key as TheKey

    PORT = "db.port"

key = "a.global.key"


@pytest.fixture
def module(tmp_path):
    """Import a source text, for what a module says at its top."""

    def written(source, name="written"):
        path = tmp_path / f"{name}.py"
        path.write_text("from __future__ import annotations\n" + textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(name, path)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made

    return written


# -- local variables of the functions around an action


@stage
def by_key(kind: str) -> None:
    """A template that makes a key of its argument."""
    key = Key(f"rows.{kind}", int)

    @action(returns="read")
    def count(rows: Annotated[int, key] = -1) -> int:
        return rows


@stage
def by_f_string(name: str) -> None:
    """A template with its argument in an f-string."""

    @action(returns="read")
    def total(rows: Annotated[int, f"rows.{name}"]) -> int:
        return rows


@stage
def by_shadow(key: str) -> None:
    """A template whose argument has the name of a global variable."""

    @action(returns="read")
    def count(rows: Annotated[int, key]) -> int:
        return rows


@stage
def by_helper(kind: str) -> None:
    """A template whose action is made by a function in it."""

    def make():
        @action(returns="read")
        def count(rows: Annotated[int, f"rows.{kind}"] = -1) -> int:
            return rows

    make()


def made_with_bound_value(kind):
    """An action with a value fixed, and with other options."""

    def count(rows: Annotated[int, f"rows.{kind}"], more: int) -> int:
        return rows + more

    return action(count).bind(more=0).with_options(returns="read")


def made_by_factory(prefix):
    """An action that reads a key made of the factory's argument."""
    key = prefix + ".db"

    @action(returns="read")
    def count(rows: Annotated[int, key] = -1) -> int:
        return rows

    return count


def returning_read(function):
    """A decorator of the user's."""
    return action(returns="read")(function)


def made_by_decorator(kind):
    """The same with a decorator of the user's."""

    @returning_read
    async def count(rows: Optional[Annotated[int, f"rows.{kind}"]] = -1) -> int:  # noqa: UP045
        return rows

    return count


def made_of_alias(kind):
    """The same with an alias made in the factory."""
    Rows = Annotated[int, f"rows.{kind}"]  # noqa: N806

    @action(returns="read")
    def count(rows: Rows | None = -1) -> int:
        return rows

    return count


def made_with_class(kind):
    """The same with keys in a class."""

    class Keys:
        rows = f"rows.{kind}"

    @action(returns="read")
    def count(rows: Annotated[int, Keys.rows] = -1) -> int:
        return rows

    return count


def made_with_generator(*parts):
    """The same with an expression that has a scope of its own."""

    @action(returns="read")
    def count(rows: Annotated[int, ".".join(str(part) for part in parts)] = -1) -> int:
        return rows

    return count


async def made_by_coroutine(kind):
    """A factory that is a coroutine function."""

    @action(returns="read")
    async def count(rows: Annotated[int, f"rows.{kind}"] = -1) -> int:
        return rows

    return count


def staged_by_factory(kind):
    """A stage of a plain function."""

    def read(rows: Annotated[int, f"rows.{kind}"] = -1) -> int:
        return rows

    return Stage("staged", [read])


@pytest.mark.parametrize(
    "unit",
    [
        by_key("db"),
        by_f_string("db"),
        by_shadow("rows.db"),
        by_helper("db"),
        made_by_factory("rows"),
        made_with_bound_value("db"),
        made_by_decorator("db"),
        made_of_alias("db"),
        made_with_class("db"),
        made_with_generator("rows", "db"),
        asyncio.run(made_by_coroutine("db")),
        staged_by_factory("db"),
    ],
    ids=lambda unit: unit.name,
)
def test_a_key_made_of_a_local_variable_is_read(run, unit):
    """As it is where annotations are not strings."""
    # fastapi/fastapi#446, dagster-io/dagster#26837, apache/hamilton#91
    assert run(unit, {"rows.db": 5, "a.global.key": 6, "rows": 7})["read"] == 5


def test_a_key_is_that_of_its_turn_of_a_loop(run):
    """The value when the action was made, though the body sees the last one."""

    @stage
    def each(names: tuple[str, ...]) -> None:
        for name in names:

            @action(name=name, returns=f"out.{name}")
            def total(rows: Annotated[int, f"rows.{name}"]) -> tuple[str, int]:
                return name, rows

    finished = run(each(("a", "b")), {"rows.a": 1, "rows.b": 2})
    assert (finished["out.a"], finished["out.b"]) == (("b", 1), ("b", 2))


def test_a_method_reads_a_key_of_its_class(run):
    """The body of a class is around its methods, too."""

    class Flow:
        rows = "rows.db"

        @action(returns="read")
        def count(self, rows: Annotated[int, rows]) -> int:
            return rows

    assert run(Flow().count, {"rows.db": 5})["read"] == 5


def test_a_key_whose_variable_is_gone_is_an_error():
    """The function is made an action when the factory has returned: never the parameter's name, nor the default."""

    def factory(kind):
        def count(rows: Annotated[int, f"rows.{kind}"] = -1) -> int:
            return rows

        return count

    with pytest.raises(DefinitionError, match=r"parameter 'rows' of action 'count': its key f'rows\.\{kind\}'"):
        action(factory("db")).run({"rows": 1})


def test_an_action_keeps_no_frame_and_no_other_variable_alive():
    """Only what its annotations name."""

    class Big:
        pass

    def factory(name):
        big = Big()

        @action
        def count(rows: Annotated[int, f"rows.{name}"]) -> int:
            return rows

        return count, weakref.ref(big)

    count, big = factory("db")
    gc.collect()
    assert big() is None
    assert [each.key for each in step_of(count).inputs] == ["rows.db"]


# -- keys that cannot be known


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        ("Annotated[int, UNHEARD]", "UNHEARD"),
        ("Annotated[int, UNHEARD] | None", "UNHEARD"),
        ("Annotated[int, UNHEARD, 'The port.']", "UNHEARD"),
        ("Optional[Annotated[int, nowhere.keys.port]]", "nowhere.keys.port"),
        ("Annotated[int, f'rows.{UNHEARD}']", r"f'rows\.\{UNHEARD\}'"),
        ("Annotated[int, Key(UNHEARD, int)]", r"Key\(UNHEARD, int\)"),
        ("Annotated[int, {}['port']]", r"\{\}\['port'\]"),
        ("Annotated[int, 'port'", "not valid Python"),
        ("Annotated[int, '']", "non-empty"),
        ("Annotated[int, 'a'] | Annotated[str, Key('b')]", "'a' and 'b'"),
    ],
)
def test_a_key_that_cannot_be_evaluated_is_an_error(annotation, shown):
    """It is shown; neither the parameter's name nor its default takes its place."""

    def read(port=3):
        return port

    read.__annotations__["port"] = annotation
    with pytest.raises(DefinitionError, match=f"parameter 'port' of action 'read'.*{shown}"):
        action(read).run({"port": 1})


# -- names for the type checker


def test_names_for_the_type_checker_do_no_harm(run):
    """Types that nobody knows, and metadata of them next to a key."""

    @action
    def read(
        a: Annotated[Model, "the.a"],
        b: Annotated[Model, TheKey("the.b", Model)],
        c: Annotated[int, "the.c", described("port")],
        d: Annotated[int, PORT],
        e: list[Model] | None = None,
        f: nowhere.Model[int] = 6,
    ) -> Model:
        return [a, b, c, d, e, f]

    assert run(read, {"the.a": 1, "the.b": 2, "the.c": 3, "db.port": 4})["read"] == [1, 2, 3, 4, None, 6]


def test_the_own_context_may_be_imported_for_the_type_checker(run):
    """Under another name, and optional."""

    @action
    def read(one: TheContext, other: TheContext | None = None) -> Any:
        return type(one).__name__, type(other).__name__

    assert run(read)["read"] == ("Context", "Context")


FOREIGN = """
    from typing import TYPE_CHECKING, Optional
    from flowdeco import action
    if TYPE_CHECKING:
        {binding}

    @action
    def fit() -> {pipeline}:
        return "a model"

    @action
    def read(rounding: {context}) -> str:
        return repr(rounding)

    @action
    def listed() -> list[{pipeline}]:
        return []

    @action
    def none() -> Optional[{pipeline}]:
        return None
"""


@pytest.mark.parametrize(
    ("binding", "prefix"),
    [
        ("from nowhere.pipeline import Pipeline, Context", ""),
        ("from .nowhere import Pipeline, Context", ""),
        ("from decimal import Context; from nowhere import Pipeline", ""),
        ("import nowhere.classes", "nowhere.classes."),
        ("import nowhere.classes as other", "other."),
        ("class Context: ...\n        class Pipeline: ...", ""),
    ],
)
def test_classes_of_another_library_are_not_ours(run, module, binding, prefix):
    """A pipeline is data, and a context comes from the store, whatever their names."""
    # dagster-io/dagster#14707, dagster-io/dagster#18924
    made = module(FOREIGN.format(binding=binding, pipeline=f"{prefix}Pipeline", context=f"{prefix}Context"))
    finished = run(made.fit >> made.read >> made.listed >> made.none, {"rounding": 5})
    assert [finished[name] for name in ("fit", "read", "listed", "none")] == ["a model", "5", [], None]


@pytest.mark.parametrize(
    ("binding", "prefix"),
    [
        ("from flowdeco import Pipeline, Context", ""),
        ("import flowdeco", "flowdeco."),
        ("import flowdeco as own", "own."),
        ("from flowdeco.engine.context import Context; from flowdeco.model.units import Pipeline", ""),
    ],
)
def test_classes_of_ours_are_ours(module, binding, prefix):
    """However they are imported for the type checker."""
    made = module(FOREIGN.format(binding=binding, pipeline=f"{prefix}Pipeline", context=f"{prefix}Context"))
    assert step_of(made.read).wants_context
    assert step_of(made.fit).names_units
    assert dict((made.listed >> made.none).run().store) == {}


def test_a_key_imported_for_the_type_checker_is_read_if_its_module_is_loaded(run, module, monkeypatch):
    """As linters move imports under `if TYPE_CHECKING`."""
    keys = module("PORT = 'db.port'\nfrom typing import Annotated\nPort = Annotated[int, PORT]", "keys_of_a_test")
    monkeypatch.setitem(sys.modules, "keys_of_a_test", keys)
    made = module("""
        from typing import TYPE_CHECKING, Annotated
        from flowdeco import action
        if TYPE_CHECKING:
            import keys_of_a_test as keys
            from keys_of_a_test import PORT, Port

        @action
        def read(a: Annotated[int, PORT], b: Annotated[int, keys.PORT], c: Port = 0) -> tuple[int, int, int]:
            return a, b, c
    """)
    assert run(made.read, {"db.port": 5})["read"] == (5, 5, 5)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is new in 3.12")
def test_a_type_statement_may_name_classes_for_the_type_checker(run, module):
    """Its value cannot be evaluated as a whole, and the key in it is found all the same."""
    made = module("""
        from typing import TYPE_CHECKING, Annotated
        from flowdeco import action, stage
        if TYPE_CHECKING:
            from nowhere import Frame, KEY

        type Rows = Annotated[Frame, "the.rows"] | None
        type Keyed[T] = Annotated[T, "the.rows"]
        type Lost = Annotated[Frame, KEY]

        @action
        def read(rows: Rows, again: Keyed[int], frame: Frame | None = None) -> Rows:
            return rows, again, frame

        @action
        def lost(rows: Lost = 0) -> Rows:
            return None

        @stage
        def template(name: str) -> None:
            type Local = Annotated[int, f"rows.{name}"]

            @action(returns="read")
            def generic[T](a: Local, b: Annotated[T, f"rows.{name}"]) -> T:
                return a, b
    """)
    assert run(made.read, {"the.rows": 5})["read"] == (5, 5, None)
    assert run(made.template("db"), {"rows.db": 5})["read"] == (5, 5)
    with pytest.raises(DefinitionError, match="its key KEY cannot be evaluated"):
        made.lost.run({"rows": 1})


# -- what is read of names, aliases and texts in any version


def test_a_type_that_nobody_knows_is_shown_by_its_name():
    @action
    def read(a: Model, b: other.Model, c: "Model | None", d: int["rows"]) -> None:  # noqa: F821, UP037
        pass

    known = {wanted.name: repr(wanted.annotation) for wanted in step_of(read).inputs}
    assert (known["a"], known["b"], known["d"]) == ("nowhere.Model", "other.Model", "int['rows']")
    assert known["c"] in ("typing.Optional[nowhere.Model]", "nowhere.Model | None")  # from 3.14 on


class TypeAliasType:
    """An alias whose value is evaluated when it is asked for, as that of the type statement."""

    __type_params__ = ()

    def __init__(self, name, module, value):
        self.__name__ = name
        self.__module__ = module
        self._value = value

    def __call__(self):
        raise NotImplementedError

    @property
    def __value__(self):
        return self._value()


LAZY = """
    from typing import TYPE_CHECKING, Annotated
    from flowdeco import action
    from test_keys_in_annotations import TypeAliasType
    if TYPE_CHECKING:
        from nowhere import Frame
        Rows = Annotated[Frame, "the.rows"] | None
    else:
        Rows = TypeAliasType("Rows", __name__, lambda: Annotated[Frame, "the.rows"])

    globals()["Lost"] = TypeAliasType("Lost", __name__, lambda: Frame)

    @action
    def read(rows: Rows, lost: Lost = 0) -> Rows:
        return rows, lost
"""


def test_an_alias_that_names_classes_for_the_type_checker_has_its_key(run, module, monkeypatch):
    """In its own module, and in another one; one whose source is not found is a class that nobody knows."""
    aliases = module(LAZY, "aliases_of_a_test")
    assert run(aliases.read, {"the.rows": 5, "lost": 6})["read"] == (5, 6)
    assert [repr(wanted.annotation) for wanted in step_of(aliases.read).inputs][1] == "aliases_of_a_test.Lost"
    monkeypatch.setitem(sys.modules, "aliases_of_a_test", aliases)
    user = module("""
        from flowdeco import action
        from aliases_of_a_test import Rows

        @action
        def read(rows: Rows) -> Rows:
            return rows
    """)
    assert run(user.read, {"the.rows": 5})["read"] == 5


endless = typing_extensions.TypeAliasType("endless", "endless")
endless_union = typing_extensions.TypeAliasType("endless_union", "endless_union | None")


def test_an_alias_without_end_is_anything(run):
    """It has no key: the value is looked up under the name of the parameter."""

    @action
    def read(one: endless, other: endless_union) -> endless_union:
        return one, other

    assert run(read, {"one": 1, "other": 2})["read"] == (1, 2)


def test_a_source_that_is_not_python_may_have_annotations(run, monkeypatch):
    """A cell of a notebook has magic in it: its names are those that exist, the others unknown."""
    source = "%matplotlib inline\nfrom __future__ import annotations\n"
    name = "<cell of a test>"
    monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(keepends=True), name))
    cell = {"action": action, "Annotated": Annotated, "__name__": "__main__"}
    text = "def read(rows: 'Frame', n: 'Annotated[Frame, \"the.n\"]') -> 'Frame': return rows, n"
    exec(compile(text, name, "exec"), cell)
    assert run(action(cell["read"]), {"rows": 1, "the.n": 2})["read"] == (1, 2)


def test_local_names_in_a_reference_forward_are_seen(run):
    """An annotation that is no string may have strings in it."""

    def factory(kind):
        Rows = Annotated[int, f"rows.{kind}"]  # noqa: F841, N806

        def count(rows) -> int:
            return rows

        count.__annotations__["rows"] = Optional["Rows"]
        return action(returns="read")(count)

    assert run(factory("db"), {"rows.db": 5})["read"] == 5


def test_what_is_known_of_local_names_has_a_limit(run, monkeypatch):
    """It is forgotten then, and found again."""
    monkeypatch.setattr("flowdeco.model.names._MOST", 1)

    def one(key):
        def count(rows: Annotated[int, key]) -> int:
            return rows

        return action(returns="read")(count)

    def other(key):
        def count(rows: Annotated[int, key]) -> int:
            return rows

        return action(returns="read")(count)

    units = [one("rows.a"), other("rows.b"), one("rows.c"), other("rows.d")]
    store = {"rows.a": 1, "rows.b": 2, "rows.c": 3, "rows.d": 4}
    assert [run(unit, store)["read"] for unit in units] == [1, 2, 3, 4]


def test_a_key_is_what_its_name_meant_where_the_action_was_made(module):
    """Also at the top of a module, where a loop gives the name others later; names that come later are found then."""
    written = module(
        """
        from typing import Annotated

        from flowdeco import Key, action

        made = []
        for number, (name, key) in enumerate([("x", Key("kx", int)), ("y", Key("ky", int))]):

            @action(name=name)
            def get(p: Annotated[int, name] = -1, q: Annotated[int, key] = -1, r: Annotated[int, f"{number}"] = -1):
                return p, q, r

            made.append(get)

        name = key = number = None

        @action
        def late(p: Annotated[int, LATE] = -1):
            return p

        LATE = "y"
        """
    )
    inputs = {"x": 1, "y": 2, "kx": 10, "ky": 20, "0": 100, "1": 200}
    assert [each.run(inputs).result for each in written.made] == [(1, 10, 100), (2, 20, 200)]
    assert written.late.run(inputs).result == 2
