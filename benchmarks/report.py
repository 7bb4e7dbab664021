"""Measure `reqpath report --json` over a million requests: seconds, CPU seconds, peak memory.

Writes a spool as four uWSGI workers and a collector would, one worker record with two queries and one line of
nginx per request, then runs the real command on it, which reads so much by two processes; CPU and memory are
of both. So that the figure means something on another machine, the same files are also only read, by one
process, in the same run::

    $ python benchmarks/report.py
    spool            1,000,000 requests, 819 MB in 99 files
    decoding alone   8.9 s CPU
    report --json    31.9 s CPU, 17.3 s elapsed, 241 MB peak, 3.6 times decoding

The ratio is what carries over to another machine.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from reqpath.raw import FLASK_START, VIEW_END, VIEW_START, RawRecord
from reqpath.record import Attempt, NginxRecord, WriterInfo, encode
from reqpath.spool import SpoolReader, SpoolWriter
from reqpath.tiers import WORKER_SEGMENTS

MIDDLEWARE, QUERY, FETCH, TEMPLATE, SEND = map(
    WORKER_SEGMENTS.index, ("flask.middleware", "mysql.query", "mysql.fetch", "flask.template", "uwsgi.send")
)
US = 1_000
MS = 1_000_000
WORKERS = 4
ROUTES = (
    ("/", "SELECT name, price FROM items ORDER BY sold DESC LIMIT ?", 300 * US),
    ("/items/<int:item_id>", "SELECT name, price, stock FROM items WHERE id = ?", 120 * US),
    ("/search", "SELECT id, name FROM items WHERE name LIKE ? LIMIT ?", 4 * MS),
    ("/orders", "INSERT INTO orders (customer, item, amount) VALUES (?, ?, ?)", 900 * US),
    ("/customers/<int:customer_id>", "SELECT * FROM customers WHERE id = ?", 110 * US),
    ("/report", "SELECT day, SUM(amount) FROM orders GROUP BY day", 18 * MS),
)
WEIGHTS = (30, 40, 10, 8, 10, 2)
SESSION = "SELECT data FROM sessions WHERE id = ? AND expires > NOW()"
FIRST_NS = 1_700_000_000_000_000_000
#: Between two looks at the memory.
_SAMPLE_S = 0.25


def build_request(rng: random.Random, worker: int, start_ns: int, span: int) -> tuple[RawRecord, NginxRecord]:
    """Build one request's two records as a worker and a collector do; `span` makes its ids unique."""
    ((route, statement, typical_ns),) = rng.choices(ROUTES, WEIGHTS)
    trace_id, span_id = f"{rng.getrandbits(128):032x}", f"{span:016x}"
    pass_ns = start_ns + 30 * US
    accept_ns = pass_ns + int(rng.expovariate(1 / (80 * US)))
    parsed_ns = accept_ns + 25 * US
    app_start_ns = parsed_ns + int(rng.expovariate(1 / (60 * US)))
    # The monotonic clock's 0 is anywhere.
    now_ns = base_ns = app_start_ns - FIRST_NS + 10**12
    marks: list[int] = []
    statements: list[Any] = []

    def spend(mark: int, duration_ns: int) -> None:
        nonlocal now_ns
        marks.extend((mark, now_ns))
        now_ns += duration_ns

    spend(MIDDLEWARE, int(rng.gauss(15 * US, 3 * US)))
    spend(FLASK_START, int(rng.gauss(60 * US, 12 * US)))
    view = VIEW_START
    for text, mean_ns in ((SESSION, 130 * US), (statement, typical_ns)):
        spend(view, int(rng.expovariate(1 / (200 * US))))
        query_ns = int(rng.lognormvariate(0, 0.5) * mean_ns)
        sent_ns = now_ns
        spend(QUERY, query_ns)
        spend(FETCH, query_ns // 6)
        link = ("unix", "/run/mysqld/mysqld.sock", None, "shop", worker)
        statements.extend((sent_ns, now_ns, text, rng.randrange(20), link))
    spend(VIEW_START, 20 * US)
    spend(TEMPLATE, 400 * US)
    spend(VIEW_START, 5 * US)
    spend(VIEW_END, 30 * US)
    response_start_ns = now_ns
    spend(VIEW_END, 10 * US)
    spend(SEND, 20 * US)
    marks.extend((SEND, now_ns))
    closed_ns = app_start_ns + now_ns - base_ns
    end_ns = closed_ns + 90 * US
    path = route.replace("<int:item_id>", str(span % 5000)).replace("<int:customer_id>", str(span % 800))
    status = 500 if rng.random() < 0.002 else 200
    record = RawRecord(
        app_start_ns,
        [
            f"00-{trace_id}-{span_id}-01",
            f"{start_ns // US / 1e6:.6f},{pass_ns // US / 1e6:.6f}",
            f"{accept_ns // US},{parsed_ns // US}",
            "GET",
            path,
            "",
            "shop.example",
            "",
            0,
        ],
        marks,
        rng.getrandbits(64),
        0,
        "unix",
        0,
        statements,
        status=f"{status} OK",
        route=route,
        response_start_ns=response_start_ns,
        response_bytes=rng.randrange(500, 20_000),
        cpu_start_ns=base_ns,
        cpu_end_ns=base_ns + (now_ns - base_ns) * 6 // 10,
        run_queue_ns=None if span % 8 else 20 * US,
    )
    line = NginxRecord(
        trace_id,
        span_id,
        end_ns,
        0,
        "",
        start_ns,
        pass_ns,
        US,
        status,
        "GET",
        path,
        "shop.example",
        412,
        record.response_bytes,
        [Attempt("unix:/run/uwsgi.sock", status, 0, now_ns // MS * MS, now_ns // MS * MS)],
        protocol="HTTP/1.1",
    )
    return record, line


def write_spool(directory: str, requests: int) -> None:
    """Write a spool of `requests`, each writer's records in the order of their ends."""

    def writer(kind: str, worker: int | None) -> SpoolWriter:
        def build_info(writer_id: str) -> WriterInfo:
            return WriterInfo(
                1,
                writer_id,
                "worker" if kind == "worker" else "nginx",
                "shop",
                "host",
                1000 + (worker or 0),
                now_ns,
                "0",
                worker,
                WORKERS,
                1,
                "processes",
            )

        return SpoolWriter(directory, build_info, max_bytes=8 << 30, report=print)

    now_ns = FIRST_NS
    rng = random.Random(1)
    writers = [writer("worker", worker + 1) for worker in range(WORKERS)]
    collector = writer("nginx", None)
    lines: list[tuple[int, int, NginxRecord]] = []

    def append(to: SpoolWriter, record: RawRecord | NginxRecord) -> None:
        record.sequence = to.next_sequence()
        to.append(encode(record))

    def collect(until_ns: float) -> None:
        while lines and lines[0][0] <= until_ns:
            append(collector, heapq.heappop(lines)[2])

    # From 1: no span has the id 0.
    for span in range(1, requests + 1):
        worker = span % WORKERS
        now_ns = FIRST_NS + span * 1_200 * US
        record, line = build_request(rng, worker, now_ns, span)
        append(writers[worker], record)
        heapq.heappush(lines, (line.end_ns, span, line))
        collect(now_ns)
    collect(float("inf"))
    for each in (*writers, collector):
        each.close()


def count_spool(directory: str) -> Iterator[int]:
    """Yield the records of each batch, decoded and thrown away."""
    for _, records in SpoolReader(directory).read():
        yield len(records)


def read_memory_bytes(pid: int) -> int:
    """Return what a process and its children hold, with what they share counted once.

    Source: Linux Documentation/filesystems/proc.rst, Pss in smaps_rollup
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            children = file.read().split()
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            own = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        # It has ended.
        return 0
    return own * 1024 + sum(read_memory_bytes(int(child)) for child in children)


def measure_child(arguments: list[str]) -> tuple[float, float, int, bytes]:
    """Run a command; return CPU seconds, elapsed seconds and peak memory of all its processes, and output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    peak_bytes = 0
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(arguments, stdout=output) as process:
            while process.poll() is None:
                peak_bytes = max(peak_bytes, read_memory_bytes(process.pid))
                time.sleep(_SAMPLE_S)
        elapsed = time.perf_counter() - start
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        output.seek(0)
        text = output.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, elapsed, peak_bytes, text


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--spool", help="keep the spool here, or use the one that is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reqpath-bench-") as temporary:
        directory = options.spool or os.path.join(temporary, "spool")
        if not os.path.isdir(directory):
            # In a process of its own: the memory of what is measured starts from nothing.
            code = "import sys, report; report.write_spool(sys.argv[1], int(sys.argv[2]))"
            environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
            subprocess.run(
                [sys.executable, "-c", code, directory, str(options.requests)], check=True, env=environment
            )
        files = [entry for entry in os.scandir(directory) if entry.name.endswith(".rqp")]
        size = sum(entry.stat().st_size for entry in files)
        report_cpu, elapsed, peak_bytes, output = measure_child(
            [sys.executable, "-m", "reqpath.cli", "report", directory, "--json"]
        )
        start = time.process_time()
        records = sum(count_spool(directory))
        decode_cpu = time.process_time() - start
    found = json.loads(output)["requests"]
    figures = {
        "requests": found,
        "records": records,
        "spool_bytes": size,
        "files": len(files),
        "decode_cpu_s": round(decode_cpu, 2),
        "report_cpu_s": round(report_cpu, 2),
        "report_elapsed_s": round(elapsed, 2),
        "report_peak_bytes": peak_bytes,
        "ratio_to_decoding": round(report_cpu / decode_cpu, 2),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"spool            {found:,} requests, {size / 1e6:,.0f} MB in {len(files)} files")
    print(f"decoding alone   {decode_cpu:.1f} s CPU")
    print(
        f"report --json    {report_cpu:.1f} s CPU, {elapsed:.1f} s elapsed, {peak_bytes / 1e6:,.0f} MB peak, "
        f"{report_cpu / decode_cpu:.1f} times decoding"
    )


if __name__ == "__main__":
    main()
