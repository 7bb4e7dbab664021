"""The server of a page: what it answers, and to whom it answers nothing."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from reqpath.commands.page_server import MAX_CONNECTIONS, PageServer, pack
from reqpath.errors import ConfigurationError

PAGE = "<!doctype html>\n" + "page " * 100


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0, pack("text/html", PAGE), ["shop.example"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str = "/", *, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers with their names in small letters, and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return response.status, named, response.read()
    finally:
        connection.close()


def test_the_page_is_at_its_root(server: PageServer) -> None:
    status, headers, body = ask(server)
    assert (status, body.decode()) == (200, PAGE)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_nobody_else_may_frame_it_read_it_or_guess_what_it_is(server: PageServer) -> None:
    for path in ("/", "/data", "/nothing"):
        _, headers, _ = ask(server, path, Origin="http://evil.example")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]


def test_figures_are_answered_once_to_who_says_which_it_has(server: PageServer) -> None:
    assert ask(server, "/data?after=")[::2] == (204, b"")
    server.publish("a-1", pack("application/json", '{"n": 1}'))
    status, headers, body = ask(server, "/data?after=")
    assert (status, headers["content-type"], body) == (200, "application/json; charset=utf-8", b'{"n": 1}')
    assert ask(server, "/data?after=a-1")[0] == 204
    server.publish("a-2", pack("application/json", '{"n": 2}'))
    assert ask(server, "/data?after=a-1")[2] == b'{"n": 2}'
    # Of a server before this one.
    assert ask(server, "/data?after=z-7")[2] == b'{"n": 2}'


def test_it_knows_when_figures_were_asked_for(server: PageServer) -> None:
    before = server.asked_s
    ask(server)
    assert server.asked_s == before
    ask(server, "/data")
    assert server.asked_s > before


def test_what_a_browser_can_unpack_is_compressed(server: PageServer) -> None:
    _, headers, body = ask(server, Accept_Encoding="gzip, deflate")
    assert headers["content-encoding"] == "gzip"
    assert headers["vary"] == "Accept-Encoding"
    assert int(headers["content-length"]) == len(body) < len(PAGE)
    assert gzip.decompress(body).decode() == PAGE


def test_head_has_the_headers_alone(server: PageServer) -> None:
    status, headers, body = ask(server, method="HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(PAGE)), b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_other_methods_are_refused(server: PageServer, method: str) -> None:
    status, headers, body = ask(server, method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert body == b"This server answers GET and HEAD.\n"


@pytest.mark.parametrize("path", ["/nothing", "/../etc/passwd", "/index.html", "/data/x"])
def test_there_is_nothing_else(server: PageServer, path: str) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9", "localhost", "localhost:8370", "LOCALHOST:1", "[::1]:8370", "shop.example"],
)
def test_it_answers_by_its_own_names_whatever_the_port(server: PageServer, host: str) -> None:
    # A tunnel has a port of its own.
    assert ask(server, "/data", Host=host)[0] == 204


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8370",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.1.2.3",
        "0.0.0.0",
        "[2001:db8::1]",
        "user@localhost",
        "localhost/",
        "localhost:x",
        "[::1",
        "localhost, evil.example",
        "",
    ],
)
def test_a_foreign_host_is_refused(server: PageServer, host: str) -> None:
    server.publish("1", pack("application/json", "{}"))
    for path in ("/", "/data"):
        status, _, body = ask(server, path, Host=host)
        assert status == 421
        assert b"--allow-host" in body


def talk(server: PageServer, text: str) -> bytes:
    """Send bytes as they are; return all that is answered until the server closes."""
    with socket.create_connection(("127.0.0.1", int(server.server_address[1])), timeout=30) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: evil.example\r\n"])
def test_a_request_has_one_host(server: PageServer, hosts: str) -> None:
    assert talk(server, f"GET / HTTP/1.1\r\n{hosts}\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_whole_address_is_no_path(server: PageServer) -> None:
    request = "GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert talk(server, request).startswith(b"HTTP/1.1 404 ")


def test_a_body_is_not_taken_for_the_next_request(server: PageServer) -> None:
    inner = "GET /data HTTP/1.1\r\nHost: localhost\r\n\r\n"
    request = f"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(inner)}\r\n\r\n{inner}"
    assert talk(server, request).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "text", ["\r\n\r\n", "GET\r\n\r\n", "\x16\x03\x01\x00", "GET / HTTP/9.9\r\n\r\n", "G" * 70_000]
)
def test_garbage_harms_nothing(server: PageServer, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    talk(server, text)
    assert ask(server)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_connection_is_kept_for_the_next_question(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.server_address[1]), timeout=30)
    for _ in range(3):
        connection.request("GET", "/data")
        response = connection.getresponse()
        response.read()
        assert response.status == 204
        assert connection.sock is not None
    connection.close()


def test_too_many_connections_are_closed_and_the_others_go_on(server: PageServer) -> None:
    address = ("127.0.0.1", int(server.server_address[1]))
    held = []
    for _ in range(MAX_CONNECTIONS):
        connection = socket.create_connection(address, timeout=30)
        connection.sendall(b"GET /data HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 204 ")
        held.append(connection)
    with socket.create_connection(address, timeout=30) as further:
        assert further.recv(4096) == b""
    held[0].sendall(b"GET /data HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert held[0].recv(4096).startswith(b"HTTP/1.1 204 ")
    for connection in held:
        connection.close()


def test_closing_ends_what_is_open(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", int(server.server_address[1])), timeout=30) as connection:
        connection.sendall(b"GET /data HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(4096)
        server.shutdown()
        server.server_close()
        assert connection.recv(4096) == b""


def test_a_port_that_is_taken_is_said_with_what_to_do(server: PageServer) -> None:
    port = int(server.server_address[1])
    with pytest.raises(ConfigurationError, match=f"port {port} is taken; name another with --port"):
        PageServer("127.0.0.1", port, server.page)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such name", "x" * 300])
def test_an_address_of_another_machine_is_no_address_to_listen_on(host: str) -> None:
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        PageServer(host, 0, pack("text/html", ""))


def test_only_a_loopback_address_is_private() -> None:
    with PageServer("0.0.0.0", 0, pack("text/html", "")) as server:
        assert not server.is_private
        assert server.is_called("10.1.2.3:8370")
        assert server.is_called(socket.gethostname())
        assert server.url.startswith(f"http://{socket.gethostname()}:")
        assert not server.is_called("evil.example")
    with PageServer("localhost", 0, pack("text/html", "")) as server:
        assert server.is_private
