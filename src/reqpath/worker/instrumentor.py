"""The entry point by which `opentelemetry-instrument` puts reqpath into every Flask app that is made.

As `ReqPath(app)` in the app's own code would, which is not needed then; its arguments hold where it is there
as well::

    opentelemetry-instrument uwsgi --ini app.ini
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

try:
    from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]  # it opts out of types
        BaseInstrumentor,
    )
except ModuleNotFoundError as error:  # no dependency of reqpath's: who runs the command has it
    raise ModuleNotFoundError(
        "reqpath's instrumentor needs opentelemetry-instrumentation: pip install 'reqpath[opentelemetry]'",
        name=error.name,
    ) from error

if TYPE_CHECKING:
    from flask import Flask

    from reqpath.worker.wsgi import RequestMiddleware


class ReqPathInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # as above
    """Puts `ReqPath` into each Flask app that is made while it is in force."""

    #: Flask's own `__init__`; None while nothing is instrumented.
    _original: Callable[..., None] | None = None
    _middlewares: WeakSet[RequestMiddleware]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what has to be installed."""
        return ("flask >= 3.0",)

    def _instrument(self, **kwargs: Any) -> None:
        """Hook Flask; `kwargs` are arguments of `ReqPath`.

        Raises: ConfigurationError for a wrong one.
        """
        from flask import Flask

        from reqpath.worker.flask import ReqPath

        # What other instrumentations take; reqpath makes neither spans nor metrics in this process.
        for name in ("tracer_provider", "meter_provider"):
            kwargs.pop(name, None)
        reqpath = ReqPath(**kwargs)
        original = self._original = Flask.__init__
        middlewares = self._middlewares = WeakSet()

        @functools.wraps(original)
        def init(app: Flask, *args: Any, **arguments: Any) -> None:
            original(app, *args, **arguments)
            middleware = reqpath.put_in(app, provisional=True)
            if middleware is not None:
                middlewares.add(middleware)

        Flask.__init__ = init  # type: ignore[assignment, method-assign]  # it takes what the original does

    def _uninstrument(self, **kwargs: Any) -> None:
        """Make further apps without reqpath, and have those that there are run as if it were not there."""
        from flask import Flask

        if self._original is not None:
            Flask.__init__ = self._original  # type: ignore[method-assign]
            self._original = None
        for middleware in self._middlewares:
            middleware.disable()
