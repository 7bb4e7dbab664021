"""A Jaeger to look at traces with: the user's own, one in a container, or one that is built here.

The layer below is `process`. Example::

    with start_jaeger("/tmp/run") as jaeger:
        export(jaeger.otlp_http)                     # http://127.0.0.1:41877
        print(jaeger.trace_url("4bf92f3577b34da6…")) # http://127.0.0.1:41873/trace/4bf92f3577b34da6…

What is started keeps its traces in memory and listens on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from reqpath.errors import ConfigurationError, ServerError
from reqpath.servers.process import Process, find_free_port, is_listening, run_to_end, start_process

#: Names the program of a Jaeger, or the address of the user interface of one that runs.
JAEGER_VARIABLE: Final = "REQPATH_JAEGER"
#: OpenTelemetry's own: where a Jaeger that runs takes traces, if not at the usual port.
ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
#: Jaeger gives each release two numbers: its Go module's, and its own.
MODULE_VERSION: Final = "v1.76.0"
IMAGE: Final = "docker.io/jaegertracing/jaeger:2.13.0"
_MODULE: Final = "github.com/jaegertracing/jaeger"
_ENGINES: Final = ("docker", "podman")
# Where Go's own installer puts it.
_GO_DIRECTORY: Final = "/usr/local/go/bin"
_PROBE_S: Final = 10.0
_START_S: Final = 60.0
_PULL_S: Final = 600.0
#: Three minutes on two cores, when the modules have to be fetched first.
_BUILD_S: Final = 3_600.0
_MAX_TRACES: Final = 50_000
# Source: the home page that a build without the user interface's files has, cmd/query/app/ui/placeholder.
_PLACEHOLDER: Final = "This is a placeholder for the Jaeger UI home page"
_CONFIGURATION: Final = """\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [jaeger_storage_exporter]
  telemetry:
    metrics:
      level: none
    logs:
      level: warn
extensions:
  jaeger_query:
    # Of its own requests.
    enable_tracing: false
    storage:
      traces: memory
    http:
      endpoint: 127.0.0.1:{ports.query}
    grpc:
      endpoint: 127.0.0.1:{ports.query_grpc}
  jaeger_storage:
    backends:
      memory:
        memory:
          max_traces: {max_traces}
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:{ports.otlp_http}
      grpc:
        endpoint: 127.0.0.1:{ports.otlp_grpc}
exporters:
  jaeger_storage_exporter:
    trace_storage: memory
"""

Kind = Literal["running", "program", "container", "build"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class JaegerSource:
    """Where a Jaeger can be had from."""

    kind: Kind
    #: An address, or the path of: the program, the container engine, `go`.
    where: str


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a Jaeger listens on 127.0.0.1."""

    query: int
    query_grpc: int
    otlp_http: int
    otlp_grpc: int


#: Where everyone expects a Jaeger. Source: Jaeger's documentation, APIs.
USUAL_PORTS: Final = Ports(16686, 16685, 4318, 4317)


@dataclass(frozen=True, slots=True)
class Jaeger:
    """A Jaeger that answers."""

    #: Of the user interface and the query API, without a slash at the end.
    url: str
    #: Where traces are sent, by OTLP over HTTP and over gRPC.
    otlp_http: str
    otlp_grpc: str
    #: False: the program was built without the pages of its user interface; its APIs are whole.
    has_ui: bool
    #: None for one that ran already.
    process: Process | None = None

    def trace_url(self, trace_id: str) -> str:
        """Return the address of a trace's page."""
        return f"{self.url}/trace/{trace_id}"


def jaeger_program_path() -> str:
    """Return where the Jaeger that is built here is kept, whether it is there or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "reqpath", f"jaeger-{MODULE_VERSION}", "jaeger")


def find_jaeger(*, private: bool = False) -> JaegerSource | None:
    """Return the first that can be had, or None; a `private` one is none that runs already.

    Looked for in this order: `$REQPATH_JAEGER`, one that answers at the usual port of this machine, `jaeger`
    on the path, a container engine that answers, the one built earlier, `go`.
    """
    return next(_find_all(private=private), None)


@contextlib.contextmanager
def start_jaeger(
    directory: str,
    *,
    private: bool = False,
    ports: Ports | None = None,
    progress: Progress | None = None,
    deadline_s: float = _START_S,
) -> Iterator[Jaeger]:
    """Start what `find_jaeger` finds, yield it when it takes and hands out traces, stop it on the way out.

    One that runs already goes on running. The log goes to `directory`; `ports` None takes free ones.
    `progress` is told what is done before the start, such as a build of three minutes.

    Raises: ServerError with the log's tail; ConfigurationError when there is none to be had.
    """
    announce = progress or _stay_silent
    os.makedirs(directory, mode=0o700, exist_ok=True)
    log_path = os.path.join(directory, "jaeger.log")
    refused: list[str] = []
    for source in _find_all(private=private):
        if source.kind == "running":
            yield _connect(source.where)
            return
        try:
            _prepare(source, log_path, announce)
        except ServerError as error:
            # A container engine without a way to the image, say; the next may do.
            refused.append(str(error))
            continue
        announce("Jaeger")
        ports = ports or Ports(*(find_free_port() for _ in range(4)))
        with _run(source, ports, directory, log_path, deadline_s) as jaeger:
            yield jaeger
        return
    raise ConfigurationError(
        "\n".join(
            [
                *refused,
                f"no Jaeger to be had: install docker or podman, or Go, or name a Jaeger's program or the "
                f"address of its user interface in ${JAEGER_VARIABLE}",
            ]
        )
    )


def build_jaeger(go: str, target: str, log_path: str, progress: Progress) -> None:
    """Build Jaeger's program from its Go module and put it at `target`; its log goes to `log_path`.

    Raises: ServerError with the log's tail.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build.", dir=os.path.dirname(target)) as directory:
        progress("Jaeger's build: its source")
        _write_module(go, directory, log_path)
        partial = os.path.join(directory, "jaeger")
        compiled = _CompiledPackages(log_path, progress)
        run_to_end(
            # A module can't be built by its version where it replaces others, so it becomes a dependency.
            [go, "build", "-v", "-trimpath", "-o", partial, f"{_MODULE}/cmd/jaeger"],
            log_path,
            _BUILD_S,
            "Jaeger's build",
            environment=os.environ | {"GOFLAGS": "-mod=mod -buildvcs=false", "CGO_ENABLED": "0"},
            cwd=directory,
            while_running=compiled.tell,
        )
        os.replace(partial, target)


def usual_ports() -> Ports | None:
    """Return the ports where everyone expects a Jaeger; None when one of them is taken."""
    ports = (USUAL_PORTS.query, USUAL_PORTS.query_grpc, USUAL_PORTS.otlp_http, USUAL_PORTS.otlp_grpc)
    return None if any(is_listening(("127.0.0.1", port)) for port in ports) else USUAL_PORTS


def find_trace_page(otlp: str) -> str | None:
    """Return the address of the Jaeger user interface beside an OTLP endpoint; None when there is none.

    That is `$REQPATH_JAEGER` when it is an address, else the usual port on the endpoint's host.
    """
    named = os.environ.get(JAEGER_VARIABLE, "")
    url = named.rstrip("/") if _is_address(named) else _beside(otlp, USUAL_PORTS.query)
    return url if _answers_queries(url) else None


def _find_all(*, private: bool) -> Iterator[JaegerSource]:
    named = os.environ.get(JAEGER_VARIABLE)
    if named:
        # Nothing else is asked for then.
        yield JaegerSource("running" if _is_address(named) else "program", named)
        return
    usual = f"http://localhost:{USUAL_PORTS.query}"
    if not private and _answers_queries(usual) and _takes_traces(_beside(usual, USUAL_PORTS.otlp_http)):
        yield JaegerSource("running", usual)
    if path := shutil.which("jaeger"):
        yield JaegerSource("program", path)
    for name in _ENGINES:
        engine = shutil.which(name)
        if engine and _succeeds([engine, "info"]):
            yield JaegerSource("container", engine)
    if os.access(jaeger_program_path(), os.X_OK):
        yield JaegerSource("program", jaeger_program_path())
    elif go := shutil.which("go", path=f"{os.environ.get('PATH', os.defpath)}:{_GO_DIRECTORY}"):
        yield JaegerSource("build", go)


def _prepare(source: JaegerSource, log_path: str, announce: Progress) -> None:
    """Fetch or build what is to be started. Raises: ServerError."""
    if source.kind == "container" and not _succeeds([source.where, "image", "inspect", IMAGE]):
        announce(f"Jaeger's image, {IMAGE}")
        run_to_end([source.where, "pull", IMAGE], log_path, _PULL_S, f"{source.where} pull {IMAGE}")
    if source.kind == "build":
        build_jaeger(source.where, jaeger_program_path(), log_path, announce)


def _build_argv(source: JaegerSource, ports: Ports, directory: str) -> list[str]:
    if source.kind == "container":
        return _build_container_argv(source.where, ports)
    program = jaeger_program_path() if source.kind == "build" else source.where
    path = os.path.abspath(os.path.join(directory, "jaeger.yaml"))
    with open(path, "w", encoding="ascii") as file:
        file.write(_CONFIGURATION.format(ports=ports, max_traces=_MAX_TRACES))
    return [program, "--config", path]


def _build_container_argv(engine: str, ports: Ports) -> list[str]:
    """Return the command line; the engine hands our signals on to what runs in the container."""
    pairs = zip(
        (ports.query, ports.query_grpc, ports.otlp_http, ports.otlp_grpc),
        (USUAL_PORTS.query, USUAL_PORTS.query_grpc, USUAL_PORTS.otlp_http, USUAL_PORTS.otlp_grpc),
        strict=True,
    )
    published = [option for ours, usual in pairs for option in ("-p", f"127.0.0.1:{ours}:{usual}")]
    return [
        *(engine, "run", "--rm", "--name", _container_name()),
        # It would trace its own requests.
        *("-e", "OTEL_TRACES_SAMPLER=always_off"),
        *published,
        IMAGE,
    ]


@contextlib.contextmanager
def _run(
    source: JaegerSource, ports: Ports, directory: str, log_path: str, deadline_s: float
) -> Iterator[Jaeger]:
    argv = _build_argv(source, ports, directory)
    url, otlp_http = f"http://127.0.0.1:{ports.query}", f"http://127.0.0.1:{ports.otlp_http}"

    def is_ready() -> bool:
        return _answers_queries(url) and _takes_traces(otlp_http)

    with contextlib.ExitStack() as stack:
        if source.kind == "container":
            # Its client may be killed before it could end the container.
            stack.callback(_succeeds, [source.where, "rm", "--force", _container_name()])
        process = stack.enter_context(start_process(argv, log_path, is_ready, deadline_s, "Jaeger"))
        yield Jaeger(url, otlp_http, f"http://127.0.0.1:{ports.otlp_grpc}", _has_ui(url), process)


def _connect(address: str) -> Jaeger:
    url = address.rstrip("/")
    if not _answers_queries(url):
        raise ConfigurationError(
            f"${JAEGER_VARIABLE} is {address}, where no Jaeger answers; it takes the address of Jaeger's "
            f"user interface, such as http://localhost:{USUAL_PORTS.query}"
        )
    otlp_http = os.environ.get(ENDPOINT_VARIABLE) or _beside(url, USUAL_PORTS.otlp_http)
    if not _takes_traces(otlp_http.rstrip("/")):
        raise ConfigurationError(
            f"the Jaeger at {url} takes no traces at {otlp_http}; name the address where it takes them by "
            f"OTLP over HTTP in ${ENDPOINT_VARIABLE}"
        )
    return Jaeger(url, otlp_http, _beside(url, USUAL_PORTS.otlp_grpc), _has_ui(url))


def _beside(address: str, port: int) -> str:
    """Return the address of another port of the same host."""
    host = urllib.parse.urlsplit(address).hostname or "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _container_name() -> str:
    return f"reqpath-jaeger-{os.getpid()}"


def _write_module(go: str, directory: str, log_path: str) -> None:
    """Write a module that depends on Jaeger's, with the versions and the checksums of Jaeger's own."""
    try:
        done = subprocess.run(
            [go, "mod", "download", "-json", f"{_MODULE}@{MODULE_VERSION}"],
            capture_output=True,
            text=True,
            timeout=_PULL_S,
            check=False,
            cwd=directory,
        )
        found = json.loads(done.stdout)
        with open(found["GoMod"], encoding="utf-8") as file:
            requirements = file.read()
        checksums = os.path.join(found["Dir"], "go.sum")
        shutil.copyfile(checksums, os.path.join(directory, "go.sum"))
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{go} could not fetch {_MODULE} within {_PULL_S:g} s") from error
    except (OSError, ValueError, KeyError) as error:
        raise ServerError(
            f"{go} could not fetch {_MODULE}@{MODULE_VERSION}", done.stderr or done.stdout
        ) from error
    requirements = re.sub(r"(?m)^module .*$", "module reqpath.invalid/jaeger", requirements, count=1)
    with open(os.path.join(directory, "go.mod"), "w", encoding="utf-8") as file:
        file.write(f"{requirements}\nrequire {_MODULE} {MODULE_VERSION}\n")
    with open(log_path, "a", encoding="utf-8") as log:
        log.write(done.stderr)


class _CompiledPackages:
    """Tells from a build's log how far it is; `go build -v` writes a line for each package."""

    def __init__(self, log_path: str, progress: Progress) -> None:
        self._log_path = log_path
        self._progress = progress
        self._said = ""

    def tell(self) -> None:
        """Say what is new."""
        with open(self._log_path, "rb") as log:
            lines = log.read().splitlines()
        fetched = sum(line.startswith(b"go: downloading") for line in lines)
        # By the hundred: a log that is no terminal gets each as a line.
        packages = (len(lines) - fetched) // 100 * 100
        what = f"{packages} packages compiled" if packages else f"{fetched // 100 * 100} modules fetched"
        if what != self._said:
            self._said = what
            self._progress(f"Jaeger's build, once, some minutes: {what}")


def _succeeds(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, timeout=_PROBE_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _answers_queries(url: str) -> bool:
    try:
        document = json.loads(_fetch(f"{url}/api/v3/services"))
    except (OSError, ValueError):
        return False
    # A Jaeger without traces says {}.
    return isinstance(document, dict) and document.keys() <= {"services"}


def _takes_traces(otlp_http: str) -> bool:
    try:
        # Jaeger's other port answers anything with its home page.
        json.loads(_fetch(f"{otlp_http}/v1/traces", b"{}"))
    except (OSError, ValueError):
        return False
    return True


def _has_ui(url: str) -> bool:
    try:
        return _PLACEHOLDER not in _fetch(f"{url}/").decode("utf-8", "replace")
    except OSError:
        return False


def _fetch(url: str, document: bytes | None = None) -> bytes:
    """Get, or post a JSON document. Raises: OSError."""
    request = urllib.request.Request(url, document, {"Content-Type": "application/json"})  # noqa: S310
    # Past the proxies of the environment, which know nothing of this machine's ports.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_PROBE_S) as answer:
            body: bytes = answer.read()
            return body
    except http.client.HTTPException as error:
        raise OSError(f"{url} does not speak HTTP") from error


def _stay_silent(_what: str) -> None:
    pass
