"""Where the demo's traces go: to a Jaeger that it finds or starts, or to the OTLP backend at an address."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from reqpath.commands.shared import check_extra
from reqpath.errors import ConfigurationError
from reqpath.servers.jaeger import Jaeger, find_trace_page, start_jaeger, usual_ports
from reqpath.traces.jaeger import JaegerError, JaegerReader

#: What the extra `otlp` brings.
_NEEDED: Final = ("requests", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_ARRIVAL_S: Final = 15.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Backend:
    """An OTLP backend that is to have the demo's traces."""

    otlp: str
    #: Of its Jaeger user interface; None: it has none, or elsewhere.
    page: str | None
    #: The Jaeger that was found or started; None for an address that the user named.
    jaeger: Jaeger | None = None

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        """The variables by which the collector sends everything there, as OpenTelemetry's own say how."""
        how = {name: value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_OTLP_")}
        if self.jaeger is not None:
            how.clear()
        return (*how.items(), ("REQPATH_OTLP", self.otlp), ("REQPATH_KEEP", "all"))

    def find_trace(self, trace_id: str) -> str | None:
        """Wait until a trace has arrived and return its page's address; None without a user interface.

        Raises: JaegerError when it does not arrive.
        """
        if self.page is None:
            return None
        reader = JaegerReader(self.page)
        give_up_s = time.monotonic() + _ARRIVAL_S
        while not reader.fetch_trace(trace_id):
            if time.monotonic() > give_up_s:
                raise JaegerError(
                    f"the trace {trace_id} did not arrive at {self.page} within {_ARRIVAL_S:g} s; the "
                    "collector's words are in uWSGI's log, see --keep-running"
                )
            time.sleep(_POLL_S)
        return f"{self.page}/trace/{trace_id}"


@contextlib.contextmanager
def open_backend(otlp: str | None, tell: Callable[[str], None], *, jaeger: bool) -> Iterator[Backend | None]:
    """Yield the backend that the options name, None for none; what is started for it ends with the `with`.

    Raises: ConfigurationError, MissingExtraError, ServerError.
    """
    if otlp is None and not jaeger:
        yield None
        return
    if otlp is not None and jaeger:
        raise ConfigurationError("--jaeger and --otlp exclude each other; name the Jaeger by --otlp")
    check_extra("otlp", _NEEDED)
    if otlp is not None:
        yield Backend(otlp, find_trace_page(otlp))
        return
    with (
        tempfile.TemporaryDirectory(prefix="reqpath-jaeger-") as directory,
        start_jaeger(directory, ports=usual_ports(), progress=tell) as started,
    ):
        yield Backend(started.otlp_http, started.url, started)
