"""A worker's record as it is in the file, of which no more is worked out than is asked for.

Nearly every request has all its stamps and nothing odd about it. A collector then only needs to know who it
is, how long it took and how it ended, and a report takes its times together with those of thousands of
others. So the reader leaves such a record as its worker noted it, and the `WorkerRecord` is made of the few
that are looked at::

    RawRecord ─► spool ─► UsualRecord ─┬─ join, keep policy, sums of a report
                                       └─ complete ─► WorkerRecord: spans, traces, everything else
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import msgspec

from reqpath.raw import (
    CLOSED,
    RAW_TAG,
    SEGMENT_OF,
    STATEMENT_ITEMS,
    AppNotes,
    Identity,
    Marks,
    RawOperation,
    RawRecord,
    complete_record,
)
from reqpath.record import AppSpan, NginxRecord, Transport, WorkerRecord
from reqpath.stamps import (
    AFTER_MILLISECONDS,
    ALWAYS_COPIED,
    USUAL_TEXT,
    is_digits,
    read_fine_stamps,
    read_stamps,
)
from reqpath.tiers import Stamps, order_stamps, read_in_order

#: A mark in msgpack: its code, the tag of an unsigned 64 bit number, and that number.
MARK_BYTES: Final = 10
#: Instants beyond are of a broken record.
_LAST_NS: Final = 1 << 62
_LAST_BIT: Final = 1 << 31
_TAG: Final = b"\xcf"
_SHORT_ARRAY: Final = 0x9
_LONG_ARRAY: Final = 0xDC
_CODES: Final = bytes(range(len(SEGMENT_OF)))
#: Of what a usual record has all, in the order of its environ; then method and path.
_USUAL_ENVIRON: Final = re.compile(USUAL_TEXT + ",", re.ASCII)
FINE_NS: Final = 1_000
COARSE_NS: Final = 1_000_000
_decode_marks: Final = msgspec.msgpack.Decoder(list[int]).decode


class UsualRecord(msgspec.Struct, array_like=True, tag=RAW_TAG, gc=False):
    """`raw.RawRecord` as a reader decodes it: the same fields, with the marks left as they are in the file.

    What has a name of `WorkerRecord`'s is the same as there, where `is_usual`.
    """

    app_start_ns: int
    environ: list[Any]
    packed_marks: msgspec.Raw
    span_bits: int
    unmeasured: int
    transport: Transport | None
    sequence: int = 0
    statements: list[Any] = []
    raw_operations: list[RawOperation] = []
    status_line: Any = None
    route: str | None = None
    response_start_ns: int | None = None
    closing_ns: int | None = None
    response_bytes: int | None = None
    cpu_start_ns: int | None = None
    cpu_end_ns: int | None = None
    run_queue_ns: int | None = None
    end: int = CLOSED
    dropped_operations: int = 0
    identity: Identity | None = None
    notes: AppNotes | None = None
    folded: Marks | None = None

    exception: ClassVar[None] = None
    span_status: ClassVar[tuple[str, str | None] | None] = None
    app_span: ClassVar[AppSpan | None] = None
    app_samples: ClassVar[bool] = False

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        trace_id: str = self.environ[0][3:35]
        return trace_id

    @property
    def parent_id(self) -> str:
        """The span of nginx's that the worker answered."""
        parent_id: str = self.environ[0][36:52]
        return parent_id

    @property
    def sampled(self) -> bool:
        """What nginx said of the trace."""
        return bool(self.environ[0][54] == "1")

    @property
    def method(self) -> str:
        """The HTTP method."""
        method: str = self.environ[3]
        return method

    @property
    def nginx_resolution_ns(self) -> int:
        """Of nginx's stamps."""
        return COARSE_NS if self.environ[1][AFTER_MILLISECONDS] == "-" else FINE_NS

    @property
    def path(self) -> str:
        """The path without query string."""
        return complete(self).path

    @property
    def status(self) -> int | None:
        """What the app answered."""
        line = self.status_line
        return int(line[:3]) if line.__class__ is str and is_digits(line[:3]) else None

    @property
    def closed_offset_ns(self) -> int:
        """The time from the first mark to the last."""
        marks = bytes(self.packed_marks)
        start = len(marks) % MARK_BYTES
        first_ns = int.from_bytes(marks[start + 2 : start + MARK_BYTES], "big")
        return int.from_bytes(marks[2 - MARK_BYTES :], "big") - first_ns

    @property
    def cpu_ns(self) -> int | None:
        """The thread's CPU time."""
        if self.cpu_start_ns is None or self.cpu_end_ns is None:
            return None
        return self.cpu_end_ns - self.cpu_start_ns


#: What a worker leaves of a request, as a reader has it.
WorkerHead = UsualRecord | WorkerRecord
AnyRecord = UsualRecord | WorkerRecord | NginxRecord


def is_usual(record: UsualRecord) -> bool:
    """Tell whether a record can stay as it is: then it is whole, and of all other kinds `complete` is due."""
    if (
        record.end
        or record.raw_operations
        or record.notes is not None
        or record.identity is not None
        or record.folded is not None
        or record.dropped_operations
        or not 0 <= record.app_start_ns <= _LAST_NS
        or not 0 <= record.unmeasured <= _LAST_BIT
    ):
        return False
    environ = record.environ
    if len(environ) != ALWAYS_COPIED or len(record.statements) % STATEMENT_ITEMS:
        return False
    try:
        # A None raises.
        if _USUAL_ENVIRON.match(",".join(environ[:5])) is None:
            return False
    except TypeError:
        return False
    marks = bytes(record.packed_marks)
    start = len(marks) % MARK_BYTES
    codes = marks[start::MARK_BYTES]
    return (
        # An array, short or long, whose elements are pairs of a small number and one of 64 bits.
        (marks[0] >> 4 == _SHORT_ARRAY if start == 1 else start == 3 and marks[0] == _LONG_ARRAY)
        and len(codes) > 0
        and not codes.translate(None, _CODES)
        and marks[start + 1 :: MARK_BYTES] == _TAG * len(codes)
    )


def complete(record: WorkerHead, writer_id: str = "") -> WorkerRecord:
    """Return the record with all that can be known of it; `writer_id` is not needed where `is_usual`.

    Raises: msgspec.ValidationError for what no worker writes.
    """
    if record.__class__ is WorkerRecord:
        return record
    assert isinstance(record, UsualRecord)
    values = list(msgspec.structs.astuple(record))
    values[2] = _decode_marks(values[2])
    return complete_record(RawRecord(*values), writer_id)


def read_head_in_order(worker: WorkerHead, nginx: NginxRecord | None) -> Stamps | None:
    """Return what `tiers.read_in_order` does, without completing the record."""
    if worker.__class__ is WorkerRecord:
        return read_in_order(worker, nginx)
    assert isinstance(worker, UsualRecord)
    if nginx is None:
        return None
    stamps_ns = _read_four(worker)
    if stamps_ns is None:
        return None
    app_start_ns = worker.app_start_ns
    closed_ns = app_start_ns + worker.closed_offset_ns
    return order_stamps((*stamps_ns, app_start_ns, closed_ns), worker.nginx_resolution_ns, nginx)


def _read_four(worker: UsualRecord) -> tuple[int, int, int, int] | None:
    """Return start, pass, accept and parsed; None when not all can be believed."""
    environ, app_start_ns = worker.environ, worker.app_start_ns
    if worker.nginx_resolution_ns == FINE_NS:
        return read_fine_stamps(f"{environ[1]},{environ[2]}", app_start_ns)
    _, _, _, start_ns, pass_ns, _, accept_ns, parsed_ns, _ = read_stamps(environ, app_start_ns)
    if start_ns is None or pass_ns is None or accept_ns is None or parsed_ns is None:
        return None
    return start_ns, pass_ns, accept_ns, parsed_ns


def finished_at_ns(record: AnyRecord) -> int:
    """Return the wall-clock instant at which the record's writer was done with the request."""
    if isinstance(record, NginxRecord):
        return record.end_ns
    return record.app_start_ns + (record.closed_offset_ns or 0)
