"""A large spool, read by two processes side by side: each takes half of the traces.

The layers below are `spool.SpoolReader`, whose `half` says which traces, and `BreakdownBuilder.absorb`, which
puts the two together::

    if files := find_large_spool(directory):
        losses = take_in_halves(directory, files, take, builders, show=show)

It is two processes however many processors there are. Among requests that took equally long, their order says
which of them are in a slice of latency, and a report of the same spool is to say the same everywhere.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from reqpath.analyse.breakdown import BreakdownBuilder
from reqpath.analyse.cube import CubeBuilder
from reqpath.collect.join import read_paths
from reqpath.commands.sources import REPORT_BATCH_BYTES
from reqpath.errors import ReqPathError, SpoolError
from reqpath.path import RequestPath
from reqpath.spool import Bookmark, SpoolLosses, SpoolReader
from reqpath.spool.files import SpoolFile, list_files

#: Of a spool that is worth a second process: some 80,000 requests.
LARGE_BYTES: Final = 64 << 20


class Builders(NamedTuple):
    """What takes the requests of a report."""

    breakdown: BreakdownBuilder
    #: Of a page.
    cube: CubeBuilder | None


Paths = Iterator[RequestPath]
#: Takes all of some requests into the builders.
Take = Callable[[Paths, Builders], None]


def find_large_spool(directory: str) -> list[SpoolFile]:
    """Return the files of a spool as they are now; empty where one process reads them as fast."""
    files = list_files(directory)
    return files if sum(file.size for file in files) >= LARGE_BYTES else []


def take_in_halves(
    directory: str,
    files: Sequence[SpoolFile],
    take: Take,
    builders: Builders,
    *,
    show: Callable[[Paths], Paths],
) -> SpoolLosses:
    """Have `take` take all files' requests, half of them in another process; return what was lost.

    `show` is put around this process's half.

    Raises: ReqPathError when that process is ended from outside, and what `take` raises there.
    """
    first, second = (
        SpoolReader(directory, batch_bytes=REPORT_BATCH_BYTES, files=files, half=half) for half in (0, 1)
    )
    # Not by a new interpreter: what is loaded so far, and what `take` holds, are there in a fork.
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    helper = context.Process(target=_take_second, args=(sending, second, take, builders), daemon=True)
    with receiving:
        helper.start()
        try:
            sending.close()
            take(show(read_paths(first)), builders)
            theirs, bookmark = _receive(receiving)
        finally:
            helper.kill()
            helper.join()
    builders.breakdown.absorb(theirs.breakdown)
    if builders.cube is not None and theirs.cube is not None:
        builders.cube.absorb(theirs.cube)
    first.absorb(bookmark)
    return first.losses


def _take_second(sending: Connection, reader: SpoolReader, take: Take, builders: Builders) -> None:
    """Take the second half in a process of its own; send what came of it, or the error."""
    # Ctrl-C reaches both, and it is the first that ends the other.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        take(read_paths(reader), builders)
        sending.send((builders, reader.bookmark()))
    except ReqPathError as error:
        sending.send(error)


def _receive(receiving: Connection) -> tuple[Builders, Bookmark]:
    try:
        answer = receiving.recv()
    except EOFError:
        raise SpoolError(
            "the process that read half of the spool was ended before it was done; if for want of memory, "
            "the system's log says so: try again with more of it free"
        ) from None
    if isinstance(answer, ReqPathError):
        raise answer
    builders, bookmark = answer
    return builders, bookmark
