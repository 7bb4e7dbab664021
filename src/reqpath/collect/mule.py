"""The collector as a uWSGI mule: two lines in the ini.

::

    shared-import = reqpath.collect.mule
    mule = reqpath.collect.mule:main

The first has uWSGI's master open the socket before it forks, so that the kernel keeps nginx's lines while the
mule is started, or started anew. The second has the master run `main` beside the workers, and again when it
dies. The settings are the `REQPATH_*` variables, `REQPATH_LISTEN` and `REQPATH_SPOOL` above all. With
`REQPATH_OTLP`, or OpenTelemetry's own variables, it sends traces too.

With `lazy-apps` a mule's function crashes in uWSGI, whose loaders are not set up there, and a file does not:
the second line is then `mule = /…/reqpath/collect/mule.py`. Source: https://github.com/unbit/uwsgi/issues/1746
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from importlib import import_module
from typing import Any

from reqpath.collect.collector import Collector
from reqpath.collect.export import find_target
from reqpath.collect.receiver import DatagramSource, Receiver, stopped_by_signals
from reqpath.configuration import parse_listen
from reqpath.errors import ReqPathError
from reqpath.settings import Settings, read_environment
from reqpath.worker.uwsgi import on_postfork, uwsgi_module

#: Between attempts when the collector can't start; uWSGI would start it anew at once, for ever.
_RETRY_S = 5.0
#: After this long uWSGI kills a mule that does not end. Source: uWSGI's option mule-reload-mercy.
_MERCY_S = 60.0


def main() -> None:
    """Collect until uWSGI ends this process."""
    uwsgi = uwsgi_module()
    # OpenTelemetry's exporters look there for what uWSGI's ini has set.
    os.environ.update({key: text for key, text in read_environment().items() if key.startswith("OTEL_")})
    source, receiver, collector = _start()

    def end_after_workers(_number: int, _frame: object) -> None:
        # A reload: the workers finish what they have, and nginx logs it.
        limit_s = time.monotonic() + _MERCY_S / 2
        receiver.stop(when=lambda: time.monotonic() > limit_s or not _has_workers(uwsgi))

    signal.signal(signal.SIGHUP, end_after_workers)
    with contextlib.closing(source), stopped_by_signals(receiver), collector or contextlib.nullcontext():
        receiver.run()
    # A mule goes on with a loop of uWSGI's own when its function returns; only the process's end ends it.
    sys.exit(0)


def _start() -> tuple[DatagramSource, Receiver, Collector | None]:
    """Open what there is to open, however long that takes."""
    said = ""
    while True:
        try:
            settings = Settings.from_environment()
            source = _held or DatagramSource(parse_listen(settings.listen))
            try:
                collector = _build_collector(settings)
                work = collector.work if collector else None
                return source, Receiver(settings, [source], report=_report, work=work), collector
            except ReqPathError:
                if source is not _held:
                    source.close()
                raise
        except ReqPathError as error:
            # Another process may give up the port, or the spool be put right.
            if str(error) != said:
                said = str(error)
                _report(f"{said}. Trying again every {_RETRY_S:g} s")
            time.sleep(_RETRY_S)


def _build_collector(settings: Settings) -> Collector | None:
    try:
        target = find_target(settings)
    except ReqPathError as error:
        _report(f"not exporting: {error}")
        return None
    return Collector(settings, target, report=_report) if target else None


def _hold_socket(uwsgi: Any) -> DatagramSource | None:
    """Open the socket in uWSGI's master, for the mule to inherit; None elsewhere, or when it can't be had."""
    if uwsgi is None or uwsgi.worker_id() or uwsgi.mule_id() or not uwsgi.masterpid():
        return None
    try:
        source = DatagramSource(parse_listen(Settings.from_environment().listen), keep_path=True)
    except ReqPathError:
        # The mule will try again, and say it.
        return None

    def close_in_workers() -> None:
        if not uwsgi.mule_id():
            source.close()

    on_postfork(close_in_workers)
    return source


def _has_workers(uwsgi: Any) -> bool:
    """Tell whether one of uWSGI's workers still runs."""
    return any(_is_running(worker["pid"]) for worker in uwsgi.workers())


def _is_running(pid: int) -> bool:
    # The master takes up to a second to notice an end; until then the process is a zombie.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def _report(message: str) -> None:
    sys.stderr.write(f"reqpath collector: {message}\n")
    sys.stderr.flush()


_held = _hold_socket(uwsgi_module())

if __name__ == "__main__":
    # A mule's file runs as a script; the socket is with the module that the master imported.
    import_module("reqpath.collect.mule").main()
