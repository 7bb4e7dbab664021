"""A small HTTP server for one page and the figures that it asks for; both are made elsewhere.

`/` is the page, and `/data?after=TAG` the newest figures, or 204 when the one who asks has them already::

    with PageServer("127.0.0.1", 8370, pack("text/html", page)) as server:
        threading.Thread(target=server.serve_forever).start()
        server.publish("1", pack("application/json", data))

It answers GET and HEAD, changes nothing, and allows no other site to read what it answers. A request for a
host that it is not called is refused: a site whose name was made to lead to this machine (DNS rebinding) is
no way in.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import ipaddress
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Collection
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from reqpath.errors import ConfigurationError

#: A browser has six at most; more are closed at once.
MAX_CONNECTIONS: Final = 64
#: A name or an address, and perhaps a port.
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)
#: A connection on which nothing moves for so long is closed.
_IDLE_S: Final = 60.0
#: Beside the policy that is in the page itself, which can't say who may frame it.
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class Content(NamedTuple):
    """What is answered, as it is and compressed."""

    kind: str
    plain: bytes
    packed: bytes


def pack(kind: str, text: str) -> Content:
    """Make the content of a text."""
    plain = text.encode()
    # Of the figures the fastest level leaves a fifth; higher ones take much longer for little.
    return Content(f"{kind}; charset=utf-8", plain, gzip.compress(plain, 1, mtime=0))


class PageServer(ThreadingMixIn, TCPServer):
    """Serves the page and what was published last."""

    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int, page: Content, names: Collection[str] = ()) -> None:
        """Listen; `names` are further ones by which browsers may call it.

        Raises: ConfigurationError when it can't.
        """
        self.page = page
        #: The newest figures and what tells them from others.
        self.figures: tuple[str, Content] | None = None
        #: Of `time.monotonic`: when figures were asked for last.
        self.asked_s = -math.inf
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"--host is {host!r}, which is no address of this machine") from error
        self.address_family, address = found[0][0], str(found[0][4][0])
        #: Whether only this machine can reach it.
        self.is_private = ipaddress.ip_address(address).is_loopback
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        if not self.is_private:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise ConfigurationError(_explain(error, host, port)) from error

    @property
    def url(self) -> str:
        """What to open."""
        address, port = self.server_address[:2]
        parsed = ipaddress.ip_address(str(address))
        host = socket.gethostname() if parsed.is_unspecified else str(address)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def publish(self, tag: str, content: Content) -> None:
        """Have these figures answered from now on."""
        self.figures = tag, content

    def is_called(self, host: str) -> bool:
        """Tell whether a `Host` header is one of this server's own."""
        if not _HOST.fullmatch(host):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            # An address can't be made to lead elsewhere; a name can.
            return ipaddress.ip_address(name).is_loopback or not self.is_private
        except ValueError:
            return name in self._names

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread serve a connection, unless there are too many."""
        with self._lock:
            room = len(self._connections) < MAX_CONNECTIONS
            if room:
                self._connections.add(request)
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, but not that a browser went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Close all connections, and wait until their threads have ended."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers what comes over one connection."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer a request."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # A body would be taken for the next request.
            self.close_connection = True
        hosts = self.headers.get_all("Host", [])
        path, _, query = self.path.partition("?")
        if len(hosts) != 1:
            self._answer_text(HTTPStatus.BAD_REQUEST, "A request names one Host.")
        elif not self.server.is_called(hosts[0]):
            self._answer_text(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This server is not called so. If it should be: reqpath serve --allow-host NAME",
            )
        elif path == "/":
            self._answer(HTTPStatus.OK, self.server.page)
        elif path == "/data":
            self.server.asked_s = time.monotonic()
            figures = self.server.figures
            if figures is None or query == f"after={figures[0]}":
                self._answer(HTTPStatus.NO_CONTENT)
            else:
                self._answer(HTTPStatus.OK, figures[1])
        elif path == "/favicon.ico":
            self._answer(HTTPStatus.NO_CONTENT)
        else:
            self._answer_text(HTTPStatus.NOT_FOUND, "There is one page here: /")

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what `BaseHTTPRequestHandler` has found wrong, and end the connection."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._answer_text(HTTPStatus.METHOD_NOT_ALLOWED, "This server answers GET and HEAD.")
        else:
            self._answer_text(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing of each request."""

    def version_string(self) -> str:
        """Return what the `Server` header says."""
        return "reqpath"

    def _answer_text(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, Content("text/plain; charset=utf-8", f"{text}\n".encode(), b""))

    def _answer(self, status: HTTPStatus, content: Content | None = None) -> None:
        self.send_response(status)
        for name, value in _HEADERS:
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        body = b""
        if content is not None:
            body = content.plain
            self.send_header("Content-Type", content.kind)
            if content.packed:
                self.send_header("Vary", "Accept-Encoding")
                if "gzip" in self.headers.get("Accept-Encoding", ""):
                    body = content.packed
                    self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; name another with --port, or have a free one found with --port 0"
    if error.errno == errno.EACCES:
        return f"port {port} is for root alone; name one from 1024 on with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host is {host!r}, which is no address of this machine"
    return f"can't listen on {host}, port {port}: {error.strerror}"
