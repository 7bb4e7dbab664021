"""An OTLP backend on a port of this machine, as well or as badly behaved as a test wants it."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Reply:
    """What the backend answers; `hang` is waited for first."""

    status: int = 200
    retry_after: str = ""
    hang: threading.Event | None = None
    #: Take the request's spans; by default when the status says so.
    accept: bool | None = None
    body: bytes = b""
    content_type: str = "application/x-protobuf"


class Backend:
    """What has arrived, and how the next requests are answered."""

    def __init__(self) -> None:
        self.port = 0
        # A test looks at what has arrived between two requests as well.
        self.lock = threading.RLock()
        #: Of each accepted request its bytes, of each request its status and headers.
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        #: The path of each request, `/v1/traces` or another, of which only that is known.
        self.targets: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.decide: Callable[[ExportTraceServiceRequest], Reply] = lambda _: Reply()
        self._arrived: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self._cuts = 0

    @property
    def url(self) -> str:
        """The address for `--otlp`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[tuple[str, Span]]:
        """All accepted spans, each with its service's name."""
        with self.lock:
            bodies = list(self.bodies)
        return [pair for body in bodies for pair in _list_spans(ExportTraceServiceRequest.FromString(body))]

    def arrivals(self) -> Counter[str]:
        """Return how often each path arrived, by its trace id: by the one span that has the reason."""
        with self.lock:
            return Counter(self._arrived)

    def start(self) -> None:
        """Listen, again on the same port when it did before."""
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                backend.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has it so
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = False
            allow_reuse_address = True

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.connections: set[Any] = set()

            def process_request(self, request: Any, client_address: Any) -> None:
                self.connections.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                self.connections.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing of a client that has gone."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def stop(self) -> None:
        """Close the port and every connection, as a killed backend does."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()

        def cut() -> None:
            for connection in list(server.connections):  # type: ignore[attr-defined]  # of the class above
                with suppress(OSError):
                    connection.shutdown(2)

        # Nothing that it has taken stays without its answer.
        self.between_requests(cut)
        server.server_close()

    def between_requests(self, action: Callable[[], None]) -> None:
        """Do something while nothing is accepted; what is under way then is cut off without an answer."""
        with self.lock:
            action()
            self._cuts += 1

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Take one request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.targets.append(handler.path)
        if handler.path.endswith("/metrics"):
            body = b""
        cuts = self._cuts
        request = ExportTraceServiceRequest.FromString(body)
        reply = self.decide(request)
        if reply.hang is not None:
            reply.hang.wait(30)
        with self.lock:
            # A killed client's request may still have lain in the socket; one that waits in vain leaves too.
            left = reply.hang is None and _has_left(handler.connection)
            if cuts != self._cuts or self._server is None or left:
                handler.close_connection = True
                return
            self.statuses.append(reply.status)
            self.headers.append(dict(handler.headers))
            if 200 <= reply.status < 300 if reply.accept is None else reply.accept:
                self.bodies.append(body)
                self._arrived += [
                    span.trace_id.hex()
                    for _, span in _list_spans(request)
                    if any(attribute.key == "reqpath.kept" for attribute in span.attributes)
                ]
            handler.send_response(reply.status)
            if reply.retry_after:
                handler.send_header("Retry-After", reply.retry_after)
            handler.send_header("Content-Type", reply.content_type)
            handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            handler.wfile.write(reply.body)


def _has_left(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _list_spans(request: ExportTraceServiceRequest) -> Iterator[tuple[str, Span]]:
    for of_resource in request.resource_spans:
        service = _service_name(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield service, span


def _service_name(attributes: Any) -> str:
    return next((str(each.value.string_value) for each in attributes if each.key == "service.name"), "")


@contextmanager
def start_backend() -> Iterator[Backend]:
    """Run a backend within the `with`."""
    backend = Backend()
    backend.start()
    try:
        yield backend
    finally:
        backend.stop()
