"""Finds the configuration that reqpath ships and fills in what is the user's own.

The files of `nginx-conf/` work as they are; here their log target and their trusted clients are replaced, and
put into a skeleton that shows which file goes into which block::

    NginxChoices(listen="udp:127.0.0.1:5170", trusted=("10.0.0.0/8",))
      -> render_nginx(choices)             one nginx.conf, everything in its place
      -> build_nginx_files(choices)        {"reqpath-http.conf": "…", "reqpath-location.conf": "…"}
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reqpath.errors import ConfigurationError
from reqpath.settings import DEFAULT_LISTEN

HTTP: Final = "reqpath-http.conf"
HTTP_HIRES: Final = "reqpath-http-hires.conf"
SERVER_HIRES: Final = "reqpath-server-hires.conf"
LOCATION: Final = "reqpath-location.conf"
PROXY: Final = "reqpath-proxy.conf"
UWSGI: Final = "reqpath.ini"

#: `sun_path` of Linux, less its final zero. Source: unix(7).
MAX_SOCKET_PATH_BYTES: Final = 107

_UNIX: Final = re.compile(r"unix:(.+)", re.DOTALL)
_UDP: Final = re.compile(r"(?:udp:)?(.*):(\d{1,5})", re.ASCII | re.DOTALL)
#: What nginx reads as part of its own syntax, or of the syslog parameters.
_NOT_IN_NGINX: Final = re.compile(r"[\s:;,{}'\"\\$#]")


def data_directory(name: str) -> Path:
    """Return the directory `nginx-conf` or `examples`, of the installed package or of a checkout.

    Raises: ConfigurationError when the installation has none.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "_data" / name, package.parent.parent / name):
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(f"this installation of reqpath lacks its {name} files; install it again")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where nginx sends its lines: a UDP address, or the path of a Unix datagram socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return bool(self.path)

    @property
    def nginx_server(self) -> str:
        """As nginx's `syslog:server=` takes it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.nginx_server if self.path else f"udp:{self.nginx_server}"


def parse_listen(text: str) -> Listen:
    """Parse `udp:HOST:PORT` (`udp:` may be left out) or `unix:PATH`.

    Raises: ConfigurationError, also for a socket path that Linux can't hold and for a host's name.
    """
    if match := _UNIX.fullmatch(text):
        path = match.group(1)
        if not path.startswith("/"):
            raise ConfigurationError(f"the socket path {path} is relative; nginx needs it in full")
        if len(path.encode("utf-8", "surrogateescape")) > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"the socket path {path} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that Linux takes; "
                "choose a shorter one, in /run say"
            )
        if _NOT_IN_NGINX.search(path):
            raise ConfigurationError(f"the socket path {path!r} holds what nginx can't take there; rename it")
        return Listen(path=path)
    match = _UDP.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"can't listen on {text!r}; it takes udp:HOST:PORT or unix:/PATH")
    host, port = match.group(1), int(match.group(2))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigurationError(f"can't listen on {host!r}; it takes an IP address, 127.0.0.1 say") from None
    if not 0 < port < 65536:
        raise ConfigurationError(f"port {port} is none; it takes 1 to 65535")
    return Listen(host=str(address), port=port)


def parse_network(text: str) -> str:
    """Check an address or a CIDR range and return it as nginx's `geo` takes it.

    Raises: ConfigurationError.
    """
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ConfigurationError(f"{text!r} is no network; it takes CIDR ranges such as 10.0.0.0/8") from None


@dataclass(frozen=True, slots=True)
class NginxChoices:
    """What differs from the files as they are."""

    listen: str = DEFAULT_LISTEN
    #: CIDR ranges of the clients whose `traceparent` is continued.
    trusted: tuple[str, ...] = ()
    #: Stamps to a microsecond by the perl module.
    hires: bool = False
    #: The upstream is reached by `proxy_pass`, not by `uwsgi_pass`.
    proxy: bool = False

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files that take part."""
        hires = (HTTP_HIRES, SERVER_HIRES) if self.hires else ()
        return (HTTP, *hires, PROXY if self.proxy else LOCATION)


def build_nginx_files(choices: NginxChoices) -> dict[str, str]:
    """Return the text of each file that takes part, with the choices filled in.

    Raises: ConfigurationError for an address or a network that can't work.
    """
    directory = data_directory("nginx-conf")
    files = {name: (directory / name).read_text(encoding="utf-8") for name in choices.file_names}
    default, wanted = (parse_listen(text).nginx_server for text in (DEFAULT_LISTEN, choices.listen))
    files[HTTP] = _replace_once(files[HTTP], f"syslog:server={default},", f"syslog:server={wanted},")
    trusted = "".join(f"    {parse_network(network)} 1;\n" for network in choices.trusted)
    files[HTTP] = _replace_once(files[HTTP], "    # 10.0.0.0/8 1;\n", trusted or "    # 10.0.0.0/8 1;\n")
    return files


def render_nginx(choices: NginxChoices, written_to: Path | None = None) -> str:
    """Return an nginx.conf in which every piece is in its place.

    With `written_to` the pieces are includes of the files in that directory, otherwise they are spelled out.

    Raises: ConfigurationError.
    """
    files = build_nginx_files(choices)

    def place(name: str, depth: int) -> str:
        indent = "    " * depth
        if written_to is None:
            return "".join(
                f"{indent}{line}".rstrip() + "\n" for line in files[name].rstrip("\n").splitlines()
            )
        return f'{indent}include "{written_to / name}";\n'

    parts = ["# For nginx.conf: put each piece of reqpath's into the block of yours that it is in here.\n"]
    if choices.hires:
        parts.append(
            "# Unless your distribution loads it already (Debian: /etc/nginx/modules-enabled/):\n"
            "load_module modules/ngx_http_perl_module.so;\n"
        )
    parts.append("\nevents { }\n\nhttp {\n" + place(HTTP, 1))
    if choices.hires:
        parts.append("\n" + place(HTTP_HIRES, 1))
    parts.append("\n    server {\n        # Yours: listen, server_name, …\n")
    if choices.hires:
        parts.append("\n" + place(SERVER_HIRES, 2))
    parts.append("\n        location / {\n")
    if choices.proxy:
        parts.append(
            "            # Yours:\n"
            "            proxy_set_header Host $host;\n"
            "            proxy_pass http://127.0.0.1:8000;\n\n"
        )
        parts.append(place(PROXY, 3))
    else:
        parts.append(
            "            # Yours:\n"
            "            include /etc/nginx/uwsgi_params;\n"
            "            uwsgi_pass unix:/run/app/uwsgi.sock;\n\n"
        )
        parts.append(place(LOCATION, 3))
    parts.append("        }\n    }\n}\n")
    return "".join(parts)


def render_uwsgi(
    *, listen: str = DEFAULT_LISTEN, spool: str = "", mule: bool = True, lazy_apps: bool = False
) -> str:
    """Return the lines for uWSGI's ini.

    An empty `spool` leaves the default; `mule` brings the collector; `lazy_apps`: the ini has that option.

    Raises: ConfigurationError.
    """
    parsed = parse_listen(listen)
    command = shlex.join(["reqpath", "collect", *([spool] if spool else []), "--listen", str(parsed)])
    lines = [
        "[uwsgi]",
        "# Stamps to a microsecond: the connection was accepted; the request was parsed, and the GIL not yet",
        "# taken. They need internal routing: a uWSGI with PCRE, as pyuwsgi and Debian's are.",
        "route-run = addvar:REQPATH_UWSGI=${uwsgi[sor]},${time[micros]}",
    ]
    if spool:
        _check_ini_value(spool)
        lines += ["", "# Where the records go; uWSGI's user must own it.", f"env = REQPATH_SPOOL={spool}"]
    if mule:
        lines += [
            "",
            "# The collector of nginx's lines, under uWSGI's master. Or leave it out and run",
            f"# `{command}` as the same user.",
            "master = true",
            "# The socket is opened before the workers start, so no line is lost while the mule does.",
            "shared-import = reqpath.collect.mule",
            *_mule_lines(lazy_apps),
        ]
        if parsed != parse_listen(DEFAULT_LISTEN):
            lines.append(f"env = REQPATH_LISTEN={parsed}")
    return "\n".join(lines) + "\n"


def _mule_lines(lazy_apps: bool) -> list[str]:
    if not lazy_apps:
        return [
            "# With lazy-apps a mule's function crashes in uWSGI: see `reqpath config uwsgi --lazy-apps`.",
            "mule = reqpath.collect.mule:main",
        ]
    path = str(Path(__file__).resolve().parent / "collect" / "mule.py")
    _check_ini_value(path)
    return ["# As a file, since with lazy-apps a mule's function crashes in uWSGI.", f"mule = {path}"]


def render_uwsgi_include(written_to: Path) -> str:
    """Return the line for uWSGI's ini that includes the file in that directory.

    Raises: ConfigurationError for a path that an ini can't hold.
    """
    _check_ini_value(str(written_to))
    return f"ini = {written_to / UWSGI}\n"


def _check_ini_value(text: str) -> None:
    # uWSGI puts its own values in for %(…) and $(…), and has no way of quoting.
    if re.search(r"[\n\r%]|\$\(|^\s|\s$", text):
        raise ConfigurationError(f"uWSGI's ini can't hold {text!r}; choose a plainer path")


def _replace_once(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ConfigurationError(f"reqpath's {HTTP} was changed: {old.strip()!r} is not in it once")
    return text.replace(old, new)
