"""What the site adds to Sphinx: its navigation, the switch of languages, search in Chinese, plain signatures."""

from __future__ import annotations

from typing import Any

import furo
from markupsafe import Markup
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from builder import navigation
from builder.chinese import Chinese
from builder.frame import framed


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_search_language(Chinese)
    app.add_js_file("site.js")
    # After the theme's own function, which sets the sidebar.
    app.connect("html-page-context", _context, priority=900)
    furo._compute_navigation_tree = lambda context: ""
    _without_overloads()
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _context(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """The sidebar, and the frame with the address of the same page in the other language."""
    lang = context["lang"]
    context["furo_navigation_tree"] = navigation.tree(app.env, page, lang, context["pathto"])
    context["switch"] = f"{context.get('content_root', './')}../{context['other']}/{page}.html"
    context["framed"] = lambda html: Markup(framed(str(html), lang, context["switch"], context["version"]))


def _without_overloads() -> None:
    """Show the arguments of a function, and not its overloads, which exist for the type of what it returns."""
    analyze = ModuleAnalyzer.analyze

    def without(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}

    ModuleAnalyzer.analyze = without  # type: ignore[method-assign]
