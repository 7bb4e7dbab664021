"""The exporting collector as a whole: it goes on where the last one was, and its end is bounded."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from reqpath.collect.checkpoint import hold_spool
from reqpath.collect.collector import Collector
from reqpath.collect.export import Target
from reqpath.collect.tail import MAX_PENDING
from reqpath.errors import SpoolError
from reqpath.settings import Settings
from reqpath.spool.files import evict_file, list_files
from tests.collect.backend import Backend, start_backend
from tests.collect.spools import open_spool, write_paths
from tests.factories import make_path


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    monkeypatch.delenv("OTEL_METRICS_EXPORTER", raising=False)
    monkeypatch.setattr("reqpath.collect.collector.LINGER_S", 0.0)
    with start_backend() as backend:
        yield backend


def make_collector(
    spool: str, backend: Backend, messages: list[str] | None = None, *, service_name: str = ""
) -> Collector:
    return Collector(
        Settings(spool=spool, keep="all", join_wait_s=0, service_name=service_name),
        Target(f"{backend.url}/v1/traces", "http/protobuf"),
        report=(messages if messages is not None else []).append,
    )


def work_until_exported(collector: Collector, count: int) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        collector.work()
        status = collector.status()
        if status is not None and status.exported >= count:
            return
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_at_the_end_a_backlog_larger_than_its_memory_is_sent(spool: str, backend: Backend) -> None:
    paths = [make_path(number=number) for number in range(MAX_PENDING + 200)]
    write_paths(spool, paths)
    with make_collector(spool, backend) as collector:
        collector.begin()
    assert backend.arrivals() == Counter(path.trace_id for path in paths)


def test_work_waits_for_its_time_and_says_when_that_is(spool: str, backend: Backend) -> None:
    write_paths(spool, [make_path()])
    with make_collector(spool, backend) as collector:
        collector.begin()
        first = collector.work()
        assert 0 < first <= 1_000
        # Nothing is read before that.
        write_paths(spool, [make_path(number=1)])
        assert 0 < collector.work() <= first
        status = collector.status()
        assert status is not None
        assert status.joined == 1


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look at the spool whenever it is asked."""
    monkeypatch.setattr("reqpath.collect.collector._INTERVAL_NS", 0)


@pytest.mark.usefixtures("at_once")
def test_it_begins_when_it_can_and_says_once_why_it_can_not(
    spool: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reqpath.collect.collector._BEGIN_NS", 0)
    write_paths(spool, [make_path()])
    messages: list[str] = []
    with make_collector(spool, backend, messages) as collector:
        with hold_spool(spool):
            assert collector.work() == 0
            assert collector.work() == 0
            assert collector.status() is None
        work_until_exported(collector, 1)
    assert messages == [f"not exporting: another collector exports the spool {spool}; one is enough"]


@pytest.mark.usefixtures("at_once")
def test_what_was_gone_before_it_was_exported_is_said_once(spool: str, backend: Backend) -> None:
    messages: list[str] = []
    with make_collector(spool, backend, messages) as collector, open_spool(spool) as spooler:
        spooler.write_paths([make_path()])
        collector.begin()
        work_until_exported(collector, 1)
        for lost in (3, 2):
            spooler.write_paths(make_path(number=number) for number in range(lost))
            for file in list_files(spool):
                evict_file(spool, file)
            spooler.start_files()
            spooler.write_paths([make_path(number=7)])
            status = collector.status()
            assert status is not None
            work_until_exported(collector, status.exported + 1)
        status = collector.status()
    assert status is not None
    assert status.missed == 10
    assert [message.partition(" records")[0] for message in messages] == ["6"]


@pytest.mark.usefixtures("at_once")
def test_the_service_of_what_no_worker_recorded_is_the_settings(spool: str, backend: Backend) -> None:
    path = make_path()
    with open_spool(spool) as spooler:
        spooler.write(path.nginx)
    with make_collector(spool, backend, service_name="till") as collector:
        collector.begin()
        work_until_exported(collector, 1)
    assert {service for service, _ in backend.spans} == {"till-nginx"}


def test_histograms_are_sent_too_when_opentelemetrys_variable_says_so(
    spool: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.url)
    write_paths(spool, [make_path()])
    with make_collector(spool, backend) as collector:
        collector.begin()
    assert [target for target in backend.targets if target != "/v1/traces"] == ["/v1/metrics"]


def test_a_spool_that_is_not_there_is_said(spool: str, backend: Backend) -> None:
    with make_collector(spool, backend) as collector, pytest.raises(SpoolError):
        collector.begin()


def test_the_collection_of_cycles_is_as_before_when_it_ends(spool: str, backend: Backend) -> None:
    write_paths(spool, [make_path()])
    before = gc.get_threshold()
    with make_collector(spool, backend) as collector:
        collector.begin()
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
