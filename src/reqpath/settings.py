"""The settings of the worker and of the collector, from arguments and `REQPATH_*` environment variables.

An argument wins over the variable of the same name in capitals: `Settings.from_environment(sql="none")`
wins over `REQPATH_SQL=verbatim`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from reqpath.errors import ConfigurationError

Sql = Literal["placeholders", "verbatim", "none"]
Keep = Literal["policy", "all"]

MEGABYTE = 1 << 20
_KINDS = {bool: "truth value, True or False", int: "whole number", float: "number", str: "text"}

#: Where nginx sends its lines and the collector awaits them; nginx-conf/reqpath-http.conf says the same.
DEFAULT_LISTEN = "udp:127.0.0.1:5170"


def default_spool() -> str:
    """Return this user's spool directory: `$REQPATH_SPOOL`, else one in the temporary directory."""
    return os.environ.get("REQPATH_SPOOL") or os.path.join(
        os.environ.get("TMPDIR") or "/tmp",  # noqa: S108 - the spool refuses what another user prepared there
        f"reqpath-{os.geteuid()}",
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the worker records and where it puts it."""

    #: False: the app runs as if reqpath were not there.
    enabled: bool = True
    #: The name of the service in reports and traces. Empty: the app's own name.
    service_name: str = ""
    #: The spool's directory. Empty: `default_spool()`.
    spool: str = ""
    #: Bound of the whole spool; the oldest files go first.
    spool_max_bytes: int = 256 * MEGABYTE
    #: Statements: literals replaced by placeholders, as they are, or not at all.
    sql: Sql = "placeholders"
    #: Keep query strings with the paths.
    query_string: bool = False
    #: A proxy sets `X-Request-Start` and `traceparent`, so they are believed. nginx's params need no trust.
    trusted_proxy: bool = False
    #: Operations kept per request; further ones count in the segments and in `dropped_operations`.
    max_operations: int = 500
    #: Of the collector: `udp:HOST:PORT` or `unix:PATH`.
    listen: str = DEFAULT_LISTEN
    #: Of the collector: the OTLP endpoint to export to. Empty: OpenTelemetry's own variables say it, or none.
    otlp: str = ""
    #: `http/protobuf` or `grpc`. Empty: OpenTelemetry's own variables say it, or HTTP.
    otlp_protocol: str = ""
    #: Of the collector: export by its policy, or everything.
    keep: Keep = "policy"
    #: Paths kept of each route and second, whatever they are.
    keep_per_second: int = 2
    #: A path that took longer is kept.
    keep_slower_s: float = 1.0
    #: How long the collector waits for nginx's line or for the worker's record.
    join_wait_s: float = 10.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, kind = getattr(self, setting.name), type(setting.default)
            # Not `isinstance`: "false" and 0.5 would do for a flag, and True for a number.
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ConfigurationError(f"{setting.name} is {value!r}; it takes a {_KINDS[kind]}")
        if self.sql not in get_args(Sql):
            raise ConfigurationError(f"sql is {self.sql!r}; it takes one of {', '.join(get_args(Sql))}")
        if self.keep not in get_args(Keep):
            raise ConfigurationError(f"keep is {self.keep!r}; it takes one of {', '.join(get_args(Keep))}")
        for name in ("keep_per_second", "keep_slower_s", "join_wait_s"):
            # Written so that what is no number fails too.
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it takes 0 or more")
        if self.spool_max_bytes < MEGABYTE:
            raise ConfigurationError(f"spool_max_bytes is {self.spool_max_bytes}; it takes 1048576 or more")
        if self.max_operations < 0:
            raise ConfigurationError(f"max_operations is {self.max_operations}; it takes 0 or more")

    @property
    def spool_directory(self) -> str:
        """The spool's directory, resolved."""
        # The app may change its directory later.
        return os.path.abspath(self.spool or default_spool())

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
        """Read the `REQPATH_*` variables, then lay `arguments` over them.

        Raises: ConfigurationError for a value that can't be read or an argument that is no setting.
        """
        environ = read_environment() if environ is None else environ
        names = {field.name: field for field in fields(cls)}
        unknown = sorted(set(arguments) - set(names))
        if unknown:
            raise ConfigurationError(
                f"no setting is named {', '.join(unknown)}; there are {', '.join(sorted(names))}"
            )
        values: dict[str, Any] = {}
        if service := environ.get("OTEL_SERVICE_NAME"):
            values["service_name"] = service
        for name, field in names.items():
            variable = f"REQPATH_{name.upper()}"
            if text := environ.get(variable):
                values[name] = _parse_setting(variable, text, type(field.default))
        return cls(**(values | arguments))


def read_environment() -> Mapping[str, str]:
    """Return `os.environ`, and inside uWSGI what its `env = ` lines set.

    pyuwsgi reads its ini after Python has copied the environment, so those lines are the C library's alone.
    """
    if "uwsgi" not in sys.modules:
        return os.environ
    import ctypes

    found = dict(os.environ)
    lines = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    number = 0
    while (line := lines[number]) is not None:
        name, _, value = line.partition(b"=")
        found[os.fsdecode(name)] = os.fsdecode(value)
        number += 1
    return found


def _parse_setting(variable: str, text: str, kind: type) -> Any:
    if kind is bool:
        lowered = text.strip().lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off"):
            return False
        raise ConfigurationError(f"{variable} is {text!r}; it takes true or false")
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigurationError(f"{variable} is {text!r}; it takes a whole number") from None
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ConfigurationError(f"{variable} is {text!r}; it takes a number") from None
    return text
