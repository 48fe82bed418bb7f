"""The page in a browser: what scripts and styles do, at every width, in both themes, in print and in both languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import made_up
import pytest
from chromium import DESK, Open

from normkit.study.report.page import page

PHONE = {"width": 375, "height": 800}

pytestmark = chromium.in_browser


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = made_up.of_digits()
    folder = tmp_path_factory.mktemp("page")
    for lang in ("en", "zh"):
        (folder / f"{lang}.html").write_text(page.render(found, lang), encoding="utf-8")
    return {lang: (folder / f"{lang}.html").as_uri() for lang in ("en", "zh")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.started() as started:
        yield started


@pytest.fixture
def opened(browser: Any, urls: dict[str, str]) -> Iterator[Open]:
    """Opens the page; at the end nothing may have been asked of the network, and nothing have gone wrong."""
    with chromium.pages(browser) as new_page:

        def open_(lang: str = "en", *, script: bool = True, **options: object) -> Any:
            shown = new_page(java_script_enabled=script, **options)
            shown.goto(urls[lang])
            return shown

        yield open_


def column(shown: Any, number: int) -> list[str]:
    return [text.strip() for text in shown.locator(f"#all-numbers tbody tr > :nth-child({number})").all_inner_texts()]


def test_a_table_is_sorted_by_its_heading(opened: Open) -> None:
    shown = opened()
    heading = shown.locator("#all-numbers thead th").nth(3)
    values = "trs => trs.map(tr => Number(tr.cells[3].dataset.sort))"
    before = shown.locator("#all-numbers tbody tr").evaluate_all(values)
    assert before != sorted(before)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert shown.locator("#all-numbers tbody tr").evaluate_all(values) == sorted(before)
    heading.locator("button").focus()
    shown.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert shown.locator("#all-numbers tbody tr").evaluate_all(values) == sorted(before, reverse=True)
    shown.locator("#all-numbers thead th").nth(1).locator("button").press("Space")
    assert heading.get_attribute("aria-sort") == "none"
    names = column(shown, 2)
    assert names == sorted(names)
    assert len(names) == len(made_up.METHODS) * len(made_up.SIZES)


def test_the_theme_is_the_readers_until_the_button_says_otherwise(opened: Open) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark, light = opened(color_scheme="dark"), opened(color_scheme="light")
    assert dark.evaluate(ground) != light.evaluate(ground)
    light.locator("#theme").click()
    assert light.evaluate(ground) == dark.evaluate(ground)
    assert light.locator("#theme").get_attribute("aria-pressed") == "true"
    light.reload()
    assert light.evaluate(ground) == dark.evaluate(ground), "it is remembered"
    light.locator("#theme").press("Enter")
    assert light.evaluate(ground) != dark.evaluate(ground)


def test_a_method_is_hidden_everywhere(opened: Open) -> None:
    shown = opened()
    marks = shown.locator('[data-m="batch_norm"]')
    others = shown.locator('[data-m="group_norm"]')
    visible = """all => all.map(e => getComputedStyle(e)).filter(
        style => style.display !== "none" && style.visibility !== "hidden").length"""
    count, rest = marks.count(), others.evaluate_all(visible)
    assert marks.evaluate_all(visible) == count > 20
    button = shown.locator('.legend [data-hides="batch_norm"]')
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert marks.evaluate_all(visible) == 0
    assert others.evaluate_all(visible) == rest
    button.press("Enter")
    assert marks.evaluate_all(visible) == count


def test_a_verdict_leads_to_its_experiment(opened: Open) -> None:
    shown = opened()
    link = shown.locator('a.verdict[href$="-a"]').first
    experiment = shown.locator(str(link.get_attribute("href")))
    assert experiment.get_attribute("open") is None
    link.click()
    experiment.locator("pre code").wait_for(state="visible")
    experiment.locator("summary").press("Enter")
    assert not experiment.locator("pre code").is_visible()
    shown.locator("#open-all").click()
    assert shown.locator("details.experiment:not([open])").count() == 0
    shown.locator("#open-all").click()
    assert shown.locator("details.experiment[open]").count() == 0


def test_a_choice_leads_to_its_comparison(opened: Open) -> None:
    shown = opened(reduced_motion="reduce")
    link = shown.locator('#decision a[href^="#pair-"]').last
    row = shown.locator(str(link.get_attribute("href")))
    assert not row.is_visible()
    link.click()
    row.wait_for(state="visible")
    place = row.bounding_box()
    assert place is not None
    assert 0 < place["y"] < DESK["height"]


def test_a_phone_has_one_row_of_chips_and_the_names_of_the_wide_table(opened: Open) -> None:
    shown = opened(size=PHONE)
    tops = shown.locator(".chips li").evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")
    assert len(tops) > 4
    assert len(set(tops)) == 1
    assert shown.locator(".chips").evaluate("e => e.scrollWidth > e.clientWidth")
    shown.locator("#numbers .scroll").first.evaluate("e => { e.scrollLeft = 300; }")
    left = shown.locator("#all-numbers tbody th").evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
    assert max(left) < 20, "the name of the method stays"


def test_a_command_is_copied(opened: Open) -> None:
    shown = opened(permissions=["clipboard-read", "clipboard-write"])
    shown.locator("#origin .copy").click()
    shown.locator("#origin .copy", has_text="Copied").wait_for()
    assert shown.evaluate("() => navigator.clipboard.readText()") == "normkit compare --seed 0"


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_screen(opened: Open, lang: str, size: dict[str, int]) -> None:
    shown = opened(lang, size=size)
    shown.locator("#open-all").click()
    assert shown.evaluate("() => document.documentElement.scrollWidth") <= size["width"]
    # Letters in figures are scaled with them, and must not become too small to read.
    smallest = shown.locator("svg.plot").evaluate_all(
        "all => Math.min(...all.map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width"
        " * parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 9


def test_the_keyboard_reaches_the_answer_first(opened: Open) -> None:
    shown = opened()
    shown.keyboard.press("Tab")
    skip = shown.locator(".skip")
    assert skip.evaluate("e => e === document.activeElement && e.getBoundingClientRect().top >= 0")
    shown.keyboard.press("Enter")
    assert shown.evaluate("() => document.activeElement.id") == "answer"


def test_print_shows_all_evidence(opened: Open, tmp_path: Path) -> None:
    for script in (True, False):
        shown = opened(script=script, size={"width": 794, "height": 1123})
        evidence = shown.locator("details.experiment .facts-list").first
        assert not evidence.is_visible()
        shown.emulate_media(media="print")
        heights = shown.locator("details.experiment .inside").evaluate_all("all => all.map(e => e.clientHeight)")
        assert min(heights) > 200
        assert not shown.locator("nav").is_visible()
        assert len(shown.pdf()) > 50_000


def test_without_script_it_can_still_be_read(opened: Open) -> None:
    shown = opened(script=False)
    assert shown.locator("#answer").is_visible()
    assert shown.locator(".js").evaluate_all("all => all.every(e => getComputedStyle(e).display === 'none')")
    link = shown.locator('a.verdict[href$="-a"]').first
    experiment = shown.locator(str(link.get_attribute("href")))
    experiment.locator("summary").click()
    assert experiment.locator("pre code").is_visible()


def test_who_wants_no_motion_has_none(opened: Open) -> None:
    behaviour = "() => getComputedStyle(document.documentElement).scrollBehavior"
    assert opened(reduced_motion="reduce").evaluate(behaviour) == "auto"
    assert opened(reduced_motion="no-preference").evaluate(behaviour) == "smooth"


def test_chinese_is_said_to_be_chinese(opened: Open) -> None:
    shown = opened("zh")
    assert shown.evaluate("() => document.documentElement.lang") == "zh-Hans"
    assert "批归一化" in shown.locator("#answer").inner_text()
    shown.locator("#all-numbers thead th").nth(1).locator("button").click()
    assert len(set(column(shown, 2))) == len(made_up.METHODS)
