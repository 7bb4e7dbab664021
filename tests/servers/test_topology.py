"""What a topology's configuration says."""

from __future__ import annotations

import dataclasses

import pytest

from reqpath.servers.topology import App, Includes, Placement, Topology, render_nginx, render_uwsgi

_APP = App("shop:create_app()", "/examples", "SHOP_DATABASE")
_PLACEMENT = Placement(
    directory="/tmp/d",
    includes=Includes(
        ("/tmp/d/http.conf",), ("/tmp/d/server.conf",), ("/tmp/d/location.conf",), "/tmp/d/r.ini"
    ),
    nginx_port=8001,
    uwsgi_port=8002,
    collector_port=8003,
    perl_module="/modules/perl.so",
    user="root",
    virtualenv="/venv",
    interpreter="/venv/bin/python3",
)


def test_over_tcp_both_ends_name_the_same_port() -> None:
    topology = Topology(_APP, transport="tcp")
    assert "uwsgi_pass 127.0.0.1:8002;" in render_nginx(topology, _PLACEMENT)
    assert "\nsocket = 127.0.0.1:8002\n" in render_uwsgi(topology, _PLACEMENT)


def test_over_unix_both_ends_name_the_same_socket() -> None:
    topology = Topology(_APP, transport="unix")
    assert "uwsgi_pass unix:/tmp/d/uwsgi.sock;" in render_nginx(topology, _PLACEMENT)
    assert "\nsocket = /tmp/d/uwsgi.sock\nchmod-socket = 600\n" in render_uwsgi(topology, _PLACEMENT)


def test_workers_are_processes_and_threads() -> None:
    processes = render_uwsgi(Topology(_APP, processes=3), _PLACEMENT)
    assert "\nprocesses = 3\n" in processes
    assert "\nthreads" not in processes
    both = render_uwsgi(Topology(_APP, processes=2, threads=3), _PLACEMENT)
    assert "\nprocesses = 2\nthreads = 3\n" in both


@pytest.mark.parametrize(
    ("processes", "threads", "words"),
    [(4, 1, "4 processes"), (1, 4, "4 threads"), (2, 2, "2 processes of 2 threads"), (1, 1, "1 process")],
)
def test_workers_are_told_in_words(processes: int, threads: int, words: str) -> None:
    topology = Topology(_APP, processes=processes, threads=threads)
    assert (words, processes * threads) == (topology.workers, topology.slots)


def test_reqpaths_files_are_included_each_in_its_block() -> None:
    lines = render_nginx(Topology(_APP), _PLACEMENT).splitlines()
    positions = [
        next(i for i, line in enumerate(lines) if word in line)
        for word in ("http {", "/http.conf;", "server {", "/server.conf;", "location /", "/location.conf;")
    ]
    assert positions == sorted(positions)
    assert "\nini = /tmp/d/r.ini\n" in render_uwsgi(Topology(_APP), _PLACEMENT)


def test_without_includes_nothing_of_reqpath_is_left() -> None:
    bare = dataclasses.replace(_PLACEMENT, includes=Includes(), perl_module=None)
    text = render_nginx(Topology(_APP), bare) + render_uwsgi(Topology(_APP), bare)
    assert "include" not in text
    assert "perl" not in text
    assert "\nini = " not in text


@pytest.mark.parametrize(("user", "said"), [("root", True), (None, False)])
def test_only_root_names_a_user(user: str | None, said: bool) -> None:
    placement = dataclasses.replace(_PLACEMENT, user=user)
    assert ("user root;" in render_nginx(Topology(_APP), placement)) is said


def test_further_lines_are_taken_over() -> None:
    topology = Topology(_APP, nginx_lines=("uwsgi_buffering off;",), uwsgi_lines=("lazy-apps = true",))
    assert "uwsgi_buffering off;" in render_nginx(topology, _PLACEMENT)
    assert "lazy-apps = true\n" in render_uwsgi(topology, _PLACEMENT)
