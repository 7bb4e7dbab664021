"""Flask: a request's time is split between the view, the framework, templates and what is around them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import flask
import pytest
from flask import (
    Blueprint,
    Flask,
    render_template,
    render_template_string,
    stream_template,
    stream_with_context,
)
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from reqpath import ReqPath
from reqpath.errors import ConfigurationError
from reqpath.record import Record, WorkerRecord
from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import recorder as segments
from reqpath.worker.recorder import current
from reqpath.worker.wsgi import RequestMiddleware
from tests.conftest import FakeClock

MS = 1_000_000
ReadRecords = Callable[[str], list[Record]]
Install = Callable[..., RequestMiddleware]
RecordOf = Callable[[], WorkerRecord]


@pytest.fixture
def record_of(spool: str, read_records: ReadRecords) -> RecordOf:
    """Return a function that gives the one record there is."""

    def read() -> WorkerRecord:
        (record,) = read_records(spool)
        assert isinstance(record, WorkerRecord)
        return record

    return read


@pytest.fixture
def install(spool: str, fake_clock: FakeClock) -> Iterator[Install]:
    """Return a function that puts ReqPath into an app, on the fake clock."""
    made: list[RequestMiddleware] = []

    def put(app: Flask, **arguments: Any) -> RequestMiddleware:
        ReqPath(app, spool=spool, **arguments)
        middleware = app.extensions["reqpath"]
        assert isinstance(middleware, RequestMiddleware)
        made.append(middleware)
        return middleware

    yield put
    for middleware in made:
        middleware._writer.close()


@pytest.fixture
def app(fake_clock: FakeClock) -> Flask:
    """Return an app whose parts take 1 ms before, 2 the view, 4 after, 8 and 16 teardown."""
    app = Flask("shop")
    app.secret_key = "x"

    @app.before_request
    def before() -> None:
        fake_clock.advance(1 * MS)

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        fake_clock.advance(4 * MS)
        return response

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        fake_clock.advance(8 * MS)

    @app.teardown_appcontext
    def teardown_app(error: BaseException | None) -> None:
        fake_clock.advance(16 * MS)

    @app.get("/")
    def index() -> str:
        fake_clock.advance(2 * MS)
        return "hello"

    @app.get("/items/<int:number>")
    def item(number: int) -> str:
        return str(number)

    return app


def get(app: Flask, path: str, method: str = "GET") -> Any:
    """Request a path and close the response, as a server would."""
    return app.test_client().open(path, method=method, buffered=True)


def exclusive(record: WorkerRecord) -> dict[str, int]:
    """Return the segments that took any time."""
    return {name: value for name, value in zip(WORKER_SEGMENTS, record.exclusive_ns, strict=True) if value}


def test_the_view_and_the_framework_around_it(app: Flask, install: Install, record_of: RecordOf) -> None:
    install(app)
    response = get(app, "/")
    assert (response.status_code, response.data) == (200, b"hello")
    record = record_of()
    assert exclusive(record) == {"flask.framework": 29 * MS, "flask.view": 2 * MS}
    assert (record.view_start_offset_ns, record.view_end_offset_ns) == (1 * MS, 3 * MS)
    assert record.flask_start_offset_ns == 0
    assert record.response_start_offset_ns == 7 * MS
    assert record.closed_offset_ns == 31 * MS
    assert (record.method, record.route, record.status) == ("GET", "/", 200)
    assert record.response_bytes == 5
    assert record.exclusive_ns[segments.APP] is None
    assert record.exclusive_ns[segments.TEMPLATE] == 0


def test_the_route_is_the_rule_with_its_converters(app: Flask, install: Install, record_of: RecordOf) -> None:
    install(app)
    assert get(app, "/items/42?secret=1").data == b"42"
    record = record_of()
    assert (record.route, record.path) == ("/items/<int:number>", "/items/42")


def test_a_blueprints_prefix_is_part_of_the_route(app: Flask, install: Install, record_of: RecordOf) -> None:
    blueprint = Blueprint("admin", __name__, url_prefix="/admin")
    blueprint.add_url_rule("/users/<path:name>", view_func=lambda name: name)
    app.register_blueprint(blueprint)
    install(app)
    assert get(app, "/admin/users/a/b").data == b"a/b"
    assert record_of().route == "/admin/users/<path:name>"


def test_hooks_put_in_before_the_routes_see_them(install: Install, record_of: RecordOf) -> None:
    app = Flask("late")
    install(app)
    app.add_url_rule("/late", view_func=lambda: "x")
    get(app, "/late")
    assert record_of().route == "/late"


def test_the_app_factorys_way(spool: str, read_records: ReadRecords) -> None:
    reqpath = ReqPath(spool=spool)
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.add_url_rule("/", view_func=lambda: "x")
        reqpath.init_app(app)
        reqpath.init_app(app)  # a second time does nothing
        assert get(app, "/").data == b"x"
        app.extensions["reqpath"]._writer.close()
    assert len(read_records(spool)) == 2


def test_a_second_reqpath_on_an_app_does_nothing(app: Flask, install: Install, record_of: RecordOf) -> None:
    install(app)
    outermost = app.wsgi_app
    ReqPath(app, spool="/nowhere")
    assert app.wsgi_app is outermost
    get(app, "/")
    assert record_of().route == "/"


def test_a_wrong_argument_is_an_error_at_once() -> None:
    with pytest.raises(ConfigurationError, match="no setting is named spol"):
        ReqPath(spol="x")
    with pytest.raises(ConfigurationError, match="sql is 'x'"):
        ReqPath(sql="x")


def test_a_slip_in_the_environment_does_not_keep_the_app_from_starting(
    app: Flask,
    install: Install,
    record_of: RecordOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("REQPATH_SQL", "everything")
    with caplog.at_level(logging.ERROR, "reqpath"):
        install(app)
    assert "sql is 'everything'; it takes one of placeholders, verbatim, none" in caplog.text
    get(app, "/")
    assert record_of().route == "/"


def test_disabled_the_app_is_left_as_it_is(spool: str, read_records: ReadRecords) -> None:
    app = Flask("off")
    before = dict(vars(app))
    ReqPath(app, spool=spool, enabled=False)
    assert vars(app) == before
    assert read_records(spool) == []


def test_the_service_is_named_after_the_app(app: Flask, install: Install) -> None:
    assert install(app).settings.service_name == "shop"


# templates


def test_templates_take_their_time_from_the_view(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    @app.get("/page")
    def page() -> str:
        fake_clock.advance(2 * MS)
        return render_template_string(
            "{{ slow() }}{{ name }}", slow=lambda: fake_clock.advance(32 * MS), name="x"
        )

    @app.context_processor
    def more() -> dict[str, Any]:
        fake_clock.advance(64 * MS)
        return {}

    install(app)
    assert get(app, "/page").data == b"Nonex"
    assert exclusive(record_of()) == {
        "flask.framework": 29 * MS,
        "flask.view": 2 * MS,
        "flask.template": 96 * MS,
    }


def test_finding_and_compiling_a_template_is_its_time(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    from jinja2 import FunctionLoader

    def load(name: str) -> str:
        fake_clock.advance(32 * MS)
        return "loaded {{ 1 + 1 }}"

    app.jinja_loader = FunctionLoader(load)
    app.add_url_rule("/page", view_func=lambda: render_template("page.html"))
    install(app)
    assert get(app, "/page").data == b"loaded 2"
    assert exclusive(record_of())["flask.template"] == 32 * MS


def test_a_streamed_template_takes_its_steps(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    from jinja2 import DictLoader

    app.jinja_loader = DictLoader({"page.html": "{% for i in rows %}{{ step() }}{% endfor %}"})

    def step() -> str:
        fake_clock.advance(32 * MS)
        return "x"

    app.add_url_rule("/page", view_func=lambda: stream_template("page.html", rows=range(3), step=step))
    install(app)
    assert get(app, "/page").data == b"xxx"
    record = record_of()
    assert exclusive(record)["flask.template"] == 96 * MS
    assert record.response_bytes == 3


# errors


@pytest.mark.parametrize("case", [("/nowhere", "GET", 404), ("/", "POST", 405)])
def test_a_request_that_no_rule_takes_has_no_route(
    app: Flask, install: Install, record_of: RecordOf, case: tuple[str, str, int]
) -> None:
    path, method, status = case
    install(app)
    assert get(app, path, method).status_code == status
    record = record_of()
    assert (record.route, record.status, record.method, record.exception) == (None, status, method, None)
    assert exclusive(record) == {"flask.framework": 29 * MS}


def test_an_unhandled_exception_is_recorded_once(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    @app.get("/fail")
    def fail() -> str:
        fake_clock.advance(2 * MS)
        raise LookupError("no such thing")

    install(app)
    assert get(app, "/fail").status_code == 500
    record = record_of()
    assert record.exception is not None
    assert record.exception[:2] == ("LookupError", "no such thing")
    assert "in fail" in record.exception[2]
    assert (record.status, record.route, record.events) == (500, "/fail", [])
    assert exclusive(record) == {"flask.framework": 29 * MS, "flask.view": 2 * MS}


def test_an_exception_that_the_app_lets_out_comes_out_as_it_was(
    app: Flask, install: Install, record_of: RecordOf
) -> None:
    error = LookupError("out")

    @app.get("/fail")
    def fail() -> str:
        raise error

    app.config["PROPAGATE_EXCEPTIONS"] = True
    install(app)
    with pytest.raises(LookupError) as caught:
        get(app, "/fail")
    assert caught.value is error
    record = record_of()
    assert record.exception is not None
    assert (record.exception[1], record.status) == ("out", None)


def test_a_handled_exception_is_no_exception(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    @app.get("/fail")
    def fail() -> str:
        raise LookupError

    @app.errorhandler(LookupError)
    def handle(error: LookupError) -> tuple[str, int]:
        fake_clock.advance(32 * MS)
        return "gone", 410

    install(app)
    assert get(app, "/fail").status_code == 410
    record = record_of()
    assert (record.status, record.exception) == (410, None)
    assert exclusive(record) == {"flask.framework": 61 * MS}


def test_an_aborted_view_keeps_its_route(app: Flask, install: Install, record_of: RecordOf) -> None:
    app.add_url_rule("/abort/<name>", view_func=lambda name: flask.abort(403))
    install(app)
    assert get(app, "/abort/x").status_code == 403
    assert (record_of().route, record_of().status) == ("/abort/<name>", 403)


# bodies


def test_a_generators_steps_are_the_views(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    @app.get("/stream")
    def stream() -> Iterator[str]:
        def body() -> Iterator[str]:
            for _ in range(3):
                fake_clock.advance(32 * MS)
                yield flask.request.path

        return stream_with_context(body())

    install(app)
    assert get(app, "/stream").data == b"/stream" * 3
    record = record_of()
    # Flask runs the teardown twice: when the view has returned, and at the end of the stream's last step.
    assert exclusive(record) == {"flask.framework": 29 * MS, "flask.view": 120 * MS}
    assert record.response_bytes == 21


def test_what_is_called_on_close_is_the_apps_and_current(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    seen = []

    @app.get("/later")
    def later() -> flask.Response:
        response = flask.Response("x")

        @response.call_on_close
        def work() -> None:
            seen.append(current.get())
            fake_clock.advance(32 * MS)

        return response

    install(app)
    get(app, "/later")
    record = record_of()
    assert exclusive(record) == {"flask.framework": 29 * MS, "flask.view": 32 * MS}
    assert (record.closing_offset_ns, record.closed_offset_ns) == (29 * MS, 61 * MS)
    assert [recorder is not None for recorder in seen] == [True]


def test_sessions_and_cookies_are_what_they_are_without_reqpath(
    app: Flask, install: Install, record_of: RecordOf
) -> None:
    @app.get("/login")
    def login() -> flask.Response:
        flask.session["user"] = 7
        response = flask.make_response("in")
        response.set_cookie("a", "b")
        return response

    plain = get(app, "/login")
    install(app)
    traced = get(app, "/login")
    assert traced.headers.getlist("Set-Cookie") == plain.headers.getlist("Set-Cookie")
    assert [*traced.headers] == [*plain.headers]
    assert traced.data == plain.data
    record_of()


def test_a_head_request_and_one_without_content(
    app: Flask, install: Install, spool: str, read_records: ReadRecords
) -> None:
    app.add_url_rule("/none", view_func=lambda: ("", 204))
    install(app)
    client = app.test_client()
    assert client.head("/", buffered=True).headers["Content-Length"] == "5"
    assert client.get("/none", buffered=True).status_code == 204
    assert len(read_records(spool)) == 2


def test_a_sent_file_arrives(app: Flask, install: Install, record_of: RecordOf, tmp_path: Any) -> None:
    (tmp_path / "f.txt").write_text("content")
    app.add_url_rule("/file", view_func=lambda: flask.send_file(tmp_path / "f.txt"))
    install(app)
    with app.test_client() as client, client.get("/file") as response:
        assert response.data == b"content"
    assert record_of().status == 200


def test_the_standards_validator_is_content(app: Flask, install: Install, record_of: RecordOf) -> None:
    app.wsgi_app = validator(app.wsgi_app)  # type: ignore[method-assign, assignment]
    install(app)
    client = Client(validator(app.wsgi_app))
    response = client.get("/", query_string="q=1")
    assert response.get_data() == b"hello"
    response.close()
    record_of()


# around and inside


class Slow:
    """A WSGI middleware that takes its time on the way in."""

    def __init__(self, app: Any, clock: FakeClock, duration_ns: int) -> None:
        self.app, self.clock, self.duration_ns = app, clock, duration_ns

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.clock.advance(self.duration_ns)
        result = self.app(environ, start_response)
        self.clock.advance(self.duration_ns)
        return result


def test_a_middleware_within_reqpath_is_middleware(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    app.wsgi_app = Slow(app.wsgi_app, fake_clock, 32 * MS)  # type: ignore[method-assign]
    install(app)
    assert get(app, "/").data == b"hello"
    assert exclusive(record_of()) == {
        "flask.middleware": 64 * MS,
        "flask.framework": 29 * MS,
        "flask.view": 2 * MS,
    }


def test_a_middleware_around_reqpath_is_not_seen(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    install(app)
    app.wsgi_app = Slow(app.wsgi_app, fake_clock, 32 * MS)  # type: ignore[method-assign]
    get(app, "/")
    assert "flask.middleware" not in exclusive(record_of())


def test_a_plain_middleware_outside_makes_one_record_with_flasks_segments(
    app: Flask, install: Install, record_of: RecordOf, spool: str, fake_clock: FakeClock
) -> None:
    install(app)
    outside = RequestMiddleware(Slow(app.wsgi_app, fake_clock, 32 * MS), spool=spool)
    assert Client(outside).get("/", buffered=True).data == b"hello"
    outside._writer.close()
    record = record_of()
    assert (record.route, record.status) == ("/", 200)
    # What lies between the two is, for the one outside, an application that is not Flask.
    assert exclusive(record)["flask.view"] == 2 * MS
    assert exclusive(record)["flask.framework"] == 29 * MS
    assert exclusive(record)["wsgi.app"] == 2 * 32 * MS, "on the way in and out"
    assert record.exclusive_ns[segments.TEMPLATE] == 0


@pytest.mark.parametrize("where", ["within", "between"])
def test_a_body_that_a_middleware_makes_late_is_watched_step_by_step(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock, where: str
) -> None:
    """Such as one that compresses: Flask's own body is in memory, what the server gets is not."""

    def late(inner: Any) -> Any:
        def compress(body: Any) -> Iterator[bytes]:
            for chunk in body:
                assert current.get() is not None
                fake_clock.advance(32 * MS)
                yield chunk
            body.close()

        return lambda environ, start_response: compress(inner(environ, start_response))

    if where == "within":
        app.wsgi_app = late(app.wsgi_app)  # type: ignore[method-assign]
    middleware = install(app)
    outermost: Any = middleware
    if where == "between":
        outermost = RequestMiddleware(late(outermost), middleware.settings)
    assert Client(outermost).get("/", buffered=True).data == b"hello"
    outermost._writer.close()
    times = exclusive(record_of())
    assert "uwsgi.send" not in times
    assert times["flask.view" if where == "within" else "wsgi.app"] >= 32 * MS


def test_several_apps_in_one_process_keep_apart(
    spool: str, install: Install, read_records: ReadRecords
) -> None:
    shop, admin = Flask("shop"), Flask("admin")
    shop.add_url_rule("/", view_func=lambda: render_template_string("shop"))
    admin.add_url_rule("/", view_func=lambda: render_template_string("admin"))
    install(shop)
    install(admin)
    client = Client(DispatcherMiddleware(shop, {"/admin": admin}))
    assert client.get("/", buffered=True).data == b"shop"
    assert client.get("/admin/", buffered=True).data == b"admin"
    records = read_records(spool)
    assert sorted(record.path for record in records) == ["/", "/admin/"]


def test_an_app_without_reqpath_inside_one_with_it_is_undisturbed(
    install: Install, record_of: RecordOf
) -> None:
    shop, plain = Flask("shop"), Flask("plain")
    plain.add_url_rule("/", view_func=lambda: render_template_string("plain"))
    shop.wsgi_app = DispatcherMiddleware(shop.wsgi_app, {"/plain": plain})  # type: ignore[method-assign]
    install(shop)
    assert get(shop, "/plain/").data == b"plain"
    assert (record_of().route, record_of().status) == (None, 200)


def test_a_template_rendered_under_a_plain_middleware_is_no_trouble(
    spool: str, record_of: RecordOf, install: Install, fake_clock: FakeClock
) -> None:
    """Jinja's hooks are the process's; this middleware's app is not Flask."""
    from jinja2 import Template

    install(Flask("hooks"))

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [Template("{{ 1 }}{{ advance(5) or '' }}").render(advance=fake_clock.advance).encode()]

    middleware = RequestMiddleware(app, spool=spool)
    assert Client(middleware).get("/", buffered=True).data == b"1"
    middleware._writer.close()
    assert record_of().exclusive_ns[segments.TEMPLATE] == 5


def test_a_request_made_in_a_view_is_one_of_its_own(
    app: Flask, install: Install, spool: str, read_records: ReadRecords
) -> None:
    app.add_url_rule("/outer", view_func=lambda: get(app, "/").data)
    install(app)
    assert get(app, "/outer").data == b"hello"
    inner, outer = read_records(spool)
    assert isinstance(inner, WorkerRecord)
    assert isinstance(outer, WorkerRecord)
    assert (inner.route, outer.route) == ("/", "/outer")
    # Both share one app context, whose teardown of 16 ms is the outer one's.
    assert exclusive(inner) == {"flask.framework": 13 * MS, "flask.view": 2 * MS}
    assert exclusive(outer) == {"flask.framework": 29 * MS, "flask.view": 15 * MS}


@pytest.mark.parametrize("where", ["before", "view", "after", "teardown"])
def test_contexts_that_the_app_makes_by_itself_move_no_time(
    install: Install, record_of: RecordOf, fake_clock: FakeClock, where: str
) -> None:
    app = Flask("contexts")

    made: list[str] = []

    def make_contexts(place: str) -> None:
        if place == where and not made:
            made.append(place)
            with app.app_context():
                fake_clock.advance(16 * MS)
            with app.test_request_context("/"):
                fake_clock.advance(32 * MS)
            with app.request_context(flask.request.environ):
                fake_clock.advance(64 * MS)

    app.before_request(lambda: make_contexts("before"))
    app.teardown_request(lambda error: make_contexts("teardown"))

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        make_contexts("after")
        return response

    @app.get("/")
    def index() -> str:
        fake_clock.advance(2 * MS)
        make_contexts("view")
        fake_clock.advance(4 * MS)
        return "x"

    install(app)
    assert get(app, "/").data == b"x"
    record = record_of()
    assert record.route == "/"
    times = exclusive(record)
    if where == "view":
        assert times == {"flask.view": 118 * MS}
    elif where == "teardown":
        # All of it is on the way out; which of the two names it gets does not matter.
        assert times["flask.view"] == 6 * MS
        assert times.get("flask.framework", 0) + times.get("flask.middleware", 0) == 112 * MS
    else:
        assert times == {"flask.view": 6 * MS, "flask.framework": 112 * MS}


def test_without_a_request_nothing_is_recorded(
    app: Flask, install: Install, spool: str, read_records: ReadRecords
) -> None:
    install(app)

    @app.cli.command("work")
    def work() -> None:
        flask.current_app.logger.info(render_template_string("x"))

    assert app.test_cli_runner().invoke(args=["work"]).exit_code == 0
    with app.test_request_context("/"):
        assert render_template_string("x") == "x"
        assert app.full_dispatch_request().data == b"hello"
    assert read_records(spool) == []


@pytest.mark.skipif(importlib.util.find_spec("asgiref") is None, reason="needs flask[async]")
def test_an_async_view_is_a_view(app: Flask, install: Install, record_of: RecordOf) -> None:
    @app.get("/async")
    async def view() -> str:
        return "async"

    install(app)
    assert get(app, "/async").data == b"async"
    assert record_of().route == "/async"


# OpenTelemetry


def test_what_the_app_puts_on_the_current_span_is_kept(
    app: Flask, install: Install, record_of: RecordOf, fake_clock: FakeClock
) -> None:
    seen = []

    @app.get("/span")
    def view() -> str:
        span = trace.get_current_span()
        seen.append(span.get_span_context())
        span.set_attribute("user", 7)
        span.set_attributes({"plan": "gold", "list": ["a", "b"]})
        fake_clock.advance(2 * MS)
        span.add_event("cache.miss", {"key": "k"})
        span.record_exception(ValueError("odd"))
        span.set_status(Status(StatusCode.ERROR, "half"))
        span.update_name("shown")
        assert span.is_recording()
        return "x"

    install(app)
    get(app, "/span")
    record = record_of()
    (context,) = seen
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (record.trace_id, record.span_id)
    assert context.is_valid
    assert context.trace_flags.sampled
    assert record.attributes == {"user": 7, "plan": "gold", "list": ["a", "b"]}
    assert [(event.name, event.time_ns) for event in record.events] == [
        ("cache.miss", 3 * MS),
        ("exception", 3 * MS),
    ]
    assert record.events[0].attributes == {"key": "k"}
    assert record.events[1].attributes["exception.type"] == "ValueError"
    assert record.span_status == ("ERROR", "half")
    assert record.span_name == "shown"
    assert record.exception is None


def test_the_apps_own_spans_are_children_of_the_request(
    app: Flask, install: Install, record_of: RecordOf
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("app")

    @app.get("/span")
    def view() -> str:
        with tracer.start_as_current_span("work"):
            return "x"

    install(app)
    get(app, "/span")
    provider.shutdown()
    (span,) = exporter.get_finished_spans()
    record = record_of()
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == record.span_id
    assert f"{span.context.trace_id:032x}" == record.trace_id


def test_a_context_that_the_view_leaves_attached_ends_with_the_request(
    app: Flask, install: Install, record_of: RecordOf
) -> None:
    @app.get("/leave")
    def view() -> str:
        otel_context.attach(otel_context.set_value("left", 1))
        return "x"

    install(app)
    get(app, "/leave")
    assert otel_context.get_value("left") is None
    record_of()


def test_a_text_body_of_several_letters_counts_bytes(
    app: Flask, install: Install, record_of: RecordOf
) -> None:
    app.add_url_rule("/text", view_func=lambda: flask.Response(["ä", "ö"]))
    install(app)
    assert get(app, "/text").data == "äö".encode()
    assert record_of().response_bytes == 4
