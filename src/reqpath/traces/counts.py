"""What was read of traces, as plain data that loads nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TraceCounts:
    """What was read, and what a reader of its figures has to know of it."""

    traces: int = 0
    spans: int = 0
    #: Traces without a request of the service's.
    without_request: int = 0
    #: Requests that other instrumentation than reqpath recorded.
    plain: int = 0
    #: Lines of files, and spans, that are none.
    unreadable: int = 0
    #: Lines with metrics or logs.
    other_signals: int = 0
    #: Stretches of time of which Jaeger told of a part of the traces only.
    cut_windows: int = 0
