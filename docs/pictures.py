"""Make the pictures of the documentation again: `python docs/pictures.py` (needs Chromium, playwright and pillow)."""

from __future__ import annotations

import io
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this tree, installed or not

from PIL import Image
from playwright.sync_api import sync_playwright

from flowdeco import Context, Parallel, Run, Stage, action, parallel, pipeline, stage
from flowdeco.middleware import recover, retry

STATIC = Path(__file__).with_name("_static")
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
chance = random.Random(4)
refused: list[str] = []


def work(least: float, most: float) -> None:
    time.sleep(chance.uniform(least, most))


@stage(tags=["extract", "net"])
def fetch(region: str) -> None:
    """Fetch the orders of one region, page by page."""

    @action(collect="orders", use=[retry(on=ConnectionError, wait=0.01)])
    def download(token: str) -> list[int]:
        work(0.04, 0.09)
        if region == "south" and len(refused) < 2:
            refused.append(region)
            raise ConnectionError("the server said 503")
        return [1, 2]

    @action
    def check() -> None:
        work(0.01, 0.03)


@stage(tags=["load"])
def load(table: str) -> None:
    """Load one table."""

    @action(collect="loaded")
    def write(orders: list[Any]) -> str:
        work(0.02, 0.05)
        return table


@action(tags=["extract"])
def discover(token: str) -> Parallel:
    """Ask which regions there are."""
    work(0.03, 0.04)
    north, south, east, west = map(fetch, ("north", "south", "east", "west"))
    return parallel(north, south, east >> load("east_orders"), west, name="regions")


@action(tags=["transform"])
def clean(orders: list[Any]) -> int:
    """Drop what is incomplete."""
    work(0.03, 0.05)
    return len(orders)


@action(use=[recover(on=KeyError)])
def enrich() -> float:
    """Add exchange rates, if there are any."""
    work(0.02, 0.03)
    return {}["EUR"]


@action
def tables(orders: list[Any]) -> list[Stage]:
    return [load(table) for table in ("orders", "items")]


@stage(tags=["reporting"], data={"report.title": "Orders"})
def report() -> None:
    """Put the numbers into words, and send them."""

    @action
    def summary(loaded: list[str], ctx: Context) -> str:
        work(0.02, 0.03)
        return f"{len(loaded)} tables"

    @action
    def send(token: str, summary: str) -> None:
        work(0.02, 0.03)
        raise ConnectionError("mail.example.com does not answer")


@stage
def tidy() -> None:
    """Remove temporary files."""

    @action
    def remove() -> None: ...


nightly = pipeline(
    discover, clean, enrich, tables, report, tidy,
    name="orders",
    title="Nightly orders",
    description="Fetch the orders of all regions, clean them, and load them into the warehouse.",
)  # fmt: skip


def saved(name: str, shot: bytes) -> None:
    """Write a screenshot with 256 colours: it is text and bars."""
    whole = Image.open(io.BytesIO(shot)).convert("RGB")
    palette = Image.new("P", (1, 1))  # the colours that are there most often: an average would take the green from ✓
    common = sorted(whole.getcolors(whole.width * whole.height) or [], reverse=True)[:256]
    palette.putpalette([part for _, color in common for part in color])
    picture = whole.quantize(palette=palette, dither=Image.Dither.NONE)
    picture.save(STATIC / name, optimize=True)
    print(f"{name}: {picture.width} × {picture.height}, {(STATIC / name).stat().st_size // 1024} kB")


def notebook(run: Run) -> str:
    return f'<meta charset="utf-8"><body data-jp-theme-light="true" style="margin:16px">{run._repr_html_()}'


def main() -> None:
    run = nightly.run({"token": "s3cret-9d2f"}, check=False)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = run.to_html(Path(folder) / "run.html")
        card_path = Path(folder) / "card.html"
        card_path.write_text(notebook(run), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": 1120, "height": 1330}, device_scale_factor=1.25)
        page.goto(page_path.as_uri())
        for trace in page.locator("#alarm .trace[open] > summary").all():
            trace.click()
        saved("run-page.png", page.screenshot())
        page = browser.new_page(viewport={"width": 1120, "height": 1000}, color_scheme="dark", device_scale_factor=1.25)
        page.goto(page_path.as_uri())
        page.locator("#rows .line", has_text="fetch[south]").click()
        page.locator("#stages").evaluate("section => window.scrollTo(0, section.offsetTop - 16)")
        page.mouse.move(0, 0)
        saved("run-page-dark.png", page.screenshot())
        page = browser.new_page(viewport={"width": 960, "height": 600}, device_scale_factor=1.25)
        page.goto(card_path.as_uri())
        page.mouse.move(0, 0)
        saved("notebook.png", page.locator(".fd-card").screenshot())
        browser.close()


if __name__ == "__main__":
    main()
