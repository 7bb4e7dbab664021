"""How far the worker's clock is from nginx's, where they run on two hosts.

Nothing measures it; causality bounds it. nginx passes a request on before it is accepted, and is done only
after the response has begun, so each request bounds the offset, worker's clock less nginx's, on both sides::

    nginx:  ──pass────────────────────end──      upper = accept - pass
    worker: ─────accept──…──response──────       lower = response - end

The truth lies within the bounds of every request, so a minute's requests together bound it to about the
fastest trip between the two. Where zero lies within, nothing says that the clocks differ, and no stamp is
touched. Where it does not, nginx's stamps are moved into the worker's clock by the middle of the bounds; the
worker's stay, as the app's own spans have the same clock. `tiers.measure` then splits the moved records.

Clocks that drift apart by more than the bounds within a minute, or of which one is set, contradict what was
learnt before: older bounds go first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from reqpath.instants import find_first_ns
from reqpath.path import RequestPath
from reqpath.record import NginxRecord, WorkerRecord

#: How long a bound holds, in slots; a good quartz drifts some 20 µs in a second, so within a minute by 1 ms.
WINDOW_NS: Final = 60_000_000_000
SLOT_NS: Final = 5_000_000_000
#: Hosts of workers that are kept apart; of more, the one that was met first is forgotten.
MAX_HOSTS: Final = 1_024
#: uWSGI's stamps are cut down to a microsecond.
_UWSGI_RESOLUTION_NS: Final = 1_000


class ClockOffset(NamedTuple):
    """Bounds of the worker's clock less nginx's; None: nothing bounds it from that side."""

    lower_ns: int | None
    upper_ns: int | None

    @property
    def correction_ns(self) -> int:
        """What nginx's stamps need to be in the worker's clock; 0 where the clocks may well be the same."""
        lower_ns, upper_ns = self
        if lower_ns is not None and lower_ns > 0:
            return lower_ns if upper_ns is None else (lower_ns + upper_ns) // 2
        if upper_ns is not None and upper_ns < 0:
            return upper_ns if lower_ns is None else (lower_ns + upper_ns) // 2
        return 0

    @property
    def contradictory(self) -> bool:
        """No offset is within the bounds."""
        return self.lower_ns is not None and self.upper_ns is not None and self.lower_ns > self.upper_ns

    def narrow(self, other: ClockOffset) -> ClockOffset:
        """Return the bounds that hold where both do."""
        lower_ns, upper_ns = self
        if other.lower_ns is not None and (lower_ns is None or other.lower_ns > lower_ns):
            lower_ns = other.lower_ns
        if other.upper_ns is not None and (upper_ns is None or other.upper_ns < upper_ns):
            upper_ns = other.upper_ns
        return ClockOffset(lower_ns, upper_ns)


UNBOUNDED: Final = ClockOffset(None, None)


def bound_offset(worker: WorkerRecord, nginx: NginxRecord | None) -> ClockOffset:
    """Return what one request says of the worker's clock less nginx's.

    nginx's stamps can be early by their resolution and a turn of its event loop, never late: that can only
    make the upper bound wider, and the lower one is widened by as much again as the resolution.
    """
    handed_ns, resolution_ns = worker.nginx_pass_ns, worker.nginx_resolution_ns or 0
    if handed_ns is None:
        handed_ns = worker.nginx_start_ns
    lower_ns = upper_ns = None
    if nginx is not None:
        resolution_ns = max(resolution_ns, nginx.resolution_ns)
        if handed_ns is None:
            handed_ns = nginx.start_ns if nginx.pass_ns is None else nginx.pass_ns
        # An answer whose header nginx had from this worker: it ended after that was sent.
        answered_ns = worker.response_start_offset_ns
        if answered_ns is not None and len(nginx.attempts) == 1:
            attempt = nginx.attempts[0]
            if attempt.header_ns is not None and attempt.status == worker.status:
                lower_ns = worker.app_start_ns + answered_ns - nginx.end_ns - 2 * resolution_ns
    if handed_ns is not None:
        upper_ns = find_first_ns(worker) + _UWSGI_RESOLUTION_NS - handed_ns
    return ClockOffset(lower_ns, upper_ns)


def is_one_host(path: RequestPath) -> bool:
    """Tell whether nginx surely runs where the worker does, by the way on which it reached it."""
    worker = path.head
    if worker is None or worker.transport == "unix":
        return True
    if path.nginx is None:
        return False
    attempts = path.nginx.attempts
    return bool(attempts) and attempts[-1].address.startswith(("unix:", "127.", "[::1]", "localhost"))


def shift_nginx(path: RequestPath, shift_ns: int) -> RequestPath:
    """Return the path with all of nginx's stamps moved; the worker's stay."""
    if not shift_ns:
        return path
    worker, nginx = path.worker, path.nginx
    if worker is not None:
        worker = _shift_worker(worker, shift_ns)
    if nginx is not None:
        nginx = msgspec.structs.replace(
            nginx,
            start_ns=_add(nginx.start_ns, shift_ns),
            pass_ns=_add(nginx.pass_ns, shift_ns),
            end_ns=nginx.end_ns + shift_ns,
        )
    retried = tuple(_shift_worker(earlier, shift_ns) for earlier in path.retried)
    return RequestPath(worker, path.info, nginx, retried)


class ClockOffsets:
    """What the paths so far say of each host's clock; bounded in memory.

    Example::

        path, offset = offsets.correct(path)
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        #: Paths whose own stamps leave no room for any offset: of them nothing was learnt.
        self.contradictions = 0

    def correct(self, path: RequestPath) -> tuple[RequestPath, ClockOffset | None]:
        """Learn from a path; return it in one clock, and the bounds: None on one host, and without any."""
        if path.head is None or is_one_host(path):
            return path, None
        worker = path.worker
        assert worker is not None
        own = bound_offset(worker, path.nginx)
        if own == UNBOUNDED:
            return path, None
        if own.contradictory:
            self.contradictions += 1
            return path, None
        host = "" if path.info is None else path.info.host
        window = self._windows.get(host)
        if window is None:
            while len(self._windows) >= MAX_HOSTS:
                del self._windows[next(iter(self._windows))]
            window = self._windows[host] = _Window()
        offset = window.learn(worker.app_start_ns, own)
        return shift_nginx(path, offset.correction_ns), offset

    def __iter__(self) -> Iterator[tuple[str, ClockOffset]]:
        """Yield each host's name and its bounds."""
        for host, window in self._windows.items():
            yield host, window.offset


class _Window:
    """The bounds of the latest minute, by slots of some seconds, so that old ones can go."""

    __slots__ = ("_slots", "offset")

    def __init__(self) -> None:
        self._slots: deque[tuple[int, ClockOffset]] = deque()
        self.offset = UNBOUNDED

    def learn(self, at_ns: int, own: ClockOffset) -> ClockOffset:
        """Add one request's bounds; return those that hold for it."""
        slot = at_ns // SLOT_NS
        slots = self._slots
        if not slots or slot > slots[-1][0]:
            while slots and slots[0][0] <= slot - WINDOW_NS // SLOT_NS:
                slots.popleft()
            slots.append((slot, own))
        else:
            # Also a path that comes late: what it says is as good as what the others say now.
            slots[-1] = (slots[-1][0], slots[-1][1].narrow(own))
        offset = self._combine()
        while offset.contradictory:
            slots.popleft()
            if not slots:
                slots.append((slot, own))
            offset = self._combine()
        self.offset = offset
        return offset

    def _combine(self) -> ClockOffset:
        offset = UNBOUNDED
        for _slot, bounds in self._slots:
            offset = offset.narrow(bounds)
        return offset


def _shift_worker(worker: WorkerRecord, shift_ns: int) -> WorkerRecord:
    return msgspec.structs.replace(
        worker,
        nginx_start_ns=_add(worker.nginx_start_ns, shift_ns),
        nginx_pass_ns=_add(worker.nginx_pass_ns, shift_ns),
    )


def _add(instant_ns: int | None, shift_ns: int) -> int | None:
    return None if instant_ns is None else instant_ns + shift_ns
