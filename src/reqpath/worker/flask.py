"""Flask's own stamps: where its framework begins and ends, the view, the route, the unhandled exception.

The hooks are the app's methods that Flask calls on every request, replaced on the one app; they call the
originals with the same arguments and change no result.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from reqpath.errors import ConfigurationError
from reqpath.raw import FLASK_START, VIEW_END, VIEW_START
from reqpath.settings import Settings
from reqpath.worker.guard import note_fault
from reqpath.worker.jinja import timed
from reqpath.worker.recorder import FRAMEWORK, MIDDLEWARE, ROUTE, current, get_recorder
from reqpath.worker.wsgi import ENVIRON_KEY, RequestMiddleware

if TYPE_CHECKING:
    from flask import Flask

_logger = logging.getLogger("reqpath")
_EXTENSION = "reqpath"


class ReqPath:
    """Records where the time of a Flask app's requests goes.

    Example::

        app = Flask(__name__)
        ReqPath(app)

    or, with an app factory, `reqpath = ReqPath()` and later `reqpath.init_app(app)`.
    """

    def __init__(self, app: Flask | None = None, **arguments: Any) -> None:
        """`arguments` are those of `reqpath.settings.Settings`.

        Raises: ConfigurationError for a wrong argument.
        """
        Settings.from_environment({}, **arguments)
        self._arguments = arguments
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the hooks into `app`; a second time does nothing, save after `put_in` as provisional."""
        self.put_in(app)

    def put_in(self, app: Flask, *, provisional: bool = False) -> RequestMiddleware | None:
        """Put the hooks into `app` and return what records its requests; None where the settings say not to.

        After a `provisional` time the arguments of one that is not hold.
        """
        present: RequestMiddleware | None = app.extensions.get(_EXTENSION)
        if present is not None and not (present.provisional and not provisional):
            return present
        try:
            settings = Settings.from_environment(**self._arguments)
        except ConfigurationError as error:
            # A slip in the environment must not keep the app from starting.
            _logger.error("reqpath: %s; ignoring all REQPATH_* variables", error)
            settings = Settings.from_environment({}, **self._arguments)
        if not settings.service_name:
            settings = replace(settings, service_name=app.name)
        if present is not None:
            present.configure(settings)
            return present
        if not settings.enabled:
            return None
        middleware = RequestMiddleware(app.wsgi_app, settings, flask=app)
        middleware.provisional = provisional
        app.extensions[_EXTENSION] = middleware
        # Flask's own way to add a middleware. The method is called faster than an object that has one.
        app.wsgi_app = middleware.__call__  # type: ignore[method-assign]
        self._hook(app, innermost=middleware.is_innermost)
        return middleware

    def _hook(self, app: Flask, *, innermost: bool) -> None:
        from flask import got_request_exception

        dispatch_request = app.dispatch_request
        get_context = _context_getter()

        # It runs for each request, so the switches are written out, as `recorder` says.
        def run_view(dispatch_request: Callable[[], Any] = dispatch_request) -> Any:
            recorder = get_recorder()
            if recorder is None or (marks := recorder.marks)[-2] != FLASK_START:
                return dispatch_request()
            try:
                rule = get_context().request.url_rule
                if rule is not None:
                    recorder.values[ROUTE] = rule.rule
                start_ns = monotonic_ns()
                marks.append(VIEW_START)
                marks.append(start_ns)
            except Exception:
                note_fault("the start of a view")
            try:
                return dispatch_request()
            finally:
                try:
                    end_ns = monotonic_ns()
                    marks.append(VIEW_END)
                    marks.append(end_ns)
                except Exception:
                    note_fault("the end of a view")

        def note_exception(_sender: Any, exception: BaseException, **_extra: Any) -> None:
            recorder = current.get()
            if recorder is not None:
                recorder.fail(exception)

        def hand_on(*args: Any, **kwargs: Any) -> Any:
            return run_view(partial(dispatch_request, *args, **kwargs))

        # Flask may grow arguments, as 3.2 does; where it has none, handing them on would be the dearer call.
        takes_none = not inspect.signature(dispatch_request).parameters
        app.dispatch_request = run_view if takes_none else hand_on  # type: ignore[method-assign]
        app.update_template_context = timed(app.update_template_context)  # type: ignore[method-assign]
        # Flask's signals hold their receivers weakly unless told otherwise.
        got_request_exception.connect(note_exception, app, weak=False)
        if not innermost:
            _hook_bounds(app)


def _hook_bounds(app: Flask) -> None:
    """Mark where Flask begins and ends, for an app with middleware between it and reqpath."""
    request_context = app.request_context
    do_teardown_appcontext = app.do_teardown_appcontext

    def hooked_request_context(environ: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = current.get()
        # A view may make a further context of the request's environ.
        if recorder is not None and environ.get(ENVIRON_KEY) is recorder and not recorder.is_in_flask():
            recorder.switch(FLASK_START)
        return request_context(environ, *args, **kwargs)

    def hooked_do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        try:
            return do_teardown_appcontext(*args, **kwargs)
        finally:
            recorder = current.get()
            # Before the response has started, it is an app context of the app's own within the request.
            if (
                recorder is not None
                and recorder.segment == FRAMEWORK
                and recorder.response_start_ns is not None
                and recorder.is_own_thread()
            ):
                recorder.switch(MIDDLEWARE)

    app.request_context = hooked_request_context  # type: ignore[method-assign]
    app.do_teardown_appcontext = hooked_do_teardown_appcontext  # type: ignore[method-assign]


def _context_getter() -> Callable[[], Any]:
    """Return a function that returns what has the current request as its `request`."""
    import flask
    from flask import globals as context_variables

    # Flask's own variable, which takes a tenth of the time of `flask.request`; 3.2 has one for both contexts.
    for name in ("_cv_request", "_cv_app"):
        variable = getattr(context_variables, name, None)
        if isinstance(variable, ContextVar):
            return variable.get
    return lambda: flask
