"""Starts a topology for real, on private ports, sockets and directories: database, uWSGI, nginx.

The layer below is `process`; the configuration is `topology`'s. Example::

    with start_deployment(Topology(app=SHOP)) as deployment:
        print(deployment.url)      # http://127.0.0.1:41873
        print(deployment.spool)    # where `reqpath report` finds its requests

What is started here ends with the `with`, whatever happens, and its directory is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reqpath import configuration
from reqpath.errors import ServerError
from reqpath.servers.database import Database, start_database
from reqpath.servers.process import Process, find_free_port, is_listening, run_to_end, start_process
from reqpath.servers.topology import App, Includes, Placement, Topology, render_nginx, render_uwsgi

_START_S = 30.0
_PING_S = 5.0
#: A Unix socket's path has at most 107 bytes; `/reqpath-demo-12345678/database/mysqld.sock` is to follow.
_LONGEST_PARENT = 60
# An ordinary user's PATH often lacks them.
_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/nginx/sbin"
_MODULE_DIRECTORIES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/nginx/modules")
_PERL_MODULE = "ngx_http_perl_module.so"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A topology that is running."""

    topology: Topology
    placement: Placement
    #: None where the app needs none of ours.
    database: Database | None
    spool: str
    uwsgi: Process
    nginx: Process

    @property
    def host(self) -> str:
        """Where nginx listens."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The port that nginx listens on."""
        return self.placement.nginx_port

    @property
    def url(self) -> str:
        """The app's address, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def database_title(self) -> str:
        """`mariadb 10.11.6-MariaDB`; empty without one."""
        return f"{self.database.kind} {self.database.version}" if self.database else ""

    @property
    def resolution_ns(self) -> int:
        """Of nginx's stamps."""
        return 1_000 if self.placement.perl_module else 1_000_000

    def check_alive(self) -> None:
        """Raises: ServerError with the log's tail when a server has ended."""
        if self.database is not None:
            self.database.process.check_alive()
        for process in (self.uwsgi, self.nginx):
            process.check_alive()


def shop() -> App:
    """Return the example app. Raises: ConfigurationError when this installation lacks it."""
    return App(
        module="shop:create_app()",
        directory=str(configuration.data_directory("examples")),
        database_prefix="SHOP_DATABASE",
        setup=("-m", "flask", "--app", "shop", "init-db"),
    )


def workloads() -> App:
    """Return the app of the built-in workloads; its environment is `examples/workloads`' to describe.

    Raises: ConfigurationError when this installation lacks it.
    """
    return App(
        module="workloads:create_app()",
        directory=str(configuration.data_directory("examples")),
        database_prefix="WORKLOADS_DATABASE",
        setup=("-m", "workloads.fill"),
    )


def calibrate_cpu_rounds() -> int:
    """Return the `WORKLOADS_CPU_ROUNDS` that make the workload `/cpu` take 5 ms on this machine.

    Raises: ServerError; ConfigurationError when this installation lacks the workloads.
    """
    with tempfile.TemporaryDirectory(prefix="reqpath-") as directory:
        log = os.path.join(directory, "rounds")
        run_to_end(
            [sys.executable, "-B", "-m", "workloads.calibrate"],
            log,
            _START_S,
            "the calibration",
            cwd=str(configuration.data_directory("examples")),
        )
        with open(log, encoding="ascii") as file:
            return int(file.read())


def find_perl_module() -> str | None:
    """Return the path of nginx's perl module; None when it is not installed."""
    for directory in _MODULE_DIRECTORIES:
        path = os.path.join(directory, _PERL_MODULE)
        if os.path.exists(path):
            return path
    return None


def find_program(name: str, remedy: str) -> str:
    """Return a program's path. Raises: ServerError that says how to get it."""
    # Beside the interpreter: a virtual environment's own, whether it is active or not.
    path = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}"
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerError(f"{name} is not installed: {remedy}")
    return found


@contextlib.contextmanager
def start_deployment(
    topology: Topology,
    *,
    database: Database | None = None,
    spool: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Deployment]:
    """Start a topology, yield it when it answers, and end and remove all of it on the way out.

    A `database` that runs already is used and left running, and `spool` None keeps the records with the rest.
    `progress` is told each server before it is started.

    Raises: ServerError, which names what to install or carries the log's tail; ConfigurationError.
    """
    announce = progress or _stay_silent
    nginx_path = find_program("nginx", "apt install nginx-light libnginx-mod-http-perl")
    uwsgi_path = find_program("uwsgi", "pip install 'reqpath[demo]'")
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="reqpath-demo-", dir=_choose_parent())
        )
        spool = spool or os.path.join(directory, "spool")
        placement = _place(topology, directory, spool, uwsgi_path)
        if database is None and topology.app.database_prefix:
            announce("the database")
            database = stack.enter_context(
                start_database(
                    os.path.join(directory, "database"),
                    kind=topology.database,
                    options=topology.database_options,
                )
            )
        environment = _build_environment(topology, database)
        if topology.app.setup:
            announce("its data")
            _run_setup(topology.app, environment, directory)
        announce("uWSGI")
        address = (
            placement.uwsgi_socket if topology.transport == "unix" else ("127.0.0.1", placement.uwsgi_port)
        )
        uwsgi = stack.enter_context(
            start_process(
                [uwsgi_path, "--ini", _write(directory, "uwsgi.ini", render_uwsgi(topology, placement))],
                os.path.join(directory, "uwsgi.log"),
                lambda: (
                    _answers_ping(address) and (not topology.reqpath or _is_taken(placement.collector_port))
                ),
                _START_S,
                "uWSGI",
                # SIGTERM is ignored until the workers run, and reloads them from then on.
                stop_signal=signal.SIGQUIT,
                environment=environment,
                cwd=directory,
            )
        )
        announce("nginx")
        nginx = stack.enter_context(
            start_process(
                [
                    *(nginx_path, "-e", "stderr", "-p", directory),
                    *("-c", _write(directory, "nginx.conf", render_nginx(topology, placement))),
                ],
                os.path.join(directory, "nginx.log"),
                lambda: is_listening(("127.0.0.1", placement.nginx_port)),
                _START_S,
                "nginx",
            )
        )
        yield Deployment(topology, placement, database, spool, uwsgi, nginx)


def fill_database(topology: Topology, database: Database, directory: str) -> None:
    """Run the app's `setup` on a database that several deployments are to share; its log goes to `directory`.

    Raises: ServerError with the log's tail.
    """
    _run_setup(topology.app, _build_environment(topology, database), directory)


def _choose_parent() -> str:
    """Return the temporary directory, or /tmp where the sockets in it would have too long a path."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) <= _LONGEST_PARENT else "/tmp"  # noqa: S108


def _stay_silent(_server: str) -> None:
    pass


def _place(topology: Topology, directory: str, spool: str, uwsgi_path: str) -> Placement:
    """Choose ports, and write the files of reqpath's own into `directory`, filled in."""
    os.mkdir(os.path.join(directory, "temp"), 0o700)
    perl_module = find_perl_module() if topology.hires else None
    collector_port = _find_free_udp_port()
    listen = f"udp:127.0.0.1:{collector_port}"
    choices = configuration.NginxChoices(
        listen=listen, trusted=("127.0.0.1/32",), hires=perl_module is not None
    )
    names = configuration.build_nginx_files(choices)
    paths = {name: _write(directory, name, text) for name, text in names.items()}

    def present(*wanted: str) -> tuple[str, ...]:
        return tuple(paths[name] for name in wanted if name in paths)

    includes = Includes(
        http=present(configuration.HTTP, configuration.HTTP_HIRES),
        server=present(configuration.SERVER_HIRES),
        location=present(configuration.LOCATION),
        uwsgi=_write(
            directory,
            "reqpath.ini",
            configuration.render_uwsgi(listen=listen, spool=spool, lazy_apps=topology.lazy_apps),
        ),
    )
    return Placement(
        directory=directory,
        includes=includes if topology.reqpath else Includes(),
        nginx_port=find_free_port(),
        uwsgi_port=find_free_port(),
        collector_port=collector_port,
        perl_module=perl_module,
        user="root" if os.geteuid() == 0 else None,
        virtualenv=sys.prefix if sys.prefix != sys.base_prefix else None,
        interpreter=_find_interpreter(uwsgi_path),
    )


def _find_interpreter(script: str) -> str | None:
    """Return the interpreter that a script names in its first line; None for a program."""
    with open(script, "rb") as file:
        first = file.readline(1024)
    return os.fsdecode(first[2:].strip()) if first.startswith(b"#!/") else None


def _build_environment(topology: Topology, database: Database | None) -> dict[str, str]:
    """Return the environment of the app's process: ours, its database, and no settings of another reqpath."""
    # OpenTelemetry's variables would send traces to a backend that nobody meant.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("REQPATH_", "OTEL_"))
    }
    app = topology.app
    paths = [app.directory, *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {
        "PYTHONPATH": os.pathsep.join(paths),
        # The app's directory may belong to another user, or be part of an installation.
        "PYTHONDONTWRITEBYTECODE": "1",
        **(_describe_database(topology, database) if database else {}),
        **dict(topology.environment),
    }


def _describe_database(topology: Topology, database: Database) -> dict[str, str]:
    """Return the variables that tell the app where its database is."""
    prefix = topology.app.database_prefix
    where = database.connect_arguments(topology.database_transport)
    return {
        f"{prefix}_SOCKET": str(where.get("unix_socket", "")),
        f"{prefix}_HOST": str(where.get("host", "")),
        f"{prefix}_PORT": str(where.get("port", 0)),
        f"{prefix}_USER": str(where["user"]),
        f"{prefix}_NAME": str(where["database"]),
    }


def _run_setup(app: App, environment: dict[str, str], directory: str) -> None:
    variables = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
    run_to_end(
        ["env", *variables, sys.executable, *app.setup],
        os.path.join(directory, "setup.log"),
        _START_S,
        "filling the database",
    )


def _write(directory: str, name: str, text: str) -> str:
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _find_free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers_ping(address: str | tuple[str, int]) -> bool:
    """Tell whether a worker takes requests; the socket alone takes connections long before.

    Source: the uwsgi protocol, packets with modifier1 100.
    """
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        probe.settimeout(_PING_S)
        try:
            probe.connect(address)
            probe.sendall(b"\x64\0\0\0")
            return probe.recv(4)[:1] == b"\x64"
        except OSError:
            return False


def _is_taken(port: int) -> bool:
    """Tell whether somebody receives datagrams at this port of 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
