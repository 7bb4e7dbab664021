"""What `reqpath config` prints is what nginx takes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from reqpath.commands.config import command
from reqpath.configuration import NginxChoices, build_nginx_files, render_nginx, render_uwsgi
from reqpath.errors import ConfigurationError, ServerError
from reqpath.servers.deployment import find_perl_module, find_program


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable of the machine's decide."""
    for name in list(os.environ):
        if name.startswith("REQPATH_"):
            monkeypatch.delenv(name)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_nginx_prints_every_piece_in_its_place() -> None:
    assert _run("nginx") == render_nginx(NginxChoices())


def test_the_environments_address_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQPATH_LISTEN", "udp:127.0.0.1:5999")
    assert "syslog:server=127.0.0.1:5999," in _run("nginx")
    assert "env = REQPATH_LISTEN=udp:127.0.0.1:5999" in _run("uwsgi")


def test_write_puts_the_files_where_the_includes_look(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    printed = _run("nginx", "--hires", "--trust", "10.0.0.0/8", "--write", str(directory))
    choices = NginxChoices(hires=True, trusted=("10.0.0.0/8",))
    assert printed == render_nginx(choices, directory)
    assert {path.name: path.read_text() for path in directory.iterdir()} == build_nginx_files(choices)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't write to"):
        CliRunner().invoke(
            command, ["nginx", "--write", str(tmp_path / "file" / "below")], catch_exceptions=False
        )


def test_uwsgi_prints_the_lines() -> None:
    assert _run("uwsgi", "--spool", "/var/spool/shop") == render_uwsgi(spool="/var/spool/shop")
    assert "mule" not in _run("uwsgi", "--no-mule")


def test_a_wrong_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no network"):
        CliRunner().invoke(command, ["nginx", "--trust", "everybody"], catch_exceptions=False)


@pytest.mark.live
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("proxy", [False, True])
@pytest.mark.parametrize("hires", [False, True])
@pytest.mark.parametrize("listen", ["udp:127.0.0.1:5170", "udp:[::1]:5170", "unix:/run/reqpath.sock"])
def test_nginx_takes_it(listen: str, hires: bool, proxy: bool, write: bool, tmp_path: Path) -> None:
    try:
        nginx = find_program("nginx", "this test needs it")
    except ServerError as error:
        pytest.skip(str(error))
    module = find_perl_module()
    if hires and module is None:
        pytest.skip("nginx's perl module is not installed")
    arguments = ["nginx", "--listen", listen, "--trust", "10.0.0.0/8", "--trust", "::1"]
    arguments += ["--hires"] * hires + ["--proxy"] * proxy + ["--write", str(tmp_path / "conf")] * write
    # The module's and the log's paths are of nginx's build, of which a test may write to none.
    text = _run(*arguments).replace("modules/ngx_http_perl_module.so", str(module))
    path = tmp_path / "nginx.conf"
    path.write_text(f"pid {tmp_path}/pid;\n{text}")
    done = subprocess.run(
        [nginx, "-t", "-q", "-e", str(tmp_path / "error.log"), "-p", str(tmp_path), "-c", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_uwsgi_writes_its_file_where_the_printed_line_looks(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    printed = _run("uwsgi", "--spool", "/var/spool/shop", "--write", str(directory))
    assert printed == f"ini = {directory}/reqpath.ini\n"
    assert (directory / "reqpath.ini").read_text() == render_uwsgi(spool="/var/spool/shop")
