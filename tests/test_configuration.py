"""The shipped files are found and filled in; what can't work is refused with what would."""

from __future__ import annotations

from pathlib import Path

import pytest

from reqpath.configuration import (
    HTTP,
    HTTP_HIRES,
    LOCATION,
    MAX_SOCKET_PATH_BYTES,
    PROXY,
    SERVER_HIRES,
    Listen,
    NginxChoices,
    build_nginx_files,
    data_directory,
    parse_listen,
    parse_network,
    render_nginx,
    render_uwsgi,
)
from reqpath.errors import ConfigurationError
from reqpath.settings import DEFAULT_LISTEN


@pytest.mark.parametrize("name", ["nginx-conf", "examples"])
def test_shipped_directories_are_found(name: str) -> None:
    assert data_directory(name).is_dir()


def test_a_missing_directory_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="install it again"):
        data_directory("no-such-thing")


@pytest.mark.parametrize(
    ("text", "expected", "server"),
    [
        ("udp:127.0.0.1:5170", Listen("127.0.0.1", 5170), "127.0.0.1:5170"),
        ("127.0.0.1:5170", Listen("127.0.0.1", 5170), "127.0.0.1:5170"),
        ("udp:[::1]:5170", Listen("::1", 5170), "[::1]:5170"),
        ("unix:/run/reqpath.sock", Listen(path="/run/reqpath.sock"), "unix:/run/reqpath.sock"),
    ],
)
def test_addresses_are_parsed(text: str, expected: Listen, server: str) -> None:
    listen = parse_listen(text)
    assert listen == expected
    assert listen.nginx_server == server
    assert parse_listen(str(listen)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5170",
        "udp:localhost:5170",
        "udp:127.0.0.1",
        "udp:127.0.0.1:0",
        "udp:127.0.0.1:65536",
        "udp:127.0.0.1:x",
        "tcp:127.0.0.1:80",
        "unix:",
        "unix:relative",
        "unix:/a b",
        "unix:/a,b",
        "unix:/a;b",
        "unix:/a:b",
        "unix:/a{b",
        "unix:/" + "x" * MAX_SOCKET_PATH_BYTES,
    ],
)
def test_addresses_that_cannot_work_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_listen(text)


def test_the_longest_socket_path_is_taken() -> None:
    path = "/" + "x" * (MAX_SOCKET_PATH_BYTES - 1)
    assert parse_listen(f"unix:{path}") == Listen(path=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("::1", "::1/128"),
    ],
)
def test_networks_are_written_as_geo_takes_them(text: str, expected: str) -> None:
    assert parse_network(text) == expected


@pytest.mark.parametrize("text", ["", "all", "10.0.0.0/33", "10.0.0.0/8 1; } evil {"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_network(text)


def test_the_files_work_as_they_are() -> None:
    directory = data_directory("nginx-conf")
    for proxy in (False, True):
        for name, text in build_nginx_files(NginxChoices(hires=True, proxy=proxy)).items():
            assert text == (directory / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("hires", "proxy", "expected"),
    [
        (False, False, (HTTP, LOCATION)),
        (True, False, (HTTP, HTTP_HIRES, SERVER_HIRES, LOCATION)),
        (False, True, (HTTP, PROXY)),
        (True, True, (HTTP, HTTP_HIRES, SERVER_HIRES, PROXY)),
    ],
)
def test_each_choice_has_its_files(hires: bool, proxy: bool, expected: tuple[str, ...]) -> None:
    choices = NginxChoices(hires=hires, proxy=proxy)
    assert choices.file_names == expected
    assert tuple(build_nginx_files(choices)) == expected


def test_the_users_choices_are_filled_in() -> None:
    files = build_nginx_files(NginxChoices("unix:/run/x.sock", trusted=("10.0.0.0/8", "::1")))
    assert "syslog:server=unix:/run/x.sock,nohostname" in files[HTTP]
    assert "    10.0.0.0/8 1;\n    ::1/128 1;\n" in files[HTTP]
    assert "5170" not in files[HTTP]


def test_the_skeleton_has_each_piece_once(tmp_path: Path) -> None:
    choices = NginxChoices(hires=True)
    spelled_out = render_nginx(choices)
    included = render_nginx(choices, tmp_path)
    for name, text in build_nginx_files(choices).items():
        assert included.count(f'include "{tmp_path / name}";') == 1
        for line in text.splitlines():
            assert line.strip() in spelled_out


def test_every_shipped_file_says_where_it_goes() -> None:
    directory = data_directory("nginx-conf")
    table = (directory / "README.md").read_text(encoding="utf-8")
    for path in directory.glob("*.conf"):
        assert path.read_text(encoding="utf-8").startswith("# reqpath: ")
        assert "Include it in" in path.read_text(encoding="utf-8")
        assert f"`{path.name}`" in table


def test_uwsgis_lines_bring_stamps_and_collector() -> None:
    lines = render_uwsgi().splitlines()
    assert lines[0] == "[uwsgi]"
    assert "route-run = addvar:REQPATH_UWSGI=${uwsgi[sor]},${time[micros]}" in lines
    assert "mule = reqpath.collect.mule:main" in lines
    assert not [line for line in lines if line.startswith("env")]


def test_uwsgis_lines_name_spool_and_address_where_they_differ() -> None:
    lines = render_uwsgi(listen="127.0.0.1:5999", spool="/var/spool/shop").splitlines()
    assert "env = REQPATH_SPOOL=/var/spool/shop" in lines
    assert "env = REQPATH_LISTEN=udp:127.0.0.1:5999" in lines


def test_with_lazy_apps_the_mule_is_a_file() -> None:
    (line,) = [line for line in render_uwsgi(lazy_apps=True).splitlines() if line.startswith("mule = ")]
    assert Path(line.removeprefix("mule = ")).is_file()


def test_the_mule_can_be_left_out() -> None:
    assert "mule" not in render_uwsgi(listen=DEFAULT_LISTEN, mule=False)


@pytest.mark.parametrize("spool", ["/a\nexec-as-root = id", "/a%(b)", "/a$(b)", " /a"])
def test_a_spool_that_the_ini_would_change_is_refused(spool: str) -> None:
    with pytest.raises(ConfigurationError):
        render_uwsgi(spool=spool)
