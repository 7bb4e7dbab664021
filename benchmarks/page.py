"""How large the report's page is for many requests, and how soon a browser has drawn it.

    python -m benchmarks.page --requests 100000

The requests are the shop's of the tests, with more routes, workers and statements and a spread of latencies,
so that the grid is full. The browser is Debian's Chromium, driven by Playwright.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import sync_playwright
from tests.factories import make_path

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.cube import CubeBuilder
from reqpath.path import RequestPath
from reqpath.render.page_report import render_report_page

#: What is aimed at, for 100,000 requests.
MAX_BYTES = 5_000_000
MAX_READY_S = 2.0


def make_paths(count: int) -> Iterator[RequestPath]:
    """Yield requests over an hour, of 60 routes whose latency is spread over three decades."""
    source = random.Random(1)
    for number in range(count):
        route = int(source.paretovariate(0.6)) % 60
        total_ns = int(5_000_000 + source.lognormvariate(15.0 + route % 7 / 4, 1.2))
        query_ns = int((total_ns - 5_000_000) * source.random())
        yield make_path(
            total_ns,
            at_ns=number * 3_600_000_000_000 // count,
            number=number,
            query_ns=query_ns,
            statement=f"SELECT * FROM table{route % 40} WHERE id = ? AND name = ? ORDER BY created LIMIT ?",
            route=f"/shop/section{route}/<int:item_id>",
            core=number % 8,
            status=500 if source.random() < 0.01 else 200,
        )


def main() -> None:
    """Build the page, open it, and print size and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--keep", metavar="FILE", help="leave the page there")
    options = parser.parse_args()
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(make_paths(options.requests)))
    start_s = time.process_time()
    page = render_report_page(breakdown, builder.build(breakdown))
    built_s = time.process_time() - start_s
    size = len(page.encode())
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = Path(options.keep) if options.keep else Path(directory, "page.html")
        path.write_text(page)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        times = []
        for _ in range(5):
            tab = browser.new_page()
            tab.goto(path.absolute().as_uri())
            tab.wait_for_selector("html[data-ready]", state="attached")
            ready_ms = tab.evaluate("performance.now()")
            select_ms = tab.evaluate(
                "() => { const start = performance.now(); document.getElementById('select-slow').click();"
                " document.body.offsetHeight; return performance.now() - start; }"
            )
            times.append((ready_ms / 1000, select_ms / 1000))
            tab.close()
        browser.close()
    ready_s, select_s = (sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{options.requests:,} requests: {size / 1e6:.2f} MB (aim {MAX_BYTES / 1e6:.0f} MB)")
    print(f"built in {built_s:.2f} s of CPU beyond the breakdown, {peak} MB at most")
    print(
        f"usable after {ready_s:.2f} s (aim {MAX_READY_S:.0f} s), a selection takes {select_s * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
