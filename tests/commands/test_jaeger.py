"""`reqpath jaeger` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from reqpath.servers.jaeger import find_jaeger
from reqpath.traces.jaeger import JaegerReader

_DEADLINE_S = 60.0


@pytest.mark.live
def test_it_prints_where_it_is_and_stays_until_ctrl_c(tmp_path: Path) -> None:
    if find_jaeger(private=True) is None:
        pytest.skip("no Jaeger: there is no jaeger program, no container engine that answers, and no Go")
    # Python ignores Ctrl-C where it was started with it ignored, as in a shell's background.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[0] = 'reqpath'; from reqpath.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "jaeger", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["started"]
        assert JaegerReader(told["url"]).list_services() == []
        request = urllib.request.Request(
            f"{told['otlp_http']}/v1/traces", b"{}", {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_DEADLINE_S) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(_DEADLINE_S) == 0
    assert list(tmp_path.iterdir()) == []


def test_without_any_the_message_says_what_to_have(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("REQPATH_", "OTEL_"))
    }
    environment |= {"REQPATH_JAEGER": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "reqpath.cli", "jaeger"],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert f"{tmp_path}/none" in done.stderr
