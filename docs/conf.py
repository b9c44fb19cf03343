"""Configuration of the documentation: `sphinx-build -W --keep-going docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).parents[1]))  # this tree, installed or not

import flowdeco

project = "flowdeco"
author = "the flowdeco authors"
release = version = flowdeco.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache", "ref.python"]  # the annotation `type`, where a class has an attribute of that name

html_theme = "furo"
html_title = f"flowdeco {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["flowdeco.css"]
pygments_style = "friendly"

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


def only_for_those_who_call(
    _app: Any, what: str, name: str, _thing: Any, _options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Show the signature of a class where users make its objects; of the others they are given them."""
    made = {"flowdeco.Key", "flowdeco.Sleep", "flowdeco.Stage", "flowdeco.Store"}
    made |= {f"flowdeco.durable.{name}" for name in ("JsonCodec", "MemoryJournal", "PickleCodec", "SqliteJournal")}
    return ("", "") if what == "class" and name not in made else None


def setup(app: Any) -> None:
    """Connect what changes docstrings, and let `stream` have the signature that the reference gives it."""
    analyzer = ModuleAnalyzer.for_module("flowdeco.model.streams")
    analyzer.analyze()
    analyzer.overloads.pop("stream", None)  # its ParamSpec would be shown as `*args: ~typing.~P`
    app.connect("autodoc-process-docstring", tidied)
    app.connect("autodoc-process-signature", only_for_those_who_call)
