"""The page in a real browser, where Playwright and a Chromium are installed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reproduction.conftest import reproduce

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser")
    reproduce(out, FAKE_FAILS="tiny-mlp-even:skip")
    return out / "report.html"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        opened = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(context: Any, report: Path) -> Iterator[Any]:
    """The report, opened from disk; what the console or the network has to complain of fails the test."""
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width == 360:
        assert page.evaluate("document.querySelector('.scroll').scrollWidth") > 360


def column(page: Any, number: int) -> list[str]:
    cells: list[str] = page.evaluate(
        "n => [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[n].dataset.sort)", number
    )
    return cells


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_tables_are_sorted(page: Any, by: str) -> None:
    before = column(page, 2)
    button = page.locator("th button", has_text="Avg").first
    for downwards in (False, True):
        if by == "mouse":
            button.click()
        else:
            button.focus()
            page.keyboard.press("Enter")
        values = [float(value) for value in column(page, 2) if value]
        assert values == sorted(values, reverse=downwards) and len(values) > 3
        assert column(page, 2)[-1] == "" and before.count("") == 1  # the failed cell comes last both ways
        state = "descending" if downwards else "ascending"
        assert button.locator("xpath=..").get_attribute("aria-sort") == state


def test_pointing_shows_the_value(page: Any) -> None:
    tip = page.locator("#tip")
    assert not tip.is_visible()
    mark = page.locator("svg .mark").first
    mark.scroll_into_view_if_needed()
    page.wait_for_timeout(200)  # scrolling, which hides it, is told late
    mark.hover()
    tip.wait_for(state="visible")
    assert tip.text_content() == mark.get_attribute("data-says") != ""
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_the_keyboard_reaches_every_value_of_a_chart(page: Any) -> None:
    chart = page.locator("svg[tabindex='0']").first
    chart.focus()
    said = chart.locator("[data-says]").evaluate_all("marks => marks.map(mark => mark.dataset.says)")
    tip = page.locator("#tip")
    for expected in said[:3]:
        page.keyboard.press("ArrowRight")
        assert tip.is_visible() and tip.text_content() == expected
    page.keyboard.press("ArrowLeft")
    assert tip.text_content() == said[1]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_print_hides_controls_and_opens_the_commands(page: Any) -> None:
    page.set_viewport_size({"width": 688, "height": 970})  # A4 less its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('th button'), '::after').content") == "none"
    assert page.evaluate("document.querySelector('details').open")
    assert page.evaluate("document.documentElement.scrollWidth") == 688


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Any, scheme: str) -> None:
    """Contrast of every colour of text with the page, by WCAG's formula, 4.5 or more."""
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate(
        """() => [
            getComputedStyle(document.documentElement).backgroundColor,
            ...[...document.querySelectorAll('p, td, th, .paper, .error, .verdict, .state, figcaption')]
                .map(one => getComputedStyle(one).color),
        ]"""
    )
    background, *texts = [luminance(colour) for colour in dict.fromkeys(colours)]
    assert len(texts) >= 3
    for text in texts:
        low, high = sorted((background, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
