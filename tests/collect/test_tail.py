"""Following a spool: each path once, whatever ends the collector, and nothing read that can't be held."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.checkpoint import read_checkpoint
from reqpath.collect.keep import Keeper
from reqpath.collect.spans import build_spans
from reqpath.collect.tail import Kept, Tail
from reqpath.path import RequestPath
from reqpath.record import Attempt
from reqpath.spool.files import evict_file, list_files
from tests.collect.spools import Spooler, open_spool, write_paths
from tests.conftest import FakeClock
from tests.factories import make_nginx_record, make_path, make_worker_record
from tests.traces.spans import read_back

NEVER_NS = 1 << 62
WAIT_NS = 10_000_000_000


def make_tail(spool: str, clock: FakeClock | None = None, **options: Any) -> Tail:
    """Return a tail that keeps everything and lets nobody wait for its paths."""
    fake = clock or FakeClock()
    arguments: dict[str, Any] = {"wait_s": WAIT_NS / 1e9, "expect_nginx": True}
    tail = Tail(
        spool, Keeper(everything=True), monotonic_ns=lambda: fake.monotonic_ns, **(arguments | options)
    )
    tail.end()
    return tail


def read_all(tail: Tail) -> list[Kept]:
    """Read what there is; return the kept paths that are to be sent."""
    tail.step(NEVER_NS)
    return tail.take()


def ids(kept: list[Kept]) -> list[str]:
    return [one.path.trace_id for one in kept]


def make_paths(count: int) -> list[RequestPath]:
    return [make_path(number=number) for number in range(count)]


@pytest.fixture
def spooler(spool: str) -> Iterator[Spooler]:
    with open_spool(spool) as spooler:
        yield spooler


def test_a_record_and_its_line_are_one_path(spool: str, spooler: Spooler) -> None:
    path = make_path()
    spooler.write_paths([path])
    (kept,) = read_all(make_tail(spool))
    assert (kept.reason, kept.path.timing) == ("steady", path.timing)


def test_what_is_done_is_not_read_again(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(3))
    tail = make_tail(spool)
    tail.done(read_all(tail))
    spooler.write_paths([make_path(number=3)])
    assert ids(read_all(make_tail(spool))) == [make_path(number=3).trace_id]


def test_what_was_not_done_comes_again_and_gives_the_same_spans(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(3))
    first = make_tail(spool)
    kept = read_all(first)
    first.done(kept[1:2])
    again = make_tail(spool).take()

    def render(each: list[Kept]) -> list[list[str]]:
        return [
            [repr(span) for span in read_back(build_spans(one.path, kept=one.reason, offset=one.offset))]
            for one in each
        ]

    assert ids(again) == [ids(kept)[0], ids(kept)[2]]
    assert render(again) == render([kept[0], kept[2]])


def test_the_reason_of_what_was_not_done_stays(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(6))
    first = make_tail(spool)
    kept = read_all(first)
    first.done([])
    assert [one.reason for one in make_tail(spool).take()] == [one.reason for one in kept]
    assert Counter(one.reason for one in kept) == {"steady": 2, "all": 4}


def test_a_path_that_is_corrected_for_the_clocks_comes_again_with_the_same_correction(
    spool: str, spooler: Spooler
) -> None:
    path = make_path(transport="tcp")
    assert path.nginx is not None
    path.nginx.attempts = [Attempt("10.0.0.2:3031", 200, 0, 5_000_000, 5_000_000)]
    assert path.worker is not None
    # nginx's clock is an hour ahead.
    for name in ("nginx_start_ns", "nginx_pass_ns"):
        setattr(path.worker, name, getattr(path.worker, name) + 3_600_000_000_000)
    path.nginx.start_ns, path.nginx.end_ns = None, path.nginx.end_ns + 3_600_000_000_000
    spooler.write_paths([path])
    first = make_tail(spool)
    (kept,) = read_all(first)
    first.done([])
    (again,) = make_tail(spool).take()
    assert kept.offset is not None
    assert again.offset == kept.offset
    assert again.path.timing == kept.path.timing
    assert kept.path.timing.skewed == ()


def test_a_record_that_waited_when_the_collector_ended_finds_its_line_later(
    spool: str, spooler: Spooler
) -> None:
    path = make_path()
    spooler.write(path.worker)
    first = make_tail(spool)
    assert read_all(first) == []
    first.save()
    spooler.write(path.nginx)
    (kept,) = read_all(make_tail(spool))
    assert kept.path.timing == path.timing


def test_a_line_that_waited_when_the_collector_ended_finds_its_record_later(
    spool: str, spooler: Spooler
) -> None:
    path = make_path()
    spooler.write(path.nginx)
    first = make_tail(spool)
    assert read_all(first) == []
    first.save()
    spooler.write(path.worker)
    (kept,) = read_all(make_tail(spool))
    assert kept.path.timing == path.timing


@pytest.mark.parametrize("half", ["worker", "nginx"])
def test_what_finds_no_partner_goes_alone_after_one_to_two_waits(
    half: str, spool: str, spooler: Spooler, fake_clock: FakeClock
) -> None:
    spooler.write(getattr(make_path(), half))
    tail = make_tail(spool, fake_clock)
    assert read_all(tail) == []
    fake_clock.advance(WAIT_NS)
    assert read_all(tail) == []
    assert tail.waiting == 1
    fake_clock.advance(WAIT_NS)
    (kept,) = read_all(tail)
    assert getattr(kept.path, half) is not None
    assert tail.waiting == 0


def test_nothing_goes_alone_while_its_partner_may_be_in_what_was_not_read(
    spool: str, spooler: Spooler, fake_clock: FakeClock
) -> None:
    paths = make_paths(4)
    for path in paths:
        spooler.write(path.worker)
    tail = make_tail(spool, fake_clock, max_pending=1)
    assert read_all(tail) == []
    fake_clock.advance(WAIT_NS)
    tail.step(NEVER_NS)  # those that wait have waited once
    # An error keeps the exporter busy, and the lines come meanwhile.
    spooler.write_paths([make_path(number=9, status=500)])
    tail.step(NEVER_NS)
    for path in paths:
        spooler.write(path.nginx)
    fake_clock.advance(9 * WAIT_NS)
    assert not tail.step(NEVER_NS)
    assert tail.waiting == 4
    tail.done(tail.take())
    tail.step(NEVER_NS)  # to the end of a look that began before the lines were there
    kept = read_all(tail)
    assert sorted(ids(kept)) == sorted(path.trace_id for path in paths)
    assert all(one.path.nginx for one in kept)


def test_without_any_line_in_a_first_wait_records_wait_no_longer(
    spool: str, spooler: Spooler, fake_clock: FakeClock
) -> None:
    spooler.write(make_path().worker)
    tail = make_tail(spool, fake_clock)
    assert read_all(tail) == []
    fake_clock.advance(WAIT_NS)
    spooler.write(make_path(number=1).worker)
    assert len(read_all(tail)) == 1


def test_a_line_that_is_there_twice_is_two_paths(spool: str, spooler: Spooler) -> None:
    spooler.write(make_nginx_record(attempts=[Attempt("unix:/a", 200)]))
    spooler.write(make_nginx_record(attempts=[Attempt("unix:/a", 200)]))
    tail = make_tail(spool)
    assert tail.finish()
    assert len(tail.take()) == 2


def test_no_more_is_read_than_can_be_held(spool: str, spooler: Spooler) -> None:
    paths = make_paths(1_000)
    spooler.write_paths(paths)
    tail = make_tail(spool, max_pending=50)
    sent: list[str] = []
    while not (finished := tail.finish()) or tail.pending:
        # One batch of the reader may be more than there was room for.
        assert finished or tail.pending < 50 + 400
        batch = tail.take()
        tail.done(batch)
        sent += ids(batch)
    assert Counter(sent) == Counter(path.trace_id for path in paths)


def test_what_is_not_kept_is_not_looked_at_again(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(50))
    keeper = Keeper(per_second=0)
    tail = Tail(spool, keeper, wait_s=1, expect_nginx=True)
    tail.step(NEVER_NS)
    tail.save()
    again = Keeper(per_second=0)
    Tail(spool, again, wait_s=1, expect_nginx=True).step(NEVER_NS)
    assert (keeper.counts[None], again.counts.total()) == (50, 0)


def test_a_collector_that_forgets_begins_at_the_start(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(3))
    tail = make_tail(spool)
    tail.done(read_all(tail))
    assert len(read_all(make_tail(spool, from_start=True))) == 3


def test_everyone_who_watches_sees_each_path_and_whether_it_is_kept(spool: str, spooler: Spooler) -> None:
    seen: list[tuple[str, bool]] = []

    def observe(path: RequestPath, *, kept: bool) -> None:
        seen.append((path.trace_id, kept))

    spooler.write_paths(make_paths(2))
    Tail(spool, Keeper(per_second=1), wait_s=1, expect_nginx=True, observe=observe).step(NEVER_NS)
    assert [kept for _, kept in seen] == [True, False]


def evict_all(spool: str) -> None:
    for file in list_files(spool):
        evict_file(spool, file)


def test_what_was_evicted_before_it_was_read_is_counted(spool: str, spooler: Spooler) -> None:
    spooler.write_paths(make_paths(2))
    tail = make_tail(spool)
    tail.done(read_all(tail))
    spooler.write_paths(make_paths(5))
    evict_all(spool)
    spooler.start_files()
    spooler.write_paths(make_paths(1))
    tail.done(read_all(tail))
    assert tail.missed == 10
    again = make_tail(spool)
    read_all(again)
    assert again.missed == 10


def test_what_was_evicted_before_the_first_collector_is_none_of_its_losses(
    spool: str, spooler: Spooler
) -> None:
    spooler.write_paths(make_paths(5))
    spooler.start_files()
    evict_all(spool)
    spooler.write_paths(make_paths(1))
    tail = make_tail(spool)
    assert len(read_all(tail)) == 1
    assert tail.missed == 0


def test_of_a_path_that_was_kept_the_half_that_is_still_there_is_exported(
    spool: str, spooler: Spooler
) -> None:
    spooler.write_paths(make_paths(1))
    tail = make_tail(spool)
    read_all(tail)
    tail.save()
    for file in list_files(spool):
        # nginx's file is the one without a route.
        if b"/items/<int:id>" not in Path(file.path).read_bytes():
            evict_file(spool, file)
    again = make_tail(spool)
    assert again.finish()
    (kept,) = again.take()
    assert (kept.path.nginx, again.missed) == (None, 1)


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[str, int]]:
    """What happens to a collector and its spool, in order."""
    halves = draw(st.permutations([(half, number) for number in range(6) for half in ("worker", "nginx")]))
    events: list[tuple[str, int]] = []
    for half in halves:
        events.append(half)
        events += draw(
            st.lists(
                st.sampled_from(
                    [("step", 0), ("take", 0), ("done", 0), ("save", 0), ("kill", 0), ("files", 0)]
                ),
                max_size=4,
            )
        )
    return events


@given(lives(), st.integers(1, 3))
def test_each_path_is_done_once_through_any_number_of_kills(
    events: list[tuple[str, int]], max_pending: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        spool = os.path.join(directory, "spool")
        paths = make_paths(6)
        taken: list[list[Kept]] = []
        sent: list[str] = []
        with open_spool(spool) as spooler:
            spooler.write(make_nginx_record(trace_id="f" * 32))
            tail = make_tail(spool, max_pending=max_pending)

            def finish_taken() -> None:
                for batch in taken:
                    sent.extend(ids(batch))
                    tail.done(batch)
                taken.clear()

            actions: dict[str, Callable[[], object]] = {
                "step": lambda: tail.step(NEVER_NS),
                "take": lambda: taken.append(tail.take()),
                "done": finish_taken,
                "save": lambda: tail.save(),  # noqa: PLW0108 - the tail of that moment
                "files": spooler.start_files,
            }
            for event, number in events:
                if event == "kill":
                    taken.clear()
                    tail = make_tail(spool, max_pending=max_pending)
                elif event in actions:
                    actions[event]()
                else:
                    spooler.write(getattr(paths[number], event))
            while not tail.finish() or tail.pending:
                taken.append(tail.take())
                finish_taken()
        assert Counter(sent) == Counter([*(path.trace_id for path in paths), "f" * 32])
        assert tail.missed == 0


def test_a_half_that_is_another_writers_kind_is_not_held(spool: str) -> None:
    with open_spool(spool) as spooler:
        spooler._writers["nginx"] = spooler._writers["worker"]
        spooler.write_paths([make_path()])
    tail = make_tail(spool)
    tail.finish()
    tail.done(tail.take())
    checkpoint = read_checkpoint(spool)
    assert checkpoint is not None
    assert (checkpoint.waiting, checkpoint.kept) == ([], [])


def test_a_tail_without_records_waits_for_them(spool: str) -> None:
    write_paths(spool, [])
    os.makedirs(spool, mode=0o700, exist_ok=True)
    tail = make_tail(spool)
    assert read_all(tail) == []
    with open_spool(spool) as spooler:
        spooler.write(make_worker_record(parent_id=""))
        assert len(read_all(tail)) == 1
