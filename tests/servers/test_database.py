"""A private database server: found, started, reached over both transports, gone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from reqpath.errors import ConfigurationError, ServerError
from reqpath.servers.database import Kind, find_database_server, start_database


@pytest.fixture(
    params=[
        pytest.param("mariadb", marks=pytest.mark.live),
        pytest.param("mysql", marks=[pytest.mark.live, pytest.mark.mysql]),
    ]
)
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of a server that is here."""
    kind: Kind = request.param
    if find_database_server(kind) is None:
        pytest.skip(f"no {kind} server on this machine; name one in $REQPATH_MYSQLD")
    return kind


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory:
        yield directory


def test_a_server_is_reached_over_both_transports_and_keeps_its_data(kind: Kind, directory: str) -> None:
    for attempt in (1, 2):
        with start_database(directory, kind=kind) as database:
            for transport in ("unix", "tcp"):
                connection = pymysql.connect(**database.connect_arguments(transport), autocommit=True)
                with connection, connection.cursor() as cursor:
                    cursor.execute("CREATE TABLE IF NOT EXISTS seen (transport VARCHAR(9))")
                    cursor.execute("INSERT INTO seen VALUES (%s)", (transport,))
                    cursor.execute("SELECT COUNT(*), VERSION() FROM seen")
                    rows = cursor.fetchall()
            assert rows == ((2 * attempt, database.version),)
            assert database.kind == kind
        assert not os.path.exists(f"/proc/{database.pid}")
        assert not os.path.exists(database.socket)


def test_a_server_that_does_not_start_is_an_error_with_its_log(kind: Kind, directory: str) -> None:
    with (
        pytest.raises(ServerError, match="no-such-option"),
        start_database(directory, kind=kind, options=["--no-such-option"]),
    ):
        pass


def test_a_directory_too_deep_for_a_socket_is_no_hindrance(kind: Kind, directory: str) -> None:
    with start_database(os.path.join(directory, "x" * 100), kind=kind) as database:
        assert len(database.socket) < 108

    assert not os.path.exists(database.socket)


def test_a_server_of_the_users_own_comes_first(
    tmp_path: Path, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mysqld"
    own.write_text("#!/bin/sh\necho 'mysqld  Ver 9.9.9 for Linux'\n", encoding="ascii")
    own.chmod(0o755)
    monkeypatch.setenv("REQPATH_MYSQLD", str(own))

    for kind in (None, "mysql"):
        program = find_database_server(kind)
        assert program is not None
        assert (program.kind, program.path, program.version) == ("mysql", str(own), "9.9.9")


def test_a_failed_initialisation_tells_what_failed_and_not_what_is_advised(
    tmp_path: Path, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mysqld"
    own.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "mysqld  Ver 9.9.9 for Linux"; exit;; esac\n'
        "echo Installing; echo '0 [ERROR] InnoDB: Probably out of disk space'; echo Please check; exit 1\n",
        encoding="ascii",
    )
    own.chmod(0o755)
    monkeypatch.setenv("REQPATH_MYSQLD", str(own))
    with pytest.raises(ServerError) as caught, start_database(directory):
        pass
    assert str(caught.value) == (
        "initialising mysql ended with status 1\n0 [ERROR] InnoDB: Probably out of disk space"
    )


def test_without_a_server_the_error_says_what_to_install(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reqpath.servers.database.find_database_server", lambda _kind: None)

    with pytest.raises(ConfigurationError, match="install mariadb-server-core"), start_database(directory):
        pass
