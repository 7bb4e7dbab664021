"""Pages in a real browser: Debian's Chromium, without a window, driven by Playwright.

A page is opened from the disk as its reader does it. Whatever it says on the console, and whatever it asks of
any network, fails the test.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

OpenPage = Callable[..., Page]

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the browser once a module: as long as it runs, no other event loop may."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium: apt install chromium")
    # Its sandbox needs what root and containers lack; the pages are our own.
    with (
        sync_playwright() as playwright,
        contextlib.closing(
            playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        ) as browser,
    ):
        yield browser


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[OpenPage]:
    """Return a function that opens a page's HTML; options are those of a Playwright context."""
    complaints: list[str] = []
    opened: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_html(html: str, **options: Any) -> Page:
            path = tmp_path / f"{len(opened)}.html"
            path.write_text(html, encoding="utf-8")
            opened.append(path.as_uri())
            context = stack.enter_context(contextlib.closing(browser.new_context(**options)))
            page = context.new_page()
            page.on("console", lambda message: complaints.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            page.on("request", lambda request: complaints.append(f"request: {request.url}"))
            page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
            page.goto(opened[-1])
            page.wait_for_selector("html[data-ready]", state="attached")
            return page

        yield open_html
    assert [each for each in complaints if each.removeprefix("request: ") not in opened] == []
