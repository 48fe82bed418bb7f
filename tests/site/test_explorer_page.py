"""The explorer in a browser: a reader types, turns, points and shares, at every width, in both themes and languages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import DESK, Open

from normkit.errors import PatternError
from normkit.pattern import parse
from normkit.plan import plan

DOCS = Path(__file__).parents[2] / "docs"
PHONE = {"width": 375, "height": 800}
PAGE = """<!doctype html><html lang="{lang}" data-content_root="{root}/"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>explorer</title><body style="font-family: sans-serif"><main>{block}</main></body></html>"""


pytestmark = chromium.in_browser


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The raw part of both pages, with the static files where the site has them."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS / "site" / "static" / "explorer", folder / "_static" / "explorer")
    found = {}
    for lang in ("en", "zh"):
        block = (DOCS / lang / "explorer.md").read_text(encoding="utf-8").split("```{raw} html\n")[1].split("```")[0]
        (folder / lang).mkdir()
        path = folder / lang / "explorer.html"
        path.write_text(PAGE.format(lang="en", root="..", block=block), encoding="utf-8")
        found[lang] = path.as_uri()
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.started() as started:
        yield started


@pytest.fixture
def opened(browser: Any, urls: dict[str, str]) -> Iterator[Open]:
    """Opens the page; at the end nothing may have been asked of the network, and nothing have gone wrong."""
    with chromium.pages(browser) as new_page:

        def open_(hash_: str = "", lang: str = "en", **options: object) -> Any:
            shown = new_page(**options)
            shown.goto(urls[lang] + hash_)
            shown.locator(".nkx-controls").wait_for()
            return shown

        yield open_


def drawn(shown: Any) -> str:
    """The picture of the cube, once it rests."""
    picture = "() => document.querySelector('.nkx-cube').toDataURL()"
    before = ""
    while (now := shown.evaluate(picture)) != before:
        before = now
        shown.wait_for_timeout(120)
    return now


def point_at(shown: Any, x: float, y: float) -> None:
    box = shown.locator(".nkx-cube").bounding_box()
    shown.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_a_typed_pattern_is_read_planned_and_drawn(opened: Open) -> None:
    shown = opened()
    before = drawn(shown)
    shown.locator("#nkx-pattern").fill("[b] c [...]")
    assert shown.locator(".nkx-count strong").inner_text() == "18"
    assert shown.locator("#nkx-method").input_value() == "batch_norm"
    expected = str(plan(parse("[b] c [...]"), (3, 6, 2, 3), (36, 6, 3, 1)))
    assert shown.locator(".nkx-plan-text").inner_text() == expected
    assert shown.locator(".nkx-view li strong").all_inner_texts() == ["1", "3", "6", "6"]
    assert "normkit.BatchNorm2d(6)" in shown.locator(".nkx-code").all_inner_texts()[1]
    assert drawn(shown) != before
    shown.locator("text=channels_last").click()
    expected = str(plan(parse("[b] c [...]"), (3, 6, 2, 3), (36, 1, 18, 6)))
    assert shown.locator(".nkx-plan-text").inner_text() == expected


def test_a_wrong_pattern_is_answered_as_in_python(opened: Open) -> None:
    shown = opened()
    shown.locator("#nkx-pattern").fill("b (g [c) [...]")
    with pytest.raises(PatternError) as caught:
        parse("b (g [c) [...]")
    error = shown.locator("[role=alert]")
    assert error.inner_text() == str(caught.value)
    assert shown.locator("#nkx-pattern").get_attribute("aria-invalid") == "true"
    shown.locator("#nkx-pattern").fill("b (g [c]) [...]")
    assert not error.is_visible()
    shown.locator("#nkx-groups").fill("4")
    assert "must be divisible by g=4, got 6 in shape (3, 6, 2, 3)" in error.inner_text()


def test_the_cube_is_turned_by_mouse_touch_and_keyboard(opened: Open) -> None:
    shown = opened(has_touch=True)
    shown.locator(".nkx-cube").scroll_into_view_if_needed()
    pictures = [drawn(shown)]
    point_at(shown, 0.5, 0.5)
    shown.mouse.down()
    point_at(shown, 0.7, 0.4)
    shown.mouse.up()
    pictures.append(drawn(shown))
    shown.locator(".nkx-cube").focus()
    shown.keyboard.press("ArrowLeft")
    pictures.append(drawn(shown))
    shown.keyboard.press("+")
    pictures.append(drawn(shown))
    shown.locator(".nkx-cube").evaluate(
        """canvas => { const event = (name, x) => canvas.dispatchEvent(new PointerEvent(name,
             { pointerType: "touch", pointerId: 1, clientX: x, clientY: 300, bubbles: true }));
           canvas.setPointerCapture = () => {};
           event("pointerdown", 300); event("pointermove", 340); event("pointerup", 340); }"""
    )
    pictures.append(drawn(shown))
    shown.get_by_label("Turn left").click()
    pictures.append(drawn(shown))
    assert len(set(pictures)) == len(pictures)
    shown.locator(".nkx-cube").press("Home")
    shown.locator(".nkx-apart input").fill("0.6")
    point_at(shown, 0.01, 0.01)
    assert drawn(shown) == pictures[0]


def test_an_element_shows_its_cell_by_mouse_and_by_keyboard(opened: Open) -> None:
    shown = opened()
    status = shown.get_by_role("status")
    assert status.inner_text() == "No element is selected."
    all_cells = drawn(shown)
    point_at(shown, 0.5, 0.6)
    shown.locator(".nkx-dim").first.wait_for()
    assert drawn(shown) != all_cells
    assert "18 elements share its statistics" in status.inner_text()
    point_at(shown, 0.01, 0.01)
    assert drawn(shown) == all_cells
    shown.get_by_label("channel", exact=True).focus()
    for _ in range(4):
        shown.keyboard.press("ArrowRight")
    assert status.inner_text().startswith("Element b=0 g=1 c=1 h=0 w=0 is in cell 2 of 6;")
    assert "memory offset 24, weight 4" in status.inner_text()
    squares = shown.locator(".nkx-memory [data-cell]:not(.nkx-dim)")
    assert squares.evaluate_all("all => [...new Set(all.map(e => e.dataset.cell))]") == ["1"]
    assert squares.count() == 18
    shown.locator("text=Show all cells").click()
    assert shown.locator(".nkx-dim").count() == 0


def test_a_link_brings_the_same_view(opened: Open) -> None:
    shown = opened("#p=b+[c]+h+[w]&b=2&c=4&x=3x5&layout=channels_last")
    assert shown.locator("#nkx-pattern").input_value() == "b [c] h [w]"
    assert shown.locator(".nkx-count strong").inner_text() == "20"
    shown.locator("#nkx-channels").fill("8")
    shown.get_by_role("button", name="RMS norm").click()
    again = opened("#" + shown.url.split("#")[1])
    for page in (shown, again):
        assert page.locator("#nkx-method").input_value() == "rms_norm"
        assert page.locator(".nkx-facts dd").first.inner_text() == "(2, 3, 5, 8)"
    assert drawn(shown) == drawn(again)
    shown.evaluate("location.hash = '#m=weight_norm'")
    shown.locator("text=Weight norm has no region").wait_for()
    assert shown.locator("#nkx-pattern").input_value() == ""


def test_the_address_keeps_the_heading_that_it_names(opened: Open) -> None:
    shown = opened("#what-the-parts-mean", permissions=["clipboard-read", "clipboard-write"])
    assert shown.url.endswith("#what-the-parts-mean")
    shown.locator("text=Copy link to this view").click()
    shown.locator("text=Copied").wait_for()
    link = shown.evaluate("() => navigator.clipboard.readText()")
    assert link.endswith("#p=b+(g+%5Bc%5D)+%5B...%5D&m=group_norm&b=3&c=6&x=2x3&g=2&layout=contiguous")
    shown.locator("text=as in a ResNet").click()
    assert "&c=256&" in shown.url
    assert "16 of 256 channels" in shown.locator(".nkx-stage .nkx-note").inner_text()


def test_sizes_that_are_no_numbers_are_refused(opened: Open) -> None:
    shown = opened()
    field = shown.locator("#nkx-positions")
    field.fill("2x")
    field.fill("2xx")
    assert field.evaluate("e => e.validationMessage") == ""
    field.fill("two")
    assert "whole numbers from 1 to 16384" in field.evaluate("e => e.validationMessage")
    assert shown.locator(".nkx-facts dd").first.inner_text() == "(3, 6, 2)"
    shown.locator("#nkx-batch").focus()
    assert field.input_value() == "2"


@pytest.mark.parametrize(("size", "lang"), [(PHONE, "zh"), (DESK, "en")], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_screen(opened: Open, size: dict[str, int], lang: str) -> None:
    shown = opened(lang=lang, size=size)
    for hash_ in (
        "#p=b+(g+[c])+[...]&b=32&c=256&x=14x14&g=32",
        "#m=iter_norm",
        "#m=spectral_norm",
        "#p=[[",
        "#m=evo_norm_b0",
    ):
        shown.evaluate("hash => { location.hash = hash; }", hash_)
        shown.wait_for_function("() => location.hash.includes('layout=')")  # as the page writes it
        assert shown.evaluate("() => document.documentElement.scrollWidth") <= size["width"]


def test_chinese_pages_are_chinese(opened: Open) -> None:
    shown = opened(lang="zh")
    assert shown.locator(".normkit-explorer").get_attribute("lang") == "zh-CN"
    assert shown.locator(".nkx-count span").inner_text() == "个元素共用一个均值和一个方差"
    assert "组归一化" in shown.locator(".nkx-chips").inner_text()


def test_the_theme_is_that_of_the_site(opened: Open) -> None:
    ground = "() => getComputedStyle(document.querySelector('.nkx-controls')).backgroundColor"
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert dark.evaluate(ground) != light.evaluate(ground)
    pictures = drawn(dark), drawn(light)
    assert pictures[0] != pictures[1]
    light.evaluate("document.body.dataset.theme = 'dark'")
    light.locator('.normkit-explorer[data-scheme="dark"]').wait_for()
    assert light.evaluate(ground) == dark.evaluate(ground)
    assert drawn(light) == pictures[0]
    light.evaluate("delete document.body.dataset.theme; document.documentElement.dataset.theme = 'light'")
    light.locator('.normkit-explorer[data-scheme="light"]').wait_for()


def test_every_control_has_a_name(opened: Open) -> None:
    shown = opened("#m=layer_norm")
    controls = shown.locator(".normkit-explorer :is(button, input, select, canvas, svg:not([aria-hidden]))")
    names = controls.evaluate_all(
        """all => all.map(e => e.getAttribute("aria-label") || [...(e.labels ?? [])].map(l => l.innerText).join()
             || e.innerText.trim())"""
    )
    assert len(names) > 25
    assert [name for name in names if not name.strip()] == []
    assert "cells of 36 elements" in shown.locator(".nkx-cube").get_attribute("aria-label")
