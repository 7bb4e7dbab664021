"""The live screen, by keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from textual.pilot import Pilot

from reqpath.path import RequestPath
from reqpath.render.top import Read, Top, Waterfall
from tests.factories import NOW_NS, make_path, make_shop_paths, make_writer_info

MS = 1_000_000
S = 1_000_000_000

Script = Callable[[Pilot[None]], Awaitable[None]]


class Feed:
    """What is read: each call takes what was put in since the last one."""

    def __init__(self, paths: list[RequestPath]) -> None:
        self.paths = paths
        self.now_ns = NOW_NS + 5 * S
        self.lost = 0

    def read(self) -> Iterator[RequestPath]:
        paths, self.paths = self.paths, []
        yield from paths


def run(feed: Feed, script: Script, *, size: tuple[int, int] = (80, 24), read: Read | None = None) -> None:
    app = Top(
        read or feed.read,
        place="the spool /run/reqpath",
        advice="Name another one.",
        lost=lambda: feed.lost,
        now_ns=lambda: feed.now_ns,
    )

    async def drive() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(pilot)

    asyncio.run(drive())


def look(pilot: Pilot[None]) -> str:
    """Return what is on the screen."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


async def see(pilot: Pilot[None], text: str, *, without: str | None = None) -> str:
    """Return the screen once a text is on it, and another one is not; it is drawn once a second."""
    for _ in range(600):
        await pilot.pause(0.05)
        screen = look(pilot)
        if text in screen and (without is None or without not in screen):
            return screen
    raise AssertionError(f"not on the screen: {text}\n{look(pilot)}")


def test_the_screen_of_80_by_24_has_everything() -> None:
    async def script(pilot: Pilot[None]) -> None:
        lines = [" ".join(line.split()) for line in (await see(pilot, "slow 1 %")).splitlines()]
        assert len(lines) == 24
        assert lines[0].startswith("100/s p50 9.3 ms p99 10 ms max 89 ms 1 error queue 0.2 10 s to ")
        assert lines[2] == "tier rate mean p99 slow 1 % share mean, s by s"
        assert [line.split()[1] for line in lines[3:8]] == ["nginx", "queue", "uwsgi", "flask", "mysql"]
        assert lines[7].startswith("M mysql 67/s 1.3 ms 1.0 ms 60 ms 13 %")
        assert lines[8] == "worker ▾ busy rate queue gil"
        assert [line.split()[0] for line in lines[9:11]] == ["1", "2"]
        assert lines[11] == "slowest ▾ ago most in route"
        assert lines[12] == "89.4 ms 0 s 201 M mysql.query 54 ms POST /orders"
        assert "space pause" in lines[23]

    run(Feed(make_shop_paths(1_000)), script)


def test_enter_opens_the_request_under_the_cursor_and_escape_goes_back() -> None:
    slowest = sorted(make_shop_paths(1_000), key=lambda path: -path.timing.total_ns)

    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "POST /orders")
        await pilot.press("down", "down", "enter")
        assert f"trace {slowest[2].trace_id}" in await see(pilot, "INSERT INTO")
        assert isinstance(pilot.app.screen, Waterfall)
        assert "pause" not in look(pilot)
        await pilot.press("escape")
        await see(pilot, "most in")
        await pilot.press("up", "enter")
        await see(pilot, f"trace {slowest[1].trace_id}")
        await pilot.press("q")
        await see(pilot, "most in")
        assert pilot.app.is_running

    run(Feed(make_shop_paths(1_000)), script)


def test_pause_keeps_what_is_shown_while_it_reads_on() -> None:
    feed = Feed([make_path(20 * MS, at_ns=4 * S)])

    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "20.0 ms")
        await pilot.press("space")
        await see(pilot, "PAUSED")
        feed.paths.append(make_path(70 * MS, at_ns=4 * S, number=1))
        while feed.paths:
            await pilot.pause(0.05)
        await pilot.pause(1.2)
        assert "70.0 ms" not in look(pilot)
        await pilot.press("space")
        assert "PAUSED" not in await see(pilot, "70.0 ms")

    run(feed, script)


def test_r_shows_routes_and_o_orders_them() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "most in")
        await pilot.press("r")
        screen = await see(pilot, "of time ▾")
        assert "most in" not in screen
        assert screen.index("GET /items/<int:id>") < screen.index("GET /about") < screen.index("POST /orders")
        await pilot.press("o", "o")
        screen = await see(pilot, "p99 ▾")
        assert screen.index("POST /orders") < screen.index("GET /about")
        await pilot.press("r")
        await see(pilot, "most in")

    run(Feed(make_shop_paths(1_000)), script)


def test_o_orders_the_slowest_requests_by_their_age() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "slowest ▾")
        await pilot.press("o")
        lines = (await see(pilot, "ago ▾")).splitlines()
        ages = [int(line.split()[2]) for line in lines[12:22]]
        assert ages == sorted(ages)

    run(Feed(make_shop_paths(1_000)), script)


def test_tab_goes_to_the_workers_and_o_orders_these() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "worker ▾")
        await pilot.press("shift+tab", "o")
        assert "slowest ▾" in await see(pilot, "busy ▾")

    run(Feed(make_shop_paths(1_000)), script)


def test_workers_that_are_out_of_sight_are_counted() -> None:
    paths = [
        RequestPath(path.worker, make_writer_info(worker=number), path.nginx)
        for number, path in enumerate(make_shop_paths(12))
    ]

    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "12 workers ▾")

    run(Feed(paths), script)


def test_w_changes_the_window() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "10 s to")
        for seconds in (30, 60, 5):
            await pilot.press("w")
            await see(pilot, f" {seconds} s to")

    run(Feed(make_shop_paths(1_000)), script)


def test_q_quits() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("q")
        await pilot.pause()
        assert not pilot.app.is_running

    run(Feed([]), script)


def test_an_empty_spool_says_what_to_do_until_a_request_comes() -> None:
    feed = Feed([])

    async def script(pilot: Pilot[None]) -> None:
        assert "Name another one." in await see(pilot, "waiting for requests in the spool /run/reqpath")
        await pilot.press("enter", "down", "o", "r", "r", "w", "space", "space")
        feed.paths.append(make_path(20 * MS, at_ns=4 * S))
        # What the screen says is drawn at once, what it no longer says goes with the next layout.
        await see(pilot, "20.0 ms", without="Name another one.")

    run(feed, script)


def test_no_request_for_a_while_says_when_the_newest_was() -> None:
    feed = Feed([make_path(20 * MS)])
    feed.now_ns += 3_600 * S

    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "no request in the last 10 s   the newest at 2027-01-15")

    run(feed, script)


def test_losses_since_the_start_are_shown() -> None:
    feed = Feed(make_shop_paths(100))
    feed.lost = 7

    async def script(pilot: Pilot[None]) -> None:
        assert "lost" not in await see(pilot, "most in")
        feed.lost = 10
        await see(pilot, "3 lost")

    run(feed, script)


def test_it_draws_for_any_size() -> None:
    async def script(pilot: Pilot[None]) -> None:
        for width, height in ((200, 60), (40, 10), (20, 4), (80, 24)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            await pilot.press("down", "enter")
            await pilot.pause()
            await pilot.press("escape")
            assert all(len(line) <= width for line in look(pilot).splitlines())
        await see(pilot, "most in")

    run(Feed(make_shop_paths(1_000)), script)


def test_the_cursor_stays_with_its_request() -> None:
    feed = Feed([make_path((20 + i) * MS, at_ns=4 * S, number=i, route=f"/{i}") for i in range(9)])

    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "GET /8")
        await pilot.press("down", "down")
        feed.paths.append(make_path(90 * MS, at_ns=4 * S, number=20))
        await see(pilot, "90.0 ms")
        await pilot.press("enter")
        await see(pilot, "GET /6  200  26.0 ms")

    run(feed, script)


def test_a_cursor_beyond_the_last_line_scrolls() -> None:
    paths = [make_path((50 - i) * MS, at_ns=4 * S, number=i, route=f"/route{i}") for i in range(20)]

    async def script(pilot: Pilot[None]) -> None:
        assert "/route19" not in await see(pilot, "/route0")
        await pilot.press("end")
        assert "/route0 " not in await see(pilot, "/route19")
        await pilot.press("home")
        await see(pilot, "/route0")
        await pilot.press("pagedown", "pagedown")
        await see(pilot, "/route19")

    run(Feed(paths), script)


def test_hostile_text_is_shown_as_text() -> None:
    evil = "/[bold]x[/]\x1b[2J\x07\u202eevil\n" + "é" * 10_000
    path = make_path(20 * MS, at_ns=4 * S, query_ns=MS, route=evil, path=evil, statement=evil)

    async def script(pilot: Pilot[None]) -> None:
        screen = await see(pilot, "GET /[bold]x[/]")
        assert not set(screen) & set("\x1b\x07\u202e")
        await pilot.press("r")
        await see(pilot, "GET /[bold]")
        await pilot.press("r", "enter")
        screen = await see(pilot, "GET /[bold]x[/]�[2J��evil")
        await pilot.press("end")
        screen += await see(pilot, "database operations")
        assert not set(screen) & set("\x1b\x07\u202e")
        assert "[bold]x[/]" in screen

    run(Feed([path]), script)


def test_a_timer_that_outlives_the_screen_draws_nothing() -> None:
    async def script(pilot: Pilot[None]) -> None:
        await see(pilot, "most in")
        await pilot.app.screen.query("*").remove()
        assert isinstance(pilot.app, Top)
        pilot.app._refresh_figures()

    run(Feed(make_shop_paths(50)), script)


def test_a_long_backlog_does_not_keep_keys_from_being_answered() -> None:
    paths = make_shop_paths(1_000)

    def endless() -> Iterator[RequestPath]:
        while True:
            yield from paths

    async def script(pilot: Pilot[None]) -> None:
        await pilot.press("w")
        assert "30 s to" in await see(pilot, "most in")

    run(Feed([]), script, read=endless)
