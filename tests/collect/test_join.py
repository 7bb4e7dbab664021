"""Joining worker records and nginx lines."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.join import Joiner, read_paths
from reqpath.path import RequestPath
from reqpath.record import Attempt, NginxRecord, Record, WorkerRecord, WriterInfo, encode
from reqpath.spool import SpoolReader, SpoolWriter
from reqpath.usual import AnyRecord
from tests.factories import NOW_NS, make_nginx_record, make_worker_record, make_writer_info

WORKER = make_writer_info()
NGINX = make_writer_info(kind="nginx", writer_id="00000000000000aa")
ONE = [Attempt("unix:/run/uwsgi.sock", 200)]
TWO = [Attempt("unix:/run/a.sock", 502), Attempt("unix:/run/b.sock", 200)]


def join(*batches: tuple[WriterInfo, Record], joiner: Joiner | None = None) -> list[RequestPath]:
    joiner = joiner or Joiner()
    paths = [path for info, record in batches for path in joiner.add(info, [record])]
    return paths + list(joiner.flush())


def test_a_worker_record_and_its_line_are_one_path_in_either_order() -> None:
    worker, line = make_worker_record(), make_nginx_record(attempts=ONE)
    for batches in (((WORKER, worker), (NGINX, line)), ((NGINX, line), (WORKER, worker))):
        (path,) = join(*batches)
        assert (path.worker, path.nginx, path.info, path.retried) == (worker, line, WORKER, ())


def test_a_pair_is_handed_out_at_once() -> None:
    joiner = Joiner()
    assert joiner.add(WORKER, [make_worker_record()]) == []
    assert len(joiner.add(NGINX, [make_nginx_record(attempts=ONE)])) == 1
    assert joiner.held == 0


def test_requests_that_share_a_trace_id_are_told_apart_by_nginx_span() -> None:
    first = make_worker_record(parent_id="000000000000000a", path="/a")
    second = make_worker_record(parent_id="000000000000000b", path="/b")
    lines = [
        make_nginx_record(span_id=span, path=path, attempts=ONE)
        for span, path in (("000000000000000b", "/b"), ("000000000000000a", "/a"))
    ]
    paths = join((WORKER, first), (WORKER, second), *((NGINX, line) for line in lines))
    assert sorted((path.worker.path, path.nginx.path) for path in paths if path.worker and path.nginx) == [
        ("/a", "/a"),
        ("/b", "/b"),
    ]


def test_of_a_retried_request_the_worker_that_started_last_answered() -> None:
    early = make_worker_record(span_id="1" * 16)
    late = make_worker_record(span_id="2" * 16, app_start_ns=NOW_NS + 5_000_000)
    line = make_nginx_record(attempts=TWO)
    for batches in (
        ((WORKER, early), (NGINX, line), (WORKER, late)),
        ((NGINX, line), (WORKER, late), (WORKER, early)),
        ((WORKER, late), (WORKER, early), (NGINX, line)),
    ):
        (path,) = join(*batches)
        assert (path.worker, path.retried, path.nginx) == (late, (early,), line)


def test_a_line_without_an_attempt_is_a_path_by_itself_at_once() -> None:
    line = make_nginx_record(status=413)
    (path,) = Joiner().add(NGINX, [line])
    assert (path.worker, path.nginx) == (None, line)


def test_a_record_without_nginx_is_a_path_by_itself_at_once() -> None:
    (path,) = Joiner().add(WORKER, [make_worker_record(parent_id="")])
    assert path.nginx is None


def test_nothing_waits_in_a_spool_without_a_collector() -> None:
    joiner = Joiner()
    joiner.expect_nginx = False
    assert len(joiner.add(WORKER, [make_worker_record()])) == 1


def test_what_waits_is_bounded_and_the_oldest_goes_first() -> None:
    joiner = Joiner(max_held=2)
    records: list[AnyRecord] = [make_worker_record(parent_id=f"{number:016x}") for number in range(1, 6)]
    paths = joiner.add(WORKER, records)
    assert [path.worker for path in paths] == records[:3]
    assert joiner.held == 2


def test_release_gives_up_waiting_for_what_is_long_finished() -> None:
    joiner = Joiner()
    joiner.add(WORKER, [make_worker_record()])
    joiner.add(NGINX, [make_nginx_record(span_id="1" * 16, end_ns=NOW_NS + 50_000_000, attempts=ONE)])
    assert joiner.release(NOW_NS) == []
    (path,) = joiner.release(NOW_NS + 20_000_000)
    assert (path.worker is not None, path.nginx) == (True, None)
    assert joiner.held == 1


@given(st.permutations(range(12)), st.sets(st.integers(0, 5)), st.integers(1, 4))
def test_no_record_is_lost_or_used_twice_in_any_order(order: list[int], lonely: set[int], batch: int) -> None:
    workers: list[Record] = [make_worker_record(parent_id=f"{number + 1:016x}") for number in range(6)]
    lines: list[Record] = [
        make_nginx_record(span_id=f"{number + (100 if number in lonely else 1):016x}", attempts=ONE)
        for number in range(6)
    ]
    everything = workers + lines
    joiner = Joiner(max_held=100)
    paths: list[RequestPath] = []
    for i in range(0, 12, batch):
        for number in order[i : i + batch]:
            paths += joiner.add(WORKER if number < 6 else NGINX, [everything[number]])
    paths += joiner.flush()
    assert sum(path.worker is not None for path in paths) == 6
    assert sum(path.nginx is not None for path in paths) == 6
    assert len(paths) == 6 + len(lonely)
    assert all(path.worker.parent_id == path.nginx.span_id for path in paths if path.worker and path.nginx)


def write(directory: Path, kind: str, records: list[WorkerRecord] | list[NginxRecord]) -> None:
    writer = SpoolWriter(
        str(directory),
        lambda writer_id: make_writer_info(kind=kind, writer_id=writer_id),
        max_bytes=1 << 26,
        report=print,
    )
    for record in records:
        record.sequence = writer.next_sequence()
        writer.append(encode(record))
    writer.close()


def test_a_spool_is_read_to_its_end(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    write(
        spool,
        "worker",
        [make_worker_record(parent_id=f"{n:016x}", trace_id=f"{n:032x}") for n in range(1, 500)],
    )
    write(
        spool,
        "nginx",
        [make_nginx_record(span_id=f"{n:016x}", trace_id=f"{n:032x}", attempts=ONE) for n in range(3, 502)],
    )
    paths = list(read_paths(SpoolReader(str(spool), batch_bytes=4096)))
    sides = [(path.worker is not None, path.nginx is not None) for path in paths]
    assert (sides.count((True, True)), sides.count((True, False)), sides.count((False, True))) == (497, 2, 2)
