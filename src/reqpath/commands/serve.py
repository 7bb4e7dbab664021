"""`reqpath serve`: the report's page of the last minutes, live in the browser."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from reqpath.collect.join import BATCH_BYTES
from reqpath.commands.page_server import PageServer, pack
from reqpath.commands.shared import ANY_PATH, check_extra
from reqpath.commands.sources import parse_since
from reqpath.commands.top import follow
from reqpath.errors import ConfigurationError, SpoolError
from reqpath.path import RequestPath
from reqpath.render.units import format_count, format_instant
from reqpath.settings import default_spool
from reqpath.spool import SpoolLosses, SpoolReader

if TYPE_CHECKING:
    from reqpath.analyse.recent import RecentWindow

#: No well-known one, and none of those that a demo uses.
PORT: Final = 8370
_S: Final = 1_000_000_000
_LEAST_NS: Final = 10 * _S
_MOST_NS: Final = 24 * 3600 * _S
#: How often the spool is looked at, and for how long it is read at one time, s.
_READ_EVERY_S: Final = 0.25
_READ_S: Final = 0.5
_BATCH: Final = 2_048
#: How often a page asks, and how often it is given other figures at most, s.
ASK_EVERY_S: Final = 1.0
REFRESH_S: Final = 2.0
#: Of a core, for making figures.
_SHARE: Final = 0.2
#: Figures are made for those who asked in the last seconds.
_WATCHED_S: Final = 10.0
#: Files that were written to last so long before the window are not read, ns.
_SLACK_NS: Final = 60 * _S


@click.command(
    name="serve",
    epilog="""\b
Examples:
  reqpath serve
  reqpath serve /run/reqpath --since 5m --port 0
  reqpath serve --route '/items/<int:id>' --jaeger http://localhost:16686
""",
)
@click.argument("spool", required=False, type=ANY_PATH)
@click.option(
    "--since",
    metavar="WHEN",
    default="15m",
    show_default=True,
    help="How far back the figures go at each instant: 30s, 10m, 2h.",
)
@click.option("--route", metavar="ROUTE", help="Only this route: '/items/<int:id>', 'GET /items', '/items*'.")
@click.option("--jaeger", metavar="URL", help="The Jaeger that its requests link to.")
@click.option(
    "--port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port to listen on; 0 finds a free one.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on. Any but a loopback one shows the page to other machines.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="A further name that the server answers to, such as a proxy's. Can be repeated.",
)
def command(
    *,
    spool: str | None,
    since: str,
    route: str | None,
    jaeger: str | None,
    port: int,
    host: str,
    names: tuple[str, ...],
) -> None:
    """Serve the report's page of the last minutes, live, to a browser on this machine.

    SPOOL is the directory that the app writes to: REQPATH_SPOOL, or one in the temporary directory; it may
    be there later. Ctrl-C ends it. Whoever has an account on this machine can open the page meanwhile.
    """
    check_extra("report", ["rich", "numpy"])
    from reqpath.analyse.recent import RecentWindow
    from reqpath.render.page_report import render_live_page

    if jaeger is not None and not jaeger.startswith(("http://", "https://")):
        raise click.UsageError(f"--jaeger is {jaeger!r}; it takes an address such as http://localhost:16686")
    feed = Feed(spool or default_spool(), RecentWindow(parse_window(since)), route)
    feed.open()
    publisher = Publisher(feed, None if jaeger is None else jaeger.rstrip("/"))
    page = pack("text/html", render_live_page(publisher.describe("")))
    with contextlib.suppress(KeyboardInterrupt), PageServer(host, port, page, names) as server:
        if not server.is_private:
            click.echo(
                f"warning: every machine that reaches {host} can read this page, without a password and in "
                "the clear: routes, statements, clients' addresses, what the app noted. Without --host it is "
                "for this machine alone, and by ssh -L for yours (docs/serve.md).",
                err=True,
            )
        if feed.problem:
            click.echo(" ".join(feed.problem), err=True)
        click.echo(f"{server.url}  {publisher.what}; Ctrl-C ends it")
        run(feed, publisher, server)


def parse_window(text: str) -> int:
    """Return the length of the window, ns. Raises: ConfigurationError."""
    # An instant of the calendar lies after the epoch, and so many seconds ago before it.
    window_ns = -parse_since(text, 0)
    if not _LEAST_NS <= window_ns <= _MOST_NS:
        raise ConfigurationError(f"--since is {text!r}; here it takes 10s to 24h, such as 90s, 15m or 2h")
    return window_ns


def run(feed: Feed, publisher: Publisher, server: PageServer) -> None:
    """Read and publish until Ctrl-C, which ends the server's connections too."""
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="reqpath-serve")
    said = feed.problem
    try:
        thread.start()
        while True:
            more = feed.read(time.time_ns())
            publisher.publish_to(server)
            if feed.problem != said:
                said = feed.problem
                click.echo(" ".join(said or (f"The spool {feed.directory} is there.",)), err=True)
            if not more:
                time.sleep(_READ_EVERY_S)
    except KeyboardInterrupt:
        pass
    finally:
        if thread.ident is not None:
            server.shutdown()
            thread.join()


class Feed:
    """Takes what a spool has had added into a window; waits for the spool where there is none yet."""

    def __init__(self, directory: str, window: RecentWindow, route: str | None) -> None:
        self.directory = os.path.abspath(directory)
        self.window = window
        self.route = route
        #: Why nothing is read, and what to do.
        self.problem: tuple[str, str] | None = None
        #: Whether all that the spool had at first has been read.
        self.caught_up = False
        self._reader: SpoolReader | None = None
        self._follow: Callable[[], Iterator[RequestPath]]
        self._coming: Iterator[RequestPath] | None = None
        self._lost_before = 0

    def open(self) -> bool:
        """Open the spool; return whether it is there. Raises: SpoolError when it can't be read."""
        try:
            os.lstat(self.directory)
        except FileNotFoundError:
            self.problem = (
                f"There is no spool at {self.directory} yet.",
                "It is shown as soon as the app has made it, with its first request. If the app's "
                "REQPATH_SPOOL is another directory, name that one: reqpath serve SPOOL. For a first look: "
                "reqpath demo.",
            )
            return False
        except OSError:
            # A directory above it can't be entered; the reader says so.
            pass
        reader = SpoolReader(self.directory, batch_bytes=BATCH_BYTES)
        reader.skip(time.time_ns() - self.window.window_ns - _SLACK_NS)
        self._reader, self._follow, self.problem = reader, follow(reader, self.route), None
        return True

    def read(self, now_ns: int) -> bool:
        """Take what came; return whether there is more, which is left for the next call."""
        if self._reader is None:
            try:
                if not self.open():
                    return False
            except SpoolError as error:
                # It may be put right while this waits.
                self.problem = f"{error}.", "It is tried again."
                return False
        assert self._reader is not None
        until_s = time.monotonic() + _READ_S
        if self._coming is None:
            self._coming = self._follow()
        while batch := list(islice(self._coming, _BATCH)):
            self.window.extend(batch, now_ns)
            if time.monotonic() > until_s:
                return True
        self._coming = None
        if not self.caught_up:
            # What was lost before, or skipped, is no news.
            self.caught_up, self._lost_before = True, self._reader.losses.lost_records
        self.window.forget(now_ns)
        return False

    def losses(self) -> SpoolLosses:
        """Return what was lost since the spool was read for the first time."""
        if self._reader is None:
            return SpoolLosses()
        lost = self._reader.losses
        before = self._lost_before if self.caught_up else lost.lost_records
        return SpoolLosses(max(0, lost.lost_records - before), foreign_files=dict(lost.foreign_files))


class Publisher:
    """Makes the figures of a feed for those who watch, as often as `share` of a core allows."""

    def __init__(
        self,
        feed: Feed,
        jaeger: str | None,
        *,
        refresh_s: float = REFRESH_S,
        ask_every_s: float = ASK_EVERY_S,
        share: float = _SHARE,
    ) -> None:
        from reqpath.render.page_report import format_width

        self._feed = feed
        self._jaeger = jaeger
        self._refresh_s = refresh_s
        self._ask_every_s = ask_every_s
        self._share = share
        self._width = format_width(feed.window.window_ns)
        #: What the figures are of, within a sentence.
        self.what = f"the last {self._width} of the spool {feed.directory}"
        if feed.route is not None:
            self.what += f", {feed.route} alone"
        # The page may still be open from a server before this one.
        self._id = f"{time.time_ns():x}"
        self._count = 0
        self._next_s = 0.0
        self._published: tuple[object, ...] | None = None

    def publish_to(self, server: PageServer) -> None:
        """Publish the figures if somebody waits for them, they are other ones, and it is time."""
        now_s = time.monotonic()
        if now_s < self._next_s or now_s - server.asked_s > _WATCHED_S:
            return
        feed = self._feed
        state = (feed.window.version, feed.problem, feed.caught_up, feed.losses().lost_records)
        if state == self._published:
            return
        begin_s = time.thread_time()
        self._count += 1
        tag = f"{self._id}-{self._count}"
        server.publish(tag, pack("application/json", self.build(tag)))
        self._published = state
        cost_s = time.thread_time() - begin_s
        self._next_s = max(now_s + self._refresh_s, time.monotonic() + cost_s * (1 / self._share - 1))

    def build(self, tag: str) -> str:
        """Build the figures, as JSON."""
        from reqpath.render.page import encode_data
        from reqpath.render.page_report import build_report_data

        live = self.describe(tag)
        if not self._feed.window.requests:
            return encode_data({"report": {"requests": 0}, "live": live})
        breakdown, cube = self._feed.window.build(self._feed.losses())
        return encode_data({**build_report_data(breakdown, cube, jaeger=self._jaeger), "live": live})

    def describe(self, tag: str) -> dict[str, Any]:
        """Return what the page says of the figures, and how it asks for them."""
        waiting, advice = (None, "") if self._feed.window.requests else self._explain_none()
        offset = time.localtime().tm_gmtoff
        return {
            "tag": tag,
            "what": self.what,
            # Why there is no request, and what to do.
            "waiting": waiting,
            "advice": advice,
            "note": self._describe_limits(),
            "every_ms": round(self._ask_every_s * 1000),
            "offset_min": round(offset / 60),
        }

    def _explain_none(self) -> tuple[str, str]:
        feed = self._feed
        if feed.problem:
            return feed.problem
        if not feed.caught_up:
            return "The spool is being read.", ""
        which = "request" if feed.route is None else f"request of {feed.route}"
        advice = "The next one is shown as soon as it has ended."
        if feed.window.newest_ns is not None:
            newest = format_instant(feed.window.newest_ns, milliseconds=False)
            advice = f"The newest ended at {newest}; reqpath report has older ones. {advice}"
        return f"No {which} has ended in the last {self._width}.", advice

    def _describe_limits(self) -> str | None:
        feed = self._feed
        if feed.window.requests and not feed.caught_up:
            return "The spool is still being read."
        if feed.window.cut:
            most = format_count(feed.window.max_requests, "request")
            return f"At most {most} are held, the newest, so they are of less time."
        return None
