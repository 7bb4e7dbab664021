"""Spools for the tests to be followed and exported, written as a worker and a collector write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from reqpath.path import RequestPath
from reqpath.record import NginxRecord, WorkerRecord, encode
from reqpath.spool import SpoolWriter
from tests.factories import make_writer_info


class Spooler:
    """Writes records, the workers' and nginx's each into their own files."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._writers = {kind: self._make_writer(kind) for kind in ("worker", "nginx")}

    def write(self, record: WorkerRecord | NginxRecord | None) -> None:
        """Append one record; None is none."""
        if record is None:
            return
        writer = self._writers["nginx" if isinstance(record, NginxRecord) else "worker"]
        assert writer.append(encode(msgspec.structs.replace(record, sequence=writer.next_sequence())))

    def write_paths(self, paths: Iterable[RequestPath]) -> None:
        """Append the two records of each path."""
        for path in paths:
            self.write(path.worker)
            self.write(path.nginx)

    def start_files(self) -> None:
        """Have the next records go into other files."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _make_writer(self, kind: str) -> SpoolWriter:
        checked: Literal["worker", "nginx"] = "nginx" if kind == "nginx" else "worker"
        return SpoolWriter(
            self.directory,
            lambda writer_id: make_writer_info(writer_id=writer_id, kind=checked),
            max_bytes=64 << 20,
            report=print,
        )


@contextmanager
def open_spool(directory: str) -> Iterator[Spooler]:
    """Write into a spool within the `with`."""
    spooler = Spooler(directory)
    try:
        yield spooler
    finally:
        spooler.close()


def write_paths(directory: str, paths: Iterable[RequestPath]) -> None:
    """Write a spool of these paths."""
    with open_spool(directory) as spooler:
        spooler.write_paths(paths)
