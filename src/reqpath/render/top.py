"""The live screen of `reqpath top`, by Textual: the last seconds' path, tiers, workers and slowest requests.

It is handed what reads the requests, and knows nothing of spools. It reads a few times a second, in slices
short enough for keys to be answered in between, and draws once a second. Whatever comes from a request is
cleaned and never read as markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Final, NamedTuple

from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Footer, Static

from reqpath.analyse.figures import resolution_of
from reqpath.analyse.live import KEPT_S, LiveFigures, LiveTier, LiveWindow
from reqpath.path import RequestPath
from reqpath.render.palette import PALETTE
from reqpath.render.text import build_bar
from reqpath.render.units import (
    clean,
    format_count,
    format_duration,
    format_instant,
    format_plus_minus,
    format_rate,
    format_share,
)
from reqpath.render.waterfall import build_waterfall
from reqpath.tiers import INDEX, SEGMENTS

#: Lengths of the window, s.
WINDOWS_S: Final = (5, 10, 30, KEPT_S)
_READ_EVERY_S: Final = 0.25
#: What one slice of reading may take, s, and of how many requests it is at least.
_SLICE_S: Final = 0.02
_SLICE: Final = 64
_DIM: Final = "dim"
_RED: Final = "red"
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SORTED: Final = " ▾"

#: Yields the requests that came since the last call.
Read = Callable[[], Iterator[RequestPath]]


class Lines(Widget):
    """Lines of text, each of which is drawn anew only when it changes."""

    DEFAULT_CSS = "Lines { height: auto; }"

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self._lines: list[Text] = []

    def show(self, lines: Sequence[Text]) -> None:
        """Show these in place of those."""
        before, self._lines = self._lines, list(lines)
        if len(before) != len(self._lines):
            self.refresh(layout=True)
            return
        self.refresh_rows([row for row, line in enumerate(self._lines) if line != before[row]])

    def refresh_rows(self, rows: Sequence[int]) -> None:
        """Draw these lines anew."""
        if rows:
            self.refresh(*(Region(0, row, self.size.width, 1) for row in rows))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of lines."""
        return len(self._lines)

    def render_line(self, y: int) -> Strip:
        """Return one line."""
        line = self._lines[y] if y < len(self._lines) else Text()
        return self._render_text(line)

    def _render_text(self, line: Text, style: Style | None = None) -> Strip:
        segments = list(line.render(self.app.console))
        strip = Strip(segments).adjust_cell_length(self.size.width)
        return strip if style is None else strip.apply_style(style)


class Rows(Lines, can_focus=True):
    """A table with a cursor: its first line stays, the others scroll."""

    DEFAULT_CSS = "Rows { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "move(-1000)", show=False),
        Binding("end", "move(1000)", show=False),
    ]

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.cursor = 0
        #: How often its order was changed.
        self.order = 0
        self._top = 0

    def show(self, lines: Sequence[Text]) -> None:
        """Show these; the first is the head."""
        super().show(lines)
        self._move_to(self.cursor)

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self._move_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move the cursor by what is seen at one time."""
        self._move_to(self.cursor + pages * max(1, self.size.height - 1))

    def move_to(self, row: int) -> None:
        """Move the cursor to a row, from 0."""
        self._move_to(row)

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.refresh()

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        self._move_to(self.cursor)

    def refresh_rows(self, rows: Sequence[int]) -> None:
        """Draw these lines anew, as far as they are in sight."""
        super().refresh_rows([row - self._top if row else 0 for row in rows if not row or row > self._top])

    def render_line(self, y: int) -> Strip:
        """Return one line of what is in sight."""
        row = y if y == 0 else y + self._top
        if row >= len(self._lines):
            return Strip.blank(self.size.width)
        cursor = row == self.cursor + 1 and self.has_focus
        return self._render_text(self._lines[row], Style(reverse=True) if cursor else None)

    def _move_to(self, row: int) -> None:
        before = (self.cursor, self._top)
        self.cursor = max(0, min(row, len(self._lines) - 2))
        seen = max(1, self.size.height - 1)
        self._top = max(
            0, min(max(self._top, self.cursor - seen + 1), self.cursor, len(self._lines) - 1 - seen)
        )
        if (self.cursor, self._top) != before:
            self.refresh()


class _Column(NamedTuple):
    label: str
    width: int
    right: bool = True


class Top(App[None]):
    """The screen."""

    TITLE = "reqpath top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #message { height: 1fr; padding: 1 0; }
    #workers { height: auto; max-height: 25%; }
    Waterfall VerticalScroll { height: 1fr; scrollbar-size: 1 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "open", priority=True),
        Binding("space", "pause", "pause"),
        Binding("o", "order", "order"),
        Binding("r", "routes", "routes"),
        Binding("w", "window", "window"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", show=False, priority=True),
    ]

    def __init__(
        self,
        read: Read,
        *,
        place: str,
        advice: str,
        lost: Callable[[], int],
        now_ns: Callable[[], int] = time.time_ns,
        colour: bool = True,
    ) -> None:
        """`lost` returns how many records were lost so far; `place` and `advice` are of what is read."""
        super().__init__(ansi_color=True)
        self._read, self._lost, self._now_ns = read, lost, now_ns
        self._place, self._advice = place, advice
        self._colour = colour
        self._window = LiveWindow()
        self._reading: Iterator[RequestPath] | None = None
        #: Until when all is read, and when the reading began that is under way.
        self._read_ns = self._begun_ns = now_ns()
        self._caught_up = False
        self._lost_before = 0
        self._figures: LiveFigures | None = None
        self._seconds = WINDOWS_S[1]
        self._paused = False
        self._shown: tuple[RequestPath, ...] = ()

    def compose(self) -> ComposeResult:
        """Compose the screen: what does not scroll above what does."""
        yield Lines("head")
        yield Static(id="message")
        for name in ("workers", "requests", "routes"):
            yield Rows(name)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read."""
        self.theme = "ansi-dark"
        self._rows("routes").display = False
        self._rows("requests").focus()
        self.set_interval(_READ_EVERY_S, self._take)
        self.set_interval(1.0, self._refresh_figures)
        self._take()
        self._refresh_figures()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the keys of this screen off another."""
        return len(self.screen_stack) < 2 or action == "quit"

    def action_pause(self) -> None:
        """Keep what is shown, or go on."""
        self._paused = not self._paused
        self._refresh_figures()

    def action_window(self) -> None:
        """Take the next length of the window."""
        self._seconds = WINDOWS_S[(WINDOWS_S.index(self._seconds) + 1) % len(WINDOWS_S)]
        self._refresh_figures(also_paused=True)

    def action_routes(self) -> None:
        """Show routes in place of the slowest requests, or these again."""
        routes, requests = self._rows("routes"), self._rows("requests")
        routes.display = requests.display
        requests.display = not routes.display
        (routes if routes.display else requests).focus()
        self._draw()

    def action_order(self) -> None:
        """Sort the table that has the focus by its next column."""
        if isinstance(self.focused, Rows):
            self.focused.order += 1
            self._draw()

    def action_open(self) -> None:
        """Show the request under the cursor as a waterfall."""
        requests = self._rows("requests")
        if requests.display and requests.cursor < len(self._shown):
            self.push_screen(Waterfall(self._shown[requests.cursor], colour=self._colour))

    def _rows(self, name: str) -> Rows:
        return self.query_one(f"#{name}", Rows)

    def _take(self) -> None:
        """Read for a short time; what is left, soon after."""
        until_s = time.monotonic() + _SLICE_S
        now_ns = self._now_ns()
        if self._reading is None:
            self._reading, self._begun_ns = self._read(), now_ns
        while chunk := list(islice(self._reading, _SLICE)):
            self._window.extend(chunk, now_ns)
            if time.monotonic() > until_s:
                self.set_timer(0.005, self._take)
                return
        self._reading, self._read_ns = None, self._begun_ns
        if not self._caught_up:
            # What was lost before is no news.
            self._caught_up, self._lost_before = True, self._lost()
            self._refresh_figures()

    def _refresh_figures(self, *, also_paused: bool = False) -> None:
        if self._figures is None or not self._paused or also_paused:
            history = max(8, min(KEPT_S, self.size.width - 50))
            self._figures = self._window.build(self._read_ns, self._seconds, history=history)
        self._draw()

    def _draw(self) -> None:
        figures = self._figures
        if figures is None or len(self.screen_stack) > 1:
            return
        try:
            workers, requests, routes = (self._rows(name) for name in ("workers", "requests", "routes"))
            message, head = self.query_one("#message", Static), self.query_one("#head", Lines)
        except NoMatches:
            # At the end the timers outlive what they draw.
            return
        width = self.size.width
        empty = figures.newest_ns is None
        if message.display != empty:
            message.display, workers.display = empty, not empty
        if empty:
            waiting = (
                f"waiting for requests in {self._place}" if self._caught_up else f"reading {self._place}"
            )
            head.show([Text(clean(waiting, 500), style="bold")])
            message.update(Text(clean(self._advice, 1_000), style=_DIM))
            return
        lost = self._lost() - self._lost_before if self._caught_up else 0
        head.show(
            [
                build_head(figures, width, paused=self._paused, lost=lost),
                build_bar(figures.parts, width, colour=self._colour),
                *build_tiers(figures, width),
            ]
        )
        workers.show(build_workers(figures, width, workers.order))
        if routes.display:
            routes.show(build_routes(figures, width, routes.order))
            return
        chosen = self._shown[requests.cursor] if requests.cursor < len(self._shown) else None
        moved = requests.cursor > 0
        self._shown, lines = build_requests(figures, width, requests.order)
        requests.show(lines)
        if moved and chosen in self._shown:
            # The cursor stays with its request, but at the top it stays at the top.
            requests.move_to(self._shown.index(chosen))


class Waterfall(Screen[None]):
    """One request."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "close", "back", priority=True),
        Binding("q", "close", "back", show=False),
    ]

    def __init__(self, path: RequestPath, *, colour: bool) -> None:
        super().__init__()
        self._path = path
        self._colour = colour

    def compose(self) -> ComposeResult:
        """Compose it: the page of `reqpath trace`, to scroll."""
        with VerticalScroll():
            yield Static(id="page")
        yield Footer(compact=True, show_command_palette=False)

    def on_resize(self) -> None:
        """Draw for the new size."""
        page = build_waterfall(self._path, max(40, self.size.width - 2), colour=self._colour)
        self.query_one("#page", Static).update(page)

    def action_close(self) -> None:
        """Go back."""
        self.dismiss()


def build_head(figures: LiveFigures, width: int, *, paused: bool, lost: int) -> Text:
    """Return the first line: rate, latency, errors, the queue, the time."""
    total = figures.total
    parts: list[tuple[str, str]] = []
    if paused:
        parts.append(("PAUSED  ", "bold reverse"))
    if not total.requests:
        newest = format_instant(figures.newest_ns or 0, milliseconds=False)
        parts.append((f"no request in the last {figures.seconds} s", "bold"))
        parts.append((f"   the newest at {newest}", _DIM))
        return _cut(Text.assemble(*parts), width)
    parts.append((f"{format_rate(total.requests / figures.seconds)}", "bold"))
    for name, ns in (("p50", total.p50_ns), ("p99", total.p99_ns), ("max", total.max_ns)):
        parts += [(f"  {name} ", _DIM), (format_duration(ns, total.resolution_ns, digits=2), "")]
    if total.errors:
        parts.append((f"  {format_count(total.errors, 'error')}", _RED))
    if lost:
        parts.append((f"  {lost:,} lost", _RED))
    text = Text.assemble(*parts)
    clock = format_instant(figures.now_ns, date=False, milliseconds=False)
    for end in (
        f"queue {total.waiting:.1f}  {figures.seconds} s to {clock}",
        f"{figures.seconds} s to {clock}",
        clock,
    ):
        if len(text) + 2 + len(end) <= width:
            text.append(" " * (width - len(text) - len(end)))
            text.append(end, style=_DIM)
            break
    return _cut(text, width)


def build_tiers(figures: LiveFigures, width: int) -> list[Text]:
    """Return the tiers with their rates and latencies, and their means over the last seconds."""
    columns = [
        _Column("tier", 10, right=False),
        *(_Column(label, 8) for label in ("rate", "mean", "p99", "slow 1 %")),
        _Column("share", 6),
        _Column("mean, s by s", max(8, width - 53), right=False),
    ]
    lines = [_build_labels(columns, "")]
    for tier in figures.tiers:
        letter, colour = PALETTE[tier.name]
        resolution_ns = 1 if tier.name in ("flask", "app", "mysql") else figures.total.resolution_ns
        lines.append(
            _build_line(
                columns,
                Text.assemble((letter, colour), f" {tier.name}"),
                Text(format_rate(tier.requests / figures.seconds)),
                *(
                    Text(format_duration(ns, resolution_ns, digits=2))
                    for ns in (tier.mean_ns, tier.p99_ns, tier.slowest_ns)
                ),
                Text(format_share(tier.share)),
                Text(build_spark(tier, columns[-1].width), style=colour),
            )
        )
    return lines


def build_spark(tier: LiveTier, width: int) -> str:
    """Return a tier's history as small bars, each of its height's share of the highest."""
    history = tier.history_ns[-width:]
    highest_ns = max((ns for ns in history if ns), default=1.0)
    return "".join(
        " " if ns is None else _SPARKS[min(len(_SPARKS) - 1, int(max(ns, 0.0) / highest_ns * len(_SPARKS)))]
        for ns in history
    )


def build_workers(figures: LiveFigures, width: int, order: int) -> list[Text]:
    """Return the workers, after the columns' names."""
    # A small terminal has room for four, and nothing else would tell that there are more.
    count = len(figures.workers)
    label = "worker" if count <= 4 else f"{count} workers"
    keys: list[tuple[str, Callable[[Any], Any]]] = [
        (label, lambda worker: (worker.host, len(worker.number), worker.number)),
        ("busy", lambda worker: -worker.busy_share),
        ("queue", lambda worker: -(worker.queue_ns or 0)),
    ]
    by, key = keys[order % len(keys)]
    bar = max(8, width - 51)
    columns = [
        _Column(label, 14, right=False),
        _Column("busy", bar, right=False),
        _Column("", 6),
        *(_Column(label, 8) for label in ("rate", "queue", "gil")),
    ]
    several_hosts = len({worker.host for worker in figures.workers}) > 1
    lines = [_build_labels(columns, by)]
    for worker in sorted(figures.workers, key=key):
        full = min(bar, round(worker.busy_share * bar))
        name = f"{worker.number} on {clean(worker.host, 60)}" if several_hosts else worker.number
        cores = f", {worker.slots} cores" if worker.slots > 1 else ""
        lines.append(
            _build_line(
                columns,
                Text(name + cores),
                Text.assemble(
                    ("█" * full, _RED if worker.busy_share > 0.8 else ""), ("·" * (bar - full), _DIM)
                ),
                Text(format_share(worker.busy_share)),
                Text(format_rate(worker.requests / figures.seconds)),
                Text(format_duration(worker.queue_ns, figures.total.resolution_ns, digits=2)),
                Text(format_duration(worker.gil_ns, 1_000, digits=2)),
            )
        )
    return lines


def build_requests(
    figures: LiveFigures, width: int, order: int
) -> tuple[tuple[RequestPath, ...], list[Text]]:
    """Return the slowest requests as they are ordered, and them as lines after the columns' names."""
    keys: list[tuple[str, Callable[[RequestPath], Any]]] = [
        ("slowest", lambda path: -path.timing.total_ns),
        ("ago", lambda path: -(path.timing.start_ns + path.timing.total_ns)),
        ("route", lambda path: (path.route, -path.timing.total_ns)),
    ]
    by, key = keys[order % len(keys)]
    paths = tuple(sorted(figures.slowest, key=key))
    columns = [
        _Column("slowest", 12),
        _Column("ago", 5),
        _Column("", 3, right=False),
        _Column("most in", 25, right=False),
        _Column("route", max(12, width - 49), right=False),
    ]
    lines = [_build_labels(columns, by)]
    for path in paths:
        timing = path.timing
        ago_s = max(0, figures.now_ns - timing.start_ns - timing.total_ns) // 1_000_000_000
        longest, longest_ns = path.timing.longest
        most = format_duration(longest_ns, resolution_of(longest, timing.resolution_ns), digits=2)
        tier = "residual" if longest == "residual" else SEGMENTS[INDEX[longest]].tier
        letter, colour = PALETTE[tier]
        failed = path.status is None or path.status >= 500
        lines.append(
            _build_line(
                columns,
                Text(format_plus_minus(timing.total_ns, timing.resolution_ns)),
                Text(f"{ago_s} s"),
                Text("-" if path.status is None else str(path.status), style=_RED if failed else ""),
                Text.assemble((letter, colour), f" {longest} {most}"),
                Text(clean(path.route, 300)),
            )
        )
    return paths, lines


def build_routes(figures: LiveFigures, width: int, order: int) -> list[Text]:
    """Return the routes, after the columns' names."""
    keys: list[tuple[str, Callable[[Any], Any]]] = [
        ("of time", lambda route: -route.share),
        ("rate", lambda route: -route.requests),
        ("p99", lambda route: -route.p99_ns),
        ("errors", lambda route: -route.errors),
    ]
    by, key = keys[order % len(keys)]
    columns = [
        _Column("route", max(16, width - 50), right=False),
        *(_Column(label, 9) for label in ("rate", "p50", "p99", "of time", "errors")),
    ]
    return [
        _build_labels(columns, by),
        *(
            _build_line(
                columns,
                Text(clean(route.route, 300)),
                Text(format_rate(route.requests / figures.seconds)),
                Text(format_duration(route.p50_ns, figures.total.resolution_ns, digits=2)),
                Text(format_duration(route.p99_ns, figures.total.resolution_ns, digits=2)),
                Text(format_share(route.share)),
                Text(f"{route.errors:,}" if route.errors else "", style=_RED),
            )
            for route in sorted(figures.routes, key=key)
        ),
    ]


def _build_labels(columns: Sequence[_Column], by: str) -> Text:
    """Return the columns' names, the one that is sorted by marked."""
    line = _build_line(
        columns, *(Text(column.label + _SORTED if column.label == by else column.label) for column in columns)
    )
    line.stylize(_DIM)
    return line


def _build_line(columns: Sequence[_Column], *cells: Text) -> Text:
    """Put cells side by side, each as wide as its column."""
    line = Text(no_wrap=True, end="")
    for column, cell in zip(columns, cells, strict=True):
        if line:
            line.append(" ")
        cell.truncate(column.width, overflow="ellipsis", pad=not column.right)
        if column.right:
            cell.pad_left(column.width - cell.cell_len)
        line.append_text(cell)
    return line


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text
