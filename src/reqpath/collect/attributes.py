"""Describes what is known of a request as a span's attributes.

`collect.spans` builds the spans, `traces.paths` reads the attributes again. Keys of OpenTelemetry's semantic
conventions stand here, reqpath's own in `conventions`::

    describe_attempt(Attempt("unix:/run/app.sock", 200, ...), 0, describe_method("GET"))
    {"reqpath.role": "attempt", "http.request.method": "GET", "network.transport": "unix", ...}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from reqpath import conventions as names
from reqpath.path import METHODS
from reqpath.record import AppSpan, Attempt, AttributeValue, NginxRecord, Operation, WorkerRecord
from reqpath.tiers import INDEX, Timing

Attributes = dict[str, Any]

_WORKER_SEGMENT_KEYS: Final = names.SEGMENT_KEYS[INDEX["flask.middleware"] : INDEX["uwsgi.send"] + 1]
_worker_fields: Final = attrgetter(*names.WORKER_FIELDS.values())
_nginx_fields: Final = attrgetter(*names.NGINX_FIELDS.values())
_nginx_instants: Final = attrgetter(*names.NGINX_INSTANTS)
_attempt_fields: Final = attrgetter(*names.ATTEMPT_FIELDS.values())
_operation_fields: Final = attrgetter(*names.OPERATION_FIELDS.values())

_PORT: Final = re.compile(r"(0|[1-9]\d{0,4})", re.ASCII)
_PROTOCOL: Final = re.compile(r"HTTP/(\d)\.(\d)", re.ASCII)
_WORD: Final = re.compile(r"(?:\s|/\*.*?\*/|\()*([A-Za-z]{1,16})\b", re.ASCII | re.DOTALL)
#: Statements whose rows come back; of any other, rows are those that it changed.
_RETURNING: Final = frozenset(("SELECT", "SHOW", "WITH", "DESCRIBE", "DESC", "EXPLAIN", "TABLE", "VALUES"))
_CLIENT_CLOSED: Final = 499


#: How many texts of each kind are remembered, of which there are few; what is made of them is not to change.
_REMEMBERED: Final = 1_024


@lru_cache(_REMEMBERED)
def describe_method(method: str) -> Mapping[str, Any]:
    """Describe the method; one that HTTP has not may have been made up by the client."""
    if method in METHODS:
        return {"http.request.method": method}
    return {"http.request.method": "_OTHER", "http.request.method_original": method}


@lru_cache(_REMEMBERED)
def _describe_host(host: str | None) -> Mapping[str, Any]:
    """Split a Host header; one that is not name and port is kept whole."""
    if host is None:
        return {}
    address, colon, port = host.rpartition(":")
    if colon and address and _PORT.fullmatch(port) and (":" not in address or address.endswith("]")):
        return {"server.address": address, "server.port": int(port)}
    return {"server.address": host}


@lru_cache(_REMEMBERED)
def _describe_protocol(protocol: str | None) -> Mapping[str, Any]:
    if protocol is None:
        return {}
    match = _PROTOCOL.fullmatch(protocol)
    if match is None:
        return {names.PROTOCOL: protocol}
    major, minor = match.groups()
    return {"network.protocol.version": major if minor == "0" and major >= "2" else f"{major}.{minor}"}


def describe_timing(timing: Timing) -> Attributes:
    """Describe the times of a whole path, ns; a segment that is unknown has no attribute."""
    facts: Attributes = {
        key: value
        for key, value in zip(names.SEGMENT_KEYS, timing.segments, strict=True)
        if value is not None
    }
    facts[names.TOTAL] = timing.total_ns
    facts[names.RESIDUAL] = timing.residual_ns
    facts[names.RESOLUTION] = timing.resolution_ns
    if timing.missing:
        facts[names.MISSING] = timing.missing
    if timing.skewed:
        facts[names.SKEWED] = timing.skewed
    if timing.clamped:
        facts[names.CLAMPED] = timing.clamped
    if timing.abandoned:
        facts[names.ABANDONED] = True
    return facts


def describe_line(nginx: NginxRecord, start_ns: int, shift_ns: int, method: Mapping[str, Any]) -> Attributes:
    """Describe nginx's line; its stamps are ns after `start_ns`, once they are moved back by `shift_ns`."""
    attributes: Attributes = {
        names.ROLE: names.NGINX,
        **method,
        "url.path": nginx.path,
        **_describe_host(nginx.host),
        **_describe_protocol(nginx.protocol),
    }
    for key, value in zip(names.NGINX_FIELDS, _nginx_fields(nginx), strict=True):
        if value is not None:
            attributes[key] = value
    for key, value in zip(names.NGINX_INSTANTS.values(), _nginx_instants(nginx), strict=True):
        if value is not None:
            attributes[key] = value - shift_ns - start_ns
    if nginx.status is not None and nginx.status >= 500:
        attributes["error.type"] = str(nginx.status)
    elif nginx.status == _CLIENT_CLOSED:
        attributes[names.CLIENT_GONE] = True
    if not nginx.sampled:
        attributes[names.NOT_SAMPLED] = True
    return attributes


def describe_attempt(attempt: Attempt, number: int, method: Mapping[str, Any]) -> Attributes:
    """Describe an upstream attempt, the first of which has the number 0."""
    attributes: Attributes = {
        names.ROLE: names.ATTEMPT,
        names.ATTEMPT_NUMBER: number,
        **method,
        names.UPSTREAM: attempt.address,
    }
    if attempt.address.startswith("unix:"):
        attributes["network.transport"] = "unix"
        attributes["server.address"] = attempt.address.removeprefix("unix:")
    else:
        attributes["network.transport"] = "tcp"
        attributes |= _describe_host(attempt.address)
    for key, value in zip(names.ATTEMPT_FIELDS, _attempt_fields(attempt), strict=True):
        if value is not None:
            attributes[key] = value
    if number:
        attributes["http.request.resend_count"] = number
    if attempt.status is None:
        attributes["error.type"] = "_OTHER"
    elif attempt.status >= 400:
        attributes["error.type"] = str(attempt.status)
    return attributes


def describe_worker(
    worker: WorkerRecord,
    shift_ns: int,
    method: Mapping[str, Any],
    facts: Attributes | None,
    late_ns: int,
    *,
    nginx: NginxRecord | None,
) -> Attributes:
    """Describe the request in its worker.

    `facts` are its whole path's times, None for a worker that nginx gave up; `late_ns` is what of the sending
    came after nginx had ended; `nginx` is the line, for what is the client's.
    """
    attributes: Attributes = {
        names.ROLE: names.REQUEST,
        **method,
        "url.path": worker.path,
        **_describe_host(worker.host),
    }
    if nginx is not None:
        # Of the client, which only nginx has to do with.
        attributes |= _describe_protocol(nginx.protocol)
        for key, field in names.FROM_NGINX.items():
            value = getattr(nginx, field)
            if value is not None:
                attributes[key] = value
    if worker.route is not None:
        attributes["http.route"] = worker.route
    if worker.status is not None:
        attributes["http.response.status_code"] = worker.status
    if worker.exception is not None:
        attributes["error.type"] = worker.exception[0]
    elif worker.status is not None and worker.status >= 500:
        attributes["error.type"] = str(worker.status)
    for key, value in zip(names.WORKER_FIELDS, _worker_fields(worker), strict=True):
        if value is not None:
            attributes[key] = value
    before_ns = worker.app_start_ns
    for field, key in names.WORKER_INSTANTS.items():
        value = getattr(worker, field)
        if value is not None:
            attributes[key] = value - before_ns - (shift_ns if field.startswith("nginx") else 0)
    if facts is None:
        attributes[names.RETRIED] = True
        for key, value in zip(_WORKER_SEGMENT_KEYS, worker.exclusive_ns, strict=True):
            if value is not None:
                attributes[key] = value
    else:
        attributes |= facts
        if late_ns:
            attributes[names.LATE] = late_ns
    if worker.dropped_operations:
        attributes[names.DROPPED_OPERATIONS] = worker.dropped_operations
    if worker.rejected_stamps:
        attributes[names.REJECTED_STAMPS] = worker.rejected_stamps
    if worker.timeline:
        attributes[names.TIMELINE] = " ".join(map(str, worker.timeline))
    if worker.span_status is not None:
        attributes[names.APP_STATUS] = True
    if worker.app_span is not None:
        _add_app_span(attributes, worker.app_span, worker.trace_id)
    if worker.app_samples:
        attributes[names.APP_SAMPLES] = True
    if not worker.sampled:
        attributes[names.NOT_SAMPLED] = True
    if worker.attributes:
        _add_attributes_of_app(attributes, worker.attributes)
    return attributes


def _add_app_span(attributes: Attributes, app_span: AppSpan, trace_id: str) -> None:
    attributes[names.APP_SPAN] = app_span.span_id
    if app_span.trace_id != trace_id:
        attributes[names.APP_TRACE] = app_span.trace_id
    for key, field in names.APP_SPAN_FIELDS.items():
        value = getattr(app_span, field)
        if value is not None:
            attributes[key] = value


def _add_attributes_of_app(attributes: Attributes, of_app: dict[str, AttributeValue]) -> None:
    """Let what the app set stand, as an SDK does, and keep reqpath's own values beside it.

    Of the names that are reqpath's alone it is the app's values that go beside.
    """
    doubled = []
    for key, value in of_app.items():
        if key not in names.REQUEST_KEYS:
            attributes[key] = value
        elif key.startswith(names.PREFIX):
            attributes[names.OF_APP + key] = value
        else:
            doubled.append(key)
            if key in attributes:
                attributes[names.OWN + key] = attributes[key]
            attributes[key] = value
    if doubled:
        attributes[names.APP_ATTRIBUTES] = sorted(doubled)


def describe_operation(operation: Operation) -> Attributes:
    """Describe a call of the database's driver."""
    attributes: Attributes = {names.ROLE: names.OPERATION, "db.system.name": "mysql"}
    for key, value in zip(names.OPERATION_FIELDS, _operation_fields(operation), strict=True):
        if value is not None:
            attributes[key] = value
    word = None
    if operation.kind != "query":
        word = operation.kind.upper() if operation.kind in ("commit", "rollback") else None
    elif operation.statement is not None:
        word = _name_statement(operation.statement)
    if word is not None:
        attributes["db.operation.name"] = word
    if operation.rows is not None:
        attributes[names.RETURNED_ROWS if word in _RETURNING else names.AFFECTED_ROWS] = operation.rows
    if operation.first_byte_ns is not None:
        attributes[names.FIRST_BYTE] = operation.first_byte_ns - operation.start_ns
    if operation.error is not None:
        kind, separator, code = operation.error.partition(": ")
        attributes["error.type"] = kind
        if separator:
            attributes["db.response.status_code"] = code
    if operation.concurrent:
        attributes[names.CONCURRENT] = True
    for name, duration_ns in operation.phases:
        attributes[f"{names.PHASE}{name}_ns"] = duration_ns
    return attributes


@lru_cache(maxsize=4_096)
def _name_statement(statement: str) -> str | None:
    """Return the word that a statement begins with, which is what it does; None where it has none."""
    match = _WORD.match(statement)
    return None if match is None else match[1].upper()
