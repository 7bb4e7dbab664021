"""Flask's own stamps: where its framework begins and ends, the view, the route, the unhandled exception.

The hooks are the app's methods that Flask calls on every request, replaced on the one app; they call the
originals with the same arguments and change no result.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reqpath.errors import ConfigurationError
from reqpath.settings import Settings
from reqpath.worker.guard import note_fault
from reqpath.worker.jinja import timed
from reqpath.worker.recorder import FRAMEWORK, MIDDLEWARE, VIEW, current
from reqpath.worker.wsgi import ENVIRON_KEY, RequestMiddleware

if TYPE_CHECKING:
    from flask import Flask

_logger = logging.getLogger("reqpath")
_EXTENSION = "reqpath"
#: Stands for functions that can't be seen, so that they are expected.
_UNKNOWN = (None,)


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
        app.wsgi_app = middleware  # type: ignore[method-assign]  # Flask's own way to add a middleware
        self._hook(app)
        return middleware

    def _hook(self, app: Flask) -> None:
        from flask import got_request_exception, request

        # Flask may grow arguments (3.2 passes the context along), so all of them are handed on.
        request_context = app.request_context
        dispatch_request = app.dispatch_request
        finalize_request = app.finalize_request
        do_teardown_appcontext = app.do_teardown_appcontext

        # These run for each request, so the switches are written out.

        def hooked_request_context(environ: Any, *args: Any, **kwargs: Any) -> Any:
            recorder = current.get()
            if (
                recorder is not None
                # A view may make a further context of the request's environ.
                and (record := recorder.record).flask_start_offset_ns is None
                and environ.get(ENVIRON_KEY) is recorder
            ):
                now_ns = recorder.monotonic_ns()
                recorder.marks += (FRAMEWORK, now_ns)
                record.flask_start_offset_ns = now_ns - recorder.base_ns
                recorder.flask_context = context = request_context(environ, *args, **kwargs)
                return context
            return request_context(environ, *args, **kwargs)

        def hooked_dispatch_request(*args: Any, **kwargs: Any) -> Any:
            recorder = current.get()
            if recorder is None or (marks := recorder.marks)[-2] != FRAMEWORK:
                return dispatch_request(*args, **kwargs)
            record = recorder.record
            try:
                # By the context, which takes a tenth of the time of `flask.request`; it leads back to the
                # recorder, and so is let go.
                context, recorder.flask_context = recorder.flask_context, None
                rule = (request if context is None else context.request).url_rule
                if rule is not None:
                    record.route = rule.rule
            except Exception:
                note_fault("reading the route")
            now_ns = recorder.monotonic_ns()
            marks += (VIEW, now_ns)
            record.view_start_offset_ns = now_ns - recorder.base_ns
            try:
                return dispatch_request(*args, **kwargs)
            finally:
                now_ns = recorder.monotonic_ns()
                marks += (FRAMEWORK, now_ns)
                record.view_end_offset_ns = now_ns - recorder.base_ns

        # Only where nothing between Flask and reqpath can turn a body in memory into one that is made later.
        middleware = app.extensions[_EXTENSION]
        is_innermost = getattr(middleware.app, "__self__", None) is app

        def hooked_finalize_request(*args: Any, **kwargs: Any) -> Any:
            response = finalize_request(*args, **kwargs)
            recorder = current.get()
            try:
                if recorder is not None and is_innermost:
                    body = response.response
                    if type(body) is list:
                        recorder.in_memory = middleware
                        recorder.on_close = getattr(response, "_on_close", _UNKNOWN)
                        try:
                            # The one chunk that there nearly always is, `join` gives back as it is.
                            recorder.record.response_bytes = len(b"".join(body))
                        except TypeError:
                            # Text, which werkzeug encodes on the way out.
                            recorder.record.response_bytes = sum(map(len, response.iter_encoded()))
                    else:
                        recorder.in_memory = None
            except Exception:
                note_fault("reading the response")
            return response

        def hooked_do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
            try:
                return do_teardown_appcontext(*args, **kwargs)
            finally:
                recorder = current.get()
                # Before the response has started, it is an app context of the app's own within the request.
                if (
                    recorder is not None
                    and recorder.marks[-2] == FRAMEWORK
                    and recorder.record.response_start_offset_ns is not None
                    and threading.get_ident() == recorder.owner
                ):
                    recorder.marks += (MIDDLEWARE, recorder.monotonic_ns())

        def note_exception(_sender: Any, exception: BaseException, **_extra: Any) -> None:
            recorder = current.get()
            if recorder is not None:
                recorder.fail(exception)

        app.request_context = hooked_request_context  # type: ignore[method-assign]
        app.dispatch_request = hooked_dispatch_request  # type: ignore[method-assign]
        app.finalize_request = hooked_finalize_request  # type: ignore[method-assign]
        app.update_template_context = timed(app.update_template_context)  # type: ignore[method-assign]
        app.do_teardown_appcontext = hooked_do_teardown_appcontext  # type: ignore[method-assign]
        # Flask's signals hold their receivers weakly unless told otherwise.
        got_request_exception.connect(note_exception, app, weak=False)
