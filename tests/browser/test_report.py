"""The page of a run in a real browser: `make test-browser`. Screenshots lie in `runs/browser` afterwards."""

import csv
import os
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from tests.jobs import run_folders
from tfalign.jobs import run_report

pytestmark = pytest.mark.browser
SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
SCREENSHOTS = Path("runs/browser")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The page of a run on real tissue."""
    folder = tmp_path_factory.mktemp("browser")
    gray = skimage.data.immunohistochemistry().mean(axis=-1).astype("uint8")
    names = ["tissue 1", "tissue 2", run_folders.EVIL, "Gewebe ü"]
    run = run_folders.make(folder, names, size=128, scenes=gray)
    run_folders.finish(run)
    return run_report.write(run)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CHROMIUM")
    if not path:
        pytest.skip("CHROMIUM names no browser")
    with sync_api.sync_playwright() as playwright:
        # Inside a container there is no other sandbox for root.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@pytest.fixture(params=SIZES)
def opened(request, browser, page_file):
    """The page, opened; at the end nothing may have been said on the console and nothing been asked of a network."""
    width, height = SIZES[request.param]
    is_phone = request.param == "phone"
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=2 if is_phone else 1, has_touch=is_phone
    )
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.absolute().as_uri())
    page.name = request.param
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:", "file:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1


def test_the_slider_uncovers_before_and_after(opened):
    compare = opened.locator(".compare").first
    compare.scroll_into_view_if_needed()
    box = compare.bounding_box()

    def drag(start, end):
        opened.mouse.move(box["x"] + start * box["width"], box["y"] + box["height"] / 2)
        opened.mouse.down()
        opened.mouse.move(box["x"] + end * box["width"], box["y"] + box["height"] / 2, steps=5)
        opened.mouse.up()

    def cut():
        return float(compare.evaluate("one => getComputedStyle(one).getPropertyValue('--cut')").rstrip("%"))

    def shown(place):
        """The picture that is seen at a place, from left 0 to right 1."""
        clip = compare.locator(".after").evaluate("one => getComputedStyle(one).clipPath")
        covered = float(clip.split()[-1].rstrip("%)")) / 100
        return "after" if place > covered else "before"

    assert cut() == 50
    drag(0.5, 0.1)
    assert cut() < 16
    assert (shown(0.05), shown(0.3)) == ("before", "after")
    left = compare.screenshot()
    drag(0.1, 0.9)
    assert cut() > 84
    assert (shown(0.7), shown(0.97)) == ("before", "after")
    assert compare.screenshot() != left
    compare.locator("input").focus()
    before = cut()
    opened.keyboard.press("ArrowLeft")
    assert cut() < before
    assert opened.locator(".compare").nth(1).evaluate("one => getComputedStyle(one).getPropertyValue('--cut')") == "50%"


def test_decisions_are_saved_as_a_table(opened, tmp_path):
    card = opened.locator(".card", has_text="onerror").first
    card.get_by_label("reject").check()
    opened.locator(".card", has_text="tissue 1").first.get_by_label("keep").check()
    # All cards of a file show the same decision.
    assert (
        opened.locator(".card", has_text="onerror")
        .get_by_label("reject")
        .evaluate_all("all => all.every(one => one.checked)")
    )
    with opened.expect_download() as download:
        opened.get_by_role("button", name="Save worst_labels.csv").click()
    assert download.value.suggested_filename == "worst_labels.csv"
    download.value.save_as(tmp_path / "saved.csv")
    with open(tmp_path / "saved.csv", encoding="utf-8", newline="") as stream:
        decided = {row["file"]: row["decision"] for row in csv.DictReader(stream)}
    assert decided == {run_folders.EVIL: "reject", "tissue 1": "keep", "tissue 2": "", "Gewebe ü": ""}


def test_nothing_is_wider_than_the_screen(opened):
    width = SIZES[opened.name][0]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    outside = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
    assert opened.locator("section, .card, figure, h2, p").evaluate_all(outside) == 0
    assert opened.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")


def test_links_lead_to_their_sections(opened):
    for link in opened.locator("nav a").all():
        link.click()
        target = link.get_attribute("href")
        assert opened.locator(target).evaluate("one => Math.abs(one.getBoundingClientRect().top) < innerHeight")


def test_screenshots_to_look_at(opened):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=SCREENSHOTS / f"{opened.name}.png", full_page=True)
    with Image.open(SCREENSHOTS / f"{opened.name}.png") as picture:
        assert picture.height > 2000
        assert len(picture.getcolors(2**24)) > 1000
