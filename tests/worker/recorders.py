"""Recorders without a request, and what a reader makes of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import msgspec

from reqpath.raw import CLOSED, RAW_TAG, RawRecord, complete_record
from reqpath.record import WorkerRecord, encode
from reqpath.stamps import ENVIRON_KEYS
from reqpath.worker import recorder as segments
from reqpath.worker.recorder import RequestRecorder
from reqpath.worker.span import RequestSpan
from tests.factories import NOW_NS

_decode = msgspec.msgpack.Decoder(RawRecord).decode


def make_recorder(
    *, segment: int = segments.MIDDLEWARE, max_operations: int = 500, unmeasured: int = 0
) -> RequestSpan:
    """Return the recorder of a request that begins now, by the worker's clock."""
    recorder = RequestSpan()
    recorder.middleware = _Middleware(max_operations)
    recorder.owner = threading.get_ident()
    recorder.marks = marks = [segment, 0]
    recorder.statements = statements = list[Any]()
    environ = [None] * len(ENVIRON_KEYS)
    begun = RawRecord(NOW_NS, environ, marks, 7, unmeasured, None, statements=statements)
    recorder.values = [RAW_TAG, *msgspec.structs.astuple(begun)]
    recorder.finished = False
    recorder.switch(segment)
    del recorder.marks[:2]
    return recorder


@dataclass
class _Middleware:
    """Records nothing."""

    max_operations: int

    def finish(self, recorder: RequestRecorder, end: int = CLOSED, /) -> None:
        """Do nothing."""


def read(recorder: RequestRecorder) -> WorkerRecord:
    """Return the record as a reader has it, were it written now."""
    return complete_record(_decode(encode(recorder.complete_values())), "0" * 16)
