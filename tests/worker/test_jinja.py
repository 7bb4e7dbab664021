"""Jinja's hooks: templates take their time, results stay what they are, nothing happens without a request."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jinja2 import DictLoader, Environment, Template, TemplateNotFound, UndefinedError

from reqpath.tiers import WORKER_SEGMENTS
from reqpath.worker import jinja
from reqpath.worker import recorder as segments
from reqpath.worker.recorder import RequestRecorder
from tests.conftest import FakeClock
from tests.worker.recorders import make_recorder, read

MS = 1_000_000


@pytest.fixture(autouse=True)
def hooked() -> None:
    assert jinja.install()


@pytest.fixture
def request_in_view(fake_clock: FakeClock) -> Iterator[RequestRecorder]:
    """A request whose view is running."""
    recorder = make_recorder()
    recorder.enter(segments.VIEW)
    yield recorder
    recorder.leave()


@pytest.fixture
def slow(fake_clock: FakeClock) -> Callable[[], str]:
    """Return a function that takes 10 ms."""

    def take_time() -> str:
        fake_clock.advance(10 * MS)
        return "s"

    return take_time


def times(recorder: RequestRecorder) -> dict[str, int]:
    recorder.switch(recorder.segment)
    return {
        name: value for name, value in zip(WORKER_SEGMENTS, read(recorder).exclusive_ns, strict=True) if value
    }


def test_rendering_takes_its_time_from_the_view(
    request_in_view: RequestRecorder, slow: Any, fake_clock: FakeClock
) -> None:
    fake_clock.advance(3 * MS)
    assert Template("{{ slow() }}{{ 1 }}").render(slow=slow) == "s1"
    fake_clock.advance(4 * MS)
    assert times(request_in_view) == {"flask.view": 7 * MS, "flask.template": 10 * MS}
    assert request_in_view.segment == segments.VIEW


def test_templates_within_templates_are_counted_once(request_in_view: RequestRecorder, slow: Any) -> None:
    environment = Environment(
        loader=DictLoader(
            {
                "base": "{% block b %}{% endblock %}{{ slow() }}",
                "part": "{{ slow() }}",
                "page": "{% extends 'base' %}{% block b %}{% include 'part' %}{{ inner() }}{% endblock %}",
            }
        )
    )
    inner = environment.from_string("{{ slow() }}")
    rendered = environment.get_template("page").render(slow=slow, inner=lambda: inner.render(slow=slow))
    assert rendered == "sss"
    assert times(request_in_view) == {"flask.template": 30 * MS}


def test_what_a_template_calls_in_another_segment_is_that_segments(
    request_in_view: RequestRecorder, slow: Any
) -> None:
    def query() -> str:
        previous = request_in_view.switch(segments.QUERY)
        slow()
        request_in_view.switch(previous)
        return "q"

    assert Template("{{ slow() }}{{ query() }}").render(slow=slow, query=query) == "sq"
    assert times(request_in_view) == {"flask.template": 10 * MS, "mysql.query": 10 * MS}


def test_a_stream_takes_its_steps_and_not_what_lies_between(
    request_in_view: RequestRecorder, slow: Any, fake_clock: FakeClock
) -> None:
    pieces = Template("{% for i in range(3) %}{{ slow() }}{% endfor %}").generate(slow=slow)
    for piece in pieces:
        assert piece == "s"
        fake_clock.advance(100 * MS)
    assert times(request_in_view) == {"flask.template": 30 * MS, "flask.view": 300 * MS}


def test_a_stream_left_half_way_is_closed(request_in_view: RequestRecorder) -> None:
    closed = []

    def rows() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    pieces = Template("{% for i in rows %}{{ i }}{% endfor %}").generate(rows=rows())
    assert next(pieces) == "0"
    pieces.close()
    del pieces
    assert closed == [True]


def test_an_error_comes_out_and_the_segment_is_put_back(request_in_view: RequestRecorder) -> None:
    with pytest.raises(ZeroDivisionError):
        Template("{{ 1 / 0 }}").render()
    with pytest.raises(ZeroDivisionError):
        list(Template("{{ 1 / 0 }}").generate())
    with pytest.raises(TemplateNotFound):
        Environment(loader=DictLoader({})).get_template("none")
    with pytest.raises(UndefinedError):
        Template("{{ a.b.c }}").render()
    assert request_in_view.segment == segments.VIEW


def test_without_a_request_templates_render_as_ever(slow: Any) -> None:
    assert Template("{{ slow() }}").render(slow=slow) == "s"
    assert list(Template("{{ slow() }}").generate(slow=slow)) == ["s"]


def test_another_thread_moves_nothing(request_in_view: RequestRecorder, slow: Any) -> None:
    import contextvars

    context = contextvars.copy_context()  # as asgiref and executors do
    thread = threading.Thread(target=lambda: context.run(Template("{{ slow() }}").render, slow=slow))
    thread.start()
    thread.join()
    assert times(request_in_view) == {"flask.view": 10 * MS}


def test_hooking_twice_wraps_once() -> None:
    before = Template.render, Template.generate, Environment.get_template
    assert jinja.install()
    assert before == (Template.render, Template.generate, Environment.get_template)


def test_the_hooked_functions_still_look_like_themselves() -> None:
    assert Template.render.__name__ == "render"
    assert Template.render.__doc__
    assert list(inspect.signature(Environment.get_template).parameters)[:2] == ["self", "name"]
    assert inspect.isgeneratorfunction(Template.generate)
