"""A Jaeger's traces are read in windows, each once; whatever is no Jaeger ends in a message."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqpath.errors import ConfigurationError
from reqpath.servers.process import find_free_port
from reqpath.traces.jaeger import JaegerError, JaegerReader

_BEGIN_NS = 1_800_000_000_000_000_000
_HOUR_NS = 3_600_000_000_000
Answer = Callable[[str, dict[str, str]], tuple[int, str]]


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """Serve HTTP on a port of its own; `answer` gets path and query and returns status and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urllib.parse.urlsplit(self.path)
            status, body = answer(address.path, dict(urllib.parse.parse_qsl(address.query)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def answer_like_jaeger(starts_ns: dict[str, list[int]]) -> Answer:
    """Return an answer of a Jaeger that holds traces of one span, by service and start."""

    def answer(path: str, query: dict[str, str]) -> tuple[int, str]:
        if path.endswith("/services"):
            return 200, json.dumps({"services": list(starts_ns)})
        first, last = (_parse(query[f"query.start_time_{end}"]) for end in ("min", "max"))
        service = query["query.service_name"]
        found = [
            (number, start_ns)
            for number, start_ns in enumerate(starts_ns[service], 1)
            if first <= start_ns <= last
        ][: int(query["query.num_traces"])]
        if not found:
            return 404, json.dumps({"error": {"httpCode": 404, "message": "No traces found"}})
        groups = [
            {"scopeSpans": [{"spans": [_build_span(f"{service}{number}", start_ns)]}]}
            for number, start_ns in found
        ]
        return 200, json.dumps({"result": {"resourceSpans": groups}})

    return answer


def _parse(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1_000_000_000 + int(fraction)


def _build_span(name: str, start_ns: int) -> dict[str, object]:
    return {
        "traceId": f"{abs(hash(name)):032x}",
        "spanId": "1" * 16,
        "name": name,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + 1),
    }


@settings(max_examples=30)
@given(
    st.sets(st.integers(0, 3_599_999), max_size=40)
    # Bursts, of which a window of some ms still holds too many.
    | st.sets(st.integers(0, 40), max_size=40)
)
def test_every_trace_of_the_time_is_read_once(offsets_ms: set[int]) -> None:
    starts_ns = [_BEGIN_NS + offset_ms * 1_000_000 for offset_ms in offsets_ms]
    outside = [_BEGIN_NS - 1, _BEGIN_NS + _HOUR_NS]
    with serve(answer_like_jaeger({"shop": [*starts_ns, *outside]})) as url:
        reader = JaegerReader(url, page=5)
        traces = list(reader.read_traces("shop", _BEGIN_NS, _BEGIN_NS + _HOUR_NS))
    assert sorted(trace[0].start_ns for trace in traces) == sorted(starts_ns)
    assert reader.cut_windows == 0


def test_more_traces_at_one_instant_than_jaeger_tells_of_are_counted() -> None:
    with serve(answer_like_jaeger({"shop": [_BEGIN_NS] * 9})) as url:
        reader = JaegerReader(url, page=5)
        assert len(list(reader.read_traces("shop", _BEGIN_NS, _BEGIN_NS + _HOUR_NS))) == 5
        assert reader.cut_windows == 1


def test_what_nginx_answered_by_itself_is_read_too() -> None:
    with serve(
        answer_like_jaeger({"shop-nginx": [_BEGIN_NS], "shop": [_BEGIN_NS], "other": [_BEGIN_NS]})
    ) as url:
        traces = JaegerReader(url).read_traces("shop", _BEGIN_NS, _BEGIN_NS + _HOUR_NS)
        assert [trace[0].name for trace in traces] == ["shop1", "shop-nginx1"]


def test_a_service_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with (
        serve(answer_like_jaeger({"shop": [], "cart": []})) as url,
        pytest.raises(JaegerError, match="knows no service shp; it knows cart, shop"),
    ):
        list(JaegerReader(url).read_traces("shp", 0, 1))


def test_where_nothing_listens_the_message_says_what_to_do() -> None:
    with pytest.raises(JaegerError, match=r"refused.*`reqpath jaeger` starts one"):
        JaegerReader(f"http://127.0.0.1:{find_free_port()}").list_services()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "<!DOCTYPE html>", "not the query API"),
        (200, "[]", "not the query API"),
        (404, "nothing here", "answered 404: Not Found"),
        (500, '{"error": {"message": "storage is down"}}', "answered 500: storage is down"),
        (403, '{"error": "no"}', "answered 403: Forbidden"),
    ],
)
def test_an_answer_that_is_none_of_jaegers_is_an_error(status: int, body: str, message: str) -> None:
    with serve(lambda _path, _query: (status, body)) as url, pytest.raises(JaegerError, match=message):
        JaegerReader(url).list_services()
    with serve(lambda _path, _query: (status, body)) as url, pytest.raises(JaegerError, match=message):
        JaegerReader(url).fetch_trace("ab" * 16)


def test_a_trace_that_is_not_there_has_no_spans() -> None:
    with serve(lambda _path, _query: (404, '{"error": {"message": "No traces found"}}')) as url:
        assert JaegerReader(url).fetch_trace("ab" * 16) == []


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="takes one such as http://localhost:16686"):
        JaegerReader("localhost:16686")
