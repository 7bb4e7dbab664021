"""What uWSGI tells about itself: worker, core, processes or threads, and the transport of a request's socket.

Outside uWSGI everything is unknown and nothing fails.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

from reqpath.record import Transport

#: What `uwsgidecorators` assigns to when it is loaded.
_HOOKS: Final = ("post_fork_hook", "spooler", "mule_msg_hook")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What is the same for all requests of one process."""

    server: str | None = None
    worker: int | None = None
    processes: int | None = None
    threads: int | None = None
    concurrency: Literal["processes", "threads", "greenlets", "unknown"] = "unknown"
    #: When all the server's sockets are of one family; None: ask each request's.
    transport: Transport | None = None


def uwsgi_module() -> ModuleType | None:
    """Return uWSGI's embedded module; None outside uWSGI."""
    # Not imported at the top: it exists only in a process that uWSGI started, which has put it here.
    module = sys.modules.get("uwsgi")
    if module is None:
        with contextlib.suppress(ImportError):
            import uwsgi

            module = uwsgi
    return module


def read_facts(uwsgi: Any) -> ServerFacts:
    """Ask uWSGI about this process; call it after the fork. `uwsgi` is its module or None."""
    if uwsgi is None:
        return ServerFacts()
    cores = int(getattr(uwsgi, "cores", 1))
    processes = int(getattr(uwsgi, "numproc", 1))
    options = getattr(uwsgi, "opt", {})
    if "gevent" in options or b"gevent" in options or "async" in options or b"async" in options:
        concurrency: Literal["processes", "threads", "greenlets", "unknown"] = "greenlets"
    else:
        concurrency = "threads" if cores > 1 else "processes"
    version = getattr(uwsgi, "version", b"")
    return ServerFacts(
        server=f"uWSGI {version.decode('ascii', 'replace') if isinstance(version, bytes) else version}",
        worker=int(uwsgi.worker_id()),
        processes=processes,
        threads=cores,
        concurrency=concurrency,
        transport=_common_transport(getattr(uwsgi, "sockets", [])),
    )


def read_transport(uwsgi: Any) -> Transport | None:
    """Return the transport of the socket that the current request came by; None when it can't be told."""
    return _transport_of(uwsgi.connection_fd())


def on_postfork(function: Callable[[], None]) -> bool:
    """Have `function` called in each worker and mule after the fork; return False outside uWSGI.

    uWSGI forks in C, so `os.register_at_fork` is not called there unless it is told to.
    """
    uwsgi = uwsgi_module()
    own = {}
    if "uwsgidecorators" not in sys.modules:
        own = {name: getattr(uwsgi, name) for name in _HOOKS if hasattr(uwsgi, name)}
    try:
        import uwsgidecorators
    except Exception:
        # Outside uWSGI it raises ImportError; without a master, an exception of its own.
        return False
    # Loading it has put its hooks in the place of those that the app had set.
    if "post_fork_hook" in own:
        uwsgidecorators.postfork(own.pop("post_fork_hook"))
    for name, hook in own.items():
        setattr(uwsgi, name, hook)
    uwsgidecorators.postfork(function)
    return True


def _common_transport(descriptors: list[int]) -> Transport | None:
    transports = {_transport_of(fd) for fd in descriptors}
    return transports.pop() if len(transports) == 1 else None


def _transport_of(fd: int) -> Transport | None:
    try:
        connection = socket.socket(fileno=fd)
    except (OSError, ValueError):
        # Not a socket, or none at all: -1.
        return None
    family = connection.family
    connection.detach()
    if family == socket.AF_UNIX:
        return "unix"
    return "tcp" if family in (socket.AF_INET, socket.AF_INET6) else None
