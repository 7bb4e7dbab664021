"""Sends the paths that are kept to an OTLP backend, from a thread of its own, until it has them.

The layer below is OpenTelemetry's own OTLP exporter, over HTTP or gRPC, which reads the standard
`OTEL_EXPORTER_OTLP_*` variables and tries each request several times within its timeout. What it can't bring
to the backend is decided here, by the answer::

    no answer, 429, 5xx, a wrong address or key      tried again, less and less often, for ever
    413, a message too large                         sent again in halves
    400, 422, or what can't be encoded               halved until the one path is found, which is given up
    200, with some spans rejected                    counted; OTLP forbids to send them again

Nothing is given up to a backend that has not yet accepted anything: that one is no OTLP backend, more likely.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, cast

from reqpath.collect.tail import Kept, Tail
from reqpath.errors import ConfigurationError, MissingExtraError
from reqpath.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
    from opentelemetry.sdk.trace import ReadableSpan
    from requests import Response

    from reqpath.collect.spans import PathSpan

HTTP: Final = "http/protobuf"
GRPC: Final = "grpc"
TRACES_PATH: Final = "/v1/traces"
_PROTOBUF: Final = "application/x-protobuf"

#: The wait before the next try, doubled from the first to the last; less by a random half of it.
_FIRST_WAIT_S: Final = 1.0
_LAST_WAIT_S: Final = 30.0
#: A backend that wants to be left alone for longer is asked again after this.
_LONGEST_WAIT_S: Final = 300.0
#: The same when the collector is to end.
_END_WAIT_S: Final = 0.5

_REFUSED: Final = frozenset((400, 422))
_TOO_LARGE: Final = 413


class Answer(NamedTuple):
    """What became of a request."""

    verdict: Literal["accepted", "away", "refused", "too large"]
    #: What the backend said, or why it could not be asked.
    said: str = ""
    #: How long it wants to be left alone.
    retry_after_s: float = 0.0
    #: Spans of the request that it does not take though it has accepted the others.
    rejected: int = 0


class Sender(Protocol):
    """Brings spans to a backend."""

    def send(self, spans: Sequence[PathSpan]) -> Answer:
        """Send one request, which may take as long as the exporter's timeout."""

    def close(self) -> None:
        """Give up what is being tried."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: the address for traces, and the protocol."""

    endpoint: str
    protocol: str

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.protocol})"


def find_target(settings: Settings, environ: Mapping[str, str] = os.environ) -> Target | None:
    """Return where to export to by the settings and OpenTelemetry's variables; None: nowhere.

    Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/

    Raises: ConfigurationError.
    """
    traces_endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    general_endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    protocol = (
        settings.otlp_protocol
        or environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or HTTP
    )
    if protocol not in (HTTP, GRPC):
        raise ConfigurationError(f"the protocol is {protocol!r}; it takes {HTTP} or {GRPC}")
    if settings.otlp:
        return Target(_complete(settings.otlp, protocol), protocol)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return None
    if traces_endpoint:
        return Target(traces_endpoint, protocol)
    if general_endpoint:
        return Target(_complete(general_endpoint, protocol), protocol)
    return None


def _complete(endpoint: str, protocol: str) -> str:
    """Return the address of the traces at a backend's."""
    if "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(f"can't export to {endpoint!r}; it takes http://HOST:PORT or https://HOST")
    endpoint = endpoint.rstrip("/")
    if protocol == GRPC or endpoint.endswith(TRACES_PATH):
        return endpoint
    return endpoint + TRACES_PATH


def build_sender(target: Target) -> Sender:
    """Set up OpenTelemetry's exporter.

    Raises: MissingExtraError, ConfigurationError for variables that make no sense to it.
    """
    try:
        return GrpcSender(target.endpoint) if target.protocol == GRPC else HttpSender(target.endpoint)
    except ModuleNotFoundError as error:
        raise MissingExtraError("otlp", error.name or "OpenTelemetry's exporters") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigurationError(f"can't export to {target}: {error}") from error
    except Exception as error:
        # Its own kind, for a compression that it has not.
        if type(error).__module__.startswith("opentelemetry."):
            raise ConfigurationError(f"can't export to {target}: {error}") from error
        raise


class HttpSender:
    """Sends over HTTP."""

    def __init__(self, endpoint: str) -> None:
        import requests
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        class Session(requests.Session):
            """Remembers the latest answer, of which the exporter tells nothing."""

            def __init__(self) -> None:
                super().__init__()
                self._latest: requests.Response | Exception | None = None

            def take_latest(self) -> requests.Response | Exception | None:
                """Return it, once."""
                latest, self._latest = self._latest, None
                return latest

            def request(self, *args: Any, **arguments: Any) -> requests.Response:
                """Send a request."""
                try:
                    response = super().request(*args, **arguments)
                except Exception as error:
                    self._latest = error
                    raise
                self._latest = response
                return response

        self._session = Session()
        _encode_quickly(trace_exporter, lazily=True)
        self._silence = _Silence("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        self._exporter = trace_exporter.OTLPSpanExporter(endpoint=endpoint, session=self._session)

    def send(self, spans: Sequence[PathSpan]) -> Answer:
        """Send one request."""
        with self._silence:
            # Ours have all that is read of them.
            self._exporter.export(cast("Sequence[ReadableSpan]", spans))
        latest = self._session.take_latest()
        if latest is None:
            # Nothing was sent: it can't be encoded.
            return Answer("refused", self._silence.said)
        if isinstance(latest, Exception):
            return Answer("away", _shorten(latest))
        status = latest.status_code
        said = f"{status} {latest.reason or ''}".strip()
        if 200 <= status < 300:
            return _read_reply(latest)
        if status == _TOO_LARGE:
            return Answer("too large", said)
        if status in _REFUSED:
            return Answer("refused", f"{said}: {_tidy(latest.text)}" if latest.text else said)
        return Answer("away", said, _parse_retry_after(latest.headers.get("Retry-After")))

    def close(self) -> None:
        """Give up what is being tried."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it has no annotations


class GrpcSender:
    """Sends over gRPC."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter
        from opentelemetry.sdk.trace.export import SpanExportResult

        class Exporter(trace_exporter.OTLPSpanExporter):
            """Has its stub, of which it makes another when the connection is lost, remember the replies."""

            @property
            def _client(self) -> Any:
                return self.__dict__.get("_client")

            @_client.setter
            def _client(self, stub: Any) -> None:
                self.__dict__["_client"] = stub and _Stub(stub)

        _encode_quickly(trace_exporter)
        self._success = SpanExportResult.SUCCESS
        self._silence = _Silence("opentelemetry.exporter.otlp.proto.grpc.exporter")
        self._exporter = Exporter(endpoint=endpoint)

    def send(self, spans: Sequence[PathSpan]) -> Answer:
        """Send one request."""
        try:
            with self._silence:
                # Ours have all that is read of them.
                result = self._exporter.export(cast("Sequence[ReadableSpan]", spans))
        except Exception as error:
            # Calls that fail are its own to report: this is what can't be encoded.
            return Answer("refused", _shorten(error))
        if result is self._success:
            stub = self._exporter._client
            return _judge_reply(stub.latest) if stub and stub.latest else Answer("accepted")
        # The exporter tells the status to its log alone.
        said = self._silence.said or "no answer"
        if "INVALID_ARGUMENT" in self._silence.codes:
            return Answer("refused", said)
        if "RESOURCE_EXHAUSTED" in self._silence.codes:
            return Answer("too large", said)
        return Answer("away", said)

    def close(self) -> None:
        """Give up what is being tried."""
        self._exporter.shutdown()


class _Stub:
    """A gRPC stub that remembers the latest reply, of which the exporter tells nothing."""

    def __init__(self, stub: Any) -> None:
        self.latest: ExportTraceServiceResponse | None = None
        self._stub = stub

    def Export(self, *args: Any, **arguments: Any) -> ExportTraceServiceResponse:  # noqa: N802 - its name
        """Send a request."""
        self.latest = None
        reply: ExportTraceServiceResponse = self._stub.Export(*args, **arguments)
        self.latest = reply
        return reply


def _read_reply(response: Response) -> Answer:
    """Return what an HTTP reply with a status of success says; one that is no OTLP says nothing."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no annotations
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    if not response.content or not response.headers.get("Content-Type", "").startswith(_PROTOBUF):
        return Answer("accepted")
    try:
        return _judge_reply(ExportTraceServiceResponse.FromString(response.content))
    except DecodeError:
        return Answer("accepted")


def _judge_reply(reply: ExportTraceServiceResponse) -> Answer:
    """Return what a reply says of spans that are not taken, or, with none of them, warns of.

    Source: https://opentelemetry.io/docs/specs/otlp/#partial-success
    """
    partial = reply.partial_success
    return Answer("accepted", _tidy(partial.error_message), rejected=max(0, partial.rejected_spans))


def _encode_quickly(exporter: Any, *, lazily: bool = False) -> None:
    """Have an exporter's module use `collect.encode`, where it looks its encoder up by this name.

    `lazily`: it asks for the bytes alone.
    """
    if hasattr(exporter, "encode_spans"):
        from reqpath.collect.encode import RequestEncoder

        encoder = RequestEncoder()
        exporter.encode_spans = encoder.encode_lazily if lazily else encoder.encode_message


class _Silence(logging.Filter):
    """Keeps what one of OpenTelemetry's loggers says, and keeps it from being printed at every try."""

    def __init__(self, logger: str) -> None:
        super().__init__()
        self.said = ""
        #: Names of gRPC's status codes in it.
        self.codes: list[str] = []
        self._logger = logging.getLogger(logger)

    def __enter__(self) -> None:
        self.said, self.codes = "", []
        # Before a filter of OpenTelemetry's that lets the same through but once a minute.
        self._logger.filters.insert(0, self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take a message."""
        if record.levelno >= logging.ERROR:
            self.said = record.getMessage()
            values = record.args if isinstance(record.args, tuple) else ()
            self.codes = [value.name for value in values if isinstance(value, Enum)]
        return False


class Delivery:
    """The thread that takes paths from a tail and sends them."""

    def __init__(
        self,
        tail: Tail,
        sender: Sender,
        build: Callable[[Kept], list[PathSpan]],
        *,
        report: Callable[[str], None],
        backend: str,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`report` gets one message for each trouble, and one when it is over."""
        #: Paths that the backend has, and their spans.
        self.exported = 0
        self.spans = 0
        #: Paths that the backend did not want, or of which no spans could be built.
        self.refused = 0
        #: Spans that the backend rejected while it accepted their request; it does not say which.
        self.rejected_spans = 0
        self._tail = tail
        self._sender = sender
        self._build = build
        self._report = report
        self._backend = backend
        self._jitter = jitter
        self._trouble = ""
        self._told: set[str] = set()
        self._wait_s = _FIRST_WAIT_S
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reqpath-export", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Send what is there within a time, then give up; return whether all was sent.

        What was not sent is in the spool, and in its checkpoint.
        """
        self._tail.end()
        self._thread.join(timeout_s)
        self._given_up.set()
        self._sender.close()
        # A request that is under way ends with the exporter's timeout; nobody waits for it.
        self._thread.join(_END_WAIT_S)
        return not self._thread.is_alive() and self._tail.pending == 0

    @property
    def done(self) -> int:
        """Paths that are dealt with, one way or the other."""
        return self.exported + self.refused

    def _run(self) -> None:
        while (batch := self._tail.take()) and not self._given_up.is_set():
            self._deliver(batch)

    def _deliver(self, batch: list[Kept]) -> None:
        built = []
        for one in batch:
            if (spans := self._build_guarded(one)) is None:
                self.refused += 1
                self._finish([one])
            else:
                built.append((one, spans))
        parts = [built] if built else []
        while parts and not self._given_up.is_set():
            part = parts.pop()
            kept = [one for one, _ in part]
            spans = [span for _, spans in part for span in spans]
            answer = self._sender.send(spans)
            if answer.verdict == "accepted":
                self._finish(kept)
                self._count(len(kept), len(spans), answer)
                self._recover()
            elif answer.verdict != "away" and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            elif answer.verdict == "refused" and self.exported:
                self.refused += 1
                self._tell_once(
                    "refused", f"{self._backend} refuses a path: {answer.said}; such paths are left out"
                )
                self._finish(kept)
            elif answer.verdict == "refused":
                # With others it may turn out that the backend is right.
                self._wait(answer)
                self._tail.put_back(kept)
            else:
                parts.append(part)
                self._wait(answer)

    def _count(self, paths: int, spans: int, answer: Answer) -> None:
        rejected = min(answer.rejected, spans)
        if rejected < spans:
            self.exported += paths
        else:
            self.refused += paths
        self.spans += spans - rejected
        self.rejected_spans += rejected
        said = answer.said or "it does not say why"
        if rejected:
            self._tell_once(
                "rejected",
                f"{self._backend} has rejected {rejected:,} of {spans:,} spans: {said}; "
                "they are lost, further ones are counted",
            )
        elif answer.said:
            self._tell_once("warned", f"{self._backend} warns: {said}")

    def _build_guarded(self, kept: Kept) -> list[PathSpan] | None:
        try:
            return self._build(kept)
        except Exception as error:
            self._tell_once(
                "unbuilt", f"no spans can be built of trace {kept.path.trace_id}: {error!r}; it is left out"
            )
            return None

    def _finish(self, kept: list[Kept]) -> None:
        try:
            self._tail.done(kept)
        except OSError as error:
            self._tell_once(
                "forgotten",
                f"can't remember in the spool what was exported: {error.strerror or error}; "
                "after a restart paths may arrive twice",
            )

    def _wait(self, answer: Answer) -> None:
        if not self._trouble:
            self._trouble = answer.said
            self._report(f"can't export to {self._backend}: {answer.said}; trying again, the spool holds on")
        wait_s = self._wait_s * (1 - self._jitter() / 2)
        wait_s = max(wait_s, min(answer.retry_after_s, _LONGEST_WAIT_S))
        self._wait_s = min(2 * self._wait_s, _LAST_WAIT_S)
        if self._tail.wait_for_end(wait_s):
            # It is to end soon, so the wait is a short one.
            self._given_up.wait(_END_WAIT_S)

    def _recover(self) -> None:
        self._wait_s = _FIRST_WAIT_S
        if self._trouble:
            self._trouble = ""
            self._report(f"exporting to {self._backend} again")

    def _tell_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._report(message)


def _parse_retry_after(text: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 when there is none that makes sense.

    Source: RFC 9110, section 10.2.3
    """
    if text is None:
        return 0.0
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _tidy(text: str) -> str:
    """Return a backend's text as the part of one line that a terminal can be given."""
    return "".join(filter(str.isprintable, " ".join(text.split())))[:200]


def _shorten(error: BaseException) -> str:
    """Return what is behind an error, without the layers that it came through."""
    while (behind := error.__cause__ or error.__context__) is not None:
        error = behind
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:200]
