"""examples/fleet's nginx: each line goes to the host that has the worker's record of the same request."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from reqpath.configuration import HTTP, NginxChoices, build_nginx_files, data_directory
from reqpath.errors import ServerError
from reqpath.servers.deployment import find_program
from reqpath.servers.process import find_free_port, is_listening, start_process

pytestmark = pytest.mark.live

_START_S = 20.0
HOSTS = ("app1", "app2", "edge")
ADDRESSES = {"app1": "10.0.1.11", "app2": "10.0.1.12", "edge": "127.0.0.1"}


class Fleet:
    """An nginx whose two app hosts are down, and the sockets that its lines go to."""

    def __init__(self, port: int, sockets: dict[str, socket.socket]) -> None:
        self._port = port
        self._sockets = sockets

    def request(self, path: str) -> tuple[str, str]:
        """Send a request; return the host that was told of it and the attempts that it was told."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_START_S)
        with closing(connection):
            connection.request("GET", path)
            connection.getresponse().read()
        # nginx writes its log after the response: one line, on one of the sockets.
        lines: list[tuple[str, str]] = []
        with ExitStack() as stack:
            waiting = stack.enter_context(select.epoll())
            names = {}
            for name, sock in self._sockets.items():
                waiting.register(sock, select.EPOLLIN)
                names[sock.fileno()] = name
            for number, _ in waiting.poll(_START_S):
                text = self._sockets[names[number]].recv(65536).decode()
                lines.append((names[number], json.loads(text[text.index("{") :])["upstream"]))
        (line,) = lines
        return line


@pytest.fixture(scope="module")
def upstream_ports() -> dict[str, int]:
    """Return ports on which nobody listens."""
    return {"app1": find_free_port(), "app2": find_free_port()}


@pytest.fixture(scope="module")
def fleet(upstream_ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Start nginx with the example's file, its addresses replaced by this machine's."""
    try:
        nginx = find_program("nginx", "the live tests need it")
    except ServerError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("fleet")
    with ExitStack() as stack:
        sockets = {}
        for name in HOSTS:
            sockets[name] = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets[name].bind(("127.0.0.1", 0))
        text = (data_directory("examples") / "fleet" / "nginx" / "reqpath-fleet.conf").read_text()
        for name, address in ADDRESSES.items():
            port = sockets[name].getsockname()[1]
            text = text.replace(f"server={address}:5170", f"server=127.0.0.1:{port}")
            if name in upstream_ports:
                pattern = re.escape(address) + r":\d+"
                assert pattern in text
                text = text.replace(pattern, rf"127\.0\.0\.1:{upstream_ports[name]}")
        (directory / "reqpath-fleet.conf").write_text(text)
        shipped = build_nginx_files(NginxChoices("udp:127.0.0.1:5170"))[HTTP]
        # As the file's head says.
        kept = [line for line in shipped.splitlines() if not line.startswith("access_log ")]
        assert len(kept) < len(shipped.splitlines())
        (directory / HTTP).write_text("\n".join(kept))
        one, two = upstream_ports["app1"], upstream_ports["app2"]
        temporary = "".join(
            f"{name}_temp_path {directory}/{name}; "
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        port = find_free_port()
        (directory / "nginx.conf").write_text(f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes 1; pid {directory}/pid; error_log stderr crit;
events {{ }}
http {{
    {temporary}
    include {HTTP};
    include reqpath-fleet.conf;
    server {{
        listen 127.0.0.1:{port};
        location /one {{ uwsgi_pass 127.0.0.1:{one}; }}
        location /two {{ uwsgi_pass 127.0.0.1:{two}; }}
        location /retried {{ uwsgi_pass both; }}
        location /none {{ return 204; }}
    }}
    upstream both {{ server 127.0.0.1:{one} max_fails=0; server 127.0.0.1:{two} max_fails=0; }}
}}
""")
        stack.enter_context(
            start_process(
                [nginx, "-e", "stderr", "-p", str(directory), "-c", "nginx.conf"],
                str(directory / "nginx.log"),
                lambda: is_listening(("127.0.0.1", port)),
                _START_S,
                "nginx",
            )
        )
        yield Fleet(port, sockets)


@pytest.mark.parametrize(("path", "host"), [("/one", "app1"), ("/two", "app2"), ("/none", "edge")])
def test_the_host_of_the_upstream_is_told(fleet: Fleet, path: str, host: str) -> None:
    assert fleet.request(path)[0] == host


def test_of_several_attempts_the_last_ones_host_is_told(fleet: Fleet, upstream_ports: dict[str, int]) -> None:
    for _ in range(4):
        host, attempts = fleet.request("/retried")
        assert len(attempts.split(", ")) == 2
        assert attempts.endswith(f":{upstream_ports[host]}")
