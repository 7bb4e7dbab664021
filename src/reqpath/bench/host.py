"""Describes the machine that a benchmark runs on, so that results are told apart by where they are from.

What can't be read is empty or None. The layer below is /proc and /sys.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess

import reqpath
from reqpath.bench.result import Host
from reqpath.servers.deployment import find_program

#: Turns the machine's identity into ours: the plain one is not to be given away. Source: machine-id(5).
_PURPOSE = b"reqpath bench"


def describe_host(database: str, tools: dict[str, str] | None = None) -> Host:
    """Return the host, with the versions of what runs on it; `database` is kind and version, or empty.

    Raises: ServerError when nginx or uWSGI is not installed.
    """
    versions = {
        "nginx": _read_version(find_program("nginx", "apt install nginx-light"), "-v"),
        "uwsgi": _read_version(find_program("uwsgi", "pip install 'reqpath[demo]'"), "--version"),
        "python": platform.python_version(),
        "reqpath": reqpath.__version__,
    }
    return Host(
        identity=_identify(),
        kernel=platform.release(),
        cpu_model=_find_line(r"model name\s*:\s*(.+)", "/proc/cpuinfo"),
        cores=len(os.sched_getaffinity(0)),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        memory_bytes=int(_find_line(r"MemTotal:\s*(\d+) kB", "/proc/meminfo") or 0) * 1024,
        somaxconn=int(_read("/proc/sys/net/core/somaxconn") or 0) or None,
        versions=versions | ({"database": database} if database else {}) | (tools or {}),
    )


def _identify() -> str:
    known = _read("/etc/machine-id") or platform.node()
    return hashlib.blake2b(known.strip().encode(), key=_PURPOSE, digest_size=8).hexdigest()


def _read_version(path: str, option: str) -> str:
    """Return the first version in what a program says of itself."""
    done = subprocess.run([path, option], capture_output=True, text=True, check=False, timeout=30)
    found = re.search(r"\d+(\.\d+)+[\w.\-]*", done.stdout + done.stderr)
    return found[0] if found else ""


def _find_line(pattern: str, path: str) -> str:
    found = re.search(pattern, _read(path))
    return found[1].strip() if found else ""


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
