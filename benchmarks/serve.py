"""What `reqpath serve` takes of a core and of memory, while requests are recorded and a page is open.

Writes a spool as four uWSGI workers and a collector would: first the whole window at the rate, then on at the
rate while the real command serves it and a page is open in Debian's Chromium, its slow requests selected::

    $ python benchmarks/serve.py --rate 500 --seconds 120

The share of a core is the server's alone; the page's memory is its heap after a collection.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from playwright.sync_api import Page, sync_playwright
from report import WORKERS, build_request

from reqpath.record import WriterInfo, encode
from reqpath.spool import SpoolWriter

TICK = os.sysconf("SC_CLK_TCK")
S = 1_000_000_000


class Traffic:
    """Writes requests into a spool."""

    def __init__(self, directory: str) -> None:
        self._random = random.Random(1)
        self._now_ns = 0
        self._workers = [self._open(directory, "worker", worker + 1) for worker in range(WORKERS)]
        self._collector = self._open(directory, "nginx", None)
        self._count = 0
        self._end = threading.Event()

    def _open(self, directory: str, kind: str, worker: int | None) -> SpoolWriter:
        def build_info(writer_id: str) -> WriterInfo:
            return WriterInfo(
                1,
                writer_id,
                "nginx" if kind == "nginx" else "worker",
                "shop",
                "host",
                1000 + (worker or 0),
                self._now_ns,
                "0",
                worker,
                WORKERS,
                1,
                "processes",
            )

        return SpoolWriter(directory, build_info, max_bytes=8 << 30, report=print)

    def write(self, start_ns: int) -> None:
        """Write one request."""
        # Files are read in the order in which they were made.
        self._now_ns = start_ns
        worker = self._count % WORKERS
        self._count += 1
        record, line = build_request(self._random, worker, start_ns, self._count)
        record.sequence = self._workers[worker].next_sequence()
        self._workers[worker].append(encode(record))
        line.sequence = self._collector.next_sequence()
        self._collector.append(encode(line))

    def run(self, rate: float) -> None:
        """Write requests that end about now, at the rate, until `end`."""
        begin_s, done = time.monotonic(), 0
        while not self._end.wait(0.02):
            while done < (time.monotonic() - begin_s) * rate:
                self.write(time.time_ns() - 5_000_000)
                done += 1

    def end(self) -> None:
        """Stop."""
        self._end.set()


def read_cpu_s(pid: int) -> float:
    """Return the CPU time of a process, s."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def read_memory_mb(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        match = re.search(r"VmRSS:\s+(\d+) kB", file.read())
    return int(match[1]) / 1e3 if match else 0.0


def ask(url: str, tag: str) -> tuple[str, int, int, str]:
    """Ask as the page does; return tag, size on the way, size, and why the figures are not all yet."""
    request = urllib.request.Request(f"{url}data?after={tag}", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as response:
        packed = response.read()
    if not packed:
        return tag, 0, 0, ""
    plain = gzip.decompress(packed)
    live = json.loads(plain)["live"]
    return live["tag"], len(packed), len(plain), str(live["note"] or live["waiting"] or "")


def watch(page: Page, pid: int, options: argparse.Namespace) -> None:
    """Measure the server and the page, and print it."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    memory, heap, nodes = [], [], []
    updates = count_updates(page)
    begin_s, cpu_s = time.monotonic(), read_cpu_s(pid)
    while time.monotonic() - begin_s < options.seconds:
        page.wait_for_timeout(5_000)
        memory.append(read_memory_mb(pid))
        session.send("HeapProfiler.collectGarbage")
        metrics = session.send("Performance.getMetrics")["metrics"]
        named = {metric["name"]: metric["value"] for metric in metrics}
        heap.append(named["JSHeapUsedSize"] / 1e6)
        nodes.append(named["Nodes"])
    elapsed_s = time.monotonic() - begin_s
    share = (read_cpu_s(pid) - cpu_s) / elapsed_s
    updates = count_updates(page) - updates
    half = len(memory) // 2
    print(
        f"serving  {options.rate:.0f} requests/s for {elapsed_s:.0f} s: {share:.1%} of a core, "
        f"other figures every {elapsed_s / max(1, updates):.1f} s"
    )
    print(
        f"server   at most {max(memory[:half]):.0f} MB in the first half, "
        f"{max(memory[half:]):.0f} in the second"
    )
    print(
        f"page     at most {max(heap[:half]):.1f} MB and {max(nodes[:half]):.0f} nodes in the first half, "
        f"{max(heap[half:]):.1f} and {max(nodes[half:]):.0f} in the second; "
        f"{page.locator('#selected').inner_text()}"
    )


def count_updates(page: Page) -> int:
    """Return how often the page has shown other figures."""
    return int(page.evaluate("document.documentElement.dataset.updates"))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=500, help="requests a second")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--since", default="15m")
    options = parser.parse_args()
    window_s = int(options.since[:-1]) * {"s": 1, "m": 60, "h": 3600}[options.since[-1]]
    with tempfile.TemporaryDirectory(prefix="reqpath-bench-") as temporary:
        directory = os.path.join(temporary, "spool")
        traffic = Traffic(directory)
        count = int(window_s * options.rate)
        for number in range(count):
            traffic.write(time.time_ns() - int((count - number) / options.rate * S))
        print(f"spool    {count:,} requests of {window_s / 60:.0f} min")
        writing = threading.Thread(target=traffic.run, args=(options.rate,))
        writing.start()
        command = [sys.executable, "-m", "reqpath.cli", "serve", directory, "--port", "0", "--since"]
        server = subprocess.Popen([*command, options.since], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" ")[0]
            tag, note = "", ""
            while note or not tag:
                time.sleep(1)
                before = tag
                tag, _, _, answer = ask(url, tag)
                note = answer if tag != before else note
            print(f"read     with {read_cpu_s(server.pid):.1f} s of CPU, {read_memory_mb(server.pid):.0f} MB")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=["--no-sandbox"]
                )
                page = browser.new_page()
                page.goto(url)
                page.wait_for_selector("#select-slow")
                page.locator("#select-slow").click()
                watch(page, server.pid, options)
                browser.close()
            _, packed, plain, _ = ask(url, "")
            print(f"figures  {plain / 1e6:.1f} MB, {packed / 1e6:.1f} MB on the way")
        finally:
            server.terminate()
            server.wait()
            traffic.end()
            writing.join()


if __name__ == "__main__":
    main()
