"""The built wheel in empty environments, and the README's steps beside Flask's own tutorial app.

Everything here goes the way of a user: pip, the `reqpath` command, an nginx.conf and an ini made of what it
prints. Only the processes are started by the checkout's own `reqpath.servers`.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reqpath.errors import ServerError
from reqpath.servers.deployment import find_program
from reqpath.servers.process import Process, find_free_port, is_listening, start_process, wait_until

pytestmark = pytest.mark.live

CHECKOUT = Path(__file__).resolve().parent.parent
WSGI = "from flaskr import create_app\n\napp = create_app()\n"
#: What the README says to add to an app.
CODE_LINES = "from reqpath import ReqPath\n\nReqPath(app)\n"


def run(*argv: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without this checkout's reqpath or settings in its environment."""
    return subprocess.run(
        [str(word) for word in argv],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env={
            name: value for name, value in os.environ.items() if not name.startswith(("REQPATH_", "PYTHON"))
        },
    )


def check_run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed; return its standard output."""
    done = run(*argv, cwd=cwd)
    assert done.returncode == 0, f"{argv}: {done.stdout}\n{done.stderr}"
    return done.stdout


class Environment:
    """A virtual environment that holds only what was asked for, not even pip."""

    def __init__(self, directory: Path, *requirements: str | Path) -> None:
        self.bin = directory / "bin"
        check_run(sys.executable, "-m", "venv", "--without-pip", directory)
        self.pip_install(*requirements)

    def pip_install(self, *requirements: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check")
        check_run(*pip, "install", "--quiet", *requirements)

    def package_names(self) -> set[str]:
        listing = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
        names = check_run(self.bin / "python", "-c", listing).split()
        return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flask's tutorial app, taken out of its source distribution: none of it is in this repository."""
    directory = tmp_path_factory.mktemp("flask")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    done = run(*pip, "--no-deps", "--no-binary", "flask", "--dest", directory, "flask")
    if done.returncode:
        pytest.skip(f"no package index: pip can't download Flask's source: {done.stderr[-300:]}")
    (archive,) = directory.glob("*.tar.gz")
    # Not Python's tarfile: Debian's 3.11 has no filters, and later ones warn without.
    check_run("tar", "--extract", "--file", archive, "--directory", directory)
    found = list(directory.glob("*/examples/tutorial/flaskr/__init__.py"))
    if not found:
        pytest.skip(f"{archive.name} holds no tutorial app")
    return found[0].parent.parent


@pytest.fixture(scope="module")
def wheel(tutorial: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Needs the package index too, so `tutorial` comes first and skips."""
    directory = tmp_path_factory.mktemp("dist")
    check_run(sys.executable, "-m", "build", "--wheel", "--outdir", directory, CHECKOUT)
    (path,) = directory.iterdir()
    return path


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with `pip install reqpath` and nothing else."""
    return Environment(tmp_path_factory.mktemp("base") / "venv", wheel)


def test_wheel_holds_the_package_its_types_its_configuration_and_the_example(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    places = {
        "src/reqpath": "reqpath",
        "nginx-conf": "reqpath/_data/nginx-conf",
        "examples": "reqpath/_data/examples",
    }
    expected = {
        f"{place}/{path.relative_to(CHECKOUT / source)}"
        for source, place in places.items()
        for path in (CHECKOUT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"reqpath/py.typed", "reqpath/_data/nginx-conf/reqpath-http.conf"} <= expected
    assert set() == expected - names


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"reqpath"} == {name.split("/")[0] for name in names if ".dist-info/" not in name}
    foreign = re.compile(r"(^|/)(tests?|__pycache__|\.[^/]*)(/|$)|\.(pyc|so|db|sqlite)$")
    assert [name for name in names if foreign.search(name)] == []


def test_base_install_is_small(base: Environment) -> None:
    assert base.package_names() <= {"reqpath", "click", "msgspec", "opentelemetry-api", "typing-extensions"}


def test_imports_where_there_is_no_flask_and_no_driver(base: Environment) -> None:
    code = "import reqpath, reqpath.wsgi, reqpath.spool; print(reqpath.__version__)"
    version = check_run(base.bin / "python", "-W", "error", "-c", code).strip()
    assert f"reqpath, version {version}\n" == check_run(base.bin / "reqpath", "--version")


@pytest.mark.parametrize("arguments", [["report"], ["trace", "last"]])
def test_commands_of_the_report_extra_say_what_to_install(
    base: Environment, tmp_path: Path, arguments: list[str]
) -> None:
    done = run(base.bin / "reqpath", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'reqpath[report]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_says_what_to_install(base: Environment, tmp_path: Path) -> None:
    done = run(base.bin / "reqpath", "demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'reqpath[demo]'" in done.stderr
    assert "Traceback" not in done.stderr


class Site:
    """The tutorial app behind uWSGI and nginx, all of it configured by what `reqpath config` prints."""

    def __init__(self, environment: Environment, directory: Path, app: Path) -> None:
        self.environment = environment
        self.directory = directory
        self.app = app
        self.port = find_free_port()
        self.collector_port = find_free_port()
        self.spool = directory / "spool"
        self.socket = directory / "uwsgi.sock"

    def reqpath(self, *arguments: str | Path) -> str:
        return check_run(self.environment.bin / "reqpath", *arguments, cwd=self.directory)

    def configure(self) -> None:
        listen = f"udp:127.0.0.1:{self.collector_port}"
        (self.app / "wsgi.py").write_text(WSGI + CODE_LINES)
        check_run(self.environment.bin / "flask", "--app", "flaskr", "init-db", cwd=self.app)
        where = ("--listen", listen, "--spool", self.spool, "--write", self.directory / "uwsgi")
        ini = f"[uwsgi]\nsocket = {self.socket}\nchdir = {self.app}\nmodule = wsgi:app\nprocesses = 2\n"
        ini += "die-on-term = true\n" + self.reqpath("config", "uwsgi", *where)
        (self.directory / "uwsgi.ini").write_text(ini)
        printed = self.reqpath("config", "nginx", "--listen", listen, "--write", self.directory / "nginx")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {self.directory}/{kind};\n" for kind in kinds)
        for ours, theirs in (
            ("http {\n", f"http {{\n{temporary}"),
            ("# Yours: listen, server_name, …\n", f"listen 127.0.0.1:{self.port};\n"),
            ("unix:/run/app/uwsgi.sock;", f"unix:{self.socket};"),
        ):
            assert printed.count(ours) == 1
            printed = printed.replace(ours, theirs)
        (self.directory / "nginx.conf").write_text(printed)

    @contextlib.contextmanager
    def start(self) -> Iterator[Process]:
        """Start uWSGI, which is yielded, and nginx."""
        uwsgi = [str(self.environment.bin / "uwsgi"), "--ini", str(self.directory / "uwsgi.ini")]
        user = "user root; " if os.geteuid() == 0 else ""
        nginx = [
            *(find_program("nginx", "apt install nginx"), "-e", "stderr", "-p", str(self.directory)),
            *("-c", str(self.directory / "nginx.conf")),
            *("-g", f"{user}daemon off; pid {self.directory}/nginx.pid;"),
        ]
        with (
            start_process(
                uwsgi, str(self.directory / "uwsgi.log"), self._is_serving, 30.0, "uWSGI"
            ) as process,
            start_process(nginx, str(self.directory / "nginx.log"), self._is_open, 10.0, "nginx"),
        ):
            yield process

    def _is_open(self) -> bool:
        return is_listening(("127.0.0.1", self.port))

    def _is_serving(self) -> bool:
        # The collector too. Source: proc(5), the local address as hexadecimal host:port.
        collects = f":{self.collector_port:04X} " in Path("/proc/net/udp").read_text()
        return collects and is_listening(str(self.socket))

    def report_when_complete(self, requests: int, uwsgi: Process) -> dict[str, Any]:
        """Return the report once nginx's lines of so many requests are in the spool, or at a deadline."""
        report: dict[str, Any] = {}

        def is_complete() -> bool:
            report.update(json.loads(self.reqpath("report", "--json", self.spool)))
            return report["requests"] >= requests and not report["missing_stamps"]

        with contextlib.suppress(ServerError):
            wait_until(is_complete, 15.0, uwsgi)
        return report


def test_traces_a_foreign_app_with_the_three_steps(wheel: Path, tutorial: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", f"{wheel}[report]", "flask", "pyuwsgi")
    site = Site(environment, tmp_path, tutorial)
    site.configure()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    user = {"username": "ada", "password": "secret"}
    post = {"title": "Notes", "body": "on the engine"}
    forms = [("/auth/register", user), ("/auth/login", user), ("/create", post)]
    with site.start() as uwsgi:
        for path, form in [*forms, ("/hello", None), ("/", None)]:
            data = urllib.parse.urlencode(form).encode() if form else None
            with opener.open(f"http://127.0.0.1:{site.port}{path}", data, timeout=10) as response:
                body = response.read().decode()
        report = site.report_when_complete(8, uwsgi)
    assert "Notes" in body
    # Each form is answered by a redirection, which the opener follows.
    routes = {route["route"]: route["requests"] for route in report["routes"]}
    assert routes == {
        "POST /auth/register": 1,
        "GET /auth/login": 1,
        "POST /auth/login": 1,
        "GET /": 3,
        "POST /create": 1,
        "GET /hello": 1,
    }
    assert not any(report[name] for name in ("missing_stamps", "skewed", "lost_records", "abandoned")), report
    # The tutorial keeps its data in SQLite, so all but MySQL.
    known = {segment["tier"] for segment in report["segments"] if segment["known"] == report["requests"]}
    assert known == {"nginx", "queue", "uwsgi", "flask"}
    for name in ("uwsgi.log", "nginx.log"):
        assert not re.search(r"Traceback|\[(error|alert|emerg)\]|failed", (tmp_path / name).read_text())
