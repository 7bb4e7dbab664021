"""The page of `reqpath serve` as its reader meets it, while requests go on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Locator, Page

from reqpath.analyse.recent import RecentWindow
from reqpath.commands.page_server import PageServer, pack
from reqpath.commands.serve import Feed, Publisher
from reqpath.record import encode
from reqpath.render.page_report import render_live_page
from reqpath.spool import SpoolWriter
from tests.factories import NOW_NS, make_path, make_writer_info

pytestmark = pytest.mark.browser

MS = 1_000_000
S = 1_000_000_000
#: What the tests see change again and again.
SEVERAL = 5


class Shop:
    """A server that serves a spool to which requests are added at a steady rate, of three routes in turn."""

    def __init__(self, spool: str, *, window_ns: int = 600 * S) -> None:
        self._writer = SpoolWriter(
            spool,
            lambda writer_id: make_writer_info(writer_id=writer_id, created_ns=time.time_ns(), worker=1),
            max_bytes=1 << 26,
            report=print,
        )
        self.feed = Feed(spool, RecentWindow(window_ns), None)
        self.publisher = Publisher(self.feed, None, refresh_s=0.05, ask_every_s=0.05, share=1.0)
        self.writing = threading.Event()
        self._end = threading.Event()
        self._server: PageServer | None = None
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.start()
        self._pump = threading.Thread(target=self._run)
        self._pump.start()

    def start(self) -> None:
        """Start the server, at the port that it had."""
        page = pack("text/html", render_live_page(self.publisher.describe("")))
        self._server = server = PageServer("127.0.0.1", self.port, page)
        self.port = int(server.server_address[1])
        self._threads.append(threading.Thread(target=server.serve_forever, args=(0.01,)))
        self._threads[-1].start()

    def stop(self) -> None:
        """Stop the server; the requests go on."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        while self._threads:
            self._threads.pop().join()

    @property
    def closed(self) -> bool:
        """Whether it has been ended."""
        return self._end.is_set()

    def close(self) -> None:
        """End it all."""
        self._end.set()
        self._pump.join()
        self.stop()
        self._writer.close()

    def write(self, count: int) -> None:
        """Add requests that have just ended."""
        for _ in range(count):
            number = self._writer.next_sequence()
            total_ns = (8 + number % 7) * MS
            route = ("/items/<int:id>", "/about", "/orders")[number % 3]
            if number % 50 == 42:
                total_ns, route = (80 + number % 40) * MS, "/orders"
            path = make_path(
                total_ns,
                at_ns=time.time_ns() - NOW_NS - total_ns,
                query_ns=total_ns // 4,
                number=number,
                route=route,
            )
            assert path.worker is not None
            alone = msgspec.structs.replace(path.worker, parent_id="", sequence=number)
            assert self._writer.append(encode(alone))

    def _run(self) -> None:
        while not self._end.wait(0.02):
            if self.writing.is_set():
                self.write(5)
            self.feed.read(time.time_ns())
            if self._server is not None:
                self.publisher.publish_to(self._server)


@pytest.fixture
def shop(spool: str) -> Iterator[Shop]:
    with contextlib.closing(Shop(spool)) as shop:
        yield shop


Open = Callable[..., Page]


@pytest.fixture
def open_live(browser: Browser) -> Iterator[Open]:
    """Return a function that opens a shop's page; a word on its console or a request elsewhere fails it."""
    complaints: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_shop(shop: Shop, *, forgiven: str = "\0", **options: Any) -> Page:
            url = f"http://127.0.0.1:{shop.port}/"
            context = stack.enter_context(contextlib.closing(browser.new_context(**options)))
            page = context.new_page()

            def complain(text: str) -> None:
                # A shop may be closed while its page is open.
                if forgiven not in text and not (shop.closed and "net::ERR_" in text):
                    complaints.append(text)

            def note_request(asked: str) -> None:
                if not asked.startswith(url):
                    complaints.append(f"request: {asked}")

            page.on("console", lambda message: complain(f"console: {message.text}"))
            page.on("pageerror", lambda error: complain(f"error: {error}"))
            page.on("request", lambda request: note_request(request.url))
            page.goto(url)
            page.wait_for_selector("html[data-ready]", state="attached")
            return page

        yield open_shop
    assert complaints == []


def count_updates(page: Page) -> int:
    count: int = page.evaluate("Number(document.documentElement.dataset.updates || 0)")
    return count


def see_updates(page: Page, more: int = SEVERAL) -> None:
    """Wait until the page has shown so many more figures."""
    page.wait_for_function(
        "count => Number(document.documentElement.dataset.updates || 0) >= count",
        arg=count_updates(page) + more,
        timeout=120_000,
    )


def count_requests(page: Page) -> int:
    return int((page.locator("#what").text_content() or "").split(" · ")[1].split(" ")[0].replace(",", ""))


def read_state(page: Page) -> str:
    return page.locator("#live").get_attribute("data-state") or ""


def open_moving(open_live: Open, shop: Shop, **options: Any) -> Page:
    """Open the page of a shop that has some requests already, and gets more."""
    shop.write(400)
    shop.writing.set()
    page = open_live(shop, **options)
    page.wait_for_selector("#routes tbody tr")
    return page


def drag(page: Page, left: float, top: float, right: float, bottom: float, *, release: bool = True) -> None:
    """Drag over a part of the heat map, all four as shares of its width and height."""
    # At once, since the picture is another one in the next moment.
    box = page.evaluate(
        "() => { const plot = document.querySelector('#heat .overlay');"
        " plot.scrollIntoView({block: 'center'});"
        " const {x, y, width, height} = plot.getBoundingClientRect();"
        " return {x, y, width, height}; }"
    )
    page.mouse.move(box["x"] + box["width"] * left, box["y"] + box["height"] * top)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * right, box["y"] + box["height"] * bottom, steps=4)
    if release:
        page.mouse.up()


def test_the_figures_move(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    seen = [count_requests(page)]
    for _ in range(3):
        see_updates(page)
        seen.append(count_requests(page))
    assert seen == sorted(set(seen))
    assert read_state(page) == "live"
    assert "the last 10 min of the spool" in page.locator("#live-state").inner_text()
    assert page.title() == "reqpath serve"
    headings = page.locator("h2").all_inner_texts()
    assert headings[:2] == ["The path", "Latency over time"]
    assert page.locator("#selected").inner_text().startswith("All ")


def test_they_are_those_that_the_server_sent(open_live: Open, shop: Shop) -> None:
    shop.write(300)
    page = open_live(shop)
    page.wait_for_selector("#routes tbody tr")
    see_all = (
        "() => Number(document.querySelector('#what').textContent.split(' · ')[1].split(' ')[0]) === 300"
    )
    page.wait_for_function(see_all)
    breakdown, _ = shop.feed.window.build()
    shown = page.locator("#latency dd").evaluate_all("all => all.map(each => Number(each.dataset.value))")
    total = breakdown.whole.total
    assert shown == [total.mean_ns, total.p50_ns, total.p90_ns, total.p99_ns, total.max_ns]
    assert page.locator("#routes tbody tr").count() == 3


def test_a_selection_of_latency_goes_on_in_what_comes(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    page.locator("#select-slow").click()
    first = int(page.locator("#selected strong").inner_text().split(" of ")[0])
    see_updates(page, 3 * SEVERAL)
    page.wait_for_function(
        "first => Number(document.querySelector('#selected strong').textContent.split(' of ')[0]) > first",
        arg=first,
    )
    # Only the slow ones, of one route, are in what is below.
    assert page.locator("#routes tbody tr").count() == 1
    assert page.locator("#heat .selection").is_visible()


def test_a_selection_of_time_stays_where_it_is(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    see_updates(page, 4 * SEVERAL)
    # An instant that is past, so that no request comes to it.
    drag(page, 0.0, 0.0, 0.3, 1.0)
    grid = "document.querySelector('#heat .soft').textContent"
    for _ in range(3):
        width = page.evaluate(grid).split(";")[0]
        text = page.locator("#selected").inner_text()
        see_updates(page)
        later = page.locator("#selected").inner_text()
        if page.evaluate(grid).split(";")[0] == width:
            assert later.split(" of ")[0] == text.split(" of ")[0]
            assert later.split("selected: ")[1] == text.split("selected: ")[1]
        assert " selected: " in later
        assert page.locator("#heat .selection").is_visible()
    page.locator("#clear").click()
    see_updates(page)
    assert page.locator("#selected").inner_text().startswith("All ")


def test_a_selection_that_time_has_left_behind_is_empty_and_not_another(open_live: Open, spool: str) -> None:
    with contextlib.closing(Shop(spool, window_ns=5 * S)) as shop:
        page = open_moving(open_live, shop)
        see_updates(page)
        drag(page, 0.0, 0.0, 0.4, 1.0)
        selected = page.locator("#selected")
        page.wait_for_function(
            "() => document.querySelector('#selected strong').textContent.startsWith('0 of ')"
        )
        text = selected.inner_text().split("selected: ")[1]
        see_updates(page)
        assert selected.inner_text().split("selected: ")[1] == text
        assert not page.locator("#heat .brush .selection").is_visible()
        assert page.locator("#requests .request").count() == 0
        page.locator("#clear").click()
        assert selected.inner_text().startswith("All ")


def test_while_the_mouse_is_held_down_nothing_moves(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    see_updates(page)
    drag(page, 0.1, 0.0, 0.6, 1.0, release=False)
    held = count_updates(page)
    requests = shop.feed.window.requests
    while shop.feed.window.requests < requests + 50:
        page.wait_for_timeout(20)
    assert count_updates(page) == held
    page.mouse.up()
    assert " selected: " in page.locator("#selected").inner_text()
    see_updates(page)
    assert " selected: " in page.locator("#selected").inner_text()


def open_request(page: Page, number: int) -> Locator:
    """Open one of the slowest requests, in one step: which one it is may change with each update."""
    request = page.locator("#requests .request").nth(number)
    trace = request.evaluate("each => { each.querySelector('summary').click(); return each.dataset.trace; }")
    return page.locator(f"#requests .request[data-trace='{trace}']")


def test_order_what_is_open_place_and_focus_stay(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    header = page.locator("#routes th", has_text="p99")
    header.locator("button").click()
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    opened = open_request(page, 2)
    opened.locator("svg[aria-label^=waterfall]").wait_for()
    header.locator("button").focus()
    page.locator("#differ").scroll_into_view_if_needed()
    page.evaluate("window.scrollTo(0, document.getElementById('routes').offsetTop - 120)")
    top = page.evaluate("document.getElementById('routes').getBoundingClientRect().top")
    see_updates(page, 4 * SEVERAL)
    assert header.get_attribute("aria-sort") == "ascending"
    assert opened.get_attribute("open") is not None
    assert opened.locator("svg[aria-label^=waterfall]").count() == 1
    assert page.evaluate("document.activeElement.textContent") == "p99"
    after = page.evaluate("document.getElementById('routes').getBoundingClientRect().top")
    assert after == pytest.approx(top, abs=1.5)


def test_a_request_that_was_opened_stays_until_it_is_closed(open_live: Open, spool: str) -> None:
    with contextlib.closing(Shop(spool, window_ns=5 * S)) as shop:
        page = open_moving(open_live, shop)
        opened = open_request(page, 1)
        page.wait_for_function(
            "() => document.getElementById('requests').textContent.includes('until closed')"
        )
        assert opened.get_attribute("open") is not None
        opened.locator("summary").click()
        see_updates(page)
        assert opened.count() == 0


def test_it_can_be_paused(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    see_updates(page)
    page.locator("#pause").click()
    assert read_state(page) == "paused"
    held, requests = count_updates(page), count_requests(page)
    before = shop.feed.window.requests
    while shop.feed.window.requests < before + 50:
        page.wait_for_timeout(20)
    assert (count_updates(page), count_requests(page)) == (held, requests)
    # What is on the page can still be used.
    page.locator("#select-slow").click()
    assert " selected: " in page.locator("#selected").inner_text()
    page.locator("#pause").click()
    see_updates(page)
    assert read_state(page) == "live"
    assert count_requests(page) > requests


def test_it_says_when_the_server_is_gone_and_when_it_is_back(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop, forgiven="net::ERR_")
    see_updates(page)
    shop.stop()
    page.wait_for_selector("#live[data-state=gone]")
    text = page.locator("#live-state").inner_text()
    assert text.startswith("The server has not answered since ")
    assert "the figures are of then" in text
    assert page.locator("#live").bounding_box() is not None
    shop.start()
    page.wait_for_function(
        "() => new Promise(done => { const strip = document.getElementById('live');"
        " if (strip.dataset.state !== 'gone') done(true);"
        " new MutationObserver(() => strip.dataset.state === 'back' && done(true))"
        ".observe(strip, {attributes: true}); })"
    )
    page.wait_for_selector("#live[data-state=live]")
    see_updates(page)


def test_before_there_is_a_spool_it_says_so_and_then_shows_it(open_live: Open, shop: Shop) -> None:
    page = open_live(shop)
    page.wait_for_function(
        "() => document.getElementById('sentence').textContent.startsWith('There is no spool at ')"
    )
    assert read_state(page) == "waiting"
    assert page.locator("section").count() == 0
    assert "reqpath demo" in page.locator("#advice").inner_text()
    assert page.locator("#live-state").inner_text().startswith("Waiting: the last 10 min of the spool")
    shop.write(50)
    page.wait_for_selector("#routes tbody tr")
    assert page.locator("#sentence").inner_text().startswith("50 requests")
    assert read_state(page) == "live"


def test_when_no_request_comes_any_more_the_last_figures_stay_and_are_called_so(
    open_live: Open, spool: str
) -> None:
    with contextlib.closing(Shop(spool, window_ns=8 * S)) as shop:
        shop.write(50)
        page = open_live(shop)
        page.wait_for_selector("#routes tbody tr")
        page.wait_for_selector("#live[data-state=waiting]")
        text = page.locator("#live-state").inner_text()
        assert text.startswith("No request has ended in the last 8 s.")
        assert text.endswith("The figures are the last ones.")
        assert page.locator("#routes tbody tr").count() == 3


@pytest.mark.parametrize("host", ["evil.localhost", "localhost.evil.localhost"])
def test_another_name_for_this_machine_is_refused(browser: Browser, shop: Shop, host: str) -> None:
    # Chromium takes any name below localhost for this machine, as a name server could have it for any name.
    with contextlib.closing(browser.new_context()) as context:
        response = context.new_page().goto(f"http://{host}:{shop.port}/")
        assert response is not None
        assert (response.status, response.text()[:32]) == (421, "This server is not called so. If")


def test_another_site_reads_nothing(browser: Browser, shop: Shop) -> None:
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        # A page of another origin, which is reachable under a name that the server has.
        page.route("http://other.example/", lambda route: route.fulfill(body="<h1>other</h1>"))
        page.goto("http://other.example/")
        outcome = page.evaluate(
            "url => fetch(url).then(answer => answer.text(), () => 'refused')",
            f"http://127.0.0.1:{shop.port}/data",
        )
        assert outcome == "refused"


def test_the_page_does_not_grow(open_live: Open, spool: str) -> None:
    with contextlib.closing(Shop(spool, window_ns=4 * S)) as shop:
        page = open_moving(open_live, shop)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")

        def measure() -> dict[str, float]:
            session.send("HeapProfiler.collectGarbage")
            metrics = session.send("Performance.getMetrics")["metrics"]
            return {metric["name"]: metric["value"] for metric in metrics}

        # Past the first window: from now on as many are forgotten as come.
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            see_updates(page, 1)
        page.locator("#select-slow").click()
        see_updates(page, 20)
        before = measure()
        see_updates(page, 80)
        after = measure()
        assert after["JSHeapUsedSize"] - before["JSHeapUsedSize"] < 3_000_000
        assert after["Nodes"] < 1.5 * before["Nodes"]
        assert after["JSEventListeners"] < 1.5 * before["JSEventListeners"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(open_live: Open, shop: Shop, scheme: str) -> None:
    page = open_moving(
        open_live, shop, viewport={"width": 400, "height": 800}, has_touch=True, color_scheme=scheme
    )
    see_updates(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    box = page.locator("#live").bounding_box()
    assert box is not None
    # It is in sight wherever one is on the page.
    assert box["y"] + box["height"] == pytest.approx(800, abs=1)


def test_what_goes_on_by_itself_is_not_read_out(open_live: Open, shop: Shop) -> None:
    page = open_moving(open_live, shop)
    see_updates(page)
    assert page.locator("#selected").get_attribute("aria-live") == "off"
    page.locator("#select-slow").click()
    assert page.locator("#live-state").get_attribute("role") == "status"
    words = page.locator("#live-state").inner_text()
    see_updates(page)
    assert page.locator("#live-state").inner_text() == words


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)></script>", "__proto__"])
def test_hostile_text_is_text_in_later_figures_too(open_live: Open, shop: Shop, text: str) -> None:
    page = open_moving(open_live, shop)
    number = shop._writer.next_sequence()
    total_ns = 900 * MS
    worker = make_path(
        total_ns,
        at_ns=time.time_ns() - NOW_NS - total_ns,
        query_ns=MS,
        number=number,
        route=f"/{text}",
        statement=text,
    ).worker
    assert worker is not None
    shop._writer.append(encode(msgspec.structs.replace(worker, parent_id="", sequence=number)))
    page.wait_for_function(
        "text => document.getElementById('routes').textContent.includes(text)", arg=f"GET /{text}"
    )
    assert page.locator("img, iframe").count() == 0
