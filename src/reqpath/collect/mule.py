"""The collector as a uWSGI mule: `mule = reqpath.collect.mule:main`.

uWSGI's master starts it beside the workers, starts it anew when it dies, and ends it at reload and stop.
Its settings are the `REQPATH_*` variables, `REQPATH_LISTEN` and `REQPATH_SPOOL` above all.
"""

from __future__ import annotations

import sys
import time

from reqpath.collect.receiver import DatagramSource, Receiver, stopped_by_signals
from reqpath.configuration import parse_listen
from reqpath.errors import ReqPathError
from reqpath.settings import Settings

#: Between attempts when the collector can't start; uWSGI would start it anew at once, for ever.
_RETRY_S = 5.0


def main() -> None:
    """Collect until uWSGI ends this process."""
    said = ""
    while True:
        try:
            settings = Settings.from_environment()
            source = DatagramSource(parse_listen(settings.listen))
            receiver = Receiver(settings, [source], report=_report)
            break
        except ReqPathError as error:
            # Another process may give up the port, or the spool be put right.
            if str(error) != said:
                said = str(error)
                _report(f"{said}. Trying again every {_RETRY_S:g} s")
            time.sleep(_RETRY_S)
    with stopped_by_signals(receiver):
        receiver.run()
    # uWSGI starts a mule anew when its function returns; without this, also one that was told to stop.
    sys.exit(0)


def _report(message: str) -> None:
    sys.stderr.write(f"reqpath collector: {message}\n")
    sys.stderr.flush()
