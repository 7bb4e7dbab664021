"""Spans from a Jaeger, by its query API of version 3, which answers in OTLP.

The layer below is `traces.otlp`; the one above makes request paths of the spans. Example::

    jaeger = JaegerReader("http://localhost:16686")
    for spans in jaeger.read_traces("shop", start_ns, end_ns):
        spans     # of one trace, of all its services

Source: https://www.jaegertracing.io/docs/2.13/apis/, HTTP JSON. Jaeger answers a search with a bounded number
of traces and does not say whether there were more, so a search goes by windows of time.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from reqpath.errors import ConfigurationError, ReqPathError
from reqpath.traces.otlp import LineCounts, parse_answer
from reqpath.traces.span import Span

#: Traces asked for at once; at some 20 KB each, so that one answer is of some MB.
PAGE: Final = 300
#: A window that is full is not cut below this.
_SHORTEST_NS: Final = 1_000_000
_TIMEOUT_S: Final = 60.0
#: Named when there is no such service.
_NAMED: Final = 12


class JaegerError(ReqPathError):
    """A Jaeger does not answer, or not as Jaeger does."""


class JaegerReader:
    """Reads traces from one Jaeger."""

    def __init__(self, url: str, *, page: int = PAGE) -> None:
        """`url` is the address of the user interface, with its base path if it has one.

        Raises: ConfigurationError when it is no address.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"{url!r} is no address of a Jaeger; it takes one such as http://localhost:16686"
            )
        self.url = url.rstrip("/")
        self.counts = LineCounts()
        #: Windows that held more traces than Jaeger would tell of.
        self.cut_windows = 0
        self._page = page

    def list_services(self) -> list[str]:
        """Return the names of the services that have spans. Raises: JaegerError."""
        document = self._get_json("/api/v3/services")
        services = document.get("services", [])
        return sorted(str(name) for name in services) if isinstance(services, list) else []

    def fetch_trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace, empty when there is none. Raises: JaegerError."""
        quoted = urllib.parse.quote(trace_id, safe="")
        return self._get_spans(f"/api/v3/traces/{quoted}", {"raw_traces": "true"})

    def read_traces(self, service: str, start_ns: int, end_ns: int) -> Iterator[list[Span]]:
        """Yield each trace in which `service`, or nginx before it, has a span that began in this time.

        Raises: JaegerError, also when there is no such service.
        """
        services = self._find_services(service)
        seen: set[str] = set()
        width_ns = end_ns - start_ns
        while start_ns < end_ns:
            width_ns = min(width_ns, end_ns - start_ns)
            traces: dict[str, list[Span]] = {}
            full = False
            for name in services:
                found = self._search(name, start_ns, start_ns + width_ns)
                full = full or len(found) >= self._page
                traces |= found
            if full and width_ns > _SHORTEST_NS:
                width_ns = max(_SHORTEST_NS, width_ns // 4)
                continue
            self.cut_windows += full
            for trace_id, spans in traces.items():
                if trace_id not in seen:
                    seen.add(trace_id)
                    yield spans
            start_ns += width_ns
            if len(traces) < self._page // 4:
                width_ns *= 2

    def _find_services(self, service: str) -> list[str]:
        known = self.list_services()
        # What nginx answered by itself has no span of the app's.
        found = [name for name in (service, f"{service}-nginx") if name in known]
        if not found:
            named = ", ".join(known[:_NAMED]) + (" …" if len(known) > _NAMED else "")
            raise JaegerError(
                f"the Jaeger at {self.url} knows no service {service}; it knows {named or 'none at all yet'}"
            )
        return found

    def _search(self, service: str, start_ns: int, end_ns: int) -> dict[str, list[Span]]:
        """Return at most a page of traces by id."""
        spans = self._get_spans(
            "/api/v3/traces",
            {
                "query.service_name": service,
                "query.start_time_min": _format_instant(start_ns),
                "query.start_time_max": _format_instant(end_ns - 1),
                "query.num_traces": str(self._page),
                # As they were sent: without Jaeger's own ideas of the clocks.
                "query.raw_traces": "true",
            },
        )
        traces: dict[str, list[Span]] = {}
        for span in spans:
            traces.setdefault(span.trace_id, []).append(span)
        return traces

    def _get_spans(self, path: str, query: dict[str, str]) -> list[Span]:
        answer = self._get(f"{path}?{urllib.parse.urlencode(query)}")
        if answer is None:
            return []
        try:
            return parse_answer(answer, self.counts)
        except ValueError as error:
            raise self._refuse() from error

    def _get_json(self, path: str) -> dict[str, Any]:
        answer = self._get(path)
        try:
            document = json.loads(answer or b"")
        except ValueError as error:
            raise self._refuse() from error
        if not isinstance(document, dict):
            raise self._refuse()
        return document

    def _get(self, path: str) -> bytes | None:
        """Return the answer, None when Jaeger says that it has no such trace. Raises: JaegerError."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - checked
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                message = _read_message(error)
            if error.code == 404 and message is not None:
                return None
            raise JaegerError(
                f"the Jaeger at {self.url} answered {error.code}: {message or error.reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise JaegerError(
                f"no Jaeger answers at {self.url}: {reason}; the address is that of its user interface, such "
                "as http://localhost:16686, and `reqpath jaeger` starts one"
            ) from error

    def _refuse(self) -> JaegerError:
        return JaegerError(
            f"what answers at {self.url} is not the query API of a Jaeger 1.5x or 2.x; if its user interface "
            "is below a path, that is part of the address"
        )


def _read_message(error: urllib.error.HTTPError) -> str | None:
    """Return what Jaeger says is wrong; None when it was not Jaeger that said it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return str(json.loads(error.read())["error"]["message"])
    return None


def _format_instant(instant_ns: int) -> str:
    """Return an instant as RFC 3339 has it, to the nanosecond."""
    seconds, nanoseconds = divmod(instant_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
