"""Bringing paths to a backend that is away, slow, refuses, or comes back; real exporters, real servers."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import grpc
import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from reqpath.collect.checkpoint import read_checkpoint
from reqpath.collect.export import Answer, Delivery, Sender, Target, build_sender, find_target
from reqpath.collect.keep import Keeper
from reqpath.collect.spans import PathSpan, build_spans
from reqpath.collect.tail import Kept, Tail
from reqpath.errors import ConfigurationError
from reqpath.settings import Settings
from tests.collect.backend import Backend, Reply, start_backend
from tests.collect.spools import write_paths
from tests.factories import make_path

NEVER_NS = 1 << 62
COUNT = 20
PATHS = [make_path(number=number) for number in range(COUNT)]
EACH_ONCE = Counter(path.trace_id for path in PATHS)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    # So short that OpenTelemetry's exporter has no time for tries of its own.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with start_backend() as backend:
        yield backend


def build(kept: Kept) -> list[PathSpan]:
    return build_spans(kept.path, kept=kept.reason)


class Run:
    """A delivery of `PATHS`, and what it said."""

    def __init__(
        self, spool: str, sender: Sender, builder: Callable[[Kept], list[PathSpan]], jitter: float
    ) -> None:
        self.messages: list[str] = []
        self.tail = Tail(spool, Keeper(everything=True), wait_s=10, expect_nginx=True, linger_s=0)
        self.delivery = Delivery(
            self.tail,
            sender,
            builder,
            report=self.messages.append,
            backend="the backend",
            jitter=lambda: jitter,
        )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        for _ in range(3_000):
            if ready():
                return
            self.tail.wait_for_progress(0.01)
        raise AssertionError("it takes too long")

    def finish(self) -> None:
        self.wait_until(lambda: self.tail.pending == 0)


@contextmanager
def deliver(
    spool: str,
    sender: Sender,
    builder: Callable[[Kept], list[PathSpan]] = build,
    jitter: float = 2,  # no wait at all
) -> Iterator[Run]:
    write_paths(spool, PATHS)
    run = Run(spool, sender, builder, jitter)
    run.tail.step(NEVER_NS)
    run.delivery.start()
    try:
        yield run
    finally:
        run.delivery.stop(0 if run.tail.pending else 5)


def http(backend: Backend) -> Sender:
    return build_sender(Target(f"{backend.url}/v1/traces", "http/protobuf"))


def test_each_path_arrives_once_and_is_remembered(spool: str, backend: Backend) -> None:
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    assert {service for service, _ in backend.spans} == {"shop", "shop-nginx", "shop-uwsgi"}
    assert (run.delivery.exported, run.delivery.refused, run.messages) == (COUNT, 0, [])
    assert run.delivery.spans == len(backend.spans)
    checkpoint = read_checkpoint(spool)
    assert checkpoint is not None
    assert (checkpoint.kept, checkpoint.waiting) == ([], [])


def test_a_backend_that_comes_back_gets_each_path_once(spool: str, backend: Backend) -> None:
    backend.stop()
    with deliver(spool, http(backend)) as run:
        run.wait_until(lambda: bool(run.messages))
        backend.start()
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    assert run.messages == [
        "can't export to the backend: Connection refused; trying again, the spool holds on",
        "exporting to the backend again",
    ]


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_nothing_is_given_up(
    status: int, spool: str, backend: Backend
) -> None:
    replies = [Reply(status)] * 2
    backend.decide = lambda _: replies.pop() if replies else Reply()
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    assert backend.statuses == [status, status, 200]
    assert [str(status) in message for message in run.messages] == [True, False]
    assert run.delivery.refused == 0


def test_a_slow_backend_is_asked_again_with_the_same_bytes(spool: str, backend: Backend) -> None:
    hang = threading.Event()
    replies = [Reply(hang=hang, accept=True)]
    backend.decide = lambda _: replies.pop() if replies else Reply()
    with deliver(spool, http(backend)) as run:
        run.finish()
        hang.set()
        run.wait_until(lambda: len(backend.bodies) == 2)
    # It had them the first time too, which nobody but it could know: it can tell by the ids.
    assert backend.bodies[0] == backend.bodies[1]
    assert set(backend.arrivals()) == set(EACH_ONCE)


def refuses(trace_id: str, status: int) -> Callable[[ExportTraceServiceRequest], Reply]:
    def decide(request: ExportTraceServiceRequest) -> Reply:
        return Reply(status if bytes.fromhex(trace_id) in request.SerializeToString() else 200)

    return decide


@pytest.mark.parametrize("status", [400, 422])
def test_the_one_path_that_is_refused_is_left_out(status: int, spool: str, backend: Backend) -> None:
    bad = PATHS[7].trace_id
    backend.decide = refuses(bad, status)
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE - Counter([bad])
    assert (run.delivery.exported, run.delivery.refused) == (COUNT - 1, 1)
    (message,) = run.messages
    assert message.startswith(f"the backend refuses a path: {status} ")


def make_reply(rejected: int, message: str) -> bytes:
    """Return what a backend answers that takes a request but not all of it."""
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
    return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())


def test_rejected_spans_are_counted_and_told_once_and_not_sent_again(spool: str, backend: Backend) -> None:
    backend.decide = lambda _: Reply(body=make_reply(3, "attribute too\n  long\x1b[2J"))
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    requests, spans = len(backend.bodies), len(backend.spans)
    assert (run.delivery.exported, run.delivery.refused) == (COUNT, 0)
    assert run.delivery.rejected_spans == 3 * requests
    assert run.delivery.spans == spans - 3 * requests
    (message,) = run.messages
    assert message.startswith("the backend has rejected 3 of ")
    assert message.endswith(" spans: attribute too long[2J; they are lost, further ones are counted")


def test_paths_whose_spans_are_all_rejected_are_not_exported(spool: str, backend: Backend) -> None:
    backend.decide = lambda _: Reply(body=make_reply(1 << 62, ""))
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert (run.delivery.exported, run.delivery.refused, run.delivery.spans) == (0, COUNT, 0)
    assert run.delivery.rejected_spans == len(backend.spans)
    assert "it does not say why" in run.messages[0]


def test_a_warning_is_told_once_and_nothing_is_lost(spool: str, backend: Backend) -> None:
    backend.decide = lambda request: (
        Reply(413) if request.ByteSize() > 20_000 else Reply(body=make_reply(0, "use gzip"))
    )
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert len(backend.bodies) > 1
    assert (run.delivery.exported, run.delivery.rejected_spans) == (COUNT, 0)
    assert run.messages == ["the backend warns: use gzip"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"\xff\xff", "application/x-protobuf"), (b"OK", "text/plain"), (b"", "application/x-protobuf")],
)
def test_a_reply_that_is_no_otlp_says_nothing(
    body: bytes, content_type: str, spool: str, backend: Backend
) -> None:
    backend.decide = lambda _: Reply(body=body, content_type=content_type)
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert (run.delivery.exported, run.delivery.rejected_spans, run.messages) == (COUNT, 0, [])


def test_a_request_too_large_is_sent_in_pieces(spool: str, backend: Backend) -> None:
    backend.decide = lambda request: Reply(413 if request.ByteSize() > 20_000 else 200)
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    assert max(map(len, backend.bodies)) <= 20_000
    assert backend.statuses.count(413) > 0


def test_who_refuses_everything_is_no_backend_and_nothing_is_given_up(spool: str, backend: Backend) -> None:
    backend.decide = lambda _: Reply(400)
    with deliver(spool, http(backend)) as run:
        run.wait_until(lambda: len(backend.statuses) > 3 * COUNT)
        assert run.tail.pending == COUNT
        backend.decide = lambda _: Reply()
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    assert run.delivery.refused == 0


def test_a_path_that_cannot_be_encoded_is_left_out(spool: str, backend: Backend) -> None:
    def build_badly(kept: Kept) -> list[PathSpan]:
        spans = build(kept)
        if kept.path.trace_id == PATHS[3].trace_id:
            spans[0] = replace(spans[0], name="\ud800")
        return spans

    with deliver(spool, http(backend), build_badly) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE - Counter([PATHS[3].trace_id])
    assert run.delivery.refused == 1


def test_a_path_of_which_no_spans_can_be_built_is_left_out(spool: str, backend: Backend) -> None:
    def build_none(kept: Kept) -> list[PathSpan]:
        if kept.path.trace_id in (PATHS[3].trace_id, PATHS[4].trace_id):
            raise ValueError("no spans")
        return build(kept)

    with deliver(spool, http(backend), build_none) as run:
        run.finish()
    assert run.delivery.refused == 2
    assert [message.split(" of trace")[0] for message in run.messages] == ["no spans can be built"]
    assert backend.arrivals().total() == COUNT - 2


def test_the_end_is_prompt_and_what_was_not_sent_waits_in_the_spool(spool: str, backend: Backend) -> None:
    backend.stop()
    with deliver(spool, http(backend)) as run:
        run.wait_until(lambda: bool(run.messages))
        assert not run.delivery.stop(0)
    run.tail.save()
    kept = Tail(spool, Keeper(), wait_s=10, expect_nginx=True)
    kept.end()
    assert Counter(one.path.trace_id for one in kept.take()) == EACH_ONCE


def test_a_checkpoint_that_cannot_be_written_stops_no_export(
    spool: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reqpath.collect.tail.write_checkpoint", fail)
    with deliver(spool, http(backend)) as run:
        run.finish()
    assert backend.arrivals() == EACH_ONCE
    (message,) = run.messages
    assert "No space left on device; after a restart paths may arrive twice" in message


class Scripted:
    """A sender that answers as it is told."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def send(self, spans: Sequence[PathSpan]) -> Answer:
        return self.answers.pop(0) if self.answers else Answer("accepted")

    def close(self) -> None:
        """Nothing to give up."""


def test_the_waits_grow_and_a_backends_own_wish_comes_first(
    spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Tail, "wait_for_end", lambda _tail, timeout_s: waits.append(timeout_s))
    away = [Answer("away", "no")] * 7
    sender = Scripted(*away, Answer("away", "later", 120.0), Answer("away", "much later", 1e9))
    with deliver(spool, sender, jitter=0) as run:
        run.finish()
    assert waits == [1, 2, 4, 8, 16, 30, 30, 120, 300]


@pytest.mark.parametrize(
    ("header", "wait_s"), [("7", 7.0), ("", 0.0), ("soon", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_the_wish_is_read_from_the_answer(header: str, wait_s: float, backend: Backend, spool: str) -> None:
    backend.decide = lambda _: Reply(503, retry_after=header)
    sender = http(backend)
    try:
        answer = sender.send(build_spans(PATHS[0]))
    finally:
        sender.close()
    assert answer == Answer("away", "503 Service Unavailable", wait_s)


class GrpcBackend:
    """A gRPC backend that answers with one status after another, and then accepts."""

    def __init__(self, *statuses: grpc.StatusCode) -> None:
        self.statuses = list(statuses)
        self.bodies: list[bytes] = []
        self.reply = b""
        self._pool = ThreadPoolExecutor(1)
        self._server = grpc.server(self._pool)
        method = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": method}),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()

    def _export(self, body: bytes, context: Any) -> bytes:
        if self.statuses:
            context.abort(self.statuses.pop(0), "as it was told")
        self.bodies.append(body)
        return self.reply


@pytest.fixture
def grpc_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GrpcBackend]]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with ExitStack() as stack:
        yield lambda *statuses: stack.enter_context(closing(GrpcBackend(*statuses)))


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (None, "accepted"),
        (grpc.StatusCode.INVALID_ARGUMENT, "refused"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"),
        (grpc.StatusCode.UNAVAILABLE, "away"),
        (grpc.StatusCode.UNAUTHENTICATED, "away"),
        (grpc.StatusCode.UNIMPLEMENTED, "away"),
    ],
)
def test_grpc_tells_as_much(
    status: grpc.StatusCode | None, verdict: str, grpc_backends: Callable[..., GrpcBackend]
) -> None:
    backend = grpc_backends(*([status] if status else []))
    sender = build_sender(Target(f"http://127.0.0.1:{backend.port}", "grpc"))
    try:
        answers = [sender.send(build_spans(PATHS[0])) for _ in range(2)]
    finally:
        sender.close()
    assert [answer.verdict for answer in answers] == [verdict, "accepted"]
    assert ("as it was told" in answers[0].said) == (status is not None)
    assert len(backend.bodies) == 1 + (status is None)


@pytest.mark.parametrize("lost_connection", [False, True])
def test_grpc_tells_of_rejected_spans(
    lost_connection: bool, grpc_backends: Callable[..., GrpcBackend]
) -> None:
    backend = grpc_backends(*([grpc.StatusCode.UNAVAILABLE] if lost_connection else []))
    backend.reply = make_reply(2, "no such tenant")
    sender = build_sender(Target(f"http://127.0.0.1:{backend.port}", "grpc"))
    try:
        answers = [sender.send(build_spans(PATHS[0])) for _ in range(2 + lost_connection)]
        backend.reply = b""
        answers.append(sender.send(build_spans(PATHS[0])))
    finally:
        sender.close()
    assert [answer.verdict for answer in answers[:-3]] == ["away"] * lost_connection
    assert answers[-3:] == [
        *[Answer("accepted", "no such tenant", rejected=2)] * 2,
        Answer("accepted"),
    ]


def test_opentelemetrys_own_variables_are_taken(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none")
    sender = http(backend)
    try:
        assert sender.send(build_spans(PATHS[0])).verdict == "accepted"
    finally:
        sender.close()
    assert backend.headers[0]["x-tenant"] == "shop"


def test_opentelemetrys_loggers_are_as_they_were_and_say_nothing_meanwhile(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    before = list(logger.filters)
    backend.stop()
    sender = http(backend)
    try:
        assert sender.send(build_spans(PATHS[0])) == Answer("away", "Connection refused")
    finally:
        sender.close()
    assert logger.filters == before
    assert caplog.messages == []


def test_variables_that_make_no_sense_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    with pytest.raises(ConfigurationError, match="zip"):
        build_sender(Target("http://127.0.0.1:1", "grpc"))


@pytest.mark.parametrize(
    ("settings", "environ", "target"),
    [
        (Settings(), {}, None),
        (Settings(otlp="http://otel:4318"), {}, Target("http://otel:4318/v1/traces", "http/protobuf")),
        (Settings(otlp="otel:4318/"), {}, Target("http://otel:4318/v1/traces", "http/protobuf")),
        (
            Settings(otlp="https://otel/otlp/v1/traces"),
            {},
            Target("https://otel/otlp/v1/traces", "http/protobuf"),
        ),
        (Settings(otlp="http://otel:4317", otlp_protocol="grpc"), {}, Target("http://otel:4317", "grpc")),
        (
            Settings(),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Target("http://otel:4317", "grpc"),
        ),
        (
            Settings(),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel:4318/x/"},
            Target("http://otel:4318/x/v1/traces", "http/protobuf"),
        ),
        (
            # Of traces alone, so it is the address as it is.
            Settings(),
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://otel:4318/mine",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://other",
            },
            Target("http://otel:4318/mine", "http/protobuf"),
        ),
        (
            Settings(),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel", "OTEL_TRACES_EXPORTER": "none"},
            None,
        ),
        (Settings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel", "OTEL_SDK_DISABLED": "true"}, None),
        (
            Settings(otlp="http://mine"),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel", "OTEL_SDK_DISABLED": "true"},
            Target("http://mine/v1/traces", "http/protobuf"),
        ),
    ],
)
def test_where_to_export_is_said_by_us_or_by_opentelemetry(
    settings: Settings, environ: dict[str, str], target: Target | None
) -> None:
    assert find_target(settings, environ) == target


@pytest.mark.parametrize(
    ("settings", "environ"),
    [
        (Settings(otlp="ftp://otel"), {}),
        (Settings(otlp="http://otel", otlp_protocol="http/json"), {}),
        (Settings(otlp="http://otel"), {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}),
    ],
)
def test_what_it_cannot_do_is_said(settings: Settings, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="it takes"):
        find_target(settings, environ)
