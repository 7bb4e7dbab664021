"""Where did the time of this request go? Per-tier latency of Flask behind nginx and uWSGI, with MySQL.

In an existing Flask app::

    from reqpath import ReqPath

    ReqPath(app)

Then `reqpath report` shows where the requests' time goes. Importing this module loads no Flask, no database
driver and no OpenTelemetry SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reqpath.worker.flask import ReqPath

__version__ = "0.1.0"
__all__ = ["ReqPath", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `ReqPath` when it is asked for, so that reading a spool needs nothing of writing one."""
    if name == "ReqPath":
        from reqpath.worker.flask import ReqPath

        return ReqPath
    raise AttributeError(f"module 'reqpath' has no attribute {name!r}")
