"""The documentation site is built without warnings, its links lead somewhere, and a keyboard or a phone is enough."""

from __future__ import annotations

import functools
import http.server
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import chromium
import pytest
from chromium import Open, in_browser

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "zh")
NEEDED = ("sphinx", "myst_parser", "furo", "jinja2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
PHONE = {"width": 360, "height": 740}
TAG = re.compile(r"<(\w+)((?:\s+[\w:@-]+(?:=(?:\"[^\"]*\"|'[^']*'|[^\s>\"']+))?)*)\s*/?>")
ATTRIBUTE = re.compile(r"([\w:-]+)=(?:\"([^\"]*)\"|'([^']*)')")

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f'not installed: {", ".join(MISSING)}; pip install "normkit[docs]"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once, by the command of `make docs`."""
    out = tmp_path_factory.mktemp("docs") / "site"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, ROOT / "docs" / "site" / "build.py", "--out", out]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=out.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Gives the modules that build the site."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    return lambda name: importlib.import_module(f"builder.{name}")


def test_links_are_those_of_the_site(builder: Callable[[str], Any]) -> None:
    tree = builder("stage").Tree(ROOT, "zh", {})

    def links(text: str, source: str = "docs/zh/engine/gpu.md", page: str = "engine/gpu.md") -> str:
        return tree._links(text, source, page)

    assert links("[a](../tools/fold.md#b)") == "[a](../tools/fold.md#b)"
    assert links("`[a](../../../csrc)` [`csrc/`](../../../csrc)") == "`[a](../../../csrc)` `csrc/`"
    decision = "decisions/0004-one-view.md"
    assert links(f"[a](../../../{decision})") == f"[a](../project/{decision})"
    assert f"project/{decision}" in tree.made
    assert links("[a](../docs/en/engine/gpu.md#x)", decision, f"project/{decision}") == "[a](../../engine/gpu.md)"
    drawn = links("![the regions](../../figures/regions.zh.svg)")
    assert 'aria-label="the regions"' in drawn
    assert "<style>" not in drawn
    with pytest.raises(ValueError, match=r"gpu\.md links to \.\./\.\./\.\./none\.md, which does not exist"):
        links("[a](../../../none.md)")


def test_a_study_without_results_is_named(builder: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="the gallery names the study 'none', got results of no study"):
        builder("studies").with_summaries("<!-- study: none -->", {}, "en")


def test_chinese_is_searched_by_pairs_of_characters(builder: Callable[[str], Any]) -> None:
    chinese = builder("chinese").Chinese({})
    terms = "批 归 一 化 批归 归一 一化 BatchNorm2d 用 法 用法"
    assert " ".join(chinese.split("批归一化 BatchNorm2d用法")) == terms
    assert chinese.stem("BatchNorm2d") == "batchnorm2d"
    assert not chinese.word_filter("2026")


def test_another_template_of_the_theme_is_refused(builder: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"adapt builder/frame\.py"):
        builder("frame").framed("<body></body>", "zh", "../en/index.html", "1")


@functools.cache
def tags(page: Path) -> list[tuple[str, dict[str, str]]]:
    """Every tag of a page with its attributes; scripts and styles have none inside."""
    text = re.sub(r"(?s)(<(script|style)\b[^>]*>).*?</\2>", r"\1", page.read_text(encoding="utf-8"))
    return [
        (name, {key: unescape(double or single) for key, double, single in ATTRIBUTE.findall(attributes)})
        for name, attributes in TAG.findall(text)
    ]


@functools.cache
def anchors(page: Path) -> set[str]:
    return {attributes[key] for _, attributes in tags(page) for key in ("id", "name") if key in attributes}


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def test_the_site_has_every_page_in_both_languages(site: Path) -> None:
    from normkit import __all__ as public
    from normkit import functional
    from normkit.catalog import METHODS

    names = {lang: {path.relative_to(site / lang).as_posix() for path in pages(site / lang)} for lang in LANGUAGES}
    assert names["en"] == names["zh"]
    assert {f"methods/{method.name}.html" for method in METHODS} <= names["en"]
    assert {f"api/normkit.{name}.html" for name in public if name != "functional"} <= names["en"]
    assert {f"api/normkit.functional.{name}.html" for name in functional.__all__} <= names["en"]
    for lang in LANGUAGES:
        written = {path.relative_to(ROOT / "docs" / lang) for path in (ROOT / "docs" / lang).rglob("*.md")}
        assert {path.with_suffix(".html").as_posix() for path in written} <= names[lang]
    assert "en/index.html" in (site / "index.html").read_text(encoding="utf-8")


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    broken = []
    for page in pages(site):
        for name, attributes in tags(page):
            for key in ("href", "src"):
                link = urlsplit(attributes.get(key, ""))
                if key not in attributes or link.scheme in ("http", "https", "data", "mailto") or name == "use":
                    continue
                target = (page.parent / unquote(link.path)).resolve() if link.path else page
                anchor = unquote(link.fragment)
                if not target.is_file() or (anchor and target.suffix == ".html" and anchor not in anchors(target)):
                    broken.append(f"{page.relative_to(site)}: {attributes[key]}")
    assert not broken, "\n".join(sorted(set(broken))[:40])


def test_nothing_is_loaded_from_another_place(site: Path) -> None:
    """A link to another site may be followed by a reader, but no page loads from one."""
    loaded = {
        attributes[key]
        for page in pages(site)
        for name, attributes in tags(page)
        for key in ("href", "src", "srcset", "action")
        if name != "a" and "//" in attributes.get(key, "")
    }
    imported = [
        path.relative_to(site)
        for path in site.rglob("*.css")
        if re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8"))
    ]
    assert not loaded
    assert not imported


def test_pictures_and_languages_have_names(site: Path) -> None:
    for lang, code in (("en", "en"), ("zh", "zh-CN")):
        for page in pages(site / lang):
            found = tags(page)
            html = next(attributes for name, attributes in found if name == "html")
            assert html["lang"] in (code, "zh-Hans" if lang == "zh" else code), page
            assert all(attributes.get("alt") for name, attributes in found if name == "img"), page


# In a browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.started() as started:
        yield started


@pytest.fixture
def opened(browser: Any, address: str, site: Path) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been asked of another place, and nothing have gone wrong."""
    with chromium.pages(browser, (address, "data:", site.as_uri()), seconds=20) as new_page:

        def open_(path: str, **options: object) -> Any:
            shown = new_page(**options)
            shown.goto(path if ":" in path else f"{address}/{path}")
            return shown

        yield open_


# One page of each kind; those with wide tables, long code and long signatures among them.
KINDS = (
    "index.html",
    "methods/index.html",
    "methods/batch_norm.html",
    "api/index.html",
    "api/normkit.compare.html",
    "audit/index.html",
    "compare/tasks.html",
    "tools/fold.html",
    "engine/performance.html",
    "gallery/index.html",
    "search.html",
)


@in_browser
@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_page_is_wider_than_a_phone(opened: Open, address: str, lang: str) -> None:
    shown = opened(f"{lang}/index.html", size=PHONE)
    wide = {}
    for page in KINDS:
        shown.goto(f"{address}/{lang}/{page}")
        width = shown.evaluate("() => document.documentElement.scrollWidth")
        if width > PHONE["width"]:
            wide[page] = width
    assert not wide


@in_browser
def test_the_keyboard_reaches_text_and_search(opened: Open) -> None:
    shown = opened("en/tools/fold.html")
    focused = "() => document.activeElement.className + '#' + document.activeElement.id"
    shown.keyboard.press("Tab")
    order = [shown.evaluate(focused)]
    while "skip-to-content" not in order[-1] and len(order) < 4:
        shown.keyboard.press("Tab")
        order.append(shown.evaluate(focused))
    assert "skip-to-content" in order[-1], order
    shown.keyboard.press("Enter")
    assert shown.evaluate("() => location.hash") == "#furo-main-content"
    shown.keyboard.press("/")
    assert "sidebar-search" in shown.evaluate(focused)
    shown.keyboard.type("convolution")
    shown.keyboard.press("Enter")
    shown.locator("#search-results li a").first.wait_for()
    assert "q=convolution" in shown.url


@in_browser
@pytest.mark.parametrize(
    ("lang", "query", "page"),
    [
        ("en", "recalibrate", "tools/recalibrate.html"),
        ("en", "GroupNorm", "api/normkit.GroupNorm.html"),
        ("zh", "批归一化", "methods/batch_norm.html"),
        ("zh", "检查", "tools/audit.html"),
    ],
)
def test_search_finds_a_page(opened: Open, lang: str, query: str, page: str) -> None:
    shown = opened(f"{lang}/search.html?q={query}")
    shown.locator(f'#search-results a[href^="{page}"]').first.wait_for(state="attached")


@in_browser
def test_search_works_without_a_server(opened: Open, site: Path) -> None:
    shown = opened(f"{(site / 'zh' / 'search.html').as_uri()}?q=批归一化")
    shown.locator('#search-results a[href^="methods/batch_norm.html"]').first.wait_for(state="attached")


@in_browser
def test_the_switch_of_languages_keeps_the_page(opened: Open, address: str) -> None:
    shown = opened("en/methods/group_norm.html")
    shown.locator("a.nk-language:visible").click()
    shown.wait_for_url(f"{address}/zh/methods/group_norm.html")
    assert shown.locator("h1").inner_text().startswith("组归一化")
    shown.goto(f"{address}/index.html")
    shown.wait_for_url(f"{address}/zh/index.html")  # the language that was chosen last
    shown.locator("a.nk-language:visible").click()
    shown.wait_for_url(f"{address}/en/index.html")


@in_browser
def test_light_and_dark(opened: Open) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark, light = opened("en/methods/index.html", color_scheme="dark"), opened("en/methods/index.html")
    assert dark.evaluate(ground) != light.evaluate(ground)
    # The cubes have the colour of the text around them.
    line = "() => getComputedStyle(document.querySelector('svg.normkit-region')).color"
    assert dark.evaluate(line) != light.evaluate(line)
    for _ in range(3):  # as the system, light, dark
        light.locator(".theme-toggle:visible").click()
        if light.evaluate(ground) == dark.evaluate(ground):
            break
    assert light.evaluate(ground) == dark.evaluate(ground)
    light.reload()
    assert light.evaluate(ground) == dark.evaluate(ground), "it is remembered"


@in_browser
def test_chinese_pages_have_a_chinese_frame(opened: Open) -> None:
    shown = opened("zh/methods/group_norm.html")
    text = shown.locator("body").inner_text()
    english = ("On this page", "Skip to content", "Back to top", "Next", "Previous", "Search")
    assert [word for word in english if word in text] == []
    assert shown.locator(".sidebar-search").get_attribute("placeholder") == "搜索"
    labels = shown.locator("[aria-label]").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert [label for label in labels if label.startswith(("Toggle", "Search"))] == []
