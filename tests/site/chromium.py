"""A headless Chromium for the tests of pages; a page that it opened may have asked nothing of another place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FORCED = os.environ.get("NORMKIT_BROWSER") == "1"
# A container has no sandbox to offer, and Chromium asks the network for things of its own.
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESK = {"width": 1280, "height": 900}
Open = Callable[..., Any]


def missing() -> str:
    """What is missing to run a browser; empty if nothing is."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return "" if CHROMIUM else "no chromium on the path: install it with the system's package manager"


in_browser = pytest.mark.skipif(bool(missing()) and not FORCED, reason=missing() or "a browser is there")


@contextmanager
def started() -> Iterator[Any]:
    """The browser."""
    if missing():
        pytest.fail(f"NORMKIT_BROWSER=1 asks for a browser: {missing()}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
        yield browser
        browser.close()


@contextmanager
def pages(browser: Any, own: str | tuple[str, ...] = "file:", seconds: float = 10) -> Iterator[Open]:
    """Makes pages of a size, with further options of a context; at the end nothing may have gone wrong.

    Args:
        browser: the browser.
        own: how the addresses begin that a page may ask for.
        seconds: how long to wait for what a test waits for.
    """
    contexts, wrong = [], []

    def made(*, size: dict[str, int] = DESK, **options: object) -> Any:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * seconds)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
        return page

    yield made
    for context in contexts:
        context.close()
    assert wrong == []
