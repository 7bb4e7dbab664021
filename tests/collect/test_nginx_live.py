"""The shipped files in a real nginx: what the app is told, and what the collector records of it.

The collector's socket is opened in the test's own process, and is emptied when the requests are done.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reqpath.collect.receiver import DatagramSource, Receiver
from reqpath.configuration import (
    HTTP,
    HTTP_HIRES,
    LOCATION,
    PROXY,
    SERVER_HIRES,
    NginxChoices,
    build_nginx_files,
    parse_listen,
)
from reqpath.errors import ServerError
from reqpath.record import NginxRecord
from reqpath.servers.deployment import find_perl_module, find_program
from reqpath.servers.process import find_free_port, is_listening, start_process
from reqpath.settings import Settings
from reqpath.spool import SpoolReader
from reqpath.stamps import parse_nginx_stamp, parse_request_start, parse_traceparent

pytestmark = pytest.mark.live

_START_S = 20.0
_TRACE = "0af7651916cd43dd8448eb211c80319c"
_PARENT = "b7ad6b7169203331"


@dataclass(frozen=True)
class Upstream:
    """A uWSGI that answers with what it was told, by its own protocol and by HTTP."""

    socket: str
    http_port: int


@dataclass(frozen=True)
class Answer:
    """nginx's answer."""

    status: int
    body: bytes

    @property
    def told(self) -> dict[str, str]:
        """What the app was told."""
        told = json.loads(self.body)
        assert isinstance(told, dict)
        return told


class Nginx:
    """An nginx that is running, and the collector of its lines."""

    def __init__(self, port: int, receiver: Receiver, spool: str) -> None:
        self.port = port
        self._receiver = receiver
        self._spool = spool

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.read())

    def collect(self, count: int) -> list[NginxRecord]:
        """Return the records of `count` requests; the collector ends with this."""
        give_up_s = time.monotonic() + _START_S
        counts = self._receiver.counts
        self._receiver.stop(when=lambda: counts.received >= count or time.monotonic() > give_up_s)
        self._receiver.run()
        assert counts.recorded == count, counts
        records = [record for _info, records in SpoolReader(self._spool).read() for record in records]
        return [record for record in records if isinstance(record, NginxRecord)]


Start = Callable[..., contextlib.AbstractContextManager[Nginx]]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """Run the echoing app under uWSGI."""
    try:
        uwsgi = find_program("uwsgi", "the live tests need it")
        find_program("nginx", "the live tests need it")
    except ServerError as error:
        pytest.skip(str(error))
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory:
        path = os.path.join(directory, "app.sock")
        argv = [uwsgi, "--master", "--die-on-term", "--need-app", "--disable-logging", "--buffer-size=16384"]
        argv += ["--socket", path, "--chmod-socket=666", "--http-socket", f"127.0.0.1:{port}"]
        argv += ["--wsgi-file", str(Path(__file__).with_name("echo_app.py"))]
        os.chmod(directory, 0o755)
        with start_process(
            argv,
            os.path.join(directory, "uwsgi.log"),
            lambda: is_listening(path) and is_listening(("127.0.0.1", port)),
            _START_S,
            "uWSGI",
        ):
            yield Upstream(path, port)


@pytest.fixture
def start(upstream: Upstream, tmp_path: Path) -> Start:
    """Return a function that starts nginx with the shipped files around some locations."""

    @contextlib.contextmanager
    def start_nginx(
        locations: str,
        *,
        http: str = "",
        hires: bool = False,
        trusted: tuple[str, ...] = (),
        unix: bool = False,
    ) -> Iterator[Nginx]:
        module = find_perl_module()
        if hires and module is None:
            pytest.skip("nginx's perl module is not installed")
        port = find_free_port()
        listen = f"unix:{tmp_path}/log.sock" if unix else f"udp:127.0.0.1:{find_free_port()}"
        for proxy in (False, True):
            choices = NginxChoices(listen, trusted, hires=hires, proxy=proxy)
            for name, text in build_nginx_files(choices).items():
                (tmp_path / name).write_text(text)
        temporary = "".join(
            f"{name}_temp_path {tmp_path}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(f"""
{f"load_module {module};" if hires else ""}
{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes 1; pid {tmp_path}/pid; error_log stderr warn;
events {{ }}
http {{
    {temporary}
    include {HTTP};
    {f"include {HTTP_HIRES};" if hires else ""}
    {http}
    server {{
        listen 127.0.0.1:{port};
        {f"include {SERVER_HIRES};" if hires else ""}
        {locations}
    }}
}}
""")
        spool = str(tmp_path / "spool")
        with (
            contextlib.closing(DatagramSource(parse_listen(listen))) as source,
            start_process(
                [find_program("nginx", ""), "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf"],
                str(tmp_path / "nginx.log"),
                lambda: is_listening(("127.0.0.1", port)),
                _START_S,
                "nginx",
            ),
        ):
            yield Nginx(port, Receiver(Settings(spool=spool), [source], report=list[str]().append), spool)

    return start_nginx


@pytest.fixture
def to_uwsgi(upstream: Upstream) -> str:
    """Return the location of a user's nginx.conf."""
    return f"location / {{ {_pass_to(upstream)} }}"


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("hires", [False, True])
def test_app_and_collector_are_told_the_same(start: Start, to_uwsgi: str, hires: bool, unix: bool) -> None:
    before_ns = time.time_ns()
    with start(to_uwsgi, hires=hires, unix=unix) as nginx:
        told = nginx.request("/goods/7?secret=1").told
        after_ns = time.time_ns()
        (record,) = nginx.collect(1)
    assert parse_traceparent(told["REQPATH_TRACEPARENT"]) == (record.trace_id, record.span_id, True)
    assert told["HTTP_TRACEPARENT"] == told["REQPATH_TRACEPARENT"]
    assert record.trace_id.startswith(record.span_id)
    start_stamp, pass_stamp = map(parse_nginx_stamp, told["REQPATH_NGINX"].split(","))
    assert start_stamp is not None
    assert pass_stamp is not None
    resolution_ns = 1_000 if hires else 1_000_000
    assert (start_stamp[1], pass_stamp[1], record.resolution_ns) == (resolution_ns,) * 3
    assert (record.start_ns, record.pass_ns) == (start_stamp[0], pass_stamp[0]) or not hires
    assert record.pass_ns == pass_stamp[0]
    # nginx's own clock stands still while it turns its loop, so a stamp may be early.
    slack_ns = 100_000_000
    assert before_ns - slack_ns <= start_stamp[0] <= pass_stamp[0] <= record.end_ns <= after_ns + slack_ns
    assert (record.status, record.method, record.path, record.host) == (200, "GET", "/goods/7", "127.0.0.1")
    assert (record.parent_id, record.protocol) == ("", "HTTP/1.1")
    assert (record.scheme, record.client_address) == ("http", "127.0.0.1")
    assert [(attempt.address[:6], attempt.status) for attempt in record.attempts] == [("unix:/", 200)]


@pytest.mark.parametrize("flag", ["00", "01"])
def test_a_trusted_clients_trace_is_continued(start: Start, to_uwsgi: str, flag: str) -> None:
    headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-{flag}", "tracestate": "shop=1"}
    with start(to_uwsgi, trusted=("127.0.0.0/8",)) as nginx:
        told = nginx.request("/", headers=headers).told
        (record,) = nginx.collect(1)
    assert (record.trace_id, record.parent_id, record.sampled) == (_TRACE, _PARENT, flag == "01")
    assert told["REQPATH_TRACEPARENT"] == f"00-{_TRACE}-{record.span_id}-{flag}"
    assert told["HTTP_TRACESTATE"] == "shop=1"


def test_an_untrusted_clients_trace_is_not(start: Start, to_uwsgi: str) -> None:
    headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-00", "tracestate": "shop=1"}
    with start(to_uwsgi, trusted=("10.0.0.0/8",)) as nginx:
        told = nginx.request("/", headers=headers).told
        (record,) = nginx.collect(1)
    assert (record.trace_id == _TRACE, record.parent_id, record.sampled) == (False, "", True)
    assert told["HTTP_TRACEPARENT"] == f"00-{record.trace_id}-{record.span_id}-01"
    assert "HTTP_TRACESTATE" not in told


@pytest.mark.parametrize(
    ("text", "continued"),
    [
        (f"00-{_TRACE}-{_PARENT}-01", True),
        (f"cc-{_TRACE}-{_PARENT}-01", True),
        (f"cc-{_TRACE}-{_PARENT}-01-what-comes-later", True),
        (f"00-{_TRACE}-{_PARENT}-01-x", False),
        (f"cc-{_TRACE}-{_PARENT}-01x", False),
        (f"ff-{_TRACE}-{_PARENT}-01", False),
        (f"00-{'0' * 32}-{_PARENT}-01", False),
        (f"00-{_TRACE}-{'0' * 16}-01", False),
        (f"00-{_TRACE.upper()}-{_PARENT}-01", False),
        (f"00-{_TRACE}-{_PARENT}-0", False),
        ('"}{\\', False),
        ("", False),
    ],
)
def test_nginx_and_the_worker_agree_on_what_a_traceparent_is(
    start: Start, to_uwsgi: str, text: str, continued: bool
) -> None:
    with start(to_uwsgi, trusted=("127.0.0.1",)) as nginx:
        told = nginx.request("/", headers={"traceparent": text}).told
        (record,) = nginx.collect(1)
    assert (record.trace_id == _TRACE) is continued
    assert (parse_traceparent(text) is not None) is continued
    assert parse_traceparent(told["REQPATH_TRACEPARENT"]) == (record.trace_id, record.span_id, True)


def test_headers_forge_nothing(start: Start, to_uwsgi: str) -> None:
    forged = {
        "REQPATH_NGINX": "1.0,1.0",
        "REQPATH-NGINX": "1.0,1.0",
        "Reqpath-Nginx": "1.0,1.0",
        "Reqpath-Traceparent": f"00-{_TRACE}-{_PARENT}-00",
        "traceparent": f"00-{_TRACE}-{_PARENT}-00",
        "X-Request-Start": "t=946684801",
    }
    with start(to_uwsgi) as nginx:
        told = nginx.request("/", headers=forged).told
        (record,) = nginx.collect(1)
    assert _TRACE not in told["REQPATH_TRACEPARENT"] + told["HTTP_TRACEPARENT"]
    assert parse_nginx_stamp(told["REQPATH_NGINX"].split(",")[1]) == (record.pass_ns, 1_000_000)
    assert (record.parent_id, record.sampled) == ("", True)


@pytest.mark.parametrize("hires", [False, True])
def test_a_proxied_app_gets_headers_of_nginxs_own(start: Start, upstream: Upstream, hires: bool) -> None:
    location = f"location / {{ proxy_pass http://127.0.0.1:{upstream.http_port}; include {PROXY}; }}"
    forged = {
        "X-Request-Start": "t=946684801",
        "X-Queue-Start": "t=946684801",
        "traceparent": f"00-{_TRACE}-{_PARENT}-00",
        "tracestate": "shop=1",
    }
    with start(location, hires=hires) as nginx:
        told = nginx.request("/", headers=forged).told
        (record,) = nginx.collect(1)
    stamps = parse_request_start(told["HTTP_X_REQUEST_START"])
    assert stamps is not None
    start_ns, pass_ns, resolution_ns = stamps
    assert (pass_ns, resolution_ns) == (record.pass_ns, 1_000 if hires else 1_000_000)
    assert start_ns is not None
    assert record.start_ns is not None
    # Perl's floating point is good to a quarter of a microsecond there.
    assert abs(start_ns - record.start_ns) <= resolution_ns
    assert told["HTTP_TRACEPARENT"] == f"00-{record.trace_id}-{record.span_id}-01"
    assert {"HTTP_X_QUEUE_START", "HTTP_TRACESTATE"}.isdisjoint(told)


@pytest.mark.parametrize("hires", [False, True])
def test_a_refused_body_never_reached_an_upstream(start: Start, to_uwsgi: str, hires: bool) -> None:
    with start("client_max_body_size 1k;" + to_uwsgi, hires=hires) as nginx:
        answer = nginx.request("/upload", method="POST", body=b"x" * 5_000)
        (record,) = nginx.collect(1)
    assert (answer.status, record.status, record.method, record.path) == (413, 413, "POST", "/upload")
    assert (record.attempts, record.pass_ns) == ([], None)
    assert record.start_ns is not None
    assert record.start_ns <= record.end_ns


@pytest.mark.parametrize("hires", [False, True])
def test_a_request_that_is_no_http_has_a_record(start: Start, to_uwsgi: str, hires: bool) -> None:
    with start(to_uwsgi, hires=hires) as nginx:
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=_START_S) as connection:
            connection.sendall(b"\xff\x00 \r\n\r\n")
            assert b"400 Bad Request" in connection.recv(65536)
        (record,) = nginx.collect(1)
    assert (record.status, record.path, record.attempts) == (400, "", [])
    # The server's `set` did not run, so the start is told to the millisecond.
    assert record.resolution_ns == 1_000_000


def test_a_dead_upstream_is_an_attempt_that_failed(start: Start, tmp_path: Path) -> None:
    location = f"location / {{ uwsgi_pass unix:{tmp_path}/nobody.sock; include {LOCATION}; }}"
    with start(location) as nginx:
        status = nginx.request("/").status
        (record,) = nginx.collect(1)
    (attempt,) = record.attempts
    assert (status, record.status, attempt.status, attempt.connect_ns) == (502, 502, 502, None)
    assert attempt.address == f"unix:{tmp_path}/nobody.sock"


def test_a_retried_request_is_one_record_of_two_attempts(
    start: Start, to_uwsgi: str, upstream: Upstream, tmp_path: Path
) -> None:
    http = f"upstream app {{ server unix:{tmp_path}/nobody.sock; server unix:{upstream.socket} backup; }}"
    location = to_uwsgi.replace(f"unix:{upstream.socket}", "app")
    with start(location, http=http) as nginx:
        told = nginx.request("/").told
        (record,) = nginx.collect(1)
    assert [(attempt.address, attempt.status) for attempt in record.attempts] == [
        (f"unix:{tmp_path}/nobody.sock", 502),
        (f"unix:{upstream.socket}", 200),
    ]
    assert (record.status, record.attempts[0].header_ns) == (200, None)
    assert parse_nginx_stamp(told["REQPATH_NGINX"].split(",")[1]) == (record.pass_ns, 1_000_000)


def test_a_fallback_to_another_group_is_one_record_of_two_attempts(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    locations = f"""
        location / {{
            uwsgi_pass unix:{tmp_path}/nobody.sock; include {LOCATION}; error_page 502 = @other;
        }}
        location @other {{ {_pass_to(upstream)} }}
    """
    with start(locations) as nginx:
        told = nginx.request("/").told
        (record,) = nginx.collect(1)
    assert [attempt.status for attempt in record.attempts] == [502, 200]
    assert parse_traceparent(told["REQPATH_TRACEPARENT"]) == (record.trace_id, record.span_id, True)


def _pass_to(upstream: Upstream) -> str:
    return f"include /etc/nginx/uwsgi_params; uwsgi_pass unix:{upstream.socket}; include {LOCATION};"


@contextlib.contextmanager
def _silent_server(tmp_path: Path) -> Iterator[str]:
    """Listen, and never answer."""
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        yield path


def test_an_upstream_that_is_too_slow_is_a_504(start: Start, tmp_path: Path) -> None:
    with _silent_server(tmp_path) as path:
        location = f"location / {{ uwsgi_pass unix:{path}; uwsgi_read_timeout 50ms; include {LOCATION}; }}"
        with start(location) as nginx:
            status = nginx.request("/").status
            (record,) = nginx.collect(1)
    assert (status, record.status, [attempt.status for attempt in record.attempts]) == (504, 504, [504])


def test_a_client_that_leaves_is_a_499(start: Start, tmp_path: Path) -> None:
    with (
        _silent_server(tmp_path) as path,
        start(f"location / {{ uwsgi_pass unix:{path}; include {LOCATION}; }}") as nginx,
    ):
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=_START_S) as connection:
            connection.sendall(b"GET /left HTTP/1.1\r\nHost: shop\r\n\r\n")
        (record,) = nginx.collect(1)
    assert (record.status, record.path, record.host) == (499, "/left", "shop")


def test_a_cache_hit_never_reached_the_app(start: Start, to_uwsgi: str, tmp_path: Path) -> None:
    http = f"uwsgi_cache_path {tmp_path}/cache keys_zone=app:1m; uwsgi_cache_key $uri;"
    with start("uwsgi_cache app;" + to_uwsgi, http=http) as nginx:
        bodies = {nginx.request("/").body for _ in range(2)}
        first, second = nginx.collect(2)
    assert len(bodies) == 1
    assert (first.cache_status, len(first.attempts)) == ("MISS", 1)
    assert (second.cache_status, second.attempts, second.pass_ns) == ("HIT", [], None)
    assert first.span_id != second.span_id


def test_a_static_file_never_reached_the_app(start: Start, tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "style.css").write_text("body { }")
    with start(f"location /static/ {{ root {tmp_path}; }}") as nginx:
        assert nginx.request("/static/style.css").status == 200
        (record,) = nginx.collect(1)
    assert (record.status, record.path, record.attempts) == (200, "/static/style.css", [])


def test_a_strange_and_long_path_arrives_readable_and_bounded(start: Start, to_uwsgi: str) -> None:
    target = b'/a"b\\c\xff{}%20%C3%A9' + b"x" * 3_000 + b'?q="'
    with start(to_uwsgi) as nginx:
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=_START_S) as connection:
            connection.sendall(b"GET %s HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n" % target)
            assert b"200 OK" in connection.recv(65536)
        (record,) = nginx.collect(1)
    assert record.path.rstrip("x") == '/a"b\\c\ufffd{} é'
    assert 1_000 < len(record.path) <= 1_024
    assert record.host == "a.example"


def test_a_slow_upload_ends_before_the_pass(start: Start, to_uwsgi: str) -> None:
    with start(to_uwsgi, hires=True) as nginx:
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=_START_S) as connection:
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: 5\r\n\r\nab"
            )
            # Only once nginx holds the head is the rest of the body sent.
            _wait_until_read(connection)
            half_ns = time.time_ns()
            connection.sendall(b"cde")
            assert b"200 OK" in connection.recv(65536)
        (record,) = nginx.collect(1)
    assert record.start_ns is not None
    assert record.pass_ns is not None
    assert record.start_ns <= half_ns + 1_000
    assert half_ns - 1_000 <= record.pass_ns


def _wait_until_read(connection: socket.socket) -> None:
    """Wait until the peer's process has read what was sent; the kernel tells how much of it is not."""
    port = connection.getsockname()[1]
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s:
        with open("/proc/net/tcp", encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if (
                    fields[2].endswith(f":{port:04X}")
                    and fields[4].endswith(":00000000")
                    and fields[3] == "01"
                ):
                    return
    raise AssertionError("nginx did not read the request")
