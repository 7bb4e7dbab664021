"""Recorders without a request, and what a reader makes of them."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from reqpath.raw import RawRecord, complete_record
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
    marks = [segment, 0]
    statements: list[Any] = []
    recorder = RequestSpan(
        RawRecord(NOW_NS, [None] * len(ENVIRON_KEYS), marks, 7, unmeasured, None, 0, statements),
        marks,
        statements,
        max_operations,
        threading.get_ident(),
        lambda _recorder, _end: None,
    )
    recorder.switch(segment)
    del marks[:2]
    return recorder


def read(recorder: RequestRecorder) -> WorkerRecord:
    """Return the record as a reader has it, were it written now."""
    return complete_record(_decode(encode(recorder.record)), "0" * 16)
