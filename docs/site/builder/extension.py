"""What the site adds to Sphinx: its navigation, the switch of languages, search in Chinese, plain signatures."""

from __future__ import annotations

from typing import Any

from builder.chinese import Chinese
from builder.frame import framed
from furo.navigation import get_navigation_tree
from markupsafe import Markup
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_search_language(Chinese)
    app.add_js_file("site.js")
    # After the theme's own function, which sets the tree of all pages.
    app.connect("html-page-context", _context, priority=900)
    _without_overloads()
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _context(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """The sidebar with the pages of the present section only, and the address in the other language."""
    if "toctree" in context:
        tree = context["toctree"](collapse=True, titles_only=True, maxdepth=2, includehidden=True)
        context["furo_navigation_tree"] = get_navigation_tree(tree)
    root = context.get("content_root", "./")
    switch = f"{root}../{context['other']}/{page}.html"
    context["switch"] = switch
    context["framed"] = lambda html: Markup(framed(str(html), context["lang"], switch, context["version"]))


def _without_overloads() -> None:
    """Show the arguments of a function, and not its overloads, which exist for the type of what it returns."""
    analyze = ModuleAnalyzer.analyze

    def without(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}

    ModuleAnalyzer.analyze = without  # type: ignore[method-assign]
