"""The sidebar: every section, and the pages of the present one.

The theme's own sidebar has every page of the site on every page, and takes most of the time of a build.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from sphinx import addnodes
from sphinx.environment import BuildEnvironment

from builder.words import SECTIONS, navigation

START = "index"


def tree(env: BuildEnvironment, page: str, lang: str, pathto: Callable[[str], str]) -> str:
    """The sidebar of a page, in the classes that the theme's style sheet knows.

    Args:
        env: of Sphinx, after all pages have been read.
        page: the name of the page.
        lang: of the site.
        pathto: the address of another page, from this one.
    """
    sections = [name for name in (START, *SECTIONS) if name in env.found_docs]
    return f"<ul>{''.join(_section(env, name, page, lang, pathto) for name in sections)}</ul>"


def _section(env: BuildEnvironment, section: str, page: str, lang: str, pathto: Callable[[str], str]) -> str:
    pages = {} if section == START else _named(env, section)
    inside = page == section or page in pages
    heading = navigation(section, lang)
    if not (pages and inside):
        return _entry(1, section, heading, page, pathto)
    own = "".join(_entry(2, name, title, page, pathto) for name, title in pages.items())
    return _entry(1, section, heading, page, pathto, f"<ul>{own}</ul>", inside=inside)


def _named(env: BuildEnvironment, section: str) -> dict[str, str]:
    """The pages of a section with the names that its index gives them."""
    entries = [entry for node in env.tocs[section].findall(addnodes.toctree) for entry in node["entries"]]
    return {name: title or env.titles[name].astext() for title, name in entries}


def _entry(
    level: int,
    name: str,
    title: str,
    page: str,
    pathto: Callable[[str], str],
    below: str = "",
    *,
    inside: bool = False,
) -> str:
    here = name == page
    classes = [f"toctree-l{level}", *(["current"] if here or inside else []), *(["current-page"] if here else [])]
    current = ' aria-current="page"' if here else ""
    link = f'<a class="reference internal" href="{escape(pathto(name))}"{current}>{escape(title)}</a>'
    return f'<li class="{" ".join(classes)}">{link}{below}</li>'
