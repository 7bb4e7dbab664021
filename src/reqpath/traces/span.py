"""A span as it is read from a trace: plain data, whoever made it and whatever it was read from.

`traces.otlp` and `traces.jaeger` build them; `traces.paths` makes request paths of them::

    Span("4bf9…", "00f0…", "", "GET /items/<int:id>", "server", "shop", 1_800…, 1_800…, {"http.route": …})
"""

from __future__ import annotations

from typing import Literal

import msgspec

from reqpath.record import AttributeValue

Kind = Literal["internal", "server", "client", "producer", "consumer"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """What happened within a span; `time_ns` is since the epoch."""

    name: str
    time_ns: int
    attributes: dict[str, AttributeValue] = {}


class Link(msgspec.Struct, frozen=True, gc=False):
    """Another span that this one belongs to, beside its parent."""

    trace_id: str
    span_id: str
    attributes: dict[str, AttributeValue] = {}


class Span(msgspec.Struct, frozen=True, gc=False):
    """One span; instants are ns since the epoch, good to a microsecond where Jaeger's own JSON was read."""

    #: 32 hex digits.
    trace_id: str
    #: 16 hex digits.
    span_id: str
    #: Empty at a root.
    parent_id: str
    name: str
    kind: Kind
    #: The resource's `service.name`; empty where it has none.
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue] = {}
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    status: Literal["UNSET", "OK", "ERROR"] = "UNSET"
    status_description: str | None = None
    #: All of the resource's attributes, `service.name` among them.
    resource: dict[str, AttributeValue] = {}
    #: Name of the instrumentation that made the span, `reqpath` for ours.
    scope: str = ""
