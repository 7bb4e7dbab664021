"""A private MariaDB or MySQL server: its own data directory, a Unix socket and a port on 127.0.0.1.

The layer below is `process`. Example::

    with start_database("/tmp/run", kind="mariadb") as database:
        pymysql.connect(**database.connect_arguments("unix"))
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reqpath.errors import ConfigurationError, ServerError
from reqpath.record import Transport
from reqpath.servers.process import (
    Process,
    find_free_port,
    make_socket_directory,
    run_to_end,
    start_process,
)

Kind = Literal["mariadb", "mysql"]

#: Names a server binary of the user's own.
MYSQLD_VARIABLE = "REQPATH_MYSQLD"
_SOCKET_NAME = "mysqld.sock"
# An ordinary user's PATH often lacks them.
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec:/usr/local/mysql/bin"
#: Run by the server before it takes connections. Names are not resolved, so over TCP a client is 127.0.0.1.
_INIT_SQL = """\
CREATE USER IF NOT EXISTS 'root'@'127.0.0.1';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS reqpath;
"""


@dataclass(frozen=True, slots=True)
class DatabaseProgram:
    """A server's binary that was found."""

    kind: Kind
    path: str
    #: As the binary tells it, for instance `10.11.14-MariaDB`.
    version: str


@dataclass(frozen=True, slots=True)
class Database:
    """A running server, reachable over both transports by a user without a password."""

    kind: Kind
    version: str
    socket: str
    port: int
    pid: int
    log_path: str
    process: Process
    host: str = "127.0.0.1"
    user: str = "root"
    password: str = ""
    #: An empty database for the caller's tables.
    database: str = "reqpath"

    def connect_arguments(self, transport: Transport) -> dict[str, Any]:
        """Return the arguments for `pymysql.connect` over `transport`."""
        arguments: dict[str, Any] = {"user": self.user, "database": self.database}
        if transport == "unix":
            return arguments | {"unix_socket": self.socket}
        return arguments | {"host": self.host, "port": self.port}


def mysql_tree_directory() -> str:
    """Return where the cached MySQL server is kept, whether it is there or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "reqpath", "mysql")


def find_database_server(kind: Kind | None = None) -> DatabaseProgram | None:
    """Return a server of this kind (None: of any), or None.

    Looked for in this order: `$REQPATH_MYSQLD`, `mariadbd` and `mysqld` on the path, the cached MySQL.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}"
    candidates = [
        os.environ.get(MYSQLD_VARIABLE),
        shutil.which("mariadbd", path=path),
        shutil.which("mysqld", path=path),
        os.path.join(mysql_tree_directory(), "mysqld"),
    ]
    for candidate in candidates:
        program = _identify(candidate) if candidate else None
        if program is not None and kind in (None, program.kind):
            return program
    return None


@contextlib.contextmanager
def start_database(
    directory: str,
    *,
    kind: Kind | None = None,
    options: Sequence[str] = (),
    deadline_s: float = 60.0,
) -> Iterator[Database]:
    """Initialise a server's data in `directory` (once), start it, and stop it on the way out.

    `kind` None takes what is found first; `options` are further ones of the server's. The data stay in
    `directory`, which is the caller's to remove. `deadline_s` holds for the initialisation and for the start.

    Raises: ServerError with the log's tail; ConfigurationError when no such server is installed.
    """
    program = find_database_server(kind)
    if program is None:
        raise ConfigurationError(
            f"no {kind or 'database'} server found: install mariadb-server-core, "
            f"or name a mysqld in ${MYSQLD_VARIABLE}"
        )
    directory = os.path.abspath(directory)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    log_path = os.path.join(directory, f"{program.kind}.log")
    data = os.path.join(directory, "data")
    if not os.path.isdir(data):
        # Renamed when whole, so that an interrupted initialisation is not taken for a data directory.
        partial = f"{data}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        init_command = _build_init_command(program, partial)
        try:
            run_to_end(init_command, log_path, deadline_s, f"initialising {program.kind}")
        except ServerError as error:
            # MariaDB's script follows the reason, such as a full disk, with a page of advice.
            said = [line for line in error.log_tail.splitlines(keepends=True) if "[ERROR]" in line]
            raise ServerError(str(error).partition("\n")[0], "".join(said) or error.log_tail) from error
        os.rename(partial, data)
    init_path = os.path.join(directory, "init.sql")
    with open(init_path, "w", encoding="ascii") as init:
        init.write(_INIT_SQL)
    with make_socket_directory(directory, _SOCKET_NAME) as socket_directory:
        socket_path = os.path.join(socket_directory, _SOCKET_NAME)
        port = find_free_port()
        argv = [
            program.path,
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={socket_path}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={os.path.join(directory, 'mysqld.pid')}",
            f"--init-file={init_path}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--innodb-buffer-pool-size=64M",
            *_user_option(),
            # The X protocol would take a second port and socket that nobody asked for.
            *(["--mysqlx=OFF", "--secure-file-priv=NULL"] if program.kind == "mysql" else []),
            *options,
        ]

        def is_ready() -> bool:
            return _read_greeting(socket_path) is not None and _read_greeting(("127.0.0.1", port)) is not None

        with start_process(
            argv, log_path, is_ready, deadline_s, program.kind, stop_signal=signal.SIGTERM, stop_s=20.0
        ) as process:
            version = _read_greeting(socket_path) or program.version
            yield Database(program.kind, version, socket_path, port, process.pid, log_path, process)


def _identify(path: str) -> DatabaseProgram | None:
    """Ask a binary what it is; None when it does not run."""
    try:
        output = subprocess.run(
            [path, "--no-defaults", "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"Ver (\S+)", output)
    if found is None:
        return None
    return DatabaseProgram("mariadb" if "MariaDB" in output else "mysql", path, found[1])


def _build_init_command(program: DatabaseProgram, data: str) -> list[str]:
    if program.kind == "mysql":
        # Root without a password: `caching_sha2_password` lets an empty one pass without TLS or a public key.
        return [
            program.path,
            "--no-defaults",
            "--initialize-insecure",
            f"--datadir={data}",
            "--secure-file-priv=NULL",
            *_user_option(),
        ]
    # The script stands beside its server, or on the path.
    beside = os.path.dirname(os.path.dirname(os.path.realpath(program.path)))
    places = os.pathsep.join(os.path.join(beside, name) for name in ("bin", "scripts", "sbin"))
    script = shutil.which(
        "mariadb-install-db", path=f"{places}:{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}"
    )
    if script is None:
        raise ServerError("mariadb-install-db is not installed; it comes with mariadb-server-core")
    return [
        script,
        "--no-defaults",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        # Or it refuses a machine that can't look up its own name or localhost.
        "--force",
        *_user_option(),
    ]


def _user_option() -> list[str]:
    """The servers refuse to run as root unless told to."""
    return ["--user=root"] if os.geteuid() == 0 else []


def _read_greeting(address: str | tuple[str, int]) -> str | None:
    """Return the version from the server's first packet; None while it does not take connections.

    Source: the client/server protocol, Protocol::HandshakeV10: 4 bytes of header, 10, the version, NUL.
    """
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(address)
            packet = probe.recv(256)
        except OSError:
            return None
    if len(packet) < 6 or packet[4] != 10:
        return None
    # MariaDB prefixes its version for clients that look only at the first digits.
    return packet[5:].split(b"\0", 1)[0].decode("latin-1").removeprefix("5.5.5-")
