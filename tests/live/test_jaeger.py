"""What a real Jaeger has of real requests, over its query APIs: whole traces, each tier where it belongs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from reqpath import conventions as names
from reqpath.bench.load import Client, Observation, Pace, Plan, drive, plan_shop_traffic, wait_for_records
from reqpath.collect.join import read_paths
from reqpath.path import RequestPath
from reqpath.servers.database import Database
from reqpath.servers.deployment import Deployment, start_deployment
from reqpath.servers.jaeger import Jaeger
from reqpath.servers.process import start_process, wait_until
from reqpath.servers.topology import TRACE_RESPONSE, App, Topology
from reqpath.spool import SpoolReader
from reqpath.tiers import INDEX
from reqpath.traces.jaeger import JaegerReader
from reqpath.traces.paths import build_paths
from reqpath.traces.span import Span

from .conftest import Start
from .plain_app import REQUESTS

pytestmark = pytest.mark.live

_ARRIVAL_S = 30.0
#: Appended to the app's service, one for each tier as a request meets them.
_TIERS = ("-nginx", "-uwsgi", "", "-mysql")
#: Each kind of the demo's requests: how many tiers it meets, and what it answers.
_KINDS = {
    "health": (3, {200}),
    "catalogue": (4, {200}),
    "product": (4, {200}),
    "search": (4, {200}),
    "orders": (4, {200}),
    "price report": (4, {200}),
    "export": (4, {200}),
    "review": (4, {303}),
    "photo": (4, {201}),
    "price per cup": (4, {200, 500}),
    "missing": (4, {404}),
    "too large": (1, {413}),
}


class Traced(NamedTuple):
    """A request as its client saw it, as the spool has it, and as Jaeger has it."""

    observation: Observation
    path: RequestPath
    spans: list[Span]


class Shop(NamedTuple):
    """The shop's traffic, in a spool and in a Jaeger."""

    jaeger: Jaeger
    service: str
    spool: str
    by_kind: dict[str, list[Traced]]
    start_ns: int

    @property
    def services(self) -> list[str]:
        """One for each tier, as a request meets them."""
        return [f"{self.service}{tier}" for tier in _TIERS]


@pytest.fixture(scope="module", params=["fine", "coarse"])
def shop(
    request: pytest.FixtureRequest,
    jaeger: Jaeger,
    mariadb: Database,
    shop_app: App,
    tmp_path_factory: pytest.TempPathFactory,
) -> Shop:
    """A shop whose collector has sent every request to Jaeger; nginx has stamps to 1 µs, or to 1 ms."""
    service = f"{request.param}-shop"
    spool = str(tmp_path_factory.mktemp("jaeger") / "spool")
    fine = Topology(shop_app, database_transport="tcp")
    coarse = Topology(shop_app, transport="tcp", processes=2, threads=2, hires=False)
    topology = dataclasses.replace(
        fine if request.param == "fine" else coarse,
        nginx_lines=(TRACE_RESPONSE,),
        environment=(
            ("REQPATH_SERVICE_NAME", service),
            ("REQPATH_OTLP", jaeger.otlp_http),
            ("REQPATH_KEEP", "all"),
        ),
    )
    plans = list(islice(plan_shop_traffic(7), 600))
    plans = [*{plan.kind: plan for plan in plans}.values(), *plans[:200]]
    observations: list[Observation] = []
    start_ns = time.time_ns()
    with start_deployment(topology, database=mariadb, spool=spool) as deployment:
        address = deployment.host, deployment.port
        drive(address, plans, Pace(clients=3, traced=False), observations)
        assert not wait_for_records(spool, {o.trace_id for o in observations}, _ARRIVAL_S)
        paths = {path.trace_id: path for path in read_paths(SpoolReader(spool))}
        by_kind: dict[str, list[Traced]] = {}
        for observation in observations:
            spans = fetch_whole(jaeger, observation.trace_id)
            traced = Traced(observation, paths[observation.trace_id], spans)
            by_kind.setdefault(observation.kind, []).append(traced)
    return Shop(jaeger, service, spool, by_kind, start_ns)


def fetch_whole(jaeger: Jaeger, trace_id: str, *, spans: int = 1) -> list[Span]:
    """Wait until a trace has arrived, of at least so many spans; return it."""
    reader = JaegerReader(jaeger.url)
    assert jaeger.process is not None
    found: list[Span] = []

    def has_arrived() -> bool:
        found[:] = reader.fetch_trace(trace_id)
        return len(found) >= spans

    wait_until(has_arrived, _ARRIVAL_S, jaeger.process)
    return found


def ask(jaeger: Jaeger, path: str, **query: object) -> Any:
    """Ask the API that the user interface asks."""
    with urllib.request.urlopen(f"{jaeger.url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)["data"]


def role(span: Span) -> str:
    return str(span.attributes.get(names.ROLE, ""))


def of_role(spans: list[Span], wanted: str) -> list[Span]:
    return [span for span in spans if role(span) == wanted]


@pytest.mark.parametrize("kind", _KINDS)
def test_each_kind_of_request_is_one_connected_trace_with_its_tiers(shop: Shop, kind: str) -> None:
    tiers, statuses = _KINDS[kind]
    nginx, uwsgi, app, mysql = shop.services
    for observation, path, spans in shop.by_kind[kind]:
        by_id = {span.span_id: span for span in spans}
        assert len(by_id) == len(spans)
        (root,) = (span for span in spans if not span.parent_id)
        assert (root.service, root.kind, role(root)) == (nginx, "server", names.NGINX)
        assert root.attributes["http.response.status_code"] == observation.status
        assert observation.status in statuses
        assert {span.service for span in spans} == set(shop.services[:tiers])
        for span in spans:
            if span.parent_id:
                parent = by_id[span.parent_id]
                assert parent.start_ns <= span.start_ns <= span.end_ns <= parent.end_ns, (
                    span.name,
                    parent.name,
                )
        if path.worker is None:
            continue
        (request,) = of_role(spans, names.REQUEST)
        chain = []
        above = request
        while above.parent_id:
            above = by_id[above.parent_id]
            chain.append((above.service, role(above)))
        assert chain == [
            (uwsgi, names.UWSGI),
            (nginx, names.ATTEMPT),
            (nginx, names.NGINX),
        ]
        assert (request.service, request.span_id) == (app, path.worker.span_id)
        assert request.attributes["http.route"] == path.worker.route
        assert request.end_ns - request.start_ns == path.worker.closed_offset_ns
        assert request.attributes[names.TOTAL] == path.timing.total_ns
        operations = of_role(spans, names.OPERATION)
        assert len(operations) == len(path.worker.operations)
        for server in of_role(spans, names.SERVER):
            assert by_id[server.parent_id] in operations
            assert server.service == mysql
        assert path.nginx is not None
        if path.timing.skewed:
            # Its times are those of one side alone.
            continue
        # Where the worker closed the body after nginx had ended, nginx's span is stretched around it.
        end_ns = max(path.nginx.end_ns, request.end_ns)
        assert abs(root.start_ns - path.timing.start_ns) <= path.timing.resolution_ns
        assert abs(root.end_ns - end_ns) <= path.timing.resolution_ns


def test_what_makes_a_request_slow_is_where_it_was(shop: Shop) -> None:
    """Most of each kind have its own tier in front."""

    def typical(kind: str, segment: str) -> float:
        requests = [of_role(traced.spans, names.REQUEST)[0] for traced in shop.by_kind[kind]]
        return median(int(str(r.attributes[names.SEGMENT_KEYS[INDEX[segment]]])) for r in requests)

    assert typical("search", "mysql.query") > 2 * typical("product", "mysql.query")
    assert typical("price report", "flask.view") > 2 * typical("product", "flask.view")
    assert typical("catalogue", "flask.template") > 2 * typical("export", "flask.template")
    assert all(len(of_role(t.spans, names.OPERATION)) > 10 for t in shop.by_kind["orders"])
    slow_line = max(shop.by_kind["photo"], key=lambda t: t.observation.end_ns - t.observation.start_ns)
    receive = of_role(slow_line.spans, names.REQUEST)[0].attributes["reqpath.nginx.receive_ns"]
    assert int(str(receive)) > 100_000_000


def test_templates_are_spans_within_their_view(shop: Shop) -> None:
    for _, _, spans in shop.by_kind["catalogue"]:
        by_id = {span.span_id: span for span in spans}
        templates = of_role(spans, names.TEMPLATE)
        assert templates
        assert {role(by_id[span.parent_id]) for span in templates} <= {names.VIEW, names.REQUEST}


def test_an_error_is_marked_with_the_exception_and_its_stack(shop: Shop) -> None:
    failed = [t for t in shop.by_kind["price per cup"] if t.observation.status == 500]
    assert failed
    for _, _, spans in failed:
        (request,) = of_role(spans, names.REQUEST)
        assert request.status == "ERROR"
        (event,) = (event for event in request.events if event.name == "exception")
        assert event.attributes["exception.type"] == "ZeroDivisionError"
        assert "price_per_cup" in str(event.attributes["exception.stacktrace"])


def test_jaeger_warns_of_no_span(shop: Shop) -> None:
    """Neither of clocks that disagree nor of parents that are not there."""
    for traced in (traced for kind in shop.by_kind.values() for traced in kind):
        (trace,) = ask(shop.jaeger, f"/api/traces/{traced.observation.trace_id}")
        assert len(trace["spans"]) == len(traced.spans)
        assert [span["warnings"] for span in trace["spans"] if span.get("warnings")] == []


def test_the_dependencies_are_the_tiers(shop: Shop) -> None:
    links = ask(
        shop.jaeger, "/api/dependencies", endTs=time.time_ns() // 1_000_000 + 60_000, lookback=3_600_000
    )
    found = {(link["parent"], link["child"]) for link in links if link["parent"] != link["child"]}
    assert {link for link in found if link[1].startswith(shop.service)} == set(pairwise(shop.services))


def test_the_report_from_jaeger_is_the_report_from_the_spool(shop: Shop) -> None:
    # It counts from when the command reads the clock, which on a busy machine is some seconds from now.
    lookback = f"{(time.time_ns() - shop.start_ns) // 1_000_000_000 + 600}s"
    of_spool = report(shop.spool)
    of_jaeger = report("--from", "jaeger", shop.jaeger.url, "--service", shop.service, "--lookback", lookback)
    assert of_jaeger.pop("traces")["traces"] == of_spool["requests"] == sum(map(len, shop.by_kind.values()))
    of_spool.pop("traces")
    for field in ("lost_records", "evicted_records", "evicted_files", "torn_bytes", "foreign_files"):
        assert of_jaeger.pop(field) is None
        of_spool.pop(field)
    assert leave_out(of_jaeger) == leave_out(of_spool)
    for traced in (traced for kind in shop.by_kind.values() for traced in kind):
        (path,) = build_paths(traced.spans)
        assert path.timing == traced.path.timing


def leave_out(document: Any) -> Any:
    """Return the figures without those of a part of the requests, which is by order among equal totals."""
    of_parts = ("median_path", "median_path_ns", "slowest", "slowest_ns", "slowest_requests", "sentence")
    if isinstance(document, dict):
        return {key: leave_out(value) for key, value in document.items() if key not in of_parts}
    if isinstance(document, list):
        return [leave_out(value) for value in document]
    return document


def test_one_request_is_drawn_from_jaeger(shop: Shop) -> None:
    trace_id = shop.by_kind["orders"][0].observation.trace_id
    from_jaeger = run_reqpath("trace", trace_id, "--from", "jaeger", shop.jaeger.url)
    assert from_jaeger == run_reqpath("trace", trace_id, shop.spool)


def report(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run_reqpath("report", *arguments, "--json"))
    return document


def run_reqpath(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "reqpath.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_a_dead_uwsgi_leaves_nginxs_trace_of_a_502(
    jaeger: Jaeger, mariadb: Database, shop_app: App, tmp_path: Path
) -> None:
    with start_deployment(Topology(shop_app, nginx_lines=(TRACE_RESPONSE,)), database=mariadb) as deployment:
        deployment.uwsgi.send_signal(signal.SIGQUIT)
        deployment.uwsgi.wait(30.0)
        # uWSGI's mule is gone too: a collector beside it takes nginx's lines.
        with collecting(deployment, jaeger, tmp_path):
            client = Client((deployment.host, deployment.port), traced=False)
            observation = client.send(Plan("catalogue", "GET", "/"))
            client.close()
            spans = fetch_whole(jaeger, observation.trace_id, spans=2)
    assert observation.status == 502
    (root,) = of_role(spans, names.NGINX)
    (attempt,) = of_role(spans, names.ATTEMPT)
    assert (root.service, root.status, root.attributes["http.response.status_code"]) == (
        "closed-nginx",
        "ERROR",
        502,
    )
    assert (attempt.parent_id, attempt.status, attempt.kind) == (root.span_id, "ERROR", "client")
    (path,) = build_paths(spans)
    assert (path.worker, path.status) == (None, 502)


@contextmanager
def collecting(deployment: Deployment, jaeger: Jaeger, directory: Path) -> Iterator[None]:
    """Run a collector of its own where the mule's was."""
    port = deployment.placement.collector_port
    log = directory / "collect.log"
    with start_process(
        [
            *(sys.executable, "-m", "reqpath.cli", "collect", deployment.spool),
            *("--listen", f"udp:127.0.0.1:{port}", "--otlp", jaeger.otlp_http, "--keep", "all"),
        ],
        str(log),
        lambda: log.exists() and "exporting to" in log.read_text(),
        30.0,
        "collector",
        environment=os.environ | {"REQPATH_SERVICE_NAME": "closed", "REQPATH_JOIN_WAIT_S": "0.5"},
    ):
        yield


@pytest.mark.parametrize(("processor", "lazy_apps"), [("simple", False), ("batch", True)])
def test_the_apps_own_spans_hang_under_its_request(
    processor: str, lazy_apps: bool, jaeger: Jaeger, mariadb: Database, start: Start
) -> None:
    topology = build_traced(jaeger, processor=processor, lazy_apps=lazy_apps)
    for spans in drive_traced(jaeger, topology, mariadb, start):
        by_name = {span.name: span for span in spans}
        (request,) = of_role(spans, names.REQUEST)
        outer, inner = by_name["outer"], by_name["inner"]
        assert (outer.parent_id, inner.parent_id) == (request.span_id, outer.span_id)
        assert (outer.service, outer.scope, request.scope) == ("traced", "the app's own", "reqpath")
        assert request.start_ns <= outer.start_ns <= inner.start_ns <= inner.end_ns <= request.end_ns
        assert inner.attributes == {"shop.items": 3}
        (path,) = build_paths(spans)
        assert path.worker is not None
        assert [operation.kind for operation in path.worker.operations] == ["connect", "query"]


def test_the_tiers_go_around_the_spans_of_the_apps_own_instrumentation(
    jaeger: Jaeger, mariadb: Database, start: Start
) -> None:
    """One span of Flask's and one of each query, made by the app's SDK, with reqpath's around them."""
    topology = build_traced(jaeger, processor="simple", instrumented=True)
    for spans in drive_traced(jaeger, topology, mariadb, start):
        by_id = {span.span_id: span for span in spans}
        (flask,) = (span for span in spans if span.service == "traced" and span.kind == "server")
        assert flask.scope == "opentelemetry.instrumentation.flask"
        assert flask.attributes["http.route"] == "/work"
        around = by_id[flask.parent_id]
        assert (role(around), around.kind) == (names.REQUEST, "internal")
        (root,) = (span for span in spans if not span.parent_id)
        assert root.service == "traced-nginx"
        outer, inner = (next(span for span in spans if span.name == name) for name in ("outer", "inner"))
        assert (outer.parent_id, inner.parent_id) == (flask.span_id, outer.span_id)
        (query,) = (span for span in spans if span.attributes.get("db.statement") == "SELECT 1")
        assert query.parent_id == inner.span_id
        (trace,) = ask(jaeger, f"/api/traces/{root.trace_id}")
        assert [span["warnings"] for span in trace["spans"] if span.get("warnings")] == []
        (path,) = build_paths(spans)
        assert path.worker is not None
        assert path.route == "GET /work"
        assert [operation.kind for operation in path.worker.operations] == ["connect", "query"]


def build_traced(
    jaeger: Jaeger, *, processor: str, lazy_apps: bool = False, instrumented: bool = False
) -> Topology:
    return Topology(
        App("traced_app:app", str(Path(__file__).parent), "TRACED"),
        nginx_lines=(TRACE_RESPONSE,),
        lazy_apps=lazy_apps,
        environment=(
            ("TRACED_ENDPOINT", f"{jaeger.otlp_http}/v1/traces"),
            ("TRACED_PROCESSOR", processor),
            ("TRACED_INSTRUMENTED", "yes" if instrumented else "no"),
            # A batch is sent after this many ms.
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
            ("REQPATH_OTLP", jaeger.otlp_http),
            ("REQPATH_KEEP", "all"),
        ),
    )


def drive_traced(jaeger: Jaeger, topology: Topology, database: Database, start: Start) -> list[list[Span]]:
    """Return the traces of some requests."""
    observations: list[Observation] = []
    with start(topology, database) as deployment:
        drive(
            (deployment.host, deployment.port),
            [Plan("work", "GET", "/work")] * 8,
            Pace(clients=2, traced=False),
            observations,
        )
        return [fetch_traced(jaeger, observation.trace_id) for observation in observations]


def fetch_traced(jaeger: Jaeger, trace_id: str) -> list[Span]:
    """Wait until both the app's spans and reqpath's have arrived."""
    reader = JaegerReader(jaeger.url)
    assert jaeger.process is not None
    found: list[Span] = []

    def has_arrived() -> bool:
        found[:] = reader.fetch_trace(trace_id)
        return {"outer", "inner"} <= {span.name for span in found} and bool(of_role(found, names.NGINX))

    wait_until(has_arrived, _ARRIVAL_S, jaeger.process)
    return found


def test_traces_of_plain_instrumentation_show_what_they_know(jaeger: Jaeger, mariadb: Database) -> None:
    subprocess.run(
        [sys.executable, str(Path(__file__).parent / "plain_app.py"), f"{jaeger.otlp_http}/v1/traces"],
        env=os.environ | {"PLAIN_SOCKET": mariadb.socket},
        timeout=60,
        check=True,
    )
    document = report("--from", "jaeger", jaeger.url, "--service", "plain", "--lookback", "5m")
    assert document["requests"] == document["traces"]["plain"] == REQUESTS
    assert [group["route"] for group in document["routes"]] == ["GET /items/<int:item>"]
    known = {segment["name"] for segment in document["segments"] if segment["known"]}
    assert known == {"wsgi.app", "mysql.query"}
    assert {statement["statement"] for statement in document["statements"]} == {"SELECT %s", "SELECT 'x'"}
    assert {"nginx_start", "nginx_pass", "accept", "parsed", "nginx_end"} <= set(document["missing_stamps"])
    assert document["attributed_share"] == 1
    page = run_reqpath("report", "--from", "jaeger", jaeger.url, "--service", "plain", "--lookback", "5m")
    assert f"without reqpath {REQUESTS} requests" in " ".join(page.split())


def test_every_trace_is_read_once_however_small_the_page(shop: Shop) -> None:
    reader = JaegerReader(shop.jaeger.url, page=7)
    found = [trace[0].trace_id for trace in reader.read_traces(shop.service, shop.start_ns, time.time_ns())]
    wanted = [traced.observation.trace_id for kind in shop.by_kind.values() for traced in kind]
    assert sorted(found) == sorted(wanted)
    assert reader.cut_windows == 0
