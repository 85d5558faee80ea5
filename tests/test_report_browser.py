"""The report in a real Chromium: every control, on a desktop and a phone, light and dark, nothing from outside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from latentmill.report.page import render
from report_facts import HOSTILE, empty, report, shown, whole

CHROMIUM = shutil.which("chromium") or ""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")
MUST = os.environ.get("LATENTMILL_BROWSER_TESTS") == "required"  # .ci/run says so
WIDE, PHONE = (1280, 900), (360, 780)
KINDS = [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")]

if not CHROMIUM and not MUST:
    pytest.skip("no Chromium here: apt install chromium", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402


@dataclass
class Opened:
    """A page in the browser, and all that it should not have done."""

    page: Page
    wrong: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM or "chromium", args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The whole report, one of several datasets, one of hostile text."""
    folder = tmp_path_factory.mktemp("reports")
    hostile = whole(
        3,
        name=HOSTILE,
        summary=HOSTILE,
        notes=(HOSTILE,),
        shown=(shown(0, key=HOSTILE, label=HOSTILE),),
        best=(),
        worst=(),
    )
    made = {
        "whole": report(whole()),
        "several": report(
            whole(6, 200), whole(2, name="b", latents=None, speed=None, sizes=None, classes=None), empty()
        ),
        "hostile": report(hostile),
    }
    for name, facts in made.items():
        (folder / f"{name}.html").write_text(render(facts), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def opened(browser: Browser, reports: dict[str, Path]) -> Iterator[Callable[..., Page]]:
    """Opens a report; when the test is over, nothing may have been logged, refused or asked for from outside."""
    all_opened: list[Opened] = []

    def open_one(name: str = "whole", size: tuple[int, int] = WIDE, colours: Any = "light", **more: Any) -> Page:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=colours, reduced_motion="reduce", **more
        )
        one = Opened(context.new_page())
        all_opened.append(one)
        one.page.set_default_timeout(10_000)
        one.page.on("console", lambda message: one.wrong.append(f"console {message.type}: {message.text}"))
        one.page.on("pageerror", lambda error: one.wrong.append(f"error: {error}"))
        one.page.on("dialog", lambda dialog: (one.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        one.page.on("request", lambda request: _outside(request.url) and one.wrong.append(f"request: {request.url}"))
        if more.get("java_script_enabled", True):
            one.page.add_init_script(
                "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective))"
            )
        one.page.goto(reports[name].as_uri())
        return one.page

    yield open_one
    for one in all_opened:
        assert not one.wrong
        one.page.context.close()


def _outside(url: str) -> bool:
    return not url.startswith(("file:", "data:"))


def titles(page: Page) -> list[str]:
    """The cards of the first gallery with controls that can be seen, in their order."""
    return page.locator(".cards:not(.tiles) .card:visible .card-name").all_inner_texts()


@pytest.mark.parametrize(
    "name, size, colours",
    [*(("whole", *kind) for kind in KINDS), ("several", *KINDS[3]), ("hostile", *KINDS[3])],
)
def test_a_page_is_accessible_and_no_wider_than_the_screen(
    opened: Callable[..., Page], name: str, size: tuple[int, int], colours: str
) -> None:
    page = opened(name, size, colours)
    for details in page.locator("details").all():
        details.evaluate("(element) => { element.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_headings_go_down_one_at_a_time(opened: Callable[..., Page]) -> None:
    for name in ("whole", "several"):
        levels = [
            int(tag[1])
            for tag in opened(name)
            .locator("h1, h2, h3, h4, h5, h6")
            .evaluate_all("(all) => all.map((one) => one.tagName)")
        ]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_pictures_are_drawn(opened: Callable[..., Page]) -> None:
    page = opened()
    assert page.locator("img.pixels").count() > 20
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator("svg.pixels").count() > 0  # those that are shown twice, and lie in the page once
    whole_in_its_frame = """(all) => all.every((frame) => {
        const [outer, inner] = [frame, frame.querySelector('.pixels')].map((one) => one.getBoundingClientRect());
        return inner.height > 0 && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1
            && inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
    })"""
    for size in (WIDE, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        assert page.locator(".cards:not(.tiles) .frame").evaluate_all(whole_in_its_frame)
    drawn = page.locator("svg.pixels").first
    assert page.evaluate("(svg) => svg.querySelector('use').getBoundingClientRect().width > 0", drawn.element_handle())


def test_the_theme_is_as_chosen_and_kept(opened: Callable[..., Page]) -> None:
    page = opened(colours="light")

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.get_by_role("radio", name="Dark").check()
    dark = background()
    assert dark != light
    assert page.evaluate("localStorage.length") == 1
    page.reload()
    assert background() == dark
    expect(page.get_by_role("radio", name="Dark")).to_be_checked()
    bar = page.locator(".chart.wide path[fill='var(--first)']").first
    drawn_dark = bar.evaluate("(path) => getComputedStyle(path).fill")
    page.get_by_role("radio", name="Light").check()
    assert background() == light
    assert bar.evaluate("(path) => getComputedStyle(path).fill") != drawn_dark
    page.get_by_role("radio", name="Auto").check()
    page.emulate_media(color_scheme="dark")
    assert background() == dark


def test_filters_show_what_they_say(opened: Callable[..., Page]) -> None:
    page = opened()
    count = page.get_by_role("status").first
    expect(count).to_have_text("12 shown")
    page.get_by_role("combobox", name="Size").select_option("512 × 512")
    assert sorted(titles(page)) == [f"photos/{number:03d}.jpg" for number in (0, 5, 10)]
    expect(count).to_have_text("3 of 12 shown")
    page.get_by_role("combobox", name="Class").select_option("dog")
    assert titles(page) == ["photos/005.jpg"]
    page.get_by_role("combobox", name="Class").select_option("")
    page.get_by_role("combobox", name="Size").select_option("")
    page.get_by_role("searchbox", name="Text").fill("THING 7")
    assert titles(page) == ["photos/007.jpg"]
    page.get_by_role("searchbox", name="Text").fill("nothing like it")
    assert titles(page) == []
    expect(count).to_have_text("0 of 12 shown")
    expect(page.get_by_role("heading", name="Worst reconstructions")).to_be_hidden()
    page.get_by_role("searchbox", name="Text").fill("")
    expect(count).to_have_text("12 shown")


def test_orders_sort_all_cards_and_give_the_groups_back(opened: Callable[..., Page]) -> None:
    page = opened()
    as_grouped = titles(page)
    numbers = [f"photos/{number:03d}.jpg" for number in range(12)]
    order = page.get_by_role("combobox", name="Order")
    order.select_option("name")
    assert titles(page) == numbers
    expect(page.get_by_role("heading", name="Best reconstructions")).to_be_hidden()
    for name in ("PSNR", "SSIM"):
        order.select_option(f"{name}:down")
        assert titles(page) == numbers[::-1]
        order.select_option(f"{name}:up")
        assert titles(page) == numbers
    order.select_option("")
    assert titles(page) == as_grouped
    expect(page.get_by_role("heading", name="Best reconstructions")).to_be_visible()


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_a_picture_is_enlarged_stepped_through_and_left_by_keyboard(
    opened: Callable[..., Page], size: tuple[int, int]
) -> None:
    page = opened(size=size)
    page.get_by_role("combobox", name="Order").select_option("name")
    button = page.get_by_role("button", name="Enlarge: photos/001.jpg, Model input")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="photos/001.jpg")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("status")).to_contain_text("2 of 12 · Model input")
    expect(dialog.get_by_role("radio", name="Model input")).to_be_checked()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog", name="photos/002.jpg")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # there is none before the first
    first = page.get_by_role("dialog", name="photos/000.jpg")
    expect(first).to_be_visible()
    expect(first.get_by_role("button", name="Previous")).to_be_disabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert first.locator(".viewer").evaluate(
        "(one) => one.scrollHeight <= one.clientHeight && one.scrollWidth <= one.clientWidth"
    )
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Escape")
    expect(first).to_be_hidden()
    assert button.evaluate("(one) => one === document.activeElement")


def test_focus_stays_in_the_dialog_and_goes_through_it_in_order(opened: Callable[..., Page]) -> None:
    page = opened()
    page.get_by_role("button", name="Enlarge: photos/003.jpg, Reconstruction").click()
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.value || document.activeElement.textContent"))
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    assert seen[:5] == ["Close", "Reconstruction", "off", "Previous", "Next"]


def test_original_and_reconstruction_are_compared_by_slider_and_difference(opened: Callable[..., Page]) -> None:
    page = opened()
    page.get_by_role("button", name="Enlarge: photos/004.jpg, Reconstruction").click()
    stage, over = page.locator("dialog .stage"), page.locator("dialog .stage .over")
    expect(over).to_have_count(0)
    page.get_by_role("radio", name="Slide").check()
    slider = page.get_by_role("slider")
    middle = float(over.evaluate("(one) => parseFloat(getComputedStyle(one).clipPath.split(' ').pop())"))
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "30"
    moved = float(over.evaluate("(one) => parseFloat(getComputedStyle(one).clipPath.split(' ').pop())"))
    assert moved < middle
    box = stage.bounding_box()
    assert box and middle == pytest.approx(box["width"] / 2, abs=1)
    page.get_by_role("radio", name="Difference × 8").check()
    assert over.evaluate("(one) => getComputedStyle(one).mixBlendMode") == "difference"
    expect(slider).to_be_hidden()
    page.get_by_role("radio", name="Original").check()  # of another size: there is nothing to lay it over
    expect(over).to_have_count(0)
    expect(page.get_by_role("radio", name="Slide")).to_be_disabled()


def test_the_keyboard_reaches_the_content_first(opened: Callable[..., Page]) -> None:
    page = opened()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    assert skip.evaluate("(one) => one === document.activeElement && one.getBoundingClientRect().top >= 0")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    outline = page.get_by_role("searchbox", name="Text")
    outline.focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_javascript_all_is_there_but_the_controls(opened: Callable[..., Page]) -> None:
    page = opened(java_script_enabled=False)
    assert len(titles(page)) == 12
    for hidden in (".theme", ".controls"):
        expect(page.locator(hidden).first).to_be_hidden()
    expect(page.locator(".enlarge")).to_have_count(0)
    expect(page.locator(".chart.wide").first).to_be_visible()
    page.locator("summary", has_text="By bucket").click()
    assert page.locator(".tiles .card:visible").count() >= 10


def test_charts_are_drawn_for_the_width(opened: Callable[..., Page]) -> None:
    for size, shown_kind, hidden in ((WIDE, "wide", "narrow"), (PHONE, "narrow", "wide")):
        page = opened(size=size)
        expect(page.locator(f".chart.{shown_kind}").first).to_be_visible()
        expect(page.locator(f".chart.{hidden}").first).to_be_hidden()
        smallest = page.locator(f".chart.{shown_kind} text").evaluate_all(
            "(all) => Math.min(...all.map((one) => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a))"
        )
        assert smallest >= 9


def test_it_prints_without_controls_and_in_light_colours(opened: Callable[..., Page]) -> None:
    page = opened(colours="dark")
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator(".controls").first).to_be_hidden()
    expect(page.locator(".theme")).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") == "#1b1d20"
    assert page.pdf()[:5] == b"%PDF-"
