"""Configuration of the documentation: `sphinx-build -W --keep-going docs docs/_build`."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))  # this tree, installed or not

from python_names import write_inventory

import flowdeco
from flowdeco.cli import main
from flowdeco.model.runnable import TO_RESUME, TO_RUN, Options

project = "flowdeco"
author = "the flowdeco authors"
release = version = flowdeco.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.viewcode"]
if find_spec("sphinx_copybutton"):  # in the extra `docs`; only the buttons are missing without it
    extensions.append("sphinx_copybutton")
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
exclude_patterns = ["_build"]
myst_heading_anchors = 3

INVENTORY = Path(__file__).parent / "_build" / "python.inv"
write_inventory(INVENTORY)
intersphinx_mapping = {"python": ("https://docs.python.org/3", str(INVENTORY))}
intersphinx_disabled_reftypes = ["std:*"]

suppress_warnings = ["config.cache", "ref.python"]  # the annotation `type`, where a class has an attribute of that name

html_theme = "furo"
html_title = f"flowdeco {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["flowdeco.css"]
pygments_style = "friendly"

add_module_names = False  # the title of a page has it
default_role = "py:obj"  # `name` in a docstring: a link where there is something to link to, else code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Returns": "Returns", "AnyKey": "AnyKey"}
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90


def tidied(_app: Any, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Show the indented blocks of docstrings (tables, laws, code) as they are written; drop what says nothing."""
    if lines and lines[0].startswith("Alias for field number"):  # the docstring of every field of a named tuple
        lines.clear()
    shown: list[str] = []
    for line in lines:
        begins = line.startswith("    ") and shown and not shown[-1].strip()
        before = next((text for text in reversed(shown) if text.strip()), "    ")
        if begins and not before.startswith((" ", ">>>", "-", "..")) and not before.endswith("::"):
            shown += ["::", ""]
        shown.append(line)
    lines[:] = shown


def signature_of_run(method: str) -> str:
    """Return the signature of `run` or `resume` with all options, which are typed as `**options`."""
    options = {"run": TO_RUN, "resume": TO_RESUME}.get(method)
    own = "on_change='error', from_stage=None, " if "resume" in method else ""
    listed = ", ".join(f"{name}={Options._field_defaults[name]!r}" for name in options or ())
    return (
        f"({'run, ' if own else ''}inputs=None, /, *, {own}{listed})"
        if options
        else (f"({'run, ' if own else ''}inputs=None, /, **options)")
    )


def shown_signature(
    _app: Any, what: str, name: str, _thing: Any, _options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Show the signature of a class only if users call it, and the options of a run one by one."""
    method = name.rpartition(".")[2]
    if what == "method" and method in ("run", "arun", "resume", "aresume") and ".Unit." in name:
        return signature_of_run(method), "Run"
    made = {"flowdeco.Bail", "flowdeco.Suspend", "flowdeco.Key", "flowdeco.Sleep", "flowdeco.Stage", "flowdeco.Store"}
    made |= {f"flowdeco.durable.{name}" for name in ("JsonCodec", "MemoryJournal", "PickleCodec", "SqliteJournal")}
    return ("", "") if signature and what in ("class", "exception") and name not in made else None


def shown_bases(_app: Any, _name: str, _thing: Any, _options: Any, bases: list[Any]) -> None:
    """Name the public base of a class."""
    bases[:] = [BaseException if base.__name__.startswith("_") else base for base in bases]


def found_in_another_module(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link names that a docstring of one module uses and another public module defines, such as `DefinitionError`."""
    if node.get("refdomain") != "py":
        return None
    objects = env.get_domain("py").objects
    for module in ("flowdeco", "flowdeco.errors", "flowdeco.middleware", "flowdeco.durable", "flowdeco.events"):
        if found := objects.get(f"{module}.{node['reftarget']}"):
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content)
    return None


class FlowdecoHelp(SphinxDirective):
    """The help of the command line, and of each of its commands, in a section of its own."""

    def run(self) -> list[nodes.Node]:
        whole = help_of()
        listed = whole.partition("commands:\n  COMMAND\n")[2].partition("\n\n")[0]
        commands = [line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
        return [
            *shown_help("flowdeco", whole),
            *(
                node
                for name in commands
                for node in shown_help(f"flowdeco {name}", help_of(name).partition("\nexit codes:")[0])
            ),
        ]


def shown_help(title: str, text: str) -> list[nodes.Node]:
    section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(title)])
    section += nodes.literal_block("", text.rstrip(), language="text")
    return [section]


def help_of(*command: str) -> str:
    os.environ["COLUMNS"] = "90"
    with redirect_stdout(io.StringIO()) as out:
        main([*command, "--help"])
    return out.getvalue()


def setup(app: Any) -> None:
    """Connect what changes docstrings, and let `stream` have the signature that the reference gives it."""
    analyzer = ModuleAnalyzer.for_module("flowdeco.model.streams")
    analyzer.analyze()
    analyzer.overloads.pop("stream", None)  # its ParamSpec would be shown as `*args: ~typing.~P`
    app.connect("autodoc-process-docstring", tidied)
    app.connect("autodoc-process-signature", shown_signature)
    app.connect("autodoc-process-bases", shown_bases)
    app.connect("missing-reference", found_in_another_module)
    app.add_directive("flowdeco-help", FlowdecoHelp)
