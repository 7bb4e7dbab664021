"""What a deployment consists of, as data, and the configuration files that make it so, as text.

`Topology` says what is measured; `Placement` says where it runs this time. Nothing here touches the system:
the layer above, `deployment`, writes what these functions return, and starts it. Example::

    topology = Topology(app, transport="tcp", processes=1, threads=4)
    render_nginx(topology, placement)   → nginx.conf
    render_uwsgi(topology, placement)   → uwsgi.ini
    topology.database_options           → options of mariadbd or mysqld
"""

from __future__ import annotations

from dataclasses import dataclass

from reqpath.record import Transport
from reqpath.servers.database import Kind

#: Has nginx tell its clients of the traces that it begins; among `Topology.nginx_lines`.
TRACE_RESPONSE = "add_header traceresponse $reqpath_traceparent always;"

#: Source: nginx's own conf/uwsgi_params.
_UWSGI_PARAMS = (
    ("QUERY_STRING", "$query_string"),
    ("REQUEST_METHOD", "$request_method"),
    ("CONTENT_TYPE", "$content_type"),
    ("CONTENT_LENGTH", "$content_length"),
    ("REQUEST_URI", "$request_uri"),
    ("PATH_INFO", "$document_uri"),
    ("DOCUMENT_ROOT", "$document_root"),
    ("SERVER_PROTOCOL", "$server_protocol"),
    ("REQUEST_SCHEME", "$scheme"),
    ("REMOTE_ADDR", "$remote_addr"),
    ("REMOTE_PORT", "$remote_port"),
    ("SERVER_PORT", "$server_port"),
    ("SERVER_NAME", "$server_name"),
)
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True, slots=True)
class App:
    """A WSGI app that uWSGI can load."""

    #: As uWSGI's `module` takes it: `package:callable` or `package:factory()`.
    module: str
    #: Where the module is imported from.
    directory: str
    #: Begins the names of the variables that tell the app where its database is: `<prefix>_SOCKET` and so on.
    #: Empty: none is started for it.
    database_prefix: str = ""
    #: Arguments to Python that fill the database; empty when there is nothing to fill.
    setup: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """One deployment: the app, how many serve it, and what lies between the tiers."""

    app: App
    #: Between nginx and uWSGI.
    transport: Transport = "unix"
    #: Between the app and its database.
    database_transport: Transport = "unix"
    #: Of uWSGI's workers.
    processes: int = 4
    #: Of each process.
    threads: int = 1
    #: None: whichever server is installed.
    database: Kind | None = None
    #: Stamps to the microsecond, where nginx's perl module is there.
    hires: bool = True
    #: False: without any of reqpath's lines in nginx's and uWSGI's configuration.
    reqpath: bool = True
    #: Each worker loads the app by itself.
    lazy_apps: bool = False
    #: Further lines of nginx's `location`.
    nginx_lines: tuple[str, ...] = ()
    #: Further lines of uWSGI's ini.
    uwsgi_lines: tuple[str, ...] = ()
    #: Further options of the database server.
    database_options: tuple[str, ...] = ()
    #: Further variables of the app's and the collector's environment.
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def slots(self) -> int:
        """Requests that are served at one time."""
        return self.processes * self.threads

    @property
    def workers(self) -> str:
        """What serves, in words: `4 processes`, `4 threads`, `2 processes of 2 threads`."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        if self.threads == 1:
            return processes
        threads = f"{self.threads} threads"
        return threads if self.processes == 1 else f"{processes} of {threads}"

    @property
    def title(self) -> str:
        """The deployment in one line."""
        return (
            f"nginx ─{self.transport}→ uWSGI, {self.workers} "
            f"─{self.database_transport}→ {self.database or 'database'}"
        )


@dataclass(frozen=True, slots=True)
class Includes:
    """Paths of reqpath's own files, by what includes them; all empty runs the deployment without reqpath."""

    http: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    location: tuple[str, ...] = ()
    uwsgi: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a topology runs: its directory, ports and what the machine has."""

    #: Owner-only; holds the sockets, so its path is short.
    directory: str
    includes: Includes
    nginx_port: int
    uwsgi_port: int
    #: Where nginx's lines are received, by UDP.
    collector_port: int
    #: nginx's module for the microsecond stamps; None: stock stamps.
    perl_module: str | None
    #: nginx's workers run as this user; None leaves it to nginx, which then needs no root.
    user: str | None
    #: The virtual environment that uWSGI's Python is to use; None outside one.
    virtualenv: str | None
    #: The interpreter that runs `uwsgi` when that is pyuwsgi's script; None for a uWSGI that is a program.
    interpreter: str | None

    @property
    def uwsgi_socket(self) -> str:
        """Path of uWSGI's socket when the transport is unix."""
        return f"{self.directory}/uwsgi.sock"

    def upstream(self, transport: Transport) -> str:
        """Return uWSGI's address as its own ini and nginx (after `unix:`) write it."""
        return self.uwsgi_socket if transport == "unix" else f"127.0.0.1:{self.uwsgi_port}"


def render_nginx(topology: Topology, placement: Placement) -> str:
    """Render nginx.conf: one server on 127.0.0.1, all of it passed to uWSGI."""
    where = placement.directory
    upstream = placement.upstream(topology.transport)
    head = [
        *([f"load_module {placement.perl_module};"] if placement.perl_module else []),
        *([f"user {placement.user};"] if placement.user else []),
        "daemon off;",
        "worker_processes 1;",
        f"pid {where}/nginx.pid;",
        "error_log stderr warn;",
        "events { worker_connections 1024; }",
    ]
    http = [
        *(f"{name}_temp_path {where}/temp/{name};" for name in _TEMPORARY),
        *_include(placement.includes.http),
        "client_max_body_size 16m;",
        "keepalive_requests 1000000;",
        # A client that keeps more connections than it needs at the moment is not to lose them.
        "keepalive_timeout 1h;",
    ]
    server = [
        f"listen 127.0.0.1:{placement.nginx_port} backlog=1024;",
        "server_name localhost;",
        *_include(placement.includes.server),
    ]
    location = [
        f"uwsgi_pass {'unix:' if topology.transport == 'unix' else ''}{upstream};",
        *(f"uwsgi_param {name} {value};" for name, value in _UWSGI_PARAMS),
        *_include(placement.includes.location),
        *topology.nginx_lines,
    ]
    return "\n".join(
        [
            *head,
            "http {",
            *_indent(1, http),
            "    server {",
            *_indent(2, server),
            "        location / {",
            *_indent(3, location),
            "        }",
            "    }",
            "}",
            "",
        ]
    )


def render_uwsgi(topology: Topology, placement: Placement) -> str:
    """Render uwsgi.ini: the app, served by so many processes or threads."""
    lines = [
        "strict = true",
        "master = true",
        # A worker whose master was killed ends.
        "no-orphans = true",
        "need-app = true",
        *(["lazy-apps = true"] if topology.lazy_apps else []),
        f"processes = {topology.processes}",
        *([f"threads = {topology.threads}"] if topology.threads > 1 else []),
        "enable-threads = true",
        f"socket = {placement.upstream(topology.transport)}",
        *(["chmod-socket = 600"] if topology.transport == "unix" else []),
        "vacuum = true",
        f"pidfile = {placement.directory}/uwsgi.pid",
        # Linux refuses more than net.core.somaxconn, which was 128 for long.
        "listen = 100",
        "harakiri = 60",
        "buffer-size = 16384",
        "disable-logging = true",
        *([f"virtualenv = {placement.virtualenv}"] if placement.virtualenv else []),
        # At SIGHUP pyuwsgi runs the interpreter behind the links, which knows no virtual environment.
        *([f"binary-path = {placement.interpreter}"] if placement.interpreter else []),
        f"module = {topology.app.module}",
        *([f"ini = {placement.includes.uwsgi}"] if placement.includes.uwsgi else []),
        *topology.uwsgi_lines,
    ]
    return "\n".join(["[uwsgi]", *lines, ""])


def _include(paths: tuple[str, ...]) -> list[str]:
    return [f"include {path};" for path in paths]


def _indent(depth: int, lines: list[str]) -> list[str]:
    return [f"{'    ' * depth}{line}" for line in lines]
